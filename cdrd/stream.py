"""Turns the bytes of one connection into waiting records: the whole way down, in one place.

The rule that must stay true: between the bytes and the custody of the record nothing waits and
nothing raises; each frame ends as exactly one of a record, a quarantined report or an event that
is passed over, and is counted as received once.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from cdrd.batch import QuarantinedReport, Waiting
from cdrd.frame import PAYLOAD_BYTES, Broken, Frame, Framer
from cdrd.record import NotARecord, make_record
from cdrd.report import MendedCall, OtherEvent, ReleasedCall, read_report
from cdrd.sender import Origin

MAX_EVENT_NAME_LENGTH: Final = 64
MAX_EVENT_NAMES: Final = 100
"""Counted by name up to here; further names count together: a peer must not fill our memory."""


@dataclass(slots=True)
class Totals:
    """What became of everything received in this run.

    received = stored + duplicate + quarantined + passed_over + what is waiting.
    """

    received: int = 0
    stored: int = 0
    duplicate: int = 0
    quarantined: int = 0
    passed_over: int = 0
    events: Counter[str] = field(default_factory=Counter)

    def pass_over(self, event: str) -> None:
        """Count an event that is no released call; no record is lost with it."""
        self.passed_over += 1
        name = event[:MAX_EVENT_NAME_LENGTH]
        known = name in self.events or len(self.events) < MAX_EVENT_NAMES
        self.events[name if known else "other"] += 1


class ReportStream:
    """One connection's stream of reports."""

    def __init__(
        self,
        origin: Origin,
        *,
        peer: str,
        source: str,
        waiting: Waiting,
        totals: Totals,
        max_report_bytes: int,
    ) -> None:
        self.origin = origin
        self.peer = peer
        self.source = source
        self.reports = 0
        self._waiting = waiting
        self._totals = totals
        self._framer = Framer(max_report_bytes)

    def receive(self, chunk: bytes | bytearray | memoryview, received_at: str) -> None:
        """Take custody of every report that the chunk completes; the time as a record spells it."""
        framer = self._framer
        framer.receive(chunk)
        while (frame := framer.next_frame()) is not None:
            self._take(frame, received_at)

    def close(self, reason: str, received_at: str) -> None:
        """End the stream; what is held of a report that never became whole goes to quarantine."""
        for frame in self._framer.close(reason):
            self._take(frame, received_at)

    def _take(self, frame: Frame | Broken, received_at: str) -> None:
        self._totals.received += 1
        self.reports += 1
        if isinstance(frame, Broken):
            self._quarantine(frame, self.origin.name, received_at)
            return
        report = read_report(frame.report)
        if isinstance(report, ReleasedCall):
            self._take_call(frame, report, received_at)
        elif isinstance(report, OtherEvent):
            self._totals.pass_over(report.name)
        else:
            self._quarantine(_broken(frame, report.reason), self.origin.name, received_at)

    def _take_call(self, frame: Frame, report: ReleasedCall, received_at: str) -> None:
        sender = self.origin.sender(report.pbx_serial)
        if sender is None:
            reason = f"serial {report.pbx_serial!r} belongs to no PBX configured at this address"
            self._quarantine(_broken(frame, reason), self.origin.name, received_at)
            return
        try:
            record = make_record(
                report,
                pbx=sender.name,
                zone=sender.zone,
                source=self.source,
                received_at=received_at,
                raw=frame.text.decode(),
            )
        except NotARecord as error:
            self._quarantine(_broken(frame, str(error)), sender.name, received_at)
        else:
            self._waiting.arriving.add(
                record, mended=frame.mended or isinstance(report, MendedCall)
            )

    def _quarantine(self, broken: Broken, pbx: str, received_at: str) -> None:
        self._waiting.arriving.add_quarantined(
            QuarantinedReport(
                received_at,
                pbx,
                self.peer,
                self.source,
                broken.reason,
                broken.payload,
                broken.size,
            )
        )


def _broken(frame: Frame, reason: str) -> Broken:
    return Broken(bytes(frame.text[:PAYLOAD_BYTES]), len(frame.text), reason)
