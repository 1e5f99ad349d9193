"""A PBX's connection outlives the process: after a restart, and after a crash."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdrd.kept import take_passed
from cdrd.simulate.reports import new_cdr
from tests import quick_serve
from tests.manager import Manager
from tests.running import (
    DEADLINE_SECONDS,
    HQ,
    RunningDaemon,
    assert_accounted,
    assert_each_row_is_logged,
    connect,
    count,
    rows,
)
from tests.simulated import SimulatedPbx
from tests.test_gap_filling import tables
from tests.test_reload import is_closed
from tests.test_tls import MUTUAL

STARTED = 1571897930


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with Manager(tmp_path) as running:
        yield running


def call(number: int) -> bytes:
    return new_cdr(number, started=STARTED)


def ids(daemon: RunningDaemon) -> list[int]:
    """The numbers of the stored calls, in the order stored."""
    return [int(row["call_id"].partition(".")[2]) for row in rows(daemon.database)]


def test_a_restart_keeps_the_connection_and_half_a_report(manager: Manager) -> None:
    with manager.start() as first:
        sock = connect(first.port)
        sock.sendall(call(1) + call(2)[:100])
        first.wait_for_calls(1)
        (name,) = manager.wait_for_store(1)
        assert name.startswith("tcp-")
        status, stopped = first.stop()
        assert (status, stopped["stored"], stopped["quarantined"]) == (0, 1, 0)
        assert_accounted(stopped)
        assert manager.wait_for_store(2) == ["rests", name]
    sock.sendall(call(2)[100:] + call(3))  # while no process runs
    with manager.start() as second:
        second.wait_for_calls(2)
        assert second.found("peer_connected")[0]["kept"] is True
        assert manager.wait_for_store(1) == [name]
        sock.sendall(call(4))
        second.wait_for_calls(3)
        assert ids(second) == [1, 2, 3, 4]
        sock.close()
        second.wait_for("peer_disconnected")
        assert manager.wait_for_store(0) == []
        _, stopped = second.stop()
    assert (stopped["stored"], stopped["quarantined"]) == (3, 0)
    assert_accounted(stopped)


def test_a_connection_that_was_kept_counts_as_one_that_stands(
    manager: Manager, tmp_path: Path
) -> None:
    inside = [sys.executable, quick_serve.__file__]
    with SimulatedPbx("--count", "1") as pbx:
        settings = tables(tmp_path, pbx, "")
        with manager.start(settings, inside=inside) as first:
            sock = connect(first.port)
            first.wait_for("peer_connected")
            manager.wait_for_store(1)
            first.stop()
        with manager.start(settings, inside=inside) as second:
            second.wait_for("gap_filled")
            with connect(second.port):
                second.wait_for("gap_filled", times=2)
                sock.close()  # the other one may have taken its place before
                second.wait_for("gap_filled", times=3)


def test_a_crash_keeps_the_connection_and_the_stream_is_found_again(manager: Manager) -> None:
    with manager.start() as first:
        sock = connect(first.port)
        sock.sendall(call(1) + call(2)[:100])
        first.wait_for_calls(1)
        manager.wait_for_store(1)
        first.kill()
    sock.sendall(call(2)[100:] + b"\n" + call(3) + b"\n" + call(4))
    with manager.start() as second:
        second.wait_for_calls(2)
        assert ids(second) == [1, 3, 4]  # of the second, the beginning died with the process
        assert count(second.database, "quarantine") == 1
        assert_each_row_is_logged(
            second.database, [*first.found("call_released"), *second.found("call_released")]
        )
        sock.close()


@pytest.mark.parametrize("crash", [False, True], ids=["restart", "crash"])
def test_what_the_kernel_holds_is_read_by_the_next_process(manager: Manager, crash: bool) -> None:
    """Twenty connections, each sending while no process runs."""
    with manager.start() as first:
        socks = [connect(first.port) for _ in range(20)]
        first.wait_for("peer_connected", times=20)
        manager.wait_for_store(20)
        first.kill() if crash else first.stop()
    for number, sock in enumerate(socks):
        sock.sendall(b"".join(call(number * 50 + more) for more in range(50)))
    with manager.start() as second:
        second.wait_for_calls(1000)
        assert sorted(ids(second)) == list(range(1000))
        for sock in socks:
            sock.close()
        second.wait_for("peer_disconnected", times=20)
        assert manager.wait_for_store(0) == []


def test_a_connection_that_we_end_is_seen_to_end(manager: Manager) -> None:
    with manager.start("tcp.idle_timeout = 0.3\n" + HQ) as daemon:
        with connect(daemon.port) as sock:
            manager.wait_for_store(1)
            assert sock.recv(1) == b""
        manager.wait_for_store(0)


def test_a_kept_connection_of_a_pbx_that_is_gone_is_ended(manager: Manager) -> None:
    with manager.start() as first, connect(first.port) as sock:
        manager.wait_for_store(1)
        first.stop()
        with manager.start(HQ.replace("127.0.0.1", "127.0.0.9")) as second:
            second.wait_for("peer_refused")
            manager.wait_for_store(0)
            assert sock.recv(1) == b""


@pytest.mark.usefixtures("directory")
def test_a_kept_connection_in_clear_text_is_ended_unread_where_tls_is_asked_for(
    manager: Manager,
) -> None:
    with manager.start() as first, connect(first.port) as sock:
        sock.sendall(call(1) + call(2)[:100])
        first.wait_for_calls(1)
        first.stop()
        manager.wait_for_store(2)
        sock.sendall(call(2)[100:] + call(3))  # while no process runs
        with manager.start(HQ + MUTUAL) as second:
            ended = second.wait_for("peer_disconnected", pbx="hq", reports=0)
            assert "not over TLS" in ended["reason"]
            manager.wait_for_store(0)
            assert is_closed(sock)
            _, stopped = second.stop()
    assert (stopped["received"], ids(second)) == (0, [1])


def test_a_kept_connection_that_has_ended_meanwhile_is_no_trouble(manager: Manager) -> None:
    with manager.start() as first:
        sock = connect(first.port)
        sock.sendall(call(1)[:50])
        manager.wait_for_store(1)
        first.stop()
        manager.wait_for_store(2)
        sock.close()
        with manager.start() as second:
            second.wait_for("report_quarantined")
            manager.wait_for_store(0)
            _, stopped = second.stop()
    assert_accounted(stopped)


def test_sockets_that_systemd_listens_on_stand_for_the_configured_addresses(
    manager: Manager,
) -> None:
    tcp, http = manager.listen("tcp"), manager.listen("http")
    with socket.create_connection(("127.0.0.1", tcp), DEADLINE_SECONDS) as early:
        early.sendall(call(1))  # before there is a daemon
        with manager.start(listen=["192.0.2.1:9"]) as daemon:
            daemon.wait_for_calls(1)
            assert daemon.ports == [tcp, http]
            with connect(http) as posting:
                body = call(2)
                posting.sendall(
                    b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
                )
                assert posting.recv(15) == b"HTTP/1.1 200 OK"
            assert count(daemon.database) == 2
            assert daemon.found("no_listener_opened") == []


def test_where_nothing_listens_for_a_pbx_it_is_told(tmp_path: Path) -> None:
    dialled = (
        '[[pbx]]\nname = "dialled"\n[pbx.events]\nkind = "tcp"\n'
        'address = "127.0.0.1:9"\nusername = "api"\npassword_file = "password"\n'
    )
    with RunningDaemon(tmp_path, HQ + dialled, listen=[]) as daemon:
        daemon.wait_for("ready")
        (told,) = daemon.found("no_listener_opened")
        assert (told["level"], told["pbxs"]) == ("warning", ["hq"])
        assert "cdrd.socket" in told["advice"]
        daemon.stop()
    with RunningDaemon(tmp_path, dialled, listen=[]) as daemon:
        daemon.wait_for("ready")
        assert daemon.found("no_listener_opened") == []


def test_a_dialled_connection_is_gone_on_with_and_no_login_made(
    manager: Manager, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("api\n")
    with SimulatedPbx("--rate", "100", "--events", "2") as pbx:
        tables = (
            '[[pbx]]\nname = "dialled"\n[pbx.events]\nkind = "tcp"\n'
            f'address = "{pbx.address}"\nusername = "api"\npassword_file = "password"\n'
        )
        stopping = time.monotonic()
        for crash in (False, True, False):
            with manager.start(tables, listen=[]) as daemon:
                daemon.wait_for_calls(20)
                (name,) = manager.wait_for_store(1)
                assert name.startswith("dial-")
                if crash:
                    daemon.kill()
                    told = {line["call_id"] for line in daemon.found("call_released")}
                    exposed = time.monotonic() - stopping
                else:
                    stopping = time.monotonic()
                    daemon.stop()
        with manager.start(tables, listen=[]) as daemon:
            daemon.wait_for_calls(50)
            daemon.stop()
            stored = [row["call_id"] for row in rows(daemon.database)]
        assert pbx.stop()["logins"] == 1
    assert told <= set(stored)
    found = [int(call_id.partition(".")[2]) for call_id in stored]
    assert len(found) == len(set(found)) >= 110
    # Only the crash may have taken something: what was read at once and not stored yet.
    missing = set(range(max(found))).difference(found)
    assert len(missing) <= 100 * exposed + 1  # what was sent since the run before had read all
    assert missing == set(range(min(missing, default=0), max(missing, default=-1) + 1))


# What systemd has passed


def test_without_systemd_nothing_is_passed() -> None:
    assert take_passed({}).connections == {}
    assert take_passed({"LISTEN_PID": "1", "LISTEN_FDS": "1"}).listeners == {}
    assert take_passed({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"}).listeners == {}
