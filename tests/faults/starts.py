"""A start with much behind it: a large database, a WAL at its bound, a log that is far behind."""

import contextlib
import sqlite3
import tempfile
import time
from pathlib import Path

from cdrd.database import WAL_LIMIT_BYTES, connect, open_reader
from tests.faults.oracle import STARTED, call
from tests.faults.outcome import Outcome
from tests.running import HQ, RunningDaemon, send

READY_SECONDS = 2.0
STEP = 100_000

_ROWS = """
WITH RECURSIVE number(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM number WHERE n < :last)
INSERT INTO call
SELECT n, n * 2654435761 % 4294967296, 'hq', :started + n || '.' || n, '',
    strftime('%Y-%m-%dT%H:%M:%SZ', :started + n, 'unixepoch'),
    strftime('%Y-%m-%d %H:%M:%S', :started + n, 'unixepoch'),
    0, n % 5000, '91000', '', 'trunk', '', n % 600, n % 600, -1, 'ANSWERED', 'Outbound', '',
    'recording-' || n || '.wav', '', 'tcp', '2024-01-01T00:00:00.000Z',
    '{"action":"NewCdr","callid":"' || n || '","padding":"0123456789012345678901234567890123"}'
FROM number
"""
_CHANGE = "UPDATE call SET pbx_serial = pbx_serial || 'x' WHERE seq > ?"


def start_with_much_behind(rows: int) -> Outcome:
    """Start on so many rows, all of them untold, and with a WAL of 64 MiB; the time is of that."""
    with tempfile.TemporaryDirectory(prefix="cdrd-start-") as directory:
        _fill(Path(directory, "cdr.sqlite3"), rows)
        began = time.monotonic()
        with RunningDaemon(Path(directory), HQ) as daemon:
            daemon.wait_for("ready")
            seconds = time.monotonic() - began
            send(daemon.port, call(-1))
            daemon.wait_for("call_released", times=STEP // 100)
            assert daemon.stop()[0] == 0
            with contextlib.closing(open_reader(daemon.database)) as reader:
                (last,) = reader.execute("SELECT max(seq) FROM calls").fetchone()
    slow = () if seconds <= READY_SECONDS else (f"ready within {READY_SECONDS} s",)
    return Outcome(1, rows + 1 - last, 0, seconds, f"{rows:,} rows", slow)


def _fill(database: Path, rows: int) -> None:
    """Make a database with rows that no log has told, and a WAL as large as it gets."""
    connection = connect(database, "normal")
    with contextlib.closing(connection), contextlib.closing(open_reader(database)):
        for first in range(1, rows, STEP):
            _insert(connection, first, min(first + STEP - 1, rows))
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        wal = Path(f"{database}-wal")
        while wal.stat().st_size < WAL_LIMIT_BYTES:
            connection.execute(_CHANGE, (rows - STEP,))


def _insert(connection: sqlite3.Connection, first: int, last: int) -> None:
    connection.execute(_ROWS, {"first": first, "last": last, "started": STARTED})
