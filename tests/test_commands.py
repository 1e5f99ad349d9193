"""The commands as people run them: results on stdout, sentences on stderr, and an exit status."""

import contextlib
import io
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from cdrd import __version__
from cdrd.cli import COMMANDS, main
from cdrd.simulate.reports import new_cdr
from tests.running import (
    DEADLINE_SECONDS,
    HQ,
    Line,
    RunningDaemon,
    cdrd,
    count,
    rows,
    send,
    write_config,
)

STARTED = 1571897930
TWO = '[[pbx]]\nname = "hq"\npeers = ["127.0.0.1"]\n[[pbx]]\nname = "lab"\npeers = ["127.0.0.2"]\n'
NORTH = '[[pbx]]\nname = "north"\npeers = ["127.0.0.1"]\nserial = "111"\n'
SOUTH = '[[pbx]]\nname = "south"\npeers = ["127.0.0.1"]\nserial = "222"\n'
BAD = b'{"action":"NewCdr","callid":"1571897930.9","timestart":"yesterday"}\n'
PROGRAM = (sys.executable, "-m", "cdrd")
HUGE = "99999999999999999999"


def calls(*numbers: int, serial: str = "369362089179") -> bytes:
    return b"".join(
        new_cdr(number, "1.0.2", started=STARTED, serial=serial) + b"\n" for number in numbers
    )


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in this process: a tenth of a second instead of a half."""
    said, remarked = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(remarked):
        try:
            status = main([*map(str, arguments)])
        except SystemExit as ended:
            status = int(ended.code or 0)
    return subprocess.CompletedProcess(arguments, status, said.getvalue(), remarked.getvalue())


def filled(directory: Path, *streams: bytes, tables: str = HQ, source: str = "") -> Path:
    """Let a daemon store what is sent to it, and return the database that it leaves."""
    with RunningDaemon(directory, tables) as daemon:
        for stream in streams:
            send(daemon.port, stream, source=source)
        assert daemon.stop()[0] == 0
    return daemon.database


def with_nobody_reading(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run a command whose reader of stdout has left."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return subprocess.run(
            [*PROGRAM, *arguments],
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
    finally:
        os.close(writing)


class Following:
    """A running ``cdrd follow``."""

    def __init__(self, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cdrd", "follow", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def read(self, number: int) -> list[Line]:
        """Wait for the next lines."""
        assert self.process.stdout is not None
        return [orjson.loads(self.process.stdout.readline()) for _ in range(number)]


@contextlib.contextmanager
def following(*arguments: str | Path) -> Iterator[Following]:
    follower = Following(*arguments)
    with follower.process:
        try:
            yield follower
        finally:
            follower.process.kill()


# The command line


def test_the_help_of_each_command_shows_examples() -> None:
    for name in COMMANDS:
        shown = cdrd(name, "--help")
        assert shown.returncode == 0, shown.stderr
        assert f"cdrd {name}" in shown.stdout.partition("example")[2], name


def test_help_lists_the_commands_and_version_tells_the_version() -> None:
    shown = cdrd("--help")
    assert shown.returncode == 0
    assert [name for name in COMMANDS if f"\n    {name}" not in shown.stdout] == []
    assert cdrd("--version").stdout == f"cdrd {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("follow", "--since", "soon"),
        ("follow", "--since", HUGE),
        ("quarantine",),
        ("quarantine", "nonsense"),
        ("quarantine", "show"),
        ("quarantine", "show", HUGE),
        ("quarantine", "list", "--limit", HUGE),
        ("quarantine", "list", "--limit", "-1"),
        ("quarantine", "retry"),
        ("quarantine", "retry", HUGE),
        ("quarantine", "drop"),
        ("quarantine", "drop", "7", "--all"),
        ("simulate",),
        ("simulate", "load", "nowhere"),
        ("purge", "--before", "2020-01-01", "--pbx", "\udcff"),
        ("purge", "--before", "2020-01-01", "--tenant", "\udcff"),
        ("report", "--pbx", "\udcff"),
        ("report", "--number", "\udcff"),
        ("export", "calls", "--status", "\udcff"),
        ("follow", "--pbx", "\udcff"),
        ("backup", "\udcff.sqlite3"),
        ("purge", "--before", "2020-01-01", "--pbx", ""),
        ("purge", "--before", "2020-01-01", "--pbx="),
        ("purge", "--before", "2020-01-01", "--tenant", ""),
        ("export", "calls", "--from", "", "--to", ""),
        ("import", "calls", "--db", "", "a.jsonl"),
        ("import", "calls", ""),
        ("backup", ""),
        ("report", "-c", ""),
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_exit_2_and_a_sentence(arguments: tuple[str, ...]) -> None:
    refused = command(*arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith("usage: cdrd")
    assert refused.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("follow",),
        ("quarantine", "list"),
        ("quarantine", "show", "1"),
        ("quarantine", "retry", "--all"),
        ("quarantine", "drop", "--all"),
    ],
    ids=" ".join,
)
def test_a_database_that_is_not_there_or_no_database_is_told_in_a_sentence(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    config = write_config(tmp_path)
    database = tmp_path / "cdr.sqlite3"
    missing = command(*arguments, "-c", config)
    assert missing.returncode == 78
    assert not database.exists(), "a command that reads has made a database"
    database.write_text("neither SQLite nor a database, and more than a hundred bytes of it" * 2)
    for _ in "a text file", "another program's database":
        told = command(*arguments, "-c", config)
        assert told.returncode == 1
        for refused in (missing, told):
            assert str(database) in refused.stderr
            assert "Traceback" not in refused.stderr
            assert refused.stdout == ""
        database.unlink()
        with contextlib.closing(sqlite3.connect(database)) as theirs:
            theirs.execute("CREATE TABLE theirs (a)")


@pytest.mark.parametrize(
    "arguments",
    [
        ("follow",),
        ("quarantine", "list"),
        ("export", "calls"),
        ("report",),
        ("backup", "/dev/shm/no-copy.sqlite3"),
        ("purge", "--before", "2020-01-01"),
    ],
    ids=" ".join,
)
def test_a_directory_or_an_empty_file_in_the_databases_place_is_called_so(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    config, database = write_config(tmp_path), tmp_path / "cdr.sqlite3"
    database.mkdir()
    refused = command(*arguments, "-c", config)
    assert refused.returncode == 78
    assert refused.stderr == f"{database} is a directory: name the database in it\n"
    database.rmdir()
    database.touch()
    refused = command(*arguments, "-c", config)
    assert refused.returncode == 1
    assert f"{database}: the file is empty: cdrd serve makes the tables" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("check", "--integrity"), 1),
        (("follow",), 78),
        (("quarantine", "list"), 78),
        (("quarantine", "retry", "--all"), 78),
        (("quarantine", "drop", "1"), 78),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_database_that_cannot_be_looked_at_is_told_in_a_sentence(
    arguments: tuple[str, ...], status: int, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    database = f"{'n' * 300}/cdr.sqlite3"
    config.write_text(f'database.path = "{database}"')
    told = command(*arguments, "-c", config)
    assert told.returncode == status
    assert f"{database}: File name too long" in told.stdout + told.stderr
    assert told.stdout == "" or "\n1 thing to mend:\n" in told.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("backup",),
        ("export", "calls", "--format", "csv", "-o"),
        ("report", "--format", "csv", "-o"),
    ],
    ids=lambda value: value[0],
)
def test_a_file_that_cannot_be_looked_at_is_told_in_a_sentence(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    filled(tmp_path, BAD)
    told = cdrd(*arguments, tmp_path / ("n" * 300), "-c", tmp_path / "config.toml")
    first = told.stderr.splitlines()[0]
    assert (told.returncode, first[-20:]) == (1, ": File name too long"), told.stderr


def test_a_configuration_that_is_not_there_is_told_with_exit_78(tmp_path: Path) -> None:
    for words in (("serve",), ("follow",), ("quarantine", "list"), ("quarantine", "drop", "1")):
        refused = command(*words, "-c", tmp_path / "none.toml")
        assert refused.returncode == 78, words
        assert "none.toml" in refused.stderr
        assert "Traceback" not in refused.stderr


# follow


def test_follow_prints_stored_calls_and_then_each_new_one(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        send(daemon.port, calls(1, 2))
        daemon.wait_for_calls(2)
        with following("--db", daemon.database) as follower:
            shown = follower.read(2)
            send(daemon.port, calls(3))
            shown += follower.read(1)
        assert shown == [dict(row) for row in rows(daemon.database)]


def test_follow_begins_behind_a_seq_and_keeps_to_a_pbx(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path, TWO) as daemon:
        send(daemon.port, calls(*range(1500)))
        send(daemon.port, calls(1, 2), source="127.0.0.2")
        daemon.wait_for_calls(1502)
        with (
            following("-c", daemon.config, "--pbx", "lab") as of_lab,
            following("-c", daemon.config, "--since", "1501") as recent,
        ):
            assert [line["seq"] for line in of_lab.read(2)] == [1501, 1502]
            assert [line["seq"] for line in recent.read(1)] == [1502]
            send(daemon.port, calls(1501))
            send(daemon.port, calls(3), source="127.0.0.2")
            assert [(line["seq"], line["pbx"]) for line in of_lab.read(1)] == [(1504, "lab")]
            assert [line["pbx"] for line in recent.read(2)] == ["hq", "lab"]


def test_follow_goes_on_over_a_restart_of_the_daemon(tmp_path: Path) -> None:
    database = filled(tmp_path, calls(1))
    with following("--db", database) as follower:
        assert len(follower.read(1)) == 1
        filled(tmp_path, calls(2))
        assert [line["seq"] for line in follower.read(1)] == [2]


def put_in_place(replacement: Path, database: Path, *, over: bool) -> None:
    """Put a backup back as the README says; or ``over`` what is in the file."""
    away = database.parent / "away"
    away.mkdir()
    for ending in ("-wal", "-shm") if over else ("", "-wal", "-shm"):
        Path(f"{database}{ending}").rename(away / f"cdr.sqlite3{ending}")
    shutil.copyfile(replacement, database)


@pytest.mark.parametrize(
    ("name", "over"), [("cdr.sqlite3", False), ("cdr.sqlite3", True), ("link.sqlite3", True)]
)
def test_follow_goes_on_with_the_database_that_takes_the_place(
    tmp_path: Path, name: str, over: bool
) -> None:
    database = filled(tmp_path, calls(1))
    (tmp_path / "link.sqlite3").symlink_to(database)
    older = tmp_path / "older.sqlite3"
    assert cdrd("backup", "--db", database, older).returncode == 0
    filled(tmp_path, calls(2))
    with following("--db", tmp_path / name) as follower:
        assert [line["seq"] for line in follower.read(2)] == [1, 2]
        put_in_place(older, database, over=over)
        assert follower.process.stderr is not None
        assert follower.process.stderr.readline().endswith(b"goes on behind 1\n")
        filled(tmp_path, calls(3))
        filled(tmp_path, calls(4))
        assert follower.read(2) == [dict(row) for row in rows(database)][1:]


def test_follow_ends_quietly_when_its_reader_leaves_or_it_is_interrupted(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        send(daemon.port, calls(1))
        daemon.wait_for_calls(1)
        for way in ("interrupted", "left"):
            with following("--db", daemon.database) as follower:
                follower.read(1)
                assert follower.process.stdout is not None
                assert follower.process.stderr is not None
                if way == "left":
                    follower.process.stdout.close()
                else:
                    follower.process.send_signal(signal.SIGINT)
                assert follower.process.wait(DEADLINE_SECONDS) == 0
                assert follower.process.stderr.read() == b""


# An end before the work is done


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("report", "-o", "calls.csv"), 1, "cdrd report: interrupted: there is no report\n"),
        (("check", "--integrity"), 1, "cdrd check: interrupted before its end\n"),
        (("quarantine", "drop", "--all"), 1, "cdrd quarantine: interrupted before its end\n"),
        (("follow",), 0, ""),
        (("serve",), 0, ""),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_an_interrupt_is_done_only_where_nothing_else_ends_the_work(
    tmp_path: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    config = tmp_path / "config.toml"
    os.mkfifo(config)
    with subprocess.Popen(
        [*PROGRAM, *arguments, "-c", config],
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        text=True,
    ) as process:
        with config.open("wb"):  # it is being read, and will be for ever
            process.send_signal(signal.SIGINT)
            assert process.wait(DEADLINE_SECONDS) == status
        assert process.stderr is not None
        assert process.stderr.read() == said
    assert list(tmp_path.iterdir()) == [config]


@pytest.mark.parametrize("action", ["retry", "drop"])
def test_an_interrupt_tells_how_much_has_left_quarantine(tmp_path: Path, action: str) -> None:
    database = filled(tmp_path, BAD * 3)
    with socket.socket(socket.AF_UNIX) as daemon, contextlib.ExitStack() as stack:
        daemon.bind(f"{database}.control")
        daemon.listen()
        process = stack.enter_context(
            subprocess.Popen(
                [*PROGRAM, "quarantine", action, "--all", "-c", tmp_path / "config.toml"],
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        asking, _ = daemon.accept()
        with asking:
            process.send_signal(signal.SIGINT)
            assert process.wait(DEADLINE_SECONDS) == 1
        assert process.stderr is not None
        assert process.stderr.read() == (
            "cdrd quarantine: interrupted: 0 of 3 have left quarantine;"
            " the same again does the rest\n"
        )


def test_a_retry_whose_reader_leaves_is_not_done(tmp_path: Path) -> None:
    filled(tmp_path, BAD * 250)
    ended = with_nobody_reading("quarantine", "retry", "--all", "-c", tmp_path / "config.toml")
    told = b"interrupted: 0 of 250 have left quarantine; the same again does the rest\n"
    assert (ended.returncode, ended.stderr) == (1, b"cdrd quarantine: " + told)


def test_a_check_whose_reader_leaves_has_not_found_everything_well(tmp_path: Path) -> None:
    filled(tmp_path, BAD)
    ended = with_nobody_reading("check", "--integrity", "-c", tmp_path / "config.toml")
    assert (ended.returncode, ended.stderr) == (1, b"")


# quarantine


def test_quarantine_lists_and_shows_why_from_whom_and_the_bytes(tmp_path: Path) -> None:
    filled(tmp_path, BAD, BAD.replace(b"yesterday", b"\\u001b[31mred"))
    config = tmp_path / "config.toml"
    listed = command("quarantine", "list", "-c", config)
    assert listed.returncode == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["id", "1", "2"]
    assert "yesterday" in listed.stdout
    shown = command("quarantine", "show", "1", "2", "-c", config)
    assert shown.returncode == 0
    for part in ("pbx: hq", "peer: 127.0.0.1:", "source: tcp", BAD.decode().rstrip()):
        assert part in shown.stdout
    assert "\x1b" not in listed.stdout + shown.stdout


def test_quarantine_names_the_ids_that_are_not_there(tmp_path: Path) -> None:
    filled(tmp_path, BAD)
    for action in ("show", "retry", "drop"):
        told = command("quarantine", action, "7", "-c", tmp_path / "config.toml")
        assert (told.returncode, "7: not in quarantine" in told.stderr) == (1, True), action
    assert count(tmp_path / "cdr.sqlite3", "quarantine") == 1


@pytest.mark.parametrize("beside", [True, False], ids=["beside a daemon", "without a daemon"])
@pytest.mark.parametrize(
    "mended",
    [NORTH.replace("111", "333"), NORTH + SOUTH.replace("222", "333")],
    ids=["its serial", "a further pbx"],
)
def test_a_retry_after_the_configuration_was_mended_makes_a_logged_record(
    tmp_path: Path, mended: str, *, beside: bool
) -> None:
    database = filled(
        tmp_path, calls(1), calls(2, serial="333"), tables=NORTH.replace("111", "369362089179")
    )
    assert (count(database), count(database, "quarantine")) == (1, 1)
    if not beside:
        write_config(tmp_path, mended)
        retried = command("quarantine", "retry", "--all", "-c", tmp_path / "config.toml")
    with RunningDaemon(tmp_path, mended) as daemon:
        daemon.wait_for("ready")
        if beside:
            retried = command("quarantine", "retry", "--all", "-c", tmp_path / "config.toml")
        assert retried.returncode == 0, retried.stdout + retried.stderr
        assert "1 resolved: 1 records stored" in retried.stderr
        line = daemon.wait_for("call_released")
        daemon.stop()
    stored = rows(database)[-1]
    assert (line["seq"], line["call_id"]) == (stored["seq"], stored["call_id"])
    assert stored["pbx_serial"] == "333"
    assert (count(database), count(database, "quarantine")) == (2, 0)


@pytest.mark.parametrize("beside", [True, False], ids=["beside a daemon", "without a daemon"])
def test_what_still_cannot_be_a_record_stays_and_can_be_dropped(
    tmp_path: Path, *, beside: bool
) -> None:
    database = filled(tmp_path, BAD * 250)
    config = tmp_path / "config.toml"
    with RunningDaemon(tmp_path) if beside else contextlib.nullcontext() as daemon:
        if daemon is not None:
            daemon.wait_for("ready")
        stays = command("quarantine", "retry", "3", "-c", config)
        assert (stays.returncode, stays.stdout.split(":")[0]) == (1, "3 stays")
        assert "yesterday" in stays.stdout
        all_stay = command("quarantine", "retry", "--all", "-c", config)
        assert len(all_stay.stdout.splitlines()) == 250
        one = command("quarantine", "drop", "3", "-c", config)
        assert (one.returncode, one.stderr) == (0, "1 dropped\n")
        others = command("quarantine", "drop", "--all", "-c", config)
        assert (others.returncode, others.stderr) == (0, "249 dropped\n")
    assert count(database, "quarantine") == 0


def test_a_pbx_whose_name_has_a_slash_can_be_retried(tmp_path: Path) -> None:
    tables = '[[pbx]]\nname = "berlin/hq"\npeers = ["127.0.0.1"]\nserial = "{}"\n'
    database = filled(tmp_path, calls(1, serial="222"), tables=tables.format("111"))
    write_config(tmp_path, tables.format("222"))
    retried = command("quarantine", "retry", "--all", "-c", tmp_path / "config.toml")
    assert retried.returncode == 0, retried.stdout
    assert [row["pbx"] for row in rows(database)] == ["berlin/hq"]


@pytest.mark.parametrize("action", [("list",), ("show", "1")], ids=" ".join)
def test_output_into_a_pipe_that_was_closed_is_no_error(
    tmp_path: Path, action: tuple[str, ...]
) -> None:
    filled(tmp_path, BAD)
    ended = with_nobody_reading("quarantine", *action, "-c", tmp_path / "config.toml")
    assert (ended.returncode, ended.stderr) == (0, b"")
