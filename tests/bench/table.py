"""Tables of figures: as the console shows them and as Markdown."""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.table import Table as ConsoleTable

WIDTH = 112


@dataclass(slots=True)
class Table:
    """A heading, a line of columns, the rows, and remarks below."""

    heading: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def on_console(self) -> ConsoleTable:
        """Show it in a terminal."""
        table = ConsoleTable(*self.columns, title=self.heading, caption="\n".join(self.remarks))
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Show it in a page."""
        lines = map(_line, (self.columns, ("---",) * len(self.columns), *self.rows))
        remarks = "".join(f"\n{textwrap.fill(remark, WIDTH)}\n" for remark in self.remarks)
        return f"## {self.heading}\n\n" + "\n".join(lines) + "\n" + remarks


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("  ", " ")


def figure(number: float | None, digits: int = 0) -> str:
    """Show a number with so many digits behind the point; nothing where there is none."""
    return "" if number is None or number != number else f"{number:,.{digits}f}"  # noqa: PLR0124 - NaN
