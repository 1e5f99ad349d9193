"""Turns the calls that were played into the history that programs fetch, whether heard or not.

Each call stands in it once, in the order played, and as the call that its report told.
"""

import csv
import io
import re
from collections.abc import Iterator

from cdrd.simulate.reports import history_row, rest_row

_COLUMNS = tuple(history_row(0, started=0))


class History:
    """The calls played so far by a PBX whose clock is `utc_offset` minutes ahead of UTC."""

    def __init__(self, utc_offset: int = 0) -> None:
        self._utc_offset = utc_offset
        self._calls: list[tuple[int, int]] = []

    def add(self, number: int, started: int) -> None:
        """Keep the call of that number, which began at `started` (UTC epoch)."""
        self._calls.append((number, started))

    def csv(self, parties: str, begin: int, end: int) -> str:
        """Write the S-Series download: the calls from `begin` to `end`, both inclusive.

        The two are local seconds: what the PBX's clock shows, taken for UTC. `parties` is `all` or
        the numbers of extensions, with commas between.
        """
        text = io.StringIO()
        # Lines end as in the one download at hand.
        table = csv.writer(text, lineterminator="\r\n")
        table.writerow(_COLUMNS)
        for number, started in self._between(begin, end):
            row = history_row(number, started=started, utc_offset=self._utc_offset)
            if parties == "all" or _takes_part(parties.split(","), row):
                table.writerow(row.values())
        return text.getvalue()

    def rows(
        self, page: int, page_size: int, between: tuple[int, int] | None = None
    ) -> tuple[int, list[dict[str, str | int]]]:
        """How many calls there are in all, and the P-Series rows of one page, counted from 1.

        `between` bounds them as in `csv`.
        """
        calls = self._calls if between is None else list(self._between(*between))
        wanted = calls[(page - 1) * page_size : page * page_size]
        return len(calls), [
            rest_row(number, started=started, utc_offset=self._utc_offset)
            for number, started in wanted
        ]

    def _between(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        ahead = 60 * self._utc_offset
        return (call for call in self._calls if begin <= call[1] + ahead <= end)


def _takes_part(extensions: list[str], row: dict[str, str]) -> bool:
    told = re.findall(r"\d+", f"{row['callfrom']} {row['callto']}")
    return any(extension.strip() in told for extension in extensions)
