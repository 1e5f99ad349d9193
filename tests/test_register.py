"""A registration lives by heartbeats: one that is lost is told, and made anew."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import trustme
from aiohttp import web

from cdrd.log import Logger
from cdrd.login import BackOff
from cdrd.pbx_api import Account, Trust
from cdrd.register import Registration
from cdrd.s_series import Announced, SSeriesApi
from tests.fake_pbx import (
    ACCOUNT,
    Answer,
    Gaps,
    Heard,
    Suspended,
    a_guard,
    an_intake,
    fake_pbx,
    running,
)
from tests.running import RunningDaemon, assert_accounted, count
from tests.simulated import SimulatedPbx

LOGIN, HEARTBEAT = "/api/v2.0.0/login", "/api/v2.0.0/heartbeat"
YES: Answer = {"status": "Success", "token": "t1"}
ALIVE: Answer = {"status": "Success"}
GONE: Answer = {"status": "Failed", "errno": "20004"}


@dataclass
class Bench:
    """A registration, and what it has told."""

    registration: Registration
    api: SSeriesApi
    heard: Heard
    gaps: Gaps


@contextlib.asynccontextmanager
async def registered(
    base: str, *, account: Account = ACCOUNT, heartbeat_seconds: float = 0.02
) -> AsyncIterator[Bench]:
    heard, gaps = Heard(), Gaps()
    api = SSeriesApi(base, account, Trust(), a_guard(), announced=Announced(8260))
    registration = Registration(
        "hq",
        api,
        intake=an_intake(heard, gaps),
        log=cast(Logger, heard),
        heartbeat_seconds=heartbeat_seconds,
    )
    registration._back_off = BackOff(0.001, 0.001)
    try:
        yield Bench(registration, api, heard, gaps)
    finally:
        await api.close()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (GONE, "the PBX answers with errno 20004"),
        (web.Response(status=503), "BASE answers with HTTP status 503"),
        (b"<html>", "BASE answers with something that is no JSON object"),
    ],
)
async def test_a_heartbeat_in_vain_is_followed_by_a_new_login(trouble: Answer, reason: str) -> None:
    answers: dict[str, Answer | list[Answer]] = {LOGIN: YES, HEARTBEAT: [ALIVE, trouble, ALIVE]}
    async with fake_pbx(answers) as pbx, registered(pbx.base) as bench:
        async with running(bench.registration.run()):
            lost = await bench.heard.wait_for("registration_lost")
            assert not bench.registration.connected
            await bench.heard.wait_for("pbx_connected", times=2)
            assert bench.registration.connected
        assert lost["reason"].replace(pbx.base, "BASE").startswith(reason)
        assert pbx.times[LOGIN] == 2
    assert bench.gaps.told == ["hq mended", "hq broke", "hq mended"]


@pytest.mark.asyncio
async def test_a_pbx_that_is_away_is_asked_until_it_is_back() -> None:
    answers: dict[str, Answer | list[Answer]] = {
        LOGIN: [web.Response(status=500), web.Response(status=500), YES],
        HEARTBEAT: ALIVE,
    }
    async with (
        fake_pbx(answers) as pbx,
        registered(pbx.base) as bench,
        running(bench.registration.run()),
    ):
        await bench.heard.wait_for("pbx_connected")
    assert bench.heard.events == ["pbx_unreachable", "pbx_unreachable", "pbx_connected"]
    assert bench.gaps.told == ["hq mended"]


@pytest.mark.asyncio
async def test_a_token_that_history_found_gone_was_gone_for_the_posts_too() -> None:
    asked = asyncio.Event()

    async def alive(_: web.BaseRequest) -> web.StreamResponse:
        asked.set()
        return web.Response(text='{"status":"Success"}')

    async with fake_pbx({LOGIN: YES, HEARTBEAT: alive}) as pbx, registered(pbx.base) as bench:
        async with running(bench.registration.run()):
            await asked.wait()
            bench.api.distrust_token()
            await bench.api.login()
            lost = await bench.heard.wait_for("registration_lost")
            assert lost["reason"] == "the token was gone when history was fetched"
            await bench.heard.wait_for("pbx_connected", times=2)
        assert pbx.times[LOGIN] == 2


@pytest.mark.asyncio
async def test_a_refused_login_is_told_and_tried_four_times_at_most() -> None:
    refusal: Answer = {"status": "Failed", "errno": "20003"}
    async with fake_pbx({LOGIN: refusal}) as pbx, registered(pbx.base) as bench:
        with pytest.raises(Suspended):
            await bench.registration.run()
    assert bench.heard.events == ["login_refused"] * 4
    assert pbx.times[LOGIN] == 4


@pytest.mark.asyncio
async def test_a_password_that_cannot_be_read_is_told() -> None:
    def unreadable() -> str:
        raise OSError("no such file")

    async with (
        fake_pbx({LOGIN: YES}) as pbx,
        registered(pbx.base, account=Account("api", unreadable)) as bench,
        running(bench.registration.run()),
    ):
        told = await bench.heard.wait_for("pbx_unreachable")
    assert told["error"] == "no such file"
    assert not pbx.asked


@pytest.mark.asyncio
async def test_a_token_that_dies_is_noticed_at_the_next_heartbeat() -> None:
    with SimulatedPbx("--token-seconds", "0.1", "--rate", "1", kind="http") as pbx:
        api = Account("api", lambda: "api")
        async with (
            registered(pbx.url, account=api, heartbeat_seconds=0.3) as bench,
            running(bench.registration.run()),
        ):
            await bench.heard.wait_for("pbx_connected", times=2)
        counters = await asyncio.to_thread(pbx.stop)
    assert bench.heard.events == ["pbx_connected", "registration_lost", "pbx_connected"]
    assert counters["logins"] == 2
    assert bench.gaps.told == ["hq mended", "hq broke", "hq mended"]


@pytest.mark.asyncio
async def test_a_cloud_pbx_is_kept_by_refreshing_its_token() -> None:
    with SimulatedPbx("--rate", "1", kind="cloud") as pbx:
        async with registered(pbx.url, account=Account("api", lambda: "api")) as bench:
            await bench.api.login()
            for _ in range(3):
                await bench.api.heartbeat()
        counters = await asyncio.to_thread(pbx.stop)
    assert (counters["logins"], counters["heartbeats"]) == (1, 3)


# The daemon


def config(directory: Path, pbx: SimulatedPbx, events: str, password: str = "api") -> str:
    (directory / "password").write_text(f"{password}\n")
    return (
        'http.listen = ["127.0.0.1:0"]\n[[pbx]]\nname = "hq"\npeers = ["127.0.0.1"]\n[pbx.events]\n'
        f'kind = "http"\naddress = "{pbx.address}"\nusername = "api"\npassword_file = "password"\n'
        + events
    )


def test_every_call_that_is_posted_to_a_registration_is_a_row(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = ("--certificate", tmp_path / "certificate.pem", "--key", tmp_path / "key.pem")
    with SimulatedPbx("--count", "30", "--rate", "100", *tls, kind="http") as pbx:
        tables = config(tmp_path, pbx, 'ca_file = "ca.pem"\npath = "/hq"\n')
        with RunningDaemon(tmp_path, tables, listen=()) as daemon:
            connected = daemon.wait_for("pbx_connected")
            assert connected["address"] == pbx.address
            daemon.wait_for_calls(30)
            status, stopped = daemon.stop()
        counters = pbx.stop()
    assert status == 0
    assert_accounted(stopped)
    assert stopped["stored"] == counters["calls"] == counters["sent"] == count(daemon.database)
    assert not stopped["quarantined"]


def test_a_wrong_password_reaches_the_pbx_four_times_however_often_we_start(
    tmp_path: Path,
) -> None:
    with SimulatedPbx(kind="http") as pbx:
        tables = config(tmp_path, pbx, "tls = false\n", "wrong")
        with RunningDaemon(tmp_path, tables, listen=()) as daemon:
            daemon.wait_for("login_refused", times=2)
            daemon.stop()
        with RunningDaemon(tmp_path, tables, listen=()) as daemon:
            daemon.wait_for("login_suspended")
            assert len(daemon.found("login_refused")) == 2
            daemon.stop()
        assert pbx.stop()["refusals"] == 4
