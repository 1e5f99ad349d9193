"""A network between a PBX and the daemon that splits, delays, half-closes and resets.

What a reset takes nobody can bring back; all else arrives, and once.
"""

import contextlib
import itertools
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

from tests.faults.oracle import call, call_id
from tests.faults.outcome import Outcome, compare
from tests.running import (
    DEADLINE_SECONDS,
    HQ,
    RunningDaemon,
    assert_accounted,
    assert_each_row_is_logged,
    connect,
)

CALLS = 500
"""Over each connection."""

PIECE_BYTES = 64 * 1024
_LINGER_ZERO = struct.pack("ii", 1, 0)  # closing sends RST in place of FIN


def bring_through_chaos(times: int) -> Outcome:
    """Bring calls over connections of each way so often, one after the other."""
    choose, began = Random(times), time.monotonic()
    arriving: set[int] = set()
    with (
        tempfile.TemporaryDirectory(prefix="cdrd-chaos-") as directory,
        RunningDaemon(Path(directory), HQ) as daemon,
    ):
        carries = [carry for _ in range(times) for carry in (split, delay, half_close, reset)]
        for turn, carry in enumerate(carries):
            numbers = range(turn * CALLS, (turn + 1) * CALLS)
            with network(daemon.port, partial(carry, choose=choose)) as port:
                send_all(port, b"".join(map(call, numbers)))
            if carry is not reset:
                arriving.update(numbers)
                daemon.wait_for_call(call_id(numbers[-1]))
        status, stopped = daemon.stop()
        assert status == 0
        assert_accounted(stopped)
        assert_each_row_is_logged(daemon.database, daemon.found("call_released"))
        return compare(daemon.database, arriving, began)


def split(pieces: Iterator[bytes], far: socket.socket, choose: Random) -> None:
    """Bring the bytes in many small pieces."""
    for piece in pieces:
        cuts = sorted(choose.sample(range(1, len(piece)), len(piece) // 300))
        for start, end in itertools.pairwise([0, *cuts, len(piece)]):
            far.sendall(piece[start:end])


def delay(pieces: Iterator[bytes], far: socket.socket, choose: Random) -> None:
    """Bring them late, cut anywhere."""
    for piece in pieces:
        cut = choose.randrange(len(piece))
        far.sendall(piece[:cut])
        time.sleep(choose.uniform(0, 0.1))  # the delay is what is tried
        far.sendall(piece[cut:])


def half_close(pieces: Iterator[bytes], far: socket.socket, choose: Random) -> None:
    """End one way behind the last of them, and wait until the daemon ends the other one."""
    del choose
    for piece in pieces:
        far.sendall(piece)
    far.shutdown(socket.SHUT_WR)
    assert far.recv(1) == b""


def reset(pieces: Iterator[bytes], far: socket.socket, choose: Random) -> None:
    """Break off somewhere in the first of them."""
    piece = next(pieces)
    far.sendall(piece[: choose.randrange(len(piece))])
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)


@contextlib.contextmanager
def network(port: int, carry: Callable[[Iterator[bytes], socket.socket], None]) -> Iterator[int]:
    """Take one connection, and bring on what comes over it in this way; give where to connect."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def bring_on() -> None:
            near, _ = listener.accept()
            with near, connect(port) as far:
                far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                carry(iter(partial(near.recv, PIECE_BYTES), b""), far)

        bringing = threading.Thread(target=bring_on, daemon=True)
        bringing.start()
        yield listener.getsockname()[1]
        bringing.join(DEADLINE_SECONDS)
        assert not bringing.is_alive()


def send_all(port: int, stream: bytes) -> None:
    """Send a stream and end, or be broken off."""
    with connect(port) as pbx, contextlib.suppress(ConnectionError):
        pbx.sendall(stream)
