"""A PBX that opens connection after connection, and strangers who do, leave room for the others."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdrd.simulate.reports import new_cdr
from tests.running import HQ, RunningDaemon, assert_accounted, connect
from tests.test_http_listen import read_status, request

STARTED = 1571897930
TABLES = 'http.listen = ["127.0.0.1:0"]\n' + HQ + '[[pbx]]\nname = "other"\npeers = ["127.0.0.2"]\n'
MOST = 40
"""What a PBX may hold of twice as many descriptors."""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with RunningDaemon(tmp_path, TABLES, inside=("prlimit", f"--nofile={2 * MOST}")) as running:
        yield running
        assert not running.found("fault_caught")


def call(number: int) -> bytes:
    return new_cdr(number, "1.0.2", started=STARTED) + b"\n"


def has_ended(sock: socket.socket) -> bool:
    with contextlib.suppress(ConnectionError):
        return sock.recv(1) == b""
    return True


def test_of_a_pbx_that_holds_too_many_the_longest_silent_gives_way(daemon: RunningDaemon) -> None:
    more = 80
    with contextlib.ExitStack() as held:
        port = daemon.port
        socks = []
        for number in range(more):
            socks.append(held.enter_context(connect(port)))
            socks[-1].sendall(call(number))
            daemon.wait_for_calls(number + 1)
            if number == MOST - 1:
                socks[0].sendall(call(1000))
                daemon.wait_for_call(call_id(1000))
        daemon.wait_for("peer_disconnected", times=more - MOST)
        ended = [int(line["peer"].rpartition(":")[2]) for line in daemon.found("peer_disconnected")]
        oldest = [sock.getsockname()[1] for sock in socks]
        assert ended[: MOST - 1] == oldest[1:MOST], "the first had the last word of its time"
        with connect(port, source="127.0.0.2") as other:
            other.sendall(call(more))
            daemon.wait_for("call_released", pbx="other")
        _, stopped = daemon.stop()
    reasons = {line["reason"] for line in daemon.found("peer_disconnected", pbx="hq")}
    assert f"gave way to a newer one: {MOST} at most" in reasons
    assert stopped["stored"] == more + 2
    assert_accounted(stopped)


def call_id(number: int) -> str:
    text = call(number).partition(b'"callid":"')[2].partition(b'"')[0]
    return text.decode()


@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.3"])
def test_idle_posters_and_strangers_leave_room_for_a_pbx_that_posts(
    daemon: RunningDaemon, source: str
) -> None:
    _, port = daemon.ports
    with contextlib.ExitStack() as held:
        silent = [held.enter_context(connect(port, source=source)) for _ in range(200)]
        assert has_ended(silent[0])
        with connect(port, source="127.0.0.2") as other:
            other.sendall(request(call(1)))
            assert read_status(other) == 200
        silent[-1].setblocking(False)
        with pytest.raises(BlockingIOError):  # it is open: only the longest silent gave way
            silent[-1].recv(1)
        daemon.stop()
