"""Turns an age and an origin into deleted records, a small step at a time.

The rule that must stay true: a step is one short transaction that looks at a bounded number of
rows, so that a report which comes meanwhile waits for one step at most, however much is deleted;
and it leaves no more of a WAL than a checkpoint is due at, unless a reader pins it.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from cdrd.period import spell_instant
from cdrd.schema import transaction
from cdrd.store import CHECKPOINT_PAGES, Store

if TYPE_CHECKING:
    from cdrd.log import Logger  # whose packages the process that stores has no use for

STEP_ROWS: Final = 100
"""So many rows are looked at in a step."""

FREED_PAGES: Final = STEP_ROWS
"""As many pages at most are given back to the file system in a step."""

PURGE: Final = "purge"
AGE_SECONDS: Final = 3600.0
"""So often what has become too old is deleted."""

LEAP_SECONDS: Final = 3600.0
STOPPED_SECONDS: Final = 24 * 3600.0
"""Our clock may be so far ahead at a start: nobody has counted how long the daemon was stopped."""

HELD_SECONDS: Final = 24 * 3600.0
"""So long after our clock was set forward nothing is too old: it may be wrong, and set back."""


class NotAPurge(ValueError):
    """A request that asks for no step of a purge."""


class Purge(NamedTuple):
    """What is to be deleted: what began, or came, before an instant, of all or of one origin."""

    before: str  # 2017-09-14T01:30:15Z
    pbx: str = ""  # this one's calls and quarantined reports alone
    tenant: str = ""  # this one's conference legs alone

    @property
    def bound(self) -> str:
        """What the spelling of every time before it sorts before, with milliseconds or without."""
        return self.before.removesuffix("Z")

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that it is about."""
        if self.tenant:
            return ("conference_leg",)
        if self.pbx:
            return ("call", "quarantined_report")
        return tuple(_TABLES)


class Place(NamedTuple):
    """How far a purge has come in a table: the last row that was looked at."""

    time: str = ""
    row: int = 0


class Step(NamedTuple):
    """What a step has done; ``place`` is None once the table is done."""

    deleted: int
    place: Place | None


class Look(NamedTuple):
    """What a look at our clock has shown."""

    purge_from: float  # from when (Unix seconds) something is too old: now, or after a hold
    forward: float  # how far it was set forward; 0 where it was not


class _Table(NamedTuple):
    key: str
    time: str
    origin: str  # the column that names where a row is from

    @classmethod
    def of(cls, name: str) -> Self:
        return cls(*_TABLES[name])


_TABLES: Final = {
    "call": ("seq", "started_at", "pbx"),
    "conference_leg": ("seq", "join_time", "tenant_name"),
    "quarantined_report": ("id", "received_at", "pbx"),
}
"""Each has an index that begins with the time."""


def count(connection: sqlite3.Connection, purge: Purge, table: str) -> int:
    """Count the rows of a table that a purge would delete."""
    found = _Table.of(table)
    where, origin = _origin(purge, found)
    query = f"SELECT count(*) FROM {table} WHERE {found.time} < ?{where}"  # noqa: S608 - our names
    (rows,) = connection.execute(query, (purge.bound, *origin)).fetchone()
    return int(rows)


def take_step(connection: sqlite3.Connection, purge: Purge, table: str, place: Place) -> Step:
    """Delete what is to be deleted of the next rows in their order of time."""
    found = _Table.of(table)
    query = f"""
        SELECT {found.time}, {found.key}, {found.origin} FROM {table}
        WHERE ({found.time}, {found.key}) > (?, ?) AND {found.time} < ?
        ORDER BY {found.time}, {found.key} LIMIT {STEP_ROWS}
    """  # noqa: S608 - our names
    with _bounded_wal(connection):
        with transaction(connection):
            rows = connection.execute(query, (*place, purge.bound)).fetchall()
            wanted = purge.tenant or purge.pbx
            doomed = [(key,) for _, key, origin in rows if not wanted or origin == wanted]
            delete = f"DELETE FROM {table} WHERE {found.key} = ?"  # noqa: S608 - our names
            deleted = connection.executemany(delete, doomed).rowcount if doomed else 0
        # As a script: a page is a step of the statement, and execute() takes the first alone.
        connection.executescript(f"PRAGMA incremental_vacuum({FREED_PAGES})")
    done = len(rows) < STEP_ROWS
    return Step(deleted, None if done else Place(*rows[-1][:2]))


