"""What the tests ask of the process that stores: it imports this module to do it."""

import _sqlite3
import ctypes
import os
import sqlite3
from pathlib import Path

from cdrd.record import CallRecord


def process_id(_: sqlite3.Connection) -> int:
    return os.getpid()


def whole_records(connection: sqlite3.Connection) -> list[tuple[int, CallRecord]]:
    """Read all that is stored of each call, in the order of ``seq``."""
    found = connection.execute("SELECT * FROM call ORDER BY seq")
    return [(seq, CallRecord(*columns)) for seq, *columns in found]


def counted_memory(_: sqlite3.Connection) -> int:
    """Tell how many bytes SQLite has counted that it uses."""
    return int(ctypes.CDLL(_sqlite3.__file__).sqlite3_memory_used())


def end_process(_: sqlite3.Connection) -> None:
    os._exit(1)


def commit_and_end(connection: sqlite3.Connection, seq: int) -> None:
    connection.execute("UPDATE progress SET last_seq = ?", (seq,))
    os._exit(1)


def refuse(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO progress VALUES (2, 0, 0, x'')")


def wait_for_file(connection: sqlite3.Connection, path: str) -> int:
    """Wait, as a slow disk would make it, until somebody has written into a pipe."""
    with Path(path).open() as pipe:
        pipe.read()
    return connection.total_changes
