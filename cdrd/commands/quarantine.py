"""``cdrd quarantine``: what could not become a record, and what to do about it."""

import argparse
import asyncio
import contextlib
import os
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cdrd.background import to_its_end
from cdrd.commands.arguments import (
    add_config_argument,
    add_database_arguments,
    database_path,
    existing,
)
from cdrd.commands.selecting import open_selected
from cdrd.commands.tables import printable
from cdrd.config import Config, find_config, load_config
from cdrd.control import NoDaemon, RequestRefused, ask_daemon
from cdrd.exits import EXIT_DONE, EXIT_FAILED
from cdrd.quarantine import Kept, drop_quarantined, read_quarantine, retry
from cdrd.record import MAX_INTEGER
from cdrd.store import Store, StoreUnusable

IDS_A_REQUEST: Final = 100
"""With 64 KiB each it is 6 MiB that the daemon reads and decodes at once."""


class _Interrupted(Exception):
    """Work that was ended before its end; the text says how far it came and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the four things one does with quarantine."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="the newest, a line each")
    add_database_arguments(listing)
    listing.add_argument(
        "--limit", type=_limit, default=100, metavar="N", help="how many (default 100)"
    )
    listing.set_defaults(action=_list)
    showing = actions.add_parser("show", help="one, with its bytes")
    add_database_arguments(showing)
    showing.add_argument("ids", type=_id, nargs="+", metavar="ID")
    showing.set_defaults(action=_show)
    retrying = actions.add_parser("retry", help="decode again; what is a record now is stored")
    add_config_argument(retrying)
    _add_ids(retrying)
    retrying.set_defaults(action=_retry)
    dropping = actions.add_parser("drop", help="delete for ever")
    add_config_argument(dropping)
    _add_ids(dropping)
    dropping.set_defaults(action=_drop)


def _add_ids(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("ids", type=_id, nargs="*", default=[], metavar="ID")
    which.add_argument("--all", action="store_true", help="everything in quarantine")


def _limit(text: str) -> int:
    limit = int(text)
    if not 0 <= limit <= MAX_INTEGER:
        raise argparse.ArgumentTypeError(f"{text} is no number from 0 to {MAX_INTEGER}")
    return limit


def _id(text: str) -> int:
    quarantine_id = int(text)
    if not 0 <= quarantine_id <= MAX_INTEGER:
        raise argparse.ArgumentTypeError(f"{text} is no id: cdrd quarantine list tells them")
    return quarantine_id


def run(arguments: argparse.Namespace) -> int:
    """Do the action."""
    try:
        status: int = arguments.action(arguments)
    except (sqlite3.Error, StoreUnusable, RequestRefused, _Interrupted) as error:
        print(f"cdrd quarantine: {error}", file=sys.stderr)
        return EXIT_FAILED
    return status


def _list(arguments: argparse.Namespace) -> int:
    kept = _read(database_path(arguments), None, arguments.limit)
    table = Table(box=None, pad_edge=False)
    for heading in ("id", "received_at", "pbx", "peer", "source", "size", "reason"):
        table.add_column(heading, no_wrap=heading != "reason", overflow="fold")
    for quarantine_id, report in kept:
        cells = (quarantine_id, report.received_at, report.pbx, report.peer, report.source)
        shown = [*map(str, cells), str(report.size), report.reason]
        table.add_row(*(Text(printable(cell)) for cell in shown))
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    with console.capture() as captured:  # by itself it would end with 1 on a closed pipe
        console.print(table)
    print(captured.get(), end="")
    return EXIT_DONE


def _show(arguments: argparse.Namespace) -> int:
    kept = _read(database_path(arguments), arguments.ids)
    for quarantine_id, report in kept:
        for name, value in zip(report._fields, report, strict=True):
            if name != "payload":
                print(f"{name}: {printable(str(value))}")
        print(f"payload of {quarantine_id}, {len(report.payload)} bytes:")
        print(printable(report.payload.decode(errors="backslashreplace")))
    return _say_missing(arguments.ids, [quarantine_id for quarantine_id, _ in kept])


def _retry(arguments: argparse.Namespace) -> int:
    config, database = _configured(arguments)
    ids = _ids(database, arguments)
    settled: Counter[str] = Counter()
    staying = 0
    with _unfinished_is_told(database, ids):
        for some in _slices(ids):
            try:
                answer = ask_daemon(database, {"do": "retry", "ids": some})
            except NoDaemon:
                answer = asyncio.run(to_its_end(_retry_here(config, database, some)))
            for quarantine_id, reason in answer["staying"]:
                print(f"{quarantine_id} stays: {printable(reason)}")
            staying += len(answer["staying"])
            settled.update({name: answer[name] for name in ("resolved", "stored", "duplicate")})
    print(
        f"{settled['resolved']} resolved: {settled['stored']} records stored,"
        f" {settled['duplicate']} were stored already; {staying} stay",
        file=sys.stderr,
    )
    missing = _say_missing(arguments.ids, ids)
    return EXIT_FAILED if staying else missing


async def _retry_here(config: Config, database: Path, ids: Sequence[int]) -> dict[str, Any]:
    """Retry as the only writer; the daemon logs the new rows at its next start."""
    store = await Store.open(database, config.database.durability)
    try:
        kept = await store.run(read_quarantine, ids)
        senders = [pbx.sender() for pbx in config.pbx]
        retried = retry(kept, senders, config.tcp.max_report_bytes)
        committed = await store.commit(retried.batch, 0)
    finally:
        await store.close(0)
    return {
        "resolved": len(retried.batch.resolved),
        "stored": committed.added,
        "duplicate": committed.duplicates,
        "staying": retried.staying,
    }


def _drop(arguments: argparse.Namespace) -> int:
    config, database = _configured(arguments)
    ids = _ids(database, arguments)
    dropped = 0
    with _unfinished_is_told(database, ids):
        for some in _slices(ids):
            try:
                dropped += ask_daemon(database, {"do": "drop", "ids": some})["dropped"]
            except NoDaemon:
                dropped += asyncio.run(to_its_end(_drop_here(config, database, some)))
    print(f"{dropped} dropped", file=sys.stderr)
    return _say_missing(arguments.ids, ids)


async def _drop_here(config: Config, database: Path, ids: Sequence[int]) -> int:
    store = await Store.open(database, config.database.durability)
    try:
        return await store.run(drop_quarantined, ids)
    finally:
        await store.close(0)


def _configured(arguments: argparse.Namespace) -> tuple[Config, Path]:
    """Return the configuration and its database, which there is. Raises ConfigError."""
    config = load_config(find_config(arguments.config, os.environ))
    return config, existing(Path(config.database.path))


def _read(database: Path, ids: Sequence[int] | None, limit: int = -1) -> list[Kept]:
    with open_selected(database) as reader:
        return read_quarantine(reader, ids, limit)


@contextlib.contextmanager
def _unfinished_is_told(database: Path, ids: Sequence[int]) -> Iterator[None]:
    """Say how far it has come where Ctrl-C ends it, or the reader of what it prints has left."""
    try:
        yield
    except (KeyboardInterrupt, BrokenPipeError) as error:
        gone = len(set(ids).difference(_all_ids(database)))
        raise _Interrupted(
            f"interrupted: {gone} of {len(ids)} have left quarantine; the same again does the rest"
        ) from error


def _ids(database: Path, arguments: argparse.Namespace) -> list[int]:
    """Return those of the ids asked for that are in quarantine."""
    found = _all_ids(database)
    return found if arguments.all else sorted(set(arguments.ids).intersection(found))


def _all_ids(database: Path) -> list[int]:
    with open_selected(database) as reader:
        return [row[0] for row in reader.execute("SELECT id FROM quarantine ORDER BY id")]


def _slices(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + IDS_A_REQUEST] for start in range(0, len(ids), IDS_A_REQUEST))


def _say_missing(ids: Sequence[int], there: Sequence[int]) -> int:
    missing = sorted(set(ids).difference(there))
    for quarantine_id in missing:
        print(f"{quarantine_id}: not in quarantine", file=sys.stderr)
    return EXIT_FAILED if missing else EXIT_DONE
