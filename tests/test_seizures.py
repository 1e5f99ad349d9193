"""Rows become seizures of their groups, and a range is read without the years before it."""

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cdrd.period import ALWAYS, Period
from cdrd.row import commit
from cdrd.schema import migrate
from cdrd.seizures import SOURCES, Source, extension, read_seizures, read_span, trunks
from cdrd.selection import Selection
from cdrd.traffic import Seizure
from tests.example import holding, varied

CALLS, LEGS = SOURCES["calls"], SOURCES["conferences"]
MARCH = Period("2024-03-01T00:00:00Z", "2024-04-01T00:00:00Z")
MARCH_EPOCH = 1709251200
NOW = MARCH_EPOCH + 7200
DAY = 86400


@pytest.fixture
def database() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection)
    yield connection
    connection.close()


def store_calls(database: sqlite3.Connection, *calls: dict[str, Any]) -> None:
    records = [varied(**{"call_id": str(number)} | call) for number, call in enumerate(calls)]
    commit(database, holding(records), 0)


def store_legs(database: sqlite3.Connection, *legs: dict[str, Any]) -> None:
    for number, leg in enumerate(legs):
        columns = {"portal": "video", "call_id": number} | leg
        marks = ", ".join(f":{column}" for column in columns)
        database.execute(
            f"INSERT INTO conference_leg ({', '.join(columns)}) VALUES ({marks})", columns
        )


def read(
    database: sqlite3.Connection, source: Source, period: Period = ALWAYS, by: str = ""
) -> list[Seizure]:
    return list(read_seizures(database, source, Selection(period), by=by, now=NOW))


# What a row becomes


def test_calls_come_in_the_order_of_their_starts(database: sqlite3.Connection) -> None:
    store_calls(
        database,
        {"started_at": "2024-03-01T00:00:07Z", "duration": 9, "talk_duration": 5},
        {"started_at": "2024-03-01T00:00:03Z", "status": "VOICEMAIL", "talk_duration": 6},
        {"started_at": "2024-03-01T00:00:05Z", "duration": -1, "status": ""},
    )
    assert read(database, CALLS) == [
        Seizure(MARCH_EPOCH + 3, 29, 6, answered=False),
        Seizure(MARCH_EPOCH + 5, 0, 0, answered=False),
        Seizure(MARCH_EPOCH + 7, 9, 5, answered=True),
    ]


def test_a_leg_in_progress_lasts_until_now_and_one_that_never_was_lasts_no_time(
    database: sqlite3.Connection,
) -> None:
    joined = "2024-03-01T00:00:00Z"
    store_legs(
        database,
        {"join_time": joined, "leave_time": "2024-03-01T00:01:00Z", "call_state": "COMPLETED"},
        {"join_time": joined, "call_state": "IN PROGRESS"},
        {"join_time": "2024-03-01T00:00:01Z", "call_state": "RING NO ANSWER"},
        {"join_time": "2024-03-01T00:00:02Z", "leave_time": joined, "call_state": "COMPLETED"},
        {"join_time": "2024-03-02T00:00:00Z", "call_state": "IN PROGRESS"},
        {"call_state": "RINGING"},
    )
    assert sorted(read(database, LEGS)) == [
        Seizure(MARCH_EPOCH, 60, 60, answered=True),
        Seizure(MARCH_EPOCH, 7200, 7200, answered=True),
        Seizure(MARCH_EPOCH + 1, 0, 0, answered=False),
        Seizure(MARCH_EPOCH + 2, 0, 0, answered=True),
        Seizure(MARCH_EPOCH + DAY, 0, 0, answered=True),
    ]


def test_a_leg_whose_end_is_never_told_lasts_a_day(database: sqlite3.Connection) -> None:
    joined = ("2014-03-01T00:00:00Z", "2024-02-29T00:00:00Z", "2024-02-29T02:00:01Z")
    store_legs(database, *({"join_time": time, "call_state": "IN PROGRESS"} for time in joined))
    assert [leg.duration for leg in read(database, LEGS)] == [DAY, DAY, DAY - 1]
    assert [leg.duration for leg in read(database, LEGS, MARCH)] == [DAY, DAY - 1]


# Groups


