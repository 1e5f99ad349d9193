"""Measures posted reports as a whole process, in one table: ``tests/bench/bench_http.py``.

Posts a second that were answered 200, so durable (``full``) and logged, each on a connection of its
own, and the CPU that the daemon and the poster take for one. The poster runs on the same machine.
"""

import argparse
import json
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
START_SECONDS = 20.0
CONFIG = """
database.path = "{directory}/cdr.sqlite3"
tcp.listen = []
http.listen = ["127.0.0.1:0"]
[[pbx]]
name = "bench"
peers = ["127.0.0.1"]
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One run's figures; the CPU in microseconds a post."""

    rate: float
    daemon_cpu: float
    poster_cpu: float


def measure(posters: int, count: int) -> Run:
    """Post flat out, and hold what was answered to what is stored and logged."""
    with tempfile.TemporaryDirectory(prefix="cdrd-bench-") as name:
        directory = Path(name)
        config, log = directory / "config.toml", directory / "log.jsonl"
        config.write_text(CONFIG.format(directory=directory))
        with log.open("wb") as written:
            command = [sys.executable, "-m", "cdrd", "serve", "-c", str(config)]
            daemon = subprocess.Popen(command, stdout=written)
        try:
            run = post(daemon, port(log), posters, count)
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(60)
        finally:
            daemon.kill()
        stopped = json.loads(log.read_bytes().splitlines()[-1])
        lines = log.read_bytes().count(b'"event":"call_released"')
        assert stopped["stored"] == lines == count, (stopped, lines)
        return run


def port(log: Path) -> int:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        text = log.read_text()
        found = re.search(r'"listener_opened","address":"127.0.0.1:(\d+)"', text)
        if found and '"event":"ready"' in text:
            return int(found[1])
        time.sleep(0.02)
    raise SystemExit("the daemon did not start")


def post(daemon: subprocess.Popen[bytes], to: int, posters: int, count: int) -> Run:
    target = f"127.0.0.1:{to}"
    command = [sys.executable, "-m", "cdrd", "simulate", "load", target, "--http"]
    command += ["--count", str(count), "--connections", str(posters)]
    daemon_cpu, poster_cpu = cpu_seconds(daemon.pid), children_cpu_seconds()
    posted = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    daemon_cpu = cpu_seconds(daemon.pid) - daemon_cpu
    poster_cpu = children_cpu_seconds() - poster_cpu
    rate = json.loads(posted.stdout)["rate"]
    return Run(rate, daemon_cpu / count * 1e6, poster_cpu / count * 1e6)


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=30_000, help="posts in a run")
    parser.add_argument("--runs", type=int, default=3, help="runs of each; medians are printed")
    parser.add_argument("--posters", type=int, nargs="+", default=[1, 16, 200])
    arguments = parser.parse_args()
    columns = ("posters", "posts/s", "daemon us a post", "poster us a post")
    table = Table(*columns, title="posted, answered 200")
    runs: dict[int, list[Run]] = {number: [] for number in arguments.posters}
    for _ in range(arguments.runs):
        for number, measured in runs.items():
            measured.append(measure(number, min(arguments.count, 1000 * number)))
    for number, measured in runs.items():
        table.add_row(
            str(number),
            f"{statistics.median(run.rate for run in measured):,.0f}",
            f"{statistics.median(run.daemon_cpu for run in measured):.0f}",
            f"{statistics.median(run.poster_cpu for run in measured):.0f}",
        )
    Console(width=None if sys.stdout.isatty() else 100).print(table)


if __name__ == "__main__":
    main()
