"""An exported record comes back as it was; a line that no cdrd wrote says why it does not."""

from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdrd.batch import RestoredCall
from cdrd.line import LOGGED
from cdrd.record import CallRecord, NotARecord
from cdrd.report import read_row
from cdrd.restore import COLUMNS, MAX_SEQ, restore_exported, restore_logged
from tests.example import CALL, exported, logged, make_records, varied

BERLIN = ZoneInfo("Europe/Berlin")
Line = dict[str, Any]


def read_back(line: Line) -> Line:
    parsed: Line = orjson.loads(orjson.dumps(line))
    return parsed


def made(zone: str = "Europe/Berlin", **fields: object) -> CallRecord:
    report = {"callid": "1505352615.274", "timestart": "2017-09-14 09:30:15"} | fields
    [record] = make_records(
        [read_row(dict(report))],
        [orjson.dumps(report).decode()],
        pbx="hq",
        zone=ZoneInfo(zone),
        source="tcp",
        received_at="2017-09-14T01:30:45.123Z",
    )
    return record


KEPT = {
    "as in the examples": CALL,
    "much absent": made(),
    "the longest duration": made(callduration=2**63 - 1, talkduration="0"),
    "other scripts": made(callfrom="Müller", callto="☎ \U0001f4de", recording='a"\\b'),
    "unknown words": made(status="so so", type="Straße"),
    "the start told by the zone": made(callid="7", timestart="2017-09-14 09:30:15"),
    "the earlier of two": made(callid="7", timestart="2023-10-29 02:30:00"),
    "a start that no clock showed": made(callid="7", timestart="2023-03-26 02:30:00"),
    "an offset with seconds": made(callid="7", timestart="1890-01-01 00:00:00"),
    "the other offset with seconds": made(
        "America/New_York", callid="7", timestart="1850-01-01 00:00:00"
    ),
    "a zone of another day": made("Pacific/Kiritimati", callid="7"),
    "an id that tells another offset": made(callid=str(1505352615 + 3 * 3600)),
}


@pytest.mark.parametrize("record", KEPT.values(), ids=KEPT)
def test_an_exported_record_comes_back_as_it_was(record: CallRecord) -> None:
    assert restore_exported([read_back(exported(record))]) == [RestoredCall(7, record)]


def test_several_come_back_together_in_their_order() -> None:
    lines = [exported(record, seq) for seq, record in enumerate(KEPT.values(), start=3)]
    assert restore_exported(lines) == [
        RestoredCall(seq, record) for seq, record in enumerate(KEPT.values(), start=3)
    ]


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
seconds = st.one_of(st.just(""), st.integers(0, 2**63 - 1))
starts = st.datetimes().map(lambda start: start.isoformat(" ", "seconds"))
call_ids = st.one_of(
    texts.filter(str.strip), st.integers(0, 4 * 10**9).map(str), st.just("1505352615.274")
)


@given(
    zone=st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kolkata", "America/New_York"]),
    callid=call_ids,
    timestart=st.one_of(starts, st.just("2017-09-14 09:30:15")),
    callfrom=texts,
    callto=texts,
    callduraction=seconds,
    talkduraction=seconds,
    agentringtime=seconds,
    srctrunkname=texts,
    dsttrunkname=texts,
    status=texts,
    type=texts,
    pincode=texts,
    recording=texts,
    didnumber=texts,
    cdrid=texts,
    sn=texts,
)
def test_any_record_survives_export_and_import(zone: str, **fields: object) -> None:
    try:
        record = made(zone, **fields)
    except NotARecord:
        return  # a start at the end of time
    assert restore_exported([read_back(exported(record))]) == [RestoredCall(7, record)]


@given(
    st.dictionaries(
        st.sampled_from(COLUMNS),
        st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), texts, st.lists(st.none())),
    )
)
def test_whatever_a_line_says_it_is_a_record_or_not_one(changes: Line) -> None:
    try:
        [call] = restore_exported([exported(CALL) | changes])
    except NotARecord:
        return
    assert exported(call.record, call.seq) == exported(CALL) | {
        name: None if value == "" else value for name, value in changes.items()
    }


