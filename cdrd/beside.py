"""Turns what a command beside the daemon asks for into work of the only writer.

The rule that must stay true: what is asked for is done whole or refused with the reason, and what
it stores is told like everything else.
"""

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from cdrd import handover, leg_request, purge
from cdrd.control import Answer, RequestRefused
from cdrd.quarantine import drop_quarantined, read_quarantine, retry
from cdrd.sender import Sender
from cdrd.store import Store
from cdrd.writer import Writer

Request = dict[str, Any]


class Beside:
    """Does what commands ask for; the two settings are those in force when they are asked."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        *,
        senders: Callable[[], Sequence[Sender]],
        max_report_bytes: Callable[[], int],
    ) -> None:
        self._store = store
        self._writer = writer
        self._senders = senders
        self._max_report_bytes = max_report_bytes

    async def work(self, request: Request) -> Answer:
        """Do what is asked. Raises RequestRefused."""
        kinds: dict[object, Callable[[Request], Awaitable[Answer]]] = {
            "retry": self._retry,
            "drop": self._drop,
            handover.IMPORT_CALLS: self._import_calls,
            leg_request.STORE_LEGS: self._store_legs,
            purge.PURGE: self._purge,
        }
        asked = request.get("do")
        if not isinstance(asked, str) or asked not in kinds:
            raise RequestRefused("this daemon does not know the request: is it an older version?")
        try:
            return await kinds[asked](request)
        except (sqlite3.Error, OverflowError) as error:  # the latter: a number beyond 64 bits
            raise RequestRefused(f"the database: {error}") from error
        except (handover.Unfit, leg_request.NotAnArrival, purge.NotAPurge) as error:
            raise RequestRefused(str(error)) from error

    async def _retry(self, request: Request) -> Answer:
        kept = await self._store.run(read_quarantine, _ids(request))
        retried = retry(kept, self._senders(), self._max_report_bytes())
        committed = await self._writer.commit_beside(retried.batch)
        return {
            "resolved": len(retried.batch.resolved),
            "stored": committed.added,
            "duplicate": committed.duplicates,
            "staying": retried.staying,
        }

    async def _drop(self, request: Request) -> Answer:
        return {"dropped": await self._store.run(drop_quarantined, _ids(request))}

    async def _import_calls(self, request: Request) -> Answer:
        committed = await self._writer.commit_beside(handover.read_request(request))
        return committed.counts

    async def _store_legs(self, request: Request) -> Answer:
        outcome = await self._writer.store_legs(leg_request.read_request(request))
        return leg_request.make_answer(outcome)

    async def _purge(self, request: Request) -> Answer:
        step = await self._store.run(purge.take_step, *purge.read_request(request))
        return {"deleted": step.deleted, "place": step.place and list(step.place)}


def _ids(request: Request) -> list[int]:
    ids = request.get("ids")
    if not isinstance(ids, list):
        raise RequestRefused("no ids of quarantined reports")
    return ids
