"""An example record that the tests vary."""

from cdrd.record import CallRecord

CALL = CallRecord(
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


def call(number: int) -> CallRecord:
    """Make one of many records that differ in their call_id."""
    return CALL._replace(call_id=f"1505352615.{number}")
