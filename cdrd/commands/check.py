"""``cdrd check``: what a configuration means, and what is wrong with it or with the database.

The rule that must stay true: nothing is changed by a look. What ``--connect`` adds is a login, and
its being counted.
"""

import argparse
import asyncio
import contextlib
import fcntl
import grp
import os
import pwd
import socket
import sqlite3
import stat
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, assert_never

import orjson

from cdrd.address import parse_address
from cdrd.commands.arguments import add_config_argument
from cdrd.commands.check_integrity import check_integrity
from cdrd.commands.trying import NotTried, command_guard
from cdrd.config import (
    Config,
    ConfigError,
    Events,
    History,
    Pbx,
    Portal,
    credentials_are_closed,
    find_config,
    load_config,
    missing_packages,
    read_secret,
)
from cdrd.database import open_reader, wal_reset_bug
from cdrd.dial import CONNECT_SECONDS, LOGIN_SECONDS
from cdrd.exits import EXIT_DONE, EXIT_FAILED
from cdrd.login import MAX_ANSWER_BYTES, LoginAnswer, Verdict, login_block
from cdrd.login_guard import LoginGuard
from cdrd.pbx_api import (
    LoginRefused,
    NotOffered,
    Unreachable,
    base_of,
    client_context,
    family_of,
    trust_of,
)
from cdrd.schema import VERSION, NotOurDatabase, check_schema
from cdrd.tls import server_context

LABEL_WIDTH: Final = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``-c``, and whether to reach out to the PBXs."""
    add_config_argument(parser)
    parser.add_argument(
        "--integrity",
        action="store_true",
        help="also look at each page of the database, all of which is read",
    )
    parser.add_argument(
        "--connect", action="store_true", help="also log in to each PBX that we connect to"
    )


def run(arguments: argparse.Namespace) -> int:
    """Show what is in force, look at all that it names, and list what is to be mended."""
    path = find_config(arguments.config, os.environ)
    config = load_config(path)
    database = Path(config.database.path)
    _show_settings(path, config)
    faults = [
        *missing_packages(config),
        *_check_database(database),
        *_check_tls(config, path),
        *_check_pbxs(config, path),
        *_check_portals(config, path),
    ]
    if arguments.integrity and database.exists() and not _lacks_shm(database):
        faults += _check_integrity(database)
    if arguments.connect:
        faults += _connect_to_each(config, path)
        faults += _look_into_each(config, path)
    return _conclude(faults)


def _check_integrity(database: Path) -> list[str]:
    print(f"\nintegrity of {database}", flush=True)
    faults = check_integrity(database)
    _say("pages", "damaged" if faults else "whole")
    return faults


def _conclude(faults: list[str]) -> int:
    if not faults:
        print("\nnothing to mend", flush=True)
        return EXIT_DONE
    print(f"\n{len(faults)} {'thing' if len(faults) == 1 else 'things'} to mend:")
    for fault in faults:
        print(f"  {fault}")
    sys.stdout.flush()
    return EXIT_FAILED


def _say(label: str, text: object) -> None:
    print(f"  {label:<{LABEL_WIDTH}}  {text}")


# The settings


def _show_settings(path: Path, config: Config) -> None:
    """Print every setting in force, as TOML; of a secret it holds the file's name alone."""
    print(f"configuration {path}")
    for heading, settings in _tables(config.model_dump()):
        print(f"\n{heading}")
        width = max(map(len, settings))
        for key, value in settings.items():
            print(f"{key:<{width}} = {orjson.dumps(value).decode()}")


