"""What each step of a report costs by itself, and of another event: where the time goes.

Each is done for the same block of reports, in the processor's cache as in the daemon, in this
process alone; the least of many rounds is told. What is left between their sum and the CPU of a
whole run is the kernel's, the loop's, and what two busy processors of one core take from each
other.
"""

import contextlib
import marshal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

import orjson

from cdrd.batch import Batch
from cdrd.block import StoredRows, pack, read_rows
from cdrd.database import connect
from cdrd.event import skim
from cdrd.frame import Framer, Lines
from cdrd.line import spell_tails
from cdrd.record import Row, make_rows
from cdrd.report import ReleasedCall, read_reports
from cdrd.row import commit
from cdrd.simulate.reports import ReportForms
from cdrd.sizes import KIB
from cdrd.stream import Totals
from tests.bench.load import DIALECT, STARTED
from tests.bench.table import Table, figure

BLOCK: Final = 100
"""Reports, about as many as are taken at once."""

BATCH: Final = 1000
BATCHES: Final = 20

HEAD: Final = (
    '{"timestamp":"2017-09-14T01:30:44.518112Z","level":"info","event":"call_released","seq":'
)


def section(rounds: int) -> Table:
    """Measure each step in so many rounds."""
    calls, events = costs_of_calls(rounds), costs_of_events(rounds)
    shown = Table("Where the time goes", ("step", "us a report", "us another event"))
    for step in {**calls, **events}:
        shown.rows.append((step, figure(calls.get(step), 2), figure(events.get(step), 2)))
    shown.remarks.append(
        f"In blocks of {BLOCK} and batches of {BATCH:,}; the least of {rounds:,} rounds in one"
        " process. The loop takes the steps up to the line, the process that stores makes the rows,"
        " at the same time."
    )
    return shown


def costs_of_calls(rounds: int) -> dict[str, float]:
    """Tell what each step takes for a released call, in us."""
    forms = ReportForms(DIALECT, "newline", started=STARTED)
    stream = forms.stamp(range(BLOCK))
    lines = _cut(stream)
    calls = [one for one in read_reports(lines.reports) if isinstance(one, ReleasedCall)]
    rows = _rows(calls, lines.texts)
    block = pack(rows, plain=True)
    stored = StoredRows(range(1, BLOCK + 1), [block])
    costs = {
        "cut and parsed": least(lambda: _cut(stream), rounds),
        "of it `orjson.loads`": least(lambda: list(map(orjson.loads, lines.texts)), rounds),
        "read": least(lambda: read_reports(lines.reports), rounds),
        "made a record": least(lambda: _rows(calls, lines.texts), rounds),
        "the tail of its line": least(lambda: spell_tails(rows, plain=True), rounds),
        "made bytes": least(lambda: marshal.dumps(rows), rounds),
        "its line": least(lambda: stored.lines(HEAD), rounds),
    }
    costs = {step: cost / BLOCK for step, cost in costs.items()}
    return costs | {
        "made a row, synced": cost_of_commits(forms, max(1, rounds // 200)),
        "of it read from its bytes": least(lambda: read_rows(block.columns), rounds) / BLOCK,
    }


def costs_of_events(rounds: int) -> dict[str, float]:
    """Tell what each step takes for an event that is no released call, among such, in us."""
    forms = ReportForms(DIALECT, "newline", started=STARTED, events=1)
    lines = forms.stamp(range(BLOCK)).splitlines(keepends=True)
    stream = b"".join(line for line in lines if b"NewCdr" not in line)
    texts = stream.decode().splitlines()
    events = _cut(stream, skims=True).events
    assert sum(events.values()) == len(texts)
    totals = Totals()
    costs = {
        "cut and skimmed": least(lambda: _cut(stream, skims=True), rounds),
        "of it named": least(lambda: skim(texts), rounds),
        "counted": least(lambda: totals.pass_over(events), rounds),
        "`orjson.loads` alone": least(lambda: list(map(orjson.loads, texts)), rounds),
    }
    return {step: cost / len(texts) for step, cost in costs.items()}


def least(step: Callable[[], object], rounds: int) -> float:
    """Tell the us of CPU that a step takes, the least of so many rounds."""

    def once() -> float:
        began = time.thread_time_ns()
        step()
        return (time.thread_time_ns() - began) / 1000

    return min(once() for _ in range(rounds))


def cost_of_commits(forms: ReportForms, rounds: int) -> float:
    """Tell the us of CPU that a record's commit takes, into a new database in each round."""
    batches = [Batch() for _ in range(BATCHES)]
    for start in range(0, BATCH * BATCHES, BLOCK):
        lines = _cut(forms.stamp(range(start, start + BLOCK)))
        calls = [one for one in read_reports(lines.reports) if isinstance(one, ReleasedCall)]
        batches[start // BATCH].add_block(pack(_rows(calls, lines.texts), plain=True))

    def once() -> float:
        with tempfile.TemporaryDirectory(prefix="cdrd-bench-") as directory:
            opened = connect(Path(directory, "cdr.sqlite3"), "full")
            with contextlib.closing(opened) as connection:
                return least(lambda: [commit(connection, batch, 0) for batch in batches], 1)

    return min(once() for _ in range(rounds)) / (BATCH * BATCHES)


def _cut(stream: bytes, *, skims: bool = False) -> Lines:
    """Cut a stream of whole lines."""
    framer = Framer(64 * KIB, skims=skims)
    framer.receive(stream)
    (lines,) = iter(framer.next_lines, None)
    return lines


def _rows(calls: list[ReleasedCall], texts: list[str]) -> list[Row]:
    return make_rows(
        calls,
        texts,
        pbx="hq",
        zone=ZoneInfo("UTC"),
        source="tcp",
        received_at="2017-09-14T01:30:44.518Z",
    )
