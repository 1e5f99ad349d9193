"""Every dialect gives the same fields, and no JSON that a peer sends is an exception."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdrd.report import OtherEvent, ReleasedCall, Report, Unreadable, read_report, read_reports

SAMPLES = Path(__file__).parent / "samples"


def sample(name: str) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (SAMPLES / name).read_bytes().splitlines()]


def released(parsed: dict[str, Any]) -> dict[str, Any]:
    """Return what a report says of a released call: the fields that have a value."""
    report = read_report(parsed)
    assert isinstance(report, ReleasedCall), report
    said = report._asdict()
    return {name: value for name, value in said.items() if value is not None and value != ""}


def in_envelope(message: object, **other: Any) -> dict[str, Any]:
    return {"type": 30012, "sn": "3633D2199067", "msg": message, **other}


def test_release_1_is_read() -> None:
    internal, outbound, inbound = sample("s-series-1.0.0-newcdr.jsonl")
    assert released(internal) == {
        "call_id": "1495779310.371",
        "started_local": "2017-05-25 22:15:10",
        "caller": "1002",
        "callee": "1000",
        "duration": "3",
        "talk_duration": "2",
        "status": "ANSWERED",
        "call_type": "Internal",
    }
    assert released(outbound)["destination_trunk"] == "sip-142"
    assert released(inbound)["source_trunk"] == "sip-142"


def test_release_1_0_1_has_a_pin_code_and_a_recording() -> None:
    outbound, _ = sample("s-series-1.0.1-newcdr.jsonl")
    call = released(outbound)
    assert call["pin_code"] == "1000"
    assert call["recording"] == "20170914093038-1505352615.274-1000-91000-Outbound.wav"


@pytest.mark.parametrize(
    ("name", "serial"),
    [("s-series-1.0.2-newcdr.jsonl", "369362089179"), ("openvox.jsonl", "a09805021987")],
)
def test_release_1_0_2_and_openvox_have_a_serial(name: str, serial: str) -> None:
    for call in sample(name):
        assert released(call)["pbx_serial"] == serial


def test_release_2_is_read() -> None:
    (call,) = sample("s-series-2.0.0-newcdr.jsonl")
    assert released(call) == {
        "call_id": "1571897930.5",
        "started_local": "2019-10-23 22:18:50",
        "caller": "1023",
        "callee": "2023",
        "duration": "19",
        "talk_duration": "14",
        "agent_ring_time": "0",
        "status": "ANSWERED",
        "call_type": "Internal",
        "recording": "20191024201242-1571897930.5-203-201-Internal.wav",
        "pbx_serial": "369451090405",
    }


def test_the_p_series_is_read_out_of_its_envelope() -> None:
    (envelope,) = sample("p-series-30012-websocket.jsonl")
    expected = {
        "call_id": "1702285525.16",
        "started_local": "2023-12-11 11:05:25",
        "caller": "703",
        "callee": "0870000001",
        "destination_trunk": "27870000001_SIP",
        "duration": 0,
        "talk_duration": 0,
        "agent_ring_time": 0,
        "status": "BUSY",
        "call_type": "Outbound",
        "pbx_serial": "3633D2199067",
    }
    assert released(envelope) == expected
    assert released({**envelope, "msg": orjson.loads(envelope["msg"])}) == expected
    assert released({**envelope, "type": "30012"}) == expected
    assert released({**envelope, "type": " 30012 "}) == expected


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("cdrid", "cdr_id"),
        ("desttrunkname", "destination_trunk"),
        ("dstrunkname", "destination_trunk"),
        ("dsttrcunkname", "destination_trunk"),
        ("dsttrunkname", "destination_trunk"),
        ("srctrunkname", "source_trunk"),
        ("callduraction", "duration"),
        ("talkduraction", "talk_duration"),
        ("didnumber", "did_number"),
        ("agentringtime", "agent_ring_time"),
        ("pincode", "pin_code"),
        ("sn", "pbx_serial"),
    ],
)
def test_every_spelling_of_a_pushed_key_is_known(name: str, field: str) -> None:
    for event in ("action", "event"):
        assert released({event: "NewCdr", name: "7"}) == {field: "7"}
        assert released({name: "7", event: "NewCdr"}) == {field: "7"}


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("uid", "cdr_id"),
        ("dst_trunk_name", "destination_trunk"),
        ("src_trunk_name", "source_trunk"),
        ("call_duration", "duration"),
        ("talk_duration", "talk_duration"),
        ("did_number", "did_number"),
        ("agent_ring_time", "agent_ring_time"),
        ("pin_code", "pin_code"),
    ],
)
def test_every_spelling_of_a_p_series_key_is_known(name: str, field: str) -> None:
    for message in ({name: "7"}, json.dumps({name: "7"})):
        assert released(in_envelope(message)) == {field: "7", "pbx_serial": "3633D2199067"}


TRUNK_KEYS = ["desttrunkname", "dstrunkname", "dsttrcunkname", "dsttrunkname"]


@pytest.mark.parametrize("first", TRUNK_KEYS)
@pytest.mark.parametrize("second", TRUNK_KEYS)
@pytest.mark.parametrize("blank", ["", " ", None])
def test_of_two_spellings_the_first_with_a_value_counts(
    first: str, second: str, blank: str | None
) -> None:
    if first == second:
        return
    call = {"action": "NewCdr"}
    assert released(call | {first: "A", second: "B"})["destination_trunk"] == "A"
    assert released({**call, first: blank, second: "B"})["destination_trunk"] == "B"
    assert released({**call, first: "A", second: blank})["destination_trunk"] == "A"


@pytest.mark.parametrize("blank", ["", "  ", None])
def test_a_blank_serial_in_the_message_leaves_that_of_the_envelope(blank: str | None) -> None:
    message = {"call_id": "1702285525.16", "sn": blank}
    for spelled in (message, json.dumps(message)):
        assert released(in_envelope(spelled))["pbx_serial"] == "3633D2199067"


def test_a_message_typed_off_a_page_is_mended() -> None:
    report = read_report(in_envelope('{"dst_trunk_name":"Apple\\_test"}'))
    assert isinstance(report, ReleasedCall)
    assert report.destination_trunk == "Apple_test"


@pytest.mark.parametrize(
    "message",
    ["", "{", "text", "[]", "1", "null", '"x"', '{"call_id":}', "[" * 3000, None, 1, 1.5, True, []],
)
def test_a_broken_message_is_unreadable(message: object) -> None:
    report = read_report(in_envelope(message))
    assert isinstance(report, Unreadable)
    assert "msg" in report.reason


def test_a_released_call_without_any_field_is_still_one() -> None:
    assert released({"action": "NewCdr"}) == {}
    assert released(in_envelope({}, sn=None)) == {}
    assert released(in_envelope("{}", sn="")) == {}


@pytest.mark.parametrize(
    "name",
    [
        "s-series-1.0.0-other.jsonl",
        "s-series-1.0.2-other-events.jsonl",
        "s-series-2.0.0-other-events.jsonl",
    ],
)
def test_other_events_are_known_by_name(name: str) -> None:
    for event in sample(name):
        assert read_report(event) == OtherEvent(event.get("action") or event["event"])


def test_other_events_of_the_p_series_are_known_by_number() -> None:
    for event in sample("p-series-other-websocket.jsonl"):
        number = str(event["type"])
        assert read_report(event) == OtherEvent(number)
        assert read_report({**event, "type": number}) == OtherEvent(number)


def test_a_peer_cannot_fill_our_memory_with_keys() -> None:
    read_report({"action": "NewCdr", "callid": "1.1"})
    tracemalloc.start()
    for number in range(200):
        read_report({"action": "NewCdr", f"{number}" + "\N{GRINNING FACE}" * 10_000: ""})
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1_000_000


@pytest.mark.parametrize("key", ["type", "msg", "status", "sn", "x"])
def test_no_nesting_is_too_deep_for_it(key: str) -> None:
    """JSON may be deeper than Python can spell."""
    deep = orjson.loads(b"[" * 1020 + b"]" * 1020)
    assert isinstance(read_report({key: deep}), Unreadable)
    with pytest.raises(RecursionError):
        str(deep)


@pytest.mark.parametrize(
    "call",
    [
        {"call_id": "1.1", "status": "Failed"},
        {"type": 30012, "status": "Failed", "msg": '{"call_id": "1.1"}'},
    ],
)
def test_a_call_that_has_failed_is_no_answer_of_the_api(call: dict[str, Any]) -> None:
    assert not isinstance(read_report(call), OtherEvent)


@pytest.mark.parametrize(
    "answer",
    [
        {"status": "Success", "token": "x"},
        {"status": "Failed", "errno": "20003"},
        {"errcode": 0, "errmsg": "SUCCESS"},
        {"errcode": 10004, "errmsg": "TOKEN EXPIRED"},
    ],
)
def test_answers_of_the_api_are_passed_over(answer: dict[str, Any]) -> None:
    assert isinstance(read_report(answer), OtherEvent)


@pytest.mark.parametrize(
    "parsed",
    [
        {},
        {"callid": "1495779310.371"},
        {"callid": "1495779310.371", "status": "Failed", "type": "Inbound"},
        {"type": "Outbound"},
        {"type": True},
        {"type": 30012.0},
        {"type": "٣٠٠١٢"},
        {"action": ["NewCdr"]},
        {"event": {"NewCdr": 1}},
        {"event": 5},
    ],
)
def test_what_names_no_event_is_unreadable_and_not_passed_over(parsed: dict[str, Any]) -> None:
    assert isinstance(read_report(parsed), Unreadable)


@pytest.mark.parametrize("key", ["action", "event"])
@pytest.mark.parametrize("blank", ["", "  ", None])
def test_a_call_whose_event_has_no_name_is_not_passed_over(key: str, blank: str | None) -> None:
    call = {key: blank, "callid": "1495779310.371", "timestart": "2017-05-25 22:15:10"}
    assert isinstance(read_report(call), Unreadable)


def test_the_order_of_the_keys_does_not_matter() -> None:
    for name in ("s-series-1.0.1-newcdr.jsonl", "s-series-2.0.0-newcdr.jsonl"):
        for call in sample(name):
            turned = dict(reversed(call.items()))
            assert released(turned) == released(call)


def test_a_report_read_again_says_the_same() -> None:
    for name in ("s-series-1.0.1-newcdr.jsonl", "p-series-30012-websocket.jsonl"):
        for call in sample(name):
            assert released(call) == released(call)


@pytest.mark.parametrize("event", ["NewCdr", " NewCdr\t"])
@pytest.mark.parametrize(
    "names", [("action", None), ("event", None), ("action", "event"), ("event", "action")]
)
def test_a_released_call_is_known_by_either_key_and_with_blanks_around_it(
    event: str, names: tuple[str, str | None]
) -> None:
    key, blank = names
    call = {key: event, "callid": "1495779310.371"} | ({blank: ""} if blank else {})
    for report in (read_report(call), *read_reports([call])):
        assert isinstance(report, ReleasedCall)
        assert report.call_id == "1495779310.371"


def test_reports_read_together_are_those_read_alone() -> None:
    names = [path.name for path in sorted(SAMPLES.glob("*.jsonl")) if "seed" not in path.name]
    parsed = [report for name in names for report in sample(name)]
    assert read_reports(parsed) == [read_report(report) for report in parsed]
    assert read_reports([]) == []


keys = st.sampled_from(
    [
        *("action", "event", "type", "msg", "sn", "callid", "call_id", "timestart", "status"),
        *("callduraction", "call_duration", "pincode", "desttrunkname", "dsttrcunkname", "uid"),
        *("errcode", "errno", "unknown"),
    ]
)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=10) | st.sampled_from(
    ["NewCdr", "30012", "Success", "", " ", '{"call_id":"1"}', '{"a":"\\_"}', "\0"]
)
numbers = st.integers(-(2**63), 2**64 - 1) | st.just(30012) | st.floats(allow_nan=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            keys | st.text(st.characters(exclude_categories=["Cs"]), max_size=3), inner, max_size=4
        )
    ),
    max_leaves=8,
)
objects = st.dictionaries(
    keys | st.text(st.characters(exclude_categories=["Cs"]), max_size=3), values, max_size=6
)


@settings(max_examples=500)
@given(objects)
def test_any_json_in_any_field_is_a_report_and_never_an_exception(parsed: dict[str, Any]) -> None:
    as_received = dict(parsed)
    report: Report = read_report(parsed)
    assert isinstance(report, ReleasedCall | OtherEvent | Unreadable)
    assert read_reports([parsed, parsed]) == [report, report]
    assert parsed == as_received


@settings(max_examples=300)
@given(objects, st.sampled_from(["action", "event"]))
def test_whatever_else_it_says_a_new_cdr_is_a_released_call(
    parsed: dict[str, Any], key: str
) -> None:
    others = {name: value for name, value in parsed.items() if name not in ("action", "event")}
    assert isinstance(read_report({**others, key: "NewCdr"}), ReleasedCall)


@settings(max_examples=300)
@given(st.integers(30000, 30100), objects)
def test_an_envelope_as_text_and_as_an_object_say_the_same(
    number: int, message: dict[str, Any]
) -> None:
    as_object = {"type": number, "sn": "3633D2199067", "msg": message}
    as_text = {**as_object, "msg": orjson.dumps(message).decode()}
    # The text is parsed back first: the same floats and integers beyond 64 bits on both sides.
    as_object["msg"] = orjson.loads(orjson.dumps(message))
    assert read_report(as_object) == read_report(as_text)
