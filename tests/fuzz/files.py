"""What has to be true of a portal's files, of the spool, of exports and of the configuration."""

import codecs
import contextlib
import csv
import io
import re
import sqlite3
from functools import cache
from typing import Any
from zlib import crc32

import orjson

from cdrd.columns import RECORDS, lay_out
from cdrd.config import parse_config
from cdrd.csv_lines import CsvLines
from cdrd.exits import ConfigError
from cdrd.formula import guarded, unguarded
from cdrd.leg import ConferenceLeg, NotALeg, make_leg, merge
from cdrd.leg_request import _checked
from cdrd.portal_file import PortalFile, PortalFileError, Row
from cdrd.schema import migrate
from cdrd.spool_line import read_lines, spell_lines
from tests.example import varied
from tests.fuzz.reading import HQ, chance
from tests.fuzz.seeds import PORTAL_HEADER

TEXTS = ("caller", "callee", "source_trunk", "destination_trunk", "status", "recording", "raw")


def check_portal(file: bytes) -> None:
    """Each line of a portal's file is in one row, read or bad, and each row a leg or none."""
    if chance(file).randrange(4):
        file = PORTAL_HEADER + file
    try:
        portal_file = PortalFile(io.BytesIO(file))
    except PortalFileError:
        return
    rows = list(portal_file.rows())
    is_utf16 = file.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = _plain(file.decode("utf-16" if is_utf16 else "latin-1", errors="backslashreplace"))
    plain = [_plain(row.text) for row in rows]
    position = 0
    for row, shown in zip(rows, plain, strict=True):
        position = text.index(shown, position) + len(shown)
        if isinstance(row, Row):
            _check_leg(row)
        else:
            assert row.reason
    assert sum(len(shown.split()) for shown in plain) <= len(text.split())


def _plain(text: str) -> str:
    """Leave out what is beyond ASCII: how it is read differs from line to line."""
    return re.sub(r"[^\0-\x7f]|\\x[89a-f][0-9a-f]", "", text)


def pour_portal(pieces: list[bytes]) -> None:
    """Read a file that is whole by then."""
    for _ in PortalFile(io.BytesIO(PORTAL_HEADER + b"".join(pieces))).rows():
        pass


def _check_leg(row: Row) -> None:
    try:
        leg = make_leg(row.fields, portal="video", zone=HQ.zone)
    except NotALeg:
        return
    assert _checked(ConferenceLeg, orjson.loads(orjson.dumps(list(leg)))) == leg
    assert merge(leg, leg, HQ.zone) == leg


def check_spool(content: bytes) -> None:
    """A line of the spool is taken as it was written, or not at all."""
    lines = content.splitlines(keepends=True)
    read = read_lines(lines)
    assert len(read.batch) + len(read.damaged) == len(lines) - lines.count(b"\n")
    read = read_lines([b"%08x %b\n" % (crc32(content), content)])
    assert len(read.batch) + len(read.damaged) == 1
    spelled = list(spell_lines(read.batch))
    again = read_lines(spelled)
    assert not again.damaged
    assert again.batch.records == read.batch.records
    assert [block.mended for block in again.batch.blocks] == [
        block.mended for block in read.batch.blocks
    ]
    for line in spelled:
        at = chance(line).randrange(len(line))
        changed = line[:at] + bytes([line[at] ^ 1 << at % 8]) + line[at + 1 :]
        assert not read_lines([changed]).batch


@cache
def _table() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection)
    return connection


def check_export(texts: bytes) -> None:
    """A reader of the CSV gets each text back, but for the apostrophes before formulas."""
    table, cells = _table(), texts.decode(errors="ignore").replace("\0", "").split("|")
    fields: dict[str, Any] = dict(zip(TEXTS, cells, strict=False))
    record = varied(**fields)
    marks = ", ".join("?" * (len(record) + 1))
    table.execute("DELETE FROM call")
    table.execute(f"INSERT INTO call VALUES ({marks})", (1, *record))
    names = (*fields, "raw")[: len(fields)]
    for chosen in (names, names[:1], names[-1:]):
        layout = CsvLines(lay_out(RECORDS["calls"], chosen))
        lines = layout.header + layout.lines(table.execute(layout.query).fetchall())
        _, *rows = csv.reader(io.StringIO(lines.decode(), newline=""), strict=True)
        # One empty cell alone is an empty line, which the reader takes for no cells.
        [row] = [cells or [""] for cells in rows]
        for name, cell in zip(chosen, row, strict=True):
            assert cell == guarded(fields[name])
            assert unguarded(cell) == fields[name]


def check_config(text: bytes) -> None:
    """A configuration is accepted or refused."""
    with contextlib.suppress(UnicodeDecodeError, ConfigError):
        parse_config(text.decode(), "config.toml")
