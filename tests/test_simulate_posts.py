"""Each number is posted, on a connection of its own, until it has had its 200."""

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Iterator

import orjson
import pytest

from cdrd.address import format_address
from cdrd.simulate import posts
from cdrd.simulate.posts import send_posts
from cdrd.simulate.reports import DIALECTS, new_cdr
from cdrd.simulate.sent import LoadFailed
from tests.running import cdrd

STARTED = 1571897930
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Sink:
    """A daemon that keeps the body of each post, and answers what it is told to at first."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers)
        self.bodies: list[bytes] = []
        self.heads: list[bytes] = []
        self._server = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.address = self._server.getsockname()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._server.accept()
                with sock:
                    self._take(sock)

    def _take(self, sock: socket.socket) -> None:
        head, _, body = sock.recv(1 << 16).partition(b"\r\n\r\n")
        length = int(head.rpartition(b"Content-Length: ")[2])
        while len(body) < length:
            body += sock.recv(1 << 16)
        self.heads.append(head)
        self.bodies.append(body)
        sock.sendall(self._answers.pop(0) if self._answers else OK)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()

    def call_ids(self) -> Counter[str]:
        return Counter(orjson.loads(body)["callid"] for body in self.bodies)


@contextlib.contextmanager
def listening(*answers: bytes) -> Iterator[Sink]:
    sink = Sink(*answers)
    try:
        yield sink
    finally:
        sink.close()


def expected(first: int, count: int) -> Counter[str]:
    numbers = range(first, first + count)
    return Counter(f"{STARTED + number // 50 - first // 50}.{number}" for number in numbers)


@pytest.mark.parametrize(("first", "count"), [(0, 200), (987, 130), (5, 1), (0, 0)])
def test_each_call_is_posted_exactly_once(first: int, count: int) -> None:
    with listening() as sink:
        sent = send_posts(*sink.address, count=count, first=first, started=STARTED)
    assert sink.call_ids() == expected(first, count)
    assert (sent.reports, sent.events) == (count, 0)
    wire = sum(
        len(head) + 4 + len(body) for head, body in zip(sink.heads, sink.bodies, strict=True)
    )
    assert sent.bytes == wire


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_post_is_the_report_of_its_number(dialect: str) -> None:
    with listening() as sink:
        send_posts(
            *sink.address, count=60, dialect=dialect, first=90, started=STARTED, utc_offset=120
        )
    assert sorted(sink.bodies) == sorted(
        new_cdr(number, dialect, started=STARTED + number // 50 - 1, utc_offset=120)
        for number in range(90, 150)
    )


def test_what_is_not_answered_200_is_posted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posts, "PAUSE_SECONDS", 0.01)
    with listening(b"HTTP/1.1 503 Service Unavailable\r\n\r\n", OK, b"", b"nonsense") as sink:
        sent = send_posts(*sink.address, posters=2, count=10, started=STARTED)
    assert sent.reports == 10
    assert sink.call_ids().total() == 13
    assert set(sink.call_ids()) == set(expected(0, 10))


def test_a_post_without_an_answer_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posts, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(posts, "ANSWER_SECONDS", 0.05)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(LoadFailed, match="no answer; 0 of 3 were answered 200"),
    ):
        send_posts(*silent.getsockname(), count=3, started=STARTED, tries=2)


def test_a_daemon_that_is_not_there_is_told_in_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        host, port = taken.getsockname()
    with pytest.raises(LoadFailed) as failed:
        send_posts(host, port, count=3, started=STARTED, tries=1)
    where = format_address(host, port)
    told = "Connection refused; 0 of 3 were answered 200"
    assert str(failed.value) == f"{where} did not take a report: {told}"


def test_a_rate_is_kept() -> None:
    with listening() as sink:
        sent = send_posts(*sink.address, count=20, rate=200, started=STARTED)
    assert sent.seconds >= 19 / 200 - 0.005
    assert sink.call_ids() == expected(0, 20)


def test_an_unknown_dialect_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match=r'"3\.0" is no dialect'):
        send_posts("127.0.0.1", 1, count=1, dialect="3.0", started=STARTED)


def test_the_command_prints_what_it_posted() -> None:
    with listening() as sink:
        where = format_address(*sink.address)
        ended = cdrd("simulate", "load", where, "--http", "--count", "100", "--connections", "5")
    assert (ended.returncode, ended.stderr) == (0, "")
    summary = orjson.loads(ended.stdout)
    assert list(summary) == ["reports", "events", "bytes", "seconds", "rate"]
    assert summary["reports"] == len(sink.call_ids()) == 100


def test_events_and_delimiters_are_not_for_posts() -> None:
    for option in ("--events=1", "--delimiter=crlf"):
        ended = cdrd("simulate", "load", "127.0.0.1:1", "--http", option)
        assert (ended.returncode, "take --events and --delimiter out" in ended.stderr) == (2, True)
