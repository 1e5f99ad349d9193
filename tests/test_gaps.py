"""What a PBX has kept to itself is asked for: at a start, after a break, once in a while."""

import asyncio
import math
import os
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from aiohttp import web

from cdrd.background import to_its_end
from cdrd.batch import Batch, Waiting
from cdrd.clock import ClockWatch
from cdrd.config import BatchTable
from cdrd.database import open_reader
from cdrd.fetch import DAY, Window
from cdrd.gap_watch import Pace
from cdrd.gaps import Asked, Counts, GapFollower, HistoryApi, Ways, fetch_window
from cdrd.log import LineWriter, make_logger
from cdrd.pbx_api import LoginRefused, NotOffered, Trust, Unreachable
from cdrd.progress import read_complete_until, set_complete_until
from cdrd.purge import keep_age
from cdrd.s_series import SSeriesApi
from cdrd.sender import Sender
from cdrd.sizes import MIB
from cdrd.store import Store
from cdrd.stream import Totals
from cdrd.web_session import PIECE_BYTES
from cdrd.writer import Writer
from tests.example import CALL, holding
from tests.fake_pbx import ACCOUNT, Answer, FakePbx, a_guard, fake_pbx

SOON = 20.0
"""Seconds within which anything here ends, unless it never does."""

QUICK = Pace(settle=0, apart=0, first_retry=0.001, longest_retry=0.002, note=0.001, overlap=0)
HEAD = "callid,timestart,callfrom,callto,callduraction,talkduraction,status,type\n"
NOON = datetime(2024, 3, 1, 12, tzinfo=UTC).timestamp()


def row(number: int) -> str:
    started = datetime(2024, 3, 1, 9, tzinfo=UTC) + timedelta(seconds=number)
    call_id = f"{started.timestamp():.0f}.{number}"
    return f"{call_id},{started:%Y-%m-%d %H:%M:%S},1000,91000,29,20,ANSWERED,Outbound\n"


def at(instant: float) -> datetime:
    return datetime.fromtimestamp(instant, UTC).replace(tzinfo=None)


@dataclass
class CsvPbx:
    """An S-Series' API as the follower sees it: rows for whoever asks, or a failure."""

    csv: str = HEAD
    failures: list[Exception] = field(default_factory=list)
    asked: asyncio.Queue[tuple[datetime, datetime]] = field(default_factory=asyncio.Queue)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False

    def __post_init__(self) -> None:
        self.may_answer.set()

    async def download(self, start: datetime, end: datetime) -> AsyncGenerator[bytes, None]:
        self.asked.put_nowait((start, end))
        await self.may_answer.wait()
        if self.failures:
            raise self.failures.pop(0)
        answer = BytesIO(self.answer().encode().lstrip())
        while piece := answer.read(PIECE_BYTES):
            yield piece

    def answer(self) -> str:
        return self.csv

    async def close(self) -> None:
        self.closed = True


@dataclass
class RowsPbx:
    """A P-Series' API likewise."""

    pages: list[list[dict[str, Any]]]

    async def search(self, start: datetime, end: datetime) -> AsyncIterator[list[dict[str, Any]]]:
        assert start < end
        for page in self.pages:
            yield page

    async def close(self) -> None:
        pass


@dataclass
class Clock:
    """The Unix seconds that the follower is told, and word of each time it looks."""

    now: float = NOON
    looks: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self) -> float:
        self.looks.set()
        return self.now

    async def goes_on(self, seconds: float) -> None:
        """Let time pass, and wait until it has been seen."""
        self.now += seconds
        self.looks.clear()
        await asyncio.wait_for(self.looks.wait(), SOON)


