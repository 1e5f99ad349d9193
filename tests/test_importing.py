"""``cdrd import conferences`` as people run it: alone, beside a daemon, again and again."""

import gzip
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from cdrd.commands.import_conferences import SLICE_BYTES, SLICE_ROWS
from cdrd.control import MAX_REQUEST_BYTES
from cdrd.leg import MAX_CHARACTERS, ConferenceLeg
from tests.portal_rows import IN_PROGRESS, ROW, export, row
from tests.running import DEADLINE_SECONDS, HQ, RunningDaemon, cdrd, count, rows, write_config

PORTAL = """
[[portal]]
name = "video"
timezone = "America/New_York"
address = "192.0.2.20:3306"
username = "cdraccess"
password_file = "video.password"
"""
OLD = ("--portal", "old", "--timezone", "Europe/Berlin")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "new.sqlite3"


def write(directory: Path, content: bytes, name: str = "export.csv") -> Path:
    path = directory / name
    path.write_bytes(content)
    return path


def imported(database: Path, *arguments: str | Path, status: int = 0) -> list[str]:
    """Import into a database of its own; return what was said."""
    done = cdrd("import", "conferences", "--db", database, *OLD, *arguments)
    assert (done.returncode, done.stdout) == (status, ""), done
    return done.stderr.splitlines()


def command_line(database: Path, file: str) -> list[str]:
    program = [sys.executable, "-m", "cdrd"]
    return [*program, "import", "conferences", "--db", str(database), *OLD, file]


def legs(database: Path) -> list[tuple[object, ...]]:
    return [tuple(row) for row in rows(database, "SELECT * FROM conference_calls ORDER BY seq")]


# What is stored


def test_an_export_is_stored_in_a_database_of_its_own(tmp_path: Path, database: Path) -> None:
    file = write(tmp_path, export([row(1), row(2, **IN_PROGRESS)]))
    assert imported(database, file) == ["2 stored, 0 updated, 0 unchanged, 0 quarantined"]
    first, second = rows(database, "SELECT * FROM conference_calls ORDER BY seq")
    assert (first["seq"], first["portal"], first["call_id"]) == (1, "old", 1)
    assert (first["join_local"], first["join_time"]) == (
        "2017-09-14 09:30:15",
        "2017-09-14T07:30:15Z",
    )
    assert (first["extension"], first["unique_call_id"]) == ("0042", "1505372123456789")
    assert second["leave_time"] is None


def test_again_is_the_same_as_once_and_in_quarantine_too(tmp_path: Path, database: Path) -> None:
    bad = row(2, CallID="two")
    file = write(tmp_path, export([row(1), bad, row(3, JoinTime="")]) + b"4,short\r\n")
    first = imported(database, file)
    assert first[-1] == "1 stored, 0 updated, 0 unchanged, 3 quarantined"
    assert first[0] == f"{file}:3: CallID 'two' is no integer from 1 up"
    before = legs(database), count(database, "quarantine")
    again = imported(database, write(tmp_path, file.read_bytes(), "copy.csv"))
    assert again[-1] == ("0 stored, 0 updated, 1 unchanged, 0 quarantined, 3 in quarantine already")
    assert (legs(database), count(database, "quarantine")) == before


def test_a_byte_that_is_no_utf8_changes_no_leg_that_is_stored(
    tmp_path: Path, database: Path
) -> None:
    right = export([row(1), row(2), row(3, CallerName="Müller")])
    imported(database, write(tmp_path, right))
    before = legs(database)
    header, first, second, third = right.splitlines(keepends=True)
    broken = second.replace(b"green", b"gr\xfcn")
    spelt = third.decode().encode("cp1252")
    file = write(tmp_path, header + first + broken + spelt)
    assert imported(database, file) == [
        f"{file}:3: not valid UTF-8",
        f"{file}: lines that are not UTF-8, and were read as cp1252: 1",
        "0 stored, 0 updated, 2 unchanged, 1 quarantined",
    ]
    assert legs(database) == before
    ((payload,),) = rows(database, "SELECT payload FROM quarantine")
    assert payload == broken.rstrip()


