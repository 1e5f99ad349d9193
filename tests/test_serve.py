"""The daemon as its users run it: bytes in over real connections, rows and log lines out."""

import asyncio
import contextlib
import os
import resource
import select
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from cdrd.address import format_address
from cdrd.listen import cannot_listen
from cdrd.simulate.load import send_load
from cdrd.simulate.pbx import SimulatedPBX
from cdrd.simulate.reports import lay, new_cdr, other_event
from tests.running import (
    DEADLINE_SECONDS,
    HQ,
    RunningDaemon,
    assert_accounted,
    assert_each_row_is_logged,
    cdrd,
    connect,
    count,
    counted_logins,
    parsed_line,
    rows,
    send,
    write_config,
)

SAMPLES = Path(__file__).parent / "samples"
IN_USE = "Address already in use; end the program that listens there, or name another port"
NOT_OURS = "Cannot assign requested address; name an address of this machine"
STARTED = 1571897930
LAID = ("newline", "crlf", "blank-line", "none", "pretty", "text", "bom")
MIB = 1024 * 1024
STOP_SECONDS = 20
"""Less than TimeoutStopSec of the shipped unit, after which systemd kills."""

# As the published samples say, worked out by hand: the offset is the local time less call_id.
COLUMNS = (
    *("call_id", "started_at", "utc_offset", "caller", "callee", "source_trunk"),
    *("destination_trunk", "duration", "talk_duration", "agent_ring_time", "status", "call_type"),
    *("pin_code", "recording", "pbx_serial"),
)
_1_0_2 = "20180315201242-1521173562.46-203-201-Internal.yswav"
EXPECTED: tuple[tuple[Any, ...], ...] = (
    (
        *("1495779310.371", "2017-05-26T06:15:10Z", -480, "1002", "1000", None, None),
        *(3, 2, None, "ANSWERED", "Internal", None, None, None),
    ),
    (
        *("1495779454.374", "2017-05-26T06:17:34Z", -480, "1002", "41004", None, "sip-142"),
        *(4, 4, None, "ANSWERED", "Outbound", None, None, None),
    ),
    (
        *("1495779821.377", "2017-05-26T06:23:41Z", -480, "1000", "1002", "sip-142", None),
        *(18, 9, None, "ANSWERED", "Inbound", None, None, None),
    ),
    (
        *("1505352445.265", "2017-09-14T01:27:25Z", 480, "102", "1000", "Apple_test", None),
        *(38, 29, None, "ANSWERED", "Inbound", None),
        *("20170914092747-1505352445.265-102-1000-Inbound.wav", None),
    ),
    (
        *("1505352615.274", "2017-09-14T01:30:15Z", 480, "1000", "91000", None, "Apple_test"),
        *(29, 29, None, "ANSWERED", "Outbound", "1000"),
        *("20170914093038-1505352615.274-1000-91000-Outbound.wav", None),
    ),
    (
        *("1547391782.318", "2019-01-13T15:03:02Z", 480, "1001", "1005", None, None),
        *(21, 10, None, "ANSWERED", "Internal", None, _1_0_2, "369362089179"),
    ),
    (
        *("1547392142.330", "2019-01-13T15:09:02Z", 480, "1005", "9200000001", None, "SPS-6-36"),
        *(6, 3, None, "ANSWERED", "Outbound", None, _1_0_2, "369362089179"),
    ),
    (
        *("1571897930.5", "2019-10-24T06:18:50Z", -480, "1023", "2023", None, None),
        *(19, 14, 0, "ANSWERED", "Internal", None),
        *("20191024201242-1571897930.5-203-201-Internal.wav", "369451090405"),
    ),
    (
        *("1589958682.2101", "2020-05-20T07:11:22Z", 180, "106", "102", None, None),
        *(10, 5, None, "ANSWERED", "Internal", None, None, "a09805021987"),
    ),
    (
        *(
            "1702285525.16",
            "2023-12-11T09:05:25Z",
            120,
            "703",
            "0870000001",
            None,
            "27870000001_SIP",
        ),
        *(0, 0, 0, "BUSY", "Outbound", None, None, "3633D2199067"),
    ),
)


