"""Exports by real processes from real databases, read again by other people's readers."""

import asyncio
import csv
import gzip
import json
import subprocess
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet
import pytest

from cdrd.batch import Batch
from cdrd.store import Store
from tests.example import holding, varied
from tests.running import RunningDaemon, cdrd, rows, send

EVIL = (
    "=1+1",
    "+cmd|' /C calc'!A0",
    "@SUM(A1)",
    "-2+3",
    'a "quoted", name',
    "two\nlines",
    "1234567890123456",
    "00123",
    "+4930123",
    "Zoë 😀",
    "",
)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calls with every evil name, over the midnights of a month's end."""
    path = tmp_path_factory.mktemp("export") / "cdr.sqlite3"
    batch = Batch()
    for number, name in enumerate(EVIL):
        minute = f"2024-{'02-29T23' if number < 6 else '03-01T00'}:{number:02}:00"
        batch.add(
            varied(
                call_id=f"17{number:08}.1",
                caller=name,
                started_at=f"{minute}Z",
                started_local=minute.replace("T", " "),
                utc_offset=0,
            )
        )
    asyncio.run(fill(path, batch))
    return path


async def fill(path: Path, *batches: Batch) -> None:
    store = await Store.open(path)
    for batch in batches:
        await store.commit(batch, 0)
    await store.close(0)


def many(number: int) -> Batch:
    return holding([varied(call_id=f"1505352615.{one}") for one in range(number)])


def stored(database: Path) -> list[dict[str, Any]]:
    return [dict(row) for row in rows(database)]


def unguarded(cell: str) -> str:
    return cell[1:] if cell[:2] in ("'=", "'+", "'@", "'-") else cell


def test_csv_holds_every_cell_and_no_formula(database: Path, tmp_path: Path) -> None:
    exported = cdrd("export", "calls", "--db", database, "-o", tmp_path / "calls.csv")
    assert (exported.returncode, exported.stderr.count(f"{len(EVIL)} calls written")) == (0, 1)
    with (tmp_path / "calls.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    for row, kept in zip(read, stored(database), strict=True):
        assert row["caller"][:1] not in ("=", "@", "-")
        assert {name: unguarded(cell) for name, cell in row.items()} == {
            name: "" if value is None else str(value) for name, value in kept.items()
        }
    callers = [row["caller"] for row in read]
    assert {"1234567890123456", "00123", "+4930123"} <= set(callers)


def test_libreoffice_reads_each_cell_of_xlsx_as_it_is(database: Path, tmp_path: Path) -> None:
    exported = cdrd("export", "calls", "--db", database, "-o", tmp_path / "calls.xlsx")
    assert exported.returncode == 0, exported.stderr
    subprocess.run(
        [
            "soffice",
            f"-env:UserInstallation=file://{tmp_path}/profile",
            "--headless",
            "--convert-to",
            "csv:Text - txt - csv (StarCalc):44,34,76,1,,0,false,true,false",
            "--outdir",
            tmp_path / "converted",
            tmp_path / "calls.xlsx",
        ],
        check=True,
        capture_output=True,
        timeout=100,
    )
    with (tmp_path / "converted" / "calls.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    for row, kept in zip(read, stored(database), strict=True):
        assert row == {name: "" if value is None else str(value) for name, value in kept.items()}


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_json_lines_are_the_rows(database: Path, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"calls.{ending}"
    assert cdrd("export", "calls", "--db", database, "-o", path).returncode == 0
    content = path.read_bytes()
    lines = (gzip.decompress(content) if ending.endswith("gz") else content).splitlines()
    assert [json.loads(line) for line in lines] == stored(database)


def test_parquet_is_read_by_pyarrow_and_duckdb(database: Path, tmp_path: Path) -> None:
    path = tmp_path / "calls.parquet"
    assert cdrd("export", "calls", "--db", database, "-o", path).returncode == 0
    assert pyarrow.parquet.read_table(path).to_pylist() == stored(database)
    found = duckdb.connect().execute(f"SELECT seq, caller FROM '{path}' ORDER BY seq")
    assert found.fetchall() == [(row["seq"], row["caller"]) for row in stored(database)]


def test_what_is_exported_comes_back_and_is_exported_the_same(
    database: Path, tmp_path: Path
) -> None:
    first, again = tmp_path / "first.jsonl", tmp_path / "again.jsonl"
    other = tmp_path / "other.sqlite3"
    assert cdrd("export", "calls", "--db", database, "-o", first).returncode == 0
    assert cdrd("import", "calls", "--db", other, "--timezone", "UTC", first).returncode == 0
    assert cdrd("export", "calls", "--db", other, "-o", again).returncode == 0
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        (["--from", "2024-03-01"], range(6, 11)),
        (["--to", "2024-03-01"], range(6)),
        (["--from", "2024-02-29", "--to", "2024-03-01"], range(6)),
        (["--from", "2024-03-01", "--timezone", "Europe/Berlin"], range(11)),
        (["--from", "2024-03-01", "--timezone", "America/New_York"], range(0)),
        (["--from", "2024-03-01T00:07", "--to", "2024-03-01T00:09"], (7, 8)),
        (["--number", "0*123"], (7,)),
        (["--status", "BUSY"], range(0)),
    ],
)
def test_a_range_holds_what_is_in_it(
    database: Path, arguments: list[str], numbers: range | tuple[int, ...]
) -> None:
    chosen: list[str | Path] = [
        "--db",
        database,
        "--format",
        "jsonl",
        "--columns",
        "seq",
        *arguments,
    ]
    exported = cdrd("export", "calls", *chosen)
    seqs = [json.loads(line)["seq"] for line in exported.stdout.splitlines()]
    assert seqs == [number + 1 for number in numbers], exported.stderr


def test_original_headings_are_the_pbxs(database: Path) -> None:
    exported = cdrd("export", "calls", "--db", database, "--header", "original")
    assert {"callid", "timestart", "callfrom"} <= set(exported.stdout.splitlines()[0].split(","))
    legs = cdrd("export", "conferences", "--db", database, "--header", "original")
    assert len(legs.stdout.splitlines()[0].split(",")) == 27
    assert legs.stdout.startswith("CallID,UniqueCallID,")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--columns", "calller"], 2, "calller"),
        (["--from", "soon"], 2, "soon"),
        (["--split"], 2, "-o"),
        (["-o", "calls.parquet.gz"], 2, "gz"),
        (["-o", "/nowhere/calls.csv"], 1, "/nowhere"),
    ],
)
def test_what_cannot_be_done_is_told(
    database: Path, arguments: list[str], status: int, said: str
) -> None:
    exported = cdrd("export", "calls", "--db", database, *arguments)
    assert (exported.returncode, exported.stdout) == (status, "")
    assert said in exported.stderr
    assert "Traceback" not in exported.stderr


