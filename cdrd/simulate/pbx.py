"""Turns reports into the stream of a PBX: the server side of the S-Series TCP events, API 2.0.0.

Nothing flows before an authorised login, and what nobody is connected for is lost: a PBX documents
no replay. Here the lost is counted.
"""

import argparse
import asyncio
import itertools
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import orjson
import uvloop

from cdrd.address import format_address, parse_address
from cdrd.simulate.reports import DELIMITERS, DIALECTS, lay, new_cdr, other_event

FAILURES_TO_LOCK = 5
LOCK_SECONDS = 10 * 60
_LOGIN_BYTES = 4096
_CLOSE_SECONDS = 5
_MOMENT = 0.001
_DIGITS = 18
_ACCEPTED = b"Response: Success\r\nMessage: Authentication accepted\r\n\r\n"
_REFUSED = b"Response: Error\r\nMessage: Authentication failed\r\n\r\n"
# On, with zero seconds: closing discards what waits and sends RST in place of FIN.
_LINGER_ZERO = struct.pack("ii", 1, 0)


class Account:
    """The PBX's API account: after five failed logins in a row it is locked for ten minutes.

    While it is locked the right password is refused too, and no attempt lengthens the lock.
    """

    def __init__(self, username: str, password: str) -> None:
        self._credentials = (username, password)
        self._failures = 0
        self._locked_until = float("-inf")

    def admits(self, username: str, password: str, now: float) -> bool:
        """Whether a login at `now` (seconds) succeeds; a failure counts towards the lock."""
        if now < self._locked_until:
            return False
        if (username, password) == self._credentials:
            self._failures = 0
            return True
        self._fail(now)
        return False

    def _fail(self, now: float) -> None:
        self._failures += 1
        if self._failures == FAILURES_TO_LOCK:
            self._failures, self._locked_until = 0, now + LOCK_SECONDS


class SimulatedPBX:
    """A PBX that programs dial, log in to, and then read events from, over IPv4 or IPv6.

    `sent` and `events` count the reports and the other events that at least one connection got,
    `unheard` the reports made while nobody was logged in; `logins`, `refusals` and `resets` count
    connections. `number` is the next call's in `stream`.
    """

    def __init__(
        self,
        username: str = "api",
        password: str = "api",  # noqa: S107 - guards nothing but a simulation
        *,
        delimiter: str = "newline",
        clock: Callable[[], float] = time.monotonic,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Lay events on the stream by `delimiter`, one of `DELIMITERS`.

        `clock` tells the seconds for the lock, `note` is told of logins, refusals and resets.
        """
        lay(b"", delimiter)
        self._account = Account(username, password)
        self._delimiter, self._clock, self._note = delimiter, clock, note
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}
        self._listeners: set[asyncio.StreamWriter] = set()
        self._someone_listens = asyncio.Event()
        self._line = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self.number = 0
        self.sent = self.events = self.unheard = 0
        self.logins = self.refusals = self.resets = 0

    @property
    def counters(self) -> dict[str, int]:
        """The six counters by name."""
        names = ("sent", "events", "unheard", "logins", "refusals", "resets")
        return {name: getattr(self, name) for name in names}

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
            await asyncio.wait(serving, timeout=_CLOSE_SECONDS)
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

    async def stream(  # noqa: PLR0913 - by name, each with a default
        self,
        *,
        count: int = 0,
        seconds: float = 0,
        rate: float = 0,
        events: int = 3,
        dialect: str = "2.0.0",
        started: int | None = None,
        utc_offset: int = 0,
        reset_every: int = 0,
        orderly: bool = False,
        patient: bool = False,
        chunk: int = 0,
    ) -> None:
        """Play `count` calls, or `seconds` of them; without either, go on until cancelled.

        `rate` is calls a second (0: as fast as they are read), `events` the number of other events
        before each call's report. Calls begin at the time of sending, or all at `started` (UTC
        epoch). Their numbers run on from one stream to the next.

        After each `reset_every` reports all connections break, by RST and by an orderly close in
        turn, or with `orderly` always by the close. What is played before the next login is lost,
        unless `patient`: then each call waits for someone to be logged in.

        A cancelled stream ends between two reports, as long as those are read.
        """
        ways = itertools.cycle((True,) if orderly else (False, True))
        async for played in _paced(count, seconds, rate):
            if patient:
                await self.logged_in()
            begun = int(time.time()) if started is None else started
            report = new_cdr(self.number, dialect, started=begun, utc_offset=utc_offset)
            await _finish(self._play(report, events, dialect, chunk))
            if reset_every and played % reset_every == 0:
                await self.reset(orderly=next(ways))

    async def _play(self, report: bytes, events: int, dialect: str, chunk: int) -> None:
        first = self.number * events
        self.number += 1
        for number in range(first, first + events):
            await self.send_event(other_event(number, dialect), chunk=chunk)
        await self.send(report, chunk=chunk)

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


async def _paced(count: int, seconds: float, rate: float) -> AsyncIterator[int]:
    """Count from 1, each number when it is due; a bound of 0 is none."""
    clock = asyncio.get_running_loop().time
    begun = clock()
    end = begun + seconds if seconds else float("inf")
    for played in range(1, count + 1) if count else itertools.count(1):
        due = begun + (played - 1) / rate if rate else begun
        await asyncio.sleep(min(due, end) - clock())
        if max(due, clock()) >= end:
            return
        yield played


async def _finish(playing: Coroutine[None, None, None]) -> None:
    """Let a cancellation wait for what has begun, though not for ever: a receiver may not read."""
    task = asyncio.create_task(playing)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=_CLOSE_SECONDS)
        task.cancel()
        raise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `cdrd simulate pbx`."""
    parser.description = (
        "A PBX to test with: programs dial it, log in, and receive calls and other events as from "
        "an S-Series PBX (API 2.0.0). Play begins with the first login. At its end it prints what "
        "it has sent as one JSON line."
    )
    add = parser.add_argument
    add(
        "--listen",
        type=address,
        default=("127.0.0.1", 8333),
        metavar="HOST:PORT",
        help="where to listen; port 0 picks a free one (default: 127.0.0.1:8333)",
    )
    add("--username", default="api", help="of the API account (default: api)")
    add(
        "--password-file",
        type=_password,
        dest="password",
        metavar="FILE",
        help="its first line is the API account's password (default: the password is api)",
    )
    add_report_arguments(parser, "2.0.0")
    add(
        "--rate", type=amount, default=1, metavar="CALLS", help="a second, 0: flat out (default: 1)"
    )
    add(
        "--events",
        type=at_least(0),
        default=3,
        metavar="N",
        help="other events a call (default: 3)",
    )
    add("--count", type=at_least(0), default=0, metavar="N", help="end after N calls (0: never)")
    add("--seconds", type=amount, default=0, metavar="N", help="end after N seconds (0: never)")
    add(
        "--reset-every",
        type=at_least(0),
        default=0,
        metavar="N",
        help="break all connections after every N calls, by reset and by close in turn (0: never)",
    )
    add(
        "--chunk",
        type=at_least(0),
        default=0,
        metavar="BYTES",
        help="cut the stream into writes of so many bytes (0: a report a write)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run `cdrd simulate pbx`; the exit status."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(arguments))


