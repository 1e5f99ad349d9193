"""cdrd over one to a thousand connections, without delimiters, with long reports, among events.

syslog-ng takes turns with it, and so does a loop that only parses the same events.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from pathlib import Path

import orjson

from tests.bench import goals, peer_syslog_ng
from tests.bench.contender import Contender
from tests.bench.goals import Goal
from tests.bench.load import Load, render
from tests.bench.peer_cdrd import Cdrd
from tests.bench.run import Run, run
from tests.bench.table import Table, figure

OTHER_EVENTS = 20
USUAL, MANY, UNDELIMITED, AMONG_EVENTS = (
    "16 connections",
    "200 connections",
    "16, no delimiter",
    f"16, {OTHER_EVENTS} other events to a record",
)


@dataclass(slots=True)
class Kind:
    """A kind of load, and who takes it."""

    load: Load
    cdrd: Contender
    syslog_ng: Contender | None


@dataclass(slots=True)
class Kinds:
    """All kinds by name, and the loop that only parses."""

    by_name: dict[str, Kind]
    parsing: Contender

    def contenders(self) -> Iterator[Contender]:
        """Name those that take turns."""
        for kind in self.by_name.values():
            yield kind.cdrd
            if kind.syslog_ng is not None:
                yield kind.syslog_ng
        yield self.parsing


def kinds(count: int, loads: Path) -> Kinds:
    """Line up all kinds; so many messages are sent in each."""
    usual = Load(count)
    among_events = replace(usual, count=count // OTHER_EVENTS, events=OTHER_EVENTS)
    by_name = {
        "1 connection": replace(usual, connections=1),
        USUAL: usual,
        MANY: replace(usual, connections=200),
        "1,000 connections": replace(usual, connections=1000),
        UNDELIMITED: replace(usual, delimiter="none"),
        "16, reports of 600 bytes": replace(usual, size=600),
        AMONG_EVENTS: among_events,
    }
    lined_up = {name: _kind(name, load, loads) for name, load in by_name.items()}
    parsing = partial(parse, among_events, loads)
    return Kinds(lined_up, Contender("orjson.loads alone", parsing))


def _kind(name: str, load: Load, loads: Path) -> Kind:
    cdrd = Contender(f"cdrd, {name}", partial(run, Cdrd, load, loads))
    if load.delimiter == "none":
        return Kind(load, cdrd, None)
    start = partial(peer_syslog_ng.start, synchronous="FULL")
    other = Contender(f"syslog-ng, {name}", partial(run, start, load, loads))
    other.failure = peer_syslog_ng.missing()
    return Kind(load, cdrd, other)


def parse(load: Load, loads: Path) -> Run:
    """Parse every event of the load, one by one; the rate is told in records, as cdrd's is."""
    lines = render(load, loads).read_bytes().splitlines()
    began = time.perf_counter()
    for line in lines:
        orjson.loads(line)
    seconds = time.perf_counter() - began
    return Run(load.count / seconds, seconds / load.count * 1e6, nan)


def table(measured: Kinds) -> Table:
    """Show the medians of each kind, against the usual one and against syslog-ng."""
    columns = ("load", "rows a second", "against 16", "CPU s a million", "peak MiB", "syslog-ng")
    shown, usual = Table("Kinds of load", columns), measured.by_name[USUAL].cdrd
    for name, kind in measured.by_name.items():
        if why := kind.cdrd.failure or usual.failure:
            shown.remarks.append(f"Left out: {name} ({why}).")
            continue
        median, ratio = kind.cdrd.median(), kind.cdrd.ratio(usual).rate
        cells = (figure(median.cpu_seconds_a_million, 1), figure(median.peak_mib))
        row = (name, figure(median.rate), figure(ratio, 2), *cells, _other(kind))
        shown.rows.append(row)
    return shown


def _other(kind: Kind) -> str:
    """Show syslog-ng's rate, or why there is none."""
    if kind.syslog_ng is None:
        return "cannot"
    return figure(kind.syslog_ng.median().rate) if not kind.syslog_ng.failure else "failed"


def reached(measured: Kinds) -> dict[Goal, float]:
    """Tell what this says of the goals."""
    cdrd = {name: kind.cdrd for name, kind in measured.by_name.items() if not kind.cdrd.failure}
    found: dict[Goal, float] = {}
    for goal, name, other in (
        (goals.CONNECTIONS, MANY, cdrd.get(USUAL)),
        (goals.UNDELIMITED, UNDELIMITED, cdrd.get(USUAL)),
        (goals.EVENTS, AMONG_EVENTS, measured.parsing),
    ):
        if name in cdrd and other is not None:
            found[goal] = cdrd[name].ratio(other).rate
    if cdrd:
        found[goals.PEAK] = max(one.peak_mib for each in cdrd.values() for one in each.runs)
    return found
