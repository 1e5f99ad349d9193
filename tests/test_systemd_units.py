"""The shipped units, by systemd's own tools; none of them needs a running systemd."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from cdrd.source import TCP

UNITS = Path(__file__).parent.parent / "systemd"
SERVICE = UNITS / "cdrd.service"
SOCKET = UNITS / "cdrd.socket"
LISTEN_ONLY = UNITS / "listen-only.conf"
THRESHOLD = 10
"""Tenths: a service of exposure 1.0, where chrony of Debian 12 has 3.7 and redis 1.2."""
LISTEN_ONLY_THRESHOLD = 2


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    program = str(command[0])
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def settings() -> list[tuple[str, str]]:
    lines = SERVICE.read_text().splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return [(name, value) for name, _, value in pairs]


def runnable() -> str:
    """The service's text; the program need not be installed here, so another stands for it."""
    program, _, _ = dict(settings())["ExecStart"].partition(" ")
    assert Path(program).is_absolute()
    return SERVICE.read_text().replace(f"{program} ", "/bin/true ")


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    service, sock = tmp_path / SERVICE.name, tmp_path / SOCKET.name
    service.write_text(runnable())
    sock.write_text(SOCKET.read_text())
    verified = run("systemd-analyze", "verify", service, sock)
    assert (verified.returncode, verified.stderr) == (0, "")


def test_with_the_drop_in_for_sites_that_only_listen_it_is_exposed_to_0_2_at_most(
    tmp_path: Path,
) -> None:
    added = LISTEN_ONLY.read_text().partition("[Service]\n")[2]
    assert "Requires=cdrd.socket" in LISTEN_ONLY.read_text()
    service = tmp_path / SERVICE.name
    service.write_text(runnable().replace("[Install]", f"{added}\n[Install]"))
    assert run("systemd-analyze", "verify", service).returncode == 0
    judged = run(
        *("systemd-analyze", "security", "--offline=yes", "--no-pager"),
        *(f"--threshold={LISTEN_ONLY_THRESHOLD}", service),
    )
    assert judged.returncode == 0, judged.stdout


def test_the_socket_is_the_one_that_the_daemon_knows_and_is_never_shut_for_good() -> None:
    given = dict(line.split("=", 1) for line in SOCKET.read_text().splitlines() if "=" in line)
    assert given["FileDescriptorName"] == TCP
    assert given["Service"] == SERVICE.name
    assert given["TriggerLimitIntervalSec"] == "0"
    assert int(dict(settings())["FileDescriptorStoreMax"]) >= 1000


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
    assert checking == started.replace(" serve ", " check ") + " --no-database"
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
