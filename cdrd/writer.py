"""Turns what waits into commits, and commits into log lines: the group commit.

The rule that must stay true: the writer takes all that waits the moment it is free, so a lone call
is durable within milliseconds and a flood makes its own batches; a line follows its row's commit;
and a commit that fails is tried again, with reading paused once the bound of what waits is met.
What a damaged database cannot take goes to the spool, which is as durable, and is not tried again.
At a stop so does what any database does not take.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from cdrd.batch import Batch, Waiting
from cdrd.call_log import CallLog
from cdrd.clock import ClockJump, ClockWatch, OffsetJump
from cdrd.config import BatchTable
from cdrd.database import WAL_LIMIT_BYTES, Checkpoint, is_damage
from cdrd.leg_store import Arrival, StoredLegs, store_legs
from cdrd.log import LineWriter, Logger
from cdrd.record import MAX_INTEGER
from cdrd.row import Committed, Turn
from cdrd.spool import Spool
from cdrd.store import Store
from cdrd.store_process import ProcessEnded
from cdrd.stream import Totals

MINUTE: Final = 60.0
AHEAD: Final = 3
"""So many batches are handed over before the one in front of them is stored: reading what many
connections have at once takes as long as storing three of them."""

RETRY_SECONDS: Final = (0.05, 5.0)  # first and longest wait between tries of a failing commit


class _Attempt(NamedTuple):
    """A commit that is under way."""

    batch: Batch
    task: asyncio.Task[Committed]


class _Pin(NamedTuple):
    """Where in the WAL checkpoints end for a reader's sake, and since when."""

    copied: int
    since: float


