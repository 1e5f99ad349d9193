"""What a database in trouble does not take is kept, and is stored when it is well again."""

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from cdrd import drain
from cdrd.batch import Batch, QuarantinedReport, Waiting
from cdrd.database import open_reader
from cdrd.drain import Drainer
from cdrd.log import LineWriter, make_logger
from cdrd.sizes import MIB
from cdrd.spool import Spool
from cdrd.store import Store
from cdrd.writer import Writer
from tests.damage import damage, put_back
from tests.example import call, holding
from tests.test_writer import SOON, Bench, run_until_stopped, running

REPORT = QuarantinedReport("now", "hq", "192.0.2.10:1", "tcp", "why", b"{", 1)


@dataclass
class TroubledBench(Bench):
    """A bench whose database may be damaged and put back."""

    backup: Path = Path()

    async def damage(self) -> bytes:
        """Copy the database, and damage it under its writer."""

        def forget(connection: sqlite3.Connection) -> None:
            connection.execute("VACUUM INTO ?", (str(self.backup),))
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            connection.execute("PRAGMA shrink_memory")  # what is in memory is not damaged

        await self.store.run(forget)
        return damage(self.store.path)

    def drainer(self, writer: Writer) -> Drainer:
        return Drainer(
            self.store,
            writer,
            make_logger(self.lines),
            "full",
            reopened=lambda: None,
            look_seconds=0.01,
        )

    @property
    def quarantined(self) -> int:
        reader = open_reader(self.store.path)
        (found,) = reader.execute("SELECT count(*) FROM quarantine").fetchone()
        reader.close()
        return int(found)

    async def until_drained(self, times: int = 1) -> None:
        await self.until(lambda: len(self.events("spool_drained")) == times)
        assert not Spool(self.store.path).size

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(SOON):
            while not true():
                await asyncio.to_thread(self.lines.flush, SOON)


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[TroubledBench]:
    store = await Store.open(tmp_path / "cdr.sqlite3", "normal")
    log_path = tmp_path / "log"
    descriptor = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    lines = LineWriter(descriptor)
    bench = TroubledBench(store, log_path, lines, Waiting(16 * MIB), backup=tmp_path / "backup")
    try:
        yield bench
    finally:
        await store.close(0)
        lines.close(SOON)
        os.close(descriptor)


def content(path: Path) -> bytes:
    return path.read_bytes()


