"""A record says what the PBX said; whatever cannot be understood is not one, and says why."""

import json
import re
import sqlite3
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zlib import crc32
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdrd.batch import Batch
from cdrd.record import ABSENT_SECONDS, CallRecord, NotARecord, utc_milliseconds
from cdrd.report import ReleasedCall, read_reports
from cdrd.schema import migrate
from tests.committing import commit
from tests.example import make_records

SAMPLES = Path(__file__).parent / "samples"
BERLIN = ZoneInfo("Europe/Berlin")
RECEIVED_AT = "2024-01-01T00:00:00.000Z"


def records_of(
    reports: Sequence[dict[str, Any]], *, zone: str = "Europe/Berlin", raws: Sequence[str] = ()
) -> list[CallRecord]:
    calls = read_reports(reports)
    assert all(isinstance(call, ReleasedCall) for call in calls)
    return make_records(
        [call for call in calls if isinstance(call, ReleasedCall)],
        raws or [orjson.dumps(report).decode() for report in reports],
        pbx="hq",
        zone=ZoneInfo(zone),
        source="tcp",
        received_at=RECEIVED_AT,
    )


def record_of(report: dict[str, Any], *, zone: str = "Europe/Berlin", raw: str = "") -> CallRecord:
    (record,) = records_of([report], zone=zone, raws=[raw] if raw else ())
    return record


def new_cdr(**fields: Any) -> dict[str, Any]:
    report = {
        "action": "NewCdr",
        "callid": "1505352615.274",
        "timestart": "2017-09-14 09:30:15",
        "callfrom": "1000",
        "callto": "91000",
        "callduraction": "29",
        "talkduraction": "29",
        "status": "ANSWERED",
        "type": "Outbound",
    }
    return {**report, **fields}


def refusal(report: dict[str, Any]) -> str:
    with pytest.raises(NotARecord) as caught:
        record_of(report)
    return str(caught.value)


def row(**columns: Any) -> CallRecord:
    """Make a row by hand: absent is what is not named."""
    absent: dict[str, Any] = dict.fromkeys(CallRecord._fields, "")
    absent |= {"identity": 0, "duration": -1, "talk_duration": -1, "agent_ring_time": -1}
    return CallRecord(**{**absent, "pbx": "hq", "source": "tcp", **columns})


