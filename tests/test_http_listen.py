"""Who is answered 200 has a row; who is not can come again; and no poster waits for another."""

import asyncio
import contextlib
import hmac
import http.client
import os
import signal
import socket
import threading
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import uvloop

from cdrd.batch import Waiting
from cdrd.clock import ClockWatch
from cdrd.config import BatchTable
from cdrd.database import open_reader
from cdrd.door import Door, entrances
from cdrd.http_listen import Bounds, HttpConnections
from cdrd.intake import Intake
from cdrd.listen import Listener
from cdrd.log import LineWriter, make_logger
from cdrd.sender import Sender
from cdrd.simulate.posts import send_posts
from cdrd.simulate.reports import new_cdr, other_event
from cdrd.sizes import KIB, MIB
from cdrd.store import Store
from cdrd.stream import Totals
from cdrd.writer import Writer
from tests.fake_pbx import Gaps
from tests.running import (
    DEADLINE_SECONDS,
    HQ,
    RunningDaemon,
    assert_accounted,
    assert_each_row_is_logged,
    cdrd,
    connect,
    count,
    rows,
    write_config,
)
from tests.test_serve import assert_samples, break_off, held_lock, samples

STARTED = 1571897930
TABLES = 'http.listen = ["127.0.0.1:0"]\n' + HQ
SOON = 20.0
BAD = b'{"action":"NewCdr","callid":"1571897930.9","timestart":"yesterday"}'

Answer = tuple[int, dict[str, str], bytes]


def call(number: int) -> bytes:
    return new_cdr(number, "1.0.2", started=STARTED)


def request(body: bytes, *headers: str, line: str = "POST / HTTP/1.1") -> bytes:
    told = headers or (f"Content-Length: {len(body)}",)
    return "\r\n".join((line, *told, "\r\n")).encode() + body


def read_answer(sock: socket.socket) -> Answer:
    """Read one answer as a strict client does, whatever comes behind it."""
    answer = http.client.HTTPResponse(sock)
    answer.begin()
    return answer.status, dict(answer.getheaders()), answer.read()


def read_status(sock: socket.socket) -> int:
    status, _, _ = read_answer(sock)
    return status


def post(port: int, body: bytes, *headers: str, source: str = "") -> Answer:
    """Post on a connection of its own."""
    with connect(port, source=source) as sock:
        sock.sendall(request(body, *headers))
        return read_answer(sock)


def known_connection(port: int) -> socket.socket:
    """Connect and get one answer: whose connection is reset before, the daemon cannot know."""
    sock = connect(port)
    sock.sendall(request(b"", line="GET / HTTP/1.1"))
    assert read_status(sock) == 200
    return sock


def http_port(daemon: RunningDaemon) -> int:
    daemon.wait_for("ready")
    (opened,) = daemon.found("listener_opened", source="http")
    return int(opened["address"].rpartition(":")[2])


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with RunningDaemon(tmp_path, TABLES) as running:
        yield running
        assert not running.found("fault_caught")


@pytest.fixture
def port(daemon: RunningDaemon) -> int:
    return http_port(daemon)


# The whole way


def with_length(report: bytes) -> bytes:
    return request(report, f"Content-Length: {len(report)}", "Connection: close")


def as_printed(report: bytes) -> bytes:
    return request(report, "User-Agent: WebAPI", "Host: 192.0.2.1: 8260", *["Accept: text/x"] * 2)


def without_a_path(report: bytes) -> bytes:
    return request(report, "Connection: close", line="POST  HTTP/1.1")


def in_chunks(report: bytes) -> bytes:
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(report), report)
    return request(body, "Transfer-Encoding: chunked")


WAYS = [with_length, as_printed, without_a_path, in_chunks]


