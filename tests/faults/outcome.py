"""What comes of a fault: one line of the table, and whether the promises were kept."""

import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from tests.faults.oracle import SendingPbx, read
from tests.running import RunningDaemon, assert_accounted, assert_each_row_is_logged, count


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


def end_and_compare(
    daemon: RunningDaemon, pbx: SendingPbx, began: float, aside: Path | None = None
) -> Outcome:
    """End a daemon that was never killed itself: all is a row with one line, and adds up.

    ``aside``: where its database is copied to, if it is in a namespace of its own.
    """
    pbx.stop()
    assert not pbx.broken, "the connection stays"
    daemon.wait_for_call(pbx.last_call_id)
    status, stopped = daemon.stop()
    assert status == 0, (status, daemon.stderr)
    assert_accounted(stopped)
    assert stopped["received"] == pbx.reports, stopped
    database = _copied(daemon.database, aside) if aside else daemon.database
    assert count(database, "quarantine") == pbx.unreadable
    told = daemon.found("call_released")
    assert_each_row_is_logged(database, told)
    outcome = compare(database, pbx.numbers, began)
    return outcome._replace(doubled=outcome.doubled + len(told) - count(database))


def _copied(database: Path, aside: Path) -> Path:
    for file in database.parent.glob(f"{database.name}*"):
        shutil.copyfile(file, aside / file.name)
    return aside / database.name
