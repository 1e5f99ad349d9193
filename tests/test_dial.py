"""A PBX that says nothing we know to our login: whether it was refused shows later."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from zoneinfo import ZoneInfo

import pytest

from cdrd import dial
from cdrd.address import format_address
from cdrd.intake import Intake
from cdrd.log import Logger
from cdrd.login import BackOff
from cdrd.pbx_api import Account
from cdrd.sender import Sender
from cdrd.simulate.reports import new_cdr
from tests.fake_pbx import Gaps, Heard, a_guard, an_intake, running
from tests.running import counted_logins

REPORT = new_cdr(1, started=1571897930) + b"\n"
NO_EVENT = b'{"message":"Wrong password"}\r\n'
SUCCESS = b"Response: Success\r\n\r\n"


@dataclass(frozen=True)
class Silent:
    """A PBX that answers no login, or not as documented, and who is to dial it."""

    arrived: asyncio.Queue[asyncio.StreamWriter]
    dialer: dial.Dialer
    heard: Heard
    intake: Intake
    database: Path

    @property
    def counted(self) -> int:
        return counted_logins(self.database)


@contextlib.asynccontextmanager
async def silent_pbx(directory: Path, answer: bytes = b"") -> AsyncIterator[Silent]:
    arrived: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

    async def say(login: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        await login.readuntil(b"\r\n\r\n")
        out.write(answer)
        arrived.put_nowait(out)

    heard, database = Heard(), directory / "cdr.sqlite3"
    intake = an_intake(heard, Gaps())
    async with await asyncio.start_server(say, "127.0.0.1", 0) as server:
        dialer = dial.Dialer(
            Sender("far", ZoneInfo("UTC"), (), ""),
            format_address(*server.sockets[0].getsockname()),
            Account("api", lambda: "api"),
            intake=intake,
            log=cast(Logger, heard),
            guard=a_guard(database),
        )
        yield Silent(arrived, dialer, heard, intake, database)


@pytest.mark.asyncio
async def test_a_login_that_nobody_answers_counts_until_reports_have_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "LOGIN_SECONDS", 0.05)
    async with silent_pbx(tmp_path) as pbx, running(pbx.dialer.run()):
        for times, said in enumerate((b"", REPORT), start=1):
            await pbx.heard.wait_for("pbx_connected", times=times)
            assert pbx.counted == times
            out = await pbx.arrived.get()
            out.write(said)
            out.close()
            await pbx.heard.wait_for("pbx_disconnected", times=times)
        await pbx.heard.wait_for("pbx_connected", times=3)
        assert pbx.counted == 2
        (await pbx.arrived.get()).close()


@pytest.mark.asyncio
@pytest.mark.parametrize(("said", "counted"), [(b"", 1), (REPORT, 0)], ids=["nothing", "a report"])
async def test_a_stop_leaves_such_a_login_counted_only_where_no_report_came(
    said: bytes, counted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "LOGIN_SECONDS", 0.05)
    async with silent_pbx(tmp_path) as pbx:
        async with running(pbx.dialer.run()):
            await pbx.heard.wait_for("pbx_connected")
            out = await pbx.arrived.get()
            out.write(said)
            await out.drain()
            await pbx.intake.drain()
        assert pbx.counted == counted
        out.close()


@pytest.mark.asyncio
async def test_a_connection_that_ends_behind_its_login_is_told_as_one(tmp_path: Path) -> None:
    async with silent_pbx(tmp_path, b"Response: Success\r\n\r\n" + REPORT) as pbx:
        async with running(pbx.dialer.run()):
            (await pbx.arrived.get()).close()
            await pbx.heard.wait_for("pbx_disconnected")
        assert pbx.heard.events[:2] == ["pbx_connected", "pbx_disconnected"]


@pytest.mark.asyncio
async def test_an_end_behind_json_that_is_no_event_is_a_refusal(tmp_path: Path) -> None:
    async with silent_pbx(tmp_path, NO_EVENT) as pbx, running(pbx.dialer.run()):
        (await pbx.arrived.get()).close()
        await pbx.heard.wait_for("login_refused")
        assert pbx.counted == 1
    assert "pbx_connected" not in pbx.heard.events


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "later"),
    [(NO_EVENT, b""), (b"", NO_EVENT), (b'{"action":"login","result":"no"}\r\n', b"")],
    ids=["at once", "later", "by the name of the login"],
)
async def test_an_answer_that_we_do_not_know_takes_no_login_back(
    answer: bytes, later: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "LOGIN_SECONDS", 0.2)
    async with silent_pbx(tmp_path, answer) as pbx, running(pbx.dialer.run()):
        for times in (1, 2):
            await pbx.heard.wait_for("pbx_connected", times=times)
            assert pbx.counted == times
            out = await pbx.arrived.get()
            out.write(later)
            out.close()


@pytest.mark.asyncio
@pytest.mark.parametrize(("said", "is_reset"), [(NO_EVENT, False), (REPORT, True)])
async def test_only_what_a_pbx_reports_makes_the_next_wait_short_again(
    said: bytes, is_reset: bool, tmp_path: Path
) -> None:
    async with silent_pbx(tmp_path, SUCCESS + said) as pbx:
        back_off = pbx.dialer._back_off = BackOff(0.001)
        async with running(pbx.dialer.run()):
            for times in (1, 2, 3):
                await pbx.heard.wait_for("pbx_connected", times=times)
                (await pbx.arrived.get()).close()
            await pbx.heard.wait_for("pbx_connected", times=4)
            (await pbx.arrived.get()).close()
    assert (back_off.wait() <= 0.002) == is_reset
