"""Turns bytes into all that became of them, by whichever way they were read, for comparison."""

from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import ip_network
from itertools import pairwise
from random import Random
from typing import NamedTuple
from zlib import crc32
from zoneinfo import ZoneInfo

from cdrd.batch import Batch, QuarantinedReport, RestoredCall, Waiting
from cdrd.frame import Framer, Lines
from cdrd.line import spell_tails
from cdrd.record import CallRecord
from cdrd.restore import COLUMNS, restore_exported
from cdrd.sender import Origin, Sender
from cdrd.stream import ReportStream, Totals

RECEIVED_AT = "2024-01-01T00:00:00.000Z"
PEER = "192.0.2.10:50000"
ENDED = "the peer closed within a report"
ANYWHERE = (ip_network("0.0.0.0/0"),)
HQ = Sender("hq", ZoneInfo("Europe/Berlin"), ANYWHERE)
SHOPS = (
    Sender("shop", ZoneInfo("Asia/Tokyo"), ANYWHERE, "369451090405"),
    Sender("br\\anch", ZoneInfo("America/New_York"), ANYWHERE, "369362089179"),
)

MakeStream = Callable[[Waiting, Totals], ReportStream]


class Reading(NamedTuple):
    """All that became of some bytes."""

    records: list[CallRecord]
    restored: list[RestoredCall]
    mended: list[CallRecord]
    quarantined: list[QuarantinedReport]
    events: Counter[str]
    received: int
    passed_over: int


class OneByOne(Framer):
    """Takes no lines together, so that each frame is found by itself."""

    def next_lines(self) -> Lines | None:
        return None


class Skimming(Framer):
    """Skims every block."""

    def _is_to_skim(self, texts: list[str]) -> bool:
        return bool(texts)


class Custody:
    """What streams fill, and what is in it."""

    def __init__(self) -> None:
        self.waiting = Waiting(10**9)
        self.totals = Totals()

    @property
    def batch(self) -> Batch:
        return self.waiting.arriving

    def reading(self) -> Reading:
        """Return what was read, which is all that was received."""
        batch, totals = self.batch, self.totals
        assert totals.received == len(batch) + totals.passed_over
        assert totals.events.total() == totals.passed_over
        return Reading(
            batch.records,
            batch.restored,
            batch.mended,
            batch.quarantined,
            totals.events,
            totals.received,
            totals.passed_over,
        )


def connection(*senders: Sender, max_report_bytes: int) -> MakeStream:
    """Make streams as of connections of one address."""
    return lambda waiting, totals: ReportStream(
        Origin(senders),
        peer=PEER,
        source="tcp",
        waiting=waiting,
        totals=totals,
        max_report_bytes=max_report_bytes,
    )


def read(
    make: MakeStream, pieces: Sequence[bytes], *, one_by_one: bool = False, skims: bool = False
) -> Reading:
    """Read a whole stream that comes in pieces; ``skims``: where most seem other events."""
    custody = Custody()
    stream = make(custody.waiting, custody.totals)
    if one_by_one:
        stream._framer = OneByOne(stream._framer._max, skims=stream._framer._skims)
    if skims:
        stream._framer = Skimming(stream._framer._max, skims=True)
    for piece in pieces:
        stream.receive(piece, RECEIVED_AT)
    stream.close(ENDED, RECEIVED_AT)
    return custody.reading()


def read_handed_over(make: MakeStream, first: bytes, second: bytes) -> Reading:
    """Read a stream that one process leaves and another one goes on with."""
    custody = Custody()
    left = make(custody.waiting, custody.totals)
    left.receive(first, RECEIVED_AT)
    stream = make(custody.waiting, custody.totals)
    stream.receive(left.leave(), RECEIVED_AT)
    stream.receive(second, RECEIVED_AT)
    stream.close(ENDED, RECEIVED_AT)
    return custody.reading()


_choose = Random()


def chance(given: bytes) -> Random:
    """Make choices that an input decides, so that it shows the same fault again."""
    _choose.seed(crc32(given))  # a tenth of the time that a new one takes
    return _choose


def cut(stream: bytes, choose: Random) -> list[bytes]:
    """Cut a stream at up to four places; a short one, now and then, at each byte."""
    if len(stream) < 128 and choose.random() < 0.06:
        return [stream[at : at + 1] for at in range(len(stream))]
    places = (choose.randrange(len(stream) + 1) for _ in range(choose.randrange(1, 5)))
    return [stream[start:end] for start, end in pairwise(sorted({0, len(stream), *places}))]


def check_records(batch: Batch) -> None:
    """Hold records to what is true of each, however it came."""
    for block in batch.blocks:
        assert block.tails == spell_tails(block.records, plain=False)
        assert block.count == len(block.records)
    for record in batch.records:
        check_restored(RestoredCall(1, record))


def check_restored(call: RestoredCall) -> None:
    """Export a record and import it again: it is the same."""
    assert restore_exported([exported(call)]) == [call]


def exported(call: RestoredCall) -> dict[str, object]:
    """Return the columns of a record's row of the view ``calls``."""
    columns = {"seq": call.seq, **call.record._asdict()}
    return {
        name: None if value == "" or (value == -1 and name != "utc_offset") else value
        for name in COLUMNS
        for value in [columns[name]]
    }
