"""A clock that is set forward and back, under load: nothing is lost, and nothing waits for it."""

import itertools
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Final

from tests.faults.oracle import BLOCK, SendingPbx, call_id
from tests.faults.outcome import Outcome, end_and_compare
from tests.running import HQ, RunningDaemon
from tests.set_clock import SetClock

HOUR: Final = 3600
YEAR: Final = 365 * 24 * HOUR
AHEAD: Final = (0.5, -0.5, HOUR, -HOUR, 0, YEAR, 0, -YEAR, 80 * YEAR, -50 * YEAR, 0)
"""Seconds: as a time server corrects it, by a wrong zone, by a year, by a dead battery."""

TOLD_SECONDS: Final = 5.0
APART_SECONDS: Final = 1.0
"""So late we may be in taking a time ourselves."""


def set_clock(times: int, *, rate: float = 2000) -> Outcome:
    """Set the daemon's clock so often while calls come; each call is told as soon as ever."""
    slowest = 0.0
    with tempfile.TemporaryDirectory(prefix="cdrd-clock-") as directory:
        clock = SetClock(Path(directory))
        with RunningDaemon(Path(directory), HQ, environment=clock.environment) as daemon:
            began = time.monotonic()
            with SendingPbx(daemon.port, rate=rate, mixed=True) as pbx:
                for ahead in itertools.islice(itertools.cycle(AHEAD), times):
                    clock.set_ahead(ahead)
                    number = pbx.next + BLOCK  # what may be on its way had the clock before
                    line = daemon.wait_for_call(call_id(number))
                    told, passed = time.time(), time.monotonic() - pbx.sent[number].at
                    shown = datetime.fromisoformat(line["timestamp"]).timestamp() - ahead
                    assert told - passed - APART_SECONDS <= shown <= told + APART_SECONDS
                    slowest = max(slowest, passed)
                pbx.stop()
            outcome = end_and_compare(daemon, pbx, began)
    late = () if slowest <= TOLD_SECONDS else (f"a call is told within {TOLD_SECONDS} s",)
    return outcome._replace(
        remark=f"told after {slowest * 1000:.0f} ms at most", broken=(*outcome.broken, *late)
    )
