"""Turns rows into files of one format: one class a format, and all of them used alike.

The rule that must stay true: no format loses or changes a cell in silence. JSON lines and Parquet
give every text back byte for byte; no spreadsheet runs a cell of CSV or XLSX. In XLSX it takes no
id for a number either; in CSV it does, unless the columns are opened as text.
"""

import gzip
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import orjson

from cdrd.columns import Kind, Layout
from cdrd.csv_lines import CsvLines

COMPRESSED: Final = ".gz"
COMPRESSION: Final = 6  # as gzip does; 9 takes three times as long for a hundredth less

SHEET_ROWS: Final = 1_048_576
"""Rows of a sheet, its header included."""

CELL_UNITS: Final = 32_767
"""UTF-16 units that a cell of a sheet can hold."""

EXACT_INTEGER: Final = 10**15
"""A spreadsheet shows 15 digits of a number; a longer one is written as text."""


class Writer(Protocol):
    """Writes the rows of one file."""

    def write(self, rows: Sequence[Any]) -> None:
        """Write rows, at least one."""

    def close(self) -> None:
        """Write what ends the file, which itself stays open."""


class Format(Protocol):
    """A class of writers. A writer keeps what it has to keep aside in ``workspace``."""

    @property
    def page_rows(self) -> int:
        """How many rows at a time are written best."""

    def query(self, layout: Layout) -> str:
        """Return the query, up to its condition, whose rows a writer takes."""

    def __call__(self, layout: Layout, file: BinaryIO, workspace: Path) -> Writer:
        """Begin a file."""


class CsvWriter:
    """Lines of CSV; see ``cdrd.csv_lines``."""

    page_rows = 64  # larger pages leave the processor's cache

    @staticmethod
    def query(layout: Layout) -> str:
        """Return the query of rows as ``CsvLines`` takes them."""
        return CsvLines(layout).query

    def __init__(self, layout: Layout, file: BinaryIO, workspace: Path) -> None:
        del workspace
        self._lines = CsvLines(layout)
        self._file = file
        file.write(self._lines.header)

    def write(self, rows: Sequence[Any]) -> None:
        """Write a line each."""
        self._file.write(self._lines.lines(rows))

    def close(self) -> None:
        """End it: nothing is left to write."""


class JsonLinesWriter:
    """A JSON object a line, with the headings as keys: what ``cdrd follow`` prints."""

    page_rows = 32  # with larger pages the kernel takes three times as long, for memory

    @staticmethod
    def query(layout: Layout) -> str:
        """Return the query of the view's rows."""
        return layout.query

    def __init__(self, layout: Layout, file: BinaryIO, workspace: Path) -> None:
        del workspace
        self._headings = layout.headings
        self._file = file

    def write(self, rows: Sequence[Any]) -> None:
        """Write a line each."""
        objects = (dict(zip(self._headings, row, strict=True)) for row in rows)
        self._file.write(
            b"".join([orjson.dumps(one, option=orjson.OPT_APPEND_NEWLINE) for one in objects])
        )

    def close(self) -> None:
        """End it: nothing is left to write."""


class ParquetWriter:
    """Columns of 64-bit integers and of text, times as the text that they are in the view.

    So a cell is what it is everywhere else, ``2017-09-14T01:30:15Z``; readers cast it in place
    (DuckDB: ``started_at::TIMESTAMPTZ``).
    """

    page_rows = 16_384  # a row group: some 10 MiB

    @staticmethod
    def query(layout: Layout) -> str:
        """Return the query of the view's rows."""
        return layout.query

    def __init__(self, layout: Layout, file: BinaryIO, workspace: Path) -> None:
        del workspace
        import pyarrow as pa  # noqa: PLC0415 - installed where wanted; it takes 0.3 s
        import pyarrow.parquet as pq  # noqa: PLC0415

        self._batch = pa.RecordBatch.from_arrays
        self._array = pa.array
        types = {Kind.INTEGER: pa.int64()}
        self._schema = pa.schema(
            [
                (heading, types.get(column.kind, pa.string()))
                for heading, column in zip(layout.headings, layout.columns, strict=True)
            ]
        )
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd")

    def write(self, rows: Sequence[Any]) -> None:
        """Write a row group."""
        columns = zip(*rows, strict=True)
        arrays = [self._array(*cells) for cells in zip(columns, self._schema.types, strict=True)]
        self._writer.write_batch(self._batch(arrays, schema=self._schema))

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


