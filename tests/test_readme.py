"""The README holds: its commands run, its report becomes its row, its tables are whole."""

import ast
import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest

from cdrd.batch import Waiting
from cdrd.cli import COMMANDS, make_parser
from cdrd.config import Config, parse_config
from cdrd.database import open_reader
from cdrd.frame import Frame, Framer
from cdrd.line import CALL_RELEASED
from cdrd.log import LineWriter, log_calls, make_logger
from cdrd.record import CallRecord
from cdrd.report import ReleasedCall, read_reports
from cdrd.row import Committed
from cdrd.sender import Origin, Sender
from cdrd.sizes import KIB
from cdrd.store import Store
from cdrd.stream import ReportStream, Totals
from tests.example import make_records

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SAMPLE = (ROOT / "tests/samples/seed-000.jsonl").read_bytes().splitlines()[1]
LEVELS = ("debug", "info", "warning", "error", "critical")
PEER = "192.0.2.10:50000"
VIEWS = ("calls", "conference_calls", "quarantine")

STRAY = {
    "2024-03-01T08:15:30.120Z": b'{"action":"NewCdr","callid":"1709280901.6","timestart":'
    b'"2024-03-01 09:15:01","callfrom":"1000","callto":"1002","callduraction":"29",'
    b'"talkduraction":"20","status":"ANSWERED","type":"Internal","sn":"222"}',
    "2024-03-01T08:15:31.480Z": b'{"action":"NewCdr","callid":"1709280931.7",'
    b'"timestart":"soon","sn":"111"}',
}
"""The two reports that the README's quarantine holds, by when they came."""


class Event(NamedTuple):
    name: str
    level: str
    fields: frozenset[str]


def section(heading: str) -> str:
    """The text under a heading, its own sub-headings included."""
    level = heading.partition(" ")[0]
    _, _, after = README.partition(f"\n{heading}\n")
    assert after, f"the README has no {heading!r}"
    return re.split(rf"^#{{1,{len(level)}}} ", after, maxsplit=1, flags=re.MULTILINE)[0]


