"""Turns what one run knows into what the next one goes on from.

The rule that must stay true: what is remembered is never ahead of what is stored.
"""

import sqlite3
from dataclasses import dataclass
from typing import Final

from cdrd.record import CallRecord
from cdrd.schema import transaction

_TOLD: Final = ", ".join(["seq", *CallRecord._fields[:-1], "'' AS raw"])


@dataclass(frozen=True, slots=True)
class Progress:
    """What earlier runs left behind."""

    logged_seq: int
    number_key: bytes


def read_progress(connection: sqlite3.Connection) -> Progress:
    """Read up to where the log has told the rows, and the key for hashed numbers."""
    return Progress(*connection.execute("SELECT logged_seq, number_key FROM progress").fetchone())


def read_records(
    connection: sqlite3.Connection, after: int, limit: int
) -> list[tuple[int, CallRecord]]:
    """Read the stored records behind a ``seq``, in order, with an empty ``raw``.

    No line tells that text, and it may be as long as a report.
    """
    query = f"SELECT {_TOLD} FROM call WHERE seq > ? ORDER BY seq LIMIT ?"  # noqa: S608 - ours
    found = connection.execute(query, (after, limit))
    return [(seq, CallRecord(*columns)) for seq, *columns in found]


def read_complete_until(connection: sqlite3.Connection, pbx: str) -> int | None:
    """Read up to when (Unix seconds) a PBX's records are known to be complete."""
    query = "SELECT complete_until FROM fetched_history WHERE pbx = ?"
    found = connection.execute(query, (pbx,)).fetchone()
    return None if found is None else int(found[0])


def set_complete_until(connection: sqlite3.Connection, pbx: str, instant: float) -> None:
    """Remember up to when (Unix seconds) a PBX's records are known to be complete."""
    with transaction(connection):
        row = (pbx, int(instant))
        connection.execute("INSERT OR REPLACE INTO fetched_history VALUES (?, ?)", row)
