"""Turns events and committed rows into log lines on standard output.

The rule that must stay true: nobody waits for whoever reads the log. Lines are rendered where the
event happens and written by a thread of their own, in order; ``logged_seq`` is only what was
really written, so that a crash in between is made up for on the next start.
"""

import errno
import hashlib
import logging
import os
import re
import select
import stat
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping
from functools import lru_cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, Protocol

import orjson
import structlog

from cdrd.block import StoredRows
from cdrd.line import CALL_RELEASED, spell_tail, told_fields
from cdrd.record import CallRecord
from cdrd.sizes import MIB

Logger = structlog.typing.FilteringBoundLogger
NumberRule = Callable[[str], str]

WAITING_LIMIT_BYTES: Final = 8 * MIB
"""More than this is not rendered ahead of a reader of the log that does not read."""

DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
DISK_SECONDS: Final = 1.0
"""So long a full disk that the log's file is on is given before it is tried again."""

PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""syslog's priorities, as journald takes them off the front of a line."""

_RECORDING = re.compile(r"(\d{14}-[\d.]+)-(.*)-(.*)-(\w+\.\w+)")  # time-callid-from-to-Type.wav
_DIGITS = re.compile(r"\d+")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class LineWriter:
    """Writes lines to a file descriptor in a thread of its own."""

    def __init__(self, descriptor: int) -> None:
        self.least_level = logging.INFO  # what is below it is not told
        self.number_rule: NumberRule = str
        self.failure = ""
        self.left_out = 0  # lines that had no room and do not follow
        self._descriptor = descriptor
        self._queue: SimpleQueue[tuple[bytes, int, int, int] | None] = SimpleQueue()
        self._written_seq = 0
        self._held: list[int] = []
        self._beginnings = 0
        self._waiting_bytes = 0
        self._waiting_entries = 0
        self._released = False
        self._leaving = False
        self._within_line = _ends_within_line(descriptor)
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether the reader of the log is too far behind to render more."""
        return self._waiting_bytes > WAITING_LIMIT_BYTES and not self._released

    @property
    def logged_seq(self) -> int:
        """Up to where all rows are told, by what was really written."""
        with self._changed:
            return min([self._written_seq, *(seq - 1 for seq in self._held)])

    def write(self, lines: bytes, last_seq: int = 0, held: int = 0) -> None:
        """Take lines to be written; ``last_seq``: the row that the last of them tells.

        ``held``: what is let go once all that was taken so far is written.
        """
        with self._changed:
            self._waiting_bytes += len(lines)
            self._waiting_entries += 1
        self._queue.put((lines, last_seq, self._beginnings, held))

    def hold(self, seq: int) -> None:
        """Count no row from this ``seq`` on as told: one that was free may become a row."""
        with self._changed:
            self._held.append(seq)

    def let_go(self, seq: int) -> None:
        """End a ``hold``."""
        with self._changed:
            self._held.remove(seq)

    def begin_anew(self, logged_seq: int) -> None:
        """Count from another ``seq``: the database is another one, or an older state of it."""
        with self._changed:
            self._beginnings += 1
            self._written_seq = logged_seq

    @property
    def released(self) -> bool:
        """Whether the daemon stops, and nobody waits for the log's reader any more."""
        return self._released

    def wait_until_room(self) -> None:
        """Block until the reader of the log has caught up by half, or ``release`` is called."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._released or self._waiting_bytes <= WAITING_LIMIT_BYTES // 2
            )

    def release(self) -> None:
        """Let nobody wait for the log's reader any more: the daemon stops.

        What is not written by then is told on the next start.
        """
        with self._changed:
            self._released = True
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Block until all is written; False where that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting_entries, seconds)

    def finish(self, seconds: float) -> None:
        """Write what waits, in time: the calls that are left by then are told on the next start.

        What is being written is given as long again, so that it is not told twice.
        """
        if not self.flush(seconds):
            self._leaving = True
            self.flush(seconds)

    def close(self, seconds: float) -> None:
        """Write what waits and end the thread; one that hangs in a write is left behind."""
        self._queue.put(None)
        if self.flush(seconds):
            self._thread.join(seconds)

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            lines, last_seq, beginning, held = entry
            try:
                if self._leaving and last_seq:
                    last_seq = 0
                else:
                    self._write_all(lines)
            except OSError as error:
                # The rows are stored; those that were not told are told on the next start.
                self.failure = self.failure or str(error)
                last_seq = 0
            with self._changed:
                if not self.failure and beginning == self._beginnings:
                    self._written_seq = max(self._written_seq, last_seq)
                if held and not (self.failure or self._leaving):
                    self.let_go(held)
                self._waiting_bytes -= len(lines)
                self._waiting_entries -= 1
                self._changed.notify_all()

    def _write_all(self, lines: bytes) -> None:
        if self._within_line:  # what was given up there is no line, and ours are not to join it
            lines = b"\n" + lines
        rest = memoryview(lines)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                # Somebody made our standard output non-blocking: a terminal is shared so.
                select.select([], [self._descriptor], [])
                continue
            except OSError as error:
                if error.errno in DISK_FULL and self._wait_for_disk():
                    continue
                if len(rest) < len(lines):
                    self._within_line = lines[-len(rest) - 1] != ord("\n")
                raise
        self._within_line = False

    def _wait_for_disk(self) -> bool:
        """Wait a while; False where the daemon stops, and the next start has to tell the rest."""
        with self._changed:
            return not self._changed.wait_for(lambda: self._released, DISK_SECONDS)


def _ends_within_line(descriptor: int) -> bool:
    """Tell whether a log file ends in the middle of a line: a full disk has cut an earlier run's.

    It is open for writing alone, so it is opened again; a file that we may not read has to do.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return False
    try:
        with Path(f"/proc/self/fd/{descriptor}").open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() != b"\n"
    except OSError:
        return False


