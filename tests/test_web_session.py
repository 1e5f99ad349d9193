"""Whatever a PBX's web server does comes out as its answer, or as one sentence without a secret."""

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from cdrd.pbx_api import Limits, NotOffered, Trust, Unanswered, Unreachable, client_context
from cdrd.sizes import KIB, MIB
from cdrd.web_session import PIECE_BYTES, WebSession
from tests.fake_pbx import Answer, fake_pbx, hang

SOON = 20.0
"""Seconds within which anything here ends, unless it never does."""

ANSWER: Answer = {"status": "Success"}
TOKEN = {"token": "277ac400"}


async def ask(
    base: str, trust: Trust | None = None, limits: Limits | None = None
) -> dict[str, object]:
    session = WebSession(base, trust or Trust(), headers={}, limits=limits)
    try:
        return await session.exchange("POST", "/login", TOKEN, {"password": "x"})
    finally:
        await session.close()


async def failure(answer: Answer, limits: Limits | None = None) -> str:
    async with fake_pbx({"/login": answer}) as pbx:
        with pytest.raises(Unreachable) as raised:
            await ask(pbx.base, limits=limits)
    sentence = str(raised.value)
    assert TOKEN["token"] not in sentence
    return sentence.replace(pbx.base, "BASE")


@pytest.mark.asyncio
async def test_an_answer_is_the_object_that_was_said() -> None:
    async with fake_pbx({"/login": ANSWER}) as pbx:
        assert await ask(pbx.base) == {"status": "Success"}
    assert (pbx.asked[0].query, pbx.asked[0].body) == (TOKEN, {"password": "x"})


@pytest.mark.asyncio
@pytest.mark.parametrize("answer", [b"<html>Welcome</html>", b"[1]", b"", b'{"status":'])
async def test_an_answer_that_is_no_object_is_told(answer: bytes) -> None:
    assert await failure(answer) == (
        "BASE answers with something that is no JSON object: check that this is the address of the"
        " PBX's web interface"
    )


@pytest.mark.asyncio
@pytest.mark.parametrize("status", [401, 500, 503])
async def test_an_http_error_is_told_with_its_status(status: int) -> None:
    assert await failure(web.Response(status=status, text="{}")) == (
        f"BASE answers with HTTP status {status}: check the address, and whether the PBX's API is"
        " switched on"
    )


@pytest.mark.asyncio
async def test_a_failure_that_comes_with_an_http_error_is_an_answer_all_the_same() -> None:
    refusal = web.Response(status=401, text='{"errcode": 10004}')
    async with fake_pbx({"/login": refusal}) as pbx:
        assert await ask(pbx.base) == {"errcode": 10004}


@pytest.mark.asyncio
async def test_what_is_not_there_is_not_offered() -> None:
    async with fake_pbx({}) as pbx:
        with pytest.raises(NotOffered, match="has no such API: check the address"):
            await ask(pbx.base)


@pytest.mark.asyncio
async def test_a_redirect_is_told_and_not_followed() -> None:
    moved = web.Response(status=302, headers={"Location": "http://192.0.2.1/?token=277ac400"})
    assert await failure(moved) == (
        "BASE sends us on to http://192.0.2.1: where that is the PBX, give it as the address"
    )


@pytest.mark.asyncio
async def test_a_web_socket_is_not_led_elsewhere_either() -> None:
    async with fake_pbx({}) as other:
        moved = web.Response(status=307, headers={"Location": f"{other.base}/login"})
        async with fake_pbx({"/login": moved}) as pbx:
            session = WebSession(pbx.base, Trust(), headers={})
            with pytest.raises(Unreachable, match=f"sends us on to {other.base}: where"):
                await session.web_socket("/login", TOKEN, KIB)
            await session.close()
    assert not other.asked


@pytest.mark.asyncio
async def test_a_redirect_to_what_is_no_url_is_told() -> None:
    moved = web.Response(status=302, headers={"Location": "http://[token=277ac400"})
    assert (await failure(moved)).startswith("BASE cannot be reached: Invalid IPv6 URL: check")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"SSH-2.0-dropbear\r\n\r\n", "Bad status line"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "Invalid character in Content-Length"),
    ],
)
async def test_what_is_no_http_is_told_without_the_url_that_was_asked(
    said: bytes, why: str
) -> None:
    async def say(request: web.BaseRequest) -> web.StreamResponse:
        assert isinstance(request.transport, asyncio.Transport)
        request.transport.write(said)
        return await hang(request)

    assert (await failure(say)).startswith(f"BASE cannot be reached: {why}: check the address")


