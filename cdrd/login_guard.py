"""Turns logins to PBXs, by whichever program of ours, into ones that cannot lock an account.

The rule that must stay true: a login is counted before it is tried, in a file that all programs
share, and taken back only where the PBX is known not to have refused it; so one that is cut off, by
a kill even, counts; and with four counted within 10 minutes none is tried.
"""

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple
from urllib.parse import urlsplit

import orjson

from cdrd.address import format_address, parse_address
from cdrd.background import to_its_end
from cdrd.config import Pbx
from cdrd.login import COUNTED_SECONDS, seconds_to_wait
from cdrd.owner import open_owned
from cdrd.pbx_api import Denied, LoginRefused, Unanswered

LOOK_SECONDS: Final = 5.0
"""While a login has to wait: another program may have taken its own back meanwhile."""

Accounts = frozenset[str]


def accounts_of(pbx: Pbx) -> Accounts:
    """Name the accounts of a PBX, user and address; a refusal by one interface counts for both."""
    accounts = set()
    if pbx.events is not None and pbx.events.address:
        accounts.add(_account(pbx.events.username, *parse_address(pbx.events.address)))
    if pbx.history is not None:
        url = urlsplit(pbx.history.url)
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        accounts.add(_account(pbx.history.username, url.hostname or "", port))
    return frozenset(accounts)


def _account(username: str, host: str, port: int) -> str:
    return f"{username}@{format_address(host.lower(), port)}"


class _Try(NamedTuple):
    at: float  # seconds since the machine's start
    account: str


class LoginFile:
    """The logins that may have been refused: a line each, in a file beside the database.

    Their times are of the machine's monotonic clock, which nobody sets. A login from before its
    start looks younger than it is, so it counts for longer.
    """

    def __init__(self, database: Path) -> None:
        self._database = database.resolve()
        self._path = Path(f"{self._database}.logins")

    def count(self, accounts: Accounts, now: float) -> float:
        """Count a login; where it could be a fifth refusal, return the seconds to wait instead.

        Raises OSError.
        """
        with self._tries(now) as tries:
            each = ([at for at, account in tries if account == one] for one in accounts)
            wait = max((seconds_to_wait(tried_at, now) for tried_at in each), default=0.0)
            if not wait:
                tries += [_Try(now, account) for account in sorted(accounts)]
            return wait

    def take_back(self, accounts: Accounts, at: float) -> None:
        """Count a login no more, which was counted at an instant. Raises OSError."""
        with self._tries(time.monotonic()) as tries:
            for account in accounts:
                with contextlib.suppress(ValueError):  # it has become too old
                    tries.remove(_Try(at, account))

    @contextlib.contextmanager
    def _tries(self, now: float) -> Iterator[list[_Try]]:
        """Hold the file while its lines are changed.

        It is written in place: what a kill in between leaves is a line too many.
        """
        with self._open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            found = file.read()
            tries = [tried for line in found.splitlines() for tried in _read(line, now)]
            yield tries
            written = b"".join(orjson.dumps(list(tried)) + b"\n" for tried in tries)
            if written != found:
                file.seek(0)
                file.write(written)
                file.truncate()
                os.fsync(file.fileno())  # no power cut lets a fifth be tried

    def _open(self) -> BinaryIO:
        return os.fdopen(open_owned(self._path, 0o600, self._database), "r+b")


def _read(line: bytes, now: float) -> Iterator[_Try]:
    """Read a line, where it still counts.

    One from the future was before the machine's start: how long ago it was is not known, so it
    counts as of now.
    """
    with contextlib.suppress(ValueError, TypeError):  # half of a line: a longer one was there
        at, account = orjson.loads(line)
        if at > now - COUNTED_SECONDS:
            yield _Try(min(float(at), now), str(account))


@dataclass(slots=True)
class Login:
    """A login that is being tried; ``unsure``: whether it was refused stays unknown."""

    at: float
    unsure: bool = False


class LoginGuard:
    """The logins to one PBX, by whatever interface: one at a time, and none that could be a fifth.

    ``suspended`` is told how many seconds a login has to wait; it may raise to wait for none.
    ``uncounted`` is told why the file cannot be used; it may raise, else we count alone.
    """

    def __init__(
        self,
        file: LoginFile,
        accounts: Accounts,
        *,
        suspended: Callable[[float], None],
        uncounted: Callable[[OSError], None],
    ) -> None:
        self._file = file
        self._accounts = accounts
        self._suspended = suspended
        self._uncounted = uncounted
        self._own: list[float] = []
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def attempt(self) -> AsyncIterator[Login]:
        """Wait for our turn to log in, and count the login unless it was not refused.

        It stays counted when LoginRefused, Unanswered or Denied is raised within, the last of which
        is raised on as LoginRefused; and when it is cancelled.
        """
        async with self._turn:
            login = Login(await self._count())
            try:
                yield login
            except (LoginRefused, Unanswered):
                raise
            except Denied as error:
                raise LoginRefused(f"{error}, and username and password_file") from error
            except Exception:
                await self.take_back(login)
                raise
            if not login.unsure:
                await self.take_back(login)

    async def take_back(self, login: Login) -> None:
        """Count a login no more: the PBX has not refused it."""
        with contextlib.suppress(ValueError):
            self._own.remove(login.at)
        with contextlib.suppress(OSError):  # it counts for 10 minutes more
            taking = asyncio.to_thread(self._file.take_back, self._accounts, login.at)
            await to_its_end(taking)

    async def _count(self) -> float:
        """Count a login as soon as it would not be a fifth refusal; return when that was."""
        is_told = False
        while (wait := await self._count_at(now := time.monotonic())) > 0:
            if not is_told:
                self._suspended(wait)
                is_told = True
            await asyncio.sleep(min(wait, LOOK_SECONDS))
        return now

    async def _count_at(self, now: float) -> float:
        self._own = [min(at, now) for at in self._own if at > now - COUNTED_SECONDS]
        wait = seconds_to_wait(self._own, now)
        if not wait:
            try:
                counting = asyncio.to_thread(self._file.count, self._accounts, now)
                wait = await to_its_end(counting)
            except OSError as error:
                self._uncounted(error)
        if not wait:
            self._own.append(now)
        return wait
