"""``cdrd export`` as people run it: where it writes, what it says, and what it leaves behind."""

import asyncio
import csv
import gzip
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from zoneinfo import ZoneInfo

import orjson
import pyarrow.parquet as pq
import pytest

from cdrd.columns import RECORDS, lay_out
from cdrd.database import open_reader
from cdrd.export import LIMIT, UNDATED, open_snapshot, pages
from cdrd.leg import ConferenceLeg
from cdrd.leg_store import Arrival, store_legs
from cdrd.record import CallRecord
from cdrd.selection import Selection
from cdrd.store import Store
from tests.example import holding, varied
from tests.portal_rows import IN_PROGRESS, NEW_YORK, ROW, leg
from tests.running import DEADLINE_SECONDS, cdrd, rows

NAMES = ("Zoë", "=1+1", "00123", "+4930123")
MANY = LIMIT + 1
PROGRAM = (sys.executable, "-m", "cdrd", "export", "calls")


def fill(path: Path, records: Sequence[CallRecord]) -> Path:
    async def store() -> None:
        opened = await Store.open(path)
        for start in range(0, len(records), 5000):
            await opened.commit(holding(list(records[start : start + 5000])), 0)
        await opened.close(0)

    asyncio.run(store())
    return path


def store_all(path: Path, legs: Sequence[ConferenceLeg]) -> None:
    async def store() -> None:
        opened = await Store.open(path)
        await opened.run(store_legs, Arrival("video", NEW_YORK, 0, legs=legs))
        await opened.close(0)

    asyncio.run(store())


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four calls."""
    path = tmp_path_factory.mktemp("few") / "cdr.sqlite3"
    return fill(path, [varied(call_id=f"1505352615.{n}", caller=NAMES[n]) for n in range(4)])


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One call more than an export may have, at the turn of a month; each of a kilobyte."""
    path = tmp_path_factory.mktemp("many") / "cdr.sqlite3"
    raw = orjson.dumps({"action": "NewCdr", "x": "x" * 800}).decode()
    times = ("2024-02-29T22:59:59Z", "2024-02-29T23:00:00Z", "2024-03-01T00:00:00Z")
    records = [
        varied(call_id=f"1709247600.{n}", started_at=times[n % 3], raw=raw) for n in range(MANY)
    ]
    return fill(path, records)


def export(database: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return cdrd("export", "calls", "--db", database, *arguments)


def started(database: Path, *arguments: str | Path, stdout: int) -> subprocess.Popen[bytes]:
    command = [*PROGRAM, "--db", str(database), *map(str, arguments)]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE)


def followed(database: Path, number: int) -> bytes:
    """The first lines that ``cdrd follow`` prints."""
    command = [sys.executable, "-m", "cdrd", "follow", "--db", str(database)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        lines = b"".join(follower.stdout.readline() for _ in range(number))
        follower.terminate()
    return lines


# What is written


def test_json_lines_are_to_the_byte_what_follow_prints(few: Path) -> None:
    exported = export(few, "--format", "jsonl")
    assert exported.stdout.encode() == followed(few, 4)
    assert exported.stderr == "4 calls written\n"


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "jsonl", "jsonl.gz"])
def test_one_processor_and_several_write_the_same(few: Path, tmp_path: Path, ending: str) -> None:
    several, one = tmp_path / f"several.{ending}", tmp_path / f"one.{ending}"
    assert export(few, "-o", several).returncode == 0
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert export(few, "-o", one).returncode == 0
    finally:
        os.sched_setaffinity(0, before)
    assert one.read_bytes() == several.read_bytes()


def test_stdout_is_csv_and_a_device_is_written_to_as_it_is(few: Path) -> None:
    assert export(few).stdout == export(few, "-o", "/dev/stdout", "--format", "csv").stdout
    assert export(few).stdout.splitlines()[0] == ",".join(
        column.name for column in RECORDS["calls"].columns
    )


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "xlsx"])
def test_nothing_selected_is_a_whole_file_without_records(
    few: Path, tmp_path: Path, form: str
) -> None:
    path = tmp_path / f"none.{form}"
    exported = export(few, "--pbx", "nobody", "-o", path)
    assert (exported.returncode, exported.stderr) == (0, f"0 calls written to {path}\n")
    if form == "parquet":
        assert pq.read_table(path).num_rows == 0
    elif form != "xlsx":
        assert len(path.read_text().splitlines()) == (form == "csv")


