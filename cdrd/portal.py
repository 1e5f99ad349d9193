"""Turns a portal's ConferenceCall2 into stored legs: reads on by CallID, and looks again.

The rule that must stay true: up to where the table was read is remembered with what was read, so
a break of either side leaves no gap, and what was deleted of it here does not come back; and a leg
is asked about until it has ended.
"""

import asyncio
import csv
import io
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from typing import Final, TypeVar
from zoneinfo import ZoneInfo

from cdrd.address import parse_address
from cdrd.background import to_its_end
from cdrd.batch import QuarantinedReport
from cdrd.config import Portal
from cdrd.followed import WINDOW_IDS, Followed
from cdrd.leg import ConferenceLeg, NotALeg, column_of, make_leg, missing_columns
from cdrd.leg_store import Arrival, read_followed, read_in_progress
from cdrd.local_time import utc_text
from cdrd.log import Logger
from cdrd.login import BackOff
from cdrd.portal_table import Fields, NoTls, PortalLost, PortalRefused, PortalTable
from cdrd.record import MAX_INTEGER, utc_milliseconds
from cdrd.sizes import PAYLOAD_BYTES
from cdrd.source import PORTAL
from cdrd.store import Store
from cdrd.writer import Writer

POLL_SECONDS: Final = 10.0
CONNECT_SECONDS: Final = 10.0
REFUSED_SECONDS: Final = 10 * 60.0
"""A portal that refuses us is asked again so rarely that it locks nobody out and fills no log."""

PAGE_ROWS: Final = 1000
HOUR: Final = 60 * 60.0
RECENT_SECONDS: Final = 24 * HOUR
"""Legs that joined before that and have no end are looked at once an hour: some never get one."""

Result = TypeVar("Result")


