"""Turns what was read of a portal's table into which of its rows are news when they are read again.

The rule that must stay true: a row that was read before is none, for what was deleted of it must
not come back; a row that was not there yet, or is another one now, is news.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple, Self

WINDOW_IDS: Final = 100
"""So far back each look begins: rows may be committed in another order than that of their ids."""


class Followed(NamedTuple):
    """Up to where a portal's table was read.

    ``digests`` has the CallIDs of the window, each with the digest of what tells its row from
    another one, "" where there was no row.
    """

    call_id: int
    timezone: str  # of the times that were read, by its name; "" where not all were read with one
    digests: Mapping[int, str]

    @classmethod
    def with_all_due(cls, call_id: int, timezone: str) -> Self:
        """Return it where nothing is known of the rows within the window."""
        return cls(call_id, timezone, _without_rows(0, call_id))

    def is_due(self, call_id: int, digest: str) -> bool:
        """Tell whether a row may become a new leg, or go to quarantine."""
        return call_id > self.call_id or self.digests.get(call_id, digest) != digest

    def after(self, read: Mapping[int, str]) -> Self:
        """Return it once rows were read, given by their digests."""
        last = max([self.call_id, *read])
        digests = {**self.digests, **_without_rows(self.call_id, last), **read}
        within = {
            call_id: digest for call_id, digest in digests.items() if call_id > last - WINDOW_IDS
        }
        return self._replace(call_id=last, digests=within)

    def back_to(self, newest: int) -> Self:
        """Return it where the rows behind that CallID are gone."""
        left = {call_id: digest for call_id, digest in self.digests.items() if call_id <= newest}
        return self._replace(call_id=newest, digests=left or _without_rows(0, newest))


def _without_rows(after: int, last: int) -> dict[int, str]:
    return dict.fromkeys(range(max(after, last - WINDOW_IDS) + 1, last + 1), "")
