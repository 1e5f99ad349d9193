"""A row becomes a line with its checksum, and a line that is not as it was written is told."""

from typing import Any
from zlib import crc32

import pytest

from cdrd.batch import Batch, QuarantinedReport
from cdrd.spool_line import read_lines, spell_lines
from tests.example import CALL, call, holding

REPORT = QuarantinedReport(
    "2017-09-14T01:30:45.123Z", "hq", "192.0.2.1:9", "tcp", "why", b"\xff", 9
)


def spelled(batch: Batch) -> list[bytes]:
    return list(spell_lines(batch))


def test_what_lines_are_read_to_is_what_they_were_spelled_from() -> None:
    batch = Batch(quarantined=[REPORT])
    batch.add(call(1), CALL._replace(raw='{"a":"\n\u2028 \\u00e9 é"}'))
    batch.add(call(2), mended=True)
    lines = spelled(batch)
    assert all(line.count(b"\n") == 1 and line.endswith(b"\n") for line in lines)
    read = read_lines([b"\n", *lines])
    assert read.damaged == []
    assert read.batch.records == batch.records
    assert read.batch.quarantined == [REPORT]
    assert read.batch.mended == [call(2)]
    assert read.batch.repeated


def test_a_line_with_any_byte_changed_or_cut_off_costs_itself() -> None:
    before, line, behind = (spelled(holding([call(number)]))[0] for number in range(3))
    changed = [
        line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :] for place in range(len(line))
    ]
    for wrong in [*changed, *(line[:end] for end in range(1, len(line)))]:
        read = read_lines([before, wrong, behind])
        assert read.batch.records == [call(0), call(2)], wrong
        assert [damaged.place for damaged in read.damaged] == [1]


@pytest.mark.parametrize(
    "line",
    [
        b'f4d02bf1 {"a":1}\n',
        b"00000000 \n",
        b"\x00" * 100 + b"\n",
        b"no line of ours\n",
    ],
)
def test_what_is_no_line_of_ours_is_told_and_never_taken(line: bytes) -> None:
    read = read_lines([line])
    assert not read.batch
    assert len(read.damaged) == 1


def test_a_line_of_another_version_is_told() -> None:
    for text in (b'["forwarded",[1]]', b'["records",[1,2]]', b'["restored",[1]]', b'{"a":1}'):
        read = read_lines([b"%08x %b\n" % (crc32(text), text)])
        assert not read.batch
        assert len(read.damaged) == 1, text


@pytest.mark.parametrize("field", [{"raw": '{"a":"\ud800"}'}, {"duration": 2**70}])
def test_what_no_json_can_hold_costs_itself_and_goes_to_quarantine(field: dict[str, Any]) -> None:
    poison = CALL._replace(**field)
    read = read_lines(spelled(holding([call(1), poison, call(2)])))
    assert read.batch.records == [call(1), call(2)]
    [report] = read.batch.quarantined
    assert report.payload == poison.raw.encode(errors="surrogatepass")
    assert report.reason.startswith("refused by the spool")


def test_a_name_that_no_json_can_hold_keeps_no_report_from_being_kept() -> None:
    [report] = read_lines(
        spelled(holding([CALL._replace(pbx="\ud800", duration=2**70)]))
    ).batch.quarantined
    assert report.pbx == "\\ud800"
