"""What comes of a fault: one line of the table, and whether the promises were kept."""

import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from tests.faults.oracle import read


class Outcome(NamedTuple):
    """How many reports were sent, lost and doubled, and how long it took."""

    sent: int
    lost: int
    doubled: int
    seconds: float
    remark: str = ""
    broken: tuple[str, ...] = ()  # the promises that were not kept, beside these figures


def compare(database: Path, sent: Collection[int], began: float, remark: str = "") -> Outcome:
    """Hold a database to the numbers of the calls that were sent since a (monotonic) time."""
    stored = read(database)
    assert stored.sound, "the database is whole"
    held = set(stored.numbers)
    doubled = len(stored.numbers) - len(held)
    lost = len(set(sent) - held)
    return Outcome(len(sent), lost, doubled, time.monotonic() - began, remark)
