"""Legs become rows: each keeps its own, no state is undone, and an hour is decided as a whole."""

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdrd.batch import QuarantinedReport
from cdrd.followed import Followed
from cdrd.leg import ConferenceLeg
from cdrd.leg_store import Arrival, StoredLegs, read_followed, read_in_progress, store_legs
from cdrd.schema import migrate
from cdrd.source import IMPORT, PORTAL
from tests.portal_rows import IN_PROGRESS, NEW_YORK, leg

NOW = 1.8e9


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    opened = opened_at(tmp_path / "cdr.sqlite3")
    yield opened
    opened.close()


def opened_at(path: Path | str) -> sqlite3.Connection:
    opened = sqlite3.connect(path, isolation_level=None)
    migrate(opened)
    return opened


def store(
    connection: sqlite3.Connection, *legs: ConferenceLeg, until: float = NOW, **known: Any
) -> StoredLegs:
    return store_legs(connection, Arrival("video", NEW_YORK, until, legs=legs, **known))


def counts(outcome: StoredLegs) -> tuple[int, int, int]:
    return outcome.stored, outcome.updated, outcome.unchanged


def rows(connection: sqlite3.Connection) -> dict[int, tuple[int, ConferenceLeg]]:
    found = connection.execute("SELECT * FROM conference_calls ORDER BY call_id")
    legs = ((seq, ConferenceLeg._make(columns)) for seq, *columns in found)
    return {leg.call_id: (seq, leg) for seq, leg in legs}


def times(connection: sqlite3.Connection) -> list[tuple[str, str | None]]:
    return [
        (leg.join_time[11:16], leg.leave_time and leg.leave_time[11:16])
        for _, leg in rows(connection).values()
    ]


# Rows


def test_a_leg_is_one_row(connection: sqlite3.Connection) -> None:
    assert counts(store(connection, leg(7), leg(8))) == (2, 0, 0)
    assert rows(connection) == {7: (1, leg(7)), 8: (2, leg(8))}


def test_twice_is_the_same_as_once(connection: sqlite3.Connection) -> None:
    store(connection, leg(7), leg(8))
    before = rows(connection)
    outcome = store(connection, leg(7), leg(8))
    assert counts(outcome) == (0, 0, 2)
    assert outcome.changed == []
    assert rows(connection) == before


def test_a_leg_that_ends_updates_its_row(connection: sqlite3.Connection) -> None:
    store(connection, leg(7, **IN_PROGRESS), leg(8))
    outcome = store(connection, leg(7))
    assert counts(outcome) == (0, 1, 0)
    assert outcome.changed == [7]
    assert rows(connection)[7] == (1, leg(7))


def test_an_older_state_does_not_undo_a_newer_one(connection: sqlite3.Connection) -> None:
    store(connection, leg(7))
    assert counts(store(connection, leg(7, **IN_PROGRESS))) == (0, 0, 1)
    assert rows(connection)[7] == (1, leg(7))


def test_two_states_of_a_leg_may_come_together(connection: sqlite3.Connection) -> None:
    states = (leg(7, **IN_PROGRESS), leg(7), leg(7, **IN_PROGRESS), leg(8))
    assert counts(store(connection, *states)) == (2, 1, 1)
    assert rows(connection)[7][1] == leg(7)


def test_each_portal_has_its_own_legs(connection: sqlite3.Connection) -> None:
    store(connection, leg(7))
    other = leg(7)._replace(portal="other")
    assert counts(store_legs(connection, Arrival("other", NEW_YORK, NOW, legs=[other]))) == (
        1,
        0,
        0,
    )
    (number,) = connection.execute("SELECT count(*) FROM conference_calls").fetchone()
    assert number == 2


def test_seqs_are_dense_and_never_given_twice(connection: sqlite3.Connection) -> None:
    for legs in ([leg(9)], [leg(9), leg(3)], [leg(3), leg(9), leg(5)]):
        store(connection, *legs)
    assert {call_id: seq for call_id, (seq, _) in rows(connection).items()} == {9: 1, 3: 2, 5: 3}
    connection.execute("DELETE FROM conference_leg WHERE call_id = 5")
    store(connection, leg(6))
    assert rows(connection)[6][0] == 4


def test_nothing_is_stored_of_what_fails(connection: sqlite3.Connection) -> None:
    wrong: Any = b"bytes"
    broken = leg(8)._replace(call_state=wrong)
    with pytest.raises(sqlite3.Error):
        store(connection, leg(7), broken, followed=Followed(8, "UTC", {}))
    assert rows(connection) == {}
    assert read_followed(connection, "video") is None
    assert not connection.in_transaction


