"""Posts are printed as the vendor prints them, in order, and repeated until they are taken."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import re
import socket
from collections.abc import AsyncIterator

import orjson
import pytest

from cdrd.simulate import posting
from cdrd.simulate.posting import (
    PostingPBX,
    Registration,
    Target,
    WebhookPBX,
)
from cdrd.simulate.reports import new_cdr, other_event

STARTED = 1571897930
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


class Application:
    """Keeps each request, one a connection, and gives these answers first, then 200."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers)
        self.requests: list[bytes] = []
        self.came = asyncio.Event()
        self.port = 0

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A PBX that ends may break a post off, before or after it was read.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(head + await _body(head, reader))
            self.came.set()
            writer.write(self._answers.pop(0) if self._answers else OK)
            await writer.drain()
        writer.close()

    async def arrived(self) -> int:
        """Wait for the next request, unless one came since; how many there are."""
        await self.came.wait()
        self.came.clear()
        return len(self.requests)

    def target(self, path: str = "/") -> Target:
        return Target("127.0.0.1", self.port, path)

    @property
    def bodies(self) -> list[bytes]:
        return [request.partition(b"\r\n\r\n")[2] for request in self.requests]


async def _body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    """Read as long as the head says, or where it says nothing to the end of the object."""
    length = re.search(rb"Content-Length: (\d+)", head)
    return await (reader.readexactly(int(length[1])) if length else reader.readuntil(b'"}'))


@contextlib.asynccontextmanager
async def listening(*answers: bytes) -> AsyncIterator[Application]:
    application = Application(*answers)
    server = await asyncio.start_server(application.take, "127.0.0.1", 0)
    application.port = server.sockets[0].getsockname()[1]
    try:
        yield application
    finally:
        server.close()


@contextlib.asynccontextmanager
async def running(pbx: PostingPBX) -> AsyncIterator[PostingPBX]:
    try:
        yield pbx
    finally:
        await pbx.close()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "FIRST_PAUSE", 0.001)


def report(number: int, dialect: str) -> bytes:
    return new_cdr(number, dialect, started=STARTED)


@pytest.mark.parametrize(
    ("url", "target", "text"),
    [
        ("http://127.0.0.1:8260", Target("127.0.0.1", 8260), "http://127.0.0.1:8260/"),
        ("https://cdr/hook?a=1", Target("cdr", 443, "/hook?a=1", tls=True), None),
        ("http://[::1]:1/x y\r\n", Target("::1", 1, "/x%20y"), "http://[::1]:1/x%20y"),
    ],
)
def test_an_absolute_url_is_a_target(url: str, target: Target, text: str | None) -> None:
    assert Target.of_url(url) == target
    assert text is None or str(target) == text


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:80", "ftp://a/", "http://", "http://a:b/", "http://u:p@a/", "http://["]
)
def test_what_is_no_url_is_quoted(url: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f'"{url}" is no URL to post to')):
        Target.of_url(url)


def test_an_announced_path_cannot_break_the_request() -> None:
    assert Target.of_path("a", 1, "").path == "/"
    assert Target.of_path("a", 1, "/cdr?x=%20").path == "/cdr?x=%20"
    assert Target.of_path("a", 1, "cdr\r\nX: y").path == "/cdr%0D%0AX:%20y"


@pytest.mark.asyncio
async def test_a_1_x_request_is_the_one_printed_with_no_length() -> None:
    async with listening() as application, running(PostingPBX()) as pbx:
        pbx.register(Registration(application.target("/in"), "1.0.2"))
        await pbx.send(report(0, "1.0.2"))
        await pbx.settle()
    assert application.requests == [
        f"POST /in HTTP/1.1\r\nUser-Agent: WebAPI\r\nHost: 127.0.0.1: {application.port}\r\n"
        "Content-Type: application/json\r\nAccept: application/json\r\nConnection: close\r\n"
        "\r\n".encode()
        + report(0, "1.0.2")
    ]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("dialect", "line", "accepts"),
    [("2.0.0", b"POST / HTTP/1.1", 2), ("openvox", b"POST  HTTP/1.1", 1)],
)
async def test_other_dialects_have_a_length_and_their_own_quirks(
    dialect: str, line: bytes, accepts: int
) -> None:
    async with listening() as application, running(PostingPBX(dialect)) as pbx:
        pbx.register(Registration(application.target(), "1.0.0"))
        await pbx.send(report(0, dialect))
        await pbx.settle()
    head, _, body = application.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(line + b"\r\n")
    assert head.count(b"\r\nAccept: application/json") == accepts
    assert f"Content-Length: {len(body)}\r\nConnection: close".encode() in head
    assert body == report(0, dialect)


@pytest.mark.asyncio
@pytest.mark.parametrize("chunk", [0, 1, 50])
async def test_all_is_posted_in_order_each_on_a_connection_of_its_own(chunk: int) -> None:
    async with listening() as application, running(PostingPBX()) as pbx:
        pbx.register(Registration(application.target(), "2.0.0"))
        await pbx.logged_in()
        await pbx.stream(count=5, rate=1000, events=1, started=STARTED, chunk=chunk)
        await pbx.settle()
    assert application.bodies == [
        message
        for number in range(5)
        for message in (other_event(number, "2.0.0"), report(number, "2.0.0"))
    ]
    counted = {"sent": 5, "events": 5, "calls": 5, "posts": 10, "unheard": 0}
    assert pbx.counters.items() >= counted.items()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "answer", [BUSY, OK.replace(b"200", b"204"), b"", b"nonsense\r\n\r\n", b"x" * 100_000]
)
async def test_what_is_not_answered_200_is_posted_again_before_the_next(answer: bytes) -> None:
    said: list[str] = []
    async with (
        listening(answer, answer, OK, answer) as application,
        running(PostingPBX(note=said.append)) as pbx,
    ):
        pbx.register(Registration(application.target(), "2.0.0"))
        await pbx.stream(count=2, rate=1000, events=0, started=STARTED)
        await pbx.settle()
    first, second = report(0, "2.0.0"), report(1, "2.0.0")
    assert application.bodies == [first, first, first, second, second]
    assert (pbx.sent, pbx.posts, pbx.unheard) == (2, 5, 0)
    assert [sentence.split()[1:4] for sentence in said] == [
        ["does", "not", "take"],
        ["takes", "posts", "again"],
    ] * 2


