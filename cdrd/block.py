"""Turns records into a block: bytes for the process that stores, and the tails of their log lines.

Both are made at once, while the records are in the processor's cache, and the records let go: so
one costs 6.2 us from its bytes to its line, and 8.0 us where it waits as an object. The rule that
must stay true: a block holds exactly its records, in their order.
"""

import marshal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cdrd.line import spell_tails
from cdrd.record import CallRecord, Row, new_record
from cdrd.sizes import KIB

SAMPLE: Final = 3
"""So many records of a block, at most, stay at hand for whoever looks at what comes in."""


@dataclass(frozen=True, slots=True)
class Block:
    """Records that were taken into custody together."""

    count: int
    columns: bytes | memoryview  # their columns, record by record, marshalled
    tails: str  # of their log lines, a line each
    sample: tuple[tuple[int, CallRecord], ...]  # some of them, by their place
    mended: bool = False  # the JSON of each had to be

    @property
    def size(self) -> int:
        """Bytes of memory, about: 0.2 KiB beside its bytes were measured, 1 KiB for a record."""
        return len(self.columns) + len(self.tails) + (1 + len(self.sample)) * KIB

    @property
    def records(self) -> list[CallRecord]:
        """Its records, made anew each time."""
        return list(map(new_record, read_rows(self.columns)))

    def parted(self, most: int) -> "list[Block]":
        """Return it as blocks of at most so many records."""
        if self.count <= most:
            return [self]
        records = self.records
        starts = range(0, self.count, most)
        return [pack(records[start : start + most], mended=self.mended) for start in starts]


def pack(rows: Sequence[Row], *, plain: bool = False, mended: bool = False) -> Block:
    """Make a block of records, or of their columns alone.

    ``plain``: nothing in any field has to be escaped in JSON.
    """
    columns = marshal.dumps(list(map(tuple, rows)))  # a third less than pickle takes
    sample = range(0, len(rows), -(-len(rows) // SAMPLE))
    records = tuple((place, new_record(rows[place])) for place in sample)
    return Block(len(rows), columns, spell_tails(rows, plain=plain), records, mended)


def read_rows(columns: bytes | memoryview) -> list[Row]:
    """Return the columns of each of a block's records."""
    rows: list[Row] = marshal.loads(columns)  # noqa: S302 - of our own making, in this run
    return rows


@dataclass(frozen=True, slots=True)
class StoredRows:
    """The rows that records have become: the ``seq`` of each, 0 where it has added none."""

    seqs: Sequence[int]
    blocks: Sequence[Block]

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self.seqs) - self.seqs.count(0)

    @property
    def last_seq(self) -> int:
        """The highest ``seq``; 0 where there is no row."""
        return max(self.seqs, default=0)

    def lines(self, head: str) -> str:
        """Spell their log lines, each behind ``head`` and its ``seq``."""
        lines: list[str] = []
        for seqs, block in self._by_block():
            tails = block.tails.split("\n")
            lines += [f"{head}{seq}{tail}\n" for seq, tail in zip(seqs, tails, strict=True) if seq]
        return "".join(lines)

    def records(self) -> list[tuple[int, CallRecord]]:
        """Return each row's record, behind its ``seq``."""
        return [
            (seq, record)
            for seqs, block in self._by_block()
            for seq, record in zip(seqs, block.records, strict=True)
            if seq
        ]

    def sample(self) -> list[CallRecord]:
        """Return some of the records that have become rows."""
        return [
            record
            for seqs, block in self._by_block()
            for place, record in block.sample
            if seqs[place]
        ]

    def _by_block(self) -> Iterator[tuple[Sequence[int], Block]]:
        place = 0
        for block in self.blocks:
            yield self.seqs[place : place + block.count], block
            place += block.count


def rows_of(stored: Sequence[tuple[int, CallRecord]]) -> StoredRows:
    """Make rows of what is known record by record."""
    blocks = [pack([record for _, record in stored])] if stored else []
    return StoredRows([seq for seq, _ in stored], blocks)
