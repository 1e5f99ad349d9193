"""Turns what a user types as a date or a time into instants: the range that records are taken from.

The rule that must stay true: the beginning of a range belongs to it, its end does not, so that
ranges side by side hold every record exactly once.
"""

from datetime import UTC, datetime, tzinfo
from typing import NamedTuple


class NotATime(ValueError):
    """A date or time that cannot be read, or a range that can hold nothing; its text says why."""


class Period(NamedTuple):
    """A range of instants as the database spells them (UTC), open where it is ``""``."""

    start: str = ""  # inclusive, 2017-09-14T01:30:15Z
    end: str = ""  # exclusive


ALWAYS = Period()


def make_period(start: str, end: str, zone: tzinfo) -> Period:
    """Make the range from ``start`` to ``end`` as typed, either of them maybe ``""``.

    Raises NotATime.
    """
    period = Period(_spell(start, zone), _spell(end, zone))
    if start and end and period.start >= period.end:
        raise NotATime(f"from {start} to {end} is no range: its end comes first, and is not in it")
    return period


def _spell(text: str, zone: tzinfo) -> str:
    return spell_instant(read_instant(text, zone)) if text else ""


def lacks_offset(text: str) -> bool:
    """Tell whether a date or time as typed needs a zone; one that cannot be read does not."""
    try:
        return datetime.fromisoformat(text.strip()).tzinfo is None
    except ValueError:
        return False


def spell_instant(instant: datetime) -> str:
    """Spell an instant as the database does: 2017-09-14T01:30:15Z."""
    return instant.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def read_instant(text: str, zone: tzinfo) -> datetime:
    """Read ``2017-09-14``, ``2017-09-14 09:30[:15]``, or one with its offset (``Z``, ``+02:00``).

    A date alone is its first instant. A time without an offset is in ``zone``: the earlier one of
    an hour that happens twice; in the hour left out, as if the clock had not been put forward.
    Raises NotATime.
    """
    try:
        read = datetime.fromisoformat(text.strip())
        if read.tzinfo is None:
            read = read.replace(tzinfo=zone)
        instant = read.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise NotATime(
            f"{text!r} is no date or time: give 2017-09-14, or 2017-09-14T09:30:15"
        ) from error
    if instant.microsecond or instant.year < 1000:
        raise NotATime(f"{text!r}: give whole seconds, and four digits of a year")
    return instant
