"""Turns events into WebSocket messages for who has subscribed: the P-Series' push, one text each.

Who says nothing for a while is dropped. Where the facts are silent: a ping of the protocol is
answered and is no word of the client, who is dropped is told so by a close frame, a later list of
topics replaces the one before, and a connection outlives the token that it was made with.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Final

import orjson
from aiohttp import WSMsgType, web

from cdrd.simulate.history import History
from cdrd.simulate.play import PlayingPBX

SILENCE_SECONDS: Final = 60.0
PARAMETER_ERROR: Final = 40002

_CLOSE_SECONDS = 1.0
_LINGER_ZERO = struct.pack("ii", 1, 0)
_SUCCESS = '{"errcode":0,"errmsg":"SUCCESS"}'
_BAD_TOPICS = f'{{"errcode":{PARAMETER_ERROR},"errmsg":"PARAMETER ERROR"}}'


class SubscribedPBX(PlayingPBX):
    """A P-Series PBX that sends each event to the WebSockets that have subscribed to its topic."""

    dialect = "p-series"

    def __init__(
        self,
        *,
        history: History | None = None,
        silence_seconds: float = SILENCE_SECONDS,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Drop who says nothing for `silence_seconds`; `note` is told who came and went."""
        super().__init__(history)
        self._silence, self._note = silence_seconds, note
        self._open: dict[web.WebSocketResponse, web.Request] = {}
        self._topics: dict[web.WebSocketResponse, frozenset[int]] = {}
        self._someone_listens = asyncio.Event()

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """Serve the connection of a client whose token is good, to its end."""
        connection = web.WebSocketResponse(autoping=False, timeout=_CLOSE_SECONDS)
        await connection.prepare(request)
        self._open[connection] = request
        try:
            async with asyncio.timeout(self._silence) as limit:
                await self._listen(connection, limit)
        except TimeoutError:
            self._note(f"{request.remote} was dropped: it said nothing")
            await self._close_in_order(connection)
        except OSError:
            # It broke while it was answered; what it had not heard is counted where it was sent.
            pass
        finally:
            self._forget(connection)
            del self._open[connection]
        return connection

    async def logged_in(self) -> None:
        """Wait until someone has subscribed."""
        await self._someone_listens.wait()

    async def send(self, report: bytes, *, chunk: int = 0) -> int:  # noqa: ARG002 - one message
        """Send a report to all who have subscribed to its topic; how many got it."""
        heard_by = await self._tell(report)
        self.sent += heard_by > 0
        self.unheard += heard_by == 0
        return heard_by

    async def send_event(self, event: bytes, *, chunk: int = 0) -> int:  # noqa: ARG002 - one message
        """Send another event likewise."""
        heard_by = await self._tell(event)
        self.events += heard_by > 0
        return heard_by

    async def settle(self) -> None:
        """Wait for nothing: what was sent is with the system, and nobody tells more."""

    async def reset(self, *, orderly: bool = False) -> None:
        """Break all connections now, by RST, or in order."""
        broken = list(self._open)
        for connection in broken:
            self._forget(connection)
            if orderly:
                await self._close_in_order(connection)
            else:
                self._reset(connection)
        self.resets += len(broken)

    async def close(self) -> None:
        """Close all connections in order."""
        for connection in list(self._open):
            await self._close_in_order(connection)

    async def _listen(self, connection: web.WebSocketResponse, limit: asyncio.Timeout) -> None:
        clock = asyncio.get_running_loop().time
        async for message in connection:
            match message.type:
                case WSMsgType.TEXT:
                    limit.reschedule(clock() + self._silence)
                    await self._answer(connection, message.data)
                case WSMsgType.PING:
                    await connection.pong(message.data)
                case _:
                    # A pong, or bytes, which nobody defines: the client has said nothing.
                    pass

    async def _answer(self, connection: web.WebSocketResponse, text: str) -> None:
        if text == "heartbeat":
            self.heartbeats += 1
            await connection.send_str("heartbeat response")
            return
        topics = _topics(text)
        if not topics:
            self.refusals += 1
            await connection.send_str(_BAD_TOPICS)
            return
        await connection.send_str(_SUCCESS)
        self._note(f"{self._open[connection].remote} subscribed")
        self._topics[connection] = topics
        self._someone_listens.set()

    async def _tell(self, event: bytes) -> int:
        topic, text = orjson.loads(event)["type"], event.decode()
        heard_by = 0
        for connection in [known for known, topics in self._topics.items() if topic in topics]:
            # One that breaks meanwhile has not heard it; its own task tidies up.
            with contextlib.suppress(OSError):
                await connection.send_str(text)
                heard_by += 1
        return heard_by

    async def _close_in_order(self, connection: web.WebSocketResponse) -> None:
        """Close, with a bound: a client that does not read is cut off."""
        transport = self._open[connection].transport
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(connection.close(), 2 * _CLOSE_SECONDS)
        if transport is not None:
            transport.close()

    def _reset(self, connection: web.WebSocketResponse) -> None:
        transport = self._open[connection].transport
        if transport is not None:
            carrier = transport.get_extra_info("socket")
            carrier.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
            transport.abort()

    def _forget(self, connection: web.WebSocketResponse) -> None:
        self._topics.pop(connection, None)
        if not self._topics:
            self._someone_listens.clear()


def _topics(text: str) -> frozenset[int]:
    """Read a subscription; one that cannot be read is one to no topic."""
    try:
        topics = orjson.loads(text)["topic_list"]
        return frozenset(topics) if all(isinstance(topic, int) for topic in topics) else frozenset()
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return frozenset()
