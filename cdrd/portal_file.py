"""Turns a portal's CSV export into rows by column name, one at a time.

The rule that must stay true: a bad row costs itself alone. Where a quote that nobody closed would
swallow the lines behind it, they are read again as rows of their own. A byte that is no UTF-8, or
no UTF-16, does not change how the other lines are read.
"""

import codecs
import csv
import io
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, NamedTuple

from cdrd.formula import unguarded
from cdrd.leg import column_of, missing_columns
from cdrd.sizes import KIB

DELIMITERS: Final = (",", ";", "\t")
MAX_ROW_CHARACTERS: Final = 64 * KIB
"""A row by the guide has some 500; a quote that is open for longer than this was never closed."""

_NO_UTF16: Final = "cdrd.no_utf16"  # how codecs know _keep_no_utf16
_NO_UTF16_OCTET: Final = re.compile("[\ud800-\ud8ff]")


class PortalFileError(Exception):
    """A file that is no portal's export; the text says why."""


class Row(NamedTuple):
    """A row as the file has it: its first line's number, its cells by column name, its text."""

    line: int
    fields: dict[str, str]
    text: str


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read; surrogates in its text escape bytes that are no UTF-8."""

    line: int
    reason: str
    text: str


class PortalFile:
    """A portal's export, open for reading; ``file`` must be able to go back to its start.

    It is UTF-16 where its mark says so. Else a line is UTF-8, or cp1252 where nothing in it beyond
    ASCII is UTF-8. A row with both is a bad row, as is one with bytes that are no UTF-16. Raises
    PortalFileError for a file without a header or without a column that is needed.
    """

    def __init__(self, file: BinaryIO) -> None:
        file.seek(0)
        is_utf16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        file.seek(0)
        self._encoding = "UTF-16" if is_utf16 else "UTF-8"
        encoding = "utf-16" if is_utf16 else "utf-8-sig"
        errors = _NO_UTF16 if is_utf16 else "surrogateescape"
        self._lines = _Lines(io.TextIOWrapper(file, encoding, errors, newline=""))
        self._delimiter, self.header = self._read_header()

    @property
    def cp1252_lines(self) -> int:
        """How many of the lines read so far are cp1252."""
        return self._lines.cp1252

    def rows(self) -> Iterator[Row | BadRow]:
        """Read row after row; an empty line is none."""
        while self._lines.more():
            row = self._row()
            if row is not None:
                yield row

    def _read_header(self) -> tuple[str, list[str]]:
        while self._lines.more():
            line = self._lines.take()
            if line.strip(" \t\r\n,;"):
                return _header(line)
        raise PortalFileError("the file is empty")

    def _row(self) -> Row | BadRow | None:
        taken = self._lines.begin_row()
        number = self._lines.number + 1
        try:
            cells = next(_reader(self._lines, self._delimiter))
        except csv.Error as error:
            return self._bad(number, taken, str(error))
        if not any(map(str.strip, cells)):
            return None
        if len(cells) != len(self.header):
            reason = f"{len(cells)} cells where the header has {len(self.header)}"
            return self._bad(number, taken, reason)
        text = "".join(taken)
        if _has_escaped(text):
            return _bad_row(number, f"not valid {self._encoding}", text)
        fields = dict(zip(self.header, map(unguarded, cells), strict=True))
        return Row(number, fields, text)

    def _bad(self, number: int, taken: list[str], reason: str) -> BadRow:
        """Give up the row's first line alone."""
        self._lines.give_back(taken[1:])
        return _bad_row(number, reason, taken[0])


class _Lines:
    """The file's lines, counted, some of which may be given back."""

    def __init__(self, text: Iterator[str]) -> None:
        self.number = 0
        self.cp1252 = 0
        self._text = text
        self._again: deque[str] = deque()
        self._row: list[str] = []
        self._characters = 0

    def more(self) -> bool:
        """Tell whether there is another line."""
        if not self._again:
            self._again.extend(self._decoded(line) for line in [next(self._text, "")] if line)
        return bool(self._again)

    def _decoded(self, line: str) -> str:
        """Read a line as cp1252 where that is what it is; else what is no UTF-8 stays escaped."""
        if not _has_escaped(line):
            return line
        try:
            octets = line.encode("ascii", "surrogateescape")
        except UnicodeEncodeError:  # some of it is UTF-8
            return line
        if not self.cp1252 and _is_cut(octets):
            return line
        self.cp1252 += 1
        return octets.decode("cp1252", "backslashreplace")

    def take(self) -> str:
        """Return the next line, of which there is one."""
        self.number += 1
        return self._again.popleft()

    def begin_row(self) -> list[str]:
        """Return the list that the lines of the next row will be in."""
        self._row = []
        self._characters = 0
        return self._row

    def give_back(self, lines: list[str]) -> None:
        """Let lines be read again."""
        self.number -= len(lines)
        self._again.extendleft(reversed(lines))

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._characters > MAX_ROW_CHARACTERS or not self.more():
            raise StopIteration
        line = self.take()
        self._row.append(line)
        self._characters += len(line)
        return line


def _keep_no_utf16(error: UnicodeError) -> tuple[str, int]:
    """Keep bytes that are no UTF-16 as surrogates, others than those of ``surrogateescape``."""
    assert isinstance(error, UnicodeDecodeError)
    octets = error.object[error.start : error.end]
    return "".join(chr(0xD800 + octet) for octet in octets), error.end


codecs.register_error(_NO_UTF16, _keep_no_utf16)


def _bad_row(line: int, reason: str, text: str) -> BadRow:
    """Spell bytes that are no UTF-16."""
    shown = _NO_UTF16_OCTET.sub(lambda octet: f"\\x{ord(octet[0]) - 0xD800:02x}", text)
    return BadRow(line, reason, shown)


def _has_escaped(text: str) -> bool:
    """Tell whether a text has surrogates, which stand for bytes that are none of its encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _is_cut(octets: bytes) -> bool:
    """Tell whether a line ends within a character of UTF-8: the last, without its line break."""
    try:
        octets.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


def _header(line: str) -> tuple[str, list[str]]:
    """Return what parts the cells of a header, and its cells. Raises PortalFileError."""
    delimiter, names = max(
        ((delimiter, _cells(line, delimiter)) for delimiter in DELIMITERS),
        key=lambda header: sum(column_of(name) is not None for name in header[1]),
    )
    missing = missing_columns(names)
    if missing:
        raise PortalFileError(
            f"no portal's export: the header lacks {', '.join(missing)}; it has {_shown(names)}"
        )
    known = [column for column in map(column_of, names) if column is not None]
    doubled = sorted({column for column in known if known.count(column) > 1})
    if doubled:
        raise PortalFileError(f"no portal's export: the header has {', '.join(doubled)} twice")
    return delimiter, names


def _reader(lines: Iterator[str], delimiter: str) -> Iterator[list[str]]:
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(_reader(iter([line]), delimiter))]
    except csv.Error:
        return [line]


def _shown(names: list[str]) -> str:
    """Name what a header has instead, without letting it command the terminal."""
    text = ", ".join(names)
    return ascii(text if len(text) <= 200 else f"{text[:200]}...")
