"""Five wrong passwords never happen: whoever of us tries, and however a try ends."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cdrd.config import Events, History, Pbx
from cdrd.dial import LOGIN_SECONDS
from cdrd.login import COUNTED_SECONDS, MAX_REFUSALS
from cdrd.login_guard import LoginFile, LoginGuard, accounts_of
from cdrd.pbx_api import Denied, LoginRefused, NotOffered, Unanswered, Unreachable
from tests import quick_serve
from tests.fake_pbx import NOWHERE, Suspended, a_guard
from tests.running import DEADLINE_SECONDS, RunningDaemon, cdrd, counted_logins, write_config
from tests.set_clock import SetClock
from tests.simulated import SimulatedPbx

HQ = frozenset(("api@192.0.2.10:8088",))
BRANCH = frozenset(("api@192.0.2.20:8088",))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "cdr.sqlite3"


# The file


def test_four_logins_are_counted_and_a_fifth_has_to_wait(database: Path) -> None:
    for at in (1000.0, 1001.0, 1002.0, 1003.0):
        assert LoginFile(database).count(HQ, at) == 0
    file = LoginFile(database)
    assert file.count(HQ, 1004.0) == COUNTED_SECONDS - 4
    assert counted_logins(database) == 4
    assert file.count(BRANCH, 1004.0) == 0
    assert file.count(HQ, 1000.5 + COUNTED_SECONDS) == 0


def test_a_login_counts_for_each_account_that_it_may_lock(database: Path) -> None:
    file = LoginFile(database)
    for at in range(MAX_REFUSALS):
        assert file.count(HQ | BRANCH, 1000.0 + at) == 0
    assert file.count(BRANCH, 1010.0) > 0
    assert file.count(HQ, 1010.0) > 0


def test_what_is_taken_back_counts_no_more(database: Path) -> None:
    file, now = LoginFile(database), time.monotonic()
    for at in (now - 2, now - 1, now):
        file.count(HQ | BRANCH, at)
    file.take_back(HQ | BRANCH, now - 1)
    file.take_back(HQ | BRANCH, now - 1)
    assert counted_logins(database) == 4
    assert file.count(HQ, now) == file.count(HQ, now) == 0
    assert file.count(HQ, now) > 0


def test_old_logins_are_forgotten_so_that_the_file_stays_small(database: Path) -> None:
    file = LoginFile(database)
    for at in range(0, 100_000, 600):
        file.count(HQ, float(at))
    assert counted_logins(database) <= 2


def test_a_machine_started_anew_suspends_no_longer_than_the_lock_out(
    database: Path,
) -> None:
    file = LoginFile(database)
    for _ in range(MAX_REFUSALS):
        file.count(HQ, 100_000.0)
    assert file.count(HQ, 5_000.0) == COUNTED_SECONDS
    assert file.count(HQ, 5_000.0 + COUNTED_SECONDS) == 0


@pytest.mark.parametrize(
    "damage", [b"half", b'[1000.5,"api@19', b"\xff\n", b"[]\n", b"7\n", b'["a","b"]\n']
)
def test_a_line_that_is_damaged_costs_no_login_and_no_other_line(
    damage: bytes, database: Path
) -> None:
    file = LoginFile(database)
    for _ in range(MAX_REFUSALS):
        assert file.count(HQ, 1000.0) == 0
    with Path(f"{database}.logins").open("ab") as written:
        written.write(damage)
    assert file.count(HQ, 1001.0) == COUNTED_SECONDS - 1
    assert counted_logins(database) == MAX_REFUSALS


def test_only_the_daemon_s_user_reads_who_logs_in(database: Path) -> None:
    LoginFile(database).count(HQ, 1000.0)
    assert Path(f"{database}.logins").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_root_counts_does_not_shut_the_daemon_out(tmp_path: Path, database: Path) -> None:
    os.chown(tmp_path, 65534, 65533)
    LoginFile(database).count(HQ, 1000.0)
    status = Path(f"{database}.logins").stat()
    assert (status.st_uid, status.st_gid) == (65534, 65533)


def test_however_many_count_at_once_four_are_counted(database: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        waits = list(pool.map(lambda _: LoginFile(database).count(HQ, 1000.0), range(64)))
    assert waits.count(0) == counted_logins(database) == MAX_REFUSALS


# Whose logins count together


def test_one_pbx_is_one_account_by_whichever_interface_and_name() -> None:
    events = Events(kind="tcp", address="PBX.example:8333", username="api", password_file="p")
    history = History(url="https://pbx.example:8088/api/v2.0.0", username="h", password_file="p")
    both = accounts_of(Pbx(name="hq", events=events, history=history))
    assert both == {"api@pbx.example:8333", "h@pbx.example:8088"}
    assert accounts_of(Pbx(name="other", events=events)) < both
    assert accounts_of(Pbx(name="other", peers=["192.0.2.1"])) == frozenset()


@pytest.mark.parametrize(
    ("url", "account"),
    [
        ("https://192.0.2.10", "api@192.0.2.10:443"),
        ("http://192.0.2.10/", "api@192.0.2.10:80"),
        ("https://[2001:db8::1]:8088", "api@[2001:db8::1]:8088"),
    ],
)
def test_an_address_without_a_port_has_that_of_its_scheme(url: str, account: str) -> None:
    history = History(url=url, username="api", password_file="p")
    assert accounts_of(Pbx(name="hq", history=history)) == {account}


# The guard


@pytest.mark.asyncio
async def test_two_logins_are_never_under_way_at_once(database: Path) -> None:
    guard, steps = a_guard(database), list[str]()
    begun, asked = asyncio.Event(), asyncio.Event()

    async def log_in(name: str) -> None:
        async with guard.attempt():
            steps.append(f"{name} begins")
            begun.set()
            await asked.wait()
            steps.append(f"{name} ends")

    logins = [asyncio.create_task(log_in(name)) for name in ("first", "second")]
    await begun.wait()
    asked.set()
    await asyncio.gather(*logins)
    assert steps == ["first begins", "first ends", "second begins", "second ends"]


@pytest.mark.asyncio
@pytest.mark.parametrize("refusal", [LoginRefused, Unanswered, Denied])
@pytest.mark.parametrize("known", [True, False], ids=["in the file", "alone"])
async def test_what_is_or_may_be_a_refusal_counts_and_the_fifth_login_is_not_tried(
    refusal: type[Exception], database: Path, *, known: bool
) -> None:
    guard = a_guard(database if known else NOWHERE)
    for _ in range(4):
        with pytest.raises(LoginRefused if refusal is Denied else refusal):
            async with guard.attempt():
                raise refusal
    assert counted_logins(database) == (4 if known else 0)
    with pytest.raises(Suspended):
        async with guard.attempt():
            raise AssertionError


@pytest.mark.asyncio
async def test_what_is_no_refusal_is_taken_back(database: Path) -> None:
    guard = a_guard(database)
    for error in (Unreachable, NotOffered, OSError):
        with pytest.raises(error):
            async with guard.attempt():
                raise error
        assert counted_logins(database) == 0
    for _ in range(5):
        async with guard.attempt():
            assert counted_logins(database) == 1
    assert counted_logins(database) == 0


@pytest.mark.asyncio
async def test_a_login_that_nobody_has_answered_counts_until_it_is_taken_back(
    database: Path,
) -> None:
    guard = a_guard(database)
    async with guard.attempt() as login:
        login.unsure = True
    assert counted_logins(database) == 1
    await guard.take_back(login)
    assert counted_logins(database) == 0


@pytest.mark.asyncio
async def test_a_login_that_is_cancelled_counts(database: Path) -> None:
    guard, begun = a_guard(database), asyncio.Event()

    async def log_in() -> None:
        async with guard.attempt():
            begun.set()
            await asyncio.Event().wait()

    login = asyncio.create_task(log_in())
    await begun.wait()
    login.cancel()
    with pytest.raises(asyncio.CancelledError):
        await login
    assert counted_logins(database) == 1


@pytest.mark.asyncio
async def test_who_waits_is_told_once_and_goes_on_when_another_takes_its_login_back(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdrd.login_guard.LOOK_SECONDS", 0.01)
    told: list[float] = []
    tries = [time.monotonic() - seconds for seconds in (3, 2, 1, 0)]
    for at in tries:
        LoginFile(database).count(HQ, at)

    def suspended(seconds: float) -> None:
        told.append(seconds)
        asyncio.get_running_loop().call_later(0.1, LoginFile(database).take_back, HQ, tries[0])

    def uncounted(error: OSError) -> None:
        raise error

    guard = LoginGuard(LoginFile(database), HQ, suspended=suspended, uncounted=uncounted)
    async with asyncio.timeout(10), guard.attempt():
        assert len(told) == 1


# All programs


def tables(directory: Path, pbx: SimulatedPbx, password: str) -> str:
    (directory / "password").write_text(password)
    account = 'username = "api"\npassword_file = "password"\n'
    return (
        f'[[pbx]]\nname = "hq"\n[pbx.events]\nkind = "tcp"\naddress = "{pbx.address}"\n{account}'
        f'[pbx.history]\nurl = "{pbx.url}"\n{account}'
    )


DAY = ("--from", "2024-03-01", "--to", "2024-03-02")


def test_a_wrong_password_reaches_the_pbx_four_times_whoever_tries_at_once(tmp_path: Path) -> None:
    """The daemon, by both interfaces, and four commands; the PBX locks at the fifth."""
    with SimulatedPbx() as pbx:
        with RunningDaemon(tmp_path, tables(tmp_path, pbx, "wrong"), listen=()) as daemon:
            commands = [("check", "--connect"), ("fetch", *DAY)] * 2
            with ThreadPoolExecutor(len(commands)) as pool:
                list(pool.map(lambda one: cdrd(one[0], "-c", daemon.config, *one[1:]), commands))
            daemon.wait_for("login_suspended")
            daemon.stop()
        assert pbx.stop()["refusals"] == 4


def test_a_clock_that_is_set_forward_lets_no_fifth_be_tried(tmp_path: Path) -> None:
    clock = SetClock(tmp_path)
    with SimulatedPbx() as pbx:
        settings = tables(tmp_path, pbx, "wrong")
        for ahead in (0, 3600):
            clock.set_ahead(ahead)
            with RunningDaemon(
                tmp_path, settings, listen=(), environment=clock.environment
            ) as daemon:
                daemon.wait_for("login_suspended")
                daemon.stop()
        assert pbx.stop()["refusals"] == 4


def test_a_right_password_is_counted_by_nobody_however_many_try(tmp_path: Path) -> None:
    with SimulatedPbx() as pbx:
        settings = tables(tmp_path, pbx, "api")
        serve = [sys.executable, quick_serve.__file__]
        with RunningDaemon(tmp_path, settings, listen=(), inside=serve) as daemon:
            daemon.wait_for("pbx_connected")
            daemon.wait_for("gap_filled")
            assert cdrd("check", "-c", daemon.config, "--connect").returncode == 0
            assert cdrd("fetch", "-c", daemon.config, *DAY).returncode == 0
            daemon.stop()
        assert pbx.stop()["refusals"] == 0
    assert counted_logins(daemon.database) == 0


def test_a_command_that_is_ended_before_the_answer_has_counted_its_login(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("wrong")
    with socket.create_server(("127.0.0.1", 0)) as pbx:
        pbx.settimeout(DEADLINE_SECONDS)
        config = write_config(
            tmp_path,
            '[[pbx]]\nname = "hq"\n[pbx.events]\nkind = "tcp"\nusername = "api"\n'
            f'password_file = "password"\naddress = "127.0.0.1:{pbx.getsockname()[1]}"\n',
        )
        for end in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            asking = [sys.executable, "-m", "cdrd", "check", "-c", str(config), "--connect"]
            command = subprocess.Popen(
                asking, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
            )
            with contextlib.closing(pbx.accept()[0]) as connection:
                assert connection.recv(16).startswith(b"Action: login")
                command.send_signal(end)
                _, said = command.communicate(timeout=LOGIN_SECONDS - 2)  # it waits no longer
                assert b"Traceback" not in said
        refused = cdrd("check", "-c", config, "--connect")
    assert "not tried, since 4 logins" in refused.stdout
    assert counted_logins(tmp_path / "cdr.sqlite3") == 4


def test_a_daemon_that_is_stopped_before_the_answer_has_counted_its_login(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("wrong")
    with socket.create_server(("127.0.0.1", 0)) as pbx:
        pbx.settimeout(DEADLINE_SECONDS)
        table = (
            '[[pbx]]\nname = "hq"\npeers = ["127.0.0.1"]\n'
            '[pbx.events]\nkind = "http"\nusername = "api"\ntls = false\n'
            f'password_file = "password"\naddress = "127.0.0.1:{pbx.getsockname()[1]}"\n'
        )
        listening = 'http.listen = ["127.0.0.1:0"]\n'
        with (
            RunningDaemon(tmp_path, listening + table, listen=()) as daemon,
            contextlib.closing(pbx.accept()[0]) as connection,
        ):
            assert connection.recv(4) == b"POST"
            daemon.stop()
    assert counted_logins(daemon.database) == 1
