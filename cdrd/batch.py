"""Turns single records into batches: the custody of everything received and not yet committed.

The rule that must stay true: a record is in exactly one place, here until the commit, and in the
database after it. What is taken for a commit stays counted until ``committed`` is called, and
nothing is ever dropped: when it is ``full``, reading pauses.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from cdrd.frame import KIB
from cdrd.record import CallRecord

RECORD_OVERHEAD_BYTES: Final = 1 * KIB
"""What a waiting record takes in memory beside its raw text: 0.8 KiB were measured."""


class QuarantinedReport(NamedTuple):
    """What could not become a record, in the order of the table's columns behind ``id``."""

    received_at: str
    pbx: str
    peer: str
    source: str
    reason: str
    payload: bytes
    size: int


@dataclass(slots=True)
class Batch:
    """What goes into the database in one transaction."""

    records: list[CallRecord] = field(default_factory=list)
    quarantined: list[QuarantinedReport] = field(default_factory=list)
    mended: list[CallRecord] = field(default_factory=list)  # those of the records that were mended
    resolved: list[int] = field(default_factory=list)  # quarantine ids that the records settle
    size: int = 0  # bytes of memory, about

    def __len__(self) -> int:
        return len(self.records) + len(self.quarantined)

    def add(self, record: CallRecord, *, mended: bool = False) -> None:
        """Take custody of a record."""
        self.records.append(record)
        self.size += len(record.raw) + RECORD_OVERHEAD_BYTES
        if mended:
            self.mended.append(record)

    def add_quarantined(self, report: QuarantinedReport) -> None:
        """Take custody of what could not become a record."""
        self.quarantined.append(report)
        self.size += len(report.payload) + RECORD_OVERHEAD_BYTES


class Waiting:
    """Everything received and not yet committed, bounded by ``max_bytes`` of memory."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.arriving = Batch()
        self._taken = Batch()

    def __len__(self) -> int:
        return len(self.arriving) + len(self._taken)

    @property
    def full(self) -> bool:
        """Whether reading has to pause."""
        return self.arriving.size + self._taken.size >= self._max_bytes

    @property
    def roomy(self) -> bool:
        """Whether reading may go on after a pause."""
        return self.arriving.size + self._taken.size <= self._max_bytes // 2

    def take(self, max_records: int) -> Batch:
        """Return the batch to commit next: the one taken before, until it is committed."""
        if not self._taken:
            self._taken, self.arriving = _split(self.arriving, max_records)
        return self._taken

    def committed(self) -> None:
        """Let go of the batch that was taken: the database has it."""
        self._taken = Batch()


def _split(batch: Batch, max_records: int) -> tuple[Batch, Batch]:
    """Part a batch into its first rows and the rest."""
    if len(batch) <= max_records:
        return batch, Batch()
    first, rest = Batch(), Batch(resolved=batch.resolved)
    for report in batch.quarantined[:max_records]:
        first.add_quarantined(report)
    cut = max_records - len(first)
    mended = set(map(id, batch.mended))
    for record in batch.records[:cut]:
        first.add(record, mended=id(record) in mended)
    rest.records = batch.records[cut:]
    rest.mended = batch.mended[len(first.mended) :]
    rest.quarantined = batch.quarantined[max_records:]
    rest.size = batch.size - first.size
    return first, rest
