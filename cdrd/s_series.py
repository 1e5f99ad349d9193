"""Turns an S-Series PBX's web API (versions 1.1.0 and 2.0.0) into a login, heartbeats and history.

The rule that must stay true: there is one token, and whoever finds it gone says so to all; a new
one is got once for it. Source: the vendor's pages on login, heartbeat, ``cdr/get_random`` and
``cdr/download``; a failure there is HTTP 200 with an ``errno``.
"""

import asyncio
import hashlib
import re
import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from cdrd.login_guard import LoginGuard
from cdrd.pbx_api import Account, LoginRefused, NotOffered, Trust, Unreachable
from cdrd.report import spelt
from cdrd.sizes import PAYLOAD_BYTES
from cdrd.web_session import WebSession

API_VERSIONS: Final = ("2.0.0", "1.1.0")
"""In the order in which they are asked for."""

_FORMATS: Final = {"1.1.0": "1.0.2"}
"""The newest event format of an API version; that of 2.0.0 is named as the API."""

_BASE = re.compile(r"(?P<base>.*)/api/v(?P<version>\d+\.\d+\.\d+)")
_UNSUPPORTED: Final = "10003"
_LOCKED: Final = "20002"
_REFUSED: Final = "20003"
_NO_TOKEN: Final = ("20004", "20005")
_NOT_OURS: Final = ("10004", "20000", "20001")
"""Faults of a request's form: no login was refused with them."""


class TokenGone(Exception):
    """The PBX knows our token no more, and posts to us no more."""


@dataclass(frozen=True, slots=True)
class Announced:
    """Where the PBX is to post events to: a port and a path of whoever logs in."""

    port: int
    path: str = "/"


