"""``cdrd import conferences``: a portal's CDR export, into the database or to its daemon."""

import argparse
import asyncio
import contextlib
import gzip
import os
import shutil
import sqlite3
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, Self, cast
from zoneinfo import ZoneInfo

import orjson
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from cdrd.batch import QuarantinedReport
from cdrd.commands.arguments import STDIN, Usage, add_config_argument, as_text, open_stdin
from cdrd.commands.zones import add_timezone_argument
from cdrd.config import Config, Portal, find_config, load_config
from cdrd.control import NoDaemon, RequestRefused, ask_daemon
from cdrd.exits import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, ConfigError
from cdrd.leg import ConferenceLeg, NotALeg, make_leg
from cdrd.leg_request import make_answer, make_request
from cdrd.leg_store import Arrival, store_legs
from cdrd.portal_file import BadRow, PortalFile, PortalFileError, Row
from cdrd.record import utc_milliseconds
from cdrd.sizes import KIB, PAYLOAD_BYTES
from cdrd.source import IMPORT
from cdrd.store import Store, StoreUnusable

SLICE_ROWS: Final = 500
SLICE_BYTES: Final = 256 * KIB
"""A slice is handed over once it is so large; the largest leg adds 324 KiB, of the request's 1 MiB.
"""

REASONS_SHOWN: Final = 10
PORTAL_COLUMN: Final = "portal"
"""No portal's own export has it: ours does, and different portals have the same CallIDs."""

GZIP_MAGIC: Final = b"\x1f\x8b"

EPILOG: Final = """\
The first line names the columns, in any order and case, with or without Extension; the cells are
parted by commas, semicolons or tabs. FILE may be - (standard input) or end in .gz. Importing
twice is the same as once, and an older state of a leg does not undo a newer one. What cannot be a
leg goes to quarantine.

examples:
  cdrd import conferences export.csv                          the only portal of the configuration
  cdrd import conferences --portal video 2017-*.csv           one of several
  cdrd import conferences --db new.sqlite3 --portal old --timezone America/New_York export.csv
"""


@dataclass(frozen=True, slots=True)
class _Source:
    """Whose legs the files hold."""

    portal: str
    zone: ZoneInfo


def add_conferences_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the files and where they are from."""
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_config_argument(parser)
    parser.add_argument(
        "--db", metavar="FILE", help="the database itself, made where there is none"
    )
    parser.add_argument("--portal", metavar="NAME", help="whose export the files are")
    told = "the time zone of a portal that is not configured, such as America/New_York"
    add_timezone_argument(parser, told)
    parser.add_argument("files", nargs="+", metavar="FILE", help="- is standard input")


def run_conferences(arguments: argparse.Namespace) -> int:
    """Import every file; say what became of it."""
    config = _config(arguments)
    database = arguments.db or config.database.path
    try:
        source = _source(config.portal, arguments.portal, arguments.timezone)
    except Usage as error:
        print(f"cdrd import conferences: {error}", file=sys.stderr)
        return EXIT_USAGE
    destination = _Destination(Path(database), config.database.durability)
    outcome = _import(arguments.files, source, destination)
    _say(outcome)
    return EXIT_FAILED if outcome.failed else EXIT_DONE


def _config(arguments: argparse.Namespace) -> Config:
    """Read the configuration, unless the options say all that is needed of it."""
    told = arguments.portal and arguments.timezone
    if arguments.db and not arguments.config and (told or not _is_there()):
        return Config()
    return load_config(find_config(arguments.config, os.environ))


def _is_there() -> bool:
    try:
        find_config(None, os.environ)
    except ConfigError:
        return False
    return True


def _source(portals: list[Portal], name: str | None, zone: ZoneInfo | None) -> _Source:
    """Return the portal that is meant. Raises Usage."""
    configured = {portal.name: portal for portal in portals}
    if name is None:
        if len(configured) != 1:
            known = ", ".join(configured) or "none"
            raise Usage(f"whose export is it? give --portal NAME (configured: {known})")
        (name,) = configured
    if not name.strip() or not name.isprintable():
        raise Usage(f"--portal {name!r} is no name: give one of printable characters")
    if name in configured:
        known_zone = ZoneInfo(configured[name].timezone)
        if zone not in (None, known_zone):
            raise Usage(f"portal {name!r} is configured in {known_zone}: take --timezone out")
        zone = known_zone
    if zone is None:
        raise Usage(
            f"no [[portal]] {name!r} is configured:"
            " give the zone of its times, such as --timezone America/New_York"
        )
    return _Source(name, zone)


@dataclass(slots=True)
class _Outcome:
    """What became of the files so far."""

    counts: Counter[str] = field(default_factory=Counter)
    told: dict[int, bool] = field(default_factory=dict)
    bad_rows: int = 0
    failed: bool = False

    def add(self, answer: dict[str, Any]) -> None:
        self.counts.update({name: answer[name] for name in _COUNTED})
        self.told.update(answer["told"])


_COUNTED: Final = ("stored", "updated", "unchanged", "quarantined")


def _import(files: list[str], source: _Source, destination: "_Destination") -> _Outcome:
    outcome = _Outcome()
    try:
        with destination:
            for name in files:
                _import_file(name, source, destination, outcome)
    except (StoreUnusable, RequestRefused, sqlite3.Error) as error:
        print(f"cdrd import conferences: {error}", file=sys.stderr)
        outcome.failed = True
    except KeyboardInterrupt:
        print("interrupted: import the same files again to complete it", file=sys.stderr)
        outcome.failed = True
    return outcome


def _say(outcome: _Outcome) -> None:
    undecided = list(outcome.told.values()).count(False)
    if undecided:
        print(
            f"{undecided} {'leg has' if undecided == 1 else 'legs have'} a time in an hour that a"
            " clock change repeated, and nothing tells in which pass of it: the earlier was taken",
            file=sys.stderr,
        )
    counted = ", ".join(f"{outcome.counts[name]} {name}" for name in _COUNTED)
    known = outcome.bad_rows - outcome.counts["quarantined"]
    if known > 0 and not outcome.failed:
        counted += f", {known} in quarantine already"
    print(counted, file=sys.stderr)


def _import_file(
    name: str, source: _Source, destination: "_Destination", outcome: _Outcome
) -> None:
    """Import one file; one that cannot be read keeps no other from it."""
    shown = "standard input" if name == STDIN else as_text(name)
    try:
        with _opened(name) as (file, raw), _progress(shown, raw) as advance:
            portal_file = PortalFile(file)
            for arrival in _arrivals(portal_file, shown, source, outcome):
                outcome.add(destination.store(arrival, source.zone.key))
                advance()
            if lines := portal_file.cp1252_lines:
                said = "lines that are not UTF-8, and were read as cp1252"
                print(f"{shown}: {said}: {lines}", file=sys.stderr)
    except (PortalFileError, OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        print(f"{shown}: {reason}", file=sys.stderr)
        outcome.failed = True


@contextlib.contextmanager
def _opened(name: str) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open a file that can go back to its start; return it, and whose size and place it has."""
    with contextlib.ExitStack() as stack:
        raw: BinaryIO
        if name == STDIN:
            raw = cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile()))
            shutil.copyfileobj(open_stdin(), raw)
        else:
            raw = stack.enter_context(Path(name).open("rb"))
        raw.seek(0)
        compressed = raw.read(2) == GZIP_MAGIC
        raw.seek(0)
        yield (cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if compressed else raw), raw


