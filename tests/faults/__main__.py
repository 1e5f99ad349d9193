"""The long form of the faults: one command, one table."""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from tests.faults.chaos import bring_through_chaos
from tests.faults.clocks import set_clock
from tests.faults.gaps import cut_line, kill_under_posts, stop_hearing
from tests.faults.kills import kill_in_rounds
from tests.faults.outcome import Outcome
from tests.faults.points import (
    kill_daemon_at_points,
    kill_storing_in_checkpoints,
    kill_storing_in_commits,
    kill_while_draining,
)
from tests.faults.power import lose_power
from tests.faults.soak import soak
from tests.faults.starts import start_with_much_behind
from tests.faults.storms import (
    end_under_load,
    kill_what_stores,
    reconnect_storm,
    reload_under_load,
    restart_with_kept_connections,
)
from tests.faults.systemd import kill_under_systemd, restart_under_systemd
from tests.faults.troubles import (
    disk_fills,
    lock_held,
    reader_stopped,
    slow_syncs,
    syncs_fail,
    writes_fail,
)


class Fault(NamedTuple):
    """A line of the table: what is done, how often, and by which function of how often."""

    name: str
    times: int
    run: Callable[[int], Outcome]
    may_lose: bool = False  # what was received in the last moments; nothing may ever be doubled


FAULTS = (
    Fault("SIGKILL at a random moment", 1000, kill_in_rounds, may_lose=True),
    Fault("restart, the connection kept", 50, partial(restart_with_kept_connections, crash=False)),
    Fault(
        "SIGKILL, the connection kept",
        50,
        partial(restart_with_kept_connections, crash=True),
        may_lose=True,
    ),
    Fault("SIGKILL of the process that stores", 100, kill_what_stores),
    Fault("reload, every third file broken", 100, reload_under_load),
    Fault("SIGKILL of it at three points of a commit", 5, kill_storing_in_commits),
    Fault("SIGKILL of it at two points of a checkpoint", 5, kill_storing_in_checkpoints),
    Fault("SIGKILL at two points", 20, kill_daemon_at_points, may_lose=True),
    Fault("SIGKILL while a spool is drained", 10, kill_while_draining),
    Fault("syncs that fail for a while", 5, syncs_fail),
    Fault("writes that fail for a while", 5, writes_fail),
    Fault("300 ms a sync for a while", 5, slow_syncs),
    Fault("a disk that is full for a while", 5, disk_fills),
    Fault("another program's lock for a while", 5, lock_held),
    Fault("a clock that is set, forward and back", 200, set_clock),
    Fault("a reader that is stopped", 1, reader_stopped),
    Fault("restart by systemd", 20, restart_under_systemd),
    Fault("SIGKILL under systemd", 20, kill_under_systemd, may_lose=True),
    Fault("a start on 10,000,000 rows", 1, lambda _: start_with_much_behind(10_000_000)),
    Fault("SIGTERM", 1, lambda _: end_under_load()),
    Fault("loss of power", 200, lose_power),
    Fault("50 PBXs with 3,000 records each", 1, lambda _: reconnect_storm(50, 3000)),
    Fault("a network that splits, delays, half-closes, resets", 25, bring_through_chaos),
    Fault("line cut for so many seconds", 60, cut_line),
    Fault("daemon killed for so many seconds", 60, stop_hearing),
    Fault("SIGKILL while PBXs post", 100, kill_under_posts),
    Fault("all ways in, with churn, for so many seconds", 1800, soak),
)


def main() -> int:
    """Run all of it, or what is named; the exit status is 1 where a promise was not kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("words", nargs="*", help="only the faults with one of these in the name")
    parser.add_argument("--times", type=int, help="how often, in place of what each has")
    arguments = parser.parse_args()
    table = Table("fault", "times", "sent", "lost", "doubled", "seconds", "remarks")
    broken: list[str] = []
    for fault in FAULTS:
        if arguments.words and not any(word in fault.name for word in arguments.words):
            continue
        if arguments.times:
            fault = fault._replace(times=arguments.times)  # noqa: PLW2901 - the same fault
        outcome = _run(fault)
        print(outcome, file=sys.stderr, flush=True)  # an hour's table may be cut short
        broken += (f"{fault.name}: {promise}" for promise in outcome.broken)
        figures = (fault.times, outcome.sent, outcome.lost, outcome.doubled)
        shown = (f"{figure:,}" for figure in figures)
        table.add_row(fault.name, *shown, f"{outcome.seconds:.1f}", outcome.remark)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for promise in broken:
        console.print(f"not kept: {promise}", markup=False)
    return 1 if broken else 0


def _run(fault: Fault) -> Outcome:
    """Do it; a promise that was not kept does not keep the other faults from being tried."""
    print(fault.name, file=sys.stderr, flush=True)
    began = time.monotonic()
    try:
        outcome = fault.run(fault.times)
    except AssertionError as error:
        return Outcome(0, 0, 0, time.monotonic() - began, broken=(str(error) or repr(error),))
    kept = {
        "nothing is lost": fault.may_lose or not outcome.lost,
        "nothing is doubled": not outcome.doubled,
    }
    missed = tuple(promise for promise, is_kept in kept.items() if not is_kept)
    return outcome._replace(broken=(*outcome.broken, *missed))


if __name__ == "__main__":
    sys.exit(main())