@contextlib.contextmanager
def _bounded_wal(connection: sqlite3.Connection) -> Iterator[None]:
    """Have SQLite itself copy the WAL into the database behind a commit where that is due.

    A step writes from 5 to 520 pages, as the rows lie and by what they hold: only SQLite knows.
    """
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    try:
        yield
    finally:
        connection.execute("PRAGMA wal_autocheckpoint = 0")


def make_request(purge: Purge, table: str, place: Place) -> dict[str, Any]:
    """Make the request that a running daemon takes a step for."""
    return {"do": PURGE, "purge": list(purge), "table": table, "place": list(place)}


def read_request(request: dict[str, Any]) -> tuple[Purge, str, Place]:
    """Return what a request asks for. Raises NotAPurge."""
    try:
        purge, place = Purge(*request["purge"]), Place(*request["place"])
        kinds = (*map(type, purge), *map(type, place))
        known = kinds == (str, str, str, str, int) and request["table"] in purge.tables
    except (KeyError, TypeError):
        known = False
    if not known or not purge.before:
        raise NotAPurge("no purge that this daemon knows: is it an older version?")
    return purge, request["table"], place


def _origin(purge: Purge, table: _Table) -> tuple[str, tuple[str, ...]]:
    wanted = purge.tenant or purge.pbx
    return (f" AND {table.origin} = ?", (wanted,)) if wanted else ("", ())


def look_at_clock(now: float, expected: float, allowed: float, purge_from: float) -> Look:
    """Look whether our clock was set forward, by more than ``allowed`` from what is expected.

    ``purge_from``: what the look before has shown.
    """
    forward = now - expected
    if forward > allowed:
        return Look(now + HELD_SECONDS, forward)
    # Where the clock was set back, a hold that it had begun would last for years.
    return Look(max(now, min(purge_from, now + HELD_SECONDS)), 0.0)


async def keep_age(store: Store, log: "Logger") -> None:
    """Delete what is older than the store's ``max_age_days``, every hour."""
    purge_from = expected = store.purge_from
    allowed = STOPPED_SECONDS
    while True:
        days, now, since_boot = store.max_age_days, time.time(), _since_boot()
        store.aged_at = min(expected, now)  # where we hold, what was deleted before stays so
        purge_from, forward = look_at_clock(now, expected, allowed, purge_from)
        if forward and days:
            log.warning("purge_held", forward=round(forward), seconds=HELD_SECONDS)
        try:
            await asyncio.to_thread(store.keep_purge_from, purge_from)
            if days and purge_from <= now:
                store.aged_at = now
                await _delete_older(store, log, datetime.fromtimestamp(now, UTC) - timedelta(days))
        except (sqlite3.Error, OSError) as error:
            log.warning("purge_failed", error=str(error), retry_in=AGE_SECONDS)
        await asyncio.sleep(AGE_SECONDS)
        expected, allowed = now + _since_boot() - since_boot, LEAP_SECONDS


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # also what the machine has slept


async def _delete_older(store: Store, log: "Logger", oldest: datetime) -> None:
    purge = Purge(spell_instant(oldest))
    calls, legs, quarantined = [await _delete(store, purge, table) for table in purge.tables]
    if calls or legs or quarantined:
        log.info(
            "records_purged",
            before=purge.before,
            calls=calls,
            conference_legs=legs,
            quarantined=quarantined,
        )


async def _delete(store: Store, purge: Purge, table: str) -> int:
    deleted = 0
    place: Place | None = Place()
    while place is not None:
        began = time.monotonic()
        rows, place = await store.run(take_step, purge, table, place)
        deleted += rows
        await asyncio.sleep(time.monotonic() - began)  # what is received goes first
    return deleted
