"""What a PBX's API hands out becomes the records that its reports would have become."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest

from cdrd.batch import Waiting
from cdrd.fetch import (
    DAY,
    NotAHistory,
    RestStream,
    Window,
    as_pushed,
    gap_windows,
    open_csv,
    windows,
)
from cdrd.record import CallRecord
from cdrd.sender import Origin, Sender
from cdrd.source import HISTORY
from cdrd.stream import ReportStream, Totals

BERLIN = ZoneInfo("Europe/Berlin")
ORIGIN = Origin([Sender("hq", BERLIN)])
NOW = "2024-03-01T08:15:30.120Z"
NOON = datetime(2024, 3, 1, 12, tzinfo=UTC).timestamp()

PUSHED = {
    "type": 30012,
    "sn": "3633D2199067",
    "msg": (
        '{"call_id":"1709281021.16","time_start":"2024-03-01 09:17:01","call_from":"703",'
        '"call_to":"0870000001","call_duration":31,"talk_duration":20,"src_trunk_name":" ",'
        '"dst_trunk_name":"27870000001_SIP","pin_code":"","status":"ANSWERED","type":"Outbound",'
        '"recording":"","did_number":"","agent_ring_time":0}'
    ),
}
ROW = {
    "uid": "20240301091701ABC",
    "call_id": "1709281021.16",
    "time": "2024-03-01 09:17:01",
    "timestamp": 1709281021,
    "call_from": "Anna<703>",
    "call_to": "0870000001",
    "duration": 31,
    "talk_duration": 20,
    "ring_duration": 11,
    "src_trunk": "",
    "dst_trunk": "27870000001_SIP",
    "disposition": "ANSWERED",
    "call_type": "Outbound",
    "did": "",
    "pin_code": "",
}


def fetched(*rows: object) -> tuple[Waiting, Totals]:
    """Take rows of a REST answer into custody."""
    waiting, totals = Waiting(1 << 20), Totals()
    stream = RestStream(ORIGIN, peer="https://pbx", waiting=waiting, totals=totals)
    stream.take_rows(rows, NOW)
    return waiting, totals


def record_of(**changed: Any) -> CallRecord:
    waiting, _ = fetched(ROW | changed)
    [record] = waiting.arriving.records
    return record


def reason_of(row: object) -> str:
    waiting, _ = fetched(row)
    [report] = waiting.arriving.quarantined
    return report.reason


def pushed_record() -> CallRecord:
    waiting = Waiting(1 << 20)
    stream = ReportStream(
        ORIGIN,
        peer="",
        source="websocket",
        waiting=waiting,
        totals=Totals(),
        max_report_bytes=1 << 16,
    )
    stream.receive(orjson.dumps(PUSHED) + b"\n", NOW)
    [record] = waiting.arriving.records
    return record


def opened(csv: bytes) -> tuple[ReportStream, Waiting]:
    waiting = Waiting(1 << 20)
    stream = open_csv(csv, ORIGIN, peer="", waiting=waiting, totals=Totals())
    return stream, waiting


# Windows


def local(text: str) -> datetime:
    return datetime.fromisoformat(text)


def span(found: list[Window]) -> tuple[datetime, datetime]:
    return found[0].start, found[-1].end


def test_windows_follow_each_other_without_a_gap_and_none_is_longer_than_a_day() -> None:
    found = list(windows(NOON, NOON + 3.5 * DAY, UTC))
    assert span(found) == (local("2024-03-01 12:00"), local("2024-03-05 00:00"))
    assert all(one.end == other.start for one, other in pairwise(found))
    assert all(timedelta() < window.end - window.start <= timedelta(days=1) for window in found)


def test_windows_are_in_the_pbxs_local_time() -> None:
    [window] = windows(NOON, NOON + 60, BERLIN)
    assert window.start == local("2024-03-01 13:00")


def test_a_range_that_ends_within_a_day_is_one_window_that_ends_with_it() -> None:
    [window] = windows(NOON, NOON + 60, UTC)
    assert window.end >= local("2024-03-01 12:01")
    assert window.complete_until == NOON + 60


def test_a_fraction_of_a_second_is_asked_for_too() -> None:
    [window] = windows(NOON + 0.3, NOON + 0.9, UTC)
    assert (window.start, window.end) == (
        local("2024-03-01 12:00"),
        local("2024-03-01 12:00:01"),
    )


def test_a_range_in_the_hour_that_comes_twice_holds_both() -> None:
    start = datetime(2024, 10, 27, 0, 30, tzinfo=UTC).timestamp()  # 2:30 in summer time
    found = list(windows(start, start + 45 * 60, BERLIN))  # until 2:15 in winter time
    assert found[0].start <= local("2024-10-27 02:00")
    assert found[-1].end >= local("2024-10-27 03:00")


def test_each_window_promises_what_it_holds() -> None:
    found = list(windows(NOON, NOON + 2.5 * DAY, BERLIN))
    assert [window.complete_until for window in found] == [
        NOON + DAY,
        NOON + 2 * DAY,
        NOON + 2.5 * DAY,
    ]


def test_a_gap_is_asked_for_from_a_day_before_it_until_a_day_from_now() -> None:
    found = list(gap_windows(NOON, NOON + 60, UTC))
    assert span(found) == (local("2024-02-29 12:00"), local("2024-03-02 12:01"))
    assert found[-1].complete_until == NOON + 60


def test_what_is_fetched_of_a_gap_counts_as_if_the_zone_were_wrong_by_a_day() -> None:
    *earlier, last = gap_windows(NOON, NOON + 3 * DAY, UTC)
    assert [window.complete_until for window in earlier] == [NOON - DAY, NOON, NOON + DAY]
    assert last.complete_until == NOON + 3 * DAY


def test_a_clock_that_was_set_back_still_asks_for_the_last_day() -> None:
    found = list(gap_windows(NOON + 5 * DAY, NOON, UTC))
    assert span(found) == (local("2024-02-29 12:00"), local("2024-03-02 12:00"))


# The S-Series' CSV


def test_the_first_line_of_a_history_names_its_columns() -> None:
    csv = b"\xef\xbb\xbfCallid,timestart,callfrom\n1709281021.16,2024-03-01 09:17:01,703\n"
    stream, waiting = opened(csv)
    stream.receive(csv, NOW)
    [record] = waiting.arriving.records
    assert (record.caller, record.source) == ("703", HISTORY)


def test_what_the_pbx_hands_out_keeps_its_apostrophes() -> None:
    """Only what we have exported ourselves has any in front that are not its own."""
    csv = b"callid,timestart,callfrom\n1709281021.16,2024-03-01 09:17:01,'@home\n"
    stream, waiting = opened(csv)
    stream.receive(csv, NOW)
    [record] = waiting.arriving.records
    assert (record.caller, orjson.loads(record.raw)["callfrom"]) == ("'@home", "'@home")


@pytest.mark.parametrize("csv", [b"", b"\r\n"])
def test_an_empty_answer_is_no_history(csv: bytes) -> None:
    with pytest.raises(NotAHistory, match="is empty"):
        opened(csv)


def test_an_answer_that_is_no_history_is_told_by_how_it_begins() -> None:
    with pytest.raises(NotAHistory, match="<html>"):
        opened(b"<html><body>Please log in</body></html>")


# The P-Series' rows


def test_a_row_and_the_pushed_report_of_its_call_are_the_same_record() -> None:
    assert record_of().identity == pushed_record().identity


def test_a_row_tells_all_that_a_report_does() -> None:
    record = record_of(did="4980", src_trunk="MEO", pin_code="12")
    assert record.cdr_id == "20240301091701ABC"
    assert (record.caller, record.callee) == ("703", "0870000001")
    assert (record.duration, record.talk_duration, record.agent_ring_time) == (31, 20, 11)
    assert (record.source_trunk, record.destination_trunk) == ("MEO", "27870000001_SIP")
    assert (record.status, record.call_type) == ("ANSWERED", "Outbound")
    assert (record.did_number, record.pin_code) == ("4980", "12")
    assert (record.started_at, record.utc_offset) == ("2024-03-01T08:17:01Z", 60)


def test_the_raw_of_a_row_is_the_row_as_it_came() -> None:
    assert orjson.loads(record_of(enb_call_note=1).raw) == ROW | {"enb_call_note": 1}


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("Anna<703>", "703"),
        ("Anna Maria <703>", "703"),
        ("Anna <Sales> <703>", "703"),
        ("A < B\nC<703>", "703"),
        ("<703>", "703"),
        ("703", "703"),
        ("Sales<6200(4002)>", "6200(4002)"),
        ("Anna<>", "Anna<>"),
        ("6200(4002)", "6200(4002)"),
    ],
)
def test_a_name_is_parted_from_its_number(said: str, number: str) -> None:
    record = record_of(call_from=said, call_to=said)
    assert (record.caller, record.callee) == (number, number)


@pytest.mark.parametrize(
    "time",
    [
        "2024/03/01 09:17:01",
        "03/01/2024 09:17:01",
        "01/03/2024 09:17:01",
        "01.03.2024 09:17:01",
        "03-01-2024 09:17:01 AM",
    ],
)
def test_a_display_format_is_read_as_what_makes_it_the_instant(time: str) -> None:
    assert record_of(time=time).identity == pushed_record().identity


@pytest.mark.parametrize("timestamp", [None, "", "soon", 10**18, [1]])
def test_a_row_without_an_instant_is_read_by_its_time_alone(timestamp: object) -> None:
    assert record_of(timestamp=timestamp).identity == pushed_record().identity


def test_an_instant_that_does_not_fit_the_time_changes_nothing() -> None:
    assert as_pushed(ROW | {"timestamp": 1})["time"] == ROW["time"]


def test_a_bad_row_costs_itself_alone_and_each_counts_once() -> None:
    waiting, totals = fetched(ROW, ROW | {"call_id": ""}, ROW | {"call_id": "1709281021.17"})
    assert [record.call_id for record in waiting.arriving.records] == [
        "1709281021.16",
        "1709281021.17",
    ]
    [bad] = waiting.arriving.quarantined
    assert (bad.source, bad.pbx, bad.peer) == (HISTORY, "hq", "https://pbx")
    assert (bad.reason, orjson.loads(bad.payload)["call_id"]) == ("no callid", "")
    assert totals.received == 3


@pytest.mark.parametrize("row", [7, None, "text", [ROW], True])
def test_what_is_no_object_goes_to_quarantine(row: object) -> None:
    assert reason_of(row) == "not a JSON object"


@pytest.mark.parametrize("value", ["\ud800", 2**70])
def test_a_value_that_json_text_cannot_hold_goes_to_quarantine(value: object) -> None:
    assert "cannot be stored" in reason_of(ROW | {"note": value})


@pytest.mark.parametrize("value", [None, 1.5, [], {}, True, 2**63 - 1, "\0"])
@pytest.mark.parametrize("key", ROW)
def test_whatever_stands_in_a_field_the_row_becomes_a_record_or_is_kept(
    key: str, value: object
) -> None:
    waiting, _ = fetched(ROW | {key: value}, ROW)
    assert len(waiting) == 2
    assert waiting.arriving.records[-1].call_id == ROW["call_id"]
