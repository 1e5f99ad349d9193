"""Turns a gap in what a PBX reports into a fetch of its history: at each start, after each break.

The rule that must stay true: up to when nothing is missing is only ever moved on by the clock while
a connection stands and none is broken, and by a fetch that has stored a window whole; so a gap is
asked for until it is filled, over crashes of either side. Of a PBX that only posts, nobody knows
whether it could: what it has posted moves nothing on. A PBX is asked by one fetch at a time, and
seldom.
"""

import asyncio
import contextlib
import hashlib
import math
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from cdrd.background import to_its_end
from cdrd.batch import Batch, Waiting
from cdrd.fetch import LOOK_BACK, NotAHistory, RestStream, Window, gap_windows, open_csv
from cdrd.gap_watch import Pace
from cdrd.history import HistoryStream
from cdrd.log import Logger
from cdrd.login import BackOff
from cdrd.pbx_api import LoginRefused, NotOffered, Unreachable
from cdrd.period import spell_instant
from cdrd.progress import read_complete_until, set_complete_until
from cdrd.record import utc_milliseconds
from cdrd.sender import Origin, Sender
from cdrd.sizes import MIB
from cdrd.store import Store
from cdrd.stream import Totals
from cdrd.writer import Writer

SLICE_RECORDS: Final = 1000
"""Rows in one commit."""

WAITING_BYTES: Final = 2 * MIB
CLOSE_SECONDS: Final = 2.0

FAILURES: Final = (Unreachable, LoginRefused, NotOffered, NotAHistory, OSError, ValueError)
"""What keeps a PBX from being asked. ValueError: a password of two lines, a host that is none."""

Counts = Counter[str]
Keep = Callable[[Batch], Awaitable[Counts]]
"""Stores a batch durably; tells how much was stored, duplicate and quarantined."""


class Api(Protocol):
    """What a PBX is asked through."""

    async def close(self) -> None:
        """Log out."""


@runtime_checkable
class CsvApi(Api, Protocol):
    """An API that hands out a history as a file: the S-Series."""

    def download(self, start: datetime, end: datetime) -> AsyncGenerator[bytes, None]:
        """Hand out the history of a range of the PBX's local time, a piece at a time.

        The first one has the whole first line, or ``PAYLOAD_BYTES`` of it, and no blanks in front.
        """


@runtime_checkable
class RowsApi(Api, Protocol):
    """An API that hands out a history page by page: the P-Series."""

    def search(self, start: datetime, end: datetime) -> AsyncIterator[list[Any]]:
        """Hand out the history of a range of the PBX's local time."""


HistoryApi = CsvApi | RowsApi


class Ways(NamedTuple):
    """Where a history comes from, and where it goes."""

    api: HistoryApi
    sender: Sender
    peer: str
    keep: Keep


async def fetch_window(window: Window, ways: Ways, counts: Counts) -> None:
    """Fetch what began within a window, and keep it, a slice after the other.

    Counts what was ``found``, and what ``keep`` told of it. Raises what ``FAILURES`` names.
    """
    waiting, totals = Waiting(WAITING_BYTES), Totals()
    try:
        async with contextlib.aclosing(_fed(window, ways, waiting, totals)) as pieces:
            async for _ in pieces:
                while waiting:
                    counts.update(await ways.keep(waiting.take(SLICE_RECORDS)))
                    waiting.committed()
    finally:
        counts["found"] += totals.received


def _fed(
    window: Window, ways: Ways, waiting: Waiting, totals: Totals
) -> AsyncGenerator[None, None]:
    """Ask for a window, and stop after each piece of the answer that has come to wait."""
    api, origin, peer = ways.api, Origin([ways.sender]), ways.peer
    if isinstance(api, CsvApi):
        opened = partial(open_csv, origin=origin, peer=peer, waiting=waiting, totals=totals)
        return _fed_csv(api, window, opened)
    rows = RestStream(origin, peer=peer, waiting=waiting, totals=totals)
    return _fed_rows(api, window, rows)


