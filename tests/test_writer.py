"""What waits is committed at once, tried again when that fails, and told when it is stored."""

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pytest
import pytest_asyncio

from cdrd.batch import Batch, QuarantinedReport, RestoredCall, Waiting
from cdrd.clock import ClockWatch
from cdrd.config import BatchTable
from cdrd.database import open_reader
from cdrd.log import WAITING_LIMIT_BYTES, LineWriter, make_logger
from cdrd.progress import read_progress
from cdrd.sizes import MIB
from cdrd.store import Store
from cdrd.store_process import ProcessEnded, StoreProcess
from cdrd.stream import Totals
from cdrd.writer import AHEAD, Writer
from tests.asked import end_process
from tests.example import call, holding

SOON = 20.0
"""Seconds within which anything here ends, unless it never does."""


@dataclass
class Bench:
    """A writer with a real store, and its log in a file."""

    store: Store
    log_path: Path
    lines: LineWriter
    waiting: Waiting
    totals: Totals = field(default_factory=Totals)
    made_room: int = 0

    def writer(self, max_records: int = 1000, max_delay: float = 0.0) -> Writer:
        return Writer(
            self.store,
            self.waiting,
            self.totals,
            log=make_logger(self.lines),
            lines=self.lines,
            clocks=ClockWatch(),
            grouping=BatchTable(max_records=max_records, max_delay=max_delay),
            room_made=self.room_made,
        )

    def room_made(self) -> None:
        self.made_room += 1

    def receive(self, *numbers: int) -> None:
        for number in numbers:
            self.waiting.arriving.add(call(number))

    def stored(self) -> list[tuple[int, str]]:
        reader = open_reader(self.store.path)
        found = reader.execute("SELECT seq, call_id FROM calls ORDER BY seq").fetchall()
        reader.close()
        return found

    def events(self, name: str) -> list[dict[str, object]]:
        assert self.lines.flush(SOON)
        parsed = map(orjson.loads, self.log_path.read_bytes().splitlines())
        return [event for event in parsed if event["event"] == name]


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = await Store.open(tmp_path / "cdr.sqlite3", "normal")
    log_path = tmp_path / "log"
    descriptor = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    bench = Bench(store, log_path, LineWriter(descriptor), Waiting(16 * MIB))
    try:
        yield bench
    finally:
        await store.close(0)
        bench.lines.close(SOON)
        os.close(descriptor)


async def run_until_stopped(writer: Writer) -> None:
    """Run a writer that is told to stop already: it commits all that waits, and returns."""
    writer.stop()
    await asyncio.wait_for(writer.run(), SOON)


@contextlib.asynccontextmanager
async def running(writer: Writer) -> AsyncIterator[None]:
    task = asyncio.create_task(writer.run())
    try:
        yield
    finally:
        writer.stop()
        await asyncio.wait_for(task, SOON)


async def until_failing(bench: Bench, writer: Writer) -> None:
    async with asyncio.timeout(SOON):
        while not writer.failing:
            await bench.store.run(lambda c: c.in_transaction)


@pytest.mark.asyncio
async def test_all_that_waits_is_taken_at_once(bench: Bench) -> None:
    bench.receive(*range(250))
    await run_until_stopped(bench.writer())
    assert len(bench.stored()) == 250
    assert bench.made_room == 1
    assert len(bench.waiting) == 0
    assert len({line["timestamp"] for line in bench.events("call_released")}) == 1


@pytest.mark.asyncio
async def test_more_than_max_records_becomes_several_commits_in_order(bench: Bench) -> None:
    bench.receive(*range(25))
    await run_until_stopped(bench.writer(max_records=10))
    assert bench.stored() == [(number + 1, call(number).call_id) for number in range(25)]
    assert bench.made_room == 3


