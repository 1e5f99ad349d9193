"""A portal's export becomes rows by column name, and a bad row costs itself alone."""

import codecs
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdrd.leg import make_leg
from cdrd.portal_file import BadRow, PortalFile, PortalFileError, Row
from tests.portal_rows import NEW_YORK, ROW, export, leg, row

NAMES = list(ROW)
WITHOUT_EXTENSION = [name for name in NAMES if name != "Extension"]


def read(content: bytes) -> list[Row | BadRow]:
    return list(PortalFile(io.BytesIO(content)).rows())


def fields(content: bytes) -> list[dict[str, str]]:
    rows = read(content)
    assert all(isinstance(row, Row) for row in rows), rows
    return [row.fields for row in rows if isinstance(row, Row)]


def bad(content: bytes) -> list[tuple[int, str]]:
    return [(row.line, row.reason) for row in read(content) if isinstance(row, BadRow)]


# Forms


def test_an_export_is_read() -> None:
    assert fields(export([row(1), row(2)])) == [row(1), row(2)]


def test_columns_may_come_in_any_order_and_without_extension() -> None:
    assert fields(export([row(1)], NAMES[::-1])) == [row(1)]
    (without,) = fields(export([row(1)], WITHOUT_EXTENSION))
    assert make_leg(without, portal="video", zone=NEW_YORK) == leg(1)._replace(extension=None)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_header_tells_the_delimiter(delimiter: str) -> None:
    assert (
        fields(export([row(1, CallerName="a;b,c\td")], delimiter=delimiter))[0]["CallerName"]
        == "a;b,c\td"
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_encoding_is_told_by_the_file(encoding: str) -> None:
    content = export([row(1)]).decode().encode(encoding)
    assert fields(content) == [row(1)]


def test_what_is_not_utf8_is_cp1252_and_said() -> None:
    opened = PortalFile(io.BytesIO(export([row(1)]).decode().encode("cp1252") + b"\x81\r\n"))
    first, last = opened.rows()
    assert opened.cp1252_lines == 2
    assert isinstance(first, Row)
    assert first.fields == row(1)
    assert last == BadRow(3, "1 cells where the header has 27", "\\x81\r\n")


def test_a_line_in_cp1252_changes_no_other() -> None:
    lines = export([row(1), row(2), row(3)]).splitlines(keepends=True)
    lines[2] = lines[2].decode().encode("cp1252")
    assert fields(b"".join(lines)) == [row(1), row(2), row(3)]


def test_cp1252_without_a_last_line_break_is_whole() -> None:
    content = export([row(1), row(2, CallerName="", RoomOwner="René")]).decode().encode("cp1252")
    assert fields(content.rstrip()) == fields(content)


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_any_line_ending_will_do(ending: str) -> None:
    content = export([row(1), row(2)]).replace(b"\r\n", ending.encode())
    assert [found.line for found in read(content)] == [2, 3]
    assert [found.line for found in read(content.removesuffix(ending.encode()))] == [2, 3]


def test_quoted_cells_hold_anything() -> None:
    name = 'a "quoted", name\r\non two lines'
    first, second = read(export([row(1, CallerName=name), row(2)]))
    assert isinstance(first, Row)
    assert first.fields["CallerName"] == name
    assert (first.line, second.line) == (2, 4)
    assert fields(b'"CallID"' + export([row(1)])[len("CallID") :]) == [row(1)]


def test_empty_lines_are_no_rows() -> None:
    content = export([row(1)])
    assert fields(b"\r\n" + content + b"\r\n,,,\r\n  \r\n") == [row(1)]


# Faults


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "the file is empty"),
        (b"\r\n\r\n", "the file is empty"),
        (b"callid,timestart\r\n1,2\r\n", "the header lacks CallID, UniqueCallID"),
        (b"\x00\x01\x02", "it has '\\x00\\x01\\x02'"),
        (export([], WITHOUT_EXTENSION[:-1]), "the header lacks RoomOwner; it has 'CallID, Uni"),
        (export([], [*NAMES, "Room Owner"]), "the header has room_owner twice"),
    ],
)
def test_a_file_that_is_no_export_is_told(content: bytes, told: str) -> None:
    if content.startswith(b"callid,timestart"):
        told = told.replace("CallID, ", "")
    with pytest.raises(PortalFileError) as caught:
        PortalFile(io.BytesIO(content))
    assert told in str(caught.value)


