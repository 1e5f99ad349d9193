"""A PBX that knows what it has sent, and when: what the database is compared with."""

import contextlib
import socket
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from cdrd.simulate.reports import new_cdr
from tests.running import DEADLINE_SECONDS, Line, connect

STARTED = 1571897930
BLOCK = 20
"""Reports in one write."""


class Sent(NamedTuple):
    """A report that the kernel has taken: its number, and when (monotonic seconds)."""

    number: int
    at: float


class SendingPbx:
    """Sends calls, each with a number of its own, over one connection, until that breaks."""

    def __init__(
        self,
        port: int | socket.socket,
        first: int = 0,
        *,
        rate: float = 0,
        source: str = "",
        mixed: bool = False,
        padding: int = 0,
    ) -> None:
        """``port``: of the daemon, or a connection to it; ``rate``: calls a second, 0 is flat out.

        ``mixed``: each block of them has a known call, an unreadable one and another event too;
        ``padding``: so many bytes are added to each call.
        """
        self.sent: list[Sent] = []
        self.next = first
        self.broken = False
        self.blocks = 0
        self._rate = rate
        self._mixed = mixed
        self._ending = b',"padding":"%b"}\n' % (b"x" * padding) if padding else b"}\n"
        self._sock = port if isinstance(port, socket.socket) else connect(port, source=source)
        self._stop = threading.Event()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self._sock.close()

    def stop(self) -> None:
        """Send no more; the connection stays."""
        self._stop.set()
        self._thread.join(DEADLINE_SECONDS)

    @property
    def numbers(self) -> set[int]:
        """The numbers of what was sent."""
        return {sent.number for sent in self.sent}

    @property
    def last_call_id(self) -> str:
        """The id of the last call that was sent; waits for the first."""
        assert self._begun.wait(DEADLINE_SECONDS)
        return call_id(self.sent[-1].number)

    def _send(self) -> None:
        began = time.monotonic()
        while not self._stop.is_set():
            block = range(self.next, self.next + BLOCK)
            try:
                self._sock.sendall(b"".join(map(self._call, block)) + self._others(block[0]))
            except OSError:
                self.broken = True  # nobody knows how much of the block has arrived
                self.next = block.stop
                return
            now = time.monotonic()
            self.sent += (Sent(number, now) for number in block)
            self.next = block.stop
            self.blocks += 1
            self._begun.set()
            if self._rate:
                self._stop.wait(began + len(self.sent) / self._rate - now)

    def _call(self, number: int) -> bytes:
        return call(number).removesuffix(b"}\n") + self._ending

    def _others(self, number: int) -> bytes:
        if not self._mixed:
            return b""
        unreadable = b'{"action":"NewCdr","callid":"%d.x","timestart":"soon"}\n' % number
        return call(number) + unreadable + b'{"action":"ExtensionStatus"}\n'

    @property
    def reports(self) -> int:
        """How many reports of all kinds were sent."""
        return len(self.sent) + self.blocks * 3 * self._mixed

    @property
    def unreadable(self) -> int:
        """How many of them can be no call."""
        return self.blocks * self._mixed


def call(number: int) -> bytes:
    """Report the call of a number."""
    return new_cdr(number, started=STARTED) + b"\n"


def call_id(number: int) -> str:
    """Spell the id of the call of a number."""
    return f"{STARTED}.{number}"


class Stored(NamedTuple):
    """What a database holds."""

    numbers: list[int]  # of the calls, in the order stored
    by_seq: dict[int, str]
    sound: bool


def read(database: Path) -> Stored:
    """Read a database as any other program does, and look whether it is whole."""
    with contextlib.closing(
        sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=DEADLINE_SECONDS)
    ) as reader:
        rows = reader.execute("SELECT seq, call_id FROM calls ORDER BY seq").fetchall()
        (said,) = reader.execute("PRAGMA integrity_check").fetchone()
    numbers = [int(call_id.partition(".")[2]) for _, call_id in rows]
    return Stored(numbers, dict(rows), said == "ok")


def logged_but_missing(stored: Stored, logged: Sequence[Line]) -> list[Line]:
    """Return the lines of calls that are no row."""
    return [line for line in logged if stored.by_seq.get(line["seq"]) != line["call_id"]]
