"""Turns seizures (calls, legs of conferences) into the figures of their traffic.

The rule that must stay true: a seizure occupies the time from its start, inclusive, to its end,
exclusive, and of that only what lies in the window. It is counted where it began; those begun
before the window only occupy. So the figures of a day within a month are those of the day alone.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import tzinfo
from heapq import heappop, heappush
from operator import attrgetter
from typing import Final, NamedTuple

from cdrd.hours import LAST_INSTANT, WEEKDAYS, ClockHour, clock_hour
from cdrd.record import HOURS

DAY: Final = 24 * HOURS

TIMES: Final = ("hour", "day", "weekday")
"""What the time of a window divides into; a seizure occupies each one that it lasts within."""

Group = str | None
"""A group's name; None where the record has none, such as an internal call's trunk."""


class Seizure(NamedTuple):
    """One attempt to call, answered or not: in traffic theory it seizes a line."""

    started: int  # Unix seconds
    duration: int  # seconds, this and the next
    talk: int
    answered: bool
    groups: tuple[Group, ...] = ()  # several where it occupies several, such as two trunks


class Window(NamedTuple):
    """The time that is looked at, in Unix seconds, and the zone whose clocks tell its hours."""

    start: int | None
    end: int | None
    zone: tzinfo


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of a group, or of all."""

    calls: int
    answered: int
    talk_time: int  # seconds, of the answered
    longest: int  # seconds of talk
    busiest_hour: str | None  # the clock hour of the most traffic, the earliest of several
    busiest_seconds: int  # occupied in that hour, summed over the calls
    peak_concurrency: int

    def row(self) -> dict[str, int | float | str | None]:
        """Return the figures by the names that programs know; None where there is no such figure.

        ``asr`` is the answered share; ``acd``, in seconds, the average of the answered; ``erlangs``
        the average of calls at once in the busiest hour. A whole hour counts as 3,600 seconds
        also where the window or a clock change cuts it: a minute's rush is no busy hour.
        """
        return {
            "calls": self.calls,
            "answered": self.answered,
            "missed": self.calls - self.answered,
            "asr": round(self.answered / self.calls, 4) if self.calls else None,
            "acd": round(self.talk_time / self.answered, 2) if self.answered else None,
            "talk_time": self.talk_time,
            "longest": self.longest,
            "busiest_hour": self.busiest_hour,
            "peak_concurrency": self.peak_concurrency,
            "erlangs": round(self.busiest_seconds / HOURS, 4),
        }


class Traffic(NamedTuple):
    """The figures of all, and of each group: times in their order, others by their calls."""

    total: Figures
    groups: dict[Group, Figures]


def measure(seizures: Iterable[Seizure], window: Window, *, now: int, by: str = "") -> Traffic:
    """Work out the figures of seizures, which come in the order of their starts.

    ``by``: one of ``TIMES``; else the groups are those that the seizures name. Those begun before
    the window may come in any order, before the others. Nothing lasts beyond ``now``, or, should a
    PBX's clock be ahead, beyond a day. Where both ends of the window are given each of its times up
    to now is a group, also one without calls. Else only those with calls are: the one call of a PBX
    whose clock was reset would add decades of empty hours.

    Of the seizures, only those that last at one time are held in memory.
    """
    meter = _Meter(window, now, by)
    for seizure in seizures:
        meter.add(seizure)
    return meter.finish()


class _Tally:
    """The figures so far."""

    __slots__ = ("answered", "busiest", "busiest_seconds", "calls", "longest", "peak", "talk_time")

    def __init__(self) -> None:
        self.calls = self.answered = self.talk_time = self.longest = self.peak = 0
        self.busiest: ClockHour | None = None
        self.busiest_seconds = 0

    def count(self, seizure: Seizure) -> None:
        """Count one that began in the window."""
        self.calls += 1
        if seizure.answered:
            self.answered += 1
            self.talk_time += seizure.talk
            self.longest = max(self.longest, seizure.talk)

    def pass_hour(self, hour: ClockHour, occupied: int, peak: int) -> None:
        """Take in an hour that is over: the seconds occupied, and the most at once."""
        self.peak = max(self.peak, peak)
        if occupied > self.busiest_seconds:
            self.busiest, self.busiest_seconds = hour, occupied

    def figures(self) -> Figures:
        return Figures(
            self.calls,
            self.answered,
            self.talk_time,
            self.longest,
            self.busiest.hour if self.busiest else None,
            self.busiest_seconds,
            self.peak,
        )