WEST = {"utc_offset": -480, "status": "ANSWERED"}
EAST = {"utc_offset": 480, "status": "ANSWERED"}
INTERNAL_1002_1000 = row(
    **WEST,
    call_id="1495779310.371",
    started_at="2017-05-26T06:15:10Z",
    started_local="2017-05-25 22:15:10",
    caller="1002",
    callee="1000",
    duration=3,
    talk_duration=2,
    call_type="Internal",
)
OUTBOUND_1000_91000 = row(
    **EAST,
    call_id="1505352615.274",
    started_at="2017-09-14T01:30:15Z",
    started_local="2017-09-14 09:30:15",
    caller="1000",
    callee="91000",
    destination_trunk="Apple_test",
    duration=29,
    talk_duration=29,
    call_type="Outbound",
    pin_code="1000",
    recording="20170914093038-1505352615.274-1000-91000-Outbound.wav",
)
INBOUND_102_1000 = row(
    **EAST,
    call_id="1505352445.265",
    started_at="2017-09-14T01:27:25Z",
    started_local="2017-09-14 09:27:25",
    caller="102",
    callee="1000",
    source_trunk="Apple_test",
    duration=38,
    talk_duration=29,
    call_type="Inbound",
    recording="20170914092747-1505352445.265-102-1000-Inbound.wav",
)
ROWS = {
    "s-series-1.0.0-newcdr.jsonl": [
        INTERNAL_1002_1000,
        row(
            **WEST,
            call_id="1495779454.374",
            started_at="2017-05-26T06:17:34Z",
            started_local="2017-05-25 22:17:34",
            caller="1002",
            callee="41004",
            destination_trunk="sip-142",
            duration=4,
            talk_duration=4,
            call_type="Outbound",
        ),
        row(
            **WEST,
            call_id="1495779821.377",
            started_at="2017-05-26T06:23:41Z",
            started_local="2017-05-25 22:23:41",
            caller="1000",
            callee="1002",
            source_trunk="sip-142",
            duration=18,
            talk_duration=9,
            call_type="Inbound",
        ),
    ],
    "s-series-1.0.1-newcdr.jsonl": [OUTBOUND_1000_91000, INBOUND_102_1000],
    "s-series-1.0.2-newcdr.jsonl": [
        row(
            **EAST,
            call_id="1547391782.318",
            started_at="2019-01-13T15:03:02Z",
            started_local="2019-01-13 23:03:02",
            caller="1001",
            callee="1005",
            duration=21,
            talk_duration=10,
            call_type="Internal",
            recording="20180315201242-1521173562.46-203-201-Internal.yswav",
            pbx_serial="369362089179",
        ),
        row(
            **EAST,
            call_id="1547392142.330",
            started_at="2019-01-13T15:09:02Z",
            started_local="2019-01-13 23:09:02",
            caller="1005",
            callee="9200000001",
            destination_trunk="SPS-6-36",
            duration=6,
            talk_duration=3,
            call_type="Outbound",
            recording="20180315201242-1521173562.46-203-201-Internal.yswav",
            pbx_serial="369362089179",
        ),
    ],
    "s-series-2.0.0-newcdr.jsonl": [
        row(
            **WEST,
            call_id="1571897930.5",
            started_at="2019-10-24T06:18:50Z",
            started_local="2019-10-23 22:18:50",
            caller="1023",
            callee="2023",
            duration=19,
            talk_duration=14,
            agent_ring_time=0,
            call_type="Internal",
            recording="20191024201242-1571897930.5-203-201-Internal.wav",
            pbx_serial="369451090405",
        )
    ],
    "openvox.jsonl": [
        row(
            call_id="1589958682.2101",
            started_at="2020-05-20T07:11:22Z",
            started_local="2020-05-20 10:11:22",
            utc_offset=180,
            caller="106",
            callee="102",
            duration=10,
            talk_duration=5,
            status="ANSWERED",
            call_type="Internal",
            pbx_serial="a09805021987",
        )
    ],
    "p-series-30012-websocket.jsonl": [
        row(
            call_id="1702285525.16",
            started_at="2023-12-11T09:05:25Z",
            started_local="2023-12-11 11:05:25",
            utc_offset=120,
            caller="703",
            callee="0870000001",
            destination_trunk="27870000001_SIP",
            duration=0,
            talk_duration=0,
            agent_ring_time=0,
            status="BUSY",
            call_type="Outbound",
            pbx_serial="3633D2199067",
        )
    ],
}


@pytest.mark.parametrize("name", ROWS)
def test_a_published_report_gives_this_row(name: str) -> None:
    lines = (SAMPLES / name).read_text().splitlines()
    expected = [
        one._replace(received_at=RECEIVED_AT, raw=line)
        for one, line in zip(ROWS[name], lines, strict=True)
    ]
    found = records_of([orjson.loads(line) for line in lines], raws=lines)
    assert [record._replace(identity=0) for record in found] == expected


# The start.


@pytest.mark.parametrize(
    ("seconds", "minutes"),
    [(0, 0), (900, 15), (-900, -15), (20_700, 345), (50_400, 840), (-50_400, -840)],
)
def test_an_id_that_differs_by_quarter_hours_within_14_hours_tells_the_offset(
    seconds: int, minutes: int
) -> None:
    epoch = int(datetime(2017, 9, 14, 9, 30, 15, tzinfo=UTC).timestamp()) - seconds
    for call_id in (f"{epoch}.274", f"{epoch}", epoch):
        record = record_of(new_cdr(callid=call_id))
        started_at = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        assert (record.started_at, record.utc_offset) == (started_at, minutes)