@dataclass
class Bench:
    """A follower's surroundings: a real store and writer, and the log as it is written."""

    store: Store
    lines: LineWriter
    written: asyncio.StreamReader
    totals: Totals = field(default_factory=Totals)
    clock: Clock = field(default_factory=Clock)

    @asynccontextmanager
    async def following(
        self,
        api: HistoryApi,
        *,
        interval: float = 0,
        pace: Pace = QUICK,
    ) -> AsyncIterator[GapFollower]:
        async def open_api() -> HistoryApi:
            return api

        log = make_logger(self.lines)
        follower = GapFollower(
            Asked(Sender("hq", UTC), "https://pbx", interval),
            open_api,
            store=self.store,
            writer=Writer(
                self.store,
                Waiting(MIB),
                self.totals,
                log=log,
                lines=self.lines,
                clocks=ClockWatch(),
                grouping=BatchTable(),
                room_made=lambda: None,
            ),
            log=log,
            pace=pace,
            clock=self.clock,
        )
        running = asyncio.create_task(follower.run())
        try:
            yield follower
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    async def logged(self, event: str) -> dict[str, Any]:
        """Wait for a line of the log; those before it are passed."""
        while True:
            text = await asyncio.wait_for(self.written.readline(), SOON)
            line: dict[str, Any] = orjson.loads(text)
            if line["event"] == event:
                return line

    def rows(self, query: str = "SELECT * FROM calls ORDER BY seq") -> list[Any]:
        reader = open_reader(self.store.path)
        reader.row_factory = sqlite3.Row
        try:
            return reader.execute(query).fetchall()
        finally:
            reader.close()

    async def complete_until(self) -> int | None:
        return await self.store.run(read_complete_until, "hq")


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = await Store.open(tmp_path / "cdr.sqlite3", "normal")
    reading, writing = os.pipe()
    written = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(written), os.fdopen(reading, "rb")
    )
    bench = Bench(store, LineWriter(writing), written)
    try:
        yield bench
    finally:
        await store.close(0)
        bench.lines.close(SOON)
        os.close(writing)
        transport.close()


@pytest.mark.asyncio
async def test_a_fetch_under_way_makes_nothing_of_an_older_database_complete(bench: Bench) -> None:
    """It was put back while the PBX was asked for a window: its own word is taken, and no other."""
    pbx = CsvPbx()
    await bench.store.run(set_complete_until, "hq", NOON - 3600)
    pbx.may_answer.clear()
    async with bench.following(pbx) as follower:
        await windows_of(pbx)
        await bench.store.run(set_complete_until, "hq", NOON - 5 * DAY)
        follower.reopened()
        pbx.may_answer.set()
        await bench.logged("gap_filled")
        filled = await bench.logged("gap_filled")
        assert await bench.complete_until() == NOON
    assert filled["since"] == "2024-02-24T12:00:00Z"


async def windows_of(pbx: CsvPbx, number: int = 1) -> list[tuple[datetime, datetime]]:
    """Wait until so many windows were asked for; return them."""
    return [await asyncio.wait_for(pbx.asked.get(), SOON) for _ in range(number)]


# A start


@pytest.mark.asyncio
async def test_at_the_very_first_start_the_last_day_is_asked_for(bench: Bench) -> None:
    pbx = CsvPbx(HEAD + row(1) + row(2))
    async with bench.following(pbx):
        windows = await windows_of(pbx)
        filled = await bench.logged("gap_filled")
    assert (windows[0][0], windows[-1][1]) == (at(NOON - DAY), at(NOON + DAY))
    assert [stored["source"] for stored in bench.rows()] == ["history"] * 2
    assert filled["level"] == "info"
    told = ("pbx", "since", "until", "found", "missing", "quarantined")
    assert tuple(filled[name] for name in told) == (
        "hq",
        "2024-02-29T12:00:00Z",
        "2024-03-01T12:00:00Z",
        2,
        2,
        0,
    )
    assert await bench.complete_until() == NOON


@pytest.mark.asyncio
async def test_a_later_start_asks_from_a_day_before_nothing_was_missing(bench: Bench) -> None:
    await bench.store.run(set_complete_until, "hq", NOON - 3 * DAY)
    pbx = CsvPbx()
    async with bench.following(pbx):
        windows = await windows_of(pbx, 4)
        filled = await bench.logged("gap_filled")
    assert windows[0] == (at(NOON - 4 * DAY), at(NOON - 3 * DAY))
    assert windows[-1] == (at(NOON - DAY), at(NOON + DAY))
    assert filled["since"] == "2024-02-26T12:00:00Z"


