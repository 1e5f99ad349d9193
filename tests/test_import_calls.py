"""``cdrd import calls``: files become rows, here or by the daemon; twice is the same as once."""

import asyncio
import contextlib
import fcntl
import gzip
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from cdrd.batch import Batch, RestoredCall
from cdrd.capture import BLANKS, HEAD_BYTES
from cdrd.progress import read_progress
from cdrd.record import CallRecord
from cdrd.store import Store
from tests.example import CALL, call, exported, varied
from tests.running import (
    DEADLINE_SECONDS,
    HQ,
    RunningDaemon,
    assert_each_row_is_logged,
    cdrd,
    count,
    rows,
    send,
    write_config,
)

SAMPLES = Path(__file__).parent / "samples"
REPORTS = sorted(SAMPLES.glob("*.jsonl"))
HISTORY = SAMPLES / "cdr-download.csv"
PUSHED = (
    b'{"event":"NewCdr","callid":"1589299528.4","timestart":"2020-05-12 17:05:28",'
    b'"callfrom":"966000001","callto":"110","callduraction":"42","talkduraction":"34",'
    b'"srctrunkname":"MEO","dsttrcunkname":"","pincode":"","status":"ANSWERED",'
    b'"type":"Inbound","recording":"","didnumber":"","agentringtime":"0","sn":"369392534749"}\n'
)
LISBON = '[[pbx]]\nname = "hq"\ntimezone = "Europe/Lisbon"\npeers = ["127.0.0.1"]\n'
NOTHING = "0 stored, 0 duplicates, 0 quarantined, 0 other events passed over\n"


def run(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run ``cdrd import calls`` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "cdrd", "import", "calls", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


def imported(*arguments: str | Path, stdin: bytes = b"") -> str:
    """Import, and return the summary, which is all that is said without a terminal."""
    finished = run(*arguments, stdin=stdin)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == b""
    return finished.stderr.decode()


def refused(status: int, *arguments: str | Path) -> str:
    finished = run(*arguments)
    assert finished.returncode == status, finished.stderr
    assert b"Traceback" not in finished.stderr
    return finished.stderr.decode()


def dumped(database: Path) -> bytes:
    """Export as JSON lines: every row of the view, with all its columns."""
    lines = [dict(zip(row.keys(), row, strict=True)) for row in rows(database)]
    return b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines)


def told(database: Path, *without: str) -> list[dict[str, Any]]:
    """What the rows say of their calls, and not of how they came."""
    left_out = {"seq", "source", "received_at", *without}
    return [
        {name: row[name] for name in row.keys() if name not in left_out}  # noqa: SIM118 - no dict
        for row in rows(database)
    ]


def fill(database: Path, calls: Sequence[RestoredCall]) -> None:
    """Store records as an earlier run would have left them."""

    async def store() -> None:
        opened = await Store.open(database)
        try:
            batch = Batch()
            for one in calls:
                batch.add_restored(one)
            committed = await opened.commit(batch, 0)
            assert len(committed.stored) == len(calls)
        finally:
            await opened.close(0)

    asyncio.run(store())


def jsonl(*records: CallRecord) -> bytes:
    lines = [exported(record, seq) for seq, record in enumerate(records, start=1)]
    return b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines)


LOCAL: dict[str, Any] = {"told_by_id": False}
"""Of ids that are no instant: there the PBX's time zone told the start."""