@pytest.mark.parametrize("seconds", [1, 899, 901, 51_300, -51_300, 7201, 10**8])
def test_any_other_id_leaves_it_to_the_zone(seconds: int) -> None:
    epoch = int(datetime(2017, 9, 14, 9, 30, 15, tzinfo=UTC).timestamp()) - seconds
    record = record_of(new_cdr(callid=f"{epoch}.274"))
    assert (record.started_at, record.utc_offset) == ("2017-09-14T07:30:15Z", 120)


@pytest.mark.parametrize(
    "call_id", ["a", "0", "-1505352615", "1505352615a.2", "١٥٠٥٣٥٢٦١٥.1", "9" * 5000, ".5", "1e9"]
)
def test_an_id_that_is_no_epoch_leaves_it_to_the_zone(call_id: str) -> None:
    record = record_of(new_cdr(callid=call_id))
    assert record.call_id == call_id
    assert (record.started_at, record.utc_offset) == ("2017-09-14T07:30:15Z", 120)


@pytest.mark.parametrize(
    ("epoch", "started_at", "offset"),
    [
        (1_698_539_400, "2023-10-29T00:30:00Z", 120),
        (1_698_543_000, "2023-10-29T01:30:00Z", 60),
        (7, "2023-10-29T00:30:00Z", 120),  # the earlier instant where nothing tells
    ],
)
def test_the_hour_that_autumn_doubles_is_told_by_the_id(
    epoch: int, started_at: str, offset: int
) -> None:
    record = record_of(new_cdr(callid=f"{epoch}.1", timestart="2023-10-29 02:30:00"))
    assert (record.started_at, record.utc_offset) == (started_at, offset)


def test_the_hour_that_spring_leaves_out_is_taken_at_the_offset_before_it() -> None:
    record = record_of(new_cdr(callid="x", timestart="2023-03-26 02:30:00"))
    assert (record.started_at, record.utc_offset) == ("2023-03-26T01:30:00Z", 60)
    assert record.started_local == "2023-03-26 02:30:00"


@pytest.mark.parametrize(
    "said",
    [
        "2017-09-14 09:30:15",
        "2017-09-14T09:30:15",
        "2017/09/14 09:30:15",
        "  2017-09-14 09:30:15\t",
    ],
)
def test_a_start_is_spelled_one_way(said: str) -> None:
    assert record_of(new_cdr(timestart=said)).started_local == "2017-09-14 09:30:15"


NONSENSE = [
    "2017-02-30 09:30:15",
    "2017-13-01 09:30:15",
    "2017-00-01 09:30:15",
    "0000-01-01 09:30:15",
    "2017-09-14 24:00:00",
    "2017-09-14 09:60:15",
    "2017-09-14 09:30:60",
    "2017-09-14 09:30+02",
    "2017-09-14 09:30:1Z",
    "2017-09-14 09:30:-1",
    "2017-09-14 09:30",
    "2017-09-14",
    "2017-W37-4 09:30:15",
    "2017W374 09:30:15.0",
    "2017-257 09:30:15.0",
    "2017-09-14 09:30:15Z",
    "2017-09-14 09:30:15.5",
    "2017-09-14 22:Z",
    "2017-09-14 22:0Z:15",
    "2017-09-14 09:30:15+02:00",
    "2017-09/14 09:30:15",
    "14.09.2017 09:30:15",
    "2017-9-14 09:30:15",
    "20170914T093015",
    "٢٠١٧-09-14 09:30:15",
    "\uff12\uff10\uff11\uff17-09-14 09:30:15",
    "1505352615",
    "now",
    "x" * 100_000,
]


@pytest.mark.parametrize("said", NONSENSE)
def test_a_nonsense_start_is_quoted_in_the_reason(said: str) -> None:
    reason = refusal(new_cdr(timestart=said))
    assert reason.startswith("timestart")
    assert said[:20] in reason
    assert len(reason) < 200


def test_nothing_is_kept_of_long_ids() -> None:
    """What a start is is kept for the calls of the same second, the id's first digits with it."""
    tracemalloc.start()
    try:
        for number in range(100):
            record_of(new_cdr(callid=f"{number:0100000}.1"))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000


