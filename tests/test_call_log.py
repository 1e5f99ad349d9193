"""Each row gets its line, once and in order, and nobody waits for whoever reads the log."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest
import pytest_asyncio

from cdrd.batch import Batch, RestoredCall
from cdrd.call_log import PAGE_ROWS, CallLog
from cdrd.log import WAITING_LIMIT_BYTES, LineWriter, make_logger
from cdrd.sizes import MIB
from cdrd.store import Store
from tests.example import call, holding
from tests.running import RunningDaemon, send
from tests.test_serve import _sent_once_listening, calls, following

SOON = 20.0
LARGE = "x" * (MIB // 2)


@dataclass
class Bench:
    """A store, and a log into a pipe that is not read until it is asked for."""

    store: Store
    lines: LineWriter
    calls: CallLog
    reading: int

    async def commit(self, *numbers: int, recording: str = "") -> None:
        batch = holding([call(number)._replace(recording=recording) for number in numbers])
        committed = await self.store.commit(batch, self.lines.logged_seq)
        self.calls.tell(committed.rows)

    async def read(self, rows: int) -> list[int]:
        """Read the log up to so many rows."""
        return await asyncio.to_thread(self._read, rows)

    def _read(self, rows: int) -> list[int]:
        pieces, ends = [], 0
        while ends < rows:
            pieces.append(os.read(self.reading, MIB))
            ends += pieces[-1].count(b"\n")
        return [orjson.loads(line).get("seq") for line in b"".join(pieces).splitlines()]


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    reading, writing = os.pipe()
    store = await Store.open(tmp_path / "cdr.sqlite3", "normal")
    lines = LineWriter(writing)
    try:
        yield Bench(store, lines, CallLog(store, make_logger(lines), lines), reading)
    finally:
        lines.release()
        await store.close(lines.logged_seq)
        os.close(reading)  # what is still written fails, and the thread ends
        lines.close(SOON)
        os.close(writing)


@contextlib.asynccontextmanager
async def catching_up(calls: CallLog) -> AsyncIterator[None]:
    task = asyncio.create_task(calls.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.mark.asyncio
async def test_a_row_is_told_at_once(bench: Bench) -> None:
    await bench.commit(1, 2)
    assert await bench.read(2) == [1, 2]


@pytest.mark.asyncio
async def test_rows_whose_lines_have_no_room_are_told_from_the_database_when_there_is(
    bench: Bench,
) -> None:
    number = 3 * WAITING_LIMIT_BYTES // len(LARGE)
    async with catching_up(bench.calls):
        for one in range(number):
            await bench.commit(one, recording=LARGE)
        assert bench.lines.full
        assert bench.lines._waiting_bytes < WAITING_LIMIT_BYTES + 2 * len(LARGE)
        assert await bench.read(number) == list(range(1, number + 1))
        await bench.commit(number, number + 1)
        assert await bench.read(2) == [number + 1, number + 2]


@pytest.mark.asyncio
async def test_other_lines_that_have_no_room_are_left_out_and_counted(bench: Bench) -> None:
    """A peer makes as many of them as it likes; what they tell of is in quarantine."""
    log, number = bench.calls._log, 3 * WAITING_LIMIT_BYTES // len(LARGE)
    for each in range(number):
        log.warning("report_quarantined", seq=each, reason=LARGE)
    assert bench.lines._waiting_bytes < WAITING_LIMIT_BYTES + 2 * len(LARGE)
    left_out = bench.lines.left_out
    async with catching_up(bench.calls):
        await bench.commit(1)
        told = await bench.read(number - left_out + 2)
    assert 0 < left_out < number
    assert told == [*range(number - left_out), None, 1]
    assert bench.lines.left_out == 0


@pytest.mark.asyncio
async def test_a_row_that_an_import_puts_into_a_free_place_is_told_too(bench: Bench) -> None:
    """What is behind the last told row comes from the database, and is not told twice."""
    await bench.store.commit(Batch(restored=[RestoredCall(5, call(1))]), 0)
    await bench.calls.take_up("full")
    number = 2 * WAITING_LIMIT_BYTES // len(LARGE)
    async with catching_up(bench.calls):
        for one in range(number):
            await bench.commit(10 + one, recording=LARGE)
        assert bench.lines.full
        restored = Batch(restored=[RestoredCall(3, call(2)), RestoredCall(100, call(3))])
        bench.calls.tell((await bench.store.commit(restored, 0)).restored)
        told = await bench.read(number + 3)
    assert sorted(told) == [3, 5, *range(6, 6 + number), 100]


@pytest.mark.asyncio
async def test_what_an_earlier_run_left_untold_is_told_and_no_more(bench: Bench) -> None:
    await bench.store.commit(holding([call(1), call(2)]), 0)
    await bench.store.commit(holding([call(3)]), 1)
    await bench.calls.take_up("masked")
    assert await bench.read(2) == [2, 3]


@pytest.mark.asyncio
async def test_lines_of_another_state_of_the_database_are_not_counted_in_this_one(
    bench: Bench,
) -> None:
    """They were waiting for the log's reader while an older backup was put back."""
    await bench.commit(1, 2, recording=LARGE)
    bench.lines.begin_anew(1)
    assert await bench.read(2) == [1, 2]
    assert await asyncio.to_thread(bench.lines.flush, SOON)
    assert bench.lines.logged_seq == 1


@pytest.mark.asyncio
async def test_a_start_does_not_wait_for_a_log_that_nobody_reads(bench: Bench) -> None:
    number = 2 * WAITING_LIMIT_BYTES // len(LARGE)
    for one in range(number):
        await bench.store.commit(holding([call(one)._replace(recording=LARGE)]), 0)
    async with asyncio.timeout(SOON):
        await bench.calls.take_up("full")
    async with catching_up(bench.calls):
        assert await bench.read(number) == list(range(1, number + 1))


def test_a_long_log_left_behind_is_told_after_the_daemon_is_ready(tmp_path: Path) -> None:
    """Its reader is fast: all of it would have room."""
    number = 5000

    async def leave_untold() -> None:
        store = await Store.open(tmp_path / "cdr.sqlite3")
        await store.commit(holding([call(one) for one in range(number)]), 0)
        await store.close(0)

    asyncio.run(leave_untold())
    with RunningDaemon(tmp_path) as daemon:
        send(daemon.port, calls(number))
        told = [line["seq"] for line in daemon.wait_for_calls(number + 1)]
        daemon.stop()
    events = [line["event"] for line in daemon.lines]
    assert events[: events.index("ready")].count("call_released") == PAGE_ROWS
    assert told == list(range(1, number + 2))


def test_a_log_that_nobody_reads_does_not_stop_the_intake(tmp_path: Path) -> None:
    """30,000 lines are more than the 8 MiB that are rendered ahead of a reader."""
    number = 30_000
    with RunningDaemon(tmp_path) as daemon:
        port = daemon.port
        daemon.stop()
    with RunningDaemon(tmp_path, listen=[f"127.0.0.1:{port}"], read_log=False) as daemon:
        asyncio.run(_sent_once_listening(port, number))
        with following(daemon.database) as stored:
            for _ in range(number):
                assert stored.readline()
        daemon.read_log()
        told = [line["seq"] for line in daemon.wait_for_calls(number)]
        assert daemon.process.poll() is None
    assert told == list(range(1, number + 1))