@pytest.mark.asyncio
async def test_what_is_too_old_to_be_kept_is_not_asked_for(bench: Bench) -> None:
    bench.clock.now = now = time.time()
    await bench.store.run(set_complete_until, "hq", now - 3 * DAY)
    await bench.store.commit(holding([CALL]), 0)
    bench.store.max_age_days = 2
    aging = asyncio.create_task(keep_age(bench.store, make_logger(bench.lines)))
    try:
        assert (await bench.logged("records_purged"))["calls"] == 1
        async with bench.following(pbx := CsvPbx()):
            start, _ = await pbx.asked.get()
    finally:
        aging.cancel()
    assert start.replace(tzinfo=UTC).timestamp() == math.floor(bench.store.oldest)
    assert now - 2 * DAY <= bench.store.oldest <= time.time() - 2 * DAY


@pytest.mark.asyncio
async def test_what_is_kept_longer_from_now_on_is_asked_for(bench: Bench) -> None:
    bench.clock.now = now = time.time()
    bench.store.aged_at = now
    for days, since in ((1, now - DAY), (5, now - 4 * DAY), (0, now - 4 * DAY)):
        bench.store.max_age_days = days
        await bench.store.run(set_complete_until, "hq", now - 3 * DAY)
        async with bench.following(pbx := CsvPbx()):
            start, _ = await pbx.asked.get()
        assert start.replace(tzinfo=UTC).timestamp() == math.floor(since), days


@pytest.mark.asyncio
async def test_while_a_purge_is_held_what_was_deleted_before_is_not_asked_for(
    bench: Bench,
) -> None:
    bench.clock.now = now = time.time()
    await bench.store.run(set_complete_until, "hq", now - 9 * DAY)
    bench.store.keep_purge_from(now - 2 * DAY)  # then it was looked last
    bench.store.max_age_days = 3
    aging = asyncio.create_task(keep_age(bench.store, make_logger(bench.lines)))
    try:
        await bench.logged("purge_held")
        async with bench.following(pbx := CsvPbx()):
            start, _ = await pbx.asked.get()
    finally:
        aging.cancel()
    assert start.replace(tzinfo=UTC).timestamp() == math.floor(now - 5 * DAY)


@pytest.mark.asyncio
async def test_a_clock_that_was_once_ahead_hides_no_later_gap(bench: Bench) -> None:
    await bench.store.run(set_complete_until, "hq", NOON + 365 * DAY)
    async with bench.following(CsvPbx()):
        await bench.logged("gap_filled")
    bench.clock.now += 10 * DAY
    pbx = CsvPbx()
    async with bench.following(pbx):
        await bench.logged("gap_filled")
    start, _ = pbx.asked.get_nowait()
    assert start == at(NOON - DAY)


@pytest.mark.asyncio
async def test_a_start_before_the_clock_is_set_takes_nothing_back(bench: Bench) -> None:
    """A machine without a clock of its own: for a while it is years ago."""
    await bench.store.run(set_complete_until, "hq", NOON)
    bench.clock.now -= 1000 * DAY
    pbx = CsvPbx(failures=[Unreachable("no network")] * 10_000)
    async with bench.following(pbx):
        await bench.logged("fetch_failed")
        assert await bench.complete_until() == NOON
        bench.clock.now = NOON + 3600
        pbx.failures.clear()
        filled = await bench.logged("gap_filled")
        asked = [pbx.asked.get_nowait() for _ in range(pbx.asked.qsize())]
        assert await bench.complete_until() == NOON + 3600
    assert {start for start, _ in asked} == {
        at(NOON - 1001 * DAY),
        at(NOON - DAY),
        at(NOON),
    }
    assert filled["until"] == "2024-03-01T13:00:00Z"


@pytest.mark.asyncio
async def test_a_gap_fetched_before_the_clock_was_set_is_fetched_again(bench: Bench) -> None:
    await bench.store.run(set_complete_until, "hq", NOON)
    bench.clock.now -= 1000 * DAY
    async with bench.following(CsvPbx()):
        await bench.logged("gap_filled")
        bench.clock.now = NOON + 3600
        filled = await bench.logged("gap_filled")
        assert await bench.complete_until() == NOON + 3600
    assert (filled["since"], filled["until"]) == ("2024-02-29T12:00:00Z", "2024-03-01T13:00:00Z")


