"""The command plays each role: what it says, whom it tells, and what can be fetched afterwards."""

import argparse
import asyncio
import contextlib
import csv
import io
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from hashlib import md5
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import trustme

from cdrd.simulate import arguments as simulate_arguments
from cdrd.simulate import roles as simulate_roles
from tests.test_simulate_posting import listening

PASSWORD = md5(b"api").hexdigest()
LOGIN = {"username": "api", "password": "api"}
EVER = {"starttime": "2000-01-01 00:00:00", "endtime": "2100-01-01 00:00:00"}
QUICK = ("--rate", "0", "--events", "1")


class Program:
    """A running `cdrd simulate pbx`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        assert process.stderr is not None
        self._remarks = process.stderr

    async def told(self, beginning: str) -> str:
        """Wait for a line on stderr that begins like this; the rest of it."""
        while line := (await self._remarks.readline()).decode():
            if line.startswith(beginning):
                return line.removeprefix(beginning).strip()
        raise AssertionError(f"it ended without {beginning!r}")

    async def ended(self, stop: signal.Signals | None = None) -> dict[str, int]:
        """Wait for its end; the counters."""
        if stop is not None:
            self._process.send_signal(stop)
        summary, _ = await self._process.communicate()
        assert self._process.returncode == 0
        counters: dict[str, int] = orjson.loads(summary)
        return counters

    async def kill(self) -> None:
        """End it, if it has not."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.communicate()


@contextlib.asynccontextmanager
async def program(*arguments: str | Path) -> AsyncIterator[Program]:
    command = (sys.executable, "-m", "cdrd", "simulate", "pbx", *map(str, arguments))
    pipe = asyncio.subprocess.PIPE
    running = Program(await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe))
    try:
        yield running
    finally:
        await running.kill()


async def s_series_history(client: aiohttp.ClientSession, base: str) -> list[dict[str, str]]:
    """Log in, as for the history alone, and fetch all of it."""
    url = f"{base}/api/v1.1.0"
    async with client.post(f"{url}/login", json=LOGIN | {"password": PASSWORD}) as answered:
        token = {"token": (await answered.json())["token"]}
    asked = {"extid": "all"} | EVER
    async with client.post(f"{url}/cdr/get_random", params=token, json=asked) as answered:
        random = (await answered.json())["random"]
    query = asked | token | {"random": random}
    async with client.get(f"{url}/cdr/download", params=query) as answered:
        return list(csv.DictReader(io.StringIO(await answered.text(), newline="")))


async def p_series_token(client: aiohttp.ClientSession, base: str) -> dict[str, str]:
    async with client.post(f"{base}/openapi/v1.0/get_token", json=LOGIN) as answered:
        return {"access_token": (await answered.json())["access_token"]}


async def p_series_history(
    client: aiohttp.ClientSession, base: str, token: dict[str, str]
) -> list[dict[str, Any]]:
    async with client.get(f"{base}/openapi/v1.0/cdr/list", params=token) as answered:
        rows: list[dict[str, Any]] = (await answered.json())["data"]
        return rows


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    simulate_arguments.add_arguments(parser)
    return simulate_roles.run(parser.parse_args(arguments))


def tls(certificate: Path, key: Path) -> tuple[str, ...]:
    return ("--certificate", f"{certificate}", "--key", f"{key}")


def numbers(call_ids: list[str]) -> list[int]:
    return [int(call_id.partition(".")[2]) for call_id in call_ids]


