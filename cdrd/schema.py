"""Turns a file into a cdrd database: its tables, views and indexes, and the way from older ones.

The rule that must stay true: programs read the views; a view's columns are only ever added to,
and a file that a newer cdrd has written is never touched.
"""

import contextlib
import secrets
import sqlite3
from collections.abc import Iterator
from typing import Final

APPLICATION_ID: Final = 0x63647264
"""``cdrd`` in ASCII: what ``file`` and other programs know the database by."""

PAGE_BYTES: Final = 16 * 1024
"""Larger pages than SQLite's 4 KiB take about a tenth off a row's cost in a flood."""

BUSY_TIMEOUT_MS: Final = 5_000
STILL_BUSY_TIMEOUT_MS: Final = 50

_VERSION_1: Final = """
CREATE TABLE call (
    seq               INTEGER PRIMARY KEY,
    identity          INTEGER NOT NULL,
    pbx               TEXT NOT NULL,
    call_id           TEXT NOT NULL,
    cdr_id            TEXT NOT NULL,
    started_at        TEXT NOT NULL,
    started_local     TEXT NOT NULL,
    utc_offset        INTEGER NOT NULL,
    caller            TEXT NOT NULL,
    callee            TEXT NOT NULL,
    source_trunk      TEXT NOT NULL,
    destination_trunk TEXT NOT NULL,
    did_number        TEXT NOT NULL,
    duration          INTEGER NOT NULL,
    talk_duration     INTEGER NOT NULL,
    agent_ring_time   INTEGER NOT NULL,
    status            TEXT NOT NULL,
    call_type         TEXT NOT NULL,
    pin_code          TEXT NOT NULL,
    recording         TEXT NOT NULL,
    pbx_serial        TEXT NOT NULL,
    source            TEXT NOT NULL,
    received_at       TEXT NOT NULL,
    raw               TEXT NOT NULL
) STRICT;

-- One index for what makes two records the same and for the search by time. It rises with time, so
-- that rows are added near its end however large the table has grown.
CREATE UNIQUE INDEX call_identity ON call (started_at, call_id, identity);
-- The few records whose start the PBX's time zone told (cdrd/record.py): still the same record
-- after the operator has corrected that zone.
CREATE UNIQUE INDEX call_identity_local ON call (started_local, call_id, identity)
WHERE identity < 0;
-- Almost empty: what began long before a range of time and may last into it.
CREATE INDEX call_longer_than_a_day ON call (started_at) WHERE duration > 86400;

-- Absent text is stored as '' and absent seconds as -1 (cdrd/record.py says why).
CREATE VIEW calls AS SELECT
    seq,
    pbx,
    call_id,
    nullif(cdr_id, '') AS cdr_id,
    started_at,
    started_local,
    utc_offset,
    nullif(caller, '') AS caller,
    nullif(callee, '') AS callee,
    nullif(source_trunk, '') AS source_trunk,
    nullif(destination_trunk, '') AS destination_trunk,
    nullif(did_number, '') AS did_number,
    nullif(duration, -1) AS duration,
    nullif(talk_duration, -1) AS talk_duration,
    nullif(agent_ring_time, -1) AS agent_ring_time,
    nullif(status, '') AS status,
    nullif(call_type, '') AS call_type,
    nullif(pin_code, '') AS pin_code,
    nullif(recording, '') AS recording,
    nullif(pbx_serial, '') AS pbx_serial,
    source,
    received_at,
    raw
FROM call;

CREATE TABLE conference_leg (
    seq                         INTEGER PRIMARY KEY AUTOINCREMENT,
    portal                      TEXT NOT NULL,
    call_id                     INTEGER NOT NULL,
    unique_call_id              TEXT,
    conference_name             TEXT,
    tenant_name                 TEXT,
    conference_type             TEXT,
    endpoint_type               TEXT,
    caller_id                   TEXT,
    caller_name                 TEXT,
    join_time                   TEXT,
    leave_time                  TEXT,
    join_local                  TEXT,
    leave_local                 TEXT,
    call_state                  TEXT,
    direction                   TEXT,
    router_id                   TEXT,
    gw_id                       TEXT,
    gw_prefix                   TEXT,
    reference_number            TEXT,
    application_name            TEXT,
    application_version         TEXT,
    application_os              TEXT,
    device_model                TEXT,
    endpoint_public_ip_address  TEXT,
    call_completion_code        TEXT,
    extension                   TEXT,
    endpoint_guid               TEXT,
    access_type                 TEXT,
    room_type                   TEXT,
    room_owner                  TEXT
) STRICT;
CREATE UNIQUE INDEX conference_leg_identity ON conference_leg (portal, call_id);
CREATE INDEX conference_leg_join_time ON conference_leg (join_time);
-- As call_longer_than_a_day, with those that still last.
CREATE INDEX conference_leg_longer_than_a_day ON conference_leg (join_time)
WHERE (leave_time IS NULL AND call_state = 'IN PROGRESS')
OR strftime('%s', leave_time) - strftime('%s', join_time) > 86400;
-- The legs that a portal is asked about again.
CREATE INDEX conference_leg_in_progress ON conference_leg (portal, call_id)
WHERE leave_time IS NULL;
CREATE VIEW conference_calls AS SELECT * FROM conference_leg;

-- Up to which CallID a portal's table was read; an import may have brought legs beyond it.
CREATE TABLE followed_portal (
    portal  TEXT PRIMARY KEY,
    call_id INTEGER NOT NULL
) STRICT;

CREATE TABLE quarantined_report (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    received_at TEXT NOT NULL,
    pbx         TEXT NOT NULL,
    peer        TEXT NOT NULL,
    source      TEXT NOT NULL,
    reason      TEXT NOT NULL,
    payload     BLOB NOT NULL,
    size        INTEGER NOT NULL
) STRICT;
-- What a file, a portal or a PBX's history has brought is known again when it is read again
-- (cdrd/row.py).
CREATE INDEX quarantined_once ON quarantined_report (size, substr(payload, 1, 200))
WHERE source IN ('import', 'portal', 'history');
CREATE INDEX quarantined_report_received_at ON quarantined_report (received_at);
CREATE VIEW quarantine AS SELECT * FROM quarantined_report;

-- One row: up to where the log has told the rows, the highest seq ever given, and the key that
-- hashed numbers in the log are made with.
CREATE TABLE progress (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    last_seq   INTEGER NOT NULL,
    logged_seq INTEGER NOT NULL,
    number_key BLOB NOT NULL
) STRICT;

-- Up to when (Unix seconds) the records of a PBX are known to be complete: pushed while nothing was
-- broken, or fetched.
CREATE TABLE fetched_history (
    pbx            TEXT PRIMARY KEY,
    complete_until INTEGER NOT NULL
) STRICT;

"""