@pytest.mark.asyncio
async def test_a_fetched_row_is_stored_and_logged_and_not_counted_as_received(
    bench: Bench,
) -> None:
    async with bench.following(CsvPbx(HEAD + row(1))):
        line = await bench.logged("call_released")
        await bench.logged("gap_filled")
    [stored] = bench.rows()
    assert (line["seq"], line["source"]) == (stored["seq"], "history")
    assert orjson.loads(stored["raw"])["callfrom"] == "1000"
    assert bench.totals == Totals()


@pytest.mark.asyncio
async def test_a_bad_row_costs_itself_and_is_in_quarantine_once_however_often_it_comes(
    bench: Bench,
) -> None:
    pbx = CsvPbx(HEAD + row(1) + ",yesterday,,,,,,\n" + row(2))
    async with bench.following(pbx) as follower:
        first = await bench.logged("gap_filled")
        follower.mended()
        second = await bench.logged("gap_filled")
    assert (first["missing"], first["quarantined"]) == (2, 1)
    assert (second["missing"], second["quarantined"]) == (0, 0)
    [kept] = bench.rows("SELECT * FROM quarantine")
    assert (kept["source"], kept["pbx"], kept["reason"]) == ("history", "hq", "no callid")


@pytest.mark.asyncio
async def test_a_large_day_is_stored_whole(bench: Bench) -> None:
    pbx = CsvPbx(HEAD + "".join(map(row, range(2500))))
    async with bench.following(pbx):
        filled = await bench.logged("gap_filled")
    assert filled["missing"] == len(bench.rows()) == 2500


@pytest.mark.asyncio
async def test_the_pages_of_a_p_series_are_stored_whole(bench: Bench) -> None:
    rows = [
        {"call_id": f"1709283600.{number}", "time": "2024-03-01 09:00:00", "duration": 1}
        for number in range(2500)
    ]
    async with bench.following(RowsPbx([rows[:2000], rows[2000:]])):
        filled = await bench.logged("gap_filled")
    assert filled["missing"] == len(bench.rows()) == 2500


# A break


@pytest.mark.asyncio
async def test_while_nothing_is_broken_the_clock_moves_on_what_is_complete(bench: Bench) -> None:
    pbx = CsvPbx()
    async with bench.following(pbx) as follower:
        follower.mended()
        await windows_of(pbx)
        await bench.logged("gap_filled")
        await bench.clock.goes_on(5 * DAY)
        await bench.clock.goes_on(0)  # the note before it is made
        follower.mended()
        windows = await windows_of(pbx)
    assert windows[0][0] == at(NOON + 4 * DAY)
    assert await bench.complete_until() == NOON + 5 * DAY


@pytest.mark.asyncio
async def test_a_gap_is_asked_for_from_its_beginning_once_it_has_ended(bench: Bench) -> None:
    pbx = CsvPbx()
    async with bench.following(pbx) as follower:
        follower.mended()
        await windows_of(pbx)
        await bench.logged("gap_filled")
        follower.broke()
        bench.clock.now += 5 * DAY
        follower.mended()
        windows = await windows_of(pbx, 6)
    assert (windows[0][0], windows[-1][1]) == (at(NOON - DAY), at(NOON + 6 * DAY))


@pytest.mark.asyncio
async def test_a_pbx_that_never_connected_since_the_start_was_broken_all_the_time(
    bench: Bench,
) -> None:
    pbx = CsvPbx()
    async with bench.following(pbx) as follower:
        await windows_of(pbx)
        await bench.logged("gap_filled")
        bench.clock.now += 5 * DAY
        follower.mended()
        windows = await windows_of(pbx, 6)
    assert windows[0][0] == at(NOON - DAY)


@pytest.mark.asyncio
async def test_of_a_pbx_that_has_not_connected_the_clock_makes_nothing_complete(
    bench: Bench,
) -> None:
    """It may post, or try to connect in vain: the next run asks for all since the last fetch."""
    async with bench.following(CsvPbx()):
        await bench.logged("gap_filled")
        await bench.clock.goes_on(5 * DAY)
        await bench.clock.goes_on(0)  # a note of it would be made
    pbx = CsvPbx()
    async with bench.following(pbx):
        windows = await windows_of(pbx, 6)
    assert windows[0][0] == at(NOON - DAY)


