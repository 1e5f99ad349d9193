"""Turns batches into rows: the only writer of the database, and its only checkpointer.

The rule that must stay true: a batch is committed whole or not at all, a row is durable when
``commit`` returns, and one record is one row. The functions that take a ``sqlite3.Connection`` are
whole transactions; aiosqlite runs each in its thread in one trip (a trip costs about 84 us).
"""

import asyncio
import contextlib
import fcntl
import math
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Concatenate, Final, NamedTuple, Self

from cdrd.background import to_its_end
from cdrd.batch import Batch, QuarantinedReport, RestoredCall, quarantine_of
from cdrd.block import StoredRows, rows_of
from cdrd.connection import Arguments, Connection, Result, ThreadConnection
from cdrd.frame import KIB
from cdrd.record import MAX_INTEGER, CallRecord
from cdrd.schema import PAGE_BYTES, NotOurDatabase, check_schema, migrate, transaction
from cdrd.store_process import ProcessConnection, StoreProcess

MIB: Final = KIB * KIB
BUSY_TIMEOUT_MS: Final = 5_000
LOCK_SECONDS: Final = 2.0
WAL_LIMIT_BYTES: Final = 64 * MIB
"""The WAL file is cut back to this when it is reused; a reader that pins it makes it larger."""

CHECKPOINT_PAGES: Final = 16 * MIB // PAGE_BYTES
PAGES_A_COMMIT: Final = 4  # the last leaf of the table and of its index, progress, and a parent
ROWS_A_PAGE: Final = 40  # beside their raw text

ROWS_A_STATEMENT: Final = 40
"""One row a statement halves the rate; 20 took a tenth longer, and 80 or 120 were no faster."""

IMPORT: Final = "import"
"""The source of what comes from a file."""

PORTAL: Final = "portal"
"""The source of what is read from a portal's table."""

HISTORY: Final = "history"
"""The source of what a PBX is asked for."""

READ_AGAIN: Final = (IMPORT, PORTAL, HISTORY)

SYNCHRONOUS: Final = {"full": 2, "normal": 1}

_POISON: Final = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    UnicodeError,
)

_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class StoreUnusable(Exception):
    """The database cannot be opened for writing; the text says why and what to do."""


class Outcome(NamedTuple):
    """What one commit made of a batch, without the records, which whoever asked for it has."""

    seqs: Sequence[int]  # of each record; 0 where it added no row
    restored: Sequence[int]  # likewise
    duplicates: int
    quarantined: list[tuple[int, QuarantinedReport]]


@dataclass(frozen=True, slots=True)
class Committed:
    """What one commit made of a batch: its new rows, and what added none."""

    rows: StoredRows
    restored: StoredRows
    duplicates: int
    quarantined: list[tuple[int, QuarantinedReport]]

    @property
    def added(self) -> int:
        """How many rows are new."""
        return self.rows.count + self.restored.count

    @property
    def stored(self) -> list[tuple[int, CallRecord]]:
        """The new rows' records, each behind its ``seq``, in the order received."""
        return self.rows.records() + self.restored.records()


def committed_of(outcome: Outcome, batch: Batch) -> Committed:
    """Tell what became of a batch with its records."""
    restored = zip(outcome.restored, (call.record for call in batch.restored), strict=True)
    return Committed(
        StoredRows(outcome.seqs, batch.blocks),
        rows_of([(seq, record) for seq, record in restored if seq]),
        outcome.duplicates,
        outcome.quarantined,
    )


class Turn(NamedTuple):
    """The number of a commit among those of a run, and of the one that it must follow, if any."""

    number: int = 0
    behind: int = 0


class WriterConnection(sqlite3.Connection):
    """The connection that commits; it knows which turn it has committed last."""

    last_turn = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a checkpoint came: pages in the WAL, and those of them copied to the database."""

    pages: int
    copied: int

    @property
    def pinned_bytes(self) -> int:
        """Bytes that a reader's open transaction keeps in the WAL."""
        return (self.pages - self.copied) * PAGE_BYTES


