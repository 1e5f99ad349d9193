"""The long form of the faults: one command, one table."""

import argparse
import sys

from rich.console import Console
from rich.table import Table

from tests.faults.kills import Kills, kill_under_load
from tests.faults.storms import (
    Outcome,
    end_under_load,
    kill_what_stores,
    reconnect_storm,
    reload_under_load,
    restart_with_kept_connections,
)

ROUND = 100
"""So many kills on one database: it is looked through whole after each."""


def main() -> int:
    """Run all of it; the exit status is 1 where a promise was not kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--restarts", type=int, default=100)
    parser.add_argument("--reloads", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    table = Table("fault", "times", "sent", "lost", "doubled", "remarks")
    faults: list[str] = []

    def add(name: str, times: int, outcome: Outcome) -> None:
        seconds = f"{outcome.seconds:.1f} s"
        shown = (times, outcome.sent, outcome.lost, outcome.doubled)
        table.add_row(name, *(f"{figure:,}" for figure in shown), seconds)

    kills = Kills()
    while kills.kills < arguments.kills:
        seed = arguments.seed + kills.kills
        kills.add(kill_under_load(min(ROUND, arguments.kills - kills.kills), rate=2000, seed=seed))
        print(kills, file=sys.stderr, flush=True)
    faults += kills.faults
    figures = (kills.kills, kills.sent, kills.lost, kills.doubled)
    table.add_row("SIGKILL at a random moment", *(f"{figure:,}" for figure in figures), str(kills))
    restarts = arguments.restarts
    ended = restart_with_kept_connections(restarts, crash=False)
    add("restart, connection kept", restarts, ended)
    crashed = restart_with_kept_connections(restarts, crash=True)
    add("SIGKILL, connection kept", restarts, crashed)
    unstored = kill_what_stores(arguments.restarts, rate=2000, seed=arguments.seed)
    add("SIGKILL of the process that stores", arguments.restarts, unstored)
    reloaded = reload_under_load(arguments.reloads)
    add("reload, every third file broken", arguments.reloads, reloaded)
    stopped = end_under_load()
    add("SIGTERM", 1, stopped)
    storm = reconnect_storm(50, 3000)
    add("50 PBXs with 3,000 records each", 1, storm)
    for name, outcome in (
        ("restart", ended),
        ("SIGKILL of the process that stores", unstored),
        ("reload", reloaded),
        ("SIGTERM", stopped),
    ):
        if outcome.lost or outcome.doubled:
            faults.append(f"nothing is lost or doubled by a {name}")
    if crashed.doubled or storm.lost or storm.doubled:
        faults.append("nothing is doubled by a crash, and nothing lost in a storm")
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    for fault in faults:
        console.print(f"not kept: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