def blocks(kind: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def example_config() -> Config:
    text = "\n".join(blocks("toml"))
    return parse_config(text, "README.md")


# The life of a report


LIFE = section("## Life of a report")
STOPS = [json.loads(block) for block in blocks("json", LIFE)]
MENDED, REPORT, RECORD, ROW, LINE = STOPS


def life_frame() -> Frame:
    (text,) = blocks("text", LIFE)
    framer = Framer(64 * KIB)
    framer.receive(text.encode())
    frame = framer.next_frame()
    assert isinstance(frame, Frame)
    return frame


def life_report() -> ReleasedCall:
    (report,) = read_reports([life_frame().report])
    assert isinstance(report, ReleasedCall)
    return report


def life_record() -> CallRecord:
    (record,) = make_records(
        [life_report()],
        [life_frame().text.decode()],
        pbx=RECORD["pbx"],
        zone=example_config().pbx[0].sender().zone,
        source=RECORD["source"],
        received_at=RECORD["received_at"],
    )
    return record


async def stored(database: Path, stream_into: Waiting) -> Committed:
    store = await Store.open(database)
    try:
        return await store.commit(stream_into.take(1000), 0)
    finally:
        await store.close(0)


def life_commit(database: Path) -> Committed:
    waiting = Waiting(KIB * KIB)
    waiting.arriving.add(life_record(), mended=life_frame().mended)
    return asyncio.run(stored(database, waiting))


def test_the_report_is_the_vendors_own_sample() -> None:
    (text,) = blocks("text", LIFE)
    assert text.encode() == SAMPLE + b"\n"


def test_the_frame_is_mended_as_shown_and_only_there() -> None:
    frame = life_frame()
    assert frame.mended
    assert frame.text == SAMPLE.replace(b"\\_", b"_")
    assert MENDED.items() <= frame.report.items()


def test_the_report_says_what_is_shown() -> None:
    assert life_report()._asdict() == REPORT


def test_the_record_is_the_report_with_what_is_shown() -> None:
    assert life_record()._asdict() == REPORT | RECORD | {"raw": life_frame().text.decode()}


def test_the_row_is_as_shown(tmp_path: Path) -> None:
    database = tmp_path / "cdr.sqlite3"
    life_commit(database)
    reader = open_reader(database)
    found = reader.execute("SELECT * FROM calls")
    names = [column[0] for column in found.description]
    rows = [dict(zip(names, row, strict=True)) for row in found]
    reader.close()
    assert rows == [ROW | {"raw": life_frame().text.decode()}]


def test_the_log_line_is_as_shown(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+b") as file:
        lines = LineWriter(file.fileno())
        log_calls(make_logger(lines), lines, life_commit(tmp_path / "cdr.sqlite3").rows)
        lines.close(10)
        file.seek(0)
        line = json.loads(file.read())
    assert list(line) == list(LINE)
    assert line | {"timestamp": LINE["timestamp"]} == LINE
    assert len(line["timestamp"]) == len(LINE["timestamp"])
    assert datetime.fromisoformat(LINE["timestamp"]) > datetime.fromisoformat(ROW["received_at"])


@pytest.mark.parametrize("module", sorted(set(re.findall(r"`(?:cdrd/)?(\w+\.py)`", LIFE))))
def test_each_module_that_the_report_passes_exists(module: str) -> None:
    assert (ROOT / "cdrd" / module).is_file()


# Commands


def sessions() -> Iterator[tuple[str, str]]:
    """Each ``$`` line of the console blocks, with the output that is shown under it."""
    for block in blocks("console"):
        for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = step.partition("\n")
            yield command, output


async def quarantined(database: Path) -> None:
    """Receive the two reports while the PBX is configured with another serial, as one might."""
    waiting = Waiting(KIB * KIB)
    stream = ReportStream(
        Origin([Sender("hq", ZoneInfo("UTC"), (ip_network("192.0.2.10"),), serial="111")]),
        peer=PEER,
        source="tcp",
        waiting=waiting,
        totals=Totals(),
        max_report_bytes=64 * KIB,
    )
    for received_at, report in STRAY.items():
        stream.receive(report + b"\n", received_at)
    await stored(database, waiting)


def test_the_commands_in_the_console_blocks_run_and_print_what_is_shown(tmp_path: Path) -> None:
    """In one directory and in order, as a reader would."""
    toml, *_ = blocks("toml")
    listening = re.sub(r"0\.0\.0\.0:\d+", "127.0.0.1:0", toml)
    (tmp_path / "config.toml").write_text(f'database.path = "cdr.sqlite3"\n{listening}')
    (tmp_path / "branch.password").write_text("secret\n")
    asyncio.run(quarantined(tmp_path / "cdr.sqlite3"))
    run = partial(
        subprocess.run,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    ran = set()
    for command, shown in sessions():
        program, *arguments = shlex.split(command)
        assert program == "cdrd"
        result = run([sys.executable, "-m", "cdrd", *arguments])
        assert result.returncode == 0, (command, result.stdout)
        if shown:
            printed = [line.rstrip() for line in result.stdout.splitlines()]
            assert printed == shown.splitlines(), command
        ran.add(arguments[0])
    assert ran == {"--version", "check", "quarantine"}


@pytest.mark.parametrize(
    "line", [line for block in blocks("sh") for line in block.splitlines() if line[:5] == "cdrd "]
)
def test_each_other_command_line_is_one_that_cdrd_takes(line: str) -> None:
    command, _, _ = line.partition(" | ")
    arguments = shlex.split(command)[1:]
    make_parser(arguments).parse_args(arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_its_section_with_an_example(command: str) -> None:
    examples = re.findall(r"^(?:\$ )?cdrd (\w+)", section(f"### `cdrd {command}`"), re.MULTILINE)
    assert command in examples


def test_no_section_is_about_a_command_that_is_none() -> None:
    assert re.findall(r"^### `cdrd (\w+)`$", README, re.MULTILINE) == list(COMMANDS)


def test_each_make_target_that_is_named_exists() -> None:
    named = set(re.findall(r"make (\w+)(?:`|  )", README))
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "bench"} <= named <= targets
    assert {"lint", "clean"} <= targets


def test_the_configuration_shown_has_pbxs_of_several_kinds() -> None:
    kinds = [pbx.events and pbx.events.kind for pbx in example_config().pbx]
    assert kinds == [None, "tcp", "webhook"]


# The log


def logged_events() -> Iterator[Event]:
    """Every event that the code logs: its name, its level, and the fields it is given."""
    for path in (ROOT / "cdrd").rglob("*.py"):
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        ]
        bound = {name for call in calls if is_of_log(call, ("bind",)) for name in fields(call)}
        for call in calls:
            if is_of_log(call, LEVELS):
                assert isinstance(call.func, ast.Attribute)
                yield Event(name_of(call), call.func.attr, frozenset(bound | fields(call)))


def is_of_log(call: ast.Call, methods: tuple[str, ...]) -> bool:
    assert isinstance(call.func, ast.Attribute)
    logger = ast.unparse(call.func.value).rpartition(".")[2]
    return call.func.attr in methods and logger in ("log", "_log", "logger")


def name_of(call: ast.Call) -> str:
    match call.args:
        case [ast.Constant(value=str() as name)]:
            return name
        case [ast.Name(id="CALL_RELEASED")]:
            return CALL_RELEASED
    raise AssertionError(f"an event without a fixed name: {ast.unparse(call)}")


def fields(call: ast.Call) -> set[str]:
    names = {keyword.arg for keyword in call.keywords}
    assert None not in names, f"an event without fixed fields: {ast.unparse(call)}"
    return {name for name in names if name is not None}


def told_events() -> list[Event]:
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| [^|]+ \| ([^|]+) \|$", section("## The log"), re.MULTILINE
    )
    return [Event(name, level, frozenset(codes(said))) for name, level, said in rows]


def codes(text: str) -> list[str]:
    return re.findall(r"`(\w+)`", text)


def test_the_table_of_events_is_that_of_the_code() -> None:
    """The lines of calls are rendered from their rows, so their fields are those of the line."""
    line = frozenset(LINE.keys() - {"timestamp", "level", "event"})
    logged = {
        event._replace(fields=line) if event.name == CALL_RELEASED else event
        for event in logged_events()
    }
    told = told_events()
    assert sorted(told) == sorted(logged)
    assert len({event.name for event in told}) == len(told)


def test_the_table_of_events_goes_by_level() -> None:
    levels = [LEVELS.index(event.level) for event in told_events()]
    assert levels == sorted(levels)


def test_the_identity_of_the_totals_is_the_codes() -> None:
    (stopped,) = (event for event in told_events() if event.name == "stopped")
    identity = re.search(r"`received` = ([^.]+)\.", section("## The log"))
    assert identity is not None
    assert stopped.fields == {"received", *codes(identity[1]), "events"}


# The tables


@pytest.mark.parametrize("view", VIEWS)
def test_the_columns_of_a_view_are_those_shown(view: str, tmp_path: Path) -> None:
    database = tmp_path / "cdr.sqlite3"
    life_commit(database)
    reader = open_reader(database)
    columns = [row[1] for row in reader.execute(f"PRAGMA table_info({view})")]
    reader.close()
    shown = re.search(r"^Columns: (.*?)\.$", section(f"### `{view}`"), re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert codes(shown[1]) == columns


def test_every_view_is_shown(tmp_path: Path) -> None:
    database = tmp_path / "cdr.sqlite3"
    life_commit(database)
    reader = open_reader(database)
    views = {name for (name,) in reader.execute("SELECT name FROM sqlite_schema WHERE type='view'")}
    reader.close()
    assert views == set(VIEWS)


def test_the_reader_shown_reads_the_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = blocks("python")
    database = tmp_path / "cdr.sqlite3"
    life_commit(database)
    names: dict[str, Any] = {}
    exec(program.replace("/var/lib/cdrd/cdr.sqlite3", str(database)), names)
    names["reader"].close()
    assert capsys.readouterr().out == "1 1000 91000\n"
