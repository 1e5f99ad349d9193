"""``cdrd fetch``: what a PBX has of a time becomes rows, here or by the daemon that runs."""

import fcntl
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.running import RunningDaemon, assert_accounted, cdrd, count, rows, write_config
from tests.simulated import SimulatedPbx

CALLS = 60
NOBODY = "http://127.0.0.1:9"
PLAYED = (
    *("--count", f"{CALLS}", "--rate", "0", "--unpushed-every", "1"),
    *("--post-to", NOBODY, "--utc-offset", "120"),
)
"""Calls that are in the history at once, and that nobody was told of."""

NOW = datetime.now(UTC)
AROUND_NOW = (
    *("--from", f"{NOW - timedelta(hours=2):%Y-%m-%dT%H:%MZ}"),
    *("--to", f"{NOW + timedelta(hours=2):%Y-%m-%dT%H:%MZ}"),
)
ALL_STORED = f"hq: {CALLS} found, {CALLS} stored, 0 already there, 0 quarantined\n"
ALL_THERE = f"hq: {CALLS} found, 0 stored, {CALLS} already there, 0 quarantined\n"


@pytest.fixture
def pbx() -> Iterator[SimulatedPbx]:
    with SimulatedPbx(*PLAYED, kind="http") as pbx:
        yield pbx


def table(directory: Path, url: str, name: str = "hq", password: str = "api") -> str:
    (directory / f"{name}.password").write_text(f"{password}\n")
    return f"""
[[pbx]]
name = "{name}"
timezone = "Etc/GMT-2"
peers = ["127.0.0.1"]
[pbx.history]
url = "{url}"
username = "api"
password_file = "{name}.password"
"""


def test_without_a_daemon_it_stores_what_is_missing_and_nothing_twice(
    tmp_path: Path, pbx: SimulatedPbx
) -> None:
    config = write_config(tmp_path, table(tmp_path, pbx.url))
    first = cdrd("fetch", "-c", config, *AROUND_NOW)
    assert (first.returncode, first.stderr, first.stdout) == (0, ALL_STORED, "")
    again = cdrd("fetch", "-c", config, "--pbx", "hq", *AROUND_NOW)
    assert (again.returncode, again.stderr) == (0, ALL_THERE)
    stored = rows(tmp_path / "cdr.sqlite3")
    assert len(stored) == CALLS
    assert {row["source"] for row in stored} == {"history"}


def test_a_p_series_is_asked_likewise(tmp_path: Path) -> None:
    with SimulatedPbx(*PLAYED, kind="webhook") as pbx:
        config = write_config(tmp_path, table(tmp_path, pbx.url))
        first = cdrd("fetch", "-c", config, *AROUND_NOW)
        again = cdrd("fetch", "-c", config, *AROUND_NOW)
    assert (first.stderr, again.stderr) == (ALL_STORED, ALL_THERE)
    assert count(tmp_path / "cdr.sqlite3") == CALLS


def test_beside_a_daemon_the_daemon_stores_and_tells_the_calls(
    tmp_path: Path, pbx: SimulatedPbx
) -> None:
    asking = tmp_path / "asking"
    asking.mkdir()
    with RunningDaemon(tmp_path) as daemon:
        daemon.wait_for("ready")
        config = write_config(asking, table(asking, pbx.url))
        config.write_text(config.read_text().replace(f"{asking}/cdr", f"{tmp_path}/cdr"))
        first = cdrd("fetch", "-c", config, *AROUND_NOW)
        assert (first.returncode, first.stderr) == (0, ALL_STORED)
        again = cdrd("fetch", "-c", config, *AROUND_NOW)
        assert again.stderr == ALL_THERE
        told = daemon.wait_for_calls(CALLS)
        assert {line["source"] for line in told} == {"history"}
        _, stopped = daemon.stop()
    assert_accounted(stopped)
    assert stopped["received"] == 0


def test_a_range_without_an_offset_is_in_the_pbxs_own_time(
    tmp_path: Path, pbx: SimulatedPbx
) -> None:
    config = write_config(tmp_path, table(tmp_path, pbx.url))
    there = NOW + timedelta(hours=2)
    start, end = (f"{there + timedelta(hours=hours):%Y-%m-%d %H:%M}" for hours in (-1, 1))
    before = f"{there - timedelta(days=2):%Y-%m-%d}"
    none = cdrd("fetch", "-c", config, "--from", before, "--to", start)
    assert none.stderr == "hq: 0 found, 0 stored, 0 already there, 0 quarantined\n"
    assert cdrd("fetch", "-c", config, "--from", start, "--to", end).stderr == ALL_STORED


