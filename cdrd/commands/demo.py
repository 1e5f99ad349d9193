"""``cdrd demo``: the main job with nothing configured, and a summary that holds it to account.

A simulated PBX is dialled, another one connects; the real daemon, as a program of its own, stores
what they send. The rule that must stay true: nothing is left behind, however the demo ends.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sqlite3
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import structlog
from rich.console import Console
from rich.table import Table

from cdrd.address import format_address, parse_address
from cdrd.database import open_reader
from cdrd.exits import EXIT_DONE, EXIT_FAILED
from cdrd.line import CALL_RELEASED
from cdrd.simulate.arguments import at_least
from cdrd.simulate.load import send_load
from cdrd.simulate.pbx import SimulatedPBX
from cdrd.simulate.sent import LoadFailed
from cdrd.sizes import KIB

DIALLED: Final = "dialled"
DIALLED_RATE: Final = 3  # calls a second
DIALLED_EVENTS: Final = 3  # other events with each call

CONNECTS: Final = "connects"
CONNECTS_RATE: Final = 5
CONNECTS_EVENTS: Final = 2
CONNECTIONS: Final = 2

BEGIN_SECONDS: Final = 30.0
ARRIVE_SECONDS: Final = 10.0
"""So long may the last reports take to become log lines; usually it is milliseconds."""

END_SECONDS: Final = 20.0
LINE_BYTES: Final = 1024 * KIB
DATABASE: Final = "cdr.sqlite3"
CONFIG: Final = "config.toml"

# The daemon runs in the demo's directory, and so the paths need no more than a name.
_SETTINGS: Final = f"""\
database.path = "{DATABASE}"
tcp.listen = ["127.0.0.1:0"]
log.format = "json"

[[pbx]]
name = "{DIALLED}"
[pbx.events]
kind = "tcp"
address = "%s"
username = "api"
password_file = "password"

