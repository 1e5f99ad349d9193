"""A row becomes a leg or says why not, and of two states of a leg the further one wins."""

from datetime import datetime
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdrd.leg import (
    COLUMNS,
    MAX_CHARACTERS,
    NULLABLE,
    REQUIRED,
    ConferenceLeg,
    NotALeg,
    is_another,
    make_leg,
    merge,
)
from cdrd.record import MAX_INTEGER
from tests.portal_rows import IN_PROGRESS, NEW_YORK, ROW, leg, row


def make(fields: dict[str, object]) -> ConferenceLeg:
    return make_leg(fields, portal="video", zone=NEW_YORK)


# One row


def test_a_row_becomes_a_leg() -> None:
    assert leg() == ConferenceLeg(
        portal="video",
        call_id=1,
        unique_call_id="1505372123456789",
        conference_name="green",
        tenant_name="Default",
        conference_type="C",
        endpoint_type="D",
        caller_id="alice",
        caller_name="Alice Ångström",
        join_time="2017-09-14T13:30:15Z",
        leave_time="2017-09-14T14:00:00Z",
        join_local="2017-09-14 09:30:15",
        leave_local="2017-09-14 10:00:00",
        call_state="COMPLETED",
        direction="I",
        router_id="router-1",
        gw_id=None,
        gw_prefix=None,
        reference_number=None,
        application_name="VidyoDesktop",
        application_version="3.6.11",
        application_os="Linux",
        device_model=None,
        endpoint_public_ip_address="192.0.2.7",
        call_completion_code="1",
        extension="0042",
        endpoint_guid="6F9619FF-8B86-D011-B42D-00C04FC964FF",
        access_type="U",
        room_type="M",
        room_owner="alice",
    )


def test_there_are_27_columns() -> None:
    assert len(COLUMNS) == 27
    assert set(COLUMNS) == set(ROW)
    assert len(REQUIRED) + len(NULLABLE) == 27
    assert set(COLUMNS.values()) | {"portal", "join_time", "leave_time"} == set(
        ConferenceLeg._fields
    )


@pytest.mark.parametrize("spell", [str.upper, str.lower, lambda name: f" {name[:4]} {name[4:]}_"])
def test_names_are_matched_without_case_and_blanks(spell: object) -> None:
    assert callable(spell)
    assert make({spell(name): value for name, value in ROW.items()}) == leg()


def test_what_a_driver_returns_is_what_a_file_holds() -> None:
    typed: dict[str, object] = {name: value.encode() for name, value in ROW.items()}
    typed |= {"CallID": 1, "GWID": None, "JoinTime": datetime(2017, 9, 14, 9, 30, 15)}  # noqa: DTZ001
    assert make(typed) == leg()
    assert make(typed | {"CallerName": "Åsa".encode("cp1252")}).caller_name == "Åsa"


@pytest.mark.parametrize("absent", ["", " ", "NULL", "null", r"\N"])
def test_what_a_nullable_column_lacks_is_absent(absent: str) -> None:
    names = [name for name, column in COLUMNS.items() if column in NULLABLE]
    made = leg(**dict.fromkeys(names, absent))
    assert [getattr(made, column) for column in NULLABLE] == [None] * len(names)
    assert made.leave_time is None


def test_a_column_that_is_never_null_may_say_NULL() -> None:  # noqa: N802
    assert leg(CallerID="NULL").caller_id == "NULL"
    assert leg(RoomOwner="").room_owner is None


def test_a_row_without_the_nullable_columns_is_a_leg() -> None:
    made = make({name: ROW[name] for name in REQUIRED})
    assert made.extension is None
    assert made.leave_time is None


def test_an_unknown_value_is_kept() -> None:
    made = leg(CallState="On Hold", RoomType="X", ConferenceType="ZZ")
    assert (made.call_state, made.room_type, made.conference_type) == ("On Hold", "X", "ZZ")


def test_a_zero_leave_time_is_none() -> None:
    assert leg(LeaveTime="0000-00-00 00:00:00").leave_local is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"CallID": ""}, "no CallID"),
        ({"CallID": "seven"}, "CallID 'seven' is no integer from 1 up"),
        ({"CallID": "0"}, "CallID '0'"),
        ({"CallID": str(MAX_INTEGER + 1)}, "is no integer from 1 up"),
        ({"CallID": "9" * 5000}, "CallID"),
        ({"CallID": "٣"}, "CallID"),
        ({"UniqueCallID": ""}, "no UniqueCallID"),
        ({"UniqueCallID": "1.50537E+15"}, "was rounded by a spreadsheet"),
        ({"JoinTime": ""}, "no JoinTime"),
        ({"JoinTime": "9/14/2017 9:30"}, "JoinTime '9/14/2017 9:30' is no time"),
        ({"JoinTime": "0000-00-00 00:00:00"}, "JoinTime"),
        ({"JoinTime": "9999-12-31 23:59:59"}, "out of range"),
        ({"LeaveTime": "later"}, "LeaveTime 'later' is no time"),
        ({"CallerName": "a\0b"}, "CallerName has a NUL character"),
        ({"RoomOwner": "x" * (MAX_CHARACTERS + 1)}, "RoomOwner is longer than 2000"),
    ],
)
def test_nonsense_is_no_leg(changes: dict[str, str], reason: str) -> None:
    with pytest.raises(NotALeg) as caught:
        leg(**changes)
    assert reason in str(caught.value)