@pytest.mark.asyncio
async def test_over_tcp_what_was_not_pushed_is_fetched_after_the_last_call() -> None:
    async with (
        program(
            *("--listen", "127.0.0.1:0", "--api", "127.0.0.1:0", *QUICK),
            *("--count", "6", "--unpushed-every", "3", "--utc-offset", "60"),
        ) as pbx,
        aiohttp.ClientSession() as client,
    ):
        host, _, port = (await pbx.told("listening on ")).partition(":")
        base = await pbx.told("API on ")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"Action: login\r\nUsername: api\r\nSecret: api\r\nVersion: 2.0.0\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        pushed: list[dict[str, str]] = []
        while len(pushed) < 4:
            event = orjson.loads(await reader.readline())
            if event["event"] == "NewCdr":
                pushed.append(event)
        assert numbers([event["callid"] for event in pushed]) == [0, 1, 3, 4]
        rows = await s_series_history(client, base)
        assert numbers([row["callid"] for row in rows]) == [0, 1, 2, 3, 4, 5]
        assert rows[3]["timestart"] == pushed[2]["timestart"]
        counters = await pbx.ended(signal.SIGTERM)
        writer.close()
    told = {"calls": 6, "sent": 4, "events": 4, "unheard": 0, "logins": 2, "fetches": 1, "posts": 0}
    assert counters.items() >= told.items()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("version", "dialect"), [("2.0.0", "2.0.0"), ("1.0.2", "1.0.2"), ("", "1.0.0")]
)
async def test_over_http_play_begins_with_the_registration_in_its_dialect(
    version: str, dialect: str
) -> None:
    async with (
        listening() as application,
        program("--kind", "http", "--listen", "127.0.0.1:0", *QUICK, "--count", "3") as pbx,
        aiohttp.ClientSession() as client,
    ):
        base = await pbx.told("API on ")
        login = {"username": "api", "password": PASSWORD, "port": f"{application.port}"}
        login |= {"version": version} if version else {}
        async with client.post(f"{base}/api/v2.0.0/login", json=login) as answered:
            token = (await answered.json())["token"]
        async with client.post(
            f"{base}/api/v2.0.0/heartbeat", params={"token": token}, json=login
        ) as answered:
            assert await answered.json() == {"status": "Success"}
        while (await application.arrived()) < 6:
            pass
        rows = await s_series_history(client, base)
        counters = await pbx.ended(signal.SIGINT)
    reports = [orjson.loads(body) for body in application.bodies[1::2]]
    assert [report["callid"] for report in reports] == [row["callid"] for row in rows]
    kind = {"2.0.0": {"event", "agentringtime"}, "1.0.2": {"action", "sn"}, "1.0.0": {"action"}}
    assert reports[0].keys() >= kind[dialect]
    assert ("sn" in reports[0]) == (dialect != "1.0.0")
    told = {"calls": 3, "sent": 3, "posts": 6, "heartbeats": 1, "logins": 2, "fetches": 1}
    assert counters.items() >= told.items()


@pytest.mark.asyncio
async def test_over_http_an_application_that_is_named_needs_no_login() -> None:
    async with listening() as application:
        url = f"http://127.0.0.1:{application.port}/in"
        arguments = ("--kind", "http", "--listen", "127.0.0.1:0", "--post-to", url, *QUICK)
        async with program(*arguments, "--count", "2", "--dialect", "openvox") as pbx:
            while (await application.arrived()) < 4:
                pass
            counters = await pbx.ended(signal.SIGTERM)
    assert application.requests[0].startswith(b"POST /in HTTP/1.1\r\nUser-Agent: WebAPI\r\n")
    assert (counters["sent"], counters["logins"]) == (2, 0)


@pytest.mark.asyncio
async def test_a_websocket_begins_the_play_and_is_dropped_when_silent() -> None:
    async with (
        program(
            *("--kind", "websocket", "--listen", "127.0.0.1:0", *QUICK, "--count", "4"),
            *("--unpushed-every", "4", "--silence-seconds", "0.5", "--token-seconds", "60"),
        ) as pbx,
        aiohttp.ClientSession(headers={"User-Agent": "OpenAPI"}) as client,
    ):
        assert await pbx.told("listening on ")
        base = await pbx.told("API on ")
        token = await p_series_token(client, base)
        url = f"{base}/openapi/v1.0/subscribe"
        async with client.ws_connect(url, params=token) as socket:
            await socket.send_str('{"topic_list":[30012]}')
            told = [message.data async for message in socket]
        assert told[0] == '{"errcode":0,"errmsg":"SUCCESS"}'
        reports = [orjson.loads(orjson.loads(text)["msg"]) for text in told[1:]]
        assert numbers([report["call_id"] for report in reports]) == [0, 1, 2]
        rows = await p_series_history(client, base, token)
        assert numbers([row["call_id"] for row in rows]) == [0, 1, 2, 3]
        counters = await pbx.ended(signal.SIGTERM)
    assert counters.items() >= {"calls": 4, "sent": 3, "events": 0, "fetches": 1}.items()


