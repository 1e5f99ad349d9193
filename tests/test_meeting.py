"""A report that is pushed and its row of the PBX's history are one row, in either order."""

import asyncio
import sys
import time
from pathlib import Path

import pytest
from aiohttp import web

from cdrd.simulate.history import History
from cdrd.simulate.reports import new_cdr
from tests import quick_serve
from tests.fake_pbx import Answer, fake_pbx
from tests.running import RunningDaemon, assert_accounted, rows, send

CALLS = 200
STARTED = int(time.time()) - 3600
S_SERIES = "/api/v2.0.0"
P_SERIES = "/openapi/v1.0"


def history_of(dialect: str) -> dict[str, Answer | list[Answer]]:
    """What the PBX's API answers once it is logged in to."""
    history = History()
    for number in range(CALLS):
        history.add(number, STARTED + number)
    if dialect != "p-series":
        table = history.csv("all", 0, 1 << 40).encode()
        random: Answer = {"status": "Success", "random": "r"}
        return {f"{S_SERIES}/cdr/get_random": random, f"{S_SERIES}/cdr/download": table}
    total, page = history.rows(1, CALLS)
    answer: Answer = {"errcode": 0, "total_number": total, "data": page}
    return {f"{P_SERIES}/cdr/list": answer, f"{P_SERIES}/cdr/search": answer}


@pytest.mark.asyncio
@pytest.mark.parametrize("first", ["pushed", "fetched"])
@pytest.mark.parametrize("dialect", ["1.0.2", "p-series"])
async def test_what_is_pushed_and_fetched_is_one_row_in_either_order(
    tmp_path: Path, dialect: str, first: str
) -> None:
    (tmp_path / "password").write_text("api\n")
    may_answer = asyncio.Event()

    async def log_in(_: web.BaseRequest) -> web.StreamResponse:
        await may_answer.wait()
        return web.json_response({"status": "Success", "token": "t", "access_token": "t"})

    path = f"{P_SERIES}/get_token" if dialect == "p-series" else f"{S_SERIES}/login"
    async with fake_pbx({path: log_in, **history_of(dialect)}) as pbx:
        settings = (
            f'[[pbx]]\nname = "hq"\npeers = ["127.0.0.1"]\n[pbx.history]\nurl = "{pbx.base}"\n'
            'username = "api"\npassword_file = "password"\n'
        )
        serve = [sys.executable, quick_serve.__file__]
        with RunningDaemon(tmp_path, settings, inside=serve) as daemon:

            def push() -> None:
                reports = (new_cdr(one, dialect, started=STARTED + one) for one in range(CALLS))
                send(daemon.port, b"\n".join(reports))

            if first == "pushed":
                await asyncio.to_thread(push)
                await asyncio.to_thread(daemon.wait_for_calls, CALLS)
            may_answer.set()
            filled = await asyncio.to_thread(daemon.wait_for, "gap_filled")
            if first == "fetched":
                await asyncio.to_thread(push)
            _, stopped = await asyncio.to_thread(daemon.stop)
    stored = rows(daemon.database)
    assert len(stored) == len({row["call_id"] for row in stored}) == CALLS
    assert {row["source"] for row in stored} == {"tcp" if first == "pushed" else "history"}
    assert filled["missing"] == (0 if first == "pushed" else CALLS)
    assert stopped["duplicate"] == (0 if first == "pushed" else CALLS)
    assert_accounted(stopped)
