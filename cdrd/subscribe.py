"""Turns a P-Series PBX's WebSocket into a stream of reports that stays: subscribe, read, come back.

The rule that must stay true: a message is in custody before the next one is waited for; none is
taken while there is no room, and what has come by a stop is taken in any case.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

import aiohttp
import orjson

from cdrd.address import format_address
from cdrd.intake import Intake, unread_in
from cdrd.log import Logger
from cdrd.login import MINUTES, BackOff
from cdrd.p_series import PSeriesApi, errcode_of, spell_error
from cdrd.pbx_api import Unreachable, keep_holding
from cdrd.record import utc_milliseconds
from cdrd.sender import Origin, Sender
from cdrd.source import WEBSOCKET
from cdrd.web_session import WebSocket

SUBSCRIPTION: Final = '{"topic_list":[30012]}'
"""To call records. Source: the vendor's page on its events."""

HEARTBEAT: Final = "heartbeat"
HEARTBEAT_ANSWER: Final = b"heartbeat response"
STEADY_SECONDS: Final = 30.0
"""A connection that lasted this long makes the next wait short again."""


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often the PBX hears of us, and how long it may take to answer, in seconds."""

    heartbeat: float = 30  # it drops who is silent for 60
    answer: float = 10
    renewal: float = 25 * MINUTES  # a token lives for 30 minutes, and the connection with it


class Subscription:
    """Keeps one WebSocket to one PBX."""

    def __init__(
        self,
        sender: Sender,
        api: PSeriesApi,
        *,
        intake: Intake,
        log: Logger,
        rhythm: Rhythm | None = None,
    ) -> None:
        self.pbx = sender.name
        self._sender = sender
        self._api = api
        self._intake = intake
        self._address = urlsplit(api.base).netloc
        self._log = log.bind(pbx=sender.name, address=self._address)
        self._rhythm = rhythm or Rhythm()
        self._back_off = BackOff()
        self._renewal_back_off = BackOff()
        self._connection: _Connection | None = None

    @property
    def connected(self) -> bool:
        """Tell whether reports come."""
        return self._connection is not None and self._connection.subscribed

    async def run(self) -> None:
        """Hold the subscription until cancelled."""
        await self._keep(self._hold_one, self._back_off)

    async def _keep(self, hold_one: Callable[[], Awaitable[None]], back_off: BackOff) -> NoReturn:
        await keep_holding(hold_one, back_off, self._log, pbx=self.pbx, address=self._address)

    def unread_bytes(self) -> int:
        """Return how many bytes the kernel holds that we have not read."""
        return 0 if self._connection is None else self._connection.unread_bytes()

    async def _hold_one(self) -> None:
        web_socket = await self._api.subscribe()
        began = time.monotonic()
        self._connection = connection = _Connection(
            web_socket, self._sender, self._intake, self._begun
        )
        try:
            reason = await _first_of(
                connection.read(self._rhythm),
                connection.beat(self._rhythm),
                self._keep(self._renew_when_due, self._renewal_back_off),
            )
        finally:
            was_subscribed, self._connection = self.connected, None
            await connection.end()
        if not was_subscribed:
            self._api.distrust_token()
            raise Unreachable(f"{self._api.base} did not take the subscription: {reason}")
        self._intake.gaps.broke(self._sender.name)
        self._log.warning(
            "pbx_disconnected",
            peer=connection.peer,
            reports=connection.stream.reports,
            reason=reason,
        )
        if time.monotonic() - began >= STEADY_SECONDS or connection.stream.understood:
            self._back_off.reset()

    def _begun(self, peer: str) -> None:
        self._log.info("pbx_connected", peer=peer)
        self._intake.gaps.mended(self._sender.name)

    async def _renew_when_due(self) -> None:
        await self._api.login()  # where the last renewal failed, there is no token
        self._renewal_back_off.reset()
        await asyncio.sleep(self._rhythm.renewal)
        await self._api.renew()


class _Connection:
    """One WebSocket whose messages are reports, and answers to us among them."""

    def __init__(
        self, web_socket: WebSocket, sender: Sender, intake: Intake, begun: Callable[[str], None]
    ) -> None:
        self._web_socket = web_socket
        self._intake = intake
        self._begun = begun
        self._heard = False
        self.subscribed = False
        peername = web_socket.get_extra_info("peername")
        self.peer = format_address(*peername[:2]) if peername else ""
        self.stream = intake.open_stream(Origin([sender]), self.peer, WEBSOCKET)

    async def read(self, rhythm: Rhythm) -> str:
        """Subscribe, and take custody of each message; return why there are no more."""
        try:
            await self._web_socket.send_str(SUBSCRIPTION)
            while not self.subscribed:
                if why := await self._read_one(rhythm.answer):
                    return why
        except TimeoutError:
            return f"no answer in {rhythm.answer:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return str(error)
        while True:
            if why := await self._read_one():
                return why

    async def _read_one(self, seconds: float | None = None) -> str:
        await self._intake.room.wait()
        async with asyncio.timeout(seconds):
            message = await self._web_socket.receive()
        if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            return self._why_ended()
        return self._take(message.data)

    async def beat(self, rhythm: Rhythm) -> str:
        """Send heartbeats until one has no answer; return that."""
        while True:
            await asyncio.sleep(max(rhythm.heartbeat - rhythm.answer, 0))
            self._heard = False
            try:
                await self._web_socket.send_str(HEARTBEAT)
            except (aiohttp.ClientError, OSError) as error:
                return str(error)
            await asyncio.sleep(rhythm.answer)
            # While there is no room it is we who do not listen.
            if not self._heard and not self._intake.paused:
                return f"no answer to a heartbeat in {rhythm.answer:g} s"

    async def end(self) -> None:
        """Take custody of what has come and was not taken yet, and close the connection."""
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(0):
                    message = await self._web_socket.receive()
                if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                    break
                self._take(message.data)
        await self._web_socket.close()

    def unread_bytes(self) -> int:
        """Return how many bytes the kernel holds that we have not read."""
        sock = self._web_socket.get_extra_info("socket")
        return 0 if sock is None else unread_in(sock)

    def _take(self, message: bytes) -> str:
        """Take custody of a report; of an answer, return why it is a refusal."""
        self._heard = True
        if message.strip() == HEARTBEAT_ANSWER:
            return ""
        answer = _subscribe_answer(message)
        if answer is not None and errcode_of(answer):
            return spell_error(answer)
        if not self.subscribed:  # an event before the answer tells the same
            self.subscribed = True
            self._begun(self.peer)
        if answer is None:
            now = utc_milliseconds(time.time())
            self.stream.limit(self._intake.max_report_bytes)  # a reload may have changed it
            self.stream.receive(message + b"\n", now)
            self.stream.close("the message ended in the middle of a report", now)
            self._intake.arrived()
        return ""

    def _why_ended(self) -> str:
        code = self._web_socket.close_code
        error = self._web_socket.exception()
        return f"closed with code {code}" + (f": {error}" if error else "")


def _subscribe_answer(message: bytes) -> dict[str, Any] | None:
    """Return the answer that a message is, or None for a report."""
    if b'"errcode"' not in message:
        return None
    try:
        said = orjson.loads(message)
    except orjson.JSONDecodeError:
        return None
    is_answer = isinstance(said, dict) and "errcode" in said and "type" not in said
    return said if is_answer else None


async def _first_of(*ways: Coroutine[Any, Any, str]) -> str:
    """Return what the first of them returns, and end the others."""
    tasks = [asyncio.create_task(way) for way in ways]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return ended.pop().result()
