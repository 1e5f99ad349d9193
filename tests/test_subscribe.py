"""What a WebSocket brings is in custody at once, whatever else comes over it, and it comes back."""

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from zoneinfo import ZoneInfo

import pytest
import trustme
from aiohttp import WSMsgType, web

from cdrd.batch import QuarantinedReport
from cdrd.intake import Intake, read_out
from cdrd.log import Logger
from cdrd.login import BackOff
from cdrd.p_series import PSeriesApi
from cdrd.pbx_api import Account, Trust
from cdrd.sender import Sender
from cdrd.simulate.reports import new_cdr
from cdrd.sizes import KIB, MIB
from cdrd.subscribe import Rhythm, Subscription
from tests.fake_pbx import (
    ACCOUNT,
    Answer,
    FakePbx,
    Gaps,
    Heard,
    Json,
    a_guard,
    an_intake,
    fake_pbx,
    running,
)
from tests.running import RunningDaemon, assert_accounted, count, rows
from tests.simulated import SimulatedPbx

GET_TOKEN, SUBSCRIBE = "/openapi/v1.0/get_token", "/openapi/v1.0/subscribe"
REFRESH = "/openapi/v1.0/refresh_token"
YES: Json = {"errcode": 0, "access_token": "a", "refresh_token": "r"}
OTHER: Json = {"errcode": 0, "access_token": "b", "refresh_token": "s"}
SUBSCRIBED = '{"errcode":0,"errmsg":"SUCCESS"}'
HQ = Sender("hq", ZoneInfo("Europe/Berlin"))
STILL = Rhythm(heartbeat=600, answer=10)
"""Nothing but what is received happens."""

Serve = Callable[[web.WebSocketResponse], Awaitable[None]]


def call(number: int) -> str:
    return new_cdr(number, "p-series", started=1571897930).decode()


