"""Measures ``cdrd export`` as whole processes and prints one table: records a second and memory.

CSV is compared with SQLite's own shell, which writes the same columns of the same database to the
same disk; the two take turns, and the ratio of each turn is told. The memory is that of all
processes of an export together; a tenth of the records beside it shows that it stays flat. XLSX and
Parquet are compared with their libraries alone, which write the same cells and do nothing else.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC
from pathlib import Path
from typing import NamedTuple

import orjson
from rich.console import Console
from rich.table import Table

from cdrd.batch import Batch
from cdrd.record import make_records
from cdrd.report import read_reports
from cdrd.simulate.reports import new_cdr
from cdrd.store import Store

STARTED = 1571897930
PAGE = 5000
SAMPLE_SECONDS = 0.05


class Run(NamedTuple):
    """One export's figures."""

    seconds: float
    peak_mib: float
    mib_written: float


async def fill(database: Path, records: int) -> None:
    """Store so many simulated calls, two a second."""
    store = await Store.open(database, "normal")
    for start in range(0, records, PAGE):
        numbers = range(start, min(records, start + PAGE))
        raws = [new_cdr(n, "1.0.2", started=STARTED + n // 2).decode() for n in numbers]
        calls = read_reports(map(orjson.loads, raws))
        made = make_records(
            calls,  # type: ignore[arg-type]  # each of them is a call
            raws,
            pbx="bench",
            zone=UTC,
            source="tcp",
            received_at="2019-10-24T06:18:50.123Z",
        )
        batch = Batch()
        batch.add(*made)
        await store.commit(batch, 0)
        await store.checkpoint_if_due()
    await store.close(0)


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
        raise SystemExit(f"{command} ended with {process.returncode}")
    return Run(seconds, peak / 1024, output.stat().st_size / 1024**2)


def family(pid: int) -> list[int]:
    """A process and its children."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *map(int, children)]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--xlsx-records", type=int, default=100_000, help="it takes its time")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    table = Table("format", "records", "seconds", "records/s", "peak MiB", "MiB written")
    with tempfile.TemporaryDirectory(prefix="cdrd-bench-") as directory:
        output = Path(directory, "output")
        databases = {}
        sizes = {arguments.records, arguments.xlsx_records}
        for records in sorted(sizes | {size // 10 for size in sizes}):
            databases[records] = Path(directory, f"{records}.sqlite3")
            asyncio.run(fill(databases[records], records))
        whole = databases[arguments.records]
        shell = ["sqlite3", "-readonly", "-csv", "-header", str(whole), "SELECT * FROM calls"]
        ratios = []
        told_of: dict[str, float] = {}
        for _ in range(arguments.runs):
            theirs = measure(shell, output)
            show(table, "sqlite3 shell", arguments.records, theirs)
            ours = measure(export(whole, "csv"), output)
            show(table, "csv", arguments.records, ours)
            ratios.append(theirs.seconds / ours.seconds)
        for form in ("csv", "jsonl", "parquet", "xlsx"):
            size = arguments.xlsx_records if form == "xlsx" else arguments.records
            for records in (size // 10,) if form == "csv" else (size // 10, size):
                run = measure(export(databases[records], form), output)
                show(table, form, records, run)
            if form in ALONE:
                alone = [sys.executable, "-c", ALONE[form], str(databases[size])]
                theirs = measure(alone, output)
                show(table, f"{form}, library alone", size, theirs)
                told_of[form] = theirs.seconds / run.seconds
    console = Console(width=100)
    console.print(table)
    told = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    console.print(f"csv against the sqlite3 shell: {told}; median {statistics.median(ratios):.2f}")
    for form, ratio in told_of.items():
        console.print(f"{form} against its library alone: {ratio:.2f}")
    console.print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")


def show(table: Table, name: str, records: int, run: Run) -> None:
    figures = (run.seconds, records / run.seconds, run.peak_mib, run.mib_written)
    table.add_row(name, f"{records:,}", *(f"{figure:,.1f}" for figure in figures))


if __name__ == "__main__":
    main()
