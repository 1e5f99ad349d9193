"""A reload changes what has changed, drops nothing else, and a bad file changes nothing at all."""

import os
import signal
import socket
import ssl
from base64 import b64encode
from collections.abc import Iterator
from hmac import digest
from pathlib import Path
from typing import Any

import pytest
import trustme

from cdrd.simulate.reports import new_cdr
from tests.running import (
    HQ,
    RunningDaemon,
    assert_accounted,
    connect,
    count,
    rows,
    send,
    write_config,
)
from tests.simulated import SimulatedPbx
from tests.test_http_listen import http_port, read_status, request

STARTED = 1571897930
BRANCH = '[[pbx]]\nname = "branch"\npeers = ["127.0.0.2"]\n'
WEBHOOK = (
    'http.listen = ["127.0.0.1:0"]\n' + HQ + '[pbx.events]\nkind = "webhook"\nsecret_file = "key"\n'
)


def call(number: int) -> bytes:
    return new_cdr(number, started=STARTED)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with RunningDaemon(tmp_path) as running:
        running.wait_for("ready")
        yield running
        assert not running.found("fault_caught")


def reload(daemon: RunningDaemon, tables: str, event: str = "reloaded") -> dict[str, Any]:
    """Write another configuration, have it taken, and return the line that says so."""
    write_config(daemon.directory, tables)
    times = len(daemon.found(event)) + 1
    daemon.process.send_signal(signal.SIGHUP)
    return daemon.wait_for(event, times=times)


def changes(line: dict[str, Any]) -> tuple[list[str], list[str], list[str]]:
    return line["added"], line["changed"], line["removed"]


def is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


# PBXs


def test_a_pbx_is_added_changed_and_removed_and_no_other_is_touched(
    daemon: RunningDaemon,
) -> None:
    with connect(daemon.port) as hq:
        hq.sendall(call(1)[:40])  # half a report, across all that follows
        daemon.wait_for("peer_connected", pbx="hq")
        assert changes(reload(daemon, HQ + BRANCH)) == (["branch"], [], [])
        with connect(daemon.port, source="127.0.0.2") as branch:
            branch.sendall(call(2))
            daemon.wait_for_calls(1)
            changed = BRANCH + 'timezone = "Europe/Berlin"\n'
            assert changes(reload(daemon, HQ + changed)) == ([], ["branch"], [])
            branch.sendall(call(3))  # the connection of what only changed stays
            daemon.wait_for_calls(2)
            assert changes(reload(daemon, HQ)) == ([], [], ["branch"])
            assert is_closed(branch)
        with connect(daemon.port, source="127.0.0.2") as stranger:
            assert is_closed(stranger)
        hq.sendall(call(1)[40:])
        daemon.wait_for_calls(3)
        assert len(daemon.found("peer_connected", pbx="hq")) == 1
    _, stopped = daemon.stop()
    assert [row["pbx"] for row in rows(daemon.database)] == ["branch", "branch", "hq"]
    assert_accounted(stopped)


def test_a_renamed_pbx_gives_its_new_name_to_what_its_connection_brings(
    daemon: RunningDaemon,
) -> None:
    with connect(daemon.port) as sock:
        sock.sendall(call(1))
        daemon.wait_for_calls(1)
        line = reload(daemon, HQ.replace('"hq"', '"main"'))
        assert changes(line) == (["main"], [], ["hq"])
        sock.sendall(call(2))
        daemon.wait_for_calls(2)
    assert [row["pbx"] for row in rows(daemon.database)] == ["hq", "main"]