class Store:
    """The database, open for writing; made with ``open``."""

    def __init__(
        self, path: Path, durability: str, lock: int, process: StoreProcess | None
    ) -> None:
        self.path = path
        self.damage = ""  # why the database cannot be used until it is replaced or repaired
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
                await process.abandon()
            raise
        try:
            await store._connect()
        except sqlite3.Error as error:
            if not (even_damaged and is_damage(error)):
                os.close(store._lock)
                raise StoreUnusable(f"{path}: {error}") from error
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
            looking = asyncio.to_thread(_check_whole, reader)
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
            await self._close_behind_a_reader(connection)

    async def commit(self, batch: Batch, logged_seq: int, turn: Turn | None = None) -> Committed:
        """Store a batch durably; on any error nothing of it is stored. Raises sqlite3.Error.

        ``logged_seq``: up to where the log has told the rows, remembered with the same commit;
        ``turn``: where it may be asked for before the commit in front of it has returned.
        """
        outcome = await self.run(commit_in_turn, batch, logged_seq, turn or Turn())
        self._wal_pages += PAGES_A_COMMIT + batch.stored_size // PAGE_BYTES
        return committed_of(outcome, batch)

    async def checkpoint_if_due(self) -> Checkpoint | None:
        """Copy the WAL into the database once it has grown by 16 MiB; never waits for readers."""
        if self._wal_pages < CHECKPOINT_PAGES:
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

    async def close(self, logged_seq: int) -> None:
        """Close so that readers who may not write can go on reading."""
        connection, self._connection = self._connection, None
        try:
            if connection is not None:
                # Where it fails, the rows are safe in the WAL; lines may be told again.
                with contextlib.suppress(sqlite3.Error):
                    await connection.run(_finish, logged_seq)
                await self._close_behind_a_reader(connection)
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
        connect = partial(_connect, self.path, self._durability)
        try:
            if self._apart:
                process, self._started = self._started or StoreProcess(), None
                self._connection = await ProcessConnection.open(process, connect, self._lock)
            else:
                self._connection = await ThreadConnection.open(connect)
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

    async def _close_behind_a_reader(self, connection: Connection) -> None:
        """Close a connection without an end to the WAL.

        The last connection to close copies the WAL and deletes it, and a read-only reader cannot
        make it anew; so a connection that may do neither closes last.
        """
        reader = None
        try:
            with contextlib.suppress(sqlite3.Error):
                reader = await asyncio.to_thread(open_reader, self.path)
        finally:
            await connection.close()
            if reader is not None:
                reader.close()


def is_damage(error: sqlite3.Error) -> bool:
    """Tell a damaged database from one that is only locked, full or out of reach for a while."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE


def open_reader(path: Path) -> sqlite3.Connection:
    """Open the database read-only, as every program but the daemon does. Raises sqlite3.Error."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    reader = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    try:
        reader.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.Error:
        reader.close()
        raise
    return reader


def _check_whole(reader: sqlite3.Connection) -> None:
    """Read all of the database. Raises sqlite3.Error when it is damaged."""
    (found,) = reader.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(str(found))


def commit_in_turn(
    connection: sqlite3.Connection, batch: Batch, logged_seq: int, turn: Turn
) -> Outcome:
    """Store a batch unless the commit that it is to follow has failed: that one comes first."""
    assert isinstance(connection, WriterConnection)
    if turn.behind and turn.behind != connection.last_turn:
        raise sqlite3.OperationalError("the commit in front of it has failed")
    outcome = commit(connection, batch, logged_seq)
    connection.last_turn = turn.number
    return outcome


def commit(connection: sqlite3.Connection, batch: Batch, logged_seq: int) -> Outcome:
    """Store a batch in one transaction: optimistically, and row by row where that fails."""
    try:
        return _commit(connection, batch, logged_seq, _insert_new)
    except (_NotAllNew, *_POISON):
        return _commit(connection, batch, logged_seq, _insert_each)


