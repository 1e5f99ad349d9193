"""Turns a batch into rows: one transaction on the connection of the only writer.

The rule that must stay true: a batch is committed whole or not at all, one record is one row, and
a record that SQLite refuses costs itself alone.
"""

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Final, NamedTuple

from cdrd.batch import Batch, QuarantinedReport, RestoredCall, quarantine_of
from cdrd.block import StoredRows, rows_of
from cdrd.database import WriterConnection, check_in_place
from cdrd.record import MAX_INTEGER, CallRecord, Row, new_record
from cdrd.schema import transaction
from cdrd.source import IMPORT, READ_AGAIN

ROWS_A_STATEMENT: Final = 40
"""One row a statement halves the rate; 20 took a tenth longer, and 80 or 120 were no faster."""

_READ_AGAIN: Final = frozenset(READ_AGAIN)
_source_of: Final = itemgetter(CallRecord._fields.index("source"))

_POISON: Final = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    UnicodeError,
)


class Outcome(NamedTuple):
    """What one commit made of a batch, without the records, which whoever asked for it has."""

    seqs: Sequence[int]  # of each record; 0 where it added no row
    restored: Sequence[int]  # likewise
    duplicates: int
    quarantined: list[tuple[int, QuarantinedReport]]


@dataclass(frozen=True, slots=True)
class Committed:
    """What one commit made of a batch: its new rows, and what added none."""

    rows: StoredRows
    restored: StoredRows
    duplicates: int
    quarantined: list[tuple[int, QuarantinedReport]]

    @property
    def added(self) -> int:
        """How many rows are new."""
        return self.rows.count + self.restored.count

    @property
    def counts(self) -> Counter[str]:
        """How many became rows, were rows already, or went to quarantine."""
        return Counter(
            stored=self.added, duplicate=self.duplicates, quarantined=len(self.quarantined)
        )

    @property
    def stored(self) -> list[tuple[int, CallRecord]]:
        """The new rows' records, each behind its ``seq``, in the order received."""
        return self.rows.records() + self.restored.records()


def committed_of(outcome: Outcome, batch: Batch) -> Committed:
    """Tell what became of a batch with its records."""
    restored = zip(outcome.restored, (call.record for call in batch.restored), strict=True)
    return Committed(
        StoredRows(outcome.seqs, batch.blocks),
        rows_of([(seq, record) for seq, record in restored if seq]),
        outcome.duplicates,
        outcome.quarantined,
    )


class Turn(NamedTuple):
    """The number of a commit among those of a run, and of the one that it must follow, if any."""

    number: int = 0
    behind: int = 0


def commit_in_turn(
    connection: sqlite3.Connection, batch: Batch, logged_seq: int, turn: Turn
) -> Outcome:
    """Store a batch unless the commit that it is to follow has failed: that one comes first.

    Raises sqlite3.Error, also for what is stored in a file that has lost its place.
    """
    assert isinstance(connection, WriterConnection)
    if turn.behind and turn.behind != connection.last_turn:
        raise sqlite3.OperationalError("the commit in front of it has failed")
    outcome = commit(connection, batch, logged_seq)
    check_in_place(connection)
    if turn.number:
        connection.last_turn = turn.number
    return outcome


def commit(connection: sqlite3.Connection, batch: Batch, logged_seq: int) -> Outcome:
    """Store a batch in one transaction: optimistically, and row by row where that fails."""
    try:
        return _commit(connection, batch, logged_seq, _insert_new)
    except (_NotAllNew, *_POISON):
        return _commit(connection, batch, logged_seq, _insert_each)


def insert_quarantined(
    connection: sqlite3.Connection,
    reports: Sequence[QuarantinedReport],
    *,
    repeated: bool = False,
) -> list[tuple[int, QuarantinedReport]]:
    """Insert reports within a transaction, and return them with their ids.

    What comes again, because a file is imported or a portal is read again, is left out; so is,
    when they are ``repeated``, what is there with the same time, peer and bytes.
    """
    quarantined = []
    for report in reports:
        query = _QUARANTINE_REPEATED if repeated else _QUARANTINE
        if report.source in READ_AGAIN:
            query = _QUARANTINE_ONCE
        inserted = connection.execute(query, report)
        if inserted.rowcount:
            assert inserted.lastrowid is not None
            quarantined.append((inserted.lastrowid, report))
    return quarantined


