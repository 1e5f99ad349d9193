"""The real programs as subprocesses: the daemon with its log, and a command with its result.

Nothing here sleeps or polls: a wait blocks until the log has the line, and fails at a deadline with
what the log had instead.
"""

import contextlib
import fcntl
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

Line = dict[str, Any]

DEADLINE_SECONDS = 60
"""A wait that fails takes so long: a machine may have much else to do."""

CALL_RELEASED = "call_released"
HQ = '[[pbx]]\nname = "hq"\npeers = ["127.0.0.1"]\n'


def write_config(
    directory: Path, tables: str = HQ, listen: Sequence[str] = ("127.0.0.1:0",)
) -> Path:
    """Write a configuration whose database stands beside it."""
    path = directory / "config.toml"
    database = directory / "cdr.sqlite3"
    head = f'database.path = "{database}"\ntcp.listen = {orjson.dumps(listen).decode()}\n'
    path.write_text(head + tables)
    return path


def cdrd(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "cdrd", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


def rows(database: Path, query: str = "SELECT * FROM calls ORDER BY seq") -> list[sqlite3.Row]:
    """Read as any other program does: read-only."""
    reader = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)
    try:
        reader.row_factory = sqlite3.Row
        return reader.execute(query).fetchall()
    finally:
        reader.close()


def count(database: Path, view: str = "calls") -> int:
    """How many rows a view has."""
    (row,) = rows(database, f"SELECT count(*) FROM {view}")
    return int(row[0])


def counted_logins(database: Path) -> int:
    """How many logins to the PBX count as refused."""
    with contextlib.suppress(FileNotFoundError):
        return len(Path(f"{database}.logins").read_bytes().splitlines())
    return 0


def send(port: int, *pieces: bytes, host: str = "127.0.0.1", source: str = "") -> None:
    """Send over a connection of its own, a write for each piece, and end it in order.

    Returns when the daemon has closed it too, so all of it has been read.
    """
    with connect(port, host=host, source=source) as sock:
        for piece in pieces:
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""


