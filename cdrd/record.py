"""Turns a report's fields into a call record: a CDR in our words, valid by construction.

The rule that must stay true: a record is made only of what the PBX said. Whatever cannot be
understood raises ``NotARecord`` with the reason, and the report is kept in quarantine.
"""

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final, NamedTuple

MINUTES: Final = 60
HOURS: Final = 60 * MINUTES
MAX_UTC_OFFSET: Final = 14 * HOURS

MAX_INTEGER: Final = 2**63 - 1

ABSENT: Final = ""
"""Text that the PBX left out, or left empty or blank. The views show it as NULL."""

ABSENT_SECONDS: Final = -1
"""Seconds that the PBX left out. The views show them as NULL."""

_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - local times are compared without a zone
_LOCAL_TIME_LENGTH: Final = len("2017-09-14 09:30:15")
_LOCAL_TIME_SEPARATORS: Final = ("-- ::", "--T::", "// ::")

STATUSES: Final = {
    "ANSWERED": "ANSWERED",
    "ANSWERD": "ANSWERED",  # sic, a vendor table
    "NO ANSWER": "NO ANSWER",
    "NOANSWER": "NO ANSWER",
    "NO ANSWERED": "NO ANSWER",
    "NO_ANSWER": "NO ANSWER",
    "BUSY": "BUSY",
    "FAILED": "FAILED",
    "VOICEMAIL": "VOICEMAIL",
    "ABANDONED": "ABANDONED",
}
CALL_TYPES: Final = {
    "INBOUND": "Inbound",
    "OUTBOUND": "Outbound",
    "INTERNAL": "Internal",
    "CALLBACK": "Callback",
    "TRANSFER": "Transfer",
}


class NotARecord(ValueError):
    """A report of a released call that cannot be a record; its text says why."""


class CallRecord(NamedTuple):
    """One call record, in the order of the table's columns behind ``seq``.

    Absent text is ``ABSENT`` and absent seconds are ``ABSENT_SECONDS``, not None: sqlite3 takes
    0.75 us to bind a None and 0.15 us for a text (of about 6 us a row), and the unique index
    tells two NULLs apart, which the identity of a record must not.
    """

    pbx: str
    call_id: str
    cdr_id: str
    started_at: str  # UTC, 2017-09-14T01:30:15Z
    started_local: str  # 2017-09-14 09:30:15
    utc_offset: int  # minutes, east positive
    caller: str
    callee: str
    source_trunk: str
    destination_trunk: str
    did_number: str
    duration: int  # seconds, this and the next two
    talk_duration: int
    agent_ring_time: int
    status: str
    call_type: str
    pin_code: str
    recording: str
    pbx_serial: str
    source: str
    received_at: str  # UTC, milliseconds
    raw: str  # the report as received, as JSON text


def make_record(
    fields: dict[str, Any], *, pbx: str, zone: tzinfo, source: str, received_at: str, raw: str
) -> CallRecord:
    """Make the record of a report's fields (our names, the PBX's values).

    ``zone`` is the PBX's, used where the call's id does not tell the offset. Raises NotARecord.
    """
    get = fields.get
    call_id = _text(fields, "call_id")
    if not call_id:
        raise NotARecord("no callid")
    started_local, started_at, utc_offset = _start(get("started_local"), call_id, zone)
    status = _text(fields, "status")
    call_type = _text(fields, "call_type")
    record = CallRecord(
        pbx,
        call_id,
        _text(fields, "cdr_id"),
        started_at,
        started_local,
        utc_offset,
        _text(fields, "caller"),
        _text(fields, "callee"),
        _text(fields, "source_trunk"),
        _text(fields, "destination_trunk"),
        _text(fields, "did_number"),
        _seconds(fields, "duration"),
        _seconds(fields, "talk_duration"),
        _seconds(fields, "agent_ring_time"),
        STATUSES.get(status) or _known(status, STATUSES),
        CALL_TYPES.get(call_type) or _known(call_type, CALL_TYPES),
        _text(fields, "pin_code"),
        _text(fields, "recording"),
        _text(fields, "pbx_serial"),
        source,
        received_at,
        raw,
    )
    if "\\u0000" in raw and any("\0" in value for value in record if isinstance(value, str)):
        raise NotARecord("a NUL character in a field: SQLite's readers would see it cut short")
    return record


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name, ABSENT)
    if type(value) is str:
        return value
    if type(value) is int:
        return str(value)
    # The value is not quoted: it may be a PIN code.
    raise NotARecord(f"{name} is {_json_type(value)}, not text or an integer")


def _seconds(fields: dict[str, Any], name: str) -> int:
    if name not in fields:
        return ABSENT_SECONDS
    value = fields[name]
    if type(value) is str:
        if not (value.isascii() and value.isdigit() and len(value) < 20):  # 2^63 has 19 digits
            raise NotARecord(f"{name} {value[:40]!r} is no number of seconds")
        value = int(value)
    elif type(value) is not int:
        raise NotARecord(f"{name} is {_json_type(value)}, not a number of seconds")
    elif value < 0:
        raise NotARecord(f"{name} {value} is negative")
    seconds: int = value
    if seconds > MAX_INTEGER:
        raise NotARecord(f"{name} {seconds} is out of range: the largest is {MAX_INTEGER}")
    return seconds


def _known(word: str, words: dict[str, str]) -> str:
    """Spell a known word our way; keep an unknown one, in capitals."""
    capitals = " ".join(word.upper().split())
    return words.get(capitals, capitals)


def _start(said: object, call_id: str, zone: tzinfo) -> tuple[str, str, int]:
    """Return the local start, the UTC start and the offset in minutes.

    The integer part of a call's id is the UTC epoch of its start on these PBXs (so in every
    record seen); then it tells the offset, also in the hour that a clock change repeats.
    """
    local = _local_time(said)
    epoch, _, _ = call_id.partition(".")
    if len(epoch) < 12 and epoch.isascii() and epoch.isdigit():
        offset = (local - _EPOCH) // timedelta(seconds=1) - int(epoch)
        if offset % (15 * MINUTES) == 0 and abs(offset) <= MAX_UTC_OFFSET:
            return _spelled(local, timedelta(seconds=offset))
    offset_then = local.replace(tzinfo=zone, fold=0).utcoffset()
    assert offset_then is not None
    return _spelled(local, offset_then)


def _spelled(local: datetime, offset: timedelta) -> tuple[str, str, int]:
    try:
        started_at = (local - offset).isoformat() + "Z"
    except OverflowError as error:
        raise NotARecord(f"timestart {local} is out of range") from error
    return local.isoformat(" "), started_at, offset // timedelta(minutes=1)


def _local_time(said: object) -> datetime:
    if said is None:
        raise NotARecord("no timestart")
    if type(said) is not str:
        raise NotARecord(f"timestart is {_json_type(said)}, not text")
    if len(said) == _LOCAL_TIME_LENGTH and said[4:17:3] in _LOCAL_TIME_SEPARATORS:
        try:
            return datetime.fromisoformat(said.replace("/", "-"))
        except ValueError:
            pass
    raise NotARecord(f"timestart {said[:40]!r} is no time of the form 2017-09-14 09:30:15")


def _json_type(value: object) -> str:
    match value:
        case bool():
            return "true or false"
        case float():
            return "a number with a fraction or beyond 64 bits"
        case int():
            return "an integer"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return "text"


def utc_milliseconds(instant: float) -> str:
    """Spell an instant (seconds since 1970, UTC) as a record's ``received_at``."""
    return datetime.fromtimestamp(instant, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
