"""Turns names of columns into what an export reads and how it calls it.

The rule that must stay true: a record kind's columns are its view's, in the view's order.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

from cdrd.leg import COLUMNS, ConferenceLeg
from cdrd.record import ABSENT_SECONDS, CallRecord
from cdrd.selection import CALLS, CONFERENCES, View


class Kind(Enum):
    """What a column holds."""

    TEXT = "text"
    INTEGER = "integer"
    JSON = "JSON text, which is long"


class Column(NamedTuple):
    """A column of a view."""

    name: str
    original: str  # what the PBX or portal calls it, "" for what only we know
    kind: Kind
    stored: str  # what the table has: text, an integer, or '' where the view has NULL


class Records(NamedTuple):
    """A kind of record: its view, its columns, and the table behind them.

    To read the table takes a quarter less time than to have absent text turned into NULL and back.
    """

    view: View
    table: str
    columns: tuple[Column, ...]


class Layout(NamedTuple):
    """What an export consists of: some columns in an order, and what each is called."""

    records: Records
    columns: tuple[Column, ...]
    headings: tuple[str, ...]

    @property
    def query(self) -> str:
        """The query of the columns, up to its condition."""
        names = ", ".join(column.name for column in self.columns)
        return f"SELECT {names} FROM {self.records.view.name}"  # noqa: S608 - names of our own


class NoSuchColumn(ValueError):
    """A column that there is not, or that is named twice; the text says which there are."""


_SECONDS: Final = ("duration", "talk_duration", "agent_ring_time")
_INTEGERS: Final = ("seq", "utc_offset", *_SECONDS)

_OF_A_PBX: Final = {
    "call_id": "callid",
    "cdr_id": "cdrid",
    "started_local": "timestart",
    "caller": "callfrom",
    "callee": "callto",
    "source_trunk": "srctrunkname",
    "destination_trunk": "dsttrunkname",
    "did_number": "didnumber",
    "duration": "callduraction",  # sic
    "talk_duration": "talkduraction",  # sic
    "agent_ring_time": "agentringtime",
    "status": "status",
    "call_type": "type",
    "pin_code": "pincode",
    "recording": "recording",
    "pbx_serial": "sn",
}
"""The names in the history that a PBX itself exports, and where that has none, in its reports."""

_OF_A_PORTAL: Final = {ours: theirs for theirs, ours in COLUMNS.items()}


def _column_of_calls(name: str) -> Column:
    original = _OF_A_PBX.get(name, "")
    if name in _SECONDS:
        absent = f"CASE {name} WHEN {ABSENT_SECONDS} THEN '' ELSE {name} END"
        return Column(name, original, Kind.INTEGER, absent)
    kind = Kind.JSON if name == "raw" else Kind.INTEGER if name in _INTEGERS else Kind.TEXT
    return Column(name, original, kind, name)


def _column_of_legs(name: str) -> Column:
    kind = Kind.INTEGER if name in ("seq", "call_id") else Kind.TEXT
    return Column(name, _OF_A_PORTAL.get(name, ""), kind, f"ifnull({name}, '')")


RECORDS: Final = {
    "calls": Records(CALLS, "call", tuple(map(_column_of_calls, ("seq", *CallRecord._fields[1:])))),
    "conferences": Records(
        CONFERENCES, "conference_leg", tuple(map(_column_of_legs, ("seq", *ConferenceLeg._fields)))
    ),
}


def lay_out(records: Records, names: Sequence[str] = (), *, original: bool = False) -> Layout:
    """Choose columns by our names, all of them by default, and give them their headings.

    ``original``: the source's own headings, where it has one; and by default only those columns
    that have one. Raises NoSuchColumn.
    """
    known = {column.name: column for column in records.columns}
    for number, name in enumerate(names):
        if name not in known:
            raise NoSuchColumn(f"there is no column {name!r}: there are {', '.join(known)}")
        if name in names[:number]:
            raise NoSuchColumn(f"the column {name!r} is named twice")
    columns = tuple(known[name] for name in names or known)
    if not original:
        return Layout(records, columns, tuple(column.name for column in columns))
    if not names:
        columns = tuple(column for column in columns if column.original)
    return Layout(records, columns, tuple(column.original or column.name for column in columns))