_NOT_IN_XML: Final = re.compile("[\ufffe\uffff]")


class XlsxWriter:
    """A workbook, a further sheet where one is full, the first row of each its headings.

    Text is text, also an id of 16 digits, a telephone number, a time; seconds are numbers. A
    text longer than ``CELL_UNITS`` must not be given. The two characters that XML cannot have,
    U+FFFE and U+FFFF, are shown as U+FFFD.
    """

    page_rows = 1000

    @staticmethod
    def query(layout: Layout) -> str:
        """Return the query of the view's rows."""
        return layout.query

    def __init__(self, layout: Layout, file: BinaryIO, workspace: Path) -> None:
        import xlsxwriter  # noqa: PLC0415 - installed where it is wanted

        self._layout = layout
        self._book = xlsxwriter.Workbook(
            file, {"constant_memory": True, "tmpdir": str(workspace), "use_zip64": True}
        )
        self._text = self._book.add_format({"num_format": "@"})
        self._bold = self._book.add_format({"bold": True})
        self._add_sheet()

    def write(self, rows: Sequence[Any]) -> None:
        """Write rows, of which a sheet has the form as soon as the next has begun."""
        for row in rows:
            if self._row == SHEET_ROWS:
                self._end_sheet()
                self._add_sheet()
            self._write_row(row)
            self._row += 1

    def close(self) -> None:
        """Pack the sheets into the file."""
        from xlsxwriter.exceptions import FileCreateError  # noqa: PLC0415

        self._end_sheet()
        try:
            self._book.close()
        except FileCreateError as error:
            raise error.args[0] from error

    def _add_sheet(self) -> None:
        self._sheet = self._book.add_worksheet()
        self._sheet.freeze_panes(1, 0)
        for position, heading in enumerate(self._layout.headings):
            self._sheet.set_column(position, position, max(12, len(heading) + 4))
            self._sheet.write_string(0, position, heading, self._bold)
        self._row = 1

    def _end_sheet(self) -> None:
        last = len(self._layout.headings) - 1
        self._sheet.autofilter(0, 0, self._row - 1, last)
        self._sheet.ignore_errors({"number_stored_as_text": f"A1:XFD{SHEET_ROWS}"})

    def _write_row(self, row: Iterable[str | int | None]) -> None:
        for position, cell in enumerate(row):
            if cell is None or cell == "":
                continue
            if isinstance(cell, int) and -EXACT_INTEGER < cell < EXACT_INTEGER:
                self._sheet.write_number(self._row, position, cell)
            else:
                self._write_text(position, str(cell))

    def _write_text(self, position: int, text: str) -> None:
        if not text.isascii():
            text = _NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", text)
        if text.startswith("<r>") and text.endswith("</r>"):
            # The library takes it for its own markup and would not escape it.
            parts = (text[:1], self._text, text[1:])
            self._sheet.write_rich_string(self._row, position, *parts, self._text)
        else:
            self._sheet.write_string(self._row, position, text, self._text)


FORMATS: Final[dict[str, Format]] = {
    "csv": CsvWriter,
    "jsonl": JsonLinesWriter,
    "parquet": ParquetWriter,
    "xlsx": XlsxWriter,
}
LIBRARIES: Final = {"parquet": "pyarrow", "xlsx": "xlsxwriter"}
BINARY: Final = tuple(LIBRARIES)


def split_ending(name: str) -> tuple[str, bool]:
    """Return a file's ending without its point, and whether ``.gz`` stands behind it."""
    path = Path(name)
    is_compressed = path.suffix.lower() == COMPRESSED
    return Path(path.stem if is_compressed else path).suffix.lower()[1:], is_compressed


def compressed(file: BinaryIO) -> BinaryIO:
    """Compress what is written to a file; the same rows give the same bytes."""
    return gzip.GzipFile("", "wb", COMPRESSION, file, mtime=0)  # type: ignore[return-value]
