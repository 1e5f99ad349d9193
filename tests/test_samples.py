"""Each published sample is the right row by the ways in that are web protocols, and by curl.

By TCP both ways, and posted in each form, they are in test_serve.py and test_http_listen.py.
"""

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests import quick_serve
from tests.fake_pbx import Answer, fake_pbx
from tests.running import DEADLINE_SECONDS, RunningDaemon, assert_accounted, rows
from tests.test_http_listen import KEY, post, signed
from tests.test_serve import SAMPLES, assert_samples, samples

POSTED = """http.listen = ["127.0.0.1:0"]
[[pbx]]
name = "hq"
peers = ["127.0.0.1"]
"""
WEBHOOK = '[pbx.events]\nkind = "webhook"\nsecret_file = "password"\n'
ACCOUNT = 'username = "api"\npassword_file = "password"\n'


def curl(port: int, *more: str, body: bytes) -> tuple[str, str]:
    """Post with curl; return the status and what came with it."""
    command = ["curl", "--silent", "--show-error", "--data-binary", "@-", *more]
    asked = [*command, "--write-out", "\n%{http_code}", f"http://127.0.0.1:{port}/"]
    done = subprocess.run(
        asked, input=body, capture_output=True, timeout=DEADLINE_SECONDS, check=True
    )
    said, _, status = done.stdout.decode().rpartition("\n")
    return status, said


@pytest.mark.parametrize(
    "how",
    [
        ("--header", "Transfer-Encoding: chunked", "--header", "Expect: 100-continue"),
        ("--http1.0", "--request", "GET", "--header", "Host: 192.168.5.150: 8260"),
    ],
    ids=["in chunks", "as printed"],
)
def test_each_published_sample_is_the_right_row_when_curl_posts_it(
    how: Sequence[str], tmp_path: Path
) -> None:
    with RunningDaemon(tmp_path, POSTED, listen=()) as daemon:
        for report in [*samples("other")[:3], *samples()]:
            assert curl(daemon.port, *how, body=report)[0] == "200"
        assert_samples(rows(daemon.database))
        _, stopped = daemon.stop()
    assert stopped["passed_over"] == 3
    assert_accounted(stopped)


def test_curl_is_told_what_is_wrong_with_what_it_posts(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(KEY)
    with RunningDaemon(tmp_path, POSTED + WEBHOOK, listen=()) as daemon:
        status, said = curl(daemon.port, body=samples()[0])
        assert (status, "X-Signature" in said) == ("403", True)
        status, _ = curl(daemon.port, "--request", "DELETE", body=samples()[0])
        assert status == "405"
        daemon.stop()


def test_each_published_sample_is_the_right_row_when_it_is_signed(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(KEY)
    with RunningDaemon(tmp_path, POSTED + WEBHOOK, listen=()) as daemon:
        for body in [*samples("other"), *samples()]:
            length = f"Content-Length: {len(body)}"
            assert post(daemon.port, body, length, signed(body))[0] == 200
        found = rows(daemon.database)
        _, stopped = daemon.stop()
    assert_samples(found)
    assert {row["source"] for row in found} == {"webhook"}
    assert stopped["passed_over"] == len(samples("other"))
    assert_accounted(stopped)


@pytest.mark.asyncio
async def test_each_published_sample_is_the_right_row_when_a_websocket_brings_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "password").write_text("secret")

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        web_socket = web.WebSocketResponse(timeout=0.1)
        await web_socket.prepare(request)
        assert await web_socket.receive_json() == {"topic_list": [30012]}
        await web_socket.send_str('{"errcode":0,"errmsg":"SUCCESS"}')
        for report in [*samples("other"), *samples()]:
            await web_socket.send_str(report.decode())
        async for _ in web_socket:
            pass
        return web_socket

    answers: dict[str, Answer | list[Answer]] = {
        "/openapi/v1.0/get_token": {"errcode": 0, "access_token": "a", "refresh_token": "r"},
        "/openapi/v1.0/subscribe": serve,
    }
    async with fake_pbx(answers) as pbx:
        events = f'[pbx.events]\nkind = "websocket"\naddress = "{pbx.base[7:]}"\ntls = false\n'
        tables = f'[[pbx]]\nname = "hq"\n{events}{ACCOUNT}'
        with RunningDaemon(tmp_path, tables, listen=()) as daemon:
            await asyncio.to_thread(daemon.wait_for_calls, len(samples()))
            found = rows(daemon.database)
            _, stopped = await asyncio.to_thread(daemon.stop)
    assert_samples(found)
    assert {row["source"] for row in found} == {"websocket"}
    assert stopped["passed_over"] == len(samples("other"))
    assert_accounted(stopped)


@pytest.mark.asyncio
@pytest.mark.parametrize("version", ["1.1.0", "2.0.0"])
async def test_the_published_history_is_the_right_row_when_it_is_fetched(
    version: str, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("secret")
    api = f"/api/v{version}"
    answers: dict[str, Answer | list[Answer]] = {
        f"{api}/login": {"status": "Success", "token": "t"},
        f"{api}/cdr/get_random": {"status": "Success", "random": "r"},
        f"{api}/cdr/download": (SAMPLES / "cdr-download.csv").read_bytes(),
    }
    async with fake_pbx(answers) as pbx:
        tables = f'[[pbx]]\nname = "hq"\npeers = ["127.0.0.1"]\n[pbx.history]\nurl = "{pbx.base}"\n'
        serve = [sys.executable, quick_serve.__file__]
        with RunningDaemon(tmp_path, tables + ACCOUNT, inside=serve) as daemon:
            line = await asyncio.to_thread(daemon.wait_for, "call_released")
            (row,) = rows(daemon.database)
            await asyncio.to_thread(daemon.stop)
    told: dict[str, Any] = {
        "source": "history",
        "call_id": "1589299528.4",
        "started_at": datetime.fromtimestamp(1589299528, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "started_local": "2020-05-12 17:05:28",
        "utc_offset": 60,
        "caller": "966000001",
        "callee": "110",
        "duration": 42,
        "talk_duration": 34,
        "source_trunk": "MEO",
        "destination_trunk": None,
        "status": "ANSWERED",
        "call_type": "Inbound",
        "pbx_serial": "369392534749",
    }
    assert {name: row[name] for name in told} == told
    assert line["seq"] == row["seq"]