@contextlib.asynccontextmanager
async def draining(drainer: Drainer) -> AsyncIterator[None]:
    await drainer.begin()
    task = asyncio.create_task(drainer.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(task, SOON)


async def store_some(bench: TroubledBench, writer: Writer) -> None:
    """Store so many that no page that the next one needs is in memory by chance."""
    bench.receive(*range(100))
    await writer.commit_beside(bench.waiting.take(1000))
    bench.waiting.committed()


# A damaged database


@pytest.mark.asyncio
async def test_what_a_damaged_database_cannot_take_is_spooled_at_once(bench: TroubledBench) -> None:
    writer = bench.writer(max_records=10)
    await store_some(bench, writer)
    damaged = await bench.damage()
    told = asyncio.Event()
    bench.receive(*range(100, 125))
    bench.waiting.arriving.add_quarantined(REPORT)
    bench.waiting.when_committed(told.set)
    await run_until_stopped(writer)
    assert told.is_set(), "it is durable: a post may be answered"
    assert len(bench.waiting) == 0
    assert bench.made_room == 3
    assert (bench.totals.spooled, bench.totals.stored) == (26, 0)
    spooled = writer.spool.read(0).batch
    assert [record.call_id for record in spooled.records] == [
        call(n).call_id for n in range(100, 125)
    ]
    assert spooled.quarantined == [REPORT]
    assert bench.store.path.read_bytes() == damaged, "it is left as it is"
    [alarm] = bench.events("database_damaged")
    assert alarm["level"] == "critical"
    assert "malformed" in str(alarm["error"])
    assert str(writer.spool.path) in str(alarm["advice"])
    [warning] = bench.events("records_spooled")
    assert (warning["records"], warning["level"]) == (10, "warning")
    assert not bench.events("commit_failed")
    assert not writer.failing
    assert not writer._attempts, "nothing that was begun ahead is left"


@pytest.mark.asyncio
async def test_nothing_else_is_done_with_a_damaged_database(bench: TroubledBench) -> None:
    writer = bench.writer()
    await store_some(bench, writer)
    await bench.damage()
    for _ in range(2):
        with pytest.raises(sqlite3.DatabaseError):
            await writer.commit_beside(holding([call(200)]))
    with pytest.raises(sqlite3.DatabaseError, match="the database is damaged"):
        await bench.store.run(lambda c: c.total_changes)
    assert len(bench.events("database_damaged")) == 1


@pytest.mark.asyncio
async def test_a_spool_is_drained_once_a_backup_was_put_back(bench: TroubledBench) -> None:
    writer = bench.writer()
    await store_some(bench, writer)
    async with running(writer), draining(bench.drainer(writer)):
        await bench.damage()
        bench.receive(*range(100, 110))
        bench.waiting.arriving.add_quarantined(REPORT)
        writer.wake()
        await bench.until(lambda: bench.totals.spooled == 11)
        put_back(bench.backup, bench.store.path)
        await bench.until_drained()
        bench.receive(110)
        writer.wake()
    assert bench.stored() == [(number + 1, call(number).call_id) for number in range(111)]
    assert bench.quarantined == 1
    assert (bench.totals.stored, bench.totals.spooled) == (1, 11)
    [drained] = bench.events("spool_drained")
    assert (drained["stored"], drained["duplicate"], drained["quarantined"]) == (10, 0, 1)
    assert len(bench.events("database_reopened")) == 1
    assert {line["seq"] for line in bench.events("call_released")} == set(range(1, 112))
    assert bench.lines.logged_seq == 111


@pytest.mark.asyncio
async def test_an_older_backup_has_its_new_rows_logged_under_its_own_numbers(
    bench: TroubledBench, tmp_path: Path
) -> None:
    """The log was ahead of the backup; what a crash leaves unlogged now is counted from there."""
    writer = bench.writer()
    await writer.commit_beside(holding([call(0)]))
    old = tmp_path / "old"
    await bench.store.run(lambda c: c.execute("VACUUM INTO ?", (str(old),)))
    await store_some(bench, writer)
    async with running(writer), draining(bench.drainer(writer)):
        await bench.damage()
        bench.receive(200)
        writer.wake()
        await bench.until(lambda: bench.totals.spooled == 1)
        assert bench.lines.logged_seq == 100
        put_back(old, bench.store.path)
        await bench.until_drained()
    assert bench.stored() == [(1, call(0).call_id), (2, call(200).call_id)]
    assert bench.lines.logged_seq == 2
    assert bench.events("call_released")[-1]["call_id"] == call(200).call_id


@pytest.mark.asyncio
async def test_a_file_that_has_not_changed_is_not_looked_at_again(
    bench: TroubledBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = bench.writer()
    await store_some(bench, writer)
    looks, stamps = 0, 0
    reopen, stamp = bench.store.reopen, drain._stamp

    async def counted(take_up: Callable[[], Awaitable[None]]) -> None:
        nonlocal looks
        looks += 1
        await reopen(take_up)

    def stamped(database: Path) -> object:
        nonlocal stamps
        stamps += 1
        return stamp(database)

    monkeypatch.setattr(bench.store, "reopen", counted)
    monkeypatch.setattr(drain, "_stamp", stamped)
    async with running(writer), draining(bench.drainer(writer)):
        await bench.damage()
        bench.receive(200)
        writer.wake()
        await bench.until(lambda: looks == 1)
        before = stamps
        await bench.until(lambda: stamps >= before + 3)  # two have been compared
        assert looks == 1
        os.utime(bench.store.path)
        await bench.until(lambda: looks == 2)
        await bench.until(lambda: len(bench.events("database_damaged")) == 2)
        put_back(bench.backup, bench.store.path)
        await bench.until_drained()
    assert len(bench.stored()) == 101


@pytest.mark.asyncio
async def test_a_full_spool_is_waited_for_like_a_full_disk(bench: TroubledBench) -> None:
    writer = bench.writer(max_records=1)
    writer.spool = Spool(bench.store.path, limit=1000)
    await store_some(bench, writer)
    async with running(writer):
        await bench.damage()
        bench.receive(*range(100, 105))
        writer.wake()
        await bench.until(lambda: writer.failing)
        failed = bench.events("commit_failed")[0]
        assert "may not grow further" in str(failed["error"])
        assert bench.totals.spooled + len(bench.waiting) == 5
        assert len(bench.waiting) > 0
        put_back(bench.backup, bench.store.path)
        async with draining(bench.drainer(writer)):
            await bench.until(lambda: not bench.waiting)
            await bench.until_drained()
    assert len(bench.stored()) == 105
    assert len(bench.events("commit_recovered")) == 1


@pytest.mark.asyncio
async def test_a_stop_does_not_wait_for_the_look_at_a_large_database(
    bench: TroubledBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = bench.writer()
    await store_some(bench, writer)
    began = threading.Event()

    def look_for_ever(reader: sqlite3.Connection) -> None:
        reader.set_progress_handler(began.set, 1000)
        reader.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
        ).fetchone()

    monkeypatch.setattr("cdrd.store.check_whole", look_for_ever)
    async with running(writer), draining(bench.drainer(writer)):
        await bench.damage()
        bench.receive(200)
        writer.wake()
        assert await asyncio.to_thread(began.wait, SOON)
    assert bench.totals.spooled == 1


@pytest.mark.asyncio
async def test_another_programs_database_in_its_place_is_not_touched(bench: TroubledBench) -> None:
    writer = bench.writer()
    await store_some(bench, writer)
    other = bench.backup.with_name("other")
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    theirs = content(other)
    async with running(writer), draining(bench.drainer(writer)):
        await bench.damage()
        bench.receive(200)
        writer.wake()
        await bench.until(lambda: bench.totals.spooled == 1)
        put_back(other, bench.store.path)
        await bench.until(lambda: "another program" in str(bench.events("database_damaged")[-1]))
        assert content(bench.store.path) == theirs
        put_back(bench.backup, bench.store.path)
        await bench.until_drained()
    assert len(bench.stored()) == 101


# The drain


@pytest.mark.asyncio
async def test_what_a_crash_has_us_drain_again_adds_nothing(bench: TroubledBench) -> None:
    """A crash after the commit and before the file goes: a report in quarantine is there once."""
    writer = bench.writer()
    batch = holding([call(1), call(2)], quarantined=[REPORT, REPORT._replace(payload=b"}")])
    for times in (1, 2, 3):
        writer.spool.append(batch)
        async with draining(bench.drainer(writer)):
            await bench.until_drained(times)
    assert (len(bench.stored()), bench.quarantined) == (2, 2)
    drained = bench.events("spool_drained")
    assert [line["stored"] for line in drained] == [2, 0, 0]
    assert [line["duplicate"] for line in drained] == [0, 2, 2]
    assert [line["quarantined"] for line in drained] == [2, 0, 0]


@pytest.mark.asyncio
async def test_a_damaged_line_is_told_and_kept_aside_and_the_others_are_stored(
    bench: TroubledBench,
) -> None:
    writer = bench.writer()
    writer.spool.append(holding([call(1)]))
    writer.spool.path.write_bytes(b"nonsense\n" + writer.spool.path.read_bytes())
    async with draining(bench.drainer(writer)):
        await bench.until_drained()
    assert len(bench.stored()) == 1
    [told] = bench.events("spool_line_damaged")
    assert (told["line"], told["why"], told["level"]) == (1, "its checksum is wrong", "error")
    assert told["kept"] == str(writer.spool.damaged_path)
    assert writer.spool.damaged_path.read_bytes() == b"nonsense\n"
    assert bench.events("spool_drained")[0]["damaged"] == 1


@pytest.mark.asyncio
async def test_a_drain_that_the_database_refuses_loses_nothing_and_comes_again(
    bench: TroubledBench,
) -> None:
    await bench.store.run(lambda c: c.execute("PRAGMA busy_timeout = 10").fetchall())
    writer = bench.writer()
    writer.spool.append(holding([call(1)]))
    other = sqlite3.connect(bench.store.path, isolation_level=None)
    async with draining(bench.drainer(writer)):
        other.execute("BEGIN IMMEDIATE")
        await bench.until(lambda: len(bench.events("drain_failed")) > 0)
        assert writer.spool.read(0).batch.records == [call(1)]
        other.execute("ROLLBACK")
        await bench.until_drained()
    other.close()
    assert len(bench.stored()) == 1


@pytest.mark.asyncio
async def test_mended_json_is_told_when_its_record_is_stored(bench: TroubledBench) -> None:
    writer = bench.writer()
    batch = Batch()
    batch.add(call(1), mended=True)
    writer.spool.append(batch)
    async with draining(bench.drainer(writer)):
        await bench.until_drained()
    assert len(bench.events("report_mended")) == 1


# A row that cannot be stored


@pytest.mark.asyncio
async def test_one_poisoned_row_among_a_thousand_costs_itself_alone(bench: TroubledBench) -> None:
    bench.receive(*range(500))
    bench.waiting.arriving.add(call(0)._replace(call_id="\ud800", raw='{"a":"\ud800"}'))
    bench.receive(*range(501, 1000))
    await run_until_stopped(bench.writer())
    assert (bench.totals.stored, bench.totals.quarantined) == (999, 1)
    assert [seq for seq, _ in bench.stored()] == list(range(1, 1000))
    assert len({line["timestamp"] for line in bench.events("call_released")}) == 1, "in one pass"
    [told] = bench.events("report_quarantined")
    assert "surrogates not allowed" in str(told["reason"])
