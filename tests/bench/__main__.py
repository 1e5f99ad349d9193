"""Measures all of it, prints the tables and puts them on the page that the README quotes.

``make bench``, or ``python -m tests.bench``. With ``--quick`` or ``--only`` nothing is written.
"""

import argparse
import compileall
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

import cdrd
from tests.bench import (
    exports,
    goals,
    growth,
    idle,
    kinds,
    latency,
    many,
    measured,
    peers,
    posts,
    sender,
    stages,
)
from tests.bench.contender import take_turns
from tests.bench.goals import Goal
from tests.bench.load import Load, render
from tests.bench.table import Table, figure

PACKAGE = Path(cdrd.__file__).parent
CONSOLE = Console(width=None if sys.stdout.isatty() else 120)

Section = tuple[Table, dict[Goal, float]]


def main() -> None:
    arguments, where = parse(), measured.machine()
    compileall.compile_dir(PACKAGE, quiet=1)  # as pip does where it is not installed in place
    with tempfile.TemporaryDirectory(prefix="cdrd-bench-") as directory:
        tables: list[Table] = []
        reached: dict[Goal, float] = {}
        every = sections(arguments, Path(directory))
        if unknown := set(arguments.only) - set(every):
            raise SystemExit(f"{', '.join(unknown)} is none of {', '.join(every)}")
        for name in arguments.only or every:
            section = every[name]
            tell(f"--- {name}")
            try:
                table, found = section()
            except Exception as failure:  # noqa: BLE001 - one section's fault costs no other
                tell(f"{name} failed: {failure!r}")
                continue
            CONSOLE.print(table.on_console())
            tables.append(table)
            reached |= found
    tables.insert(0, goals.table(reached))
    CONSOLE.print(tables[0].on_console())
    if not arguments.only and not arguments.quick:
        measured.publish(where, tables)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="little of each, to try it out")
    parser.add_argument("--only", nargs="+", default=[], metavar="SECTION")
    parser.add_argument("--count", type=int, help="messages in a run (default: 300000)")
    parser.add_argument("--rounds", type=int, help="runs of each (default: 3); medians are told")
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        metavar="N",
        help="files to add to, rising (default: 1000000 10000000; 50000000 need 65 GB)",
    )
    arguments = parser.parse_args()
    arguments.rows = arguments.rows or ([10_000, 100_000] if arguments.quick else [10**6, 10**7])
    arguments.count = arguments.count or (30_000 if arguments.quick else 300_000)
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 3)
    return arguments


def sections(arguments: argparse.Namespace, loads: Path) -> Mapping[str, Callable[[], Section]]:
    """Name the sections; each measures when it is called."""
    load, rounds, quick = Load(arguments.count), arguments.rounds, arguments.quick
    most = (1000, 5000) if quick else (10_000, 100_000)
    records = (10_000, 10_000) if quick else (1_000_000, 100_000)

    def beside() -> Section:
        compared = peers.side_by_side(load, loads)
        take_turns(compared.contenders, rounds, tell)
        table = peers.table(compared)
        table.remarks.append(sender_alone(load, loads))
        return table, peers.reached(compared)

    def loaded() -> Section:
        lined_up = kinds.kinds(arguments.count, loads)
        take_turns(lined_up.contenders(), rounds, tell)
        return kinds.table(lined_up), kinds.reached(lined_up)

    return {
        "peers": beside,
        "loads": loaded,
        "stages": lambda: (stages.section(200 if quick else 2000), {}),
        "latency": lambda: latency.section(2 if quick else 15, tell),
        "growth": lambda: growth.section(load, arguments.rows, rounds, loads, tell),
        "idle": lambda: idle.section(5 if quick else 60, tell),
        "many": lambda: (many.section(*most, loads, tell), {}),
        "posts": lambda: (posts.section(load.count // 10, rounds, tell), {}),
        "exports": lambda: (exports.section(*records, rounds, loads, tell), {}),
    }


def sender_alone(load: Load, loads: Path) -> str:
    """Say what the sender could do, and what it costs."""
    sent = sender.alone(render(load, loads), load.connections)
    rate, cpu = load.count / sent.seconds, sent.cpu_seconds / load.count * 1e6
    return f"The sender alone: {figure(rate)} reports a second, {figure(cpu, 1)} CPU s a million."


def tell(sentence: str) -> None:
    """Say on stderr what is being done."""
    print(sentence, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