def test_nothing_is_asked_for_that_is_to_come(tmp_path: Path, pbx: SimulatedPbx) -> None:
    config = write_config(tmp_path, table(tmp_path, pbx.url))
    for_ever = (*AROUND_NOW[:2], "--to", "9999-12-31T23:59:59")
    assert cdrd("fetch", "-c", config, *for_ever).stderr == ALL_STORED


def test_a_pbx_that_cannot_be_asked_is_told_and_the_others_are_asked(
    tmp_path: Path, pbx: SimulatedPbx
) -> None:
    tables = table(tmp_path, NOBODY, "gone") + table(tmp_path, pbx.url)
    asked = cdrd("fetch", "-c", write_config(tmp_path, tables), *AROUND_NOW)
    gone, *others = asked.stderr.splitlines(keepends=True)
    assert asked.returncode == 1
    assert gone.startswith("cdrd fetch: gone: ")
    assert NOBODY in gone
    assert others == [ALL_STORED]


def test_a_password_that_is_refused_is_never_tried_a_fifth_time(
    tmp_path: Path, pbx: SimulatedPbx
) -> None:
    config = write_config(tmp_path, table(tmp_path, f"{pbx.url}/api/v1.1.0", password="wrong"))
    refused = cdrd("fetch", "-c", config, *AROUND_NOW)
    assert refused.returncode == 1
    assert "refused the login" in refused.stderr
    for _ in range(3):
        cdrd("check", "-c", config, "--connect")
    kept_back = cdrd("fetch", "-c", config, *AROUND_NOW)
    assert kept_back.returncode == 1
    assert kept_back.stderr.startswith("cdrd fetch: hq: not tried, since 4 logins in the last 10")
    assert pbx.stop()["refusals"] == 4


def test_a_password_that_cannot_be_read_is_told(tmp_path: Path, pbx: SimulatedPbx) -> None:
    config = write_config(tmp_path, table(tmp_path, pbx.url))
    (tmp_path / "hq.password").unlink()
    asked = cdrd("fetch", "-c", config, *AROUND_NOW)
    assert asked.returncode == 1
    assert "hq.password" in asked.stderr
    assert "Traceback" not in asked.stderr


def test_a_database_that_another_program_writes_is_told(tmp_path: Path) -> None:
    config = write_config(tmp_path, table(tmp_path, NOBODY))
    with (tmp_path / "cdr.sqlite3.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        asked = cdrd("fetch", "-c", config, *AROUND_NOW)
    assert (asked.returncode, asked.stderr.count("\n")) == (1, 1)
    assert "another cdrd is writing it" in asked.stderr


def test_what_is_no_database_of_ours_is_told(tmp_path: Path) -> None:
    config = write_config(tmp_path, table(tmp_path, NOBODY))
    other = sqlite3.connect(tmp_path / "cdr.sqlite3")
    other.execute("CREATE TABLE another (program)")
    other.close()
    asked = cdrd("fetch", "-c", config, *AROUND_NOW)
    assert (asked.returncode, asked.stderr.count("\n")) == (1, 1)
    assert "another program's database" in asked.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--pbx", "hx", *AROUND_NOW), "no PBX 'hx' is configured"),
        (("--from", "2024-03-02", "--to", "2024-03-01"), "is no range"),
        (("--from", "2024-03-02", "--to", "2024-03-02"), "is no range"),
        (("--from", "soon", "--to", "2024-03-02"), "is no date or time"),
        (("--from", "9999-12-30", "--to", "9999-12-31T23:59:59"), "is to come"),
        (("--from", "2024-03-02"), "--to"),
    ],
)
def test_what_cannot_be_asked_for_is_a_usage_error(
    tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    config = write_config(tmp_path, table(tmp_path, NOBODY))
    asked = cdrd("fetch", "-c", config, *arguments)
    assert asked.returncode == 2
    assert sentence in asked.stderr
    assert not (tmp_path / "cdr.sqlite3").exists()


@pytest.mark.parametrize("which", [(), ("--pbx", "hq")])
def test_without_a_history_to_ask_for_the_configuration_is_at_fault(
    tmp_path: Path, which: tuple[str, ...]
) -> None:
    config = write_config(tmp_path)
    asked = cdrd("fetch", "-c", config, *which, *AROUND_NOW)
    assert asked.returncode == 78
    assert "[pbx.history]" in asked.stderr
