"""The last call of each PBX is the one that the rows tell, and no row is read twice for it."""

import contextlib
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cdrd.batch import Batch, RestoredCall
from cdrd.last_calls import LastCalls
from cdrd.record import CallRecord
from cdrd.row import commit
from cdrd.schema import migrate
from tests.example import varied

NOON = datetime(2024, 3, 6, 12, tzinfo=UTC)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "cdr.sqlite3"
    with opened(path) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        migrate(connection)
    return path


@contextlib.contextmanager
def opened(database: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        yield connection


def call(began: datetime, pbx: str = "hq") -> CallRecord:
    start = began.strftime("%Y-%m-%dT%H:%M:%SZ")
    return varied(call_id=f"{began.timestamp()}", started_at=start, pbx=pbx)


def store(database: Path, *calls: CallRecord, seq: int | None = None) -> None:
    """Store calls; ``seq``: as those that had it, and the ones behind it, before."""
    batch = Batch()
    for number, record in enumerate(calls):
        if seq is None:
            batch.add(record)
        else:
            batch.add_restored(RestoredCall(seq + number, record))
    with opened(database) as connection:
        commit(connection, batch, 0)


def change(database: Path, statement: str) -> None:
    with opened(database) as connection:
        connection.execute(statement)


def test_they_are_told_as_far_as_they_are_of_interest(database: Path) -> None:
    store(database, call(NOON - HOUR), call(NOON - 14 * DAY, pbx="old"))
    last_calls = LastCalls(database)
    assert last_calls.until(NOON) == {"hq": NOON - HOUR}
    assert last_calls.until(NOON + 7 * DAY) == {"hq": NOON - HOUR}
    assert last_calls.until(NOON + 8 * DAY) == {}


def test_what_comes_late_counts_by_when_it_began(database: Path) -> None:
    store(database, call(NOON - 2 * HOUR))
    last_calls = LastCalls(database)
    assert last_calls.until(NOON) == {"hq": NOON - 2 * HOUR}
    store(database, call(NOON - 3 * HOUR), call(NOON - 4 * HOUR, pbx="branch"))
    assert last_calls.until(NOON) == {"hq": NOON - 2 * HOUR, "branch": NOON - 4 * HOUR}
    store(database, call(NOON - HOUR), call(NOON - 9 * DAY), call(NOON - 9 * DAY, pbx="old"))
    assert last_calls.until(NOON) == {"hq": NOON - HOUR, "branch": NOON - 4 * HOUR}


def test_a_row_is_read_once_unless_all_are_to_be_read_anew(database: Path) -> None:
    store(database, call(NOON - 2 * HOUR))
    last_calls = LastCalls(database)
    last_calls.until(NOON)
    change(database, "UPDATE call SET started_at = '2024-03-06T11:30:00Z'")
    store(database, call(NOON - 3 * HOUR, pbx="branch"))
    before = last_calls.until(NOON)
    assert before == {"hq": NOON - 2 * HOUR, "branch": NOON - 3 * HOUR}
    last_calls.read_anew()
    assert last_calls.until(NOON) == before | {"hq": NOON - HOUR / 2}


def test_a_row_that_is_restored_behind_others_is_read(database: Path) -> None:
    store(database, call(NOON - 2 * HOUR), seq=7)
    last_calls = LastCalls(database)
    last_calls.until(NOON)
    store(database, call(NOON - HOUR), seq=3)
    last_calls.read_anew()
    assert last_calls.until(NOON) == {"hq": NOON - HOUR}


def test_a_purge_does_not_change_when_a_last_call_began(database: Path) -> None:
    store(database, call(NOON - HOUR), call(NOON - HOUR, pbx="branch"))
    last_calls = LastCalls(database)
    both = last_calls.until(NOON)
    change(database, "DELETE FROM call")
    assert last_calls.until(NOON) == both
    store(database, call(NOON))
    assert last_calls.until(NOON) == both | {"hq": NOON}


def test_who_is_days_ahead_counts_when_its_time_has_come(database: Path) -> None:
    starts = [NOON + 2 * DAY + number * HOUR / 4 for number in range(-8, 8)]
    last_calls = LastCalls(database)
    for start in starts:
        store(database, call(start))
        assert last_calls.until(NOON) == {}
    assert last_calls.until(NOON + DAY) == {"hq": NOON + 2 * DAY - HOUR / 4}
    assert last_calls.until(NOON + 2 * DAY) == {"hq": starts[-1]}


def test_a_clock_of_ours_that_is_set_back_leaves_those_that_are_due(database: Path) -> None:
    store(database, call(NOON), call(NOON + 3 * DAY))
    last_calls = LastCalls(database)
    assert last_calls.until(NOON + 3 * DAY) == {"hq": NOON + 3 * DAY}
    assert last_calls.until(NOON) == {"hq": NOON}
    assert last_calls.until(NOON + 3 * DAY) == {"hq": NOON + 3 * DAY}


def test_where_the_database_cannot_be_read_nothing_is_taken_as_read(database: Path) -> None:
    last_calls = LastCalls(database)
    aside = database.rename(database.with_suffix(".aside"))
    with pytest.raises(sqlite3.Error):
        last_calls.until(NOON)
    aside.rename(database)
    store(database, call(NOON))
    assert last_calls.until(NOON) == {"hq": NOON}