class SSeriesApi:
    """One login to an S-Series PBX, for whoever needs it.

    ``base`` with a path such as ``/api/v1.1.0`` settles the version; else the newest is found.
    """

    def __init__(
        self,
        base: str,
        account: Account,
        trust: Trust,
        guard: LoginGuard,
        *,
        announced: Announced | None = None,
    ) -> None:
        settled = _BASE.fullmatch(base.rstrip("/"))
        self.base = settled["base"] if settled else base.rstrip("/")
        self.account = account
        self.version = ""
        self._versions = (settled["version"],) if settled else API_VERSIONS
        self._guard = guard
        self._announced = announced
        self._web = WebSession(self.base, trust, headers={"User-Agent": "cdrd"})
        self._token = ""
        self._refresh_token = ""
        self.logins = 0

    async def login(self) -> None:
        """Log in, where there is no token. Raises Unreachable, LoginRefused and NotOffered.

        And OSError and ValueError where the password cannot be read.
        """
        if not self._token:
            async with self._guard.attempt():
                if not self._token:  # nobody else got one meanwhile
                    await self._log_in()

    async def heartbeat(self) -> None:
        """Keep the token and the posts alive. Raises TokenGone, Unreachable and NotOffered."""
        announced = self._announced
        assert announced is not None
        try:
            await self._ask(
                "heartbeat",
                {
                    "ipaddr": await self._our_address(),
                    **self._announcement(),
                    # The pages on 1.1.0 say urlflag here, those on 2.0.0 urltag.
                    "urlflag": "0",
                },
            )
        except NotOffered:
            # A Cloud PBX has this instead, and wants what it gave last. Source: the vendor's pages.
            last = self._refresh_token
            answer = await self._ask("token/refresh", {"refreshtoken": last} if last else {})
            self._token = _text(answer, "token") or self._token
            self._refresh_token = _text(answer, "refreshtoken") or last

    async def download(self, start: datetime, end: datetime) -> AsyncGenerator[bytes, None]:
        """Hand out the history of a time, naive and the PBX's own, as CSV, a piece at a time.

        Without the blanks in front of it, so one that is empty has no piece; the first one is of
        ``PAYLOAD_BYTES`` at least, or all there is. Raises Unreachable, LoginRefused and
        NotOffered, OSError and ValueError.
        """
        for is_last in (False, True):
            await self.login()
            try:
                async with aclosing(self._download(start, end)) as pieces:
                    async for piece in pieces:
                        yield piece
            except TokenGone as error:  # before the first piece, so none comes twice
                if is_last:
                    raise Unreachable(
                        f"{self.base} does not know the token it has just given"
                    ) from error
            else:
                return

    def distrust_token(self) -> None:
        """Use the token at hand no more: the next who needs one logs in."""
        self._token = ""

    async def close(self) -> None:
        """Close the connections; the token dies by itself."""
        await self._web.close()

    async def _log_in(self) -> None:
        for version in self._versions:
            try:
                answer = await self._web.exchange(
                    "POST", f"/api/v{version}/login", None, self._login_body(version)
                )
                self._check_login(answer)
            except NotOffered:
                continue
            self._versions, self.version = (version,), version
            self._token = _text(answer, "token")
            self._refresh_token = _text(answer, "refreshtoken")
            if not self._token:
                raise Unreachable(f"{self.base} accepted the login and gave no token")
            self.logins += 1
            return
        raise NotOffered(
            f"{self.base} has no API of version {' or '.join(self._versions)}: check the address,"
            " and that the PBX's API is switched on"
        )

    def _login_body(self, version: str) -> dict[str, str]:
        password = self.account.read_password().encode()
        return {
            "username": self.account.username,
            # The vendor's choice.
            "password": hashlib.md5(password, usedforsecurity=False).hexdigest(),
            **self._announcement(version),
        }

    def _announcement(self, version: str = "") -> dict[str, str]:
        """Say where to post to, and in which format: without it, it would be the oldest.

        Who wants no posts says nothing of them: they are to go on to who has registered.
        """
        if self._announced is None:
            return {}
        version = version or self.version
        return {
            "port": str(self._announced.port),
            # The vendor's example is without the slash: the PBX sets it.
            "url": self._announced.path.lstrip("/") or "/",
            "urltag": "0",  # relative to our address
            "version": _FORMATS.get(version, version),
        }

    def _check_login(self, answer: Mapping[str, Any]) -> None:
        errno = _errno(answer)
        if not errno:
            return
        if not {"status", "errno"} & answer.keys():
            raise NotOffered(f"{self.base} answers as no S-Series PBX does")
        if errno == _LOCKED:
            raise LoginRefused(
                f"{self.base} has locked the account for 10 minutes: mend username or password_file"
            )
        if errno in (_UNSUPPORTED, *_NOT_OURS):
            self._check(answer)
        # Another error may count as a refused login there: it does here.
        said = "" if errno == _REFUSED else f" with errno {errno}"
        raise LoginRefused(
            f"{self.base} refused the login{said}: check username and password_file; the PBX locks"
            " the account at the fifth refusal"
        )

    async def _ask(self, what: str, body: Mapping[str, str]) -> dict[str, Any]:
        """Post with the token. Raises TokenGone."""
        token = self._token
        answer = await self._web.exchange("POST", self._path(what), {"token": token}, body)
        self._check(answer, token)
        return answer

    def _path(self, what: str) -> str:
        return f"/api/v{self.version}/{what}"

    def _check(self, answer: Mapping[str, Any], token: str = "") -> None:
        errno = _errno(answer)
        if not errno:
            return
        if errno in _NO_TOKEN:
            if token == self._token:
                self._token = ""
            raise TokenGone(f"the PBX answers with errno {errno}")
        if errno == _UNSUPPORTED:
            raise NotOffered(f"{self.base} does not offer this: errno {errno}")
        raise Unreachable(
            f"{self.base} refused a request with errno {errno}: check what the API's user may do"
        )

    async def _download(self, start: datetime, end: datetime) -> AsyncGenerator[bytes, None]:
        token = self._token
        span = {
            "extid" if self.version == "1.1.0" else "number": "all",
            "starttime": start.strftime("%Y-%m-%d %H:%M:%S"),
            "endtime": end.strftime("%Y-%m-%d %H:%M:%S"),
        }
        answer = await self._ask("cdr/get_random", span)
        random = _text(answer, "random")
        if not random:
            raise Unreachable(
                f"{self.base} gave no key to its history: is its firmware older than 30.10.0.59?"
            )
        query = span | {"token": token, "random": random}
        async with aclosing(self._web.fetch(self._path("cdr/download"), query)) as pieces:
            begun = b""
            async for piece in pieces:
                begun = (begun + piece).lstrip()
                if len(begun) >= PAYLOAD_BYTES:
                    break
            if begun.startswith(b"{"):
                self._check_table(begun, token)
            if begun:
                yield begun
            async for piece in pieces:
                yield piece

    def _check_table(self, begun: bytes, token: str) -> None:
        """Raise for what begins no table but is a failure's JSON, of some 50 bytes."""
        try:
            said = orjson.loads(begun)
        except orjson.JSONDecodeError:
            return
        self._check(said, token)

    async def _our_address(self) -> str:
        """Return the address of ours that packets to the PBX leave from."""
        parts = urlsplit(self.base)
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(
                parts.hostname, parts.port or 443, type=socket.SOCK_DGRAM
            )
            family, kind, *_, address = found[0]
            with socket.socket(family, kind) as sock:
                sock.connect(address)  # of a datagram socket: nothing is sent
                return str(sock.getsockname()[0])
        except OSError as error:
            raise Unreachable(f"{self.base}: no way there: {error}: check the address") from error


def _errno(answer: Mapping[str, Any]) -> str:
    """Return the error that an answer tells, or an empty text for a success."""
    errno = spelt(answer.get("errno"))[:32]  # it is quoted
    if spelt(answer.get("status")).lower() == "success":
        return ""
    return errno or "none"


def _text(answer: Mapping[str, Any], key: str) -> str:
    value = answer.get(key)
    return value if isinstance(value, str) else ""
