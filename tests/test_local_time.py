"""Local times become instants, and in the hour that comes twice only on evidence the later one."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import product
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdrd.local_time import (
    MAX_DISORDER_SECONDS,
    Choice,
    Span,
    choice_of,
    decide,
    read_time,
    repeated_hour,
    utc_text,
)

NEW_YORK = ZoneInfo("America/New_York")
HOUR = 3600
FIRST = 1509858000  # 2017-11-05T05:00:00Z, 01:00 in New York for the first time


def utc(text: str, zone: ZoneInfo = NEW_YORK) -> str:
    return utc_text(read_time(text, zone)[1])


# One time


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2017-09-14 09:30:15", "2017-09-14T13:30:15Z"),
        ("2017-09-14T09:30:15", "2017-09-14T13:30:15Z"),
        ("2017/09/14 09:30:15", "2017-09-14T13:30:15Z"),
        ("2017-09-14 09:30:15.0", "2017-09-14T13:30:15Z"),
        ("2017-09-14 09:30:15.999999", "2017-09-14T13:30:15Z"),
        ("2017-12-14 09:30:15", "2017-12-14T14:30:15Z"),
        ("2017-09-14T13:30:15Z", "2017-09-14T13:30:15Z"),
        ("2017-09-14 15:30:15+02:00", "2017-09-14T13:30:15Z"),
    ],
)
def test_a_time_is_read(text: str, instant: str) -> None:
    local, _ = read_time(text, NEW_YORK)
    assert local in ("2017-09-14 09:30:15", "2017-12-14 09:30:15")
    assert utc(text) == instant


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "9/14/2017 9:30", "2017-09-14", "2017-02-30 00:00:00", "2017-09-14 24:00:01",
     "٢٠١٧-09-14 09:30:15", "2017-09-14 09:30:15+99:00", "0001-01-01 00:00:00+14:00"],
)  # fmt: skip
def test_what_is_no_time_is_told(text: str) -> None:
    with pytest.raises(ValueError):
        read_time(text, NEW_YORK)


def test_a_time_that_spring_skips_is_moved_on() -> None:
    assert utc("2017-03-12 02:30:00") == "2017-03-12T07:30:00Z"  # 03:30 there
    assert choice_of("2017-03-12 02:30:00", NEW_YORK).told


def test_a_time_that_autumn_repeats_is_one_of_two() -> None:
    assert choice_of("2017-11-05 01:00:00", NEW_YORK) == (FIRST, FIRST + HOUR)
    assert choice_of("2017-11-05 00:59:59", NEW_YORK).told
    assert choice_of("2017-11-05 02:00:00", NEW_YORK).told
    assert utc("2017-11-05 01:30:00") == "2017-11-05T05:30:00Z"
    assert utc("2017-11-05 01:30:00-05:00") == "2017-11-05T06:30:00Z"


@pytest.mark.parametrize(
    ("text", "zone", "seconds"),
    [
        ("2017-11-05 01:00:00", "America/New_York", HOUR),
        ("2017-11-05 01:59:59", "America/New_York", HOUR),
        ("2017-10-29 02:30:00", "Europe/Berlin", HOUR),
        ("2017-04-02 01:45:00", "Australia/Lord_Howe", HOUR // 2),
        ("2006-10-29 00:00:30", "America/St_Johns", HOUR),  # over midnight
    ],
)
def test_the_repeated_hour_is_found(text: str, zone: str, seconds: int) -> None:
    choice = choice_of(text, ZoneInfo(zone))
    hour = repeated_hour(choice, ZoneInfo(zone))
    assert hour.end - hour.first == 2 * seconds
    assert hour.first <= choice.earlier < hour.first + seconds <= choice.later < hour.end
    before, after = (
        datetime.fromtimestamp(hour.first + seconds + step, UTC).astimezone(ZoneInfo(zone))
        for step in (-1, 0)
    )
    assert before.utcoffset() != after.utcoffset()


@given(
    st.datetimes(datetime(1990, 1, 1), datetime(2040, 1, 1)),  # noqa: DTZ001
    st.sampled_from(["America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "UTC"]),
)
def test_an_instant_is_among_the_choices_of_its_local_time(when: datetime, name: str) -> None:
    instant = when.replace(microsecond=0, tzinfo=UTC)
    local = instant.astimezone(ZoneInfo(name)).replace(tzinfo=None).isoformat(" ")
    assert int(instant.timestamp()) in choice_of(local, ZoneInfo(name))


# What our own clock tells


def test_a_time_seen_before_its_second_pass_is_of_the_first() -> None:
    choice = Choice(FIRST + 600, FIRST + 600 + HOUR)
    assert choice.seen(None, FIRST + 700) == (FIRST + 600, FIRST + 600)
    assert choice.seen(None, FIRST + 10 * HOUR) == choice


def test_a_time_that_the_last_look_did_not_show_is_of_the_second_pass() -> None:
    choice = Choice(FIRST + 600, FIRST + 600 + HOUR)
    assert choice.seen(FIRST + HOUR + 590, FIRST + HOUR + 610).earlier == FIRST + 600 + HOUR
    assert choice.seen(FIRST - HOUR, FIRST + 10 * HOUR) == choice


# What their order tells


def joined(*minutes: int) -> list[Span]:
    return [Span(Choice(FIRST + 60 * at, FIRST + 60 * at + HOUR), None) for at in minutes]


def passes(spans: Sequence[Span]) -> str:
    """1 or 2 for the pass that was told, ? where none was."""
    return "".join(
        "?" if not span.join.told else "12"[span.join.earlier >= FIRST + HOUR] for span in spans
    )


@pytest.mark.parametrize(
    ("minutes", "told"),
    [
        ((), ""),
        ((30,), "?"),
        ((10, 20, 30), "???"),
        ((50, 10), "12"),
        ((10, 50, 5, 20, 59), "11222"),
        ((10, 50, 20, 55), "1122"),
        ((30, 29), "??"),  # a row that was made while another one rang
        ((30, 30), "??"),
        ((50, 10, 55, 5), "122?"),  # no order: it tells nothing of the last
    ],
)
def test_a_step_back_tells_the_passes(minutes: tuple[int, ...], told: str) -> None:
    assert passes(decide(joined(*minutes))) == told


def test_who_left_before_they_joined_did_so_in_the_second_pass() -> None:
    (early, late) = joined(50, 10)
    (span,) = decide([Span(early.join, late.join)])
    assert span == (Choice(FIRST + 3000, FIRST + 3000), Choice(FIRST + 4200, FIRST + 4200))
    before, _ = decide([*joined(20), Span(early.join, late.join)])
    assert passes([before]) == "1"


def test_who_joined_in_the_second_pass_left_in_it_too() -> None:
    _, span = decide([*joined(50), Span(joined(10)[0].join, joined(20)[0].join)])
    assert span.leave == (FIRST + 1200 + HOUR, FIRST + 1200 + HOUR)


def fits(joins: Sequence[int], leaves: Sequence[int | None]) -> bool:
    in_order = all(
        earlier <= later + MAX_DISORDER_SECONDS
        for position, later in enumerate(joins)
        for earlier in joins[:position]
    )
    return in_order and all(
        leave is None or join <= leave for join, leave in zip(joins, leaves, strict=True)
    )


@st.composite
def hours(draw: st.DrawFn) -> tuple[list[Span], list[int]]:
    """Legs in the order in which they joined, and when each did."""
    seconds = st.integers(0, 2 * HOUR - 1)
    joins = sorted(draw(st.lists(seconds, min_size=1, max_size=6)))
    spans = []
    for join in joins:
        leave = draw(st.none() | st.integers(join, 2 * HOUR - 1))
        spans.append(Span(choice(join), None if leave is None else choice(leave)))
    return spans, [FIRST + join for join in joins]


def choice(second: int) -> Choice:
    return Choice(FIRST + second % HOUR, FIRST + second % HOUR + HOUR)


@given(hours())
def test_what_is_told_is_true_and_all_that_can_be_told_is(
    case: tuple[list[Span], list[int]],
) -> None:
    spans, joins = case
    decided = decide(spans)
    possible = [
        chosen
        for chosen in product(*(span.join for span in spans))
        if fits(chosen, [span.leave and span.leave.later for span in spans])
    ]
    assert tuple(joins) in possible
    for position, span in enumerate(decided):
        could_be = {chosen[position] for chosen in possible}
        assert set(span.join) == could_be
        assert span.join.earlier == min(could_be)
        assert span.leave is None or span.leave.later >= span.join.earlier


@given(st.lists(st.tuples(st.integers(0, 59), st.none() | st.integers(0, 59)), max_size=8))
def test_any_order_is_decided_without_an_error(minutes: list[tuple[int, int | None]]) -> None:
    spans = [
        Span(joined(join)[0].join, None if leave is None else joined(leave)[0].join)
        for join, leave in minutes
    ]
    decided = decide(spans)
    for said, span in zip(spans, decided, strict=True):
        assert set(span.join) <= set(said.join)
        assert (span.leave is None) == (said.leave is None)