@pytest.mark.asyncio
async def test_what_is_missed_without_a_connection_is_asked_for_and_counts_as_none(
    bench: Bench,
) -> None:
    async with bench.following(CsvPbx()) as follower:
        await bench.logged("gap_filled")
        follower.missed()
        await bench.logged("gap_filled")
        await bench.clock.goes_on(5 * DAY)
        await bench.clock.goes_on(0)  # the note before it would be made
    assert await bench.complete_until() == NOON


@pytest.mark.asyncio
async def test_an_old_connection_that_ends_after_a_new_one_has_begun_is_a_gap(
    bench: Bench,
) -> None:
    pbx = CsvPbx()
    async with bench.following(pbx) as follower:
        follower.mended()
        await bench.logged("gap_filled")
        follower.mended()
        await bench.logged("gap_filled")
        follower.broke()
        filled = await bench.logged("gap_filled")
    assert filled["pbx"] == "hq"


@pytest.mark.asyncio
@pytest.mark.parametrize(("overlap", "reached"), [(SOON, NOON + 5 * DAY), (0, NOON)])
async def test_a_connection_whose_place_was_taken_is_not_waited_for_and_another_is(
    bench: Bench, overlap: float, reached: float
) -> None:
    """One of two that stood together for longer may be the only one that tells of some calls."""
    async with bench.following(CsvPbx(), pace=replace(QUICK, overlap=overlap)) as follower:
        follower.mended()
        follower.mended()
        follower.broke()
        await bench.logged("gap_filled")
        await bench.clock.goes_on(5 * DAY)
        await bench.clock.goes_on(0)  # the note before it is made
    assert await bench.complete_until() == reached


@pytest.mark.asyncio
async def test_of_two_that_broke_together_both_are_waited_for(bench: Bench) -> None:
    async with bench.following(CsvPbx(), pace=replace(QUICK, overlap=0.5)) as follower:
        follower.mended()
        follower.mended()
        await asyncio.sleep(0.6)  # what it takes to be usual
        follower.mended()
        follower.broke()
        follower.broke()
        await bench.logged("gap_filled")
        await bench.logged("gap_filled")
        await bench.clock.goes_on(5 * DAY)
        await bench.clock.goes_on(0)  # the note before it would be made
    assert await bench.complete_until() == NOON


@pytest.mark.asyncio
async def test_a_line_that_flaps_during_a_fetch_is_asked_for_once_more(bench: Bench) -> None:
    pbx = CsvPbx()
    pbx.may_answer.clear()
    async with bench.following(pbx) as follower:
        await windows_of(pbx)
        for _ in range(20):
            follower.mended()
            follower.broke()
        follower.mended()
        pbx.may_answer.set()
        await windows_of(pbx)
        await bench.logged("gap_filled")
        await bench.logged("gap_filled")
        await bench.clock.goes_on(0)  # it has nothing else to do
    assert pbx.asked.empty()


@pytest.mark.asyncio
async def test_two_fetches_are_so_far_apart_as_they_have_to_be(bench: Bench) -> None:
    pbx = CsvPbx()
    began = time.monotonic()
    async with bench.following(pbx, pace=Pace(settle=0, apart=0.2)) as follower:
        await bench.logged("gap_filled")
        await windows_of(pbx)
        follower.mended()
        await windows_of(pbx)
        assert time.monotonic() - began >= 0.2


@pytest.mark.asyncio
async def test_what_has_not_broken_is_asked_for_once_in_an_interval(bench: Bench) -> None:
    pbx = CsvPbx()
    async with bench.following(pbx, interval=0.05):
        assert (await bench.logged("gap_filled"))["missing"] == 0
        pbx.csv += row(1)
        await bench.logged("call_released")
        assert (await bench.logged("gap_filled"))["missing"] == 1