NONSENSE = {
    "no seq": ({"seq": None}, "seq is no integer"),
    "a seq of 0": ({"seq": 0}, "seq is no integer from 1"),
    "a seq that uses all numbers up": ({"seq": MAX_SEQ + 1}, "seq is no integer"),
    "a seq that is true": ({"seq": True}, "seq is no integer"),
    "no pbx": ({"pbx": None}, "no pbx"),
    "a blank pbx": ({"pbx": ""}, "no pbx"),
    "no call_id": ({"call_id": None}, "no call_id"),
    "a number for a text": ({"caller": 1000}, "caller is no text"),
    "zero for an absent text": ({"caller": 0}, "caller is no text"),
    "blanks around": ({"callee": " 1"}, "callee has blanks around it"),
    "a NUL": ({"callee": "1\x002"}, "callee has blanks around it, or a NUL"),
    "a text for a number": ({"duration": "29"}, "duration is no integer"),
    "a fraction": ({"talk_duration": 1.5}, "talk_duration is no integer"),
    "below zero": ({"duration": -1}, "duration is no integer from 0"),
    "beyond SQLite's numbers": ({"agent_ring_time": 2**63}, "agent_ring_time is no integer"),
    "an unknown status": ({"status": "answered"}, "status 'answered' is not as cdrd spells it"),
    "an unknown type": ({"call_type": "OUTBOUND"}, "call_type 'OUTBOUND' is not as cdrd"),
    "no source": ({"source": None}, "no source"),
    "received at no time": ({"received_at": "yesterday"}, "received_at is no UTC time"),
    "received without milliseconds": ({"received_at": "2017-09-14T01:30:45Z"}, "received_at"),
    "received in local time": ({"received_at": "2017-09-14T01:30:45.123+02:00"}, "received_at"),
    "another start": ({"started_at": "2017-09-14T01:30:16Z"}, "do not fit each other"),
    "no start": ({"started_at": "2017-09-14 01:30:15"}, "do not fit each other"),
    "another offset": ({"utc_offset": 420}, "do not fit each other"),
    "an offset of days": ({"utc_offset": 1440}, "utc_offset is no integer"),
    "a local start as the PBX may say it": (
        {"started_local": "2017/09/14 09:30:15"},
        "do not fit each other",
    ),
    "a local start that is none": ({"started_local": "2017-02-30 09:30:15"}, "timestart"),
    "raw that is no text": ({"raw": {}}, "raw is no JSON object as text"),
    "raw that is no object": ({"raw": "[]"}, "raw is no JSON object as text"),
    "raw that is no JSON": ({"raw": "{"}, "raw is not valid JSON"),
    "an unknown column": ({"mood": "good"}, "knows no column 'mood'"),
}


@pytest.mark.parametrize(("changes", "reason"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_refused_with_its_reason(changes: Line, reason: str) -> None:
    with pytest.raises(NotARecord) as refusal:
        restore_exported([exported(CALL) | changes])
    assert reason in str(refusal.value)


@pytest.mark.parametrize("name", COLUMNS)
def test_a_line_without_a_column_is_refused(name: str) -> None:
    line = exported(CALL)
    del line[name]
    with pytest.raises(NotARecord, match=f"the line lacks {name}: export every column"):
        restore_exported([line])


@pytest.mark.parametrize(
    "change",
    [
        lambda _: {"started_at": "2017-02-30T01:30:15Z"},
        lambda _: {"started_at": "1890-01-01T00:00:00"},
        lambda _: {"started_at": "0000"},
    ],
)
def test_an_instant_that_is_none_is_refused(change: Callable[[object], Line]) -> None:
    record = KEPT["an offset with seconds"]
    with pytest.raises(NotARecord):
        restore_exported([exported(record) | change(None)])


def test_a_log_line_tells_its_record() -> None:
    record = varied(pin_code="", talk_duration=9)
    text = orjson.dumps(logged(record)).decode()
    [seq, restored, local_told] = restore_logged(orjson.loads(text), text, ZoneInfo("Asia/Manila"))
    assert (seq, local_told) == (7, False)
    received_at = "2017-09-14T01:30:45.130Z"
    assert restored == record._replace(raw=text, received_at=received_at)


def test_a_log_line_of_the_hour_that_is_twice_tells_which() -> None:
    for epoch, said in (1698539400, 120), (1698543000, 60):
        record = made(callid=str(epoch), timestart="2023-10-29 02:30:00")
        assert record.utc_offset == said
        assert restore_logged(logged(record), "{}", BERLIN).record == record._replace(
            raw="{}", received_at="2017-09-14T01:30:45.130Z"
        )


def test_a_log_line_whose_start_the_zone_told_is_the_same_record() -> None:
    record = made(callid="7", timestart="2023-10-29 02:30:00")
    assert record.identity < 0
    assert restore_logged(logged(record), "{}", BERLIN).record == record._replace(
        raw="{}", received_at="2017-09-14T01:30:45.130Z"
    )


@pytest.mark.parametrize("name", [*LOGGED, "timestamp"])
def test_a_log_line_that_lacks_something_is_refused(name: str) -> None:
    line = logged(CALL)
    del line[name]
    with pytest.raises(NotARecord, match=f"^the line lacks {name}$"):
        restore_logged(line, "{}", BERLIN)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("started_at", None),
        ("started_at", "0001-01-01T00:00:00Z"),
        ("started_at", "2017-09-14T01:30:15.000Z"),
        ("timestamp", "now"),
        ("timestamp", 7),
        ("caller", 1000),
        ("seq", "7"),
    ],
)
def test_a_log_line_of_nonsense_is_refused(name: str, value: object) -> None:
    with pytest.raises(NotARecord, match=name):
        restore_logged(logged(CALL) | {name: value}, "{}", ZoneInfo("America/New_York"))
