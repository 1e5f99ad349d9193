"""The settings that were promised are in force, and readers of the group can read."""

import asyncio
import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdrd.database import WAL_LIMIT_BYTES, connect, open_reader, wal_reset_bug
from cdrd.schema import APPLICATION_ID, PAGE_BYTES, VERSION
from cdrd.store import Store
from tests.committing import batch_of, calls, opened
from tests.example import CALL

NOBODY = 65534


READERS = 64321


def ask(connection: sqlite3.Connection, query: str) -> object:
    return connection.execute(query).fetchone()


@pytest.mark.asyncio
@pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("normal", 1)])
async def test_the_settings_in_force_are_those_that_were_promised(
    tmp_path: Path, durability: str, synchronous: int
) -> None:
    async with opened(tmp_path / "cdr.sqlite3", durability) as store:
        expected = {
            "journal_mode": "wal",
            "synchronous": synchronous,
            "wal_autocheckpoint": 0,
            "journal_size_limit": WAL_LIMIT_BYTES,
            "page_size": PAGE_BYTES,
            "auto_vacuum": 2,
            "busy_timeout": 5000,
            "application_id": APPLICATION_ID,
            "user_version": VERSION,
        }
        for pragma, value in expected.items():
            query = f"PRAGMA {pragma}"
            found = await store.run(ask, query)
            assert found == (value,), pragma


@pytest.mark.asyncio
async def test_the_group_may_read_the_files_and_others_may_not(store: Store) -> None:
    await store.commit(batch_of([CALL]), 0)
    for ending in ("", "-wal", "-shm", ".lock"):
        mode = os.stat(f"{store.path}{ending}").st_mode  # noqa: PTH116 - one call, not awaited
        assert stat.S_IMODE(mode) == 0o640, ending


@pytest.fixture
def shared_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        subprocess.run(["/bin/chgrp", str(READERS), directory], check=True)
        path.chmod(0o2750)
        yield path


READ = f"""
import os, sqlite3, sys
os.setgroups([{READERS}]), os.setgid({NOBODY}), os.setuid({NOBODY})
reader = sqlite3.connect(f"file:{{sys.argv[1]}}?mode=ro", uri=True)
print(reader.execute("SELECT count(*) FROM calls").fetchone()[0])
try:
    sqlite3.connect(sys.argv[1]).execute("DELETE FROM call")
except sqlite3.OperationalError as error:
    print(error)
"""


async def read_as_another_user(path: Path) -> list[str]:
    # The program changes its user itself: the interpreter may stand where nobody else may look.
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", READ, str(path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said, _ = await program.communicate()
    return said.decode().splitlines()


@pytest.mark.asyncio
async def test_a_reader_of_the_group_reads_beside_the_writer_and_after_it_and_cannot_write(
    shared_directory: Path,
) -> None:
    path = shared_directory / "cdr.sqlite3"
    async with opened(path, logged_seq=3) as store:
        told = "attempt to write a readonly database"
        assert await read_as_another_user(path) == ["0", told]
        await store.commit(batch_of(calls(0, 3)), 0)
        assert await read_as_another_user(path) == ["3", told]
    assert await read_as_another_user(path) == ["3", told]
    async with opened(path, logged_seq=3):
        pass
    assert await read_as_another_user(path) == ["3", told]


@pytest.mark.asyncio
async def test_our_own_reader_cannot_write(store: Store) -> None:
    reader = open_reader(store.path)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("DELETE FROM call")
    reader.close()


@pytest.mark.asyncio
async def test_a_reader_between_two_pages_sees_only_whole_commits(store: Store) -> None:
    await store.commit(batch_of(calls(0, 3)), 0)
    reader = open_reader(store.path)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM calls").fetchone() == (3,)
    await store.commit(batch_of(calls(3, 3)), 0)
    assert reader.execute("SELECT count(*) FROM calls").fetchone() == (3,)
    reader.execute("COMMIT")
    assert reader.execute("SELECT count(*) FROM calls").fetchone() == (6,)
    reader.close()


@pytest.mark.parametrize(
    ("version", "has_bug"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 43, 9), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 49, 2), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), False),
        ((4, 0, 0), False),
    ],
)
def test_the_versions_that_can_corrupt_a_wal_are_known(
    version: tuple[int, int, int], *, has_bug: bool
) -> None:
    assert wal_reset_bug(version) is has_bug


def test_what_the_wal_holds_is_read_from_the_disk_and_not_from_memory(tmp_path: Path) -> None:
    """What was written and never synced, or in vain, is no committed row."""
    database = tmp_path / "cdr.sqlite3"
    writer = connect(database, "full")
    with contextlib.closing(open_reader(database)):
        writer.close()  # not the last to close, so the WAL stays
    trace = tmp_path / "trace"
    calls = "trace=fdatasync,fadvise64,pread64"
    command: list[str | Path] = ["strace", "-f", "-o", trace, "-e", calls, "-P", f"{database}-wal"]
    opening = f"from cdrd.database import *; connect(Path({str(database)!r}), 'full')"
    subprocess.run([*command, sys.executable, "-c", opening], check=True)
    done = [line.split()[1].partition("(")[0] for line in trace.read_text().splitlines()]
    assert done[:3] == ["fdatasync", "fadvise64", "pread64"]
    assert "POSIX_FADV_DONTNEED" in trace.read_text()


def test_what_a_failed_sync_may_have_lost_is_written_again_before_the_next(tmp_path: Path) -> None:
    """The kernel may have dropped it, and have nothing to sync: a success alone proves nothing."""
    database = tmp_path / "cdr.sqlite3"
    connect(database, "full").close()
    trace = tmp_path / "trace"
    faults = (
        "-e",
        "trace=pwrite64,fdatasync",
        "-e",
        "inject=fdatasync:error=EIO:when=3",
    )  # the second commit
    command: list[str | Path] = ["strace", "-o", trace, *faults, "-P", f"{database}-wal"]
    committing = f"""
from cdrd.database import *
connection = connect(Path({str(database)!r}), "full")
for _ in range(3):
    with contextlib.suppress(sqlite3.OperationalError):
        connection.execute("UPDATE progress SET last_seq = last_seq + 1")
"""
    subprocess.run([*command, sys.executable, "-c", committing], check=True)
    before, failed, after = trace.read_text().partition("EIO")
    assert failed
    lost = _written(before.rpartition(" = 0\n")[2])
    assert lost
    assert lost <= _written(after.partition("fdatasync")[0])


def _written(traced: str) -> set[str]:
    """The places that were written to, as a trace tells them behind the bytes."""
    calls = [line for line in traced.splitlines() if line.startswith("pwrite64")]
    return {call.rpartition(")")[0].rpartition(", ")[2] for call in calls}
