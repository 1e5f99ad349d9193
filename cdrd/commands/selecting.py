"""Arguments of the commands that select records: which ones, and in whose time zone."""

import argparse
import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from datetime import UTC, tzinfo
from pathlib import Path

from cdrd.commands.arguments import Usage, add_database_arguments, existing, text
from cdrd.commands.zones import add_timezone_argument, zone_of
from cdrd.config import Config, Pbx, Portal, find_config, load_config
from cdrd.database import open_reader
from cdrd.period import NotATime, lacks_offset, make_period
from cdrd.schema import NotOurDatabase, check_tables
from cdrd.selection import Selection
from cdrd.store import StoreUnusable


def add_selection_arguments(parser: argparse.ArgumentParser, records: str) -> None:
    """Add what selects ``records``: ``calls`` or ``conferences``."""
    add_database_arguments(parser)
    parser.add_argument(
        "--from", dest="start", default="", metavar="TIME", help="from then on, inclusive"
    )
    parser.add_argument(
        "--to", dest="end", default="", metavar="TIME", help="until then, exclusive"
    )
    add_timezone_argument(parser, "of --from and --to (default: the configured one)")
    sender = "pbx" if records == "calls" else "portal"
    _add_several(parser, f"--{sender}", "senders", "NAME", f"only of this {sender}")
    if records == "calls":
        parser.set_defaults(tenants=[])
    else:
        _add_several(parser, "--tenant", "tenants", "NAME", "only of this tenant")
    _add_several(parser, "--status", "statuses", "WORD", "such as ANSWERED or COMPLETED")
    _add_several(parser, "--type", "types", "WORD", "such as Inbound, or C for a conference")
    parser.add_argument(
        "--number", type=text, default="", help="caller or callee, whole; * stands for any digits"
    )


def _add_several(
    parser: argparse.ArgumentParser, flag: str, dest: str, metavar: str, told: str
) -> None:
    parser.add_argument(
        flag,
        dest=dest,
        type=text,
        action="append",
        default=[],
        metavar=metavar,
        help=f"{told} (may be repeated)",
    )


def selected(
    arguments: argparse.Namespace, records: str, *, tells_times: bool = False
) -> tuple[Path, Selection, tzinfo]:
    """Return the database, what is selected from it, and the zone of the times given.

    ``tells_times``: the zone is needed even where no time is given. Raises ConfigError, and Usage.
    """
    config = None if arguments.db else load_config(find_config(arguments.config, os.environ))
    database = existing(Path(config.database.path if config else arguments.db))
    zone = arguments.timezone or UTC
    dated = lacks_offset(arguments.start) or lacks_offset(arguments.end)
    if not arguments.timezone and (dated or tells_times):
        zone = _configured_zone(config, records, arguments.senders)
    try:
        period = make_period(arguments.start, arguments.end, zone)
    except NotATime as error:
        raise Usage(str(error)) from error
    selection = Selection(
        period,
        tuple(arguments.senders),
        tuple(arguments.tenants),
        tuple(arguments.statuses),
        tuple(arguments.types),
        arguments.number,
    )
    return database, selection, zone


def _configured_zone(config: Config | None, records: str, names: Sequence[str]) -> tzinfo:
    """Return the zone of the PBXs or portals asked for; UTC with --db. Raises Usage."""
    if config is None:
        return UTC
    configured: Sequence[Pbx | Portal] = config.pbx if records == "calls" else config.portal
    return zone_of(configured, names)


@contextlib.contextmanager
def open_selected(database: Path) -> Iterator[sqlite3.Connection]:
    """Open a database to read what is selected. Raises StoreUnusable, also while it is read."""
    try:
        with contextlib.closing(open_reader(database)) as reader:
            check_tables(reader)
            yield reader
    except (sqlite3.Error, NotOurDatabase) as error:
        raise StoreUnusable(f"{database}: {error}") from error
