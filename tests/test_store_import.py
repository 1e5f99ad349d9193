"""What a file brings is stored beside what is there: under its own seq where that is free, once."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from cdrd.batch import Batch, QuarantinedReport, RestoredCall
from cdrd.progress import read_progress
from cdrd.record import CallRecord
from cdrd.row import Committed
from cdrd.schema import migrate
from cdrd.source import HISTORY, IMPORT
from tests.asked import whole_records
from tests.committing import commit
from tests.example import CALL, call, logged, varied

BAD = QuarantinedReport("now", "hq", "history.csv", IMPORT, "no callid", b"a,b", 3)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(tmp_path / "cdr.sqlite3", isolation_level=None)
    migrate(opened)
    yield opened
    opened.close()


def restore(connection: sqlite3.Connection, *calls: RestoredCall) -> Committed:
    batch = Batch()
    for one in calls:
        batch.add_restored(one)
    return commit(connection, batch, 0)


def add(connection: sqlite3.Connection, *records: CallRecord, logged_seq: int = 0) -> Committed:
    batch = Batch()
    batch.add(*records)
    return commit(connection, batch, logged_seq)


def stored(connection: sqlite3.Connection) -> list[tuple[int, CallRecord]]:
    return whole_records(connection)


def seqs(committed: Committed) -> list[int]:
    return [seq for seq, _ in committed.stored]


def test_a_record_comes_back_under_its_own_seq(connection: sqlite3.Connection) -> None:
    committed = restore(connection, RestoredCall(7, CALL), RestoredCall(3, call(8)))
    assert committed.stored == [(7, CALL), (3, call(8))]
    assert (committed.duplicates, committed.quarantined) == (0, [])
    assert stored(connection) == [(3, call(8)), (7, CALL)]


def test_the_numbers_go_on_behind_the_highest(connection: sqlite3.Connection) -> None:
    restore(connection, RestoredCall(1000, CALL), RestoredCall(7, call(1)))
    assert seqs(add(connection, call(2))) == [1001]
    connection.execute("DELETE FROM call")
    assert seqs(add(connection, call(3))) == [1002]


def test_a_record_that_is_there_adds_no_row(connection: sqlite3.Connection) -> None:
    add(connection, CALL)
    again = CALL._replace(source="import", raw='{"another":"spelling"}')
    committed = restore(connection, RestoredCall(1, CALL), RestoredCall(9, again))
    assert (committed.stored, committed.duplicates) == ([], 2)
    assert stored(connection) == [(1, CALL)]


def test_a_seq_that_is_taken_gives_way_to_the_next_free_one(
    connection: sqlite3.Connection,
) -> None:
    add(connection, call(1), call(2))
    committed = restore(connection, RestoredCall(2, call(3)), RestoredCall(3, call(4)))
    assert committed.stored == [(3, call(3)), (4, call(4))]


def test_a_seq_below_the_highest_is_kept_where_it_is_free(connection: sqlite3.Connection) -> None:
    add(connection, call(1), call(2), call(3))
    connection.execute("DELETE FROM call WHERE seq = 2")
    assert restore(connection, RestoredCall(2, call(2))).stored == [(2, call(2))]
    assert seqs(add(connection, call(4))) == [4]


def test_records_of_both_kinds_go_into_one_commit(connection: sqlite3.Connection) -> None:
    batch = Batch(quarantined=[BAD])
    batch.add(call(1), call(2))
    batch.add_restored(RestoredCall(2, call(3)))
    batch.add_restored(RestoredCall(2, call(1)))
    committed = commit(connection, batch, 0)
    assert committed.stored == [(1, call(1)), (2, call(2)), (3, call(3))]
    assert (committed.duplicates, len(committed.quarantined)) == (1, 1)


def test_a_record_that_sqlite_refuses_costs_itself_and_is_kept_once(
    connection: sqlite3.Connection,
) -> None:
    poison = RestoredCall(1, CALL._replace(caller="\ud800"))
    for times in (1, 0):
        committed = restore(connection, poison, RestoredCall(2, call(8)))
        assert len(committed.stored) == times
        assert len(committed.quarantined) == times
    assert stored(connection) == [(2, call(8))]


def test_another_record_of_the_same_identity_is_no_duplicate(
    connection: sqlite3.Connection,
) -> None:
    add(connection, CALL)
    committed = restore(connection, RestoredCall(2, CALL._replace(caller="another")))
    assert committed.duplicates == 0
    ((_, report),) = committed.quarantined
    assert report.reason == "refused by the database: another record has its identity"


def test_a_record_of_the_log_is_known_whatever_its_local_start(
    connection: sqlite3.Connection,
) -> None:
    add(connection, CALL)
    elsewhere = varied(started_local="2017-09-14 03:30:15", utc_offset=120)
    assert restore(connection, RestoredCall(5, elsewhere, local_told=False)).duplicates == 1
    assert len(restore(connection, RestoredCall(5, elsewhere)).stored) == 1


@pytest.mark.parametrize("field", ["pbx", "caller", "callee", "status", "call_type", "duration"])
def test_a_record_of_the_log_that_differs_is_another(
    connection: sqlite3.Connection, field: str
) -> None:
    add(connection, CALL)
    fields: dict[str, Any] = {field: 7 if field == "duration" else "another"}
    other = varied(**fields)
    assert len(restore(connection, RestoredCall(5, other, local_told=False)).stored) == 1


ELSEWHERE: dict[str, Any] = {"started_local": "2017-09-14 03:30:15", "utc_offset": 120}
"""What the log's local start is with a time zone that is not the PBX's."""


def of_the_log(**fields: Any) -> RestoredCall:
    raw = orjson.dumps(logged(CALL)).decode()
    return RestoredCall(5, varied(**(ELSEWHERE | {"raw": raw} | fields)), local_told=False)


@pytest.mark.parametrize("source", [IMPORT, HISTORY])
@pytest.mark.parametrize("known", [False, True], ids=["all new", "one known"])
def test_a_record_whose_call_the_log_has_told_adds_no_row(
    connection: sqlite3.Connection, source: str, *, known: bool
) -> None:
    restore(connection, of_the_log())
    others = [call(number)._replace(source=source) for number in range(90)]
    if known:
        add(connection, others[0])
    records = [*others[:50], CALL._replace(source=source), *others[50:]]
    committed = add(connection, *records)
    assert [record for _, record in committed.stored] == others[known:]
    assert (committed.duplicates, committed.quarantined) == (1 + known, [])
    assert add(connection, *records).duplicates == len(records)
    assert [seq for seq, _ in stored(connection)] == [5, *range(6, 56), *range(57, 97)]


@pytest.mark.parametrize("field", ["pbx", "caller", "callee", "status", "call_type", "duration"])
def test_a_record_that_differs_from_what_the_log_has_told_is_another(
    connection: sqlite3.Connection, field: str
) -> None:
    fields: dict[str, Any] = {field: 7 if field == "duration" else "another"}
    restore(connection, of_the_log(**fields))
    assert len(add(connection, CALL._replace(source=HISTORY)).stored) == 1


def test_two_records_of_one_instant_are_two_where_the_log_has_told_neither(
    connection: sqlite3.Connection,
) -> None:
    add(connection, CALL)
    assert len(add(connection, varied(source=HISTORY, **ELSEWHERE)).stored) == 1


@pytest.mark.parametrize(("seq", "logged_seq"), [(2, 1), (9, 3)])
def test_the_log_goes_back_to_a_row_that_it_has_not_told(
    connection: sqlite3.Connection, seq: int, logged_seq: int
) -> None:
    add(connection, call(1), call(2), call(3), logged_seq=3)
    connection.execute("DELETE FROM call WHERE seq = 2")
    restore(connection, RestoredCall(seq, call(8)))
    assert read_progress(connection).logged_seq == logged_seq


def test_what_an_import_quarantines_is_there_once(connection: sqlite3.Connection) -> None:
    others = [
        BAD._replace(pbx="branch"),
        BAD._replace(payload=b"a,c"),
        BAD._replace(size=70_000),
        BAD._replace(source="tcp"),
        BAD._replace(payload=b"x" * 999 + b"y", size=1000),
        BAD._replace(payload=b"x" * 1000, size=1000),
    ]
    first = commit(connection, Batch(quarantined=[BAD, *others, BAD]), 0)
    assert [report for _, report in first.quarantined] == [BAD, *others]
    later = BAD._replace(received_at="later", peer="copy.csv", reason="another reason")
    assert not commit(connection, Batch(quarantined=[later]), 0).quarantined


def test_what_is_received_twice_is_quarantined_twice(connection: sqlite3.Connection) -> None:
    received = BAD._replace(source="tcp")
    committed = commit(connection, Batch(quarantined=[received, received]), 0)
    assert len(committed.quarantined) == 2
