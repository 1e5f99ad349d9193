"""Clock hours have no gap and no overlap, in every zone and over both clock changes."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from cdrd.hours import LAST_INSTANT, clock_hour

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/St_Johns",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "America/Havana",
)
HOUR = 3600


def epoch(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def names(zone: str, start: str, number: int) -> list[str]:
    """Name some hours in a row."""
    instant, found = epoch(start), []
    for _ in range(number):
        hour = clock_hour(instant, ZoneInfo(zone))
        found.append(hour.hour)
        instant = hour.end
    return found


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("year", [1885, 1995, 2024])
def test_clock_hours_leave_no_gap_and_agree_with_the_clock(zone: str, year: int) -> None:
    clocks = ZoneInfo(zone)
    instant = epoch(f"{year}-01-01T00:00:00Z")
    hour = clock_hour(instant, clocks)
    while hour.start < epoch(f"{year + 1}-01-01T00:00:00Z"):
        following = clock_hour(hour.end, clocks)
        assert following.start == hour.end
        for inside in (hour.start, (hour.start + hour.end) // 2, hour.end - 1):
            assert clock_hour(inside, clocks) == hour
            shown = datetime.fromtimestamp(inside, clocks)
            assert (shown.date(), shown.hour) == (hour.local.date(), hour.local.hour)
            assert shown.utcoffset() == hour.local.utcoffset()
        hour = following


def test_the_hour_that_happens_twice_is_two_and_the_one_left_out_none() -> None:
    assert names("Europe/Berlin", "2024-10-27T00:00:00Z", 3) == [
        "2024-10-27 02:00+02:00",
        "2024-10-27 02:00+01:00",
        "2024-10-27 03:00+01:00",
    ]
    assert names("Europe/Berlin", "2024-03-31T00:00:00Z", 2) == [
        "2024-03-31 01:00+01:00",
        "2024-03-31 03:00+02:00",
    ]


def test_offsets_and_changes_that_are_no_whole_hours() -> None:
    assert names("Asia/Kathmandu", "2024-03-01T00:10:00Z", 2) == [
        "2024-03-01 05:00+05:45",
        "2024-03-01 06:00+05:45",
    ]
    assert names("Australia/Lord_Howe", "2024-04-06T14:30:00Z", 3) == [
        "2024-04-07 01:00+11:00",
        "2024-04-07 01:30+10:30",
        "2024-04-07 02:00+10:30",
    ]


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_the_first_and_the_last_instant_there_are_have_an_hour(zone: str) -> None:
    first = int(datetime(1, 1, 1, tzinfo=UTC).timestamp())
    for instant in (first, LAST_INSTANT):
        hour = clock_hour(instant, ZoneInfo(zone))
        assert hour.start <= instant < hour.end


def test_an_hour_knows_its_day_and_its_day_of_the_week() -> None:
    hour = clock_hour(epoch("2024-02-29T23:30:00Z"), ZoneInfo("Europe/Berlin"))
    assert (hour.hour, hour.day, hour.weekday) == ("2024-03-01 00:00+01:00", "2024-03-01", "Friday")
