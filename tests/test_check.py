"""``cdrd check``: what is in force, what is wrong, and a look that changes nothing."""

import asyncio
import contextlib
import io
import os
import pwd
import socket
import sqlite3
import tomllib
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from cdrd.address import format_address
from cdrd.cli import main
from cdrd.commands import check_login
from cdrd.config import load_config
from cdrd.database import wal_reset_bug
from cdrd.schema import PAGE_BYTES, VERSION
from cdrd.simulate.pbx import SimulatedPBX
from cdrd.simulate.reports import new_cdr
from tests.running import HQ, RunningDaemon, counted_logins, send, write_config
from tests.simulated import SimulatedPbx

BAD = b'{"action":"NewCdr","callid":"1571897930.9","timestart":"yesterday"}\n'


def check(*arguments: str | Path) -> tuple[int, str]:
    """Run the command; return its exit status and all that it said."""
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        status = main(["check", *map(str, arguments)])
    return status, said.getvalue()


def faults(said: str) -> list[str]:
    """Return what is to be mended, and hold the number that was told to it."""
    _, told, listed = said.partition(" to mend:\n")
    found = [line.strip() for line in listed.splitlines()]
    assert bool(told) == ("nothing to mend" not in said)
    if told:
        things = "thing" if len(found) == 1 else "things"
        assert f"\n{len(found)} {things} to mend:" in said
    return found


def filled(directory: Path, *streams: bytes) -> Path:
    """Let a daemon store what is sent to it, and return the database that it leaves."""
    with RunningDaemon(directory) as daemon:
        daemon.wait_for("ready")
        for stream in streams:
            send(daemon.port, stream)
        assert daemon.stop()[0] == 0
    return daemon.database


def calls(number: int) -> bytes:
    return b"".join(new_cdr(call, started=1571897930) + b"\n" for call in range(number))


def dialled(directory: Path, address: str, password: str = "api") -> Path:
    """Write a configuration with a PBX that is dialled, and its password's file."""
    (directory / "lab.password").write_text(f"{password}\n")
    return write_config(
        directory,
        '[[pbx]]\nname = "lab"\n[pbx.events]\nkind = "tcp"\nusername = "api"\n'
        f'password_file = "lab.password"\naddress = "{address}"\n',
    )


