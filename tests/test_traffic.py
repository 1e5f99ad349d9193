"""The figures of traffic equal those of a count that looks at every second of the time."""

from collections import Counter
from datetime import datetime, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdrd.hours import clock_hour
from cdrd.traffic import DAY, Figures, Group, Seizure, Traffic, Window, measure

BERLIN = ZoneInfo("Europe/Berlin")
NEW_YORK = ZoneInfo("America/New_York")
KATHMANDU = ZoneInfo("Asia/Kathmandu")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")
HOUR = 3600


def epoch(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


# Where random seizures begin: about midnight, both clock changes, and a change by half an hour.
PLACES = {
    "midnight": (BERLIN, epoch("2024-03-01T00:00:00+01:00")),
    "spring": (BERLIN, epoch("2024-03-31T01:00:00Z")),
    "autumn": (BERLIN, epoch("2024-10-27T01:00:00Z")),
    "autumn in New York": (NEW_YORK, epoch("2024-11-03T06:00:00Z")),
    "a quarter to": (KATHMANDU, epoch("2024-03-01T00:00:00+05:45")),
    "half an hour": (LORD_HOWE, epoch("2024-04-06T15:00:00Z")),
}
LATER = epoch("2030-01-01T00:00:00Z")


def at_once(seizures: list[Seizure]) -> Counter[int]:
    """Count the seizures that occupy each second."""
    counted: Counter[int] = Counter()
    for seizure in seizures:
        counted.update(range(seizure.started, seizure.started + seizure.duration))
    return counted


def brute(seizures: list[Seizure], window: Window, seconds: Counter[int] | None = None) -> Figures:
    """Count second by second what lies in a window that has both ends."""
    assert window.start is not None
    assert window.end is not None
    counted = seconds if seconds is not None else at_once(seizures)
    inside = [second for second in range(window.start, window.end) if second in counted]
    occupied: Counter[str] = Counter()  # by the hour as a clock shows it, the earliest first
    for second in inside:
        occupied[shown_hour(second, window.zone)] += counted[second]
    begun = [one for one in seizures if window.start <= one.started < window.end]
    talks = [one.talk for one in begun if one.answered]
    busiest = max(occupied, key=lambda hour: occupied[hour], default=None)
    return Figures(
        len(begun),
        len(talks),
        sum(talks),
        max(talks, default=0),
        busiest,
        occupied[busiest] if busiest else 0,
        max((counted[second] for second in inside), default=0),
    )


def shown_hour(second: int, zone: tzinfo) -> str:
    """Name an hour after what a clock shows; one that begins late by its first minute."""
    clock = datetime.fromtimestamp(second, zone)
    text = f"{clock:%Y-%m-%d %H}:00{clock.isoformat()[19:]}"
    return text.replace("01:00+10:30", "01:30+10:30")  # Lord Howe's clocks went back to half past


def parts(window: Window, by: str) -> dict[str, list[Window]]:
    """Divide a window into the stretches of each hour, day or weekday."""
    assert window.start is not None
    assert window.end is not None
    found: dict[str, list[Window]] = {}
    start = window.start
    while start < window.end:
        hour = clock_hour(start, window.zone)
        end = min(hour.end, window.end)
        found.setdefault(getattr(hour, by), []).append(Window(start, end, window.zone))
        start = end
    return found


def merged(pieces: list[Figures]) -> Figures:
    """Put the figures of stretches of time together."""
    busiest = max(pieces, key=lambda piece: piece.busiest_seconds)
    return Figures(
        sum(piece.calls for piece in pieces),
        sum(piece.answered for piece in pieces),
        sum(piece.talk_time for piece in pieces),
        max(piece.longest for piece in pieces),
        busiest.busiest_hour,
        busiest.busiest_seconds,
        max(piece.peak_concurrency for piece in pieces),
    )


def ordered(seizures: list[Seizure]) -> list[Seizure]:
    return sorted(seizures, key=lambda seizure: seizure.started)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[Seizure], Window]:
    """Draw seizures about a place in time, and a window among them."""
    zone, middle = draw(st.sampled_from(list(PLACES.values())))
    # Few distinct instants, so that ends, starts, hours and the window's edges often coincide.
    instants = st.one_of(
        st.integers(-8, 8).map(lambda step: middle + 900 * step),
        st.integers(-7200, 7200).map(lambda seconds: middle + seconds),
    )
    seizures = draw(
        st.lists(
            st.builds(
                Seizure,
                started=instants,
                duration=st.one_of(
                    st.just(0), st.integers(0, 8).map((900).__mul__), st.integers(1, 7000)
                ),
                talk=st.integers(0, 500),
                answered=st.booleans(),
                groups=st.sampled_from([(), ("a",), ("b",), ("a", "b"), (None,)]),
            ),
            max_size=12,
        )
    )
    start, end = sorted((draw(instants), draw(instants)))
    return ordered(seizures), Window(start, end + 1, zone)


