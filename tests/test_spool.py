"""The spool is durable and bounded, and no line of it goes before it is committed."""

import errno
import os
from pathlib import Path

import pytest

from cdrd.batch import Batch, QuarantinedReport
from cdrd.spool import Spool
from tests.example import call


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "cdr.sqlite3")


def batch(*numbers: int) -> Batch:
    made = Batch()
    made.add(*map(call, numbers))
    return made


def test_it_stands_beside_the_database_and_is_read_by_its_owner_and_group_alone(
    spool: Spool, tmp_path: Path
) -> None:
    spool.append(batch(1))
    assert spool.path == tmp_path / "cdr.sqlite3.spool"
    assert spool.path.stat().st_mode & 0o777 & ~0o640 == 0


def test_what_was_appended_is_read_in_its_order_and_removed(spool: Spool) -> None:
    report = QuarantinedReport("now", "hq", "192.0.2.10:1", "tcp", "why", b"\xff{", 2)
    appended = batch(1, 2)
    appended.add_quarantined(report)
    spool.append(appended)
    spool.append(batch(3))
    piece = spool.read(0)
    assert piece.batch.records == [call(1), call(2), call(3)]
    assert piece.batch.quarantined == [report]
    assert (piece.damaged, piece.next_byte) == ([], spool.size)
    assert not spool.read(piece.next_byte).batch
    assert spool.remove(piece.next_byte)
    assert not spool.path.exists()
    assert spool.size == 0


def test_a_long_one_is_read_piece_by_piece(spool: Spool) -> None:
    for start in range(0, 6000, 1000):
        spool.append(batch(*range(start, start + 1000)))
    found, begin, pieces = [], 0, 0
    while (piece := spool.read(begin)).next_byte > begin:
        found += piece.batch.records
        begin, pieces = piece.next_byte, pieces + 1
    assert found == [call(number) for number in range(6000)]
    assert pieces > 1


def test_what_came_after_the_last_look_is_never_removed(spool: Spool) -> None:
    spool.append(batch(1))
    read = spool.read(0).next_byte
    spool.append(batch(2))
    assert not spool.remove(read)
    assert spool.read(read).batch.records == [call(2)]


def test_a_line_that_a_crash_has_cut_off_costs_itself_alone(spool: Spool) -> None:
    spool.append(batch(1, 2))
    with spool.path.open("r+b") as file:
        file.truncate(spool.size - 10)
    spool.append(batch(3))
    piece = spool.read(0, line=100)
    assert piece.batch.records == [call(1), call(3)]
    assert [(each.place, each.why) for each in piece.damaged] == [(103, "its checksum is wrong")]
    [kept] = spool.damaged_path.read_bytes().splitlines()
    assert b'"1505352615.2"' in kept


def test_a_damaged_line_is_kept_aside_once_however_often_it_is_read(spool: Spool) -> None:
    spool.path.write_bytes(b"one\ntwo\nthe end, cut off")
    for _ in range(2):
        piece = spool.read(0)
        assert [each.place for each in piece.damaged] == [1, 2, 3]
    assert spool.damaged_path.read_bytes() == b"one\ntwo\nthe end, cut off\n"


def test_it_grows_up_to_its_bound_and_keeps_a_batch_whole_or_not(tmp_path: Path) -> None:
    bounded = Spool(tmp_path / "cdr.sqlite3", limit=1000)
    bounded.append(batch(1))
    with pytest.raises(OSError, match="may not grow further"):
        bounded.append(batch(*range(2, 10)))
    assert bounded.read(0).batch.records == [call(1)]


def test_of_a_batch_that_the_disk_does_not_take_nothing_stays(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.append(batch(1))
    size = spool.size

    def fail(descriptor: int) -> None:
        assert os.fstat(descriptor).st_size > size
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output"):
            spool.append(batch(2))
    assert spool.size == size
    spool.append(batch(2))
    assert spool.read(0).batch.records == [call(1), call(2)]