@contextlib.contextmanager
def silent_listener(*, listening: bool = True) -> Iterator[str]:
    """Own an address where nothing answers, or at which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        if listening:
            sock.listen()
        yield format_address(*sock.getsockname())


def log_in(directory: Path, password: str, times: int = 1) -> tuple[list[tuple[int, str]], int]:
    """Check with --connect beside a simulated PBX; return what was said, and its refusals."""

    async def run() -> tuple[list[tuple[int, str]], int]:
        pbx = SimulatedPBX()
        await pbx.start()
        config = dialled(directory, format_address(*pbx.address), password)
        said = [await asyncio.to_thread(check, "-c", config, "--connect") for _ in range(times)]
        await pbx.close()
        assert pbx.logins + pbx.refusals <= times
        return said, pbx.refusals

    return asyncio.run(run())


# The settings


def test_what_is_in_force_is_shown_as_toml_that_says_the_same(tmp_path: Path) -> None:
    config = dialled(tmp_path, "192.0.2.10:8333")
    config.write_text(config.read_text() + HQ)
    _, said = check("-c", config)
    first, _, listing = said.partition("\n")
    assert first == f"configuration {config}"
    shown = tomllib.loads(listing.partition("\ndatabase /")[0])
    for pbx in shown["pbx"]:
        pbx.setdefault("events", None)
        pbx.setdefault("history", None)
    assert shown | {"portal": []} == load_config(config).model_dump()


def test_a_secret_is_shown_by_its_files_name_alone(tmp_path: Path) -> None:
    status, said = check("-c", dialled(tmp_path, "192.0.2.10:8333", "not-to-be-seen"))
    assert status == 0
    assert '"lab.password"' in said
    assert "not-to-be-seen" not in said


def test_a_configuration_that_cannot_be_used_ends_with_exit_78(tmp_path: Path) -> None:
    for tables in ("[tpc]\n", "tcp.listen = 5", "["):
        status, said = check("-c", write_config(tmp_path, tables))
        assert (status, "config.toml: " in said) == (78, True)
    assert check("-c", tmp_path / "none.toml")[0] == 78


# The database


def test_a_sound_database_is_described_and_has_nothing_to_mend(tmp_path: Path) -> None:
    database = filled(tmp_path, calls(1234), BAD)
    status, said = check("-c", tmp_path / "config.toml")
    assert (status, faults(said)) == (0, []), said
    told = [line.split(None, 1) for line in said.partition("\ndatabase ")[2].splitlines()]
    words = [" ".join(line) for line in told]
    for line in (
        f"schema version {VERSION}",
        "journal mode",
        "calls 1,234 (by",
        "quarantine 1; cdrd",
    ):
        assert any(" ".join(word.split()).startswith(line) for word in words), said
    for ending in ("", "-wal", "-shm"):
        assert any("-rw-r-----" in word and word.endswith(f"{database}{ending}") for word in words)
    assert "not running" in said


def test_a_database_that_is_not_there_is_told_and_not_made(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    status, said = check("-c", config)
    assert (status, faults(said)) == (0, [])
    assert "not there yet; cdrd serve makes it" in said
    assert list(tmp_path.iterdir()) == [config]


def test_a_look_changes_nothing_beside_the_database(tmp_path: Path) -> None:
    database = filled(tmp_path, calls(1))
    Path(f"{database}.lock").unlink()
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()}
    assert check("-c", tmp_path / "config.toml")[0] == 0
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()}
    shm = Path(f"{database}-shm")  # where SQLite notes who reads up to where
    assert before.pop(shm)
    assert after.pop(shm)
    assert before == after


def test_a_running_daemon_is_told(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        daemon.wait_for("ready")
        status, said = check("-c", daemon.config)
        assert (status, faults(said)) == (0, [])
        assert "running: the database is being written" in said
        assert daemon.stop()[0] == 0


def test_the_integrity_is_looked_at_on_demand_beside_a_running_daemon(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        send(daemon.port, calls(50))
        daemon.wait_for_calls(50)
        status, said = check("-c", daemon.config, "--integrity")
        assert (status, faults(said)) == (0, [])
        assert "whole" in said.partition("integrity of")[2]
        assert "integrity of" not in check("-c", daemon.config)[1]
        assert daemon.stop()[0] == 0


def test_damage_that_nothing_else_would_find_is_found_and_told_with_advice(tmp_path: Path) -> None:
    database = filled(tmp_path, calls(200))
    with contextlib.closing(sqlite3.connect(database)) as writer:
        (page,) = writer.execute("SELECT max(rootpage) FROM sqlite_schema").fetchone()
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with database.open("r+b") as file:
        file.seek(PAGE_BYTES * (page - 1))
        file.write(b"\xff" * 100)
    config = tmp_path / "config.toml"
    assert check("-c", config)[0] == 0
    status, said = check("-c", config, "--integrity")
    assert status == 1
    (fault,) = faults(said)
    assert fault.startswith(f"{database} is damaged (")
    assert ".recover" in fault


def test_what_is_no_database_of_ours_is_to_be_mended(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    database = tmp_path / "cdr.sqlite3"
    with contextlib.closing(sqlite3.connect(database)) as theirs:
        theirs.execute("CREATE TABLE theirs (a)")
    for sentence in ("another program's database", "not a database"):
        status, said = check("-c", config)
        (fault,) = faults(said)
        assert status == 1
        assert fault.startswith(f"{database}: ")
        assert sentence in fault
        database.write_text("neither SQLite nor a database, and more than a hundred bytes" * 2)


def test_a_directory_in_the_databases_place_is_called_so(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "cdr.sqlite3").mkdir()
    status, said = check("-c", config)
    assert status == 1
    assert faults(said) == [
        f"{tmp_path}/cdr.sqlite3 is a directory: name a file in it in [database]"
    ]


def test_an_empty_file_is_told_to_become_a_database(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "cdr.sqlite3").touch(0o640)
    status, said = check("-c", config)
    assert (status, faults(said)) == (0, [])
    assert "the file is empty: cdrd serve makes the tables" in said


def test_files_that_the_group_cannot_read_are_to_be_mended(tmp_path: Path) -> None:
    database = filled(tmp_path, calls(1))
    for ending in ("", "-shm"):
        Path(f"{database}{ending}").chmod(0o600)
    status, said = check("-c", tmp_path / "config.toml")
    assert status == 1
    assert [fault.partition(": chmod ")[2] for fault in faults(said)] == [
        f"g+r {database}",
        f"g+r {database}-shm",
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_shuts_out_whoever_writes_the_database_is_to_be_mended(tmp_path: Path) -> None:
    database = filled(tmp_path, calls(1))
    beside = [Path(f"{database}{ending}") for ending in ("-wal", "-shm", ".lock", ".spool")]
    beside[-1].touch(0o640)
    user = pwd.getpwuid(65534).pw_name

    def mended(directory: int, its_own: int, others: int) -> list[str]:
        """Tell what is to be done where the files are these users'."""
        for path, owner in ((tmp_path, directory), (database, its_own)):
            os.chown(path, owner, -1)
        for path in beside:
            os.chown(path, others, -1)
        said = check("-c", tmp_path / "config.toml")[1]
        return [fault.partition(": ch")[2] for fault in faults(said)]

    theirs = [f"own {user} {path}" for path in beside]
    tmp_path.chmod(0o750)  # whose it is makes files in it, and nobody else
    assert mended(0, 0, 0) == mended(65534, 65534, 65534) == []
    assert mended(65534, 0, 0) == [f"own {user} {database}", *theirs]
    assert mended(65534, 65534, 0) == theirs
    assert mended(0, 65534, 65534) == [f"own {user} {tmp_path}"]
    tmp_path.chmod(0o1777)
    assert mended(0, 65534, 65534) == mended(65534, 0, 0) == []
    assert mended(0, 65534, 0) == theirs
    tmp_path.chmod(0o550)
    database.chmod(0o440)
    assert mended(65534, 65534, 65534) == [f"mod u+w {tmp_path}", f"mod u+w {database}"]