def _commit(
    connection: sqlite3.Connection,
    batch: Batch,
    logged_seq: int,
    insert: Callable[[sqlite3.Connection, Sequence[Row], int], "_Inserted"],
) -> Outcome:
    rows = batch.rows()
    with transaction(connection):
        (last_seq,) = connection.execute(
            "SELECT max(last_seq, ifnull((SELECT max(seq) FROM call), 0)) FROM progress"
        ).fetchone()
        seqs, refused = insert(connection, rows, last_seq + 1)
        if not _READ_AGAIN.isdisjoint(map(_source_of, rows)):  # 0.01 us a row
            seqs = _without_logged(connection, seqs, last_seq)
        restored, unfit = _restore(connection, batch.restored, max(last_seq, *seqs, 0))
        refused = [*refused, *unfit]
        last_seq = max(last_seq, *seqs, *restored, 0)
        untold = min(filter(None, restored), default=MAX_INTEGER)
        # What came out of quarantine stays there when the database refuses its record.
        resolved = [] if refused else batch.resolved
        reports = batch.quarantined if batch.resolved else [*batch.quarantined, *refused]
        quarantined = insert_quarantined(connection, reports, repeated=batch.repeated)
        for quarantine_id in resolved:
            connection.execute("DELETE FROM quarantined_report WHERE id = ?", (quarantine_id,))
        connection.execute(
            "UPDATE progress SET last_seq = ?, logged_seq = min(max(logged_seq, ?), ?)",
            (last_seq, logged_seq, untold - 1),  # a row told twice is better than one not told
        )
    added_none = [*seqs, *restored].count(0)
    return Outcome(seqs, restored, added_none - len(refused), quarantined)


_Inserted = tuple[Sequence[int], list[QuarantinedReport]]
"""The ``seq`` of each record, 0 where it has added no row; and what the database has refused."""


class _NotAllNew(Exception):
    """A record of the batch is stored already, or twice in it."""


def _insert_new(connection: sqlite3.Connection, rows: Sequence[Row], seq: int) -> _Inserted:
    """Insert records that are all new, many a statement. Raises _NotAllNew."""
    whole = len(rows) - len(rows) % ROWS_A_STATEMENT
    inserted = 0
    for at in range(0, whole, ROWS_A_STATEMENT):
        columns = chain.from_iterable(rows[at : at + ROWS_A_STATEMENT])
        inserted += connection.execute(_INSERT_MANY, [seq + at, *columns]).rowcount
    for at in range(whole, len(rows)):
        inserted += connection.execute(_INSERT_ONE, [seq + at, *rows[at]]).rowcount
    if inserted < len(rows):
        raise _NotAllNew
    return range(seq, seq + len(rows)), []


def _insert_each(connection: sqlite3.Connection, rows: Sequence[Row], seq: int) -> _Inserted:
    """Insert records one by one: a duplicate adds no row, one that SQLite refuses costs itself."""
    return _insert_records(connection, map(new_record, rows), seq)


def _insert_records(
    connection: sqlite3.Connection, records: Iterable[CallRecord], seq: int
) -> _Inserted:
    seqs: list[int] = []
    refused = []
    for record in records:
        inserted = 0
        try:
            inserted = connection.execute(_INSERT_ONE, [seq, *record]).rowcount
        except _POISON as error:
            refused.append(quarantine_of(record, f"refused by the database: {error}"))
        else:
            if not inserted and not _is_stored(connection, record):
                why = "refused by the database: another record has its identity"
                refused.append(quarantine_of(record, why))
        seqs.append(seq * inserted)
        seq += inserted
    return seqs, refused


def _without_logged(
    connection: sqlite3.Connection, seqs: Sequence[int], last_seq: int
) -> Sequence[int]:
    """Take out again the new rows whose calls the log had told, be it with another local start."""
    taken_out = {seq for (seq,) in connection.execute(_DELETE_LOGGED, (last_seq,))}
    return [0 if seq in taken_out else seq for seq in seqs]


def _is_stored(connection: sqlite3.Connection, record: CallRecord) -> bool:
    return connection.execute(_SAME_RECORD, record._asdict()).fetchone() is not None


