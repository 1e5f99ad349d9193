"""A command beside a daemon asks it to write, and never becomes a second writer."""

import asyncio
import contextlib
import gc
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import uvloop

from cdrd.control import (
    MAX_REQUEST_BYTES,
    Answer,
    NoDaemon,
    RequestRefused,
    ask_daemon,
    remove_control,
    serve_control,
)

NOBODY = 65534


async def echo(request: dict[str, Any]) -> Answer:
    if "refuse" in request:
        raise RequestRefused(request["refuse"])
    return {"asked": request}


@contextlib.asynccontextmanager
async def serving(database: Path) -> AsyncIterator[None]:
    server = await serve_control(database, echo)
    try:
        yield
    finally:
        server.close()
        remove_control(database)


async def ask(database: Path, request: dict[str, Any]) -> Answer:
    return await asyncio.to_thread(ask_daemon, database, request)


async def send(database: Path, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(f"{database}.control")
    with contextlib.suppress(ConnectionError):
        writer.write(request)
        writer.write_eof()
        await writer.drain()
    try:
        return await asyncio.wait_for(reader.read(), 20)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "cdr.sqlite3"


@pytest.mark.asyncio
async def test_a_request_is_answered(database: Path) -> None:
    async with serving(database):
        request = {"do": "drop", "ids": [1, 2]}
        assert await ask(database, request) == {"asked": request}
        assert await ask(database, request) == {"asked": request}


def test_a_request_is_answered_on_the_daemons_loop(database: Path) -> None:
    async def exchange() -> Answer:
        async with serving(database):
            return await ask(database, {"do": "it"})

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(exchange()) == {"asked": {"do": "it"}}


@pytest.mark.asyncio
async def test_a_refused_request_is_told_with_its_reason(database: Path) -> None:
    async with serving(database):
        with pytest.raises(RequestRefused, match=r"^not now$"):
            await ask(database, {"refuse": "not now"})


@pytest.mark.asyncio
async def test_a_path_longer_than_a_unix_address_is_served(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 200)
    directory.mkdir()
    async with serving(directory / "cdr.sqlite3"):
        assert await ask(directory / "cdr.sqlite3", {}) == {"asked": {}}


def test_without_a_daemon_there_is_none(database: Path) -> None:
    with pytest.raises(NoDaemon, match="no daemon is running"):
        ask_daemon(database, {})


def test_a_directory_that_is_not_there_has_no_daemon(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("missing", "file"):
        with pytest.raises(NoDaemon):
            ask_daemon(tmp_path / place / "cdr.sqlite3", {})


def left_behind(database: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(f"{database}.control")


def test_the_socket_of_a_killed_daemon_is_no_daemon(database: Path) -> None:
    left_behind(database)
    with pytest.raises(NoDaemon):
        ask_daemon(database, {})


@pytest.mark.asyncio
async def test_the_socket_of_a_killed_daemon_is_replaced(database: Path) -> None:
    left_behind(database)
    async with serving(database):
        assert await ask(database, {}) == {"asked": {}}


@pytest.mark.asyncio
async def test_the_socket_goes_with_the_daemon(database: Path) -> None:
    async with serving(database):
        pass
    assert os.listdir(database.parent) == []  # noqa: PTH208 - one call, not awaited
    remove_control(database)


@pytest.mark.asyncio
async def test_only_the_owner_may_connect() -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)  # noqa: PTH101 - one call, not awaited
        database = Path(directory, "cdr.sqlite3")
        mask = os.umask(0)
        os.umask(mask)
        async with serving(database):
            mode = os.stat(f"{database}.control").st_mode  # noqa: PTH116 - one call
            assert stat.S_IMODE(mode) == 0o600
            program = (
                "import os, sys, pathlib, cdrd.control as control\n"
                f"os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})\n"
                f"try: control.ask_daemon(pathlib.Path({str(database)!r}), {{}})\n"
                "except control.RequestRefused as error: sys.exit(str(error))\n"
            )
            asking = await asyncio.create_subprocess_exec(
                sys.executable, "-c", program, stderr=subprocess.PIPE
            )
            _, said = await asking.communicate()
        assert b"only the daemon's user may ask it to write" in said
        assert os.umask(mask) == mask


def test_a_closed_directory_is_told_as_such_where_no_daemon_may_run() -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o700)
        database = Path(directory, "cdr.sqlite3")
        program = (
            "import os, sys, asyncio, pathlib, cdrd.control as control, cdrd.store as store\n"
            f"os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})\n"
            f"database = pathlib.Path({str(database)!r})\n"
            "try: control.ask_daemon(database, {})\n"
            "except control.RequestRefused as error: print(error)\n"
            "try: asyncio.run(store.Store.open(database))\n"
            "except store.StoreUnusable as error: print(error)\n"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
    asked, opened = ended.stdout.splitlines()
    advice = "run this as the user whose directory it is"
    assert asked == f"{database}: its directory is closed to us: {advice}"
    assert opened.startswith(f"{database}: Permission denied: {advice}")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "garbage", [b"", b"\n", b"{\n", b"GET / HTTP/1.1\r\n\r\n", b"{}", b"\xff\n", b"[]\n"]
)
async def test_garbage_is_hung_up_on_and_the_next_request_is_answered(
    database: Path, garbage: bytes
) -> None:
    async with serving(database):
        assert await send(database, garbage) == b""
        assert await ask(database, {}) == {"asked": {}}


@pytest.mark.asyncio
async def test_a_request_without_an_end_is_hung_up_on(database: Path) -> None:
    async with serving(database):
        assert await send(database, b"[" + b"1," * MAX_REQUEST_BYTES) == b""
        assert await ask(database, {}) == {"asked": {}}


@pytest.mark.asyncio
async def test_a_daemon_that_ends_without_an_answer_is_told(database: Path) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    server = await asyncio.start_unix_server(hang_up, f"{database}.control")
    async with server:
        with pytest.raises(RequestRefused, match="without an answer"):
            await ask(database, {})


@pytest.mark.asyncio
@pytest.mark.parametrize("fault", [OverflowError("ours"), ValueError("ours")])
async def test_a_fault_in_the_work_hangs_up_and_is_told(database: Path, fault: Exception) -> None:
    async def fail(_: dict[str, Any]) -> Answer:
        raise fault

    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: told.append(context.get("exception"))
    )
    server = await serve_control(database, fail)
    with pytest.raises(RequestRefused, match="without an answer"):
        await ask(database, {})
    server.close()
    gc.collect()  # asyncio tells of a task's fault when it lets go of the task
    assert told == [fault]
    asyncio.get_running_loop().set_exception_handler(None)


@pytest.mark.asyncio
async def test_each_way_it_is_one_line_of_json(database: Path) -> None:
    async with serving(database):
        reply = await send(database, orjson.dumps({"a": "\n"}) + b"\n")
    assert reply == b'{"asked":{"a":"\\n"}}\n'


@pytest.mark.asyncio
async def test_the_longest_name_of_a_database_is_served_and_none_that_is_longer(
    tmp_path: Path,
) -> None:
    longest, longer = tmp_path / ("a" * 77), tmp_path / ("a" * 78)
    async with serving(longest):
        assert await ask(longest, {"do": "x"}) == {"asked": {"do": "x"}}
    with pytest.raises(OSError, match="name it with 77 bytes at most"):
        await serve_control(longer, echo)
    with pytest.raises(NoDaemon):
        ask_daemon(longer, {"do": "x"})
