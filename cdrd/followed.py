"""Turns the CallIDs that were read of a portal's table into those that a new leg is still due of.

The rule that must stay true: a row that has been made a leg is none of them, for what was deleted
of it must not come back; a row that was not there yet, or could be no leg, is one.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple, Self

WINDOW_IDS: Final = 100
"""So far back each look begins: rows may be committed in another order than that of their ids."""


class Followed(NamedTuple):
    """Up to where a portal's table was read.

    ``due`` has the CallIDs of the window that no leg was made of, each with the digest of the row
    that could be none, "" where there was no row.
    """

    call_id: int
    timezone: str  # of the times that were read, by its name; "" where not all were read with one
    due: Mapping[int, str]

    @classmethod
    def with_all_due(cls, call_id: int, timezone: str) -> Self:
        """Return it where nothing is known of the rows within the window."""
        return cls(call_id, timezone, _due(0, call_id))

    def is_due(self, call_id: int) -> bool:
        """Tell whether a row with that CallID may become a new leg."""
        return call_id > self.call_id or call_id in self.due

    def after(self, read: Mapping[int, str | None]) -> Self:
        """Return it once rows were read: their digests, None for those that were made legs."""
        last = max([self.call_id, *read])
        due: dict[int, str | None] = {**self.due, **_due(self.call_id, last)}
        due |= {call_id: digest for call_id, digest in read.items() if self.is_due(call_id)}
        still = {
            call_id: digest
            for call_id, digest in due.items()
            if digest is not None and call_id > last - WINDOW_IDS
        }
        return self._replace(call_id=last, due=still)


def _due(after: int, last: int) -> dict[int, str]:
    return dict.fromkeys(range(max(after, last - WINDOW_IDS) + 1, last + 1), "")