def test_a_file_that_is_there_is_replaced_only_with_force(database: Path, tmp_path: Path) -> None:
    path = tmp_path / "calls.csv"
    path.write_text("mine")
    refused = cdrd("export", "calls", "--db", database, "-o", path)
    assert (refused.returncode, path.read_text()) == (1, "mine")
    assert cdrd("export", "calls", "--db", database, "-o", path, "--force").returncode == 0
    assert path.read_text().startswith("seq,")
    assert [entry.name for entry in tmp_path.iterdir()] == ["calls.csv"]


def test_65000_records_are_written_and_one_more_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "cdr.sqlite3"
    asyncio.run(fill(path, many(65_000)))
    exported = cdrd("export", "calls", "--db", path, "--columns", "seq")
    assert (exported.returncode, len(exported.stdout.splitlines())) == (0, 65_001)
    asyncio.run(fill(path, holding([varied(caller="one more")])))
    refused = cdrd("export", "calls", "--db", path, "--columns", "seq")
    assert (refused.returncode, refused.stdout) == (1, "")
    for said in ("65001", "2017-09", "--split", "--no-limit", "--from"):
        assert said in refused.stderr
    every = cdrd("export", "calls", "--db", path, "--columns", "seq", "--no-limit")
    assert len(every.stdout.splitlines()) == 65_002


def test_the_files_of_a_split_are_one_state_beside_a_writing_daemon(tmp_path: Path) -> None:
    path = tmp_path / "cdr.sqlite3"
    asyncio.run(fill(path, many(130_001)))
    report = b'{"action":"NewCdr","callid":"1495779310.%d","timestart":"2017-05-25 22:15:10"}\n'
    with RunningDaemon(tmp_path) as daemon:
        daemon.wait_for_calls(130_001)
        command: list[str | Path] = ["export", "calls", "--db", path, "--split", "--columns", "seq"]
        send(daemon.port, *(report % number for number in range(500)))
        daemon.wait_for_calls(130_501)
        send(daemon.port, *(report % number for number in range(500, 600)))
        exported = cdrd(*command, "-o", tmp_path / "part.csv")
        daemon.stop()
    assert exported.returncode == 0, exported.stderr
    seqs: list[int] = []
    for number in (1, 2, 3):
        lines = (tmp_path / f"part-{number:03}.csv").read_text().splitlines()
        seqs += map(int, lines[1:])
    assert seqs == list(range(1, len(seqs) + 1))
    assert f"{len(seqs)} calls written" in exported.stderr
    assert 130_501 <= len(seqs) <= 130_601
