"""Turns lines of our own export or log back into the records that they tell.

The rule that must stay true: an exported record comes back as it was, to the byte, or not at all;
a line that no cdrd can have written raises ``NotARecord`` with the reason.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final

import orjson

from cdrd.batch import RestoredCall
from cdrd.line import LOGGED
from cdrd.record import (
    ABSENT,
    ABSENT_SECONDS,
    CALL_TYPES,
    MAX_INTEGER,
    STATUSES,
    CallRecord,
    NotARecord,
    identities,
    new_record,
    starts,
)

COLUMNS: Final = ("seq", *CallRecord._fields[1:])
"""The view ``calls``: the record's fields, with ``seq`` in place of the identity."""

MAX_SEQ: Final = 2**53 - 1
"""Beyond it other programs lose digits; and the numbers behind a ``seq`` must never run out."""

MAX_OFFSET_MINUTES: Final = 24 * 60 - 1

_SECONDS: Final = ("duration", "talk_duration", "agent_ring_time")
_NEVER_ABSENT: Final = ("pbx", "call_id", "started_at", "started_local", "source", "received_at")
_TEXTS: Final = tuple(
    name for name in COLUMNS if name not in {"seq", "utc_offset", "raw", *_SECONDS}
)
_IDENTIFYING: Final = (
    "pbx",
    "started_local",
    "caller",
    "callee",
    "duration",
    "talk_duration",
    "status",
    "call_type",
)

_UTC_ENDING: Final = "Z"
_MINUTE: Final = timedelta(minutes=1)

Columns = dict[str, list[Any]]


def restore_exported(lines: Sequence[Mapping[str, Any]]) -> list[RestoredCall]:
    """Restore the records of exported lines, each the columns of a row of the view ``calls``.

    Raises NotARecord where one of them can be none; which one, the caller finds out by asking for
    each alone. It works field by field: 18 us a record, where record by record it was 80.
    """
    columns = _columns(lines)
    for name in _TEXTS:
        columns[name] = _texts(name, columns[name])
    for name in _SECONDS:
        columns[name] = _seconds(name, columns[name])
    _check_integers("seq", columns["seq"], 1, MAX_SEQ)
    _check_integers("utc_offset", columns["utc_offset"], -MAX_OFFSET_MINUTES, MAX_OFFSET_MINUTES)
    _check_spelling(columns)
    _check_raws(columns["raw"])
    told = _check_starts(columns)
    identifying = (map(str, columns[name]) for name in _IDENTIFYING)
    fields = [columns[name] for name in CallRecord._fields[1:]]
    records = map(new_record, zip(identities(told, *identifying), *fields, strict=True))
    return list(map(RestoredCall, columns["seq"], records))


def restore_logged(line: Mapping[str, Any], text: str, zone: tzinfo) -> RestoredCall:
    """Restore what a ``call_released`` line tells of its record. Raises NotARecord.

    The local start is the instant in the PBX's time zone, ``received_at`` is when the line was
    written, and ``raw`` is the line. What the log leaves out is absent.
    """
    missing = [name for name in (*LOGGED, "timestamp") if name not in line]
    if missing:
        raise NotARecord(f"the line lacks {', '.join(missing)}")
    started_local, utc_offset = _local(line["started_at"], zone)
    worked_out = {
        "started_local": started_local,
        "utc_offset": utc_offset,
        "received_at": _milliseconds("timestamp", line["timestamp"]),
        "raw": text,
    }
    told = {name: line[name] for name in LOGGED}
    [call] = restore_exported([dict.fromkeys(COLUMNS) | told | worked_out])
    return call._replace(local_told=False)


_pick: Final = itemgetter(*COLUMNS)


def _columns(lines: Sequence[Mapping[str, Any]]) -> Columns:
    """Turn lines into columns."""
    try:
        rows = list(map(_pick, lines))
    except KeyError as error:
        raise NotARecord(f"the line lacks {error.args[0]}: export every column") from error
    if set(map(len, lines)) != {len(COLUMNS)}:
        unknown = next(name for line in lines for name in line if name not in COLUMNS)
        raise NotARecord(f"this cdrd knows no column {unknown[:40]!r}: a newer one wrote the line")
    return dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))


