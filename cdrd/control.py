"""Turns a command beside a running daemon into work that the daemon does.

The daemon is the only writer of the database. A command that has to write asks it through a Unix
socket beside the database, one JSON object a line each way; where no daemon runs, the command
opens the database itself, under the same lock. The rule that must stay true: never two writers.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from cdrd.config import DATABASE_NAME_BYTES
from cdrd.sizes import KIB

TIMEOUT_SECONDS: Final = 60.0
MAX_REQUEST_BYTES: Final = 1024 * KIB

Answer = dict[str, Any]
Work = Callable[[dict[str, Any]], Awaitable[Answer]]


class NoDaemon(Exception):
    """No daemon answers for this database."""


class RequestRefused(Exception):
    """The daemon could not do what was asked; the text says why."""


class _NameTooLong(OSError):
    """No socket can stand beside a database of such a name, so that no daemon serves it."""


class _NoRequest(Exception):
    """What was sent is no JSON object."""


@contextlib.contextmanager
def _reachable(database: Path) -> Iterator[str]:
    """Give a name of the socket that fits a Unix address, whose limit is 107 bytes.

    Raises OSError.
    """
    database = database.resolve()  # a link to the database is the database
    if len(os.fsencode(database.name)) > DATABASE_NAME_BYTES:
        raise _NameTooLong(f"{database}: name it with {DATABASE_NAME_BYTES} bytes at most")
    directory = os.open(database.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{database.name}.control"
    finally:
        os.close(directory)


async def serve_control(database: Path, work: Work) -> asyncio.Server:
    """Serve requests at the socket beside the database; only its owner may connect."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = _parsed(await reader.readuntil(b"\n"))
            try:
                reply = await work(request)
            except RequestRefused as error:
                reply = {"error": str(error)}
            writer.write(orjson.dumps(reply) + b"\n")
            await writer.drain()
        except (
            ConnectionError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
            _NoRequest,
        ):
            pass  # whoever asked has gone, or asked nothing that can be read: nothing was done
        finally:
            writer.close()

    return await asyncio.start_unix_server(answer, sock=_bind(database), limit=MAX_REQUEST_BYTES)


def _parsed(line: bytes) -> dict[str, Any]:
    """Parse a request. Raises _NoRequest."""
    try:
        request = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise _NoRequest from error
    if not isinstance(request, dict):
        raise _NoRequest
    return request


def _bind(database: Path) -> socket.socket:
    with _reachable(database) as name:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()  # of a daemon that was killed: the lock says that none runs
        mask = os.umask(0o177)
        try:
            listener.bind(name)
        finally:
            os.umask(mask)
    return listener


def remove_control(database: Path) -> None:
    """Take the socket away when the daemon ends."""
    Path(f"{database}.control").unlink(missing_ok=True)


def ask_daemon(database: Path, request: dict[str, Any]) -> Answer:
    """Ask the daemon that writes this database. Raises NoDaemon and RequestRefused."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(TIMEOUT_SECONDS)
        try:
            with _reachable(database) as name:
                sock.connect(name)
        except (
            FileNotFoundError,
            NotADirectoryError,
            ConnectionRefusedError,
            _NameTooLong,
        ) as error:
            raise NoDaemon(f"{database}: no daemon is running") from error
        except PermissionError as error:
            raise RequestRefused(f"{database}: {_why_denied(database)}") from error
        reply = _exchange(sock, orjson.dumps(request) + b"\n", database)
    if "error" in reply:
        raise RequestRefused(reply["error"])
    return reply


def _why_denied(database: Path) -> str:
    if os.path.lexists(f"{database.resolve()}.control"):
        return "only the daemon's user may ask it to write"
    return "its directory is closed to us: run this as the user whose directory it is"


def _exchange(sock: socket.socket, request: bytes, database: Path) -> Answer:
    """Send a request and read the answer; one that does not come may still have been followed."""
    try:
        sock.sendall(request)
        with sock.makefile("rb") as replies:
            reply: Answer = orjson.loads(replies.readline())
    except TimeoutError as error:
        raise RequestRefused(
            f"{database}: the daemon has not answered for {TIMEOUT_SECONDS:.0f} s"
        ) from error
    except (OSError, ValueError) as error:
        raise RequestRefused(
            f"{database}: the daemon ended the connection without an answer; its log says why"
        ) from error
    return reply
