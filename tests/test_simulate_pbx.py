"""The simulated PBX keeps the manners of a real one: login first, lockout, and no replay."""

import argparse
import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import orjson
import pytest

from cdrd.address import format_address, parse_address
from cdrd.simulate import arguments as simulate_arguments
from cdrd.simulate import roles as simulate_roles
from cdrd.simulate.account import FAILURES_TO_LOCK, LOCK_SECONDS
from cdrd.simulate.pbx import SimulatedPBX
from cdrd.simulate.reports import lay, new_cdr, other_event

STARTED = 1571897930
ACCEPTED = b"Response: Success\r\nMessage: Authentication accepted\r\n\r\n"
REFUSED = b"Response: Error\r\nMessage: Authentication failed\r\n\r\n"
NOTHING = dict.fromkeys(
    (
        *("sent", "events", "unheard", "logins", "refusals", "resets"),
        *("calls", "posts", "fetches", "heartbeats"),
    ),
    0,
)
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def login(password: str = "api", username: str = "api") -> bytes:
    lines = (
        "Action: login",
        f"Username: {username}",
        f"Secret: {password}",
        "Version: 2.0.0",
        "",
        "",
    )
    return "\r\n".join(lines).encode()


@contextlib.asynccontextmanager
async def running(pbx: SimulatedPBX, host: str = "127.0.0.1") -> AsyncIterator[SimulatedPBX]:
    await pbx.start(host)
    try:
        yield pbx
    finally:
        await pbx.close()


@contextlib.asynccontextmanager
async def dialled(pbx: SimulatedPBX) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection(*pbx.address)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def listening(pbx: SimulatedPBX) -> AsyncIterator[asyncio.StreamReader]:
    async with dialled(pbx) as (reader, writer):
        writer.write(login())
        assert await reader.readexactly(len(ACCEPTED)) == ACCEPTED
        yield reader


async def answer(pbx: SimulatedPBX, block: bytes) -> bytes:
    """All that the PBX says to a program that sends this and half closes."""
    async with dialled(pbx) as (reader, writer):
        writer.write(block)
        writer.write_eof()
        return await reader.read()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.asyncio
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_login_is_answered_and_the_stream_follows(host: str) -> None:
    async with running(SimulatedPBX(), host) as pbx, listening(pbx) as reader:
        assert pbx.address[0] == host
        report = new_cdr(1, started=STARTED)
        assert await pbx.send(report) == 1
        assert await reader.readline() == report + b"\n"
    assert pbx.counters == NOTHING | {"sent": 1, "logins": 1}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "block",
    [login("wrong"), login(username="other"), login(""), b"Action: ping\r\n\r\n", b"\r\n\r\n"],
)
async def test_what_is_no_right_login_is_refused_and_closed(block: bytes) -> None:
    async with running(SimulatedPBX()) as pbx:
        assert await answer(pbx, block) == REFUSED
        assert (pbx.logins, pbx.refusals) == (0, 1)


@pytest.mark.asyncio
@pytest.mark.parametrize("block", [b"", b"Action: login\r\n", b"x" * 5000])
async def test_what_is_no_block_is_closed_without_an_answer(block: bytes) -> None:
    async with running(SimulatedPBX()) as pbx:
        with contextlib.suppress(ConnectionResetError):
            assert await answer(pbx, block) == b""
        assert (pbx.logins, pbx.refusals) == (0, 0)


@pytest.mark.asyncio
async def test_after_five_refusals_the_right_password_waits_ten_minutes() -> None:
    clock = Clock()
    async with running(SimulatedPBX(clock=clock)) as pbx:
        for _ in range(FAILURES_TO_LOCK):
            assert await answer(pbx, login("wrong")) == REFUSED
        clock.now += LOCK_SECONDS - 1
        assert await answer(pbx, login()) == REFUSED
        clock.now += 1
        async with listening(pbx):
            pass
        assert (pbx.logins, pbx.refusals) == (1, FAILURES_TO_LOCK + 1)


@pytest.mark.asyncio
async def test_nothing_is_sent_before_the_login() -> None:
    async with running(SimulatedPBX()) as pbx, dialled(pbx) as (reader, writer), listening(pbx):
        assert await pbx.send(new_cdr(1, started=STARTED)) == 1
        writer.write(login())
        assert await reader.readexactly(len(ACCEPTED)) == ACCEPTED
        assert await pbx.send(new_cdr(2, started=STARTED)) == 2
        assert orjson.loads(await reader.readline())["callid"] == f"{STARTED}.2"


@pytest.mark.asyncio
async def test_what_nobody_hears_is_lost_and_counted() -> None:
    async with running(SimulatedPBX()) as pbx:
        assert await pbx.send(new_cdr(1, started=STARTED)) == 0
        assert await pbx.send_event(other_event(1, "2.0.0")) == 0
        await pbx.stream(count=3, started=STARTED)
        assert (pbx.sent, pbx.events, pbx.unheard) == (0, 0, 4)


