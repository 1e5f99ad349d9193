"""A database as ten years leave it: made by one statement, at SQLite's own speed."""

import asyncio
import sqlite3
from datetime import UTC
from pathlib import Path

import orjson

from cdrd.batch import Batch
from cdrd.report import ReleasedCall, read_reports
from cdrd.simulate.reports import new_cdr
from cdrd.store import Store
from tests.bench.load import DIALECT, STARTED
from tests.example import make_records

FORMS = 1000
SECONDS = 10 * 365 * 24 * 3600
BEGINS = STARTED - SECONDS
COLUMNS = "pbx, cdr_id, utc_offset, caller, callee, source_trunk, destination_trunk, did_number,"
COLUMNS += " duration, talk_duration, agent_ring_time, status, call_type, pin_code, pbx_serial,"
COLUMNS += " source, identity"

GROW = f"""
WITH RECURSIVE numbers (number) AS (
    SELECT {FORMS} UNION ALL SELECT number + 1 FROM numbers WHERE number + 1 < :rows
), starts AS (
    SELECT number, :begins + number * :seconds / :rows AS started FROM numbers
    WHERE number < :rows
), calls AS (
    SELECT
        number + 1 AS seq,
        started || '.' || number AS call_id,
        strftime('%Y-%m-%dT%H:%M:%SZ', started, 'unixepoch') AS started_at,
        strftime('%Y-%m-%d %H:%M:%S', started, 'unixepoch') AS started_local,
        strftime('%Y-%m-%dT%H:%M:%S.000Z', started + 60, 'unixepoch') AS received_at
    FROM starts
)
INSERT INTO call (seq, call_id, started_at, started_local, received_at, {COLUMNS}, recording, raw)
SELECT
    calls.seq, calls.call_id, calls.started_at, calls.started_local, calls.received_at, {COLUMNS},
    replace(recording, form.call_id, calls.call_id),
    replace(replace(raw, form.call_id, calls.call_id), form.started_local, calls.started_local)
FROM calls CROSS JOIN call AS form ON form.seq = (calls.seq - 1) % {FORMS} + 1
"""  # each number is the call that the form of its last three digits shows, at its own time


def make(path: Path, rows: int) -> None:
    """Make a database of so many calls (at least 1,000), spread evenly over ten years."""
    asyncio.run(_forms(path))
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = OFF")  # a fault would only end the bench
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute(GROW, {"rows": rows, "begins": BEGINS, "seconds": SECONDS})
    connection.execute("UPDATE progress SET last_seq = :rows, logged_seq = :rows", {"rows": rows})
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()


async def _forms(path: Path) -> None:
    """Have the store keep the first thousand calls, which all others are made from."""
    raws = [new_cdr(number, DIALECT, started=BEGINS).decode() for number in range(FORMS)]
    reports = read_reports(map(orjson.loads, raws))
    calls = [report for report in reports if isinstance(report, ReleasedCall)]
    batch = Batch()
    batch.add(
        *make_records(
            calls, raws, pbx="bench", zone=UTC, source="tcp", received_at="2013-11-17T00:00:00.000Z"
        )
    )
    store = await Store.open(path, "normal")
    await store.commit(batch, 0)
    await store.close(FORMS)