def test_more_legs_than_a_query_takes_are_stored(connection: sqlite3.Connection) -> None:
    legs = [leg(call_id) for call_id in range(1, 1200)]
    assert counts(store(connection, *legs)) == (1199, 0, 0)
    assert counts(store(connection, *legs)) == (0, 0, 1199)


# What the follower remembers


def test_up_to_where_a_portal_was_read_is_remembered(connection: sqlite3.Connection) -> None:
    assert read_followed(connection, "video") is None
    first, back = Followed(7, "UTC", {5: "", 6: "af"}), Followed(4, "Europe/Berlin", {})
    store(connection, leg(7), followed=first)
    store(connection, leg(900))  # a file from later on: what lies between is still to be read
    assert read_followed(connection, "video") == first
    store(connection, followed=back)
    assert read_followed(connection, "video") == back
    assert read_followed(connection, "other") is None


def test_where_a_portal_was_read_is_not_written_again(connection: sqlite3.Connection) -> None:
    store(connection, leg(7), followed=Followed(7, "UTC", {5: ""}))
    before = connection.total_changes
    store(connection, leg(7), followed=Followed(7, "UTC", {5: ""}))
    assert connection.total_changes == before


def test_a_leg_that_was_deleted_is_not_stored_again(connection: sqlite3.Connection) -> None:
    store(connection, leg(7), leg(8, **IN_PROGRESS))
    connection.execute("DELETE FROM conference_leg WHERE call_id = 7")
    outcome = store(connection, leg(7), leg(8), leg(9), again=frozenset({7, 8}))
    assert counts(outcome) == (1, 1, 0)
    assert outcome.changed == [8, 9]
    assert [leg for _, leg in rows(connection).values()] == [leg(8), leg(9)]


def test_a_leg_that_was_refused_is_not_refused_again(connection: sqlite3.Connection) -> None:
    other = leg(7, UniqueCallID="77", CallerID="bob")
    store(connection, leg(7))
    assert len(store(connection, other).quarantined) == 1
    connection.execute("DELETE FROM quarantined_report")
    assert store(connection, other, again=frozenset({7})).quarantined == []
    assert rows(connection) == {7: (1, leg(7))}


def test_the_legs_without_an_end_are_found_by_their_index(connection: sqlite3.Connection) -> None:
    old = IN_PROGRESS | {"JoinTime": "2016-01-01 00:00:00"}
    store(connection, leg(9, **IN_PROGRESS), leg(8), leg(7, **IN_PROGRESS), leg(6, **old))
    assert read_in_progress(connection, "video", "") == [6, 7, 9]
    assert read_in_progress(connection, "video", "2017-01-01T00:00:00Z") == [7, 9]
    plan = connection.execute(
        "EXPLAIN QUERY PLAN SELECT call_id FROM conference_leg WHERE portal = ?"
        " AND leave_time IS NULL AND join_time > ? ORDER BY call_id",
        ("video", ""),
    ).fetchall()
    assert "conference_leg_in_progress" in str(plan)
    assert "TEMP B-TREE" not in str(plan)


# Quarantine


def quarantined(payload: bytes, source: str = IMPORT) -> QuarantinedReport:
    return QuarantinedReport("2017-09-14T13:30:15.000Z", "video", "x.csv:2", source, "no CallID",
                             payload, len(payload))  # fmt: skip


@pytest.mark.parametrize("source", [IMPORT, PORTAL])
def test_a_bad_row_is_in_quarantine_once(connection: sqlite3.Connection, source: str) -> None:
    bad = [quarantined(b"a,b", source), quarantined(b"a,c", source), quarantined(b"a,b", source)]
    outcome = store(connection, leg(7), quarantined=bad)
    assert [number for number, _ in outcome.quarantined] == [1, 2]
    assert store(connection, quarantined=bad).quarantined == []


def test_a_call_id_that_begins_anew_overwrites_no_leg(connection: sqlite3.Connection) -> None:
    store(connection, leg(7))
    anew = leg(7, UniqueCallID="9", JoinTime="2019-01-01 00:00:00", LeaveTime="2019-01-01 01:00:00")
    outcome = store(connection, anew, leg(8))
    assert counts(outcome) == (1, 0, 0)
    ((_, report),) = outcome.quarantined
    assert "has the portal begun its ids anew? give it another name" in report.reason
    assert b'"join_local":"2019-01-01 00:00:00"' in report.payload
    assert rows(connection)[7][1] == leg(7)


def test_a_call_id_that_is_given_again_the_same_day_mixes_no_legs(
    connection: sqlite3.Connection,
) -> None:
    store(connection, leg(7, DeviceModel="Pixel"), leg(8))
    again = {"UniqueCallID": "9", "CallerID": "carol", "JoinTime": "2017-09-14 14:00:00"}
    outcome = store(connection, leg(7, **again), leg(8, **IN_PROGRESS | again))
    assert counts(outcome) == (0, 0, 0)
    assert [b'"caller_id":"carol"' in report.payload for _, report in outcome.quarantined] == [
        True,
        True,
    ]
    assert rows(connection) == {7: (1, leg(7, DeviceModel="Pixel")), 8: (2, leg(8))}


