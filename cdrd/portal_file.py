"""Turns a portal's CSV export into rows by column name, one at a time.

The rule that must stay true: a bad row costs itself alone. Where a quote that nobody closed would
swallow the lines behind it, they are read again as rows of their own.
"""

import codecs
import csv
import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, NamedTuple

from cdrd.formula import unguarded
from cdrd.frame import KIB
from cdrd.leg import column_of, missing_columns

DELIMITERS: Final = (",", ";", "\t")
CHUNK_BYTES: Final = 64 * KIB
MAX_ROW_CHARACTERS: Final = 64 * KIB
"""A row by the guide has some 500; a quote that is open for longer than this was never closed."""


class PortalFileError(Exception):
    """A file that is no portal's export; the text says why."""


class Row(NamedTuple):
    """A row as the file has it: its first line's number, its cells by column name, its text."""

    line: int
    fields: dict[str, str]
    text: str


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read."""

    line: int
    reason: str
    text: str


class PortalFile:
    """A portal's export, open for reading; ``file`` must be able to go back to its start.

    ``encoding`` is that of the text: UTF-8, UTF-16 where its mark says so, and cp1252 for what is
    neither. Raises PortalFileError for a file without a header or without a column that is needed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.encoding = _encoding(file)
        file.seek(0)
        text = io.TextIOWrapper(file, self.encoding, errors="backslashreplace", newline="")
        self._lines = _Lines(text)
        self._delimiter, self.header = self._read_header()

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
        fields = dict(zip(self.header, map(unguarded, cells), strict=True))
        return Row(number, fields, "".join(taken))

    def _bad(self, number: int, taken: list[str], reason: str) -> BadRow:
        """Give up the row's first line alone."""
        self._lines.give_back(taken[1:])
        return BadRow(number, reason, taken[0])


class _Lines:
    """The file's lines, counted, some of which may be given back."""

    def __init__(self, text: Iterator[str]) -> None:
        self.number = 0
        self._text = text
        self._again: deque[str] = deque()
        self._row: list[str] = []
        self._characters = 0

    def more(self) -> bool:
        """Tell whether there is another line."""
        if not self._again:
            self._again.extend(line for line in [next(self._text, "")] if line)
        return bool(self._again)

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


def _encoding(file: BinaryIO) -> str:
    """Tell a file's encoding by its mark, or by reading it through."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    file.seek(0)
    start = file.read(2)
    if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    try:
        decoder.decode(start)
        while chunk := file.read(CHUNK_BYTES):
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8-sig"


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
