"""Turns functions of a ``sqlite3.Connection`` into work of a process of its own.

One interpreter decodes while the other one stores: in one process each would wait for the other,
at every step of a statement. The rule that must stay true: what a request asks for is done once,
in the order of the requests, or its caller is told that nobody knows; a process whose caller is
gone does what it has been asked for and ends, with the database's lock in its hands until then.
"""

import asyncio
import fcntl
import os
import pickle
import signal
import socket
import sqlite3
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Concatenate, Final, Self

import uvloop

from cdrd.connection import Arguments, Connect, Result, ThreadConnection
from cdrd.sizes import KIB
from cdrd.sqlite_library import set_up_for_one_thread

SIZE_BYTES: Final = 8
PIPE_BYTES: Final = 1024 * KIB
"""What may wait between the processes: two batches of a thousand records."""

END_SECONDS: Final = 5.0
"""So long the process may take to end before it is killed."""

LOCK: Final = b"L"  # comes with the descriptor of the database's lock, before any request
CLOSE: Final = "close"


class ProcessEnded(sqlite3.OperationalError):
    """The process has ended before it answered: what it was asked for is done, or it is not."""


class StoreProcess:
    """The process, started: it waits for a database to open, and ends with its caller.

    Requests go through a pipe, which can hold two large batches, a socket less than half of one;
    the answers come through a socket, which can hand over the lock.
    """

    def __init__(self) -> None:
        """Start it. Raises OSError."""
        self.answers, answering = socket.socketpair()
        reading, self.requests = os.pipe()
        with suppress(OSError):  # not allowed so much: the pipe holds less
            fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        theirs = (answering.fileno(), reading)
        # -P: the directory that we were started in is nobody's to run files from.
        command = [sys.executable, "-P", "-m", "cdrd.store_process", *map(str, theirs)]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - ourselves
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=theirs,
                start_new_session=True,  # a terminal's Ctrl-C is for its caller
            )
        except OSError:
            self.answers.close()
            os.close(self.requests)
            raise
        finally:
            answering.close()
            os.close(reading)

    async def end(self) -> int:
        """Wait until the process has ended, which the pipe's end has it do; return its status."""
        return await asyncio.to_thread(self._wait)

    def abandon(self) -> None:
        """End a process that was given nothing to do."""
        self.answers.close()
        os.close(self.requests)
        self._wait()

    def _wait(self) -> int:
        try:
            return self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


class _Messages(asyncio.Protocol):
    """What either end reads: messages, each as ``_spell`` spells it."""

    def __init__(self) -> None:
        self._received = bytearray()

    def data_received(self, data: bytes) -> None:
        """Take each message as it becomes whole."""
        self._received += data
        while len(self._received) >= SIZE_BYTES:
            message = self._received
            end = SIZE_BYTES + int.from_bytes(message[:SIZE_BYTES], "little")
            if len(message) < end:
                return
            self._received = message[end:]
            del message[end:]
            self.message_received(message)

    def message_received(self, message: bytearray) -> None:
        """Take a message: for either end to do."""


