"""Turns what a user asks for into a query's condition: which records an export or a report has.

The rule that must stay true: what a user typed is never part of the query's text, only its
arguments. Each condition is on a plain column where there is an index, so that a range is read by
it.
"""

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from cdrd.period import ALWAYS, Period


class View(NamedTuple):
    """A view that programs read, and the columns that a selection looks at."""

    name: str
    started: str  # the instant that a period selects by
    sender: str
    tenant: str
    status: str
    record_type: str
    numbers: tuple[str, ...]


CALLS: Final = View("calls", "started_at", "pbx", "", "status", "call_type", ("caller", "callee"))
CONFERENCES: Final = View(
    "conference_calls",
    "join_time",
    "portal",
    "tenant_name",
    "call_state",
    "conference_type",
    ("caller_id", "extension"),
)


class Condition(NamedTuple):
    """What stands behind WHERE, and its arguments in order."""

    text: str
    arguments: list[str]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records are asked for: those for which everything that is given holds."""

    period: Period = ALWAYS
    senders: tuple[str, ...] = ()  # PBXs, or portals
    tenants: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    number: str = ""

    def condition(self, view: View) -> Condition:
        """Return the condition on a view. A tenant selects no call: calls have none."""
        parts = [
            _compared(view.started, ">=", self.period.start),
            _compared(view.started, "<", self.period.end),
            # The sign keeps SQLite from the portal's index: it would read a decade for a month.
            _one_of(f"+{view.sender}", self.senders),
            _one_of(view.tenant or "NULL", self.tenants),
            _one_of(view.status, self.statuses, collate="COLLATE NOCASE"),
            _one_of(view.record_type, self.types, collate="COLLATE NOCASE"),
            _has_number(view.numbers, self.number),
        ]
        texts = [part.text for part in parts if part.text]
        arguments = [argument for part in parts for argument in part.arguments]
        return Condition(" AND ".join(texts) or "TRUE", arguments)


def _compared(column: str, operator: str, value: str) -> Condition:
    return Condition(f"{column} {operator} ?", [value]) if value else Condition("", [])


def _one_of(column: str, values: tuple[str, ...], collate: str = "") -> Condition:
    if not values:
        return Condition("", [])
    marks = ", ".join("?" * len(values))
    return Condition(f"{column} {collate} IN ({marks})", list(values))


def _has_number(columns: tuple[str, ...], number: str) -> Condition:
    """Match a whole number; ``*`` stands for any digits."""
    if not number:
        return Condition("", [])
    match, values = "{0} = ?", [number]
    if "*" in number:
        match, values = "({0} GLOB ? AND {0} NOT GLOB ?)", _globs(number)
    text = " OR ".join(match.format(column) for column in columns)
    return Condition(f"({text})", values * len(columns))


def _globs(number: str) -> list[str]:
    """Return two patterns of SQLite's: the one that a number matches, the one that it does not.

    The first one's ``*`` stands for anything; so the second has more that is no digit than ours.
    Neither takes the longer the more ways there are to share digits out among the stars.
    """
    matched = re.sub(r"[?\[]", r"[\g<0>]", number)
    others = len(re.sub(r"[0-9*]", "", number))
    return [matched, "*[^0-9]" * (others + 1) + "*"]