def test_a_history_with_the_pbxs_own_headings_is_imported_again(few: Path, tmp_path: Path) -> None:
    path, other = tmp_path / "history.csv", tmp_path / "other.sqlite3"
    assert export(few, "--header", "original", "-o", path).returncode == 0
    imported = cdrd(
        "import", "calls", "--db", other, "--pbx", "hq", "--timezone", "Asia/Shanghai", path
    )
    assert imported.returncode == 0, imported.stderr
    same = "SELECT call_id, started_at, callee, duration, status, call_type, pin_code FROM calls"
    assert [tuple(row) for row in rows(other, same)] == [tuple(row) for row in rows(few, same)]


def test_an_export_to_csv_imported_again_changes_nothing(tmp_path: Path) -> None:
    names = ("@bob", "=9", "'=9", "'bob", "+49 30 1234")
    path = fill(
        tmp_path / "cdr.sqlite3",
        [varied(call_id=f"1505352615.{n}", caller=name) for n, name in enumerate(names)],
    )
    store_all(path, [leg(n, CallerName=name) for n, name in enumerate(names, start=1)])
    views = ("calls", "conference_calls")
    before = [list(map(tuple, rows(path, f"SELECT * FROM {view}"))) for view in views]
    said = []
    for kind, sender, zone in (
        ("calls", "--pbx=hq", "Asia/Shanghai"),
        ("conferences", "--portal=video", "America/New_York"),
    ):
        file = tmp_path / f"{kind}.csv"
        cdrd("export", kind, "--db", path, "--header", "original", "-o", file)
        imported = cdrd("import", kind, "--db", path, sender, "--timezone", zone, file)
        said.append(imported.stderr.split(" quarantined")[0])
    assert said == ["0 stored, 5 duplicates, 0", "0 stored, 0 updated, 5 unchanged, 0"]
    assert [list(map(tuple, rows(path, f"SELECT * FROM {view}"))) for view in views] == before


def test_a_leg_of_the_later_pass_of_a_repeated_hour_comes_back_from_csv(tmp_path: Path) -> None:
    path, other = (fill(tmp_path / f"{name}.sqlite3", []) for name in ("cdr", "other"))
    later = {"JoinTime": "2024-11-03 01:10:00-05:00", "LeaveTime": "2024-11-03 01:20:00-05:00"}
    store_all(path, [leg(1, **later)])
    file = tmp_path / "legs.csv"
    cdrd("export", "conferences", "--db", path, "-o", file)
    zone = ("--timezone", "America/New_York")
    imported = cdrd("import", "conferences", "--db", other, "--portal", "video", *zone, file)
    assert imported.stderr == "1 stored, 0 updated, 0 unchanged, 0 quarantined\n"
    query = "SELECT * FROM conference_calls"
    [kept], [found] = rows(path, query), rows(other, query)
    assert (kept["join_time"], tuple(found)) == ("2024-11-03T06:10:00Z", tuple(kept))


def test_legs_of_several_portals_are_not_exported_as_if_of_one(tmp_path: Path) -> None:
    path = fill(tmp_path / "cdr.sqlite3", [])
    store_all(path, [leg(1), leg(2)])
    file = tmp_path / "legs.csv"
    original = ("export", "conferences", "--db", path, "--header", "original")
    cdrd(*original, "-o", file)
    zone = ("--timezone", "America/New_York")
    cdrd("import", "conferences", "--db", path, "--portal", "lab", *zone, file)
    both = cdrd(*original)
    assert (both.returncode, both.stdout) == (1, "")
    assert both.stderr.startswith("cdrd export: the legs are of portals lab, video, and no column")
    assert cdrd(*original, "--portal", "video").stdout == file.read_text()
    for told in (("--columns", "portal,call_id"), ("--columns", "call_id"), ("--header", "view")):
        assert cdrd(*original, *told).stderr == "4 conferences written\n"