def test_an_older_file_does_not_undo_a_newer_one(tmp_path: Path, database: Path) -> None:
    newer = write(tmp_path, export([row(1)]), "newer.csv")
    older = write(tmp_path, export([row(1, **IN_PROGRESS), row(2)]), "older.csv")
    imported(database, newer)
    before = legs(database)
    assert imported(database, older) == ["1 stored, 0 updated, 1 unchanged, 0 quarantined"]
    assert legs(database)[:1] == before
    assert imported(database, older, newer) == ["0 stored, 0 updated, 3 unchanged, 0 quarantined"]


def test_a_leg_that_has_ended_is_updated(tmp_path: Path, database: Path) -> None:
    file = write(tmp_path, export([row(1, **IN_PROGRESS)]))
    imported(database, file)
    ended = write(tmp_path, export([row(1)]))
    assert imported(database, ended) == ["0 stored, 1 updated, 0 unchanged, 0 quarantined"]
    (leg,) = rows(database, "SELECT * FROM conference_calls")
    assert (leg["seq"], leg["call_state"], leg["leave_time"]) == (
        1,
        "COMPLETED",
        "2017-09-14T08:00:00Z",
    )


def test_names_may_be_spelt_in_any_way(tmp_path: Path, database: Path) -> None:
    content = export([row(1)], list(ROW)[::-1], delimiter=";")
    header, rest = content.split(b"\r\n", 1)
    spelt = header.upper().replace(b"CALLSTATE", b'"Call State"')
    imported(database, write(tmp_path, b"\xef\xbb\xbf" + spelt + b"\r\n" + rest))
    other = tmp_path / "other.sqlite3"
    imported(other, write(tmp_path, export([row(1)])))
    assert legs(database) == legs(other)


def test_the_repeated_hour_is_decided_by_order_and_said_where_not(
    tmp_path: Path, database: Path
) -> None:
    night = {"LeaveTime": ""}
    first = row(1, JoinTime="2017-10-29 02:50:00", **night)
    second = row(2, JoinTime="2017-10-29 02:10:00", **night)
    said = imported(database, write(tmp_path, export([second])))
    assert said[0].startswith("1 leg has a time in an hour that a clock change repeated")
    said = imported(database, write(tmp_path, export([first])))
    assert len(said) == 1
    query = "SELECT join_time FROM conference_calls ORDER BY call_id"
    times = [leg["join_time"] for leg in rows(database, query)]
    assert times == ["2017-10-29T00:50:00Z", "2017-10-29T01:10:00Z"]


def test_standard_input_and_gzip_are_read(tmp_path: Path, database: Path) -> None:
    file = write(tmp_path, gzip.compress(export([row(1)])), "export.csv.gz")
    imported(database, file)
    command = command_line(database, "-")
    done = subprocess.run(
        command, input=export([row(1), row(2)]), capture_output=True, check=False,
        timeout=DEADLINE_SECONDS,
    )  # fmt: skip
    assert done.stderr == b"1 stored, 0 updated, 1 unchanged, 0 quarantined\n"


def test_a_large_file_is_stored_in_slices(tmp_path: Path, database: Path) -> None:
    number = 3 * SLICE_ROWS + 1
    file = write(tmp_path, export(row(call_id) for call_id in range(1, number + 1)))
    assert imported(database, file) == [f"{number} stored, 0 updated, 0 unchanged, 0 quarantined"]
    assert [leg[0] for leg in legs(database)] == list(range(1, number + 1))


def test_a_slice_and_the_largest_leg_fit_into_a_request() -> None:
    largest = len(ConferenceLeg._fields) * MAX_CHARACTERS * len(r"\u0001")
    assert SLICE_BYTES + largest < MAX_REQUEST_BYTES


