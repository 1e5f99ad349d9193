"""Turns a database into what ``cdrd check`` says of it, and of the daemon that writes it.

The rule that must stay true: nothing is changed by a look.
"""

import contextlib
import fcntl
import grp
import os
import pwd
import sqlite3
import stat
from pathlib import Path
from typing import Final

from cdrd.commands.label import say
from cdrd.database import open_reader, wal_reset_bug
from cdrd.schema import VERSION, NotOurDatabase, check_schema

OF_CDRD_ALONE: Final = (".logins", ".silent", ".spool", ".spool.damaged")
"""What the names of files end with that nobody else reads."""


def check_database(database: Path) -> list[str]:
    """Say what can be said of the database; return what is wrong with it."""
    print(f"\ndatabase {database}")
    say("SQLite", _sqlite_version())
    try:
        status = database.stat()
    except FileNotFoundError:
        say("file", _advice_on_a_missing(database))
        return []
    except OSError as error:
        return [f"{database}: {error.strerror}: run cdrd check as a member of its group"]
    if stat.S_ISDIR(status.st_mode):
        return [f"{database} is a directory: name a file in it in [database]"]
    say("daemon", _daemon_state(database))
    faults = _check_files(database, status.st_uid)
    if lacks_shm(database):
        # Opening it would make that file anew, as ours: a look changes nothing.
        faults.append(
            f"{database}-shm: is missing beside the -wal, and who may not write there cannot"
            " read: start cdrd serve, which makes it anew"
        )
        return faults
    return faults + _check_contents(database)


def _sqlite_version() -> str:
    if wal_reset_bug(sqlite3.sqlite_version_info):
        return (
            f"{sqlite3.sqlite_version}; before 3.51.3 two writers at one instant can corrupt the"
            " WAL: let no other program write the database, and readers open mode=ro"
        )
    return sqlite3.sqlite_version


def _advice_on_a_missing(database: Path) -> str:
    advice = "not there yet; cdrd serve makes it at its first start"
    if not database.parent.is_dir():
        advice += f", in {database.parent}, which is to be created before (or by systemd)"
    return advice


def _daemon_state(database: Path) -> str:
    """Tell by the lock of the one writer, held for an instant, whether a daemon runs."""
    try:
        lock = os.open(f"{database.resolve()}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return "not running"
    except OSError as error:
        return f"not known: {error.filename}: {error.strerror}"
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return "running: the database is being written"
    finally:
        os.close(lock)
    return "not running"


def _files(database: Path) -> list[Path]:
    """Return the database's files, the database first; SQLite keeps two beside it."""
    resolved = database.resolve()
    return [Path(f"{resolved}{ending}") for ending in ("", "-wal", "-shm")]


def lacks_shm(database: Path) -> bool:
    """Tell whether a reader who may not make it is kept out by the want of ``-shm``."""
    _, wal, shm = _files(database)
    return wal.exists() and not shm.exists()


def _check_files(database: Path, owner: int) -> list[str]:
    """Show who may do what with the database's files.

    Its group has to be able to read, and one user to write: whose the directory is, where that user
    alone makes files in it; else whose the database is.
    """
    lock = Path(f"{database.resolve()}.lock")
    status = lock.parent.stat()
    is_shared = bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    writer = owner if is_shared else status.st_uid or owner
    faults = [] if is_shared else _check_owner(lock.parent, status, writer)
    for file in [*_files(database), lock]:
        try:
            status = file.stat()
        except OSError:
            # Told apart: a missing -shm is a fault, and no -wal or .lock is none.
            say("file", f"{file} is not there")
            continue
        names = f"{_user(status.st_uid)}:{_group(status.st_gid)}"
        say("file", f"{stat.filemode(status.st_mode)} {names} {status.st_size:,} bytes {file}")
        if not status.st_mode & stat.S_IRGRP:
            faults.append(f"{file}: its group cannot read it: chmod g+r {file}")
        faults += _check_owner(file, status, writer)
    for ending in OF_CDRD_ALONE:
        file = Path(f"{database.resolve()}{ending}")
        with contextlib.suppress(FileNotFoundError):
            faults += _check_owner(file, file.stat(), writer)
    return faults


def _check_owner(file: Path, status: os.stat_result, writer: int) -> list[str]:
    """Return what keeps the user who writes the database from a file of it; nothing keeps root."""
    if writer and status.st_uid != writer:
        owner, needed = _user(status.st_uid), _user(writer)
        return [f"{file} is {owner}'s, and {needed} writes the database: chown {needed} {file}"]
    if writer and not status.st_mode & stat.S_IWUSR:
        return [f"{file}: its owner cannot write it: chmod u+w {file}"]
    return []


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _check_contents(database: Path) -> list[str]:
    try:
        with contextlib.closing(open_reader(database)) as reader:
            _show_contents(reader)
    except (sqlite3.Error, NotOurDatabase) as error:
        return [f"{database}: {error}"]
    return []


def _show_contents(reader: sqlite3.Connection) -> None:
    version = check_schema(reader)
    (journal_mode,) = reader.execute("PRAGMA journal_mode").fetchone()
    say("journal mode", journal_mode)
    if not version:
        say("schema", "none, the file is empty: cdrd serve makes the tables")
        return
    is_older = version < VERSION
    advice = f"; cdrd serve will bring it to {VERSION} at its start" if is_older else ""
    say("schema", f"version {version}{advice}")
    # Counting the rows would read the whole of a large table.
    (calls,) = reader.execute("SELECT ifnull(max(seq), 0) FROM calls").fetchone()
    say("calls", f"{calls:,} (by the highest seq)")
    (kept,) = reader.execute("SELECT count(*) FROM quarantine").fetchone()
    say("quarantine", f"{kept:,}; cdrd quarantine list tells why" if kept else "empty")
