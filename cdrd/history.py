"""Turns a PBX's history, a CSV file, into waiting records: row by row, by the one decoder.

The rule that must stay true: a row costs itself alone. Whatever is wrong with one, it goes to
quarantine with the reason, and the rows around it are read as if it were not there.
"""

import csv
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Final, NamedTuple

import orjson

from cdrd.batch import Waiting
from cdrd.formula import unguarded
from cdrd.frame import Broken
from cdrd.report import SPELLINGS, ReleasedCall, read_row
from cdrd.sender import Origin
from cdrd.sizes import PAYLOAD_BYTES
from cdrd.source import IMPORT
from cdrd.stream import ReportStream, Totals

MAX_ROW_LINES: Final = 20
"""A quoted cell may hold line breaks; a quote that is open after so many was never closed."""

DELIMITERS: Final = (",", ";", "\t")
NEEDED: Final = {"call_id", "started_local"}
"""A line that names no columns for these, in any spelling, is not the first of a history."""

BOM: Final = "\N{ZERO WIDTH NO-BREAK SPACE}"

_BLANKS: Final = BOM.encode() + b" \t\r"
_BEHIND: Final = '"'
"""What the reader is given behind the lines at hand: it asks for it where a quote is open."""


class Header(NamedTuple):
    """The first line of a history: what its columns are called, and what parts them."""

    keys: tuple[str, ...]  # as the file spells them
    known: tuple[str, ...]  # likewise, but those of the vendor as ``SPELLINGS`` has them
    delimiter: str


def read_header(line: bytes) -> Header | None:
    """Read a history's first line; None where it is none."""
    text = line.decode(errors="replace").removeprefix(BOM)
    for delimiter in DELIMITERS:
        try:
            keys = _keys(next(csv.reader([text], delimiter=delimiter), []))
        except csv.Error:  # such as a carriage return within it
            return None
        known = tuple(key.lower() if key.lower() in SPELLINGS else key for key in keys)
        if {SPELLINGS.get(key, "") for key in known} >= NEEDED:
            return Header(keys, known, delimiter)
    return None


def _keys(cells: Sequence[str]) -> tuple[str, ...]:
    """Name each column by itself, so that none is lost."""
    keys: list[str] = []
    for number, cell in enumerate(cells, start=1):
        key = cell.strip()
        keys.append(key if key and key not in keys else f"{key} (column {number})".lstrip())
    return tuple(keys)


class HistoryStream(ReportStream):
    """The rows of one history; ``receive`` takes its first line too."""

    def __init__(
        self,
        header: Header,
        origin: Origin,
        *,
        peer: str,
        source: str,
        waiting: Waiting,
        totals: Totals,
    ) -> None:
        super().__init__(
            origin,
            peer=peer,
            source=source,
            waiting=waiting,
            totals=totals,
            max_report_bytes=PAYLOAD_BYTES,
        )
        self._header = header
        self._rows = _Rows(header)
        self._is_guarded = source == IMPORT  # a file may be our own export, a PBX's answer is not

    def receive(self, chunk: bytes | bytearray | memoryview, received_at: str) -> None:
        """Take custody of every row that the chunk completes."""
        self._rows.receive(chunk)
        self._take_rows(received_at)

    def is_torn(self) -> bool:
        """Tell whether the last line lacks both its line break and cells: more was to come."""
        return self._rows.is_torn()

    def close(self, reason: str, received_at: str) -> None:
        """End the history; its last line may lack the line break."""
        self._rows.receive(b"\n")
        self._take_rows(received_at, ended=reason)

    def _take_rows(self, received_at: str, ended: str = "") -> None:
        calls: list[ReleasedCall] = []
        raws: list[str] = []
        while (row := self._rows.next_row(ended)) is not None:
            if isinstance(row, Broken):  # rare; the rows before it go before it
                self._take_calls(calls, raws, received_at, mended=False)
                calls, raws = [], []
                self._count(1)
                self._quarantine(row, self.origin.name, received_at)
            elif not self._is_header(row):
                self._count(1)
                cells = list(map(unguarded, row)) if self._is_guarded else row
                calls.append(read_row(dict(zip(self._header.known, cells, strict=True))))
                raws.append(orjson.dumps(dict(zip(self._header.keys, cells, strict=True))).decode())
        self._take_calls(calls, raws, received_at, mended=False)

    def _is_header(self, row: Sequence[str]) -> bool:
        """Tell whether a row is the first line, which stands again where files were put together.

        It is no call, so nothing is lost with it.
        """
        return self._header.keys[0] in row[0] and _keys(row) == self._header.keys


