"""Looks on while a daemon runs for long: what it takes, what it logs, what its readers see."""

import contextlib
import re
import sqlite3
import threading
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple, Self

from tests.running import RunningDaemon, parsed_line

GROWTH = 1.05
ALLOWED = 2
"""So much more, MiB or descriptors, is no growth: some connections come and go."""

_SEQ = re.compile(rb'"event":"call_released","seq":(\d+)')


class SoakedDaemon(RunningDaemon):
    """A daemon whose lines of calls are counted and let go of, and that is read slowly at times."""

    def __init__(self, directory: Path, tables: str) -> None:
        self.logged = array("B")  # how many lines each seq has had
        self.read_slowly = threading.Event()
        super().__init__(directory, tables)

    def _take(self, chunk: bytes, lines: Sequence[bytes]) -> None:
        del chunk
        self.lines += (parsed_line(line) for line in lines if not self._count(line))
        if self.read_slowly.is_set():
            self.read_slowly.clear()
            time.sleep(2)  # that nobody reads for so long is what is tried

    def _count(self, line: bytes) -> bool:
        """Count the line of a call; False for any other."""
        found = _SEQ.search(line)
        if found is None:
            return False
        seq = int(found[1])
        self.logged.extend([0] * (seq + 1 - len(self.logged)))
        self.logged[seq] += 1
        return True


class Usage(NamedTuple):
    """What the daemon and its process that stores take: MiB of memory, open descriptors."""

    memory: float
    memory_storing: float
    descriptors: float
    descriptors_storing: float


def usage(daemon: RunningDaemon) -> Usage:
    """Look at both processes."""
    processes = [Path(f"/proc/{each}") for each in (daemon.process.pid, daemon.storing_process())]
    statuses = [(process / "status").read_text() for process in processes]
    memory = [int(each.partition("VmRSS:")[2].split()[0]) / 1024 for each in statuses]
    descriptors = [len(list((process / "fd").iterdir())) for process in processes]
    return Usage(memory[0], memory[1], descriptors[0], descriptors[1])


class Watch:
    """Looks at the daemon twice a second, and reads its database as other programs do."""

    def __init__(self, daemon: SoakedDaemon) -> None:
        self.seen: list[Usage] = []
        self._daemon = daemon
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=work) for work in (self._look, self._read_database)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def medians(self, sixth: int) -> Usage:
        """Return the median of each figure in a sixth of the time, the first being 0."""
        size = len(self.seen) // 6
        seen = self.seen[sixth * size : (sixth + 1) * size]
        return Usage(*(median(figures) for figures in zip(*seen, strict=True)))

    @property
    def remark(self) -> str:
        """Tell the medians of the second and of the last sixth of the time."""
        early, late = self.medians(1), self.medians(5)
        return (
            f"{early.memory:.1f} and {early.memory_storing:.1f} MiB became {late.memory:.1f} and"
            f" {late.memory_storing:.1f}, {early.descriptors:.0f} and"
            f" {early.descriptors_storing:.0f} descriptors {late.descriptors:.0f} and"
            f" {late.descriptors_storing:.0f}"
        )

    @property
    def grown(self) -> tuple[str, ...]:
        """Name what was not flat."""
        early, late = self.medians(1), self.medians(5)
        return tuple(
            f"{name} is flat"
            for name, before, after in zip(Usage._fields, early, late, strict=True)
            if after > before * GROWTH + ALLOWED
        )

    def _look(self) -> None:
        while not self._ended.wait(0.5):
            self.seen.append(usage(self._daemon))

    def _read_database(self) -> None:
        """Keep a transaction open for a second now and then; what it sees never goes back."""
        uri = f"{self._daemon.database.as_uri()}?mode=ro"
        last = 0
        with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as reader:
            while not self._ended.wait(3):
                reader.execute("BEGIN")
                (seq,) = reader.execute("SELECT ifnull(max(seq), 0) FROM calls").fetchone()
                assert seq >= last
                last = seq
                self._ended.wait(1)
                reader.execute("COMMIT")
