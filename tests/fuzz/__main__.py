"""The long form: so many inputs, nine tenths of them for framing and decoding, and one table.

Of each target's inputs a twentieth is guided by what code they reach, where atheris is installed;
the others are mutations of the corpus that was found so.
"""

import argparse
import hashlib
import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from tests.fuzz.growth import too_slow
from tests.fuzz.mutation import search
from tests.fuzz.targets import TARGETS

GUIDED = 20
SLICE = 100_000
"""As often it is told how far it has come."""

GROWN = 20
"""So many inputs of a corpus, the last found, are repeated to see what the length costs."""


class Outcome(NamedTuple):
    """What came of a target."""

    inputs: int
    seconds: float
    found: list[str]


def main() -> int:
    """Fuzz the targets one after the other; the exit status is 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all")
    parser.add_argument("--inputs", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, default=Path(".fuzz"), help="kept for the next run")
    arguments = parser.parse_args()
    chosen = arguments.targets or list(TARGETS)
    shares = sum(TARGETS[name].share for name in chosen)
    table = Table("target", "inputs", "a second", "found")
    faults = 0
    for name in chosen:
        inputs = arguments.inputs * TARGETS[name].share // shares
        outcome = fuzz(name, inputs, arguments.seed, arguments.corpus / name)
        rate = outcome.inputs / outcome.seconds
        table.add_row(name, f"{outcome.inputs:,}", f"{rate:,.0f}", str(len(outcome.found)))
        faults += len(outcome.found)
        _say(f"{name}: {outcome.inputs:,} inputs in {outcome.seconds:,.0f} s", *outcome.found)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return 1 if faults else 0


def fuzz(name: str, inputs: int, seed: int, directory: Path) -> Outcome:
    """Fuzz one target; what is found is kept in its directory too."""
    target, began = TARGETS[name], time.monotonic()
    (directory / "corpus").mkdir(parents=True, exist_ok=True)
    (directory / "found").mkdir(exist_ok=True)
    done = 0
    found: list[str] = []
    if importlib.util.find_spec("atheris") is not None:
        done, found = _guide(name, inputs // GUIDED, directory)
    corpus = [path.read_bytes() for path in sorted((directory / "corpus").iterdir())]
    seeds = [*target.seeds, *corpus]
    places: set[object] = set()
    while done < inputs:
        of_slice = min(SLICE, inputs - done)
        for place, finding in search(target.check, seeds, of_slice, seed + done).items():
            if place not in places:
                found.append(str(_keep(finding.given, directory)))
                _say(f"{name}: {found[-1]}: {finding.trace}")
            places.add(place)
        done += of_slice
        _say(f"{name}: {done:,} of {inputs:,}")
    if target.pour is not None:
        units = [*target.seeds, *corpus[-GROWN:]]
        slow = too_slow(target.pour, units)
        found += (f"{_keep(unit, directory)}: takes more a byte the longer it is" for unit in slow)
    return Outcome(done, time.monotonic() - began, found)


def _guide(name: str, inputs: int, directory: Path) -> tuple[int, list[str]]:
    """Have a corpus searched for; how many inputs that took, and what was found."""
    before = set((directory / "found").iterdir())
    command = [sys.executable, "-m", "tests.fuzz.guided", name, str(inputs), str(directory)]
    log = directory / "log"
    with log.open("wb") as output:
        ended = subprocess.run(command, stdout=output, stderr=output, check=False)
    said = log.read_text(errors="replace")
    executed = re.search(r"number_of_executed_units: (\d+)", said)
    found = sorted({*(directory / "found").iterdir()} - before)
    assert executed, said[-2000:]
    assert found or not ended.returncode, said[-2000:]
    return int(executed[1]), [f"{path}: {log} has the trace" for path in found]


def _keep(given: bytes, directory: Path) -> Path:
    path = directory / "found" / hashlib.sha256(given).hexdigest()[:16]
    path.write_bytes(given)
    return path


def _say(*lines: str) -> None:
    print(*lines, sep="\n", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