def test_conference_legs_are_exported_as_the_portal_names_them(tmp_path: Path) -> None:
    path = fill(tmp_path / "cdr.sqlite3", [])
    legs = (leg(1, CallerName="=1+1"), leg(2, **IN_PROGRESS), leg(3, TenantName="Sales"))
    store_all(path, legs)
    exported = cdrd("export", "conferences", "--db", path, "--header", "original")
    assert exported.stderr == "3 conferences written\n"
    read = list(csv.DictReader(exported.stdout.splitlines()))
    assert read[0] == ROW | {"CallerName": "'=1+1"}
    assert read[1] == ROW | {"CallID": "2"} | IN_PROGRESS
    chosen = cdrd(
        *("export", "conferences", "--db", path, "--tenant", "Sales", "--format", "jsonl"),
        *("--columns", "call_id,join_time,join_local", "--from", "2017-09-14", "--type", "c"),
    )
    assert chosen.stdout == (
        '{"call_id":3,"join_time":"2017-09-14T13:30:15Z","join_local":"2017-09-14 09:30:15"}\n'
    )


# The guard


def test_too_many_records_are_told_by_month_of_the_zone_asked_for(many: Path) -> None:
    refused = export(many, "--timezone", "Europe/Berlin")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        "cdrd export: 65001 calls are more than 65000, so nothing was written; by month"
        " (Europe/Berlin):\n"
        "  2024-02  21667\n"
        "  2024-03  43334\n"
        "Narrow --from and --to, or give --split for files of 65000 each, or --no-limit for one.\n"
        "0 calls written\n"
    )
    assert "  2024-02  43334\n  2024-03  21667\n" in export(many).stderr
    one = export(many, "--to", "2024-03-01", "--timezone", "UTC", "--columns", "seq")
    assert one.stderr == "43334 calls written\n"


def test_a_refused_export_leaves_the_file_that_is_there(many: Path, tmp_path: Path) -> None:
    path = tmp_path / "calls.csv"
    path.write_text("mine")
    assert export(many, "-o", path, "--force").returncode == 1
    assert path.read_text() == "mine"


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "jsonl", "parquet"])
def test_a_split_has_every_record_once(many: Path, tmp_path: Path, ending: str) -> None:
    exported = export(many, "--split", "--columns", "seq", "-o", tmp_path / f"a.b.{ending}")
    first, second = (tmp_path / f"a.b-{number:03}.{ending}" for number in (1, 2))
    assert exported.stderr == f"{MANY} calls written to {first} ... {second}\n"
    assert sorted(tmp_path.iterdir()) == [first, second]

    def seqs(path: Path) -> list[int]:
        if ending == "parquet":
            return [int(seq) for seq in pq.read_table(path)["seq"].to_pylist()]
        content = path.read_bytes()
        text = gzip.decompress(content) if ending.endswith("gz") else content
        return [int(seq) for seq in re.findall(rb"[0-9]+", text)]

    assert seqs(first) == list(range(1, LIMIT + 1))
    assert seqs(second) == [MANY]


def test_a_part_of_a_longer_export_is_never_left_behind_a_shorter(
    few: Path, many: Path, tmp_path: Path
) -> None:
    path = tmp_path / "calls.csv"
    command = ("--split", "--columns", "seq", "-o", path)
    assert export(many, *command).returncode == 0
    assert "calls-001.csv exists" in export(few, *command).stderr
    refused = export(few, *command, "--force")
    assert (refused.returncode, "calls-002.csv is of an earlier" in refused.stderr) == (1, True)
    (tmp_path / "calls-002.csv").unlink()
    assert export(few, *command, "--force").stderr.startswith("4 calls written")