@pytest.mark.parametrize(
    ("call_type", "caller", "callee", "source", "destination", "whose"),
    [
        ("Inbound", "0301", "1000", "t1", None, "1000"),
        ("Inbound", "0301", "1000", None, None, "1000"),
        ("Outbound", "1000", "0301", None, "t1", "1000"),
        ("Outbound", "1000", "0301", "t1", "t2", "1000"),
        ("Internal", "1000", "1001", None, None, "1000"),
        ("Internal", "1000", "6200(4002)", "t1", None, "1000"),
        ("Inbound", "0301", "6200(4002)", "t1", None, "4002"),
        ("Inbound", "0301", "(4002)", "t1", None, "4002"),
        ("Inbound", "0301", "Front (desk)<4002>", "t1", None, "4002"),
        ("Inbound", "0301", "6200()", "t1", None, "6200()"),
        ("Inbound", "0301", "6200", "t1", None, "6200"),
        ("Outbound", "Ann<1000>", "0301", None, "t1", "1000"),
        ("Callback", "0301", "1000", "t1", None, "1000"),
        ("Transfer", "1000", "0301", None, "t1", "1000"),
        (None, "1000", "1001", None, None, "1000"),
        ("Inbound", "0301", None, "t1", None, None),
    ],
)
def test_a_call_is_the_extensions_that_it_came_to_or_from(
    call_type: str | None,
    caller: str,
    callee: str | None,
    source: str | None,
    destination: str | None,
    whose: str | None,
) -> None:
    assert extension(call_type, caller, callee, source, destination) == (whose,)


def test_a_call_occupies_each_of_its_trunks_once() -> None:
    assert trunks("a", None) == ("a",)
    assert trunks(None, "b") == ("b",)
    assert trunks("a", "b") == ("a", "b")
    assert trunks("a", "a") == ("a",)
    assert trunks(None, None) == (None,)


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("extension", {"1000"}),
        ("trunk", {"Apple_test"}),
        ("pbx", {"hq"}),
        ("type", {"Outbound"}),
        ("status", {"ANSWERED"}),
        ("day", set()),
        ("", set()),
    ],
)
def test_a_call_has_the_group_asked_for(
    database: sqlite3.Connection, by: str, groups: set[str]
) -> None:
    store_calls(database, {})
    assert {group for call in read(database, CALLS, by=by) for group in call.groups} == groups


@pytest.mark.parametrize("by", ["extension", "portal", "tenant", "room", "type", "status"])
def test_a_leg_has_the_group_asked_for(database: sqlite3.Connection, by: str) -> None:
    columns = {"tenant": "tenant_name", "room": "conference_name", "type": "conference_type"}
    column = columns.get(by, {"status": "call_state"}.get(by, by))
    store_legs(database, {column: "this", "join_time": "2024-03-01T00:00:00Z"})
    assert [leg.groups for leg in read(database, LEGS, by=by)] == [("this",)]


# What is read of a range


def test_what_lasts_into_a_range_is_found_however_long_ago_it_began(
    database: sqlite3.Connection,
) -> None:
    store_calls(
        database,
        {"started_at": "2014-03-01T00:00:00Z", "duration": 11 * 365 * DAY},
        {"started_at": "2024-02-28T23:59:59Z", "duration": DAY + 2},
        {"started_at": "2024-02-29T00:00:00Z", "duration": DAY},
        {"started_at": "2024-02-29T00:00:00Z", "duration": DAY + 1},
        {"started_at": "2024-02-28T23:00:00Z", "duration": DAY},
        {"started_at": "2024-03-31T23:59:59Z", "duration": 1},
        {"started_at": "2024-04-01T00:00:00Z", "duration": 2 * DAY},
    )
    found = read(database, CALLS, MARCH)
    lasting = [call for call in found if call.started + call.duration > MARCH_EPOCH]
    assert sorted(call.duration for call in lasting) == [1, DAY + 1, DAY + 2, 11 * 365 * DAY]
    assert len(set(found)) == len(found)