@pytest.mark.asyncio
@pytest.mark.parametrize("is_there", [True, False])
async def test_who_does_not_answer_or_listen_is_posted_to_until_it_does(*, is_there: bool) -> None:
    failing = asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        if not is_there:
            silent.close()
        pbx = PostingPBX(answer_seconds=0.05, note=lambda _: failing.set())
        async with running(pbx), listening() as application:
            pbx.register(Registration(Target("127.0.0.1", port), "2.0.0"))
            await pbx.send(report(0, "2.0.0"))
            await failing.wait()
            pbx.register(Registration(application.target(), "2.0.0"))
            await pbx.settle()
            assert application.bodies == [report(0, "2.0.0")]
    assert (pbx.sent, pbx.unheard) == (1, 0)
    assert pbx.posts >= 2


@pytest.mark.asyncio
async def test_pauses_double_up_to_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "FIRST_PAUSE", 0.004)
    monkeypatch.setattr(posting, "LONGEST_PAUSE", 0.016)
    clock = asyncio.get_running_loop().time
    async with listening(*[BUSY] * 4) as application, running(PostingPBX()) as pbx:
        pbx.register(Registration(application.target(), "2.0.0"))
        begun = clock()
        await pbx.send(report(0, "2.0.0"))
        await pbx.settle()
        assert clock() - begun >= 0.004 + 0.008 + 0.016 + 0.016
    assert pbx.posts == 5


@pytest.mark.asyncio
async def test_nothing_is_posted_before_a_registration_and_after_its_death() -> None:
    alive = True
    async with listening(BUSY) as application, running(PostingPBX()) as pbx:
        assert await pbx.send(report(0, "2.0.0")) == 0
        assert await pbx.send_event(b"{}") == 0
        pbx.register(Registration(application.target(), "2.0.0"), lambda: alive)
        assert await pbx.send(report(1, "2.0.0")) == 1
        await application.arrived()
        alive = False
        await pbx.settle()
        assert pbx.registration is None
        assert await pbx.send(report(2, "2.0.0")) == 0
        assert application.bodies == [report(1, "2.0.0")]
    assert (pbx.sent, pbx.unheard, pbx.posts) == (0, 3, 1)


@pytest.mark.asyncio
async def test_what_still_waits_at_the_end_is_unheard() -> None:
    async with listening(*[BUSY] * 1000) as application, running(PostingPBX()) as pbx:
        pbx.register(Registration(application.target(), "2.0.0"))
        await pbx.stream(count=3, rate=1000, started=STARTED)
    assert (pbx.calls, pbx.sent, pbx.unheard) == (3, 0, 3)


@pytest.mark.asyncio
async def test_a_full_memory_holds_up_the_play(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "MOST_WAITING", 2)
    async with listening() as application, running(PostingPBX()) as pbx:
        pbx.register(Registration(application.target(), "2.0.0"))
        for number in range(10):
            await pbx.send(report(number, "2.0.0"))
            assert number - pbx.sent <= 2
        await pbx.settle()
    assert len(application.requests) == 10


@pytest.mark.asyncio
async def test_the_dialect_is_the_registrations_unless_one_is_given() -> None:
    async with running(PostingPBX()) as pbx, running(PostingPBX("1.0.1")) as fixed:
        for dialect in ("1.0.0", "1.0.2", "2.0.0"):
            for one in (pbx, fixed):
                one.register(Registration(Target("127.0.0.1", 1), dialect))
            assert (pbx.dialect, fixed.dialect) == (dialect, "1.0.1")


@pytest.mark.asyncio
async def test_a_webhook_is_signed_over_the_raw_body_and_takes_any_2xx() -> None:
    accepted = OK.replace(b"200 OK", b"202 Accepted")
    async with listening(BUSY, accepted) as application, running(WebhookPBX("k3y")) as pbx:
        pbx.register(Registration(application.target("/hook"), "p-series"))
        await pbx.send(report(0, "p-series"))
        await pbx.settle()
    head, _, body = application.requests[1].partition(b"\r\n\r\n")
    signature = base64.b64encode(hmac.new(b"k3y", body, hashlib.sha256).digest()).decode()
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /hook HTTP/1.1"
    assert f"Host: 127.0.0.1:{application.port}" in lines
    assert f"X-Signature: {signature}" in lines
    assert body == report(0, "p-series")
    assert (pbx.sent, pbx.posts) == (1, 2)


@pytest.mark.asyncio
async def test_a_webhook_without_a_secret_has_no_signature() -> None:
    async with listening() as application, running(WebhookPBX()) as pbx:
        pbx.register(Registration(application.target(), "p-series"))
        await pbx.send_event(posting.TEST_MESSAGE)
        await pbx.settle()
    assert b"X-Signature" not in application.requests[0]
    assert "type" not in orjson.loads(application.bodies[0])
