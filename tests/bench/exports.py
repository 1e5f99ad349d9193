"""``cdrd export`` as whole processes: records a second and memory.

CSV is compared with SQLite's own shell, which writes the same columns of the same database to the
same disk; the two take turns, and the ratio of each turn is told. The memory is that of all
processes of an export together; a tenth of the records beside it shows that it stays flat. XLSX and
Parquet are compared with their libraries alone, which write the same cells and do nothing else.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.bench import grown_file
from tests.bench.server import Failed, family
from tests.bench.table import Table, figure

SAMPLE_SECONDS = 0.05


class Run(NamedTuple):
    """One export's figures."""

    seconds: float
    peak_mib: float
    mib_written: float


def measure(command: Sequence[str], output: Path) -> Run:
    """Run to its end, with stdout in a file."""
    with output.open("wb") as file:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.DEVNULL)
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(map(memory, family(process.pid))))
            time.sleep(SAMPLE_SECONDS)
        seconds = time.monotonic() - started
    if process.returncode:
        raise Failed(f"{command} ended with {process.returncode}")
    return Run(seconds, peak / 1024, output.stat().st_size / 1024**2)


def memory(pid: int) -> int:
    """KiB that a process has, its share of what it has in common with others."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return int(rollup.partition("\nPss:")[2].split()[0])


def export(database: Path, form: str) -> list[str]:
    program = [sys.executable, "-m", "cdrd", "export", "calls", "--no-limit"]
    return [*program, "--db", str(database), "--format", form]


PARQUET_ALONE = """
import sqlite3, sys
import pyarrow, pyarrow.parquet
rows = sqlite3.connect(sys.argv[1]).execute("SELECT * FROM calls")
names = [column[0] for column in rows.description]
writer = None
while page := rows.fetchmany(16_384):
    table = pyarrow.table([list(cells) for cells in zip(*page)], names=names)
    writer = writer or pyarrow.parquet.ParquetWriter(
        sys.stdout.buffer, table.schema, compression="zstd"
    )
    writer.write_table(table.cast(writer.schema))
writer.close()
"""
XLSX_ALONE = """
import sqlite3, sys
import xlsxwriter
rows = sqlite3.connect(sys.argv[1]).execute("SELECT * FROM calls")
book = xlsxwriter.Workbook(sys.stdout.buffer, {"constant_memory": True, "use_zip64": True})
text, sheet = book.add_format({"num_format": "@"}), book.add_worksheet()
for number, row in enumerate(rows):
    for column, cell in enumerate(row):
        if isinstance(cell, str):
            sheet.write_string(number, column, cell, text)
        elif cell is not None:
            sheet.write_number(number, column, cell)
book.close()
"""
"""How a script of a few lines writes the same cells with the library; the second has one sheet."""

ALONE = {"parquet": PARQUET_ALONE, "xlsx": XLSX_ALONE}


def section(
    records: int, xlsx_records: int, rounds: int, directory: Path, tell: Callable[[str], None]
) -> Table:
    """Measure each format; CSV by turns with SQLite's shell."""
    sizes = {records, xlsx_records}
    databases = {size: directory / f"{size}.sqlite3" for size in sizes | {n // 10 for n in sizes}}
    for size, database in databases.items():
        tell(f"making {size:,} records")
        grown_file.make(database, size)
    exporting = _Exporting(databases, directory / "exported", tell)
    exporting.csv_beside_the_shell(records, rounds)
    for form in ("jsonl", "parquet", "xlsx"):
        exporting.beside_its_library(form, xlsx_records if form == "xlsx" else records)
    return exporting.table


class _Exporting:
    """The databases by their size, and the table that the runs make."""

    def __init__(
        self, databases: dict[int, Path], output: Path, tell: Callable[[str], None]
    ) -> None:
        self._databases, self._output, self._tell = databases, output, tell
        columns = ("format", "records", "records a second", "peak MiB", "MiB written")
        self.table = Table("Exports, all columns", columns)

    def csv_beside_the_shell(self, records: int, rounds: int) -> None:
        whole = str(self._databases[records])
        shell = ["sqlite3", "-readonly", "-csv", "-header", whole, "SELECT * FROM calls"]
        theirs, ours = [], []
        for _ in range(rounds):
            theirs.append(self._run("sqlite3 shell", records, shell))
            ours.append(self._run("csv", records))
        self._show("csv", records // 10, [self._run("csv", records // 10)])
        self._show("csv", records, ours)
        self._show("csv, sqlite3 shell", records, theirs)
        pairs = zip(theirs, ours, strict=True)
        ratio = statistics.median(other.seconds / own.seconds for other, own in pairs)
        self._remark("CSV against the sqlite3 shell", ratio)

    def beside_its_library(self, form: str, records: int) -> None:
        ours = {size: self._run(form, size) for size in (records // 10, records)}
        for size, run in ours.items():
            self._show(form, size, [run])
        if form in ALONE:
            alone = [sys.executable, "-c", ALONE[form], str(self._databases[records])]
            theirs = self._run(f"{form}, library alone", records, alone)
            self._show(f"{form}, library alone", records, [theirs])
            ratio = theirs.seconds / ours[records].seconds
            self._remark(f"{form} against its library alone", ratio)

    def _run(self, name: str, records: int, command: Sequence[str] = ()) -> Run:
        self._tell(f"{name}, {records:,} records")
        return measure(command or export(self._databases[records], name), self._output)

    def _show(self, name: str, records: int, runs: Sequence[Run]) -> None:
        run = Run(*map(statistics.median, zip(*runs, strict=True)))
        cells = (records, records / run.seconds, run.peak_mib, run.mib_written)
        self.table.rows.append((name, *map(figure, cells)))

    def _remark(self, what: str, ratio: float) -> None:
        self.table.remarks.append(f"{what}: {ratio:.2f} times as fast.")