def _restore(
    connection: sqlite3.Connection, calls: Sequence[RestoredCall], last_seq: int
) -> _Inserted:
    """Insert records under their own ``seq`` where it is free, else under the next one."""
    seqs: list[int] = []
    refused: list[QuarantinedReport] = []
    for wanted, record, local_told in calls:
        if not local_told and connection.execute(_SAME_LOGGED, record._asdict()).fetchone():
            seqs.append(0)
            continue
        free = wanted > last_seq or not connection.execute(_SEQ_TAKEN, (wanted,)).fetchone()
        added, unfit = _insert_records(connection, [record], wanted if free else last_seq + 1)
        last_seq = max(last_seq, *added)
        seqs += added
        refused += [report._replace(source=IMPORT) for report in unfit]
    return seqs, refused


def _insert(count: int) -> str:
    width = len(CallRecord._fields)
    values = []
    for row in range(count):
        columns = ", ".join(f"?{row * width + column + 2}" for column in range(width))
        values.append(f"(?1 + {row}, {columns})")
    # Only the identity may conflict in silence; any other fault of a row is an error. With FAIL it
    # is the transaction that undoes it: to undo a statement alone, SQLite would copy each page that
    # it changes into a file in /var/tmp, which was more than goes into the WAL.
    conflict = (
        "ON CONFLICT (started_at, call_id, identity) DO NOTHING "
        "ON CONFLICT (started_local, call_id, identity) WHERE identity < 0 DO NOTHING"
    )
    rows = ", ".join(values)
    return f"INSERT OR FAIL INTO call VALUES {rows} {conflict}"  # noqa: S608 - no outside text


_INSERT_MANY: Final = _insert(ROWS_A_STATEMENT)
_INSERT_ONE: Final = _insert(1)

_SAME_RECORD: Final = """
SELECT 1 FROM call WHERE (
    (started_at = :started_at AND call_id = :call_id AND identity = :identity)
    OR (started_local = :started_local AND call_id = :call_id AND identity = :identity
        AND identity < 0)
) AND pbx = :pbx AND started_local = :started_local AND caller = :caller AND callee = :callee
AND duration = :duration AND talk_duration = :talk_duration
AND status = :status AND call_type = :call_type
"""

_SEQ_TAKEN: Final = "SELECT 1 FROM call WHERE seq = ?"

_SAME_LOGGED: Final = """
SELECT 1 FROM call WHERE started_at = :started_at AND call_id = :call_id
AND pbx = :pbx AND caller = :caller AND callee = :callee
AND duration = :duration AND talk_duration = :talk_duration
AND status = :status AND call_type = :call_type
"""
"""The log does not tell the local start, and its place in the identity is worked out anew with a
time zone that may have been set wrong before; the instant is told."""

_DELETE_LOGGED: Final = """
DELETE FROM call WHERE seq > ?1 AND EXISTS (
    SELECT 1 FROM call AS logged
    WHERE logged.started_at = call.started_at AND logged.call_id = call.call_id
    AND logged.seq <= ?1
    AND logged.pbx = call.pbx AND logged.caller = call.caller AND logged.callee = call.callee
    AND logged.duration = call.duration AND logged.talk_duration = call.talk_duration
    AND logged.status = call.status AND logged.call_type = call.call_type
    AND instr(logged.raw, '"call_released"')
) RETURNING seq
"""
"""``_SAME_LOGGED`` the other way round; a row's ``raw`` shows that it is of the log.

Once a commit, and only where something is read again: what comes live is not in the log yet.
"""

_QUARANTINE: Final = """
INSERT INTO quarantined_report (received_at, pbx, peer, source, reason, payload, size)
SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7"""

_QUARANTINE_ONCE: Final = f"""{_QUARANTINE} WHERE NOT EXISTS (
    SELECT 1 FROM quarantined_report WHERE source IN ('import', 'portal', 'history') AND size = ?7
    AND substr(payload, 1, 200) = substr(?6, 1, 200) AND payload = ?6 AND pbx = ?2 AND source = ?4
)"""  # noqa: S608 - no outside text
"""Of what is read again; the index ``quarantined_once`` holds the size and the first bytes."""

_QUARANTINE_REPEATED: Final = f"""{_QUARANTINE} WHERE NOT EXISTS (
    SELECT 1 FROM quarantined_report WHERE received_at = ?1 AND pbx = ?2 AND peer = ?3
    AND source = ?4 AND reason = ?5 AND payload = ?6 AND size = ?7
)"""  # noqa: S608 - no outside text
"""Of what a spool brings, which a crash may have us read again; an index holds the time."""
