"""The daemon and a simulated PBX, as programs: what the PBX has played is one row each, always.

The PBX plays on while the line is cut or the daemon is dead, and keeps its history as a real one
does; what counts is what the database holds once the gap is filled.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests import quick_serve
from tests.damage import damage, drop_wal, put_back
from tests.running import (
    RunningDaemon,
    assert_accounted,
    assert_each_row_is_logged,
    cdrd,
    count,
    rows,
    send,
)
from tests.simulated import SimulatedPbx

CALLS = 60
NOBODY = "http://127.0.0.1:9"


def tables(directory: Path, pbx: SimulatedPbx, kind: str = "tcp", **history: object) -> str:
    """Write the password's file, and return the PBX's tables; of no kind, it connects to us."""
    (directory / "password").write_text("api\n")
    account = 'username = "api"\npassword_file = "password"\n'
    address = pbx.address if kind == "tcp" else pbx.url.removeprefix("http://")
    tls = "" if kind == "tcp" else "tls = false\n"
    events = f'[pbx.events]\nkind = "{kind}"\naddress = "{address}"\n{account}{tls}'
    settings = "".join(f"{key} = {value}\n" for key, value in history.items())
    return f"""
http.listen = {'["127.0.0.1:0"]' if kind == "http" else "[]"}
[[pbx]]
name = "hq"
peers = ["127.0.0.1"]
{events if kind else ""}
[pbx.history]
url = "{pbx.url}"
{account}{settings}"""


def running(directory: Path, tables: str) -> RunningDaemon:
    return RunningDaemon(directory, tables, inside=[sys.executable, quick_serve.__file__])


def wait_for_each(
    daemon: RunningDaemon, number: int, known: AbstractSet[str] = frozenset()
) -> AbstractSet[str]:
    """Wait until so many different calls were logged, the known ones among them."""
    while True:
        lines = daemon.found("call_released")
        told = known | {line["call_id"] for line in lines}
        if len(told) >= number:
            return told
        daemon.wait_for("call_released", times=len(lines) + 1)


FETCHED = "calls WHERE source = 'history'"


def wait_until_told(daemon: RunningDaemon, before: int = 0) -> None:
    """Wait until all that was fetched is told as the filling of a gap.

    ``before``: so much of it was told by an earlier run.
    """
    while True:
        filled = daemon.found("gap_filled")
        if sum(line["missing"] for line in filled) == count(daemon.database, FETCHED) - before:
            return
        daemon.wait_for("gap_filled", times=len(filled) + 1)


def assert_each_call_is_one_row(daemon: RunningDaemon, pbx: SimulatedPbx) -> list[Any]:
    """Hold the database to what the PBX has played; return the rows that were fetched."""
    stored = rows(daemon.database)
    assert pbx.stop()["calls"] == CALLS
    assert len(stored) == len({row["call_id"] for row in stored}) == CALLS
    assert count(daemon.database, "quarantine") == 0
    return [row for row in stored if row["source"] == "history"]


@pytest.mark.parametrize("kind", ["tcp", "websocket"])
def test_what_is_played_while_the_line_is_cut_is_fetched(tmp_path: Path, kind: str) -> None:
    play = ("--count", f"{CALLS}", "--rate", "60", "--reset-every", "20")
    with (
        SimulatedPbx(*play, kind=kind) as pbx,
        running(tmp_path, tables(tmp_path, pbx, kind)) as daemon,
    ):
        wait_for_each(daemon, CALLS)
        wait_until_told(daemon)
        fetched = assert_each_call_is_one_row(daemon, pbx)
        status, stopped = daemon.stop()
        filled = daemon.found("gap_filled", pbx="hq")
    assert fetched
    assert sum(line["missing"] for line in filled) == len(fetched)
    assert status == 0
    assert_accounted(stopped)
    assert stopped["stored"] == CALLS - len(fetched)
    assert_each_row_is_logged(daemon.database, daemon.found("call_released"))


def test_what_an_older_backup_lacks_is_fetched_without_a_restart(tmp_path: Path) -> None:
    play = ("--count", f"{CALLS}", "--rate", "60")
    with SimulatedPbx(*play) as pbx:
        settings, copy = tables(tmp_path, pbx), tmp_path / "backup.sqlite3"
        with running(tmp_path, settings) as daemon:
            wait_for_each(daemon, 10)
            assert cdrd("backup", "--db", daemon.database, copy).returncode == 0
            wait_for_each(daemon, CALLS)
            daemon.stop()
        drop_wal(daemon.database)
        with running(tmp_path, settings) as daemon:
            daemon.wait_for("gap_filled")
            again = rows(daemon.database)[0]["raw"].encode()
            damage(daemon.database)
            os.kill(daemon.storing_process(), signal.SIGKILL)  # what is in memory is not damaged
            send(daemon.port, again + b"\n")
            daemon.wait_for("database_damaged")
            put_back(copy, daemon.database)
            daemon.wait_for("database_reopened")
            known, before = {row["call_id"] for row in rows(copy)}, count(copy, FETCHED)
            wait_for_each(daemon, CALLS, known)
            wait_until_told(daemon, before)
            fetched = len(assert_each_call_is_one_row(daemon, pbx)) - before
            assert fetched == CALLS - len(known)
            assert_accounted(daemon.stop()[1])


def test_what_is_played_while_the_daemon_is_dead_is_fetched(tmp_path: Path) -> None:
    with SimulatedPbx("--count", f"{CALLS}", "--rate", "30") as pbx:
        settings = tables(tmp_path, pbx)
        with running(tmp_path, settings) as killed:
            known = wait_for_each(killed, 10)
            killed.kill()
        with running(tmp_path, settings) as daemon:
            wait_for_each(daemon, CALLS, known)
            filled = daemon.wait_for("gap_filled", pbx="hq")
            assert assert_each_call_is_one_row(daemon, pbx)
            _, stopped = daemon.stop()
    assert filled["quarantined"] == 0
    assert_accounted(stopped)


@pytest.mark.parametrize("kind", ["tcp", "http", "websocket"])
def test_what_is_never_pushed_is_found_by_the_fetch_of_an_interval(
    tmp_path: Path, kind: str
) -> None:
    play = ("--count", f"{CALLS}", "--rate", "100", "--unpushed-every", "3")
    with (
        SimulatedPbx(*play, kind=kind) as pbx,
        running(tmp_path, tables(tmp_path, pbx, kind, interval=0.3)) as daemon,
    ):
        wait_for_each(daemon, CALLS)
        fetched = assert_each_call_is_one_row(daemon, pbx)
        _, stopped = daemon.stop()
    assert len(fetched) >= CALLS // 3
    assert_accounted(stopped)


@pytest.mark.parametrize("who", ["fetch", "check", "the daemon"])
def test_who_logs_in_for_something_else_leaves_the_posts_to_the_daemon(
    tmp_path: Path, who: str
) -> None:
    with SimulatedPbx("--rate", "50", kind="http") as pbx:
        settings = tables(tmp_path, pbx, "http")
        if who == "the daemon":  # by another name, so that it takes a login of its own
            settings = settings.replace('url = "http://127.0.0.1', 'url = "http://localhost')
        with running(tmp_path, settings) as daemon:
            daemon.wait_for("call_released", source="http")
            match who:
                case "fetch":
                    ever = ("--from", "2000-01-01", "--to", "2000-01-02")
                    assert cdrd("fetch", "-c", daemon.config, *ever).returncode == 0
                case "check":
                    assert cdrd("check", "--connect", "-c", daemon.config).returncode == 0
                case _:
                    daemon.wait_for("gap_filled")
            posted = len(daemon.found("call_released", source="http"))
            daemon.wait_for("call_released", source="http", times=posted + 50)


def test_each_connection_of_a_pbx_that_connects_to_us_ends_a_gap(tmp_path: Path) -> None:
    play = ("--count", f"{CALLS}", "--rate", "0", "--unpushed-every", "1", "--post-to", NOBODY)
    with (
        SimulatedPbx(*play, kind="http") as pbx,
        running(tmp_path, tables(tmp_path, pbx, "")) as daemon,
    ):
        daemon.wait_for("gap_filled", missing=CALLS)
        for times in (2, 3):
            send(daemon.port, b"")
            daemon.wait_for("gap_filled", times=times)
        assert len(assert_each_call_is_one_row(daemon, pbx)) == CALLS


def test_an_api_that_is_down_is_asked_until_it_is_up(tmp_path: Path) -> None:
    play = ("--count", f"{CALLS}", "--rate", "0", "--unpushed-every", "1")
    with SimulatedPbx(*play) as pbx, socket.socket() as door:
        door.bind(("127.0.0.1", 0))  # it refuses connections until it listens
        closed = f"http://127.0.0.1:{door.getsockname()[1]}"
        settings = tables(tmp_path, pbx).replace(pbx.url, closed)
        with running(tmp_path, settings) as daemon:
            failed = daemon.wait_for("fetch_failed", pbx="hq", times=2)
            assert failed["level"] == "warning"
            assert closed in failed["error"]
            assert not daemon.found("gap_filled")
            open_door(door, pbx.url)
            wait_for_each(daemon, CALLS)
            daemon.wait_for("gap_filled", missing=CALLS)
            assert len(assert_each_call_is_one_row(daemon, pbx)) == CALLS


def open_door(door: socket.socket, url: str) -> None:
    """Let connections in, and through to where the URL is."""
    host, _, port = url.removeprefix("http://").partition(":")
    door.listen()

    def let_in() -> None:
        with suppress(OSError):  # it was closed
            while True:
                outside, _ = door.accept()
                inside = socket.create_connection((host, int(port)))
                for ends in ((outside, inside), (inside, outside)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    threading.Thread(target=let_in, daemon=True).start()


def pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(1 << 16):
            sink.sendall(chunk)
        sink.shutdown(socket.SHUT_WR)
