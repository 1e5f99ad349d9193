"""Turns a row of a portal's ConferenceCall2 into a conference leg: one participant's call.

The rule that must stay true: a leg is made only of what the portal said, and of two states of one
leg the one that has come further wins, in whatever order they arrive.

Names, types and values: VidyoPortal's administrator guide, appendix "CDR", and "Exporting CDR
Files"; ``Extension`` is in the table and not in the guide.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, tzinfo
from decimal import Decimal
from functools import lru_cache
from typing import Final, NamedTuple

from cdrd.local_time import MAX_DISORDER_SECONDS, choice_of, read_time, utc_text
from cdrd.record import MAX_INTEGER

MAX_CHARACTERS: Final = 2000
"""The longest column has 200 by the guide; a leg of so long ones still fits into one request."""

COLUMNS: Final = {
    "CallID": "call_id",
    "UniqueCallID": "unique_call_id",
    "ConferenceName": "conference_name",
    "TenantName": "tenant_name",
    "ConferenceType": "conference_type",
    "EndpointType": "endpoint_type",
    "CallerID": "caller_id",
    "CallerName": "caller_name",
    "JoinTime": "join_local",
    "LeaveTime": "leave_local",
    "CallState": "call_state",
    "Direction": "direction",
    "RouterID": "router_id",
    "GWID": "gw_id",
    "GWPrefix": "gw_prefix",
    "ReferenceNumber": "reference_number",
    "ApplicationName": "application_name",
    "ApplicationVersion": "application_version",
    "ApplicationOs": "application_os",
    "DeviceModel": "device_model",
    "EndpointPublicIPAddress": "endpoint_public_ip_address",
    "CallCompletionCode": "call_completion_code",
    "Extension": "extension",
    "EndpointGUID": "endpoint_guid",
    "AccessType": "access_type",
    "RoomType": "room_type",
    "RoomOwner": "room_owner",
}
"""The 27 columns as the portal spells them, and as we do; the times are the portal's local ones."""

NULLABLE: Final = frozenset(
    {
        "caller_name",
        "leave_local",
        "router_id",
        "gw_id",
        "gw_prefix",
        "reference_number",
        "application_name",
        "application_version",
        "application_os",
        "device_model",
        "extension",
    }
)
REQUIRED: Final = tuple(name for name, column in COLUMNS.items() if column not in NULLABLE)
"""The columns that every ConferenceCall2 has, as the portal spells them."""

_STAGES: Final = {
    "RINGING": 0,
    "ALERTING": 0,
    "RING ACCEPTED": 1,
    "RING REJECTED": 3,
    "RING NO ANSWER": 3,
    "RING CANCELLED": 3,
    "ALERT CANCELLED": 3,
    "COMPLETED": 3,
}
_IN_PROGRESS: Final = 2  # as is every state that the guide does not name

_NULLS: Final = frozenset({"NULL", "null", r"\N"})  # a table's text export, Java's, MySQL's
_ZERO_TIME: Final = "0000-00-00 00:00:00"  # how older MySQL spells the lack of one
_ROUNDED: Final = re.compile(r"\d(?:[.,]\d+)?E\+\d+", re.IGNORECASE | re.ASCII)


class NotALeg(ValueError):
    """A row that cannot be a conference leg; its text says why."""


class ConferenceLeg(NamedTuple):
    """One leg, in the order of the columns of table ``conference_leg`` behind ``seq``.

    What the portal left out, or left empty, is None.
    """

    portal: str
    call_id: int
    unique_call_id: str | None
    conference_name: str | None
    tenant_name: str | None
    conference_type: str | None
    endpoint_type: str | None
    caller_id: str | None
    caller_name: str | None
    join_time: str  # UTC, 2017-09-14T01:30:15Z; this and the next
    leave_time: str | None
    join_local: str  # the portal's zone, 2017-09-14 09:30:15; this and the next
    leave_local: str | None
    call_state: str | None
    direction: str | None
    router_id: str | None
    gw_id: str | None
    gw_prefix: str | None
    reference_number: str | None
    application_name: str | None
    application_version: str | None
    application_os: str | None
    device_model: str | None
    endpoint_public_ip_address: str | None
    call_completion_code: str | None
    extension: str | None
    endpoint_guid: str | None
    access_type: str | None
    room_type: str | None
    room_owner: str | None


@lru_cache(1024)
def plain_name(name: str) -> str:
    """Reduce a column's name to what tells it from others: ``Call State`` is ``CallState``."""
    return "".join(name.split()).replace("_", "").casefold()


_COLUMN_OF: Final = {plain_name(name): column for name, column in COLUMNS.items()}


def column_of(name: str) -> str | None:
    """Return our name of a portal's column, None for one that is none of the 27."""
    return _COLUMN_OF.get(plain_name(name))


def missing_columns(names: Iterable[str]) -> list[str]:
    """Return which of the columns that every portal has are not among the names."""
    there = {plain_name(name) for name in names}
    return [name for name in REQUIRED if plain_name(name) not in there]


