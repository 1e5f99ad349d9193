"""A file's kind is told from its content, and each kind is decoded by the one decoder."""

from pathlib import Path
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdrd.batch import Batch, RestoredCall, Waiting
from cdrd.capture import (
    MAX_LINE_BYTES,
    CaptureStream,
    NotImportable,
    OptionNeeded,
    Provenance,
    open_capture,
)
from cdrd.columns import RECORDS, lay_out
from cdrd.history import HistoryStream
from cdrd.sender import Origin, Sender
from cdrd.stream import ReportStream, Totals
from tests.example import CALL, call, content, exported, logged

SAMPLES = Path(__file__).parent / "samples"
REPORTS = sorted(SAMPLES.glob("*.jsonl"))
NOW = "2024-01-01T00:00:00.000Z"
END = "the file ends in the middle of a report"
BERLIN = ZoneInfo("Europe/Berlin")
HQ = Sender("hq", BERLIN)
MANILA = ZoneInfo("Asia/Manila")
REPORT = b'{"action":"NewCdr","callid":"1505352615.1","timestart":"2017-09-14 09:30:15"}'
BYE = b'{"action":"BYE","callid":"1495706238.328"}'
STARTED = {"timestamp": "2017-09-14T01:30:45.130977Z", "level": "info", "event": "started"}


class Capture:
    """A file's stream with what it fills."""

    def __init__(self, text: bytes, provenance: Provenance, cuts: list[int] | None = None) -> None:
        self.waiting, self.totals = Waiting(10**9), Totals()
        self.stream = open_capture(
            text[: 1 << 16], provenance, name="file", waiting=self.waiting, totals=self.totals
        )
        if self.stream is None:
            return
        ends = sorted({cut % (len(text) + 1) for cut in cuts or []} | {len(text)})
        for start, end in zip([0, *ends], ends, strict=False):
            self.stream.receive(text[start:end], NOW)
        self.stream.close(END, NOW)
        assert self.totals.received == len(self.batch) + self.totals.passed_over

    @property
    def batch(self) -> Batch:
        return self.waiting.arriving

    @property
    def restored(self) -> list[RestoredCall]:
        return self.batch.restored

    @property
    def reasons(self) -> list[str]:
        return [report.reason for report in self.batch.quarantined]


def lines(*parts: object) -> bytes:
    texts = [part if isinstance(part, bytes) else orjson.dumps(part) for part in parts]
    return b"".join(text + b"\n" for text in texts)


def hq(text: bytes, cuts: list[int] | None = None) -> Capture:
    return Capture(text, Provenance(HQ, zone=MANILA), cuts)


def from_socket(text: bytes) -> Batch:
    """Decode as a connection does, but for what it says of the way."""
    waiting = Waiting(10**9)
    stream = ReportStream(
        Origin([HQ]),
        peer="file",
        source="import",
        waiting=waiting,
        totals=Totals(),
        max_report_bytes=MAX_LINE_BYTES,
    )
    stream.receive(text, NOW)
    stream.close(END, NOW)
    return waiting.arriving


KINDS = {
    "a history": ((SAMPLES / "cdr-download.csv").read_bytes(), HistoryStream),
    "a history with a mark": (b"\xef\xbb\xbf\r\ncallid;timestart", HistoryStream),
    "reports": (REPORT, CaptureStream),
    "reports as a list": (b"\xef\xbb\xbf [\r\n" + REPORT + b"]", CaptureStream),
    "a stream with its login": (b"Response: Success\r\n\r\n" + REPORT, CaptureStream),
    "a report that speaks of a header": (b'{"callid,timestart":1}', CaptureStream),
    "an export": (lines(exported(CALL)), CaptureStream),
    "a log from journald": (b"<6>" + lines(STARTED), CaptureStream),
}


@pytest.mark.parametrize(("head", "kind"), KINDS.values(), ids=KINDS)
def test_the_kind_is_told_from_the_content(head: bytes, kind: type[ReportStream]) -> None:
    assert type(hq(head).stream) is kind


@pytest.mark.parametrize("text", [b"", b"\n \r\n", b"\xef\xbb\xbf\n", b"\0\0"])
def test_a_blank_file_holds_nothing(text: bytes) -> None:
    assert hq(text).stream is None


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"PK\x03\x04\x14\0\x06\0{}", "not text"),
        (b"\x1f\x8b\x08\0\0\0\0\0{", "needs the ending .gz"),
        ("\ufeffcallid,timestart".encode("utf-16-le"), "not text in UTF-8"),
        (b"SQLite format 3\0\x10\0", "not text"),
        (b"Time,Call From\n2017,1\n", "names callid and timestart"),
        (b'"CallID","JoinTime"\n"1","2"\n', "names callid and timestart"),
    ],
)
def test_what_holds_no_calls_is_refused_whole(head: bytes, reason: str) -> None:
    with pytest.raises(NotImportable, match=reason):
        hq(head)


