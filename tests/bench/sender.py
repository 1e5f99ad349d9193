"""Sends a rendered load over many connections, flat out, and tells what that has cost the sender.

A program of its own, ``python -m tests.bench.sender FILE PORT CONNECTIONS``. The bytes go from the
file's cached pages to the sockets by ``sendfile``, a block to each connection in turn.
"""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.bench.load import blocks_of

Block = tuple[int, int]
"""Where it begins in the file, and where it ends."""


class Sent(NamedTuple):
    """What sending took, from the first write to the last."""

    seconds: float
    cpu_seconds: float


@contextlib.contextmanager
def sending(file: Path, port: int, connections: int) -> Iterator[subprocess.Popen[bytes]]:
    """Send meanwhile, by a process that prints the seconds and CPU seconds that it took."""
    program = [sys.executable, "-m", "tests.bench.sender", file, port, connections]
    with subprocess.Popen(list(map(str, program)), stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def send(file: Path, port: int, connections: int) -> Sent:
    """Send all blocks, then end the connections."""
    blocks = _blocks(file)
    socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
    began, used = time.perf_counter(), time.process_time()
    with file.open("rb") as source:
        _deal(source.fileno(), socks, blocks)
    sent = Sent(time.perf_counter() - began, time.process_time() - used)
    for sock in socks:
        sock.close()
    return sent


def _blocks(file: Path) -> deque[Block]:
    ends = json.loads(blocks_of(file).read_text())
    return deque(zip([0, *ends], ends, strict=False))


def _deal(source: int, socks: list[socket.socket], blocks: deque[Block]) -> None:
    """Give the next block to whichever connection is done with its last one."""
    poll = select.epoll()
    sending: dict[int, Block] = {}
    for sock in socks:
        sock.setblocking(False)
        if blocks:
            sending[sock.fileno()] = blocks.popleft()
            poll.register(sock, select.EPOLLOUT)
    while sending:
        for number, _ in poll.poll():
            start, end = sending[number]
            start += os.sendfile(number, source, start, end - start)
            if start < end:
                sending[number] = (start, end)
            elif blocks:
                sending[number] = blocks.popleft()
            else:
                del sending[number]
                poll.unregister(number)


def alone(file: Path, connections: int) -> Sent:
    """Send to a sink that throws all away unread: how fast the sender itself is."""
    with socket.create_server(("127.0.0.1", 0), backlog=connections) as listener:
        sink = threading.Thread(target=_sink, args=(listener, connections))
        sink.start()
        with sending(file, listener.getsockname()[1], connections) as process:
            assert process.stdout is not None
            sent = Sent(**json.loads(process.stdout.read()))
        sink.join()
    return sent


def _sink(listener: socket.socket, connections: int) -> None:
    poll = select.epoll()
    socks = [listener.accept()[0] for _ in range(connections)]
    for sock in socks:
        poll.register(sock, select.EPOLLIN)
    by_number, buffer = {sock.fileno(): sock for sock in socks}, bytearray(1 << 20)
    while by_number:
        for number, _ in poll.poll():
            if not by_number[number].recv_into(buffer, 0, socket.MSG_TRUNC):
                by_number.pop(number).close()


def main() -> None:
    """Send what the arguments name."""
    file, port, connections = sys.argv[1:]
    print(json.dumps(send(Path(file), int(port), int(connections))._asdict()))


if __name__ == "__main__":
    main()