# The hour that comes twice


def autumn(call_id: int, join: str, leave: str = "") -> ConferenceLeg:
    """A leg of the night in which New York's clocks show 01:00 to 02:00 twice."""
    leave_time = f"2017-11-05 {leave}:00" if leave else ""
    return leg(call_id, JoinTime=f"2017-11-05 {join}:00", LeaveTime=leave_time)


def test_order_tells_the_passes(connection: sqlite3.Connection) -> None:
    outcome = store(connection, autumn(1, "01:50"), autumn(2, "01:10"), autumn(3, "01:20", "01:40"))
    assert times(connection) == [("05:50", None), ("06:10", None), ("06:20", "06:40")]
    assert outcome.told == {1: True, 2: True, 3: True}


def test_where_nothing_tells_it_is_the_earlier_and_said(connection: sqlite3.Connection) -> None:
    legs = autumn(1, "01:10"), autumn(2, "01:50"), autumn(3, "00:50", "01:30"), autumn(4, "03:00")
    outcome = store(connection, *legs)
    assert times(connection) == [
        ("05:10", None), ("05:50", None), ("04:50", "05:30"), ("08:00", None)
    ]  # fmt: skip
    assert outcome.told == {1: False, 2: False, 3: False}
    assert outcome.undecided == [1, 2, 3]
    again = store(connection, *legs)
    assert again.told == outcome.told
    assert again.undecided == []


def test_a_leave_before_its_join_tells_both(connection: sqlite3.Connection) -> None:
    outcome = store(connection, autumn(1, "01:50", "01:10"))
    assert times(connection) == [("05:50", "06:10")]
    assert outcome.told == {1: True}


def test_a_later_arrival_tells_of_earlier_ones(connection: sqlite3.Connection) -> None:
    store(connection, autumn(2, "01:10", "01:15"))
    assert times(connection) == [("05:10", "05:15")]
    outcome = store(connection, autumn(1, "01:50"))
    assert times(connection) == [("05:50", None), ("06:10", "06:15")]
    assert counts(outcome) == (1, 0, 0)
    assert counts(store(connection, autumn(2, "01:10", "01:15"))) == (0, 0, 1)
    assert times(connection)[1] == ("06:10", "06:15")


def test_an_end_does_not_undo_what_was_told_of_the_join(connection: sqlite3.Connection) -> None:
    store(connection, autumn(1, "01:50"), autumn(2, "01:10"))
    connection.execute("DELETE FROM conference_leg WHERE call_id = 1")
    store(connection, autumn(2, "01:10", "01:30"))
    assert times(connection) == [("06:10", "06:30")]


def test_a_live_leg_is_of_the_pass_in_which_it_was_seen(connection: sqlite3.Connection) -> None:
    first = 1509858000  # 2017-11-05T05:00:00Z
    outcome = store(connection, autumn(1, "01:10"), until=first + 620, since=first + 590)
    assert outcome.told == {1: True}
    again = first + 3600
    outcome = store(connection, autumn(2, "01:20"), until=again + 1210, since=again + 1190)
    assert outcome.told[2]
    outcome = store(connection, autumn(1, "01:10", "01:30"), until=again + 1801, since=again + 1790)
    assert times(connection) == [("05:10", "06:30"), ("06:20", None)]
    assert outcome.undecided == []


def test_a_years_hour_says_nothing_of_another_years(connection: sqlite3.Connection) -> None:
    store(
        connection, leg(1, JoinTime="2018-11-04 01:10:00"), autumn(2, "01:50"), autumn(3, "01:10")
    )
    assert times(connection)[1:] == [("05:50", None), ("06:10", None)]


LEGS = [
    autumn(1, "00:55", "01:05"),
    autumn(2, "01:10", "01:20"),
    autumn(3, "01:50", "01:55"),
    autumn(4, "01:05", "01:06"),
    autumn(5, "01:30"),
    autumn(6, "01:40", "02:10"),
    autumn(7, "02:30", "02:40"),
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(LEGS + LEGS[2:4]), st.lists(st.integers(1, 4), min_size=9, max_size=9))
def test_any_order_and_slices_come_to_the_same(
    legs: Sequence[ConferenceLeg], sizes: list[int]
) -> None:
    connection, whole = opened_at(":memory:"), opened_at(":memory:")
    store(whole, *LEGS)
    while legs:
        size = sizes.pop()
        store(connection, *legs[:size])
        legs = legs[size:]
    assert times(connection) == times(whole)
    connection.close()
    whole.close()
