"""What waits for the database stays bounded, whoever connects meanwhile, and nothing is lost."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import uvloop

from cdrd.batch import Waiting
from cdrd.clock import ClockWatch
from cdrd.config import BatchTable
from cdrd.database import open_reader
from cdrd.intake import PAUSED_BYTES, Intake
from cdrd.kept import Keeper
from cdrd.listen import AcceptedConnection, Listener
from cdrd.log import LineWriter, make_logger
from cdrd.sender import Sender
from cdrd.sizes import KIB, MIB
from cdrd.store import Store
from cdrd.stream import Totals
from cdrd.systemd import Notifier
from cdrd.writer import Writer
from tests.fake_pbx import Gaps

SOON = 20.0
BOUND = 256 * KIB
ONE_READ = 256 * KIB
"""What uvloop hands over at once, at most."""

HQ = Sender("hq", ZoneInfo("UTC"), (ip_network("127.0.0.1"),))
BRANCH = replace(HQ, name="branch", serial="222")

REPORTS = 400
STREAM_BYTES = 4 * MIB


def stream(connection: int) -> bytes:
    """Make large reports, beside whose text the overhead of a record is small."""
    note = "x" * (STREAM_BYTES // REPORTS)
    return b"".join(
        b'{"action":"NewCdr","callid":"%d.%d","timestart":"2017-09-14 09:30:15","note":"%s"}\n'
        % (connection, number, note.encode())
        for number in range(REPORTS)
    )


@dataclass
class Bench:
    """All between the sockets and the database, on the loop that the daemon runs on."""

    path: Path
    waiting: Waiting
    totals: Totals
    intake: Intake
    writer: Writer
    listener: Listener
    address: tuple[str, int]

    def stored(self) -> int:
        reader = open_reader(self.path)
        (count,) = reader.execute("SELECT count(*) FROM calls").fetchone()
        reader.close()
        return int(count)


@contextlib.asynccontextmanager
async def opened(path: Path, keeper: Keeper | None = None) -> AsyncIterator[Bench]:
    """Make a bench whose writer does not run yet, like one whose database takes nothing."""
    store = await Store.open(path, "normal")
    descriptor = os.open(os.devnull, os.O_WRONLY)
    lines = LineWriter(descriptor)
    log = make_logger(lines)
    waiting, totals = Waiting(BOUND), Totals()
    intake = Intake(waiting, totals, log=log, max_report_bytes=64 * KIB, keeper=keeper)
    writer = Writer(
        store,
        waiting,
        totals,
        log=log,
        lines=lines,
        clocks=ClockWatch(),
        grouping=BatchTable(),
        room_made=intake.room_made,
    )
    intake.feed(writer)
    listener = Listener(intake, [HQ], log)
    server = await asyncio.get_running_loop().create_server(
        lambda: AcceptedConnection(intake, listener), "127.0.0.1", 0
    )
    try:
        address = server.sockets[0].getsockname()
        yield Bench(path, waiting, totals, intake, writer, listener, address)
    finally:
        server.close()
        await intake.close()
        await store.close(0)
        lines.close(SOON)
        os.close(descriptor)


async def connect(address: tuple[str, int]) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * KIB)  # of what the kernel holds
    await asyncio.get_running_loop().sock_connect(sock, address)
    return sock


async def send_while_it_reads(sock: socket.socket, sent: bytes) -> bytes:
    """Send until the kernel takes no more in 100 turns of the loop; return the rest."""
    idle = 0
    while sent and idle < 100:
        try:
            sent = sent[sock.send(sent[: 64 * KIB]) :]
            idle = 0
        except BlockingIOError:
            idle += 1
        await asyncio.sleep(0)
    return sent


async def send_to_the_end(sock: socket.socket, rest: bytes) -> None:
    """Send, and return when the other side has read all of it and has closed."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, rest)
    sock.shutdown(socket.SHUT_WR)
    assert await loop.sock_recv(sock, 1) == b""


