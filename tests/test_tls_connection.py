"""Nothing that has been read rests in the TLS layer, and a stranger costs no handshake."""

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import uvloop

from cdrd.config import Tls
from cdrd.listen import Listener
from cdrd.sender import Sender
from cdrd.simulate.reports import new_cdr
from cdrd.tls import server_context
from cdrd.tls_connection import TlsConnection
from tests.running import DEADLINE_SECONDS, HQ, RunningDaemon, connect, count
from tests.test_http_listen import request
from tests.test_intake import opened
from tests.test_serve import held_lock

STARTED = 1571897930
LISTEN = 'http.listen = ["127.0.0.1:0"]\n'
TLS = '[tls]\ncertificate = "server.pem"\nkey = "server.key"\n'
HALF_A_HELLO = bytes.fromhex("1603010100010000fc0303")


@pytest.fixture
def daemon(directory: Path) -> Iterator[RunningDaemon]:
    with RunningDaemon(directory, LISTEN + HQ + TLS) as running:
        yield running
        assert not running.found("fault_caught")


def calls(*numbers: int) -> bytes:
    return b"".join(new_cdr(number, "1.0.2", started=STARTED) + b"\n" for number in numbers)


class Client:
    """A peer that speaks TLS and decides itself what leaves together."""

    def __init__(self, port: int, trusting: ssl.SSLContext) -> None:
        self.sock = connect(port)
        self._arrived, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = trusting.wrap_bio(self._arrived, self._leaving, server_hostname="127.0.0.1")
        self._unsent = b""

    def shake_hands(self) -> None:
        """Do all but send our last part of the handshake."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.sock.sendall(self._leaving.read())
                self._arrived.write(self.sock.recv(1 << 16))
            else:
                return

    def send(self, *parts: bytes, goodbye: bool = False) -> None:
        """Send parts, with what was left to send of the handshake, in one go."""
        for part in parts:
            self._tls.write(part)
        if goodbye:
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.unwrap()
        self.sock.sendall(self._leaving.read())

    def receive(self) -> bytes:
        """Return what the other side sent until it ended the connection."""
        while chunk := self.sock.recv(1 << 16):
            self._arrived.write(chunk)
        return self._tls.read(1 << 16)

    def end(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def clients(number: int, port: int, trusting: ssl.SSLContext) -> Iterator[list[Client]]:
    """Make clients that have shaken hands, but for what they send last."""
    made: list[Client] = []
    try:
        for _ in range(number):
            made.append(Client(port, trusting))
            made[-1].shake_hands()
        yield made
    finally:
        for client in made:
            client.sock.close()


def test_what_a_peer_sent_before_it_ended_is_stored_though_reading_is_paused(
    daemon: RunningDaemon, trusting: ssl.SSLContext
) -> None:
    """A locked database; in all more than may wait, in each connection less than TLS may hold."""
    number, each = 60, 200
    with clients(number, daemon.port, trusting) as made:
        for client in made:
            client.send()
        daemon.wait_for("peer_connected", times=number)
        with held_lock(daemon.database):
            for at, client in enumerate(made):
                client.send(calls(*range(at * each, (at + 1) * each)), goodbye=at % 2 == 0)
                client.end()
            daemon.wait_for("commit_failed")
        daemon.wait_for("peer_disconnected", times=number)
    _, stopped = daemon.stop()
    assert (stopped["stored"], stopped["quarantined"]) == (number * each, 0)


def test_all_that_the_kernel_had_for_us_at_sigterm_is_stored(
    daemon: RunningDaemon, trusting: ssl.SSLContext
) -> None:
    """Half of the connections are made, the others' handshakes are not even done."""
    number, each = 20, 100
    with clients(number, daemon.port, trusting) as made:
        for client in made[::2]:
            client.send()
        daemon.wait_for("peer_connected", times=number // 2)
        daemon.process.send_signal(signal.SIGSTOP)
        for at, client in enumerate(made):
            client.send(calls(*range(at * each, (at + 1) * each)))
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.send_signal(signal.SIGCONT)
        status, stopped = daemon.wait_for_end()
    assert (status, stopped["stored"]) == (0, number * each)


def test_a_poster_that_ends_its_side_is_answered(
    daemon: RunningDaemon, trusting: ssl.SSLContext
) -> None:
    _, http = daemon.ports
    with clients(2, http, trusting) as made:
        for at, client in enumerate(made):
            client.send(request(calls(at)), goodbye=at == 0)
            client.end()
            assert client.receive().startswith(b"HTTP/1.1 200")
    assert count(daemon.database) == 2


def test_strangers_get_no_handshake_and_hold_nothing(
    directory: Path, trusting: ssl.SSLContext
) -> None:
    """A tenth as many descriptors as there are strangers would soon be gone."""
    few = ("prlimit", "--nofile=50")
    with (
        RunningDaemon(directory, LISTEN + HQ + TLS, inside=few) as daemon,
        contextlib.ExitStack() as held,
    ):
        for port in daemon.ports:
            for _ in range(250):
                stranger = held.enter_context(connect(port, source="127.0.0.2"))
                assert heard(stranger) == b""
        tcp, http = daemon.ports
        with clients(2, tcp, trusting) as made:
            for at, client in enumerate(made):
                client.send(calls(at))
            daemon.wait_for_calls(2)
        with clients(1, http, trusting) as (client,):
            client.send(request(calls(2)), goodbye=True)
            assert client.receive().startswith(b"HTTP/1.1 200")
        daemon.stop()
    assert daemon.found("peer_refused")[0]["address"] == "127.0.0.2"
    assert not daemon.found("fault_caught")


def heard(sock: socket.socket) -> bytes:
    """Return what is said to who says hello; nothing, where the connection is ended."""
    with contextlib.suppress(ConnectionError):
        sock.sendall(HALF_A_HELLO)
        return sock.recv(1)
    return b""


def test_who_cannot_be_heard_is_told_once_a_minute(
    daemon: RunningDaemon, trusting: ssl.SSLContext
) -> None:
    for _ in range(3):
        with connect(daemon.port) as sock:
            sock.sendall(calls(1))
            with contextlib.suppress(ConnectionError):
                while sock.recv(1 << 16):
                    pass
    with clients(1, daemon.port, trusting) as (client,):
        client.send(calls(1))
        daemon.wait_for_calls(1)
    daemon.stop()
    (told,) = daemon.found("handshake_failed")
    assert (told["pbx"], told["count"], told["reason"]) == ("hq", 1, "wrong version number")


@pytest.mark.parametrize("said", [b"", HALF_A_HELLO])
def test_a_handshake_that_stalls_is_ended_in_time(directory: Path, said: bytes) -> None:
    tls = Tls(certificate="server.pem", key="server.key")
    context = server_context(tls, directory / "config.toml")
    assert context is not None

    async def stall() -> None:
        async with opened(directory / "cdr.sqlite3") as bench, asyncio.timeout(DEADLINE_SECONDS):
            sender = Sender("hq", ZoneInfo("UTC"), (ip_network("127.0.0.1"),))
            listener = Listener(bench.intake, [sender], bench.intake.log)
            secured = partial(TlsConnection, context, listener.accept, listener, 0.1)
            server = await asyncio.get_running_loop().create_server(secured, "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(said)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            assert not listener.handshakes
            writer.close()
            server.close()

    uvloop.run(stall())
