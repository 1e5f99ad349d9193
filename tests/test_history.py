"""A history's rows become records by the one decoder, and a row costs itself alone."""

from pathlib import Path
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdrd.batch import Batch, Waiting
from cdrd.history import MAX_ROW_LINES, HistoryStream, read_header
from cdrd.sender import Origin, Sender
from cdrd.sizes import PAYLOAD_BYTES
from cdrd.stream import Totals
from tests.example import content

SAMPLE = (Path(__file__).parent / "samples" / "cdr-download.csv").read_bytes()
HEADER, ROW = SAMPLE.splitlines()
NOW = "2024-01-01T00:00:00.000Z"
END = "the file ends in the middle of a report"


class History:
    """A history's stream with what it fills."""

    def __init__(self, text: bytes, cuts: list[int] | None = None) -> None:
        header = read_header(text.lstrip().partition(b"\n")[0])
        assert header is not None
        self.waiting, self.totals = Waiting(10**9), Totals()
        hq = Sender("hq", ZoneInfo("Europe/Berlin"))
        self.stream = HistoryStream(
            header,
            Origin([hq]),
            peer="history.csv",
            source="import",
            waiting=self.waiting,
            totals=self.totals,
        )
        ends = sorted({cut % (len(text) + 1) for cut in cuts or []} | {len(text)})
        for start, end in zip([0, *ends], ends, strict=False):
            self.stream.receive(text[start:end], NOW)
        self.stream.close(END, NOW)
        assert self.totals.received == len(self.batch)

    @property
    def batch(self) -> Batch:
        return self.waiting.arriving

    @property
    def reasons(self) -> list[str]:
        return [report.reason for report in self.batch.quarantined]


def row(number: int) -> bytes:
    return ROW.replace(b".4,", f".{number},".encode())


def test_the_published_row_is_a_record() -> None:
    (record,) = History(SAMPLE).batch.records
    assert (record.pbx, record.source, record.received_at) == ("hq", "import", NOW)
    assert (record.started_at, record.started_local) == (
        "2020-05-12T16:05:28Z",
        "2020-05-12 17:05:28",
    )
    assert (record.caller, record.callee, record.source_trunk) == ("966000001", "110", "MEO")
    assert (record.duration, record.talk_duration, record.agent_ring_time) == (42, 34, -1)
    assert (record.pin_code, record.pbx_serial) == ("", "369392534749")


def test_raw_is_the_row_as_json_with_the_files_own_keys() -> None:
    text = b"CallID ,timestart,Note,,note\r\n1589299528.4,2020-05-12 17:05:28,a,b,\r\n"
    (record,) = History(text).batch.records
    assert orjson.loads(record.raw) == {
        "CallID": "1589299528.4",
        "timestart": "2020-05-12 17:05:28",
        "Note": "a",
        "(column 4)": "b",
        "note": "",
    }


def test_two_columns_of_one_name_are_both_kept() -> None:
    text = b"callid,timestart,note,note\n1589299528.4,2020-05-12 17:05:28,a,b\n"
    (record,) = History(text).batch.records
    assert orjson.loads(record.raw)["note"] == "a"
    assert orjson.loads(record.raw)["note (column 4)"] == "b"


def reversed_cells(line: bytes) -> bytes:
    return b",".join(reversed(line.split(b",")))


def quoted(line: bytes) -> bytes:
    return b",".join(b'"%s"' % cell for cell in line.split(b","))


SPELLED = {
    "reordered": reversed_cells(HEADER) + b"\n" + reversed_cells(ROW) + b"\n",
    "capitals": HEADER.upper() + b"\n" + ROW + b"\n",
    "byte order mark": b"\xef\xbb\xbf" + SAMPLE,
    "carriage returns": SAMPLE.replace(b"\n", b"\r\n"),
    "quoted": quoted(HEADER) + b"\n" + quoted(ROW) + b"\n",
    "quoted behind a mark": b"\xef\xbb\xbf" + quoted(HEADER) + b"\r\n" + quoted(ROW),
    "semicolons": SAMPLE.replace(b",", b";"),
    "tabs": SAMPLE.replace(b",", b"\t"),
    "blanks": SAMPLE.replace(b",", b" , "),
    "blank lines": b"\r\n" + SAMPLE.replace(b"\n", b"\r\n\r\n"),
    "no last line break": SAMPLE.rstrip(b"\n"),
    "put together": SAMPLE + HEADER + b"\n",
}


@pytest.mark.parametrize("text", SPELLED.values(), ids=SPELLED)
def test_a_history_is_read_however_it_is_spelled(text: bytes) -> None:
    (expected,) = History(SAMPLE).batch.records
    history = History(text)
    assert not history.reasons
    assert [record._replace(raw=expected.raw) for record in history.batch.records] == [expected]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"a,b",
        b"callid",
        b"timestart;callfrom",
        b'{"callid":"1","timestart":"2"}',
        b"callid,timestart\r1,2",
    ],
)
def test_a_line_without_id_and_start_is_no_header(line: bytes) -> None:
    assert read_header(line) is None