def test_a_wal_without_its_shm_is_to_be_mended_and_not_made_by_the_look(tmp_path: Path) -> None:
    database = filled(tmp_path, calls(1))
    Path(f"{database}-shm").unlink()
    status, said = check("-c", tmp_path / "config.toml")
    (fault,) = faults(said)
    assert (status, fault.split(":")[0]) == (1, f"{database}-shm")
    assert "start cdrd serve" in fault
    assert not Path(f"{database}-shm").exists()


def test_a_sqlite_that_can_corrupt_a_wal_is_told(tmp_path: Path) -> None:
    _, said = check("-c", write_config(tmp_path))
    assert sqlite3.sqlite_version in said
    assert ("can corrupt the WAL" in said) == wal_reset_bug(sqlite3.sqlite_version_info)


# The PBXs


def test_each_pbx_is_told_with_the_way_it_is_reached(tmp_path: Path) -> None:
    config = dialled(tmp_path, "192.0.2.10:8333")
    config.write_text(config.read_text() + HQ)
    status, said = check("-c", config)
    assert status == 0
    told = [" ".join(line.split()) for line in said.partition("\nPBXs\n")[2].splitlines()]
    assert told[:2] == [
        "lab is dialled at 192.0.2.10:8333 as api",
        "hq may connect from 127.0.0.1 to 127.0.0.1:0",
    ]


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        ("http", "is told at http://h:8088 as api to POST to /"),
        ("websocket", "is subscribed to at http://h:8088 as api"),
    ],
)
def test_a_pbx_with_an_api_is_told_with_its_history(kind: str, way: str, tmp_path: Path) -> None:
    _, said = check("-c", with_api(tmp_path, API + HISTORY, kind, "h:8088"))
    assert f"; {way}; its history is fetched from http://h:8088 as api\n" in said


