"""A portal's table is followed: a real MariaDB, the real daemon, and what breaks between them."""

import contextlib
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pymysql
import pytest

from cdrd.followed import WINDOW_IDS
from cdrd.portal import PAGE_ROWS
from tests.bench.server import free_port
from tests.portal_rows import IN_PROGRESS, ROW, row
from tests.running import DEADLINE_SECONDS, HQ, RunningDaemon, cdrd, count, rows, write_config
from tests.test_portal_table import session

PASSWORD = "secret of the portal"
TABLE = """
CREATE TABLE ConferenceCall2 (
    CallID int(11) NOT NULL AUTO_INCREMENT,
    UniqueCallID varchar(20) NOT NULL,
    ConferenceName varchar(200) NOT NULL,
    TenantName varchar(128) NOT NULL,
    ConferenceType varchar(2) NOT NULL,
    EndpointType varchar(1) NOT NULL,
    CallerID varchar(200) NOT NULL,
    CallerName varchar(200) DEFAULT NULL,
    JoinTime datetime NOT NULL,
    LeaveTime datetime DEFAULT NULL,
    CallState varchar(80) NOT NULL,
    Direction varchar(1) NOT NULL,
    RouterID varchar(128) DEFAULT NULL,
    GWID varchar(40) DEFAULT NULL,
    GWPrefix varchar(20) DEFAULT NULL,
    ReferenceNumber varchar(64) DEFAULT NULL,
    ApplicationName varchar(24) DEFAULT NULL,
    ApplicationVersion varchar(32) DEFAULT NULL,
    ApplicationOs varchar(24) DEFAULT NULL,
    DeviceModel varchar(50) DEFAULT NULL,
    EndpointPublicIPAddress varchar(48) NOT NULL,
    CallCompletionCode varchar(1) NOT NULL,
    Extension varchar(64) DEFAULT NULL,
    EndpointGUID varchar(64) NOT NULL,
    AccessType varchar(1) NOT NULL,
    RoomType varchar(1) NOT NULL,
    RoomOwner varchar(40) NOT NULL,
    PRIMARY KEY (CallID)
) ENGINE=InnoDB DEFAULT CHARSET=utf8
"""
ACCOUNTS = f"""
CREATE DATABASE IF NOT EXISTS portal2;
CREATE OR REPLACE USER 'cdraccess'@'%' IDENTIFIED BY '{PASSWORD}';
CREATE OR REPLACE USER 'portal'@'%' IDENTIFIED BY 'portal';
GRANT SELECT ON portal2.* TO 'cdraccess'@'%';
GRANT ALL ON portal2.* TO 'portal'@'%';
"""


class MariaDb:
    """A server in a directory of its own, and the portal that writes into it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[str] | None = None
        self._reader = threading.Thread()
        self.port = free_port()
        (directory / "init.sql").write_text(ACCOUNTS)
        _run(
            "mariadb-install-db",
            "--no-defaults",
            "--user=root",
            f"--datadir={directory / 'data'}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        )

    def start(self) -> None:
        """Start it, and wait until it serves."""
        command = [
            _program("mariadbd"),
            "--no-defaults",
            "--user=root",
            f"--datadir={self._directory / 'data'}",
            f"--socket={self._directory / 'socket'}",
            f"--init-file={self._directory / 'init.sql'}",
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            "--innodb-buffer-pool-size=16M",
            "--innodb-flush-log-at-trx-commit=2",
        ]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        said = ""
        for line in self._process.stderr:
            said += line
            if "ready for connections" in line:
                break
        else:
            pytest.fail(f"mariadbd has not started: {said}")
        self._reader = threading.Thread(target=self._process.stderr.read, daemon=True)
        self._reader.start()

    def stop(self) -> None:
        """Kill it as a power failure would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(DEADLINE_SECONDS)
        self._reader.join(DEADLINE_SECONDS)
        assert self._process.stderr is not None
        self._process.stderr.close()

    def execute(self, statement: str, values: Sequence[Sequence[str | None]] = ()) -> None:
        """Do what the portal does."""
        connection = pymysql.connect(
            host="127.0.0.1", port=self.port, user="portal", password="portal",
            database="portal2", autocommit=True, charset="utf8mb4",
        )  # fmt: skip
        with connection, connection.cursor() as cursor:
            cursor.execute("SET SESSION sql_mode = ''")  # as lenient as the portals' servers
            cursor.executemany(statement, values) if values else cursor.execute(statement)

    def insert(self, *legs: Mapping[str, str]) -> None:
        """Write rows; what is empty is NULL where it may be."""
        names = list(legs[0])
        marks = ", ".join(["%s"] * len(names))
        values = [[leg[name] or (None if name in NULLED else "") for name in names] for leg in legs]
        self.execute(f"INSERT INTO ConferenceCall2 ({', '.join(names)}) VALUES ({marks})", values)

    def end(self, call_id: int) -> None:
        """Let a leg end."""
        ended = ", ".join(f"{name} = '{ROW[name]}'" for name in IN_PROGRESS)
        self.execute(f"UPDATE ConferenceCall2 SET {ended} WHERE CallID = {call_id}")