def test_months_of_records_without_a_time_and_at_the_calendars_end(tmp_path: Path) -> None:
    times = ("0001-01-01T00:00:00Z", "2024-12-31T23:30:00Z", "2025-01-01T00:00:00Z")
    records = [varied(call_id=str(n), started_at=at) for n, at in enumerate(times)]
    path = fill(tmp_path / "cdr.sqlite3", records)
    with closing(open_reader(path)) as reader:
        for zone, told in (
            ("UTC", {"0001-01": 1, "2024-12": 1, "2025-01": 1}),
            ("Europe/Berlin", {"0001-01": 1, "2025-01": 2}),
            ("America/New_York", {UNDATED: 3}),  # the first of all is no time there
        ):
            with open_snapshot(reader, RECORDS["calls"], Selection()) as snapshot:
                assert snapshot.months(ZoneInfo(zone)) == told
                assert sum(told.values()) == snapshot.count()


def test_pages_are_read_up_to_a_limit_and_go_on_behind_it(few: Path) -> None:
    layout = lay_out(RECORDS["calls"], ["seq"])
    with (
        closing(open_reader(few)) as reader,
        open_snapshot(reader, RECORDS["calls"], Selection()) as snapshot,
    ):
        found = snapshot.rows(layout.query)
        assert list(pages(found, 2, 3)) == [[(1,), (2,)], [(3,)]]
        assert list(pages(found, 2, 3)) == [[(4,)]]


# What cannot be done


def test_a_cell_too_long_for_a_sheet_is_refused_before_the_first_byte(tmp_path: Path) -> None:
    texts = ("x" * 32_767, "😀" * 16_384, "x" * 32_768)
    records = [varied(call_id=f"{n}", caller=text) for n, text in enumerate(texts)]
    path = fill(tmp_path / "cdr.sqlite3", records)
    refused = export(path, "-o", tmp_path / "calls.xlsx")
    assert refused.returncode == 1
    assert "32767 characters, and 2 records have a longer one (seq 2, 3)" in refused.stderr
    without = export(path, "-o", tmp_path / "calls.xlsx", "--columns", "seq,callee")
    assert without.returncode == 0, without.stderr
    numbers = export(path, "-o", tmp_path / "numbers.xlsx", "--columns", "seq,duration")
    assert numbers.returncode == 0, numbers.stderr