@contextlib.contextmanager
def _progress(shown: str, raw: BinaryIO) -> Iterator[Callable[[], None]]:
    """Show on a terminal how far the file has been read, each time the returned one is called."""
    size = os.fstat(raw.fileno()).st_size
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(escape(shown), total=size)
        yield lambda: progress.update(task, completed=raw.tell())


def _arrivals(
    portal_file: PortalFile, shown: str, source: _Source, outcome: _Outcome
) -> Iterator[Arrival]:
    """Part a file's rows into slices that fit into a request."""
    legs: list[ConferenceLeg] = []
    bad: list[QuarantinedReport] = []
    size = 0
    for row in portal_file.rows():
        made = _leg_or_reason(row, source)
        if isinstance(made, ConferenceLeg):
            legs.append(made)
            size += len(orjson.dumps(list(made)))
        else:
            _say_bad(f"{shown}:{row.line}: {made}", outcome)
            bad.append(_quarantined(row, made, shown, source))
            size += 2 * bad[-1].size
        if size >= SLICE_BYTES or len(legs) + len(bad) >= SLICE_ROWS:
            yield _arrival(source, legs, bad)
            legs, bad, size = [], [], 0
    if legs or bad:
        yield _arrival(source, legs, bad)


def _arrival(source: _Source, legs: list[ConferenceLeg], bad: list[QuarantinedReport]) -> Arrival:
    return Arrival(source.portal, source.zone, time.time(), legs=legs, quarantined=bad)


def _leg_or_reason(row: Row | BadRow, source: _Source) -> ConferenceLeg | str:
    """Make a row's leg. Raises PortalFileError where our own export says that it is another's."""
    if isinstance(row, BadRow):
        return row.reason
    told = row.fields.get(PORTAL_COLUMN, source.portal)
    if told != source.portal:
        raise PortalFileError(
            f"line {row.line} is of portal {told!r}, not of {source.portal!r}: import each portal's"
            " legs by themselves, as cdrd export conferences --portal NAME writes them"
        )
    try:
        return make_leg(row.fields, portal=source.portal, zone=source.zone)
    except NotALeg as error:
        return str(error)


def _quarantined(row: Row | BadRow, reason: str, shown: str, source: _Source) -> QuarantinedReport:
    payload = row.text.rstrip("\r\n").encode(errors="surrogateescape")
    return QuarantinedReport(
        received_at=utc_milliseconds(time.time()),
        pbx=source.portal,
        peer=f"{shown}:{row.line}",
        source=IMPORT,
        reason=reason,
        payload=payload[:PAYLOAD_BYTES],
        size=len(payload),
    )


def _say_bad(sentence: str, outcome: _Outcome) -> None:
    """Say what is wrong with the first bad rows; quarantine tells it of all."""
    outcome.bad_rows += 1
    if outcome.bad_rows <= REASONS_SHOWN:
        print(sentence, file=sys.stderr)
    elif outcome.bad_rows == REASONS_SHOWN + 1:
        print("more bad rows: cdrd quarantine list tells them", file=sys.stderr)


class _Destination:
    """The daemon that writes the database, or the database itself where none does."""

    def __init__(self, database: Path, durability: str) -> None:
        self._database = database
        self._durability = durability
        self._runner = asyncio.Runner()
        self._store: Store | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._store is not None:
            self._runner.run(self._store.close(0))
        self._runner.close()

    def store(self, arrival: Arrival, zone: str) -> dict[str, Any]:
        """Store legs and say what became of them. Raises what the database or its daemon does."""
        if self._store is None:
            try:
                return ask_daemon(self._database, make_request(arrival, zone))
            except NoDaemon:
                opening = Store.open(self._database, self._durability)
                self._store = self._runner.run(opening)
        return self._runner.run(_store_here(self._store, arrival))


async def _store_here(store: Store, arrival: Arrival) -> dict[str, Any]:
    """Store legs as the only writer."""
    outcome = await store.run(store_legs, arrival)
    store.wrote(len(arrival.legs))
    await store.checkpoint_if_due()
    return make_answer(outcome)
