"""One of those that are compared by turns, and what its runs have shown."""

import sqlite3
import statistics
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tests.bench.run import Run
from tests.bench.server import Failed

FAILURES = (Failed, OSError, sqlite3.Error, subprocess.SubprocessError)
"""What one of those compared may fail of; the others go on."""


@dataclass(slots=True)
class Contender:
    """Its name, how a run of it is measured, and its runs so far."""

    name: str
    measure: Callable[[], Run]
    runs: list[Run] = field(default_factory=list)
    failure: str = ""

    def take_a_turn(self) -> None:
        """Run once more, unless it has failed before."""
        try:
            if not self.failure:
                self.runs.append(self.measure())
        except FAILURES as failure:
            self.failure = str(failure)

    def median(self) -> Run:
        """Tell the median of each figure."""
        return Run(*map(statistics.median, zip(*self.runs, strict=True)))

    def ratio(self, other: "Contender") -> Run:
        """Tell the median of this one's figures over the other's, round by round."""
        pairs = zip(self.runs, other.runs, strict=True)
        ratios = [[a / b for a, b in zip(one, two, strict=True)] for one, two in pairs]
        return Run(*map(statistics.median, zip(*ratios, strict=True)))


def take_turns(contenders: Iterable[Contender], rounds: int, tell: Callable[[str], None]) -> None:
    """Let each run once a round."""
    every = list(contenders)
    for number in range(rounds):
        for contender in every:
            tell(f"round {number + 1} of {rounds}: {contender.name}")
            contender.take_a_turn()
