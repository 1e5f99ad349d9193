"""The shipped service under a real systemd: start, reload, crash, watchdog, stop."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cdrd.simulate.reports import new_cdr
from tests.real_systemd import CHECKOUT, DATABASE, DROP_IN, Entry, Journal, Machine, booted
from tests.running import HQ, assert_accounted

STARTED = 1571897930
BRANCH = '[[pbx]]\nname = "branch"\npeers = ["127.0.0.2"]\n'
FETCHED = """
[[pbx]]
name = "lab"

[pbx.history]
url = "http://127.0.0.1:1"
username = "api"
password_file = "lab.password"
"""
CLOUD = """
[[pbx]]
name = "cloud"
peers = ["127.0.0.3"]

[pbx.events]
kind = "webhook"
secret_file = "cloud.secret"

[http]
listen = ["127.0.0.1:0"]
"""
SYSTEMD_STOPPED = "9d1aaa27d60140bd96365438aad20286"
"""The MESSAGE_ID of "Stopped ..." (systemd 252, sd-messages.h)."""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with booted() as running:
        yield running


@pytest.fixture
def journal(machine: Machine) -> Iterator[Journal]:
    """The journal of the service, which is started; and forgotten at the end."""
    machine.configure(HQ)
    with machine.journal() as followed:
        machine.systemctl("start", "cdrd")
        followed.wait_for(event="ready")
        yield followed
        machine.forget()
        assert not [entry for entry in followed.entries if entry.get("event") == "fault_caught"]


def call(number: int) -> bytes:
    return new_cdr(number, started=STARTED)


def take_call(machine: Machine, journal: Journal, number: int, source: str = "127.0.0.1") -> Entry:
    """Send a call in, and return its line."""
    logged = [entry for entry in journal.entries if entry.get("event") == "call_released"]
    with machine.connect(source=source) as pbx:
        pbx.sendall(call(number))
        return journal.wait_for(times=len(logged) + 1, event="call_released")


def stored(machine: Machine) -> list[int]:
    return [row["seq"] for row in machine.read("SELECT seq FROM calls ORDER BY seq")]


def test_nothing_is_written_outside_and_nothing_else_is_started(machine: Machine) -> None:
    name = f"written-in-{machine.root.parent.name}"
    for folder in ("etc", "usr/lib", "var/log", "tmp", "run", "dev"):
        machine.run("touch", f"/{folder}/{name}")
        assert (machine.root / folder / name).exists()
        assert not (Path("/") / folder / name).exists()
    for path in ("usr/local/src/cdrd", "opt/cdrd", "proc/sys/fs/nr_open", "sys/kernel"):
        assert machine.run("test", "-e", f"/{path}").returncode == 0
        assert machine.run("test", "-w", f"/{path}", check=False).returncode == 1, path
    commands = {path.read_text().strip() for path in machine.root.glob("proc/[0-9]*/comm")}
    assert commands == {"systemd", "systemd-journal"}


def test_a_start_ends_when_the_daemon_listens_and_its_status_is_shown(
    machine: Machine, journal: Journal
) -> None:
    machine.systemctl("restart", "cdrd")
    machine.connect().close()
    assert machine.shown("Type") == "notify"
    assert machine.shown("SubState") == "running"
    status = machine.shown("StatusText")
    assert status == "ready" or "0 stored, 0 waiting, 0 quarantined" in status
    assert f'Status: "{status}"' in machine.systemctl("status", "cdrd")
    journal.wait_for(event="ready", pid=int(machine.shown("MainPID")))


def test_a_call_is_a_row_for_the_group_and_a_line_in_the_journal(
    machine: Machine, journal: Journal
) -> None:
    with machine.send_and_keep_open(call(1)):
        line = journal.wait_for(event="call_released")
    assert line["PRIORITY"] == "6"
    assert line["MESSAGE"].startswith("{"), "journald takes the priority off"
    assert line["SYSLOG_IDENTIFIER"] == "cdrd"
    (row,) = machine.read("SELECT * FROM calls")
    assert (row["seq"], row["call_id"]) == (line["seq"], line["call_id"])


def test_the_sandbox_of_the_unit_is_in_force(machine: Machine, journal: Journal) -> None:
    """As shipped: no drop-in weakens it here."""
    assert machine.shown("DropInPaths") == ""
    pid = journal.wait_for(event="ready")["pid"]
    status = (machine.root / f"proc/{pid}/status").read_text()
    shown = dict(line.split(":\t", 1) for line in status.splitlines())
    assert shown["NoNewPrivs"] == "1"
    assert shown["Seccomp"] == "2", "a filter of system calls"
    assert int(shown["CapPrm"], 16) == 0
    mounts = (machine.root / f"proc/{pid}/mountinfo").read_text().splitlines()
    (root,) = [mount.split()[5] for mount in mounts if mount.split()[4] == "/"]
    assert root.startswith("ro,")


def test_a_reload_takes_a_good_configuration(machine: Machine, journal: Journal) -> None:
    machine.configure(HQ + BRANCH)
    machine.systemctl("reload", "cdrd")
    assert journal.wait_for(event="reloaded")["added"] == ["branch"]
    assert take_call(machine, journal, 1, source="127.0.0.2")["pbx"] == "branch"
    assert machine.shown("NRestarts") == "0"


def test_a_reload_of_a_bad_configuration_fails_and_the_old_one_stays(
    machine: Machine, journal: Journal
) -> None:
    before = machine.shown("MainPID")
    machine.configure(HQ + BRANCH + "cheese = true\n")
    failed = machine.run("systemctl", "reload", "cdrd", check=False)
    assert failed.returncode == 1
    assert "failed" in failed.stderr
    assert take_call(machine, journal, 1)["pbx"] == "hq"
    assert machine.shown("MainPID") == before
    journal.wait_for("cheese: unknown key")
    assert not [entry for entry in journal.entries if entry.get("event") == "reloaded"]


def test_a_damaged_database_and_a_pbx_without_reports_are_no_reason_to_refuse_a_reload(
    machine: Machine, journal: Journal
) -> None:
    machine.run("shred", "--exact", "--iterations=1", DATABASE, f"{DATABASE}-wal")
    checked = machine.run("cdrd", "check", "-c", "/etc/cdrd/config.toml", check=False)
    assert (checked.returncode, "to mend:\n" in checked.stdout) == (1, True)
    machine.write("/etc/cdrd/lab.password", "api\n", mode="640", group="cdrd")
    machine.configure(HQ + FETCHED)
    machine.systemctl("reload", "cdrd")
    assert journal.wait_for(event="reloaded")["added"] == ["lab"]


def test_a_secret_that_only_root_may_read_is_handed_over_as_a_credential(
    machine: Machine, journal: Journal
) -> None:
    machine.write("/etc/cdrd/cloud.secret", "a secret\n", mode="600")
    machine.configure(HQ + CLOUD)
    assert machine.run("systemctl", "reload", "cdrd", check=False).returncode == 1
    journal.wait_for("secret_file 'cloud.secret' cannot be read")
    machine.change_service("LoadCredential=cloud.secret:/etc/cdrd/cloud.secret")
    machine.systemctl("restart", "cdrd")
    journal.wait_for(event="listener_opened", source="http")
    # The check of a reload may not read it, and leaves it to the daemon.
    machine.configure(HQ + CLOUD + BRANCH)
    machine.systemctl("reload", "cdrd")
    assert journal.wait_for(event="reloaded")["added"] == ["branch"]


@pytest.mark.parametrize("crash", [False, True], ids=["restart", "crash"])
def test_a_connection_outlives_the_process(machine: Machine, journal: Journal, crash: bool) -> None:
    with machine.send_and_keep_open(call(1)) as pbx:
        first = journal.wait_for(event="call_released")
        if crash:
            machine.kill("KILL")
        else:
            machine.systemctl("restart", "cdrd")
        pbx.sendall(call(2))  # whether a process runs or not
        second = journal.wait_for(times=2, event="call_released")
        assert first["_PID"] != second["_PID"]
        pbx.sendall(call(3))
        journal.wait_for(times=3, event="call_released")
        assert len(stored(machine)) == 3
        connected = [e for e in journal.entries if e.get("event") == "peer_connected"]
        assert [entry["kept"] for entry in connected] == [False, True]


def test_systemd_listens_for_pbxs_before_there_is_a_daemon(
    machine: Machine, journal: Journal
) -> None:
    machine.systemctl("stop", "cdrd")
    machine.systemctl("start", "cdrd.socket")
    try:
        with machine.connect() as pbx:
            pbx.sendall(call(1))
            journal.wait_for(event="call_released")
        opened = journal.wait_for(times=2, event="listener_opened")
        assert opened["tls"] is False
    finally:
        machine.systemctl("stop", "cdrd.socket")


def test_a_site_that_only_listens_can_reload(machine: Machine, journal: Journal) -> None:
    machine.systemctl("stop", "cdrd")
    machine.write(DROP_IN, (CHECKOUT / "systemd/listen-only.conf").read_text())
    machine.systemctl("daemon-reload")
    machine.configure(HQ, listen="[]")
    machine.systemctl("start", "cdrd")
    try:
        machine.configure(HQ + BRANCH, listen="[]")
        machine.systemctl("reload", "cdrd")
        journal.wait_for("nothing listens for its peers, unless systemd does")
        assert journal.wait_for(event="reloaded")["added"] == ["branch"]
        assert take_call(machine, journal, 1, source="127.0.0.2")["pbx"] == "branch"
        assert not [e for e in journal.entries if e.get("event") == "no_listener_opened"]
    finally:
        machine.systemctl("stop", "cdrd.socket")


def test_a_killed_daemon_is_started_anew(machine: Machine, journal: Journal) -> None:
    first = take_call(machine, journal, 1)
    machine.kill("KILL")
    journal.wait_for(UNIT_RESULT="signal")
    ready = journal.wait_for(times=2, event="ready")
    assert ready["_PID"] == machine.shown("MainPID") != first["_PID"]
    assert machine.shown("NRestarts") == "1"
    second = take_call(machine, journal, 2)
    assert stored(machine) == [first["seq"], second["seq"]]


def test_a_stuck_daemon_is_killed_by_the_watchdog_and_started_anew(
    machine: Machine, journal: Journal
) -> None:
    machine.change_service("WatchdogSec=2")
    machine.systemctl("restart", "cdrd")
    stuck = journal.wait_for(times=2, event="ready")
    machine.kill("STOP")
    journal.wait_for(UNIT_RESULT="watchdog")
    ready = journal.wait_for(times=3, event="ready")
    assert ready["_PID"] == machine.shown("MainPID") != stuck["_PID"]
    take_call(machine, journal, 1)


def test_a_stop_accounts_for_all_and_leaves_the_database_to_its_readers(
    machine: Machine, journal: Journal
) -> None:
    with machine.send_and_keep_open(call(1) + call(2)):
        journal.wait_for(times=2, event="call_released")
        machine.systemctl("stop", "cdrd")
    journal.wait_for(MESSAGE_ID=SYSTEMD_STOPPED)
    journal.wait_for(event="stopped")
    *_, last = (entry for entry in journal.entries if "event" in entry)
    assert_accounted(last)
    assert (machine.shown("Result"), machine.shown("ExecMainStatus")) == ("success", "0")
    assert len(stored(machine)) == last["stored"] == 2


def test_seq_goes_on_over_a_stop_and_a_start(machine: Machine, journal: Journal) -> None:
    first = take_call(machine, journal, 1)
    machine.systemctl("stop", "cdrd")
    machine.systemctl("start", "cdrd")
    second = take_call(machine, journal, 2)
    assert second["seq"] > first["seq"]
    assert stored(machine) == [first["seq"], second["seq"]]
