"""Turns a batch into lines that keep it in a file while the database is damaged, and back.

The rule that must stay true: a line is taken as it was written or not at all. In front of each
row's JSON stands the CRC-32 of it, which tells a line that was cut off or has changed.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple
from zlib import crc32

import orjson

from cdrd.batch import Batch, QuarantinedReport, quarantine_of
from cdrd.handover import read_request, spell_rows

MENDED: Final = "mended"
"""A record whose JSON had to be mended; the other rows are named as in a request."""

_NAMES: Final = ("records", "restored", "quarantined")


class DamagedLine(NamedTuple):
    """A line that cannot be taken: its place among those read, and why."""

    place: int
    why: str


class Read(NamedTuple):
    """What lines hold."""

    batch: Batch
    damaged: list[DamagedLine]


def spell_lines(batch: Batch) -> Iterator[bytes]:
    """Spell each record and each quarantined report; what JSON cannot hold becomes the latter."""
    for block in batch.blocks:
        for record in block.records:
            try:
                yield _spell(MENDED if block.mended else "records", tuple(record))
            except orjson.JSONEncodeError as error:
                yield _spell_quarantined(quarantine_of(record, f"refused by the spool: {error}"))
    for report in batch.quarantined:
        yield _spell_quarantined(report)


def read_lines(lines: Iterable[bytes]) -> Read:
    """Take what lines hold; an empty one holds nothing."""
    read = Read(Batch(repeated=True), [])
    for place, line in enumerate(lines):
        if line == b"\n":
            continue
        try:
            name, row = _checked(line)
            _add(read.batch, name, row)
        except ValueError as error:
            read.damaged.append(DamagedLine(place, str(error)))
    return read


def _spell(name: str, row: tuple[object, ...]) -> bytes:
    text = orjson.dumps((name, row))
    return b"%08x %b\n" % (crc32(text), text)


def _spell_quarantined(report: QuarantinedReport) -> bytes:
    report = report._replace(
        pbx=_printable(report.pbx),
        peer=_printable(report.peer),
        source=_printable(report.source),
        reason=_printable(report.reason),
    )
    [(name, row)] = spell_rows(Batch(quarantined=[report]))
    return _spell(name, row)


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _checked(line: bytes) -> tuple[str, list[Any]]:
    """Return the row's name and the row. Raises ValueError."""
    if not line.endswith(b"\n"):
        raise ValueError("it is cut off")
    checksum, _, text = line[:-1].partition(b" ")
    if checksum != b"%08x" % crc32(text):
        raise ValueError("its checksum is wrong")
    match orjson.loads(text):
        case [str(name), list(row)]:
            return name, row
    raise ValueError("it is of another version")


def _add(batch: Batch, name: str, row: list[Any]) -> None:
    """Add what a line holds. Raises ValueError."""
    wanted = "records" if name == MENDED else name
    if wanted not in ("records", "quarantined"):
        raise ValueError("it is of another version")
    held = read_request({each: [] for each in _NAMES} | {wanted: [row]})
    batch.add(*held.records, mended=name == MENDED)
    for report in held.quarantined:
        batch.add_quarantined(report)