def _texts(name: str, values: Iterable[Any]) -> list[str]:
    texts = [ABSENT if value is None else value for value in values]
    try:
        stripped = list(map(str.strip, texts))
    except TypeError as error:
        raise NotARecord(f"{name} is no text") from error
    if stripped != texts or "\0" in "".join(stripped):
        raise NotARecord(f"{name} has blanks around it, or a NUL character in it")
    if name in _NEVER_ABSENT and ABSENT in stripped:
        raise NotARecord(f"no {name}")
    return stripped


def _seconds(name: str, values: Sequence[Any]) -> list[int]:
    _check_integers(name, [value for value in values if value is not None], 0, MAX_INTEGER)
    return [ABSENT_SECONDS if value is None else value for value in values]


def _check_integers(name: str, values: Sequence[Any], least: int, most: int) -> None:
    if not set(map(type, values)) <= {int} or not all(least <= value <= most for value in values):
        raise NotARecord(f"{name} is no integer from {least} to {most}")


def _check_spelling(columns: Columns) -> None:
    for name, words in (("status", STATUSES), ("call_type", CALL_TYPES)):
        for word in set(columns[name]):
            if words.get(word, " ".join(word.upper().split())) != word:
                raise NotARecord(f"{name} {word[:40]!r} is not as cdrd spells it")
    for text in set(columns["received_at"]):
        if _milliseconds("received_at", text) != text:
            raise NotARecord(f"received_at {text[:40]!r} is not in milliseconds")


def _check_raws(raws: Iterable[object]) -> None:
    try:
        for raw in raws:
            if type(raw) is not str or type(orjson.loads(raw)) is not dict:
                raise NotARecord("raw is no JSON object as text")
    except orjson.JSONDecodeError as error:
        raise NotARecord(f"raw is not valid JSON: {error}") from error


def _check_starts(columns: Columns) -> Sequence[bool]:
    """Hold the columns of the starts to each other; tell which the calls' ids tell."""
    said, call_ids, offsets = (columns[name] for name in ("started_local", "call_id", "utc_offset"))
    found = starts(said, call_ids, _fixed_zone(offsets[0]))
    *_, told = found
    if (columns["started_at"], said, offsets) != tuple(map(list, found[:3])):
        rows = zip(columns["started_at"], said, offsets, call_ids, strict=True)
        for row in rows:
            _check_start(*row)
    return told


def _check_start(started_at: str, said: str, offset: int, call_id: str) -> None:
    found = starts([said], [call_id], _fixed_zone(offset))
    [exact], [same_said], [same_offset], [told] = found
    fits = exact == started_at or (not told and _is_within_minute(started_at, exact))
    if not fits or (same_said, same_offset) != (said, offset):
        raise NotARecord("started_at, started_local, utc_offset and call_id do not fit each other")


def _is_within_minute(started_at: str, exact: str) -> bool:
    """Tell whether an offset has seconds, as local mean time had, which ``utc_offset`` leaves out.

    Then the instant is up to a minute earlier than the offset's minutes say.
    """
    return timedelta(0) < _instant(exact) - _instant(started_at) < _MINUTE


@lru_cache(1024)
def _fixed_zone(minutes: int) -> tzinfo:
    return timezone(timedelta(minutes=minutes))


def _local(started_at: object, zone: tzinfo) -> tuple[str, int]:
    """Return the local time of an instant, and the offset in minutes."""
    try:
        local = _instant(started_at).astimezone(zone)
    except OverflowError as error:
        raise NotARecord(f"started_at {started_at} is out of range") from error
    offset = local.utcoffset()
    assert offset is not None
    return local.replace(tzinfo=None).isoformat(" ", "seconds"), offset // _MINUTE


def _instant(text: object) -> datetime:
    """Read an instant as ``started_at`` spells it."""
    instant = _parsed("started_at", text)
    if instant.replace(tzinfo=None).isoformat(timespec="seconds") + _UTC_ENDING != text:
        raise NotARecord(f"started_at {text!r} is not in seconds")
    return instant


def _milliseconds(name: str, text: object) -> str:
    """Spell an instant as ``received_at`` does."""
    instant = _parsed(name, text).replace(tzinfo=None)
    return instant.isoformat(timespec="milliseconds") + _UTC_ENDING


def _parsed(name: str, text: object) -> datetime:
    if isinstance(text, str) and text.endswith(_UTC_ENDING):
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            pass
    raise NotARecord(f"{name} is no UTC time of the form 2017-09-14T01:30:15Z")
