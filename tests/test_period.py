"""What a user types as a date or a time becomes an instant, in the zone asked for."""

from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdrd.period import ALWAYS, NotATime, Period, make_period, spell_instant

BERLIN = ZoneInfo("Europe/Berlin")
NEW_YORK = ZoneInfo("America/New_York")
KOLKATA = ZoneInfo("Asia/Kolkata")
SAO_PAULO = ZoneInfo("America/Sao_Paulo")


@pytest.mark.parametrize(
    ("zone", "typed", "instant"),
    [
        (BERLIN, "2024-03-01", "2024-02-29T23:00:00Z"),
        (NEW_YORK, "2024-03-01", "2024-03-01T05:00:00Z"),
        (KOLKATA, "2024-03-01", "2024-02-29T18:30:00Z"),
        (BERLIN, "2024-03-31", "2024-03-30T23:00:00Z"),  # the clock goes forward on that day
        (BERLIN, "2024-04-01", "2024-03-31T22:00:00Z"),
        (BERLIN, "2024-03-31 02:30", "2024-03-31T01:30:00Z"),  # left out: 03:30 in summer time
        (BERLIN, "2024-10-27", "2024-10-26T22:00:00Z"),  # and back
        (BERLIN, "2024-10-28", "2024-10-27T23:00:00Z"),
        (BERLIN, "2024-10-27 02:30", "2024-10-27T00:30:00Z"),  # twice: the earlier
        (BERLIN, "2024-10-27T02:30+01:00", "2024-10-27T01:30:00Z"),  # the later, said so
        (NEW_YORK, "2024-11-03 01:15", "2024-11-03T05:15:00Z"),
        (NEW_YORK, "2024-03-10 02:15", "2024-03-10T07:15:00Z"),
        (SAO_PAULO, "2017-10-15", "2017-10-15T03:00:00Z"),  # a day that began at one o'clock
        (KOLKATA, "2024-12-31T23:59:59Z", "2024-12-31T23:59:59Z"),
    ],
)
def test_a_date_or_time_is_an_instant(zone: ZoneInfo, typed: str, instant: str) -> None:
    assert make_period(typed, "", zone) == Period(start=instant)
    assert make_period("", typed, zone) == Period(end=instant)


def test_nothing_typed_is_always() -> None:
    assert make_period("", "", BERLIN) == ALWAYS


@pytest.mark.parametrize(
    "typed", ["soon", "2024-02-30", "2024-03-01 25:00", "0001-01-01", "2024-03-01 01:02:03.5", " "]
)
def test_what_is_no_time_is_told(typed: str) -> None:
    with pytest.raises(NotATime):
        make_period(typed, "", BERLIN)


@pytest.mark.parametrize("end", ["2024-03-01", "2024-02-29"])
def test_a_range_that_can_hold_nothing_is_told(end: str) -> None:
    with pytest.raises(NotATime, match="no range"):
        make_period("2024-03-01", end, BERLIN)


@given(st.datetimes(), st.sampled_from([BERLIN, NEW_YORK, KOLKATA]), st.text(max_size=30))
def test_anything_typed_is_a_time_or_told(when: object, zone: ZoneInfo, text: str) -> None:
    for typed in (str(when), text):
        try:
            period = make_period(typed, "", zone)
        except NotATime:
            continue
        assert period == ALWAYS if not typed else period.start.endswith("Z")


@given(
    st.lists(st.datetimes(), min_size=2, unique=True),
    st.sampled_from([BERLIN, NEW_YORK, KOLKATA, SAO_PAULO]),
)
def test_ranges_side_by_side_share_their_edge(times: list[datetime], zone: ZoneInfo) -> None:
    typed = [time.isoformat(" ", "seconds") for time in sorted(times)]
    for before, after in pairwise(typed):
        try:
            period = make_period(before, after, zone)
        except NotATime:  # the same second, or in an hour that a clock change repeats
            continue
        assert period.end == make_period(after, "", zone).start
        assert period.start < period.end


def test_an_instant_is_spelt_with_four_digits_of_the_year() -> None:
    assert spell_instant(datetime(999, 2, 1, tzinfo=UTC)) == "0999-02-01T00:00:00Z"