class _Sweep:
    """Moves through the clock hours, and keeps the ends of the seizures that last.

    At one instant an end comes before a start.
    """

    __slots__ = ("_at", "_ends", "_hour", "_occupied", "_passed", "_peak", "_zone")

    def __init__(
        self, hour: ClockHour, zone: tzinfo, passed: Callable[[ClockHour, int, int], None]
    ) -> None:
        """Begin in an hour; ``passed`` is called for each in which something lasted or began."""
        self._at = hour.start
        self._ends: list[int] = []
        self._hour = hour
        self._occupied = self._peak = 0
        self._passed = passed
        self._zone = zone

    def begin(self, start: int, end: int, hour: ClockHour) -> None:
        """Move on to a start, which lies in ``hour``."""
        self.move(start)
        if start >= self._hour.end:
            self._enter(hour)
        self._at = start
        if end > start:
            heappush(self._ends, end)
            self._peak = max(self._peak, len(self._ends))

    def move(self, until: int) -> None:
        """Move on to an instant, over the ends and hours on the way; not over empty hours."""
        ends = self._ends
        while ends and self._at < until:
            at = min(ends[0], self._hour.end, until)
            self._occupied += len(ends) * (at - self._at)
            self._at = at
            while ends and ends[0] <= at:
                heappop(ends)
            if ends and at == self._hour.end and at < until:
                self._enter(clock_hour(at, self._zone))

    def close(self) -> None:
        """Pass the last hour."""
        self._passed(self._hour, self._occupied, self._peak)

    def _enter(self, hour: ClockHour) -> None:
        self.close()
        self._hour = hour
        self._occupied = 0
        self._peak = len(self._ends)


class _Meter:
    """Hands each seizure to the sweeps and tallies that it belongs to."""

    def __init__(self, window: Window, now: int, by: str) -> None:
        self._start = -LAST_INSTANT if window.start is None else window.start
        self._end = window.end
        self._now = now
        self._zone = window.zone
        self._name: Callable[[ClockHour], Group] | None = attrgetter(by) if by in TIMES else None
        self._by = by
        self._total = _Tally()
        self._groups: defaultdict[Group, _Tally] = defaultdict(_Tally)
        self._sweeps: dict[Group, _Sweep] = {}
        self._sweep: _Sweep | None = None
        self._hour = clock_hour(window.start or 0, window.zone)
        if self._name and window.start is not None and window.end is not None:
            for hour in _hours(window.start, min(window.end, now), window.zone):
                self._groups[self._name(hour)]  # an empty tally

    def add(self, seizure: Seizure) -> None:
        start = max(seizure.started, self._start)
        end = seizure.started + min(seizure.duration, max(self._now - seizure.started, DAY))
        if self._end is not None:
            end = min(end, self._end)
        if end <= start != seizure.started or (self._end is not None and start >= self._end):
            return  # neither begun within the window nor lasting into it
        if not self._hour.start <= start < self._hour.end:
            self._hour = clock_hour(start, self._zone)
        groups = () if self._name else seizure.groups
        self._occupy(start, end, groups)
        if start == seizure.started:
            self._total.count(seizure)
            for group in (self._name(self._hour),) if self._name else groups:
                self._groups[group].count(seizure)

    def _occupy(self, start: int, end: int, groups: tuple[Group, ...]) -> None:
        if self._sweep is None:
            self._sweep = _Sweep(self._hour, self._zone, self._pass_hour)
        self._sweep.begin(start, end, self._hour)
        for group in groups:
            sweep = self._sweeps.get(group)
            if sweep is None:
                passed = self._groups[group].pass_hour
                sweep = self._sweeps[group] = _Sweep(self._hour, self._zone, passed)
            sweep.begin(start, end, self._hour)

    def _pass_hour(self, hour: ClockHour, occupied: int, peak: int) -> None:
        self._total.pass_hour(hour, occupied, peak)
        if self._name:
            self._groups[self._name(hour)].pass_hour(hour, occupied, peak)

    def finish(self) -> Traffic:
        """Move over what still lasts, and put the groups in order."""
        for sweep in (self._sweep, *self._sweeps.values()):
            if sweep is not None:
                sweep.move(LAST_INSTANT)
                sweep.close()
        groups = {group: tally.figures() for group, tally in self._groups.items()}
        return Traffic(self._total.figures(), _ordered(groups, self._by))


def _ordered(groups: dict[Group, Figures], by: str) -> dict[Group, Figures]:
    """Order groups by their calls, the nameless last of equals; hours and days come in order."""
    if by in ("hour", "day"):
        return groups
    if by == "weekday":
        return {day: groups[day] for day in WEEKDAYS if day in groups}
    ordered = sorted(groups, key=lambda group: (-groups[group].calls, group is None, group or ""))
    return {group: groups[group] for group in ordered}


def _hours(start: int, end: int, zone: tzinfo) -> Iterator[ClockHour]:
    """Walk through the clock hours of a window."""
    while start < end:
        hour = clock_hour(start, zone)
        yield hour
        start = hour.end
