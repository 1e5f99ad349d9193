"""Turns a report's fields into a call record: a CDR in our words, valid by construction.

The rule that must stay true: a record is made only of what the PBX said. Whatever cannot be
understood raises ``NotARecord`` with the reason, and the report is kept in quarantine.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache, partial
from typing import Final, NamedTuple

from cdrd.report import ReleasedCall

MINUTES: Final = 60
HOURS: Final = 60 * MINUTES
MAX_UTC_OFFSET: Final = 14 * HOURS

MAX_INTEGER: Final = 2**63 - 1

ABSENT: Final = ""
"""Text that the PBX left out, or left empty or blank. The views show it as NULL."""

ABSENT_SECONDS: Final = -1
"""Seconds that the PBX left out. The views show them as NULL."""

_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - local times are compared without a zone
_MINUTE_LENGTH: Final = len("2017-09-14 09:30")
_LOCAL_TIME_SEPARATORS: Final = ("-- :", "--T:", "// :")
_SECONDS_OF: Final = {f":{second:02}": second for second in range(60)}

_COMMON_SECONDS: Final = {"": ABSENT_SECONDS} | {str(number): number for number in range(2 * HOURS)}
"""Looking one up takes 0.1 us, working it out 0.2."""

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
    0.75 us to bind a None and 0.2 us for a text, and the unique index
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
    call: ReleasedCall, *, pbx: str, zone: tzinfo, source: str, received_at: str, raw: str
) -> CallRecord:
    """Make the record of a released call as reported.

    ``zone`` is the PBX's, used where the call's id does not tell the offset. Raises NotARecord.
    """
    try:
        values = tuple(map(str.strip, call))
    except TypeError:
        values = tuple(map(_as_text, call._fields, call))
    (
        call_id,
        cdr_id,
        said,
        caller,
        callee,
        source_trunk,
        destination_trunk,
        did_number,
        duration,
        talk_duration,
        agent_ring_time,
        status,
        call_type,
        pin_code,
        recording,
        pbx_serial,
    ) = values
    if not call_id:
        raise NotARecord("no callid")
    if "u0000" in raw and any("\0" in value for value in values):
        raise NotARecord("a NUL character in a field: SQLite's readers would see it cut short")
    started_local, started_at, utc_offset = _start(said, call_id, zone)
    return _new_record(
        (
            pbx,
            call_id,
            cdr_id,
            started_at,
            started_local,
            utc_offset,
            caller,
            callee,
            source_trunk,
            destination_trunk,
            did_number,
            _COMMON_SECONDS[duration]
            if duration in _COMMON_SECONDS
            else _seconds("duration", duration),
            _COMMON_SECONDS[talk_duration]
            if talk_duration in _COMMON_SECONDS
            else _seconds("talk_duration", talk_duration),
            _COMMON_SECONDS[agent_ring_time]
            if agent_ring_time in _COMMON_SECONDS
            else _seconds("agent_ring_time", agent_ring_time),
            STATUSES.get(status) or _known(status, STATUSES),
            CALL_TYPES.get(call_type) or _known(call_type, CALL_TYPES),
            pin_code,
            recording,
            pbx_serial,
            source,
            received_at,
            raw,
        )
    )


_new_record: Callable[[tuple[str | int, ...]], CallRecord] = partial(tuple.__new__, CallRecord)
"""A NamedTuple's own constructor is a Python function and takes 0.45 us; this takes 0.21."""


def _as_text(field: str, value: object) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, str):
        return value.strip()
    if type(value) is int:
        return str(value)
    # The value is not quoted: it may be a PIN code.
    raise NotARecord(f"{field} is {_json_type(value)}, not text or an integer")


def _seconds(field: str, said: str) -> int:
    if not (said.isdecimal() and said.isascii() and len(said) < 20):  # 2^63 has 19 digits
        raise NotARecord(f"{field} {said[:40]!r} is no number of seconds from 0 up")
    seconds = int(said)
    if seconds > MAX_INTEGER:
        raise NotARecord(f"{field} {said} is out of range: the largest is {MAX_INTEGER}")
    return seconds


def _known(word: str, words: dict[str, str]) -> str:
    """Spell a known word our way; keep an unknown one, in capitals."""
    capitals = " ".join(word.upper().split())
    return words.get(capitals, capitals)


def _start(said: str, call_id: str, zone: tzinfo) -> tuple[str, str, int]:
    """Return the local start, the UTC start and the offset in minutes.

    The integer part of a call's id is the UTC epoch of its start on these PBXs (so in every
    record seen); then it tells the offset, also in the hour that a clock change repeats.
    """
    ending = said[_MINUTE_LENGTH:]  # ":15", the same in both times
    if ending not in _SECONDS_OF:
        raise _no_time(said)
    try:
        minute, minute_epoch = _local_minute(said[:_MINUTE_LENGTH])
    except ValueError as error:
        raise _no_time(said) from error
    epoch, _, _ = call_id.partition(".")
    if len(epoch) < 12 and epoch.isdecimal() and epoch.isascii():
        offset = minute_epoch + _SECONDS_OF[ending] - int(epoch)
        if offset % (15 * MINUTES) == 0 and -MAX_UTC_OFFSET <= offset <= MAX_UTC_OFFSET:
            return (
                minute + ending,
                _utc_minute(minute_epoch - offset) + ending + "Z",
                offset // MINUTES,
            )
    return _start_in(zone, minute + ending)


@lru_cache(1024)
def _local_minute(said: str) -> tuple[str, int]:
    """Return a minute as we spell it, and its seconds since 1970 on the PBX's own clock.

    Raises ValueError for what is no minute.
    Calls of one minute come together, so a minute is worked out once: 1.4 us a record, not 3.1.
    """
    if said[4::3] not in _LOCAL_TIME_SEPARATORS:
        raise ValueError(said)
    minute = datetime.fromisoformat(said.replace("/", "-"))
    return minute.isoformat(" ", "minutes"), (minute - _EPOCH) // timedelta(seconds=1)


@lru_cache(1024)
def _utc_minute(epoch: int) -> str:
    try:
        return (_EPOCH + timedelta(seconds=epoch)).isoformat(timespec="minutes")
    except OverflowError as error:
        raise NotARecord("timestart is out of range") from error


def _start_in(zone: tzinfo, started_local: str) -> tuple[str, str, int]:
    local = datetime.fromisoformat(started_local)
    offset = local.replace(tzinfo=zone, fold=0).utcoffset()
    assert offset is not None
    try:
        started_at = (local - offset).isoformat() + "Z"
    except OverflowError as error:
        raise NotARecord(f"timestart {started_local} is out of range") from error
    return started_local, started_at, offset // timedelta(minutes=1)


def _no_time(said: str) -> NotARecord:
    if not said:
        return NotARecord("no timestart")
    return NotARecord(f"timestart {said[:40]!r} is no time of the form 2017-09-14 09:30:15")


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