async def _run(arguments: argparse.Namespace) -> int:
    pbx = SimulatedPBX(
        arguments.username, arguments.password or "api", delimiter=arguments.delimiter, note=remark
    )
    try:
        await pbx.start(*arguments.listen)
    except OSError as error:
        remark(f"cannot listen on {format_address(*arguments.listen)}: {reason(error)}")
        return 1
    password = "as in the file" if arguments.password else "api (the default)"
    remark(f"listening on {format_address(*pbx.address)}")
    remark(f"username {arguments.username}, password {password}; play begins with the first login")
    await _play_until_stopped(pbx, arguments)
    await pbx.close()
    sys.stdout.write(orjson.dumps(pbx.counters, option=orjson.OPT_APPEND_NEWLINE).decode())
    return 0


async def _play_until_stopped(pbx: SimulatedPBX, arguments: argparse.Namespace) -> None:
    playing = asyncio.create_task(_play(pbx, arguments))
    for stop in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(stop, playing.cancel)
    await asyncio.wait({playing})
    if not playing.cancelled():
        playing.result()


async def _play(pbx: SimulatedPBX, arguments: argparse.Namespace) -> None:
    clock = asyncio.get_running_loop().time
    begun = clock()
    try:
        await asyncio.wait_for(pbx.logged_in(), arguments.seconds or None)
    except TimeoutError:
        return
    left = max(arguments.seconds - (clock() - begun), _MOMENT) if arguments.seconds else 0
    await pbx.stream(
        count=arguments.count,
        seconds=left,
        rate=arguments.rate,
        events=arguments.events,
        dialect=arguments.dialect,
        reset_every=arguments.reset_every,
        chunk=arguments.chunk,
    )


def add_report_arguments(parser: argparse.ArgumentParser, dialect: str) -> None:
    """Declare how reports look: the dialect, with its default, and the delimiter."""
    parser.add_argument(
        "--dialect",
        choices=DIALECTS,
        default=dialect,
        help=f"the reports' dialect (default: {dialect})",
    )
    meanings = "; ".join(f"{name}: {meaning}" for name, meaning in DELIMITERS.items())
    parser.add_argument(
        "--delimiter",
        choices=tuple(DELIMITERS),
        default="newline",
        help=f"what stands between two reports (default: newline). {meanings}",
    )


def address(text: str) -> tuple[str, int]:
    """HOST:PORT as a command-line argument."""
    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def at_least(lowest: int) -> Callable[[str], int]:
    """Make the type of a command-line argument that is a whole number of that size or more."""

    def whole_number(text: str) -> int:
        digits = text.isascii() and text.isdecimal() and len(text) <= _DIGITS
        if not digits or int(text) < lowest:
            raise argparse.ArgumentTypeError(f'"{text}" is no whole number of {lowest} or more')
        return int(text)

    return whole_number


def amount(text: str) -> float:
    """Seconds, or calls a second, as a command-line argument: a number of 0 or more."""
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f'"{text}" is no number of 0 or more')
    return number


def _password(path: str) -> str:
    try:
        first_line = Path(path).read_text("utf-8").partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(
            f'cannot read a password from "{path}": {error}'
        ) from error
    if not first_line:
        raise argparse.ArgumentTypeError(f'the first line of "{path}" is empty: write a password')
    return first_line


def reason(error: OSError) -> str:
    """Say why, without the address that asyncio puts into some of these texts."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)


def remark(sentence: str) -> None:
    """Write a remark on stderr, at once."""
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()
