"""Turns every page and index of the database into what is wrong with them.

The rule that must stay true: a look changes nothing, and a daemon that runs goes on storing. A
table at a time: for as long as one takes, the WAL cannot be reused.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cdrd.database import open_reader

MOST_FAULTS: Final = 3
"""Of a table: one damaged page is told of many times."""


def check_integrity(database: Path) -> list[str]:
    """Look at all of the database; return what is wrong with it, and what to do."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as progress:
        progress.add_task("integrity", total=None)
        faults = list(_faults(database))
    advice = (
        "stop cdrd, move it away with its -wal and -shm, put a backup or what SQLite's .recover"
        " makes of it (Debian 12's sqlite3 cannot) in its place, as the same user's, and start"
    )
    return [f"{database} is damaged ({'; '.join(faults)}): {advice}"] if faults else []


def _faults(database: Path) -> Iterator[str]:
    try:
        with contextlib.closing(open_reader(database)) as reader:
            query = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name"
            for (table,) in reader.execute(query).fetchall():
                yield from _faults_of(reader, table)
    except sqlite3.DatabaseError as error:
        yield str(error)


def _faults_of(reader: sqlite3.Connection, table: str) -> Iterator[str]:
    found = [text for (text,) in reader.execute(f"PRAGMA integrity_check('{table}')")]
    if found != ["ok"]:
        yield from found[:MOST_FAULTS]
