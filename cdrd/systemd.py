"""Tells systemd how the daemon is: ready, alive, stopping. Outside of systemd it does nothing.

The rule that must stay true: a watchdog ping means that the loop turns and the writer makes
progress, never less. Source: sd_notify(3), systemd 252.
"""

import os
import socket
from collections.abc import Mapping, Sequence

MICROSECONDS = 1_000_000


class Notifier:
    """The service manager's notification socket, where there is one."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        watchdog_pid = environment.get("WATCHDOG_PID", str(os.getpid()))
        for_us = watchdog_pid == str(os.getpid())
        self.watchdog_seconds = (
            int(environment.get("WATCHDOG_USEC", "0")) / MICROSECONDS if for_us else 0.0
        )

    @property
    def works(self) -> bool:
        """Whether there is a service manager to be told."""
        return bool(self._address)

    def notify(
        self, *assignments: str, descriptors: Sequence[int] = (), patience: float = 0
    ) -> None:
        """Send assignments such as ``READY=1`` in one datagram, with descriptors to be kept.

        ``patience``: seconds that it may wait for room in the manager's queue, which is short.
        """
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(patience)
            try:
                sock.connect(self._address)
                socket.send_fds(sock, ["\n".join(assignments).encode()], list(descriptors))
            except OSError:
                # The manager is away or slow; the next ping tells it again.
                return
