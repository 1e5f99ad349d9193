"""One load into one server: rows a second, what that costs the server, and how often it syncs."""

import contextlib
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.bench import sender
from tests.bench.load import Load, render
from tests.bench.server import Server

Start = Callable[[Path], Server]
"""Starts a server in an empty directory."""

STRACE = ("strace", "-f", "-e", "trace=fsync,fdatasync", "-o")


class Run(NamedTuple):
    """One run's figures; `rate` is rows a second, from the first visible to the last."""

    rate: float
    cpu_seconds_a_million: float
    peak_mib: float


def run(start: Start, load: Load, loads: Path) -> Run:
    """Send flat out to a fresh server until every row is visible, and hold it to the number sent.

    `loads` is where rendered loads are kept. Raises Failed.
    """
    with tempfile.TemporaryDirectory(prefix="cdrd-bench-") as name:
        return run_in(Path(name), start, load, loads)


def run_in(directory: Path, start: Start, load: Load, loads: Path) -> Run:
    """Do the same in a directory that may hold a database with rows. Raises Failed."""
    file = render(load, loads)
    with start(directory) as server:
        cpu = server.cpu_seconds()
        rate = _rate(server, load, file)
        cpu = server.cpu_seconds_at_rest() - cpu
        measured = Run(rate, cpu / load.count * 1e6, server.peak_mib())
        server.check(load.count)
    return measured


def _rate(server: Server, load: Load, file: Path) -> float:
    with contextlib.closing(server.reader()) as reader:
        there = server.rows(reader)
        with sender.sending(file, server.port, load.connections):
            early, began = server.wait_for_rows(reader, there + 1)
            rows, ended = server.wait_for_rows(reader, there + load.count)
    return (rows - early) / (ended - began) if rows > early else float("inf")


def syncs(start: Start, load: Load, loads: Path) -> float | None:
    """Count the calls that bring data to the disk, for 1,000 rows; None without strace."""
    if not shutil.which("strace"):
        return None
    file = render(load, loads)
    with tempfile.TemporaryDirectory(prefix="cdrd-bench-") as name, start(Path(name)) as server:
        traced = Path(name, "trace")
        with subprocess.Popen([*STRACE, traced, *_each(server)], stderr=subprocess.PIPE) as strace:
            assert strace.stderr is not None
            for _ in server.processes():
                strace.stderr.readline()  # it says that it has attached
            _rate(server, load, file)
            strace.send_signal(signal.SIGINT)
        return count_syncs(traced) / load.count * 1000


def _each(server: Server) -> list[str]:
    return [option for process in server.processes() for option in ("-p", str(process))]


def count_syncs(traced: Path) -> int:
    """Count the calls in what strace has written."""
    return len(re.findall(r"\bf(?:data)?sync\(", traced.read_text()))
