"""SIGKILL at named points of a commit, of a checkpoint, of a drain: strace sends it."""

import itertools
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cdrd.sizes import KIB
from cdrd.spool import Spool
from tests import example
from tests.faults.injection import injected
from tests.faults.kills import Kills, kill_under_load
from tests.faults.oracle import SendingPbx
from tests.faults.outcome import Outcome, compare, end_and_compare
from tests.running import DEADLINE_SECONDS, HQ, RunningDaemon

RATE = 2000
SPOOLED = 1000


class Point(NamedTuple):
    """A call of the system that the process does not live to make."""

    name: str
    calls: str
    path: Callable[[RunningDaemon], str]
    most: int = 5  # times that it may be made before, at random


def _wal(daemon: RunningDaemon) -> str:
    return f"{daemon.database}-wal"


def _database(daemon: RunningDaemon) -> str:
    return str(daemon.database)


def _standard_output(daemon: RunningDaemon) -> str:
    return str(Path(f"/proc/{daemon.process.pid}/fd/1").readlink())


def _requests(daemon: RunningDaemon) -> str:
    """The pipe that the process which stores reads: the one that it has of ours."""
    [ours] = _pipes(daemon.process.pid) & _pipes(daemon.storing_process())
    return ours


def _pipes(process: int) -> set[str]:
    links = {str(entry.readlink()) for entry in Path(f"/proc/{process}/fd").iterdir()}
    return {link for link in links if link.startswith("pipe:")}


OF_A_COMMIT = (
    Point("before it is written", "pwrite64", _wal),
    Point("written, not synced", "fdatasync", _wal),
    Point("while the rest of it is handed over", "read", _requests),
)
OF_A_CHECKPOINT = (
    Point("while the WAL is copied", "pwrite64", _database),
    Point("copied, not synced", "fdatasync", _database, most=1),
)
OF_THE_DAEMON = (
    Point("while a commit is handed over", "write,writev", _requests),
    Point("before a line is written", "write", _standard_output),
)


def kill_storing_in_commits(times: int) -> Outcome:
    """Kill the process that stores so often at each point of a commit; the daemon goes on."""
    return _kill_storing(OF_A_COMMIT, times, RATE)


def kill_storing_in_checkpoints(times: int) -> Outcome:
    """Likewise of a checkpoint, which comes once in 32 MiB."""
    return _kill_storing(OF_A_CHECKPOINT, times, RATE / 10, padding=20 * KIB)


def _kill_storing(points: tuple[Point, ...], times: int, rate: float, padding: int = 0) -> Outcome:
    moments = random.Random(times)
    with (
        tempfile.TemporaryDirectory(prefix="cdrd-points-") as directory,
        RunningDaemon(Path(directory), HQ) as daemon,
    ):
        began = time.monotonic()
        with SendingPbx(daemon.port, rate=rate, mixed=True, padding=padding) as pbx:
            for kill, point in enumerate(itertools.chain(*[points] * times), 1):
                daemon.wait_for_call(pbx.last_call_id)
                fault = f"signal=KILL:when={moments.randint(1, point.most)}"
                process = daemon.storing_process()
                with injected(process, point.calls, fault, point.path(daemon)):
                    daemon.wait_for("store_replaced", times=kill)
            pbx.stop()
        return end_and_compare(daemon, pbx, began)


def kill_daemon_at_points(times: int) -> Outcome:
    """Kill the daemon so often at each point: the last moments are lost at most."""
    began = time.monotonic()
    result = Kills()
    for point in OF_THE_DAEMON:

        def kill(daemon: RunningDaemon, moments: random.Random, point: Point = point) -> None:
            fault = f"signal=KILL:when={moments.randint(1, point.most)}"
            with injected(daemon.process.pid, point.calls, fault, point.path(daemon)):
                daemon.process.wait(DEADLINE_SECONDS)

        result.add(kill_under_load(times, rate=RATE, seed=times, kill=kill))
    figures = (result.sent, result.lost, result.doubled)
    return Outcome(*figures, time.monotonic() - began, result.remark, tuple(result.faults))


def kill_while_draining(times: int) -> Outcome:
    """Kill while a spool is drained: in the commit of its lines, and behind the last of them."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cdrd-drain-") as made:
        directory = Path(made)
        for first in range(0, times * SPOOLED, SPOOLED):
            _kill_draining(directory, range(first, first + SPOOLED))
        with RunningDaemon(directory, HQ) as daemon:
            daemon.wait_for("spool_drained")
            assert daemon.stop()[0] == 0
        return compare(daemon.database, range(times * SPOOLED), began)


def _kill_draining(directory: Path, numbers: range) -> None:
    """The daemon looks every ten seconds whether there is a spool."""
    with RunningDaemon(directory, HQ) as daemon:
        daemon.wait_for("ready")
        spool = Spool(daemon.database)
        with injected(daemon.storing_process(), "fdatasync", "signal=KILL", _wal(daemon)):
            spool.append(example.holding(map(example.call, numbers)))
            daemon.wait_for("store_replaced")
        with injected(daemon.process.pid, "unlink", "signal=KILL", spool.path):
            daemon.process.wait(DEADLINE_SECONDS)
