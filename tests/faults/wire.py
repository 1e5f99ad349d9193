"""A line between the daemon and a PBX that can be cut, and mended."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class Wire:
    """Passes on what is said either way; cut, it ends all connections and refuses new ones."""

    def __init__(self, address: str) -> None:
        """Lead to an address of this machine."""
        self._there = ("127.0.0.1", int(address.rpartition(":")[2]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._let_in_from(self._listener)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cut()
        self._listener.close()

    def cut(self) -> None:
        """End what goes through, and refuse what comes: the address stays taken."""
        here = self._listener.getsockname()
        _end(self._listener)
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(here)
        while self._open:
            _end(self._open.pop())

    def mend(self) -> None:
        """Let connections through again."""
        self._listener.listen()
        self._let_in_from(self._listener)

    def _let_in_from(self, listener: socket.socket) -> None:
        threading.Thread(target=self._let_in, args=(listener,), daemon=True).start()

    def _let_in(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it was cut
            while True:
                outside, _ = listener.accept()
                inside = socket.create_connection(self._there)
                self._open += (outside, inside)
                for ends in ((outside, inside), (inside, outside)):
                    threading.Thread(target=_pass_on, args=ends, daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(1 << 16):
            sink.sendall(chunk)
        sink.shutdown(socket.SHUT_WR)


def _end(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # whoever waits for it is woken
    sock.close()
