"""A store in trouble for a while, under load: nothing is lost, and the intake goes on by itself."""

import contextlib
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cdrd.sizes import KIB, MIB
from tests.faults.injection import injected
from tests.faults.oracle import SendingPbx
from tests.faults.outcome import Outcome, end_and_compare
from tests.running import HQ, RunningDaemon
from tests.small_disk import fill, small_disk

RATE = 2000
PADDING = 20 * KIB
"""Of a call, where the WAL has to grow by much."""
MEMORY_BYTES = 200 * MIB
"""What both processes together may have at most."""

Trouble = Callable[[RunningDaemon], None]

_READER = """
import sqlite3, sys
reader = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True, isolation_level=None)
reader.execute("BEGIN")
reader.execute("SELECT count(*) FROM calls").fetchone()
print("reading", flush=True)
sys.stdin.read()
"""


def syncs_fail(times: int) -> Outcome:
    """Have each sync of the WAL fail for a while, as on a disk that cannot be written."""
    return _trouble(times, lambda daemon: _refuse(daemon, "fdatasync", "error=EIO"))


def writes_fail(times: int) -> Outcome:
    """Have each write to the WAL fail for a while, as on a full disk."""
    return _trouble(times, lambda daemon: _refuse(daemon, "pwrite64", "error=ENOSPC"))


def slow_syncs(times: int) -> Outcome:
    """Have each sync of the WAL take 300 ms for a while."""

    def slow(daemon: RunningDaemon) -> None:
        with injected(daemon.storing_process(), "fdatasync", "delay_enter=300ms", _wal(daemon)):
            daemon.wait_for("call_released", times=len(daemon.found("call_released")) + RATE)

    return _trouble(times, slow)


def disk_fills(times: int) -> Outcome:
    """Fill the disk of the database, and make room again."""
    with (
        tempfile.TemporaryDirectory(prefix="cdrd-disk-") as directory,
        small_disk(Path(directory), "128m") as (disk, inside),
    ):

        def full(daemon: RunningDaemon) -> None:
            fill(disk / "filler")
            _wait_for_failures(daemon, 3)
            (disk / "filler").unlink()

        return _trouble(times, full, disk, inside)


def lock_held(times: int) -> Outcome:
    """Have another program hold the writer's lock, for longer than one try waits for it."""

    def lock(daemon: RunningDaemon) -> None:
        with contextlib.closing(sqlite3.connect(daemon.database, isolation_level=None)) as other:
            other.execute("PRAGMA busy_timeout = 20000")
            other.execute("BEGIN EXCLUSIVE")
            _wait_for_failures(daemon, 1)
            other.execute("ROLLBACK")

    return _trouble(times, lock)


def reader_stopped(times: int) -> Outcome:
    """Stop a reader within its transaction for as long as 64 MiB of WAL take, and kill it."""

    def stop_reader(daemon: RunningDaemon) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", _READER, daemon.database],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"reading\n"
            reader.send_signal(signal.SIGSTOP)
            daemon.wait_for("wal_pinned")
            reader.kill()

    return _trouble(times, stop_reader, rate=200, padding=PADDING)


def _refuse(daemon: RunningDaemon, calls: str, fault: str) -> None:
    with injected(daemon.storing_process(), calls, fault, _wal(daemon)):
        _wait_for_failures(daemon, 3)


def _wait_for_failures(daemon: RunningDaemon, more: int) -> None:
    daemon.wait_for("commit_failed", times=len(daemon.found("commit_failed")) + more)


def _wal(daemon: RunningDaemon) -> str:
    return f"{daemon.database}-wal"


def _trouble(
    times: int,
    trouble: Trouble,
    directory: Path | None = None,
    inside: Sequence[str] = (),
    *,
    rate: float = RATE,
    padding: int = 0,
) -> Outcome:
    """Make trouble so often while calls come, and let all of it be stored in between."""
    with (
        tempfile.TemporaryDirectory(prefix="cdrd-trouble-") as aside,
        RunningDaemon(directory or Path(aside), HQ, inside=inside) as daemon,
    ):
        began = time.monotonic()
        with SendingPbx(daemon.port, rate=rate, mixed=True, padding=padding) as pbx:
            for _ in range(times):
                daemon.wait_for_call(pbx.last_call_id)
                trouble(daemon)
            pbx.stop()
        memory = daemon.memory_peak()
        outcome = end_and_compare(daemon, pbx, began, Path(aside) if directory else None)
        much = () if memory <= MEMORY_BYTES else (f"memory stays below {MEMORY_BYTES:,} bytes",)
        return outcome._replace(
            remark=f"{memory // MIB} MiB at most", broken=(*outcome.broken, *much)
        )
