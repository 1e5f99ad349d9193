"""Turns a PBX's history, as its API hands it out, into waiting records, a window of time at a time.

The rule that must stay true: what is fetched is stored as what was pushed: by the one decoder, so
that a row and the report of the same call meet; and a row that is none costs itself alone.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final, NamedTuple

import orjson

from cdrd.batch import Waiting
from cdrd.history import HistoryStream, read_header
from cdrd.record import MAX_UTC_OFFSET
from cdrd.report import ReleasedCall, read_row, spelt
from cdrd.sender import Origin
from cdrd.sizes import PAYLOAD_BYTES
from cdrd.source import HISTORY
from cdrd.stream import ReportStream, Totals, broken_text

DAY: Final = 24 * 60 * 60
LOOK_BACK: Final = DAY
"""History is searched by a call's start: one that ended in a gap may have begun long before it."""

PAD: Final = DAY
"""The configured time zone may be wrong: by a day at most."""

_NAMED: Final = re.compile(r".*<([^<>]+)>\s*", re.DOTALL)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_QUARTER: Final = timedelta(minutes=15)
_NONE: Final = timedelta()
_FARTHEST: Final = timedelta(seconds=MAX_UTC_OFFSET)
_DATES: Final = ("%Y-%m-%d", "%Y/%m/%d", "%m/%d/%Y", "%d/%m/%Y", "%m-%d-%Y", "%d-%m-%Y", "%d.%m.%Y")
DISPLAY_FORMATS: Final = tuple(
    f"{date} {clock}" for date in _DATES for clock in ("%H:%M:%S", "%I:%M:%S %p")
)
"""How a P-Series PBX may be set to show times; the vendor's pages print examples only."""


class NotAHistory(ValueError):
    """What the PBX handed out is no history; the text says why."""


class Window(NamedTuple):
    """What is asked for at once: the calls that began within a range of the PBX's local time."""

    start: datetime  # without a zone, both; whole seconds
    end: datetime
    complete_until: float  # Unix seconds: up to there nothing is missing once it was fetched


def windows(start: float, end: float, zone: tzinfo) -> Iterator[Window]:
    """Part a range of instants (Unix seconds) into windows of at most a day, the oldest first.

    ``zone`` is the PBX's. A range in which its clock was changed is longer by what it was changed.
    """
    begin, stop = math.floor(start), math.ceil(end)
    first, last = _local(begin, zone), _local(stop, zone)
    changed = abs(last - first - timedelta(seconds=stop - begin))
    first, last = first - changed, last + changed
    while first < last:
        cut = min(first + timedelta(seconds=DAY), last)
        yield Window(first, cut, min(end, _instant(cut, zone)))
        first = cut


def gap_windows(
    complete_until: float, now: float, zone: tzinfo, oldest: float = -math.inf
) -> Iterator[Window]:
    """Part what has to be asked for so that nothing is missing until now, as ``windows`` does.

    The last one is longer, and each but the last promises less, by what the zone may be wrong.
    ``oldest``: no call that began before is kept.
    """
    for window in windows(max(oldest, min(complete_until, now) - LOOK_BACK), now, zone):
        if window.complete_until < now:
            yield window._replace(complete_until=window.complete_until - PAD)
        else:
            yield window._replace(end=window.end + timedelta(seconds=PAD))


def _local(instant: int, zone: tzinfo) -> datetime:
    return (_EPOCH + timedelta(seconds=instant)).astimezone(zone).replace(tzinfo=None)


def _instant(local: datetime, zone: tzinfo) -> float:
    return local.replace(tzinfo=zone, fold=0).timestamp()


def open_csv(
    csv: bytes, origin: Origin, *, peer: str, waiting: Waiting, totals: Totals
) -> HistoryStream:
    """Make the stream that a history's CSV is fed to, its first line too.

    Raises NotAHistory, for an empty answer too: a history without a call has its first line.
    """
    first, _, _ = csv.lstrip().partition(b"\n")
    if not first:
        raise NotAHistory("the PBX's answer is empty, without the first line of a history")
    header = read_header(first[:PAYLOAD_BYTES])
    if header is None:
        begins = first[:80].decode(errors="replace")
        raise NotAHistory(f"the PBX's answer is no history: it begins with {begins!r}")
    return HistoryStream(header, origin, peer=peer, source=HISTORY, waiting=waiting, totals=totals)


class RestStream(ReportStream):
    """The rows of a P-Series' REST answers."""

    def __init__(self, origin: Origin, *, peer: str, waiting: Waiting, totals: Totals) -> None:
        super().__init__(
            origin,
            peer=peer,
            source=HISTORY,
            waiting=waiting,
            totals=totals,
            max_report_bytes=PAYLOAD_BYTES,
        )

    def take_rows(self, rows: Iterable[object], received_at: str) -> None:
        """Take custody of rows, as JSON was parsed."""
        calls: list[ReleasedCall] = []
        raws: list[str] = []
        for row in rows:
            self._count(1)
            raw, reason = _spelt(row)
            if reason or not isinstance(row, dict):
                self._quarantine(broken_text(raw, reason), self.origin.name, received_at)
            else:
                calls.append(read_row(as_pushed(row)))
                raws.append(raw)
        self._take_calls(calls, raws, received_at, mended=False)


def _spelt(row: object) -> tuple[str, str]:
    """Return a row as JSON text, and why it is none that could be stored, or ``""``."""
    try:
        raw = orjson.dumps(row).decode()
    except orjson.JSONEncodeError as error:  # a half of a character, a number beyond 64 bits
        return _spelt_by_python(row), f"cannot be stored: {error}"
    return raw, "" if isinstance(row, dict) else "not a JSON object"


def _spelt_by_python(row: object) -> str:
    """Return any row as JSON text, but for the lists and objects in one too deeply nested."""
    try:
        return json.dumps(row)
    except RecursionError:
        flat = {key: spelt(value) for key, value in row.items()} if isinstance(row, dict) else None
        return json.dumps(flat)


def as_pushed(row: dict[str, Any]) -> dict[str, Any]:
    """Spell the values of a REST row as the pushed report of the same call does.

    Source: the vendor's page on ``cdr/search``: ``Name<number>``, and the time in the PBX's display
    format. A name may hold brackets itself, so the last are the number's.
    """
    pushed = dict(row)
    for key in ("call_from", "call_to"):
        if isinstance(value := row.get(key), str) and (named := _NAMED.fullmatch(value)):
            pushed[key] = named[1]
    if (instant := _epoch_time(row.get("timestamp"))) is not None:
        for _, local in readings(row):
            if (local - instant) % _QUARTER == _NONE:
                pushed["time"] = f"{local}"
    return pushed


def readings(row: Mapping[str, Any]) -> Iterator[tuple[str, datetime]]:
    """Read a row's local time in each display format in which it can be what its timestamp says.

    Without a timestamp (UTC epoch), in each that it can be in.
    """
    time, instant = spelt(row.get("time")), _epoch_time(row.get("timestamp"))
    for known in DISPLAY_FORMATS:
        with suppress(ValueError):
            local = datetime.strptime(time, known)  # noqa: DTZ007 - a PBX's local time
            if instant is None or abs(local - instant) <= _FARTHEST:
                yield known, local


def _epoch_time(timestamp: object) -> datetime | None:
    """Read a UTC epoch; None for what is none."""
    try:
        return (_EPOCH + timedelta(seconds=int(spelt(timestamp)))).replace(tzinfo=None)
    except (ValueError, OverflowError):
        return None
