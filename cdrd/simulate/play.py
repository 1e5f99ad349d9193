"""Turns running numbers into calls that happen now: pushed to who listens, and kept as history.

What nobody listens to is lost, as with a PBX, and counted; where there is a history, it has it.
"""

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine

from cdrd.simulate.history import History
from cdrd.simulate.reports import duration, new_cdr, other_event

CLOSE_SECONDS = 5
"""A receiver that does not read may hold up an end for so long."""

COUNTERS = (
    *("sent", "events", "unheard", "logins", "refusals", "resets"),
    *("calls", "posts", "fetches", "heartbeats"),
)


class PlayingPBX(ABC):
    """What plays calls, of whichever kind.

    `calls` counts those played, pushed or not; `sent` and `events` count the reports and the other
    events that at least one receiver got, `unheard` the reports that none got. `logins`,
    `refusals`, `heartbeats` and `fetches` count what programs asked for, `resets` connections that
    were broken, `posts` attempts to post. `number` is the next call's in `stream`.
    """

    def __init__(self, history: History | None = None) -> None:
        """Keep each call in `history`, where one is given."""
        self._history = history
        self.number = 0
        self.sent = self.events = self.unheard = 0
        self.logins = self.refusals = self.resets = 0
        self.calls = self.posts = self.fetches = self.heartbeats = 0

    @property
    def counters(self) -> dict[str, int]:
        """The counters by name."""
        return {name: getattr(self, name) for name in COUNTERS}

    @property
    @abstractmethod
    def dialect(self) -> str:
        """The dialect that its receivers expect now."""

    @abstractmethod
    async def logged_in(self) -> None:
        """Wait until someone listens."""

    @abstractmethod
    async def send(self, report: bytes, *, chunk: int = 0) -> int:
        """Send a report to all who listen, in writes of `chunk` bytes (0: one); how many do."""

    @abstractmethod
    async def send_event(self, event: bytes, *, chunk: int = 0) -> int:
        """Send another event than a call report, likewise."""

    @abstractmethod
    async def reset(self, *, orderly: bool = False) -> None:
        """Break the connections that stay open, by RST or by an orderly close."""

    @abstractmethod
    async def settle(self) -> None:
        """Wait until what was sent has arrived, where a PBX is told that it has."""

    @abstractmethod
    async def close(self) -> None:
        """End all connections."""

    async def stream(  # noqa: PLR0913 - by name, each with a default
        self,
        *,
        count: int = 0,
        rate: float = 0,
        events: int = 3,
        dialect: str = "",
        started: int | None = None,
        utc_offset: int = 0,
        unpushed_every: int = 0,
        reset_every: int = 0,
        patient: bool = False,
        chunk: int = 0,
    ) -> None:
        """Play `count` calls; without a count, go on until cancelled.

        `rate` is calls a second (0: as fast as they are read), `events` the number of other events
        before each call's report. Calls end at the time of sending, or all begin at `started` (UTC
        epoch). Their numbers run on from one stream to the next. Without a `dialect` it is the one
        that the receivers expect. Each `unpushed_every`-th call is not sent at all.

        After each `reset_every` reports all connections break, by RST and by an orderly close in
        turn. What is played before the next login is lost, unless `patient`: then each call waits
        for someone to be logged in.

        A cancelled stream ends between two reports, as long as those are read.
        """
        ways = itertools.cycle((False, True))
        async for played in _paced(count, rate):
            if patient:
                await self.logged_in()
            begun = int(time.time()) - duration(self.number) if started is None else started
            number = self._begin_call(begun)
            if not unpushed_every or played % unpushed_every:
                spoken = dialect or self.dialect
                report = new_cdr(number, spoken, started=begun, utc_offset=utc_offset)
                await _finish(self._push(number, report, events, spoken, chunk))
                if not rate:
                    await self.settle()
            if reset_every and played % reset_every == 0:
                await self.reset(orderly=next(ways))

    def _begin_call(self, started: int) -> int:
        number = self.number
        self.number += 1
        self.calls += 1
        if self._history is not None:
            self._history.add(number, started)
        return number

    async def _push(
        self, number: int, report: bytes, events: int, dialect: str, chunk: int
    ) -> None:
        for event in range(number * events, (number + 1) * events):
            await self.send_event(other_event(event, dialect), chunk=chunk)
        await self.send(report, chunk=chunk)


async def _paced(count: int, rate: float) -> AsyncIterator[int]:
    """Count from 1, each number when it is due; a count of 0 has no end."""
    clock = asyncio.get_running_loop().time
    begun = clock()
    for played in range(1, count + 1) if count else itertools.count(1):
        due = begun + (played - 1) / rate if rate else begun
        await asyncio.sleep(due - clock())
        yield played


async def _finish(playing: Coroutine[None, None, None]) -> None:
    """Let a cancellation wait for what has begun, though not for ever: a receiver may not read."""
    task = asyncio.create_task(playing)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=CLOSE_SECONDS)
        task.cancel()
        raise
