"""Reports are what the field sends: each dialect's keys and spellings, unique by number."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from cdrd.simulate.reports import (
    DELIMITERS,
    DIALECTS,
    ReportForms,
    history_row,
    lay,
    new_cdr,
    other_event,
    rest_row,
)

STARTED = 1571897930
KEYS = {
    "1.0.0": "action callid timestart callfrom callto srctrunkname desttrunkname callduraction "
    "talkduraction status type pincode recording",
    "2.0.0": "event callid timestart callfrom callto callduraction talkduraction srctrunkname "
    "dsttrcunkname pincode status type recording didnumber agentringtime sn",
    "p-series": "call_id time_start call_from call_to call_duration talk_duration src_trunk_name "
    "dst_trunk_name pin_code status type recording did_number agent_ring_time",
}
KEYS["1.0.1"] = KEYS["1.0.0"]
KEYS["1.0.2"] = KEYS["openvox"] = KEYS["1.0.0"] + " didnumber agentringtime sn"
EVENTS = {
    "1.0.0": "RING ALERT RI ANSWERED BYE Tranfer CallFailed Invite Incoming DTMF PlayPromptEnd",
    "1.0.2": "BootUp RING ALERT ANSWER BYE Tranfer CallFailed Invite Incoming ExtensionStatus "
    "ConfigChange",
    "2.0.0": "CallStatus ExtensionStatus ConfigChange Incoming Forward Tranfer CallFailed DTMF "
    "satisfaction uacstacall",
}
EVENTS["1.0.1"], EVENTS["openvox"] = EVENTS["1.0.0"], EVENTS["1.0.2"]


def fields(number: int, dialect: str, **where: Any) -> dict[str, Any]:
    """A report's fields, the P-Series envelope taken off."""
    report: dict[str, Any] = orjson.loads(new_cdr(number, dialect, started=STARTED, **where))
    if dialect != "p-series":
        return report
    assert report["type"] == 30012
    inside: dict[str, Any] = orjson.loads(report["msg"])
    return inside


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_dialect_uses_its_own_keys(dialect: str) -> None:
    calls = [fields(number, dialect) for number in range(1000)]
    assert {key for call in calls for key in call} == set(KEYS[dialect].split())


@pytest.mark.parametrize("dialect", ["1.0.0", "1.0.1", "1.0.2", "openvox"])
def test_release_1_leaves_out_what_has_no_value(dialect: str) -> None:
    empty = {
        key for number in range(1000) for key, value in fields(number, dialect).items() if not value
    }
    assert empty == ({"desttrunkname"} if dialect == "1.0.0" else set())
    assert any("recording" not in fields(number, dialect) for number in range(1000))


def test_release_2_sends_every_key_as_text() -> None:
    calls = [fields(number, "2.0.0") for number in range(1000)]
    assert {len(call) for call in calls} == {16}
    assert {type(value) for call in calls for value in call.values()} == {str}
    assert any(call["srctrunkname"] == "" for call in calls)


def test_p_series_sends_numbers_and_blanks() -> None:
    calls = [fields(number, "p-series") for number in range(1000)]
    assert {type(call["call_duration"]) for call in calls} == {int}
    assert {"", " "} < {call["pin_code"] for call in calls}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_no_two_numbers_give_the_same_call(dialect: str) -> None:
    reports = {new_cdr(number, dialect, started=STARTED) for number in range(5000)}
    assert len(reports) == 5000
    again = new_cdr(4711, dialect, started=STARTED)
    assert again in reports


def test_the_call_is_the_same_in_each_dialect() -> None:
    for number in range(1000):
        spoken = {
            (
                call.get("callid") or call["call_id"],
                call.get("callto") or call["call_to"],
                call["type"],
            )
            for call in (fields(number, dialect) for dialect in DIALECTS)
        }
        assert len(spoken) == 1


def test_the_history_row_is_the_call_of_the_report() -> None:
    for number in range(1000):
        report = fields(number, "2.0.0", utc_offset=60)
        row = history_row(number, started=STARTED, utc_offset=60)
        row["dsttrcunkname"] = row.pop("dsttrunkname")
        ring_time = report.pop("agentringtime")
        assert report.pop("event") == "NewCdr"
        assert ring_time.isdecimal()
        assert row == report


def test_the_history_row_has_the_columns_of_the_field_in_their_order() -> None:
    sample = Path(__file__).with_name("samples") / "cdr-download.csv"
    header = sample.read_text().splitlines()[0]
    assert ",".join(history_row(7, started=STARTED)) == header


def test_the_rest_row_is_the_call_of_the_report() -> None:
    spellings = {
        "duration": "call_duration",
        "ring_duration": "agent_ring_time",
        "did": "did_number",
        "src_trunk": "src_trunk_name",
        "dst_trunk": "dst_trunk_name",
        "disposition": "status",
        "call_type": "type",
        "time": "time_start",
    }
    for number in range(1000):
        report = fields(number, "p-series", utc_offset=-60)
        row = rest_row(number, started=STARTED, utc_offset=-60)
        for party in ("call_from", "call_to"):
            assert re.fullmatch(r".+<([^<>]+)>", f"{row.pop(party)}")[1] == report.pop(party)  # type: ignore[index]  # it matches
        assert row.pop("timestamp") == STARTED
        assert (row.pop("did_name"), bool(row.pop("uid"))) == ("", True)
        del report["recording"]
        told = {spellings.get(key, key): value for key, value in row.items()}
        assert told == {
            key: value.strip() if isinstance(value, str) else value for key, value in report.items()
        }