def checkpoint(connection: sqlite3.Connection) -> Checkpoint:
    """Copy what no reader still needs from the WAL into the database, without waiting."""
    _, pages, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return Checkpoint(pages, copied)


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
    """Read the stored records behind a ``seq``, in order."""
    found = connection.execute(
        "SELECT * FROM call WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit)
    )
    return [(seq, CallRecord(*columns)) for seq, *columns in found]


def read_refusals(connection: sqlite3.Connection, pbx: str) -> list[float]:
    """Read when a PBX refused our login, in Unix seconds."""
    found = connection.execute("SELECT refused_at FROM refused_login WHERE pbx = ?", (pbx,))
    return [refused_at for (refused_at,) in found]


def remember_refusal(connection: sqlite3.Connection, pbx: str, refused_at: float) -> None:
    """Remember a refused login, and forget those that no lock-out counts any more."""
    with transaction(connection):
        oldest = int(refused_at) - 3600
        connection.execute("DELETE FROM refused_login WHERE refused_at < ?", (oldest,))
        refusal = (pbx, math.ceil(refused_at))
        connection.execute("INSERT INTO refused_login VALUES (?, ?)", refusal)


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


def wal_reset_bug(version: tuple[int, int, int]) -> bool:
    """Tell whether a SQLite version can corrupt a WAL that two connections write at one instant.

    Source: sqlite.org, "the WAL-reset bug": 3.7.0 to 3.51.2, mended in 3.44.6 and 3.50.7 too.
    """
    if version[:2] == (3, 44):
        return version < (3, 44, 6)
    if version[:2] == (3, 50):
        return version < (3, 50, 7)
    return (3, 7, 0) <= version < (3, 51, 3)


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
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise StoreUnusable(
            f"{path}: {error.strerror}: create its directory, or name another path in [database]"
        ) from error
    if os.geteuid() == 0 and path.exists():
        owner = path.stat()  # a command that root runs must not shut the daemon out
        os.fchown(lock, owner.st_uid, owner.st_gid)
    return lock


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _connect(path: Path, durability: str) -> WriterConnection:
    # SQLite gives the WAL the mode of the database: the group may read, others may not.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640))
    connection = sqlite3.connect(
        path, isolation_level=None, cached_statements=32, factory=WriterConnection
    )
    try:
        check_schema(connection)  # before anything is changed
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")  # before journal_mode
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute(
            "PRAGMA auto_vacuum = INCREMENTAL"
        )  # only ever set before the first table
        _set(connection, "journal_mode", "wal")
        _set(connection, "synchronous", SYNCHRONOUS[durability])
        _set(connection, "wal_autocheckpoint", 0)
        _set(connection, "journal_size_limit", WAL_LIMIT_BYTES)
        migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _set(connection: sqlite3.Connection, pragma: str, value: str | int) -> None:
    """Make a setting and read it back: a setting that did not take is a promise broken."""
    connection.execute(f"PRAGMA {pragma} = {value}").fetchall()
    (found,) = connection.execute(f"PRAGMA {pragma}").fetchone()
    if found != value:
        raise sqlite3.OperationalError(f"PRAGMA {pragma} stays {found}, {value} is needed")


def _commit(
    connection: sqlite3.Connection,
    batch: Batch,
    logged_seq: int,
    insert: Callable[[sqlite3.Connection, Batch, int], "_Inserted"],
) -> Outcome:
    with transaction(connection):
        (last_seq,) = connection.execute(
            "SELECT max(last_seq, ifnull((SELECT max(seq) FROM call), 0)) FROM progress"
        ).fetchone()
        seqs, refused = insert(connection, batch, last_seq + 1)
        restored, unfit = _restore(connection, batch.restored, max(last_seq, *seqs, 0))
        refused = [*refused, *unfit]
        last_seq = max(last_seq, *seqs, *restored, 0)
        untold = min(filter(None, restored), default=MAX_INTEGER)
        # What came out of quarantine stays there when the database refuses its record.
        resolved = [] if refused else batch.resolved
        reports = batch.quarantined if batch.resolved else [*batch.quarantined, *refused]
        quarantined = insert_quarantined(connection, reports, repeated=batch.repeated)
        for quarantine_id in resolved:
            connection.execute("DELETE FROM quarantined_report WHERE id = ?", (quarantine_id,))
        connection.execute(
            "UPDATE progress SET last_seq = ?, logged_seq = min(max(logged_seq, ?), ?)",
            (last_seq, logged_seq, untold - 1),  # a row told twice is better than one not told
        )
    added_none = [*seqs, *restored].count(0)
    return Outcome(seqs, restored, added_none - len(refused), quarantined)


