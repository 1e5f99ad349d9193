"""Commits through the store, or as it does on a connection of the test's own."""

import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

from cdrd.batch import Batch
from cdrd.database import open_reader
from cdrd.record import CallRecord
from cdrd.row import Committed, committed_of
from cdrd.row import commit as store_commit
from cdrd.store import Store
from tests.example import call


def commit(connection: sqlite3.Connection, batch: Batch, logged_seq: int = 0) -> Committed:
    """Store a batch, and tell what became of it."""
    return committed_of(store_commit(connection, batch, logged_seq), batch)


def calls(first: int, count: int) -> list[CallRecord]:
    return [call(number) for number in range(first, first + count)]


def batch_of(records: list[CallRecord]) -> Batch:
    batch = Batch()
    for record in records:
        batch.add(record)
    return batch


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    reader = open_reader(path)
    try:
        return reader.execute(query).fetchall()
    finally:
        reader.close()


@contextlib.asynccontextmanager
async def opened(path: Path, durability: str = "full", logged_seq: int = 0) -> AsyncIterator[Store]:
    """Close the store after a failure too: its thread would keep the tests from ending."""
    store = await Store.open(path, durability)
    try:
        yield store
    finally:
        await store.close(logged_seq)
