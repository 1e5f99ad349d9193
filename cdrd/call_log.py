"""Turns committed rows into their log lines: at once, or from the database when the log is behind.

The rule that must stay true: every row gets its line, and nobody waits for whoever reads the log.
Rows whose lines would not fit in memory are read again once there is room for them.
"""

import asyncio
import sqlite3
from dataclasses import replace
from typing import Final

from cdrd.block import StoredRows, rows_of
from cdrd.log import LineWriter, Logger, log_calls, number_rule
from cdrd.progress import read_progress, read_records
from cdrd.store import Store

PAGE_ROWS: Final = 1000
RETRY_SECONDS: Final = 1.0


class CallLog:
    """The lines of all rows, in the order of ``seq``."""

    def __init__(self, store: Store, log: Logger, lines: LineWriter) -> None:
        self._store = store
        self._log = log
        self._lines = lines
        self._told = lines.logged_seq  # up to here all rows are handed to ``lines``
        self._behind = asyncio.Event()

    async def take_up(self, numbers: str) -> None:
        """Go on where the database says that its log has ended. Raises sqlite3.Error.

        ``numbers``: how subscriber numbers appear. Of what an earlier run has left untold, which
        may be much, the first page is told, and the rest by ``run``.
        """
        progress = await self._store.run(read_progress)
        self._lines.begin_anew(progress.logged_seq)
        self._lines.number_rule = number_rule(numbers, progress.number_key)
        self._told = progress.logged_seq
        self._behind.set()
        if not self._lines.full:
            await self._tell_page()

    def tell(self, rows: StoredRows) -> None:
        """Tell the new rows of a commit, now or later: in the order of the commits, and at once.

        Else ``run`` could have read them meanwhile, and they would be told twice.
        """
        if self._lines.full:
            self._behind.set()
        if self._behind.is_set():  # an import may have filled a place before what is told
            rows = replace(rows, seqs=[seq if seq <= self._told else 0 for seq in rows.seqs])
        if rows.last_seq:
            self._told = max(self._told, rows.last_seq)
            log_calls(self._log, self._lines, rows)

    def look_behind(self) -> None:
        """Have ``run`` look for rows whose commit was not heard of."""
        self._behind.set()

    async def run(self) -> None:
        """Catch up whenever the log is behind, until the daemon stops."""
        while True:
            await self._behind.wait()
            await asyncio.to_thread(self._lines.wait_until_room)
            if self._lines.released:
                return  # what is not told by now is told on the next start
            self._tell_left_out()
            try:
                await self._catch_up()
            except sqlite3.Error:
                await asyncio.sleep(RETRY_SECONDS)  # a damaged database tells of itself

    async def _catch_up(self) -> None:
        """Tell what the database has behind what is told, as far as there is room."""
        while self._behind.is_set() and not (self._lines.full or self._lines.released):
            await self._tell_page()

    def _tell_left_out(self) -> None:
        lines, self._lines.left_out = self._lines.left_out, 0
        if lines:
            self._log.warning("lines_left_out", lines=lines)

    async def _tell_page(self) -> None:
        rows = await self._store.run(read_records, self._told, PAGE_ROWS)
        if len(rows) < PAGE_ROWS:
            # What is committed from here on is told by its commit: that has not returned yet.
            self._behind.clear()
        if rows:
            self._told = rows[-1][0]
            log_calls(self._log, self._lines, rows_of(rows))