@pytest.mark.asyncio
async def test_every_listener_gets_every_report() -> None:
    async with running(SimulatedPBX()) as pbx, listening(pbx) as one, listening(pbx) as other:
        assert await pbx.send(new_cdr(1, started=STARTED)) == 2
        assert await one.readline() == await other.readline()


@pytest.mark.asyncio
@pytest.mark.parametrize("chunk", [0, 1, 7])
@pytest.mark.parametrize("delimiter", ["newline", "none", "pretty", "text"])
async def test_a_stream_is_calls_with_other_events_between(delimiter: str, chunk: int) -> None:
    expected = b"".join(
        lay(message, delimiter)
        for number in range(5)
        for message in (
            other_event(2 * number, "1.0.2"),
            other_event(2 * number + 1, "1.0.2"),
            new_cdr(number, "1.0.2", started=STARTED),
        )
    )
    async with running(SimulatedPBX(delimiter=delimiter)) as pbx, listening(pbx) as reader:
        for count in (2, 3):
            await pbx.stream(count=count, events=2, dialect="1.0.2", started=STARTED, chunk=chunk)
        assert await reader.readexactly(len(expected)) == expected
        assert (pbx.sent, pbx.events) == (5, 10)


@pytest.mark.asyncio
async def test_a_stream_keeps_its_rate() -> None:
    clock = asyncio.get_running_loop().time
    async with running(SimulatedPBX()) as pbx:
        begun = clock()
        await pbx.stream(count=6, rate=100, started=STARTED)
        assert clock() - begun >= 0.05
        assert pbx.unheard == 6


async def collect(pbx: SimulatedPBX, expected: int, told: list[str]) -> None:
    """Dial, log in and read as often as needed, until so many calls have come."""
    while len(told) < expected:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            async with listening(pbx) as reader:
                while len(told) < expected:
                    report = orjson.loads(await reader.readuntil(b"\n"))
                    if report["event"] == "NewCdr":
                        told.append(report["callid"])


@pytest.mark.asyncio
@pytest.mark.parametrize("chunk", [0, 7])
async def test_orderly_closes_lose_nothing(chunk: int) -> None:
    told: list[str] = []
    async with running(SimulatedPBX()) as pbx:
        reading = asyncio.create_task(collect(pbx, 100, told))
        for _ in range(10):
            await pbx.stream(count=10, started=STARTED, patient=True, chunk=chunk)
            await pbx.reset(orderly=True)
        await reading
        assert told == [f"{STARTED}.{number}" for number in range(100)]
        assert (pbx.sent, pbx.unheard, pbx.resets, pbx.logins) == (100, 0, 10, 10)


@pytest.mark.asyncio
async def test_resets_break_off_with_rst_and_in_order_in_turn() -> None:
    async with running(SimulatedPBX()) as pbx:
        async with listening(pbx) as reader:
            await pbx.stream(count=1, events=0, started=STARTED)
            await reader.readline()
            await pbx.reset()
            with pytest.raises(ConnectionResetError):
                await reader.read()
        async with listening(pbx) as reader:
            await pbx.stream(count=1, events=0, started=STARTED)
            await pbx.reset(orderly=True)
            assert (await reader.read()).endswith(b"}\n")
        assert pbx.resets == 2
        assert await pbx.send(new_cdr(9, started=STARTED)) == 0


@pytest.mark.asyncio
async def test_a_reset_reaches_a_receiver_that_does_not_read() -> None:
    async with running(SimulatedPBX()) as pbx, listening(pbx):
        flood = asyncio.create_task(pbx.send(b"{}" * 20_000_000))
        while pbx.resets == 0:
            await asyncio.sleep(0)
            await pbx.reset()
        assert await flood == 0


@pytest.mark.asyncio
async def test_a_cancelled_stream_ends_between_two_reports() -> None:
    async with running(SimulatedPBX()) as pbx, listening(pbx) as reader:
        playing = asyncio.create_task(pbx.stream(started=STARTED, chunk=7))
        for _ in range(10):
            await reader.readline()
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing
        await pbx.close()
        rest = await reader.read()
        assert rest.endswith(b"}\n") or rest == b""
        assert 10 + rest.count(b"\n") == pbx.sent + pbx.events


@pytest.mark.asyncio
async def test_closing_is_seen_by_all_and_frees_the_address() -> None:
    pbx = SimulatedPBX()
    with pytest.raises(RuntimeError, match="not started"):
        _ = pbx.address
    await pbx.start()
    address = pbx.address
    async with listening(pbx) as reader, dialled(pbx) as (waiting, _):
        await pbx.close()
        assert await reader.read() == b""
        assert await waiting.read() == b""
    with pytest.raises(OSError, match="Connect"):
        await asyncio.open_connection(*address)