def test_a_webhook_is_told_and_needs_its_secret(tmp_path: Path) -> None:
    webhook = '[pbx.events]\nkind = "webhook"\nsecret_file = "key"\npath = "/hq"\n'
    config = write_config(tmp_path, 'http.listen = ["127.0.0.1:0"]\n' + HQ + webhook)
    _, said = check("-c", config)
    assert "hq may POST from 127.0.0.1 to 127.0.0.1:0; signs what it POSTs to /hq" in " ".join(
        said.split()
    )
    assert [fault.partition(": make")[0] for fault in faults(said)] == [
        "hq: secret_file 'key' cannot be read: No such file or directory",
    ]
    (tmp_path / "key").write_text("k3y\n")
    status, said = check("-c", config, "--connect")
    assert (status, faults(said)) == (0, [])
    assert "we connect to no PBX" in said


def test_a_certificate_that_cannot_be_used_is_to_be_mended(tmp_path: Path) -> None:
    tables = HQ + '[tls]\ncertificate = "server.pem"\nkey = "server.key"\n'
    status, said = check("-c", write_config(tmp_path, tables))
    assert status == 1
    assert faults(said) == [
        f"tls: {tmp_path}/server.pem and {tmp_path}/server.key: No such file or directory"
    ]


def test_a_ca_file_that_cannot_be_used_is_to_be_mended(tmp_path: Path) -> None:
    config = with_api(tmp_path, API + 'ca_file = "ca.pem"\n', "websocket", "h:8088")
    (fault,) = faults(check("-c", config)[1])
    assert fault == f"lab: ca_file {tmp_path / 'ca.pem'} cannot be read: No such file or directory"


def test_where_a_pbx_may_post_is_told(tmp_path: Path) -> None:
    tables = 'http.listen = ["0.0.0.0:8260"]\n' + HQ
    config = write_config(tmp_path, tables)
    _, said = check("-c", config)
    connecting = "may connect from 127.0.0.1 to 127.0.0.1:0"
    assert f"{connecting}; may POST from 127.0.0.1 to 0.0.0.0:8260" in said
    status, said = check("-c", write_config(tmp_path, tables, listen=()))
    assert (status, faults(said)) == (0, [])
    assert "hq                may POST from 127.0.0.1 to 0.0.0.0:8260" in said


def test_no_pbx_at_all_is_told(tmp_path: Path) -> None:
    status, said = check("-c", write_config(tmp_path, ""))
    assert status == 0
    assert "no [[pbx]] is configured: every peer will be refused" in said


def test_a_pbx_whose_reports_cannot_come_is_to_be_mended(tmp_path: Path) -> None:
    config = write_config(tmp_path, HQ + '[[pbx]]\nname = "lab"\n', listen=())
    status, said = check("-c", config)
    assert status == 1
    assert faults(said) == ["lab: no report of it can come: give it peers or [pbx.events]"]


def test_a_pbx_whose_history_alone_is_fetched_lacks_nothing(tmp_path: Path) -> None:
    (tmp_path / "hq.password").write_text("api\n")
    history = '[pbx.history]\nurl = "http://h:8088"\nusername = "api"\n'
    tables = f'[[pbx]]\nname = "lab"\n{history}password_file = "hq.password"\n'
    status, said = check("-c", write_config(tmp_path, tables))
    assert (status, faults(said)) == (0, [])
    assert "lab               its history is fetched from http://h:8088 as api\n" in said


