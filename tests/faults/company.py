"""PBXs that report in every way and break off in every way, and know what they have reported.

Nobody knows what a connection that was reset has brought. Its calls are reported again, as by a PBX
that is asked for its history; so in the end each call has arrived, and has to count once.
"""

import asyncio
import contextlib
import socket
import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Sequence
from random import Random

from cdrd.simulate.play import PlayingPBX
from cdrd.simulate.reports import DIALECTS, new_cdr, other_event
from tests.faults.oracle import STARTED

TICK_SECONDS = 0.05
LINGER_ZERO = struct.pack("ii", 1, 0)  # closing sends RST, and discards what waits
TORN = new_cdr(0, started=STARTED)[:100]
NUISANCES = (
    TORN,
    b"POST / HTTP/1.1\r\nContent-Length: 500\r\n\r\n" + TORN,
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n" + TORN + b"\r\n0\r\n\r\n",
    b"POST /cloud HTTP/1.1\r\nX-Signature: eA==\r\nContent-Length: 100\r\n\r\n" + TORN,
    b"GET / HTTP/1.1\r\n\r\n" * 20,
    b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
)
"""What comes without a call: half a report over TCP, and by HTTP whole, torn, forged and empty."""


class Calls:
    """The calls of one PBX: first what may not have arrived, then new ones."""

    def __init__(self, first: int, started: int = STARTED) -> None:
        """``first``: the number of the first; ``started``: when all of them began (UTC epoch)."""
        self._started = started
        self._first = self._next = first
        self._again: deque[int] = deque()

    @property
    def numbers(self) -> range:
        """Those that were taken so far."""
        return range(self._first, self._next)

    def spell(self, number: int, dialect: str) -> bytes:
        """Make the report of a call."""
        return new_cdr(number, dialect, started=self._started)

    def take(self, count: int) -> list[int]:
        """Return the numbers of so many calls, to be reported now."""
        again = [self._again.popleft() for _ in range(min(count, len(self._again)))]
        new = range(self._next, self._next + count - len(again))
        self._next = new.stop
        return [*again, *new]

    def rest(self) -> list[int]:
        """Return what may not have arrived."""
        return self.take(len(self._again))

    def take_back(self, numbers: Sequence[int]) -> None:
        """Have calls reported again."""
        self._again.extend(numbers)


class Reporter(ABC):
    """A PBX that reports its calls at a rate (a second) for a while."""

    def __init__(self, calls: Calls, rate: float, choose: Random) -> None:
        self.calls = calls
        self.rate = rate
        self.choose = choose

    @abstractmethod
    async def report(self, end: float) -> None:
        """Report until a time of the loop."""

    @abstractmethod
    async def report_the_rest(self) -> None:
        """Report what may not have arrived, in a way that it does."""


class Connecting(Reporter):
    """A PBX that connects from some address, for up to 20 seconds each time."""

    def __init__(self, calls: Calls, rate: float, choose: Random, *, port: int, at: str) -> None:
        super().__init__(calls, rate, choose)
        self._port = port
        self._at = at

    async def report(self, end: float) -> None:
        clock = asyncio.get_running_loop().time
        while clock() < end:
            lasts = min(end, clock() + self.choose.uniform(0.5, 20))
            reader, writer = await self._connect()
            reported: list[int] = []
            async for count in due(self.rate, lasts):
                reported += (numbers := self.calls.take(count))
                writer.write(b"".join(map(self._spelt, numbers)))
                await writer.drain()
            if self.choose.random() < 0.3:
                reset(writer)
                self.calls.take_back(reported)
            else:
                await _end_in_order(reader, writer, self.choose.choice((b"", TORN)))

    async def report_the_rest(self) -> None:
        reader, writer = await self._connect()
        writer.writelines(map(self._spelt, self.calls.rest()))
        await _end_in_order(reader, writer, b"")

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._port, local_addr=(self._at, 0))

    def _spelt(self, number: int) -> bytes:
        """Report a call in any dialect, and now and then something else behind it."""
        choose, calls = self.choose, self.calls
        report = calls.spell(number, choose.choice(DIALECTS))
        if choose.random() < 0.95:
            return report + b"\n"
        other = choose.choice(
            (
                other_event(number, choose.choice(DIALECTS)),
                calls.spell(choose.choice(calls.numbers), choose.choice(DIALECTS)),
                b'{"action":"NewCdr","callid":"1.%d","timestart":"soon"}' % number,
                b"heartbeat response",
                TORN,
                report + report,
            )
        )
        return b"%b\n%b\n" % (report, other)


class Played(Reporter):
    """A PBX that the daemon connects to; by and by its connections break, one way or another."""

    def __init__(self, calls: Calls, rate: float, choose: Random, pbx: PlayingPBX) -> None:
        super().__init__(calls, rate, choose)
        self._pbx = pbx

    async def report(self, end: float) -> None:
        clock = asyncio.get_running_loop().time
        while clock() < end:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(end):
                    await self._pbx.logged_in()
            lasts = min(end, clock() + self.choose.uniform(3, 30))
            heard = [number async for number in self._tell(lasts)]
            in_order = self.choose.random() < 0.5
            await self._pbx.reset(orderly=in_order)
            if not in_order:
                self.calls.take_back(heard)

    async def report_the_rest(self) -> None:
        await self._pbx.logged_in()
        for number in self.calls.rest():
            assert await self._pbx.send(self.calls.spell(number, self._pbx.dialect))

    async def _tell(self, end: float) -> AsyncIterator[int]:
        """Send what is due; return what somebody has heard."""
        async for count in due(self.rate, end):
            for number in self.calls.take(count):
                if await self._pbx.send(self.calls.spell(number, self._pbx.dialect)):
                    yield number
                else:
                    self.calls.take_back([number])


class Posting(Reporter):
    """A PBX that posts, and repeats what is not taken."""

    def __init__(self, calls: Calls, rate: float, choose: Random, pbx: PlayingPBX) -> None:
        super().__init__(calls, rate, choose)
        self._pbx = pbx

    async def report(self, end: float) -> None:
        async for count in due(self.rate, end):
            for number in self.calls.take(count):
                await self._pbx.send(self.calls.spell(number, self._pbx.dialect))
            await self._pbx.settle()

    async def report_the_rest(self) -> None:
        await self._pbx.settle()


async def due(rate: float, end: float) -> AsyncIterator[int]:
    """Tell every now and then, up to a time of the loop, how many reports are due."""
    clock = asyncio.get_running_loop().time
    began, told = clock(), 0
    while (now := clock()) < end:
        count = int((now - began) * rate) - told
        told += count
        yield count
        await asyncio.sleep(TICK_SECONDS)


async def be_a_nuisance(ports: Sequence[int], end: float, choose: Random) -> None:
    """Connect as a stranger or as a PBX, say what is no call, and break off."""
    async for _ in due(0, end):
        at = choose.choice(("127.0.0.66", "127.0.0.1", "127.0.0.2"))
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", choose.choice(ports), local_addr=(at, 0)
        )
        with contextlib.suppress(OSError):  # a stranger is refused at once
            writer.write(choose.choice((b"", choose.randbytes(300), *NUISANCES)))
            await writer.drain()
            if choose.random() < 0.5:
                reset(writer)
            else:
                writer.write_eof()
                await reader.read()
        writer.close()


def reset(writer: asyncio.StreamWriter) -> None:
    """Break a connection off by RST."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
    writer.transport.abort()


async def _end_in_order(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, torn: bytes
) -> None:
    """Half-close behind the beginning of a report, and read up to the daemon's close.

    By then it has read all of it.
    """
    writer.write(torn)
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
