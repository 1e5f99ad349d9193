"""Commits as the store does, on a connection of the test's own."""

import sqlite3

from cdrd.batch import Batch
from cdrd.store import Committed, committed_of
from cdrd.store import commit as store_commit


def commit(connection: sqlite3.Connection, batch: Batch, logged_seq: int = 0) -> Committed:
    """Store a batch, and tell what became of it."""
    return committed_of(store_commit(connection, batch, logged_seq), batch)