@settings(max_examples=200)
@given(scenes())
def test_the_figures_equal_a_count_of_every_second(scene: tuple[list[Seizure], Window]) -> None:
    seizures, window = scene
    assert measure(seizures, window, now=LATER).total == brute(seizures, window)


@settings(max_examples=60)
@given(scenes())
def test_those_of_each_group_equal_a_count_of_the_group_alone(
    scene: tuple[list[Seizure], Window],
) -> None:
    seizures, window = scene
    measured = measure(seizures, window, now=LATER)
    alone: dict[Group, Figures] = {}
    for group in ("a", "b", None):
        members = [seizure for seizure in seizures if group in seizure.groups]
        alone[group] = brute(members, window)
    empty = brute([], window)
    assert {**dict.fromkeys(alone, empty), **measured.groups} == alone


@settings(max_examples=60)
@given(scenes(), st.sampled_from(["hour", "day", "weekday"]))
def test_those_of_a_time_equal_a_count_of_that_time_alone(
    scene: tuple[list[Seizure], Window], by: str
) -> None:
    seizures, window = scene
    measured = measure(seizures, window, now=LATER, by=by)
    seconds = at_once(seizures)
    alone = {
        name: merged([brute(seizures, piece, seconds) for piece in pieces])
        for name, pieces in parts(window, by).items()
    }
    assert measured.groups == alone
    assert merged(list(measured.groups.values())) == measured.total


@settings(max_examples=60)
@given(scenes())
def test_an_open_window_has_everything_from_the_first_start_to_the_last_end(
    scene: tuple[list[Seizure], Window],
) -> None:
    seizures, window = scene
    first = min((one.started for one in seizures), default=0)
    last = max((one.started + one.duration for one in seizures), default=0)
    whole = Window(first, last + 1, window.zone)
    total = brute(seizures, whole)
    for now in (LATER, last - DAY):
        assert measure(seizures, Window(None, None, window.zone), now=now).total == total
    assert measure(seizures, Window(None, last + 1, window.zone), now=LATER).total == total
    assert measure(seizures, Window(first, None, window.zone), now=LATER).total == total


@settings(max_examples=60)
@given(scenes())
def test_what_began_before_the_window_may_come_in_any_order(
    scene: tuple[list[Seizure], Window],
) -> None:
    seizures, window = scene
    assert window.start is not None
    before = [one for one in seizures if one.started < window.start]
    within = seizures[len(before) :]
    shuffled = measure([*reversed(before), *within], window, now=LATER)
    assert shuffled == measure(seizures, window, now=LATER)


def one_day(*seizures: Seizure, by: str = "", zone: tzinfo = BERLIN) -> Traffic:
    start = int(datetime(2024, 3, 1, tzinfo=zone).timestamp())
    moved = [one._replace(started=start + one.started) for one in seizures]
    return measure(moved, Window(start, start + DAY, zone), now=LATER, by=by)


def test_an_end_comes_before_a_start_at_the_same_instant() -> None:
    figures = one_day(Seizure(0, 60, 0, answered=False), Seizure(60, 60, 0, answered=False)).total
    assert figures.peak_concurrency == 1


def test_what_lasts_no_time_is_counted_and_occupies_nothing() -> None:
    figures = one_day(Seizure(0, 0, 0, answered=False)).total
    assert (figures.calls, figures.peak_concurrency, figures.busiest_hour) == (1, 0, None)


