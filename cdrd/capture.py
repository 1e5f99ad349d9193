"""Turns a file of call records, of whatever kind, into waiting records.

The kind is told from the content: a history CSV, captured reports, lines of our own export or log.
The rule that must stay true: a report is decoded exactly as from a connection, and a line of our
own is restored as it was; nothing in a file is guessed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import tzinfo
from enum import Enum, auto
from itertools import groupby
from typing import Any, Final

import orjson

from cdrd.batch import Waiting
from cdrd.columns import RECORDS
from cdrd.frame import Lines
from cdrd.history import HistoryStream, read_header
from cdrd.line import CALL_RELEASED
from cdrd.record import NotARecord
from cdrd.report import NEW_CDR, spelt
from cdrd.restore import COLUMNS, restore_exported, restore_logged
from cdrd.sender import Origin, Sender
from cdrd.sizes import KIB
from cdrd.source import IMPORT
from cdrd.stream import ReportStream, Totals, broken_text

HEAD_BYTES: Final = 64 * KIB
"""How much of a file is looked at to tell its kind."""

BLANKS: Final = b"\xef\xbb\xbf\0 \t\r\n"
"""Bytes that may precede all else: a log that was emptied while it was written begins with NULs."""

MAX_LINE_BYTES: Final = 64 * KIB * KIB
"""An exported line has its report twice, as columns and as escaped text: three times the bytes of
the longest report that a configuration allows, which is 16 MiB."""

_CALL_IDS: Final = {"call_id", "callid"}
_EXPORTED: Final = {
    name for column in RECORDS["calls"].columns for name in (column.name, column.original)
}
"""What an export may call its columns."""

_MAGIC_BYTES: Final = 32
_NO_TEXT: Final = {*range(1, 9), *range(14, 32), 0xFE, 0xFF}
"""Bytes that UTF-8 text does not have, and that gzip, XLSX, SQLite and UTF-16 begin with."""


class NotImportable(Exception):
    """A file that holds no call records; the text says what it holds or lacks."""


class OptionNeeded(NotImportable):
    """A file whose records cannot be understood without an option, which the text names."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """What is known of where a file is from."""

    pbx: Sender | None = None  # whose reports it holds
    zones: Mapping[str, tzinfo] = field(default_factory=dict)  # of the configured PBXs, by name
    zone: tzinfo | None = None  # of any other

    def zone_of(self, pbx: object) -> tzinfo:
        """Return a PBX's time zone. Raises OptionNeeded."""
        zone = self.zones.get(pbx, self.zone) if isinstance(pbx, str) else self.zone
        if zone is None:
            raise OptionNeeded(
                f"the log does not tell the local time of PBX {spelt(pbx)!r}: configure it,"
                " or give its --timezone"
            )
        return zone


def open_capture(
    head: bytes, provenance: Provenance, *, name: str, waiting: Waiting, totals: Totals
) -> ReportStream | None:
    """Make the stream that reads a file with such a beginning; None for a blank file.

    The beginning is not taken: hand it to the stream's ``receive`` too. Raises NotImportable.
    """
    text = head.lstrip(BLANKS)
    if not text:
        return None
    if not _NO_TEXT.isdisjoint(head[:_MAGIC_BYTES]):
        raise NotImportable("is not text in UTF-8; a compressed file needs the ending .gz")
    line, _, _ = text.partition(b"\n")
    if not line.startswith(b"{") and (header := read_header(line)):
        origin = _Origin(provenance.pbx)
        return HistoryStream(
            header, origin, peer=name, source=IMPORT, waiting=waiting, totals=totals
        )
    if _tells_too_little(line.decode(errors="replace")):
        raise NotImportable(
            "is an export of cdrd that does not tell all of its calls: import one of --format jsonl"
            " with every column and without --header original, or of --format csv with it"
        )
    if b"{" not in text:
        raise NotImportable(
            "holds no call records: a history CSV begins with a line that names callid and"
            " timestart, anything else is JSON"
        )
    return CaptureStream(provenance, name=name, waiting=waiting, totals=totals)


