"""Turns routes into a PBX's web API on a socket, over http or https.

Here is what both families have: a JSON object as the body, tokens that die, refusals as JSON.
"""

import ssl
import time
from calendar import timegm
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import orjson
from aiohttp import web

from cdrd.address import format_address

TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
_CLOSE_SECONDS = 1


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things live, in seconds, and the clock (seconds) that tells."""

    token: float = 30 * 60
    random: float = 30
    clock: Callable[[], float] = time.monotonic


class Refused(Exception):
    """A request that the PBX refuses, with the vendor's number for why."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class WebServer:
    """The web API of a PBX, at an address of its own."""

    def __init__(self, app: web.Application, tls: ssl.SSLContext | None = None) -> None:
        """Serve these routes, over https when `tls` says how."""
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_CLOSE_SECONDS)
        self._tls = tls

    @property
    def address(self) -> tuple[str, int]:
        """Host and port on which it listens, once it is started."""
        host, port, *_ = self._runner.addresses[0]
        return host, port

    @property
    def url(self) -> str:
        """The base of its URLs, without a slash at the end."""
        return f"http{'s' if self._tls else ''}://{format_address(*self.address)}"

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; port 0 picks a free one. Raises OSError when the address cannot be had."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, ssl_context=self._tls).start()

    async def close(self) -> None:
        """Stop listening and end what is open."""
        await self._runner.cleanup()


class Tokens:
    """Tokens that die after so many seconds; beyond `most` the oldest dies (0: any number)."""

    def __init__(self, seconds: float, clock: Callable[[], float], most: int = 0) -> None:
        self._seconds, self._clock, self._most = seconds, clock, most
        self._ends: dict[str, float] = {}

    def issue(self) -> str:
        """Make a token that is alive."""
        token = token_hex(16)
        self.prolong(token)
        self._ends = {known: end for known, end in self._ends.items() if self.is_alive(known)}
        if self._most and len(self._ends) > self._most:
            del self._ends[next(iter(self._ends))]
        return token

    def is_alive(self, token: str) -> bool:
        """Whether it was issued, and neither its time nor its owner has ended it."""
        return self._clock() < self._ends.get(token, float("-inf"))

    def prolong(self, token: str) -> None:
        """Let its time begin anew."""
        self._ends[token] = self._clock() + self._seconds

    def end(self, token: str) -> None:
        """Let it die."""
        self._ends.pop(token, None)


def server_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    """Make the context that serves a certificate. Raises OSError when the files are no pair."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # A key that is encrypted fails at once: nobody is asked for a passphrase.
    context.load_cert_chain(certificate, key, password="")
    return context


async def json_object(request: web.Request) -> dict[str, Any] | None:
    """Read the body as a JSON object, whose content type says so; None when it is none."""
    try:
        told = orjson.loads(await request.read())
    except orjson.JSONDecodeError:
        return None
    is_json = request.content_type == "application/json"
    return told if is_json and isinstance(told, dict) else None


def local_seconds(text: str) -> int | None:
    """Read what the PBX's clock shows, taken for UTC; None when the text has another form."""
    try:
        return timegm(time.strptime(text, TIME_FORMAT))
    except ValueError:
        return None


def answer(fields: dict[str, Any]) -> web.Response:
    """Answer 200 with a JSON object."""
    return web.Response(body=orjson.dumps(fields), content_type="application/json", charset="utf-8")
