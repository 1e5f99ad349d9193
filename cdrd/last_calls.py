"""Turns the rows of all PBXs into when the last call of each began, and reads no row twice for it.

The rule that must stay true: to be asked often is cheap, however many calls there are and however
long a PBX has had none. A purge does not change when a last call began.
"""

import contextlib
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cdrd.database import open_reader
from cdrd.period import spell_instant

LOOK_BACK: Final = timedelta(days=8)
"""A last call that is older is not looked for: its silence was told long ago."""

AHEAD: Final = timedelta(days=1)
"""A PBX whose clock is ahead shall not look silent, one that is a year ahead not alive."""


_HOURS: Final = """
    SELECT pbx, substr(started_at, 1, 13) AS hour, max(started_at) FROM call WHERE {}
    GROUP BY pbx, hour
"""


class LastCalls:
    """When the last call of each PBX began; may be asked from several threads."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._reading = threading.Lock()
        self._asked, self._answered = 1, 0  # how often all rows were to be read, and were
        self._seq = 0  # up to this one all rows are read
        self._last: dict[str, str] = {}
        self._to_come: dict[tuple[str, str], str] = {}  # what is too far ahead: one for each hour

    def read_anew(self) -> None:
        """Have all rows read once more: some may be new whose ``seq`` is not."""
        self._asked += 1

    def until(self, now: datetime) -> dict[str, datetime]:
        """Return when each began, as far as it is no longer ago than 8 days. Raises sqlite3.Error.

        The first time, or anew, it reads 8 days of calls; then only what was stored since.
        """
        oldest, latest = spell_instant(now - LOOK_BACK), spell_instant(now + AHEAD)
        with self._reading:
            if any(start > latest for start in self._last.values()):  # our clock was set back
                self._last.clear()
                self.read_anew()
            self._read(oldest)
            for (pbx, hour), start in list(self._to_come.items()):
                if start <= latest:
                    del self._to_come[pbx, hour]
                    self._last[pbx] = max(start, self._last.get(pbx, ""))
            last = self._last.items()
            return {pbx: datetime.fromisoformat(start) for pbx, start in last if start >= oldest}

    def _read(self, oldest: str) -> None:
        asked = self._asked  # first: what is asked for meanwhile is for the next time
        unread = "started_at >= :oldest"
        if asked == self._answered:
            unread = "+started_at >= :oldest AND seq > :seq"  # +: not by the index of the times
        bounds = {"oldest": oldest, "seq": self._seq}
        with contextlib.closing(open_reader(self._database)) as reader:
            (newest,) = reader.execute("SELECT coalesce(max(seq), 0) FROM call").fetchone()
            hours = reader.execute(_HOURS.format(unread), bounds).fetchall()
        self._to_come.update(((pbx, hour), start) for pbx, hour, start in hours)
        self._answered, self._seq = asked, newest
