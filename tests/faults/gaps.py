"""What came while nobody listened: fetched from the PBX's history, or posted again by it."""

import contextlib
import random
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cdrd.simulate.posts import send_posts
from tests import quick_serve
from tests.faults.oracle import STARTED
from tests.faults.outcome import Outcome, compare
from tests.faults.wire import Wire
from tests.running import DEADLINE_SECONDS, HQ, RunningDaemon, count
from tests.simulated import SimulatedPbx

RATE: Final = 100
"""Calls a second, in the gap too."""

BACK_SECONDS: Final = 150.0
"""The daemon comes back within a minute, and fetches again when the last fetch is a minute old."""

SHORT_SECONDS: Final = 10
"""For a gap that is no longer, the daemon's own paces would be what is waited for."""

POSTS_A_SECOND: Final = 200

TABLES: Final = """
[[pbx]]
name = "hq"
[pbx.events]
kind = "tcp"
address = "{events}"
username = "api"
password_file = "password"
[pbx.history]
url = "http://{history}"
username = "api"
password_file = "password"
"""


def cut_line(seconds: int) -> Outcome:
    """Cut the line to a PBX for so long, under traffic before, meanwhile and afterwards."""
    with _playing(seconds) as (pbx, calls, directory):
        began = time.monotonic()
        with Wire(pbx.address) as events, Wire(pbx.url) as history:
            tables = TABLES.format(events=events.address, history=history.address)
            with _daemon(directory, tables, seconds) as daemon:
                _wait_for_traffic(daemon)
                gaps = len(daemon.found("gap_filled"))
                for wire in (events, history):
                    wire.cut()
                daemon.wait_for("pbx_disconnected")
                time.sleep(seconds)  # the gap is what is tried
                for wire in (events, history):
                    wire.mend()
                return _filled(daemon, gaps, calls, began)


def stop_hearing(seconds: int) -> Outcome:
    """Kill the daemon and start it so much later, under traffic all the time."""
    with _playing(seconds) as (pbx, calls, directory):
        began = time.monotonic()
        tables = TABLES.format(events=pbx.address, history=pbx.url.removeprefix("http://"))
        with _daemon(directory, tables, seconds) as daemon:
            _wait_for_traffic(daemon)
            daemon.kill()
        time.sleep(seconds)  # the gap is what is tried
        with _daemon(directory, tables, seconds) as daemon:
            return _filled(daemon, 0, calls, began)


def kill_under_posts(kills: int) -> Outcome:
    """Kill the daemon at random moments; what has had no 200 is posted again."""
    moments = random.Random(kills)
    # For longer than a daemon takes to start, and then to its end: the last one gets some, too.
    posts, began = kills * 3 * POSTS_A_SECOND, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cdrd-posts-") as name:
        port = _quiet_port(moments)
        tables = f'http.listen = ["127.0.0.1:{port}"]\n{HQ}'
        poster = threading.Thread(target=_post, args=(port, posts), daemon=True)
        poster.start()
        for _ in range(kills):
            with RunningDaemon(Path(name), tables, listen=()) as daemon:
                daemon.wait_for("call_released", source="http")
                time.sleep(moments.uniform(0, 2))  # the moment of the kill is what is tried
                daemon.kill()
        with RunningDaemon(Path(name), tables, listen=()) as daemon:
            poster.join(DEADLINE_SECONDS + posts / POSTS_A_SECOND)
            assert not poster.is_alive(), "each post has had its 200"
            daemon.stop()
        return compare(daemon.database, range(posts), began)


def _post(port: int, posts: int) -> None:
    send_posts(
        "127.0.0.1",
        port,
        count=posts,
        rate=POSTS_A_SECOND,
        started=STARTED,
        tries=1000,  # a second apart: a report may come while the daemon is dead, again and again
    )


def _quiet_port(choose: random.Random) -> int:
    """A port that the daemon can have again at each start: no connection is given one below."""
    (lowest, _) = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    while True:
        port = choose.randrange(int(lowest) // 2, int(lowest))
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextlib.contextmanager
def _playing(seconds: int) -> Iterator[tuple[SimulatedPbx, int, Path]]:
    """A PBX that plays on for long enough, its number of calls, and a directory for the daemon."""
    calls = RATE * (2 * seconds + (3 if seconds <= SHORT_SECONDS else 15))
    play = ("--count", f"{calls}", "--rate", f"{RATE}", "--events", "1")
    with (
        tempfile.TemporaryDirectory(prefix="cdrd-gap-") as directory,
        SimulatedPbx(*play) as pbx,
    ):
        Path(directory, "password").write_text("api\n")
        yield pbx, calls, Path(directory)


def _daemon(directory: Path, tables: str, seconds: int) -> RunningDaemon:
    quickly = [sys.executable, quick_serve.__file__] if seconds <= SHORT_SECONDS else []
    return RunningDaemon(directory, tables, listen=(), inside=quickly)


def _wait_for_traffic(daemon: RunningDaemon) -> None:
    """Wait until the gap of the start was filled, and calls have come since."""
    daemon.wait_for("gap_filled", within=BACK_SECONDS)
    daemon.wait_for("call_released", times=len(daemon.found("call_released")) + RATE)


def _filled(daemon: RunningDaemon, gaps: int, calls: int, began: float) -> Outcome:
    """Wait until all is stored that was played, and hold the database to it.

    ``gaps``: how many had been filled before.
    """
    daemon.wait_for("gap_filled", times=gaps + 1, within=BACK_SECONDS)
    while True:
        told = len(daemon.found("call_released"))
        lacking = calls - count(daemon.database)
        if lacking <= 0:
            break
        times = told + min(lacking, 5 * RATE)
        daemon.wait_for("call_released", times=times, within=BACK_SECONDS)
    missing = sum(line["missing"] for line in daemon.found("gap_filled")[gaps:])
    daemon.stop()
    outcome = compare(daemon.database, range(calls), began)
    broken = () if missing else ("gap_filled tells what was missing",)
    return outcome._replace(remark=f"{missing:,} of them fetched", broken=broken)