@pytest.mark.parametrize(
    ("names", "original"),
    [((), False), (("call_id", "started_at", "raw"), False), (("call_id", "raw"), True)],
)
def test_an_export_to_csv_that_is_no_history_is_refused_whole(
    names: tuple[str, ...], original: bool
) -> None:
    header = ",".join(lay_out(RECORDS["calls"], names, original=original).headings)
    with pytest.raises(NotImportable, match="import one of --format jsonl with every column"):
        hq(f'{header}\r\n1,"{{""action"":""NewCdr""}}"\r\n'.encode())


@pytest.mark.parametrize(
    ("names", "original"),
    [((), True), (("call_id", "started_at"), False), (("call_id", "started_at"), True)],
)
def test_exported_lines_that_do_not_tell_all_are_refused_whole(
    names: tuple[str, ...], original: bool
) -> None:
    layout = lay_out(RECORDS["calls"], names, original=original)
    told = exported(CALL)
    line = {
        heading: told[column.name]
        for column, heading in zip(layout.columns, layout.headings, strict=True)
    }
    with pytest.raises(NotImportable, match="import one of --format jsonl with every column"):
        hq(lines(line, line))


def test_an_export_of_conferences_is_sent_to_its_own_command() -> None:
    with pytest.raises(NotImportable, match="cdrd import conferences"):
        hq(lines({"seq": 1, "portal": "video", "call_id": 7, "join_time": None}))


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_captured_reports_are_decoded_as_from_a_socket(path: Path) -> None:
    text = path.read_bytes()
    assert content(hq(text).batch) == content(from_socket(text))


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_reports_are_found_however_they_are_parted(path: Path) -> None:
    text = path.read_bytes()
    expected = hq(text)
    for spelled in (
        b"\xef\xbb\xbf" + text,
        text.replace(b"\n", b"\r\n\r\n"),
        text.replace(b"\n", b""),
        b"[" + text.replace(b"\n", b",\n") + b"]",
    ):
        capture = hq(spelled)
        assert content(capture.batch) == content(expected.batch)
        assert capture.totals == expected.totals


def test_other_events_are_passed_over_and_counted() -> None:
    capture = hq(lines(BYE, REPORT, BYE, STARTED))
    assert capture.totals.events == {"BYE": 2, "started": 1}
    assert len(capture.batch.records) == 1


def test_reports_need_their_pbx_other_events_do_not() -> None:
    assert Capture(lines(BYE), Provenance()).totals.passed_over == 1
    for text in (lines(REPORT), (SAMPLES / "cdr-download.csv").read_bytes()):
        with pytest.raises(OptionNeeded, match="--pbx NAME"):
            Capture(text, Provenance())


def test_a_report_of_another_serial_is_still_of_the_pbx_that_is_named() -> None:
    capture = hq(lines(REPORT.replace(b"}", b',"sn":"1"}'), REPORT))
    assert [(record.pbx, record.pbx_serial) for record in capture.batch.records] == [
        ("hq", "1"),
        ("hq", ""),
    ]


def test_exported_lines_need_no_option() -> None:
    capture = Capture(lines(exported(CALL, 3), exported(call(8), 9)), Provenance())
    assert capture.restored == [RestoredCall(3, CALL), RestoredCall(9, call(8))]
    assert not capture.batch.records


def test_an_exported_line_keeps_its_own_pbx() -> None:
    other = Provenance(Sender("other", BERLIN))
    assert Capture(lines(exported(CALL)), other).restored == [RestoredCall(7, CALL)]


def test_a_bad_exported_line_costs_exactly_itself() -> None:
    bad = orjson.dumps(exported(CALL) | {"duration": "x"})
    capture = hq(lines(exported(CALL, 3), bad, exported(call(8), 9)))
    assert [call.seq for call in capture.restored] == [3, 9]
    (quarantined,) = capture.batch.quarantined
    assert quarantined.payload == bad
    assert quarantined.reason == "duration is no integer from 0 to 9223372036854775807"
    assert (quarantined.pbx, quarantined.peer, quarantined.source) == ("hq", "file", "import")


def test_a_line_without_every_column_goes_to_quarantine() -> None:
    capture = hq(lines({"seq": 1, "started_at": None}, {"caller": "1000", "callee": "1001"}))
    first, second = capture.reasons
    assert first.startswith("the line lacks")
    assert second.startswith("no action, event or numeric type")