@pytest.mark.parametrize("size", [0, 1], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("way", WAYS)
def test_each_published_sample_is_the_right_row_however_it_is_posted(
    way: Callable[[bytes], bytes], size: int, daemon: RunningDaemon, port: int
) -> None:
    for report in [*samples("other")[:5], *samples()]:
        stream = way(report)
        with connect(port) as sock:
            for at in range(0, len(stream), size or len(stream)):
                sock.sendall(stream[at : at + (size or len(stream))])
            assert read_status(sock) == 200
    assert_samples(rows(daemon.database))
    assert {row["source"] for row in rows(daemon.database)} == {"http"}
    status, stopped = daemon.stop()
    assert (status, stopped["passed_over"]) == (0, 5)
    assert_accounted(stopped)


def test_who_is_answered_200_has_a_row(daemon: RunningDaemon, port: int) -> None:
    """Looked at right at the answer, by a hundred posters at once."""
    seen: dict[int, int] = {}

    def post_and_look(poster: int) -> None:
        reader = open_reader(daemon.database)
        for number in range(poster, 1000, 100):
            status, _, _ = post(port, call(number))
            query = "SELECT count(*) FROM calls WHERE call_id = ?"
            (seen[number],) = reader.execute(query, (f"{STARTED}.{number}",)).fetchone()
            assert status == 200
        reader.close()

    with ThreadPoolExecutor(100) as posters:
        for done in [posters.submit(post_and_look, poster) for poster in range(100)]:
            done.result()
    assert seen == dict.fromkeys(range(1000), 1)
    _, stopped = daemon.stop()
    assert_accounted(stopped)
    assert_each_row_is_logged(daemon.database, daemon.found("call_released"))


def test_a_report_that_is_repeated_is_one_row_and_again_200(
    daemon: RunningDaemon, port: int
) -> None:
    assert [post(port, call(1))[0] for _ in range(3)] == [200, 200, 200]
    _, stopped = daemon.stop()
    assert (stopped["stored"], stopped["duplicate"], count(daemon.database)) == (1, 2, 1)


def test_what_is_no_record_is_answered_200_once_it_is_safe(
    daemon: RunningDaemon, port: int
) -> None:
    assert post(port, BAD)[0] == 200
    (kept,) = rows(daemon.database, "SELECT * FROM quarantine")
    assert (kept["payload"], kept["source"]) == (BAD, "http")
    assert kept["peer"].startswith("127.0.0.1:")
    for body in (other_event(1, "1.0.2"), b"a test message", b"", b"{}", b'{"a":'):
        assert post(port, body)[0] == 200
    _, stopped = daemon.stop()
    assert (stopped["received"], stopped["passed_over"], stopped["quarantined"]) == (4, 1, 3)
    assert_accounted(stopped)


def test_several_reports_in_one_request_are_each_its_own(daemon: RunningDaemon, port: int) -> None:
    body = call(1) + b"\n" + BAD + b"\n" + call(2) + other_event(1, "1.0.2") + call(3)
    assert post(port, body)[0] == 200
    assert post(port, b"[%b,%b]" % (call(4), call(5)), "Host: x")[0] == 200
    assert count(daemon.database) == 5
    _, stopped = daemon.stop()
    assert (stopped["stored"], stopped["quarantined"], stopped["passed_over"]) == (5, 1, 1)


def test_pbxs_behind_one_address_are_told_apart_by_serial(tmp_path: Path) -> None:
    tables = 'http.listen = ["127.0.0.1:0"]\n' + "".join(
        f'[[pbx]]\nname = "{name}"\npeers = ["127.0.0.0/8"]\nserial = "{serial}"\n'
        for name, serial in (("north", "111"), ("south", "222"))
    )
    with RunningDaemon(tmp_path, tables) as daemon:
        port = http_port(daemon)
        with ThreadPoolExecutor(30) as posters:
            reports = [
                new_cdr(number, "1.0.2", started=STARTED, serial=("111", "222", "333")[number % 3])
                for number in range(30)
            ]
            answers = posters.map(lambda report: post(port, report)[0], reports)
            assert set(answers) == {200}
        _, stopped = daemon.stop()
    found = [(row["pbx"], row["pbx_serial"]) for row in rows(daemon.database)]
    assert sorted(found) == [("north", "111")] * 10 + [("south", "222")] * 10
    assert stopped["quarantined"] == 10
    assert_accounted(stopped)


# Webhooks, and paths

KEY = "3G7XDQ6mEWBV5sbV"
WEBHOOK = """[pbx.events]
kind = "webhook"
secret_file = "webhook.key"
"""


def signed(body: bytes, key: str = KEY) -> str:
    return f"X-Signature: {b64encode(hmac.digest(key.encode(), body, 'sha256')).decode()}"


def test_a_webhook_is_taken_when_it_is_signed_and_else_403(tmp_path: Path) -> None:
    (tmp_path / "webhook.key").write_text(f"{KEY}\n")
    reports = [new_cdr(number, "p-series", started=STARTED) for number in range(3)]
    with RunningDaemon(tmp_path, TABLES + WEBHOOK) as daemon:
        port = http_port(daemon)

        def status(body: bytes, *headers: str) -> int:
            return post(port, body, f"Content-Length: {len(body)}", *headers)[0]

        assert status(reports[0], signed(reports[0])) == 200
        assert status(reports[1], signed(reports[0])) == 403
        assert status(reports[1], signed(reports[1], "another key")) == 403
        assert status(reports[1]) == 403
        assert status(b'{"test":"message"}', signed(b'{"test":"message"}')) == 200
        assert status(reports[1], signed(reports[1])) == 200
        with connect(port) as sock:
            sock.sendall(request(reports[2], signed(reports[2]), line="GET / HTTP/1.1"))
            assert read_status(sock) == 200  # a GET without a length, its JSON behind it
            assert read_status(sock) == 200
        found = [(row["source"], row["call_id"]) for row in rows(daemon.database)]
        assert found == [("webhook", f"{STARTED}.{number}") for number in range(3)]
        refused = daemon.wait_for("request_refused")
        assert (refused["pbx"], refused["status"], refused["count"]) == ("hq", 403, 1)
        _, stopped = daemon.stop()
    assert KEY not in daemon.text.decode()
    assert (stopped["stored"], stopped["received"]) == (3, 4)  # what is not signed is not received
    assert (stopped["events"], stopped["quarantined"]) == ({"message": 1}, 0)
    assert_accounted(stopped)


def test_over_tcp_where_nothing_is_signed_a_pbx_with_a_key_is_a_stranger(tmp_path: Path) -> None:
    (tmp_path / "webhook.key").write_text(KEY)
    with RunningDaemon(tmp_path, TABLES + WEBHOOK) as daemon:
        with connect(daemon.port) as sock, contextlib.suppress(ConnectionError):
            sock.sendall(call(1) + b"\n")
            assert sock.recv(1) == b""
        assert daemon.wait_for("peer_refused")["address"] == "127.0.0.1"
        _, stopped = daemon.stop()
    assert stopped["received"] == 0


def test_a_signed_message_that_may_tell_of_a_call_is_quarantined(tmp_path: Path) -> None:
    (tmp_path / "webhook.key").write_text(f"{KEY}\n")
    kept = [
        b'{"call_id":"1.1"}',
        b'{"sn":"1","msg":"{\\"call_id\\":\\"1.1\\"}"}',
        b'{"type":30012,"msg":"hello"}',
    ]
    passed_over = [b'{"msg":"This is a test message from the PBX."}', b'{"type":30011,"msg":"{}"}']
    with RunningDaemon(tmp_path, TABLES + WEBHOOK) as daemon:
        port = http_port(daemon)
        for body in kept + passed_over:
            assert post(port, body, f"Content-Length: {len(body)}", signed(body))[0] == 200
        found = [row["payload"] for row in rows(daemon.database, "SELECT * FROM quarantine")]
        _, stopped = daemon.stop()
    assert found == kept
    assert stopped["events"] == {"message": 1, "30011": 1}
    assert_accounted(stopped)


def test_what_is_torn_off_an_unsigned_request_is_kept_nowhere(tmp_path: Path) -> None:
    (tmp_path / "webhook.key").write_text(KEY)
    body = new_cdr(1, "p-series", started=STARTED)
    with RunningDaemon(tmp_path, TABLES + WEBHOOK) as daemon:
        with connect(http_port(daemon)) as sock:
            sock.sendall(request(body, f"Content-Length: {len(body) + 9}", signed(body + b" " * 9)))
            sock.shutdown(socket.SHUT_WR)
            assert read_status(sock) == 403
        _, stopped = daemon.stop()
    assert (stopped["received"], count(daemon.database, "quarantine")) == (0, 0)


@pytest.mark.parametrize("content", [None, "", "two\nlines"])
def test_a_key_that_cannot_be_used_is_a_fault_of_the_configuration(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "webhook.key").write_text(content)
    ended = cdrd("serve", "-c", write_config(tmp_path, TABLES + WEBHOOK))
    assert ended.returncode == 78
    assert "hq: secret_file 'webhook.key'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_path_tells_the_pbx_that_posts_to_it(tmp_path: Path) -> None:
    tables = TABLES.replace('"hq"', '"shop"') + (
        HQ + '[pbx.events]\nkind = "webhook"\npath = "/hq"\nsecret_file = "webhook.key"\n'
    )
    (tmp_path / "webhook.key").write_text(KEY)
    body, other = (new_cdr(number, "1.0.2", started=STARTED) for number in (1, 2))
    with RunningDaemon(tmp_path, tables) as daemon:
        with connect(http_port(daemon)) as sock:
            length = f"Content-Length: {len(body)}"
            sock.sendall(request(body, length, signed(body), line="POST /hq?x=1 HTTP/1.1"))
            assert read_status(sock) == 200
            sock.sendall(request(other, f"Content-Length: {len(other)}", line="POST /x HTTP/1.1"))
            assert read_status(sock) == 200
        found = [(row["pbx"], row["source"]) for row in rows(daemon.database)]
    assert found == [("hq", "webhook"), ("shop", "http")]


# HTTP


def test_a_strict_client_gets_the_answers_that_it_expects(port: int) -> None:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_SECONDS)
    for method in ("POST", "GET", "HEAD", "POST"):
        client.request(method, "/any/path?token=x", call(1) if method == "POST" else None)
        answer = client.getresponse()
        assert (answer.status, answer.reason, answer.read()) == (200, "OK", b"")
        assert answer.getheader("Connection") == "keep-alive"
        assert answer.getheader("Date", "").endswith(" GMT")
        assert client.sock is not None
    client.request("DELETE", "/")
    answer = client.getresponse()
    assert (answer.status, answer.getheader("Allow")) == (405, "POST, GET, HEAD")
    assert answer.getheader("Connection") == "close"
    assert answer.read()


