"""``cdrd fetch``: the history that a PBX has of a time, stored here or by the daemon that runs.

The rule that must stay true: what was stored stays stored, whatever fails afterwards; the same
fetch again completes it, and adds nothing twice.
"""

import argparse
import asyncio
import contextlib
import os
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from zoneinfo import ZoneInfo

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from cdrd.batch import Batch
from cdrd.commands.arguments import Usage, add_config_argument
from cdrd.commands.trying import NotTried, command_guard
from cdrd.config import Config, History, Pbx, find_config, load_config
from cdrd.control import MAX_REQUEST_BYTES, NoDaemon, RequestRefused, ask_daemon
from cdrd.exits import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, ConfigError
from cdrd.fetch import PAD, Window, windows
from cdrd.gaps import FAILURES, Counts, Ways, fetch_window
from cdrd.handover import TooLarge, make_requests
from cdrd.history_api import open_history
from cdrd.login_guard import LoginGuard
from cdrd.pbx_api import account_of, family_of, trust_of
from cdrd.period import NotATime, make_period, read_instant
from cdrd.store import Store, StoreUnusable

DESCRIPTION: Final = """\
Asks each PBX with [pbx.history] for the calls that began in a range of time and stores those that
are missing, through the daemon where one runs; twice is the same as once. What can be no record
goes to quarantine.
"""


@dataclass(frozen=True, slots=True)
class _Task:
    """What one PBX is asked for."""

    pbx: Pbx
    history: History
    windows: Sequence[Window]


class _Custody(Protocol):
    """Where what is fetched goes."""

    async def keep(self, batch: Batch) -> Counts:
        """Store a batch durably; tell how much was stored, duplicate and quarantined."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add which PBX is asked for which time."""
    parser.description = DESCRIPTION
    add_config_argument(parser)
    parser.add_argument("--pbx", metavar="NAME", help="this one alone")
    parser.add_argument(
        "--from",
        dest="start",
        required=True,
        metavar="TIME",
        help="the calls that began from then on, a date or a time in the PBX's own time zone",
    )
    parser.add_argument(
        "--to", dest="end", required=True, metavar="TIME", help="until then, exclusive"
    )


def run(arguments: argparse.Namespace) -> int:
    """Ask each PBX, one after the other; say what came of it."""
    path = find_config(arguments.config, os.environ)
    config = load_config(path)
    try:
        tasks = _tasks(arguments, config, path)
        return asyncio.run(_fetch_all(tasks, config, path))
    except Usage as error:
        print(f"cdrd fetch: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (NoDaemon, RequestRefused, StoreUnusable) as error:
        print(f"cdrd fetch: {error}", file=sys.stderr)
    except (sqlite3.Error, TooLarge) as error:
        print(f"cdrd fetch: {config.database.path}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted: fetch the same again to complete it", file=sys.stderr)
    return EXIT_FAILED


def _tasks(arguments: argparse.Namespace, config: Config, path: Path) -> list[_Task]:
    """Work out who is asked for what. Raises Usage and ConfigError."""
    names = [pbx.name for pbx in config.pbx]
    if arguments.pbx is not None and arguments.pbx not in names:
        raise Usage(f"no PBX {arguments.pbx!r} is configured: give one of {names}")
    chosen = [pbx for pbx in config.pbx if arguments.pbx in (None, pbx.name)]
    tasks = [
        _Task(pbx, pbx.history, _windows(arguments.start, arguments.end, ZoneInfo(pbx.timezone)))
        for pbx in chosen
        if pbx.history is not None
    ]
    if not tasks:
        whose = "no PBX has one" if arguments.pbx is None else f"{arguments.pbx} has none"
        raise ConfigError(f"{path}: {whose}: add [pbx.history] with url, username, password_file")
    return tasks


def _windows(start: str, end: str, zone: ZoneInfo) -> list[Window]:
    """Part a range, of which no more is asked for than the PBX's clock may have come to."""
    try:
        make_period(start, end, zone)
        first, last = (read_instant(text, zone).timestamp() for text in (start, end))
    except NotATime as error:
        raise Usage(str(error)) from error
    latest = time.time() + PAD
    if first >= latest:
        raise Usage(f"--from {start} is to come: a history has only what has been")
    return list(windows(first, min(last, latest), zone))


async def _fetch_all(tasks: Sequence[_Task], config: Config, path: Path) -> int:
    status = EXIT_DONE
    database = Path(config.database.path)
    console = Console(stderr=True)
    async with _open_custody(database, config.database.durability) as custody:
        with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
            for task in tasks:
                guard = command_guard(database, task.pbx)
                if not await _fetch(task, guard, custody, path, progress):
                    status = EXIT_FAILED
    return status


async def _fetch(
    task: _Task, guard: LoginGuard, custody: _Custody, path: Path, progress: Progress
) -> bool:
    """Fetch all windows of one PBX; tell whether that could be done."""
    name, counts = task.pbx.name, Counter[str]()
    failure = ""
    shown = progress.add_task(escape(name), total=len(task.windows))
    try:
        api = await open_history(
            task.history.url,
            account_of(task.history, path),
            trust_of(task.history, path),
            guard,
            family_of(task.pbx.events),
        )
        ways = Ways(api, task.pbx.sender(), task.history.url, custody.keep)
        try:
            for window in task.windows:
                await fetch_window(window, ways, counts)
                progress.advance(shown)
        finally:
            await api.close()
    except (NotTried, *FAILURES) as error:
        failure = str(error) or "no answer in time"
    progress.remove_task(shown)
    if failure:
        print(f"cdrd fetch: {name}: {failure}", file=sys.stderr)
    if counts or not failure:
        print(f"{name}: {_summary(counts)}", file=sys.stderr)
    return not failure


def _summary(counts: Counts) -> str:
    """Say what became of all that was found; what quarantine had before only where there is any."""
    settled = counts["stored"] + counts["duplicate"] + counts["quarantined"]
    known = counts["found"] - settled
    return (
        f"{counts['found']} found, {counts['stored']} stored, {counts['duplicate']} already there,"
        f" {counts['quarantined']} quarantined"
    ) + (f", {known} in quarantine already" if known else "")


# The database


@contextlib.asynccontextmanager
async def _open_custody(database: Path, durability: str) -> AsyncIterator[_Custody]:
    """Reach the daemon that writes the database, or else become its only writer."""
    beside = _Beside(database)
    try:
        await beside.keep(Batch())
    except NoDaemon:
        store = await Store.open(database, durability)
        try:
            yield _Alone(store)
        finally:
            await store.close(0)
    else:
        yield beside


class _Beside:
    """A daemon that runs does the writing."""

    def __init__(self, database: Path) -> None:
        self._database = database

    async def keep(self, batch: Batch) -> Counts:
        """Hand a batch over."""
        counts: Counts = Counter()
        for request in make_requests(batch, MAX_REQUEST_BYTES):
            counts.update(await asyncio.to_thread(ask_daemon, self._database, request))
        return counts


class _Alone:
    """We are the only writer; the daemon logs the new rows at its next start."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def keep(self, batch: Batch) -> Counts:
        """Commit a batch."""
        committed = await self._store.commit(batch, 0)
        await self._store.checkpoint_if_due()
        return committed.counts