def test_a_file_may_have_any_name(tmp_path: Path, database: Path) -> None:
    content = export([row(1), row(2, CallID="two")])
    file = write(tmp_path, content, b"[red] \xe9.csv".decode(errors="surrogateescape"))
    said = imported(database, file)
    assert said[-1] == "1 stored, 0 updated, 0 unchanged, 1 quarantined"
    (kept,) = rows(database, "SELECT peer FROM quarantine")
    assert kept["peer"] == f"{tmp_path}/[red] \N{REPLACEMENT CHARACTER}.csv:3"
    with RunningDaemon(tmp_path) as daemon:
        daemon.wait_for("ready")
        assert imported(daemon.database, file) == said


def test_a_terminal_shows_how_far_it_is(tmp_path: Path, database: Path) -> None:
    (tmp_path / "exports[").mkdir()
    many = export(row(call_id) for call_id in range(1, 2000))
    file = write(tmp_path, many, "exports[/old].csv")
    main, terminal = pty.openpty()
    command = command_line(database, str(file))
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stderr=terminal, env=environment) as process:
        os.close(terminal)
        said = b""
        with pytest.raises(OSError):  # the terminal's end, on Linux  # noqa: PT012
            while True:
                said += os.read(main, 4096)
        assert process.wait(DEADLINE_SECONDS) == 0
    os.close(main)
    assert b"%" in said
    assert b"1999 stored" in said


# The configuration


def test_the_only_portal_is_the_one(tmp_path: Path) -> None:
    config = write_config(tmp_path, HQ + PORTAL)
    done = cdrd("import", "conferences", "-c", config, write(tmp_path, export([row(1)])))
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        0,
        "1 stored, 0 updated, 0 unchanged, 0 quarantined",
    )
    (leg,) = rows(tmp_path / "cdr.sqlite3", "SELECT * FROM conference_calls")
    assert (leg["portal"], leg["join_time"]) == ("video", "2017-09-14T13:30:15Z")


def test_which_portal_must_be_told(tmp_path: Path) -> None:
    config = write_config(tmp_path, HQ)
    file = write(tmp_path, export([row(1)]))
    done = cdrd("import", "conferences", "-c", config, file)
    assert (done.returncode, done.stderr) == (
        2,
        "cdrd import conferences: whose export is it? give --portal NAME (configured: none)\n",
    )
    done = cdrd("import", "conferences", "-c", config, "--portal", "old", file)
    assert done.returncode == 2
    assert "no [[portal]] 'old' is configured: give the zone of its times" in done.stderr
    assert not (tmp_path / "cdr.sqlite3").exists()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_configured_portal_has_its_zone(
    tmp_path: Path, database: Path, *, elsewhere: bool
) -> None:
    config = write_config(tmp_path, HQ + PORTAL)
    options = ("-c", config, *(("--db", database) if elsewhere else ()), "--portal", "video")
    file = write(tmp_path, export([row(1)]))
    done = cdrd("import", "conferences", *options, "--timezone", "Europe/Berlin", file)
    assert done.returncode == 2
    assert "'video' is configured in America/New_York: take --timezone out" in done.stderr
    done = cdrd("import", "conferences", *options, "--timezone", "America/New_York", file)
    assert done.stderr == "1 stored, 0 updated, 0 unchanged, 0 quarantined\n"


def test_a_zone_that_is_none_is_told(tmp_path: Path, database: Path) -> None:
    done = cdrd("import", "conferences", "--db", database, "--timezone", "Mars", tmp_path / "x")
    assert done.returncode == 2
    assert "no time zone 'Mars'" in done.stderr


def test_without_a_configuration_the_options_have_to_say_it(tmp_path: Path) -> None:
    done = cdrd("import", "conferences", "-c", tmp_path / "none.toml", tmp_path / "x")
    assert done.returncode == 78


# What fails