@pytest.mark.parametrize("query", ["type=30012&sn=1&msg=%7B%7D", "sn=1&action=NewCdr"])
def test_an_event_in_the_query_is_refused_and_told(
    daemon: RunningDaemon, port: int, query: str
) -> None:
    with connect(port) as sock:
        sock.sendall(f"GET /cloud?{query} HTTP/1.1\r\nHost: cdrd\r\n\r\n".encode())
        assert read_status(sock) == 400
    refused = daemon.wait_for("request_refused")
    assert (refused["pbx"], refused["status"]) == ("hq", 400)
    assert "set the webhook's request method to POST" in refused["reason"]
    _, stopped = daemon.stop()
    assert stopped["received"] == 0


def test_a_request_that_cannot_be_taken_is_answered_and_told_once_a_minute(
    daemon: RunningDaemon, port: int
) -> None:
    for body, header, expected in (
        (call(1), "Content-Length: many", 400),
        (call(1), "Content-Encoding: gzip", 415),
        (call(1), "Transfer-Encoding: gzip", 501),
        (call(1), "X: " + "x" * 20_000, 431),
    ):
        status, headers, sentence = post(port, body, header)
        assert (status, headers["Connection"]) == (expected, "close")
        assert sentence.endswith(b"\n")
    _, stopped = daemon.stop()
    assert stopped["received"] == 0
    (told,) = daemon.found("request_refused")
    assert (told["status"], told["pbx"], told["count"]) == (400, "hq", 1)


