"""Turns each PBX that we connect to into one login, and what came of it.

The rule that must stay true: a login is counted before it is tried, as the daemon's are.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from cdrd.address import parse_address
from cdrd.commands.label import say
from cdrd.commands.trying import NotTried, command_guard
from cdrd.config import (
    Config,
    Events,
    History,
    Pbx,
    credentials_are_closed,
    read_secret,
)
from cdrd.dial import CONNECT_SECONDS, LOGIN_SECONDS
from cdrd.login import MAX_ANSWER_BYTES, LoginAnswer, Verdict, login_block
from cdrd.login_guard import LoginGuard
from cdrd.pbx_api import (
    LoginRefused,
    NotOffered,
    Unreachable,
    family_of,
)

_REASONS: Final = (NotTried, Unreachable, LoginRefused, NotOffered, OSError, ValueError)
"""Why a PBX could not be logged in to, or must not be now."""


def connect_to_each(config: Config, path: Path) -> list[str]:
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
        say(name, outcome)
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
        password = read_password(settings.password_file, path)
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


def read_password(name: str, path: Path, key: str = "password_file") -> str:
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
