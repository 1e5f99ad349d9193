"""Turns single records into batches: the custody of everything received and not yet committed.

The rule that must stay true: a record is in exactly one place, here until the commit, and in the
database after it. What is taken for a commit stays counted until ``committed`` is called, and
nothing is ever dropped: when it is ``full``, reading pauses.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pickle import PickleBuffer
from typing import Any, Final, NamedTuple

from cdrd.block import Block, pack, read_rows
from cdrd.record import CallRecord, Row, new_record
from cdrd.sizes import KIB, PAYLOAD_BYTES

OVERHEAD_BYTES: Final = 1 * KIB
"""What a waiting record, or a quarantined report, takes in memory beside its text."""


class QuarantinedReport(NamedTuple):
    """What could not become a record, in the order of the table's columns behind ``id``."""

    received_at: str
    pbx: str
    peer: str
    source: str
    reason: str
    payload: bytes
    size: int


def quarantine_of(record: CallRecord, reason: str) -> QuarantinedReport:
    """Make what goes into quarantine of a record that cannot be stored as it is."""
    payload = record.raw.encode(errors="surrogatepass")
    return QuarantinedReport(
        record.received_at,
        record.pbx,
        "",
        record.source,
        reason,
        payload[:PAYLOAD_BYTES],
        len(payload),
    )


class RestoredCall(NamedTuple):
    """A record that was stored before, as a line of our own export or log tells it."""

    seq: int  # kept where it is free
    record: CallRecord
    local_told: bool = True  # False from the log: there the local start is worked out


