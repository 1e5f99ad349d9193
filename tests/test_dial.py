"""A PBX that says nothing to our login: whether it was refused shows later."""

import asyncio
from pathlib import Path
from typing import cast
from zoneinfo import ZoneInfo

import pytest

from cdrd import dial
from cdrd.address import format_address
from cdrd.log import Logger
from cdrd.sender import Sender
from cdrd.simulate.reports import new_cdr
from tests.fake_pbx import Gaps, Heard, a_guard, an_intake, running
from tests.running import counted_logins


@pytest.mark.asyncio
async def test_a_login_that_nobody_answers_counts_until_reports_have_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "LOGIN_SECONDS", 0.05)
    arrived: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

    async def say_nothing(_: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        arrived.put_nowait(out)

    heard, database = Heard(), tmp_path / "cdr.sqlite3"
    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        dialer = dial.Dialer(
            Sender("far", ZoneInfo("UTC"), (), ""),
            format_address(*server.sockets[0].getsockname()),
            dial.Credentials("api", lambda: "api"),
            intake=an_intake(heard, Gaps()),
            log=cast(Logger, heard),
            guard=a_guard(database),
        )
        async with running(dialer.run()):
            for times, said in enumerate((b"", new_cdr(1, started=1571897930) + b"\n"), start=1):
                await heard.wait_for("pbx_connected", times=times)
                assert counted_logins(database) == times
                out = await arrived.get()
                out.write(said)
                out.close()
                await heard.wait_for("pbx_disconnected", times=times)
            await heard.wait_for("pbx_connected", times=3)
            assert counted_logins(database) == 2
            (await arrived.get()).close()