async def _fed_csv(
    api: CsvApi, window: Window, opened: Callable[[bytes], HistoryStream]
) -> AsyncGenerator[None, None]:
    """Ask for a window, and feed the answer to the stream that its beginning opens, as it comes.

    So rows are stored of an answer that turns out to be cut: they are the PBX's, and the window is
    asked for again all the same. A last row without its line break is not, before all is proved.
    """
    came, last = hashlib.sha256(), b""
    async with contextlib.aclosing(api.download(window.start, window.end)) as pieces:
        piece = await anext(pieces, None)
        if piece is None and await _digest(api, window) == came.digest():
            return  # twice without a first line: that is how it says that there is no call
        stream = opened(piece or b"")
        while piece is not None:
            stream.receive(piece, utc_milliseconds(time.time()))
            came.update(piece)
            last = piece
            yield
            piece = await anext(pieces, None)
    # An answer of no stated length may end early and look whole. The one download at hand ends with
    # a line break; without one a row may be cut within its last cell, unless the same comes again:
    # elsewhere a cut would be.
    if not last.endswith(b"\n") and (
        stream.is_torn() or came.digest() != await _digest(api, window)
    ):
        raise NotAHistory("the PBX's answer ends in the middle of its history")
    stream.close("the history ends in the middle of a row", utc_milliseconds(time.time()))
    yield


async def _digest(api: CsvApi, window: Window) -> bytes:
    """Ask for a window once more, to compare the answer with what came."""
    came = hashlib.sha256()
    async with contextlib.aclosing(api.download(window.start, window.end)) as pieces:
        async for piece in pieces:
            came.update(piece)
    return came.digest()


async def _fed_rows(api: RowsApi, window: Window, rows: RestStream) -> AsyncGenerator[None, None]:
    """Feed pages to their stream."""
    async for page in api.search(window.start, window.end):
        for start in range(0, len(page), SLICE_RECORDS):
            rows.take_rows(page[start : start + SLICE_RECORDS], utc_milliseconds(time.time()))
            yield


@dataclass(frozen=True, slots=True)
class Asked:
    """A PBX that is asked for its history.

    ``interval``: seconds after which it is asked though nothing has broken; 0 never.
    """

    sender: Sender
    url: str
    interval: float = 0