class _Rows:
    """The rows of a history, pulled with ``next_row`` after ``receive``."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self._lines: deque[tuple[bytes, int]] = deque()  # each with its size before it was cut
        self._rest = bytearray()  # the beginning of a line
        self._size = 0  # of all that has come of it

    def receive(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take the next bytes; of a line longer than 64 KiB only the beginning is held."""
        *ends, rest = bytes(chunk).split(b"\n")
        for end in ends:
            self._hold(end)
            self._lines.append((bytes(self._rest), self._size))
            self._rest.clear()
            self._size = 0
        self._hold(rest)

    def _hold(self, piece: bytes) -> None:
        self._rest += piece[: PAYLOAD_BYTES - len(self._rest)]
        self._size += len(piece)

    def is_torn(self) -> bool:
        """Tell whether the beginning of a line is at hand, and of the cells of its row too few."""
        if not self._rest.strip(_BLANKS):
            return False
        begun = b"\n".join([*(line for line, _ in self._lines), self._rest])
        try:
            text = begun.decode(errors="replace")
            cells = next(csv.reader([text], delimiter=self._header.delimiter))
        except csv.Error:  # such as a carriage return within it
            return False
        return len(cells) < len(self._header.keys)

    def next_row(self, ended: str = "") -> list[str] | Broken | None:
        """Return the cells of the next row, or what is none; None until more bytes have come.

        ``ended``: no more will come, and why.
        """
        while self._lines and not self._lines[0][0].strip(_BLANKS):
            self._lines.popleft()
        if not self._lines:
            return None
        if self._lines[0][1] > PAYLOAD_BYTES:
            return self._break(f"a line longer than {PAYLOAD_BYTES} bytes")
        return self._read_row(ended)

    def _read_row(self, ended: str) -> list[str] | Broken | None:
        used: list[bytes] = []
        lines = chain(self._texts(used), [_BEHIND])
        reader = csv.reader(lines, delimiter=self._header.delimiter, strict=True)
        try:
            cells = next(reader)
            swallows = any(map(self._is_row, used[1:]))
        except UnicodeDecodeError as error:
            return self._break(f"not valid UTF-8: {error.reason}")
        except csv.Error as error:
            return self._break(f"not valid CSV: {error}")
        is_open = reader.line_num > len(used)
        if is_open and len(used) == len(self._lines) < MAX_ROW_LINES and not ended:
            return None
        if is_open or swallows:
            return self._break("a quote in it is not closed")
        if len(cells) != len(self._header.keys):
            named = len(self._header.keys)
            return self._break(f"{len(cells)} cells, the first line names {named}")
        for _ in used:
            self._lines.popleft()
        return cells

    def _texts(self, used: list[bytes]) -> Iterator[str]:
        """Hand out the lines that a row may have, and note which were asked for."""
        for line, size in islice(self._lines, MAX_ROW_LINES):
            if size > PAYLOAD_BYTES:
                return
            used.append(line)
            yield line.decode().removeprefix(BOM) + "\n"

    def _is_row(self, line: bytes) -> bool:
        """Tell whether a line is a row by itself: then the quote before it was never closed."""
        try:
            cells = next(csv.reader([line.decode()], delimiter=self._header.delimiter))
        except csv.Error:  # such as a carriage return within it
            return False
        return len(cells) == len(self._header.keys)

    def _break(self, reason: str) -> Broken:
        line, size = self._lines.popleft()
        return Broken(line[:PAYLOAD_BYTES].rstrip(b"\r"), size, reason)
