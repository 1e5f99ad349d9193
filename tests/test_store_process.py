"""A process of its own does what it is asked for, in order, and its end is told."""

import asyncio
import contextlib
import ctypes
import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from cdrd.batch import Batch
from cdrd.database import open_reader
from cdrd.progress import read_progress
from cdrd.row import Turn
from cdrd.sqlite_library import set_up_for_one_thread
from cdrd.store import Store, StoreUnusable
from cdrd.store_process import ProcessConnection, ProcessEnded, StoreProcess
from tests.asked import (
    commit_and_end,
    counted_memory,
    end_process,
    process_id,
    refuse,
    wait_for_file,
    whole_records,
)
from tests.example import call, holding

SOON = 20.0


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = await Store.open(tmp_path / "cdr.sqlite3", process=StoreProcess())
    try:
        yield store
    finally:
        await store.close(0)


def batch_of(*numbers: int) -> Batch:
    return holding([call(number) for number in numbers])


def test_it_loads_no_package_that_storing_does_not_need() -> None:
    modules = ("store_process", "store", "row", "leg_store", "progress", "purge")
    imports = "; ".join(f"import cdrd.{module}" for module in modules)
    command = [sys.executable, "-P", "-c", f"import sys; {imports}; print(*sys.modules)"]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert "cdrd.row" in loaded
    assert not {"aiohttp", "msgspec", "pydantic", "rich", "structlog"} & set(loaded)


@pytest.mark.asyncio
async def test_it_is_another_process_that_stores(store: Store) -> None:
    committed = await store.commit(batch_of(1, 2, 1), 0)
    assert [(seq, record.call_id) for seq, record in committed.stored] == [
        (1, call(1).call_id),
        (2, call(2).call_id),
    ]
    assert committed.duplicates == 1
    assert await store.run(process_id) != os.getpid()
    assert await store.run(whole_records) == committed.stored


@pytest.mark.asyncio
async def test_it_has_set_up_sqlite_for_its_one_thread(store: Store) -> None:
    assert await store.run(counted_memory) == 0
    with contextlib.closing(open_reader(store.path)) as reader:
        assert counted_memory(reader) > 0  # as Python sets it up, here


def test_a_python_that_hides_sqlite_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not set_up_for_one_thread()


@pytest.mark.asyncio
async def test_what_goes_wrong_there_is_raised_here_with_its_code(store: Store) -> None:
    with pytest.raises(sqlite3.IntegrityError) as caught:
        await store.run(refuse)
    assert caught.value.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_CHECK
    assert (await store.run(read_progress)).logged_seq == 0


@pytest.mark.asyncio
async def test_requests_are_done_in_the_order_in_which_they_are_made(store: Store) -> None:
    commits = [store.commit(batch_of(*range(n, n + 40)), 0) for n in range(0, 400, 40)]
    outcomes = await asyncio.gather(*commits)
    seqs = [seq for committed in outcomes for seq, _ in committed.stored]
    assert seqs == list(range(1, 401))


