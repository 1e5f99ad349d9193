"""A tail is the JSON of what the log tells of a record, by whichever way it is spelt."""

from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cdrd.line import LOGGED, spell_tail, spell_tails, told_fields
from cdrd.record import CallRecord, NotARecord
from cdrd.report import ReleasedCall, read_report
from tests.example import CALL, make_records, varied

FIELDS = ("callfrom", "callto", "srctrunkname", "desttrunkname", "status", "type", "recording")
NAMED = {"action": "NewCdr", "callid": "1505352615.274", "timestart": "2017-09-14 09:30:15"}


def read_tail(tail: str) -> dict[str, Any]:
    parsed: dict[str, Any] = orjson.loads("{" + tail[1:])
    return parsed


def test_a_tail_tells_the_fields_of_a_line_behind_its_seq_in_their_order() -> None:
    assert tuple(read_tail(spell_tail(CALL))) == LOGGED[1:]
    assert read_tail(spell_tail(CALL)) == told_fields(CALL)


def test_what_is_absent_is_null_in_either_spelling() -> None:
    absent = set(LOGGED) - {"seq", "pbx", "call_id", "started_at", "source"}
    nothing: dict[str, Any] = dict.fromkeys(absent, "")
    record = CALL._replace(**nothing | {"duration": -1, "talk_duration": -1})
    for tail in (spell_tail(record), spell_tails([record], plain=True)):
        assert {name for name, value in read_tail(tail).items() if value is None} == absent


@pytest.mark.parametrize("seconds", [0, 1, 2**63 - 1])
def test_seconds_from_none_up_are_told(seconds: int) -> None:
    record = varied(duration=seconds, talk_duration=seconds)
    for tail in (spell_tail(record), spell_tails([record], plain=True)):
        assert read_tail(tail)["duration"] == read_tail(tail)["talk_duration"] == seconds


def test_what_no_json_can_hold_has_no_tail() -> None:
    assert spell_tail(CALL._replace(caller="\ud800")) == ""


def decoded(report: dict[str, str]) -> tuple[CallRecord, str]:
    """Decode a report as it comes over the wire; return its text too."""
    raw = orjson.dumps(report).decode()
    call = read_report(orjson.loads(raw))
    assert isinstance(call, ReleasedCall)
    zone = ZoneInfo("Asia/Singapore")
    [record] = make_records([call], [raw], pbx="hq", zone=zone, source="tcp", received_at="now")
    return record, raw


texts = st.text(max_size=20) | st.sampled_from(
    ['"', "\\", '":"",', "\n", "\x1f", "\x7f", "ä\u2028"]
)


@given(st.dictionaries(st.sampled_from(FIELDS), texts))
@example({"callfrom": '":"",'})
@example({"callfrom": "a\\"})
@example({"status": "ß", "type": "\u2028"})
def test_a_report_without_a_backslash_is_spelt_alike_in_both_ways(fields: dict[str, str]) -> None:
    try:
        record, raw = decoded(NAMED | fields)
    except NotARecord:  # a NUL in a field
        return
    if "\\" not in raw:
        assert spell_tails([record, record], plain=True) == "\n".join([spell_tail(record)] * 2)
