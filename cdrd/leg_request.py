"""Turns arrived legs into a request that a running daemon takes, and back.

The rule that must stay true: what a request brings is what had arrived, each column of its type,
or the request is refused whole.
"""

from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeVar, get_type_hints
from zoneinfo import ZoneInfo

from cdrd.batch import QuarantinedReport
from cdrd.leg import ConferenceLeg
from cdrd.leg_store import Arrival, StoredLegs

STORE_LEGS: Final = "store_legs"

Request = dict[str, Any]
_Columns = TypeVar("_Columns", bound=NamedTuple)


class NotAnArrival(ValueError):
    """A request whose legs are not what they have to be."""


def make_request(arrival: Arrival, zone: str) -> Request:
    """Spell an arrival from a file; ``zone`` is the name of its time zone."""
    return {
        "do": STORE_LEGS,
        "portal": arrival.portal,
        "zone": zone,
        "until": arrival.until,
        "legs": list(map(list, arrival.legs)),
        "quarantined": list(map(_spelled, arrival.quarantined)),
    }


def read_request(request: Request) -> Arrival:
    """Return the arrival that a request brings. Raises NotAnArrival."""
    try:
        match request:
            case {"portal": str() as portal, "zone": str() as zone, "until": float() as until}:
                return Arrival(
                    portal,
                    ZoneInfo(zone),
                    until,
                    legs=[_checked(ConferenceLeg, columns) for columns in request["legs"]],
                    quarantined=[_report(columns) for columns in request["quarantined"]],
                )
    except (LookupError, TypeError, ValueError, OSError) as error:
        raise NotAnArrival(f"legs that this daemon does not know: {error}") from error
    raise NotAnArrival("legs that this daemon does not know: is it an older version?")


def make_answer(outcome: StoredLegs) -> Request:
    """Spell what became of legs."""
    return {
        "stored": outcome.stored,
        "updated": outcome.updated,
        "unchanged": outcome.unchanged,
        "quarantined": len(outcome.quarantined),
        "told": list(outcome.told.items()),
    }


def _checked(kind: type[_Columns], columns: Sequence[Any]) -> _Columns:
    row = kind._make(columns)
    for value, wanted in zip(row, get_type_hints(kind).values(), strict=True):
        if not isinstance(value, wanted):
            raise TypeError(f"{type(value).__name__} where {wanted} is needed")
    return row


def _spelled(report: QuarantinedReport) -> list[Any]:
    columns = report._asdict() | {"payload": b64encode(report.payload).decode()}
    return list(columns.values())


def _report(columns: Sequence[Any]) -> QuarantinedReport:
    *head, payload, size = columns
    return _checked(QuarantinedReport, [*head, b64decode(payload, validate=True), size])
