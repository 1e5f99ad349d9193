"""Posts a second that were answered 200, so durable and logged, each on a connection of its own."""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.bench.peer_cdrd import Cdrd
from tests.bench.table import Table, figure

POSTERS = (1, 16, 200)


class Posted(NamedTuple):
    """One run's figures; the CPU in microseconds a post."""

    rate: float
    daemon_cpu: float
    poster_cpu: float


def measure(posters: int, count: int) -> Posted:
    """Post flat out, and hold what was answered to what is stored and logged. Raises Failed."""
    with tempfile.TemporaryDirectory(prefix="cdrd-bench-") as name, Cdrd(Path(name), "http") as to:
        daemon, poster = to.cpu_seconds(), _children_cpu_seconds()
        rate = _post(to, posters, count)
        daemon, poster = to.cpu_seconds() - daemon, _children_cpu_seconds() - poster
        to.check(count)
    return Posted(rate, daemon / count * 1e6, poster / count * 1e6)


def _post(to: Cdrd, posters: int, count: int) -> float:
    command = [sys.executable, "-m", "cdrd", "simulate", "load", f"127.0.0.1:{to.port}", "--http"]
    command += ["--count", str(count), "--connections", str(posters)]
    posted = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return float(json.loads(posted.stdout)["rate"])


def _children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def section(count: int, rounds: int, tell: Callable[[str], None]) -> Table:
    """Measure by turns with few posters and many."""
    runs: dict[int, list[Posted]] = {number: [] for number in POSTERS}
    for _ in range(rounds):
        for number, measured in runs.items():
            tell(f"posts of {number} at a time")
            measured.append(measure(number, min(count, 1000 * number)))
    shown = Table("Posts", ("posters", "posts a second", "daemon us a post", "poster us a post"))
    for number, measured in runs.items():
        medians = map(statistics.median, zip(*measured, strict=True))
        shown.rows.append((str(number), *map(figure, medians)))
    return shown