[[pbx]]
name = "{CONNECTS}"
peers = ["127.0.0.1"]
"""


class DemoFailed(Exception):
    """The demo could not be played to its end; the text says why."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What a simulated PBX has sent so far."""

    reports: int
    events: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """By PBX: what was sent, what the database holds and the log told; and the line ``stopped``."""

    sent: Mapping[str, Sent]
    stored: Mapping[str, int]
    logged: Mapping[str, int]
    stopped: Mapping[str, Any]

    @property
    def is_accounted(self) -> bool:
        """Whether the identity of ``stopped`` holds."""
        parts = ("stored", "duplicate", "quarantined", "passed_over", "spooled")
        received = self.stopped.get("received")
        return received is not None and received == sum(self.stopped[part] for part in parts)

    @property
    def agrees(self) -> bool:
        """Whether each report is a row and a log line, and everything received is accounted for."""
        return self.is_accounted and all(
            sent.reports == self.stored.get(pbx, 0) == self.logged.get(pbx, 0)
            for pbx, sent in self.sent.items()
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add how long to play."""
    parser.add_argument(
        "--seconds",
        type=at_least(1),
        default=5,
        metavar="N",
        help="how long the PBXs send reports (default: 5)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Play the demo; Ctrl-C ends it with the summary so far."""
    try:
        with tempfile.TemporaryDirectory(prefix="cdrd-demo-") as directory:
            outcome = asyncio.run(_demo(Path(directory), arguments.seconds))
    except BrokenPipeError:
        raise  # whoever read our output has left; that is told apart from a failure elsewhere
    except (DemoFailed, LoadFailed, OSError, sqlite3.Error) as error:
        print(f"cdrd demo: {error}", file=sys.stderr)
        return EXIT_FAILED
    if outcome is None:
        return EXIT_DONE
    _show(outcome)
    return EXIT_DONE if outcome.agrees else EXIT_FAILED


async def _demo(directory: Path, seconds: int) -> Outcome | None:
    """Play until all is sent or a signal comes; None when that came before anything was sent."""
    interrupted = _watch_for_signals()
    pbx = SimulatedPBX()
    await pbx.start()
    try:
        _write_configuration(directory, format_address(*pbx.address))
        async with _running_daemon(directory) as daemon:
            play = _Play(daemon, pbx, seconds)
            await _play_until_interrupted(play, daemon, interrupted)
            await play.wait_for_arrival()
    finally:
        await pbx.close()
    if interrupted.is_set() and not any(sent.reports for sent in play.sent.values()):
        return None
    return Outcome(play.sent, _count_rows(directory / DATABASE), daemon.released, daemon.stopped)


def _watch_for_signals() -> asyncio.Event:
    """Return what is set at the first signal that asks for an end."""
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    return interrupted


def _write_configuration(directory: Path, address: str) -> None:
    (directory / CONFIG).write_text(_SETTINGS % address)
    (directory / "password").write_text("api\n")


class _Daemon:
    """The daemon as a program of its own, and what its log has told so far."""

    def __init__(self, process: Process) -> None:
        self.port = 0
        self.released: Counter[str] = Counter()
        self.stopped: dict[str, Any] = {}
        self._process = process
        self._show_line = _line_shower()
        self._news = asyncio.Event()
        self.reading = asyncio.create_task(self._read())
        self.reading.add_done_callback(lambda _: self._news.set())

    async def wait_for(self, is_so: Callable[[], bool]) -> None:
        """Wait until a line of the log has made it so, or the log has ended."""
        while not is_so() and not self.reading.done():
            self._news.clear()
            await self._news.wait()

    async def stop(self) -> None:
        """End it as a service manager does, and read its log to the end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(END_SECONDS):
                await asyncio.wait({self.reading})
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            told = orjson.loads(line)
            self._show_line(line, told)
            self._take(told)
            self._news.set()

    def _take(self, told: dict[str, Any]) -> None:
        match told["event"]:
            case "listener_opened":
                _, self.port = parse_address(told["address"])
            case "stopped":
                self.stopped = told
            case event if event == CALL_RELEASED:
                self.released[told["pbx"]] += 1


def _line_shower() -> Callable[[bytes, Mapping[str, Any]], None]:
    """Return what shows a log line: as text for people on a terminal, as it is elsewhere."""
    if not sys.stdout.isatty():
        return lambda line, _: print(line.decode(), end="", flush=True)
    renderer = structlog.dev.ConsoleRenderer()

    def show(_: bytes, told: Mapping[str, Any]) -> None:
        present = {name: value for name, value in told.items() if value is not None}
        print(renderer(None, "", present), flush=True)

    return show


@contextlib.asynccontextmanager
async def _running_daemon(directory: Path) -> AsyncIterator[_Daemon]:
    """Run the daemon in a session of its own: Ctrl-C is for us, who then end it in order."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cdrd", "serve", "-c", CONFIG),
        stdin=DEVNULL,
        stdout=PIPE,
        cwd=directory,
        env=_environment(),
        start_new_session=True,
        limit=LINE_BYTES,
    )
    daemon = _Daemon(process)
    try:
        yield daemon
    finally:
        await daemon.stop()


def _environment() -> dict[str, str]:
    """Return an environment in which the daemon is the same code as ours, wherever that lies.

    Whoever waits for our own readiness is not to hear of the daemon's.
    """
    environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    return environment | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}


