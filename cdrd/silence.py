"""Turns the hours in which a PBX reports nothing into one alarm, when it is not its habit.

The rule that must stay true: a PBX is compared with itself alone, at the same hours of the weeks
before; one that is quiet every night, or has only begun, is never told to be silent. One that is
silent stays so until it has a newer call.
"""

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import orjson

from cdrd.database import open_reader
from cdrd.last_calls import LOOK_BACK, LastCalls
from cdrd.log import Logger
from cdrd.owner import open_owned
from cdrd.period import spell_instant

CHECK_SECONDS: Final = 300.0
WEEK: Final = timedelta(days=7)
WEEKS: Final = 2
"""So many weeks before have to agree."""

USUAL_CALLS: Final = 10
"""So many calls at the same hours of each of these weeks, and none now: that is no chance."""


class SilenceWatch:
    """Looks, every few minutes, which of ``pbxs`` have fallen silent against their own habit."""

    def __init__(self, database: Path, log: Logger) -> None:
        self._path = Path(f"{database}.silent")
        self.silent = _read_silent(self._path)  # PBX: when its last call began
        self.pbxs: Sequence[str] = ()
        self.last_calls = LastCalls(database)
        self._database = database
        self._log = log

    async def run(self) -> None:
        """Watch until cancelled."""
        with contextlib.suppress(sqlite3.Error):  # who asks for the last calls waits the less
            await asyncio.to_thread(self.last_calls.until, _now())
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            with contextlib.suppress(sqlite3.Error):  # the next look will tell
                await self.look(_now())

    async def look(self, now: datetime) -> None:
        """Tell of each PBX that is silent since the last look, or is heard again."""
        pbxs, known = self.pbxs, self.silent
        last_calls = await asyncio.to_thread(self.last_calls.until, now)
        found = await asyncio.to_thread(find_silent, self._database, pbxs, now, known, last_calls)
        for pbx, last_call in found.items():
            if pbx not in known:
                self._log.warning(
                    "pbx_silent",
                    pbx=pbx,
                    last_call=last_call,
                    advice="weeks before it had calls at these hours: look at the PBX and the line",
                )
        for pbx in pbxs:  # one that was removed from the configuration is not heard, but forgotten
            if pbx in known and pbx not in found:
                self._log.info("pbx_heard", pbx=pbx)
        if found != known:
            self.silent = found
            with contextlib.suppress(OSError):  # the next run may tell it again, no more
                await asyncio.to_thread(self._remember, found)

    def _remember(self, silent: dict[str, str]) -> None:
        with os.fdopen(open_owned(self._path, 0o640, self._database), "wb") as file:
            file.truncate()
            file.write(orjson.dumps(silent))


def _now() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC)


def _read_silent(path: Path) -> dict[str, str]:
    """Return what the last run knew: calls tell it no longer after two weeks, or a purge."""
    try:
        known = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):  # not there, or half written: it is told again
        return {}
    return known if isinstance(known, dict) else {}


def find_silent(
    database: Path,
    pbxs: Sequence[str],
    now: datetime,
    known: Mapping[str, str],
    last_calls: Mapping[str, datetime],
) -> dict[str, str]:
    """Return the PBXs that are silent against their habit, and when their last call began.

    Those that are ``known`` to be silent are so while they have no newer call: after two weeks
    there is no habit left to compare with.
    """
    silent = {}
    with contextlib.closing(open_reader(database)) as reader:
        for pbx in pbxs:
            found = last_calls.get(pbx)
            if pbx in known and (found is None or spell_instant(found) <= known[pbx]):
                silent[pbx] = known[pbx]
                continue
            last = found or now - LOOK_BACK
            weeks = range(1, WEEKS + 1)
            if all(_had_calls(reader, pbx, last - WEEK * n, now - WEEK * n) for n in weeks):
                silent[pbx] = spell_instant(last)
    return silent


def _had_calls(reader: sqlite3.Connection, pbx: str, start: datetime, end: datetime) -> bool:
    query = """
        SELECT count(*) FROM (
            SELECT 1 FROM call WHERE pbx = ? AND started_at > ? AND started_at <= ? LIMIT ?
        )
    """
    instants = spell_instant(start), spell_instant(end)
    (calls,) = reader.execute(query, (pbx, *instants, USUAL_CALLS)).fetchone()
    return bool(calls == USUAL_CALLS)