def make_leg(fields: Mapping[str, object], *, portal: str, zone: tzinfo) -> ConferenceLeg:
    """Make a leg of a row, its columns by the portal's names in any case, with blanks or ``_``.

    Values are text, bytes, or as a MySQL driver gives them; ``zone`` is that of the portal's
    times. A time in the repeated hour is the earlier instant here: the store knows the leg's
    neighbours, and decides. Raises NotALeg.
    """
    texts: dict[str, str | None] = dict.fromkeys(COLUMNS.values())
    for name, column in _known_columns(tuple(fields)):
        texts[column] = _text(name, column, fields[name])
    join_local, join_time = _time("JoinTime", texts.pop("join_local") or "", zone)
    leave_local, leave_time = _leave_time(texts.pop("leave_local"), zone)
    return ConferenceLeg(
        portal=portal,
        call_id=_call_id(texts.pop("call_id") or ""),
        unique_call_id=_unique_call_id(texts.pop("unique_call_id") or ""),
        join_time=join_time,
        leave_time=leave_time,
        join_local=join_local,
        leave_local=leave_local,
        **texts,
    )


@lru_cache(64)
def _known_columns(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return the names of a row's columns that we know, each with ours. Raises NotALeg."""
    missing = missing_columns(names)
    if missing:
        raise NotALeg(f"no column {', '.join(missing)}")
    return [(name, column) for name in names if (column := column_of(name)) is not None]


def _text(name: str, column: str, value: object) -> str | None:
    match value:
        case str():
            text = value.strip()
        case None:
            return None
        case bytes():
            text = _decoded(value).strip()
        case bool() | float():
            raise NotALeg(f"{name} {value!r} is neither text nor an integer")
        case int() | Decimal() | date():  # a datetime is a date
            text = str(value)
        case _:
            raise NotALeg(f"{name} is neither text nor an integer")
    if not text or (column in NULLABLE and text in _NULLS):
        return None
    if "\0" in text:
        raise NotALeg(f"{name} has a NUL character: SQLite's readers would see it cut short")
    if len(text) > MAX_CHARACTERS:
        raise NotALeg(f"{name} is longer than {MAX_CHARACTERS} characters")
    return text


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("cp1252", errors="backslashreplace")


def _call_id(text: str) -> int:
    if not text:
        raise NotALeg("no CallID")
    if text.isdecimal() and text.isascii() and len(text) < 20:  # 2^63 has 19 digits
        call_id = int(text)
        if 0 < call_id <= MAX_INTEGER:
            return call_id
    raise NotALeg(f"CallID {text[:40]!r} is no integer from 1 up")


def _unique_call_id(text: str) -> str:
    if not text:
        raise NotALeg("no UniqueCallID")
    if _ROUNDED.fullmatch(text):
        raise NotALeg(
            f"UniqueCallID {text[:40]!r} was rounded by a spreadsheet: import the portal's own file"
        )
    return text


def _leave_time(text: str | None, zone: tzinfo) -> tuple[str | None, str | None]:
    if text is None or text.startswith(_ZERO_TIME):
        return None, None
    return _time("LeaveTime", text, zone)


def _time(name: str, text: str, zone: tzinfo) -> tuple[str, str]:
    """Return a time as the portal's clock showed it, and in UTC."""
    if not text:
        raise NotALeg(f"no {name}")
    try:
        local, instant = read_time(text, zone)
    except ValueError as error:
        raise NotALeg(f"{name} {text[:40]!r} is no time such as 2017-09-14 09:30:15") from error
    try:
        return local, utc_text(instant)
    except OverflowError as error:
        raise NotALeg(f"{name} {text[:40]!r} is out of range") from error


def is_another(known: ConferenceLeg, arrived: ConferenceLeg) -> bool:
    """Tell whether two rows of one CallID are of two legs: other conferences, and not one join.

    The UniqueCallID alone does not tell: a spreadsheet rounds it, and leaves the rest as it was.
    """
    if known.unique_call_id == arrived.unique_call_id:
        return False
    if (known.caller_id, known.endpoint_guid) != (arrived.caller_id, arrived.endpoint_guid):
        return True
    apart = datetime.fromisoformat(known.join_local) - datetime.fromisoformat(arrived.join_local)
    return abs(apart.total_seconds()) > MAX_DISORDER_SECONDS


def merge(known: ConferenceLeg, arrived: ConferenceLeg, zone: tzinfo) -> ConferenceLeg:
    """Make one state of two of the same leg.

    The one that has come further wins: one that has ended, one of a later CallState, one that left
    later, one whose completion code is known. Of equals it is the one that arrived. What the
    winner leaves out is taken from the other, so a file without ``Extension`` takes none away.
    """
    newer, older = (arrived, known) if _stage(arrived) >= _stage(known) else (known, arrived)
    merged = ConferenceLeg._make(
        old if new is None else new for new, old in zip(newer, older, strict=True)
    )
    if known.join_local == arrived.join_local:
        join_time = _one_instant(known.join_local, known.join_time, arrived.join_time, zone)
        merged = merged._replace(join_time=join_time)
    if known.leave_local == arrived.leave_local and known.leave_time and arrived.leave_time:
        local = str(known.leave_local)
        leave_time = _one_instant(local, known.leave_time, arrived.leave_time, zone)
        merged = merged._replace(leave_time=leave_time)
    return merged


def _stage(leg: ConferenceLeg) -> tuple[bool, int, str, bool]:
    """Return how far a leg has come, for comparison."""
    return (
        leg.leave_local is not None,
        _STAGES.get((leg.call_state or "").upper(), _IN_PROGRESS),
        leg.leave_local or "",
        (leg.call_completion_code or "0") != "0",
    )


def _one_instant(local: str, known: str, arrived: str, zone: tzinfo) -> str:
    """Keep what evidence has made of a time in the repeated hour, unless the zone was corrected."""
    if known == arrived:
        return known
    later = utc_text(choice_of(local, zone).later)
    return later if later in (known, arrived) else arrived
