"""SIGKILL under load: a logged call is a row, none is doubled, and little is lost."""

import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.oracle import SendingPbx, call_id, logged_but_missing, read
from tests.faults.outcome import Outcome
from tests.running import HQ, RunningDaemon

ROUND = 100
"""So many kills on one database: it is looked through whole after each."""

WINDOW_SECONDS = 0.1
"""What arrived within so long before a kill may be lost; more is told, and may be the disk's."""


@dataclass(slots=True)
class Kills:
    """What came of all the kills of a run."""

    kills: int = 0
    sent: int = 0
    stored: int = 0
    lost: int = 0
    lost_late: int = 0  # of these, what had arrived longer before the kill than ``WINDOW_SECONDS``
    oldest_loss: float = 0.0  # seconds before its kill
    doubled: int = 0
    logged_but_missing: int = 0
    not_logged: int = 0
    unsound: int = 0

    def add(self, other: "Kills") -> None:
        """Add the kills of another run."""
        for name in self.__slots__:
            ours, theirs = getattr(self, name), getattr(other, name)
            both = max(ours, theirs) if name == "oldest_loss" else ours + theirs
            setattr(self, name, both)

    def __str__(self) -> str:
        """Tell all of it in one line."""
        return (
            f"{self.kills:,} kills, {self.sent:,} sent, {self.lost:,} lost ({self.lost_late:,} of"
            f" them had come more than 100 ms before, the oldest {self.oldest_loss * 1000:.0f} ms),"
            f" {self.doubled} doubled, {self.logged_but_missing} logged but missing,"
            f" {self.not_logged} never logged, {self.unsound} unsound"
        )

    @property
    def remark(self) -> str:
        """Tell how old what was lost had become."""
        return f"the oldest had come {self.oldest_loss * 1000:.0f} ms before"

    @property
    def faults(self) -> list[str]:
        """Name the promises that were not kept."""
        kept = {
            "logged calls are rows": not self.logged_but_missing,
            "no call is doubled": not self.doubled,
            "every row has its line": not self.not_logged,
            "the database is whole": not self.unsound,
        }
        return [promise for promise, is_kept in kept.items() if not is_kept]


def kill_in_rounds(kills: int) -> Outcome:
    """Kill the daemon so often, on a new database for each round."""
    result, began = Kills(), time.monotonic()
    while result.kills < kills:
        times = min(ROUND, kills - result.kills)
        result.add(kill_under_load(times, rate=2000, seed=1 + result.kills))
        print(result, file=sys.stderr, flush=True)
    seconds = time.monotonic() - began
    figures = (result.sent, result.lost, result.doubled)
    return Outcome(*figures, seconds, result.remark, tuple(result.faults))


def _kill_at_some_moment(daemon: RunningDaemon, moments: random.Random) -> None:
    time.sleep(moments.uniform(0, 0.3))  # the moment of the kill is what is tried
    daemon.process.kill()


def kill_under_load(
    kills: int,
    *,
    rate: float,
    seed: int,
    kill: Callable[[RunningDaemon, random.Random], None] = _kill_at_some_moment,
) -> Kills:
    """Kill the daemon again and again while calls come, at random moments or as ``kill`` does."""
    moments = random.Random(seed)
    result = Kills()
    told: set[int] = set()
    sent: set[int] = set()
    first = 0
    with tempfile.TemporaryDirectory(prefix="cdrd-kills-") as directory:
        for _ in range(kills):
            with RunningDaemon(Path(directory), HQ) as daemon:
                daemon.wait_for("ready")
                with SendingPbx(daemon.port, first, rate=rate) as pbx:
                    daemon.wait_for_call(call_id(first))
                    kill(daemon, moments)
                    killed = time.monotonic()
                    daemon.kill()
                first = pbx.next
                stored = read(daemon.database)
                result.kills += 1
                result.unsound += not stored.sound
                logged = daemon.found("call_released")
                told |= {line["seq"] for line in logged}
                result.logged_but_missing += len(logged_but_missing(stored, logged))
                result.doubled += len(stored.numbers) - len(set(stored.numbers))
                before = [one for one in pbx.sent if one.at <= killed]
                sent |= {one.number for one in before}
                held = set(stored.numbers)
                lost = [one for one in before if one.number not in held]
                result.lost += len(lost)
                ages = [killed - one.at for one in lost]
                result.oldest_loss = max([result.oldest_loss, *ages])
                result.lost_late += sum(age > WINDOW_SECONDS for age in ages)
        with RunningDaemon(Path(directory), HQ) as daemon:
            daemon.wait_for("ready")
            stored = read(daemon.database)
            last = max(stored.by_seq)
            if last not in told:
                daemon.wait_for("call_released", seq=last)
            daemon.stop()
            told |= {line["seq"] for line in daemon.found("call_released")}
    result.sent, result.stored = len(sent), len(stored.numbers)
    result.not_logged = len(stored.by_seq.keys() - told)
    return result
