"""A load arrives complete: each number once, over as many connections as were asked for."""

import argparse
import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator

import orjson
import pytest

from cdrd.address import format_address
from cdrd.simulate import load as simulate_load
from cdrd.simulate.load import send_load
from cdrd.simulate.reports import DIALECTS, new_cdr
from cdrd.simulate.sent import LoadFailed, Sent

STARTED = 1571897930


class Sink:
    """A listening daemon that keeps all it is sent, by connection."""

    def __init__(self) -> None:
        self.connections: list[bytes] = []
        self.open = self.most_open = 0
        self.address = ("", 0)

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        self.connections.append(await reader.read())
        self.open -= 1
        writer.close()

    @property
    def lines(self) -> list[bytes]:
        return [line for taken in self.connections for line in taken.splitlines()]

    def call_ids(self) -> list[str]:
        reports = map(orjson.loads, self.lines)
        return [report["callid"] for report in reports if report["action"] == "NewCdr"]


@contextlib.asynccontextmanager
async def listening(host: str = "127.0.0.1") -> AsyncIterator[Sink]:
    sink = Sink()
    server = await asyncio.start_server(sink.take, host, 0)
    sink.address = server.sockets[0].getsockname()[:2]
    async with server:
        yield sink


def expected(first: int, count: int) -> list[str]:
    numbers = range(first, first + count)
    return [f"{STARTED + number // 50 - first // 50}.{number}" for number in numbers]


@pytest.mark.asyncio
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize(("first", "count"), [(0, 5000), (987, 1234), (10**11 + 7, 3000), (5, 1)])
async def test_each_call_arrives_exactly_once(host: str, first: int, count: int) -> None:
    async with listening(host) as sink:
        sent = await send_load(*sink.address, count=count, first=first, started=STARTED)
    assert sorted(sink.call_ids()) == sorted(expected(first, count))
    assert sent.reports == count
    assert sent.bytes == sum(map(len, sink.connections))


