"""What is old goes, and nothing else; each step is small, and calls come in between."""

import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdrd import database
from cdrd.batch import Batch, QuarantinedReport
from cdrd.control import RequestRefused, ask_daemon
from cdrd.leg_store import Arrival, store_legs
from cdrd.purge import (
    HELD_SECONDS,
    LEAP_SECONDS,
    STEP_ROWS,
    STOPPED_SECONDS,
    NotAPurge,
    Place,
    Purge,
    count,
    look_at_clock,
    make_request,
    read_request,
    take_step,
)
from cdrd.row import commit
from cdrd.schema import PAGE_BYTES, migrate
from cdrd.simulate.reports import new_cdr
from cdrd.store import CHECKPOINT_PAGES
from tests import quick_serve
from tests.example import varied
from tests.portal_rows import NEW_YORK, leg
from tests.running import (
    HQ,
    RunningDaemon,
    assert_accounted,
    cdrd,
    connect,
    rows,
    send,
    write_config,
)
from tests.running import count as rows_in
from tests.set_clock import SetClock

DAY_SECONDS = 24 * 60 * 60
BRANCH = HQ.replace('"hq"', '"branch"')


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(tmp_path / "cdr.sqlite3", isolation_level=None)
    opened.execute("PRAGMA auto_vacuum = INCREMENTAL")  # as the store makes it
    migrate(opened)
    yield opened
    opened.close()


def began(second: int) -> str:
    return (datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=second)).strftime(
        "%Y-%m-%dT%H:%M:%SZ"
    )


def store(connection: sqlite3.Connection, seconds: list[int], pbx: str = "hq") -> None:
    """Store a call that began at each of the seconds."""
    batch = Batch()
    for number, second in enumerate(seconds):
        batch.add(varied(call_id=f"{second}.{number}", started_at=began(second), pbx=pbx))
    commit(connection, batch, 0)


def purge_all(connection: sqlite3.Connection, purge: Purge, table: str = "call") -> list[int]:
    """Take all steps; return how many rows each has deleted."""
    deleted, place = [], Place()
    while True:
        step = take_step(connection, purge, table, place)
        deleted.append(step.deleted)
        if step.place is None:
            return deleted
        place = step.place


def starts(connection: sqlite3.Connection) -> list[str]:
    return [start for (start,) in connection.execute("SELECT started_at FROM calls ORDER BY 1")]


# Steps


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 40), max_size=2 * STEP_ROWS // 10).map(lambda some: some * 10),
    st.integers(0, 41),
)
def test_what_began_before_goes_and_nothing_else(seconds: list[int], before: int) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection)
    store(connection, seconds)
    purge = Purge(began(before))
    expected = sorted(began(second) for second in seconds if second >= before)
    there = count(connection, purge, "call")
    deleted = purge_all(connection, purge)
    assert (sum(deleted), starts(connection)) == (there, expected)
    assert max(deleted) <= STEP_ROWS
    connection.close()


def test_a_step_looks_at_few_rows_also_where_most_are_anothers(
    connection: sqlite3.Connection,
) -> None:
    store(connection, list(range(2 * STEP_ROWS)), pbx="branch")
    store(connection, [STEP_ROWS + 1])
    deleted = purge_all(connection, Purge(began(10**6), pbx="hq"))
    assert deleted == [0, 1, 0]
    assert len(starts(connection)) == 2 * STEP_ROWS


def test_a_call_that_comes_meanwhile_is_no_hindrance(connection: sqlite3.Connection) -> None:
    store(connection, list(range(STEP_ROWS + 1)))
    purge = Purge(began(5 * STEP_ROWS))
    first = take_step(connection, purge, "call", Place())
    assert first.place is not None
    store(connection, [0, 6 * STEP_ROWS])  # one is behind the purge already, one stays
    take_step(connection, purge, "call", first.place)
    assert starts(connection) == [began(0), began(6 * STEP_ROWS)]


def test_a_seq_is_never_given_twice_also_when_the_newest_rows_are_purged(
    connection: sqlite3.Connection,
) -> None:
    store(connection, [1, 2, 3])
    purge_all(connection, Purge(began(9)))
    store(connection, [20])
    assert connection.execute("SELECT seq FROM calls").fetchall() == [(4,)]


def test_the_file_gives_back_what_is_freed(connection: sqlite3.Connection) -> None:
    batch = Batch()
    for number in range(4000):
        batch.add(varied(call_id=f"{number}.1", started_at=began(number), raw="x" * 2000))
    commit(connection, batch, 0)
    (full,) = connection.execute("PRAGMA page_count").fetchone()
    purge_all(connection, Purge(began(10**6)))
    (left,) = connection.execute("PRAGMA page_count").fetchone()
    assert left < full / 2