_VERSION_2: Final = """
-- What the portal's times were read with, and the digests of its last rows by CallID
-- (cdrd/followed.py), as a JSON object; '' and NULL where an older version has read them.
ALTER TABLE followed_portal ADD COLUMN timezone TEXT NOT NULL DEFAULT '';
ALTER TABLE followed_portal ADD COLUMN digests TEXT;
"""

MIGRATIONS: Final = (_VERSION_1, _VERSION_2)
"""Each takes the schema from its index to the next version; a released one never changes."""

VERSION: Final = len(MIGRATIONS)


class NotOurDatabase(Exception):
    """A file that cdrd must not write: another program's, or a newer cdrd's."""


def migrate(connection: sqlite3.Connection) -> int:
    """Bring the schema up to date, a version in a transaction; return the version found.

    The connection is in autocommit mode. Raises NotOurDatabase, and sqlite3.Error.
    """
    found = check_schema(connection)
    for version in range(found, VERSION):
        with transaction(connection):
            for statement in _statements(MIGRATIONS[version]):
                connection.execute(statement)
            if version == 0:
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                first = (1, 0, 0, _new_key())
                connection.execute("INSERT INTO progress VALUES (?, ?, ?, ?)", first)
            connection.execute(f"PRAGMA user_version = {version + 1}")
    if connection.execute("SELECT 1 FROM progress").fetchone() is None:
        # Recovered from a damaged file without it: the lines of nearly all rows have been told.
        last_seq = "SELECT ifnull(max(seq), 0) AS seq FROM call"
        progress = f"INSERT INTO progress SELECT 1, seq, seq, ? FROM ({last_seq})"  # noqa: S608 - constants
        connection.execute(progress, (_new_key(),))
    return found


def _new_key() -> bytes:
    """Make the key for hashed numbers."""
    return secrets.token_bytes(32)


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what is done within, or on any error nothing of it."""
    _begin(connection)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has ended it already
            connection.execute("ROLLBACK")
        raise


def _begin(connection: sqlite3.Connection) -> None:
    """Begin to write: who finds the database locked waits for that, and those behind it hardly.

    Each would wait in vain for the same program, and at the end of the row stands a commit.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        connection.execute(f"PRAGMA busy_timeout = {STILL_BUSY_TIMEOUT_MS}")
        raise
    (timeout,) = connection.execute("PRAGMA busy_timeout").fetchone()
    if timeout == STILL_BUSY_TIMEOUT_MS:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")


def check_schema(connection: sqlite3.Connection) -> int:
    """Return the schema's version, 0 for an empty file. Raises NotOurDatabase."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (objects,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application_id != APPLICATION_ID and (application_id or version or objects):
        raise NotOurDatabase("the file is another program's database: name another path")
    if version > VERSION:
        raise NotOurDatabase(
            f"the file has schema version {version}, this cdrd knows {VERSION}: "
            "a newer cdrd wrote it; run that one, or name another path"
        )
    return int(version)


def check_tables(connection: sqlite3.Connection) -> None:
    """Hold a file to having our tables, as who only reads needs. Raises NotOurDatabase."""
    if not check_schema(connection):
        raise NotOurDatabase("the file is empty: cdrd serve makes the tables at its start")


def _statements(script: str) -> list[str]:
    statements, statement = [], ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            statements.append(statement)
            statement = ""
    return statements