NULLED = {"LeaveTime", "GWID", "GWPrefix", "ReferenceNumber", "DeviceModel", "Extension"}


def _program(name: str) -> str:
    found = shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if found is None:
        pytest.fail(f"{name} is not installed: apt-get install mariadb-server")
    return found


def _run(name: str, *arguments: str) -> None:
    done = subprocess.run([_program(name), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDb]:
    mariadb = MariaDb(tmp_path_factory.mktemp("mariadb"))
    mariadb.start()
    yield mariadb
    mariadb.stop()


@pytest.fixture
def portal(server: MariaDb) -> MariaDb:
    """The server with an empty table."""
    server.execute("DROP TABLE IF EXISTS ConferenceCall2")
    server.execute(TABLE)
    return server


def following(directory: Path, port: int, password: str = PASSWORD) -> RunningDaemon:
    """The daemon with the portal configured."""
    (directory / "video.password").write_text(f"{password}\n")
    return RunningDaemon(directory, HQ + portal_table(port))


def portal_table(port: int) -> str:
    """The configuration of the portal."""
    return f"""
[[portal]]
name = "video"
timezone = "America/New_York"
address = "127.0.0.1:{port}"
username = "cdraccess"
password_file = "video.password"
"""


def legs(directory: Path) -> list[Any]:
    return rows(directory / "cdr.sqlite3", "SELECT * FROM conference_calls ORDER BY call_id")


def test_rows_are_followed_and_a_leg_is_looked_at_until_it_ends(
    tmp_path: Path, portal: MariaDb
) -> None:
    portal.insert(row(1), row(2, **IN_PROGRESS), row(3, RoomOwner="Zoë"))
    with following(tmp_path, portal.port) as daemon:
        connected = daemon.wait_for("portal_connected", portal="video")
        assert "MariaDB" in connected["server"]
        assert connected["tls"] is False  # this server has no certificate
        told = daemon.wait_for("portal_rows_stored", stored=3)
        assert (told["portal"], told["source"], told["updated"]) == ("video", "portal", 0)
        assert (told["first_call_id"], told["last_call_id"]) == (1, 3)
        portal.insert(*(row(call_id) for call_id in range(4, 200)))
        portal.end(2)
        # More rows than the window of the newest: the ended leg is asked for by its id.
        assert 2 + WINDOW_IDS < 200
        daemon.wait_for("portal_rows_stored", updated=1, first_call_id=2)
        daemon.wait_for("portal_rows_stored", stored=196)
        status, stopped = daemon.stop()
    assert (status, stopped["event"], stopped["received"]) == (0, "stopped", 0)
    found = legs(tmp_path)
    assert [leg["seq"] for leg in found] == list(range(1, 200))
    ended = found[1]
    assert (ended["call_state"], ended["leave_time"]) == ("COMPLETED", "2017-09-14T14:00:00Z")
    assert (ended["join_local"], ended["join_time"]) == (
        "2017-09-14 09:30:15",
        "2017-09-14T13:30:15Z",
    )
    assert (found[2]["room_owner"], found[2]["gw_id"], found[2]["extension"]) == (
        "Zoë",
        None,
        "0042",
    )


def test_a_gap_closes_by_itself(tmp_path: Path, portal: MariaDb) -> None:
    portal.insert(row(1, **IN_PROGRESS))
    with following(tmp_path, portal.port) as daemon:
        daemon.wait_for("portal_rows_stored", stored=1)
        daemon.stop()
    last = 2 * PAGE_ROWS + 7
    portal.insert(*(row(call_id) for call_id in range(2, last + 1)))
    portal.end(1)
    with following(tmp_path, portal.port) as daemon:
        daemon.wait_for("portal_rows_stored", last_call_id=last)
        daemon.stop()
    assert [leg["call_id"] for leg in legs(tmp_path)] == list(range(1, last + 1))
    assert all(leg["leave_time"] for leg in legs(tmp_path))


def test_an_import_of_later_rows_leaves_no_gap(tmp_path: Path, portal: MariaDb) -> None:
    portal.insert(*(row(call_id) for call_id in range(1, 4 * WINDOW_IDS)))
    file = tmp_path / "late.csv"
    late = row(4 * WINDOW_IDS - 1)
    file.write_text(f"{','.join(late)}\n{','.join(late.values())}\n")
    zone = ("--portal", "video", "--timezone", "America/New_York")
    cdrd("import", "conferences", "--db", tmp_path / "cdr.sqlite3", *zone, file)
    with following(tmp_path, portal.port) as daemon:
        told = daemon.wait_for("portal_rows_stored")
        assert (told["stored"], told["first_call_id"]) == (4 * WINDOW_IDS - 2, 1)


def test_rows_that_are_committed_out_of_order_are_found(tmp_path: Path, portal: MariaDb) -> None:
    portal.insert(row(1), row(3))
    with following(tmp_path, portal.port) as daemon:
        daemon.wait_for("portal_rows_stored", stored=2)
        portal.insert(row(2))
        daemon.wait_for("portal_rows_stored", stored=1, first_call_id=2)


def test_a_bad_row_goes_to_quarantine_once(tmp_path: Path, portal: MariaDb) -> None:
    portal.insert(row(1), row(2, JoinTime="0000-00-00 00:00:00"), row(3))
    for newest in (4, 5):
        portal.insert(row(newest))
        with following(tmp_path, portal.port) as daemon:
            daemon.wait_for("portal_rows_stored", last_call_id=newest)
            daemon.stop()
        told = daemon.found("portal_row_quarantined", portal="video", source="portal")
        assert len(told) == (newest == 4)
    (kept,) = rows(tmp_path / "cdr.sqlite3", "SELECT * FROM quarantine")
    assert (kept["pbx"], kept["source"]) == ("video", "portal")
    assert kept["reason"].startswith("JoinTime '0000-00-00 00:00:00' is no time")
    assert kept["payload"].startswith(b"2,1505372123456789,green,")
    assert count(tmp_path / "cdr.sqlite3", "conference_calls") == 4


def test_what_was_deleted_does_not_come_back(tmp_path: Path, portal: MariaDb) -> None:
    portal.insert(row(1), row(2, JoinTime="0000-00-00 00:00:00"), row(4, **IN_PROGRESS))
    with following(tmp_path, portal.port) as daemon:
        daemon.wait_for("portal_rows_stored", stored=2)
        daemon.wait_for("portal_row_quarantined", id=1)
        purged = cdrd("purge", "-c", daemon.config, "--before", "2020-01-01", "--tenant", "Default")
        dropped = cdrd("quarantine", "drop", "-c", daemon.config, "1")
        assert purged.stderr.endswith("2 conference legs deleted\n")
        assert dropped.stderr == "1 dropped\n"
        portal.end(4)
        portal.insert(row(3), row(5))
        daemon.wait_for("portal_rows_stored", stored=2, first_call_id=3, last_call_id=5)
        daemon.stop()
    assert count(tmp_path / "cdr.sqlite3", "quarantine") == 0
    portal.execute("UPDATE ConferenceCall2 SET JoinTime = LeaveTime WHERE CallID = 2")
    with following(tmp_path, portal.port) as daemon:
        daemon.wait_for("portal_rows_stored", stored=1, first_call_id=2)
    assert [leg["call_id"] for leg in legs(tmp_path)] == [2, 3, 5]
    assert count(tmp_path / "cdr.sqlite3", "quarantine") == 0


def test_a_corrected_zone_corrects_all_legs_and_brings_none_back(
    tmp_path: Path, portal: MariaDb
) -> None:
    last = 2 * WINDOW_IDS
    portal.insert(*(row(call_id) for call_id in range(1, last + 1)))
    (tmp_path / "video.password").write_text(PASSWORD)
    wrong = portal_table(portal.port).replace("America/New_York", "Europe/Berlin")
    with RunningDaemon(tmp_path, HQ + wrong) as daemon:
        daemon.wait_for("portal_rows_stored", stored=last)
        daemon.stop()
    with contextlib.closing(sqlite3.connect(daemon.database)) as database, database:
        database.execute("DELETE FROM conference_leg WHERE call_id = 7")
    for newest in (last + 1, last + 2):
        portal.insert(row(newest))
        with following(tmp_path, portal.port) as daemon:
            told = daemon.wait_for("portal_rows_stored", last_call_id=newest)
            assert told["updated"] == (last - 1 if newest == last + 1 else 0)
            daemon.stop()
    assert {leg["join_time"] for leg in legs(tmp_path)} == {"2017-09-14T13:30:15Z"}
    assert [leg["call_id"] for leg in legs(tmp_path) if leg["call_id"] < 9] == [1, 2, 3, 4, 5, 6, 8]


def test_a_zone_correction_that_is_interrupted_and_taken_back_leaves_no_wrong_time(
    tmp_path: Path, portal: MariaDb
) -> None:
    portal.insert(*(row(call_id) for call_id in range(1, PAGE_ROWS + 1)))
    with following(tmp_path, portal.port) as daemon:
        daemon.wait_for("portal_rows_stored", stored=PAGE_ROWS)
        daemon.stop()
    portal.execute("ALTER TABLE ConferenceCall2 MODIFY CallID bigint unsigned")
    portal.insert(row(1 << 63))  # the second page cannot be read
    wrong = portal_table(portal.port).replace("America/New_York", "Europe/Berlin")
    with RunningDaemon(tmp_path, HQ + wrong) as daemon:
        daemon.wait_for("portal_rows_stored", updated=PAGE_ROWS)
        daemon.wait_for("portal_lost")
        daemon.stop()
    portal.execute(f"DELETE FROM ConferenceCall2 WHERE CallID > {PAGE_ROWS}")
    portal.insert(row(PAGE_ROWS + 1))
    with following(tmp_path, portal.port) as daemon:
        daemon.wait_for("portal_rows_stored", last_call_id=PAGE_ROWS + 1)
        daemon.stop()
    assert {leg["join_time"] for leg in legs(tmp_path)} == {"2017-09-14T13:30:15Z"}


def test_columns_are_read_by_name(tmp_path: Path, portal: MariaDb) -> None:
    portal.execute("ALTER TABLE ConferenceCall2 DROP COLUMN Extension")
    portal.execute("ALTER TABLE ConferenceCall2 MODIFY RoomOwner varchar(80) NOT NULL FIRST")
    portal.execute("ALTER TABLE ConferenceCall2 CHANGE CallState callstate varchar(80) NOT NULL")
    leg = row(1)
    del leg["Extension"]
    portal.insert(leg)
    with following(tmp_path, portal.port) as daemon:
        daemon.wait_for("portal_rows_stored", stored=1)
    (found,) = legs(tmp_path)
    assert (found["room_owner"], found["extension"], found["call_state"]) == (
        "alice",
        None,
        "COMPLETED",
    )


def test_a_table_that_is_another_one_is_refused(tmp_path: Path, portal: MariaDb) -> None:
    portal.execute("DROP TABLE ConferenceCall2")
    portal.execute("CREATE TABLE ConferenceCall2 (CallID int PRIMARY KEY)")
    portal.execute("INSERT INTO ConferenceCall2 VALUES (1)")
    with following(tmp_path, portal.port) as daemon:
        refused = daemon.wait_for("portal_refused")
        assert "its ConferenceCall2 has no column UniqueCallID, ConferenceName" in refused["reason"]


def test_a_missing_table_is_refused(tmp_path: Path, portal: MariaDb) -> None:
    portal.execute("DROP TABLE ConferenceCall2")
    with following(tmp_path, portal.port) as daemon:
        assert "ConferenceCall2" in daemon.wait_for("portal_refused")["reason"]


def test_a_refused_password_is_tried_rarely(tmp_path: Path, portal: MariaDb) -> None:
    portal.insert(row(1))
    with following(tmp_path, portal.port, "wrong") as daemon:
        refused = daemon.wait_for("portal_refused", portal="video")
        assert (refused["level"], refused["retry_in"]) == ("error", 600)
        assert "Access denied" in refused["reason"]
        assert "password_file" in refused["advice"]
        status, _ = daemon.stop()
        assert status == 0
        assert len(daemon.found("portal_refused")) == 1
        assert b"wrong" not in daemon.text
    with following(tmp_path, portal.port) as daemon:
        daemon.wait_for("portal_rows_stored", stored=1)


def test_a_server_that_restarts_is_followed_on(tmp_path: Path, portal: MariaDb) -> None:
    portal.insert(row(1))
    with following(tmp_path, portal.port) as daemon:
        daemon.wait_for("portal_rows_stored", stored=1)
        portal.stop()
        lost = daemon.wait_for("portal_lost", portal="video")
        assert lost["level"] == "warning"
        assert lost["reason"]
        assert 0 < lost["retry_in"] <= 60
        portal.start()
        portal.insert(row(2))
        daemon.wait_for("portal_connected", times=2)
        daemon.wait_for("portal_rows_stored", stored=1, last_call_id=2)


def test_rows_that_cannot_be_stored_are_read_again(tmp_path: Path, portal: MariaDb) -> None:
    portal.insert(row(1))
    with following(tmp_path, portal.port) as daemon:
        daemon.wait_for("portal_rows_stored", stored=1)
        with contextlib.closing(sqlite3.connect(daemon.database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            portal.insert(row(2))
            failed = daemon.wait_for("portal_rows_not_stored", portal="video")
            assert (failed["level"], failed["error"]) == ("error", "database is locked")
        daemon.wait_for("portal_rows_stored", stored=1, last_call_id=2)


def test_a_table_whose_rows_are_gone_is_followed_on(tmp_path: Path, portal: MariaDb) -> None:
    portal.insert(*(row(call_id) for call_id in range(1, 2 * WINDOW_IDS)))
    with following(tmp_path, portal.port) as daemon:
        daemon.wait_for("portal_rows_stored")
        daemon.stop()
    portal.execute("TRUNCATE ConferenceCall2")
    anew = {"UniqueCallID": "77", "JoinTime": "2019-01-01 00:00:00", "LeaveTime": ""}
    portal.insert(row(1, **anew))
    with following(tmp_path, portal.port) as daemon:
        shrunk = daemon.wait_for("portal_shrunk", portal="video")
        assert (shrunk["followed"], shrunk["newest"]) == (2 * WINDOW_IDS - 1, 1)
        told = daemon.wait_for("portal_row_quarantined")
        assert "give it another name in [[portal]]" in told["reason"]
    assert len(legs(tmp_path)) == 2 * WINDOW_IDS - 1


def test_ids_that_are_given_again_are_followed(tmp_path: Path, portal: MariaDb) -> None:
    portal.insert(row(1), row(2), row(3))
    with following(tmp_path, portal.port) as daemon:
        daemon.wait_for("portal_rows_stored", stored=3)
        cdrd("purge", "-c", daemon.config, "--before", "2020-01-01", "--tenant", "Default")
        portal.execute("DELETE FROM ConferenceCall2 WHERE CallID > 1")
        daemon.wait_for("portal_shrunk", followed=3, newest=1)
        portal.insert(row(2, UniqueCallID="77", JoinTime="2021-01-01 00:00:00"))
        daemon.wait_for("portal_rows_stored", last_call_id=2)
        daemon.stop()
    assert [leg["call_id"] for leg in legs(tmp_path)] == [2]


def test_ids_that_were_given_again_while_we_were_stopped_are_followed(
    tmp_path: Path, portal: MariaDb
) -> None:
    portal.insert(row(1), row(2), row(3))
    with following(tmp_path, portal.port) as daemon:
        daemon.wait_for("portal_rows_stored", stored=3)
        cdrd("purge", "-c", daemon.config, "--before", "2020-01-01", "--tenant", "Default")
        daemon.stop()
    portal.execute("DELETE FROM ConferenceCall2 WHERE CallID > 1")
    portal.insert(*(row(call_id, UniqueCallID="77") for call_id in (2, 3, 4)))
    with following(tmp_path, portal.port) as daemon:
        daemon.wait_for("portal_rows_stored", last_call_id=4)
        daemon.stop()
    assert [leg["call_id"] for leg in legs(tmp_path)] == [2, 3, 4]


def test_a_leg_that_is_another_goes_to_quarantine_once(tmp_path: Path, portal: MariaDb) -> None:
    portal.insert(row(1), row(2))
    with following(tmp_path, portal.port) as daemon:
        daemon.wait_for("portal_rows_stored", stored=2)
        portal.execute("UPDATE ConferenceCall2 SET UniqueCallID = '77', CallerID = 'bob'")
        assert "another leg" in daemon.wait_for("portal_row_quarantined", id=2)["reason"]
        assert cdrd("quarantine", "drop", "-c", daemon.config, "1", "2").stderr == "2 dropped\n"
        portal.insert(row(3))
        daemon.wait_for("portal_rows_stored", last_call_id=3)
        daemon.stop()
    assert count(tmp_path / "cdr.sqlite3", "quarantine") == 0


def test_what_does_not_answer_as_mysql_is_lost(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        following(tmp_path, other.getsockname()[1]) as daemon,
    ):
        peer, _ = other.accept()
        with peer:
            peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            assert daemon.wait_for("portal_lost")["reason"]
        peer, _ = other.accept()
        with peer:  # which is never answered: a stop does not wait for it
            status, _ = daemon.stop()
            assert status == 0


@pytest.mark.parametrize(
    ("name", "cell"), [(b"Other", b"\x011"), (b"CallID", b"\xfb"), (b"CallID", b"\x14" + b"9" * 20)]
)
def test_a_row_without_a_call_id_is_none_of_the_portals(
    tmp_path: Path, name: bytes, cell: bytes
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        following(tmp_path, other.getsockname()[1]) as daemon,
    ):
        peer, _ = other.accept()
        with peer:
            peer.sendall(session(name, cell))
            assert "a row whose CallID is" in daemon.wait_for("portal_lost")["reason"]
            assert daemon.stop()[0] == 0


def test_a_missing_password_is_told_and_calls_are_served(tmp_path: Path, portal: MariaDb) -> None:
    with following(tmp_path, portal.port) as daemon:
        daemon.wait_for("portal_connected")
        daemon.stop()
    tables = HQ + portal_table(portal.port).replace("video.password", "none.password")
    with RunningDaemon(tmp_path, tables) as daemon:
        assert "none.password" in daemon.wait_for("portal_lost")["reason"]
        assert daemon.wait_for("ready")


def test_check_looks_into_the_portal(tmp_path: Path, portal: MariaDb) -> None:
    portal.insert(row(41))
    with following(tmp_path, portal.port) as daemon:
        daemon.wait_for("ready")
        daemon.stop()
    done = cdrd("check", "-c", daemon.config, "--connect")
    assert (done.returncode, done.stderr) == (0, ""), done
    assert f"is followed at 127.0.0.1:{portal.port} as cdraccess" in done.stdout
    assert "newest CallID 41" in done.stdout
    (tmp_path / "video.password").write_text("wrong")
    done = cdrd("check", "-c", daemon.config, "--connect")
    assert done.returncode == 1
    assert "Access denied" in done.stdout


def test_without_the_driver_one_sentence_says_what_to_install(tmp_path: Path) -> None:
    config = write_config(tmp_path, f"{HQ}{portal_table(1)}")
    hidden = "import sys; sys.modules['pymysql'] = None; from cdrd.cli import main; "
    command = [sys.executable, "-c", f"{hidden} sys.exit(main(['serve', '-c', {str(config)!r}]))"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == (
        f"{config}: [[portal]] needs the package PyMySQL: pip install 'cdrd[portal]',"
        " or take it out\n"
    )
