"""Turns an instant into the clock hour that it lies in, as the clocks of a zone show it.

The rule that must stay true: clock hours leave no gap and do not overlap, whatever the zone's
offset and however its clocks are changed. An hour that a change repeats is two, and one that a
change cuts (Lord Howe's clocks move by half an hour) is what is left of it.
"""

from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Final, NamedTuple

from cdrd.record import HOURS

LAST_INSTANT: Final = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp())
"""Behind it there are no dates."""

_FIRST_IN_ZONES: Final = int(datetime(1, 1, 3, tzinfo=UTC).timestamp())
_LAST_IN_ZONES: Final = LAST_INSTANT - 48 * HOURS

WEEKDAYS: Final = (*("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),)


class ClockHour(NamedTuple):
    """A clock hour: its first instant, the first behind it (Unix seconds), and the clock then."""

    start: int
    end: int
    local: datetime

    @property
    def hour(self) -> str:
        """Its name, which no other hour has: 2024-10-27 02:00+02:00."""
        return self.local.isoformat(" ", "minutes")

    @property
    def day(self) -> str:
        """The day it is part of: 2024-10-27."""
        return self.local.date().isoformat()

    @property
    def weekday(self) -> str:
        """The day of the week it is part of."""
        return WEEKDAYS[self.local.weekday()]


@lru_cache(4096)
def clock_hour(instant: int, zone: tzinfo) -> ClockHour:
    """Return the clock hour of an instant (Unix seconds)."""
    if not _FIRST_IN_ZONES < instant < _LAST_IN_ZONES:
        zone = UTC  # the zone's clocks might show a year before 1 or after 9999
    local = datetime.fromtimestamp(instant, zone)
    start = instant - 60 * local.minute - local.second
    end = start + HOURS
    offset = local.utcoffset()
    if _offset(start, zone) != offset:
        start = clock_change(start, instant, zone)
    if _offset(end - 1, zone) != offset:
        end = clock_change(instant, end - 1, zone)
    return ClockHour(start, end, datetime.fromtimestamp(start, zone))


def _offset(instant: int, zone: tzinfo) -> timedelta | None:
    return datetime.fromtimestamp(instant, zone).utcoffset()


def clock_change(before: int, after: int, zone: tzinfo) -> int:
    """Return the instant of the one clock change between two instants (Unix seconds)."""
    offset = _offset(after, zone)
    while after - before > 1:
        middle = (before + after) // 2
        if _offset(middle, zone) == offset:
            after = middle
        else:
            before = middle
    return after
