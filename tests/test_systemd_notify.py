"""The service manager hears of readiness and of a living loop; outside of it nothing happens."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdrd.systemd import Notifier

MINE = str(os.getpid())


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(10)
        yield sock


def test_assignments_arrive_in_one_datagram(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.notify("READY=1", "STATUS=ready")
    notifier.notify("STATUS=3 connections, 5 stored", "WATCHDOG=1")
    assert manager.recv(4096) == b"READY=1\nSTATUS=ready"
    assert manager.recv(4096) == b"STATUS=3 connections, 5 stored\nWATCHDOG=1"


def test_a_socket_in_the_abstract_namespace_is_reached() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("")  # the kernel chooses a free abstract name
        sock.settimeout(10)
        name = sock.getsockname()
        Notifier({"NOTIFY_SOCKET": "@" + name[1:].decode()}).notify("READY=1")
        assert sock.recv(4096) == b"READY=1"


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}])
def test_without_a_manager_nothing_happens(environment: dict[str, str]) -> None:
    notifier = Notifier(environment)
    notifier.notify("READY=1")
    assert notifier.watchdog_seconds == 0


def test_a_manager_that_is_away_is_no_error(tmp_path: Path) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).notify("WATCHDOG=1")


def test_a_manager_that_does_not_read_holds_nobody_up(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    for _ in range(2000):
        notifier.notify("WATCHDOG=1")
    assert manager.recv(4096) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": MINE}, 0.5),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_PID": MINE}, 0.0),
    ],
)
def test_the_watchdog_is_ours_unless_it_names_another(
    environment: dict[str, str], seconds: float
) -> None:
    assert Notifier(environment).watchdog_seconds == seconds