@dataclass(slots=True)
class Batch:
    """What goes into the database in one transaction."""

    blocks: list[Block] = field(default_factory=list)
    quarantined: list[QuarantinedReport] = field(default_factory=list)
    resolved: list[int] = field(default_factory=list)  # quarantine ids that the records settle
    restored: list[RestoredCall] = field(default_factory=list)
    repeated: bool = False  # all of it may have been committed before, quarantined reports too
    count: int = 0  # of the blocks' records
    size: int = 0  # bytes of memory, about

    def __len__(self) -> int:
        return self.count + len(self.quarantined) + len(self.restored)

    def __getstate__(self) -> tuple[Any, ...]:
        """Return what a commit is made of, for a pickle: the tails of lines stay here.

        The bytes of the blocks may be left out of the pickle, for who makes it to hand over.
        """
        blocks = [(each.count, PickleBuffer(each.columns), each.mended) for each in self.blocks]
        return blocks, self.quarantined, self.resolved, self.restored, self.repeated, self.count

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        blocks, self.quarantined, self.resolved, self.restored, *rest = state
        self.blocks = [Block(count, columns, "", (), mended) for count, columns, mended in blocks]
        self.repeated, self.count = rest
        self.size = 0

    @property
    def stored_size(self) -> int:
        """Bytes that it adds to the database, about."""
        payloads = sum(len(report.payload) for report in self.quarantined)
        restored = sum(len(call.record.raw) + OVERHEAD_BYTES // 4 for call in self.restored)
        return sum(len(block.columns) for block in self.blocks) + payloads + restored

    def add_block(self, block: Block) -> None:
        """Take custody of a block of records."""
        self.blocks.append(block)
        self.count += block.count
        self.size += block.size

    def add(self, *records: CallRecord, mended: bool = False) -> None:
        """Take custody of records; ``mended``: the JSON of each had to be."""
        if records:
            self.add_block(pack(records, mended=mended))

    def rows(self) -> list[Row]:
        """Return the columns of each of its records."""
        return list(chain.from_iterable(read_rows(block.columns) for block in self.blocks))

    @property
    def records(self) -> list[CallRecord]:
        """Its records, made anew each time."""
        return list(map(new_record, self.rows()))

    @property
    def mended(self) -> list[CallRecord]:
        """Those of its records whose JSON had to be mended."""
        return [record for block in self.blocks if block.mended for record in block.records]

    def add_quarantined(self, report: QuarantinedReport) -> None:
        """Take custody of what could not become a record."""
        self.quarantined.append(report)
        self.size += len(report.payload) + OVERHEAD_BYTES

    def add_restored(self, call: RestoredCall) -> None:
        """Take custody of a record that was stored before."""
        self.restored.append(call)
        self.size += len(call.record.raw) + OVERHEAD_BYTES


class Mark(NamedTuple):
    """A place in all that was ever taken into custody: what came before it, of either kind.

    Each kind is committed in the order in which it came, so two numbers tell what is committed.
    """

    records: int
    quarantined: int

    def covers(self, other: "Mark") -> bool:
        """Tell whether all that came before the other place came before this one."""
        return other.records <= self.records and other.quarantined <= self.quarantined


class Waiting:
    """Everything received and not yet committed, bounded by ``max_bytes`` of memory."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.arriving = Batch()
        self._taken: deque[Batch] = deque()
        self._committed = Mark(0, 0)
        self._awaited: deque[tuple[Mark, Callable[[], None]]] = deque()

    def __len__(self) -> int:
        return len(self.arriving) + sum(map(len, self._taken))

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        return self.arriving.size + sum(batch.size for batch in self._taken)

    @property
    def full(self) -> bool:
        """Whether reading has to pause."""
        return self.size >= self._max_bytes

    @property
    def roomy(self) -> bool:
        """Whether reading may go on after a pause."""
        return self.size <= self._max_bytes * 3 // 4

    @property
    def committing(self) -> bool:
        """Whether a batch was taken and its commit has not returned."""
        return len(self._taken) > 0

    def take(self, max_records: int) -> Batch:
        """Return the batch to commit next: the one taken before, until it is committed."""
        if not self._taken:
            batch, self.arriving = _split(self.arriving, max_records)
            if not batch:
                return batch
            self._taken.append(batch)
        return self._taken[0]

    def take_ahead(self, place: int, max_records: int) -> Batch | None:
        """Return the batch to commit so many places behind the next, where it is a whole one."""
        if place == len(self._taken) > 0 and len(self.arriving) >= max_records:
            batch, self.arriving = _split(self.arriving, max_records)
            self._taken.append(batch)
        return self._taken[place] if place < len(self._taken) else None

    @property
    def mark(self) -> Mark:
        """The place behind all that has been taken into custody so far."""
        held = (*self._taken, self.arriving)
        return Mark(
            self._committed.records + sum(batch.count for batch in held),
            self._committed.quarantined + sum(len(batch.quarantined) for batch in held),
        )

    def when_committed(self, tell: Callable[[], None]) -> None:
        """Have ``tell`` called, once, by the commit of the last of what waits now.

        Something has to wait: nothing else calls it.
        """
        self._awaited.append((self.mark, tell))

    def committed(self) -> None:
        """Let go of the batch that was taken first: the database has it."""
        done, taken = self._committed, self._taken.popleft()
        done = Mark(done.records + taken.count, done.quarantined + len(taken.quarantined))
        self._committed = done
        awaited = self._awaited
        while awaited and done.covers(awaited[0][0]):
            _, tell = awaited.popleft()
            tell()


def _split(batch: Batch, max_records: int) -> tuple[Batch, Batch]:
    """Part a batch into its first rows, as many blocks as fit, and the rest."""
    if len(batch) <= max_records:
        return batch, Batch()
    first, rest = Batch(), Batch(resolved=batch.resolved)
    for report in batch.quarantined:
        (first if len(first) < max_records else rest).add_quarantined(report)
    for block in chain.from_iterable(block.parted(max_records) for block in batch.blocks):
        fits = not rest.blocks and len(first) + block.count <= max_records
        (first if fits else rest).add_block(block)
    for call in batch.restored:
        rest.add_restored(call)
    return first, rest
