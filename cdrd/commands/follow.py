"""``cdrd follow``: stored calls as JSON lines, then each new one as it is committed."""

import argparse
import contextlib
import select
import sqlite3
import sys
from pathlib import Path
from typing import Any, Final

import orjson

from cdrd.commands.arguments import add_database_arguments, database_path, text
from cdrd.database import open_reader
from cdrd.exits import EXIT_DONE, EXIT_FAILED
from cdrd.record import MAX_INTEGER
from cdrd.schema import NotOurDatabase, check_tables
from cdrd.target import identity

POLL_SECONDS: Final = 0.05
PAGE_ROWS: Final = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where to begin and whose calls to show."""
    add_database_arguments(parser)
    parser.add_argument(
        "--since",
        type=_seq,
        default=0,
        metavar="SEQ",
        help="only calls behind this seq (default 0: all)",
    )
    parser.add_argument("--pbx", type=text, metavar="NAME", help="only this PBX's calls")


def _seq(text: str) -> int:
    seq = int(text)
    if not 0 <= seq <= MAX_INTEGER:
        raise argparse.ArgumentTypeError(f"{text} is no seq: give a number from 0 to {MAX_INTEGER}")
    return seq


def run(arguments: argparse.Namespace) -> int:
    """Follow until interrupted."""
    path = database_path(arguments)
    try:
        _follow(path, arguments.since, arguments.pbx)
    except (sqlite3.Error, NotOurDatabase) as error:
        print(f"cdrd follow: {path}: {error}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_DONE


def _follow(path: Path, start: int, pbx: str | None) -> None:
    """Print what is there; then look whenever another connection has committed.

    Between the pages no transaction is open, so that the WAL is never pinned.
    """
    files, reader = _files(path), _open(path)
    since = start
    seen: int | None = None
    while True:
        if (found := _files(path)) != files:
            reader.close()  # first: SQLite shares what it has open of a file that was written over
            files, reader = found, _reopen(path)
            shown, seen = since, None
            since = max(start, min(shown, _last(reader)))
            if since < shown:
                remark = f"cdrd follow: {path}: is an older one now, and goes on behind {since}"
                print(remark, file=sys.stderr)
        (version,) = reader.execute("PRAGMA data_version").fetchone()
        if version == seen:
            _pause()
            continue
        seen = version
        while rows := _read_page(reader, since):
            since = rows[-1]["seq"]
            for row in rows:
                if pbx in (None, row["pbx"]):
                    sys.stdout.buffer.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            sys.stdout.buffer.flush()


def _files(path: Path) -> list[tuple[int, int] | None]:
    """Tell the database's files from those that take their place, as when a backup is put back."""
    resolved = path.resolve()  # a WAL stands beside the file, not beside a link to it
    return [identity(Path(f"{resolved}{ending}")) for ending in ("", "-wal")]


def _open(path: Path) -> sqlite3.Connection:
    reader = open_reader(path)
    check_tables(reader)
    return reader


def _reopen(path: Path) -> sqlite3.Connection:
    """Wait until what is to take the database's place is there, and can be read."""
    while True:
        with contextlib.suppress(sqlite3.Error, NotOurDatabase):
            return _open(path)
        _pause()


def _pause() -> None:
    """Let a moment pass. Raises BrokenPipeError once whoever reads our output has left."""
    stdout = select.poll()
    stdout.register(sys.stdout, 0)  # for nothing but an error or a hang-up, which are always told
    if stdout.poll(POLL_SECONDS * 1000):
        raise BrokenPipeError


def _last(reader: sqlite3.Connection) -> int:
    (last,) = reader.execute("SELECT ifnull(max(seq), 0) FROM calls").fetchone()
    return int(last)


def _read_page(reader: sqlite3.Connection, since: int) -> list[dict[str, Any]]:
    """Read the next rows of any PBX: a page without the one wanted must move on too."""
    found = reader.execute(
        "SELECT * FROM calls WHERE seq > ? ORDER BY seq LIMIT ?", (since, PAGE_ROWS)
    )
    names = [column[0] for column in found.description]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
