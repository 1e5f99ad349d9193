"""Turns rows that SQLite has rendered as JSON into lines of CSV, a page of them at a time.

The rule that must stay true: a reader of CSV gets each text back as it was, but for the
apostrophes before what a spreadsheet would run as a formula; ``cdrd.formula`` has their rule.

RFC 4180: CRLF, UTF-8, text always in quotes, an absent value is an empty cell.

Why JSON: a million calls take ``csv.writer`` twice the time of SQLite's own shell, and the most of
it goes to the objects of 23 cells a row. Rendered by SQLite a row is one object, and a page of rows
is treated at once. In JSON that is safe: a quotation mark within a text stands behind a
backslash, so that ``,"`` begins a cell wherever it is found.
"""

import re
from collections.abc import Sequence
from typing import Final

from cdrd.columns import Kind, Layout
from cdrd.formula import CUTS, NUMBER, RUNS

END: Final = b"\r\n"

_BETWEEN: Final = b"\xff"
"""A byte that is never part of UTF-8: it keeps the rows of a page apart. So is the next."""

_BACKSLASH: Final = b"\xfe"

_RUNS: Final = rb"(?='*[-=+@\\])(?!'*\\[^tnr])(?!'*%b\")" % NUMBER.encode()
"""What ``guarded`` changes at the beginning, as JSON has it; a tab or a line break is an escape."""

_FORMULA: Final = (re.compile(rb',"' + _RUNS), b",\"'")
_FORMULA_FIRST: Final = (re.compile(rb'\["' + _RUNS), b"[\"'")
_FORMULA_TEXT: Final = re.compile(rf"'*(?:[\t\n\r]|(?!{NUMBER}\Z){RUNS})".encode())
"""The same in a text that stands alone."""

_FORMULA_WITHIN: Final = re.compile(rf"{CUTS}(?='*(?!{NUMBER}(?:\"(?!\")|\xff|\Z)){RUNS})".encode())
"""What ``guarded`` changes within a text, whose quotation marks are doubled already."""

_ESCAPED: Final = {
    rb"\\": _BACKSLASH,  # first, so that no backslash is left that is not an escape
    rb"\"": b'""',
    rb"\n": b"\n",
    rb"\r": b"\r",
    rb"\t": b"\t",
    rb"\b": b"\b",
    rb"\f": b"\f",
}
_ESCAPED_BY_NUMBER: Final = re.compile(rb"\\u([0-9a-fA-F]{4})")


class CsvLines:
    """The lines of some columns. The rows come from ``query``."""

    def __init__(self, layout: Layout) -> None:
        cells = [column.stored for column in layout.columns]
        # The raw report goes its own way: half of all bytes, and full of quotation marks.
        self._raw = len(cells) > 1 and layout.columns[-1].kind is Kind.JSON
        rendered = cells[:-1] if self._raw else cells
        parts = [f"json_array({', '.join(rendered)})", *cells[len(rendered) :]]
        selected = ", ".join(f"CAST({part} AS BLOB)" for part in parts)
        self.query = f"SELECT {selected} FROM {layout.records.table}"  # noqa: S608 - our own names
        self.header = ",".join(layout.headings).encode() + END
        self._formulas = [_FORMULA]
        if layout.columns[0].kind is not Kind.INTEGER:
            self._formulas.append(_FORMULA_FIRST)

    def lines(self, rows: Sequence[tuple[bytes, ...]]) -> bytes:
        """Return the lines of rows, at least one."""
        arrays, *raws = zip(*rows, strict=True)
        cells = self._cells(arrays)
        if not raws:
            return END.join(cells) + END
        quoted = _quoted(raws[0])
        return b'"\r\n'.join(map(b',"'.join, zip(cells, quoted, strict=True))) + b'"\r\n'

    def _cells(self, arrays: Sequence[bytes]) -> list[bytes]:
        """Turn JSON arrays into cells with commas between them."""
        text = _BETWEEN.join(arrays)
        for formula, harmless in self._formulas:
            text = formula.sub(harmless, text)
        text = text.replace(b',""', b",")
        if b"\\" in text:
            text = _unescaped(text)
        return _guarded_within(text)[1:-1].split(b"]" + _BETWEEN + b"[")


def _unescaped(text: bytes) -> bytes:
    for escape, character in _ESCAPED.items():
        text = text.replace(escape, character)
    text = _ESCAPED_BY_NUMBER.sub(lambda found: chr(int(found[1], 16)).encode(), text)
    return text.replace(_BACKSLASH, b"\\")


def _quoted(texts: Sequence[bytes]) -> list[bytes]:
    """Double the quotation marks in texts."""
    if {text[:1] for text in texts} != {b"{"}:
        texts = [b"'" + text if _FORMULA_TEXT.match(text) else text for text in texts]
    return _guarded_within(_BETWEEN.join(texts).replace(b'"', b'""')).split(_BETWEEN)


def _guarded_within(text: bytes) -> bytes:
    """Put apostrophes into texts; a page that is never cut, as most are, costs a search alone."""
    if any(cut in text for cut in b";\n\r"):
        return _FORMULA_WITHIN.sub(rb"\g<0>'", text)
    return text