def test_a_dialled_pbx_keeps_its_connection_while_others_come_and_go(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("api\n")
    with SimulatedPbx("--rate", "50", "--events", "0") as pbx:
        dialled = (
            '[[pbx]]\nname = "dialled"\n[pbx.events]\nkind = "tcp"\n'
            f'address = "{pbx.address}"\nusername = "api"\npassword_file = "password"\n'
        )
        with RunningDaemon(tmp_path, dialled) as daemon:
            daemon.wait_for_calls(5)
            for tables in (dialled + HQ, dialled, dialled + BRANCH):
                reload(daemon, tables)
            daemon.wait_for_calls(len(daemon.found("call_released")) + 5)
            assert len(daemon.found("pbx_connected")) == 1
            assert changes(reload(daemon, BRANCH)) == ([], [], ["dialled"])
            _, stopped = daemon.stop()
        assert_accounted(stopped)
        assert not daemon.found("fault_caught")


# Bad files


@pytest.mark.parametrize(
    "tables",
    [
        "[[pbx]\n",
        HQ + "pears = []\n",
        HQ + HQ,
        'http.listen = ["127.0.0.1:0"]\n'
        + HQ
        + '[pbx.events]\nkind = "webhook"\nsecret_file = "gone"\n',
        HQ
        + '[pbx.history]\nurl = "https://192.0.2.10:808O"\nusername = "api"\n'
        + 'password_file = "gone"\n',
    ],
    ids=["no TOML", "unknown key", "a name twice", "no secret", "no port"],
)
def test_a_bad_file_changes_nothing_and_says_why(daemon: RunningDaemon, tables: str) -> None:
    with connect(daemon.port) as sock:
        sock.sendall(call(1))
        daemon.wait_for_calls(1)
        refused = reload(daemon, tables, "reload_refused")
        assert refused["level"] == "error"
        assert "config.toml" in refused["error"] or "secret_file" in refused["error"]
        sock.sendall(call(2))
        daemon.wait_for_calls(2)
    assert changes(reload(daemon, HQ)) == ([], [], [])


def test_a_file_that_is_gone_changes_nothing(daemon: RunningDaemon) -> None:
    daemon.config.unlink()
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for("reload_refused")
    send(daemon.port, call(1))
    daemon.wait_for_calls(1)


def test_a_fault_of_ours_in_a_reload_changes_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "packages" / "aiohttp.py"  # as an upgrade may leave a package
    broken.parent.mkdir()
    broken.write_text("raise ImportError('half of it is there')")
    subscribed = (
        '[[pbx]]\nname = "new"\n[pbx.events]\nkind = "websocket"\n'
        'address = "127.0.0.1:1"\nusername = "api"\npassword_file = "gone"\n'
    )
    environment = {"PYTHONPATH": str(broken.parent)}
    with RunningDaemon(tmp_path, HQ + BRANCH, environment=environment) as daemon:
        with connect(daemon.port, source="127.0.0.2") as branch:
            refused = reload(daemon, HQ + subscribed, "reload_refused")
            assert "half of it is there" in refused["error"]
            branch.sendall(call(1))
            daemon.wait_for_calls(1)
        assert changes(reload(daemon, HQ)) == ([], [], ["branch"])
        assert daemon.stop()[0] == 0
        assert len(daemon.found("fault_caught")) == 1


# Settings


def test_the_level_and_the_limits_are_taken_and_the_others_are_named(
    daemon: RunningDaemon,
) -> None:
    tables = 'log.level = "warning"\ntcp.max_report_bytes = 1024\nlog.numbers = "masked"\n'
    write_config(daemon.directory, tables + HQ)
    daemon.process.send_signal(signal.SIGHUP)
    needed = daemon.wait_for("restart_needed")
    assert needed["settings"] == ["log.numbers"]
    large = call(1)[:-1] + b',"note":"' + b"x" * 1100 + b'"}'
    send(daemon.port, call(2), large)
    quarantined = daemon.wait_for("report_quarantined")
    assert "1024" in quarantined["reason"]
    assert daemon.found("call_released") == []
    assert count(daemon.database) == 1
    reload(daemon, HQ)
    send(daemon.port, call(3))
    assert daemon.wait_for_calls(1)[0]["call_id"].endswith(".3")


def test_the_longest_report_is_taken_anew_on_connections_that_are_open(tmp_path: Path) -> None:
    listen = 'http.listen = ["127.0.0.1:0"]\n'
    with RunningDaemon(tmp_path, listen + "tcp.max_report_bytes = 1024\n" + HQ) as daemon:
        with connect(daemon.port) as streaming, connect(http_port(daemon)) as posting:
            streaming.sendall(call(1))
            assert status(posting, call(2)) == 200
            daemon.wait_for_calls(2)
            reload(daemon, listen + HQ)
            streaming.sendall(large(call(3)))
            assert status(posting, large(call(4))) == 200
            daemon.wait_for_calls(4)
            reload(daemon, listen + "tcp.max_report_bytes = 1024\n" + HQ)
            streaming.sendall(large(call(5)))
            assert "1024" in daemon.wait_for("report_quarantined")["reason"]
            assert status(posting, large(call(6))) == 413
        _, stopped = daemon.stop()
    assert (stopped["stored"], stopped["quarantined"]) == (4, 1)
    assert_accounted(stopped)


def large(report: bytes) -> bytes:
    return report.replace(b"{", b'{"note":"%s",' % (b"x" * 1100), 1)


def test_a_post_is_not_given_up_before_a_new_max_delay(tmp_path: Path) -> None:
    tables = 'http.listen = ["127.0.0.1:0"]\n' + HQ
    with RunningDaemon(tmp_path, tables) as daemon, connect(http_port(daemon)) as sock:
        assert status(sock, call(1)) == 200
        reload(daemon, tables + "[batch]\nmax_delay = 6.0\n")  # a post may take 5 s without it
        assert status(sock, call(2)) == 200
        assert daemon.stop()[1]["stored"] == 2


@pytest.mark.parametrize("before", ["", "tcp.idle_timeout = 86400\n"], ids=["none", "a day"])
def test_an_idle_timeout_is_taken(tmp_path: Path, before: str) -> None:
    with RunningDaemon(tmp_path, before + HQ) as daemon, connect(daemon.port) as sock:
        reload(daemon, "tcp.idle_timeout = 0.2\n" + HQ)
        assert is_closed(sock)
        assert daemon.wait_for("peer_disconnected")["reason"] == "silent for 0.2 s"
        assert not daemon.found("fault_caught")


def test_a_webhooks_new_secret_is_taken(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("old\n")
    with RunningDaemon(tmp_path, WEBHOOK) as daemon:
        with connect(http_port(daemon)) as sock:
            assert status(sock, call(1), "old") == 200
            (tmp_path / "key").write_text("new\n")
            reload(daemon, WEBHOOK)
            assert status(sock, call(2), "new") == 200  # on the connection that was open
            assert status(sock, call(3), "old") == 403
        _, stopped = daemon.stop()
    assert stopped["stored"] == 2


def test_a_sighup_before_anything_is_open_is_remembered(tmp_path: Path) -> None:
    key = tmp_path / "key"
    os.mkfifo(key)
    with RunningDaemon(tmp_path, WEBHOOK) as daemon:
        with key.open("w") as reading:  # returns when the daemon reads it, at its start
            key.unlink()
            key.write_text("new\n")
            daemon.process.send_signal(signal.SIGHUP)
            reading.write("old\n")
        assert changes(daemon.wait_for("reloaded")) == ([], [], [])
        assert daemon.stop()[0] == 0


def status(sock: socket.socket, body: bytes, key: str = "") -> int:
    signature = b64encode(digest(key.encode(), body, "sha256")).decode()
    sock.sendall(request(body, f"Content-Length: {len(body)}", f"X-Signature: {signature}"))
    return read_status(sock)


def test_a_new_certificate_is_shown_to_who_comes_after_it(tmp_path: Path) -> None:
    tables = HQ + '[tls]\ncertificate = "server.pem"\nkey = "server.key"\n'
    old, new = issue(), issue()
    write_certificate(tmp_path, old)
    with RunningDaemon(tmp_path, tables) as daemon:
        with secured(daemon.port, old) as before:
            write_certificate(tmp_path, new)
            reload(daemon, tables)
            with secured(daemon.port, new) as after:
                after.sendall(call(1))
                before.sendall(call(2))
                daemon.wait_for_calls(2)
            with pytest.raises(ssl.SSLError):
                secured(daemon.port, old)
        (tmp_path / "server.pem").write_text("no certificate")
        refused = reload(daemon, tables, "reload_refused")
        assert "no certificate with its key" in refused["error"]
        with secured(daemon.port, new) as still:
            still.sendall(call(3))
            daemon.wait_for_calls(3)


Issued = tuple[trustme.CA, trustme.LeafCert]


def issue() -> Issued:
    authority = trustme.CA()
    return authority, authority.issue_cert("127.0.0.1")


def write_certificate(directory: Path, issued: Issued) -> None:
    _, certificate = issued
    certificate.private_key_pem.write_to_path(directory / "server.key")
    (directory / "server.pem").write_bytes(
        b"".join(part.bytes() for part in certificate.cert_chain_pems)
    )


def secured(port: int, issued: Issued) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    issued[0].configure_trust(context)
    return context.wrap_socket(connect(port), server_hostname="127.0.0.1")


# Under load


def put_config(daemon: RunningDaemon, tables: str) -> None:
    """Put another configuration in its place at once: one half written may be a valid one."""
    aside = daemon.directory / "aside"
    aside.mkdir(exist_ok=True)
    text = write_config(aside, tables).read_text().replace(f"{aside}/", f"{daemon.directory}/")
    (aside / "config.toml").write_text(text)
    (aside / "config.toml").replace(daemon.config)


def test_many_reloads_under_load_a_third_of_them_broken_lose_nothing(
    daemon: RunningDaemon,
) -> None:
    total = 3000
    with connect(daemon.port) as sock:
        for number in range(30):
            tables = (HQ, HQ + BRANCH, "[[pbx]\n")[number % 3]
            put_config(daemon, tables)
            daemon.process.send_signal(signal.SIGHUP)
            sock.sendall(b"".join(map(call, range(number * 100, number * 100 + 100))))
        daemon.wait_for_calls(total)
        assert len(daemon.found("peer_connected")) == 1
        assert daemon.found("peer_disconnected") == []
    _, stopped = daemon.stop()
    assert (stopped["stored"], count(daemon.database)) == (total, total)
    assert_accounted(stopped)
