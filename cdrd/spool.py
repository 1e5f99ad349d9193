"""Turns what the database does not take into a file beside it, and the file into batches.

The rule that must stay true: what ``append`` has returned from is on the disk, and a line leaves
the file only when ``remove`` is told that all up to the file's end is committed.
"""

import errno
import os
import threading
from pathlib import Path
from typing import Final, NamedTuple

from cdrd.batch import Batch
from cdrd.owner import open_owned
from cdrd.sizes import MIB
from cdrd.spool_line import DamagedLine, read_lines, spell_lines
from cdrd.sync import sync

LIMIT_BYTES: Final = 256 * MIB
"""A full spool is like a full disk: reading pauses until there is room."""

PIECE_BYTES: Final = MIB
MODE: Final = 0o640
"""As the database's: the lines hold the same numbers and PIN codes."""


class Piece(NamedTuple):
    """Some lines of a spool: what they hold, those set aside, and where the next ones begin."""

    batch: Batch
    damaged: list[DamagedLine]
    next_byte: int
    next_line: int


class Spool:
    """The file; its methods block, may be called in any thread, and raise OSError."""

    def __init__(self, database: Path, limit: int = LIMIT_BYTES) -> None:
        self.path = Path(f"{database}.spool")
        self.damaged_path = Path(f"{database}.spool.damaged")
        self._database = database
        self._limit = limit
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """The file's bytes; 0 without a file."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def append(self, batch: Batch) -> None:
        """Keep the records and the quarantined reports of a batch, durably and whole or not."""
        # In front an end of line, in case a crash has left the last one without.
        lines = b"\n" + b"".join(spell_lines(batch))
        with self._lock:
            if self.size + len(lines) > self._limit:
                raise OSError(errno.ENOSPC, "the spool may not grow further", str(self.path))
            _append(self.path, lines, self._database)

    def read(self, begin: int, line: int = 0) -> Piece:
        """Read the lines that begin at a byte, of which ``line`` have come before.

        Those that are damaged are set aside, in a file of their own.
        """
        with self._lock, self.path.open("rb") as file:
            file.seek(begin)
            lines = file.readlines(PIECE_BYTES)
            end = file.tell()
        batch, damaged = read_lines(lines)
        if damaged:
            self._set_aside([lines[each.place] for each in damaged])
        numbered = [each._replace(place=line + each.place + 1) for each in damaged]
        return Piece(batch, numbered, end, line + len(lines))

    def remove(self, end: int) -> bool:
        """Remove the file if all of it, up to its byte ``end``, is committed; tell whether."""
        with self._lock:
            if self.size > end:
                return False
            self.path.unlink(missing_ok=True)
            sync(self.path.parent)
            return True

    def _set_aside(self, lines: list[bytes]) -> None:
        """Keep damaged lines once, however often they are read."""
        path = self.damaged_path
        known = set(path.read_bytes().splitlines()) if path.exists() else set()
        new = [line.rstrip(b"\n") + b"\n" for line in lines if line.rstrip(b"\n") not in known]
        if new:
            _append(path, b"".join(new), self._database)


def _append(path: Path, lines: bytes, database: Path) -> None:
    file = open_owned(path, MODE, database)
    try:
        size = os.lseek(file, 0, os.SEEK_END)
        try:
            _write_all(file, lines)
            os.fsync(file)
        except OSError:
            os.ftruncate(file, size)  # the same lines come again
            raise
    finally:
        os.close(file)
    sync(path.parent)  # each time: a run that was killed may have made the file just before


def _write_all(file: int, lines: bytes) -> None:
    rest = memoryview(lines)
    while rest:
        rest = rest[os.write(file, rest) :]
