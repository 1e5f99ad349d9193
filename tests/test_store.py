"""The store is the only writer, and keeps the WAL bounded."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cdrd import database
from cdrd.database import WAL_LIMIT_BYTES, checkpoint, open_reader
from cdrd.schema import PAGE_BYTES, VERSION
from cdrd.sizes import MIB
from cdrd.store import CHECKPOINT_PAGES, Store, StoreUnusable
from tests.committing import batch_of, calls, opened, rows
from tests.damage import damage, drop_wal
from tests.example import CALL, call


@pytest.mark.asyncio
async def test_an_empty_file_is_adopted(tmp_path: Path) -> None:
    path = tmp_path / "cdr.sqlite3"
    path.touch()
    async with opened(path) as store:
        await store.commit(batch_of([CALL]), 0)
    assert rows(path, "SELECT count(*) FROM calls") == [(1,)]


@pytest.mark.asyncio
async def test_a_path_with_characters_of_a_uri_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "a b?mode=rw#c%20d.sqlite3"
    async with opened(path) as store:
        await store.commit(batch_of([CALL]), 0)
    assert rows(path, "SELECT count(*) FROM calls") == [(1,)]


async def refused(path: Path) -> str:
    try:
        with pytest.raises(StoreUnusable) as caught:
            await Store.open(path)
    finally:
        for thread in set(threading.enumerate()) - {threading.main_thread()}:
            thread.join(0.2)
    return str(caught.value)


def test_a_refused_database_leaves_no_thread_that_outlives_the_loop(tmp_path: Path) -> None:
    path = tmp_path / "cdr.sqlite3"
    path.write_bytes(b"not a database, but a text of some length\n" * 100)
    program = (
        "import asyncio, pathlib\n"
        "from cdrd.store import Store, StoreUnusable\n"
        "for _ in range(50):\n"
        f"    try: asyncio.run(Store.open(pathlib.Path({str(path)!r})))\n"
        "    except StoreUnusable: pass\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.asyncio
async def test_a_foreign_database_is_refused_and_not_one_byte_of_it_changed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "theirs.sqlite3"
    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TABLE theirs (a)")
    foreign.close()
    before = path.read_bytes()
    assert "another program's database" in await refused(path)
    assert path.read_bytes() == before


@pytest.mark.asyncio
async def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cdr.sqlite3"
    async with opened(path) as store:
        await store.run(lambda c: c.execute(f"PRAGMA user_version = {VERSION + 1}").fetchall())
    assert "a newer cdrd wrote it" in await refused(path)


@pytest.mark.asyncio
async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cdr.sqlite3"
    path.write_bytes(b"not a database, but a text of some length\n" * 100)
    assert "not a database" in await refused(path)


@pytest.mark.asyncio
async def test_a_directory_that_is_not_there_is_told_with_what_to_do(tmp_path: Path) -> None:
    assert "create its directory" in await refused(tmp_path / "missing" / "cdr.sqlite3")


@pytest.mark.asyncio
async def test_a_directory_in_the_databases_place_is_refused(tmp_path: Path) -> None:
    assert str(tmp_path) in await refused(tmp_path)


@pytest.mark.asyncio
async def test_a_second_writer_is_refused_and_the_first_goes_on(store: Store) -> None:
    assert "another cdrd is writing it" in await refused(store.path)
    assert len((await store.commit(batch_of([CALL]), 0)).stored) == 1


@pytest.mark.asyncio
async def test_a_second_writer_by_another_name_of_the_file_is_refused(
    store: Store, tmp_path: Path
) -> None:
    link = tmp_path / "elsewhere"
    link.mkdir()
    (link / "link.sqlite3").symlink_to(store.path)
    with pytest.raises(StoreUnusable, match="another cdrd is writing it"):
        async with opened(link / "link.sqlite3"):
            pass


@pytest.mark.asyncio
async def test_a_reader_of_what_a_copy_was_written_over_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 0)
    path, copy = tmp_path / "cdr.sqlite3", tmp_path / "copy.sqlite3"
    async with opened(path):
        with contextlib.closing(open_reader(path)) as reader:
            reader.execute("VACUUM INTO ?", (str(copy),))
    with contextlib.closing(open_reader(path)):
        path.write_bytes(copy.read_bytes())
        drop_wal(path)
        assert "locked: another program has it open; end that one first" in await refused(path)
    async with opened(path) as store:
        await store.commit(batch_of([CALL]), 0)


@pytest.mark.asyncio
async def test_the_lock_ends_with_the_store(tmp_path: Path) -> None:
    for _ in range(2):
        async with opened(tmp_path / "cdr.sqlite3"):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.asyncio
async def test_a_database_that_root_makes_is_its_directorys_owners(tmp_path: Path) -> None:
    directory = tmp_path / "lib"
    directory.mkdir()
    os.chown(directory, 65534, 65533)
    async with opened(directory / "cdr.sqlite3") as store:
        await store.commit(batch_of([CALL]), 0)
        made = {path.name: path.stat() for path in directory.iterdir()}
    assert made.keys() == {f"cdr.sqlite3{ending}" for ending in ("", "-wal", "-shm", ".lock")}
    assert {(status.st_uid, status.st_gid) for status in made.values()} == {(65534, 65533)}


def wal_bytes(store: Store) -> int:
    return Path(f"{store.path}-wal").stat().st_size


@pytest.mark.asyncio
async def test_no_checkpoint_is_made_before_it_is_due(store: Store) -> None:
    await store.commit(batch_of([CALL]), 0)
    assert await store.checkpoint_if_due() is None


@pytest.mark.asyncio
async def test_the_wal_stays_bounded_over_many_small_commits(store: Store) -> None:
    checkpoints = 0
    for number in range(2 * CHECKPOINT_PAGES):
        await store.commit(batch_of([call(number)]), 0)
        checkpoints += await store.checkpoint_if_due() is not None
    assert checkpoints > 0
    assert wal_bytes(store) < WAL_LIMIT_BYTES


@pytest.mark.asyncio
async def test_the_wal_stays_bounded_over_commits_of_large_reports(store: Store) -> None:
    # 24 commits of 5 MiB each: reports of 64 KiB are within [tcp] max_report_bytes.
    raw = "x" * 64_000
    for commit in range(24):
        records = [record._replace(raw=raw) for record in calls(80 * commit, 80)]
        await store.commit(batch_of(records), 0)
        await store.checkpoint_if_due()
    assert wal_bytes(store) < WAL_LIMIT_BYTES + 16 * MIB


@pytest.mark.asyncio
async def test_an_idle_readers_transaction_pins_the_wal_and_blocks_no_commit(store: Store) -> None:
    await store.commit(batch_of([CALL]), 0)
    reader = open_reader(store.path)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM calls").fetchall()
    for number in range(20):
        committed = await store.commit(batch_of([call(number)]), 0)
        assert len(committed.stored) == 1
    pinned = (await store.run(checkpoint)).pinned_bytes
    assert pinned >= 20 * PAGE_BYTES
    reader.execute("COMMIT")
    reader.close()
    assert (await store.run(checkpoint)).pinned_bytes == 0


@pytest.mark.asyncio
async def test_a_file_damaged_from_its_first_page_on_is_left_as_it_is_with_its_wal(
    tmp_path: Path,
) -> None:
    """What is committed behind a checkpoint has the first page in the file alone."""
    path, wal = tmp_path / "cdr.sqlite3", tmp_path / "cdr.sqlite3-wal"
    async with opened(path) as store:
        await store.commit(batch_of([CALL]), 0)
        await store.run(checkpoint)
        await store.commit(batch_of([call(1)]), 0)
        whole = path.read_bytes()
        left = damage(path, spared=0), wal.read_bytes()
        await store.give_up("damaged")
        assert (path.read_bytes(), wal.read_bytes()) == left
    await refused(path)
    assert (path.read_bytes(), wal.read_bytes()) == left
    path.write_bytes(whole)
    assert rows(path, "SELECT count(*) FROM calls") == [(2,)]