def test_too_many_or_too_few_cells_are_a_bad_row() -> None:
    good = export([row(1)])
    content = good + b"2,short\r\n" + export([row(3)]).split(b"\r\n")[1] + b",more\r\n"
    assert bad(content) == [
        (3, "2 cells where the header has 27"),
        (4, "28 cells where the header has 27"),
    ]
    assert len(read(content)) == 3


@pytest.mark.parametrize("broken", [b'2,"never closed\r\n', b'2,"a"b,c\r\n'])
def test_a_broken_quote_costs_its_row_alone(broken: bytes) -> None:
    lines = export([row(1), row(3, CallerName='in "quotes"'), row(4)]).splitlines(keepends=True)
    content = b"".join([*lines[:2], broken, *lines[2:]])
    found = read(content)
    assert [type(each) for each in found] == [Row, BadRow, Row, Row]
    assert [each.line for each in found] == [2, 3, 4, 5]
    assert found[1].text == broken.decode()


def test_bytes_beside_utf8_that_are_none_cost_their_row_alone() -> None:
    content = export([row(1), row(2, CallerName="é\n+é", RoomOwner="é"), row(3)])
    first, second, third = read(content.replace(b"+", b"\xe9"))
    assert isinstance(first, Row)
    assert isinstance(third, Row)
    assert (first.fields, third.fields, third.line) == (row(1), row(3), 5)
    assert isinstance(second, BadRow)
    assert (second.line, second.reason) == (3, "not valid UTF-8")
    lines = content.splitlines(keepends=True)
    assert second.text.encode(errors="surrogateescape") == b"".join(lines[2:4]).replace(
        b"+", b"\xe9"
    )


@pytest.mark.parametrize("name", ["Ångström", "Angstrom"])
def test_a_character_that_the_end_of_the_file_cuts_costs_its_row_alone(name: str) -> None:
    content = export([row(1), row(2, CallerName=name, RoomOwner="René")])
    assert bad(content.rstrip()[:-1]) == [(3, "not valid UTF-8")]
    assert fields(content.rstrip()) == fields(content)


@pytest.mark.parametrize("owner", ["alice", "ali\N{PILE OF POO}", "\xfc"])
def test_utf16_that_the_end_of_the_file_cuts_costs_its_row_alone(owner: str) -> None:
    content = export([row(1), row(2, RoomOwner=owner)]).decode().rstrip().encode("utf-16")
    assert fields(content) == [row(1), row(2, RoomOwner=owner)]
    assert bad(content[:-1]) == [(3, "not valid UTF-16")]


def test_a_surrogate_without_its_other_costs_its_row_alone() -> None:
    rows = export([row(1), row(2, CallerName="+"), row(3)]).decode().encode("utf-16-le")
    half = rows.replace("+".encode("utf-16-le"), b"\x41\xd8")
    first, second, third = read(codecs.BOM_UTF16_LE + half)
    assert isinstance(first, Row)
    assert isinstance(third, Row)
    assert (first.fields, third.fields) == (row(1), row(3))
    assert isinstance(second, BadRow)
    assert (second.line, second.reason) == (3, "not valid UTF-16")
    assert ",alice,\\x41\\xd8,2017-09-14" in second.text


def test_a_quote_that_is_never_closed_does_not_read_the_file_again_and_again() -> None:
    content = export([row(1)]) + b'"open\r\n' * 3000
    assert len(bad(content)) == 3000


@given(st.lists(st.text(alphabet='1,;"\r\n \tab', max_size=40), max_size=6))
def test_any_rows_leave_their_neighbours_alone(junk: list[str]) -> None:
    content = (
        export([row(1)]) + "".join(junk).encode() + b"\r\n" + export([row(2)]).partition(b"\r\n")[2]
    )
    first, *_, last = [found for found in read(content) if isinstance(found, Row)]
    assert first.fields == row(1)
    assert last.fields == row(2)