def test_the_configuration_alone_has_no_fault_of_the_database(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "cdr.sqlite3").write_text("damaged")
    assert check("-c", config)[0] == 1
    status, said = check("-c", config, "--no-database")
    assert (status, faults(said)) == (0, [])
    config.write_text(config.read_text() + "cheese = true\n")
    assert check("-c", config, "--no-database")[0] == 78


def test_that_nothing_listens_is_a_remark_for_systemd_may(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, HQ, listen=())
    assert main(["check", "-c", str(config)]) == 0
    told = capsys.readouterr()
    assert told.out.endswith("\nnothing to mend\n")
    assert told.err.startswith("hq: nothing listens for its peers, unless systemd does")
    assert "cdrd.socket" in told.err
    main(["check", "-c", str(write_config(tmp_path, HQ))])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("password", "sentence"),
    [
        (None, "'lab.password' cannot be read: No such file or directory"),
        (b"", "'lab.password' is empty"),
        (b"one\ntwo\n", "lab.password: a secret is one line"),
        (b"\xff\xfe", "'lab.password' is no text in UTF-8"),
    ],
    ids=["missing", "empty", "two lines", "no text"],
)
def test_a_password_that_cannot_be_read_is_to_be_mended_and_not_tried(
    password: bytes | None, sentence: str, tmp_path: Path
) -> None:
    config = dialled(tmp_path, "192.0.2.10:8333")
    if password is None:
        (tmp_path / "lab.password").unlink()
    else:
        (tmp_path / "lab.password").write_bytes(password)
    for arguments in ((), ("--connect",)):
        status, said = check("-c", config, *arguments)
        (fault,) = faults(said)
        assert (status, fault.split(":")[0]) == (1, "lab")
        assert sentence in fault
    assert "not tried without a password" in said


# Logging in


def test_an_accepted_login_is_nothing_to_mend(tmp_path: Path) -> None:
    [(status, said)], refusals = log_in(tmp_path, "api")
    assert (status, faults(said), refusals) == (0, [], 0)
    assert "logged in" in said


def test_no_login_is_tried_unless_it_is_asked_for(tmp_path: Path) -> None:
    with silent_listener(listening=False) as address:
        status, said = check("-c", dialled(tmp_path, address))
    assert (status, faults(said)) == (0, [])
    assert "logins" not in said


def test_a_refused_login_is_to_be_mended_and_counted(tmp_path: Path) -> None:
    [(status, said)], refusals = log_in(tmp_path, "wrong")
    (fault,) = faults(said)
    assert (status, refusals) == (1, 1)
    assert "refused the login: check username and password_file" in fault
    assert counted_logins(tmp_path / "cdr.sqlite3") == 1


def test_a_password_is_never_refused_a_fifth_time_also_before_there_is_a_database(
    tmp_path: Path,
) -> None:
    said, refusals = log_in(tmp_path, "wrong", times=6)
    assert [status for status, _ in said] == [1] * 6
    assert refusals == 4
    assert not (tmp_path / "cdr.sqlite3").exists()
    (fault,) = faults(said[-1][1])
    assert "not tried, since 4 logins in the last 10 minutes were refused or cut off" in fault
    assert "try again at " in fault


def test_without_a_directory_to_count_logins_in_none_is_tried(tmp_path: Path) -> None:
    with silent_listener(listening=False) as address:
        config = dialled(tmp_path, address)
        config.write_text(config.read_text().replace("/cdr.sqlite3", "/later/cdr.sqlite3"))
        (fault,) = faults(check("-c", config, "--connect")[1])
    assert f"not tried, since logins are counted in {tmp_path}/later/cdr.sqlite3.logins: " in fault