def _tells_too_little(line: str) -> bool:
    """Tell whether a first line is of our own export, in a form that restores no call.

    No PBX's report has our names alone: it names its event.
    """
    is_json = line.startswith("{")
    try:
        names = set(orjson.loads(line) if is_json else line.strip().split(","))
    except orjson.JSONDecodeError:
        return False
    if is_json and names == set(COLUMNS):
        return False
    return names <= _EXPORTED and not names.isdisjoint(_CALL_IDS)


class _Origin(Origin):
    """The PBX whose reports a file holds. Only a report that needs it asks for it."""

    def __init__(self, pbx: Sender | None) -> None:
        super().__init__([] if pbx is None else [pbx])

    def sender(self, serial: object) -> Sender | None:
        if not self.name:
            raise OptionNeeded("holds reports that do not name their PBX: give --pbx NAME")
        return super().sender(serial)


class CaptureStream(ReportStream):
    """A file of JSON objects: reports as from a connection, lines of our own between them."""

    def __init__(
        self, provenance: Provenance, *, name: str, waiting: Waiting, totals: Totals
    ) -> None:
        super().__init__(
            _Origin(provenance.pbx),
            peer=name,
            source=IMPORT,
            waiting=waiting,
            totals=totals,
            max_report_bytes=MAX_LINE_BYTES,
            skims=False,  # what names an event may be a line of our log
        )
        self._provenance = provenance

    def _take_lines(self, lines: Lines, received_at: str, *, mended: bool = False) -> None:
        start, kinds = 0, [_kind(parsed) for parsed in lines.reports]
        for kind, run in groupby(kinds):  # what came first is taken first
            end = start + len(list(run))
            of_kind = Lines(lines.texts[start:end], lines.reports[start:end], {})
            start = end
            if kind is _Kind.REPORT:
                super()._take_lines(of_kind, received_at, mended=mended)
                continue
            self._count(len(of_kind.texts))
            if kind is _Kind.EXPORTED:
                self._take_exported(of_kind, received_at)
            else:
                for text, parsed in zip(of_kind.texts, of_kind.reports, strict=True):
                    self._take_logged(text, parsed, received_at)

    def _take_exported(self, lines: Lines, received_at: str) -> None:
        """Restore all together where they can be, else each."""
        try:
            for call in restore_exported(lines.reports):
                self._waiting.arriving.add_restored(call)
        except NotARecord as error:
            if len(lines.texts) == 1:
                self._refuse(lines.texts[0], lines.reports[0], error, received_at)
                return
            for text, parsed in zip(lines.texts, lines.reports, strict=True):
                self._take_exported(Lines([text], [parsed], {}), received_at)

    def _take_logged(self, text: str, parsed: dict[str, Any], received_at: str) -> None:
        """Restore a call; anything else that the daemon has logged holds no record."""
        event = parsed["event"]
        if event != CALL_RELEASED:
            self._totals.pass_over({event: 1})
            return
        zone = self._provenance.zone_of(parsed.get("pbx"))
        try:
            self._waiting.arriving.add_restored(restore_logged(parsed, text, zone))
        except NotARecord as error:
            self._refuse(text, parsed, error, received_at)

    def _refuse(
        self, text: str, parsed: dict[str, Any], error: NotARecord, received_at: str
    ) -> None:
        pbx = parsed.get("pbx")
        named = pbx if isinstance(pbx, str) else self.origin.name
        self._quarantine(broken_text(text, str(error)), named, received_at)


class _Kind(Enum):
    """What a line of a file is: a PBX's report, or one of our own export or log."""

    REPORT = auto()
    EXPORTED = auto()
    LOGGED = auto()


def _kind(parsed: dict[str, Any]) -> _Kind:
    """Tell a report from a line of our own, whose keys no PBX has."""
    event = parsed.get("event")
    if "join_time" in parsed and "portal" in parsed:
        raise NotImportable("holds conference calls: use cdrd import conferences")
    if "action" in parsed or event == NEW_CDR:
        return _Kind.REPORT
    if event is None:
        return _Kind.EXPORTED if "started_at" in parsed else _Kind.REPORT
    logged = isinstance(event, str) and "timestamp" in parsed and "level" in parsed
    return _Kind.LOGGED if logged or event == CALL_RELEASED else _Kind.REPORT
