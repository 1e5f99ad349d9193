"""Turns requests to a PBX's web API into its answers, within bounds of time and size.

The rule that must stay true: an answer is what the checked PBX said itself, in full; everything
else is one error whose sentence says what to do and holds no secret. Of a download that is cut off,
pieces have come before it.
"""

import asyncio
import hashlib
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final, Literal
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import orjson
from yarl import URL

from cdrd.pbx_api import (
    Denied,
    Limits,
    NotOffered,
    Trust,
    Unanswered,
    Unreachable,
    client_context,
)
from cdrd.sizes import KIB, MIB

JSON: Final = "application/json; charset=utf-8"
PIECE_BYTES: Final = 64 * KIB
CLOSE_SECONDS: Final = 1.0
"""How long a PBX may take to close a WebSocket with us."""

WebSocket = aiohttp.ClientWebSocketResponse[Literal[False]]

_WRONG_NAME: Final = (62, 64)
"""OpenSSL's codes of a certificate that is for another host name, or another IP address."""


_NOT_DONE: Final = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientResponseError,  # an answer that is no HTTP
    ValueError,  # no URL, as which the PBX may send us on
)
"""With these the PBX has not done what it was asked."""


class WebSession:
    """Kept connections to one PBX's web API at ``base``, such as ``https://192.0.2.10:8088``."""

    def __init__(
        self, base: str, trust: Trust, *, headers: Mapping[str, str], limits: Limits | None = None
    ) -> None:
        self.base = base
        self._trust = trust
        self._headers = headers
        self._limits = limits or Limits()
        self._session: aiohttp.ClientSession | None = None

    async def exchange(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Send a request, return the JSON object that answers it. Raises Unreachable, NotOffered.

        These APIs tell a failure in the object, mostly with status 200: it is the caller's to see.
        """
        limits = self._limits
        limit = asyncio.timeout(limits.answer)
        async with self._answer(method, path, query, body, limit) as answer:
            text = await _read(answer, limits.answer_bytes)
            status = answer.status
        try:
            said = orjson.loads(text)
        except orjson.JSONDecodeError:
            said = None
        if isinstance(said, dict) and (
            status == HTTPStatus.OK or {"errno", "errcode"} & said.keys()
        ):
            return said
        _check_status(self.base, status)
        raise Unreachable(
            f"{self.base} answers with something that is no JSON object: check that this is the"
            " address of the PBX's web interface"
        )

    async def fetch(self, path: str, query: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        """Download what may be large, in pieces of ``PIECE_BYTES``; the last may be shorter.

        While a piece is worked on, no more is read than fits the library's buffer, and that time is
        not the PBX's: what is bounded is how long it is waited for in all, however little it sends
        at a time. Raises Unreachable and NotOffered.
        """
        limits, size, now = self._limits, 0, asyncio.get_running_loop().time
        deadline = now() + limits.download
        limit = asyncio.timeout_at(deadline)
        async with self._answer("GET", path, query, None, limit) as answer:
            _check_status(self.base, answer.status)
            while piece := await _read_piece(answer):
                size += len(piece)
                if size > limits.download_bytes:
                    raise _too_large(limits.download_bytes)
                paused_at = now()
                limit.reschedule(None)
                yield piece
                deadline += now() - paused_at
                limit.reschedule(deadline)

    async def web_socket(self, path: str, query: Mapping[str, str], max_bytes: int) -> WebSocket:
        """Open a WebSocket for messages of at most so many bytes.

        Raises Unreachable, NotOffered, and WSServerHandshakeError where the PBX would not.
        """
        async with self._translated(), asyncio.timeout(self._limits.answer):
            try:
                return await self._opened().ws_connect(
                    self._url(path, query),
                    ssl=self._checked_by(),
                    max_msg_size=max_bytes,
                    decode_text=False,  # a text that is no UTF-8 costs itself, not the connection
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),
                )
            except aiohttp.WSServerHandshakeError as error:
                if error.status == HTTPStatus.NOT_FOUND:
                    _check_status(self.base, error.status)
                raise

    async def close(self) -> None:
        """Close the connections, once nobody reads an answer; the next request opens new ones.

        An answer of no stated length would seem to have ended.
        """
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            trace = aiohttp.TraceConfig()
            trace.on_request_redirect.append(self._refuse_redirect)
            self._session = aiohttp.ClientSession(headers=self._headers, trace_configs=[trace])
        return self._session

    async def _refuse_redirect(
        self, _session: object, _context: object, redirect: aiohttp.TraceRequestRedirectParams
    ) -> None:
        """Go nowhere else, a WebSocket neither: a secret goes to whom it was meant for."""
        redirect.response.close()
        target = urlsplit(redirect.response.headers.get("Location", ""))
        raise Unreachable(
            f"{self.base} sends us on to {target.scheme}://{target.netloc}: where that is the PBX,"
            " give it as the address"
        )

    def _url(self, path: str, query: Mapping[str, str] | None) -> URL:
        # A blank as %20: who knows what reads it there, and "+" is a blank to some only.
        asked = f"?{urlencode(query, quote_via=quote)}" if query else ""
        return URL(f"{self.base}{path}{asked}", encoded=True)

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        limit: asyncio.Timeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        async with (
            self._translated(),
            limit,
            self._opened().request(
                method,
                self._url(path, query),
                data=None if body is None else orjson.dumps(body),
                headers=None if body is None else {"Content-Type": JSON},
                timeout=aiohttp.ClientTimeout(connect=self._limits.connect),
                ssl=self._checked_by(),
            ) as answer,
        ):
            yield answer

    def _checked_by(self) -> ssl.SSLContext | aiohttp.Fingerprint | bool:
        if self._trust.fingerprint:
            return aiohttp.Fingerprint(bytes.fromhex(self._trust.fingerprint))
        if not self.base.startswith("https:"):
            return True
        return client_context(self._trust.ca_file)

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        """Turn the library's errors into ours."""
        try:
            yield
        except aiohttp.WSServerHandshakeError:
            raise
        except aiohttp.ServerFingerprintMismatch as error:
            raise Unreachable(
                f"{self.base} has another certificate than fingerprint says: its SHA-256 is"
                f" {error.got.hex()}; where that is the PBX's own, give that one"
            ) from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise Unreachable(await self._distrusted(error.certificate_error)) from error
        except _NOT_DONE as error:
            raise Unreachable(self._unreached(_why(error))) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unanswered(self._unreached(_why(error))) from error

    def _unreached(self, why: str) -> str:
        return (
            f"{self.base} cannot be reached: {why}: check the address, and whether the PBX's API is"
            " switched on and allows ours"
        )

    async def _distrusted(self, error: Exception) -> str:
        """Say why a certificate was not trusted, and what to give so that it is."""
        why = (getattr(error, "verify_message", "") or str(error)).rstrip(".")
        advice = "give its SHA-256 as fingerprint, or its CA as ca_file"
        if getattr(error, "verify_code", 0) in _WRONG_NAME:
            # An IP address has to stand in the certificate as one (subjectAltName IP).
            advice = "give its SHA-256 as fingerprint, or call it by the name in its certificate"
        seen = await self._fingerprint()
        told = f"; the one that was shown has {seen}" if seen else ""
        return f"{self.base} shows a certificate that is not trusted: {why}: {advice}{told}"

    async def _fingerprint(self) -> str:
        """Look at the certificate that is shown, and say nothing to whoever shows it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        parts = urlsplit(self.base)
        try:
            async with asyncio.timeout(self._limits.connect):
                _, writer = await asyncio.open_connection(
                    parts.hostname, parts.port or 443, ssl=context
                )
        except (OSError, TimeoutError):
            return ""
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.transport.abort()
        return hashlib.sha256(shown).hexdigest()


async def _read(answer: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Read a body of at most so many bytes."""
    text = bytearray()
    async for piece in answer.content.iter_any():
        text += piece
        if len(text) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(text)


async def _read_piece(answer: aiohttp.ClientResponse) -> bytes:
    """Read the next ``PIECE_BYTES`` of a body, or what is left of it."""
    try:
        return await answer.content.readexactly(PIECE_BYTES)
    except asyncio.IncompleteReadError as error:
        return error.partial


def _too_large(max_bytes: int) -> Unreachable:
    return Unreachable(
        f"an answer of the PBX is larger than {max_bytes // MIB} MiB: ask for less time"
    )


def _check_status(base: str, status: int) -> None:
    if status == HTTPStatus.NOT_FOUND:
        raise NotOffered(f"{base} has no such API: check the address and the PBX's firmware")
    if status != HTTPStatus.OK:
        denied = status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
        raise (Denied if denied else Unreachable)(
            f"{base} answers with HTTP status {status}: check the address, and whether the PBX's"
            " API is switched on"
        )


def _why(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientResponseError):
        # Of what is no HTTP; its own text has the URL, and a token is in that.
        return error.message.partition("\n")[0].rstrip(":")
    if isinstance(error, TimeoutError):
        return "no answer in time"
    cause = getattr(error, "os_error", error)  # without the library's words around it
    if (
        isinstance(cause, OSError)
        and not isinstance(cause, ssl.SSLError)
        and (cause.errno or 0) > 0
    ):
        return os.strerror(cause.errno or 0)
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
