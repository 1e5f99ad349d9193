"""A file becomes a cdrd database, or is left alone; its views are what other programs read."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdrd.leg_store import read_followed
from cdrd.schema import (
    APPLICATION_ID,
    BUSY_TIMEOUT_MS,
    STILL_BUSY_TIMEOUT_MS,
    VERSION,
    NotOurDatabase,
    check_schema,
    migrate,
    transaction,
)
from tests.example import CALL

CALLS = (
    "seq",
    "pbx",
    "call_id",
    "cdr_id",
    "started_at",
    "started_local",
    "utc_offset",
    "caller",
    "callee",
    "source_trunk",
    "destination_trunk",
    "did_number",
    "duration",
    "talk_duration",
    "agent_ring_time",
    "status",
    "call_type",
    "pin_code",
    "recording",
    "pbx_serial",
    "source",
    "received_at",
    "raw",
)
CONFERENCE_CALLS = (
    "seq",
    "portal",
    "call_id",
    "unique_call_id",
    "conference_name",
    "tenant_name",
    "conference_type",
    "endpoint_type",
    "caller_id",
    "caller_name",
    "join_time",
    "leave_time",
    "join_local",
    "leave_local",
    "call_state",
    "direction",
    "router_id",
    "gw_id",
    "gw_prefix",
    "reference_number",
    "application_name",
    "application_version",
    "application_os",
    "device_model",
    "endpoint_public_ip_address",
    "call_completion_code",
    "extension",
    "endpoint_guid",
    "access_type",
    "room_type",
    "room_owner",
)
QUARANTINE = (
    "id",
    "received_at",
    "pbx",
    "peer",
    "source",
    "reason",
    "payload",
    "size",
)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(tmp_path / "cdr.sqlite3", isolation_level=None)
    yield opened
    opened.close()


def one(connection: sqlite3.Connection, query: str) -> object:
    (value,) = connection.execute(query).fetchone()
    return value


def test_an_empty_file_is_adopted(connection: sqlite3.Connection) -> None:
    assert migrate(connection) == 0
    assert one(connection, "PRAGMA application_id") == APPLICATION_ID == int.from_bytes(b"cdrd")
    assert one(connection, "PRAGMA user_version") == VERSION
    assert check_schema(connection) == VERSION


def test_a_current_file_is_left_as_it_is(connection: sqlite3.Connection) -> None:
    migrate(connection)
    schema = connection.execute("SELECT sql FROM sqlite_schema").fetchall()
    key = one(connection, "SELECT number_key FROM progress")
    assert migrate(connection) == VERSION
    assert connection.execute("SELECT sql FROM sqlite_schema").fetchall() == schema
    assert one(connection, "SELECT number_key FROM progress") == key


def test_each_database_has_a_number_key_of_its_own(
    connection: sqlite3.Connection, tmp_path: Path
) -> None:
    migrate(connection)
    other = sqlite3.connect(tmp_path / "other.sqlite3", isolation_level=None)
    migrate(other)
    query = "SELECT number_key FROM progress"
    keys = one(connection, query), one(other, query)
    other.close()
    assert all(isinstance(key, bytes) and len(key) == 32 for key in keys)
    assert keys[0] != keys[1]


def test_a_file_of_the_first_version_keeps_up_to_where_a_portal_was_read(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr("cdrd.schema.VERSION", 1)
        migrate(connection)
        connection.execute("INSERT INTO followed_portal VALUES ('video', 107)")
    assert migrate(connection) == 1
    followed = read_followed(connection, "video")
    assert followed is not None
    assert followed[:2] == (107, "")
    assert set(followed.digests) == set(range(8, 108))  # any of them may not have been there yet


def test_a_newer_file_is_refused_and_not_touched(connection: sqlite3.Connection) -> None:
    migrate(connection)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(NotOurDatabase, match=f"schema version {VERSION + 1}"):
        migrate(connection)
    assert one(connection, "PRAGMA user_version") == VERSION + 1


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE theirs (a)",
        "PRAGMA application_id = 7",
        "PRAGMA user_version = 1",
        "PRAGMA user_version = 99",
    ],
)
def test_another_programs_database_is_refused_and_not_touched(
    connection: sqlite3.Connection, statement: str
) -> None:
    connection.execute(statement)
    before = list(connection.iterdump())
    with pytest.raises(NotOurDatabase, match="another program's database"):
        migrate(connection)
    assert list(connection.iterdump()) == before
    assert one(connection, "SELECT count(*) FROM sqlite_schema WHERE name = 'call'") == 0


def test_a_migration_that_fails_leaves_nothing_and_says_why(
    connection: sqlite3.Connection,
) -> None:
    connection.execute("PRAGMA max_page_count = 4")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        migrate(connection)
    assert not connection.in_transaction
    assert check_schema(connection) == 0
    connection.execute("PRAGMA max_page_count = 1000000")
    assert migrate(connection) == 0
    assert check_schema(connection) == VERSION


@pytest.mark.parametrize(
    ("view", "columns"),
    [
        ("calls", CALLS),
        ("conference_calls", CONFERENCE_CALLS),
        ("quarantine", QUARANTINE),
    ],
)
def test_a_view_has_the_columns_of_the_contract_in_their_order(
    connection: sqlite3.Connection, view: str, columns: tuple[str, ...]
) -> None:
    migrate(connection)
    found = connection.execute(f"SELECT * FROM {view}")
    assert [column[0] for column in found.description] == list(columns)


def test_every_table_is_strict(connection: sqlite3.Connection) -> None:
    migrate(connection)
    tables = connection.execute(
        "SELECT name, strict FROM pragma_table_list"
        " WHERE type = 'table' AND schema = 'main' AND name NOT LIKE 'sqlite_%'"
    ).fetchall()
    named = {name for name, _ in tables}
    assert named >= {"call", "conference_leg", "quarantined_report", "progress"}
    assert all(strict for _, strict in tables)
    with pytest.raises(sqlite3.IntegrityError, match="cannot store TEXT"):
        connection.execute("INSERT INTO fetched_history VALUES ('hq', 'yesterday')")


def test_there_is_one_row_of_progress(connection: sqlite3.Connection) -> None:
    migrate(connection)
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        connection.execute("INSERT INTO progress VALUES (2, 0, 0, x'00')")


def test_a_file_recovered_without_its_progress_goes_on_behind_its_last_row(
    connection: sqlite3.Connection,
) -> None:
    migrate(connection)
    connection.execute("DELETE FROM progress")
    values = (7, 0, *CALL[1:])
    connection.execute(f"INSERT INTO call VALUES ({', '.join('?' * len(values))})", values)
    assert migrate(connection) == VERSION
    [(last_seq, logged_seq, key)] = connection.execute(
        "SELECT last_seq, logged_seq, number_key FROM progress"
    )
    assert (last_seq, logged_seq, len(key)) == (7, 7, 32)
    assert migrate(connection) == VERSION
    assert one(connection, "SELECT number_key FROM progress") == key


def test_only_the_first_waits_long_for_a_lock_until_one_has_it(
    connection: sqlite3.Connection,
) -> None:
    migrate(connection)
    (path,) = (
        file for _, name, file in connection.execute("PRAGMA database_list") if name == "main"
    )
    other = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA busy_timeout = 10")
    other.execute("BEGIN IMMEDIATE")
    for _ in range(2):
        with pytest.raises(sqlite3.OperationalError, match="locked"), transaction(connection):
            pass
        assert one(connection, "PRAGMA busy_timeout") == STILL_BUSY_TIMEOUT_MS < BUSY_TIMEOUT_MS
    other.execute("ROLLBACK")
    other.close()
    with transaction(connection):
        assert one(connection, "PRAGMA busy_timeout") == BUSY_TIMEOUT_MS


def test_a_conference_leg_has_one_row_for_each_portal_and_call_id(
    connection: sqlite3.Connection,
) -> None:
    migrate(connection)
    insert = "INSERT INTO conference_leg (portal, call_id) VALUES (?, ?)"
    connection.executemany(insert, [("a", 1), ("a", 2), ("b", 1)])
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        connection.execute(insert, ("a", 1))


def plan(connection: sqlite3.Connection, query: str) -> str:
    return " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}"))


def test_the_identity_is_looked_up_in_its_index(connection: sqlite3.Connection) -> None:
    migrate(connection)
    key = "call_id = 0 AND identity = 0"
    text = plan(connection, f"SELECT 1 FROM call WHERE started_at = 0 AND {key}")
    assert "USING COVERING INDEX call_identity " in text
    assert text.count("=?") == 3
    local = f"SELECT 1 FROM call WHERE started_local = 0 AND {key} AND identity < 0"
    text = plan(connection, local)
    assert "USING COVERING INDEX call_identity_local " in text
    assert text.count("=?") == 3


def test_only_an_identity_that_a_zone_made_holds_for_the_local_start(
    connection: sqlite3.Connection,
) -> None:
    """The instant of such a record changes when the operator corrects the zone."""
    migrate(connection)
    insert = f"INSERT INTO call VALUES ({', '.join('?' * (1 + len(CALL)))})"
    for identity in (7, -7):
        connection.execute(insert, (None, *CALL._replace(identity=identity)))
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            connection.execute(insert, (None, *CALL._replace(identity=identity)))
    elsewhere = CALL._replace(started_at="2017-09-14T07:30:15Z")
    connection.execute(insert, (None, *elsewhere._replace(identity=7)))
    with pytest.raises(sqlite3.IntegrityError, match=r"UNIQUE.*call\.started_local"):
        connection.execute(insert, (None, *elsewhere._replace(identity=-7)))


@pytest.mark.parametrize("order", ["", " ORDER BY started_at", " ORDER BY started_at DESC"])
def test_a_range_of_time_is_found_by_index_through_the_view(
    connection: sqlite3.Connection, order: str
) -> None:
    migrate(connection)
    query = "SELECT * FROM calls WHERE started_at >= '2017' AND started_at < '2018'"
    text = plan(connection, query + order)
    assert text == "SEARCH call USING INDEX call_identity (started_at>? AND started_at<?)"


def test_rows_behind_a_seq_are_found_by_it_through_the_view(
    connection: sqlite3.Connection,
) -> None:
    migrate(connection)
    text = plan(connection, "SELECT * FROM calls WHERE seq > 7 ORDER BY seq LIMIT 10")
    assert "USING INTEGER PRIMARY KEY" in text
    assert "TEMP B-TREE" not in text


def test_a_quarantine_id_is_never_given_twice(connection: sqlite3.Connection) -> None:
    migrate(connection)
    insert = "INSERT INTO quarantined_report VALUES (NULL, '', '', '', '', '', x'', 0)"
    first = connection.execute(insert).lastrowid
    connection.execute("DELETE FROM quarantined_report")
    second = connection.execute(insert).lastrowid
    assert first is not None
    assert second == first + 1