class GapFollower:
    """Keeps one PBX's records complete, until it is cancelled."""

    def __init__(
        self,
        asked: Asked,
        open_api: Callable[[], Awaitable[HistoryApi]],
        *,
        store: Store,
        writer: Writer,
        log: Logger,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Take what is needed; ``clock`` tells Unix seconds."""
        self.pbx = asked.sender.name
        self._asked = asked
        self._open_api = open_api
        self._store = store
        self._writer = writer
        self._log = log.bind(pbx=self.pbx)
        self._pace = pace or Pace()
        self._clock = clock
        self._api: HistoryApi | None = None
        self._connections = 0
        self._usual = 1  # as many connections at once as there have been, for longer than overlap
        self._joined_at = 0.0  # monotonic
        self._due = asyncio.Event()
        self._due.set()
        self._complete_until: float | None = None  # until the database was asked
        self._ahead = math.inf  # what it said then, where our clock was behind that
        self._fetched_until = 0.0
        self._fetched_at: float | None = None  # monotonic

    def broke(self) -> None:
        """Take note of a connection's end; one that is left may have taken its place before it."""
        self._count_usual()
        self._connections = max(0, self._connections - 1)
        if self._connections:
            self._due.set()

    def mended(self) -> None:
        """Take note of a new connection: what was missing until now can be asked for."""
        self._count_usual()
        self._connections += 1
        self._joined_at = time.monotonic()
        self._due.set()

    def missed(self) -> None:
        """Take note that something is missing until now, whatever connections stand."""
        self._due.set()

    def _count_usual(self) -> None:
        """Count the connections that stand, unless the latest may have taken another's place."""
        if time.monotonic() - self._joined_at >= self._pace.overlap:
            self._usual = max(self._usual, self._connections)

    def reopened(self) -> None:
        """Take note that the database may be an older one: what nothing was missing until is its.

        Before it stores anything, and nothing is noted in it until it was asked.
        """
        self._complete_until, self._ahead = None, math.inf
        self._due.set()

    async def run(self) -> None:
        """Fill each gap once it has ended, until cancelled."""
        try:
            while True:
                await self._wait_for_gap()
                await self._fill()
        finally:
            await self._close()

    async def _wait_for_gap(self) -> None:
        """Wait until there is something to ask for; while nothing is broken, move on."""
        while not (self._due.is_set() or self._is_time() or self._was_behind()):
            if self._connections >= self._usual:
                # A note that the database does not take only makes the next fetch larger.
                with contextlib.suppress(sqlite3.Error):
                    await self._set_complete_until(self._clock())
            await self._wait_for_due(min(self._pace.note, self._until_next()))
        await asyncio.sleep(max(self._pace.settle, self._after_fetch(self._pace.apart)))

    async def _wait_for_due(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._due.wait()

    def _after_fetch(self, seconds: float) -> float:
        """Return what is left of so many seconds after the last fetch."""
        if self._fetched_at is None:
            return 0.0
        return max(0.0, self._fetched_at + seconds - time.monotonic())

    def _until_next(self) -> float:
        interval = self._asked.interval
        return self._after_fetch(interval) if interval else self._pace.note

    def _is_time(self) -> bool:
        return self._until_next() == 0

    def _was_behind(self) -> bool:
        """Tell whether our clock was set on, past what the database said, since the last fetch.

        Then that fetch has filled nothing: it asked for long ago. A machine may start like that.
        """
        if self._fetched_at is None:
            return False
        gone_by = time.monotonic() - self._fetched_at
        return self._fetched_until + gone_by < self._ahead <= self._clock()

    async def _fill(self) -> None:
        """Fetch until nothing is missing, however often that fails."""
        back_off = BackOff(self._pace.first_retry, self._pace.longest_retry)
        start, counts = math.inf, Counter[str]()
        while True:
            self._due.clear()
            now = self._clock()
            try:
                start = min(start, now, await self._begin(now))
                await self._fetch(now, counts)
            except (*FAILURES, sqlite3.Error) as error:
                wait = back_off.wait()
                reason = str(error) or "no answer in time"
                self._log.warning("fetch_failed", error=reason, retry_in=round(wait, 1))
                await asyncio.sleep(wait)
            else:
                self._fetched_until, self._fetched_at = now, time.monotonic()
                self._say_filled(start, now, counts)
                return

    async def _begin(self, now: float) -> float:
        """Return up to when nothing is missing: at the very first start, up to then."""
        if self._complete_until is None:
            found = await self._store.run(read_complete_until, self.pbx)
            complete_until = now if found is None else found
            self._fetched_until = self._complete_until = complete_until
            if found is None:
                await self._set_complete_until(now)
            elif found > now:
                self._ahead = found
            return complete_until
        if self._was_behind():
            self._complete_until, self._ahead = self._ahead, math.inf
        return self._complete_until

    async def _fetch(self, now: float, counts: Counts) -> None:
        if self._api is None:
            self._api = await self._open_api()
        asked = self._asked
        complete_until, oldest = await self._begin(now), self._store.oldest
        for window in gap_windows(complete_until, now, asked.sender.zone, oldest):
            ways = Ways(self._api, asked.sender, asked.url, self._keep)
            fetched: Counts = Counter()
            try:
                await fetch_window(window, ways, fetched)
            except BaseException:
                del fetched["found"]  # it will be found again
                raise
            finally:
                counts.update(fetched)
            if self._complete_until is not None:
                await self._set_complete_until(max(self._complete_until, window.complete_until))
        # Less than before, should our clock have been ahead then.
        await self._set_complete_until(min(now, self._clock()))

    async def _keep(self, batch: Batch) -> Counts:
        """Commit a batch and tell its rows, also when we are stopped meanwhile."""
        committed = await to_its_end(self._writer.commit_beside(batch))
        return committed.counts

    async def _set_complete_until(self, instant: float) -> None:
        """Remember up to when nothing is missing, but not of a database that was replaced."""
        if self._complete_until is not None:
            self._complete_until = instant
            await self._store.run(set_complete_until, self.pbx, instant)

    def _say_filled(self, start: float, now: float, counts: Counts) -> None:
        self._log.info(
            "gap_filled",
            since=_spell(start - LOOK_BACK),
            until=_spell(now),
            found=counts["found"],
            missing=counts["stored"],
            quarantined=counts["quarantined"],
        )

    async def _close(self) -> None:
        if self._api is None:
            return
        # A login that is not taken back dies by itself, after 30 minutes.
        with contextlib.suppress(*FAILURES):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._api.close()


def _spell(instant: float) -> str:
    return spell_instant(datetime.fromtimestamp(int(instant), UTC))
