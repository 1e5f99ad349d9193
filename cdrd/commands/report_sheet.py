"""Turns figures of traffic into what a person or a program reads: a table, CSV or JSON.

The rule that must stay true: each form holds the same figures, spelt alike.
"""

import csv
import io
import json
from dataclasses import dataclass
from typing import Final

from cdrd.commands.tables import table_text
from cdrd.formula import guarded
from cdrd.traffic import Traffic

FIGURES: Final = (
    "calls",
    "answered",
    "missed",
    "asr",
    "acd",
    "talk_time",
    "longest",
    "busiest_hour",
    "peak_concurrency",
    "erlangs",
)
TOTAL: Final = "total"
NAMELESS: Final = "(none)"
"""How people are shown the group of records without a trunk, or whatever it is."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """The figures, and of what they are."""

    records: str  # calls, conferences
    start: str | None  # the range, as the zone's clocks show it
    end: str | None
    zone: str
    by: str | None
    traffic: Traffic

    @property
    def title(self) -> str:
        """Say in a line what the figures are of."""
        whole = self.start is None and self.end is None
        span = f"{self.start or 'the first'} to {self.end or 'the last'}"
        return f"{self.records}, {'all' if whole else span}, {self.zone}"

    def rows(self) -> list[list[str]]:
        """Return the figures as text behind the name of their group, all of them last."""
        named = [
            (NAMELESS if group is None else group, figures)
            for group, figures in self.traffic.groups.items()
        ]
        return [
            [name, *(spell(figures.row()[figure]) for figure in FIGURES)]
            for name, figures in (*named, (TOTAL, self.traffic.total))
        ]


def spell(value: float | str | None) -> str:
    """Spell a figure; one that there is not is nothing."""
    return "" if value is None else str(value)


def sheet_table(sheet: Sheet) -> str:
    """Return a table, wider than most terminals; that of all alone has a figure a line."""
    rows = [[sheet.by or "", *FIGURES], *sheet.rows()]
    columns = [list(column) for column in zip(*rows, strict=True)]
    return f"{sheet.title}\n\n{table_text(rows if sheet.by else columns)}"


def sheet_csv(sheet: Sheet) -> str:
    """Return CSV with the columns ``group`` and the figures; ``total`` is the last line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["group", *FIGURES])
    for group, figures in (*sheet.traffic.groups.items(), (TOTAL, sheet.traffic.total)):
        row = figures.row()
        writer.writerow([guarded(group or ""), *(spell(row[figure]) for figure in FIGURES)])
    return text.getvalue()


def sheet_json(sheet: Sheet) -> str:
    """Return one JSON object; a group without a name is null."""
    groups = sheet.traffic.groups.items()
    told = {
        "records": sheet.records,
        "from": sheet.start,
        "to": sheet.end,
        "timezone": sheet.zone,
        "by": sheet.by,
        TOTAL: sheet.traffic.total.row(),
        "groups": [{"group": group, **figures.row()} for group, figures in groups],
    }
    # Not orjson: talk times of 63 bits add up to more than the 64 that it takes.
    return json.dumps(told, ensure_ascii=False, indent=2) + "\n"