def serving(serve: Serve) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    """Answer with a WebSocket that is served so, once it has asked for the calls."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        web_socket = web.WebSocketResponse(timeout=0.1)
        await web_socket.prepare(request)
        assert await web_socket.receive_json() == {"topic_list": [30012]}
        await serve(web_socket)
        return web_socket

    return answer


async def until_it_ends(web_socket: web.WebSocketResponse) -> None:
    async for _ in web_socket:
        pass


@dataclass
class Bench:
    """A subscription, and what it has told and taken."""

    subscription: Subscription
    intake: Intake
    heard: Heard
    gaps: Gaps

    def calls(self) -> list[str]:
        return [record.call_id for record in self.intake.waiting.arriving.records]

    def quarantined(self) -> list[str]:
        return [report.reason for report in self.intake.waiting.arriving.quarantined]


@contextlib.asynccontextmanager
async def subscribed(
    base: str, rhythm: Rhythm = STILL, *, account: Account = ACCOUNT, waiting_bytes: int = MIB
) -> AsyncIterator[Bench]:
    heard, gaps = Heard(), Gaps()
    api = PSeriesApi(base, account, Trust(), a_guard())
    intake = an_intake(heard, gaps, waiting_bytes=waiting_bytes)
    subscription = Subscription(HQ, api, intake=intake, log=cast(Logger, heard), rhythm=rhythm)
    subscription._back_off = BackOff(0.001, 0.001)
    try:
        yield Bench(subscription, intake, heard, gaps)
    finally:
        await api.close()


@contextlib.asynccontextmanager
async def bench_with(
    answer: Answer | list[Answer], rhythm: Rhythm = STILL, *, waiting_bytes: int = MIB
) -> AsyncIterator[tuple[FakePbx, Bench]]:
    """A running subscription to a PBX that answers with these WebSockets."""
    async with (
        fake_pbx({GET_TOKEN: YES, SUBSCRIBE: answer, REFRESH: OTHER}) as pbx,
        subscribed(pbx.base, rhythm, waiting_bytes=waiting_bytes) as bench,
        running(bench.subscription.run()),
    ):
        yield pbx, bench


@pytest.mark.asyncio
async def test_reports_alone_are_taken_and_a_bad_one_costs_itself() -> None:
    async def serve(web_socket: web.WebSocketResponse) -> None:
        await web_socket.send_str(SUBSCRIBED)
        await web_socket.send_str(call(0))
        await web_socket.send_str("heartbeat response")
        await web_socket.send_str(call(1)[:-20])
        await web_socket.send_frame(b'{"type":30012,"msg":"\xff"}', WSMsgType.TEXT)
        await web_socket.send_str('{"type":30011,"sn":"1","msg":"{}"}')
        await web_socket.send_bytes(call(2).encode())
        await web_socket.close()

    async with bench_with([serving(serve), serving(until_it_ends)]) as (_, bench):
        lost = await bench.heard.wait_for("pbx_disconnected")
        assert bench.calls() == ["1571897930.0", "1571897930.2"]
        assert len(bench.quarantined()) == 2
    assert lost["reports"] == bench.intake.totals.received == 5
    assert lost["reason"] == "closed with code 1000"
    assert {record.source for record in bench.intake.waiting.arriving.records} == {"websocket"}
    assert bench.intake.totals.passed_over == 1


@pytest.mark.asyncio
async def test_a_longer_report_is_taken_once_it_may_be_longer() -> None:
    longer = asyncio.Event()

    async def serve(web_socket: web.WebSocketResponse) -> None:
        await web_socket.send_str(SUBSCRIBED)
        await longer.wait()
        await web_socket.send_str(call(0).replace("{", '{"note":"' + "x" * 100 * KIB + '",', 1))
        await web_socket.close()

    async with bench_with([serving(serve), serving(until_it_ends)]) as (_, bench):
        await bench.heard.wait_for("pbx_connected")
        bench.intake.max_report_bytes = 200 * KIB
        longer.set()
        await bench.heard.wait_for("pbx_disconnected")
        assert bench.calls() == ["1571897930.0"]


@pytest.mark.asyncio
@pytest.mark.parametrize(("said", "is_reset"), [('{"message":"busy"}', False), (call(0), True)])
async def test_only_what_a_pbx_reports_makes_the_next_wait_short_again(
    said: str, is_reset: bool
) -> None:
    async def serve(web_socket: web.WebSocketResponse) -> None:
        await web_socket.send_str(SUBSCRIBED)
        await web_socket.send_str(said)
        await web_socket.close()

    async with bench_with(serving(serve)) as (_, bench):
        back_off = bench.subscription._back_off = BackOff(0.001)
        await bench.heard.wait_for("pbx_connected", times=4)
    assert (back_off.wait() <= 0.002) == is_reset


@pytest.mark.asyncio
async def test_a_connection_that_is_lost_is_told_and_made_anew() -> None:
    async def break_off(web_socket: web.WebSocketResponse) -> None:
        await web_socket.send_str(SUBSCRIBED)
        transport = web_socket._req.transport if web_socket._req else None
        assert transport is not None
        transport.abort()

    async def stay(web_socket: web.WebSocketResponse) -> None:
        await web_socket.send_str(SUBSCRIBED)
        await until_it_ends(web_socket)

    async with bench_with([serving(break_off), serving(stay)]) as (pbx, bench):
        await bench.heard.wait_for("pbx_connected", times=2)
        assert bench.subscription.connected
        assert pbx.times[GET_TOKEN] == 1
    assert bench.heard.events == ["pbx_connected", "pbx_disconnected", "pbx_connected"]
    assert bench.gaps.told == ["hq mended", "hq broke", "hq mended"]


@pytest.mark.asyncio
async def test_heartbeats_that_are_answered_keep_it_and_one_that_is_not_ends_it() -> None:
    answered = 0

    async def serve(web_socket: web.WebSocketResponse) -> None:
        nonlocal answered
        await web_socket.send_str(SUBSCRIBED)
        async for message in web_socket:
            assert message.data == "heartbeat"
            if answered < 3:
                answered += 1
                await web_socket.send_str("heartbeat response")

    rhythm = Rhythm(heartbeat=0.05, answer=0.05)
    async with bench_with([serving(serve), serving(until_it_ends)], rhythm) as (_, bench):
        lost = await bench.heard.wait_for("pbx_disconnected")
    assert lost["reason"] == "no answer to a heartbeat in 0.05 s"
    assert answered == 3
    assert bench.intake.totals.received == 0


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ('{"errcode":10004,"errmsg":"TOKEN EXPIRED"}', "errcode 10004 (TOKEN EXPIRED)"),
        ('{"errcode":7,"errmsg":"' + 999 * "x" + '"}', f"errcode 7 ({200 * 'x'})"),
        ("", "no answer in 0.1 s"),
    ],
)
async def test_a_subscription_that_is_not_taken_is_tried_with_another_token(
    answer: str, why: str
) -> None:
    async def refuse(web_socket: web.WebSocketResponse) -> None:
        if answer:
            await web_socket.send_str(answer)
        await until_it_ends(web_socket)

    async def stay(web_socket: web.WebSocketResponse) -> None:
        await web_socket.send_str(SUBSCRIBED)
        await until_it_ends(web_socket)

    rhythm = Rhythm(heartbeat=600, answer=0.1)
    async with bench_with([serving(refuse), serving(stay)], rhythm) as (pbx, bench):
        told = await bench.heard.wait_for("pbx_unreachable")
        assert told["error"] == f"{pbx.base} did not take the subscription: {why}"
        await bench.heard.wait_for("pbx_connected")
        asked = pbx.asked_for(SUBSCRIBE)
        assert [request.query["access_token"] for request in asked] == ["a", "b"]
    assert bench.gaps.told == ["hq mended"]


@pytest.mark.asyncio
async def test_a_token_that_is_not_let_in_is_followed_by_another_at_once() -> None:
    async def stay(web_socket: web.WebSocketResponse) -> None:
        await web_socket.send_str(SUBSCRIBED)
        await until_it_ends(web_socket)

    async with bench_with([web.Response(status=401), serving(stay)]) as (pbx, bench):
        await bench.heard.wait_for("pbx_connected")
        asked = pbx.asked_for(SUBSCRIBE)
        assert [request.query["access_token"] for request in asked] == ["a", "b"]
    assert bench.heard.events == ["pbx_connected"]


@pytest.mark.asyncio
async def test_a_pbx_that_lets_no_token_in_is_told() -> None:
    async with bench_with(web.Response(status=403)) as (pbx, bench):
        told = await bench.heard.wait_for("pbx_unreachable")
    assert told["error"] == (
        f"{pbx.base} answers a WebSocket with HTTP status 403: check that its API may send events"
    )


@pytest.mark.asyncio
async def test_the_token_is_renewed_while_the_connection_lasts() -> None:
    renewed = asyncio.Event()

    async def refresh(_: web.BaseRequest) -> web.StreamResponse:
        renewed.set()
        return web.json_response(OTHER)

    async def stay(web_socket: web.WebSocketResponse) -> None:
        await web_socket.send_str(SUBSCRIBED)
        await until_it_ends(web_socket)

    rhythm = Rhythm(heartbeat=600, renewal=0.05)
    async with (
        fake_pbx({GET_TOKEN: YES, SUBSCRIBE: serving(stay), REFRESH: refresh}) as pbx,
        subscribed(pbx.base, rhythm) as bench,
        running(bench.subscription.run()),
    ):
        async with asyncio.timeout(10):
            await renewed.wait()
        assert bench.subscription.connected
        assert pbx.times[GET_TOKEN] == 1


@pytest.mark.asyncio
async def test_without_room_nothing_is_read_and_with_room_nothing_is_missing() -> None:
    number = 3000

    async def serve(web_socket: web.WebSocketResponse) -> None:
        await web_socket.send_str(SUBSCRIBED)
        for each in range(number):
            await web_socket.send_str(call(each))
        await web_socket.close()

    answers: list[Answer] = [serving(serve), serving(until_it_ends)]
    async with bench_with(answers, waiting_bytes=64 * 1024) as (_, bench):
        intake, waiting, got = bench.intake, bench.intake.waiting, list[str]()
        ended = asyncio.create_task(bench.heard.wait_for("pbx_disconnected"))
        while not ended.done():
            await asyncio.sleep(0)
            if intake.paused or ended.done():
                # One report may come over the bound, and never a second.
                assert len(waiting) <= 64
                batch = waiting.take(number)
                got += [record.call_id for record in batch.records]
                waiting.committed()
                intake.room_made()
    batch = waiting.take(number)
    got += [record.call_id for record in batch.records]
    assert got == [f"{1571897930}.{each}" for each in range(number)]


@pytest.mark.asyncio
async def test_while_there_is_no_room_it_stays_and_heartbeats_go_on() -> None:
    thrice = asyncio.Event()

    async def serve(web_socket: web.WebSocketResponse) -> None:
        await web_socket.send_str(SUBSCRIBED)
        for _ in range(3):
            assert await web_socket.receive_str() == "heartbeat"
            await web_socket.send_str("heartbeat response")
        thrice.set()
        await until_it_ends(web_socket)

    heard, gaps = Heard(), Gaps()
    intake = an_intake(heard, gaps, waiting_bytes=0)
    intake.waiting.arriving.add_quarantined(
        QuarantinedReport("", "hq", "", "websocket", "", b"", 0)
    )
    intake.arrived()
    assert intake.paused
    async with fake_pbx({GET_TOKEN: YES, SUBSCRIBE: serving(serve)}) as pbx:
        api = PSeriesApi(pbx.base, ACCOUNT, Trust(), a_guard())
        rhythm = Rhythm(heartbeat=0.05, answer=0.05)
        subscription = Subscription(HQ, api, intake=intake, log=cast(Logger, heard), rhythm=rhythm)
        async with running(subscription.run()):
            async with asyncio.timeout(10):
                await thrice.wait()
            assert not heard.events
            intake.room_made()
            await heard.wait_for("pbx_connected")
        await api.close()


@pytest.mark.asyncio
async def test_what_has_come_by_a_stop_is_taken_though_there_is_no_room() -> None:
    sent = asyncio.Event()

    async def serve(web_socket: web.WebSocketResponse) -> None:
        await web_socket.send_str(SUBSCRIBED)
        for each in range(20):
            await web_socket.send_str(call(each))
        sent.set()
        await until_it_ends(web_socket)

    async with bench_with(serving(serve), waiting_bytes=1) as (_, bench):
        await sent.wait()
        await read_out([bench.subscription])
        assert bench.intake.paused
        assert len(bench.calls()) == 1
    assert len(bench.calls()) == 20


# The daemon


def config(directory: Path, pbx: SimulatedPbx, events: str, password: str = "api") -> str:
    (directory / "password").write_text(f"{password}\n")
    return (
        f'[[pbx]]\nname = "hq"\n[pbx.events]\nkind = "websocket"\naddress = "{pbx.address}"\n'
        f'username = "api"\npassword_file = "password"\n{events}'
    )


def test_every_call_that_is_sent_to_a_subscription_is_a_row(tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("somewhere.else.example.com")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    der = ssl.PEM_cert_to_DER_cert((tmp_path / "certificate.pem").read_text())
    tls = ("--certificate", tmp_path / "certificate.pem", "--key", tmp_path / "key.pem")
    with SimulatedPbx("--count", "300", "--rate", "1000", *tls, kind="websocket") as pbx:
        tables = config(tmp_path, pbx, f'fingerprint = "{hashlib.sha256(der).hexdigest()}"\n')
        with RunningDaemon(tmp_path, tables, listen=()) as daemon:
            daemon.wait_for_calls(300)
            status, stopped = daemon.stop()
        counters = pbx.stop()
    assert status == 0
    assert_accounted(stopped)
    assert stopped["stored"] == counters["sent"] == count(daemon.database) == 300
    assert stopped["quarantined"] == 0


def test_a_stop_in_the_middle_loses_nothing_that_had_come(tmp_path: Path) -> None:
    with SimulatedPbx("--rate", "500", kind="websocket") as pbx:
        tables = config(tmp_path, pbx, "tls = false\n")
        with RunningDaemon(tmp_path, tables, listen=()) as daemon:
            daemon.wait_for_calls(100)
            status, stopped = daemon.stop()
        counters = pbx.stop()
    assert status == 0
    assert_accounted(stopped)
    numbers = [int(row["call_id"].partition(".")[2]) for row in rows(daemon.database)]
    assert numbers == list(range(stopped["stored"]))
    assert counters["logins"] == 1


def test_a_wrong_secret_reaches_the_pbx_four_times(tmp_path: Path) -> None:
    with SimulatedPbx(kind="websocket") as pbx:
        tables = config(tmp_path, pbx, "tls = false\n", "wrong")
        with RunningDaemon(tmp_path, tables, listen=()) as daemon:
            daemon.wait_for("login_refused", times=2)
            daemon.stop()
        with RunningDaemon(tmp_path, tables, listen=()) as daemon:
            daemon.wait_for("login_suspended")
            daemon.stop()
        assert pbx.stop()["refusals"] == 4