# Failures


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "failure",
    [
        Unreachable("https://pbx cannot be reached"),
        LoginRefused("https://pbx refused the login"),
        NotOffered("https://pbx has no API"),
        OSError("the password cannot be read"),
        ValueError("a secret is one line"),
        sqlite3.OperationalError("database or disk is full"),
    ],
)
async def test_a_fetch_that_fails_is_told_and_made_again(bench: Bench, failure: Exception) -> None:
    pbx = CsvPbx(HEAD + row(1), failures=[failure, failure])
    async with bench.following(pbx):
        for _ in range(2):
            failed = await bench.logged("fetch_failed")
            assert (failed["level"], failed["pbx"]) == ("warning", "hq")
            assert failed["error"] == str(failure)
            assert failed["retry_in"] >= 0
        filled = await bench.logged("gap_filled")
    assert filled["missing"] == 1


@pytest.mark.asyncio
async def test_an_answer_that_is_no_history_is_a_fetch_that_failed(bench: Bench) -> None:
    pbx = CsvPbx("<html>Please log in</html>")
    async with bench.following(pbx):
        failed = await bench.logged("fetch_failed")
    assert "is no history" in failed["error"]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "cut",
    [
        HEAD[:15],
        HEAD + row(1) + row(2)[:-20],
        HEAD + row(1) + row(2).replace(",1000", ',"1000\n')[:40],
    ],
)
async def test_a_history_that_is_cut_off_is_asked_for_again(bench: Bench, cut: str) -> None:
    """However often it is cut at the same byte; and what came whole before it is stored."""
    pbx = CsvPbx(cut)
    async with bench.following(pbx):
        for _ in range(2):
            await bench.logged("fetch_failed")
        assert len(bench.rows()) == cut.count(row(1))
        pbx.csv = HEAD + row(1) + row(2)
        await bench.logged("gap_filled")
    assert len(bench.rows()) == 2
    assert not bench.rows("SELECT * FROM quarantine")


@dataclass
class CuttingPbx(CsvPbx):
    """It ends each answer early, one byte later than the one before it."""

    cut: int = 5

    def answer(self) -> str:
        self.cut -= 1
        return self.csv[: -self.cut or None]


@pytest.mark.asyncio
async def test_a_row_that_may_be_cut_within_its_last_cell_is_not_made_up(bench: Bench) -> None:
    async with bench.following(CuttingPbx(HEAD + row(1))):
        failed = await bench.logged("fetch_failed")
        await bench.logged("gap_filled")
    assert "ends in the middle" in failed["error"]
    assert [stored["call_type"] for stored in bench.rows()] == ["Outbound"]


@pytest.mark.asyncio
@pytest.mark.parametrize("last", [row(2), row(2).replace(",1000,", ',"10\n00",')])
async def test_a_history_without_a_last_line_break_is_whole_where_it_comes_so_again(
    bench: Bench, last: str
) -> None:
    async with bench.following(CsvPbx(HEAD + row(1) + last.rstrip())):
        filled = await bench.logged("gap_filled")
    assert filled["missing"] == len(bench.rows()) == 2


@pytest.mark.asyncio
async def test_an_answer_that_is_empty_twice_is_a_history_without_a_call(bench: Bench) -> None:
    async with bench.following(CsvPbx("\r\n")):
        filled = await bench.logged("gap_filled")
    assert filled["missing"] == 0


@dataclass
class StartingPbx(CsvPbx):
    """Its first answer ends before it has begun."""

    def answer(self) -> str:
        return self.csv if self.asked.qsize() > 1 else ""


@pytest.mark.asyncio
async def test_an_answer_that_is_empty_once_is_asked_for_again(bench: Bench) -> None:
    async with bench.following(StartingPbx(HEAD + row(1))):
        failed = await bench.logged("fetch_failed")
        await bench.logged("gap_filled")
    assert "is empty" in failed["error"]
    assert len(bench.rows()) == 1


@pytest.mark.asyncio
async def test_a_silence_is_told_in_words(bench: Bench) -> None:
    async with bench.following(CsvPbx(failures=[TimeoutError()])):
        assert (await bench.logged("fetch_failed"))["error"] == "no answer in time"


