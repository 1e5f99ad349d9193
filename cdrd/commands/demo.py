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
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import structlog
from rich.console import Console
from rich.table import Table

from cdrd.address import format_address, parse_address
from cdrd.exits import EXIT_DONE, EXIT_FAILED
from cdrd.frame import KIB
from cdrd.log import CALL_RELEASED
from cdrd.simulate.load import LoadFailed, send_load
from cdrd.simulate.pbx import SimulatedPBX, at_least
from cdrd.store import open_reader

DIALLED: Final = "dialled"
CONNECTS: Final = "connects"

DIALLED_RATE: Final = 3  # calls a second
CONNECTS_RATE: Final = 5
DIALLED_EVENTS: Final = 3  # other events with each call
CONNECTS_EVENTS: Final = 2
CONNECTIONS: Final = 2

ARRIVE_SECONDS: Final = 10.0
"""So long may the last reports take to become log lines; usually it is milliseconds."""

END_SECONDS: Final = 20.0
LINE_BYTES: Final = 1024 * KIB

_CONFIG: Final = """\
database.path = "cdr.sqlite3"
tcp.listen = ["127.0.0.1:0"]
log.format = "json"

[[pbx]]
name = "dialled"
[pbx.events]
kind = "tcp"
address = "{address}"
username = "api"
password_file = "password"

[[pbx]]
name = "connects"
peers = ["127.0.0.1"]
"""


class DemoFailed(Exception):
    """The demo could not be played to its end; the text says why."""


@dataclass(slots=True)
class Sent:
    """What one simulated PBX has sent so far."""

    reports: int = 0
    events: int = 0


@dataclass(slots=True)
class Outcome:
    """What was sent, what the database holds of it, and what the log told, by PBX."""

    sent: dict[str, Sent]
    stored: Mapping[str, int] = field(default_factory=dict)
    logged: Mapping[str, int] = field(default_factory=dict)
    stopped: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accounted(self) -> bool:
        """Whether the identity of ``stopped`` holds."""
        parts = ("stored", "duplicate", "quarantined", "passed_over")
        return bool(self.stopped) and self.stopped["received"] == sum(
            self.stopped[part] for part in parts
        )

    @property
    def agrees(self) -> bool:
        """Whether each report that was sent is a row and a log line, and all is accounted for."""
        return self.accounted and all(
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
        help="so long the PBXs send reports (default: 5)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Play the demo; Ctrl-C ends it with the summary so far."""
    try:
        with tempfile.TemporaryDirectory(prefix="cdrd-demo-") as directory:
            outcome = asyncio.run(_demo(Path(directory), arguments.seconds))
    except BrokenPipeError:
        raise  # whoever read our output has left: no failure of the demo
    except (DemoFailed, LoadFailed, OSError, sqlite3.Error) as error:
        print(f"cdrd demo: {error}", file=sys.stderr)
        return EXIT_FAILED
    if outcome is None:
        return EXIT_DONE
    _show(outcome)
    return EXIT_DONE if outcome.agrees else EXIT_FAILED


async def _demo(directory: Path, seconds: int) -> Outcome | None:
    """Play until all is sent or a signal comes; None when that was before anything was sent."""
    interrupted = _watch_for_signals()
    pbx = SimulatedPBX()
    await pbx.start()
    try:
        _write_configuration(directory, pbx)
        async with _running_daemon(directory) as daemon:
            play = Play(daemon, pbx, seconds)
            ended = await _first(play.run(), interrupted.wait(), daemon.ended())
            if not ended and not any(sent.reports for sent in play.sent.values()):
                return None
            await daemon.wait_for(lambda: play.has_arrived)
    finally:
        await pbx.close()
    stored = _count_rows(directory / "cdr.sqlite3")
    return Outcome(play.sent, stored, daemon.released, daemon.stopped)