def test_a_row_without_a_needed_column_is_no_leg() -> None:
    with pytest.raises(NotALeg, match="no column CallState, RoomOwner"):
        make({name: ROW[name] for name in ROW if name not in ("CallState", "RoomOwner")})


@given(st.sampled_from(list(COLUMNS)), st.none() | st.booleans() | st.floats() | st.integers()
       | st.text() | st.binary() | st.lists(st.integers()) | st.datetimes())  # fmt: skip
def test_any_value_gives_a_leg_or_a_reason(name: str, value: object) -> None:
    try:
        made = make(ROW | {name: value})
    except NotALeg:
        pass
    else:
        assert type(made.call_id) is int
        assert all(text is None or isinstance(text, str) for text in made[2:])


# Two states

STATES = (
    row(CallState="RINGING", LeaveTime="", CallCompletionCode="0"),
    row(CallState="RING ACCEPTED", LeaveTime="", CallCompletionCode="0"),
    row(**IN_PROGRESS),
    row(CallState="COMPLETED", LeaveTime="", CallCompletionCode="0"),
    row(CallState="COMPLETED", CallCompletionCode="0"),
    row(CallState="COMPLETED"),
    row(CallState="COMPLETED", LeaveTime="2017-09-14 10:00:30"),
)


@pytest.mark.parametrize("order", list(permutations(range(len(STATES)), 2)))
def test_an_older_state_never_undoes_a_newer_one(order: tuple[int, ...]) -> None:
    known, arrived = (make(dict(STATES[position])) for position in order)
    assert merge(known, arrived, NEW_YORK) == make(dict(STATES[max(order)]))


def test_of_equal_states_the_one_that_arrived_wins() -> None:
    assert merge(leg(), leg(RoomOwner="bob"), NEW_YORK).room_owner == "bob"
    assert merge(leg(), leg(), NEW_YORK) == leg()


def test_what_a_newer_state_leaves_out_is_kept() -> None:
    ended = leg(Extension="", GWID="gw-1")
    for merged in (merge(leg(**IN_PROGRESS), ended, NEW_YORK), merge(leg(), ended, NEW_YORK)):
        assert (merged.extension, merged.gw_id) == ("0042", "gw-1")


def test_a_state_that_the_guide_does_not_name_is_one_in_progress() -> None:
    held = leg(**IN_PROGRESS | {"CallState": "ON HOLD"})
    assert merge(leg(**IN_PROGRESS), held, NEW_YORK).call_state == "ON HOLD"
    assert merge(leg(), held, NEW_YORK).call_state == "COMPLETED"


REPEATED = {"JoinTime": "2017-11-05 01:30:00", "LeaveTime": "2017-11-05 01:40:00"}


def test_what_was_decided_of_the_repeated_hour_stays_decided() -> None:
    first = leg(**REPEATED)
    second = first._replace(join_time="2017-11-05T06:30:00Z", leave_time="2017-11-05T06:40:00Z")
    assert first.join_time == "2017-11-05T05:30:00Z"
    assert merge(second, first, NEW_YORK) == merge(first, second, NEW_YORK) == second


def test_a_corrected_zone_moves_the_times() -> None:
    wrong = leg()._replace(join_time="2017-09-14T09:30:15Z", leave_time="2017-09-14T10:00:00Z")
    assert merge(wrong, leg(), NEW_YORK) == leg()


def test_another_conference_days_later_is_another_leg() -> None:
    later = {"UniqueCallID": "1", "JoinTime": "2018-09-14 09:30:15", "LeaveTime": ""}
    assert is_another(leg(), leg(**later))
    assert not is_another(leg(), leg(JoinTime="2018-09-14 09:30:15"))
    assert not is_another(leg(), leg(UniqueCallID="1"))


ANOTHER = {"UniqueCallID": "1505372123456780"}


@pytest.mark.parametrize(
    "change",
    [
        {"JoinTime": "2017-09-14 09:32:16"},
        {"JoinTime": "2017-09-14 09:28:14"},
        {"CallerID": "bob"},
        {"EndpointGUID": "00000000-8B86-D011-B42D-00C04FC964FF"},
    ],
)
def test_another_conference_of_the_same_day_is_another_leg(change: dict[str, str]) -> None:
    assert is_another(leg(), leg(**ANOTHER, **change))
    assert not is_another(leg(), leg(**change))


def test_a_rounded_conference_and_the_end_of_its_ringing_are_the_same_leg() -> None:
    accepted = {"JoinTime": "2017-09-14 09:32:15", "CallerName": "", "Extension": ""}
    assert not is_another(leg(**IN_PROGRESS), leg(**ANOTHER, **accepted))
    assert not is_another(leg(**ANOTHER, **accepted), leg(**IN_PROGRESS))