@pytest.mark.asyncio
async def test_while_a_fetch_fails_nothing_is_taken_for_complete(bench: Bench) -> None:
    pbx = CsvPbx(failures=[Unreachable("down")] * 3)
    async with bench.following(pbx):
        await bench.logged("fetch_failed")
        bench.clock.now += 5 * DAY
        await bench.logged("gap_filled")
        asked = [pbx.asked.get_nowait() for _ in range(pbx.asked.qsize())]
    assert {start for start, _ in asked[:4]} == {at(NOON - DAY)}


@pytest.mark.asyncio
async def test_what_was_fetched_before_a_failure_is_not_asked_for_again(bench: Bench) -> None:
    await bench.store.run(set_complete_until, "hq", NOON - 10 * DAY)
    pbx = CsvPbx(HEAD + row(1))
    async with bench.following(pbx):
        await windows_of(pbx, 5)
        pbx.failures.append(Unreachable("down"))
        await bench.logged("fetch_failed")
        filled = await bench.logged("gap_filled")
    assert filled["since"] == "2024-02-19T12:00:00Z"
    asked = [pbx.asked.get_nowait() for _ in range(pbx.asked.qsize())]
    assert at(NOON - 11 * DAY) not in {start for start, _ in asked}
    assert asked[-1][1] == at(NOON + DAY)


@pytest.mark.asyncio
async def test_a_fetch_that_was_cut_off_goes_on_in_the_next_run(bench: Bench) -> None:
    await bench.store.run(set_complete_until, "hq", NOON - 10 * DAY)
    pbx = CsvPbx()
    async with bench.following(pbx):
        await windows_of(pbx, 5)
        pbx.may_answer.clear()
        await windows_of(pbx, pbx.asked.qsize() + 1)
    reached = await bench.complete_until()
    assert reached is not None
    assert NOON - 10 * DAY < reached < NOON
    again = CsvPbx()
    async with bench.following(again):
        [first] = await windows_of(again, 1)
    assert first[0] == at(reached - DAY)


# An answer as it comes


MANY = HEAD + "".join(map(row, range(2500)))
"""Some pieces long."""