def test_a_file_that_fails_keeps_no_other_from_it(tmp_path: Path, database: Path) -> None:
    other = write(tmp_path, b"callid,timestart\r\n1,2\r\n", "calls.csv")
    file = write(tmp_path, export([row(1)]))
    said = imported(database, tmp_path / "none.csv", other, file, status=1)
    assert said[0] == f"{tmp_path / 'none.csv'}: No such file or directory"
    assert said[1].startswith(f"{other}: no portal's export: the header lacks UniqueCallID,")
    assert said[2] == "1 stored, 0 updated, 0 unchanged, 0 quarantined"


def test_an_export_of_several_portals_is_not_taken_for_one_portals(
    tmp_path: Path, database: Path
) -> None:
    for portal in ("old", "new"):
        file = write(tmp_path, export([row(1, CallerName=f"of {portal}")]))
        imported(database, file, "--portal", portal)
    before = legs(database)
    both, one = tmp_path / "both.csv", tmp_path / "one.csv"
    cdrd("export", "conferences", "--db", database, "-o", both)
    cdrd("export", "conferences", "--db", database, "-o", one, "--portal", "old")
    said = imported(database, both, one, status=1)
    assert said[0].startswith(f"{both}: line 3 is of portal 'new', not of 'old': import each")
    assert said[1] == "0 stored, 0 updated, 1 unchanged, 0 quarantined"
    assert legs(database) == before


def test_a_file_that_is_cut_off_fails(tmp_path: Path, database: Path) -> None:
    whole = gzip.compress(export(row(call_id) for call_id in range(1, 100)))
    said = imported(database, write(tmp_path, whole[:-20], "cut.csv.gz"), status=1)
    assert "end-of-stream marker" in said[0]


def test_a_database_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    file = write(tmp_path, export([row(1)]))
    said = imported(tmp_path / "none" / "cdr.sqlite3", file, status=1)
    assert "create its directory" in said[0]


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    file = write(tmp_path, export([row(1)]))
    said = imported(write(tmp_path, b"no database" * 100, "other"), file, status=1)
    assert "file is not a database" in said[0]


# Beside a daemon


def test_beside_a_daemon_the_daemon_writes(tmp_path: Path) -> None:
    night = row(2000, JoinTime="2017-10-29 02:10:00", LeaveTime="")
    many = [row(call_id) for call_id in range(1, 1001)]
    file = write(tmp_path, export([*many, row(7, **IN_PROGRESS), night]) + b"1,short\r\n")
    with RunningDaemon(tmp_path) as daemon:
        daemon.wait_for("ready")
        said = imported(daemon.database, file)
        assert said[-1] == "1001 stored, 0 updated, 1 unchanged, 1 quarantined"
        assert said[1].startswith("1 leg has a time in an hour that a clock change repeated")
        told = daemon.wait_for("portal_rows_stored", portal="old", source="import", stored=500)
        assert (told["first_call_id"], told["last_call_id"]) == (1, 500)
        undecided = daemon.wait_for("portal_times_undecided", portal="old")
        assert (undecided["first_call_id"], undecided["legs"]) == (2000, 1)
        quarantined = daemon.wait_for("portal_row_quarantined", portal="old", source="import")
        assert quarantined["reason"] == "2 cells where the header has 27"
        again = imported(daemon.database, file)
        assert again[-1].startswith("0 stored, 0 updated, 1002 unchanged, 0 quarantined, 1 in")
        status, stopped = daemon.stop()
    assert (status, stopped["received"]) == (0, 0)
    alone = tmp_path / "alone.sqlite3"
    imported(alone, file)
    assert legs(alone) == legs(tmp_path / "cdr.sqlite3")


def test_legs_of_the_longest_columns_reach_the_daemon(tmp_path: Path) -> None:
    long = dict.fromkeys(("CallerName", "RoomOwner", "GWID"), "\x01" * MAX_CHARACTERS)
    wide = [row(call_id, **long) for call_id in range(1, 60)]
    with RunningDaemon(tmp_path) as daemon:
        daemon.wait_for("ready")
        assert imported(daemon.database, write(tmp_path, export(wide)))[-1].startswith("59 stored")
