"""The shipped units, by systemd's own tools; none of them needs a running systemd."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parent.parent / "systemd"
SERVICE = UNITS / "cdrd.service"
THRESHOLD = 10
"""Tenths: a service of exposure 1.0, where chrony of Debian 12 has 3.7 and redis 1.2."""


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    program = str(command[0])
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def settings() -> list[tuple[str, str]]:
    lines = SERVICE.read_text().splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return [(name, value) for name, _, value in pairs]


def test_systemd_finds_nothing_wrong_with_the_service(tmp_path: Path) -> None:
    """The program need not be installed where the test runs, so another stands for it."""
    copy = tmp_path / SERVICE.name
    started = dict(settings())["ExecStart"]
    program, _, _ = started.partition(" ")
    assert Path(program).is_absolute()
    copy.write_text(SERVICE.read_text().replace(f"{program} ", "/bin/true "))
    verified = run("systemd-analyze", "verify", copy)
    assert (verified.returncode, verified.stderr) == (0, "")


def test_the_service_as_shipped_is_exposed_to_1_0_at_most() -> None:
    judged = run(
        *("systemd-analyze", "security", "--offline=yes", "--no-pager"),
        *(f"--threshold={THRESHOLD}", SERVICE),
    )
    assert judged.returncode == 0, judged.stdout


def test_the_service_can_dial_and_listen_and_read_its_own_configuration() -> None:
    given = dict(settings())
    assert set(given["RestrictAddressFamilies"].split()) == {"AF_UNIX", "AF_INET", "AF_INET6"}
    assert "PrivateNetwork" not in given
    assert given["ExecStart"].endswith("cdrd serve -c /etc/cdrd/config.toml")


def test_no_setting_is_given_twice_by_oversight() -> None:
    names = [name for name, _ in settings()]
    doubled = {name for name in names if names.count(name) > 1}
    assert doubled == {"ExecReload", "IPAddressAllow", "SystemCallFilter"}


def test_a_reload_checks_the_configuration_that_is_served_first() -> None:
    checking, telling = (value for name, value in settings() if name == "ExecReload")
    started = dict(settings())["ExecStart"]
    assert checking == started.replace(" serve ", " check ")
    assert telling == "/bin/kill -HUP $MAINPID"


def test_the_service_never_gives_up_and_journald_keeps_each_line() -> None:
    unit = configparser.ConfigParser(strict=False, delimiters=("=",), interpolation=None)
    unit.read(SERVICE)
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    service = unit["Service"]
    assert (service["Restart"], service["RestartSec"]) == ("always", "1")
    # 0 would mean the default limit, at which two lines of three are dropped.
    assert service["LogRateLimitIntervalSec"] == "1s"
    assert int(service["LogRateLimitBurst"]) == 1_000_000


def test_sysusers_makes_the_user_and_the_readers_group(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    made = run("systemd-sysusers", f"--root={tmp_path}", UNITS / "cdrd.sysusers")
    assert made.returncode == 0, made.stderr
    user, _, uid, gid, _, home, shell = (tmp_path / "etc/passwd").read_text().strip().split(":")
    group, _, group_gid, members = (tmp_path / "etc/group").read_text().strip().split(":")
    assert (user, home, shell) == ("cdrd", "/var/lib/cdrd", "/usr/sbin/nologin")
    assert (group, group_gid, members) == ("cdrd", gid, "")
    assert int(uid) > 0
    given = dict(settings())
    assert (given["User"], given["Group"]) == (user, group)