class _Output:
    """What structlog hands a rendered event to: its lines, and the last row they tell."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer

    def msg(self, lines: bytes, last_seq: int = 0) -> None:
        self._writer.write(lines, last_seq)

    debug = info = warning = error = critical = msg


def make_logger(
    writer: LineWriter,
    *,
    console: bool = False,
    journal: bool = False,
    level: str = "info",
) -> Logger:
    """Make the daemon's logger. A ``call_released`` event carries a batch: a line for each row.

    The level and the rule for numbers are the writer's, where they may be changed.
    """
    set_level(writer, level)
    form = _ConsoleLines() if console else _JsonLines(journal=journal)
    logger: Logger = structlog.wrap_logger(
        _Output(writer),
        processors=[
            partial(_drop, writer),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            partial(_render, form, writer),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        cache_logger_on_first_use=True,
    )
    return logger


def set_level(writer: LineWriter, level: str) -> None:
    """Tell from now on what is of this level (``info``) or above."""
    writer.least_level = logging.getLevelNamesMapping()[level.upper()]


def _drop(
    writer: LineWriter, _logger: object, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Drop what is below the level, and what a reader that does not read would make us hold.

    A call's line is asked for only when there is room, and follows from the database otherwise;
    an error is rare. The others come as often as a peer likes, one for each broken report.
    """
    level = logging.getLevelNamesMapping()[method.upper()]
    if level < writer.least_level:
        raise structlog.DropEvent
    if writer.full and level < logging.ERROR and "rows" not in event:
        writer.left_out += 1
        raise structlog.DropEvent
    return event


def log_calls(logger: Logger, writer: LineWriter, rows: StoredRows) -> None:
    """Log one ``call_released`` line for each row of a commit, unless the level leaves them out."""
    if not rows.last_seq:
        return
    if writer.least_level <= logging.INFO:
        logger.info(CALL_RELEASED, rows=rows)
    else:
        writer.write(b"", rows.last_seq)