@pytest.mark.parametrize("prefix", [b"", b"<6>"], ids=["stdout", "journald"])
def test_log_lines_are_restored_and_other_events_of_the_log_passed_over(prefix: bytes) -> None:
    text = b"".join(
        prefix + line
        for line in lines(STARTED, logged(CALL, 3), STARTED, logged(call(8), 4)).splitlines(True)
    )
    capture = Capture(text, Provenance(zones={"hq": MANILA}))
    assert [(seq, record.call_id) for seq, record, _ in capture.restored] == [
        (3, CALL.call_id),
        (4, call(8).call_id),
    ]
    assert {record.started_local for _, record, _ in capture.restored} == {CALL.started_local}
    assert capture.restored[0].record.raw == orjson.dumps(logged(CALL, 3)).decode()
    assert capture.totals.events == {"started": 2}


def test_a_log_line_needs_the_zone_of_its_pbx() -> None:
    provenance = Provenance(HQ, zones={"other": BERLIN})
    with pytest.raises(OptionNeeded, match="PBX 'hq': configure it, or give its --timezone"):
        Capture(lines(logged(CALL)), provenance)
    zone = Provenance(zones={"other": BERLIN}, zone=MANILA)
    assert Capture(lines(logged(CALL)), zone).restored[0].record.utc_offset == 480


def test_a_bad_log_line_costs_exactly_itself() -> None:
    bad = logged(CALL) | {"seq": None}
    capture = hq(lines(logged(CALL, 3), bad, {"event": "call_released"}, logged(call(8), 9)))
    assert [call.seq for call in capture.restored] == [3, 9]
    assert [reason[:16] for reason in capture.reasons] == ["seq is no intege", "the line lacks s"]


def test_a_report_that_somebody_has_logged_is_a_report() -> None:
    report = orjson.loads(REPORT.replace(b"action", b"event"))
    capture = hq(lines(report | {"timestamp": "now", "level": "info", "started_at": "now"}))
    assert len(capture.batch.records) == 1


def test_a_broken_end_goes_to_quarantine() -> None:
    capture = hq(lines(REPORT) + REPORT[:40])
    assert len(capture.batch.records) == 1
    assert capture.reasons == [END]


MIXED = lines(
    STARTED,
    REPORT,
    exported(CALL, 3),
    b"<6>" + orjson.dumps(logged(call(8), 4)),
    BYE,
    exported(CALL) | {"seq": 0},
    REPORT.replace(b"09-14", b"02-30"),
    exported(call(9), 5),
    REPORT + BYE,
    b'text "outside"',
    (SAMPLES / "seed-000.jsonl").read_bytes().rstrip(),
    REPORT[:30],
)


def test_one_file_may_mix_them() -> None:
    capture = hq(MIXED)
    assert [seq for seq, _, _ in capture.restored] == [3, 4, 5]
    assert len(capture.batch.records) == 5
    assert len(capture.batch.mended) == 2
    assert len(capture.batch.quarantined) == 4
    assert capture.totals.events == {"started": 1, "BYE": 2}


def by_kind(capture: Capture) -> tuple[object, ...]:
    batch = capture.batch
    return (batch.records, batch.restored, batch.quarantined, capture.totals)


@given(st.lists(st.integers(min_value=0), max_size=20))
def test_the_cut_into_chunks_does_not_matter(cuts: list[int]) -> None:
    assert by_kind(hq(MIXED, cuts)) == by_kind(hq(MIXED))


def test_byte_by_byte_is_the_same() -> None:
    assert by_kind(hq(MIXED, list(range(len(MIXED))))) == by_kind(hq(MIXED))


def test_the_export_of_the_longest_report_is_one_line() -> None:
    raw = orjson.dumps({"action": "NewCdr", "note": '"' * (8 << 20)}).decode()
    record = CALL._replace(raw=raw)
    assert len(raw) > 16 << 20
    capture = hq(lines(exported(record, 3), exported(call(8), 9)))
    assert [seq for seq, _, _ in capture.restored] == [3, 9]


@pytest.mark.parametrize("before", [0, 20])
def test_a_log_line_with_a_number_beyond_any_costs_itself(before: int) -> None:
    told = {**STARTED, "event": "call_released", "seq": 1, "pbx": "unknown", "call_id": "1"}
    broken = orjson.dumps(told)[:-1] + b',"duration":1e999}\n'
    capture = Capture(
        lines(*[STARTED] * before, REPORT) + broken + lines(REPORT), Provenance(HQ), None
    )
    assert [record.call_id for record in capture.batch.records] == ["1505352615.1"] * 2
    assert len(capture.reasons) == 1
    assert "number" in capture.reasons[0]
