"""cdrd beside others that bring JSON over TCP into SQLite, and beside a floor, by turns in one run.

All get the same bytes, and keep the columns, a unique key, an index and the raw text. A ratio is
the median of the rounds' ratios: the speed of a shared machine changes from minute to minute.
"""

import sqlite3
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType

from tests.bench import floor, peer_naive, peer_node_red, peer_rsyslog, peer_syslog_ng
from tests.bench.load import USUAL_BYTES, Load
from tests.bench.peer_cdrd import Cdrd
from tests.bench.run import Run, Start, run, syncs
from tests.bench.server import Failed
from tests.bench.table import Table, figure

PEERS: tuple[tuple[str, ModuleType, tuple[str, ...], float], ...] = (
    ("syslog-ng", peer_syslog_ng, ("FULL", "NORMAL"), 1),
    ("rsyslog, omprog", peer_rsyslog, ("FULL",), 0.5),
    ("Node-RED, in batches", peer_node_red, ("FULL",), 0.25),
    ("asyncio, a commit each", peer_naive, ("FULL",), 0.05),
)
"""Name, module, how it syncs, and what share of the load it gets, since some take their time."""

CDRD, SYSLOG_NG, FLOOR = "cdrd, FULL", "syslog-ng, FULL", "C insert alone, FULL"
SYNC_COUNT = 20_000


@dataclass(slots=True)
class Contender:
    """One of those compared, and what its runs have shown so far."""

    name: str
    measure: Callable[[], Run]
    count_syncs: Callable[[], float | None]
    runs: list[Run] = field(default_factory=list)
    syncs: float | None = None
    failure: str = ""

    def take_a_turn(self) -> None:
        """Run once more, unless it has failed before; the first time, count its syncs too."""
        try:
            if not self.failure:
                self.syncs = self.syncs if self.runs else self.count_syncs()
                self.runs.append(self.measure())
        except (Failed, OSError, sqlite3.Error, subprocess.SubprocessError) as failure:
            self.failure = str(failure)

    def median(self) -> Run:
        """Tell the median of each figure."""
        return Run(*map(statistics.median, zip(*self.runs, strict=True)))

    def ratio(self, other: "Contender") -> Run:
        """Tell the median of this one's figures over the other's, round by round."""
        pairs = zip(self.runs, other.runs, strict=True)
        ratios = [[a / b for a, b in zip(one, two, strict=True)] for one, two in pairs]
        return Run(*map(statistics.median, zip(*ratios, strict=True)))


def contenders(load: Load, loads: Path) -> Iterator[Contender]:
    """Make all, cdrd first; those that cannot run here have failed already."""
    yield server(CDRD, Cdrd, load, loads)
    for name, peer, modes, share in PEERS:
        for mode in modes:
            start, size = partial(peer.start, synchronous=mode), int(load.count * share)
            made = server(f"{name}, {mode}", start, replace(load, count=size), loads)
            made.failure = peer.missing()
            yield made
    yield Contender(FLOOR, partial(floor.run, load, loads), partial(floor.syncs, load, loads))


def server(name: str, start: Start, load: Load, loads: Path) -> Contender:
    """Make a contender of a server."""
    few = replace(load, count=min(load.count, SYNC_COUNT))
    return Contender(name, partial(run, start, load, loads), partial(syncs, start, few, loads))


def take_turns(all_of_them: Sequence[Contender], rounds: int, tell: Callable[[str], None]) -> None:
    """Let each run once a round."""
    for number in range(rounds):
        for contender in all_of_them:
            tell(f"round {number + 1} of {rounds}: {contender.name}")
            contender.take_a_turn()


def table(side_by_side: Sequence[Contender], load: Load) -> Table:
    """Show the medians, and how cdrd's rate compares."""
    cdrd = side_by_side[0]
    shown = Table(
        "Beside others",
        ("who", "rows a second", "cdrd against it", "CPU s a million", "peak MiB", "syncs"),
    )
    for each in side_by_side:
        if each.failure or cdrd.failure:
            shown.remarks.append(f"Left out: {each.name} ({each.failure or cdrd.failure}).")
            continue
        median, times = each.median(), figure(cdrd.ratio(each).rate, 2)
        cpu, peak = figure(median.cpu_seconds_a_million, 1), figure(median.peak_mib)
        row = (each.name, figure(median.rate), times, cpu, peak, figure(each.syncs, 1))
        shown.rows.append(row)
    shown.remarks.append(
        f"{load.count:,} reports of some {USUAL_BYTES} bytes over {load.connections} connections,"
        f" fewer to the slow; {len(cdrd.runs)} rounds. Syncs are those of the disk for 1,000 rows."
    )
    return shown
