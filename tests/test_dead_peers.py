"""Peers that vanish without a word, in two network namespaces of their own joined by a cable."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.running import RunningDaemon, assert_accounted, count

HERE, THERE = "192.0.2.1", "192.0.2.10"
HQ = f'[[pbx]]\nname = "hq"\npeers = ["{THERE}"]\n'

# Sends one report; then, told to, forgets the connection as a machine without power does.
PEER = """
import socket, struct, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
report = '{"action":"NewCdr","callid":"1495779310.%s","timestart":"2017-05-25 22:15:10"}'
sock.sendall((report % sys.argv[3]).encode())
sys.stdin.readline()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
sock.close()
"""


@dataclass(frozen=True)
class Cable:
    """Two namespaces: ours, where the daemon runs, and that of the PBX."""

    here: list[str]
    there: list[str]

    def run(self, side: list[str], *command: str) -> str:
        run = subprocess.run([*side, *command], capture_output=True, text=True, check=True)
        return run.stdout

    @contextlib.contextmanager
    def peer(self, port: int, number: int) -> Iterator[subprocess.Popen[str]]:
        command = [*self.there, sys.executable, "-c", PEER, HERE, str(port), str(number)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()


@contextlib.contextmanager
def namespace() -> Iterator[tuple[int, list[str]]]:
    """A network namespace that lasts as long as a process in it."""
    command = ["unshare", "--net", "--", "sh", "-c", "echo made; exec cat"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "made\n", "unshare --net needs root"
        yield keeper.pid, ["nsenter", f"--net=/proc/{keeper.pid}/ns/net"]
        keeper.kill()


@pytest.fixture
def cable() -> Iterator[Cable]:
    with namespace() as (_, here), namespace() as (there_pid, there):
        made = Cable(here, there)
        made.run(here, "ip", "link", "add", "near", "type", "veth", "peer", "far")
        made.run(here, "ip", "link", "set", "far", "netns", str(there_pid))
        for side, end, address in ((here, "near", HERE), (there, "far", THERE)):
            made.run(side, "ip", "address", "add", f"{address}/24", "dev", end)
            made.run(side, "ip", "link", "set", end, "up")
        yield made


def test_a_new_connection_takes_over_from_a_half_dead_one(tmp_path: Path, cable: Cable) -> None:
    """Noticed in seconds, because the PBX has connected anew; by itself it would take 60 and more.

    The old one is noticed by keepalive probes alone: nothing is ever sent to a PBX.
    """
    with (
        RunningDaemon(tmp_path, HQ, listen=[f"{HERE}:0"], inside=cable.here) as daemon,
        cable.peer(daemon.port, 1) as vanishing,
    ):
        old = daemon.wait_for("peer_connected")["peer"]
        daemon.wait_for_calls(1)  # what has not left the PBX yet would never come
        cable.run(cable.there, "ip", "link", "set", "far", "down")
        vanishing.communicate("vanish\n")
        cable.run(cable.there, "ip", "link", "set", "far", "up")
        with cable.peer(daemon.port, 2):
            daemon.wait_for("peer_connected", times=2)
            gone = daemon.wait_for("peer_disconnected", peer=old)
            assert gone["reason"] != "closed by the peer"
            daemon.wait_for_calls(2)
            assert not [line for line in daemon.found("peer_disconnected") if line is not gone]
            _, stopped = daemon.stop()
    assert_accounted(stopped)
    assert count(daemon.database) == 2


def test_a_silent_connection_is_probed(tmp_path: Path, cable: Cable) -> None:
    with (
        RunningDaemon(tmp_path, HQ, listen=[f"{HERE}:0"], inside=cable.here) as daemon,
        cable.peer(daemon.port, 1),
    ):
        daemon.wait_for_calls(1)
        sockets = cable.run(cable.here, "ss", "-Htno", "state", "established")
        assert "timer:(keepalive," in sockets
        seconds = sockets.partition("timer:(keepalive,")[2].partition(",")[0]
        assert "min" not in seconds or seconds == "1min", "a minute of silence, and then probes"
