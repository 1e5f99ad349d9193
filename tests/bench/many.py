"""Very many at once: ten thousand connections, and a history of 100,000 calls in one answer."""

import contextlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.idle import connected, running
from tests.bench.load import Load
from tests.bench.peer_cdrd import Cdrd
from tests.bench.run import run
from tests.bench.server import Failed, at_rest
from tests.bench.table import Table, figure
from tests.simulated import SimulatedPbx

CONNECTIONS = 10_000
HISTORY = 100_000
SPARE_DESCRIPTORS = 100

HISTORY_OF = """
[pbx.events]
kind = "tcp"
address = "{address}"
username = "api"
password_file = "password"
[pbx.history]
url = "{url}"
username = "api"
password_file = "password"
"""


def section(connections: int, history: int, loads: Path, tell: Callable[[str], None]) -> Table:
    """Measure both."""
    shown = Table("Many at once", ("what", "", "peak MiB"))
    tell(f"{connections:,} connections")
    _allow(connections)
    with running() as server:
        began = time.perf_counter()
        with connected(server, connections):
            rate = connections / (time.perf_counter() - began)
            cells = (f"{figure(rate)} a second taken", figure(server.peak_mib()))
            shown.rows.append((f"{connections:,} silent connections", *cells))
    flood = run(Cdrd, Load(10 * connections, connections), loads)
    cells = (f"{figure(flood.rate)} rows a second", figure(flood.peak_mib))
    shown.rows.append((f"a flood over {connections:,} connections", *cells))
    tell(f"a history of {history:,} calls")
    seconds, mib = fetched(history)
    cells = (f"{figure(history / seconds)} rows a second", figure(mib))
    shown.rows.append((f"a history of {history:,} calls, fetched at once", *cells))
    shown.remarks.append("The time of a history is the PBX's, which writes it, and cdrd's.")
    return shown


def _allow(connections: int) -> None:
    """Have so many descriptors, here and in what is started. Raises Failed."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < connections + SPARE_DESCRIPTORS:
        raise Failed(f"{connections:,} connections need as many descriptors; {most:,} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def fetched(calls: int) -> tuple[float, float]:
    """Fetch a history that was never pushed, through the daemon; seconds, and the daemon's MiB."""
    played = ("--rate", "0", "--events", "0", "--count", str(calls), "--unpushed-every", "1")
    with tempfile.TemporaryDirectory(prefix="cdrd-bench-") as name:
        directory = Path(name)
        (directory / "password").write_text("api\n")
        with (
            SimulatedPbx(*played) as pbx,
            Cdrd(directory, more=HISTORY_OF.format(address=pbx.address, url=pbx.url)) as server,
        ):
            server.wait_for_lines("pbx_connected", 1)
            at_rest(pbx.process.pid)
            at_rest(server.process.pid)
            began = time.perf_counter()
            command = [sys.executable, "-m", "cdrd", "fetch", "-c", str(directory / "config.toml")]
            days = ["--from", _day(-1), "--to", _day(2)]
            subprocess.run([*command, *days], check=True, stderr=subprocess.DEVNULL)
            seconds = time.perf_counter() - began
            with contextlib.closing(server.reader()) as reader:
                if (rows := server.rows(reader)) != calls:
                    raise Failed(f"{rows:,} rows came of {calls:,} calls")
            server.wait_for_lines("call_released", calls)
            peak = server.peak_mib()
    return seconds, peak


def _day(days: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86400 * days))
