"""Turns committed records into what they tell of their PBX's clock and time zone.

The rule that must stay true: what is normal is never said, and what is not is said once, when it
begins and when it has ended. A record's start shows the UTC offset of the PBX; a report comes when
its call is released, so what lies between that and its arrival is the error of the PBX's clock.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from typing import Final, NamedTuple

from cdrd.record import CallRecord
from cdrd.source import LIVE

TOLERANCE: Final = 30
"""Seconds that a clock may be wrong, and by which the reports of one clock may differ."""

WITNESSES: Final = 5
"""So many reports in a row have to agree: one alone may have been held up on its way."""


class OffsetJump(NamedTuple):
    """A PBX's UTC offset has begun to differ from its configured time zone, or no longer does."""

    pbx: str
    utc_offset: int  # minutes, as the records show it
    expected: int  # minutes, by the configured time zone


class ClockJump(NamedTuple):
    """A PBX's clock is behind ours by so many seconds (negative: ahead), and was by others."""

    pbx: str
    behind: int
    before: int


Jump = OffsetJump | ClockJump


@dataclass(slots=True)
class _Clock:
    """What is known of one PBX."""

    deviation: int = 0  # minutes between its offset and the configured zone's
    behind: int = 0  # seconds, as last said
    lately: deque[int] = field(default_factory=lambda: deque(maxlen=WITNESSES))


class ClockWatch:
    """The clocks of all configured PBXs; ``zones``: the time zone of each, by its name."""

    def __init__(self) -> None:
        self.zones: Mapping[str, tzinfo] = {}
        self._clocks: defaultdict[str, _Clock] = defaultdict(_Clock)

    def look(self, records: Iterable[CallRecord]) -> list[Jump]:
        """Return what is to be said, given some of the records of the next commit."""
        jumps: list[Jump] = []
        for record in records:
            if record.source in LIVE and record.pbx in self.zones:
                clock = self._clocks[record.pbx]
                started = datetime.fromisoformat(record.started_at)
                jumps += self._look_at_offset(clock, record, started)
                jumps += _look_at_clock(clock, record, started)
        return jumps

    def _look_at_offset(
        self, clock: _Clock, record: CallRecord, started: datetime
    ) -> list[OffsetJump]:
        if record.identity < 0:
            return []  # the offset is the configured zone's: the call's id did not tell one
        expected = _offset_minutes(started, self.zones[record.pbx])
        deviation = record.utc_offset - expected
        if deviation == clock.deviation:
            return []
        clock.deviation = deviation
        return [OffsetJump(record.pbx, record.utc_offset, expected)]


def _look_at_clock(clock: _Clock, record: CallRecord, started: datetime) -> list[ClockJump]:
    if record.duration < 0:
        return []
    received = datetime.fromisoformat(record.received_at)
    lately = clock.lately
    lately.append(int((received - started).total_seconds()) - record.duration)
    if len(lately) < WITNESSES or max(lately) - min(lately) > TOLERANCE:
        return []
    behind = min(lately)  # what is more may be the way
    if abs(behind) <= TOLERANCE:
        behind = 0
    before = clock.behind
    if behind == before or (behind and abs(behind - before) <= TOLERANCE):
        return []
    clock.behind = behind
    return [ClockJump(record.pbx, behind, before)]


def _offset_minutes(instant: datetime, zone: tzinfo) -> int:
    offset = instant.astimezone(zone).utcoffset()
    assert offset is not None
    return int(offset.total_seconds()) // 60
