"""cdrd beside others that bring JSON over TCP into SQLite, and beside a floor, by turns in one run.

All get the same bytes, and keep the columns, a unique key, an index and the raw text. A ratio is
the median of the rounds' ratios: the speed of a shared machine changes from minute to minute.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType

from tests.bench import floor, goals, peer_naive, peer_node_red, peer_rsyslog, peer_syslog_ng
from tests.bench.contender import FAILURES, Contender
from tests.bench.goals import Goal
from tests.bench.load import USUAL_BYTES, Load
from tests.bench.peer_cdrd import Cdrd
from tests.bench.run import Start, run, syncs
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


Syncs = Callable[[], float | None]


@dataclass(slots=True)
class SideBySide:
    """Those compared, cdrd first, and how it is counted how often each syncs."""

    load: Load
    contenders: list[Contender] = field(default_factory=list)
    syncs: dict[str, Syncs] = field(default_factory=dict)

    def add(self, name: str, start: Start, share: float, loads: Path, missing: str = "") -> None:
        """Add a server; one that is missing has failed already."""
        load = replace(self.load, count=int(self.load.count * share))
        few = replace(load, count=min(load.count, SYNC_COUNT))
        self.contenders.append(Contender(name, partial(run, start, load, loads), failure=missing))
        self.syncs[name] = partial(syncs, start, few, loads)

    def synced(self, contender: Contender) -> float | None:
        """Count the syncs for 1,000 rows, in a run of its own; None where that cannot be done."""
        try:
            return self.syncs[contender.name]()
        except FAILURES:
            return None


def side_by_side(load: Load, loads: Path) -> SideBySide:
    """Line up all, those too that cannot run here."""
    made = SideBySide(load)
    made.add(CDRD, Cdrd, 1, loads)
    for name, peer, modes, share in PEERS:
        for mode in modes:
            start = partial(peer.start, synchronous=mode)
            made.add(f"{name}, {mode}", start, share, loads, peer.missing())
    made.contenders.append(Contender(FLOOR, partial(floor.run, load, loads)))
    made.syncs[FLOOR] = partial(floor.syncs, load, loads)
    return made


def table(compared: SideBySide) -> Table:
    """Show the medians, and how cdrd's rate compares."""
    columns = ("who", "rows a second", "cdrd against it", "CPU s a million", "peak MiB", "syncs")
    shown, cdrd = Table("Beside others", columns), compared.contenders[0]
    for each in compared.contenders:
        if why := each.failure or cdrd.failure:
            shown.remarks.append(f"Left out: {each.name} ({why}).")
            continue
        median, times = each.median(), figure(cdrd.ratio(each).rate, 2)
        cpu, peak = figure(median.cpu_seconds_a_million, 1), figure(median.peak_mib)
        syncs = figure(compared.synced(each), 1)
        shown.rows.append((each.name, figure(median.rate), times, cpu, peak, syncs))
    shown.remarks.append(
        f"{compared.load.count:,} reports of some {USUAL_BYTES} bytes over"
        f" {compared.load.connections} connections, fewer to the slow; rounds: {len(cdrd.runs)}."
        " Syncs are the calls that bring data to the disk, for 1,000 rows."
    )
    return shown


def reached(compared: SideBySide) -> dict[Goal, float]:
    """Tell what this says of the goals."""
    by_name = {each.name: each for each in compared.contenders if not each.failure}
    found: dict[Goal, float] = {}
    if CDRD in by_name and SYSLOG_NG in by_name:
        against = by_name[CDRD].ratio(by_name[SYSLOG_NG])
        found |= {goals.RATE: against.rate, goals.CPU: against.cpu_seconds_a_million}
    if CDRD in by_name and FLOOR in by_name:
        found[goals.RATE_OF_FLOOR] = by_name[CDRD].ratio(by_name[FLOOR]).rate
    return found