def test_uids_are_unique() -> None:
    assert len({rest_row(number, started=STARTED)["uid"] for number in range(2000)}) == 2000


def test_call_id_and_local_time_tell_the_same_instant() -> None:
    call = fields(5, "2.0.0", utc_offset=-330)
    assert call["callid"] == "1571897930.5"
    assert call["timestart"] == "2019-10-24 00:48:50"


def test_each_spelling_of_the_field_occurs() -> None:
    calls = [fields(number, "2.0.0") for number in range(1000)]
    assert {call["status"] for call in calls} == {
        *("ANSWERED", "ANSWERD", "NO ANSWER", "NOANSWER", "NO ANSWERED"),
        *("BUSY", "FAILED", "VOICEMAIL", "ABANDONED"),
    }
    assert {call["type"] for call in calls} == {
        *("Inbound", "Outbound", "Internal", "Callback", "Transfer"),
        *("inbound", "outbound", "internal"),
    }
    shapes = {re.sub(r"\d+", "0", call["callto"]) for call in calls}
    assert {"0", "0(0)", "(0)"} <= shapes
    assert {call["recording"].rpartition(".")[2] for call in calls} == {"", "wav", "yswav"}


def test_durations_add_up() -> None:
    for number in range(1000):
        call = fields(number, "p-series")
        assert 0 <= call["talk_duration"] <= call["call_duration"] < 24 * 3600
        assert bool(call["talk_duration"]) == (
            call["status"] in {"ANSWERED", "ANSWERD", "VOICEMAIL"}
        )


def test_a_report_has_the_size_of_the_field() -> None:
    sizes = [len(new_cdr(number, started=STARTED)) for number in range(1000)]
    assert 300 < sum(sizes) / len(sizes) < 420


@pytest.mark.parametrize("dialect", EVENTS)
def test_other_events_take_turns_over_all_names(dialect: str) -> None:
    names = EVENTS[dialect].split()
    key = "event" if dialect == "2.0.0" else "action"
    told = [orjson.loads(other_event(number, dialect))[key] for number in range(len(names) * 3)]
    assert Counter(told) == dict.fromkeys(names, 3)


def test_p_series_events_are_all_but_the_call_report() -> None:
    told = {orjson.loads(other_event(number, "p-series"))["type"] for number in range(31)}
    assert told == {*range(30005, 30037)} - {30012}
    assert all(orjson.loads(orjson.loads(other_event(n, "p-series"))["msg"]) for n in range(31))


def test_an_event_of_1_0_0_doubles_a_key() -> None:
    pairs: list[tuple[str, Any]] = json.loads(other_event(0, "1.0.0"), object_pairs_hook=list)
    assert [key for key, _ in pairs] == ["action", "callid", "ext", "ext"]


@pytest.mark.parametrize("delimiter", DELIMITERS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_report_keeps_its_meaning_between_delimiters(dialect: str, delimiter: str) -> None:
    for report in (new_cdr(7, dialect, started=STARTED), other_event(0, dialect)):
        laid = lay(report, delimiter)
        inside = laid[laid.index(b"{") : laid.rindex(b"}") + 1]
        assert orjson.loads(inside) == orjson.loads(report)


def test_each_delimiter_stands_where_it_says() -> None:
    assert lay(b'{"a":1}', "newline") == b'{"a":1}\n'
    assert lay(b'{"a":1}', "crlf") == b'{"a":1}\r\n'
    assert lay(b'{"a":1}', "blank-line") == b'{"a":1}\r\n\r\n'
    assert lay(b'{"a":1}', "none") == b'{"a":1}'
    assert lay(b'{"a":1}', "bom") == b'\xef\xbb\xbf{"a":1}\n'
    assert lay(b'{"a":1}', "text").endswith(b'\r\n\r\n{"a":1}\r\n')
    pretty = (
        b'{\n    "a": [\n        {\n            "b,:{": 1\n        },\n        null\n    ]\n}\n'
    )
    assert lay(b'{"a":[{"b,:{":1},null]}', "pretty") == pretty


def test_indenting_keeps_the_doubled_key() -> None:
    assert lay(other_event(0, "1.0.0"), "pretty").count(b'"ext": {') == 2


def test_an_unknown_dialect_or_delimiter_is_quoted() -> None:
    with pytest.raises(ValueError, match=r'"3\.0" is no dialect; known are 1\.0\.0, 1\.0\.1'):
        new_cdr(1, "3.0", started=STARTED)
    with pytest.raises(ValueError, match=r'"3\.0" is no dialect'):
        other_event(1, "3.0")
    with pytest.raises(ValueError, match='"tab" is no delimiter; known are newline'):
        lay(b"{}", "tab")


@pytest.mark.parametrize(
    ("dialect", "delimiter"),
    [*((dialect, "newline") for dialect in DIALECTS), *(("1.0.0", name) for name in DELIMITERS)],
)
def test_a_stamped_form_is_the_report(dialect: str, delimiter: str) -> None:
    first = 930
    forms = ReportForms(dialect, delimiter, first=first, started=STARTED, utc_offset=60, events=2)
    expected = []
    for number in range(first, 2100):
        begun = STARTED + number // 50 - first // 50
        report = new_cdr(number, dialect, started=begun, utc_offset=60)
        events = (other_event(number % 1000 * 2 + turn, dialect) for turn in range(2))
        expected += [lay(message, delimiter) for message in (report, *events)]
    stamped = forms.stamp(range(first, 1313)) + forms.stamp(range(1313, 2100))
    assert stamped == b"".join(expected)
