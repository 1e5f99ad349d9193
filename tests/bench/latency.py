"""How long a lone report takes until a reader sees its row, at rest and among others."""

import contextlib
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from cdrd.simulate.reports import new_cdr
from tests.bench import goals, peer_node_red, peer_rsyslog, peer_syslog_ng
from tests.bench.contender import FAILURES
from tests.bench.goals import Goal
from tests.bench.load import DIALECT
from tests.bench.peer_cdrd import Cdrd
from tests.bench.run import Start
from tests.bench.server import Failed, Server
from tests.bench.table import Table

PROBES_A_SECOND = 100
BACKGROUND = 10_000 - PROBES_A_SECOND
POLL_SECONDS = 0.0001
LOST_SECONDS = 10.0
WARM_UP = 50
PROBED = 2_000_000_000
"""The probes' calls begin after all others."""

CDRD = "cdrd, FULL"
PEERS: tuple[tuple[str, ModuleType, str], ...] = (
    ("syslog-ng, FULL", peer_syslog_ng, "FULL"),
    ("syslog-ng, NORMAL", peer_syslog_ng, "NORMAL"),
    ("rsyslog, omprog, FULL", peer_rsyslog, "FULL"),
    ("Node-RED, in batches, FULL", peer_node_red, "FULL"),
)


class Latency(NamedTuple):
    """Milliseconds from the send of a report to its visible row."""

    median: float
    high: float
    """The 99th percentile."""


def measure(start: Start, seconds: float, background: int) -> Latency:
    """Start a fresh server and probe it. Raises Failed."""
    with tempfile.TemporaryDirectory(prefix="cdrd-bench-") as name, start(Path(name)) as server:
        return probe(server, seconds, background)


def probe(server: Server, seconds: float, background: int) -> Latency:
    """Send 100 lone reports a second, beside so many others. Raises Failed."""
    with (
        _beside(server, background),
        contextlib.closing(server.reader()) as reader,
        socket.create_connection(("127.0.0.1", server.port)) as sock,
    ):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        took = list(_probes(server, reader, sock, int(seconds * PROBES_A_SECOND)))[WARM_UP:]
    return Latency(statistics.median(took), statistics.quantiles(took, n=100)[98])


@contextlib.contextmanager
def _beside(server: Server, rate: int) -> Iterator[None]:
    """Have others send meanwhile."""
    if not rate:
        yield
        return
    command = [sys.executable, "-m", "cdrd", "simulate", "load", f"127.0.0.1:{server.port}"]
    command += ["--rate", str(rate), "--count", str(rate * 600)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as load:
        try:
            with contextlib.closing(server.reader()) as reader:
                server.wait_for_rows(reader, server.rows(reader) + rate)
            yield
        finally:
            load.kill()


def _probes(
    server: Server, reader: sqlite3.Connection, sock: socket.socket, number: int
) -> Iterator[float]:
    began = time.perf_counter()
    for probe in range(number):
        time.sleep(max(0.0, began + probe / PROBES_A_SECOND - time.perf_counter()))
        started = PROBED + probe
        report = new_cdr(probe, DIALECT, started=started) + b"\n"
        sent = time.perf_counter()
        sock.sendall(report)
        while not server.has_call(reader, started, f"{started}.{probe}"):
            if time.perf_counter() > sent + LOST_SECONDS:
                raise Failed("a report was not stored")
            time.sleep(POLL_SECONDS)
        yield (time.perf_counter() - sent) * 1000


def section(seconds: float, tell: Callable[[str], None]) -> tuple[Table, dict[Goal, float]]:
    """Measure all, at both rates, so many seconds each."""
    columns = ("who", "at 100 a second", "at 10,000 a second")
    shown = Table("Sent to visible, ms: median / 99th percentile", columns)
    measured: dict[str, list[Latency | None]] = {}
    for name, start, missing in _servers():
        if missing:
            shown.remarks.append(f"Left out: {name} ({missing}).")
            continue
        tell(f"latency: {name}")
        measured[name] = [_attempt(start, seconds, rate, tell) for rate in (0, BACKGROUND)]
        shown.rows.append((name, *map(_shown, measured[name])))
    return shown, _reached(*measured[CDRD])


def _servers() -> Iterator[tuple[str, Start, str]]:
    yield CDRD, Cdrd, ""
    for name, peer, synchronous in PEERS:
        yield name, partial(peer.start, synchronous=synchronous), peer.missing()


def _attempt(
    start: Start, seconds: float, background: int, tell: Callable[[str], None]
) -> Latency | None:
    try:
        return measure(start, seconds, background)
    except FAILURES as failure:
        tell(f"beside {background:,} others a second it failed: {failure}")
        return None


def _shown(latency: Latency | None) -> str:
    return f"{latency.median:.2f} / {latency.high:.2f}" if latency else "failed"


def _reached(alone: Latency | None, beside: Latency | None) -> dict[Goal, float]:
    found: dict[Goal, float] = {}
    if alone:
        found |= {goals.MEDIAN_AT_100: alone.median, goals.HIGH_AT_100: alone.high}
    if beside:
        found |= {goals.MEDIAN_AT_10000: beside.median, goals.HIGH_AT_10000: beside.high}
    return found
