"""What both web APIs are made of: tokens that die, bodies that are JSON objects, https."""

import re
import ssl
from pathlib import Path

import aiohttp
import pytest
import trustme
from aiohttp import web

from cdrd.simulate.web_api import (
    Tokens,
    WebServer,
    answer,
    json_object,
    local_seconds,
    server_tls,
)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_token_dies_unless_it_is_prolonged() -> None:
    clock = Clock()
    tokens = Tokens(10, clock)
    kept, left = tokens.issue(), tokens.issue()
    assert re.fullmatch("[0-9a-f]{32}", kept)
    clock.now += 9
    tokens.prolong(kept)
    clock.now += 1
    assert (tokens.is_alive(kept), tokens.is_alive(left)) == (True, False)
    tokens.end(kept)
    assert not tokens.is_alive(kept)
    assert not tokens.is_alive("")


def test_beyond_the_most_the_oldest_dies() -> None:
    clock = Clock()
    tokens = Tokens(10, clock, most=3)
    issued = [tokens.issue() for _ in range(4)]
    assert [tokens.is_alive(token) for token in issued] == [False, True, True, True]
    tokens.end(issued[2])
    tokens.issue()
    assert tokens.is_alive(issued[1])


def test_a_time_is_read_in_the_one_format() -> None:
    assert local_seconds("1970-01-02 00:00:01") == 86401
    for other in ("", "1970-01-02", "1970/01/02 00:00:01", "1970-13-02 00:00:01"):
        assert local_seconds(other) is None


async def _echo(request: web.Request) -> web.Response:
    return answer({"told": await json_object(request)})


def echo() -> web.Application:
    app = web.Application()
    app.router.add_post("/", _echo)
    return app


@pytest.mark.asyncio
async def test_a_body_is_a_json_object_and_says_so() -> None:
    server = WebServer(echo())
    await server.start()
    is_json = "application/json; charset=utf-8"
    try:
        async with aiohttp.ClientSession() as client:
            for body, content_type, told in (
                (b'{"a":1}', is_json, {"a": 1}),
                (b'{"a":1}', "text/plain", None),
                (b"[1]", is_json, None),
                (b"a=1", is_json, None),
                (b"\xff", is_json, None),
                (b"", is_json, None),
            ):
                headers = {"Content-Type": content_type}
                async with client.post(server.url, data=body, headers=headers) as answered:
                    assert answered.content_type == "application/json"
                    assert await answered.json() == {"told": told}
    finally:
        await server.close()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 with that of its CA behind it, and its key."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    for part in (*issued.cert_chain_pems, authority.cert_pem):
        part.write_to_path(certificate, append=True)
    issued.private_key_pem.write_to_path(key)
    return certificate, key


@pytest.mark.asyncio
async def test_https_serves_the_certificate(pair: tuple[Path, Path]) -> None:
    server = WebServer(echo(), server_tls(*pair))
    await server.start()
    trusting = ssl.create_default_context(cafile=pair[0])
    try:
        assert server.url.startswith("https://127.0.0.1:")
        async with aiohttp.ClientSession() as client:
            async with client.post(server.url, json={}, ssl=trusting) as answered:
                assert await answered.json() == {"told": {}}
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await client.post(server.url, json={})
    finally:
        await server.close()


def test_files_that_are_no_pair_are_an_error(pair: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, key = pair
    (tmp_path / "text").write_text("no PEM")
    for wrong in ((key, certificate), (certificate, tmp_path / "text"), (tmp_path / "none", key)):
        with pytest.raises(OSError):
            server_tls(*wrong)
