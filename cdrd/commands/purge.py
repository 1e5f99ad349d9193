"""``cdrd purge``: deletes records by date and origin, in small steps beside a running daemon."""

import argparse
import asyncio
import contextlib
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, tzinfo
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import Progress

from cdrd.commands.arguments import Usage, add_config_argument, existing, text
from cdrd.commands.selecting import open_selected
from cdrd.commands.zones import add_timezone_argument, zone_of
from cdrd.config import Config, find_config, load_config
from cdrd.control import NoDaemon, RequestRefused, ask_daemon
from cdrd.exits import EXIT_DONE, EXIT_FAILED, EXIT_USAGE
from cdrd.period import NotATime, lacks_offset, read_instant, spell_instant
from cdrd.purge import Place, Purge, Step, count, make_request, take_step
from cdrd.store import Store, StoreUnusable

NAMES: Final = {
    "call": "calls",
    "conference_leg": "conference legs",
    "quarantined_report": "quarantined reports",
}

DESCRIPTION: Final = """\
Deletes what began before a time: calls, conference legs, and quarantined reports by when they came.
--pbx: the calls and quarantined reports of this PBX alone; --tenant: the conference legs of this
tenant alone. A running daemon goes on storing meanwhile. What is deleted is gone: look at it first
with --dry-run, and make a copy with cdrd backup. [database] max_age_days does this by itself.
"""

TakeStep = Callable[[str, Place], Step]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is to be deleted."""
    parser.description = DESCRIPTION
    add_config_argument(parser)
    parser.add_argument(
        "--before", required=True, metavar="TIME", help="a date or time, not in the future"
    )
    add_timezone_argument(parser, "of --before (default: the configured one)")
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("--pbx", type=text, default="", metavar="NAME", help="only of this PBX")
    origin.add_argument(
        "--tenant", type=text, default="", metavar="NAME", help="only of this tenant"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say how much it would be")


def run(arguments: argparse.Namespace) -> int:
    """Delete, or say how much it would be."""
    config = load_config(find_config(arguments.config, os.environ))
    database = existing(Path(config.database.path))
    deleted: dict[str, int] = {}
    try:
        purge = _purge(arguments, config)
        with open_selected(database) as reader:
            there = {table: count(reader, purge, table) for table in purge.tables}
        if arguments.dry_run:
            print(f"before {purge.before}: {_told(there)} would be deleted", file=sys.stderr)
            return EXIT_DONE
        with _open_steps(database, config, purge) as step:
            _take_all(purge, there, step, deleted)
    except Usage as error:
        print(f"cdrd purge: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (StoreUnusable, RequestRefused, NoDaemon, sqlite3.Error) as error:
        print(f"cdrd purge: {error}", file=sys.stderr)
        return _say(purge, deleted, EXIT_FAILED)
    except KeyboardInterrupt:
        print("interrupted: the same again deletes the rest", file=sys.stderr)
        return _say(purge, deleted, EXIT_FAILED)
    return _say(purge, deleted, EXIT_DONE)


def _say(purge: Purge, deleted: dict[str, int], status: int) -> int:
    print(f"before {purge.before}: {_told(deleted)} deleted", file=sys.stderr)
    return status


def _told(counts: dict[str, int]) -> str:
    return ", ".join(f"{rows:,} {NAMES[table]}" for table, rows in counts.items()) or "nothing"


def _purge(arguments: argparse.Namespace, config: Config) -> Purge:
    """Return what is asked for. Raises Usage."""
    try:
        before = read_instant(arguments.before, _zone(arguments, config))
    except NotATime as error:
        raise Usage(str(error)) from error
    if before > datetime.now(UTC):
        raise Usage(f"--before {arguments.before} is in the future: it would delete everything")
    return Purge(spell_instant(before), arguments.pbx, arguments.tenant)


def _zone(arguments: argparse.Namespace, config: Config) -> tzinfo:
    """Return the zone of --before. Raises Usage."""
    if arguments.timezone or not lacks_offset(arguments.before):
        return arguments.timezone or UTC
    portals = [] if arguments.pbx else config.portal
    pbxs = [] if arguments.tenant else config.pbx
    return zone_of([*portals, *pbxs], [arguments.pbx] if arguments.pbx else [])


@contextlib.contextmanager
def _open_steps(database: Path, config: Config, purge: Purge) -> Iterator[TakeStep]:
    """Have the daemon that runs take the steps, or else take them as the only writer."""
    try:
        ask_daemon(database, {"do": "drop", "ids": []})  # it is there, and changes nothing
    except NoDaemon:
        with asyncio.Runner() as runner:
            store = runner.run(Store.open(database, config.database.durability))
            try:
                yield partial(_step_here, runner, store, purge)
            finally:
                runner.run(store.close(0))
    else:
        yield partial(_step_there, database, purge)


def _step_there(database: Path, purge: Purge, table: str, place: Place) -> Step:
    answer = ask_daemon(database, make_request(purge, table, place))
    return Step(answer["deleted"], answer["place"] and Place(*answer["place"]))


def _step_here(
    runner: asyncio.Runner, store: Store, purge: Purge, table: str, place: Place
) -> Step:
    return runner.run(store.run(take_step, purge, table, place))


def _take_all(purge: Purge, there: dict[str, int], step: TakeStep, deleted: dict[str, int]) -> None:
    """Take one step after the other, with as long a rest between two as the step took."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        for table in purge.tables:
            bar = progress.add_task(NAMES[table], total=there[table])
            deleted[table] = 0
            place: Place | None = Place()
            while place is not None:
                began = time.monotonic()
                taken, place = step(table, place)
                deleted[table] += taken
                progress.advance(bar, taken)
                if place is not None:
                    time.sleep(time.monotonic() - began)  # the daemon's own work goes first
