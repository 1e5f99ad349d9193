"""``cdrd report`` as people run it: figures of real databases, in each form and zone."""

import contextlib
import csv
import gzip
import io
import json
import os
import re
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest

from cdrd.cli import main
from cdrd.row import commit
from cdrd.schema import migrate
from tests.example import holding, varied
from tests.running import DEADLINE_SECONDS, Line, cdrd, write_config

FIGURES = (
    "calls",
    "answered",
    "missed",
    "asr",
    "acd",
    "talk_time",
    "longest",
    "busiest_hour",
    "peak_concurrency",
    "erlangs",
)
ZONES = ("Europe/Berlin", "America/New_York", "Asia/Kathmandu")
SCRIPT = "<script>alert(1)</script>"


def report(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command in this process: a tenth of a second instead of a half."""
    said, remarked = io.BytesIO(), io.StringIO()
    with (
        io.TextIOWrapper(said, "utf-8", write_through=True) as stdout,
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(remarked),
    ):
        try:
            status = main(["report", *map(str, arguments)])
        except SystemExit as ended:
            status = int(ended.code or 0)
        printed = said.getvalue().decode()
    return subprocess.CompletedProcess(arguments, status, printed, remarked.getvalue())


def filled(directory: Path, *calls: dict[str, Any], legs: tuple[dict[str, Any], ...] = ()) -> Path:
    """Make a database of calls and legs that differ from the example as told."""
    path = directory / "cdr.sqlite3"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        migrate(database)
        records = [varied(**{"call_id": str(number)} | call) for number, call in enumerate(calls)]
        commit(database, holding(records), 0)
        for number, leg in enumerate(legs):
            columns = {"portal": "video", "call_id": number} | leg
            marks = ", ".join(f":{column}" for column in columns)
            database.execute(
                f"INSERT INTO conference_leg ({', '.join(columns)}) VALUES ({marks})", columns
            )
    return path


def at(*starts: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"started_at": start} | fields for start in starts]


def figures(*arguments: str | Path) -> Line:
    """Report as JSON."""
    shown = report("--format", "json", *arguments)
    assert (shown.returncode, shown.stderr) == (0, "")
    told: Line = orjson.loads(shown.stdout)
    return told


def groups(*arguments: str | Path) -> dict[str | None, Line]:
    return {group["group"]: group for group in figures(*arguments)["groups"]}


MIXED = (
    {"started_at": "2024-03-01T09:00:00Z", "duration": 120, "talk_duration": 100},
    {"started_at": "2024-03-01T09:01:00Z", "duration": 120, "talk_duration": 80},
    {"started_at": "2024-03-01T09:02:00Z", "duration": 60, "status": "NO ANSWER", "caller": "1001"},
    {
        "started_at": "2024-03-02T10:00:00Z",
        "duration": 3600,
        "talk_duration": 3500,
        "destination_trunk": "",
        "call_type": "Internal",
    },
    {"started_at": "2024-03-04T10:00:00Z", "duration": -1, "status": "VOICEMAIL"},
)


# The figures


def test_the_figures_of_all_calls_without_a_range(tmp_path: Path) -> None:
    told = figures("--db", filled(tmp_path, *MIXED))
    assert told == {
        "records": "calls",
        "from": None,
        "to": None,
        "timezone": "UTC",
        "by": None,
        "total": {
            "calls": 5,
            "answered": 3,
            "missed": 2,
            "asr": 0.6,
            "acd": 1226.67,
            "talk_time": 3680,
            "longest": 3500,
            "busiest_hour": "2024-03-02 10:00+00:00",
            "peak_concurrency": 2,
            "erlangs": 1.0,
        },
        "groups": [],
    }


def test_talk_times_may_add_up_to_any_number(tmp_path: Path) -> None:
    call = {"duration": 2**63 - 1, "talk_duration": 2**63 - 1}
    database = filled(tmp_path, *at("2024-03-01T09:00:00Z", "2024-03-01T09:01:00Z", **call), call)
    shown = report("--db", database, "--format", "json")
    assert json.loads(shown.stdout)["total"]["talk_time"] == 3 * (2**63 - 1)


def test_an_empty_database_has_figures_too(tmp_path: Path) -> None:
    database = filled(tmp_path)
    total = figures("--db", database)["total"]
    absent = ("asr", "acd", "busiest_hour")
    assert total == {name: None if name in absent else 0 for name in FIGURES}
    for form in ("table", "csv", "html"):
        for by in ((), ("--by", "day"), ("--by", "trunk")):
            shown = report("--db", database, "--format", form, *by)
            assert (shown.returncode, shown.stderr) == (0, "")


def test_each_form_comes_out_of_the_real_program(tmp_path: Path) -> None:
    asked = ("--db", filled(tmp_path, *MIXED), "--by", "day", "--from", "2024-03-01")
    for form in ("table", "csv", "json", "html"):
        shown = cdrd("report", *asked, "--format", form)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert shown.stdout == report(*asked, "--format", form).stdout


def test_calls_begun_before_the_range_occupy_it_and_are_not_counted(tmp_path: Path) -> None:
    long = {"started_at": "2014-01-01T00:00:00Z", "duration": 11 * 365 * 86400}
    evening = {"started_at": "2024-02-29T23:59:00Z", "duration": 61}
    within = {"started_at": "2024-03-01T00:00:00Z", "duration": 10}
    database = filled(tmp_path, long, evening, within)
    day = ("--from", "2024-03-01", "--to", "2024-03-02")
    total = figures("--db", database, *day)["total"]
    assert (total["calls"], total["peak_concurrency"]) == (1, 3)
    assert (total["busiest_hour"], total["erlangs"]) == ("2024-03-01 00:00+00:00", 1.0031)
    assert figures("--db", database)["total"]["calls"] == 3
    assert figures("--db", database, "--to", "2024-03-01")["total"]["calls"] == 2
    assert figures("--db", database, "--from", "2024-03-01")["total"]["calls"] == 1


def test_the_figures_of_a_day_within_a_month_are_those_of_the_day_alone(tmp_path: Path) -> None:
    begun = [
        f"2024-03-{day:02}T{hour:02}:{minute}:00Z"
        for day in range(1, 8)
        for hour in range(0, 24, day)
        for minute in (10, 50)
    ]
    database = filled(tmp_path, *at(*begun, duration=2000, talk_duration=1900))
    zone = ("--timezone", "Europe/Berlin")
    month = groups(
        "--db", database, "--from", "2024-03-01", "--to", "2024-04-01", *zone, "--by", "day"
    )
    assert len(month) == 31
    for day in ("2024-03-01", "2024-03-03", "2024-03-07"):
        after = (datetime.fromisoformat(day) + timedelta(days=1)).date().isoformat()
        alone = figures("--db", database, "--from", day, "--to", after, *zone)["total"]
        assert month[day] == {"group": day} | alone


@pytest.mark.parametrize("zone", ZONES)
def test_each_call_is_in_the_hour_day_and_weekday_of_the_zone(tmp_path: Path, zone: str) -> None:
    starts = [
        f"2024-03-{day:02}T{hour:02}:{minute:02}:00Z"
        for day in (1, 2, 9)
        for hour in range(0, 24, 3)
        for minute in (14, 16)
    ]
    database = filled(tmp_path, *at(*starts, duration=60))
    shown = [datetime.fromisoformat(start).astimezone(ZoneInfo(zone)) for start in starts]
    for by, form in (("day", "%Y-%m-%d"), ("weekday", "%A"), ("hour", "%Y-%m-%d %H:00")):
        counted: dict[str, int] = {}
        for local in shown:
            counted[local.strftime(form)] = counted.get(local.strftime(form), 0) + 1
        told = groups("--db", database, "--timezone", zone, "--by", by)
        assert {str(name)[:16]: group["calls"] for name, group in told.items()} == counted


@pytest.mark.parametrize(
    ("zone", "day", "hours", "before", "after"),
    [
        ("Europe/Berlin", "2024-03-31", 23, "2024-03-31T00:59:59Z", "2024-03-31T01:00:00Z"),
        ("Europe/Berlin", "2024-10-27", 25, "2024-10-27T00:59:59Z", "2024-10-27T01:00:00Z"),
        ("America/New_York", "2024-03-10", 23, "2024-03-10T06:59:59Z", "2024-03-10T07:00:00Z"),
        ("America/New_York", "2024-11-03", 25, "2024-11-03T05:59:59Z", "2024-11-03T06:00:00Z"),
    ],
)
def test_both_clock_changes(
    tmp_path: Path, zone: str, day: str, hours: int, before: str, after: str
) -> None:
    database = filled(tmp_path, *at(before, after, duration=1))
    end = (datetime.fromisoformat(day) + timedelta(days=1)).date().isoformat()
    day_of = ("--db", database, "--timezone", zone, "--from", day, "--to", end)
    told = groups(*day_of, "--by", "hour")
    assert len(told) == hours
    assert [group["calls"] for group in told.values() if group["calls"]] == [1, 1]
    assert {name: group["calls"] for name, group in groups(*day_of, "--by", "day").items()} == {
        day: 2
    }


def test_the_zone_is_the_configured_one_and_must_be_one(tmp_path: Path) -> None:
    filled(tmp_path, *at("2024-02-29T23:30:00Z"))
    berlin = '[[pbx]]\nname = "hq"\npeers = ["127.0.0.1"]\ntimezone = "Europe/Berlin"\n'
    config = write_config(tmp_path, berlin)
    assert list(groups("-c", config, "--by", "day")) == ["2024-03-01"]
    both = berlin + berlin.replace("hq", "lab").replace("0.0.1", "0.0.2").replace("Berlin", "Kyiv")
    config = write_config(tmp_path, both)
    refused = report("-c", config)
    assert refused.returncode == 2
    assert "--timezone" in refused.stderr
    assert list(groups("-c", config, "--by", "day", "--pbx", "hq")) == ["2024-03-01"]
    unknown = report("-c", config, "--pbx", "hq", "--pbx", "old")
    assert unknown.returncode == 2
    assert "no time zone of 'old' is configured: name one with --timezone" in unknown.stderr


def test_a_range_reads_with_the_offset_of_its_ends(tmp_path: Path) -> None:
    database = filled(tmp_path)
    march = ("--from", "2024-03-01", "--to", "2024-04-01", "--timezone", "Europe/Berlin")
    told = figures("--db", database, *march)
    ends = ("2024-03-01T00:00:00+01:00", "2024-04-01T00:00:00+02:00", "Europe/Berlin")
    assert (told["from"], told["to"], told["timezone"]) == ends


def test_what_is_selected_alone_counts(tmp_path: Path) -> None:
    database = filled(tmp_path, *MIXED, {"pbx": "lab"})
    assert figures("--db", database, "--pbx", "lab")["total"]["calls"] == 1
    assert figures("--db", database, "--status", "voicemail")["total"]["answered"] == 0
    assert figures("--db", database, "--type", "Internal")["total"]["peak_concurrency"] == 1
    assert figures("--db", database, "--number", "*01")["total"]["calls"] == 1


# Groups


def test_calls_by_what_they_can_be_grouped_by(tmp_path: Path) -> None:
    database = filled(tmp_path, *MIXED)
    counted = {
        by: {name: group["calls"] for name, group in groups("--db", database, "--by", by).items()}
        for by in ("extension", "trunk", "pbx", "type", "status")
    }
    assert counted == {
        "extension": {"1000": 4, "1001": 1},
        "trunk": {"Apple_test": 4, None: 1},
        "pbx": {"hq": 5},
        "type": {"Outbound": 4, "Internal": 1},
        "status": {"ANSWERED": 3, "NO ANSWER": 1, "VOICEMAIL": 1},
    }


def test_a_trunk_has_its_own_calls_at_once(tmp_path: Path) -> None:
    through = {"source_trunk": "in", "destination_trunk": "out", "call_type": "Transfer"}
    begun = at("2024-03-01T09:00:00Z", "2024-03-01T09:00:30Z", duration=60)
    database = filled(tmp_path, begun[0] | through, begun[1] | through, *at("2024-03-01T09:00:40Z"))
    told = figures("--db", database, "--by", "trunk")
    peaks = {group["group"]: group["peak_concurrency"] for group in told["groups"]}
    assert peaks == {"in": 2, "out": 2, "Apple_test": 1}
    assert (told["total"]["calls"], told["total"]["peak_concurrency"]) == (3, 3)


LEGS = (
    {
        "join_time": "2024-03-01T09:00:00Z",
        "leave_time": "2024-03-01T09:10:00Z",
        "call_state": "COMPLETED",
        "conference_name": "board",
        "tenant_name": "acme",
        "conference_type": "C",
    },
    {
        "join_time": "2024-03-01T09:05:00Z",
        "call_state": "IN PROGRESS",
        "conference_name": "board",
        "tenant_name": "acme",
        "conference_type": "C",
    },
    {
        "join_time": "2024-03-01T09:06:00Z",
        "leave_time": "2024-03-01T09:06:30Z",
        "call_state": "RING NO ANSWER",
        "conference_name": "Ann",
        "tenant_name": "other",
        "conference_type": "D",
    },
)


def test_conferences_by_what_they_can_be_grouped_by(tmp_path: Path) -> None:
    database = filled(tmp_path, legs=LEGS)
    conferences = ("conferences", "--db", database)
    day = (*conferences, "--from", "2024-03-01", "--to", "2024-03-02")
    told = figures(*day, "--by", "room")
    assert told["records"] == "conferences"
    total = told["total"]
    assert (total["calls"], total["answered"], total["peak_concurrency"]) == (3, 2, 3)
    assert (total["busiest_hour"], total["erlangs"]) == ("2024-03-01 09:00+00:00", 1.0917)
    counted = {
        by: {name: group["calls"] for name, group in groups(*day, "--by", by).items()}
        for by in ("room", "tenant", "type", "portal", "status", "extension")
    }
    assert counted == {
        "room": {"board": 2, "Ann": 1},
        "tenant": {"acme": 2, "other": 1},
        "type": {"C": 2, "D": 1},
        "portal": {"video": 3},
        "status": {"COMPLETED": 1, "IN PROGRESS": 1, "RING NO ANSWER": 1},
        "extension": {None: 3},
    }
    assert figures(*day, "--tenant", "acme", "--portal", "video")["total"]["calls"] == 2
    assert figures(*conferences)["total"]["longest"] == 24 * 3600  # nobody has told its end


def test_a_leg_in_progress_lasts_until_now(tmp_path: Path) -> None:
    joined = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    leg = {"join_time": f"{joined:%Y-%m-%dT%H:%M:%SZ}", "call_state": "IN PROGRESS"}
    told = figures("conferences", "--db", filled(tmp_path, legs=(leg,)))
    since = datetime.now(UTC) - joined
    assert told["total"]["longest"] == pytest.approx(since.total_seconds(), abs=30)


# The forms


def text_of(value: object) -> str:
    return "" if value is None else str(value)


def wanted(told: Line, nameless: str) -> list[list[str]]:
    named = [(nameless if row["group"] is None else row["group"], row) for row in told["groups"]]
    return [
        [name, *(text_of(row[figure]) for figure in FIGURES)]
        for name, row in (*named, ("total", told["total"]))
    ]


@pytest.mark.parametrize("by", [None, "hour", "day", "weekday", "trunk", "status"])
def test_each_form_has_the_same_figures(tmp_path: Path, by: str | None) -> None:
    database = filled(tmp_path, *MIXED)
    asked = ("--db", database, *(("--by", by) if by else ()))
    told = figures(*asked)
    listed = list(csv.reader(io.StringIO(report(*asked, "--format", "csv").stdout)))
    assert listed == [["group", *FIGURES], *wanted(told, "")]
    assert parsed(report(*asked, "--format", "html").stdout).rows == wanted(told, "(none)")
    title, _, *table = report(*asked).stdout.splitlines()
    assert title == "calls, all, UTC"
    if by is None:
        named = dict(zip(FIGURES, wanted(told, "")[0][1:], strict=True))
        lines = [re.split("  +", line.strip()) for line in table[1:]]
        assert dict(lines) == named
    else:
        shown = [in_columns(line, table[0]) for line in table[1:]]
        assert shown == wanted(told, "(none)")


def in_columns(line: str, heading: str) -> list[str]:
    """Cut a line where the columns end: the figures stand below their names, to the right."""
    ends = [match.end() for match in re.finditer(r"\S+", heading)][1:]
    name = re.split("  +", line)[0]
    starts = [len(name), *ends[:-1]]
    return [name, *(line[start:end].strip() for start, end in zip(starts, ends, strict=True))]


def test_what_a_name_holds_neither_commands_a_terminal_nor_is_run(tmp_path: Path) -> None:
    names = ("\x1b[31mred", "=1+1", "=123", "@12", "x;=1+1;", "+4930123", SCRIPT, "a,b")
    rung = [{"destination_trunk": name} for name in names]
    asked = ("--db", filled(tmp_path, *rung), "--by", "trunk")
    shown = report(*asked)
    assert "\x1b" not in shown.stdout
    assert "\\x1b[31mred" in shown.stdout
    listed = list(csv.reader(io.StringIO(report(*asked, "--format", "csv").stdout)))
    cells = {"'=1+1", "'=123", "'@12", "x;'=1+1;", "+4930123", SCRIPT, "a,b"}
    assert cells < {row[0] for row in listed}
    assert set(groups(*asked)) == set(names)
    page = parsed(report(*asked, "--format", "html").stdout)
    assert SCRIPT in [row[0] for row in page.rows]
    assert "script" not in page.tags


# The page


class Page(HTMLParser):
    """What a page holds: its tags, what it refers to, and the rows of its table."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.styles = ""
        self._open = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")

    def handle_endtag(self, _tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "td":
            self.rows[-1][-1] += data
        elif self._open == "style":
            self.styles += data


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    page.rows = [row for row in page.rows if row]
    return page


@pytest.mark.parametrize("by", [None, "day", "trunk"])
def test_the_page_has_charts_prints_and_fetches_and_runs_nothing(
    tmp_path: Path, by: str | None
) -> None:
    asked = ("--db", filled(tmp_path, *MIXED), *(("--by", by) if by else ()))
    text = report(*asked, "--format", "html").stdout
    page = parsed(text)
    assert text.startswith("<!DOCTYPE html>")
    assert page.tags.count("svg") == 3
    assert "@media print" in page.styles
    fetching = {"script", "link", "img", "image", "iframe", "object", "embed", "use", "base"}
    assert not fetching & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert {value for _, value in page.attributes if "://" in value} <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "url(" not in text
    assert "@import" not in text
    assert not [name for name, _ in page.attributes if name in ("href", "src", "xlink:href")]


def test_the_page_of_the_same_figures_is_the_same(tmp_path: Path) -> None:
    asked = ("--db", filled(tmp_path, *MIXED), "--by", "day", "--format", "html")
    assert report(*asked).stdout == report(*asked).stdout


def test_a_chart_shows_the_groups_of_most_calls_and_the_table_all(tmp_path: Path) -> None:
    called = [{"caller": str(2000 + number)} for number in range(50)]
    asked = ("--db", filled(tmp_path, *called), "--by", "extension", "--format", "html")
    text = report(*asked).stdout
    assert "the 40 of 50" in text
    assert len(parsed(text).rows) == 51


def test_a_page_of_a_years_hours_has_no_charts_and_says_so(tmp_path: Path) -> None:
    asked = ("--db", filled(tmp_path), "--by", "hour", "--format", "html")
    text = report(*asked, "--from", "2023-01-01", "--to", "2024-01-01").stdout
    assert "8760 are too many for charts" in text
    assert len(parsed(text).rows) == 8761


def test_without_what_draws_charts_the_page_is_refused_and_the_rest_is_not(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['pygal'] = None\n")
    database = filled(tmp_path)

    def without_pygal(form: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cdrd", "report", "--db", database, "--format", form],
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )

    refused = without_pygal("html")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "pip install 'cdrd[html]'" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert without_pygal("table").returncode == 0


# The file


def test_a_file_is_written_in_the_form_of_its_ending(tmp_path: Path) -> None:
    database = filled(tmp_path, *MIXED)
    for ending, first in (("csv", "group"), ("json", "{"), ("html", "<!DOC"), ("txt", "calls")):
        file = tmp_path / f"march.{ending}"
        written = report("--db", database, "-o", file)
        assert (written.returncode, written.stdout, written.stderr) == (0, "", "")
        assert file.read_text().startswith(first)


def test_gz_behind_the_ending_compresses(tmp_path: Path) -> None:
    database, file = filled(tmp_path, *MIXED), tmp_path / "march.csv.gz"
    assert report("--db", database, "-o", file).returncode == 0
    printed = report("--db", database, "--format", "csv").stdout
    assert gzip.decompress(file.read_bytes()).decode() == printed


@pytest.mark.parametrize("name", ["october.xlsx", "october", "october.gz", "october.xlsx.gz"])
def test_an_ending_that_tells_no_form_is_wrong_usage(tmp_path: Path, name: str) -> None:
    database, file = filled(tmp_path, *MIXED), tmp_path / name
    refused = report("--db", database, "-o", file)
    assert (refused.returncode, "its ending tells no format" in refused.stderr) == (2, True)
    assert not file.exists()
    assert report("--db", database, "-o", file, "--format", "csv").returncode == 0


def test_a_file_that_is_there_is_replaced_only_with_force(tmp_path: Path) -> None:
    database, file = filled(tmp_path), tmp_path / "march.csv"
    file.write_text("mine")
    refused = report("--db", database, "-o", file)
    assert (refused.returncode, file.read_text()) == (1, "mine")
    assert "--force" in refused.stderr
    assert report("--db", database, "-o", file, "--force").returncode == 0
    assert file.read_text().startswith("group")
    assert {path.name for path in tmp_path.iterdir()} <= {
        "march.csv",
        *(f"cdr.sqlite3{ending}" for ending in ("", "-wal", "-shm")),
    }


def test_a_file_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    database = filled(tmp_path)
    refused = report("--db", database, "-o", tmp_path / "none" / "march.csv")
    assert refused.returncode == 1
    assert refused.stderr.startswith("cdrd report: ")
    assert "Traceback" not in refused.stderr
    assert report("--db", database, "-o", "/dev/null", "--force").returncode == 0
    assert Path("/dev/null").is_char_device()


# What goes wrong


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--by", "room"), "calls can be grouped by hour, day, weekday, extension, trunk"),
        (("conferences", "--by", "trunk"), "conferences can be grouped by"),
        (("--tenant", "acme"), "cdrd report conferences"),
        (("--portal", "video"), "cdrd report conferences"),
        (("conferences", "--pbx", "hq"), "--portal"),
        (("--from", "yesterday"), "yesterday"),
        (("--from", "2024-03-02", "--to", "2024-03-01"), "no range"),
        (("--by", "nothing"), "usage: cdrd report"),
        (("meetings",), "usage: cdrd report"),
        (("--format", "pdf"), "usage: cdrd report"),
        (("--timezone", "Mars/Olympus"), "Mars/Olympus"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage_ends_with_exit_2_and_a_sentence(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    refused = report("--db", filled(tmp_path), *arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert told in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_database_or_configuration_that_is_not_there_or_none(tmp_path: Path) -> None:
    none, text = tmp_path / "none", tmp_path / "text"
    text.write_text("no database, and more than a hundred bytes of it " * 4)
    for arguments, status in ((("--db", none), 78), (("-c", none), 78), (("--db", text), 1)):
        refused = report(*arguments)
        assert (refused.returncode, refused.stdout) == (status, "")
        assert str(arguments[1]) in refused.stderr
        assert "Traceback" not in refused.stderr


def test_times_at_the_end_of_all_dates_are_no_error(tmp_path: Path) -> None:
    ends = at("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", duration=5000)
    database = filled(
        tmp_path, *ends, {"started_at": "2024-01-01T00:00:00Z", "duration": 2**63 - 1}
    )
    for zone in ZONES:
        told = figures("--db", database, "--timezone", zone, "--by", "day", "--to", "2024-01-02")
        assert told["total"]["calls"] == 2
        assert figures("--db", database, "--timezone", zone, "--by", "trunk")["total"]["calls"] == 3
    late = ("--from", "9999-12-31T20:00:00Z", "--to", "9999-12-31T23:59:59Z")
    assert figures("--db", database, *late, "--timezone", "Asia/Tokyo")["total"]["calls"] == 0


def test_output_into_a_pipe_that_was_closed_is_no_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-m", "cdrd", "report", "--db", filled(tmp_path)],
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, b"")