def test_a_leg_that_lasted_into_a_range_is_found_however_long_ago_it_began(
    database: sqlite3.Connection,
) -> None:
    long_ago = "2014-03-01T00:00:00Z"
    store_legs(
        database,
        {"join_time": long_ago, "call_state": "IN PROGRESS"},
        {"join_time": "2024-02-29T12:00:00Z", "call_state": "IN PROGRESS"},
        {"join_time": long_ago, "leave_time": MARCH.end, "call_state": "COMPLETED"},
        {"join_time": long_ago, "leave_time": "2014-03-01T09:00:00Z", "call_state": "COMPLETED"},
        {"join_time": long_ago, "call_state": "RINGING"},
    )
    ends = [leg.started + leg.duration for leg in read(database, LEGS, MARCH)]
    assert sorted(ends) == [NOW, MARCH_EPOCH + 31 * DAY]


def test_the_first_year_that_can_be_asked_for_has_a_day_before(
    database: sqlite3.Connection,
) -> None:
    store_calls(
        database,
        {"started_at": "0999-12-31T23:00:00Z", "duration": DAY},
        {"started_at": "2024-03-01T00:00:00Z", "duration": 2 * DAY},
    )
    assert len(read(database, CALLS, Period("1000-01-01T00:00:00Z"))) == 2


def test_a_selection_is_of_what_began_before_the_range_too(database: sqlite3.Connection) -> None:
    before = {"started_at": "2024-02-29T23:59:59Z", "pbx": "lab"}
    store_calls(database, before, {"started_at": "2024-02-01T00:00:00Z", "duration": 99 * DAY})
    selection = Selection(MARCH, senders=("lab",))
    [only] = read_seizures(database, CALLS, selection, by="pbx", now=NOW)
    assert (only.started, only.groups) == (MARCH_EPOCH - 1, ("lab",))


SELECTION = Selection(MARCH, ("a", "b"), ("t",), ("ANSWERED",), ("C",), "100*")


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize(
    "selection",
    [Selection(MARCH), SELECTION, replace(SELECTION, period=Period(MARCH.start))],
    ids=["a range", "filtered", "open"],
)
def test_a_range_is_read_by_index_and_in_order(
    database: sqlite3.Connection, source: Source, selection: Selection
) -> None:
    """A month of a decade is read as that month: no scan, no sorting."""
    asked: list[str] = []
    database.set_trace_callback(asked.append)
    assert not list(read_seizures(database, source, selection, by="status", now=NOW))
    assert read_span(database, source, selection) == (0, 0)
    database.set_trace_callback(None)
    queries = [query for query in asked if query.startswith("SELECT")]
    assert len(queries) == 5
    for query in queries:
        plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {query}")]
        assert not [step for step in plan if "SCAN" in step or "TEMP" in step], (query, plan)
        searched = [step for step in plan if "SEARCH" in step]
        assert all(
            any(found in step for found in ("started_at", "join_time", "rowid=?"))
            for step in searched
        ), (query, plan)
    assert "longer_than_a_day" in str(
        database.execute(f"EXPLAIN QUERY PLAN {queries[0]}").fetchall()
    )


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_the_whole_is_read_in_order_without_sorting(
    database: sqlite3.Connection, source: Source
) -> None:
    asked: list[str] = []
    database.set_trace_callback(asked.append)
    assert not read(database, source)
    database.set_trace_callback(None)
    [query] = [query for query in asked if query.startswith("SELECT")]
    plan = str(database.execute(f"EXPLAIN QUERY PLAN {query}").fetchall())
    assert "TEMP" not in plan


def test_one_state_of_the_database_is_read_and_let_go(database: sqlite3.Connection) -> None:
    store_calls(database, *({"started_at": "2024-03-01T00:00:00Z"} for _ in range(3)))
    reading = read_seizures(database, CALLS, Selection(), by="", now=NOW)
    next(reading)
    assert database.in_transaction
    assert len(list(reading)) == 2
    assert not database.in_transaction
    reading = read_seizures(database, CALLS, Selection(), by="", now=NOW)
    next(reading)
    reading.close()
    assert not database.in_transaction


def test_the_span_of_a_period_is_that_of_its_starts(database: sqlite3.Connection) -> None:
    store_calls(
        database,
        {"started_at": "2024-02-01T00:00:00Z"},
        {"started_at": "2024-03-01T00:00:00Z"},
        {"started_at": "2024-03-02T00:00:00Z"},
    )
    assert read_span(database, CALLS, Selection(MARCH)) == (MARCH_EPOCH, MARCH_EPOCH + DAY)
