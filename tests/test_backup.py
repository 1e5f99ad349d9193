"""A copy is whole and verified, or it is not there."""

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cdrd.simulate.reports import new_cdr
from tests.running import HQ, RunningDaemon, cdrd, connect, count, rows, send
from tests.small_disk import small_disk

STARTED = 1571897930


def test_a_copy_beside_a_daemon_that_goes_on_storing(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        send(daemon.port, *(new_cdr(number, started=STARTED) for number in range(3000)))
        send(daemon.port, b'{"action":"NewCdr"}')
        daemon.wait_for_calls(3000)
        daemon.wait_for("report_quarantined")
        stop = threading.Event()

        def go_on(first: int) -> None:
            with connect(daemon.port) as sock:
                while not stop.is_set():
                    sock.sendall(new_cdr(first, started=STARTED))
                    first += 1

        sending = threading.Thread(target=go_on, args=(5000,))
        sending.start()
        copy = tmp_path / "copy.sqlite3"
        done = cdrd("backup", "-c", daemon.config, copy)
        stop.set()
        sending.join()
        assert done.returncode == 0, done.stderr
        assert "verified" in done.stderr
        copied = count(copy)
        assert f"{copied:,} calls up to seq {copied}" in done.stderr
        assert copied >= 3000
        theirs = [tuple(row) for row in rows(daemon.database)[:copied]]
        assert [tuple(row) for row in rows(copy)] == theirs
        assert count(copy, "quarantine") == 1
        assert copy.stat().st_mode & 0o777 == 0o640
        assert [path.name for path in tmp_path.glob(".copy*")] == []


def test_a_copy_is_a_database_that_the_daemon_goes_on_with(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        send(daemon.port, new_cdr(1, started=STARTED))
        daemon.wait_for_calls(1)
        daemon.stop()
    moved = tmp_path / "moved"
    moved.mkdir()
    done = cdrd("backup", "--db", tmp_path / "cdr.sqlite3", moved / "cdr.sqlite3")
    assert done.returncode == 0, done.stderr
    with RunningDaemon(moved, HQ) as daemon:
        send(daemon.port, new_cdr(1, started=STARTED), new_cdr(2, started=STARTED))
        daemon.wait_for_calls(1)
        _, stopped = daemon.stop()
    assert (stopped["stored"], stopped["duplicate"]) == (1, 1)
    assert [row["seq"] for row in rows(moved / "cdr.sqlite3")] == [1, 2]


def test_a_file_that_is_there_is_replaced_only_with_force(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        daemon.wait_for("ready")
        copy = tmp_path / "copy.sqlite3"
        copy.write_text("precious")
        ended = cdrd("backup", "--db", daemon.database, copy)
        assert (ended.returncode, "--force replaces it" in ended.stderr) == (1, True)
        assert copy.read_text() == "precious"
        assert cdrd("backup", "--db", daemon.database, "--force", copy).returncode == 0
        assert count(copy) == 0


def test_a_copy_that_was_written_to_is_not_replaced_under_its_wal(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        send(daemon.port, new_cdr(1, started=STARTED))
        daemon.wait_for_calls(1)
        copy = tmp_path / "copy.sqlite3"
        assert cdrd("backup", "--db", daemon.database, copy).returncode == 0
        captured = tmp_path / "captured.jsonl"
        captured.write_bytes(new_cdr(2, started=STARTED))
        options = ("--pbx", "lab", "--timezone", "UTC", "--db", copy)
        assert cdrd("import", "calls", *options, captured).returncode == 0
        refused = cdrd("backup", "--db", daemon.database, "--force", copy)
    assert (refused.returncode, f"{copy}-wal is there" in refused.stderr) == (1, True)
    assert count(copy) == 2


@pytest.mark.parametrize("ending", ["-wal", "-shm", "-journal"])
def test_what_would_be_read_as_a_part_of_a_new_copy_is_told(tmp_path: Path, ending: str) -> None:
    beside = tmp_path / f"copy.sqlite3{ending}"
    beside.touch()
    with RunningDaemon(tmp_path) as daemon:
        daemon.wait_for("ready")
        refused = cdrd("backup", "--db", daemon.database, tmp_path / "copy.sqlite3")
    assert (refused.returncode, f"{beside} is there" in refused.stderr) == (1, True)
    assert not (tmp_path / "copy.sqlite3").exists()


@pytest.mark.parametrize("ending", ["", "-wal", ".lock"])
@pytest.mark.parametrize(
    "command",
    [
        ("backup", "--force"),
        ("export", "calls", "--format", "csv", "--force", "-o"),
        ("report", "--format", "csv", "--force", "-o"),
    ],
    ids=lambda command: command[0],
)
def test_nothing_replaces_the_database_that_is_read(
    tmp_path: Path, command: tuple[str, ...], ending: str
) -> None:
    with RunningDaemon(tmp_path) as daemon:
        send(daemon.port, new_cdr(1, started=STARTED))
        daemon.wait_for_calls(1)
        name, *options = command
        refused = cdrd(name, *options, f"{daemon.database}{ending}", "-c", daemon.config)
        assert refused.returncode == 1, refused.stderr
        assert f"{ending} belongs to {daemon.database}" in refused.stderr
        send(daemon.port, new_cdr(2, started=STARTED))
        daemon.wait_for_calls(2)
        assert count(daemon.database) == 2


def test_a_full_disk_is_told_of_the_copy_and_leaves_nothing(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        send(daemon.port, *(new_cdr(number, started=STARTED) for number in range(3000)))
        daemon.wait_for_calls(3000)
    small = tmp_path / "small"
    small.mkdir()
    copy = small / "copy.sqlite3"
    with small_disk(small, "256k") as (seen, inside):
        backup = (sys.executable, "-m", "cdrd", "backup", "--db", daemon.database, copy)
        ended = subprocess.run([*inside, *backup], capture_output=True, text=True, check=False)
        assert list(seen.iterdir()) == []
    assert ended.returncode == 1
    assert ended.stderr == f"cdrd backup: {copy}: No space left on device\n"


@pytest.mark.parametrize(
    ("name", "status", "sentence"),
    [
        ("/dev/null", 1, "is no regular file"),
        ("none/copy.sqlite3", 1, "No such file or directory"),
        (".", 1, "is a directory"),
    ],
)
def test_each_place_that_cannot_take_a_copy_has_its_sentence(
    tmp_path: Path, name: str, status: int, sentence: str
) -> None:
    with RunningDaemon(tmp_path) as daemon:
        daemon.wait_for("ready")
        ended = cdrd("backup", "--db", daemon.database, tmp_path / name)
    assert (ended.returncode, sentence in ended.stderr) == (status, True), ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_database_that_is_damaged_is_not_copied_as_if_it_were_whole(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        send(daemon.port, *(new_cdr(number, started=STARTED) for number in range(3000)))
        daemon.wait_for_calls(3000)
        daemon.stop()
    database = tmp_path / "cdr.sqlite3"
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with database.open("r+b") as file:
        file.seek(20 * 16 * 1024)
        file.write(b"\xff" * 16 * 1024)
    copy = tmp_path / "copy.sqlite3"
    ended = cdrd("backup", "--db", database, copy)
    assert ended.returncode == 1
    assert "cdrd backup: " in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not copy.exists()


def test_another_programs_database_is_not_copied(tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite3"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    ended = cdrd("backup", "--db", other, tmp_path / "copy.sqlite3")
    assert (ended.returncode, "another program's" in ended.stderr) == (1, True)