def samples(kind: str = "") -> list[bytes]:
    """Call records as published, or with ``other`` the events that share the stream."""
    names = [path for path in sorted(SAMPLES.glob("*-*.jsonl")) if "seed" not in path.name]
    names += [SAMPLES / "openvox.jsonl"]
    chosen = [path for path in names if ("other" in path.name) == (kind == "other")]
    return [line for path in chosen for line in path.read_bytes().splitlines() if line]


def calls(*numbers: int, serial: str = "369362089179") -> bytes:
    return b"".join(
        new_cdr(number, "1.0.2", started=STARTED, serial=serial) + b"\n" for number in numbers
    )


def dialled(address: tuple[str, int], name: str = "far") -> str:
    return f"""
        [[pbx]]
        name = "{name}"
        [pbx.events]
        kind = "tcp"
        address = "{format_address(*address)}"
        username = "api"
        password_file = "password"
    """


@contextlib.asynccontextmanager
async def simulated(directory: Path, **how: str) -> AsyncIterator[SimulatedPBX]:
    (directory / "password").write_text("api\n")
    pbx = SimulatedPBX(**how)  # type: ignore[arg-type]
    await pbx.start()
    try:
        yield pbx
    finally:
        await pbx.close()


@contextlib.contextmanager
def held_lock(database: Path) -> Iterator[sqlite3.Connection]:
    """What another program does that writes where it must not."""
    other = sqlite3.connect(database, isolation_level=None)
    try:
        other.execute("BEGIN EXCLUSIVE")
        yield other
    finally:
        if other.in_transaction:
            other.execute("ROLLBACK")
        other.close()


