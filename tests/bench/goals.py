"""What cdrd is to reach, and the table that holds what it has reached to it."""

from collections.abc import Mapping
from dataclasses import dataclass

from tests.bench.table import Table, figure


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure's name, its bound, and how it is shown."""

    name: str
    bound: float
    at_least: bool = False
    unit: str = ""
    digits: int = 2

    def met(self, reached: float) -> bool:
        """Tell whether the figure is on the right side."""
        return reached >= self.bound if self.at_least else reached <= self.bound

    def shown(self, number: float) -> str:
        """Show a number in its unit."""
        return figure(number, self.digits) + self.unit


RATE = Goal("rows a second against syslog-ng's, FULL", 2.0, at_least=True)
RATE_OF_FLOOR = Goal("rows a second against those of the C insert", 0.45, at_least=True)
CPU = Goal("CPU a record against syslog-ng's", 0.6)
UNDELIMITED = Goal("rows a second without delimiters against lines", 0.8, at_least=True)
EVENTS = Goal("20 other events to a record, against `orjson.loads` alone", 0.5, at_least=True)
CONNECTIONS = Goal("rows a second over 200 connections against 16", 0.8, at_least=True)
PEAK = Goal("peak memory under the heaviest load", 100, unit=" MiB", digits=0)
MEDIAN_AT_100 = Goal("sent to visible at 100 a second, median", 2, unit=" ms")
HIGH_AT_100 = Goal("the same, 99th percentile", 5, unit=" ms")
MEDIAN_AT_10000 = Goal("sent to visible at 10,000 a second, median", 2, unit=" ms")
HIGH_AT_10000 = Goal("the same at 10,000 a second, 99th percentile", 10, unit=" ms")
GROWN = Goal("rows a second into the largest file against an empty one", 0.9, at_least=True)
AT_REST = Goal("CPU at rest with 1,000 connections", 0.5, unit=" % of a core")
READY = Goal("start to ready, empty database", 300, unit=" ms", digits=0)

GOALS = (
    *(RATE, RATE_OF_FLOOR, CPU, UNDELIMITED, EVENTS, CONNECTIONS, PEAK, MEDIAN_AT_100, HIGH_AT_100),
    *(MEDIAN_AT_10000, HIGH_AT_10000, GROWN, AT_REST, READY),
)


def table(reached: Mapping[Goal, float]) -> Table:
    """Show all goals, with what was reached where it was measured."""
    shown = Table("Goals", ("figure", "reached", "goal", "met"))
    for goal in GOALS:
        bound = f"at {'least' if goal.at_least else 'most'} {goal.shown(goal.bound)}"
        if goal in reached:
            met = "yes" if goal.met(reached[goal]) else "no"
            shown.rows.append((goal.name, goal.shown(reached[goal]), bound, met))
        else:
            shown.rows.append((goal.name, "not measured", bound, ""))
    return shown