class PortalFollower:
    """Follows one portal's table until it is cancelled."""

    def __init__(
        self,
        portal: Portal,
        *,
        read_password: Callable[[], str],
        store: Store,
        writer: Writer,
        log: Logger,
    ) -> None:
        self._portal = portal
        self._zone = ZoneInfo(portal.timezone)
        self._read_password = read_password
        self._store = store
        self._writer = writer
        self._log = log.bind(portal=portal.name, address=portal.address)
        self._back_off = BackOff()
        self._tls = True
        self._read_at: float | None = None  # when the table was last read to its end
        self._old_looked_at = 0.0

    async def run(self) -> None:
        """Hold a connection and read, until cancelled."""
        while True:
            try:
                await self._hold_one()
            except PortalRefused as error:
                wait = REFUSED_SECONDS
                self._log.error(
                    "portal_refused",
                    reason=str(error),
                    retry_in=wait,
                    advice="check username, password_file and database, and the account's grants",
                )
            except sqlite3.Error as error:
                # The portal keeps the rows, and they are read again.
                wait = self._back_off.wait()
                self._log.error("portal_rows_not_stored", error=str(error), retry_in=round(wait, 1))
            except (PortalLost, OSError, ValueError) as error:
                # ValueError: a password of two lines, a host name that cannot be one.
                self._tls = self._tls and not isinstance(error, NoTls)
                wait = self._back_off.wait()
                reason = str(error) or "no answer in time"
                self._log.warning("portal_lost", reason=reason, retry_in=round(wait, 1))
            await asyncio.sleep(wait)

    async def _hold_one(self) -> None:
        table = await self._open()
        try:
            version = await _blocking(table, table.connect)
            self._log.info("portal_connected", server=version, tls=table.tls)
            while True:
                await self._read(table)
                self._back_off.reset()
                await asyncio.sleep(POLL_SECONDS)
        finally:
            table.close()

    async def _open(self) -> PortalTable:
        password = self._read_password()
        host, port = parse_address(self._portal.address)
        async with asyncio.timeout(CONNECT_SECONDS):
            sock = await _connected(host, port)
        return PortalTable(
            sock,
            host=host,
            username=self._portal.username,
            password=password,
            database=self._portal.database,
            tls=self._tls,
        )

    async def _read(self, table: PortalTable) -> None:
        """Look at the table once: at what may have changed, and at what is new."""
        began = time.time()
        await self._look_again(table, began)
        await self._read_on(table)
        self._read_at = began

    async def _look_again(self, table: PortalTable, now: float) -> None:
        """Read the legs anew that had not ended."""
        is_due = now - self._old_looked_at >= HOUR
        joined_after = "" if is_due else utc_text(int(now - RECENT_SECONDS))
        name = self._portal.name
        call_ids = await self._store.run(read_in_progress, name, joined_after)
        for some in _slices(call_ids):
            rows = await _blocking(table, partial(table.rows_of, some))
            legs, bad = await asyncio.to_thread(self._made, rows)
            again = frozenset(leg.call_id for leg in legs)
            await self._store_legs(legs, list(bad.values()), again=again)
        if is_due:
            self._old_looked_at = now

    async def _read_on(self, table: PortalTable) -> None:
        """Read page after page up to the table's end; all of it where the zone was corrected."""
        name, timezone = self._portal.name, self._portal.timezone
        followed = await self._store.run(read_followed, name) or Followed(0, timezone, {})
        corrected = followed.timezone != timezone
        if corrected:  # the times are of two zones until all of it is read
            followed = followed._replace(timezone="")
        position = 0 if corrected else max(0, followed.call_id - WINDOW_IDS)
        while rows := await _blocking(table, partial(table.rows_after, position, PAGE_ROWS)):
            position = _call_id(rows[-1])
            followed = await self._keep(rows, followed)
            if len(rows) < PAGE_ROWS:
                break
        if corrected:
            followed = followed._replace(timezone=timezone)
            await self._store_legs(followed=followed)
        if position < followed.call_id:
            await self._step_back(table, followed)

    async def _step_back(self, table: PortalTable, followed: Followed) -> None:
        """Follow a table whose newest rows are gone: a new one would else never be read."""
        newest = await _blocking(table, table.newest) or 0
        if newest < followed.call_id:
            self._log.warning("portal_shrunk", followed=followed.call_id, newest=newest)
            await self._store_legs(followed=followed.back_to(newest))

    async def _keep(self, rows: Sequence[Fields], followed: Followed) -> Followed:
        """Store rows of the table's next; return up to where it is read with them."""
        legs, bad = await asyncio.to_thread(self._made, rows)
        digests = {leg.call_id: _digest(str(leg.unique_call_id).encode()) for leg in legs}
        digests |= {call_id: _digest(report.payload) for call_id, report in bad.items()}
        again = frozenset(
            call_id for call_id, digest in digests.items() if not followed.is_due(call_id, digest)
        )
        news = [report for call_id, report in bad.items() if call_id not in again]
        after = followed.after(digests)
        await self._store_legs(legs, news, again=again, followed=after)
        return after

    async def _store_legs(
        self,
        legs: Sequence[ConferenceLeg] = (),
        bad: Sequence[QuarantinedReport] = (),
        *,
        again: frozenset[int] = frozenset(),
        followed: Followed | None = None,
    ) -> None:
        arrival = Arrival(
            self._portal.name,
            self._zone,
            time.time(),
            source=PORTAL,
            since=self._read_at,
            legs=legs,
            quarantined=bad,
            again=again,
            followed=followed,
        )
        await self._writer.store_legs(arrival)

    def _made(
        self, rows: Sequence[Fields]
    ) -> tuple[list[ConferenceLeg], dict[int, QuarantinedReport]]:
        """Make legs of rows, and by CallID what goes to quarantine as it cannot be one.

        Raises PortalRefused for a table that is another one.
        """
        if rows and (missing := missing_columns(rows[0])):
            raise PortalRefused(f"its ConferenceCall2 has no column {', '.join(missing)}")
        legs, bad = [], {}
        for row in rows:
            try:
                legs.append(make_leg(row, portal=self._portal.name, zone=self._zone))
            except NotALeg as error:
                bad[_call_id(row)] = self._quarantined(row, str(error), time.time())
        return legs, bad

    def _quarantined(self, row: Fields, reason: str, now: float) -> QuarantinedReport:
        payload = _csv_line(row)
        return QuarantinedReport(
            received_at=utc_milliseconds(now),
            pbx=self._portal.name,
            peer=self._portal.address,
            source=PORTAL,
            reason=reason,
            payload=payload[:PAYLOAD_BYTES],
            size=len(payload),
        )


def _call_id(row: Fields) -> int:
    """Return a row's CallID. Raises PortalLost for a row that cannot be of what was asked for."""
    value = next((value for name, value in row.items() if column_of(name) == "call_id"), None)
    if not (isinstance(value, bytes) and value.isdigit() and int(value) <= MAX_INTEGER):
        raise PortalLost(f"it answers with a row whose CallID is {value!r}")
    return int(value)


def _digest(identity: bytes) -> str:
    return blake2b(identity, digest_size=8).hexdigest()


def _csv_line(row: Fields) -> bytes:
    """Spell a row as the portal's export does."""
    cells = (
        value.decode(errors="backslashreplace") if isinstance(value, bytes) else value
        for value in row.values()
    )
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue().encode()


def _slices(call_ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (call_ids[start : start + PAGE_ROWS] for start in range(0, len(call_ids), PAGE_ROWS))


async def _connected(host: str, port: int) -> socket.socket:
    """Connect to the first address of a host that answers. Raises OSError."""
    loop = asyncio.get_running_loop()
    failure = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)
        except OSError as error:
            failure = error
            sock.close()
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


async def _blocking(table: PortalTable, work: Callable[[], Result]) -> Result:
    """Run what blocks in a thread; a cancellation ends the thread's wait too, and awaits it."""
    return await to_its_end(asyncio.to_thread(work), table.interrupt)
