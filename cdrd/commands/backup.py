"""``cdrd backup``: a consistent copy of the database beside a running daemon, verified."""

import argparse
import contextlib
import errno
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console
from rich.progress import DownloadColumn, Progress

from cdrd.commands.arguments import add_database_arguments, database_path, text
from cdrd.database import open_reader
from cdrd.exits import EXIT_DONE, EXIT_FAILED
from cdrd.schema import NotOurDatabase, check_schema, check_tables
from cdrd.target import CannotWrite, check_apart, check_free, drafts, is_device

MODE: Final = 0o640
"""As the database's: the copy holds the same numbers and PIN codes."""

INSTRUCTIONS: Final = 200_000
"""So many of SQLite's steps pass between two looks at how far the copy has grown."""

DESCRIPTION: Final = """\
One file with all that was committed when it was begun: every table, as it stands, without gaps of
what was deleted. It is checked (PRAGMA integrity_check) before it appears under its name. The
daemon goes on meanwhile; its WAL grows until the copy is made. A copy is used by naming it in
[database] path, or with --db.
"""


class BadCopy(Exception):
    """A copy that is not what it was made from."""


class Contents(NamedTuple):
    """What a database holds, as far as it tells one from another."""

    calls: int
    last_seq: int
    legs: int
    quarantined: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the copy's name."""
    parser.description = DESCRIPTION
    add_database_arguments(parser)
    parser.add_argument("--force", action="store_true", help="replace the file where there is one")
    parser.add_argument("file", type=_file, metavar="FILE", help="the copy")


def _file(given: str) -> Path:
    path = Path(given)
    text(str(path.absolute()))
    return path


def run(arguments: argparse.Namespace) -> int:
    """Copy and verify."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    database = database_path(arguments)
    try:
        _check_file(arguments.file, database, replace=arguments.force)
        with drafts([arguments.file], replace=arguments.force) as [draft]:
            copied = _copy(database, draft, arguments.file)
            _check_file(arguments.file, database, replace=arguments.force)
    except (sqlite3.Error, NotOurDatabase, BadCopy) as error:
        print(f"cdrd backup: {database}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except CannotWrite as error:
        print(f"cdrd backup: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("cdrd backup: interrupted: there is no copy", file=sys.stderr)
        return EXIT_FAILED
    print(
        f"{arguments.file}: {copied.calls:,} calls up to seq {copied.last_seq},"
        f" {copied.legs:,} conference legs, {copied.quarantined:,} in quarantine; verified",
        file=sys.stderr,
    )
    return EXIT_DONE


def _check_file(path: Path, database: Path, *, replace: bool) -> None:
    """Find out whether the copy may appear there. Raises CannotWrite.

    A WAL that is there would be played into it: it is of another database, or of an earlier copy
    that something was written to.
    """
    if is_device(path):
        raise CannotWrite(f"{path} is no regular file: name one")
    check_apart([path], database)
    check_free([path], replace=replace)
    for ending in ("-wal", "-shm", "-journal"):
        beside = Path(f"{os.path.realpath(path)}{ending}")
        if os.path.lexists(beside):
            raise CannotWrite(
                f"{beside} is there and would be read as a part of the copy: name another file, or"
                f" remove {path} with its -wal, -shm and -journal once no program uses it"
            )


def _copy(database: Path, draft: Path, file: Path) -> Contents:
    """Copy the database and return what the copy holds.

    Raises BadCopy, CannotWrite for the disk of the draft of ``file``, and sqlite3.Error.
    """
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), DownloadColumn(binary_units=True))
    with (
        contextlib.closing(open_reader(database)) as reader,
        Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar,
    ):
        check_tables(reader)
        before = _last_seq(reader)
        copying = bar.add_task("copying", total=_size(reader))

        def show() -> None:
            bar.update(copying, completed=draft.stat().st_size if draft.exists() else 0)

        if not bar.disable:
            reader.set_progress_handler(show, INSTRUCTIONS)
        draft.touch(MODE)
        try:
            reader.execute("VACUUM INTO ?", (str(draft),))
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            raise CannotWrite(f"{file}: {os.strerror(errno.ENOSPC)}") from error
        after = _last_seq(reader)
        bar.update(copying, description="verifying", completed=draft.stat().st_size)
        copied = _verify(draft)
    if not before <= copied.last_seq <= after:
        raise BadCopy(f"the copy ends with seq {copied.last_seq}, not within {before} to {after}")
    return copied


def _verify(copy: Path) -> Contents:
    """Look whether a copy is whole, and return what it holds. Raises BadCopy."""
    with contextlib.closing(open_reader(copy)) as reader:
        check_schema(reader)
        faults = [text for (text,) in reader.execute("PRAGMA integrity_check(3)")]
        if faults != ["ok"]:
            raise BadCopy(f"the copy is not whole: {'; '.join(faults)}")
        counts = [
            reader.execute(f"SELECT count(*) FROM {view}").fetchone()[0]  # noqa: S608 - our names
            for view in ("call", "conference_leg", "quarantined_report")
        ]
        return Contents(counts[0], _last_seq(reader), *counts[1:])


def _last_seq(reader: sqlite3.Connection) -> int:
    """Return the highest ``seq`` ever given, which a deletion does not lower."""
    (last_seq,) = reader.execute("SELECT last_seq FROM progress").fetchone()
    return int(last_seq)


def _size(reader: sqlite3.Connection) -> int:
    (pages,) = reader.execute("PRAGMA page_count").fetchone()
    (page_size,) = reader.execute("PRAGMA page_size").fetchone()
    return int(pages) * int(page_size)
