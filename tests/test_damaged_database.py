"""A daemon whose database is damaged, or on a full disk: what it was given is stored in the end."""

import contextlib
import http.client
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest

from cdrd.batch import Batch, QuarantinedReport
from cdrd.spool import Spool
from tests import quick_serve
from tests.damage import damage, drop_wal, put_back
from tests.example import call
from tests.running import (
    DEADLINE_SECONDS,
    RunningDaemon,
    assert_accounted,
    assert_each_row_is_logged,
    cdrd,
    count,
    rows,
    send,
)
from tests.small_disk import fill, small_disk
from tests.test_http_listen import BAD, TABLES, http_port, post
from tests.test_http_listen import call as posted
from tests.test_serve import calls


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """A database with 500 calls, at rest, and its backup."""
    with RunningDaemon(tmp_path) as daemon:
        send(daemon.port, calls(*range(500)))
        assert daemon.stop()[0] == 0
    copy = tmp_path / "backup.sqlite3"
    assert cdrd("backup", "--db", daemon.database, copy).returncode == 0
    drop_wal(daemon.database)
    return copy


def test_calls_that_a_damaged_database_cannot_take_are_rows_after_a_backup_was_put_back(
    tmp_path: Path, backup: Path
) -> None:
    with RunningDaemon(tmp_path, TABLES) as daemon:
        port = http_port(daemon)
        left = damage(daemon.database)
        send(daemon.port, calls(*range(500, 600)))
        alarm = daemon.wait_for("database_damaged")
        assert alarm["level"] == "critical"
        daemon.wait_for("records_spooled")
        assert post(port, posted(600))[0] == 200, "it is durable"
        assert post(port, BAD)[0] == 200
        status, stopped = daemon.stop()
        assert not daemon.found("commit_failed")
    assert (status, stopped["spooled"], stopped["received"]) == (0, 102, 102)
    assert_accounted(stopped)
    assert daemon.database.read_bytes() == left, "it is left as it is"
    assert str(daemon.database) in alarm["advice"]

    put_back(backup, daemon.database)
    with RunningDaemon(tmp_path, TABLES) as daemon:
        drained = daemon.wait_for("spool_drained")
        assert (drained["stored"], drained["quarantined"], drained["damaged"]) == (101, 1, 0)
        lines = daemon.wait_for_calls(101)
        status, stopped = daemon.stop()
    assert (status, stopped["received"], stopped["spooled"]) == (0, 0, 0)
    assert (count(daemon.database), count(daemon.database, "quarantine")) == (601, 1)
    assert len({row["call_id"] for row in rows(daemon.database)}) == 601
    assert {line["seq"] for line in lines} == set(range(501, 602))
    assert not Spool(daemon.database).path.exists()


def test_rows_that_only_the_wal_has_outlast_damage_to_the_first_page(
    tmp_path: Path, backup: Path
) -> None:
    with RunningDaemon(tmp_path) as daemon:
        send(daemon.port, calls(500))
        daemon.wait_for_calls(1)
        whole = daemon.database.read_bytes()
        left = damage(daemon.database, spared=0)
        send(daemon.port, calls(*range(100), 501))  # on pages that are in no memory
        daemon.wait_for("records_spooled")
        status, stopped = daemon.stop()
    assert (status, stopped["stored"], stopped["spooled"]) == (0, 1, 101)
    with RunningDaemon(tmp_path) as daemon:
        daemon.wait_for("database_damaged")
        assert daemon.stop()[0] == 0
    assert daemon.database.read_bytes() == left
    daemon.database.write_bytes(whole)
    with RunningDaemon(tmp_path) as daemon:
        drained = daemon.wait_for("spool_drained")
        assert (drained["stored"], drained["duplicate"]) == (1, 100)
        assert daemon.stop()[0] == 0
    assert count(daemon.database) == count(backup) + 2