def connect(port: int, *, host: str = "127.0.0.1", source: str = "") -> socket.socket:
    """Connect to the daemon, from another loopback address where one is named."""
    sock = socket.create_connection((host, port), DEADLINE_SECONDS, (source, 0) if source else None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class RunningDaemon:
    """``cdrd serve`` in a directory of its own, and the log lines it has written so far."""

    def __init__(
        self,
        directory: Path,
        tables: str = HQ,
        *,
        listen: Sequence[str] = ("127.0.0.1:0",),
        environment: dict[str, str] | None = None,
        read_log: bool = True,
        journal: bool = False,
        inside: Sequence[str] = (),
        descriptors: Sequence[int] = (),
    ) -> None:
        """Start it; ``read_log=False`` leaves its stdout unread, ``journal`` acts as journald.

        ``inside``: a command that runs another, in a network of its own for one; ``descriptors``
        are open in it.
        """
        self.directory = directory
        self.database = directory / "cdr.sqlite3"
        self.config = write_config(directory, tables, listen)
        self.lines: list[Line] = []
        self._calls: dict[str, Line] = {}
        self._chunks: list[bytes] = []
        self._changed = threading.Condition()
        self._ended = False
        self._log, stdout = os.pipe()
        status = os.fstat(stdout)
        stream = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"} if journal else {}
        with (directory / "stderr").open("wb") as stderr:
            self.process = subprocess.Popen(
                [*inside, sys.executable, "-m", "cdrd", "serve", "-c", self.config],
                stdout=stdout,
                stderr=stderr,
                env=os.environ | stream | (environment or {}),
                pass_fds=descriptors,
            )
        os.close(stdout)
        self._reader = threading.Thread(target=self._read, daemon=True)
        if read_log:
            self.read_log()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        os.close(self._log)

    def read_log(self) -> None:
        """Begin to read its stdout: for a daemon whose log was left unread."""
        self._reader.start()

    @property
    def stderr(self) -> str:
        """What it has said on stderr."""
        return (self.directory / "stderr").read_text()

    @property
    def text(self) -> bytes:
        """What it has logged so far, as it came."""
        return b"".join(self._chunks)

    @property
    def ports(self) -> list[int]:
        """The ports it listens on, in the order of the configuration."""
        self.wait_for("ready")
        opened = [line for line in self.lines if line["event"] == "listener_opened"]
        return [int(line["address"].rpartition(":")[2]) for line in opened]

    @property
    def port(self) -> int:
        """The first port it listens on."""
        return self.ports[0]

    def found(self, event: str, **fields: object) -> list[Line]:
        """The lines so far of an event with these fields."""
        wanted = {"event": event} | fields
        return [line for line in list(self.lines) if wanted.items() <= line.items()]

    def wait_for(
        self, event: str, *, times: int = 1, within: float = DEADLINE_SECONDS, **fields: object
    ) -> Line:
        """Wait until an event with these fields was logged so many times; return that line.

        ``within``: seconds.
        """
        position, seen = 0, 0
        deadline = time.monotonic() + within
        wanted = {"event": event} | fields
        with self._changed:
            while True:
                for line in self.lines[position:]:
                    seen += all(line.get(name) == value for name, value in wanted.items())
                    if seen == times:
                        return line
                position = len(self.lines)
                left = deadline - time.monotonic()
                if self._ended or not self._changed.wait(left):
                    raise AssertionError(f"{times} x {wanted} was not logged: {self._tail()}")

    def wait_for_call(self, call_id: str) -> Line:
        """Wait until a call was logged; return its line, however many there are."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or call_id in self._calls, DEADLINE_SECONDS)
            assert call_id in self._calls, f"{call_id} was not logged: {self._tail()}"
            return self._calls[call_id]

    def wait_for_calls(self, number: int) -> list[Line]:
        """Wait until so many calls were logged; return their lines."""
        self.wait_for("call_released", times=number)
        return self.found("call_released")

    def stop(self) -> tuple[int, Line]:
        """Send SIGTERM; return the exit status and the line ``stopped``."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait_for_end()

    def wait_for_end(self) -> tuple[int, Line]:
        """Wait until it has ended; return the exit status and the last line."""
        status = self.process.wait(DEADLINE_SECONDS)
        self._reader.join(DEADLINE_SECONDS)
        assert self.lines, self._tail()
        return status, self.lines[-1]

    def kill(self) -> None:
        """Kill it as a crash would, and wait until it is gone, and its process that stores too."""
        self.process.kill()
        self.process.wait(DEADLINE_SECONDS)
        with contextlib.suppress(FileNotFoundError), Path(f"{self.database}.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
        if self._reader.ident is not None:
            self._reader.join(DEADLINE_SECONDS)

    def storing_process(self) -> int:
        """The id of its process that stores."""
        process = str(self.process.pid)
        return int(Path("/proc", process, "task", process, "children").read_text())

    def memory_peak(self) -> int:
        """The most bytes of memory that its processes have had so far."""
        processes = (self.process.pid, self.storing_process())
        statuses = [Path(f"/proc/{process}/status").read_text() for process in processes]
        return sum(int(each.partition("VmHWM:")[2].split()[0]) for each in statuses) * 1024

    def _read(self) -> None:
        rest = b""
        while chunk := os.read(self._log, 1 << 16):
            *complete, rest = (rest + chunk).split(b"\n")
            with self._changed:
                self._take(chunk, complete)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _take(self, chunk: bytes, lines: Sequence[bytes]) -> None:
        self._chunks.append(chunk)
        parsed = [parsed_line(line) for line in lines]
        self.lines += parsed
        self._calls |= {line["call_id"]: line for line in parsed if line["event"] == CALL_RELEASED}

    def _tail(self) -> str:
        return f"{self.lines[-20:]}\nstderr: {self.stderr}"


def assert_accounted(stopped: Line) -> None:
    """Hold the last line of a run to its identity."""
    assert stopped["event"] == "stopped", stopped
    parts = ("stored", "duplicate", "quarantined", "passed_over", "spooled")
    assert stopped["received"] == sum(stopped[part] for part in parts), stopped


def assert_each_row_is_logged(database: Path, logged: Iterable[Line]) -> None:
    """Hold the log to the database: each row its line, each line its row."""
    lines = {line["seq"]: line for line in logged}
    stored = rows(database)
    assert lines.keys() == {row["seq"] for row in stored}
    for row in stored:
        line = lines[row["seq"]]
        for name in line.keys() - {"timestamp", "level", "event"}:
            assert line[name] == row[name], (name, line, dict(row))


def parsed_line(line: bytes) -> Line:
    parsed: Line = orjson.loads(line[line.index(b"{") :])
    return parsed