def test_who_connects_while_reading_is_paused_is_read_once_and_little(tmp_path: Path) -> None:
    """uvloop begins to read after ``connection_made``, whatever was paused in it."""

    async def flood() -> None:
        async with opened(tmp_path / "cdr.sqlite3") as bench, asyncio.timeout(SOON):
            rests = {}
            for number in range(1, 4):
                sock = held.enter_context(await connect(bench.address))
                rests[sock] = await send_while_it_reads(sock, stream(number))
                assert bench.intake.paused
                assert len(bench.intake.connections) == number
                assert len(rests[sock]) > STREAM_BYTES // 2
                assert bench.waiting.arriving.size < BOUND + 1.5 * ONE_READ
                held_of = [len(each.stream.leave()) for each in bench.intake.connections]
                assert (
                    sum(size > PAUSED_BYTES for size in held_of) <= 1
                )  # of the one that was first
            committing = asyncio.create_task(bench.writer.run())
            await asyncio.gather(*(send_to_the_end(sock, rest) for sock, rest in rests.items()))
            bench.writer.stop()
            await committing
            assert bench.totals.stored == bench.stored() == 3 * REPORTS

    with contextlib.ExitStack() as held:
        uvloop.run(flood())


@pytest.mark.parametrize("connections", [1, 5])
def test_reading_goes_on_when_the_writer_has_made_room(tmp_path: Path, connections: int) -> None:
    async def flood() -> None:
        async with opened(tmp_path / "cdr.sqlite3") as bench, asyncio.timeout(SOON):
            committing = asyncio.create_task(bench.writer.run())
            socks = [held.enter_context(await connect(bench.address)) for _ in range(connections)]
            await asyncio.gather(
                *(send_to_the_end(sock, stream(at)) for at, sock in enumerate(socks))
            )
            bench.writer.stop()
            await committing
            assert bench.totals.received == bench.stored() == connections * REPORTS
            assert not bench.intake.paused

    with contextlib.ExitStack() as held:
        uvloop.run(flood())


def test_what_is_left_to_the_next_process_is_not_read_when_room_is_made(tmp_path: Path) -> None:
    """An orderly end goes on storing when it has handed its connections over."""
    keeper = Keeper(Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}))

    async def flood() -> None:
        async with opened(tmp_path / "cdr.sqlite3", keeper) as bench, asyncio.timeout(SOON):
            with await connect(bench.address) as sock:
                rest = await send_while_it_reads(sock, stream(1))
                received = bench.totals.received
                assert bench.intake.paused
                bench.intake.hand_over()
                committing = asyncio.create_task(bench.writer.run())
                bench.writer.stop()
                await committing
                assert not bench.intake.paused
                await send_while_it_reads(sock, rest)
                assert bench.totals.received == bench.stored() == received < REPORTS

    uvloop.run(flood())


def test_a_connection_that_may_be_anothers_counts_for_nobody(tmp_path: Path) -> None:
    async def come_and_go() -> None:
        gaps = Gaps()
        async with opened(tmp_path / "cdr.sqlite3") as bench, asyncio.timeout(SOON):
            bench.intake.tell_gaps(gaps)
            bench.listener.admit([BRANCH, HQ], ())
            with await connect(bench.address) as sock:
                await send_to_the_end(sock, b"")
        assert gaps.told == ["branch missed", "hq missed"] * 2

    uvloop.run(come_and_go())


def test_a_connection_is_told_anew_where_a_reload_lets_it_be_anothers(tmp_path: Path) -> None:
    async def reload() -> None:
        gaps = Gaps()
        async with opened(tmp_path / "cdr.sqlite3") as bench, asyncio.timeout(SOON):
            bench.intake.tell_gaps(gaps)
            with await connect(bench.address) as sock:
                while not bench.intake.connections:  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0)
                for senders, begun in ([HQ], ()), ([BRANCH, HQ], {"branch"}), ([HQ], ()):
                    bench.listener.admit(senders, begun)
                await send_to_the_end(sock, b"")
        assert gaps.told == [
            "hq mended",
            *("hq broke", "branch missed", "hq missed"),
            *("branch missed", "hq missed", "hq mended"),
            "hq broke",
        ]

    uvloop.run(reload())