@pytest.mark.asyncio
async def test_who_does_not_wait_any_more_takes_nobody_elses_answer(
    store: Store, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    given_up = asyncio.create_task(store.run(wait_for_file, str(pipe)))
    asked = asyncio.create_task(store.run(process_id))
    writing = await asyncio.to_thread(pipe.open, "w")  # returns when the other end is open
    given_up.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await given_up
    writing.close()
    assert await asyncio.wait_for(asked, SOON) == await store.run(process_id)


@pytest.mark.asyncio
async def test_a_commit_waits_for_its_turn(store: Store) -> None:
    with pytest.raises(sqlite3.OperationalError, match="in front of it has failed"):
        await store.commit(batch_of(2), 0, Turn(2, behind=1))
    assert await store.run(whole_records) == []
    await store.commit(batch_of(1), 0, Turn(3))
    await store.commit(batch_of(2), 0, Turn(4, behind=3))
    assert [record for _, record in await store.run(whole_records)] == [call(1), call(2)]


@pytest.mark.asyncio
async def test_its_end_is_told_and_the_next_one_goes_on(store: Store) -> None:
    await store.commit(batch_of(1), 0)
    first = await store.run(process_id)
    asked = [asyncio.create_task(store.run(end_process)), asyncio.create_task(store.run(refuse))]
    for task in asked:
        with pytest.raises(ProcessEnded, match="the process that stores has ended"):
            await asyncio.wait_for(task, SOON)
    assert (await store.commit(batch_of(2), 0)).stored == [(2, call(2))]
    assert await store.run(process_id) != first


@pytest.mark.asyncio
async def test_a_turn_is_not_taken_in_the_next_process_before_the_one_in_front(
    store: Store,
) -> None:
    await store.commit(batch_of(1), 0, Turn(1))
    with contextlib.suppress(ProcessEnded):
        await store.run(end_process)
    with pytest.raises(sqlite3.OperationalError, match="in front of it has failed"):
        await store.commit(batch_of(3), 0, Turn(3, behind=2))


@pytest.mark.asyncio
async def test_what_was_done_before_its_end_stays_done(store: Store) -> None:
    with pytest.raises(ProcessEnded):
        await store.run(commit_and_end, 41)
    assert (await store.commit(batch_of(1), 0)).stored == [(42, call(1))]


@pytest.mark.asyncio
async def test_a_process_that_cannot_start_again_is_an_error_that_may_pass(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.suppress(ProcessEnded):
        await store.run(end_process)
    with monkeypatch.context() as changed:
        changed.setattr(sys, "executable", "/nowhere/python3")
        with pytest.raises(sqlite3.OperationalError, match="nowhere"):
            await store.commit(batch_of(1), 0)
    assert len((await store.commit(batch_of(1), 0)).stored) == 1


def test_readers_of_another_user_can_read_after_its_close(tmp_path: Path) -> None:
    path = tmp_path / "cdr.sqlite3"

    async def store_one() -> None:
        store = await Store.open(path, process=StoreProcess())
        await store.commit(batch_of(1), 0)
        await store.close(1)

    asyncio.run(store_one())
    assert Path(f"{path}-wal").exists()
    with contextlib.closing(open_reader(path)) as reader:
        assert reader.execute("SELECT logged_seq FROM progress").fetchone() == (1,)


@pytest.mark.asyncio
async def test_a_database_that_cannot_be_opened_is_told_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "cdr.sqlite3"
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (a)")
    with pytest.raises(StoreUnusable, match="another program's database"):
        await Store.open(path, process=StoreProcess())
    with pytest.raises(StoreUnusable, match="create its directory"):
        await Store.open(tmp_path / "missing" / "cdr.sqlite3", process=StoreProcess())


@pytest.mark.asyncio
async def test_a_signal_to_end_is_for_the_caller(store: Store) -> None:
    process = await store.run(process_id)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(process, number)
    assert await store.run(process_id) == process


ORPHAN = """
import asyncio, os, signal, sys
from pathlib import Path
from cdrd.store import Store
from cdrd.store_process import StoreProcess
from tests.asked import wait_for_file
from tests.example import call, holding

async def main():
    store = await Store.open(Path(sys.argv[1]), process=StoreProcess())
    first = asyncio.ensure_future(store.run(wait_for_file, sys.argv[2]))
    second = asyncio.ensure_future(store.commit(holding(map(call, range(500))), 0))
    await asyncio.to_thread(open, sys.argv[2], "w")
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_whoever_is_left_alone_does_what_was_asked_for_and_lets_go_of_the_lock(
    tmp_path: Path,
) -> None:
    path, pipe = tmp_path / "cdr.sqlite3", tmp_path / "pipe"
    os.mkfifo(pipe)
    command = [sys.executable, "-c", ORPHAN, str(path), str(pipe)]
    warn = {"PYTHONWARNINGS": "always"}  # so that a connection that is let go of says so
    ended = subprocess.run(
        command, check=False, timeout=SOON, env=os.environ | warn, stderr=subprocess.PIPE
    )
    assert (ended.returncode, ended.stderr) == (-signal.SIGKILL, b"")
    with Path(f"{path}.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    with contextlib.closing(open_reader(path)) as reader:
        assert reader.execute("SELECT count(*) FROM calls").fetchone() == (500,)
    assert Path(f"{path}-wal").exists(), "as after any crash"


def test_it_runs_no_file_of_the_directory_that_the_daemon_is_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "uvloop.py").write_text("open('run', 'w')")
    monkeypatch.chdir(tmp_path)
    StoreProcess().abandon()
    assert [path.name for path in tmp_path.iterdir()] == ["uvloop.py"]


def test_a_process_whose_caller_has_gone_before_it_opened_anything_ends() -> None:
    process = StoreProcess()
    process.abandon()
    assert process._process.returncode == 0


@pytest.mark.asyncio
async def test_a_process_that_ends_before_it_connects_is_told(tmp_path: Path) -> None:
    process = StoreProcess()
    connect = partial(sqlite3.connect, ":memory:")
    process._process.kill()
    process._process.wait(SOON)
    with (tmp_path / "lock").open("w") as lock, pytest.raises(ProcessEnded):
        await ProcessConnection.open(process, connect, lock.fileno())
