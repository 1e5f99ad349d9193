"""What cdrd costs while nothing is said: CPU, memory, and the time until it is ready."""

import contextlib
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench import goals
from tests.bench.goals import Goal
from tests.bench.peer_cdrd import Cdrd
from tests.bench.table import Table, figure

CONNECTIONS = 1000
STARTS = 10
SETTLE_SECONDS = 2.0


@contextlib.contextmanager
def running() -> Iterator[Cdrd]:
    """Run a daemon on an empty database."""
    with tempfile.TemporaryDirectory(prefix="cdrd-bench-") as name, Cdrd(Path(name)) as server:
        yield server


@contextlib.contextmanager
def connected(server: Cdrd, connections: int) -> Iterator[None]:
    """Hold so many connections that say nothing; the daemon has taken them all."""
    with contextlib.ExitStack() as held:
        for _ in range(connections):
            held.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        server.wait_for_lines("peer_connected", connections)
        yield


def cpu_at_rest(connections: int, seconds: float) -> tuple[float, float]:
    """Tell what part of a core so many silent connections take, in percent, and the MiB."""
    with running() as server, connected(server, connections):
        time.sleep(SETTLE_SECONDS)
        used, began = server.cpu_seconds(), time.monotonic()
        time.sleep(seconds)
        percent = 100 * (server.cpu_seconds() - used) / (time.monotonic() - began)
        return percent, server.peak_mib()


def milliseconds_to_ready() -> float:
    """Tell how long it takes from its start until it says that it is ready."""
    with tempfile.TemporaryDirectory(prefix="cdrd-bench-") as name:
        began = time.perf_counter()
        with Cdrd(Path(name)):
            return (time.perf_counter() - began) * 1000


def section(seconds: float, tell: Callable[[str], None]) -> tuple[Table, dict[Goal, float]]:
    """Measure with none and with many connections, so many seconds each."""
    shown = Table("At rest", ("connections", "% of a core", "MiB"))
    found = {}
    for connections in (0, CONNECTIONS):
        tell(f"at rest with {connections} connections")
        found[goals.AT_REST], mib = cpu_at_rest(connections, seconds)
        shown.rows.append((f"{connections:,}", figure(found[goals.AT_REST], 2), figure(mib)))
    ready = [milliseconds_to_ready() for _ in range(STARTS)]
    found[goals.READY] = statistics.median(ready)
    shown.remarks.append(
        f"From its start to ready, empty database: {found[goals.READY]:.0f} ms, median of {STARTS}."
    )
    return shown, found
