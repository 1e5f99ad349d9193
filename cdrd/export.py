"""Turns a selection into the rows of an export, all of one moment, and counts them beforehand.

The rule that must stay true: what is counted is what is read. Both happen in one read transaction,
so that a daemon that goes on writing changes neither; until its end the WAL cannot be cut back.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from typing import Any, Final

from cdrd.columns import Kind, Layout, Records
from cdrd.period import ALWAYS, Period, spell_instant
from cdrd.selection import Condition, Selection

LIMIT: Final = 65_000
"""Records that a file may have where nothing else is asked for: what spreadsheets used to hold, and
the portals' own exports stop at."""

UNDATED: Final = "undated"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The selected records as they are at one moment; made with ``open_snapshot``."""

    reader: sqlite3.Connection
    records: Records
    selection: Selection

    def count(self) -> int:
        """Count them."""
        return self._counted(self._condition())

    def months(self, zone: tzinfo) -> dict[str, int]:
        """Count them by month, as the zone's calendar has it; an index leads from one to the next.

        Those that have no time, or one that no calendar has, come last, as ``UNDATED``.
        """
        start, end = self.selection.period
        months: dict[str, int] = {}
        dated = 0
        while first := self._first_from(start):
            try:
                name, following = _month(first, zone)
            except (ValueError, OverflowError):
                break
            within = Period(first, min(following, end) if end else following)
            months[name] = self._counted(self._condition(within))
            dated += months[name]
            start = following
        undated = self.count() - dated
        return months | ({UNDATED: undated} if undated else {})

    def senders(self) -> list[str]:
        """Name the PBXs or portals that they are of."""
        query = f"SELECT DISTINCT {self.records.view.sender} FROM {self.records.table}"  # noqa: S608
        return sorted(sender for (sender,) in self._select(query, self._condition()))

    def longer_texts(self, layout: Layout, longest: int) -> list[int]:
        """Return the ``seq`` of records with a text of more UTF-16 units than ``longest``."""
        texts = [column.name for column in layout.columns if column.kind is not Kind.INTEGER]
        if not texts:
            return []
        maybe = " OR ".join(f"length({name}) > {longest // 2}" for name in texts)
        found = self._select(
            f"SELECT seq, {', '.join(texts)} FROM {self.records.view.name}",  # noqa: S608 - ours
            self._condition(),
            f"AND ({maybe})",
        )
        return [
            seq
            for seq, *texts in found
            if any(text and len(text.encode("utf-16-le")) // 2 > longest for text in texts)
        ]

    def rows(self, query: str) -> sqlite3.Cursor:
        """Read what ``query`` selects of them: by time in a range of time, else by ``seq``.

        Either is an index's order, so that rows come at once and nothing is sorted or kept.
        """
        order = "seq" if self.selection.period == ALWAYS else self.records.view.started
        return self._select(query, self._condition(), f"ORDER BY {order}")

    def _condition(self, period: Period | None = None) -> Condition:
        selection = replace(self.selection, period=period) if period else self.selection
        return selection.condition(self.records.view)

    def _select(self, query: str, condition: Condition, more: str = "") -> sqlite3.Cursor:
        text, arguments = condition
        return self.reader.execute(f"{query} WHERE {text} {more}", arguments)

    def _counted(self, condition: Condition) -> int:
        query = f"SELECT count(*) FROM {self.records.table}"  # noqa: S608 - a name of our own
        (count,) = self._select(query, condition).fetchone()
        return int(count)

    def _first_from(self, instant: str) -> str:
        """Return the first time of a record from an instant on, "" where there is none."""
        started = self.records.view.started
        query = f"SELECT {started} FROM {self.records.table}"  # noqa: S608 - names of our own
        condition = self._condition(Period(instant or "0", self.selection.period.end))
        found = self._select(query, condition, f"ORDER BY {started} LIMIT 1").fetchone()
        return str(found[0]) if found else ""


@contextlib.contextmanager
def open_snapshot(
    reader: sqlite3.Connection, records: Records, selection: Selection
) -> Iterator[Snapshot]:
    """Hold the database still for one reader. Raises sqlite3.Error, also while it is read."""
    reader.execute("BEGIN")
    try:
        yield Snapshot(reader, records, selection)
    finally:
        reader.execute("ROLLBACK")


def pages(rows: sqlite3.Cursor, page_rows: int, limit: int) -> Iterator[list[Any]]:
    """Read the next rows in pages, at most ``limit`` of them."""
    while limit > 0 and (page := rows.fetchmany(min(page_rows, limit))):
        yield page
        limit -= len(page)


def _month(instant: str, zone: tzinfo) -> tuple[str, str]:
    """Return the month of an instant in a zone, and the instant at which the next begins."""
    local = datetime.fromisoformat(instant).astimezone(zone)
    years, month = divmod(local.year * 12 + local.month, 12)
    following = datetime(years, month + 1, 1, tzinfo=zone)
    return local.isoformat()[:7], spell_instant(following)