@pytest.mark.parametrize(("form", "library"), [("xlsx", "xlsxwriter"), ("parquet", "pyarrow")])
def test_a_library_that_is_missing_is_one_sentence(few: Path, form: str, library: str) -> None:
    program = f"import sys; sys.modules[{library!r}] = None; from cdrd.cli import main; "
    program += f"sys.exit(main(['export', 'calls', '--db', {str(few)!r}, '--format', {form!r}]))"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr == (
        f"cdrd export: {library}, which {form} needs, is not installed: "
        f"pip install 'cdrd[{form}]'\n0 calls written\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-o", "calls.txt"), "its ending tells no format"),
        (("-o", "calls.gz"), "its ending tells no format"),
        (("-o", "calls.xlsx.gz"), "xlsx is compressed in itself"),
        (("--split", "--no-limit", "-o", "calls.csv"), "not allowed with"),
        (("--split",), "--split makes files"),
        (("--split", "-o", "/dev/null", "--format", "csv"), "--split makes files"),
        (("--columns", "seq,seq"), "named twice"),
        (("--from", "2024-01-02", "--to", "2024-01-02"), "its end comes first"),
        (("--timezone", "Mars/Olympus"), "no time zone"),
        (("--format", "xls"), "invalid choice"),
    ],
    ids=str,
)
def test_a_wrong_use_is_told_with_2(few: Path, arguments: tuple[str, ...], said: str) -> None:
    ended = export(few, *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "error: " in ended.stderr
    assert said in ended.stderr


def test_the_range_of_a_pbx_that_is_not_configured_needs_a_zone(few: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'database.path = "{few}"\n[[pbx]]\nname = "hq"\n')
    old = ("export", "calls", "-c", config, "--pbx", "old", "--format", "jsonl")
    refused = cdrd(*old, "--from", "2024-01-01")
    assert (refused.returncode, "no time zone of 'old'" in refused.stderr) == (2, True)
    for told in (
        (),
        ("--from", "2024-01-01T00:00Z"),
        ("--from", "2024-01-01", "--timezone", "UTC"),
    ):
        assert cdrd(*old, *told).returncode == 0


def test_a_database_that_is_none_is_told(tmp_path: Path) -> None:
    assert export(tmp_path / "none.sqlite3").returncode == 78
    (tmp_path / "text").write_text("no database, but a text that is long enough to be one")
    ended = export(tmp_path / "text")
    assert (ended.returncode, ended.stderr.count("not a database")) == (1, 1)


def test_a_full_disk_is_told_with_what_may_have_been_written(few: Path) -> None:
    ended = export(few, "-o", "/dev/full", "--format", "csv")
    assert ended.returncode == 1
    assert ended.stderr == (
        "cdrd export: /dev/full: No space left on device\n4 calls written at most\n"
    )


# A terminal, a reader that leaves, a signal


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """A terminal: our end of it, and the programs'."""
    ours, theirs = pty.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(ours)


def read_until(ours: int, wanted: bytes) -> bytes:
    """Read what is shown until it matches, or until no program has the terminal open any more."""
    shown = b""
    with suppress(OSError):  # how a terminal says so
        while not re.search(wanted, shown) and (chunk := os.read(ours, 1 << 16)):
            shown += chunk
    return shown


def in_terminal(*arguments: str | Path) -> tuple[int, bytes]:
    """Run with stdout and stderr on a terminal; return the exit status and what it showed."""
    with (
        terminal() as (ours, theirs),
        subprocess.Popen([*PROGRAM, *map(str, arguments)], stdout=theirs, stderr=theirs) as process,
    ):
        os.close(theirs)
        shown = read_until(ours, b"(?!)")
        return process.wait(DEADLINE_SECONDS), shown


def test_progress_is_shown_on_a_terminal_and_the_count_stays(few: Path, tmp_path: Path) -> None:
    status, shown = in_terminal("--db", few, "-o", tmp_path / "calls.csv")
    assert status == 0
    assert b"4/4" in shown
    assert shown.endswith(f"4 calls written to {tmp_path / 'calls.csv'}\r\n".encode())


def test_progress_does_not_run_through_rows_on_the_terminal(few: Path) -> None:
    status, shown = in_terminal("--db", few, "--columns", "seq")
    assert (status, shown) == (0, b"seq\r\r\n1\r\r\n2\r\r\n3\r\r\n4\r\r\n4 calls written\r\n")


def test_a_binary_format_is_not_written_to_a_terminal(few: Path) -> None:
    status, shown = in_terminal("--db", few, "--format", "parquet")
    assert (status, b"not for a terminal" in shown) == (2, True)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_reader_that_leaves_is_no_error(many: Path, form: str) -> None:
    with started(many, "--no-limit", "--format", form, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.wait(DEADLINE_SECONDS) == 0
        assert process.stderr.read() == b""


def interrupt(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)


@pytest.mark.parametrize("end", [interrupt, subprocess.Popen.terminate], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_ends_it_at_once_with_1(
    many: Path, end: Callable[[subprocess.Popen[bytes]], None]
) -> None:
    with started(many, "--no-limit", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)  # and then nobody reads
        end(process)
        assert process.wait(DEADLINE_SECONDS) == 1
        said = process.stderr.read().splitlines()
        assert said[0] == b"cdrd export: interrupted"
        assert re.fullmatch(rb"[0-9]+ calls written at most", said[1])


@pytest.mark.parametrize("end", [interrupt, subprocess.Popen.terminate], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("form", ["jsonl.gz", "xlsx"])
def test_a_signal_leaves_nothing_of_a_file(
    many: Path, tmp_path: Path, form: str, end: Callable[[subprocess.Popen[bytes]], None]
) -> None:
    command = [*PROGRAM, "--db", str(many), "--no-limit", "-o", str(tmp_path / f"calls.{form}")]
    with (
        terminal() as (ours, theirs),
        subprocess.Popen(command, stderr=theirs) as process,
    ):
        os.close(theirs)
        read_until(ours, rb"[1-9][0-9]*/65001")
        assert [path.name[:7] for path in tmp_path.iterdir()] == [".calls."]
        end(process)
        assert b"interrupted" in read_until(ours, b"(?!)")
        assert process.wait(DEADLINE_SECONDS) == 1
    assert list(tmp_path.iterdir()) == []
