"""Turns the sockets that systemd keeps for us from one process to the next into ours again.

The rule that must stay true: a connection is in systemd's store as soon as it is a PBX's, so that
neither a restart nor a crash ends it, and it leaves the store when we close it, so that the peer
sees the end. Source: sd_listen_fds(3), sd_pid_notify_with_fds(3), systemd's FILE_DESCRIPTOR_STORE.
"""

import contextlib
import os
import socket
from base64 import b64decode, b64encode
from collections import defaultdict
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

import orjson

from cdrd.systemd import Notifier

FIRST_DESCRIPTOR: Final = 3
RESTS: Final = "rests"
"""The name of the file in memory with what an orderly end held of reports that were not whole."""

PATIENCE_SECONDS: Final = 1.0
"""systemd takes a datagram in microseconds; but its queue holds 10 on some kernels, and many PBXs
may come at once."""


@dataclass(slots=True)
class Passed:
    """What systemd has passed to us: listeners by their unit's FileDescriptorName.

    The kept connections, and what was held of them, go by the name that they were kept under.
    """

    listeners: dict[str, list[socket.socket]] = field(default_factory=dict)
    connections: dict[str, socket.socket] = field(default_factory=dict)
    rests: dict[str, bytes] = field(default_factory=dict)
    has_rests: bool = False

    def take(self, kind: str) -> list[tuple[str, socket.socket, bytes]]:
        """Take the connections of a kind over: each with its name, and what was held of it."""
        names = [name for name in self.connections if name.startswith(f"{kind}-")]
        return [(name, self.connections.pop(name), self.rests.pop(name, b"")) for name in names]


def take_passed(environment: MutableMapping[str, str] = os.environ) -> Passed:
    """Take what systemd has passed to this process; a second call finds nothing."""
    told = [environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")]
    pid, count, names = told
    if pid != str(os.getpid()) or not count.isdecimal():
        return Passed()
    passed = Passed()
    listeners: defaultdict[str, list[socket.socket]] = defaultdict(list)
    descriptors = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count))
    for descriptor, name in zip(descriptors, names.split(":"), strict=False):
        os.set_inheritable(descriptor, False)
        if name == RESTS:
            passed.rests, passed.has_rests = _read_rests(descriptor), True
            continue
        sock = socket.socket(fileno=descriptor)
        sock.setblocking(False)
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            listeners[name].append(sock)
        else:
            passed.connections[name] = sock
    passed.listeners = dict(listeners)
    return passed


class Keeper:
    """systemd's store of descriptors; without systemd, nothing."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier

    def keep(self, kind: str, sock: socket.socket, owner: str = "") -> str:
        """Have a connection kept; return the name that it is kept under."""
        # The inode names the socket in the whole system, and for as long as it is open anywhere.
        name = f"{kind}-{digest(owner)}-{os.fstat(sock.fileno()).st_ino}"
        self._tell("FDSTORE=1", f"FDNAME={name}", descriptor=sock.fileno())
        return name

    def forget(self, name: str) -> None:
        """Have a connection kept no longer."""
        self._tell("FDSTOREREMOVE=1", f"FDNAME={name}")

    def hand_over(self, rests: dict[str, bytes]) -> None:
        """Leave the next process what is held of reports that are not whole, by the name."""
        held = {name: b64encode(rest).decode() for name, rest in rests.items() if rest}
        if not (held and self.works):
            return
        descriptor = os.memfd_create(RESTS, os.MFD_CLOEXEC)
        try:
            os.write(descriptor, orjson.dumps(held))
            # A file is always readable: without FDPOLL=0 it would look as if it had hung up.
            self._tell("FDSTORE=1", f"FDNAME={RESTS}", "FDPOLL=0", descriptor=descriptor)
        finally:
            os.close(descriptor)

    def _tell(self, *assignments: str, descriptor: int | None = None) -> None:
        descriptors = () if descriptor is None else (descriptor,)
        self._notifier.notify(*assignments, descriptors=descriptors, patience=PATIENCE_SECONDS)

    @property
    def works(self) -> bool:
        """Whether there is a systemd to keep anything."""
        return self._notifier.works


def digest(owner: str) -> str:
    """Spell whose connection it is in few characters, none of them a colon."""
    return blake2b(owner.encode(), digest_size=8).hexdigest() if owner else ""


def _read_rests(descriptor: int) -> dict[str, bytes]:
    """Read what the process before has left; what cannot be read is as if it had crashed."""
    with open(descriptor, "rb") as file, contextlib.suppress(ValueError, AttributeError):
        file.seek(0)
        return {name: b64decode(rest) for name, rest in orjson.loads(file.read()).items()}
    return {}