def test_a_quoted_cell_may_hold_line_breaks_and_delimiters() -> None:
    cell = b'"M\xc3\xbcller, ""Jo""\r\nBerlin"'
    text = HEADER + b"\n" + ROW.replace(b"966000001", cell) + b"\r\n" + row(5) + b"\n"
    first, second = History(text).batch.records
    assert first.caller == 'Müller, "Jo"\r\nBerlin'
    assert second.call_id == "1589299528.5"


def test_a_quoted_cell_may_hold_line_breaks_that_are_none_outside_of_it() -> None:
    history = History(HEADER + b"\n" + ROW.replace(b"966000001", b'"1\n\r2"'))
    assert not history.reasons
    assert [record.caller for record in history.batch.records] == ["1\n\r2"]


BAD = {
    "too few cells": (ROW.rpartition(b",")[0], "13 cells, the first line names 14"),
    "too many cells": (ROW + b",", "15 cells, the first line names 14"),
    "not UTF-8": (ROW.replace(b"MEO", b"M\xfcller"), "not valid UTF-8"),
    "an open quote": (ROW.replace(b"MEO", b'"MEO'), "a quote in it is not closed"),
    "a long line": (ROW + b"9" * PAYLOAD_BYTES, "a line longer than 65536 bytes"),
    "no start": (ROW.replace(b"2020-05-12", b"2020-02-30"), "timestart '2020-02-30"),
    "no id": (ROW.removeprefix(b"1589299528.4"), "no callid"),
    "no seconds": (ROW.replace(b",42,", b",-42,"), "duration '-42'"),
}


@pytest.mark.parametrize("position", ["between others", "last"])
@pytest.mark.parametrize(("line", "reason"), BAD.values(), ids=BAD)
def test_a_bad_row_costs_exactly_itself(line: bytes, reason: str, position: str) -> None:
    others = [row(number) for number in range(10, 40)]
    lines = [*others, line] if position == "last" else [*others[:3], line, *others[3:]]
    history = History(b"\n".join([HEADER, *lines]))
    assert [record.call_id for record in history.batch.records] == [
        f"1589299528.{number}" for number in range(10, 40)
    ]
    (quarantined,) = history.batch.quarantined
    assert quarantined.reason.startswith(reason)
    assert (quarantined.pbx, quarantined.peer) == ("hq", "history.csv")
    assert len(quarantined.payload) == min(quarantined.size, PAYLOAD_BYTES)


def test_two_stray_quotes_do_not_swallow_what_is_between() -> None:
    stray = ROW.replace(b"MEO", b'"MEO')
    history = History(b"\n".join([HEADER, stray, row(5), row(6), stray, row(7)]))
    assert [record.call_id[-1] for record in history.batch.records] == ["5", "6", "7"]
    assert len(history.reasons) == 2


def test_an_open_quote_is_given_up_after_some_lines() -> None:
    lines = [HEADER, ROW.replace(b"MEO", b'"MEO'), *[row(n) for n in range(MAX_ROW_LINES)]]
    history = History(b"\n".join([*lines, ROW.replace(b"MEO", b'MEO"')]))
    assert len(history.batch.records) == MAX_ROW_LINES + 1
    assert history.reasons == ["a quote in it is not closed"]


def test_a_huge_line_is_held_only_by_its_beginning() -> None:
    history = History(HEADER + b"\n" + b"9" * 10**6 + b"\n" + ROW)
    assert len(history.batch.records) == 1
    (quarantined,) = history.batch.quarantined
    assert quarantined.size == 10**6
    assert quarantined.payload == b"9" * PAYLOAD_BYTES


def test_a_huge_line_within_quotes_is_not_cut_short() -> None:
    text = ROW.replace(b"MEO", b'"' + b"\n" + b"9" * 10**5 + b'"')
    history = History(b"\n".join([HEADER, text, row(5)]))
    assert [record.call_id for record in history.batch.records] == ["1589299528.5"]
    assert len(history.reasons) == 2


MIXED = b"\n".join(
    [
        HEADER,
        ROW,
        BAD["no start"][0],
        BAD["too few cells"][0],
        ROW.replace(b"966000001", b'"a\r\nb"'),
        BAD["an open quote"][0],
        row(5),
        BAD["not UTF-8"][0],
        row(6),
    ]
)


@given(st.lists(st.integers(min_value=0), max_size=30))
def test_the_cut_into_chunks_does_not_matter(cuts: list[int]) -> None:
    assert content(History(MIXED, cuts).batch) == content(History(MIXED).batch)


def test_byte_by_byte_is_the_same() -> None:
    whole = History(MIXED).batch
    assert content(History(MIXED, list(range(len(MIXED)))).batch) == content(whole)
