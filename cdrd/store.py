"""Turns batches into durable rows: the only writer of the database, and its only checkpointer.

The rule that must stay true: a row is durable when ``commit`` returns, and one process writes. The
functions that it runs are whole transactions, each made in one trip to where the connection is.
"""

import asyncio
import contextlib
import fcntl
import math
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Concatenate, Final, Self

from cdrd.background import to_its_end
from cdrd.batch import Batch
from cdrd.connection import Arguments, Connection, Result, ThreadConnection
from cdrd.database import Checkpoint, check_whole, checkpoint, connect, is_damage, open_reader
from cdrd.owner import open_owned
from cdrd.row import Committed, Turn, commit_in_turn, committed_of
from cdrd.schema import PAGE_BYTES, NotOurDatabase
from cdrd.sizes import MIB
from cdrd.store_process import ProcessConnection, StoreProcess

LOCK_SECONDS: Final = 2.0
CHECKPOINT_PAGES: Final = 32 * MIB // PAGE_BYTES
PAGES_A_COMMIT: Final = 4  # the last leaf of the table and of its index, progress, and a parent
ROWS_A_PAGE: Final = 40  # beside their raw text


class StoreUnusable(Exception):
    """The database cannot be opened for writing; the text says why and what to do."""


class Store:
    """The database, open for writing; made with ``open``."""

    def __init__(
        self, path: Path, durability: str, lock: int, process: StoreProcess | None
    ) -> None:
        self.path = path
        self.damage = ""  # why the database cannot be used until it is replaced or repaired
        self.max_age_days = 0  # what began longer ago is deleted, in time; 0 keeps everything
        self.aged_at = -math.inf  # Unix seconds: when what was too old was last deleted, or before
        self._durability = durability
        self.when_replaced: Callable[[object], None] | None = None
        self._apart = process is not None
        self._started = process
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._lock = lock
        self._wal_pages = 0  # written since the last checkpoint, about

    @classmethod
    async def open(
        cls,
        path: Path,
        durability: str = "full",
        *,
        even_damaged: bool = False,
        process: StoreProcess | None = None,
    ) -> Self:
        """Open or create the database, migrate it and verify its settings. Raises StoreUnusable.

        ``even_damaged``: a damaged one makes a store that tells its ``damage`` and can be reopened.
        ``process``: where it works, in place of a thread of this one.
        """
        path = await asyncio.to_thread(path.resolve)  # one database, one lock, whatever its names
        try:
            store = cls(path, durability, await _lock(path), process)
        except StoreUnusable:
            if process is not None:
                process.abandon()
            raise
        try:
            await store._connect()
        except sqlite3.Error as error:
            if not (even_damaged and is_damage(error)):
                os.close(store._lock)
                raise StoreUnusable(f"{path}: {error}{_advice(error)}") from error
            store.damage = str(error)
        except BaseException:
            os.close(store._lock)
            raise
        return store

    async def reopen(self, take_up: Callable[[], Awaitable[None]]) -> None:
        """Open the database anew if it is whole again. Raises StoreUnusable, and sqlite3.Error.

        It is looked at by a reader first, so that a damaged file is left as it is; ``take_up`` is
        called before anything else is stored.
        """
        reader = await asyncio.to_thread(open_reader, self.path)
        try:
            looking = asyncio.to_thread(check_whole, reader)
            await to_its_end(looking, reader.interrupt)
        finally:
            reader.close()
        await to_its_end(self._begin_anew(take_up))

    async def give_up(self, damage: str) -> None:
        """Leave a damaged database as it is; nothing runs until it is reopened."""
        connection, self._connection = self._connection, None
        self.damage = damage
        self._wal_pages = 0
        if connection is not None:
            await connection.close()

    async def commit(self, batch: Batch, logged_seq: int, turn: Turn | None = None) -> Committed:
        """Store a batch durably; on any error nothing of it is stored. Raises sqlite3.Error.

        ``logged_seq``: up to where the log has told the rows, remembered with the same commit;
        ``turn``: where it may be asked for before the commit in front of it has returned.
        """
        outcome = await self.run(commit_in_turn, batch, logged_seq, turn or Turn())
        self._wal_pages += PAGES_A_COMMIT + batch.stored_size // PAGE_BYTES
        return committed_of(outcome, batch)

    @property
    def checkpoint_due(self) -> bool:
        """Whether the WAL has grown by 32 MiB since the last checkpoint, about."""
        return self._wal_pages >= CHECKPOINT_PAGES

    async def checkpoint_if_due(self) -> Checkpoint | None:
        """Copy the WAL into the database where that is due; never waits for readers."""
        if not self.checkpoint_due:
            return None
        self._wal_pages = 0
        return await self.run(checkpoint)

    async def run(
        self,
        function: Callable[Concatenate[sqlite3.Connection, Arguments], Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Run a function of the connection between two commits. Raises sqlite3.Error."""
        async with self._connecting:
            if self._connection is None:
                raise sqlite3.DatabaseError(f"the database is damaged: {self.damage}")
            if self._connection.ended:
                await self._connect_again(self._connection)
            connection = self._connection
        return await connection.run(function, *args, **kwargs)

    def wrote(self, rows: int) -> None:
        """Count rows that a function given to ``run`` has written, for ``checkpoint_if_due``."""
        self._wal_pages += PAGES_A_COMMIT + rows // ROWS_A_PAGE

    @property
    def oldest(self) -> float:
        """Since when (Unix seconds) nothing that began has been deleted for its age.

        What was deleted under another ``max_age_days`` is asked for again if this one keeps it.
        """
        days = self.max_age_days
        return self.aged_at - timedelta(days).total_seconds() if days else -math.inf

    @property
    def purge_from(self) -> float:
        """What ``keep_purge_from`` was told last, in this run or another.

        It is the lock's time of change; so before the first time it is when the lock was made.
        """
        return os.fstat(self._lock).st_mtime

    def keep_purge_from(self, instant: float) -> None:
        """Remember from when (Unix seconds) something may be too old. Raises OSError."""
        os.utime(self._lock, (instant, instant))

    async def close(self, logged_seq: int) -> None:
        """Close so that readers who may not write can go on reading."""
        connection, self._connection = self._connection, None
        try:
            if connection is not None:
                # Where it fails, the rows are safe in the WAL; lines may be told again.
                with contextlib.suppress(sqlite3.Error):
                    await connection.run(_finish, logged_seq)
                await connection.close()
        finally:
            os.close(self._lock)

    async def _begin_anew(self, take_up: Callable[[], Awaitable[None]]) -> None:
        await self._connect()
        try:
            await take_up()
        except BaseException:
            await self.give_up(self.damage)
            raise
        self.damage = ""

    async def _connect(self) -> None:
        opening = partial(connect, self.path, self._durability)
        try:
            if self._apart:
                process, self._started = self._started or StoreProcess(), None
                self._connection = await ProcessConnection.open(process, opening, self._lock)
            else:
                self._connection = await ThreadConnection.open(opening)
        except (NotOurDatabase, OSError) as error:
            raise StoreUnusable(f"{self.path}: {error}") from error

    async def _connect_again(self, ended: Connection) -> None:
        """Go on in a new process where the last one has ended. Raises sqlite3.Error."""
        status = await ended.close()
        try:
            await self._connect()
        except StoreUnusable as error:
            raise sqlite3.OperationalError(str(error)) from error
        if self.when_replaced is not None:
            self.when_replaced(status)


async def _lock(path: Path) -> int:
    """Hold the lock of the one writer for as long as the returned descriptor is open.

    The process of a daemon that was killed may hold it for a moment: it stores what it was given.
    """
    lock = _open_lock(path)
    deadline = time.monotonic() + LOCK_SECONDS
    while not _locked(lock):
        if time.monotonic() > deadline:
            os.close(lock)
            raise StoreUnusable(f"{path}: another cdrd is writing it; stop that one first")
        await asyncio.sleep(LOCK_SECONDS / 100)
    return lock


def _open_lock(path: Path) -> int:
    try:
        return open_owned(Path(f"{path}.lock"), 0o640, path)
    except OSError as error:
        denied = isinstance(error, PermissionError)
        advice = "create its directory"
        if denied:
            advice = "run this as the user whose directory it is (cdrd check tells whose each is)"
        raise StoreUnusable(
            f"{path}: {error.strerror}: {advice}, or name another path in [database]"
        ) from error


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _advice(error: sqlite3.Error) -> str:
    """Say what to do about an error, where its own text does not tell.

    A copy that was written over a file has no WAL yet; to begin one, nobody else may have it open.
    """
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
        return ": another program has it open; end that one first"
    return ""


def _finish(connection: sqlite3.Connection, logged_seq: int) -> None:
    connection.execute("UPDATE progress SET logged_seq = max(logged_seq, ?)", (logged_seq,))
    checkpoint(connection)