@settings(max_examples=500)
@given(
    st.from_regex(
        r"[0-9W]{4}[-/][0-9W]{2}[-/][0-9]{2}[ T][0-9.Z+]{2}:[-+0-9Z]{1,2}(:[-0-9Z+.]{2})?"
    )
)
def test_only_a_time_of_the_one_form_is_a_start(said: str) -> None:
    try:
        record = record_of(new_cdr(timestart=said))
    except NotARecord:
        return
    assert re.fullmatch(r"\d{4}[-/]\d\d[-/]\d\d[ T]\d\d:\d\d:\d\d", said.strip(), re.ASCII)
    assert record.started_local == said.strip().replace("/", "-").replace("T", " ")


@settings(max_examples=300)
@given(
    st.datetimes(),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Etc/GMT-14"]),
)
def test_any_start_in_any_zone_is_a_record_or_out_of_range(start: datetime, zone: str) -> None:
    said = start.replace(microsecond=0).isoformat(" ")
    try:
        record = record_of(new_cdr(callid="x", timestart=said), zone=zone)
    except NotARecord as error:
        assert "out of range" in str(error)  # noqa: PT017 - only near the calendar's ends
        assert start.year in (1, 9999)
    else:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record.started_at)
        utc = datetime.fromisoformat(record.started_at[:-1])
        offset = start.replace(microsecond=0) - utc
        assert offset == start.replace(tzinfo=ZoneInfo(zone), fold=0).utcoffset()
        assert abs(offset - timedelta(minutes=record.utc_offset)) < timedelta(minutes=1)


# Words and numbers.


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("ANSWERED", "ANSWERED"),
        ("ANSWERD", "ANSWERED"),
        ("answered", "ANSWERED"),
        ("NO ANSWER", "NO ANSWER"),
        ("NOANSWER", "NO ANSWER"),
        ("NO ANSWERED", "NO ANSWER"),
        ("no  answer", "NO ANSWER"),
        ("BUSY", "BUSY"),
        ("Failed", "FAILED"),
        ("VOICEMAIL", "VOICEMAIL"),
        ("ABANDONED", "ABANDONED"),
        ("Parked", "PARKED"),
        ("", ""),
        ("  ", ""),
        (None, ""),
    ],
)
def test_a_status_is_spelled_one_way_and_an_unknown_one_in_capitals(
    said: str | None, status: str
) -> None:
    assert record_of(new_cdr(status=said)).status == status


@pytest.mark.parametrize(
    ("said", "call_type"),
    [
        ("Inbound", "Inbound"),
        ("outbound", "Outbound"),
        ("INTERNAL", "Internal"),
        ("callback", "Callback"),
        (" Transfer ", "Transfer"),
        ("Paging", "PAGING"),
        ("", ""),
        (None, ""),
    ],
)
def test_a_call_type_is_spelled_one_way(said: str | None, call_type: str) -> None:
    assert record_of(new_cdr(type=said)).call_type == call_type


TEXTS = {
    "cdrid": "cdr_id",
    "callfrom": "caller",
    "callto": "callee",
    "srctrunkname": "source_trunk",
    "desttrunkname": "destination_trunk",
    "didnumber": "did_number",
    "pincode": "pin_code",
    "recording": "recording",
    "sn": "pbx_serial",
}
SECONDS = {
    "callduraction": "duration",
    "talkduraction": "talk_duration",
    "agentringtime": "agent_ring_time",
}


@pytest.mark.parametrize(("key", "column"), TEXTS.items())
def test_absent_empty_and_blank_text_are_the_same(key: str, column: str) -> None:
    absent = new_cdr()
    absent.pop(key, None)
    for report in (absent, *(new_cdr(**{key: blank}) for blank in ("", "  ", "\t\n", None))):
        assert getattr(record_of(report), column) == ""


@pytest.mark.parametrize(("key", "column"), SECONDS.items())
def test_absent_empty_and_blank_seconds_are_the_same(key: str, column: str) -> None:
    absent = new_cdr()
    absent.pop(key, None)
    for report in (absent, *(new_cdr(**{key: blank}) for blank in ("", "  ", None))):
        assert getattr(record_of(report), column) == ABSENT_SECONDS


