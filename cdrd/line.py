"""Turns records into the tails of their log lines: all that a line tells of its record.

In front of a tail the log puts when, the level, the event and the ``seq``. The rule that must stay
true: a tail is the JSON that orjson makes of the same values, by whichever way it was made.
"""

from collections.abc import Sequence
from typing import Any, Final

import orjson

from cdrd.record import ABSENT, CallRecord, Row, new_record

CALL_RELEASED: Final = "call_released"
"""The event that the line of a record tells."""

LOGGED: Final = (
    "seq",
    "pbx",
    "call_id",
    "started_at",
    "caller",
    "callee",
    "source_trunk",
    "destination_trunk",
    "duration",
    "talk_duration",
    "status",
    "call_type",
    "recording",
    "source",
)
"""What a ``call_released`` line tells of the record; never the PIN code."""


def told_fields(record: CallRecord) -> dict[str, Any]:
    """Return what a line tells of a record, with None for what is absent."""
    fields = {name: getattr(record, name) for name in LOGGED[1:]}
    return {
        name: None if value == ABSENT or (value.__class__ is int and value < 0) else value
        for name, value in fields.items()
    }


def spell_tail(record: CallRecord) -> str:
    """Spell the tail of one record; what JSON cannot hold, the database does not take either."""
    try:
        return "," + orjson.dumps(told_fields(record))[1:].decode()
    except orjson.JSONEncodeError:
        return ""


def spell_tails(rows: Sequence[Row], *, plain: bool) -> str:
    """Spell the tails of records, or of their columns alone, a line each.

    ``plain``: there is nothing in any of their fields that JSON has to escape. Then a tail takes
    0.9 us, and 4 us otherwise. What is absent is spelt as it is stored, and put right for all.
    """
    if not plain:
        return "\n".join(map(spell_tail, map(new_record, rows)))
    tails = [
        f',"pbx":"{pbx}","call_id":"{call_id}","started_at":"{started_at}","caller":"{caller}",'
        f'"callee":"{callee}","source_trunk":"{source_trunk}",'
        f'"destination_trunk":"{destination_trunk}","duration":{duration},'
        f'"talk_duration":{talk_duration},"status":"{status}","call_type":"{call_type}",'
        f'"recording":"{recording}","source":"{source}"}}'
        for (
            _,
            pbx,
            call_id,
            _,
            started_at,
            _,
            _,
            caller,
            callee,
            source_trunk,
            destination_trunk,
            _,
            duration,
            talk_duration,
            _,
            status,
            call_type,
            _,
            recording,
            _,
            source,
            _,
            _,
        ) in rows
    ]
    # No value holds a quote, so these are no part of one.
    return "\n".join(tails).replace('":"",', '":null,').replace('":-1,', '":null,')