@pytest.mark.asyncio
async def test_a_webhook_sends_a_test_message_and_ends_after_its_count(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("k3y\n")
    async with listening() as application:
        url = f"http://127.0.0.1:{application.port}/"
        arguments = ("--kind", "webhook", "--post-to", url, "--secret-file", secret, *QUICK)
        async with program(*arguments, "--count", "2") as pbx:
            counters = await pbx.ended()
    first, *others = application.bodies
    assert "type" not in orjson.loads(first)
    assert [orjson.loads(body)["type"] for body in others] == [30005, 30012, 30006, 30012]
    assert all(b"\r\nX-Signature: " in request for request in application.requests)
    assert counters.items() >= {"calls": 2, "sent": 2, "events": 3, "posts": 5}.items()


@pytest.mark.asyncio
async def test_a_webhook_that_listens_serves_the_history_over_https(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    pair = (tmp_path / "pbx.pem", tmp_path / "pbx.key")
    issued.cert_chain_pems[0].write_to_path(pair[0])
    issued.private_key_pem.write_to_path(pair[1])
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with listening() as application:
        url = f"http://127.0.0.1:{application.port}/"
        arguments = ("--kind", "webhook", "--post-to", url, "--listen", "127.0.0.1:0", *QUICK)
        async with (
            program(*arguments, "--count", "2", *tls(*pair)) as pbx,
            aiohttp.ClientSession(
                headers={"User-Agent": "OpenAPI"},
                connector=aiohttp.TCPConnector(ssl=trusting),
            ) as client,
        ):
            base = await pbx.told("API on ")
            assert base.startswith("https://127.0.0.1:")
            while (await application.arrived()) < 5:
                pass
            rows = await p_series_history(client, base, await p_series_token(client, base))
            assert numbers([row["call_id"] for row in rows]) == [0, 1]
            await pbx.ended(signal.SIGTERM)


@pytest.mark.asyncio
async def test_seconds_end_it_all() -> None:
    kinds = (("http",), ("websocket",), ("webhook", "--post-to", "http://127.0.0.1:1/"))
    for kind in kinds:
        listen = ("--listen", "127.0.0.1:0", "--seconds", "0.05", "--count", "1")
        async with program("--kind", *kind, *listen, *QUICK) as pbx:
            counters = await pbx.ended()
        assert (counters["calls"], counters["unheard"]) == (kind[0] == "webhook",) * 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--kind", "udp"), "invalid choice: 'udp'"),
        (("--kind", "http", "--api", "127.0.0.1:0"), "the web API of http is at --listen"),
        (("--kind", "webhook"), "--kind webhook needs --post-to URL"),
        (("--post-to", "http://a/"), "--post-to is for --kind http and webhook: tcp posts nothing"),
        (("--kind", "http", "--post-to", "a:1"), '"a:1" is no URL to post to'),
        (("--key", "/x"), "--certificate and --key belong together"),
        (("--secret-file", __file__), "--secret-file is for --kind webhook"),
        (("--kind", "websocket", "--dialect", "2.0.0"), "take --dialect 2.0.0 out"),
        (("--utc-offset", "900"), "is no number of minutes from -840 to 840"),
        (("--token-seconds", "soon"), '"soon" is no number of 0 or more'),
    ],
)
def test_what_does_not_fit_is_a_usage_error(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_certificate_or_an_address_that_cannot_be_had_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("no PEM")
    listen = ("--listen", "127.0.0.1:0")
    for certificate, why in ((tmp_path / "none", "No such file"), (tmp_path / "text", "PEM")):
        assert run("--kind", "http", *listen, *tls(certificate, certificate)) == 1
        told = capsys.readouterr().err
        assert told.startswith(f'cannot serve the certificate "{certificate}" with the key "')
        assert why in told
        assert told.count("\n") == 1
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert run("--kind", "websocket", "--listen", address) == 1
    assert capsys.readouterr().err == f"cannot listen on {address}: Address already in use\n"


def test_without_a_web_api_nothing_of_it_is_loaded() -> None:
    """It takes 0.3 s, which a PBX over TCP need not pay."""
    program = (
        "import sys; from cdrd.__main__ import main; "
        "main(['simulate', 'pbx', '--listen', '127.0.0.1:0', '--seconds', '0.01']); "
        "sys.exit('aiohttp' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