def break_off(sock: socket.socket) -> None:
    """End a connection by RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def assert_samples(found: list[sqlite3.Row]) -> None:
    assert sorted(tuple(row[name] for name in COLUMNS) for row in found) == list(EXPECTED)


# The whole way


def test_each_published_sample_is_the_right_row_however_it_comes_to_us(tmp_path: Path) -> None:
    """Each layout from an address of its own, and again a byte at a time, among other events."""
    ways = [(delimiter, size) for delimiter in LAID for size in (0, 1)]
    addresses = {way: f"127.0.1.{number}" for number, way in enumerate(ways, 1)}
    tables = "".join(
        f'[[pbx]]\nname = "{delimiter} {size}"\npeers = ["{addresses[delimiter, size]}"]\n'
        for delimiter, size in ways
    )
    mixed = [*samples("other")[:20], *samples(), *samples("other")[20:]]
    with RunningDaemon(tmp_path, tables) as daemon:
        for delimiter, size in ways:
            stream = b"".join(lay(report, delimiter) for report in mixed)
            pieces = [stream[at : at + size] for at in range(0, len(stream), size)] if size else ()
            send(daemon.port, *(pieces or (stream,)), source=addresses[delimiter, size])
        status, stopped = daemon.stop()
        for delimiter, size in ways:
            found = [row for row in rows(daemon.database) if row["pbx"] == f"{delimiter} {size}"]
            assert_samples(found)
            assert {row["source"] for row in found} == {"tcp"}
    assert status == 0
    assert_accounted(stopped)
    assert stopped["stored"] == len(ways) * len(EXPECTED)
    assert stopped["passed_over"] == len(ways) * len(samples("other"))
    assert count(daemon.database, "quarantine") == 0


@pytest.mark.asyncio
async def test_each_published_sample_is_the_right_row_however_a_dialled_pbx_sends_it(
    tmp_path: Path,
) -> None:
    async with contextlib.AsyncExitStack() as running:
        pbxs = {
            delimiter: await running.enter_async_context(simulated(tmp_path, delimiter=delimiter))
            for delimiter in LAID
        }
        tables = "".join(dialled(pbx.address, name) for name, pbx in pbxs.items())
        with RunningDaemon(tmp_path, tables) as daemon:
            await asyncio.gather(*(pbx.logged_in() for pbx in pbxs.values()))
            for pbx in pbxs.values():
                for event in samples("other")[:5]:
                    await pbx.send_event(event, chunk=1)
                for report in samples():
                    await pbx.send(report, chunk=1)
            status, stopped = await asyncio.to_thread(daemon.stop)
    for delimiter in LAID:
        found = [row for row in rows(daemon.database) if row["pbx"] == delimiter]
        assert_samples(found)
        assert {row["source"] for row in found} == {"dial"}
    assert status == 0
    assert_accounted(stopped)


def test_a_logged_call_is_a_stored_call(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        sending = send_load("127.0.0.1", daemon.port, connections=8, count=3000, started=STARTED)
        asyncio.run(sending)
        daemon.wait_for_calls(3000)
        assert_each_row_is_logged(daemon.database, daemon.found("call_released"))


def test_no_pin_code_is_in_the_log(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        send(daemon.port, calls(3).replace(b'"sn"', b'"pincode":"7351962","sn"'))
        daemon.stop()
    assert rows(daemon.database)[0]["pin_code"] == "7351962"
    assert b"7351962" not in daemon.text


def test_the_same_report_again_adds_no_row(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        for _ in range(3):
            send(daemon.port, calls(*range(30)))
        _, stopped = daemon.stop()
    assert (stopped["stored"], stopped["duplicate"]) == (30, 60)
    assert count(daemon.database) == 30


def test_one_bad_report_costs_exactly_itself(tmp_path: Path) -> None:
    bad = b'{"action":"NewCdr","callid":"1571897930.9","timestart":"yesterday"}\n'
    with RunningDaemon(tmp_path) as daemon:
        send(daemon.port, calls(1) + bad + calls(2))
        _, stopped = daemon.stop()
    (kept,) = rows(daemon.database, "SELECT * FROM quarantine")
    assert kept["payload"] == bad.rstrip()
    assert count(daemon.database) == 2
    assert_accounted(stopped)


# Who may connect


def test_a_peer_that_is_no_configured_pbx_is_refused_and_logged_once_a_minute(
    tmp_path: Path,
) -> None:
    with RunningDaemon(tmp_path, HQ.replace("127.0.0.1", "192.0.2.1")) as daemon:
        for _ in range(20):
            with connect(daemon.port) as sock, contextlib.suppress(ConnectionError):
                sock.sendall(calls(1))
                assert sock.recv(1) == b""
        _, stopped = daemon.stop()
    assert len(daemon.found("peer_refused", address="127.0.0.1")) == 1
    assert stopped["received"] == 0


def test_a_peer_that_resets_its_connection_at_once_is_no_fault_of_ours(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        port = daemon.port
        daemon.process.send_signal(signal.SIGSTOP)
        for _ in range(20):
            break_off(connect(port))
        daemon.process.send_signal(signal.SIGCONT)
        send(port, calls(1))
        daemon.stop()
    assert not daemon.found("fault_caught")
    assert count(daemon.database) == 1


def test_reports_that_a_reset_follows_are_stored(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        sock = connect(daemon.port)
        daemon.wait_for("peer_connected")
        sock.sendall(calls(*range(100)))
        break_off(sock)
        daemon.wait_for_calls(100)
        daemon.wait_for("peer_disconnected", reports=100)


def test_a_pbx_connects_over_ipv6(tmp_path: Path) -> None:
    tables = '[[pbx]]\nname = "six"\npeers = ["::/64"]\n'
    with RunningDaemon(tmp_path, tables, listen=["127.0.0.1:0", "[::1]:0"]) as daemon:
        send(daemon.ports[1], calls(1), host="::1")
        line = daemon.wait_for("call_released", pbx="six")
    assert daemon.found("peer_connected")[0]["peer"].startswith("[::1]:")
    assert line["source"] == "tcp"


def test_pbxs_behind_one_address_are_told_apart_by_serial(tmp_path: Path) -> None:
    tables = "".join(
        f'[[pbx]]\nname = "{name}"\npeers = ["127.0.0.0/8"]\nserial = "{serial}"\n'
        for name, serial in (("north", "111"), ("south", "222"))
    )
    with RunningDaemon(tmp_path, tables) as daemon:
        send(daemon.port, *(calls(1, 2, serial=serial) for serial in ("222", "111", "333")))
        _, stopped = daemon.stop()
    found = [(row["pbx"], row["pbx_serial"]) for row in rows(daemon.database)]
    assert sorted(found) == [("north", "111")] * 2 + [("south", "222")] * 2
    assert [row["reason"] for row in rows(daemon.database, "SELECT * FROM quarantine")] == [
        "serial '333' belongs to no PBX configured at this address"
    ] * 2
    assert_accounted(stopped)


# Dialling


@pytest.mark.asyncio
async def test_a_dialled_pbx_is_logged_in_to_again_after_a_reset_and_a_close(
    tmp_path: Path,
) -> None:
    async with simulated(tmp_path) as pbx:
        with RunningDaemon(tmp_path, dialled(pbx.address)) as daemon:
            for part, orderly in enumerate((False, True, False)):
                await asyncio.to_thread(daemon.wait_for, "pbx_connected", times=part + 1)
                for number in range(20):
                    await pbx.send(new_cdr(20 * part + number, started=STARTED))
                await asyncio.to_thread(daemon.wait_for_calls, 20 * (part + 1))
                await pbx.reset(orderly=orderly)
                await asyncio.to_thread(daemon.wait_for, "pbx_disconnected", times=part + 1)
            status, stopped = await asyncio.to_thread(daemon.stop)
    assert status == 0
    assert (stopped["stored"], pbx.sent) == (60, 60)
    assert not daemon.found("fault_caught")
    assert pbx.refusals == 0


@pytest.mark.asyncio
async def test_a_stop_while_a_dialled_pbx_is_connected_is_no_fault(tmp_path: Path) -> None:
    async with simulated(tmp_path) as pbx:
        with RunningDaemon(tmp_path, dialled(pbx.address)) as daemon:
            await asyncio.to_thread(daemon.wait_for, "pbx_connected")
            status, _ = await asyncio.to_thread(daemon.stop)
    assert status == 0
    assert not daemon.found("fault_caught")


@pytest.mark.asyncio
async def test_a_refused_password_is_tried_four_times_at_most_over_restarts_too(
    tmp_path: Path,
) -> None:
    async with simulated(tmp_path, password="another") as pbx:
        for _ in range(2):
            with RunningDaemon(tmp_path, dialled(pbx.address)) as daemon:
                await asyncio.to_thread(daemon.wait_for, "login_refused", times=2)
                await asyncio.to_thread(daemon.stop)
        with RunningDaemon(tmp_path, dialled(pbx.address)) as daemon:
            suspended = await asyncio.to_thread(daemon.wait_for, "login_suspended")
            await asyncio.to_thread(daemon.stop)
        assert pbx.refusals == 4
    assert 500 < suspended["seconds"] <= 660
    assert not daemon.found("login_refused")


def test_a_relay_that_cuts_logins_off_does_not_suspend_them_for_ten_minutes(tmp_path: Path) -> None:
    """Two tries soon, and then few enough for the account, should they have been refusals."""
    (tmp_path / "password").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as relay:
        port = relay.getsockname()[1]
        tables = (
            '[[pbx]]\nname = "hq"\n[pbx.events]\nkind = "tcp"\n'
            f'address = "127.0.0.1:{port}"\nusername = "api"\npassword_file = "password"\n'
        )
        with RunningDaemon(tmp_path, tables, listen=[]) as daemon:
            for _ in range(2):
                cut_off, _ = relay.accept()
                cut_off.recv(1)
                cut_off.close()
            daemon.wait_for("login_refused", times=2)
            relay.settimeout(4)  # the next try would have come after a second
            with pytest.raises(TimeoutError):
                relay.accept()
            assert daemon.found("login_suspended") == []


@pytest.mark.asyncio
async def test_a_failed_call_before_any_answer_is_no_refused_login(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("api")
    failed = (
        b'{"event":"NewCdr","callid":"1571897930.5","timestart":"2019-10-23 22:18:50",'
        b'"callfrom":"1","callto":"2","status":"FAILED","type":"Internal"}\n'
    )

    async def stream_without_an_answer(_: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        out.write(failed)
        await out.drain()
        ended.append(out)

    ended: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(stream_without_an_answer, "127.0.0.1", 0) as server:
        with RunningDaemon(tmp_path, dialled(server.sockets[0].getsockname())) as daemon:
            await asyncio.to_thread(daemon.wait_for, "pbx_connected")
            await asyncio.to_thread(daemon.wait_for, "call_released", status="FAILED")
            await asyncio.to_thread(daemon.stop)
        for out in ended:
            out.close()
    assert counted_logins(daemon.database) == 0


@pytest.mark.asyncio
async def test_a_password_file_that_cannot_be_used_costs_that_pbx_alone(tmp_path: Path) -> None:
    async with simulated(tmp_path) as pbx:
        (tmp_path / "password").write_text("two\nlines\n")
        with RunningDaemon(tmp_path, HQ + dialled(pbx.address)) as daemon:
            line = await asyncio.to_thread(daemon.wait_for, "pbx_unreachable", pbx="far")
            assert "a secret is one line" in line["error"]
            await asyncio.to_thread(send, daemon.port, calls(1))
            (tmp_path / "password").write_text("api\n")
            await asyncio.to_thread(daemon.wait_for, "pbx_connected")
            assert await asyncio.to_thread(daemon.stop) == (0, daemon.lines[-1])
    assert count(daemon.database) == 1


@pytest.mark.asyncio
async def test_where_logins_cannot_be_counted_for_all_a_run_counts_its_own(tmp_path: Path) -> None:
    (tmp_path / "cdr.sqlite3.logins").mkdir()
    async with simulated(tmp_path) as pbx:
        with RunningDaemon(tmp_path, dialled(pbx.address)) as daemon:
            told = await asyncio.to_thread(daemon.wait_for, "refusal_not_stored", pbx="far")
            await asyncio.to_thread(daemon.wait_for, "pbx_connected")
            status, _ = await asyncio.to_thread(daemon.stop)
    assert "Is a directory" in told["error"]
    assert status == 0


# Crashes, and the log


def test_each_row_that_a_crash_left_unlogged_is_logged_on_the_next_start(tmp_path: Path) -> None:
    """Nobody reads the log of the first run, so most of its lines are never written."""
    number = 1000
    with RunningDaemon(tmp_path) as daemon:
        port = daemon.port
        daemon.stop()
    with RunningDaemon(tmp_path, listen=[f"127.0.0.1:{port}"], read_log=False) as daemon:
        asyncio.run(_sent_once_listening(port, number))
        with following(daemon.database) as stored:
            for _ in range(number):
                assert stored.readline()
        daemon.kill()
        daemon.read_log()  # what the pipe has taken is written, as far as a daemon can know
        daemon.kill()
        written = daemon.found("call_released")
    with RunningDaemon(tmp_path) as daemon:
        daemon.wait_for("ready")
        told = daemon.found("call_released")
    assert len(written) < number == count(daemon.database)
    assert_each_row_is_logged(daemon.database, written + told)


async def _sent_once_listening(port: int, number: int) -> None:
    """There is no log to tell when it listens, so connecting is tried until it does."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_SECONDS
    while loop.time() < deadline:
        with contextlib.suppress(OSError):
            _, out = await asyncio.open_connection("127.0.0.1", port)
            out.write(calls(*range(number)))
            out.write_eof()
            await out.drain()
            out.close()
            return
    raise TimeoutError(port)