KEPT = [
    RestoredCall(3, CALL),
    RestoredCall(4, varied(call_id="x", caller="", callee="", status="", duration=-1, **LOCAL)),
    RestoredCall(
        7, varied(call_id="y", duration=2**63 - 1, talk_duration=0, agent_ring_time=0, **LOCAL)
    ),
    RestoredCall(8, varied(call_id="z", caller="Müller ☎ \U0001f4de", recording='a"\\b', **LOCAL)),
    RestoredCall(9, varied(call_id="1505352615.9", source="history", pbx="branch")),
    RestoredCall(
        20,
        varied(
            call_id="7",
            started_at="2023-10-29T00:30:00Z",
            started_local="2023-10-29 02:30:00",
            utc_offset=120,
            raw='{"callid":"7","timestart":"2023-10-29 02:30:00","dst":"Apple_test"}',
            **LOCAL,
        ),
    ),
]


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Give the export of a database with odd rows and gaps between them."""
    fill(tmp_path / "kept.sqlite3", KEPT)
    path = tmp_path / "export.jsonl"
    path.write_bytes(dumped(tmp_path / "kept.sqlite3"))
    assert len(path.read_bytes().splitlines()) == len(KEPT)
    return path


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "new.sqlite3"


def test_each_published_sample_imported_is_the_row_that_the_socket_gives(
    tmp_path: Path, database: Path
) -> None:
    with RunningDaemon(tmp_path, LISBON) as daemon:
        for path in REPORTS:
            send(daemon.port, path.read_bytes())
        daemon.stop()
        imported("-c", daemon.config, "--db", database, *REPORTS)
        assert told(database) == told(daemon.database)
        assert {row["source"] for row in rows(database)} == {"import"}
        assert imported("-c", daemon.config, *REPORTS).startswith("0 stored, 13 duplicates, 0 ")


def test_twice_is_the_same_as_once(database: Path) -> None:
    options: tuple[str | Path, ...] = ("--db", database, "--pbx", "hq")
    arguments = (*options, "--timezone", "Europe/Lisbon", HISTORY, *REPORTS)
    assert imported(*arguments) == (
        "11 stored, 3 duplicates, 0 quarantined, 38 other events passed over\n"
    )
    once = dumped(database)
    assert imported(*arguments) == (
        "0 stored, 14 duplicates, 0 quarantined, 38 other events passed over\n"
    )
    assert dumped(database) == once


def test_the_round_trip_gives_the_same_bytes(export: Path, database: Path) -> None:
    assert imported("--db", database, export).startswith(f"{len(KEPT)} stored, 0 duplicates")
    assert dumped(database) == export.read_bytes()
    assert imported("--db", database, export).startswith(f"0 stored, {len(KEPT)} duplicates")
    assert dumped(database) == export.read_bytes()


def test_the_round_trip_of_the_samples_gives_the_same_bytes(tmp_path: Path, database: Path) -> None:
    first = tmp_path / "first.sqlite3"
    imported("--db", first, "--pbx", "hq", "--timezone", "Europe/Lisbon", HISTORY, *REPORTS)
    export = dumped(first)
    imported("--db", database, "-", stdin=export)
    assert dumped(database) == export


@pytest.mark.parametrize("ending", [".gz", ".GZ"])
def test_a_compressed_export_is_read_by_its_ending(
    export: Path, database: Path, ending: str
) -> None:
    compressed = export.with_name("export.jsonl" + ending)
    compressed.write_bytes(gzip.compress(export.read_bytes()))
    imported("--db", database, compressed)
    assert dumped(database) == export.read_bytes()


def test_the_round_trip_through_a_running_daemon_gives_the_same_bytes(
    export: Path, tmp_path: Path
) -> None:
    with RunningDaemon(tmp_path) as daemon:
        daemon.wait_for("ready")
        summary = imported("-c", daemon.config, export)
        assert summary.startswith(f"{len(KEPT)} stored, 0 duplicates, 0 quarantined")
        logged = daemon.wait_for_calls(len(KEPT))
        assert dumped(daemon.database) == export.read_bytes()
        assert_each_row_is_logged(daemon.database, logged)
        assert imported("--db", daemon.database, export).startswith("0 stored")
        status, stopped = daemon.stop()
        assert (status, stopped["received"]) == (0, 0)
        assert len(daemon.found("call_released")) == len(KEPT)


def test_a_seq_that_another_call_has_gives_way(export: Path, database: Path) -> None:
    fill(database, [RestoredCall(3, call(1)), RestoredCall(21, call(2))])
    imported("--db", database, export)
    seqs = {row["call_id"]: row["seq"] for row in rows(database)}
    assert seqs.pop(CALL.call_id) == 22
    assert sorted(seqs.values()) == [3, 4, 7, 8, 9, 20, 21]


def test_the_log_of_a_run_restores_its_calls(tmp_path: Path, database: Path) -> None:
    with RunningDaemon(tmp_path, LISBON, journal=True) as daemon:
        send(daemon.port, *(path.read_bytes() for path in REPORTS))
        daemon.stop()
    log = tmp_path / "log"
    log.write_bytes(daemon.text)
    assert daemon.text.startswith(b"<6>")
    imported("--db", database, "--timezone", "Europe/Lisbon", log)
    names = "seq, pbx, call_id, started_at, caller, callee, source_trunk, destination_trunk,"
    names += " duration, talk_duration, status, call_type, recording, source"
    query = f"SELECT {names} FROM calls ORDER BY seq"
    assert list(map(tuple, rows(database, query))) == list(map(tuple, rows(daemon.database, query)))
    for row in rows(database):
        assert orjson.loads(row["raw"])["seq"] == row["seq"]
        assert row["raw"].encode() in daemon.text
    for zone in ("Europe/Lisbon", "Asia/Tokyo"):
        summary = imported("--db", daemon.database, "--timezone", zone, log)
        assert summary.startswith(f"0 stored, {count(database)} duplicates, 0 quarantined")


@pytest.mark.parametrize("first", ["log", "reports"])
def test_the_log_meets_the_reports_of_its_calls_whatever_the_zone(
    tmp_path: Path, database: Path, first: str
) -> None:
    with RunningDaemon(tmp_path, LISBON) as daemon:
        send(daemon.port, *(path.read_bytes() for path in REPORTS))
        daemon.stop()
    log = tmp_path / "log"
    log.write_bytes(daemon.text)
    files = [log, *REPORTS] if first == "log" else [*REPORTS, log]
    for file in files:
        imported("--db", database, "--pbx", "hq", "--timezone", "Asia/Tokyo", file)
    assert count(database) == count(daemon.database)


@pytest.mark.parametrize("first", ["history", "pushed"])
def test_the_history_meets_the_pushed_report_of_the_same_call(
    database: Path, tmp_path: Path, first: str
) -> None:
    pushed = tmp_path / "pushed.jsonl"
    pushed.write_bytes(PUSHED)
    files = [HISTORY, pushed] if first == "history" else [pushed, HISTORY]
    summary = imported("--db", database, "--pbx", "hq", "--timezone", "Europe/Lisbon", *files)
    assert summary.startswith("1 stored, 1 duplicates, 0 quarantined")
    (row,) = rows(database)
    assert (row["started_at"], row["utc_offset"]) == ("2020-05-12T16:05:28Z", 60)
    assert row["agent_ring_time"] == (None if first == "history" else 0)


BROKEN = (
    HISTORY.read_bytes()
    + b"1589299528.5,2020-05-12 17:05:28,too,few,cells\n"
    + HISTORY.read_bytes().splitlines()[1].replace(b"2020-05", b"2020-13")
)


@pytest.mark.parametrize("beside", ["alone", "beside a daemon"])
def test_what_cannot_be_a_record_goes_to_quarantine_once(tmp_path: Path, beside: str) -> None:
    history, reports = tmp_path / "broken.csv", tmp_path / "broken.jsonl"
    history.write_bytes(BROKEN)
    reports.write_bytes(PUSHED + PUSHED[:70] + b"\n" + jsonl(CALL).replace(b":29,", b":-29,"))
    with contextlib.ExitStack() as stack:
        config = write_config(tmp_path, LISBON)
        if beside != "alone":
            daemon = stack.enter_context(RunningDaemon(tmp_path, LISBON))
            daemon.wait_for("ready")
        first = imported("-c", config, history, reports)
        assert first == "1 stored, 1 duplicates, 4 quarantined, 0 other events passed over\n"
        again = imported("-c", config, history, reports)
        assert again == (
            "0 stored, 2 duplicates, 0 quarantined, 4 in quarantine already,"
            " 0 other events passed over\n"
        )
        if beside != "alone":
            assert len(daemon.found("report_quarantined", source="import")) == 4
    database = tmp_path / "cdr.sqlite3"
    kept = rows(database, "SELECT * FROM quarantine ORDER BY id")
    assert [row["reason"].partition(",")[0].partition("'")[0] for row in kept] == [
        "5 cells",
        "timestart ",
        "broken off: the line ends within a string",
        "duration is no integer from 0 to 9223372036854775807",
    ]
    assert {row["peer"] for row in kept} == {str(history), str(reports)}
    listed = cdrd("quarantine", "list", "--db", database)
    assert "broken.csv" in listed.stdout


def test_a_quarantined_report_can_be_tried_again(tmp_path: Path) -> None:
    config = write_config(tmp_path, LISBON)
    imported("-c", config, "--pbx", "hq", "-", stdin=PUSHED[:70] + b"\n")
    retried = cdrd("quarantine", "retry", "-c", config, "--all")
    assert "1 stays" in retried.stdout


def test_rows_imported_without_a_daemon_are_logged_at_its_next_start(
    export: Path, tmp_path: Path
) -> None:
    imported("-c", write_config(tmp_path), export)
    with RunningDaemon(tmp_path) as daemon:
        assert_each_row_is_logged(daemon.database, daemon.wait_for_calls(len(KEPT)))


def test_one_file_may_mix_reports_exports_and_log(tmp_path: Path, database: Path) -> None:
    mixed = tmp_path / "mixed"
    mixed.write_bytes(
        PUSHED
        + jsonl(call(1), call(2))
        + b'<6>{"timestamp":"2024-01-01T00:00:00Z","level":"info","event":"started"}\n'
        + REPORTS[0].read_bytes()
    )
    summary = imported("--db", database, "--pbx", "hq", "--timezone", "Europe/Lisbon", mixed)
    assert summary == "4 stored, 0 duplicates, 0 quarantined, 1 other events passed over\n"


def test_many_records_are_handed_to_the_daemon_in_slices(tmp_path: Path) -> None:
    raw = orjson.dumps({"note": "x" * 2000}).decode()
    lines = jsonl(*(call(number)._replace(raw=raw) for number in range(3000)))
    with RunningDaemon(tmp_path, read_log=True) as daemon:
        daemon.wait_for("ready")
        assert imported("-c", daemon.config, "-", stdin=lines).startswith("3000 stored")
        daemon.wait_for_calls(3000)
        assert dumped(daemon.database) == lines


def test_a_huge_line_costs_itself(tmp_path: Path, database: Path) -> None:
    huge = tmp_path / "huge.jsonl"
    huge.write_bytes(b'{"action":"NewCdr","note":"' + b"x" * (65 << 20) + b'"}\n' + PUSHED)
    summary = imported("--db", database, "--pbx", "hq", "--timezone", "UTC", huge)
    assert summary.startswith("1 stored, 0 duplicates, 1 quarantined")
    ((size, kept),) = rows(database, "SELECT size, length(payload) FROM quarantine")
    assert (size, kept) == ((65 << 20) + 29, 64 << 10)


def test_a_blank_file_adds_nothing(tmp_path: Path, database: Path) -> None:
    blank = tmp_path / "blank"
    blank.write_bytes(b"\n")
    assert imported("--db", database, blank, "-") == NOTHING
    assert count(database) == 0


def test_blanks_before_the_first_record_are_passed_over_however_many(
    export: Path, database: Path, tmp_path: Path
) -> None:
    blanks = BLANKS * HEAD_BYTES
    holed, zipped, history = tmp_path / "log", tmp_path / "log.gz", tmp_path / "history.csv"
    holed.write_bytes(blanks + export.read_bytes())
    zipped.write_bytes(gzip.compress(holed.read_bytes()))
    history.write_bytes(blanks + HISTORY.read_bytes())
    assert imported("--db", database, holed).startswith(f"{len(KEPT)} stored")
    assert dumped(database) == export.read_bytes()
    assert imported("--db", database, zipped).startswith(f"0 stored, {len(KEPT)} duplicates")
    again = imported("--db", database, "-", stdin=holed.read_bytes())
    assert again.startswith(f"0 stored, {len(KEPT)} duplicates")
    options = ("--db", database, "--pbx", "hq", "--timezone", "Europe/Lisbon")
    assert imported(*options, history).startswith("1 stored, 0 duplicates, 0 quarantined")


TWO = LISBON + '[[pbx]]\nname = "branch"\npeers = ["192.0.2.7"]\n'


def test_the_pbx_may_be_left_out_when_one_is_configured(tmp_path: Path) -> None:
    config = write_config(tmp_path, LISBON)
    imported("-c", config, HISTORY)
    (row,) = rows(tmp_path / "cdr.sqlite3")
    assert row["pbx"] == "hq"


def test_of_several_one_has_to_be_named(tmp_path: Path) -> None:
    config = write_config(tmp_path, TWO)
    assert refused(2, "-c", config, HISTORY) == (
        f"cdrd import calls: {HISTORY}: holds reports that do not name their PBX: give --pbx NAME\n"
    )
    imported("-c", config, "--pbx", "branch", HISTORY)
    (row,) = rows(tmp_path / "cdr.sqlite3")
    assert row["pbx"] == "branch"


def test_exports_and_logs_name_their_own(tmp_path: Path) -> None:
    config = write_config(tmp_path, TWO)
    line = orjson.dumps(
        {"timestamp": "2017-09-14T01:30:45.1Z", "level": "info", "event": "call_released"}
        | {name: value for name, value in exported(call(8)).items() if name != "raw"}
        | {"pbx": "branch"}
    )
    imported("-c", config, "-", stdin=jsonl(CALL) + line)
    assert [(row["pbx"], row["started_local"]) for row in rows(tmp_path / "cdr.sqlite3")] == [
        ("hq", "2017-09-14 09:30:15"),
        ("branch", "2017-09-14 01:30:15"),
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--pbx", "old"), "no PBX 'old' is configured: give its --timezone, or one of ['hq', "),
        (("--pbx", "hq", "--timezone", "UTC"), "'hq' is configured in Europe/Lisbon: take --time"),
        (("--pbx", " "), "--pbx ' ': give a name of printable characters"),
        (("--timezone", "Mars/Olympus"), "no time zone 'Mars/Olympus': give one such as"),
    ],
)
def test_options_that_do_not_fit_are_usage(
    tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    assert sentence in refused(2, "-c", write_config(tmp_path, TWO), *arguments, HISTORY)
    assert not (tmp_path / "cdr.sqlite3").exists()


def test_without_a_configuration_the_time_zone_is_needed(database: Path) -> None:
    assert "give its --timezone" in refused(2, "--db", database, "--pbx", "hq", HISTORY)
    assert "--pbx NAME" in refused(2, "--db", database, HISTORY)


def test_a_configuration_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert "cannot be read" in refused(78, "-c", tmp_path / "none.toml", HISTORY)


def test_a_file_that_cannot_be_read_is_told_before_anything_is_stored(
    tmp_path: Path, database: Path
) -> None:
    options = ("--db", database, "--pbx", "hq", "--timezone", "UTC", HISTORY)
    assert "none.csv: No such file" in refused(1, *options, tmp_path / "none.csv")
    assert f"{tmp_path}: is a directory" in refused(1, *options, tmp_path)
    assert not database.exists()


def test_a_file_without_call_records_is_told(tmp_path: Path, database: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("Time,Call From\n2020,110\n")
    assert "other.csv: holds no call records" in refused(1, "--db", database, other)


def test_a_compressed_file_that_is_not_whole_is_told(tmp_path: Path, database: Path) -> None:
    torn = tmp_path / "torn.jsonl.gz"
    for content in (gzip.compress(jsonl(CALL))[:-9], b"no gzip", b"\x1f\x8b\x08" + bytes(50)):
        torn.write_bytes(content)
        assert "torn.jsonl.gz: cannot be read: " in refused(1, "--db", database, torn)


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    said = refused(1, "--db", tmp_path / "none" / "cdr.sqlite3", "--timezone", "UTC", HISTORY)
    assert "create its directory" in said


def test_a_database_that_another_program_writes_is_told(export: Path, database: Path) -> None:
    with Path(f"{database}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another cdrd is writing it" in refused(1, "--db", database, export)


def test_another_programs_database_is_not_touched(export: Path, database: Path) -> None:
    with contextlib.closing(sqlite3.connect(database)) as other:
        other.execute("CREATE TABLE theirs (a)")
    assert "another program's database" in refused(1, "--db", database, export)


def test_a_daemon_refuses_what_it_cannot_store(tmp_path: Path) -> None:
    big = jsonl(CALL._replace(raw=orjson.dumps({"note": "x" * (1 << 20)}).decode()))
    with RunningDaemon(tmp_path, HQ) as daemon:
        daemon.wait_for("ready")
        finished = run("-c", daemon.config, "-", stdin=big)
        assert finished.returncode == 1
        assert b"stop the daemon and import again" in finished.stderr
        daemon.stop()
    assert imported("-c", daemon.config, "-", stdin=big).startswith("1 stored")


@pytest.mark.parametrize("beside", ["alone", "beside a daemon"])
def test_an_interrupted_import_is_completed_by_the_next(tmp_path: Path, beside: str) -> None:
    lines = jsonl(*map(call, range(4000)))
    with contextlib.ExitStack() as stack:
        config = write_config(tmp_path)
        if beside != "alone":
            stack.enter_context(RunningDaemon(tmp_path)).wait_for("ready")
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "cdrd", "import", "calls", "-c", config, "-"],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
        assert process.stdin is not None
        # A pipe holds 64 KiB: once all of this is written, most of it has been read and stored.
        process.stdin.write(lines)
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_SECONDS) == 1
        assert process.stderr is not None
        said = process.stderr.read().decode()
        process.stdin.close()
        stored = count(tmp_path / "cdr.sqlite3")
        assert stored >= 2000
        assert said.startswith("interrupted: import the same again to complete it\n")
        assert int(said.splitlines()[1].partition(" ")[0]) in range(2000, stored + 1)
        summary = imported("-c", config, "-", stdin=lines)
        assert summary.startswith(f"{4000 - stored} stored, {stored} duplicates")
        assert dumped(tmp_path / "cdr.sqlite3") == lines


def test_an_import_alone_leaves_progress_for_the_daemon(export: Path, database: Path) -> None:
    imported("--db", database, export)
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as reader:
        assert read_progress(reader).logged_seq == 0
        (last_seq,) = reader.execute("SELECT last_seq FROM progress").fetchone()
    assert last_seq == 20


def test_a_file_may_have_any_name(tmp_path: Path, database: Path) -> None:
    path = tmp_path / b"[red] \xe9.csv".decode(errors="surrogateescape")
    path.write_bytes(BROKEN)
    summary = imported("--db", database, "--pbx", "hq", "--timezone", "UTC", path)
    assert summary.startswith("1 stored, 0 duplicates, 2 quarantined")
    peers = {row["peer"] for row in rows(database, "SELECT peer FROM quarantine")}
    assert peers == {f"{tmp_path}/[red] \N{REPLACEMENT CHARACTER}.csv"}


def test_a_terminal_sees_how_far_it_is(tmp_path: Path, database: Path) -> None:
    path = tmp_path / "[red].csv"
    path.write_bytes(HISTORY.read_bytes())
    command = ("import", "calls", "--db", database, "--pbx", "hq", "--timezone", "UTC", path)
    terminal, stderr = os.openpty()
    with subprocess.Popen([sys.executable, "-m", "cdrd", *command], stderr=stderr) as process:
        os.close(stderr)
        shown = b""
        with contextlib.suppress(OSError):  # a terminal whose other end was closed
            while chunk := os.read(terminal, 4096):
                shown += chunk
    os.close(terminal)
    assert process.returncode == 0
    assert b"[red].csv" in shown
    assert b"100%" in shown
    assert b"1 stored, 0 duplicates" in shown


def test_the_help_says_what_a_log_must_be() -> None:
    said = run("--help").stdout.decode()
    assert 'numbers = "full"' in said
    assert "journalctl -u cdrd -o cat | cdrd import calls -" in said