class Writer:
    """Commits what waits until it is stopped."""

    def __init__(
        self,
        store: Store,
        waiting: Waiting,
        totals: Totals,
        *,
        log: Logger,
        lines: LineWriter,
        clocks: ClockWatch,
        grouping: BatchTable,
        room_made: Callable[[], None],
    ) -> None:
        self._store = store
        store.when_replaced = self._tell_replaced
        self._waiting = waiting
        self._totals = totals
        self._log = log
        self._lines = lines
        self._clocks = clocks
        self._grouping = grouping
        self._room_made = room_made
        self.spool = Spool(store.path)
        self.calls = CallLog(store, log, lines)
        self._arrived = asyncio.Event()
        self._hurried = asyncio.Event()
        self._stopping = False
        self._wal_told = self._spool_told = -MINUTE
        self._pin: _Pin | None = None
        self._attempt_began: float | None = None
        self._turn = 0
        self._attempts: deque[_Attempt] = deque()  # of the batches taken, in their order
        self._copying: asyncio.Task[None] | None = None  # the WAL, into the database
        self.failing = False
        self.when_restored: Callable[[], object] = lambda: None
        """Called after a commit with rows whose ``seq`` may lie behind others."""

    def wake(self) -> None:
        """Tell the writer that something waits."""
        self._arrived.set()
        self._attempt_ahead()

    def hurry(self) -> None:
        """Spool from now on what the database has not taken: who stops us may not wait for it."""
        self._hurried.set()

    def regroup(self, grouping: BatchTable) -> None:
        """Group otherwise from now on; what waits for more to come waits no longer."""
        self._grouping = grouping
        self._arrived.set()

    def stop(self) -> None:
        """Let ``run`` return once nothing waits any more."""
        self._stopping = True
        self._lines.release()
        self._arrived.set()

    async def run(self) -> None:
        """Commit until stopped."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            if self._grouping.max_delay and not self._stopping:
                await self._wait_for_more()
            while self._waiting:
                await self._commit(self._waiting.take(self._grouping.max_records))
            if self._stopping:
                if self._copying is not None:
                    await self._copying
                return

    async def commit_beside(self, batch: Batch) -> Committed:
        """Commit what was not received in this run, and tell it; raises sqlite3.Error.

        A row that is restored may lie behind what is told. From before its commit until its line is
        written, no other commit may have the database remember that all up to there was told.
        """
        lowest = min((call.seq for call in batch.restored), default=MAX_INTEGER)
        self._lines.hold(lowest)
        try:
            committed = await self._store_batch(batch)
        except (ProcessEnded, asyncio.CancelledError):
            raise  # nobody knows whether it was committed: then the next start tells it
        except BaseException:
            self._lines.let_go(lowest)
            raise
        if committed.restored.count:
            self._lines.write(b"", held=lowest)
        else:
            self._lines.let_go(lowest)
        self._warn(batch, committed)
        self._make_room()
        return committed

    async def store_legs(self, arrival: Arrival) -> StoredLegs:
        """Store conference legs, and tell it; raises sqlite3.Error."""
        outcome = await self._store.run(store_legs, arrival)
        self._store.wrote(len(arrival.legs))
        self._tell_legs(arrival, outcome)
        self._make_room()
        return outcome

    def _tell_legs(self, arrival: Arrival, outcome: StoredLegs) -> None:
        if outcome.changed:
            self._log.info(
                "portal_rows_stored",
                portal=arrival.portal,
                source=arrival.source,
                stored=outcome.stored,
                updated=outcome.updated,
                first_call_id=min(outcome.changed),
                last_call_id=max(outcome.changed),
            )
        if outcome.undecided:
            self._log.warning(
                "portal_times_undecided",
                portal=arrival.portal,
                legs=len(outcome.undecided),
                first_call_id=min(outcome.undecided),
                last_call_id=max(outcome.undecided),
            )
        for quarantine_id, report in outcome.quarantined:
            self._log.warning(
                "portal_row_quarantined",
                id=quarantine_id,
                portal=report.pbx,
                source=report.source,
                reason=report.reason,
                size=report.size,
            )

    def _tell_replaced(self, status: object) -> None:
        """Tell that the process that stores had ended; rows that it left untold are looked for."""
        advice = "was it killed, by hand or for want of memory? What it had to store is stored"
        self._log.error("store_replaced", status=status, advice=advice)
        self.calls.look_behind()

    async def give_up_damaged(self, error: sqlite3.Error) -> None:
        """Leave the database alone from now on, if this is what damage looks like."""
        if is_damage(error) and not self._store.damage:
            await self._store.give_up(str(error))
            self.tell_damage()

    def tell_damage(self) -> None:
        """Tell that the database is damaged, and what to do."""
        path, spool = self._store.path, self.spool.path
        self._log.critical(
            "database_damaged",
            error=self._store.damage,
            spool=str(spool),
            advice=(
                f"stop cdrd, move {path} away with its -wal and -shm, put a backup or what "
                "SQLite's .recover makes of it (Debian 12's sqlite3 cannot) in its place, as the "
                f"same user's, and start: all that is received is kept in {spool}"
            ),
        )

    @property
    def stalled_seconds(self) -> float:
        """How long the database has taken over one try of a commit; 0 between two.

        A try that fails and will be made again is progress: a restart would only lose what waits.
        """
        began = self._attempt_began
        return 0.0 if began is None else time.monotonic() - began

    async def _wait_for_more(self) -> None:
        with contextlib.suppress(TimeoutError):
            grouping = self._grouping
            async with asyncio.timeout(grouping.max_delay):
                while len(self._waiting) < grouping.max_records and not (
                    self._stopping or self._waiting.full or self._grouping is not grouping
                ):
                    await self._arrived.wait()
                    self._arrived.clear()

    async def _commit(self, batch: Batch) -> None:
        committed = await self._keep(batch)
        self._waiting.committed()
        totals = self._totals
        if committed is None:
            totals.spooled += len(batch)
            self._tell_spooled()
        else:
            totals.stored += committed.added
            totals.duplicate += committed.duplicates
            # One that was there already counts too: its commit was not heard of.
            totals.quarantined += len(batch) - committed.added - committed.duplicates
            self._warn(batch, committed)
        if self._waiting.roomy:
            self._room_made()
        self._make_room()

    def _make_room(self) -> None:
        """Keep the WAL from growing without bound, while the next batches are handed over."""
        if self._copying is not None and self._copying.done():
            self._copying.result()  # raises what nobody has foreseen
            self._copying = None
        if self._copying is None and self._store.checkpoint_due:
            self._copying = asyncio.create_task(self._checkpoint())

    def _warn(self, batch: Batch, committed: Committed) -> None:
        for record in batch.mended:
            self._log.warning("report_mended", pbx=record.pbx, call_id=record.call_id, fault="\\_")
        for quarantine_id, report in committed.quarantined:
            self._log.warning(
                "report_quarantined",
                id=quarantine_id,
                pbx=report.pbx,
                peer=report.peer,
                source=report.source,
                reason=report.reason,
                size=report.size,
            )
        for jump in self._clocks.look(committed.rows.sample()):
            self._tell_jump(jump)

    def _tell_jump(self, jump: OffsetJump | ClockJump) -> None:
        log, pbx = self._log, jump.pbx
        match jump:
            case OffsetJump(_, offset, expected) if offset == expected:
                log.info("pbx_offset_mended", pbx=pbx, utc_offset=offset, expected=expected)
            case OffsetJump(_, offset, expected):
                advice = "set its timezone here, or the zone and the clock of the PBX"
                log.warning(
                    "pbx_offset_jumped",
                    pbx=pbx,
                    utc_offset=offset,
                    expected=expected,
                    advice=advice,
                )
            case ClockJump(_, 0, before):
                log.info("pbx_clock_mended", pbx=pbx, behind=0, before=before)
            case ClockJump(_, behind, before):
                advice = "have the PBX use NTP"
                log.warning(
                    "pbx_clock_jumped", pbx=pbx, behind=behind, before=before, advice=advice
                )

    async def _keep(self, batch: Batch) -> Committed | None:
        """Make a batch durable, however long it takes; None where that is in the spool."""
        delay, longest = RETRY_SECONDS
        while True:
            self._attempt_began = time.monotonic()
            try:
                committed = await self._store_or_spool(batch)
            except (sqlite3.Error, OSError) as error:
                self._attempt_began = None
                self.failing = True
                self._log.error(
                    "commit_failed", error=str(error), waiting=len(self._waiting), retry_in=delay
                )
                await self._wait_to_try_again(delay)
                delay = min(2 * delay, longest)
            else:
                self._attempt_began = None
                if self.failing and not (committed is None and self._hurried.is_set()):
                    self.failing = False
                    self._log.info("commit_recovered", waiting=len(self._waiting))
                return committed

    async def _wait_to_try_again(self, delay: float) -> None:
        if self._hurried.is_set():
            await asyncio.sleep(delay)
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurried.wait(), delay)

    async def _store_or_spool(self, batch: Batch) -> Committed | None:
        """Store a batch, or spool it. Raises sqlite3.Error and OSError for what may pass."""
        if not (self._store.damage or (self.failing and self._hurried.is_set())):
            try:
                return await self._attempt(batch)
            except sqlite3.Error as error:
                if not is_damage(error):
                    raise
        await asyncio.to_thread(self.spool.append, batch)
        return None

    async def _attempt(self, batch: Batch) -> Committed:
        """Store the batch that is next; that may have been begun ahead. Raises sqlite3.Error."""
        if not self._attempts:
            self._begin(batch, behind=0)
        self._attempt_ahead()
        attempt = self._attempts[0]
        assert attempt.batch is batch
        try:
            committed = await attempt.task
        except sqlite3.Error:
            failed, self._attempts = self._attempts, deque()
            # What was ahead has failed too.
            await asyncio.gather(*(each.task for each in failed), return_exceptions=True)
            raise
        self._attempts.popleft()
        return committed

    def _attempt_ahead(self) -> None:
        """Have whole batches at hand for when the one that is being stored is done.

        Otherwise whoever stores would wait for us meanwhile, a third of the time in a flood.
        """
        while 0 < len(self._attempts) <= AHEAD:
            batch = self._waiting.take_ahead(len(self._attempts), self._grouping.max_records)
            if batch is None:
                return
            self._begin(batch, behind=self._turn)

    def _begin(self, batch: Batch, behind: int) -> None:
        self._turn += 1
        work = self._store_batch(batch, Turn(self._turn, behind))
        self._attempts.append(_Attempt(batch, asyncio.create_task(work)))

    async def _store_batch(self, batch: Batch, turn: Turn | None = None) -> Committed:
        """Store a batch and tell its rows; a damaged database is left alone from then on."""
        try:
            committed = await self._store.commit(batch, self._lines.logged_seq, turn)
        except ProcessEnded:
            batch.repeated = True  # it may have been committed all the same, and not been told
            raise
        except sqlite3.Error as error:
            await self.give_up_damaged(error)
            raise
        self.calls.tell(committed.rows)
        self.calls.tell(committed.restored)
        if committed.restored.count:
            self.when_restored()
        return committed

    async def _checkpoint(self) -> None:
        try:
            self._tell_wal(await self._store.checkpoint_if_due())
        except sqlite3.Error as error:
            # The rows are safe in the WAL, and the next checkpoint copies them.
            self._log.warning("checkpoint_failed", error=str(error))

    def _tell_wal(self, checkpoint: Checkpoint | None) -> None:
        """Warn, once a minute at most, of a reader that keeps the WAL from being reused.

        While it is the same reader's transaction, each checkpoint ends at the same page.
        """
        if checkpoint is None:
            return
        now = time.monotonic()
        if not checkpoint.pinned_bytes:
            self._pin = None
        elif self._pin is None or self._pin.copied != checkpoint.copied:
            self._pin = _Pin(checkpoint.copied, now)
        if self._pin is None or checkpoint.pinned_bytes < WAL_LIMIT_BYTES:
            return
        if now - self._wal_told >= MINUTE:
            self._wal_told = now
            seconds = round(now - self._pin.since, 1)
            self._log.warning("wal_pinned", bytes=checkpoint.pinned_bytes, seconds=seconds)

    def _tell_spooled(self) -> None:
        """Tell, once a minute at most, how much the spool has taken in this run and holds."""
        now = time.monotonic()
        if now - self._spool_told >= MINUTE:
            self._spool_told = now
            records, size = self._totals.spooled, self.spool.size
            self._log.warning("records_spooled", records=records, bytes=size)