@contextlib.contextmanager
def following(database: Path) -> Iterator[Any]:
    """Yield the stored calls as ``cdrd follow`` prints them."""
    command = [sys.executable, "-m", "cdrd", "follow", "--db", str(database)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield process.stdout
        finally:
            process.kill()


def test_a_log_that_nobody_reads_keeps_no_call_from_being_stored_at_a_stop(
    tmp_path: Path,
) -> None:
    """30,000 lines are more than the 8 MiB that are rendered ahead of a reader."""
    number = 30_000
    with RunningDaemon(tmp_path) as daemon:
        daemon.wait_for("ready")
        port = daemon.port
        daemon.stop()
    with RunningDaemon(tmp_path, listen=[f"127.0.0.1:{port}"], read_log=False) as daemon:
        asyncio.run(_sent_once_listening(port, number))
        with following(daemon.database) as stored:
            for _ in range(1000):
                assert stored.readline()
        daemon.process.send_signal(signal.SIGTERM)
        try:
            assert daemon.process.wait(STOP_SECONDS) == 0
        except subprocess.TimeoutExpired:
            stored_by_then = count(daemon.database)
            pytest.fail(f"running {STOP_SECONDS} s after SIGTERM, {stored_by_then} stored")
    assert count(daemon.database) == number


def test_a_log_line_begins_with_its_priority_under_journald_and_nowhere_else(
    tmp_path: Path,
) -> None:
    for journal in (True, False):
        with RunningDaemon(tmp_path, journal=journal) as daemon:
            send(daemon.port, calls(1), b'{"action":"NewCdr"}\n')
            daemon.stop()
        begins = {line[:3] for line in daemon.text.splitlines()}
        assert begins == ({b"<6>", b"<4>"} if journal else {b'{"t'})


# Starts that are refused


def test_a_second_daemon_on_the_same_database_is_refused(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        daemon.wait_for("ready")
        second = cdrd("serve", "-c", daemon.config)
        assert second.returncode == 1
        assert "another cdrd is writing it" in second.stderr
        assert "Traceback" not in second.stderr
        send(daemon.port, calls(1))
        daemon.wait_for_calls(1)


def test_all_faults_of_a_configuration_are_told_at_once_with_exit_78(tmp_path: Path) -> None:
    faults = """
        [tcp]
        lisen = ["127.0.0.1:0"]
        max_report_bytes = "many"
        [[pbx]]
        name = "hq"
        timezone = "Europe/Nowhere"
        peers = ["somewhere"]
    """
    config = tmp_path / "config.toml"
    config.write_text(faults)
    refused = cdrd("serve", "-c", config)
    assert refused.returncode == 78
    keys = ("tcp.lisen", "'listen'", "tcp.max_report_bytes", "pbx.0.timezone", "pbx.0.peers.0")
    assert [key for key in keys if key not in refused.stderr] == []
    assert refused.stdout == ""


def test_a_port_in_use_and_a_host_that_is_none_end_the_start_with_a_sentence(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        used = f"127.0.0.1:{taken.getsockname()[1]}"
        for address, status in ((used, 1), ("a..b:0", 78)):
            refused = cdrd("serve", "-c", write_config(tmp_path, listen=[address]))
            assert refused.returncode == status, address
            assert address.rpartition(":")[2] in refused.stderr
            assert "Traceback" not in refused.stderr
            assert '"ready"' not in refused.stdout


@pytest.mark.parametrize("setting", ["tcp.listen", "http.listen", "metrics.listen"])
def test_a_listener_that_cannot_open_is_named_and_the_run_ends_in_order(
    tmp_path: Path, setting: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        used = f"127.0.0.1:{taken.getsockname()[1]}"
        for address, why in ((used, IN_USE), ("192.0.2.1:0", NOT_OURS)):
            listen = [address] if setting == "tcp.listen" else []
            value = f'"{address}"' if setting == "metrics.listen" else f'["{address}"]'
            tables = HQ if listen else f"{setting} = {value}\n{HQ}"
            refused = cdrd("serve", "-c", write_config(tmp_path, tables, listen))
            assert refused.returncode == 1
            assert refused.stderr == f"cdrd serve: {setting}: {address}: {why}\n"
            last = parsed_line(refused.stdout.splitlines()[-1].encode())
            assert_accounted(last)


def test_a_host_that_has_no_address_is_told_with_its_setting() -> None:
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    told = str(cannot_listen("http", "nohost.invalid:8260", unknown))
    assert told == (
        "http.listen: nohost.invalid:8260: Name or service not known; name an address of this"
        " machine"
    )


# Signals


def test_all_that_the_kernel_had_for_us_at_sigterm_is_stored(tmp_path: Path) -> None:
    connections, each = 150, 80
    with RunningDaemon(tmp_path) as daemon, contextlib.ExitStack() as held:
        port = daemon.port
        socks = [held.enter_context(connect(port)) for _ in range(connections)]
        daemon.wait_for("peer_connected", times=connections)
        for number, sock in enumerate(socks):
            sock.sendall(calls(*range(number * each, (number + 1) * each)))
        status, stopped = daemon.stop()
    assert status == 0
    assert stopped["received"] == stopped["stored"] == connections * each
    assert count(daemon.database) == connections * each
    assert_each_row_is_logged(daemon.database, daemon.found("call_released"))


def test_connections_that_wait_to_be_accepted_at_sigterm_are_read(tmp_path: Path) -> None:
    """Frozen, the daemon is as busy as it gets; the kernel answers its peers meanwhile."""
    with RunningDaemon(tmp_path) as daemon, contextlib.ExitStack() as held:
        port = daemon.port
        daemon.process.send_signal(signal.SIGSTOP)
        for number in range(30):
            held.enter_context(connect(port)).sendall(calls(number))
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.send_signal(signal.SIGCONT)
        status, _ = daemon.wait_for_end()
    assert (status, count(daemon.database)) == (0, 30)


def test_sigterm_while_more_keeps_coming_ends_with_the_exact_account(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        port = daemon.port
        senders = [threading.Thread(target=_send_on, args=(port, first)) for first in range(4)]
        for sender in senders:
            sender.start()
        daemon.wait_for_calls(2000)
        status, stopped = daemon.stop()
        for sender in senders:
            sender.join(DEADLINE_SECONDS)
        told = daemon.found("call_released")
    assert status == 0
    assert_accounted(stopped)
    assert stopped["stored"] == count(daemon.database)
    left = stopped["stored"] - len(told)  # for which there was no time
    if left:
        with RunningDaemon(tmp_path) as daemon:
            told += daemon.wait_for_calls(left)
            daemon.stop()
    assert len({line["seq"] for line in told}) == len(told)
    assert_each_row_is_logged(daemon.database, told)


def _send_on(port: int, first: int) -> None:
    """Send calls and other events until the connection ends."""
    with connect(port) as sock, contextlib.suppress(OSError):
        for number in range(first * 10_000_000, (first + 1) * 10_000_000, 50):
            sock.sendall(calls(*range(number, number + 50)) + other_event(number, "1.0.2") + b"\n")


def test_half_a_report_at_sigterm_goes_to_quarantine(tmp_path: Path) -> None:
    half = calls(2)[:100]
    with RunningDaemon(tmp_path) as daemon, connect(daemon.port) as sock:
        sock.sendall(calls(1) + half)
        status, stopped = daemon.stop()
    (kept,) = rows(daemon.database, "SELECT * FROM quarantine")
    assert (kept["payload"], kept["size"]) == (half, len(half))
    assert (status, stopped["stored"], stopped["quarantined"]) == (0, 1, 1)
    assert_accounted(stopped)


def test_sighup_ends_neither_the_daemon_nor_a_connection(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon, connect(daemon.port) as sock:
        sock.sendall(calls(1))
        daemon.wait_for_calls(1)
        daemon.process.send_signal(signal.SIGHUP)
        sock.sendall(calls(2))
        daemon.wait_for_calls(2)
        assert daemon.stop()[0] == 0


def test_sigint_ends_it_as_sigterm_does(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon, connect(daemon.port) as sock:
        sock.sendall(calls(1))
        daemon.process.send_signal(signal.SIGINT)
        status, stopped = daemon.wait_for_end()
    assert (status, stopped["stored"]) == (0, 1)


# Load and full measures


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"only {hard} descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_as_many_descriptors_are_used_as_are_allowed(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with RunningDaemon(tmp_path) as daemon:
            daemon.wait_for("ready")
            allowed = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert allowed == (hard, hard)


@pytest.mark.usefixtures("many_descriptors")
def test_a_thousand_slow_connections_at_once_lose_nothing(tmp_path: Path) -> None:
    connections, each = 1000, 3
    with RunningDaemon(tmp_path) as daemon, contextlib.ExitStack() as held:
        port = daemon.port
        socks = [held.enter_context(connect(port)) for _ in range(connections)]
        streams = [calls(*range(each * at, each * at + each)) for at in range(connections)]
        for start in range(0, max(map(len, streams)), 200):
            for sock, stream in zip(socks, streams, strict=True):
                sock.sendall(stream[start : start + 200])
        daemon.wait_for("peer_connected", times=connections)
        peak = daemon.memory_peak()
        status, stopped = daemon.stop()
    assert status == 0
    assert stopped["stored"] == count(daemon.database) == connections * each
    assert peak < 150 * MIB


def test_a_locked_database_pauses_reading_and_loses_nothing(tmp_path: Path) -> None:
    """Nor is a connection idle whose reading is paused: to drop it loses what the system holds."""
    number = 40_000
    with RunningDaemon(tmp_path, "tcp.idle_timeout = 1\n" + HQ) as daemon:
        port = daemon.port
        stream = calls(*range(number))
        with held_lock(daemon.database):
            sender = threading.Thread(target=_send_all, args=(port, stream))
            sender.start()
            failed = daemon.wait_for("commit_failed")
            # Some 2 MiB wait here and some in the system; the rest is still with the sender.
            assert sender.is_alive(), daemon.found("peer_disconnected")
            assert failed["waiting"] < number // 2
            peak = daemon.memory_peak()
        daemon.wait_for("commit_recovered")
        sender.join(DEADLINE_SECONDS)
        status, stopped = daemon.stop()
    assert (status, stopped["stored"]) == (0, number)
    assert peak < 150 * MIB


def test_a_stop_keeps_what_a_locked_database_has_not_taken(tmp_path: Path) -> None:
    """The system's part of it too, which is read once the spool has made room; systemd waits."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(DEADLINE_SECONDS)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with RunningDaemon(tmp_path, environment=environment) as daemon:
            port = daemon.port
            with held_lock(daemon.database), connect(port) as sock:
                sent = _send_until_full(sock)
                status, stopped = daemon.stop()
        number = sent.count(b"\n")  # the next process is handed what is torn
        assert (status, stopped["spooled"]) == (0, number)
        assert_accounted(stopped)
        while manager.recv(4096).decode() != "EXTEND_TIMEOUT_USEC=15000000":
            pass
    with RunningDaemon(tmp_path) as daemon:
        drained = daemon.wait_for("spool_drained")
        logged = daemon.wait_for_calls(number)
        daemon.stop()
    assert drained["stored"] == number
    assert_each_row_is_logged(daemon.database, logged)


def _send_until_full(sock: socket.socket) -> bytes:
    """Send calls until nobody has room for more; return what was sent, the last may be torn."""
    sock.setblocking(False)
    stream, sent = calls(*range(100_000)), 0
    while select.select([], [sock], [], 1)[1]:
        sent += sock.send(stream[sent : sent + 64 * 1024])
    return stream[:sent]


def _send_all(port: int, stream: bytes) -> None:
    """Send; where the daemon breaks the connection, its rows tell what was lost."""
    with contextlib.suppress(ConnectionError):
        send(port, stream)


# Readers


def test_others_can_read_while_it_runs_and_after_it_has_stopped(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        send(daemon.port, calls(1))
        daemon.wait_for_calls(1)
        assert count(daemon.database) == 1
        daemon.stop()
    assert count(daemon.database) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(not Path("/usr/bin/sqlite3").exists(), reason="needs a reader that all may run")
def test_a_reader_of_another_user_in_the_group_can_read_and_not_write() -> None:
    group, reader = 61_234, 61_235
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        directory = Path(name)
        os.chown(directory, 0, group)
        directory.chmod(0o2750)
        with RunningDaemon(directory) as daemon:
            send(daemon.port, calls(1))
            daemon.wait_for_calls(1)
            assert _read_as(reader, group, daemon.database) == (0, "1\n")
            daemon.stop()
        assert _read_as(reader, group, daemon.database) == (0, "1\n")
        assert _read_as(reader, reader, daemon.database)[0] != 0
        assert not os.access(daemon.database, os.X_OK)
        assert daemon.database.stat().st_mode & 0o777 == 0o640


def _read_as(user: int, group: int, database: Path) -> tuple[int, str]:
    read = subprocess.run(
        ["/usr/bin/sqlite3", "-readonly", database, "SELECT count(*) FROM calls"],
        user=user,
        group=group,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    return read.returncode, read.stdout


# systemd


def test_systemd_is_told_ready_status_watchdog_and_stopping(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(DEADLINE_SECONDS)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
        with RunningDaemon(tmp_path, environment=environment) as daemon:
            told = [manager.recv(4096).decode()]
            assert "READY=1" in told[0].splitlines()
            assert daemon.ports
            while sum("WATCHDOG=1" in message for message in told) < 3:
                told.append(manager.recv(4096).decode())
            daemon.stop()
            while "STOPPING=1" not in told[-1]:
                told.append(manager.recv(4096).decode())
    statuses = [line for message in told for line in message.splitlines() if "STATUS=" in line]
    assert any("0 stored" in status for status in statuses)


def test_a_watchdog_meant_for_another_process_is_not_fed(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(DEADLINE_SECONDS)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_PID": "1"}
        environment["WATCHDOG_USEC"] = "1"
        with RunningDaemon(tmp_path, environment=environment) as daemon:
            assert "READY=1" in manager.recv(4096).decode()
            assert daemon.stop()[0] == 0
