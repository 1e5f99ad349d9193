"""Measures the daemon as a whole process and prints one table: ``make bench``.

Reports a second to durable (``full``) and logged rows, the daemon's CPU seconds for a million,
its peak memory, and how long a lone report takes until a reader sees its row. The sender runs on
the same machine and is not counted.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cdrd.database import open_reader
from cdrd.simulate.reports import new_cdr

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
START_SECONDS = 20.0
DRAIN_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Run:
    """One run's figures."""

    rate: float
    cpu_seconds_a_million: float
    peak_mib: float


class Daemon:
    """A real ``cdrd serve`` on a throw-away database, its log in a file."""

    def __init__(self, directory: Path) -> None:
        self.database = directory / "cdr.sqlite3"
        self.log = directory / "log.jsonl"
        config = directory / "config.toml"
        config.write_text(
            f'[database]\npath = "{self.database}"\n'
            '[tcp]\nlisten = ["127.0.0.1:0"]\n'
            '[[pbx]]\nname = "bench"\npeers = ["127.0.0.1"]\n'
        )
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "cdrd", "serve", "-c", str(config)]
            self.process = subprocess.Popen(command, stdout=log)
        self.port = self._port()

    def _port(self) -> int:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            found = re.search(
                r'"listener_opened","address":"127.0.0.1:(\d+)"', self.log.read_text()
            )
            if found and '"event":"ready"' in self.log.read_text():
                return int(found[1])
            time.sleep(0.02)
        raise SystemExit("the daemon did not start")

    def _processes(self) -> list[Path]:
        """Return the daemon and its process that stores."""
        own = Path(f"/proc/{self.process.pid}")
        children = (own / "task" / own.name / "children").read_text().split()
        return [own, *(Path(f"/proc/{child}") for child in children)]

    def cpu_seconds(self) -> float:
        """Return the CPU seconds used so far, the kernel's work for the processes included."""
        stats = [(path / "stat").read_text().rpartition(")")[2] for path in self._processes()]
        ticks = [int(fields[11]) + int(fields[12]) for fields in map(str.split, stats)]
        return sum(ticks) / CLOCK_TICKS

    def peak_mib(self) -> float:
        """Return the peak resident memory of the processes, what they share counted twice."""
        statuses = [(path / "status").read_text() for path in self._processes()]
        peaks = [re.search(r"VmHWM:\s+(\d+) kB", status) for status in statuses]
        return sum(int(peak[1]) for peak in peaks if peak) / 1024

    def stop(self) -> dict[str, int]:
        """End the daemon; return the last line of its log."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        stopped: dict[str, int] = json.loads(self.log.read_bytes().splitlines()[-1])
        return stopped


@contextlib.contextmanager
def running() -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="cdrd-bench-") as directory:
        daemon = Daemon(Path(directory))
        try:
            yield daemon
        finally:
            if daemon.process.poll() is None:
                daemon.process.kill()
                daemon.process.wait()


def throughput(connections: int, count: int, options: list[str]) -> Run:
    """Send flat out and wait until every row is committed and its line written."""
    with running() as daemon:
        reader = open_reader(daemon.database)
        cpu = daemon.cpu_seconds()
        target = f"127.0.0.1:{daemon.port}"
        command = [sys.executable, "-m", "cdrd", "simulate", "load", target]
        command += ["--count", str(count), "--connections", str(connections), *options]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as load:
            first = _wait_for_rows(reader, 1)
            last = _wait_for_rows(reader, count)
            load.wait()
        cpu = daemon.cpu_seconds() - cpu
        peak = daemon.peak_mib()
        reader.close()
        stopped = daemon.stop()
        lines = daemon.log.read_bytes().count(b'"event":"call_released"')
        assert stopped["stored"] == lines == count, (stopped, lines)
        return Run(count / (last - first), cpu / count * 1e6, peak)


def _wait_for_rows(reader: sqlite3.Connection, rows: int) -> float:
    deadline = time.monotonic() + DRAIN_SECONDS
    while time.monotonic() < deadline:
        (found,) = reader.execute("SELECT ifnull(max(seq), 0) FROM call").fetchone()
        if found >= rows:
            return time.perf_counter()
        time.sleep(0.005)
    raise SystemExit("the rows did not come")


def latency(rate: int, seconds: float) -> tuple[float, float]:
    """Return the median and 99th percentile, in ms, from a report's send to its visible row."""
    with running() as daemon:
        reader = open_reader(daemon.database)
        took = []
        with socket.create_connection(("127.0.0.1", daemon.port)) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            began = time.perf_counter()
            for number in range(int(rate * seconds)):
                time.sleep(max(0.0, began + number / rate - time.perf_counter()))
                report = new_cdr(number, started=1_700_000_000 + number) + b"\n"
                sent = time.perf_counter()
                sock.sendall(report)
                while reader.execute("SELECT max(seq) FROM call").fetchone()[0] != number + 1:
                    time.sleep(0.0001)
                took.append((time.perf_counter() - sent) * 1000)
        reader.close()
        daemon.stop()
    return statistics.median(took), statistics.quantiles(took, n=100)[98]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300_000, help="reports in a run")
    parser.add_argument("--runs", type=int, default=3, help="runs of each; medians are printed")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 200])
    parser.add_argument("--no-latency", action="store_true")
    arguments, options = parser.parse_known_args()
    table = Table(
        "connections", "reports/s", "CPU s a million", "peak MiB", title="durable, logged"
    )
    runs: dict[int, list[Run]] = {number: [] for number in arguments.connections}
    for _ in range(arguments.runs):
        for number, measured in runs.items():
            measured.append(throughput(number, arguments.count, options))
    for number, measured in runs.items():
        table.add_row(
            str(number),
            f"{statistics.median(run.rate for run in measured):,.0f}",
            f"{statistics.median(run.cpu_seconds_a_million for run in measured):.1f}",
            f"{statistics.median(run.peak_mib for run in measured):.0f}",
        )
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    if not arguments.no_latency:
        median, high = latency(100, 10)
        console.print(
            f"send to visible row at 100 a second: median {median:.2f} ms,"
            f" 99th percentile {high:.2f} ms"
        )


if __name__ == "__main__":
    main()
