"""Turns a path into a connection: of the one writer, or of a reader.

The rule that must stay true: a setting that was promised is read back, and a file that is not ours
is left as it is.
"""

import contextlib
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cdrd.owner import open_owned
from cdrd.schema import BUSY_TIMEOUT_MS, PAGE_BYTES, check_schema, migrate
from cdrd.sizes import MIB

WAL_LIMIT_BYTES: Final = 64 * MIB
"""The WAL file is cut back to this when it is reused; a reader that pins it makes it larger."""

SYNCHRONOUS: Final = {"full": 2, "normal": 1}
_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_MOVED: Final = sqlite3.SQLITE_READONLY_DBMOVED


class WriterConnection(sqlite3.Connection):
    """The connection that commits; it knows which turn it has committed last."""

    path: Path
    file: os.stat_result
    last_turn = 0

    @property
    def in_place(self) -> bool:
        """Whether the path still names the file that is open."""
        try:
            return os.path.samestat(self.file, self.path.stat())
        except FileNotFoundError:
            return False
        except OSError:
            return True  # a disk that does not answer tells nothing of it

    def close(self) -> None:
        """Close it without an end to the WAL.

        The last connection to close copies the WAL and deletes it: into a damaged database too, and
        a read-only reader cannot make it anew. So a connection that may do neither closes last; it
        is one also where it has found the database too damaged to be read.
        """
        with contextlib.ExitStack() as last:
            with contextlib.suppress(sqlite3.Error):
                if not self.in_place:  # the WAL would be played into the file that is there now
                    self.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                reader = last.enter_context(contextlib.closing(_connect_reader(self.path)))
                _read_schema(reader)
            super().close()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a checkpoint came: pages in the WAL, and those of them copied to the database."""

    pages: int
    copied: int

    @property
    def pinned_bytes(self) -> int:
        """Bytes that a reader's open transaction keeps in the WAL."""
        return (self.pages - self.copied) * PAGE_BYTES


def connect(path: Path, durability: str) -> WriterConnection:
    """Open or create the database for its one writer. Raises sqlite3.Error and NotOurDatabase."""
    # SQLite gives the WAL its mode, the group may read and others may not, and root its owner.
    opened = open_owned(path, 0o640, path)
    file = os.fstat(opened)
    os.close(opened)
    _read_wal_from_disk(path)
    connection = sqlite3.connect(
        path, isolation_level=None, cached_statements=32, factory=WriterConnection
    )
    connection.path, connection.file = path, file
    try:
        is_new = not check_schema(connection)  # before anything is changed
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")  # before journal_mode
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        if is_new:  # it writes, each time, and takes effect before the first table alone
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        _set(connection, "journal_mode", "wal")
        _set(connection, "synchronous", SYNCHRONOUS[durability])
        _set(connection, "wal_autocheckpoint", 0)
        _set(connection, "journal_size_limit", WAL_LIMIT_BYTES)
        migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _read_wal_from_disk(path: Path) -> None:
    """Let what SQLite finds in the WAL be what the disk holds. Raises OSError.

    It takes each whole transaction there for committed: one too that was written and not synced
    when its process was killed, and one whose sync has failed, of which the kernel goes on showing
    what it could not write. Their rows would be told and be gone after a loss of power, with all
    that was committed behind them. A process that goes on after a failed sync needs nothing of it:
    SQLite writes all of the transaction again.
    """
    with contextlib.suppress(FileNotFoundError):
        wal = os.open(f"{path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(wal)
            os.posix_fadvise(wal, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(wal)


def open_reader(path: Path) -> sqlite3.Connection:
    """Open the database read-only, as every program but the daemon does. Raises sqlite3.Error."""
    reader = _connect_reader(path)
    try:
        _read_schema(reader)
    except sqlite3.Error:
        reader.close()
        raise
    return reader


def _connect_reader(path: Path) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


def _read_schema(reader: sqlite3.Connection) -> None:
    """Read for the first time: from then on the WAL is open."""
    reader.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()


def check_in_place(connection: sqlite3.Connection) -> None:
    """Hold the writer's path to naming the file that is open. Raises sqlite3.Error, as of damage.

    What is stored in a file that nobody can open any more is not stored.
    """
    assert isinstance(connection, WriterConnection)
    if not connection.in_place:
        error = sqlite3.DatabaseError(f"{connection.path} was replaced or deleted while in use")
        error.sqlite_errorcode = _MOVED
        raise error


def check_whole(reader: sqlite3.Connection) -> None:
    """Read all of the database. Raises sqlite3.Error when it is damaged."""
    (found,) = reader.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(str(found))


def checkpoint(connection: sqlite3.Connection) -> Checkpoint:
    """Copy what no reader still needs from the WAL into the database, without waiting."""
    _, pages, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return Checkpoint(pages, copied)


def is_damage(error: sqlite3.Error) -> bool:
    """Tell a database that is damaged or gone from one that is only locked or full for a while."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in _DAMAGE or code == _MOVED


def wal_reset_bug(version: tuple[int, int, int]) -> bool:
    """Tell whether a SQLite version can corrupt a WAL that two connections write at one instant.

    Source: sqlite.org, "the WAL-reset bug": 3.7.0 to 3.51.2, mended in 3.44.6 and 3.50.7 too.
    """
    if version[:2] == (3, 44):
        return version < (3, 44, 6)
    if version[:2] == (3, 50):
        return version < (3, 50, 7)
    return (3, 7, 0) <= version < (3, 51, 3)


def _set(connection: sqlite3.Connection, pragma: str, value: str | int) -> None:
    """Make a setting and read it back: a setting that did not take is a promise broken."""
    connection.execute(f"PRAGMA {pragma} = {value}").fetchall()
    (found,) = connection.execute(f"PRAGMA {pragma}").fetchone()
    if found != value:
        raise sqlite3.OperationalError(f"PRAGMA {pragma} stays {found}, {value} is needed")
