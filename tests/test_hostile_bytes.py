"""Whatever arrives at any listener, the daemon goes on, and a PBX that behaves loses nothing."""

import contextlib
import random
import socket
import ssl
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trustme

from cdrd.simulate.reports import new_cdr
from tests.running import HQ, RunningDaemon, assert_accounted, connect, rows
from tests.test_http_listen import read_status, request

STARTED = 1571897930
TABLES = (
    'http.listen = ["127.0.0.1:0"]\nmetrics.listen = "127.0.0.1:0"\ntcp.max_report_bytes = 4096\n'
    + HQ
    + '[[pbx]]\nname = "hostile"\npeers = ["127.0.0.2"]\n'
)
TLS = '[tls]\ncertificate = "server.pem"\nkey = "server.key"\nclient_ca = "ca.pem"\n'
ROUNDS = 40
KNOWN, STRANGER = "127.0.0.2", "127.0.0.3"


def call(number: int) -> bytes:
    return new_cdr(number, "1.0.2", started=STARTED) + b"\n"


def attacks(chance: random.Random) -> Iterator[bytes]:
    """Make one stream of each kind of what no PBX sends, and of what it sends at a bad time."""
    yield chance.randbytes(chance.randrange(1, 20_000))
    yield b"\x16\x03\x01" + chance.randbytes(chance.randrange(600))
    yield b"\x16\x03\x03\xff\xff" + chance.randbytes(100)
    head = request(call(9), f"Content-Length: {chance.choice([-1, 10**30, 4, 4097])}")
    yield head[: chance.randrange(len(head))]
    yield head.replace(b"\r\n", chance.choice([b"\n", b"\r", b"\0", b"\r\n "]))
    yield b"POST / HTTP/1.1\r\n" + b"A: " + b"x" * 70_000
    yield b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * chance.randrange(40)
    yield b"GET /metrics HTTP/1.1\r\n\r\n" * 50 + chance.randbytes(30)
    yield b"{" * chance.randrange(1, 9_000)
    yield b'{"action":"NewCdr","callid":' + chance.choice(
        [b"NaN}", b"[]}", b'"\xff"}', b'"\\ud800"}']
    )
    lists = b"[" * 1020 + b"]" * 1020  # JSON may be so deep, and Python cannot spell it
    yield b'{"%b":%b}\n' % (chance.choice([b"type", b"sn", b"x"]), lists)
    yield b'"\\' * chance.randrange(1, 5_000)
    mangled = bytearray(call(8) * 3)
    for _ in range(9):
        mangled[chance.randrange(len(mangled))] = chance.randrange(256)
    yield bytes(mangled)


def attack(sock: socket.socket, stream: bytes, chance: random.Random) -> bool:
    """Send a stream in pieces and end it in one of four ways; return whether it stays open."""
    way = chance.choice(["close", "reset", "half", "hold"])
    with contextlib.suppress(OSError):
        at = chance.randrange(len(stream))
        for piece in (stream[:at], stream[at:]):
            sock.sendall(piece)
        if way == "half":
            sock.shutdown(socket.SHUT_WR)
    if way == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if way in ("close", "reset"):
        sock.close()
    return way in ("half", "hold")


@pytest.fixture(params=["clear", "tls"])
def secured(
    request: pytest.FixtureRequest, trusting: ssl.SSLContext, authority: trustme.CA
) -> ssl.SSLContext | None:
    """Make what a PBX speaks TLS with, where it does."""
    authority.issue_cert("pbx.example").configure_cert(trusting)
    return trusting if request.param == "tls" else None


def test_hostile_bytes_end_nothing_and_cost_a_pbx_nothing(
    directory: Path, secured: ssl.SSLContext | None
) -> None:
    chance = random.Random(5)
    tables = TABLES + (TLS if secured else "")

    def connected(port: int, source: str = "") -> socket.socket:
        sock = connect(port, source=source)
        return secured.wrap_socket(sock, server_hostname="127.0.0.1") if secured else sock

    with RunningDaemon(directory, tables) as daemon, contextlib.ExitStack() as held:
        tcp, http, _ = daemon.ports
        good, poster = held.enter_context(connected(tcp)), held.enter_context(connected(http))
        for number in range(ROUNDS):
            ways = [
                partial(connect, port, source=who)
                for port in daemon.ports
                for who in (KNOWN, STRANGER)
            ]
            if secured:
                ways += [partial(connected, port, KNOWN) for port in (tcp, http)]
            for stream in attacks(chance):
                with contextlib.suppress(OSError):
                    sock = chance.choice(ways)()
                    if attack(sock, stream, chance):
                        held.enter_context(sock)
            good.sendall(call(1000 + number))
            body = call(2000 + number)
            poster.sendall(request(body, f"Content-Length: {len(body)}"))
            assert read_status(poster) == 200
        daemon.wait_for("call_released", times=2 * ROUNDS, pbx="hq")
        status, stopped = daemon.stop()
    assert (status, daemon.stderr, daemon.found("fault_caught")) == (0, "", [])
    stored = rows(daemon.database, "SELECT count(*) FROM calls WHERE pbx = 'hq'")
    assert [tuple(row) for row in stored] == [(2 * ROUNDS,)]
    assert_accounted(stopped)
