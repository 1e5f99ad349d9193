"""What becomes of the rate, the latency and the common queries as a file grows to many years."""

import contextlib
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from cdrd.sizes import MIB
from tests.bench import goals, grown_file, latency
from tests.bench.contender import Contender, take_turns
from tests.bench.goals import Goal
from tests.bench.load import STARTED, Load
from tests.bench.peer_cdrd import Cdrd
from tests.bench.run import Run, run, run_in
from tests.bench.server import Failed
from tests.bench.table import Table, figure

TIMES = 5
LATENCY_SECONDS = 5
BYTES_A_ROW = 1300
"""Somewhat more than a row takes in the file and in an export of all."""
DAY, MONTH = ("2020-06-10", "2020-06-11"), ("2020-06-01", "2020-07-01")
ROUND_SECONDS = 1_000_000
"""The calls of one round begin so long after those of the round before: none is there already."""

QUERIES = {
    "a day by started_at": (
        "SELECT * FROM calls WHERE started_at >= '2020-06-10T00:00:00Z'"
        " AND started_at < '2020-06-11T00:00:00Z'"
    ),
    "a call by started_at and call_id": (
        "SELECT * FROM calls WHERE started_at = (SELECT started_at FROM calls WHERE seq = 900)"
        " AND call_id = (SELECT call_id FROM calls WHERE seq = 900)"
    ),
    "the last 100 by seq": "SELECT * FROM calls ORDER BY seq DESC LIMIT 100",
}
"""The looks of a program, or of a person, at the file."""

SCAN = "SELECT * FROM calls WHERE call_id = (SELECT call_id FROM calls WHERE seq = 900)"
COMMANDS = {
    "cdrd export of a day": ("export", "calls", "--from", DAY[0], "--to", DAY[1], "-o"),
    "cdrd report of a month": ("report", "--from", MONTH[0], "--to", MONTH[1], "-o"),
}
WHOLE = {
    "cdrd export of all, CSV": ("export", "calls", "--no-limit", "-o"),
    "cdrd report of all, by day": ("report", "--by", "day", "--format", "csv", "-o"),
}
"""These take long and grow with the file, so they are done once, on the largest."""


class Grown:
    """A database of so many rows, in a directory of its own; 0 makes an empty one.

    Raises Failed where the disk is too small for it.
    """

    def __init__(self, directory: Path, rows: int) -> None:
        self.rows = rows
        self.directory = directory / f"grown-{rows}"
        self.directory.mkdir()
        self.database = self.directory / "cdr.sqlite3"
        self.round = 0
        self.mib = 0.0
        if shutil.disk_usage(directory).free < rows * BYTES_A_ROW:
            raise Failed(f"{rows:,} rows need {rows * BYTES_A_ROW // MIB:,} MiB in {directory}")
        if rows:
            grown_file.make(self.database, rows)
            self.mib = self.database.stat().st_size / MIB

    def run(self, load: Load, loads: Path) -> Run:
        """Add a load; each time its calls begin later. What is to be empty is always fresh."""
        if not self.rows:
            return run(Cdrd, load, loads)
        self.round += 1
        later = replace(load, started=STARTED + self.round * ROUND_SECONDS)
        return run_in(self.directory, Cdrd, later, loads)

    def figures(self, *, whole: bool) -> Iterator[tuple[str, float]]:
        """Tell how long each thing takes, in milliseconds."""
        began = time.perf_counter()
        with Cdrd(self.directory) as server:
            yield "start to ready", (time.perf_counter() - began) * 1000
            probed = latency.probe(server, LATENCY_SECONDS, 0)
        yield "sent to visible, median", probed.median
        yield "sent to visible, 99th percentile", probed.high
        if self.rows:
            yield from self.looks()
        if whole:
            yield from self.whole()

    def looks(self) -> Iterator[tuple[str, float]]:
        """Time each common look at it: milliseconds, the median of some."""
        uri = f"{self.database.as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as reader:
            for name, query in QUERIES.items():
                yield name, timed(partial(_rows, reader, query))
            yield "a call by call_id alone", timed(partial(_rows, reader, SCAN), 1)
        for name, arguments in COMMANDS.items():
            yield name, timed(partial(self.command, arguments))

    def whole(self) -> Iterator[tuple[str, float]]:
        """Time what reads all of it: milliseconds."""
        for name, arguments in WHOLE.items():
            yield name, timed(partial(self.command, arguments), 1)

    def command(self, arguments: Sequence[str]) -> None:
        """Run a command of cdrd's on it."""
        output = self.directory / "output.csv"
        given = [*arguments, output, "--force", "--timezone", "UTC", "--db", self.database]
        program = [sys.executable, "-m", "cdrd", *map(str, given)]
        subprocess.run(program, check=True, stderr=subprocess.DEVNULL)


def _rows(reader: sqlite3.Connection, query: str) -> list[object]:
    return reader.execute(query).fetchall()


def timed(work: Callable[[], object], times: int = TIMES) -> float:
    """Do it so many times; the median in milliseconds."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


def section(
    load: Load, sizes: Sequence[int], rounds: int, loads: Path, tell: Callable[[str], None]
) -> tuple[Table, dict[Goal, float]]:
    """Fill a file of each size and measure all on each; the sizes rise."""
    grown = [Grown(loads, 0)]
    for rows in sizes:
        tell(f"filling a file with {rows:,} rows")
        grown.append(Grown(loads, rows))
    try:
        return _measured(grown, load, rounds, loads, tell)
    finally:
        for each in grown:
            shutil.rmtree(each.directory)


def _measured(
    grown: Sequence[Grown], load: Load, rounds: int, loads: Path, tell: Callable[[str], None]
) -> tuple[Table, dict[Goal, float]]:
    adding = [
        Contender(f"into {each.rows:,} rows", partial(each.run, load, loads)) for each in grown
    ]
    take_turns(adding, rounds, tell)
    if failures := [each.failure for each in adding if each.failure]:
        raise Failed(failures[0])
    cells: dict[str, list[str]] = {"MiB": [figure(each.mib) for each in grown]}
    cells["rows a second"] = [figure(each.median().rate) for each in adding]
    ratios = [each.ratio(adding[0]).rate for each in adding]
    cells["against the empty file"] = [figure(ratio, 2) for ratio in ratios]
    for number, each in enumerate(grown):
        tell(f"latency and looks at {each.rows:,} rows")
        for name, milliseconds in each.figures(whole=each is grown[-1]):
            empty = [""] * len(grown)
            cells.setdefault(name, empty)[number] = _shown(milliseconds)
    shown = Table("Growth", ("", *(f"{each.rows:,} rows" for each in grown)))
    shown.rows = [(name, *row) for name, row in cells.items()]
    return shown, {goals.GROWN: ratios[-1]}


def _shown(milliseconds: float) -> str:
    if milliseconds < 10_000:
        return f"{milliseconds:,.{2 if milliseconds < 100 else 0}f} ms"
    return f"{milliseconds / 1000:,.0f} s"
