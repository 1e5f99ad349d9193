"""``cdrd import calls``: call records from files, stored here or by the daemon that runs."""

import argparse
import asyncio
import contextlib
import gzip
import os
import sqlite3
import stat
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Final, cast
from zoneinfo import ZoneInfo

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from cdrd.batch import Batch, Waiting
from cdrd.capture import (
    BLANKS,
    HEAD_BYTES,
    NotImportable,
    OptionNeeded,
    Provenance,
    open_capture,
)
from cdrd.commands.arguments import STDIN, Usage, add_config_argument, as_text, open_stdin
from cdrd.commands.zones import add_timezone_argument
from cdrd.config import Config, find_config, load_config
from cdrd.control import MAX_REQUEST_BYTES, NoDaemon, RequestRefused, ask_daemon
from cdrd.exits import EXIT_DONE, EXIT_FAILED, EXIT_USAGE
from cdrd.handover import TooLarge, make_requests
from cdrd.record import utc_milliseconds
from cdrd.sender import Sender
from cdrd.sizes import KIB, MIB
from cdrd.store import Store, StoreUnusable
from cdrd.stream import Totals

CHUNK_BYTES: Final = 64 * KIB
SLICE_RECORDS: Final = 1000
SLICE_BYTES: Final = 2 * MIB

DESCRIPTION: Final = """\
Call records from files into the database; twice is the same as once. What a file holds is told
from its content:

  a PBX's history     CSV; the first line names the columns, callid and timestart among them
  captured reports    JSON objects as a PBX sends them, in any dialect, other events between them
  cdrd's own export   lines of cdrd export calls --format jsonl, or of cdrd follow: each row comes
                      back as it was, with its seq where that is free
  cdrd's own log      call_released lines, written with [log] numbers = "full": a number that was
                      masked or hashed looks like any other and would be stored as it is. What the
                      log leaves out (PIN code, DID number, local time) is empty or worked out

Reports and history are of one PBX, --pbx; export and log name theirs. FILE may be - (standard
input) or end in .gz. What cannot be a record goes to quarantine.
"""

EPILOG: Final = """\
examples:
  cdrd import calls history.csv                           the only PBX of the configuration
  cdrd import calls --pbx hq captured.jsonl               one of several
  cdrd import calls --db new.sqlite3 export.jsonl.gz      into a database of its own
  cdrd import calls --pbx old --timezone Europe/Berlin history.csv   a PBX that is not configured
  journalctl -u cdrd -o cat | cdrd import calls -         from the log
"""


def add_calls_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the files and where they are from."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_config_argument(parser)
    parser.add_argument(
        "--db", metavar="FILE", help="the database itself, made where there is none"
    )
    parser.add_argument("--pbx", metavar="NAME", help="whose reports or history the files hold")
    told = "the time zone of a PBX that is not configured, such as Europe/Berlin"
    add_timezone_argument(parser, told)
    parser.add_argument("files", nargs="+", metavar="FILE", help="- is standard input")


class _Failed(Exception):
    """A file or a database that fails; the text says which and why."""


_FAILURES: Final = (_Failed, NoDaemon, RequestRefused, StoreUnusable)

Sink = Callable[[Batch], Counter[str]]
"""Stores a batch durably; tells how much was stored, duplicate and quarantined."""


def run_calls(arguments: argparse.Namespace) -> int:
    """Import every file; say what became of it."""
    config = _configured(arguments)
    counts: Counter[str] = Counter()
    status = EXIT_DONE
    try:
        provenance = _provenance(config, arguments)
        _check_files(arguments.files)
        with _open_sink(Path(arguments.db or config.database.path), config) as sink:
            _import_files(arguments.files, provenance, sink, counts)
    except Usage as error:
        print(f"cdrd import calls: {error}", file=sys.stderr)
        status = EXIT_USAGE
    except _FAILURES as error:
        print(f"cdrd import calls: {error}", file=sys.stderr)
        status = EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted: import the same again to complete it", file=sys.stderr)
        status = EXIT_FAILED
    if counts.total() or status == EXIT_DONE:
        print(_summary(counts), file=sys.stderr)
    return status


def _configured(arguments: argparse.Namespace) -> Config:
    """Return the configuration, or where ``--db`` stands for one the defaults."""
    if arguments.db and not arguments.config:
        return Config()
    return load_config(find_config(arguments.config, os.environ))


def _provenance(config: Config, arguments: argparse.Namespace) -> Provenance:
    """Tell whose records the files hold, as far as options and configuration say."""
    zones = {pbx.name: ZoneInfo(pbx.timezone) for pbx in config.pbx}
    name, zone = arguments.pbx, arguments.timezone
    if name is None:
        only = next(iter(zones)) if len(zones) == 1 else None
        return Provenance(None if only is None else Sender(only, zones[only]), zones, zone)
    if not (name.strip() and name.isprintable()):
        raise Usage(f"--pbx {name!r}: give a name of printable characters")
    if zones.get(name, zone) is None:
        raise Usage(f"no PBX {name!r} is configured: give its --timezone, or one of {[*zones]}")
    if zone is not None and zones.get(name, zone) != zone:
        raise Usage(f"PBX {name!r} is configured in {zones[name]}: take --timezone out")
    return Provenance(Sender(name, zones.get(name, zone)), zones, zone)