@pytest.mark.asyncio
async def test_who_does_not_answer_is_waited_for_within_a_bound() -> None:
    assert await failure(hang, Limits(answer=0.05)) == (
        "BASE cannot be reached: no answer in time: check the address, and whether the PBX's API is"
        " switched on and allows ours"
    )


@pytest.mark.asyncio
async def test_an_answer_without_end_is_read_within_a_bound() -> None:
    sentence = await failure(b"[" + b"1," * KIB, Limits(answer_bytes=KIB))
    assert sentence.startswith("an answer of the PBX is larger than")


@pytest.mark.asyncio
async def test_a_connection_that_breaks_off_is_told() -> None:
    async def break_off(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    assert (await failure(break_off)).startswith("BASE cannot be reached: ")


@pytest.mark.asyncio
async def test_what_was_asked_and_not_answered_may_have_been_done() -> None:
    async def break_off(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with fake_pbx({"/login": [break_off, hang]}) as pbx:
        for _ in range(2):
            session = WebSession(pbx.base, Trust(), headers={}, limits=Limits(answer=0.05))
            with pytest.raises(Unanswered):
                await session.exchange("POST", "/login")
            await session.close()


@pytest.mark.asyncio
async def test_nobody_there_is_told_in_the_system_s_words() -> None:
    async with fake_pbx({}) as pbx:
        pass
    with pytest.raises(Unreachable, match="cannot be reached: Connection refused: check") as raised:
        await ask(pbx.base)
    assert not isinstance(raised.value, Unanswered)


@pytest.mark.asyncio
async def test_a_blank_is_asked_for_in_the_way_that_everybody_reads() -> None:
    raw: list[str] = []

    async def note(request: web.BaseRequest) -> web.StreamResponse:
        raw.append(request.raw_path)
        return web.Response(text="a,b")

    async with fake_pbx({"/cdr": note}) as pbx:
        session = WebSession(pbx.base, Trust(), headers={})
        pieces = session.fetch("/cdr", {"starttime": "2018-11-07 00:00:00"})
        assert [piece async for piece in pieces] == [b"a,b"]
        await session.close()
    assert raw == ["/cdr?starttime=2018-11-07%2000%3A00%3A00"]


@pytest.mark.asyncio
async def test_a_closed_session_opens_again() -> None:
    async with fake_pbx({"/login": ANSWER}) as pbx:
        session = WebSession(pbx.base, Trust(), headers={})
        for _ in range(2):
            assert await session.exchange("POST", "/login") == {"status": "Success"}
            await session.close()


# Downloads


@contextlib.asynccontextmanager
async def downloading(
    answer: Answer, limits: Limits | None = None
) -> AsyncIterator[AsyncGenerator[bytes, None]]:
    async with fake_pbx({"/cdr": answer}) as pbx:
        session = WebSession(pbx.base, Trust(), headers={}, limits=limits)
        try:
            async with contextlib.aclosing(session.fetch("/cdr", {})) as pieces:
                yield pieces
        finally:
            await session.close()


@contextlib.asynccontextmanager
async def body(request: web.BaseRequest) -> AsyncIterator[web.StreamResponse]:
    """An answer of no stated length, which a handler writes a piece at a time."""
    response = web.StreamResponse()
    await response.prepare(request)
    yield response
    await response.write_eof()


class SetClock:
    """The loop's clock, which can be set forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self.ahead, now = 0.0, loop.time
        monkeypatch.setattr(loop, "time", lambda: now() + self.ahead)


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, 3 * PIECE_BYTES + 1])
async def test_a_download_comes_in_pieces(size: int) -> None:
    said = bytes(number % 251 for number in range(size))
    async with downloading(said) as pieces:
        came = [piece async for piece in pieces]
    assert b"".join(came) == said
    assert [len(piece) for piece in came[:-1]] == [PIECE_BYTES] * (len(came) - 1)


@pytest.mark.asyncio
async def test_a_piece_comes_before_the_next_is_sent() -> None:
    may_go_on = asyncio.Event()

    async def send(request: web.BaseRequest) -> web.StreamResponse:
        async with body(request) as response:
            await response.write(b"a" * PIECE_BYTES)
            await may_go_on.wait()
            await response.write(b"b")
        return response

    async with asyncio.timeout(SOON), downloading(send) as pieces:
        assert await anext(pieces) == b"a" * PIECE_BYTES
        may_go_on.set()
        assert [piece async for piece in pieces] == [b"b"]


@pytest.mark.asyncio
async def test_while_a_piece_is_worked_on_no_more_is_read_than_a_little() -> None:
    sent = 0

    async def send(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal sent
        async with body(request) as response:
            while sent < 64 * MIB:
                await response.write(b"a" * MIB)
                sent += MIB
        return response

    async with downloading(send) as pieces:
        taken, before = len(await anext(pieces)), -1
        while sent > before:
            before = sent
            for _ in range(100):
                await asyncio.sleep(0)
        assert sent < 32 * MIB  # the kernel's buffers hold some
        async for piece in pieces:
            taken += len(piece)
    assert taken == sent == 64 * MIB


@pytest.mark.asyncio
async def test_the_time_that_a_piece_is_worked_on_is_not_the_pbxs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, may_go_on = SetClock(monkeypatch), asyncio.Event()

    async def send(request: web.BaseRequest) -> web.StreamResponse:
        async with body(request) as response:
            await response.write(b"a" * PIECE_BYTES)
            await may_go_on.wait()
            await response.write(b"b" * PIECE_BYTES)
        return response

    async with downloading(send) as pieces:
        await anext(pieces)
        clock.ahead += 10 * Limits().download
        for _ in range(3):
            await asyncio.sleep(0)  # what is due by then is done
        may_go_on.set()
        assert [piece async for piece in pieces] == [b"b" * PIECE_BYTES]


@pytest.mark.asyncio
@pytest.mark.parametrize("each", [1, PIECE_BYTES])
async def test_a_pbx_that_sends_little_at_a_time_is_waited_for_within_a_bound(
    monkeypatch: pytest.MonkeyPatch, each: int
) -> None:
    clock, sent = SetClock(monkeypatch), 0

    async def drip(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal sent
        async with body(request) as response:
            while True:
                clock.ahead += 59
                await asyncio.sleep(0)
                await response.write(b"a" * each)
                sent += each
        return response

    async with downloading(drip) as pieces:
        with pytest.raises(Unanswered, match="no answer in time"):
            async for _ in pieces:
                pass
    assert 0 < sent < 20 * each


@pytest.mark.asyncio
async def test_a_download_that_breaks_off_is_told_behind_its_pieces() -> None:
    async def break_off(request: web.BaseRequest) -> web.StreamResponse:
        async with body(request) as response:
            await response.write(b"a" * PIECE_BYTES + b"b")
            assert isinstance(request.transport, asyncio.Transport)
            request.transport.close()
        return response

    async with downloading(break_off) as pieces:
        assert await anext(pieces) == b"a" * PIECE_BYTES
        with pytest.raises(Unanswered, match="cannot be reached: "):
            await anext(pieces)


@pytest.mark.asyncio
async def test_a_download_without_end_is_read_within_a_bound() -> None:
    async def go_on(request: web.BaseRequest) -> web.StreamResponse:
        async with body(request) as response:
            with contextlib.suppress(ConnectionError):
                while True:
                    await response.write(b"a" * PIECE_BYTES)
        return response

    async with downloading(go_on, Limits(download_bytes=2 * MIB)) as pieces:
        for _ in range(2 * MIB // PIECE_BYTES):
            await anext(pieces)
        with pytest.raises(Unreachable, match="larger than 2 MiB: ask for less time"):
            await anext(pieces)


@pytest.mark.asyncio
async def test_a_download_that_is_left_is_closed() -> None:
    left = asyncio.Event()

    async def go_on(request: web.BaseRequest) -> web.StreamResponse:
        async with body(request) as response:
            try:
                while True:
                    await response.write(b"a" * PIECE_BYTES)
            except ConnectionError:
                left.set()
        return response

    async with fake_pbx({"/cdr": go_on}) as pbx:
        session = WebSession(pbx.base, Trust(), headers={})
        async with contextlib.aclosing(session.fetch("/cdr", {})) as pieces:
            await anext(pieces)
        await asyncio.wait_for(left.wait(), SOON)
        await session.close()


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def serving(authority: trustme.CA, name: str = "127.0.0.1") -> tuple[ssl.SSLContext, str]:
    """What a PBX serves with, and its certificate's SHA-256."""
    issued = authority.issue_cert(name)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    issued.configure_cert(context)
    der = ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())
    return context, hashlib.sha256(der).hexdigest()


@pytest.mark.asyncio
async def test_a_fingerprint_alone_is_trusted(authority: trustme.CA) -> None:
    context, digest = serving(authority, "somewhere.else.example.com")
    async with fake_pbx({"/login": ANSWER}, context) as pbx:
        assert await ask(pbx.base, Trust(fingerprint=digest))


@pytest.mark.asyncio
async def test_another_certificate_is_told_and_hears_no_secret(authority: trustme.CA) -> None:
    context, digest = serving(authority)
    async with fake_pbx({"/login": ANSWER}, context) as pbx:
        with pytest.raises(Unreachable) as raised:
            await ask(pbx.base, Trust(fingerprint="00" * 32))
    assert str(raised.value) == (
        f"{pbx.base} has another certificate than fingerprint says: its SHA-256 is {digest}; where"
        " that is the PBX's own, give that one"
    )
    assert not pbx.asked


@pytest.mark.asyncio
async def test_an_unknown_certificate_is_told_with_what_to_give(authority: trustme.CA) -> None:
    context, digest = serving(authority)
    async with fake_pbx({"/login": ANSWER}, context) as pbx:
        with pytest.raises(Unreachable) as raised:
            await ask(pbx.base)
    sentence = str(raised.value)
    assert sentence.startswith(f"{pbx.base} shows a certificate that is not trusted: ")
    assert sentence.endswith(
        ": give its SHA-256 as fingerprint, or its CA as ca_file; the one that was shown has"
        f" {digest}"
    )
    assert not pbx.asked


@pytest.mark.asyncio
async def test_a_ca_is_trusted_for_the_names_that_it_vouches_for(
    authority: trustme.CA, tmp_path: Path
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    trust = Trust(ca_file=str(tmp_path / "ca.pem"))
    context, _ = serving(authority)
    async with fake_pbx({"/login": ANSWER}, context) as pbx:
        assert await ask(pbx.base, trust)
    context, digest = serving(authority, "pbx.example.com")
    async with fake_pbx({"/login": ANSWER}, context) as pbx:
        with pytest.raises(
            Unreachable, match="or call it by the name in its certificate"
        ) as raised:
            await ask(pbx.base, trust)
    assert digest in str(raised.value)
    assert "certificate is not valid for '127.0.0.1': give" in str(raised.value)
    assert not pbx.asked


@pytest.mark.asyncio
async def test_the_system_s_certificates_may_be_named_by_the_environment(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "store.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "store.pem"))
    client_context.cache_clear()
    context, _ = serving(authority)
    try:
        async with fake_pbx({"/login": ANSWER}, context) as pbx:
            assert await ask(pbx.base)
    finally:
        client_context.cache_clear()


@pytest.mark.asyncio
async def test_a_ca_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    missing, text = tmp_path / "none.pem", tmp_path / "text.pem"
    text.write_text("no certificate")
    for path, why in ((missing, "cannot be read: No such file"), (text, "holds no certificate")):
        with pytest.raises(Unreachable, match=f"ca_file {path} {why}"):
            await ask("https://127.0.0.1:1", Trust(ca_file=str(path)))


@pytest.mark.asyncio
async def test_who_speaks_no_tls_is_told() -> None:
    async with fake_pbx({"/login": ANSWER}) as pbx:
        async with asyncio.timeout(10):
            with pytest.raises(Unreachable, match="cannot be reached: "):
                await ask(pbx.base.replace("http:", "https:"))
