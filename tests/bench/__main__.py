"""Measures all of it and prints the tables: ``make bench``, or ``python -m tests.bench``."""

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tests.bench import peers
from tests.bench.load import Load

CONSOLE = Console(width=None if sys.stdout.isatty() else 110)


def tell(sentence: str) -> None:
    """Say on stderr what is being done."""
    print(sentence, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--count", type=int, default=300_000, help="reports in a run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each; medians are told")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cdrd-bench-") as directory:
        loads, load = Path(directory), Load(arguments.count)
        side_by_side = list(peers.contenders(load, loads))
        peers.take_turns(side_by_side, arguments.rounds, tell)
        CONSOLE.print(peers.table(side_by_side, load).on_console())


if __name__ == "__main__":
    main()