def test_a_pbx_that_cannot_be_reached_is_to_be_mended(tmp_path: Path) -> None:
    with silent_listener(listening=False) as address:
        status, said = check("-c", dialled(tmp_path, address), "--connect")
    (fault,) = faults(said)
    assert status == 1
    assert f"{address} cannot be reached: " in fault
    assert "Connection refused" in fault


def test_a_pbx_that_does_not_answer_is_told_and_taken_for_a_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_login, "LOGIN_SECONDS", 0.05)
    with silent_listener() as address:
        status, said = check("-c", dialled(tmp_path, address), "--connect")
    assert (status, faults(said)) == (0, [])
    assert "connected; no answer in 0.05 s" in said
    assert counted_logins(tmp_path / "cdr.sqlite3") == 1  # it may have been refused


API = """
[[pbx]]
name = "lab"
peers = ["127.0.0.1"]
[pbx.events]
kind = "{kind}"
address = "{address}"
username = "api"
password_file = "lab.password"
tls = false
"""
HISTORY = """
[pbx.history]
url = "http://{address}"
username = "api"
password_file = "lab.password"
"""


def with_api(directory: Path, tables: str, kind: str, address: str, password: str = "api") -> Path:
    (directory / "lab.password").write_text(f"{password}\n")
    listening = 'http.listen = ["127.0.0.1:0"]\n' if kind == "http" else ""
    return write_config(directory, listening + tables.format(kind=kind, address=address))


@pytest.mark.parametrize(
    ("kind", "api"), [("http", "API 2.0.0"), ("websocket", "the P-Series API")]
)
def test_a_pbx_is_logged_in_to_for_its_events_and_for_its_history(
    kind: str, api: str, tmp_path: Path
) -> None:
    with SimulatedPbx(kind=kind) as pbx:
        config = with_api(tmp_path, API + HISTORY, kind, pbx.address)
        status, said = check("-c", config, "--connect")
        assert pbx.stop()["logins"] == 2
    assert (status, faults(said)) == (0, [])
    told = [" ".join(line.split()) for line in said.partition("\nlogins\n")[2].splitlines()]
    assert told[:2] == [f"lab logged in to {api}", f"lab, history logged in to {api}"]


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_an_api_is_never_asked_with_a_wrong_password_a_fifth_time(
    kind: str, tmp_path: Path
) -> None:
    with SimulatedPbx(kind=kind) as pbx:
        config = with_api(tmp_path, API + HISTORY, kind, pbx.address, "wrong")
        said = [check("-c", config, "--connect")[1] for _ in range(3)]
        assert pbx.stop()["refusals"] == 4
    (of_events, of_history) = faults(said[0])
    assert of_events.startswith(f"lab: http://{pbx.address} refused the login")
    assert of_history.startswith(f"lab, history: http://{pbx.address} refused the login")
    assert all("not tried, since 4 logins" in fault for fault in faults(said[2]))


def test_an_api_that_is_not_there_is_to_be_mended(tmp_path: Path) -> None:
    with silent_listener(listening=False) as address:
        config = with_api(tmp_path, API, "http", address)
        status, said = check("-c", config, "--connect")
    (fault,) = faults(said)
    assert status == 1
    assert fault.startswith(f"lab: http://{address} cannot be reached: Connection refused: ")


def test_what_is_to_be_mended_is_listed_at_the_end_all_of_it(tmp_path: Path) -> None:
    database = filled(tmp_path, calls(1))
    database.chmod(0o600)
    with silent_listener(listening=False) as address:
        status, said = check("-c", dialled(tmp_path, address), "--connect")
    assert status == 1
    assert "2 things to mend:" in said
    assert [fault.split(":")[0] for fault in faults(said)] == [str(database), "lab"]


def test_a_name_with_quotes_is_shown_as_toml_too(tmp_path: Path) -> None:
    name = orjson.dumps('the "old" one').decode()
    _, said = check("-c", write_config(tmp_path, f'[[pbx]]\nname = {name}\npeers = ["::1"]\n'))
    assert f"name     = {name}" in said