def test_the_wal_stays_bounded_wherever_the_rows_lie(tmp_path: Path) -> None:
    path, count = tmp_path / "wal.sqlite3", 6000
    connection = database.connect(path, "normal")
    # A hundred in their order of time are on nearly as many pages.
    store(connection, [number * 61 % count for number in range(count)])
    database.checkpoint(connection)
    full = (CHECKPOINT_PAGES + 4 * STEP_ROWS) * PAGE_BYTES
    assert Path(f"{path}-wal").stat().st_size < full
    assert sum(purge_all(connection, Purge(began(count)))) == count
    assert Path(f"{path}-wal").stat().st_size < full
    (left_on,) = connection.execute("PRAGMA wal_autocheckpoint").fetchone()
    connection.close()
    assert left_on == 0  # a commit copies nothing: its row is told all the sooner


def test_legs_and_quarantine_have_their_own_time_and_origin(
    connection: sqlite3.Connection,
) -> None:
    old, new = leg(1), leg(2, JoinTime="2030-01-01 00:00:00", LeaveTime="2030-01-01 00:01:00")
    store_legs(connection, Arrival("video", NEW_YORK, 2e9, legs=[old, new]))
    tenant = old.tenant_name
    assert tenant is not None
    for purge, expected in (
        (Purge("2029-01-01T00:00:00Z", tenant="nobody"), 2),
        (Purge("2029-01-01T00:00:00Z", tenant=tenant), 1),
    ):
        assert purge.tables == ("conference_leg",)
        purge_all(connection, purge, "conference_leg")
        (left,) = connection.execute("SELECT count(*) FROM conference_calls").fetchone()
        assert left == expected
    batch = Batch()
    for pbx in ("hq", "branch"):
        batch.add_quarantined(QuarantinedReport(began(1), pbx, "", "tcp", "why", b"{", 1))
    commit(connection, batch, 0)
    purge = Purge(began(2), pbx="hq")
    assert purge.tables == ("call", "quarantined_report")
    assert purge_all(connection, purge, "quarantined_report") == [1]
    assert connection.execute("SELECT pbx FROM quarantine").fetchall() == [("branch",)]


def test_what_came_in_the_second_of_the_end_or_later_stays(connection: sqlite3.Connection) -> None:
    came = [f"2024-03-01T08:15:{second}Z" for second in ("13.999", "14.000", "14.339", "15.000")]
    batch = Batch()
    for received_at in came:
        batch.add_quarantined(QuarantinedReport(received_at, "hq", "", "tcp", "why", b"{", 1))
    commit(connection, batch, 0)
    purge = Purge("2024-03-01T08:15:14Z")
    assert count(connection, purge, "quarantined_report") == 1
    assert purge_all(connection, purge, "quarantined_report") == [1]
    left = connection.execute("SELECT received_at FROM quarantine ORDER BY id").fetchall()
    assert left == [(received_at,) for received_at in came[1:]]


def test_a_request_is_read_as_it_was_made() -> None:
    asked = (Purge("2024-01-01T00:00:00Z", pbx="hq"), "call", Place("2023", 7))
    assert read_request(make_request(*asked)) == asked


@pytest.mark.parametrize(
    "changes",
    [
        {"purge": ["2024", "", ""], "table": "sqlite_schema"},
        {"purge": ["", "", ""]},
        {"purge": ["2024", "hq", ""], "table": "conference_leg"},
        {"purge": ["2024", "", "", ""]},
        {"purge": [2024, "", ""]},
        {"purge": None},
        {"place": ["2024", "7"]},
        {"place": None},
        {"table": ["call"]},
    ],
)
def test_a_request_that_is_none_deletes_nothing(changes: dict[str, object]) -> None:
    request = make_request(Purge("2024-01-01T00:00:00Z"), "call", Place()) | changes
    with pytest.raises(NotAPurge, match="older version"):
        read_request(request)


# The command


def filled(directory: Path, daemon: RunningDaemon) -> None:
    """Send 600 calls of 2017 and 600 of 2019, and half a report of no use."""
    for start in (1505352615, 1571897930):
        batch = [new_cdr(number, started=start + number) for number in range(600)]
        send(daemon.port, *batch)
    send(daemon.port, b'{"action":"NewCdr"}')
    daemon.wait_for("report_quarantined")
    daemon.wait_for_calls(1200)
    assert directory == daemon.directory