def under_journald(environment: Mapping[str, str], descriptor: int = 1) -> bool:
    """Tell whether a descriptor is journald's stream, by systemd's documented test."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def number_rule(how: str, key: bytes) -> NumberRule:
    """Return how subscriber numbers appear in the log: ``full``, ``masked`` or ``hashed``."""
    match how:
        case "masked":
            return _mask
        case "hashed":
            return lru_cache(4096)(partial(_hash, key))
        case _:
            return str


def _mask(number: str) -> str:
    """Hide the last four characters."""
    return number[:-4] + "*" * min(4, len(number))


def _hash(key: bytes, number: str) -> str:
    return hashlib.blake2b(number.encode(), key=key, digest_size=8).hexdigest() if number else ""


def _hide_in_recording(rule: NumberRule, recording: str) -> str:
    """Apply the rule to the two numbers in a recording's file name, to any digits in another."""
    directory, slash, name = recording.rpartition("/")
    parts = _RECORDING.fullmatch(name)
    if parts is None:
        return _DIGITS.sub(lambda digits: rule(digits[0]), recording)
    hidden = f"{parts[1]}-{rule(parts[2])}-{rule(parts[3])}-{parts[4]}"
    return _DIGITS.sub(lambda digits: rule(digits[0]), directory) + slash + hidden


class _Form(Protocol):
    """How the log looks."""

    def event(self, fields: dict[str, Any]) -> bytes:
        """Render an event as a line."""

    def rows(self, head: dict[str, Any], rows: StoredRows, rule: NumberRule) -> bytes:
        """Render rows, a line each, with what they share at the head of each."""


def _render(
    form: _Form,
    writer: LineWriter,
    _logger: object,
    _method: str,
    event: MutableMapping[str, Any],
) -> tuple[tuple[bytes, int], dict[str, Any]]:
    """Render an event as a line, or the rows of a ``call_released`` event as a line each.

    structlog's chain takes 10.7 us an event; so it runs once a commit.
    """
    rows = event.pop("rows", None)
    fields = {name: event.pop(name) for name in ("timestamp", "level", "event")} | dict(event)
    if rows is None:
        return (form.event(fields), 0), {}
    return (form.rows(fields, rows, writer.number_rule), rows.last_seq), {}


class _JsonLines:
    """JSON, an object a line; for journald behind the priority, which it takes off."""

    def __init__(self, *, journal: bool) -> None:
        self._journal = journal

    def event(self, fields: dict[str, Any]) -> bytes:
        told = {  # orjson takes no path with bytes that are no UTF-8
            key: value.encode(errors="replace").decode() if isinstance(value, str) else value
            for key, value in fields.items()
        }
        return self._prefix(fields) + orjson.dumps(told, str, orjson.OPT_APPEND_NEWLINE)

    def rows(self, head: dict[str, Any], rows: StoredRows, rule: NumberRule) -> bytes:
        begun = self._prefix(head) + orjson.dumps(head)[:-1] + b',"seq":'
        if rule is str:
            return rows.lines(begun.decode()).encode()
        hidden = ((seq, _hide(rule, record)) for seq, record in rows.records())
        tails = (b"%d%b\n" % (seq, spell_tail(record).encode()) for seq, record in hidden)
        return b"".join(begun + tail for tail in tails)

    def _prefix(self, fields: dict[str, Any]) -> bytes:
        return b"<%d>" % PRIORITIES[fields["level"]] if self._journal else b""


class _ConsoleLines:
    """For a terminal; what a caller put into a name must not command it."""

    def __init__(self) -> None:
        self._renderer = structlog.dev.ConsoleRenderer()

    def event(self, fields: dict[str, Any]) -> bytes:
        shown = {
            key: _CONTROL.sub("\N{REPLACEMENT CHARACTER}", value)
            if isinstance(value, str)
            else value
            for key, value in fields.items()
            if value is not None
        }
        return f"{self._renderer(None, '', shown)}\n".encode(errors="replace")

    def rows(self, head: dict[str, Any], rows: StoredRows, rule: NumberRule) -> bytes:
        calls = ((seq, told_fields(_hide(rule, record))) for seq, record in rows.records())
        return b"".join(self.event(head | {"seq": seq} | fields) for seq, fields in calls)


def _hide(rule: NumberRule, record: CallRecord) -> CallRecord:
    """Apply the rule to the subscriber numbers of a record."""
    if rule is str:
        return record
    recording = _hide_in_recording(rule, record.recording)
    return record._replace(
        caller=rule(record.caller), callee=rule(record.callee), recording=recording
    )


def use_console(wanted: str) -> bool:
    """Tell whether the log is for people: ``console``, or ``auto`` on a terminal."""
    return wanted == "console" or (wanted == "auto" and sys.stdout.isatty())
