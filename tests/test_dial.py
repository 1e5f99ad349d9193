"""A PBX that says nothing to our login: whether it was refused shows later."""

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
from cdrd.sender import Sender
from cdrd.simulate.reports import new_cdr
from tests.fake_pbx import Gaps, Heard, a_guard, an_intake, running
from tests.running import counted_logins

REPORT = new_cdr(1, started=1571897930) + b"\n"


@dataclass(frozen=True)
class Silent:
    """A PBX that answers no login, and who is to dial it."""

    arrived: asyncio.Queue[asyncio.StreamWriter]
    dialer: dial.Dialer
    heard: Heard
    intake: Intake
    database: Path

    @property
    def counted(self) -> int:
        return counted_logins(self.database)


@contextlib.asynccontextmanager
async def silent_pbx(directory: Path) -> AsyncIterator[Silent]:
    arrived: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

    async def say_nothing(_: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        arrived.put_nowait(out)

    heard, database = Heard(), directory / "cdr.sqlite3"
    intake = an_intake(heard, Gaps())
    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        dialer = dial.Dialer(
            Sender("far", ZoneInfo("UTC"), (), ""),
            format_address(*server.sockets[0].getsockname()),
            dial.Credentials("api", lambda: "api"),
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
