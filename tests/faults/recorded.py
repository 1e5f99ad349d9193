"""Turns a run of the real programs into moments at which the power could have been lost.

The rule that must stay true: what is recorded is all that was done. The files as the record has
them are those that are there in the end, or it says nothing.
"""

import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import orjson

from tests.faults.disk import NOT_KEPT, Disk, read_files
from tests.faults.trace import Call, Step, read_trace, tracing
from tests.running import DEADLINE_SECONDS, HQ, Line, RunningDaemon

OF_THE_HARNESS = ("config.toml", "stderr")


class Told:
    """What had been told up to a moment."""

    def __init__(self) -> None:
        self.stdout = b""
        self.stderr = b""
        self.answered: Counter[str] = Counter()  # how many posts with 200, by the poster's port

    def take(self, call: Call) -> None:
        """Take what somebody was told."""
        match call.path:
            case "1":
                self.stdout += call.data
            case "2":
                self.stderr += call.data
            case port:
                self.answered[port] += call.data.count(b"HTTP/1.1 200")

    @property
    def calls(self) -> list[Line]:
        """The lines of calls; what was cut off at the end told nobody anything."""
        lines = self.stdout.splitlines(keepends=True)
        return [orjson.loads(line) for line in lines if _is_call(line)]


class Moment(NamedTuple):
    """The power is lost: what the disk holds afterwards, and what had been told before."""

    files: dict[str, bytes]
    told: Told
    place: float  # 0 at the beginning, 1 when all is done


class Recorder:
    """A directory, and what the programs that are started here do to it."""

    def __init__(self, workspace: Path, unsynced: Collection[str] = ()) -> None:
        """``workspace`` has the directory ``disk``, and perhaps files in it."""
        self.directory = workspace / "disk"
        self._workspace = workspace
        self._before = read_files(self.directory)
        self._unsynced = unsynced
        self._traces: list[Path] = []

    def daemon(self, tables: str = HQ) -> RunningDaemon:
        """Start ``cdrd serve``."""
        return RunningDaemon(self.directory, tables, inside=self._tracing())

    def run(self, *arguments: str | Path, kill: str = "") -> None:
        """Run a command of cdrd to its end, or until a call that kills it."""
        program = [*self._tracing(kill), sys.executable, "-m", "cdrd", *map(str, arguments)]
        done = subprocess.run(program, capture_output=True, timeout=DEADLINE_SECONDS, check=False)
        assert done.returncode == (-signal.SIGKILL if kill else 0), done.stderr

    def is_unsynced(self, name: str) -> bool:
        """Tell whether a file has by now what a loss of power could take."""
        disk = self._disk()
        for step in self._steps():
            _take(step, disk, Told())
        return disk.synced()[name] != disk.contents()[name]

    def moments(self, number: int, seed: int) -> Iterator[Moment]:
        """Lose the power at so many moments of all that was done.

        The last one is the end, and takes all that it may take.
        """
        chances = random.Random(seed)
        steps = self._steps()
        end = len(steps)
        cuts = Counter(end if i % 8 == 0 else chances.randrange(end) for i in range(1, number))
        disk, told = self._disk(), Told()
        for place in range(end + 1):
            for _ in range(cuts[place]):
                yield Moment(disk.after_power_loss(chances), told, place / end)
            if place < end:
                _take(steps[place], disk, told)
        yield Moment(disk.synced(), told, 1.0)

    def _tracing(self, kill: str = "") -> list[str]:
        self._traces.append(self._workspace / f"trace-{len(self._traces)}")
        return tracing(self._traces[-1], kill)

    def _steps(self) -> list[Step]:
        steps = [step for trace in self._traces for step in read_trace(trace, self.directory)]
        disk, told = self._disk(), Told()
        for step in steps:
            _take(step, disk, told)
        recorded, there = _kept(disk.contents()), _kept(read_files(self.directory))
        different = [name for name in recorded | there if recorded.get(name) != there.get(name)]
        assert not different, f"not all that was done to {different} is recorded"
        return steps

    def _disk(self) -> Disk:
        return Disk(self._before, self._unsynced)


def _take(step: Step, disk: Disk, told: Told) -> None:
    if step.call.change != "tell":
        disk.take(step)
    elif not step.ended:  # whoever reads may have it from here on
        told.take(step.call)


def _kept(files: dict[str, bytes]) -> dict[str, bytes]:
    return {
        name: data
        for name, data in files.items()
        if name not in OF_THE_HARNESS and not name.endswith(NOT_KEPT)
    }


def _is_call(line: bytes) -> bool:
    return line.endswith(b"\n") and b'"event":"call_released"' in line