_Inserted = tuple[Sequence[int], list[QuarantinedReport]]
"""The ``seq`` of each record, 0 where it has added no row; and what the database has refused."""


class _NotAllNew(Exception):
    """A record of the batch is stored already, or twice in it."""


def _insert_new(connection: sqlite3.Connection, batch: Batch, seq: int) -> _Inserted:
    """Insert records that are all new, many a statement. Raises _NotAllNew."""
    columns = batch.columns()
    width = len(CallRecord._fields)
    whole = batch.count - batch.count % ROWS_A_STATEMENT
    inserted = 0
    for row in range(0, whole, ROWS_A_STATEMENT):
        rows = columns[row * width : (row + ROWS_A_STATEMENT) * width]
        inserted += connection.execute(_INSERT_MANY, [seq + row, *rows]).rowcount
    for row in range(whole, batch.count):
        columns_of_row = columns[row * width : (row + 1) * width]
        inserted += connection.execute(_INSERT_ONE, [seq + row, *columns_of_row]).rowcount
    if inserted < batch.count:
        raise _NotAllNew
    return range(seq, seq + batch.count), []


def _insert_each(connection: sqlite3.Connection, batch: Batch, seq: int) -> _Inserted:
    """Insert records one by one: a duplicate adds no row, one that SQLite refuses costs itself."""
    return _insert_records(connection, batch.records, seq)


def _insert_records(
    connection: sqlite3.Connection, records: Iterable[CallRecord], seq: int
) -> _Inserted:
    seqs: list[int] = []
    refused = []
    for record in records:
        inserted = 0
        try:
            inserted = connection.execute(_INSERT_ONE, [seq, *record]).rowcount
        except _POISON as error:
            refused.append(quarantine_of(record, f"refused by the database: {error}"))
        else:
            if not inserted and not _is_stored(connection, record):
                why = "refused by the database: another record has its identity"
                refused.append(quarantine_of(record, why))
        seqs.append(seq * inserted)
        seq += inserted
    return seqs, refused


def _is_stored(connection: sqlite3.Connection, record: CallRecord) -> bool:
    return connection.execute(_SAME_RECORD, record._asdict()).fetchone() is not None


def _restore(
    connection: sqlite3.Connection, calls: Sequence[RestoredCall], last_seq: int
) -> _Inserted:
    """Insert records under their own ``seq`` where it is free, else under the next one."""
    seqs: list[int] = []
    refused: list[QuarantinedReport] = []
    for wanted, record, local_told in calls:
        if not local_told and connection.execute(_SAME_LOGGED, record._asdict()).fetchone():
            seqs.append(0)
            continue
        free = wanted > last_seq or not connection.execute(_SEQ_TAKEN, (wanted,)).fetchone()
        added, unfit = _insert_records(connection, [record], wanted if free else last_seq + 1)
        last_seq = max(last_seq, *added)
        seqs += added
        refused += [report._replace(source=IMPORT) for report in unfit]
    return seqs, refused


def add_quarantined_once(
    connection: sqlite3.Connection, reports: Sequence[QuarantinedReport]
) -> int:
    """Put into quarantine what a file holds (source ``import``); return how much of it was new.

    The same bytes of the same PBX are there once, however often the file is imported: a commit of
    a ``Batch`` sees to that likewise.
    """
    with transaction(connection):
        return len(insert_quarantined(connection, reports))