@pytest.mark.asyncio
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_load_is_the_reports_of_its_numbers(dialect: str) -> None:
    async with listening() as sink:
        await send_load(
            *sink.address,
            connections=3,
            count=300,
            dialect=dialect,
            first=900,
            started=STARTED,
            utc_offset=120,
        )
    reports = [
        new_cdr(number, dialect, started=STARTED + number // 50 - 18, utc_offset=120)
        for number in range(900, 1200)
    ]
    assert sorted(sink.lines) == sorted(reports)


@pytest.mark.asyncio
async def test_the_connections_are_open_together_and_share_the_load() -> None:
    async with listening() as sink:
        await send_load(*sink.address, connections=7, count=700, started=STARTED)
    assert sink.most_open == 7
    assert {taken.count(b"\n") for taken in sink.connections} == {100}


@pytest.mark.asyncio
async def test_other_events_go_between_and_are_counted() -> None:
    async with listening() as sink:
        sent = await send_load(*sink.address, count=100, events=3, started=STARTED)
    assert (sent.reports, sent.events) == (100, 300)
    told = Counter(orjson.loads(line)["action"] for line in sink.lines)
    assert told["NewCdr"] == 100
    assert told.total() == 400
    assert len(told) == 12


@pytest.mark.asyncio
async def test_a_rate_is_kept_by_all_together() -> None:
    async with listening() as sink:
        sent = await send_load(*sink.address, connections=4, count=50, rate=500, started=STARTED)
    # The last block is due 45 calls after the first; the event loop's clock counts milliseconds.
    assert sent.seconds >= 45 / 500 - 0.005
    assert sorted(sink.call_ids()) == sorted(expected(0, 50))


@pytest.mark.asyncio
async def test_progress_rises_to_the_count() -> None:
    told: list[int] = []
    async with listening() as sink:
        await send_load(*sink.address, count=1000, started=STARTED, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1000


@pytest.mark.asyncio
async def test_no_calls_are_a_load_too() -> None:
    async with listening() as sink:
        sent = await send_load(*sink.address, connections=2, count=0, started=STARTED)
    assert (sent.reports, sent.bytes, sink.connections) == (0, 0, [b"", b""])


def test_the_rate_is_reports_by_seconds() -> None:
    assert Sent(reports=10, events=0, bytes=100, seconds=4.0).rate == 2.5
    assert Sent(reports=0, events=0, bytes=0, seconds=0.0).rate == 0.0


def free_address() -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        host, port = taken.getsockname()
        return host, port


@pytest.mark.asyncio
async def test_a_refused_connection_is_one_sentence() -> None:
    host, port = free_address()
    with pytest.raises(LoadFailed) as failure:
        await send_load(host, port, count=10, started=STARTED)
    assert str(failure.value) == f"cannot connect to {host}:{port}: Connection refused"


@pytest.mark.asyncio
async def test_a_broken_connection_tells_how_much_was_written() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.transport.abort()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        address = server.sockets[0].getsockname()
        with pytest.raises(
            LoadFailed, match=r"broke a connection when \d{1,3}(,\d{3})? of 1,000,000"
        ):
            await send_load(*address, count=1_000_000, started=STARTED)


@pytest.mark.asyncio
async def test_an_unknown_dialect_is_refused_before_dialling() -> None:
    with pytest.raises(ValueError, match=r'"3\.0" is no dialect'):
        await send_load(*free_address(), count=1, dialect="3.0", started=STARTED)


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cdrd simulate load")
    simulate_load.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "required: HOST:PORT"),
        (["8261"], '"8261" is no address'),
        (["pbx:0"], 'nothing can listen on port 0, as in "pbx:0"'),
        (["pbx:1", "--connections", "0"], '"0" is no whole number of 1 or more'),
        (["pbx:1", "--count", "-5"], '"-5" is no whole number of 1 or more'),
        (["pbx:1", "--rate", "fast"], '"fast" is no number of 0 or more'),
        (["pbx:1", "--count", "1", "--seconds", "1"], "not allowed with argument --count"),
        (["pbx:1", "--utc-offset", "900"], '"900" is no number of minutes from -840 to 840'),
        (["pbx:1", "--utc-offset", "CET"], '"CET" is no number of minutes'),
    ],
)
def test_a_bad_value_is_a_usage_error(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(*arguments)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_seconds_without_a_rate_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        simulate_load.run(parsed("pbx:1", "--seconds", "5"))
    assert ended.value.code == 2
    assert "--seconds needs a --rate" in capsys.readouterr().err


def test_a_failure_of_the_command_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    address = format_address(*free_address())
    assert simulate_load.run(parsed(address)) == 1
    told = capsys.readouterr()
    assert told.err == f"cannot connect to {address}: Connection refused\n"
    assert told.out == ""


PROGRAM = """
import argparse, sys
from cdrd.simulate import load
parser = argparse.ArgumentParser()
load.add_arguments(parser)
sys.exit(load.run(parser.parse_args()))
"""


async def commanded(sink: Sink, *arguments: str) -> bytes:
    command = (sys.executable, "-c", PROGRAM, format_address(*sink.address), *arguments)
    program = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    summary, remarks = await program.communicate()
    assert (program.returncode, remarks) == (0, b"")
    return summary


@pytest.mark.asyncio
async def test_the_command_prints_what_it_sent() -> None:
    async with listening("::1") as sink:
        summary = orjson.loads(await commanded(sink, "--count", "500", "--events", "1"))
    assert list(summary) == ["reports", "events", "bytes", "seconds", "rate"]
    assert (summary["reports"], summary["events"]) == (500, 500)
    assert summary["bytes"] == sum(map(len, sink.connections))
    assert len(set(sink.call_ids())) == 500


@pytest.mark.asyncio
async def test_an_interrupted_load_says_that_not_all_was_sent() -> None:
    begun = asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        begun.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    async with server:
        address = format_address(*server.sockets[0].getsockname())
        command = ("-m", "cdrd", "simulate", "load", address, "--rate", "1", "--connections", "1")
        program = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        await begun.wait()
        program.send_signal(signal.SIGINT)
        told = await program.communicate()
    assert told == (b"", b"interrupted before all was sent\n")
    assert program.returncode == 1


@pytest.mark.asyncio
async def test_a_second_run_repeats_no_call_of_the_first() -> None:
    async with listening() as sink:
        await commanded(sink, "--rate", "1000", "--seconds", "0.1")
        await commanded(sink, "--count", "100", "--connections", "1")
    assert len(set(sink.call_ids())) == 200


@pytest.mark.asyncio
async def test_the_same_number_and_time_make_the_same_call() -> None:
    async with listening() as sink:
        for _ in range(2):
            await send_load(*sink.address, count=10, first=7, started=STARTED)
    assert set(Counter(sink.lines).values()) == {2}
