"""Turns a batch into requests that a running daemon takes, and back.

The rule that must stay true: what a request brings is what the batch held, each column of its
type, or the request is refused whole.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import Any, Final, get_type_hints

import orjson

from cdrd.batch import Batch, QuarantinedReport, RestoredCall
from cdrd.record import CallRecord
from cdrd.restore import MAX_SEQ
from cdrd.sizes import KIB

REQUEST_BYTES: Final = 512 * KIB
"""About how large a request becomes: some 700 records."""

IMPORT_CALLS: Final = "import_calls"

Request = dict[str, Any]

_RECORD: Final = tuple(get_type_hints(CallRecord).values())
_RESTORED: Final = (int, bool, *_RECORD)
_QUARANTINED: Final = tuple(
    str if kind is bytes else kind for kind in get_type_hints(QuarantinedReport).values()
)


class TooLarge(Exception):
    """A record that fits into no request."""


class Unfit(ValueError):
    """A request whose rows are not what they have to be."""


def make_requests(batch: Batch, max_bytes: int) -> Iterator[Request]:
    """Part a batch into requests of less than ``max_bytes`` each; an empty one makes one too.

    Raises TooLarge.
    """
    request, size = _empty(), 0
    for name, row in spell_rows(batch):
        text = orjson.dumps(row)
        if len(text) > max_bytes - KIB:
            raise TooLarge(f"a record of {len(text)} bytes cannot be handed to the daemon")
        if size + len(text) > min(REQUEST_BYTES, max_bytes - KIB):
            yield request
            request, size = _empty(), 0
        request[name].append(orjson.Fragment(text))
        size += len(text) + len(",")
    yield request


def read_request(request: Request) -> Batch:
    """Return the batch that a request brings. Raises Unfit."""
    batch = Batch()
    batch.add(*(CallRecord(*row) for row in _checked(request, "records", _RECORD)))
    for seq, local_told, *row in _checked(request, "restored", _RESTORED):
        if not 1 <= seq <= MAX_SEQ:
            raise Unfit(f"seq {seq}, which no row can have")
        batch.add_restored(RestoredCall(seq, CallRecord(*row), local_told))
    for row in _checked(request, "quarantined", _QUARANTINED):
        report = QuarantinedReport(*row)
        try:
            payload = b64decode(row[report._fields.index("payload")], validate=True)
        except ValueError as error:
            raise Unfit("a payload that is not Base64") from error
        batch.add_quarantined(report._replace(payload=payload))
    return batch


def spell_rows(batch: Batch) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Name for each row of a batch the list of a request that it goes into, and its columns."""
    for record in batch.records:
        yield "records", tuple(record)
    for seq, restored, local_told in batch.restored:
        yield "restored", (seq, local_told, *restored)
    for report in batch.quarantined:
        text = b64encode(report.payload).decode()
        yield "quarantined", (*report[:-2], text, report.size)


def _empty() -> Request:
    return {"do": IMPORT_CALLS, "records": [], "restored": [], "quarantined": []}


def _checked(request: Request, name: str, kinds: tuple[type, ...]) -> list[list[Any]]:
    rows = request.get(name)
    if not isinstance(rows, list):
        raise Unfit(f"no {name}")
    for row in rows:
        if not isinstance(row, list) or tuple(map(type, row)) != kinds:
            raise Unfit(f"{name} that this daemon does not know: is it an older version?")
    return rows
