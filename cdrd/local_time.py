"""Turns local times without an offset into instants, and their order into which of two each was.

The hour that is repeated when summer time ends gives each of its local times two instants. The
rule that must stay true: the later one is only ever taken on evidence; without any it is the
earlier one, and that nothing told is said.
"""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Final, NamedTuple

from cdrd.hours import clock_change

MAX_DISORDER_SECONDS: Final = 120
"""So much earlier may a leg have joined than one of a lower id: a row may be made when it rings."""

_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - local times are compared without a zone
_SECOND: Final = timedelta(seconds=1)
_TIME: Final = re.compile(
    r"(\d{4})[-/](\d\d)[-/](\d\d)[ T](\d\d:\d\d:\d\d)(?:[.,]\d+)?(Z|[+-]\d\d:?\d\d)?", re.ASCII
)


class Choice(NamedTuple):
    """The instants (seconds since 1970, UTC) that a time may be: equal where it is told."""

    earlier: int
    later: int

    @property
    def told(self) -> bool:
        """Whether there is only one instant left."""
        return self.earlier == self.later

    def at_least(self, instant: float) -> "Choice":
        """Leave the later one alone where the earlier one is too early."""
        return Choice(self.later, self.later) if self.earlier < instant <= self.later else self

    def at_most(self, instant: float) -> "Choice":
        """Leave the earlier one alone where the later one is too late."""
        return Choice(self.earlier, self.earlier) if self.earlier <= instant < self.later else self

    def seen(self, after: float | None, until: float) -> "Choice":
        """Choose by our own clock, where it is nearer to one of the two than to the other.

        ``until``: when the time was seen in the portal's table; ``after``: when the table was last
        read without it, None where it was not.
        """
        half = (self.later - self.earlier) // 2
        choice = self.at_most(until + half)
        return choice if after is None else choice.at_least(after - half)


class Span(NamedTuple):
    """When a leg joined and when it left, None while it has not."""

    join: Choice
    leave: Choice | None


class Repeated(NamedTuple):
    """An hour that comes twice: the first instant of its first pass, and the end of its second."""

    first: int
    end: int


def read_time(text: str, zone: tzinfo) -> tuple[str, int]:
    """Read a time of the zone; return how we spell it, and its instant: the earlier one of two.

    A fraction of a second is cut off. A time that carries its offset is one instant; one that a
    clock change skips is moved on by what the clock was. Raises ValueError for what is no time.
    """
    parts = _TIME.fullmatch(text)
    if parts is None:
        raise ValueError(text)
    year, month, day, time, offset = parts.groups()
    local = datetime.fromisoformat(f"{year}-{month}-{day} {time}")
    if offset is None:
        return local.isoformat(" "), _choice(local, zone).earlier
    try:
        instant = datetime.fromisoformat(f"{local.isoformat()}{offset}")
        there = instant.astimezone(zone).replace(tzinfo=None)
    except OverflowError as error:
        raise ValueError(text) from error
    return there.isoformat(" "), (local - instant.utcoffset() - _EPOCH) // _SECOND  # type: ignore[operator]


def choice_of(local: str, zone: tzinfo) -> Choice:
    """Return the instants that a time, as ``read_time`` spells it, may be in the zone."""
    return _choice(datetime.fromisoformat(local), zone)


def _choice(local: datetime, zone: tzinfo) -> Choice:
    said = (local - _EPOCH) // _SECOND
    before, after = _offsets(local, zone)
    earlier = said - before
    # A time that is skipped has the smaller offset first (PEP 495), and is not two instants.
    return Choice(earlier, max(earlier, said - after))


def _offsets(local: datetime, zone: tzinfo) -> tuple[int, int]:
    """Return the offsets (seconds, east positive) before and after a change of the clock."""
    first = local.replace(tzinfo=zone, fold=0).utcoffset()
    second = local.replace(tzinfo=zone, fold=1).utcoffset()
    assert first is not None
    assert second is not None
    return first // _SECOND, second // _SECOND


@lru_cache(64)
def repeated_hour(choice: Choice, zone: tzinfo) -> Repeated:
    """Return the whole hour, both passes, around a time that may be two instants."""
    shift = choice.later - choice.earlier
    change = clock_change(choice.earlier, choice.later, zone)
    return Repeated(change - shift, change + shift)


def utc_text(instant: int) -> str:
    """Spell an instant as it is stored: ``2017-09-14T01:30:15Z``. Raises OverflowError."""
    return (_EPOCH + timedelta(seconds=instant)).isoformat() + "Z"


def decide(spans: Sequence[Span]) -> list[Span]:
    """Tell which instants the joins and leaves of one repeated hour were, as far as they tell.

    ``spans`` are those of the legs that joined within it, in the order in which they joined, with
    what is known of each already. No leg joined before one that is in front of it, but for
    MAX_DISORDER_SECONDS, and none left before it joined. Where order contradicts itself it tells
    nothing.
    """
    joins = _bounded_above(_bounded_below([span.join for span in spans]), spans)
    return [
        Span(join, span.leave and span.leave.at_least(join.earlier))
        for join, span in zip(joins, spans, strict=True)
    ]


def _bounded_below(joins: Sequence[Choice]) -> list[Choice]:
    """Narrow each by those in front of it."""
    bounded = []
    floor = joins[0].earlier if joins else 0
    for join in joins:
        bounded.append(join.at_least(floor - MAX_DISORDER_SECONDS))
        floor = max(floor, bounded[-1].earlier)
    return bounded


def _bounded_above(joins: Sequence[Choice], spans: Sequence[Span]) -> list[Choice]:
    """Narrow each by its leave and by those behind it."""
    bounded = []
    ceiling = joins[-1].later if joins else 0
    for join, span in zip(reversed(joins), reversed(spans), strict=True):
        chosen = join.at_most(ceiling + MAX_DISORDER_SECONDS)
        if span.leave is not None:
            chosen = chosen.at_most(span.leave.later)
        bounded.append(chosen)
        ceiling = min(ceiling, chosen.later)
    return bounded[::-1]