def test_an_unknown_delimiter_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match='"tab" is no delimiter'):
        SimulatedPBX(delimiter="tab")


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cdrd simulate pbx")
    simulate_arguments.add_arguments(parser)
    return parser.parse_args(arguments)


def test_the_command_has_the_documented_defaults() -> None:
    told = vars(parsed())
    del told["usage_error"]
    assert told == {
        "kind": "tcp",
        "listen": None,
        "api": None,
        "username": "api",
        "password": None,
        "certificate": None,
        "key": None,
        "post_to": None,
        "secret": None,
        "token_seconds": 1800,
        "silence_seconds": 60,
        "random_seconds": 30,
        "dialect": "",
        "delimiter": "newline",
        "utc_offset": 0,
        "rate": 1,
        "events": 3,
        "count": 0,
        "seconds": 0,
        "unpushed_every": 0,
        "reset_every": 0,
        "chunk": 0,
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--listen", "8333"], '"8333" is no address'),
        (["--rate", "-1"], '"-1" is no number of 0 or more'),
        (["--rate", "nan"], '"nan" is no number of 0 or more'),
        (["--seconds", "soon"], '"soon" is no number of 0 or more'),
        (["--events", "1.5"], '"1.5" is no whole number of 0 or more'),
        (["--count", "9" * 5000], "is no whole number of 0 or more"),
        (["--dialect", "3.0"], "invalid choice: '3.0'"),
        (["--delimiter", "tab"], "invalid choice: 'tab'"),
        (["--password-file", "/nonexistent"], 'cannot read a password from "/nonexistent"'),
        (["--password-file", "/dev/null"], 'the first line of "/dev/null" is empty'),
    ],
)
def test_a_bad_value_is_a_usage_error(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(*arguments)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_an_address_in_use_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = format_address(*taken.getsockname())
        assert simulate_roles.run(parsed("--listen", address)) == 1
    assert capsys.readouterr().err == f"cannot listen on {address}: Address already in use\n"


def test_without_a_login_the_command_ends_after_its_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert simulate_roles.run(parsed("--listen", "[::1]:0", "--seconds", "0.01")) == 0
    told = capsys.readouterr()
    assert told.err.startswith("listening on [::1]:")
    assert "password api (the default)" in told.err
    assert orjson.loads(told.out) == NOTHING


PROGRAM = """
import argparse, sys
from cdrd.simulate import arguments, roles
parser = argparse.ArgumentParser()
arguments.add_arguments(parser)
sys.exit(roles.run(parser.parse_args()))
"""


@contextlib.contextmanager
def program(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM, "--listen", "127.0.0.1:0", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def outcome(playing: subprocess.Popen[str]) -> tuple[str, str]:
    """What it writes from now on to stdout and stderr; both are short."""
    assert playing.stdout is not None
    assert playing.stderr is not None
    remarks, summary = playing.stderr.read(), playing.stdout.read()
    playing.wait()
    return summary, remarks


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_with_its_summary(stop: signal.Signals, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("s3cret\n", "utf-8")
    with program("--password-file", str(secret), "--rate", "0") as playing:
        assert playing.stderr is not None
        address = parse_address(playing.stderr.readline().removeprefix("listening on ").strip())
        with socket.create_connection(address) as dialled, dialled.makefile("rb") as stream:
            dialled.sendall(login("s3cret"))
            heard = [next(stream) for _ in range(20)]
            playing.send_signal(stop)
            heard += stream
        summary, remarks = outcome(playing)
        assert playing.returncode == 0
    assert "logged in\n" in remarks
    assert "s3cret" not in remarks
    counters = orjson.loads(summary)
    assert len(heard[3:]) == counters["sent"] + counters["events"]
    assert all(orjson.loads(line) for line in heard[3:])


def test_the_command_ends_after_its_count_with_resets_told() -> None:
    with program("--count", "2", "--rate", "0", "--events", "0", "--reset-every", "2") as playing:
        assert playing.stderr is not None
        address = parse_address(playing.stderr.readline().removeprefix("listening on ").strip())
        with socket.create_connection(address) as dialled:
            dialled.sendall(login("wrong"))
            assert dialled.makefile("rb").read() == REFUSED
        with socket.create_connection(address) as dialled:
            dialled.sendall(login())
            summary, remarks = outcome(playing)
        assert playing.returncode == 0
    counted = {"calls": 2, "sent": 2, "logins": 1, "refusals": 1, "resets": 1}
    assert orjson.loads(summary) == NOTHING | counted
    told = [line.rpartition(" ")[2] for line in remarks.splitlines()]
    assert told[-3:] == ["refused", "in", "reset"]