@pytest.mark.asyncio
async def test_whole_batches_are_at_hand_when_the_one_in_front_is_stored(bench: Bench) -> None:
    slow_disk = threading.Event()
    blocking = asyncio.create_task(bench.store.run(lambda _: slow_disk.wait(SOON)))
    writer = bench.writer(max_records=10)
    async with running(writer):
        bench.receive(*range(15))
        writer.wake()
        await asyncio.sleep(0)
        assert len(bench.waiting.arriving) == 5, "a part of a batch may become a whole one"
        bench.receive(*range(15, 65))
        writer.wake()
        assert len(bench.waiting.arriving) == 65 - (1 + AHEAD) * 10, "some batches ahead, not all"
        assert len(bench.waiting) == 65
        slow_disk.set()
        await blocking
    assert bench.stored() == [(number + 1, call(number).call_id) for number in range(65)]


@pytest.mark.asyncio
async def test_what_was_ahead_of_a_failure_is_stored_behind_it(bench: Bench) -> None:
    await bench.store.run(lambda c: c.execute("PRAGMA busy_timeout = 10").fetchall())
    other = sqlite3.connect(bench.store.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    writer = bench.writer(max_records=10)
    async with running(writer):
        bench.receive(*range(35))
        writer.wake()
        await until_failing(bench, writer)
        bench.receive(*range(35, 95))
        writer.wake()
        other.execute("ROLLBACK")
        other.close()
    assert bench.stored() == [(number + 1, call(number).call_id) for number in range(95)]
    assert [line["seq"] for line in bench.events("call_released")] == list(range(1, 96))
    assert (bench.totals.stored, bench.totals.duplicate) == (95, 0)


@pytest.mark.asyncio
async def test_what_is_stored_makes_room_while_a_checkpoint_is_under_way(bench: Bench) -> None:
    slow_disk, slow_checkpoint = threading.Event(), threading.Event()
    blocking = [asyncio.create_task(bench.store.run(lambda _: slow_disk.wait(SOON)))]
    writer = bench.writer(max_records=10)
    async with running(writer), asyncio.timeout(SOON):
        bench.receive(*range(40))
        writer.wake()
        await asyncio.sleep(0)
        blocking += [asyncio.create_task(bench.store.run(lambda _: slow_checkpoint.wait(SOON)))]
        await asyncio.sleep(0)
        bench.store.wrote(100_000)  # a checkpoint is due, behind all of these
        stored = asyncio.Event()
        bench.waiting.when_committed(stored.set)
        slow_disk.set()
        await stored.wait()
        assert not blocking[1].done()
        slow_checkpoint.set()
        await asyncio.gather(*blocking)
    assert not bench.store.checkpoint_due


async def answers_come_together(bench: Bench, slow_disk: threading.Event) -> None:
    """Let the store do all that it was asked for before the loop hears of any of it."""
    done = threading.Event()
    await asyncio.sleep(0)
    last = asyncio.create_task(bench.store.run(lambda _: done.set()))
    await asyncio.sleep(0)
    slow_disk.set()
    assert done.wait(SOON)
    await last


@pytest.mark.asyncio
async def test_a_row_is_told_once_although_its_commit_is_heard_of_late(bench: Bench) -> None:
    """The log catches up with what is committed while the answers are under way."""
    slow_disk = threading.Event()
    blocking = asyncio.create_task(bench.store.run(lambda _: slow_disk.wait(SOON)))
    writer = bench.writer(max_records=10)
    async with running(writer):
        bench.receive(*range(40))
        writer.wake()
        await asyncio.sleep(0)
        writer.calls.look_behind()
        catching_up = asyncio.create_task(writer.calls._catch_up())
        await answers_come_together(bench, slow_disk)
        await asyncio.gather(blocking, catching_up)
    assert [line["seq"] for line in bench.events("call_released")] == list(range(1, 41))


@pytest.mark.asyncio
async def test_rows_are_told_in_the_order_of_their_commits(bench: Bench) -> None:
    """What is told is remembered by its last row: one before it would be forgotten in a crash."""
    slow_disk = threading.Event()
    blocking = asyncio.create_task(bench.store.run(lambda _: slow_disk.wait(SOON)))
    writer = bench.writer(max_records=10)
    async with running(writer):
        bench.receive(*range(20))
        writer.wake()
        await asyncio.sleep(0)
        beside = asyncio.create_task(writer.commit_beside(holding([call(100)])))
        await answers_come_together(bench, slow_disk)
        await asyncio.gather(blocking, beside)
    assert [line["seq"] for line in bench.events("call_released")] == list(range(1, 22))


@pytest.mark.asyncio
async def test_a_commit_beside_those_ahead_is_no_failure_of_theirs(bench: Bench) -> None:
    slow_disk = threading.Event()
    blocking = asyncio.create_task(bench.store.run(lambda _: slow_disk.wait(SOON)))
    writer = bench.writer(max_records=10)
    async with running(writer):
        bench.receive(*range(10))
        writer.wake()
        await asyncio.sleep(0)
        beside = asyncio.create_task(writer.commit_beside(holding([call(100)])))
        await asyncio.sleep(0)
        bench.receive(*range(10, 20))
        writer.wake()
        await asyncio.sleep(0)
        slow_disk.set()
        await asyncio.gather(blocking, beside)
    assert not bench.events("commit_failed")
    assert len(bench.stored()) == 21


@pytest.mark.asyncio
async def test_a_lone_record_is_committed_without_any_timer(bench: Bench) -> None:
    made = asyncio.Event()
    bench.room_made = made.set  # type: ignore[method-assign]
    writer = bench.writer()
    async with running(writer):
        bench.receive(1)
        writer.wake()
        await asyncio.wait_for(made.wait(), SOON)
        assert len(bench.stored()) == 1


@pytest.mark.asyncio
async def test_max_delay_gathers_what_comes_meanwhile(bench: Bench) -> None:
    writer = bench.writer(max_records=3, max_delay=60)
    async with running(writer):
        for number in range(3):
            bench.receive(number)
            writer.wake()
            await asyncio.sleep(0)
            assert bench.made_room == 0
        async with asyncio.timeout(SOON):
            while not bench.made_room:
                await bench.store.run(lambda c: c.total_changes)
    assert len(bench.stored()) == 3
    assert bench.made_room == 1


@pytest.mark.asyncio
async def test_a_stop_does_not_wait_for_max_delay(bench: Bench) -> None:
    writer = bench.writer(max_delay=60)
    async with running(writer):
        bench.receive(1)
        writer.wake()
        await asyncio.sleep(0)
    assert len(bench.stored()) == 1


@pytest.mark.asyncio
async def test_a_new_grouping_does_not_wait_for_the_max_delay_before(bench: Bench) -> None:
    made = asyncio.Event()
    bench.room_made = made.set  # type: ignore[method-assign]
    writer = bench.writer(max_delay=60)
    async with running(writer):
        bench.receive(1)
        writer.wake()
        await asyncio.sleep(0)
        writer.regroup(BatchTable())
        await asyncio.wait_for(made.wait(), SOON)
        assert len(bench.stored()) == 1


@pytest.mark.asyncio
async def test_a_full_house_does_not_wait_for_max_delay(bench: Bench) -> None:
    # Reading is paused by then: nothing more can come, and waiting would only stop the intake.
    bench.waiting = Waiting(1)
    made = asyncio.Event()
    bench.room_made = made.set  # type: ignore[method-assign]
    writer = bench.writer(max_delay=60)
    async with running(writer):
        bench.receive(1)
        assert bench.waiting.full
        writer.wake()
        await asyncio.wait_for(made.wait(), 2)


@pytest.mark.asyncio
async def test_what_was_received_is_accounted_for(bench: Bench) -> None:
    bench.receive(1, 2, 1)
    report = QuarantinedReport("now", "hq", "192.0.2.10:1", "tcp", "why", b"{", 1)
    bench.waiting.arriving.add_quarantined(report)
    await run_until_stopped(bench.writer())
    totals = bench.totals
    assert (totals.stored, totals.duplicate, totals.quarantined) == (2, 1, 1)
    (told,) = bench.events("report_quarantined")
    assert (told["id"], told["pbx"], told["reason"], told["size"]) == (1, "hq", "why", 1)


@pytest.mark.asyncio
async def test_what_was_committed_and_not_heard_of_is_accounted_for(bench: Bench) -> None:
    """The process that stores was killed before it answered: all of it comes again."""
    report = QuarantinedReport("now", "hq", "192.0.2.10:1", "tcp", "why", b"{", 1)
    writer = bench.writer()
    await writer.commit_beside(holding([call(1)], quarantined=[report]))
    bench.receive(1)
    bench.waiting.arriving.add_quarantined(report)
    bench.waiting.arriving.repeated = True
    await run_until_stopped(writer)
    totals = bench.totals
    assert (totals.stored, totals.duplicate, totals.quarantined) == (0, 1, 1)
    assert len(bench.events("report_quarantined")) == 1


@pytest.mark.asyncio
async def test_a_commit_that_fails_is_tried_again_and_nothing_is_lost(bench: Bench) -> None:
    await bench.store.run(lambda c: c.execute("PRAGMA busy_timeout = 10").fetchall())
    other = sqlite3.connect(bench.store.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    writer = bench.writer()
    async with running(writer):
        bench.receive(*range(30))
        writer.wake()
        await until_failing(bench, writer)
        bench.receive(30)
        writer.wake()
        assert len(bench.waiting) == 31
        assert bench.stored() == []
        other.execute("ROLLBACK")
        other.close()
    assert [seq for seq, _ in bench.stored()] == list(range(1, 32))
    assert bench.totals.stored == 31
    assert not writer.failing
    failed = bench.events("commit_failed")
    assert "locked" in str(failed[0]["error"])
    assert failed[0]["waiting"] == 30
    assert len(bench.events("commit_recovered")) == 1


@pytest.mark.asyncio
async def test_a_logged_call_is_a_stored_call(bench: Bench) -> None:
    await bench.store.run(lambda c: c.execute("PRAGMA busy_timeout = 10").fetchall())
    other = sqlite3.connect(bench.store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writer = bench.writer(max_records=2)
    async with running(writer):
        bench.receive(1, 2, 1, 3)
        writer.wake()
        await until_failing(bench, writer)
        assert bench.events("call_released") == []
        other.execute("ROLLBACK")
        other.close()
    told = [(line["seq"], line["call_id"]) for line in bench.events("call_released")]
    assert (
        told == bench.stored() == [(1, call(1).call_id), (2, call(2).call_id), (3, call(3).call_id)]
    )
    assert bench.lines.logged_seq == 3


def restoring(*seqs: int) -> Batch:
    return Batch(restored=[RestoredCall(seq, call(seq)) for seq in seqs])


async def remembered(store: Store) -> int:
    """Up to where a start would hold the rows for told."""
    return (await store.run(read_progress)).logged_seq


@pytest.mark.asyncio
async def test_a_row_restored_behind_what_is_told_gets_its_line_after_a_crash_too(
    bench: Bench,
) -> None:
    """Whoever reads the log is behind, and other commits come meanwhile."""
    reading, writing = os.pipe()
    bench.lines, in_a_file = LineWriter(writing), bench.lines
    in_a_file.close(SOON)
    writer = bench.writer()
    await writer.commit_beside(restoring(10, 11))
    assert await asyncio.to_thread(bench.lines.flush, SOON)
    bench.lines.write(b"x" * MIB)
    await asyncio.gather(
        writer.commit_beside(restoring(3, 12)), writer.commit_beside(holding([call(100)]))
    )
    await writer.commit_beside(holding([call(101)]))
    assert await remembered(bench.store) == 2
    read = asyncio.create_task(asyncio.to_thread(drained, reading))
    assert await asyncio.to_thread(bench.lines.flush, SOON)
    await writer.commit_beside(holding([call(102)]))
    assert await remembered(bench.store) == 14, "none of them is told again"
    bench.lines.close(SOON)
    os.close(writing)
    assert (await read).count(b"call_released") == 7
    os.close(reading)


def drained(descriptor: int) -> bytes:
    return b"".join(iter(lambda: os.read(descriptor, MIB), b""))


@pytest.mark.asyncio
async def test_what_restores_no_row_holds_nothing_back(bench: Bench) -> None:
    writer = bench.writer()
    await writer.commit_beside(restoring(10, 11))
    await writer.commit_beside(restoring(10))
    await bench.store.run(lambda c: c.execute("PRAGMA busy_timeout = 10").fetchall())
    with contextlib.closing(sqlite3.connect(bench.store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            await writer.commit_beside(restoring(3))
    assert await asyncio.to_thread(bench.lines.flush, SOON)
    assert bench.lines.logged_seq == 11


@pytest.mark.asyncio
async def test_a_row_restored_by_a_process_that_ended_is_left_to_the_next_start(
    bench: Bench, tmp_path: Path
) -> None:
    store = bench.store = await Store.open(tmp_path / "apart.sqlite3", process=StoreProcess())
    try:
        writer = bench.writer()
        await writer.commit_beside(restoring(10, 11))
        ending = asyncio.create_task(store.run(end_process))
        with pytest.raises(ProcessEnded):
            await asyncio.gather(ending, writer.commit_beside(restoring(3)))
        await writer.commit_beside(holding([call(100)]))
        assert await asyncio.to_thread(bench.lines.flush, SOON)
        assert bench.lines.logged_seq == 2
    finally:
        await store.close(0)


@pytest.mark.asyncio
async def test_a_batch_beside_the_received_ones_is_told_and_not_counted(bench: Bench) -> None:
    batch = Batch()
    batch.add(call(1), mended=True)
    committed = await bench.writer().commit_beside(batch)
    assert [seq for seq, _ in committed.stored] == [1]
    assert [line["seq"] for line in bench.events("call_released")] == [1]
    assert len(bench.events("report_mended")) == 1
    assert bench.totals == Totals()


@pytest.mark.asyncio
async def test_room_is_told_only_when_a_quarter_of_the_bound_is_free(bench: Bench) -> None:
    bench.receive(*range(100, 200))
    bench.waiting = Waiting(bench.waiting.arriving.size)
    bench.receive(*range(100, 200))
    await run_until_stopped(bench.writer(max_records=10))
    assert bench.made_room == 8


@pytest.mark.asyncio
async def test_a_record_after_a_long_silence_is_no_stalled_writer(bench: Bench) -> None:
    writer = bench.writer()
    assert writer.stalled_seconds == 0
    bench.receive(1)
    writer.wake()
    assert writer.stalled_seconds < 60


@pytest.mark.asyncio
async def test_a_stop_commits_everything_although_nobody_reads_the_log(bench: Bench) -> None:
    reading, writing = os.pipe()
    lines, bench.lines = bench.lines, LineWriter(writing)
    writer = bench.writer(max_records=1)
    recording = "x" * (WAITING_LIMIT_BYTES // 2)
    for number in range(4):
        bench.waiting.arriving.add(call(number)._replace(recording=recording))
    task = asyncio.create_task(writer.run())
    writer.stop()
    done, _ = await asyncio.wait([task], timeout=3)
    stored = len(bench.stored())
    drained = asyncio.create_task(asyncio.to_thread(drain, reading))
    await task
    await asyncio.to_thread(bench.lines.close, SOON)
    os.close(writing)
    await drained
    os.close(reading)
    bench.lines = lines
    assert (len(done), stored) == (1, 4)


def drain(descriptor: int) -> None:
    while os.read(descriptor, MIB):
        pass


@pytest.mark.asyncio
async def test_how_long_a_reader_has_pinned_the_wal_is_told_once_a_minute(bench: Bench) -> None:
    """An earlier reader's transaction has ended, and its time does not count."""
    writer, raw, first = bench.writer(), "x" * 64_000, [0]

    async def store_some(mebibytes: int) -> None:
        for _ in range(mebibytes // 5):
            first[0] += 80
            batch = Batch()
            for number in range(first[0], first[0] + 80):
                batch.add(call(number)._replace(raw=raw))
            assert (await writer.commit_beside(batch)).added == 80

    earlier = open_transaction(bench.store.path)
    await store_some(60)
    later, began = open_transaction(bench.store.path), time.monotonic()
    earlier.close()
    assert not bench.events("wal_pinned")
    await store_some(110)
    later.close()
    (told,) = bench.events("wal_pinned")
    pinned, seconds = told["bytes"], told["seconds"]
    assert isinstance(pinned, int)
    assert isinstance(seconds, float)
    assert pinned >= 64 * MIB
    assert 0 < seconds <= time.monotonic() - began


def open_transaction(path: Path) -> sqlite3.Connection:
    """Begin to read, as a program does that then forgets it."""
    reader = open_reader(path)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM calls").fetchall()
    return reader
