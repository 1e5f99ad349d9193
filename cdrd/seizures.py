"""Turns the rows of a selection into seizures, in the order that ``cdrd.traffic`` takes them.

The rule that must stay true: no more is read than the range, the day before it, and what lasted
longer than a day: a figure of last month costs the same in a database of a decade.
"""

import re
import sqlite3
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, NamedTuple

from cdrd.period import Period
from cdrd.selection import CALLS, CONFERENCES, Condition, Selection, View
from cdrd.traffic import DAY, Group, Seizure


class Grouping(NamedTuple):
    """The columns that tell a record's groups, and how."""

    columns: tuple[str, ...]
    groups: Callable[..., tuple[Group, ...]]


NO_GROUPING: Final = Grouping((), lambda: ())


class Source(NamedTuple):
    """Where seizures of one kind are read, and what they can be grouped by but time."""

    view: View
    columns: str  # started, duration, talk, answered; {now} is the time now
    long: str  # the seq of what lasted more than a day and began before ``?``; by its own index
    groupings: dict[str, Grouping]


def _column(name: str) -> Grouping:
    return Grouping((name,), lambda value: (value,))


def extension(
    call_type: Group, caller: Group, callee: Group, source_trunk: Group, destination_trunk: Group
) -> tuple[Group, ...]:
    """Return whose call it was: the called extension of a call that came in, else the caller.

    Callbacks, transfers and unknown types came in where only the source is a trunk. Of a queue's
    call, ``6200(4002)``, it is the agent.
    """
    came_in = call_type == "Inbound" or (
        call_type not in ("Outbound", "Internal") and bool(source_trunk and not destination_trunk)
    )
    return (_number(callee if came_in else caller),)


_BEHIND_A_NAME: Final = re.compile(r".*[(<]([^()<>]+)[)>]", re.DOTALL)


def _number(party: Group) -> Group:
    """Return the number of ``6200(4002)`` or ``Name<4002>``."""
    if party and party[-1] in ")>" and (found := _BEHIND_A_NAME.fullmatch(party)):
        return found[1]
    return party


def trunks(source: Group, destination: Group) -> tuple[Group, ...]:
    """Return the trunks that a call occupies: from trunk to trunk it is two."""
    return tuple(dict.fromkeys(trunk for trunk in (source, destination) if trunk)) or (None,)


# What is missing lasts no time. Whoever reached a voice mailbox was not answered. A leg without an
# end lasts a day at most: of some the portal never tells one, or has deleted the row.
SOURCES: Final = {
    "calls": Source(
        CALLS,
        "CAST(strftime('%s', started_at) AS INTEGER), ifnull(duration, 0),"
        " ifnull(talk_duration, 0), ifnull(status = 'ANSWERED', 0)",
        "SELECT seq FROM call WHERE started_at < ? AND duration > 86400",
        {
            "extension": Grouping(
                ("call_type", "caller", "callee", "source_trunk", "destination_trunk"), extension
            ),
            "trunk": Grouping(("source_trunk", "destination_trunk"), trunks),
            "pbx": _column("pbx"),
            "type": _column("call_type"),
            "status": _column("status"),
        },
    ),
    "conferences": Source(
        CONFERENCES,
        "CAST(strftime('%s', join_time) AS INTEGER),"
        " CASE WHEN leave_time IS NOT NULL"
        " THEN max(strftime('%s', leave_time) - strftime('%s', join_time), 0)"
        " WHEN call_state = 'IN PROGRESS'"
        " THEN min(max({now} - strftime('%s', join_time), 0), 86400)"
        " ELSE 0 END AS duration,"
        " NULL, ifnull(call_state IN ('COMPLETED', 'IN PROGRESS'), 0)",
        "SELECT seq FROM conference_leg WHERE join_time < ?"
        " AND strftime('%s', leave_time) - strftime('%s', join_time) > 86400",
        {
            "extension": _column("extension"),
            "portal": _column("portal"),
            "tenant": _column("tenant_name"),
            "room": _column("conference_name"),
            "type": _column("conference_type"),
            "status": _column("call_state"),
        },
    ),
}


def read_seizures(
    reader: sqlite3.Connection, source: Source, selection: Selection, *, by: str, now: int
) -> Generator[Seizure, None, None]:
    """Read what began in the selection's period, and before it what lasted into it.

    One state of the database is read, however long it takes. Raises sqlite3.Error.
    """
    grouping = source.groupings.get(by, NO_GROUPING)
    texts = ", ".join((source.columns.format(now=int(now)), *grouping.columns))
    reader.execute("BEGIN")
    try:
        for query, arguments in _queries(source, selection, texts):
            for started, duration, talk, answered, *cells in reader.execute(query, arguments):
                talked = duration if talk is None else talk
                yield Seizure(started, duration, talked, bool(answered), grouping.groups(*cells))
    finally:
        if reader.in_transaction:  # an error of the disk has ended it already
            reader.execute("COMMIT")


def _queries(source: Source, selection: Selection, texts: str) -> Iterator[Condition]:
    """Make the queries of what began before the period, at most and more than a day, and in it."""
    view, period = source.view, selection.period
    # Text of this module alone; what a user typed is in the arguments.
    select = f"SELECT {texts} FROM {view.name} WHERE {view.started} IS NOT NULL AND"  # noqa: S608
    if period.start:
        start = datetime.fromisoformat(period.start).timestamp()
        day_before = datetime.fromtimestamp(start - DAY, UTC).isoformat()[:19] + "Z"
        text, arguments = replace(selection, period=Period(end=day_before)).condition(view)
        yield Condition(f"{select} {text} AND seq IN ({source.long})", [*arguments, day_before])
        text, arguments = replace(selection, period=Period(day_before, period.start)).condition(
            view
        )
        yield Condition(f"{select} {text}", arguments)
    text, arguments = selection.condition(view)
    yield Condition(f"{select} {text} ORDER BY {view.started}", arguments)


def read_span(reader: sqlite3.Connection, source: Source, selection: Selection) -> tuple[int, int]:
    """Read from when to when the period has starts of any sender; zeros where it has none."""
    started = source.view.started
    text, arguments = Selection(selection.period).condition(source.view)
    ends = []
    for end in ("min", "max"):  # in one query SQLite would look at every row
        query = f"SELECT ifnull(strftime('%s', {end}({started})), 0) FROM {source.view.name}"  # noqa: S608
        [(instant,)] = reader.execute(f"{query} WHERE {text}", arguments)
        ends.append(int(instant))
    return ends[0], ends[1]