def insert_quarantined(
    connection: sqlite3.Connection,
    reports: Sequence[QuarantinedReport],
    *,
    repeated: bool = False,
) -> list[tuple[int, QuarantinedReport]]:
    """Insert reports within a transaction, and return them with their ids.

    What comes again, because a file is imported or a portal is read again, is left out; so is,
    when they are ``repeated``, what is there with the same time, peer and bytes.
    """
    quarantined = []
    for report in reports:
        query = _QUARANTINE_REPEATED if repeated else _QUARANTINE
        if report.source in READ_AGAIN:
            query = _QUARANTINE_ONCE
        inserted = connection.execute(query, report)
        if inserted.rowcount:
            assert inserted.lastrowid is not None
            quarantined.append((inserted.lastrowid, report))
    return quarantined


def _finish(connection: sqlite3.Connection, logged_seq: int) -> None:
    connection.execute("UPDATE progress SET logged_seq = max(logged_seq, ?)", (logged_seq,))
    checkpoint(connection)


def _insert(rows: int) -> str:
    width = len(CallRecord._fields)
    values = []
    for row in range(rows):
        columns = ", ".join(f"?{row * width + column + 2}" for column in range(width))
        values.append(f"(?1 + {row}, {columns})")
    # Only the identity may conflict in silence; any other fault of a row is an error.
    conflict = (
        "ON CONFLICT (started_at, call_id, identity) DO NOTHING "
        "ON CONFLICT (started_local, call_id, identity) WHERE identity < 0 DO NOTHING"
    )
    return f"INSERT INTO call VALUES {', '.join(values)} {conflict}"  # noqa: S608 - no outside text


_INSERT_MANY: Final = _insert(ROWS_A_STATEMENT)
_INSERT_ONE: Final = _insert(1)

_SAME_RECORD: Final = """
SELECT 1 FROM call WHERE (
    (started_at = :started_at AND call_id = :call_id AND identity = :identity)
    OR (started_local = :started_local AND call_id = :call_id AND identity = :identity
        AND identity < 0)
) AND pbx = :pbx AND started_local = :started_local AND caller = :caller AND callee = :callee
AND duration = :duration AND talk_duration = :talk_duration
AND status = :status AND call_type = :call_type
"""

_SEQ_TAKEN: Final = "SELECT 1 FROM call WHERE seq = ?"

_SAME_LOGGED: Final = """
SELECT 1 FROM call WHERE started_at = :started_at AND call_id = :call_id
AND pbx = :pbx AND caller = :caller AND callee = :callee
AND duration = :duration AND talk_duration = :talk_duration
AND status = :status AND call_type = :call_type
"""
"""The log does not tell the local start, and its place in the identity is worked out anew with a
time zone that may have been set wrong before; the instant is told."""

_QUARANTINE: Final = """
INSERT INTO quarantined_report (received_at, pbx, peer, source, reason, payload, size)
SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7"""

_QUARANTINE_ONCE: Final = f"""{_QUARANTINE} WHERE NOT EXISTS (
    SELECT 1 FROM quarantined_report WHERE source IN ('import', 'portal', 'history') AND size = ?7
    AND substr(payload, 1, 200) = substr(?6, 1, 200) AND payload = ?6 AND pbx = ?2 AND source = ?4
)"""  # noqa: S608 - no outside text
"""Of what is read again; the index ``quarantined_once`` holds the size and the first bytes."""

_QUARANTINE_REPEATED: Final = f"""{_QUARANTINE} WHERE NOT EXISTS (
    SELECT 1 FROM quarantined_report WHERE received_at = ?1 AND pbx = ?2 AND peer = ?3
    AND source = ?4 AND reason = ?5 AND payload = ?6 AND size = ?7
)"""  # noqa: S608 - no outside text
"""Of what a spool brings, which a crash may have us read again; an index holds the time."""
