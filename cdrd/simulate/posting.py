"""Turns events into posts to an application, as S-Series PBXs and the webhook of the P-Series make.

Each is posted on a connection of its own, in order, and again until it is taken: first after 0.2
seconds, then after twice as long each time, up to 5. How often a real PBX repeats is not known.
"""

import asyncio
import base64
import contextlib
import hmac
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import quote, urlsplit

import orjson

from cdrd.address import format_address
from cdrd.simulate.history import History
from cdrd.simulate.play import PlayingPBX

ANSWER_SECONDS: Final = 10.0
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 5.0
MOST_WAITING: Final = 100_000
"""While so many posts wait, no further call is played: they are in memory."""

TEST_MESSAGE: Final = orjson.dumps({"msg": "This is a test message from the PBX."})
"""What the PBX's page sends to try a webhook. The facts tell only that it is no call report."""

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})\b")
_URL_CHARACTERS = "/?#[]@!$&'()*+,;=:%~"


@dataclass(frozen=True, slots=True)
class Target:
    """Where to post."""

    host: str
    port: int
    path: str = "/"
    tls: bool = False

    @classmethod
    def of_path(cls, host: str, port: int, path: str) -> Self:
        """Where an application wants it that has announced a port and a relative URL."""
        return cls(host, port, quote(f"/{path.removeprefix('/')}", safe=_URL_CHARACTERS))

    @classmethod
    def of_url(cls, url: str) -> Self:
        """Where an absolute URL points. Raises ValueError with a sentence that quotes it."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme not in ("http", "https") or "@" in parts.netloc:
            raise ValueError(f'"{url}" is no URL to post to: write http://HOST:PORT/PATH')
        tls = parts.scheme == "https"
        path = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
        return cls(host, port or (443 if tls else 80), quote(path, safe=_URL_CHARACTERS), tls)

    def __str__(self) -> str:
        return f"http{'s' * self.tls}://{format_address(self.host, self.port)}{self.path}"


@dataclass(frozen=True, slots=True)
class Registration:
    """What an application has asked for: where to post, and the dialect of the reports."""

    target: Target
    dialect: str


@dataclass(frozen=True, slots=True)
class _Post:
    body: bytes
    dialect: str
    is_report: bool
    chunk: int


class PostingPBX(PlayingPBX):
    """A PBX that posts its events to the one application that is registered, until it answers 200.

    While none is registered, its events are lost; with the registration go the posts that wait.
    """

    _taken = range(200, 201)

    def __init__(
        self,
        dialect: str = "",
        *,
        history: History | None = None,
        note: Callable[[str], None] = lambda _: None,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """Speak that dialect, or without one what the application has registered for.

        An answer that takes longer than `answer_seconds` counts as none. `note` is told when posts
        begin to fail, and when they are taken again.
        """
        super().__init__(history)
        self._dialect, self._note, self._answer_seconds = dialect, note, answer_seconds
        self._registration: Registration | None = None
        self._is_alive: Callable[[], bool] = lambda: True
        self._registered = asyncio.Event()
        self._waiting: asyncio.Queue[_Post] = asyncio.Queue()
        self._undecided = 0
        self._is_failing = False
        self._posting: asyncio.Task[None] | None = None

    @property
    def dialect(self) -> str:
        """The one given, or that of the registration; without either 1.0.0, the vendor's own."""
        registration = self.registration
        return self._dialect or (registration.dialect if registration else "1.0.0")

    @property
    def registration(self) -> Registration | None:
        """Who gets the posts now."""
        return self._registration if self._is_alive() else None

    def register(
        self, registration: Registration, is_alive: Callable[[], bool] = lambda: True
    ) -> None:
        """Post there from now on, in place of where it was, as long as `is_alive` says so."""
        self._registration, self._is_alive = registration, is_alive
        self._registered.set()
        if self._posting is None:
            self._posting = asyncio.create_task(self._post_all())

    async def logged_in(self) -> None:
        """Wait until an application has registered."""
        await self._registered.wait()

    async def send(self, report: bytes, *, chunk: int = 0) -> int:
        """Let a report wait to be posted; 0 when nobody is registered for it."""
        if self.registration is None:
            self.unheard += 1
            return 0
        self._undecided += 1
        return await self._let_wait(_Post(report, self.dialect, is_report=True, chunk=chunk))

    async def send_event(self, event: bytes, *, chunk: int = 0) -> int:
        """Let another event wait likewise."""
        if self.registration is None:
            return 0
        return await self._let_wait(_Post(event, self.dialect, is_report=False, chunk=chunk))

    async def reset(self, *, orderly: bool = False) -> None:
        """Break nothing: each post has a connection of its own."""

    async def settle(self) -> None:
        """Wait until each post was taken, or its registration has died."""
        await self._waiting.join()

    async def close(self) -> None:
        """Stop posting; the reports that still wait are unheard."""
        if self._posting is not None:
            self._posting.cancel()
            await asyncio.wait({self._posting})
            if not self._posting.cancelled():
                self._posting.result()
        self.unheard += self._undecided
        self._undecided = 0

    async def _let_wait(self, post: _Post) -> int:
        self._waiting.put_nowait(post)
        if self._waiting.qsize() >= MOST_WAITING:
            await self.settle()
        return 1

    async def _post_all(self) -> None:
        while True:
            post = await self._waiting.get()
            is_taken = await self._is_taken(post)
            self._undecided -= post.is_report
            self.sent += post.is_report and is_taken
            self.unheard += post.is_report and not is_taken
            self.events += is_taken and not post.is_report
            self._waiting.task_done()

    async def _is_taken(self, post: _Post) -> bool:
        """Post it until it is taken, or nobody is registered any more."""
        pause = FIRST_PAUSE
        while (registration := self.registration) is not None:
            self.posts += 1
            fault = await self._fault(registration.target, post)
            self._tell(registration.target, fault)
            if not fault:
                return True
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        return False

    async def _fault(self, target: Target, post: _Post) -> str:
        """Post it once: why it was not taken, or nothing."""
        request = self._request(target, post)
        try:
            async with asyncio.timeout(self._answer_seconds):
                answer = await _exchange(target, request, post.chunk or len(request))
        except TimeoutError:
            return "no answer"
        except (OSError, UnicodeError, asyncio.LimitOverrunError) as error:
            return str(error)
        status = _STATUS.match(answer)
        if status and int(status[1]) in self._taken:
            return ""
        return answer.partition(b"\r\n")[0].decode("latin-1") or "no answer"

    def _request(self, target: Target, post: _Post) -> bytes:
        """Print it as the vendor's pages do: a blank before the port, and no length in 1.x.

        2.0.0 names what it accepts twice; OpenVox has no path, but a length. Whether the wire of
        2.0.0 has a length the facts leave open: here it has.
        """
        path = "" if post.dialect == "openvox" and target.path == "/" else target.path
        accept = ["Accept: application/json"] * (2 if post.dialect == "2.0.0" else 1)
        has_length = not post.dialect.startswith("1.")
        head = [
            f"POST {path} HTTP/1.1",
            "User-Agent: WebAPI",
            f"Host: {_bracketed(target.host)}: {target.port}",
            "Content-Type: application/json",
            *accept,
            *([f"Content-Length: {len(post.body)}"] if has_length else []),
            "Connection: close",
        ]
        return _printed(head, post.body)

    def _tell(self, target: Target, fault: str) -> None:
        """Tell the first failure and the first success after it."""
        if fault and not self._is_failing:
            self._note(f"{target} does not take posts, they are repeated: {fault}")
        if self._is_failing and not fault:
            self._note(f"{target} takes posts again")
        self._is_failing = bool(fault)


