"""An example record that the tests vary."""

from collections.abc import Iterable, Sequence
from typing import Any

from cdrd.batch import Batch
from cdrd.line import LOGGED
from cdrd.record import CallRecord, identities, make_rows, new_record
from cdrd.report import ReleasedCall

_FIELDS = CallRecord(
    identity=0,
    pbx="hq",
    call_id="1505352615.274",
    cdr_id="",
    started_at="2017-09-14T01:30:15Z",
    started_local="2017-09-14 09:30:15",
    utc_offset=480,
    caller="1000",
    callee="91000",
    source_trunk="",
    destination_trunk="Apple_test",
    did_number="",
    duration=29,
    talk_duration=-1,
    agent_ring_time=-1,
    status="ANSWERED",
    call_type="Outbound",
    pin_code="4711",
    recording="",
    pbx_serial="",
    source="tcp",
    received_at="2017-09-14T01:30:45.123Z",
    raw="{}",
)


def varied(*, told_by_id: bool = True, **fields: Any) -> CallRecord:
    """Make the example with other fields, and the identity that goes with them.

    ``told_by_id``: whether the start is the call id's, and not worked out with the time zone.
    """
    record = _FIELDS._replace(**fields)
    identifying = (
        record.pbx,
        record.started_local,
        record.caller,
        record.callee,
        str(record.duration),
        str(record.talk_duration),
        record.status,
        record.call_type,
    )
    [identity] = identities([told_by_id], *([text] for text in identifying))
    return record._replace(identity=identity)


def exported(record: CallRecord, seq: int = 7) -> dict[str, Any]:
    """Make the row that the view ``calls`` shows of a record."""
    shown = {
        name: None if value in ("", -1) else value
        for name, value in zip(record._fields, record, strict=True)
    }
    row = {"seq": seq} | {name: shown[name] for name in record._fields[1:]}
    return row | {"utc_offset": record.utc_offset}


def logged(record: CallRecord, seq: int = 7) -> dict[str, Any]:
    """Make the line that the log tells a record with."""
    line = exported(record, seq)
    head = {"timestamp": "2017-09-14T01:30:45.130977Z", "level": "info", "event": "call_released"}
    return head | {name: line[name] for name in LOGGED}


def call(number: int) -> CallRecord:
    """Make one of many records that differ in their call_id."""
    return varied(call_id=f"1505352615.{number}")


def holding(records: Iterable[CallRecord], **others: Any) -> Batch:
    """Make a batch of records, and of whatever else it has."""
    batch = Batch(**others)
    batch.add(*records)
    return batch


def content(batch: Batch) -> tuple[object, ...]:
    """Return what a batch holds, in whatever blocks."""
    kinds = (batch.quarantined, batch.restored, batch.resolved, batch.repeated)
    return (batch.records, batch.mended, *kinds)


CALL = varied()


def make_records(
    calls: Sequence[ReleasedCall], raws: Sequence[str], **known: Any
) -> list[CallRecord]:
    """Make the records of released calls; ``known`` is what ``make_rows`` has to know of them."""
    return list(map(new_record, make_rows(calls, raws, **known)))