def test_who_sends_far_too_much_can_read_why_it_was_refused(port: int) -> None:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_SECONDS)
    client.request("POST", "/", b"[" + b" " * (4 * MIB))
    answer = client.getresponse()
    assert answer.status == 413
    assert b"max_report_bytes = 65536" in answer.read()


def test_requests_that_are_sent_together_are_answered_in_their_order(
    daemon: RunningDaemon, port: int
) -> None:
    get = request(b"", "Host: x", line="GET / HTTP/1.1")
    stream = b"".join(request(call(number)) + b"\r\n" + get for number in range(50))
    with connect(port) as sock:
        sock.sendall(stream + request(b"", line="PUT / HTTP/1.1"))
        answered = b""
        while chunk := sock.recv(1 << 16):
            answered += chunk
    assert answered.count(b"HTTP/1.1 200 OK\r\n") == 100
    assert answered.rpartition(b"HTTP/1.1 ")[2].startswith(b"405")
    assert count(daemon.database) == 50


def test_many_requests_that_need_no_commit_are_answered_too(port: int) -> None:
    get = request(b"", "Host: x", line="GET / HTTP/1.1")
    with connect(port) as sock:
        sock.sendall(get * 3000 + request(b"", line="PUT / HTTP/1.1"))
        answered = b""
        while chunk := sock.recv(1 << 16):
            answered += chunk
    assert answered.count(b"HTTP/1.1 200 OK\r\n") == 3000