@dataclass
class Body:
    """A history of which the beginning is sent, and the rest once it may be.

    ``left``: we have ended the connection before it was.
    """

    begun: str
    rest: str = ""
    may_go_on: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.set()
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(self.begun.encode())
        await self.may_go_on.wait()
        await response.write(self.rest.encode())
        await response.write_eof()
        return response

    async def break_off(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(self.begun.encode())
        await self.may_go_on.wait()
        assert request.transport is not None
        request.transport.close()
        return response

    async def never_end(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(self.begun.encode())
        with suppress(ConnectionError):
            while True:
                await response.write(b" " * PIECE_BYTES)
        self.left.set()
        return response


@asynccontextmanager
async def s_series(*downloads: Answer) -> AsyncIterator[tuple[SSeriesApi, FakePbx]]:
    """An S-Series' API over HTTP, and the PBX; of several answers the last one is given on."""
    answers: dict[str, Answer | list[Answer]] = {
        "/api/v2.0.0/login": {"status": "Success", "token": "t"},
        "/api/v2.0.0/cdr/get_random": {"status": "Success", "random": "r"},
        "/api/v2.0.0/cdr/download": list(downloads),
    }
    async with fake_pbx(answers) as pbx:
        api = SSeriesApi(pbx.base, ACCOUNT, Trust(), a_guard())
        try:
            yield api, pbx
        finally:
            await api.close()


def whole_rows(text: str) -> int:
    """Count the rows in a beginning of a history's pieces, its first line aside."""
    pieces = len(text.encode()) // PIECE_BYTES
    return text[: pieces * PIECE_BYTES].count("\n") - 1


@pytest.mark.asyncio
async def test_rows_are_stored_while_the_rest_of_their_history_is_still_to_come(
    bench: Bench,
) -> None:
    body = Body(MANY[: 2 * PIECE_BYTES], MANY[2 * PIECE_BYTES :])
    async with s_series(body.send) as (api, _), bench.following(api):
        for _ in range(first := whole_rows(body.begun)):
            await bench.logged("call_released")
        assert 0 < len(bench.rows()) == first < 2500
        body.may_go_on.set()
        filled = await bench.logged("gap_filled")
    assert filled["found"] == filled["missing"] == len(bench.rows()) == 2500


@pytest.mark.asyncio
async def test_what_came_before_a_history_broke_off_is_stored_and_its_window_asked_for_again(
    bench: Bench,
) -> None:
    await bench.store.run(set_complete_until, "hq", NOON - 3600)
    body, again = Body(MANY[: 2 * PIECE_BYTES + 100]), Body("", MANY)
    answers = body.break_off, again.send, HEAD.encode()  # that of another day holds no call
    async with s_series(*answers) as (api, _), bench.following(api):
        for _ in range(first := whole_rows(body.begun)):
            await bench.logged("call_released")
        body.may_go_on.set()
        failed = await bench.logged("fetch_failed")
        assert "cannot be reached: " in failed["error"]
        assert len(bench.rows()) == first
        assert await bench.complete_until() == NOON - 3600
        again.may_go_on.set()
        filled = await bench.logged("gap_filled")
        assert await bench.complete_until() == NOON
    assert filled["found"] == filled["missing"] == len(bench.rows()) == 2500
    assert not bench.rows("SELECT * FROM quarantine")


@pytest.mark.asyncio
async def test_a_last_row_without_a_line_break_waits_until_it_has_come_again(
    bench: Bench,
) -> None:
    csv = HEAD + row(1) + row(2).rstrip()
    again = Body(csv[:-5], csv[-5:])
    async with s_series(csv.encode(), again.send) as (api, _), bench.following(api):
        await asyncio.wait_for(again.asked.wait(), SOON)
        assert len(bench.rows()) == 1
        again.may_go_on.set()
        filled = await bench.logged("gap_filled")
    assert filled["missing"] == len(bench.rows()) == 2


@pytest.mark.asyncio
@pytest.mark.parametrize("csv", [b"", b"\r\n", HEAD.rstrip().encode()])
async def test_a_history_without_a_line_break_is_asked_for_twice(bench: Bench, csv: bytes) -> None:
    async with s_series(csv) as (api, pbx), bench.following(api):
        filled = await bench.logged("gap_filled")
    assert (filled["found"], filled["quarantined"]) == (0, 0)
    assert pbx.times["/api/v2.0.0/cdr/download"] == 2


@pytest.mark.asyncio
async def test_a_first_line_without_end_is_no_history(bench: Bench) -> None:
    body = Body("x" * 2 * PIECE_BYTES)
    async with s_series(body.never_end) as (api, _), bench.following(api):
        failed = await bench.logged("fetch_failed")
        assert failed["error"] == f"the PBX's answer is no history: it begins with '{'x' * 80}'"
        await asyncio.wait_for(body.left.wait(), SOON)


@pytest.mark.asyncio
async def test_a_history_is_left_with_the_follower(bench: Bench) -> None:
    body = Body(MANY)
    async with s_series(body.never_end) as (api, _):
        async with bench.following(api):
            for _ in range(2500):
                await bench.logged("call_released")
        await asyncio.wait_for(body.left.wait(), SOON)


@pytest.mark.asyncio
async def test_a_history_is_left_where_it_cannot_be_stored() -> None:
    async def keep(_: Batch) -> Counts:
        raise sqlite3.OperationalError("database or disk is full")

    body = Body(MANY)
    async with s_series(body.never_end) as (api, _):
        ways = Ways(api, Sender("hq", UTC), "https://pbx", keep)
        window = Window(at(NOON - DAY), at(NOON), NOON)
        with pytest.raises(sqlite3.OperationalError, match="is full"):
            await fetch_window(window, ways, Counter())
        await asyncio.wait_for(body.left.wait(), SOON)


@pytest.mark.asyncio
async def test_in_the_end_the_pbx_is_left(bench: Bench) -> None:
    pbx = CsvPbx()
    async with bench.following(pbx):
        await bench.logged("gap_filled")
    assert pbx.closed


@pytest.mark.asyncio
async def test_a_commit_that_has_begun_is_told_though_the_follower_is_stopped() -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()
    told: list[str] = []

    async def commit_and_tell() -> None:
        begun.set()
        await may_end.wait()
        told.append("call_released")

    keeping = asyncio.create_task(to_its_end(commit_and_tell()))
    await begun.wait()
    keeping.cancel()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await keeping
    assert told
