"""A receiver under measurement: its processes, what they use, and the rows it has made visible.

Each run has its own: a fresh database in a directory of its own and a free port. All are measured
alike, from outside: by ``/proc`` and by a reader of the database.
"""

import contextlib
import os
import random
import re
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
START_SECONDS = 30.0
STOP_SECONDS = 60.0
STALL_SECONDS = 20.0
POLL_SECONDS = 0.005
REST_SECONDS = 0.2


class Failed(Exception):
    """A server that did not start, or did not do what it was measured at."""


class Server:
    """A process with its children, the port that it listens on, and its database."""

    def __init__(
        self,
        directory: Path,
        command: Sequence[str | Path],
        *,
        database: Path,
        table: str = "cdr",
        port: int,
        environment: Mapping[str, str] | None = None,
        stdout: Path | None = None,
    ) -> None:
        self.database, self.table, self.port = database, table, port
        self.output = directory / "output"
        with contextlib.ExitStack() as files:
            output = files.enter_context(self.output.open("wb"))
            out = files.enter_context(stdout.open("wb")) if stdout else output
            self.process = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=output,
                cwd=directory,
                env={**os.environ, **(environment or {})},
            )

    def __enter__(self) -> Self:
        try:
            self.wait_until_ready()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def wait_until_ready(self) -> None:
        """Wait until a connection is taken."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.05)
        raise Failed(f"it did not start: {self.output.read_text(errors='replace')[-500:]}")

    def end(self) -> None:
        """Let it end in order; where it does not, kill it and its children."""
        if self.process.poll() is not None:
            return
        family = self.processes()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            for process in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            self.process.wait(STOP_SECONDS)

    def check(self, count: int) -> None:
        """Hold what it says of itself to so many rows, where it says something."""

    def processes(self) -> list[int]:
        """It and all below it."""
        return family(self.process.pid)

    def cpu_seconds(self) -> float:
        """Tell the CPU seconds used so far, the kernel's work for the processes included."""
        return cpu_seconds(self.process.pid)

    def cpu_seconds_at_rest(self) -> float:
        """Wait until it is done with all it was sent, its log too; tell the CPU seconds by then."""
        return at_rest(self.process.pid)

    def peak_mib(self) -> float:
        """Tell the peak resident memory of the processes, what they share counted twice."""
        statuses = (Path(f"/proc/{process}/status").read_text() for process in self.processes())
        peaks = (re.search(r"VmHWM:\s+(\d+) kB", status) for status in statuses)
        return sum(int(peak[1]) for peak in peaks if peak) / 1024

    def reader(self) -> sqlite3.Connection:
        """Open its database as any other program does."""
        return sqlite3.connect(f"{self.database.as_uri()}?mode=ro", uri=True)

    def rows(self, reader: sqlite3.Connection) -> int:
        """Tell how many rows are visible."""
        query = f"SELECT ifnull(max(rowid), 0) FROM {self.table}"
        return int(reader.execute(query).fetchone()[0])

    def has_call(self, reader: sqlite3.Connection, started: int, call_id: str) -> bool:  # noqa: ARG002 - not each has an index by it
        """Tell whether the row of a call is visible; it began at that Unix second."""
        query = "SELECT 1 FROM cdr WHERE pbx = 'bench' AND callid = ?"
        return reader.execute(query, (call_id,)).fetchone() is not None

    def wait_for_rows(self, reader: sqlite3.Connection, rows: int) -> tuple[int, float]:
        """Wait for so many; tell how many there are and when that was seen."""
        found, moved = 0, time.monotonic()
        while time.monotonic() < moved + STALL_SECONDS and self.process.poll() is None:
            seen = self.rows(reader)
            if seen >= rows:
                return seen, time.perf_counter()
            if seen > found:
                found, moved = seen, time.monotonic()
            time.sleep(POLL_SECONDS)
        raise Failed(f"it stored {found:,} of {rows:,} rows: {self.output.read_text()[-500:]}")


def family(process: int) -> list[int]:
    """Name a process and all below it."""
    found = [process]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # one that has just ended
                found += map(int, task.read_text().split())
    return found


def cpu_seconds(process: int) -> float:
    """Tell the CPU seconds that a process and all below it have used so far."""
    stats = (Path(f"/proc/{each}/stat").read_text() for each in family(process))
    fields = (stat.rpartition(")")[2].split() for stat in stats)
    return sum(int(used[11]) + int(used[12]) for used in fields) / CLOCK_TICKS


def at_rest(process: int) -> float:
    """Wait until a process does next to nothing; tell the CPU seconds that it has used by then."""
    before = cpu_seconds(process)
    while True:
        time.sleep(REST_SECONDS)
        used = cpu_seconds(process)
        if used - before <= 0.01 * REST_SECONDS + 1 / CLOCK_TICKS:
            return used
        before = used


def free_port() -> int:
    """Name a port that was free a moment ago, for servers that cannot be asked which they took.

    It is none that the kernel gives to whoever asks for any: somebody could be given it by then.
    """
    given = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()
    while True:
        port = random.randrange(1024, max(int(given[0]), 32768))
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