def test_who_asks_whether_to_go_on_is_told_to(daemon: RunningDaemon, port: int) -> None:
    body = call(1)
    with connect(port) as sock:
        sock.sendall(request(b"", f"Content-Length: {len(body)}", "Expect: 100-continue"))
        told = b"HTTP/1.1 100 Continue\r\n\r\n"
        assert sock.recv(len(told), socket.MSG_WAITALL) == told
        sock.sendall(body)
        assert read_status(sock) == 200
    assert count(daemon.database) == 1


def test_blanks_behind_json_without_a_length_are_no_bad_request(port: int) -> None:
    with connect(port) as sock:
        for number in range(3):
            sock.sendall(request(call(number), "Host: x"))
            assert read_status(sock) == 200
            sock.sendall(b"\r\n\r\n")


@pytest.mark.parametrize("length", [(), ("Host: x",)], ids=["a length", "no length"])
def test_a_poster_that_ends_its_side_is_answered(
    length: tuple[str, ...], daemon: RunningDaemon, port: int
) -> None:
    with connect(port) as sock:
        sock.sendall(request(call(1), *length) + request(call(2), *length))
        sock.shutdown(socket.SHUT_WR)
        answered = b""
        while chunk := sock.recv(1 << 16):
            answered += chunk
    assert answered.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert count(daemon.database) == 2


def test_a_body_that_is_cut_off_is_quarantined_and_not_answered_200(
    daemon: RunningDaemon, port: int
) -> None:
    half = call(1)[:100]
    with connect(port) as sock:
        sock.sendall(request(half, "Content-Length: 300"))
        sock.shutdown(socket.SHUT_WR)
        assert read_status(sock) == 400
    sock = known_connection(port)
    sock.sendall(request(half, "Content-Length: 300"))
    break_off(sock)
    daemon.wait_for("report_quarantined", times=2)
    kept = rows(daemon.database, "SELECT * FROM quarantine")
    assert [(row["payload"], row["reason"]) for row in kept] == [
        (half, "the request ended in the middle of a report")
    ] * 2
    _, stopped = daemon.stop()
    assert_accounted(stopped)


def test_a_length_that_is_told_too_large_costs_nothing(daemon: RunningDaemon, port: int) -> None:
    with connect(port) as sock:
        sock.sendall(request(call(1), "Content-Length: 2000"))
        sock.shutdown(socket.SHUT_WR)
        assert read_status(sock) == 200
    assert count(daemon.database) == 1


def test_who_posts_and_leaves_without_the_answer_has_a_row(
    daemon: RunningDaemon, port: int
) -> None:
    for number in range(50):
        sock = known_connection(port)
        sock.sendall(request(call(number)))
        break_off(sock) if number % 2 else sock.close()
    daemon.wait_for_calls(50)
    _, stopped = daemon.stop()
    assert (stopped["stored"], stopped["quarantined"]) == (50, 0)


