"""The shipped units under a real systemd, under load: the connection is kept, nothing is lost."""

import time

from tests.faults.oracle import SendingPbx, call_id
from tests.faults.outcome import Outcome
from tests.real_systemd import Journal, Machine, booted
from tests.running import HQ

RATE = 100
"""Calls a second: journald has each line, and is slower than the daemon."""


def restart_under_systemd(times: int) -> Outcome:
    """Have systemd restart the service so often; it reads on where it stopped."""
    return _again_and_again(times, crash=False)


def kill_under_systemd(times: int) -> Outcome:
    """Kill the daemon so often; what was read and not stored yet is lost."""
    return _again_and_again(times, crash=True)


def _again_and_again(times: int, *, crash: bool) -> Outcome:
    with booted() as machine:
        machine.configure(HQ)
        with machine.journal() as journal:
            machine.systemctl("start", "cdrd")
            journal.wait_for(event="ready")
            began = time.monotonic()
            with SendingPbx(machine.connect(), rate=RATE) as pbx:
                for ready in range(2, times + 2):
                    journal.wait_for(event="call_released", call_id=pbx.last_call_id)
                    _begin_anew(machine, journal, ready, crash=crash)
                pbx.stop()
                assert not pbx.broken, "the connection stays"
                journal.wait_for(event="call_released", call_id=pbx.last_call_id)
            machine.systemctl("stop", "cdrd")
            return _compare(machine, pbx, began)


def _begin_anew(machine: Machine, journal: Journal, ready: int, *, crash: bool) -> None:
    if crash:
        machine.kill("KILL")
    else:
        machine.systemctl("restart", "cdrd")
    journal.wait_for(times=ready, event="ready")


def _compare(machine: Machine, pbx: SendingPbx, began: float) -> Outcome:
    ids = [row["call_id"] for row in machine.read("SELECT call_id FROM calls")]
    lost = {call_id(number) for number in pbx.numbers}.difference(ids)
    doubled = len(ids) - len(set(ids))
    return Outcome(len(pbx.sent), len(lost), doubled, time.monotonic() - began)