def test_the_busiest_hour_is_the_one_of_the_most_traffic_and_the_earliest_of_several() -> None:
    short = [Seizure(second, 1, 0, answered=True) for second in range(100)]
    long = [Seizure(5 * HOUR, 600, 0, answered=True), Seizure(8 * HOUR, 600, 0, answered=True)]
    row = one_day(*short, *long).total.row()
    assert (row["busiest_hour"], row["erlangs"]) == ("2024-03-01 05:00+01:00", 0.1667)


def test_ratios_are_rounded_and_absent_where_there_is_nothing_to_divide() -> None:
    row = one_day().total.row()
    assert (row["asr"], row["acd"], row["busiest_hour"], row["erlangs"]) == (None, None, None, 0)
    missed = Seizure(0, 10, 9, answered=False)
    row = one_day(missed, missed, Seizure(0, 10, 7, answered=True)).total.row()
    assert (row["calls"], row["answered"], row["missed"]) == (3, 1, 2)
    assert (row["asr"], row["acd"], row["talk_time"], row["longest"]) == (0.3333, 7, 7, 7)


@pytest.mark.parametrize(("date", "hours"), [("2024-03-31", 23), ("2024-10-27", 25)])
def test_a_day_of_a_clock_change_has_its_own_number_of_hours(date: str, hours: int) -> None:
    start = datetime.fromisoformat(date).replace(tzinfo=BERLIN)
    end = start.replace(day=start.day + 1) if hours == 25 else datetime(2024, 4, 1, tzinfo=BERLIN)
    window = Window(int(start.timestamp()), int(end.timestamp()), BERLIN)
    assert len(measure([], window, now=LATER, by="hour").groups) == hours
    assert list(measure([], window, now=LATER, by="day").groups) == [date]


def test_hours_without_calls_are_told_where_both_ends_of_the_window_are_given() -> None:
    reset = Seizure(0, 10, 10, answered=True)
    today = Seizure(epoch("2024-03-01T12:00:00Z"), 10, 10, answered=True)
    opened = measure([reset, today], Window(None, None, BERLIN), now=LATER, by="hour")
    assert list(opened.groups) == ["1970-01-01 01:00+01:00", "2024-03-01 13:00+01:00"]
    assert len(one_day(by="hour").groups) == 24


def test_days_of_the_week_begin_with_monday_and_other_groups_with_the_most_calls() -> None:
    window = Window(epoch("2024-03-01T00:00:00Z"), epoch("2024-03-08T00:00:00Z"), BERLIN)
    days = list(measure([], window, now=LATER, by="weekday").groups)
    assert days[0] == "Monday"
    assert days[-1] == "Sunday"
    named = [Seizure(0, 1, 1, answered=True, groups=(name,)) for name in ("b", None, "a", "c", "c")]
    assert list(one_day(*named).groups) == ["c", "a", "b", None]


def test_a_seizure_of_two_groups_counts_in_both_and_once_in_all() -> None:
    traffic = one_day(Seizure(0, 10, 10, answered=True, groups=("in", "out")))
    assert traffic.total == traffic.groups["in"] == traffic.groups["out"]
    assert traffic.total.calls == 1


def test_a_duration_beyond_all_time_ends_with_the_window_or_now() -> None:
    start = epoch("2024-03-01T00:00:00Z")
    endless = [Seizure(start, 2**63 - 1, 5, answered=True)]
    days = ["2024-03-01", "2024-03-02", "2024-03-03", "2024-03-04"]
    for end in (None, 2**38):
        window = Window(start, end, BERLIN)
        looked_at = measure(endless, window, now=start + 3 * DAY, by="day")
        assert list(looked_at.groups) == days
        assert looked_at.total.peak_concurrency == 1
    assert (
        measure(endless, Window(None, start + HOUR, BERLIN), now=LATER).total.row()["erlangs"] == 1
    )


def test_a_window_that_cuts_an_hour_does_not_make_it_busier() -> None:
    start = epoch("2024-03-01T00:59:50Z")
    rush = [Seizure(start, 10, 10, answered=True)] * 9
    steady = Seizure(start + 10, 600, 600, answered=True)
    window = Window(start, start + 2 * HOUR, BERLIN)
    figures = measure([*rush, steady], window, now=LATER).total
    assert figures.busiest_hour == "2024-03-01 02:00+01:00"
    assert (figures.busiest_seconds, figures.peak_concurrency) == (600, 9)
