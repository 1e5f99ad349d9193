"""Turns quarantined reports into records, once the decoder or the configuration has learnt more.

The rule that must stay true: a report leaves quarantine only in the transaction that stores all
that it holds, or when someone drops it by its number.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from cdrd.batch import Batch, QuarantinedReport, Waiting
from cdrd.record import MAX_INTEGER
from cdrd.schema import transaction
from cdrd.sender import Origin, Sender
from cdrd.source import HISTORY, IMPORT, PORTAL, TCP
from cdrd.stream import ReportStream, Totals

Kept = tuple[int, QuarantinedReport]

_COME_AGAIN: Final = {
    HISTORY: "a row of a PBX's history: cdrd fetch asks for its time again; then drop this",
    PORTAL: "a row of a portal: cdrd import conferences takes it from an export; then drop this",
    IMPORT: "mend it in its file and import that again; then drop this",
}
"""What to do about what is no report of a PBX, or need not be: only its file has the first line."""


@dataclass(frozen=True, slots=True)
class Retried:
    """What a retry makes of quarantined reports: a batch to commit, and why others stay."""

    batch: Batch = field(default_factory=Batch)
    staying: list[tuple[int, str]] = field(default_factory=list)


def read_quarantine(
    connection: sqlite3.Connection, ids: Sequence[int] | None = None, limit: int = -1
) -> list[Kept]:
    """Read quarantined reports: those of the given ids, or the newest ``limit``, oldest first."""
    if ids is None:
        found = connection.execute("SELECT * FROM quarantine ORDER BY id DESC LIMIT ?", (limit,))
        rows = found.fetchall()[::-1]
    else:
        rows = []
        for quarantine_id in filter(_may_exist, ids):
            query = "SELECT * FROM quarantine WHERE id = ?"
            rows += connection.execute(query, (quarantine_id,)).fetchall()
    return [(quarantine_id, QuarantinedReport(*columns)) for quarantine_id, *columns in rows]


def drop_quarantined(connection: sqlite3.Connection, ids: Iterable[int]) -> int:
    """Delete quarantined reports; return how many there were."""
    dropped = 0
    with transaction(connection):
        for quarantine_id in filter(_may_exist, ids):
            delete = "DELETE FROM quarantined_report WHERE id = ?"
            dropped += connection.execute(delete, (quarantine_id,)).rowcount
    return dropped


def _may_exist(quarantine_id: object) -> bool:
    """Tell whether SQLite can hold such an id: it answers any other with an error."""
    return isinstance(quarantine_id, int) and abs(quarantine_id) <= MAX_INTEGER


def retry(kept: Iterable[Kept], senders: Sequence[Sender], max_report_bytes: int) -> Retried:
    """Decode quarantined reports again, by the one decoder."""
    retried = Retried()
    for quarantine_id, report in kept:
        reason, batch = _decode(report, senders, max_report_bytes)
        if reason:
            advice = _COME_AGAIN.get(report.source)
            told = f"{report.reason}: {advice}" if advice else reason
            retried.staying.append((quarantine_id, told))
            continue
        for block in batch.blocks:
            retried.batch.add_block(block)
        retried.batch.resolved.append(quarantine_id)
    return retried


def _decode(
    report: QuarantinedReport, senders: Sequence[Sender], max_report_bytes: int
) -> tuple[str, Batch]:
    """Return why a report has to stay, or else the records that it holds."""
    if report.size > len(report.payload):
        return "only its beginning was kept", Batch()
    candidates = _candidates(report, senders)
    if not candidates:
        return f"no PBX {report.pbx!r} is configured", Batch()
    waiting = Waiting(max_bytes=0)
    stream = ReportStream(
        Origin(candidates),
        peer=report.peer,
        source=report.source,
        waiting=waiting,
        totals=Totals(),
        max_report_bytes=max(max_report_bytes, len(report.payload)),
    )
    stream.receive(report.payload, report.received_at)
    stream.close("it ends in the middle of a report", report.received_at)
    batch = waiting.arriving
    if batch.quarantined:
        return batch.quarantined[0].reason, Batch()
    if not batch.count:
        return "it holds no record", Batch()
    return "", batch


def _candidates(report: QuarantinedReport, senders: Sequence[Sender]) -> list[Sender]:
    """Return the PBXs that a report may be from, as the configuration is now.

    Those that its connection stood for; and of those added since at its address, the ones that
    are known by their serial.
    """
    names = {report.pbx}
    if report.pbx not in {sender.name for sender in senders}:
        names.update(report.pbx.split("/"))
    named = [sender for sender in senders if sender.name in names]
    host, _, _ = report.peer.rpartition(":")
    if not named or not host or report.source != TCP:
        return named
    address = host.strip("[]")
    return [
        sender
        for sender in senders
        if sender in named or (sender.serial and sender.may_be_at(address))
    ]
