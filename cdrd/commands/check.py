"""``cdrd check``: what a configuration means, and what is wrong with it or with the database.

The rule that must stay true: nothing is changed by a look. What ``--connect`` adds is a login, and
its being counted.
"""

import argparse
import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_never

import orjson

from cdrd.address import parse_address
from cdrd.commands.arguments import add_config_argument
from cdrd.commands.check_database import check_database, lacks_shm
from cdrd.commands.check_integrity import check_integrity
from cdrd.commands.check_login import connect_to_each, read_password
from cdrd.commands.label import say
from cdrd.config import (
    Config,
    Events,
    History,
    Pbx,
    Portal,
    credentials_are_closed,
    find_config,
    load_config,
    missing_packages,
)
from cdrd.dial import CONNECT_SECONDS
from cdrd.exits import EXIT_DONE, EXIT_FAILED, ConfigError
from cdrd.pbx_api import (
    Unreachable,
    base_of,
    client_context,
    trust_of,
)
from cdrd.tls import server_context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``-c``, and whether to reach out to the PBXs."""
    add_config_argument(parser)
    database = parser.add_mutually_exclusive_group()
    database.add_argument(
        "--integrity",
        action="store_true",
        help="also look at each page of the database, all of which is read",
    )
    database.add_argument(
        "--no-database", action="store_true", help="look at the configuration alone"
    )
    parser.add_argument(
        "--connect", action="store_true", help="also log in to each PBX that we connect to"
    )


def run(arguments: argparse.Namespace) -> int:
    """Show what is in force, look at all that it names, and list what is to be mended."""
    try:
        return _check(arguments)
    except BrokenPipeError:  # at what was not looked at there may be something to mend
        return EXIT_FAILED


def _check(arguments: argparse.Namespace) -> int:
    path = find_config(arguments.config, os.environ)
    config = load_config(path)
    database = Path(config.database.path)
    _show_settings(path, config)
    faults = [
        *missing_packages(config),
        *([] if arguments.no_database else check_database(database)),
        *_check_tls(config, path),
        *_check_pbxs(config, path),
        *_check_portals(config, path),
    ]
    if arguments.integrity and os.access(database, os.R_OK) and not lacks_shm(database):
        faults += _check_integrity(database)
    if arguments.connect:
        faults += connect_to_each(config, path)
        faults += _look_into_each(config, path)
    return _conclude(faults)


def _check_integrity(database: Path) -> list[str]:
    print(f"\nintegrity of {database}", flush=True)
    faults = check_integrity(database)
    say("pages", "damaged" if faults else "whole")
    return faults


def _conclude(faults: list[str]) -> int:
    if not faults:
        print("\nnothing to mend")
        return EXIT_DONE
    print(f"\n{len(faults)} {'thing' if len(faults) == 1 else 'things'} to mend:")
    for fault in faults:
        print(f"  {fault}")
    return EXIT_FAILED


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
        if not pbx.signs and (config.tcp.listen or not config.http.listen):
            listening = ", ".join(config.tcp.listen) or "no address"
            ways.append(f"may connect from {peers} to {listening}")
        if config.http.listen:
            ways.append(f"may POST from {peers} to {', '.join(config.http.listen)}")
        if pbx.only_connects and not (config.tcp.listen or config.http.listen):
            # No fault: whether cdrd.socket is there is not for the configuration to say.
            print(
                f"{pbx.name}: nothing listens for its peers, unless systemd does (cdrd.socket):"
                " else name an address in tcp.listen or http.listen",
                file=sys.stderr,
            )
    if pbx.events is not None:
        ways.append(_way(pbx.events))
        yield from (f"{pbx.name}: {fault}" for fault in _check_files_of(pbx.events, path))
    if not ways and pbx.history is None:
        yield f"{pbx.name}: no report of it can come: give it peers or [pbx.events]"
    if pbx.history is not None:
        ways.append(f"its history is fetched from {pbx.history.url} as {pbx.history.username}")
        yield from (f"{pbx.name}: {fault}" for fault in _check_files_of(pbx.history, path))
    say(pbx.name, "; ".join(ways) or "is not reached in any way")


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
            read_password(settings.password_file, path)
        elif isinstance(settings, Events):
            read_password(settings.secret_file, path, "secret_file")
    except (OSError, ValueError) as error:
        yield str(error)
    if settings.ca_file:
        try:
            client_context(trust_of(settings, path).ca_file)
        except Unreachable as error:
            yield str(error)


# The portals


def _check_portals(config: Config, path: Path) -> Iterator[str]:
    """Say how each portal is reached; return what keeps its table from being read."""
    if config.portal:
        print("\nportals")
    for portal in config.portal:
        say(portal.name, f"is followed at {portal.address} as {portal.username}")
        try:
            read_password(portal.password_file, path)
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
        say(portal.name, outcome)
        sys.stdout.flush()  # the next may take its time
    return faults


def _look_into(portal: Portal, path: Path) -> str:
    """Read a portal's newest CallID. Raises PortalLost, PortalRefused, OSError and ValueError."""
    from cdrd.portal_table import PortalTable  # noqa: PLC0415

    password = read_password(portal.password_file, path)
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
