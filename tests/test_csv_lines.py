"""A reader of CSV gets each text back as it was, but for what a spreadsheet would run."""

import contextlib
import csv
import io
import re
import sqlite3
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdrd.columns import RECORDS, lay_out
from cdrd.csv_lines import CsvLines
from cdrd.record import CallRecord
from cdrd.schema import migrate
from tests.example import varied

CALLS = RECORDS["calls"]
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+|( [0-9]+)+)?", re.ASCII)
SIGNS = "=+-@;\t\r\n\"\\,][{} '0"
TEXT = st.one_of(
    st.text(SIGNS, max_size=8),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(
        ["\x01\x1f", '"],["', ',""', '\\"', "\\\\", "\\u0041", "+4930123", "-1.5", "+49 30 1"]
    ),
)


@pytest.fixture
def table() -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection)
        yield connection


def insert(table: sqlite3.Connection, records: Sequence[CallRecord]) -> None:
    table.execute("DELETE FROM call")
    marks = ", ".join("?" * (len(CallRecord._fields) + 1))
    for seq, record in enumerate(records, start=1):
        table.execute(f"INSERT OR REPLACE INTO call VALUES ({marks})", (seq, *record))


def lines(table: sqlite3.Connection, *names: str) -> str:
    made = CsvLines(lay_out(CALLS, names))
    found = table.execute(f"{made.query} ORDER BY seq").fetchall()
    return (made.header + made.lines(found)).decode()


def read(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline=""), strict=True))


def harmless(value: object) -> str:
    """What the cell of a value is to be, said another way than in the code."""
    if value is None or isinstance(value, int):
        return "" if value is None else str(value)
    *pieces, last = re.split(r"(?<=[;\r\n])", str(value))
    cells = [f"'{piece}" if runs(piece) else piece for piece in pieces]
    cells.append(f"'{last}" if runs(last) and not NUMBER.fullmatch(last.lstrip("'")) else last)
    begins = cells[0].lstrip("'").startswith(("\t", "\r", "\n"))
    return ("'" if begins else "") + "".join(cells)


def runs(piece: str) -> bool:
    return piece.lstrip("'").startswith(("=", "+", "-", "@"))


@given(
    rows=st.lists(st.tuples(TEXT, TEXT, TEXT, TEXT), min_size=1, max_size=5),
    names=st.permutations(["seq", "caller", "callee", "duration", "raw", "call_id"]),
    chosen=st.integers(1, 6),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_text_comes_back_whatever_the_columns(
    table: sqlite3.Connection, rows: list[tuple[str, ...]], names: list[str], chosen: int
) -> None:
    records = [
        varied(call_id=f"{number}{call_id}", caller=caller, callee=callee, raw=raw)
        for number, (call_id, caller, callee, raw) in enumerate(rows)
    ]
    insert(table, records)
    columns = names[:chosen]
    found = table.execute(f"SELECT {', '.join(columns)} FROM calls ORDER BY seq").fetchall()
    expected = [columns, *([harmless(cell) for cell in row] for row in found)]
    assert read(lines(table, *columns)) == expected


@pytest.mark.parametrize("name", ["caller", "raw"])
@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+cmd|' /C calc'!A0",
        "@SUM(A1)",
        "-2+3",
        "\t1",
        "\r1",
        "+49-30-123",
        "+49;1",
        "=",
        "+",
    ],
)
def test_a_formula_gets_an_apostrophe_in_every_place(
    table: sqlite3.Connection, name: str, text: str
) -> None:
    insert(table, [varied(caller=text, raw=text)])
    for columns in ((name,), (name, "seq"), ("seq", name), ("seq", name, "callee")):
        cells = read(lines(table, *columns))[1]
        assert cells[columns.index(name)] == f"'{text}"


@pytest.mark.parametrize("name", ["caller", "raw"])
@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("x;=1+1;", "x;'=1+1;"),
        ("x\r\n=1", "x\r\n'=1"),
        ("\r=1", "'\r'=1"),
        ("x;'=1", "x;''=1"),
        ("x;+49;y", "x;'+49;y"),
        ("x;+49", "x;+49"),
        ('x;+49"', "x;'+49\""),
        ('{"a":"x;=1"}', '{"a":"x;\'=1"}'),
    ],
)
def test_so_does_one_that_a_spreadsheet_finds_where_it_cuts_a_text(
    table: sqlite3.Connection, name: str, text: str, cell: str
) -> None:
    insert(table, [varied(caller=text, raw=text)])
    for columns in ((name,), (name, "seq"), ("seq", name), ("seq", name, "callee")):
        assert read(lines(table, *columns))[1][columns.index(name)] == cell


@pytest.mark.parametrize(
    "text",
    ["+4930123", "+49 30 1234", "0049123", "-1", "+1.5", "1234567890123456", "00123", "a=1", " =1"],
)
def test_a_number_and_a_telephone_number_stay_as_they_are(
    table: sqlite3.Connection, text: str
) -> None:
    insert(table, [varied(caller=text, raw=text)])
    assert read(lines(table, "caller", "callee", "raw"))[1] == [text, "91000", text]


def test_lines_are_of_rfc_4180_and_what_is_absent_is_an_empty_cell(
    table: sqlite3.Connection,
) -> None:
    insert(table, [varied(caller='a "quoted", name', callee="two\r\nlines", raw='{"a":1}')])
    assert lines(table, "seq", "caller", "callee", "cdr_id", "talk_duration", "raw") == (
        "seq,caller,callee,cdr_id,talk_duration,raw\r\n"
        '1,"a ""quoted"", name","two\r\nlines",,,"{""a"":1}"\r\n'
    )