def test_connections_are_not_logged_one_by_one(daemon: RunningDaemon, port: int) -> None:
    for number in range(5):
        post(port, call(number))
    daemon.wait_for_calls(5)
    daemon.stop()
    beside = ("call_released", "sqlite_outdated")
    assert [line["event"] for line in daemon.lines if line["event"] not in beside] == [
        *("started", "listener_opened", "listener_opened", "ready", "stopping", "stopped"),
    ]


def test_the_simulated_posters_are_taken_in(daemon: RunningDaemon, port: int) -> None:
    sent = send_posts("127.0.0.1", port, posters=50, count=2000, started=STARTED)
    assert (sent.reports, count(daemon.database)) == (2000, 2000)


# Who may post


def test_a_stranger_is_answered_403_and_told_once_a_minute(
    daemon: RunningDaemon, port: int
) -> None:
    for number in range(5):
        status, headers, _ = post(port, call(number), source="127.0.0.9")
        assert (status, headers["Connection"]) == (403, "close")
    with connect(port, source="127.0.0.9") as sock:
        sock.sendall(b"no HTTP at all")
        assert read_status(sock) == 403
    client = http.client.HTTPConnection("127.0.0.1", port, DEADLINE_SECONDS, ("127.0.0.9", 0))
    client.request("POST", "/", b"x" * MIB)
    assert client.getresponse().status == 403
    assert post(port, call(1))[0] == 200
    _, stopped = daemon.stop()
    assert stopped["received"] == 1
    (told,) = daemon.found("peer_refused")
    assert (told["address"], told["count"]) == ("127.0.0.9", 1)


def test_posters_that_reset_their_connections_are_no_fault_of_ours(
    daemon: RunningDaemon, port: int
) -> None:
    daemon.process.send_signal(signal.SIGSTOP)
    for number in range(60):
        sock = connect(port, source="127.0.0.9" if number % 3 == 0 else "")
        if number % 2:
            sock.sendall(request(call(number))[: number * 5])
        break_off(sock)
    daemon.process.send_signal(signal.SIGCONT)
    assert post(port, call(1))[0] == 200
    assert daemon.stop()[0] == 0


# Nothing is lost, and nothing doubled


def test_while_the_database_is_locked_the_answer_is_503_and_the_repeat_is_one_row(
    daemon: RunningDaemon, port: int
) -> None:
    with held_lock(daemon.database):
        status, headers, _ = post(port, call(1))
        assert (status, headers["Connection"]) == (503, "close")
        assert int(headers["Retry-After"]) > 0
    daemon.wait_for("call_released")  # it was kept
    assert post(port, call(1))[0] == 200
    _, stopped = daemon.stop()
    assert (stopped["stored"], stopped["duplicate"]) == (1, 1)