@pytest.mark.parametrize("head", [b"", b"SQLite format 3\0"])
def test_a_daemon_starts_and_keeps_everything_beside_a_database_that_it_cannot_open(
    tmp_path: Path, head: bytes
) -> None:
    database = tmp_path / "cdr.sqlite3"
    garbage = head + b"\xff" * 100_000
    database.write_bytes(garbage)
    with RunningDaemon(tmp_path, TABLES) as daemon:
        daemon.wait_for("database_damaged")
        assert post(http_port(daemon), posted(1))[0] == 200
        send(daemon.port, calls(2, 3))
        status, stopped = daemon.stop()
    assert (status, stopped["spooled"]) == (0, 3)
    assert_accounted(stopped)
    assert database.read_bytes() == garbage
    drop_wal(database)
    database.unlink()
    with RunningDaemon(tmp_path) as daemon:
        daemon.wait_for("spool_drained", stored=3)
        logged = daemon.wait_for_calls(3)
        daemon.stop()
    assert_each_row_is_logged(database, logged)


def test_what_was_answered_200_outlasts_a_kill_while_it_is_spooled(
    tmp_path: Path, backup: Path
) -> None:
    """Several posters, so that batches are large; the kill comes in the middle of them all."""
    answered: list[int] = []
    enough = threading.Event()

    def post_on(port: int, numbers: range) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            for number in numbers:
                status, _, _ = post(port, posted(number))
                assert status == 200
                answered.append(number)
                if len(answered) == 100:
                    enough.set()

    with RunningDaemon(tmp_path, TABLES) as daemon:
        port = http_port(daemon)
        damage(daemon.database)
        posters = [
            threading.Thread(target=post_on, args=(port, range(start, start + 10_000)))
            for start in (10_000, 20_000, 30_000, 40_000)
        ]
        for poster in posters:
            poster.start()
        assert enough.wait(DEADLINE_SECONDS)
        daemon.kill()
        for poster in posters:
            poster.join(DEADLINE_SECONDS)
    put_back(backup, daemon.database)
    with RunningDaemon(tmp_path) as daemon:
        drained = daemon.wait_for("spool_drained")
        daemon.stop()
    assert drained["duplicate"] == 0
    stored = {row["raw"] for row in rows(daemon.database)}
    assert len(stored) == count(daemon.database) == 500 + drained["stored"]
    assert {posted(number).decode() for number in answered} <= stored


def test_a_kill_while_the_spool_is_drained_neither_loses_nor_doubles_anything(
    tmp_path: Path,
) -> None:
    number = 20_000
    spool = Spool(tmp_path / "cdr.sqlite3")
    for start in range(0, number, 1000):
        batch = Batch()
        batch.add(*map(call, range(start, start + 1000)))
        report = b"{%d" % start
        batch.add_quarantined(
            QuarantinedReport("2017-09-14T01:30:45.123Z", "hq", "", "tcp", "why", report, 9)
        )
        spool.append(batch)
    told = []
    for calls_before_the_kill in (1, 8000):
        with RunningDaemon(tmp_path) as daemon:
            daemon.wait_for_calls(calls_before_the_kill)
            daemon.kill()
            told += daemon.found("call_released")
        assert spool.path.exists(), "it goes when all of it is stored"
    with RunningDaemon(tmp_path) as daemon:
        daemon.wait_for("spool_drained")
        daemon.wait_for("call_released", seq=number)
        daemon.stop()
        told += daemon.found("call_released")
    assert (count(daemon.database), count(daemon.database, "quarantine")) == (number, 20)
    assert_each_row_is_logged(daemon.database, told)
    assert not spool.path.exists()


# A file that is replaced or deleted while it is in use


def test_calls_that_follow_a_replacement_of_the_file_are_rows_of_the_new_one(
    tmp_path: Path, backup: Path
) -> None:
    """The WAL of the old one is still there, and alone has its last rows."""
    aside = tmp_path / "aside.sqlite3"
    with RunningDaemon(tmp_path) as daemon:
        send(daemon.port, calls(*range(500, 600)))
        daemon.wait_for_calls(100)
        daemon.database.rename(aside)
        backup.rename(daemon.database)
        send(daemon.port, calls(*range(600, 700)))
        alarm = daemon.wait_for("database_damaged")
        assert alarm["error"] == f"{daemon.database} was replaced or deleted while in use"
        daemon.wait_for("spool_drained", stored=100)
        status, stopped = daemon.stop()
    assert (status, stopped["stored"], stopped["spooled"]) == (0, 100, 100)
    assert_accounted(stopped)
    assert count(daemon.database) == 600
    assert cdrd("check", "-c", daemon.config, "--integrity").returncode == 0
    assert count(aside) >= 600