class WebhookPBX(PostingPBX):
    """A P-Series PBX with a webhook: posts are signed, and any answer 2xx takes them."""

    _taken = range(200, 300)

    def __init__(
        self,
        secret: str = "",
        *,
        history: History | None = None,
        note: Callable[[str], None] = lambda _: None,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """Sign with that secret; without one there is no signature."""
        super().__init__("p-series", history=history, note=note, answer_seconds=answer_seconds)
        self._secret = secret.encode()

    def _request(self, target: Target, post: _Post) -> bytes:
        head = [
            f"POST {target.path} HTTP/1.1",
            "User-Agent: OpenAPI",
            f"Host: {format_address(target.host, target.port)}",
            "Content-Type: application/json",
            f"Content-Length: {len(post.body)}",
            *([f"X-Signature: {_signature(self._secret, post.body)}"] if self._secret else []),
            "Connection: close",
        ]
        return _printed(head, post.body)


def _signature(secret: bytes, body: bytes) -> str:
    return base64.b64encode(hmac.digest(secret, body, "sha256")).decode()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _printed(head: list[str], body: bytes) -> bytes:
    return "\r\n".join([*head, "", ""]).encode() + body


async def _exchange(target: Target, request: bytes, size: int) -> bytes:
    """Send a request in writes of that size; return the head of the answer, or as much as came."""
    context = ssl.create_default_context() if target.tls else None
    reader, writer = await asyncio.open_connection(target.host, target.port, ssl=context)
    try:
        for start in range(0, len(request), size):
            writer.write(request[start : start + size])
            await writer.drain()
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as broken_off:
        return broken_off.partial
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