@pytest.mark.parametrize(("key", "column"), TEXTS.items())
def test_an_integer_is_taken_as_text(key: str, column: str) -> None:
    assert getattr(record_of(new_cdr(**{key: 1000})), column) == "1000"
    assert getattr(record_of(new_cdr(**{key: 0})), column) == "0"
    assert getattr(record_of(new_cdr(**{key: " 6200(4002) "})), column) == "6200(4002)"


@pytest.mark.parametrize(("key", "column"), SECONDS.items())
def test_seconds_are_taken_as_text_and_as_numbers(key: str, column: str) -> None:
    for said in (29, "29", " 29 ", "029"):
        assert getattr(record_of(new_cdr(**{key: said})), column) == 29
    for largest in (2**63 - 1, str(2**63 - 1)):
        assert getattr(record_of(new_cdr(**{key: largest})), column) == 2**63 - 1
    assert getattr(record_of(new_cdr(**{key: 0})), column) == 0


# The identity.

IDENTITY = {
    "callfrom": "1001",
    "callto": "91001",
    "callduraction": "30",
    "talkduraction": "28",
    "status": "BUSY",
    "type": "Inbound",
    "timestart": "2017-09-14 09:45:15",
}
"""What tells a record from another of its PBX and call_id, with another value."""


def test_one_call_is_one_identity_in_every_dialect() -> None:
    plain = new_cdr()
    renamed = {
        "type": 30012,
        "msg": {
            "call_id": "1505352615.274",
            "time_start": "2017/09/14 09:30:15",
            "call_from": 1000,
            "call_to": " 91000",
            "call_duration": 29,
            "talk_duration": "029",
            "status": "answered",
            "type": "OUTBOUND",
            "pin_code": " ",
        },
    }
    one, other = records_of([plain, renamed])
    assert one._replace(raw="") == other._replace(raw="")


def test_an_identity_stays_what_it_is_in_the_databases_that_exist() -> None:
    fields = b"hq\x002017-09-14 09:30:15\x001000\x0091000\x0029\x0029\x00ANSWERED\x00Outbound"
    assert record_of(new_cdr()).identity == crc32(fields)
    assert record_of(new_cdr(callid="x")).identity == ~crc32(fields)
    bare = new_cdr(callfrom="", callto=None, callduraction="", talkduraction=" ", status="")
    fields = b"hq\x002017-09-14 09:30:15\x00\x00\x00-1\x00-1\x00\x00Outbound"
    assert record_of(bare).identity == crc32(fields)


@pytest.mark.parametrize(("key", "other"), IDENTITY.items())
@pytest.mark.parametrize("call_id", ["1505352615.274", "x"])
def test_another_value_of_the_identity_is_another_identity(
    key: str, other: str, call_id: str
) -> None:
    one, two = records_of([new_cdr(callid=call_id), new_cdr(callid=call_id, **{key: other})])
    assert one.identity != two.identity


@pytest.mark.parametrize(
    "key", ["cdrid", "srctrunkname", "desttrunkname", "didnumber", "agentringtime", "pincode", "sn"]
)
def test_another_value_of_any_other_field_is_the_same_identity(key: str) -> None:
    one, two = records_of([new_cdr(), new_cdr(**{key: "7"})])
    assert one.identity == two.identity


def test_an_identity_is_negative_where_the_zone_told_the_start() -> None:
    told_by_id, told_by_zone = records_of([new_cdr(), new_cdr(callid="1505352616.274")])
    assert told_by_id.identity >= 0 > told_by_zone.identity


@pytest.mark.parametrize("call_id", ["1505352615.274", "x"])
def test_an_identity_stays_when_the_zone_is_corrected(call_id: str) -> None:
    identities = {
        record_of(new_cdr(callid=call_id), zone=zone).identity
        for zone in ("Europe/Berlin", "America/New_York", "Asia/Kathmandu")
    }
    assert len(identities) == 1


# What is no record.


@pytest.mark.parametrize("blank", ["", "   ", None])
def test_without_an_id_or_a_start_there_is_no_record(blank: str | None) -> None:
    assert refusal(new_cdr(callid=blank)) == "no callid"
    assert refusal(new_cdr(timestart=blank)) == "no timestart"
    assert refusal({"action": "NewCdr"}).startswith("no ")


