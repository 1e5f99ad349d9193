"""What systemd does with descriptors, for the tests: it keeps them and passes them on.

As a program (``python -m tests.manager NAME=FD... -- COMMAND...``) it is the moment before a
service is executed: the descriptors become 3, 4, ... and the environment says so.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.running import DEADLINE_SECONDS, HQ, RunningDaemon

FIRST = 3
ASIDE = 200


class Manager:
    """A service manager: its notification socket, and the store of one service."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self._changed = threading.Condition()
        self.store: dict[str, int] = {}
        self.listeners: dict[str, socket.socket] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"END", str(self._path))
        self._reader.join(DEADLINE_SECONDS)
        self._socket.close()
        for descriptor in self.store.values():
            os.close(descriptor)
        for listener in self.listeners.values():
            listener.close()

    def listen(self, name: str) -> int:
        """Listen as a socket unit does; return the port."""
        self.listeners[name] = socket.create_server(("127.0.0.1", 0))
        return int(self.listeners[name].getsockname()[1])

    def start(
        self,
        tables: str = HQ,
        listen: Sequence[str] = ("127.0.0.1:0",),
        inside: Sequence[str] = (),
    ) -> RunningDaemon:
        """Start the daemon with all that is kept for it; ``inside``: a command that runs it."""
        passed = {name: listener.fileno() for name, listener in self.listeners.items()}
        passed |= self.store
        told = [f"{name}={descriptor}" for name, descriptor in passed.items()]
        return RunningDaemon(
            self._directory,
            tables,
            listen=listen,
            environment={"NOTIFY_SOCKET": str(self._path)},
            inside=[sys.executable, "-m", "tests.manager", *told, "--", *inside],
            descriptors=list(passed.values()),
        )

    def wait_for_store(self, number: int) -> list[str]:
        """Wait until so many descriptors are kept; return their names."""
        with self._changed:
            kept = self._changed.wait_for(lambda: len(self.store) == number, DEADLINE_SECONDS)
            assert kept, (number, self.store)
            return sorted(self.store)

    def _read(self) -> None:
        while True:
            message, descriptors, _, _ = socket.recv_fds(self._socket, 4096, 8)
            if message == b"END":
                return
            lines = message.decode().splitlines()
            told = dict(line.partition("=")[::2] for line in lines)
            with self._changed:
                self._take(told, descriptors)
                self._changed.notify_all()

    def _take(self, told: Mapping[str, str], descriptors: Sequence[int]) -> None:
        name = told.get("FDNAME", "")
        if "FDSTOREREMOVE" in told and name in self.store:
            os.close(self.store.pop(name))
        elif "FDSTORE" in told:
            assert len(descriptors) == 1, told
            assert told.get("FDPOLL") == ("0" if name == "rests" else None)
            if name in self.store:
                os.close(self.store[name])
            self.store[name] = descriptors[0]


def main() -> None:
    """Put the descriptors where a service finds them, and become the service."""
    end = sys.argv.index("--")
    names = []
    for number, told in enumerate(sys.argv[1:end]):
        name, _, descriptor = told.rpartition("=")
        names.append(name)
        os.dup2(int(descriptor), ASIDE + number)
        os.close(int(descriptor))
    for number in range(len(names)):
        os.dup2(ASIDE + number, FIRST + number)
        os.close(ASIDE + number)
    told_env = {
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDS": str(len(names)),
        "LISTEN_FDNAMES": ":".join(names),
    }
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execve(sys.argv[end + 1], sys.argv[end + 1 :], os.environ | told_env)


if __name__ == "__main__":
    main()