class ProcessConnection(_Messages):
    """A database connection in a process of its own; made with ``open``."""

    _requests: asyncio.WriteTransport

    def __init__(self, process: StoreProcess) -> None:
        super().__init__()
        self._process = process
        self._asked: deque[asyncio.Future[Any]] = deque()
        self._lost = False

    @classmethod
    async def open(cls, process: StoreProcess, connect: Connect, lock: int) -> Self:
        """Have the process connect; raises what ``connect`` raises.

        ``lock`` is a descriptor that stays open in the process for as long as it lives.
        """
        with suppress(OSError):  # it has ended, as is seen at once
            socket.send_fds(process.answers, [LOCK], [lock])
        loop = asyncio.get_running_loop()
        _, self = await loop.create_unix_connection(partial(cls, process), sock=process.answers)
        pipe = os.fdopen(process.requests, "wb", buffering=0)
        self._requests, _ = await loop.connect_write_pipe(asyncio.Protocol, pipe)
        try:
            await self._ask(connect)
        except BaseException:
            await self._end()
            raise
        return self

    @property
    def ended(self) -> bool:
        """Whether the process has ended, as its pipe or its socket tells first."""
        return self._lost or self._requests.is_closing()

    async def run(
        self,
        function: Callable[Concatenate[sqlite3.Connection, Arguments], Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Run a function of the connection; raises what it raises, and ProcessEnded."""
        result: Result = await self._ask((function, args, kwargs))
        return result

    async def close(self) -> int:
        """Close it once all that it was asked for is done; return the process's exit status."""
        with suppress(ProcessEnded):
            await self._ask(CLOSE)
        return await self._end()

    def message_received(self, message: bytearray) -> None:
        """Hand an answer over to whoever has asked."""
        asked = self._asked.popleft()
        result, error = _read(message)
        if asked.cancelled():
            return
        if error is None:
            asked.set_result(result)
        else:
            asked.set_exception(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever has asked that there will be no answer."""
        self._lost = True
        for asked in self._asked:
            if not asked.cancelled():
                asked.set_exception(_ended(exc))
        self._asked.clear()

    async def _ask(self, request: object) -> Any:
        if self.ended:
            raise _ended()
        self._requests.writelines(_spell(request))
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.append(answer)
        return await answer

    async def _end(self) -> int:
        self._requests.close()
        return await self._process.end()


def _ended(error: Exception | None = None) -> ProcessEnded:
    return ProcessEnded(f"the process that stores has ended{f': {error}' if error else ''}")


def _spell(message: object) -> list[bytes | memoryview]:
    """Spell a message: behind its size its pickle, then what that leaves out, each behind its own.

    A batch's blocks are left out: to copy them took 0.5 us a record, and memory in large pieces.
    """
    blocks: list[pickle.PickleBuffer] = []
    text = pickle.dumps(message, pickle.HIGHEST_PROTOCOL, buffer_callback=blocks.append)
    parts: list[bytes | memoryview] = [text, *(block.raw() for block in blocks)]
    spelt: list[bytes | memoryview] = []
    for part in parts:
        spelt += (_size(len(part)), part)
    return [_size(sum(map(len, spelt))), *spelt]


def _size(size: int) -> bytes:
    return size.to_bytes(SIZE_BYTES, "little")


def _read(message: bytearray) -> Any:
    """Read a message; its blocks stay where they are."""
    text, *blocks = _parts(memoryview(message)[SIZE_BYTES:])
    return pickle.loads(text, buffers=blocks)  # noqa: S301 - from our own process


def _parts(spelt: memoryview) -> Iterator[memoryview]:
    while spelt:
        end = SIZE_BYTES + int.from_bytes(spelt[:SIZE_BYTES], "little")
        yield spelt[SIZE_BYTES:end]
        spelt = spelt[end:]


class _Requests(_Messages):
    """The caller, as the process sees it; None stands for its end."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: asyncio.Queue[bytearray | None] = asyncio.Queue()

    def message_received(self, message: bytearray) -> None:
        self.waiting.put_nowait(message)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - whatever it was
        self.waiting.put_nowait(None)


async def _serve(answers: socket.socket, pipe: int, opened: list[ThreadConnection]) -> None:
    """Do what is asked for until the caller closes the pipe, or is gone.

    The connection joins ``opened``.
    """
    loop = asyncio.get_running_loop()
    requests = os.fdopen(pipe, "rb", buffering=0)
    _, requested = await loop.connect_read_pipe(_Requests, requests)
    answering, _ = await loop.create_unix_connection(asyncio.Protocol, sock=answers)
    while (message := await requested.waiting.get()) is not None:
        result = error = None
        try:
            request = _read(message)
            if not opened:
                opened.append(await ThreadConnection.open(request))
            elif request == CLOSE:
                await opened[0].close()
            else:
                function, args, kwargs = request
                result = await opened[0].run(function, *args, **kwargs)
        except Exception as failed:  # noqa: BLE001 - whatever it is, the caller raises it
            error = failed
        if not answering.is_closing():
            answering.writelines(_spell((result, error)))


def main() -> None:
    """Serve whoever has started this process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the caller's end is ours
    set_up_for_one_thread()
    answers, pipe = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    # The lock is never closed: it ends with the process.
    if socket.recv_fds(answers, len(LOCK), 1)[0] == LOCK:
        answers.setblocking(False)
        status = 0
        # A connection that its caller has not closed must not be, and would be once nobody knows
        # it: that takes the WAL from readers who may not make it anew.
        opened: list[ThreadConnection] = []
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_serve(answers, pipe, opened))
        except BaseException:  # noqa: BLE001 - likewise
            traceback.print_exc()
            status = 1
        os._exit(status)  # the connection's thread would keep the process alive


if __name__ == "__main__":
    main()