def test_beside_a_running_daemon_that_goes_on_storing(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        filled(tmp_path, daemon)
        config = ("-c", tmp_path / "config.toml")
        told = cdrd("purge", *config, "--before", "2018-01-01", "--dry-run")
        assert told.returncode == 0
        assert told.stderr == (
            "before 2018-01-01T00:00:00Z: 600 calls, 0 conference legs, 0 quarantined reports"
            " would be deleted\n"
        )
        assert rows_in(daemon.database) == 1200
        with connect(daemon.port) as sock:
            done = cdrd("purge", *config, "--before", "2018-01-01")
            sock.sendall(new_cdr(9999, started=1571897930))
            daemon.wait_for_calls(1201)
        assert done.returncode == 0
        assert "600 calls, 0 conference legs, 0 quarantined reports deleted" in done.stderr
        assert rows_in(daemon.database) == 601
        assert {row["started_at"][:4] for row in rows(daemon.database)} == {"2019"}
        again = cdrd("purge", *config, "--before", "2018-01-01", "--pbx", "hq")
        assert "0 calls, 0 quarantined reports deleted" in again.stderr
        _, stopped = daemon.stop()
    assert_accounted(stopped)


def test_a_number_that_the_database_cannot_hold_is_refused_with_the_reason(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        daemon.wait_for("ready")
        request = make_request(Purge("2018-01-01T00:00:00Z"), "call", Place("", 2**63))
        with pytest.raises(RequestRefused, match=r"^the database: .* too large"):
            ask_daemon(daemon.database, request)
        daemon.stop()
        assert not daemon.found("fault_caught")


def test_without_a_daemon_and_by_pbx(tmp_path: Path) -> None:
    tables = HQ.replace("127.0.0.1", "127.0.0.2") + BRANCH
    with RunningDaemon(tmp_path, tables) as daemon:
        for source in ("127.0.0.1", "127.0.0.2"):
            send(daemon.port, new_cdr(1, started=1505352615), source=source)
        daemon.wait_for_calls(2)
        daemon.stop()
    config = ("-c", tmp_path / "config.toml")
    done = cdrd("purge", *config, "--before", "2018-01-01", "--pbx", "branch")
    assert (done.returncode, "1 calls" in done.stderr) == (0, True), done.stderr
    assert [row["pbx"] for row in rows(tmp_path / "cdr.sqlite3")] == ["hq"]


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("--before", "yesterday"), 2, "is no date or time"),
        (("--before", "9000-01-01"), 2, "is in the future: it would delete everything"),
        (("--before", "2018-01-01", "--timezone", "Mars"), 2, "no time zone"),
        (("--before", "2018-01-01", "--pbx", "hq", "--tenant", "Sales"), 2, "not allowed with"),
        ((), 2, "--before"),
        (("--before", "2018-01-01"), 78, "there is no such database"),
    ],
)
def test_each_bad_input_has_its_sentence(
    tmp_path: Path, arguments: tuple[str, ...], status: int, sentence: str
) -> None:
    config = write_config(tmp_path)
    if status == 2:
        (tmp_path / "cdr.sqlite3").touch()
    ended = cdrd("purge", "-c", config, *arguments)
    assert (ended.returncode, sentence in ended.stderr) == (status, True), ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_date_is_no_one_instant_where_zones_differ(tmp_path: Path) -> None:
    tables = HQ + BRANCH + 'timezone = "Europe/Berlin"\n'
    config = write_config(tmp_path, tables)
    (tmp_path / "cdr.sqlite3").touch()
    ended = cdrd("purge", "-c", config, "--before", "2018-01-01")
    assert (ended.returncode, "name one with --timezone" in ended.stderr) == (2, True)


def test_a_zone_that_is_not_configured_is_not_guessed(tmp_path: Path) -> None:
    """Else hours would be gone that were not asked for."""
    tables = HQ + 'timezone = "Asia/Shanghai"\n'
    with RunningDaemon(tmp_path, tables) as daemon:
        send(daemon.port, new_cdr(1, started=1505352615))
        daemon.wait_for_calls(1)
        daemon.stop()
    for pbx in ("old", "Hq"):
        purge = ("purge", "-c", tmp_path / "config.toml", "--pbx", pbx, "--before")
        ended = cdrd(*purge, "2018-01-01")
        sentence = f"no time zone of '{pbx}' is configured: name one with --timezone"
        assert (ended.returncode, sentence in ended.stderr) == (2, True), ended.stderr
        for told in (("2018-01-01", "--timezone", "Asia/Shanghai"), ("2018-01-01T00:00+08:00",)):
            ended = cdrd(*purge, *told)
            assert (ended.returncode, "before 2017-12-31T16:00:00Z: " in ended.stderr) == (0, True)
    nobody = cdrd("purge", "-c", write_config(tmp_path, ""), "--before", "2018-01-01")
    assert (nobody.returncode, "name one with --timezone" in nobody.stderr) == (2, True)