class Posters:
    """Posts from many threads until the daemon is gone, and what was answered."""

    def __init__(self, port: int, threads: int = 30) -> None:
        self._port = port
        self.answered: set[int] = set()
        self.enough = threading.Event()
        self._threads = [
            threading.Thread(target=self._post, args=(first,)) for first in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def _post(self, first: int) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            for number in range(first, 1_000_000, len(self._threads)):
                status, _, _ = post(self._port, call(number))
                assert status == 200
                self.answered.add(number)
                if len(self.answered) > 500:
                    self.enough.set()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(DEADLINE_SECONDS)


def call_numbers(database: Path) -> set[int]:
    return {int(row["call_id"].partition(".")[2]) for row in rows(database)}


def test_every_post_answered_before_a_crash_is_a_row(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path, TABLES) as daemon:
        posters = Posters(http_port(daemon))
        assert posters.enough.wait(DEADLINE_SECONDS)
        daemon.kill()
        posters.join()
    with RunningDaemon(tmp_path, TABLES) as daemon:
        daemon.wait_for("ready")
        daemon.stop()
    assert len(posters.answered) > 500
    assert posters.answered <= call_numbers(daemon.database)


def test_sigterm_while_more_is_posted_ends_with_the_exact_account(
    daemon: RunningDaemon, port: int
) -> None:
    posters = Posters(port)
    assert posters.enough.wait(DEADLINE_SECONDS)
    status, stopped = daemon.stop()
    posters.join()
    assert status == 0
    assert_accounted(stopped)
    assert stopped["stored"] == count(daemon.database)
    assert posters.answered <= call_numbers(daemon.database)
    assert_each_row_is_logged(daemon.database, daemon.found("call_released"))


def test_at_sigterm_what_is_whole_is_answered_and_what_is_not_is_closed(
    daemon: RunningDaemon, port: int
) -> None:
    with contextlib.ExitStack() as held:
        daemon.process.send_signal(signal.SIGSTOP)
        whole = [held.enter_context(connect(port)) for _ in range(20)]
        for number, sock in enumerate(whole):
            sock.sendall(request(call(number)))
        half, silent = held.enter_context(connect(port)), held.enter_context(connect(port))
        half.sendall(request(call(99))[:-5])
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.send_signal(signal.SIGCONT)
        assert [read_status(sock) for sock in whole] == [200] * 20
        assert half.recv(1) == silent.recv(1) == b""
        status, stopped = daemon.wait_for_end()
    assert (status, stopped["stored"], stopped["quarantined"]) == (0, 20, 1)
    assert_accounted(stopped)


# Bounds, in one process with a clock of its own


@dataclass
class Bench:
    """All between the sockets and the database, with bounds of tenths of a second."""

    path: Path
    waiting: Waiting
    totals: Totals
    connections: HttpConnections
    writer: Writer
    port: int

    def stored(self) -> int:
        return count(self.path)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def post(self, body: bytes) -> int:
        reader, writer = await self.connect()
        writer.write(request(body))
        status = await status_of(reader)
        writer.close()
        return status


async def status_of(reader: asyncio.StreamReader) -> int:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SOON)
    return int(head.split()[1])