def _check_files(names: Sequence[str]) -> None:
    """Find out what cannot be read before anything is stored."""
    for name in names:
        if name == STDIN:
            continue
        try:
            is_directory = stat.S_ISDIR(Path(name).stat().st_mode)
        except OSError as error:
            raise _Failed(f"{name}: {error.strerror}") from error
        if is_directory or not os.access(name, os.R_OK):
            raise _Failed(f"{name}: {'is a directory' if is_directory else 'may not be read'}")


@contextlib.contextmanager
def _open_sink(path: Path, config: Config) -> Iterator[Sink]:
    """Reach the daemon that writes the database, or else become its only writer."""
    ask = partial(_ask, path)
    try:
        ask(Batch())
    except NoDaemon:
        with asyncio.Runner() as runner:
            store = runner.run(Store.open(path, config.database.durability))
            try:
                yield partial(_commit, runner, store)
            finally:
                runner.run(store.close(0))
    else:
        yield ask


def _ask(path: Path, batch: Batch) -> Counter[str]:
    counts: Counter[str] = Counter()
    try:
        for request in make_requests(batch, MAX_REQUEST_BYTES):
            counts.update(ask_daemon(path, request))
    except TooLarge as error:
        raise _Failed(f"{path}: {error}: stop the daemon and import again") from error
    return counts


def _commit(runner: asyncio.Runner, store: Store, batch: Batch) -> Counter[str]:
    """Commit as the only writer; the daemon logs the new rows at its next start."""
    try:
        committed = runner.run(store.commit(batch, 0))
        runner.run(store.checkpoint_if_due())
    except sqlite3.Error as error:
        raise _Failed(f"{store.path}: {error}") from error
    return committed.counts


def _import_files(
    names: Sequence[str], provenance: Provenance, sink: Sink, counts: Counter[str]
) -> None:
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        for name in names:
            try:
                with _open(name, progress) as file:
                    _import_file(file, name, provenance, sink, counts)
            except OptionNeeded as error:
                raise Usage(f"{name}: {error}") from error
            except NotImportable as error:
                raise _Failed(f"{name}: {error}") from error
            except (OSError, EOFError, zlib.error) as error:
                raise _Failed(f"{name}: cannot be read: {error}") from error


@contextlib.contextmanager
def _open(name: str, progress: Progress) -> Iterator[BinaryIO]:
    """Open a file, decompressed, so that the progress bar follows its bytes."""
    if name == STDIN:
        yield open_stdin()
        return
    with Path(name).open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        shown = escape(as_text(Path(name).name))
        file = progress.wrap_file(opened, size, description=shown) if size else opened
        if name.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=file) as decompressed:
                yield cast(BinaryIO, decompressed)
        else:
            yield file


def _import_file(
    file: BinaryIO, name: str, provenance: Provenance, sink: Sink, counts: Counter[str]
) -> None:
    waiting, totals = Waiting(SLICE_BYTES), Totals()
    head = _read_head(file)
    shown = as_text(name)
    stream = open_capture(head, provenance, name=shown, waiting=waiting, totals=totals)
    if stream is None:
        return
    try:
        for chunk in chain([head], iter(partial(file.read, CHUNK_BYTES), b"")):
            stream.receive(chunk, utc_milliseconds(time.time()))
            if len(waiting) >= SLICE_RECORDS or waiting.full:
                _store(waiting, sink, counts)
        stream.close("the file ends in the middle of a report", utc_milliseconds(time.time()))
        _store(waiting, sink, counts)
    finally:
        counts["passed_over"] += totals.passed_over


def _read_head(file: BinaryIO) -> bytes:
    """Read what the file's kind is told from, behind any blanks; a pipe may give it in pieces."""
    head = b""
    while len(head) < HEAD_BYTES and (piece := file.read(HEAD_BYTES - len(head))):
        head = (head + piece).lstrip(BLANKS)
    return head


def _store(waiting: Waiting, sink: Sink, counts: Counter[str]) -> None:
    batch, waiting.arriving = waiting.arriving, Batch()
    if not batch:
        return
    settled = sink(batch)
    counts.update(settled)
    counts["known"] += len(batch) - settled.total()


def _summary(counts: Counter[str]) -> str:
    """Say what became of everything read; what quarantine had before is told where there is any."""
    known = f", {counts['known']} in quarantine already" if counts["known"] else ""
    return (
        f"{counts['stored']} stored, {counts['duplicate']} duplicates,"
        f" {counts['quarantined']} quarantined{known},"
        f" {counts['passed_over']} other events passed over"
    )
