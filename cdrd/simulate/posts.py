"""Turns a range of numbers into HTTP posts, a new connection for each, as PBXs send their reports.

What is not answered 200 is posted again, as a PBX does: in the end each number has had its 200. It
costs little (some 90 us of CPU a post), to be the sender of a benchmark on the same machine.
"""

import contextlib
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from cdrd.address import format_address
from cdrd.simulate.arguments import reason
from cdrd.simulate.reports import CALLS_A_SECOND, ReportForms
from cdrd.simulate.sent import LoadFailed, Sent

ANSWER_SECONDS: Final = 10.0
PAUSE_SECONDS: Final = 1.0
"""A post that failed is made again after so long."""

_TURN_SECONDS = 0.1


def send_posts(  # noqa: PLR0913 - by name, each with a default
    host: str,
    port: int,
    *,
    posters: int = 16,
    count: int,
    rate: float = 0,
    dialect: str = "1.0.2",
    first: int = 0,
    started: int,
    utc_offset: int = 0,
    tries: int = 20,
    progress: Callable[[int], None] | None = None,
) -> Sent:
    """Post the calls `first` to `first + count - 1`, `posters` of them at a time at most.

    `rate` is posts a second of all posters together (0: flat out). The first call begins at
    `started` (UTC epoch), and 50 calls begin in each second. `progress` is told how many posts have
    been answered 200. Raises LoadFailed when a report has been posted `tries` times without a 200,
    ValueError for an unknown dialect.
    """
    forms = ReportForms(dialect, first=first, started=started, utc_offset=utc_offset)
    where = format_address(host, port)
    try:
        [(family, _, _, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise LoadFailed(f"cannot find {where}: {reason(error)}") from error
    requests = _requests(forms, range(first, first + count), where)
    with contextlib.closing(_Posting(requests, family, address, posters, rate)) as posting:
        began = time.perf_counter()
        while posting.answered < count:
            posting.turn(tries)
            if posting.failed:
                told = f"{posting.answered:,} of {count:,} were answered 200"
                raise LoadFailed(f"{where} did not take a report: {posting.failed}; {told}")
            if progress is not None:
                progress(posting.answered)
        return Sent(posting.answered, 0, posting.bytes, time.perf_counter() - began)


def _requests(forms: ReportForms, numbers: range, host: str) -> Iterator[bytes]:
    head = (
        f"POST / HTTP/1.1\r\nUser-Agent: WebAPI\r\nHost: {host}\r\nAccept: application/json\r\n"
        "Content-Type: application/json\r\nContent-Length: "
    ).encode()
    for start in range(numbers.start, numbers.stop, CALLS_A_SECOND):
        block = forms.stamp(range(start, min(start + CALLS_A_SECOND, numbers.stop)))
        for report in block.splitlines():
            yield b"%b%d\r\n\r\n%b" % (head, len(report), report)


@dataclass(slots=True)
class _Post:
    """A request on its way, with when its answer is due or its next try is (monotonic seconds)."""

    request: bytes
    sock: socket.socket
    due: float
    tries: int = 1
    is_sent: bool = False


class _Posting:
    """The posts that are on their way, and those that have failed and will be made again.

    `address` is of the form that the family has.
    """

    def __init__(
        self,
        requests: Iterator[bytes],
        family: int,
        address: tuple[Any, ...],
        posters: int,
        rate: float,
    ) -> None:
        self._requests, self._family, self._address = requests, family, address
        self._posters, self._rate = posters, rate
        self._poll = select.epoll()
        self._posts: dict[int, _Post] = {}
        self._again: deque[_Post] = deque()
        self._began = time.monotonic()
        self._begun = 0
        self._looked = self._began
        self.answered = self.bytes = 0
        self._last_fault = ""
        self.failed = ""

    def close(self) -> None:
        """End what is still open."""
        for post in self._posts.values():
            post.sock.close()
        self._poll.close()

    def turn(self, tries: int) -> None:
        """Begin what is due, then wait for answers, a tenth of a second at most."""
        now = time.monotonic()
        while self._again and self._again[0].due <= now:
            post = self._again.popleft()
            self._begin(post.request, post.tries + 1)
        for descriptor, _ in self._poll.poll(self._begin_new(now)):
            self._go_on(self._posts[descriptor])
        if now - self._looked > PAUSE_SECONDS:
            self._looked = now
            for post in [post for post in self._posts.values() if post.due < now]:
                self._fail(post, "no answer")
        if any(post.tries >= tries for post in self._again):
            self.failed = self._last_fault

    def _begin_new(self, now: float) -> float:
        """Begin the posts that are due; return the seconds until the next one may be."""
        while len(self._posts) + len(self._again) < self._posters:
            early = self._began + self._begun / self._rate - now if self._rate else 0.0
            if early > 0:
                return min(early, _TURN_SECONDS)
            request = next(self._requests, None)
            if request is None:
                break
            self._begun += 1
            self._begin(request, 1)
        return _TURN_SECONDS

    def _begin(self, request: bytes, tries: int) -> None:
        sock = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        post = _Post(request, sock, time.monotonic() + ANSWER_SECONDS, tries)
        self._posts[sock.fileno()] = post
        try:
            with contextlib.suppress(BlockingIOError):
                sock.connect(self._address)
            self._poll.register(sock, select.EPOLLOUT)
        except OSError as error:
            self._fail(post, reason(error))
            return
        self._go_on(post)  # on one machine it is connected by now

    def _go_on(self, post: _Post) -> None:
        try:
            if post.is_sent:
                self._take_answer(post, post.sock.recv(4096))
            elif post.sock.send(post.request) == len(post.request):
                post.is_sent = True
                self._poll.modify(post.sock, select.EPOLLIN)
            else:
                self._fail(post, "the request did not go out whole")
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(post, reason(error))

    def _take_answer(self, post: _Post, answer: bytes) -> None:
        if not answer.startswith(b"HTTP/1.1 200 "):
            self._fail(post, answer.partition(b"\r\n")[0].decode("latin-1") or "no answer")
            return
        self._drop(post)
        self.answered += 1
        self.bytes += len(post.request)

    def _fail(self, post: _Post, why: str) -> None:
        """Let a post be made again."""
        self._drop(post)
        self._last_fault = why
        post.due = time.monotonic() + PAUSE_SECONDS
        self._again.append(post)

    def _drop(self, post: _Post) -> None:
        del self._posts[post.sock.fileno()]
        post.sock.close()