@contextlib.asynccontextmanager
async def opened(
    directory: Path, bounds: Bounds, *, max_bytes: int = MIB, committing: bool = True
) -> AsyncIterator[Bench]:
    """Make a bench; one that does not commit is like one whose database takes nothing."""
    path = directory / "cdr.sqlite3"
    store = await Store.open(path, "normal")
    descriptor = os.open(os.devnull, os.O_WRONLY)
    lines = LineWriter(descriptor)
    log = make_logger(lines)
    waiting, totals = Waiting(max_bytes), Totals()
    intake = Intake(waiting, totals, log=log, max_report_bytes=64 * KIB)
    sender = Sender("hq", ZoneInfo("UTC"), (ip_network("127.0.0.1"),))
    listener = Listener(intake, [sender], log)
    connections = HttpConnections(intake, listener, entrances([Door(sender)]), log, bounds)
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
    server = await asyncio.get_running_loop().create_server(connections.accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    task = asyncio.create_task(writer.run()) if committing else None
    try:
        async with asyncio.timeout(SOON):
            yield Bench(path, waiting, totals, connections, writer, port)
            connections.stop()
            writer.stop()
            await (task or asyncio.create_task(writer.run()))
            await connections.close()
    finally:
        server.close()
        writer.stop()
        if task is not None:
            await task  # what it was storing when the test failed would else never end
        await store.close(0)
        lines.close(SOON)
        os.close(descriptor)


def on_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    uvloop.run(test())


def test_a_slow_poster_is_answered_408_and_delays_nobody(tmp_path: Path) -> None:
    async def drip(bench: Bench) -> int:
        """Send a byte at a time, more slowly than a request may take."""
        reader, writer = await bench.connect()
        answered = asyncio.create_task(status_of(reader))
        for byte in request(call(0)):
            writer.write(bytes([byte]))
            await asyncio.wait([answered], timeout=0.02)
            if answered.done():
                break
        writer.close()
        return await answered

    async def test() -> None:
        async with opened(tmp_path, Bounds(request=3)) as bench:
            slow = [asyncio.create_task(drip(bench)) for _ in range(50)]
            others = [await bench.post(call(number)) for number in range(1, 30)]
            assert set(others) == {200}
            assert not any(poster.done() for poster in slow)
            assert await asyncio.gather(*slow) == [408] * 50
            assert bench.stored() == 29

    on_a_loop(test)


def test_who_stops_in_the_middle_is_answered_408_and_what_came_is_quarantined(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        async with opened(tmp_path, Bounds(request=0.1)) as bench:
            for stream in (b"", b"POST", request(b"", "Host: x"), request(call(1))[:-9]):
                reader, writer = await bench.connect()
                writer.write(stream)
                assert await status_of(reader) == 408
                writer.close()
            if bench.waiting:
                committed = asyncio.Event()
                bench.waiting.when_committed(committed.set)
                await committed.wait()
                await asyncio.sleep(0)  # the totals follow
            assert (bench.totals.received, bench.totals.quarantined) == (1, 1)

    on_a_loop(test)


def test_a_connection_that_is_idle_is_closed_and_not_before(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path, Bounds(request=0.05, idle=0.4)) as bench:
            reader, writer = await bench.connect()
            began = asyncio.get_running_loop().time()
            writer.write(request(call(1)))
            assert await status_of(reader) == 200
            writer.write(b"\r\n")
            assert await reader.read() == b""
            assert asyncio.get_running_loop().time() - began >= 0.4
            writer.close()

    on_a_loop(test)


def test_who_does_not_close_after_the_last_answer_is_reset(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path, Bounds(linger=0.1)) as bench:
            reader, writer = await bench.connect()
            writer.write(b"{}")
            assert await status_of(reader) == 400
            writer.write(b"x" * 10_000)
            await bench.connections._deserted.wait()
            writer.close()

    on_a_loop(test)


def test_who_reads_no_answer_is_dropped(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path, Bounds()) as bench:
            loop = asyncio.get_running_loop()
            with socket.create_connection(("127.0.0.1", bench.port)) as sock:
                sock.setblocking(False)
                with pytest.raises(ConnectionError):
                    await loop.sock_sendall(sock, b"GET / HTTP/1.1\r\n\r\n" * 10**6)
            await bench.connections._deserted.wait()

    on_a_loop(test)


def test_what_a_503_answered_is_in_custody_and_its_repeat_a_duplicate(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path, Bounds(answer=0.1), committing=False) as bench:
            assert [await bench.post(call(1)) for _ in range(3)] == [503] * 3
            assert (len(bench.waiting), bench.stored()) == (3, 0)
            committing = asyncio.create_task(bench.writer.run())
            assert await bench.post(call(1)) == 200
            assert (bench.totals.stored, bench.totals.duplicate) == (1, 3)
            bench.writer.stop()
            await committing

    on_a_loop(test)


def test_what_waits_stays_bounded_however_often_the_posters_come_again(tmp_path: Path) -> None:
    async def test() -> None:
        bounds = Bounds(answer=0.1)
        async with opened(tmp_path, bounds, max_bytes=1, committing=False) as bench:
            assert await bench.post(call(0)) == 503
            for _ in range(3):
                answers = await asyncio.gather(*map(bench.post, map(call, range(20))))
                assert answers == [503] * 20
            assert len(bench.waiting) == bench.totals.received == 1
            assert not bench.connections._held

    on_a_loop(test)


def test_a_report_that_finds_no_room_in_time_is_told_as_a_gap(tmp_path: Path) -> None:
    async def test() -> None:
        bounds = Bounds(answer=0.1)
        async with opened(tmp_path, bounds, max_bytes=1, committing=False) as bench:
            gaps = Gaps()
            bench.connections.intake.tell_gaps(gaps)
            assert await bench.post(call(0)) == 503
            assert gaps.told == []  # it is in custody
            assert await bench.post(call(1)) == 503
            assert gaps.told == ["hq missed"]

    on_a_loop(test)


def test_requests_that_find_no_room_are_taken_when_there_is(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path, Bounds(), max_bytes=1) as bench:
            answers = await asyncio.gather(*map(bench.post, map(call, range(300))))
            assert (set(answers), bench.stored()) == ({200}, 300)

    on_a_loop(test)


def test_a_get_and_an_event_do_not_wait_for_the_database(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path, Bounds(answer=SOON), committing=False) as bench:
            reader, writer = await bench.connect()
            writer.write(request(b"", line="GET / HTTP/1.1") + request(other_event(1, "1.0.2")))
            assert [await status_of(reader), await status_of(reader)] == [200, 200]
            writer.close()

    on_a_loop(test)
