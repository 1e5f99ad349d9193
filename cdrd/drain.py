"""Turns a spool into rows, as soon as the database is usable again.

The rule that must stay true: the spool goes only when all of it is committed. What a crash has read
twice by then adds nothing: a record is one row, and a quarantined report is known by its time, its
peer and its bytes.
"""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cdrd.background import to_its_end
from cdrd.database import check_in_place, is_damage
from cdrd.log import Logger
from cdrd.spool import Piece
from cdrd.store import Store, StoreUnusable
from cdrd.sync import sync
from cdrd.writer import Writer

LOOK_SECONDS: Final = 10.0


class Drainer:
    """Looks whether a damaged database is usable again, and drains the spool of any."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        log: Logger,
        numbers: str,
        *,
        reopened: Callable[[], None],
        look_seconds: float,
    ) -> None:
        """Take who writes; ``numbers``: how subscriber numbers appear in the log.

        ``reopened`` is called when the database may be another one, before that stores anything.
        """
        self._store = store
        self._writer = writer
        self._log = log
        self._numbers = numbers
        self._reopened = reopened
        self._look_seconds = look_seconds
        self._seen: object = None  # the files as they were at the last look, which was in vain

    async def begin(self) -> None:
        """Go on with the log where an earlier run has left it, if the database can be read."""
        try:
            if not self._store.damage:
                await self._take_up()
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            await self._store.give_up(str(error))
        if self._store.damage:
            self._writer.tell_damage()

    async def run(self) -> None:
        """Look until cancelled; at once too, for what an earlier run has left in the spool."""
        while True:
            if not self._store.damage:
                await self._look_in_place()
            if self._store.damage:
                await self._reopen()
            if not self._store.damage:
                await self._drain()
            await asyncio.sleep(self._look_seconds)

    async def _take_up(self) -> None:
        await self._writer.calls.take_up(self._numbers)

    async def _take_up_anew(self) -> None:
        self._reopened()
        await self._take_up()

    async def _look_in_place(self) -> None:
        """Find out whether the database is the file that is open, while nothing is committed."""
        try:
            await self._store.run(check_in_place)
        except sqlite3.Error as error:
            await to_its_end(self._writer.give_up_damaged(error))

    async def _reopen(self) -> None:
        """Open the database anew if its files have changed since the last look, and are whole."""
        files = await asyncio.to_thread(_stamp, self._store.path)
        if files == self._seen:
            return
        try:
            await self._store.reopen(self._take_up_anew)
        except sqlite3.OperationalError:
            return  # not there, or locked by who repairs it
        except (sqlite3.Error, StoreUnusable) as error:
            if self._seen is not None or isinstance(error, StoreUnusable):
                # It is another file, and that is no better.
                self._store.damage = str(error)
                self._writer.tell_damage()
            self._seen = files
        else:
            self._seen = None
            self._log.info("database_reopened")

    async def _drain(self) -> None:
        spool = self._writer.spool
        begin = line = 0
        counts: Counter[str] = Counter()
        try:
            if not await asyncio.to_thread(lambda: spool.size):
                return
            while True:
                piece = await asyncio.to_thread(spool.read, begin, line)
                if piece.next_byte == begin and await asyncio.to_thread(self._remove, begin):
                    break
                counts.update(await self._commit(piece))
                begin, line = piece.next_byte, piece.next_line
        except (sqlite3.Error, OSError) as error:
            if not self._store.damage:  # that was told
                self._log.warning("drain_failed", error=str(error), retry_in=self._look_seconds)
        else:
            self._log.info(
                "spool_drained",
                stored=counts["stored"],
                duplicate=counts["duplicate"],
                quarantined=counts["quarantined"],
                damaged=counts["damaged"],
            )

    def _remove(self, end: int) -> bool:
        """Remove the spool once its rows are as durable as its lines; tell whether that was all.

        With ``normal`` durability a commit is not synced. A checkpoint is.
        """
        sync(Path(f"{self._store.path}-wal"))
        return self._writer.spool.remove(end)

    async def _commit(self, piece: Piece) -> dict[str, int]:
        for place, why in piece.damaged:
            kept = str(self._writer.spool.damaged_path)
            self._log.error("spool_line_damaged", line=place, why=why, kept=kept)
        if not piece.batch:
            return {"damaged": len(piece.damaged)}
        committed = await to_its_end(self._writer.commit_beside(piece.batch))
        return {**committed.counts, "damaged": len(piece.damaged)}


def _stamp(database: Path) -> object:
    """Tell the files of a database from what they are after a change."""
    return [_stamp_of(Path(f"{database}{ending}")) for ending in ("", "-wal")]


def _stamp_of(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    # Not the time of change: SQLite sets a WAL's owner anew whenever root opens it.
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode, status.st_uid