@pytest.mark.parametrize(
    "said", ["x", "-1", "+1", "1.5", "1e3", "0x10", "1_000", "٢٩", "²", "9" * 5000, "0:29", "1 2"]
)
@pytest.mark.parametrize(("key", "column"), SECONDS.items())
def test_seconds_that_are_no_number_are_quoted(key: str, column: str, said: str) -> None:
    reason = refusal(new_cdr(**{key: said}))
    assert reason.startswith(column)
    assert said[:20] in reason
    assert len(reason) < 200


@pytest.mark.parametrize(
    "said", [-1, -(2**63), 2**63, 2**64 - 1, str(2**63), 1.0, 1.5, 1e300, True, [], {}, [29]]
)
@pytest.mark.parametrize(("key", "column"), SECONDS.items())
def test_seconds_of_a_wrong_kind_are_no_record(key: str, column: str, said: object) -> None:
    assert refusal(new_cdr(**{key: said})).startswith(column)


@pytest.mark.parametrize("said", [1505352615.274, True, False, [], {}, ["1000"], {"a": "1000"}])
@pytest.mark.parametrize("key", ["callid", "timestart", "status", "type", *TEXTS])
def test_a_value_of_a_wrong_kind_is_no_record(key: str, said: object) -> None:
    assert refusal(new_cdr(**{key: said}))


@pytest.mark.parametrize("pin", [8642.5, ["8642"], {"8642": "8642"}, "8642\0"])
def test_a_pin_code_is_never_quoted(pin: object) -> None:
    reason = refusal(new_cdr(pincode=pin))
    assert reason
    assert "8642" not in reason


@pytest.mark.parametrize("key", ["callid", "callfrom", "status", "recording", "sn"])
def test_a_nul_in_a_field_is_no_record(key: str) -> None:
    assert "NUL" in refusal(new_cdr(**{key: "15\x0000"}))


@pytest.mark.parametrize("message", ['{"call_from":"1\\u0000"}', '{"call_from":"1\\\\u0000"}'])
def test_an_escaped_nul_is_found_however_deep_it_was_escaped(message: str) -> None:
    call = {"call_id": "1505352615.274", "time_start": "2017-09-14 09:30:15"}
    message = json.dumps(call)[:-1] + "," + message[1:]
    # The backslash of the inner escape may itself be escaped as a character.
    raw = json.dumps({"type": 30012, "msg": message}).replace("\\\\", "\\u005c")
    if "\0" in orjson.loads(message)["call_from"]:
        with pytest.raises(NotARecord):
            record_of(orjson.loads(raw), raw=raw)
    else:
        assert record_of(orjson.loads(raw), raw=raw).caller == "1\\u0000"


def test_a_nul_whose_escape_is_itself_escaped_is_found() -> None:
    message = (
        '{"call_id":"1505352615.274","time_start":"2017-09-14 09:30:15","pin_code":"1\\u0000"}'
    )
    for escaped in ("\\\\\\u00750000", "\\\\u\\u0030000", "\\u005c\\u00750\\u003000"):
        raw = json.dumps({"type": 30012, "msg": message}).replace("\\\\u0000", escaped)
        report = orjson.loads(raw)
        assert report["msg"] == message
        with pytest.raises(NotARecord, match="NUL"):
            record_of(report, raw=raw)


def test_a_nul_in_an_unknown_key_harms_nothing() -> None:
    assert record_of(new_cdr(note="\0")).caller == "1000"


# Anything at all.


@contextmanager
def database() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        migrate(connection)
        yield connection
    finally:
        connection.close()


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["1505352615.274", "2017-09-14 09:30:15", "29", "", " ", "\0", "0001-01-01 00:00:00"]
)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
    max_leaves=4,
)
keys = st.sampled_from(["callid", "timestart", "status", "type", "note", *TEXTS, *SECONDS])