# By itself


def test_the_daemon_deletes_what_is_too_old_and_says_so(tmp_path: Path) -> None:
    with RunningDaemon(tmp_path) as daemon:
        filled(tmp_path, daemon)
        now = int(datetime.now(UTC).timestamp())
        send(daemon.port, new_cdr(5000, started=now))
        daemon.wait_for_calls(1201)
        daemon.stop()
    with RunningDaemon(tmp_path, "database.max_age_days = 30\n" + HQ) as daemon:
        purged = daemon.wait_for("records_purged")
        assert (purged["calls"], purged["conference_legs"], purged["quarantined"]) == (1200, 0, 0)
        assert [row["seq"] for row in rows(daemon.database)] == [1201]
        daemon.process.send_signal(signal.SIGTERM)
        status, stopped = daemon.wait_for_end()
    assert status == 0
    assert_accounted(stopped)


def test_a_clock_that_is_set_forward_makes_nothing_old_at_once(tmp_path: Path) -> None:
    clock, serve = SetClock(tmp_path), [sys.executable, quick_serve.__file__]
    with RunningDaemon(
        tmp_path,
        "database.max_age_days = 30\n" + HQ,
        environment=clock.environment,
        inside=serve,
    ) as daemon:
        send(daemon.port, new_cdr(1, started=int(time.time())))
        daemon.wait_for_calls(1)
        clock.set_ahead(365 * DAY_SECONDS)
        held, purged = daemon.wait_for("purge_held"), daemon.wait_for("records_purged")
        daemon.stop()
    assert held["forward"] == 365 * DAY_SECONDS
    instants = [datetime.fromisoformat(line["timestamp"]) for line in (held, purged)]
    assert instants[1] - instants[0] >= timedelta(seconds=held["seconds"] - 0.01)
    assert purged["calls"] == 1


def test_a_restart_of_the_daemon_ends_no_hold(tmp_path: Path) -> None:
    clock, tables = SetClock(tmp_path), "database.max_age_days = 30\n" + HQ
    with RunningDaemon(tmp_path, tables, environment=clock.environment) as daemon:
        send(daemon.port, new_cdr(1, started=int(time.time())))
        daemon.wait_for_calls(1)
        daemon.stop()
    clock.set_ahead(365 * DAY_SECONDS)
    with RunningDaemon(tmp_path, tables, environment=clock.environment) as daemon:
        held = daemon.wait_for("purge_held")
        send(daemon.port, new_cdr(2, started=int(time.time()) + 365 * DAY_SECONDS))
        daemon.wait_for("call_released", seq=2)
        daemon.stop()
    assert held["forward"] == pytest.approx(365 * DAY_SECONDS, abs=60)
    serve = [sys.executable, quick_serve.__file__]
    with RunningDaemon(tmp_path, tables, environment=clock.environment, inside=serve) as daemon:
        started, purged = daemon.wait_for("started"), daemon.wait_for("records_purged")
        assert not daemon.found("purge_held")
        daemon.stop()
    instants = [datetime.fromisoformat(line["timestamp"]) for line in (started, purged)]
    assert instants[1] - instants[0] >= timedelta(seconds=1)  # what quick_serve leaves of a hold
    assert purged["calls"] == 1


def test_a_stop_of_a_day_is_no_leap_of_the_clock_and_a_longer_one_may_be() -> None:
    stopped = 1000 + STOPPED_SECONDS
    assert look_at_clock(stopped, 1000, STOPPED_SECONDS, 1000) == (stopped, 0)
    held_until = stopped + 1 + HELD_SECONDS
    held = look_at_clock(stopped + 1, 1000, STOPPED_SECONDS, 1000)
    assert held == (held_until, STOPPED_SECONDS + 1)
    during = look_at_clock(held_until - 1, held_until, STOPPED_SECONDS, held_until)
    behind = look_at_clock(held_until + 1, held_until, STOPPED_SECONDS, held_until)
    assert (during, behind) == ((held_until, 0), (held_until + 1, 0))


def test_a_clock_that_is_set_back_ends_a_hold_a_day_later() -> None:
    right, wrong = 1e9, 2e9
    held = look_at_clock(wrong, right, LEAP_SECONDS, right)
    back = look_at_clock(right, wrong, LEAP_SECONDS, held.purge_from)
    assert back == (right + HELD_SECONDS, 0)
    later = back.purge_from + 1
    assert look_at_clock(later, later, LEAP_SECONDS, back.purge_from) == (later, 0)