def test_a_replacement_is_found_while_no_call_comes(tmp_path: Path, backup: Path) -> None:
    serve = [sys.executable, quick_serve.__file__]
    with RunningDaemon(tmp_path, inside=serve) as daemon:
        send(daemon.port, calls(500))
        daemon.wait_for_calls(1)
        backup.rename(daemon.database)
        daemon.wait_for("database_reopened")
        assert count(daemon.database) == 500
        assert daemon.stop()[0] == 0


def test_calls_that_follow_a_deletion_of_the_file_are_kept_for_the_next_one(
    tmp_path: Path,
) -> None:
    with RunningDaemon(tmp_path) as daemon:
        send(daemon.port, calls(1))
        daemon.wait_for_calls(1)
        daemon.database.unlink()
        send(daemon.port, calls(2, 3))
        daemon.wait_for("records_spooled")
        status, stopped = daemon.stop()
    assert (status, stopped["stored"], stopped["spooled"]) == (0, 1, 2)
    with RunningDaemon(tmp_path) as daemon:
        daemon.wait_for("spool_drained", stored=2)
        assert daemon.stop()[0] == 0
    assert count(daemon.database) == 2


# A full disk


def test_a_full_disk_is_waited_for_and_loses_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path) as (disk, inside):
        with RunningDaemon(disk, inside=inside) as daemon:
            send(daemon.port, calls(*range(10)))
            daemon.wait_for_calls(10)
            filler = disk / "filler"
            fill(filler)
            send(daemon.port, calls(*range(10, 600)))
            failed = daemon.wait_for("commit_failed")
            assert "full" in failed["error"]
            daemon.wait_for("commit_failed", times=3)
            assert not Spool(disk / "cdr.sqlite3").size, "a full disk is no damage"
            filler.unlink()
            daemon.wait_for("commit_recovered")
            logged = daemon.wait_for_calls(600)
            status, stopped = daemon.stop()
        copy = tmp_path / "copied"
        copy.mkdir()
        for file in disk.glob("cdr.sqlite3*"):
            shutil.copyfile(file, copy / file.name)
    assert (status, stopped["stored"], stopped["spooled"]) == (0, 600, 0)
    assert_accounted(stopped)
    assert_each_row_is_logged(copy / "cdr.sqlite3", logged)


def test_a_stop_waits_for_room_on_a_full_disk(tmp_path: Path) -> None:
    """The spool, on the same disk, has none either."""
    with small_disk(tmp_path) as (disk, inside):
        with RunningDaemon(disk, inside=inside) as daemon:
            send(daemon.port, calls(*range(10)))
            daemon.wait_for_calls(10)
            fill(disk / "filler")
            send(daemon.port, calls(*range(10, 600)))
            daemon.wait_for("commit_failed")
            daemon.process.send_signal(signal.SIGTERM)
            daemon.wait_for("stopping")
            failed = len(daemon.found("commit_failed"))
            daemon.wait_for("commit_failed", times=failed + 2)
            (disk / "filler").unlink()
            status, stopped = daemon.wait_for_end()
        assert (status, stopped["stored"], stopped["spooled"]) == (0, 10, 590)
        assert_accounted(stopped)
        with RunningDaemon(disk, inside=inside) as daemon:
            assert daemon.wait_for("spool_drained")["stored"] == 590
            daemon.wait_for_calls(590)
            daemon.stop()


def test_a_daemon_starts_on_a_full_disk_and_waits_for_room(tmp_path: Path) -> None:
    with small_disk(tmp_path) as (disk, inside):
        with RunningDaemon(disk, inside=inside) as daemon:
            send(daemon.port, calls(*range(10)))
            daemon.wait_for_calls(10)
            assert daemon.stop()[0] == 0
        fill(disk / "filler")
        with RunningDaemon(disk, inside=inside) as daemon:
            send(daemon.port, calls(*range(10, 20)))
            daemon.wait_for("commit_failed")
            (disk / "filler").unlink()
            daemon.wait_for("commit_recovered")
            daemon.wait_for_calls(10)
            status, stopped = daemon.stop()
    assert (status, stopped["stored"]) == (0, 10)
