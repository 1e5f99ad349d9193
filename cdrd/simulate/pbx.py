"""Turns reports into the stream of a PBX: the server side of the S-Series TCP events, API 2.0.0.

Nothing flows before an authorised login, and what nobody is connected for is lost: a PBX documents
no replay. Here the lost is counted.
"""

import asyncio
import socket
import struct
import time
from collections.abc import Callable

from cdrd.address import format_address
from cdrd.simulate.account import Account
from cdrd.simulate.history import History
from cdrd.simulate.play import CLOSE_SECONDS, PlayingPBX
from cdrd.simulate.reports import lay

_LOGIN_BYTES = 4096
_ACCEPTED = b"Response: Success\r\nMessage: Authentication accepted\r\n\r\n"
_REFUSED = b"Response: Error\r\nMessage: Authentication failed\r\n\r\n"
# On, with zero seconds: closing discards what waits and sends RST in place of FIN.
_LINGER_ZERO = struct.pack("ii", 1, 0)


class SimulatedPBX(PlayingPBX):
    """A PBX that programs dial, log in to, and then read events from, over IPv4 or IPv6."""

    dialect = "2.0.0"

    def __init__(
        self,
        username: str = "api",
        password: str = "api",  # noqa: S107 - guards nothing but a simulation
        *,
        delimiter: str = "newline",
        account: Account | None = None,
        history: History | None = None,
        clock: Callable[[], float] = time.monotonic,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Lay events on the stream by `delimiter`, one of `DELIMITERS`.

        An `account` that is shared with a web API stands for `username` and `password`. `clock`
        tells the seconds for the lock, `note` is told of logins, refusals and resets.
        """
        super().__init__(history)
        lay(b"", delimiter)
        self._account = account or Account(username, password)
        self._delimiter, self._clock, self._note = delimiter, clock, note
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}
        self._listeners: set[asyncio.StreamWriter] = set()
        self._someone_listens = asyncio.Event()
        self._line = asyncio.Lock()
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port on which the PBX listens, once it is started."""
        if self._server is None:
            raise RuntimeError("the PBX is not started: await start() first")
        host, port, *_ = self._server.sockets[0].getsockname()
        return host, port

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; port 0 picks a free one. Raises OSError when the address cannot be had."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=_LOGIN_BYTES)

    async def logged_in(self) -> None:
        """Wait until at least one connection is logged in."""
        await self._someone_listens.wait()

    async def close(self) -> None:
        """Stop listening and close the connections in order; who does not read is cut off."""
        if self._server is not None:
            self._server.close()
        serving = [task for task in self._connections.values() if task is not None]
        for writer in self._connections:
            writer.close()
        self._forget(*self._listeners)
        if serving:
            await asyncio.wait(serving, timeout=CLOSE_SECONDS)
        for writer in self._connections:
            writer.transport.abort()
        await asyncio.gather(*serving)

    async def send(self, report: bytes, *, chunk: int = 0) -> int:
        """Send a report to all who are logged in, and return how many connections got it.

        A connection got it when the whole is with the system, so the call waits for receivers that
        read slowly. `chunk` cuts it into writes of so many bytes.
        """
        heard_by = await self._lay_on(report, chunk)
        self.sent += heard_by > 0
        self.unheard += heard_by == 0
        return heard_by

    async def send_event(self, event: bytes, *, chunk: int = 0) -> int:
        """Send another event than a call report: likewise, but counted in `events`."""
        heard_by = await self._lay_on(event, chunk)
        self.events += heard_by > 0
        return heard_by

    async def settle(self) -> None:
        """Wait for nothing: what was sent is with the system, and nobody tells more."""

    async def reset(self, *, orderly: bool = False) -> None:
        """Break all connections now, by RST; with `orderly` by a close between two reports.

        The close loses nothing. The RST discards what the receiver's system has not taken in yet
        (up to a socket buffer, while the receiver is behind), though it was counted as sent, and
        some systems also discard what they had taken in and the program had not read.
        """
        if orderly:
            async with self._line:
                self._break_off("closed", _close)
        else:
            self._break_off("reset", _reset)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections[writer] = asyncio.current_task()
        # Zero: drain() waits until all is with the system, so what is counted as sent has left.
        writer.transport.set_write_buffer_limits(high=0)
        try:
            if await self._login(reader, writer):
                await _read_to_the_end(reader)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            # The peer broke off, or sends what is no login: nothing of it was to be kept.
            pass
        finally:
            self._forget(writer)
            del self._connections[writer]
            writer.close()

    async def _login(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        block = _login_block(await reader.readuntil(b"\r\n\r\n"))
        credentials = block.get("username", ""), block.get("secret", "")
        is_login = block.get("action", "").lower() == "login"
        if is_login and self._account.admits(*credentials, self._clock()):
            await self._welcome(writer)
            return True
        await self._refuse(writer)
        return False

    async def _welcome(self, writer: asyncio.StreamWriter) -> None:
        self.logins += 1
        self._note(f"{_peer(writer)} logged in")
        # No await between these: who has read the answer hears all that is sent from then on.
        writer.write(_ACCEPTED)
        self._listeners.add(writer)
        self._someone_listens.set()
        await writer.drain()

    async def _refuse(self, writer: asyncio.StreamWriter) -> None:
        self.refusals += 1
        self._note(f"{_peer(writer)} was refused")
        writer.write(_REFUSED)
        await writer.drain()

    async def _lay_on(self, message: bytes, chunk: int) -> int:
        """Lay a message on the stream; who logs in meanwhile gets the next one first."""
        laid = lay(message, self._delimiter)
        size = chunk or len(laid)
        async with self._line:
            listeners = set(self._listeners)
            for start in range(0, len(laid), size):
                await self._write(laid[start : start + size], listeners)
                listeners &= self._listeners
            return len(listeners)

    async def _write(self, piece: bytes, listeners: set[asyncio.StreamWriter]) -> None:
        for writer in listeners:
            writer.write(piece)
        for writer in listeners:
            try:
                await writer.drain()
            except OSError:
                # It broke while it was written to: the report is not counted for it.
                self._forget(writer)

    def _break_off(self, outcome: str, end: Callable[[asyncio.StreamWriter], None]) -> None:
        broken = [writer for writer in self._connections if not writer.is_closing()]
        for writer in broken:
            self._note(f"{_peer(writer)} was {outcome}")
            end(writer)
        self._forget(*broken)
        self.resets += len(broken)

    def _forget(self, *writers: asyncio.StreamWriter) -> None:
        self._listeners.difference_update(writers)
        if not self._listeners:
            self._someone_listens.clear()


def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    carrier = writer.get_extra_info("socket")
    carrier.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    writer.transport.abort()


def _login_block(block: bytes) -> dict[str, str]:
    lines = block.decode("utf-8", "replace").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _read_to_the_end(reader: asyncio.StreamReader) -> None:
    """Discard what the program says after its login: API 2.0.0 has nothing for it to say."""
    while await reader.read(_LOGIN_BYTES):
        pass


def _peer(writer: asyncio.StreamWriter) -> str:
    peer = writer.get_extra_info("peername")
    return format_address(*peer[:2]) if peer else "a peer"