@settings(max_examples=500)
@given(st.dictionaries(keys, values, max_size=4))
def test_any_json_in_any_field_is_a_record_or_says_why_not(fields: dict[str, Any]) -> None:
    raw = orjson.dumps(new_cdr(**fields)).decode()
    try:
        record = record_of(orjson.loads(raw), raw=raw)
    except NotARecord as error:
        assert str(error).encode()  # noqa: PT017 - either outcome is right
    else:
        assert all(type(value) in (str, int) for value in record)
        assert record.raw == raw


def alone(fields: dict[str, Any], zone: str) -> CallRecord | None:
    try:
        return record_of(new_cdr(**fields), zone=zone)
    except NotARecord:
        return None


some_starts = st.sampled_from(
    [
        {},
        {"callid": "x"},
        {"callid": 1_698_539_400, "timestart": "2023-10-29 02:30:00"},
        {"callid": "7.1", "timestart": "2023-10-29 02:30:00"},
        {"callid": "7.1", "timestart": "2023/03/26 02:30:59"},
        {"callid": "1505352615", "timestart": "2017-09-14T01:30:15"},
    ]
)
some_fields = st.dictionaries(keys, words | st.integers(0, 2**63 - 1), max_size=2)
likely_fields = st.dictionaries(
    st.sampled_from([*TEXTS, *SECONDS, "status", "type"]),
    st.sampled_from(["", " 7", "029", 29, 0, None, "7200", "2147483648"]),
    max_size=5,
)


@settings(max_examples=300)
@given(
    st.lists(
        st.builds(
            lambda start, likely, fields: {**start, **likely, **fields},
            some_starts,
            likely_fields,
            st.just({}) | st.just({}) | st.just({}) | some_fields,
        ),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu"]),
)
def test_records_made_together_are_those_made_alone(
    reports: list[dict[str, Any]], zone: str
) -> None:
    """And where one of them is none, there are none together: each has to be asked for alone."""
    expected = [alone(fields, zone) for fields in reports]
    try:
        together = records_of([new_cdr(**fields) for fields in reports], zone=zone)
    except NotARecord:
        assert None in expected
    else:
        assert together == expected


@pytest.mark.parametrize("at", [0, 1, 99])
@pytest.mark.parametrize(
    "fault",
    [
        {"callid": ""},
        {"callid": None},
        {"timestart": "2017-02-30 09:30:15"},
        {"timestart": "9999-12-31 23:30:15", "callid": "x"},
        {"timestart": ""},
        {"callduraction": "-1"},
        {"agentringtime": 1.5},
        {"pincode": []},
        {"recording": "\0"},
    ],
)
def test_one_that_is_no_record_spoils_all_that_are_made_with_it(
    fault: dict[str, Any], at: int
) -> None:
    reports = [new_cdr(callid=f"1505352615.{number}") for number in range(100)]
    assert len(records_of(reports)) == 100
    reports[at] |= fault
    with pytest.raises(NotARecord):
        records_of(reports, zone="America/New_York")


@settings(max_examples=150)
@given(
    st.lists(
        st.dictionaries(keys, words | st.integers(0, 2**63 - 1), max_size=4),
        min_size=1,
        max_size=25,
    )
)
def test_a_made_record_always_goes_into_the_database(reports: list[dict[str, Any]]) -> None:
    batch = Batch()
    for fields in reports:
        try:
            batch.add(record_of(new_cdr(**fields)))
        except NotARecord:
            continue
    with database() as connection:
        committed = commit(connection, batch, 0)
        assert committed.quarantined == []
        assert len(committed.stored) + committed.duplicates == len(batch.records)
        stored = connection.execute("SELECT * FROM call ORDER BY seq").fetchall()
        assert stored == [(seq, *record) for seq, record in committed.stored]


def test_the_time_of_receipt_is_spelled_in_milliseconds() -> None:
    assert utc_milliseconds(0) == "1970-01-01T00:00:00.000Z"
    assert utc_milliseconds(1_505_352_615.2749) == "2017-09-14T01:30:15.274Z"
    assert datetime.fromisoformat(utc_milliseconds(1.5)) == datetime.fromtimestamp(1.5, UTC)
