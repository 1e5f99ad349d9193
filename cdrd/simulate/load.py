"""Turns a range of numbers into reports on many kept-open connections to a listening daemon.

With ``--http`` each report is a POST on a connection of its own instead (``posts.py``).

Each number is sent once, by one connection. It costs little enough (under 1 us of CPU a report flat
out) to be the sender of a benchmark whose receiver, on the same machine, is what is measured.
"""

import argparse
import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import asdict

import orjson
import uvloop

from cdrd.address import format_address
from cdrd.simulate.arguments import (
    add_report_arguments,
    address,
    amount,
    at_least,
    reason,
    remark,
)
from cdrd.simulate.posts import send_posts
from cdrd.simulate.reports import CALLS_A_SECOND, ReportForms
from cdrd.simulate.sent import LoadFailed, Sent

_BLOCK_BYTES = 64 * 1024
_TICK = 0.01
"""At a rate, a block holds what is due in so many seconds."""
_CONNECT_SECONDS = 10
_CLOSE_SECONDS = 5
_CLOCK_NUMBERS = 10**13
_DEFAULT_COUNT = 10_000


async def send_load(  # noqa: PLR0913 - by name, each with a default
    host: str,
    port: int,
    *,
    connections: int = 16,
    count: int,
    rate: float = 0,
    events: int = 0,
    delimiter: str = "newline",
    dialect: str = "1.0.2",
    first: int = 0,
    started: int,
    utc_offset: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Sent:
    """Send the calls `first` to `first + count - 1`, dealt to the connections block by block.

    `rate` is reports a second of all connections together (0: flat out), `events` the number of
    other events after each report. The first call begins at `started` (UTC epoch), and 50 calls
    begin in each second. `progress` is told how many reports have been written so far.

    Returns when all is with the system and each connection, after an orderly half close, was closed
    by the peer too, or 5 seconds have passed. Raises LoadFailed when a connection cannot be had or
    breaks, ValueError for an unknown dialect or delimiter.
    """
    forms = ReportForms(
        dialect,
        delimiter,
        first=first,
        started=started,
        utc_offset=utc_offset,
        events=events,
    )
    load = _Load(forms, range(first, first + count), connections, rate, progress)
    where = format_address(host, port)
    with contextlib.ExitStack() as carriers_open:
        try:
            carriers = [
                carriers_open.enter_context(await _connected(host, port))
                for _ in range(connections)
            ]
        except OSError as error:
            raise LoadFailed(f"cannot connect to {where}: {reason(error)}") from error
        try:
            await load.send_over(carriers)
        except OSError as error:
            written = f"{load.reports:,} of {count:,} reports had been written"
            sentence = f"{where} broke a connection when {written}: {reason(error)}"
            raise LoadFailed(sentence) from error
    return Sent(load.reports, load.reports * events, load.bytes, load.seconds)


class _Load:
    """Blocks of numbers that the connections take in turn, and what has been written of them."""

    def __init__(
        self,
        forms: ReportForms,
        numbers: range,
        connections: int,
        rate: float,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._forms, self._numbers, self._rate, self._progress = forms, numbers, rate, progress
        size = min(
            _BLOCK_BYTES // forms.size,
            len(numbers) // connections,
            int(rate * _TICK) if rate else len(numbers),
        )
        self._blocks = _cut(numbers, max(1, size))
        self._begun = 0.0
        self.reports = self.bytes = 0
        self.seconds = 0.0

    async def send_over(self, carriers: list[socket.socket]) -> None:
        """Send all over these connections, then end them."""
        self._begun = asyncio.get_running_loop().time()
        begun = time.perf_counter()
        await _all(self._send_share(carrier) for carrier in carriers)
        self.seconds = time.perf_counter() - begun
        await _all(_end(carrier) for carrier in carriers)

    async def _send_share(self, carrier: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for numbers in self._blocks:
            # Flat out this is a bare yield, which gives the next block to the next connection.
            await asyncio.sleep(self._due(numbers.start) - loop.time())
            block = self._forms.stamp(numbers)
            await loop.sock_sendall(carrier, block)
            self.reports += len(numbers)
            self.bytes += len(block)
            if self._progress is not None:
                self._progress(self.reports)

    def _due(self, number: int) -> float:
        return self._begun + ((number - self._numbers.start) / self._rate if self._rate else 0)


def _cut(numbers: range, size: int) -> Iterator[range]:
    return (numbers[start : start + size] for start in range(0, len(numbers), size))


async def _all(work: Iterable[Coroutine[None, None, None]]) -> None:
    """Wait for all, or until one fails; then the others are cancelled first."""
    tasks = [asyncio.create_task(share) for share in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _connected(host: str, port: int) -> socket.socket:
    dial = socket.create_connection
    carrier = await asyncio.to_thread(dial, (host, port), _CONNECT_SECONDS)
    carrier.setblocking(False)
    # Otherwise a small block waits for the acknowledgement of the last one, up to 40 ms.
    carrier.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return carrier


async def _end(carrier: socket.socket) -> None:
    """Say that no more comes and wait for the peer's close, with a bound.

    A peer that keeps its side open past the bound has taken all in, as far as a sender can tell.
    """
    carrier.shutdown(socket.SHUT_WR)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(_read_to_the_end(carrier), _CLOSE_SECONDS)


async def _read_to_the_end(carrier: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while await loop.sock_recv(carrier, _BLOCK_BYTES):
        pass


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `cdrd simulate load`."""
    parser.description = (
        "Sends call reports to a listening daemon over kept-open connections, at a rate or flat "
        "out. At its end it prints what was sent and how fast as one JSON line. 50 calls begin in "
        "each second of the calls' own time, the last of them now. With --http each report is "
        "posted on a connection of its own, until it is answered 200."
    )
    parser.set_defaults(usage_error=parser.error)
    add = parser.add_argument
    add("target", type=_target, metavar="HOST:PORT", help="where the daemon listens")
    add("--http", action="store_true", help="post each report, at an address of [http] listen")
    add(
        "--connections",
        type=at_least(1),
        default=16,
        metavar="N",
        help="how many at a time (default: 16)",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--count", type=at_least(1), metavar="N", help="calls (default: 10000)")
    length.add_argument("--seconds", type=amount, metavar="N", help="so long, at the --rate")
    add(
        "--rate",
        type=amount,
        default=0,
        metavar="CALLS",
        help="a second, all connections together (default: 0, flat out)",
    )
    add(
        "--events",
        type=at_least(0),
        default=0,
        metavar="N",
        help="other events a call (default: 0)",
    )
    add_report_arguments(parser, "1.0.2")
    add(
        "--first",
        type=at_least(0),
        metavar="N",
        help="number of the first call; the same number and time make the same call (default: "
        "taken from the clock, so that a second run repeats no call of the first)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run `cdrd simulate load`; the exit status."""
    count = _count(arguments)
    try:
        if arguments.http:
            sent = _post(arguments, count)
        else:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                sent = runner.run(_run(arguments, count))
    except LoadFailed as failure:
        remark(str(failure))
        return 1
    except KeyboardInterrupt:
        remark("interrupted before all was sent")
        return 1
    summary = asdict(sent) | {"seconds": round(sent.seconds, 6), "rate": round(sent.rate, 1)}
    sys.stdout.write(orjson.dumps(summary, option=orjson.OPT_APPEND_NEWLINE).decode())
    return 0


def _post(arguments: argparse.Namespace, count: int) -> Sent:
    if arguments.events or arguments.delimiter != "newline":
        arguments.usage_error("--http posts reports alone: take --events and --delimiter out")
    with _progress_bar(count) as progress:
        return send_posts(
            *arguments.target,
            posters=arguments.connections,
            count=count,
            rate=arguments.rate,
            dialect=arguments.dialect,
            first=_first(arguments),
            started=int(time.time()) - count // CALLS_A_SECOND,
            utc_offset=arguments.utc_offset,
            progress=progress,
        )


async def _run(arguments: argparse.Namespace, count: int) -> Sent:
    with _progress_bar(count) as progress:
        return await send_load(
            *arguments.target,
            connections=arguments.connections,
            count=count,
            rate=arguments.rate,
            events=arguments.events,
            delimiter=arguments.delimiter,
            dialect=arguments.dialect,
            first=_first(arguments),
            started=int(time.time()) - count // CALLS_A_SECOND,
            utc_offset=arguments.utc_offset,
            progress=progress,
        )


def _first(arguments: argparse.Namespace) -> int:
    given: int | None = arguments.first
    return _first_by_clock() if given is None else given


def _count(arguments: argparse.Namespace) -> int:
    rate: float = arguments.rate
    seconds: float | None = arguments.seconds
    if seconds is None:
        return arguments.count or _DEFAULT_COUNT
    if not rate:
        arguments.usage_error("--seconds needs a --rate: flat out, give a --count")
    return max(1, round(rate * seconds))


def _first_by_clock() -> int:
    """Count tenths of a microsecond of 11 days: flat out, a load needs 6 of them a call."""
    return time.time_ns() // 100 % _CLOCK_NUMBERS


@contextlib.contextmanager
def _progress_bar(total: int) -> Iterator[Callable[[int], None] | None]:
    """Show a bar on stderr while this lasts, when stderr is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    # Imported here, since rich takes longer to load than most commands run.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("reports", total=total)
        yield lambda written: bar.update(task, completed=written)


def _target(text: str) -> tuple[str, int]:
    host, port = address(text)
    if port == 0:
        raise argparse.ArgumentTypeError(f'nothing can listen on port 0, as in "{text}"')
    return host, port