class _Play:
    """Two simulated PBXs that send calls to the daemon, each in its way."""

    def __init__(self, daemon: _Daemon, pbx: SimulatedPBX, seconds: int) -> None:
        self.seconds = seconds
        self._daemon = daemon
        self._pbx = pbx
        self._written = 0

    @property
    def sent(self) -> dict[str, Sent]:
        """What each PBX has sent so far."""
        return {
            DIALLED: Sent(self._pbx.sent, self._pbx.events),
            CONNECTS: Sent(self._written, self._written * CONNECTS_EVENTS),
        }

    async def run(self) -> None:
        """Send all there is to send. Raises LoadFailed and DemoFailed."""
        await self._daemon.wait_for(lambda: self._daemon.port > 0)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._be_dialled())
            tasks.create_task(self._connect())

    async def wait_for_arrival(self) -> None:
        """Wait, within a bound, until the log has a line for each report that was sent."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ARRIVE_SECONDS):
                await self._daemon.wait_for(self._has_arrived)

    def _has_arrived(self) -> bool:
        released = self._daemon.released
        return all(released[pbx] >= sent.reports for pbx, sent in self.sent.items())

    async def _be_dialled(self) -> None:
        await self._pbx.stream(
            count=DIALLED_RATE * self.seconds,
            rate=DIALLED_RATE,
            events=DIALLED_EVENTS,
            patient=True,
        )

    async def _connect(self) -> None:
        await send_load(
            "127.0.0.1",
            self._daemon.port,
            connections=CONNECTIONS,
            count=CONNECTS_RATE * self.seconds,
            rate=CONNECTS_RATE,
            events=CONNECTS_EVENTS,
            started=int(time.time()),
            progress=self._note_written,
        )

    def _note_written(self, written: int) -> None:
        self._written = written


async def _play_until_interrupted(play: _Play, daemon: _Daemon, interrupted: asyncio.Event) -> None:
    """Play; on a signal, end between two reports. Raises DemoFailed and LoadFailed."""
    playing = asyncio.create_task(play.run())
    waiting = asyncio.create_task(interrupted.wait())
    ended, _ = await asyncio.wait(
        {playing, waiting, daemon.reading},
        timeout=BEGIN_SECONDS + play.seconds,
        return_when=asyncio.FIRST_COMPLETED,
    )
    for task in (playing, waiting):
        task.cancel()
    await asyncio.gather(playing, waiting, return_exceptions=True)
    if daemon.reading in ended:
        daemon.reading.result()
        raise DemoFailed("the daemon ended by itself; what it said above tells why")
    if not ended:
        raise DemoFailed("the PBXs could not send all in time; the log above tells why")
    _raise_failure(playing)


def _raise_failure(playing: asyncio.Task[None]) -> None:
    if playing.cancelled() or (failure := playing.exception()) is None:
        return
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    raise failure


def _count_rows(database: Path) -> dict[str, int]:
    """Count each PBX's rows as any other program would: read-only, from the view."""
    with contextlib.closing(open_reader(database)) as reader:
        return dict(reader.execute("SELECT pbx, count(*) FROM calls GROUP BY pbx"))


def _show(outcome: Outcome) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("PBX")
    for heading in ("reports sent", "other events sent", "rows stored", f"{CALL_RELEASED} lines"):
        table.add_column(heading, justify="right")
    for pbx, sent in outcome.sent.items():
        counts = (sent.reports, sent.events, outcome.stored.get(pbx, 0), outcome.logged.get(pbx, 0))
        table.add_row(pbx, *map(str, counts))
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    with console.capture() as captured:  # by itself it would end with 1 on a closed pipe
        console.print(table)
    print(f"\n{captured.get()}\n{_totals(outcome)}\n{_verdict(outcome)}", flush=True)


def _totals(outcome: Outcome) -> str:
    """Spell the identity of the line ``stopped``."""
    if not outcome.stopped:
        return "stopped: the daemon ended without that line"
    parts = ("stored", "duplicate", "quarantined", "passed_over", "spooled")
    told = " + ".join(f"{outcome.stopped[part]} {part}" for part in parts)
    equals = "=" if outcome.is_accounted else "is not"
    return f"stopped: {outcome.stopped['received']} received {equals} {told}"


def _verdict(outcome: Outcome) -> str:
    if outcome.agrees:
        return "all agree: each report that was sent is a row and a log line"
    return "they do not agree: reports sent, rows and log lines differ, or the totals do not add up"