def _tables(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name each table with its own settings, those within it after it."""
    for name, table in config.items():
        if isinstance(table, dict):
            yield f"[{name}]", table
            continue
        for entry in table:
            within = {key: value for key, value in entry.items() if isinstance(value, dict)}
            own = {key: value for key, value in entry.items() if key not in within}
            yield f"[[{name}]]", {key: value for key, value in own.items() if value is not None}
            yield from ((f"[{name}.{key}]", value) for key, value in within.items())


# The database


def _check_database(database: Path) -> list[str]:
    """Say what can be said of the database; return what is wrong with it."""
    print(f"\ndatabase {database}")
    _say("SQLite", _sqlite_version())
    try:
        database.stat()
    except FileNotFoundError:
        _say("file", _advice_on_a_missing(database))
        return []
    except OSError as error:
        return [f"{database}: {error.strerror}: run cdrd check as a member of its group"]
    _say("daemon", _daemon_state(database))
    faults = _check_files(database)
    if _lacks_shm(database):
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


def _lacks_shm(database: Path) -> bool:
    _, wal, shm = _files(database)
    return wal.exists() and not shm.exists()


def _check_files(database: Path) -> list[str]:
    """Show who may do what with the database's files; its group has to be able to read."""
    faults = []
    for file in _files(database):
        try:
            status = file.stat()
        except OSError:
            # Told apart: a missing -shm is a fault, and no -wal is none.
            _say("file", f"{file} is not there")
            continue
        owner = f"{_user(status.st_uid)}:{_group(status.st_gid)}"
        _say("file", f"{stat.filemode(status.st_mode)} {owner} {status.st_size:,} bytes {file}")
        if not status.st_mode & stat.S_IRGRP:
            faults.append(f"{file}: its group cannot read it: chmod g+r {file}")
    return faults


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
    _say("journal mode", journal_mode)
    if not version:
        _say("schema", "none, the file is empty: cdrd serve makes the tables")
        return
    is_older = version < VERSION
    advice = f"; cdrd serve will bring it to {VERSION} at its start" if is_older else ""
    _say("schema", f"version {version}{advice}")
    # Counting the rows would read the whole of a large table.
    (calls,) = reader.execute("SELECT ifnull(max(seq), 0) FROM calls").fetchone()
    _say("calls", f"{calls:,} (by the highest seq)")
    (kept,) = reader.execute("SELECT count(*) FROM quarantine").fetchone()
    _say("quarantine", f"{kept:,}; cdrd quarantine list tells why" if kept else "empty")


# The listeners


def _check_tls(config: Config, path: Path) -> list[str]:
    """Return what is wrong with our listeners' certificate and its key."""
    if credentials_are_closed():
        return []  # they may be among them
    try:
        server_context(config.tls, path)
    except ConfigError as error:
        return [str(error)]
    return []


# The PBXs


def _check_pbxs(config: Config, path: Path) -> list[str]:
    """Say how each PBX is reached; return what keeps its reports from coming."""
    print("\nPBXs")
    if not config.pbx:
        print("  no [[pbx]] is configured: every peer will be refused")
    return [fault for pbx in config.pbx for fault in _check_pbx(pbx, config, path)]


def _check_pbx(pbx: Pbx, config: Config, path: Path) -> Iterator[str]:
    ways = []
    if pbx.peers:
        peers = ", ".join(pbx.peers)
        if config.tcp.listen or not config.http.listen:
            listening = ", ".join(config.tcp.listen) or "no address"
            ways.append(f"may connect from {peers} to {listening}")
        if config.http.listen:
            ways.append(f"may POST from {peers} to {', '.join(config.http.listen)}")
        if not (config.tcp.listen or config.http.listen or pbx.events):
            yield (
                f"{pbx.name}: nothing listens for its peers: name an address in tcp.listen or"
                " http.listen"
            )
    if pbx.events is not None:
        ways.append(_way(pbx.events))
        yield from (f"{pbx.name}: {fault}" for fault in _check_files_of(pbx.events, path))
    if not ways:
        yield f"{pbx.name}: no report of it can come: give it peers or [pbx.events]"
    if pbx.history is not None:
        ways.append(f"its history is fetched from {pbx.history.url} as {pbx.history.username}")
        yield from (f"{pbx.name}: {fault}" for fault in _check_files_of(pbx.history, path))
    _say(pbx.name, "; ".join(ways) or "is not reached in any way")


def _way(events: Events) -> str:
    match events.kind:
        case "tcp":
            return f"is dialled at {events.address} as {events.username}"
        case "http":
            path = events.path or "/"
            return f"is told at {base_of(events)} as {events.username} to POST to {path}"
        case "websocket":
            return f"is subscribed to at {base_of(events)} as {events.username}"
        case "webhook":
            return f"signs what it POSTs to {events.path or 'any path'}"
        case _:
            assert_never(events.kind)


def _check_files_of(settings: Events | History, path: Path) -> Iterator[str]:
    """Return what is wrong with the files that a table names."""
    webhook = isinstance(settings, Events) and settings.kind == "webhook"
    try:
        if not webhook:
            _read_password(settings.password_file, path)
        elif isinstance(settings, Events):
            _read_password(settings.secret_file, path, "secret_file")
    except (OSError, ValueError) as error:
        yield str(error)
    if settings.ca_file:
        try:
            client_context(trust_of(settings, path).ca_file)
        except Unreachable as error:
            yield str(error)


def _read_password(name: str, path: Path, key: str = "password_file") -> str:
    """Read a secret's file. Raises OSError and ValueError that say what to do."""
    if not Path(name).is_absolute() and credentials_are_closed():
        return ""  # the daemon itself will see whether it is as it should be
    try:
        password = read_secret(name, path)
    except OSError as error:
        raise OSError(
            f"{key} {name!r} cannot be read: {error.strerror}: make the file, beside the"
            " configuration where no path is given, or run cdrd check as the daemon's user"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{key} {name!r} is no text in UTF-8: write it anew") from error
    if not password:
        raise ValueError(f"{key} {name!r} is empty: write the secret into it")
    return password


# Logging in


_REASONS: Final = (NotTried, Unreachable, LoginRefused, NotOffered, OSError, ValueError)
"""Why a PBX could not be logged in to, or must not be now."""


def _connect_to_each(config: Config, path: Path) -> list[str]:
    """Log in to each PBX that we connect to, one by one; return what went wrong."""
    print("\nlogins")
    logins = [login for pbx in config.pbx for login in _logins(pbx, config, path)]
    if not logins:
        print("  we connect to no PBX")
    faults = []
    for name, log_in in logins:
        try:
            outcome = log_in()
        except _REASONS as error:
            outcome = str(error)
            faults.append(f"{name}: {outcome}")
        _say(name, outcome)
        sys.stdout.flush()  # the next may take its time
    return faults


def _logins(pbx: Pbx, config: Config, path: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """Name each login to a PBX, with what tries it. That raises what ``_REASONS`` names."""
    database = Path(config.database.path)
    if pbx.events is not None and pbx.events.kind != "webhook":
        yield pbx.name, partial(_log_in, pbx, pbx.events, database, path)
    if pbx.history is not None:
        yield f"{pbx.name}, history", partial(_log_in, pbx, pbx.history, database, path)


def _log_in(pbx: Pbx, settings: Events | History, database: Path, path: Path) -> str:
    """Log in to a PBX and say what happened."""
    try:
        password = _read_password(settings.password_file, path)
    except (OSError, ValueError):
        return "not tried without a password"
    guard = command_guard(database, pbx)
    if isinstance(settings, Events) and settings.kind == "tcp":
        return asyncio.run(_dial(settings, password, guard))
    # An HTTP library, whose import takes a third of a second.
    from cdrd.commands.check_api import try_login  # noqa: PLC0415

    return asyncio.run(try_login(settings, family_of(pbx.events), path, guard))


async def _dial(events: Events, password: str, guard: LoginGuard) -> str:
    async with guard.attempt() as login:
        verdict = await _exchange(events, password)
        if verdict is Verdict.REFUSED:
            raise LoginRefused(
                f"{events.address} refused the login: check username and password_file; the PBX"
                " locks the account at the fifth refusal"
            )
        login.unsure = verdict is Verdict.UNDECIDED
    if login.unsure:
        return f"connected; no answer in {LOGIN_SECONDS:g} s, which cdrd serve takes for a yes"
    return "logged in"


async def _exchange(events: Events, password: str) -> Verdict:
    """Send the login and read the answer. Raises Unreachable."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(*parse_address(events.address))
    except (OSError, ValueError) as error:
        raise Unreachable(
            f"{events.address} cannot be reached: {_why(error)}: check the address, and whether the"
            " PBX's API is switched on and allows ours"
        ) from error
    try:
        writer.write(login_block(events.username, password))
        async with asyncio.timeout(LOGIN_SECONDS):
            return await _read_verdict(reader)
    except TimeoutError:
        return Verdict.UNDECIDED
    except ConnectionError:
        return Verdict.REFUSED  # an end before an answer may have been a refusal
    finally:
        writer.close()


async def _read_verdict(reader: asyncio.StreamReader) -> Verdict:
    answer = LoginAnswer()
    while chunk := await reader.read(MAX_ANSWER_BYTES):
        verdict = answer.receive(chunk)
        if verdict is not Verdict.UNDECIDED:
            return verdict
    return Verdict.REFUSED


def _why(error: Exception) -> str:
    """Say it in the system's words: asyncio has its own."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    number = getattr(error, "errno", None) or 0
    return os.strerror(number) if number > 0 else str(error)


# The portals


def _check_portals(config: Config, path: Path) -> Iterator[str]:
    """Say how each portal is reached; return what keeps its table from being read."""
    if config.portal:
        print("\nportals")
    for portal in config.portal:
        _say(portal.name, f"is followed at {portal.address} as {portal.username}")
        try:
            _read_password(portal.password_file, path)
        except (OSError, ValueError) as error:
            yield f"{portal.name}: {error}"


def _look_into_each(config: Config, path: Path) -> list[str]:
    """Log in to each portal and look at its table; return what went wrong."""
    if not config.portal or missing_packages(config):
        return []
    # Its driver is an optional package.
    from cdrd.portal_table import PortalLost, PortalRefused  # noqa: PLC0415

    faults = []
    for portal in config.portal:
        try:
            outcome = _look_into(portal, path)
        except (PortalLost, PortalRefused, OSError, ValueError) as error:
            outcome = f"{portal.address}: {error}"
            faults.append(f"{portal.name}: {outcome}")
        _say(portal.name, outcome)
        sys.stdout.flush()  # the next may take its time
    return faults


def _look_into(portal: Portal, path: Path) -> str:
    """Read a portal's newest CallID. Raises PortalLost, PortalRefused, OSError and ValueError."""
    from cdrd.portal_table import PortalTable  # noqa: PLC0415

    password = _read_password(portal.password_file, path)
    address = parse_address(portal.address)
    table = PortalTable(
        socket.create_connection(address, CONNECT_SECONDS),
        host=address[0],
        username=portal.username,
        password=password,
        database=portal.database,
        tls=True,
    )
    with contextlib.closing(table):
        version = table.connect()
        newest = table.newest()
    return f"logged in to {version}; " + (f"newest CallID {newest:,}" if newest else "no rows")
