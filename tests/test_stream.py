"""Every byte of a connection ends as a record, in quarantine or passed over, and is counted."""

import json
import tracemalloc
from ipaddress import ip_network
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdrd.batch import Batch, Waiting
from cdrd.sender import Origin, Sender
from cdrd.sizes import KIB, PAYLOAD_BYTES
from cdrd.stream import MAX_EVENT_NAMES, ReportStream, Totals
from tests.example import content

SAMPLES = Path(__file__).parent / "samples"
RECEIVED_AT = "2024-01-01T00:00:00.000Z"
BERLIN = ZoneInfo("Europe/Berlin")
ANYWHERE = (ip_network("0.0.0.0/0"),)
HQ = Sender("hq", BERLIN, ANYWHERE)
BRANCH = Sender("branch", ZoneInfo("America/New_York"), ANYWHERE, "369362089179")
SHOP = Sender("shop", ZoneInfo("Asia/Tokyo"), ANYWHERE, "369451090405")
GOOD = b'{"action":"NewCdr","callid":"1495779310.371","timestart":"2017-05-25 22:15:10"}'
BYE = b'{"action":"BYE","callid":"1495706238.328"}'


class Connection:
    """A stream with what it fills."""

    def __init__(self, *senders: Sender, max_report_bytes: int = 64 * KIB) -> None:
        self.waiting = Waiting(10**9)
        self.totals = Totals()
        self.stream = ReportStream(
            Origin(senders or (HQ,)),
            peer="192.0.2.10:50000",
            source="tcp",
            waiting=self.waiting,
            totals=self.totals,
            max_report_bytes=max_report_bytes,
        )

    @property
    def batch(self) -> Batch:
        return self.waiting.arriving

    def receive(self, stream: bytes, cuts: list[int] | None = None) -> None:
        ends = sorted({cut for cut in cuts or [] if cut < len(stream)} | {len(stream)})
        for start, end in zip([0, *ends], ends, strict=False):
            self.stream.receive(stream[start:end], RECEIVED_AT)

    def close(self) -> None:
        self.stream.close("the peer closed within a report", RECEIVED_AT)

    def receive_alone(self, body: bytes) -> None:
        """Receive with a stream of its own, as a request's body comes."""
        stream = ReportStream(
            self.stream.origin,
            peer=self.stream.peer,
            source="tcp",
            waiting=self.waiting,
            totals=self.totals,
            max_report_bytes=64 * KIB,
        )
        stream.receive(body, RECEIVED_AT)
        stream.close("the peer closed within a report", RECEIVED_AT)

    def check_identity(self) -> None:
        assert self.totals.received == len(self.waiting) + self.totals.passed_over
        assert self.totals.received == self.stream.reports
        assert self.totals.events.total() == self.totals.passed_over


def call(serial: object, **fields: object) -> bytes:
    report = {
        "action": "NewCdr",
        "callid": "x",
        "timestart": "2017-09-14 09:30:15",
        "sn": serial,
        **fields,
    }
    return json.dumps(report).encode() + b"\n"


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.jsonl")), ids=lambda path: path.stem)
def test_every_published_report_is_a_record_or_passed_over(path: Path) -> None:
    stream = path.read_bytes()
    connection = Connection()
    connection.receive(stream)
    connection.close()
    connection.check_identity()
    assert connection.totals.received == len(stream.splitlines())
    assert not connection.batch.quarantined
    is_call = "newcdr" in path.name or "30012" in path.name or path.stem in ("openvox", "seed-000")
    assert connection.totals.passed_over == (0 if is_call else len(stream.splitlines()))


def test_raw_is_the_report_as_received() -> None:
    spelled = GOOD.replace(b'":"', b'" :  "').replace(b"}", b', "note": "M\xc3\xbcller"}')
    connection = Connection()
    connection.receive(b"text\r\n" + spelled + b"  \r\n")
    (record,) = connection.batch.records
    assert record.raw == spelled.decode()
    assert (record.pbx, record.source, record.received_at) == ("hq", "tcp", RECEIVED_AT)


def test_a_mended_record_is_said_to_be_so() -> None:
    connection = Connection()
    connection.receive((SAMPLES / "seed-000.jsonl").read_bytes())
    plain, *mended = connection.batch.records
    assert connection.batch.mended == mended
    assert plain.destination_trunk == ""
    assert [record.destination_trunk + record.source_trunk for record in mended] == [
        "Apple_test"
    ] * 2
    assert all(json.loads(record.raw) for record in mended)


def test_a_mended_message_of_the_p_series_is_said_to_be_so() -> None:
    message = '{"call_id":"x","time_start":"2017-09-14 09:30:15","dst_trunk_name":"Apple\\_test"}'
    connection = Connection()
    connection.receive(json.dumps({"type": 30012, "msg": message}).encode() + b"\n")
    (record,) = connection.batch.records
    assert record.destination_trunk == "Apple_test"
    assert connection.batch.mended == [record]


def test_the_serial_decides_between_pbxs_at_one_address() -> None:
    connection = Connection(BRANCH, SHOP)
    connection.receive(call("369451090405") + call("369362089179") + call(369362089179))
    records = connection.batch.records
    assert [record.pbx for record in records] == ["shop", "branch", "branch"]
    assert [record.utc_offset for record in records] == [540, -240, -240]


@pytest.mark.parametrize("serial", [" 369451090405", "369451090405 "])
def test_blanks_around_a_serial_do_not_matter(serial: str) -> None:
    connection = Connection(BRANCH, SHOP)
    connection.receive(call(serial))
    assert [record.pbx for record in connection.batch.records] == ["shop"]


@pytest.mark.parametrize("serial", ["", "  ", None])
def test_a_blank_serial_is_none(serial: str | None) -> None:
    connection = Connection(BRANCH)
    connection.receive(call(serial))
    assert [record.pbx for record in connection.batch.records] == ["branch"]


@pytest.mark.parametrize("serial", ["another", "", None, [], {"a": 1}, 1.5, True])
def test_a_serial_of_no_pbx_goes_to_quarantine_under_all_names(serial: object) -> None:
    connection = Connection(BRANCH, SHOP)
    report = call(serial)
    connection.receive(report)
    (quarantined,) = connection.batch.quarantined
    assert quarantined.pbx == "branch/shop"
    assert "serial" in quarantined.reason
    assert quarantined.payload == report.rstrip()
    connection.check_identity()


def test_a_bad_report_costs_exactly_itself() -> None:
    connection = Connection()
    bad = b'{"action":"NewCdr","callid":"1495779310.371","timestart":"2017-02-30 22:15:10"}'
    connection.receive(GOOD + b"\n" + bad + b"\n" + GOOD + b"\n" + GOOD[:30] + b"\n" + BYE + GOOD)
    assert len(connection.batch.records) == 3
    first, second = connection.batch.quarantined
    assert first.payload == bad
    assert first.size == len(bad)
    assert "2017-02-30" in first.reason
    assert (first.pbx, first.peer, first.source) == ("hq", "192.0.2.10:50000", "tcp")
    assert first.received_at == RECEIVED_AT
    assert second.payload.startswith(GOOD[:30])
    assert connection.totals.events == {"BYE": 1}
    connection.check_identity()


MENDED_MESSAGE = (
    b'{"type":30012,"msg":"{\\"call_id\\":\\"a\\\\_b\\",'
    b'\\"time_start\\":\\"2017-09-14 09:30:15\\"}"}\n'
)
BAD = {
    "no time": call("", timestart="2017-02-30 09:30:15"),
    "no call id": call("", callid=""),
    "a fraction": call("", callduraction=1.5),
    "NUL": call("", callfrom="\0"),
    "another serial": call("369362089179"),
    "no serial that can be one": call([]),
    "no event": b'{"action":[]}\n',
    "no message": b'{"type":30012,"msg":"{"}\n',
    "no JSON": b"{x}\n",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("at", [0, 1, 50, 99])
def test_one_bad_report_in_a_block_costs_none_of_its_neighbours(bad: bytes, at: int) -> None:
    lines = [call("369451090405", callid=f"1505352615.{number}") for number in range(100)]
    connection = Connection(SHOP)
    connection.receive(b"".join([*lines[:at], bad, *lines[at:]]))
    assert [record.call_id for record in connection.batch.records] == [
        f"1505352615.{number}" for number in range(100)
    ]
    (quarantined,) = connection.batch.quarantined
    assert quarantined.payload.rstrip() == bad.rstrip()
    connection.check_identity()


def test_each_of_a_block_of_bad_reports_has_its_own_reason() -> None:
    connection = Connection(SHOP, BRANCH)
    connection.receive(
        call("369451090405", timestart="soon") + call("1") + call("2") + call("369362089179")
    )
    first, second, third = connection.batch.quarantined
    assert (first.pbx, "soon" in first.reason) == ("shop", True)
    assert (second.pbx, "'1'" in second.reason) == ("shop/branch", True)
    assert (third.pbx, "'2'" in third.reason) == ("shop/branch", True)
    assert [record.pbx for record in connection.batch.records] == ["branch"]
    connection.check_identity()


def test_calls_whose_id_tells_the_start_and_others_share_a_block() -> None:
    connection = Connection(BRANCH, SHOP)
    starts = [("1505352615.1", 480), ("x", -240), ("1505381415.2", 0), ("1505352616.3", -240)]
    connection.receive(b"".join(call("369362089179", callid=call_id) for call_id, _ in starts))
    records = connection.batch.records
    assert [(record.call_id, record.utc_offset) for record in records] == starts
    assert [record.identity < 0 for record in records] == [False, True, False, True]


def test_what_comes_in_one_piece_is_in_the_order_received() -> None:
    """Also where a message had to be mended, or two PBXs or events take turns."""
    message = '{"call_id":"%d","time_start":"2017-09-14 09:30:15","dst_trunk_name":"a\\_b"}'
    mended = [
        json.dumps({"type": 30012, "sn": "369451090405", "msg": message % number}).encode() + b"\n"
        for number in (1, 4)
    ]
    bad = call("369451090405", timestart="soon")
    unreadable = b'{"action":[]}\n'
    stream = (
        call("369451090405", callid="0")
        + mended[0]
        + call("369362089179", callid="2")
        + bad
        + unreadable
        + (BYE + b"\n")
        + call("369451090405", callid="3")
        + mended[1]
        + bad
    )
    for cuts in ([], list(range(len(stream)))):
        connection = Connection(BRANCH, SHOP)
        connection.receive(stream, cuts)
        records = connection.batch.records
        assert [record.call_id for record in records] == ["0", "1", "2", "3", "4"]
        assert [record.call_id for record in connection.batch.mended] == ["1", "4"]
        assert [one.payload for one in connection.batch.quarantined] == [
            bad.rstrip(),
            unreadable.rstrip(),
            bad.rstrip(),
        ]
        connection.check_identity()


def test_half_a_report_at_the_end_goes_to_quarantine() -> None:
    for cut in range(1, len(GOOD)):
        connection = Connection()
        connection.receive(GOOD + GOOD[:cut])
        connection.close()
        assert len(connection.batch.records) == 1
        (quarantined,) = connection.batch.quarantined
        assert quarantined.payload == GOOD[:cut]
        assert quarantined.reason == "the peer closed within a report"
        connection.check_identity()


def test_a_large_report_that_is_no_record_is_kept_with_its_head_and_size() -> None:
    report = GOOD.replace(b"2017-05-25", b"2017-02-30")[:-1] + b',"x":"' + b"x" * 100_000 + b'"}'
    for limit in (64 * KIB, 1024 * KIB):
        connection = Connection(max_report_bytes=limit)
        connection.receive(report + b"\n" + GOOD + b"\n")
        (quarantined,) = connection.batch.quarantined
        assert quarantined.payload == report[:PAYLOAD_BYTES]
        assert quarantined.size == len(report)
        assert len(connection.batch.records) == 1


def test_events_are_counted_by_name_up_to_a_bound() -> None:
    connection = Connection()
    for number in range(3 * MAX_EVENT_NAMES):
        connection.receive(b'{"event":"%d%s"}\n' % (number, b"x" * 1000))
        connection.receive(BYE)
    events = connection.totals.events
    assert len(events) <= MAX_EVENT_NAMES + 1
    assert max(map(len, events)) <= 64
    assert events["BYE"] == 3 * MAX_EVENT_NAMES
    assert events["other"] > 0
    connection.check_identity()


def test_a_long_event_name_is_one_name() -> None:
    connection = Connection()
    for number in range(MAX_EVENT_NAMES - 1):
        connection.receive(b'{"event":"%d"}\n' % number)
    connection.receive(b'{"event":"%s"}\n' % (b"x" * 100) * 2)
    assert connection.totals.events["x" * 64] == 2
    connection.check_identity()


def test_of_whole_bodies_the_calls_are_taken_together_and_what_is_neither_is_left() -> None:
    bodies = [
        GOOD + b"\r\n",
        BYE,
        b"hello",
        b"",
        b"[]",
        b'\xef\xbb\xbf{"action":"BYE"}',
        GOOD + BYE,
        GOOD[:40],
        b'{"action":[]}',
        MENDED_MESSAGE,
        b" " + call("369362089179", callid="7"),
    ]
    connection = Connection()
    taken = connection.stream.take_whole(bodies, RECEIVED_AT)
    assert taken == ([0, 10], [1], [2, 3, 4, 5, 6, 7, 8, 9])
    assert [record.raw for record in connection.batch.records] == [
        GOOD.decode(),
        bodies[10].strip().decode(),
    ]
    assert connection.totals.events == {"BYE": 1}
    connection.check_identity()


@pytest.mark.parametrize("bad", [call("x", callid=""), call("x", timestart="soon"), call(5)])
def test_calls_that_cannot_be_taken_together_are_all_left(bad: bytes) -> None:
    connection = Connection(BRANCH, SHOP)
    good = call("369362089179")
    taken = connection.stream.take_whole([good, BYE, bad, good], RECEIVED_AT)
    assert (taken.waiting, taken.passed_over) == ([], [1])
    assert sorted(taken.left) == [0, 2, 3]
    connection.check_identity()


pieces = st.sampled_from(
    [
        GOOD,
        GOOD[:40],
        GOOD[40:],
        BYE,
        *(bytes([byte]) for byte in b'{}[]",:\\\n\r 0'),
        b"\n",
        b'{"action":"NewCdr"}',
        b'{"action":"NewCdr","callid":1.5,"timestart":[]}',
        b'{"action":[]}',
        b'{"type":30012,"msg":"{"}',
        b'{"type":30012,"sn":"x","msg":{"call_id":"\\u0000"}}',
        b'{"action":"\\ud800"}',
        b'{"action":"NewCdr","callid":"\\_"}',
        call(True),
        call({"a": 1}),
        b"\xff\x00",
        b"Response: Success\r\n",
    ]
)
lines = st.sampled_from(
    [
        *BAD.values(),
        GOOD + b"\n",
        GOOD + GOOD + b"\r\n",
        BYE + b"\n\n",
        call("369362089179"),
        call("", callid="7"),
        MENDED_MESSAGE,
    ]
)
streams = (
    st.binary(max_size=80)
    | st.lists(pieces, max_size=30).map(b"".join)
    | st.lists(lines, max_size=30).map(b"".join)
)


@settings(max_examples=400)
@given(streams, st.lists(st.integers(0, 1000), max_size=20), st.sampled_from([64 * KIB, 60]))
def test_everything_received_is_a_record_in_quarantine_or_passed_over(
    stream: bytes, cuts: list[int], max_report_bytes: int
) -> None:
    connection = Connection(BRANCH, HQ, max_report_bytes=max_report_bytes)
    connection.receive(stream, cuts)
    connection.check_identity()
    connection.close()
    connection.check_identity()
    whole = Connection(BRANCH, HQ, max_report_bytes=max_report_bytes)
    whole.receive(stream)
    whole.close()
    assert content(connection.batch) == content(whole.batch)
    assert connection.totals == whole.totals


bodies = st.sampled_from([GOOD, b" " + GOOD, BYE, call("", callid="7"), MENDED_MESSAGE]) | streams


@given(st.lists(bodies, max_size=8))
def test_what_is_taken_of_whole_bodies_is_what_a_stream_for_each_takes(bodies: list[bytes]) -> None:
    together = Connection()
    left = together.stream.take_whole(bodies, RECEIVED_AT).left
    for body in [bodies[place] for place in left]:
        together.receive_alone(body)
    alone = Connection()
    for body in bodies:
        alone.receive_alone(body)
    assert together.totals == alone.totals
    assert sorted(together.batch.records) == sorted(alone.batch.records)
    assert sorted(together.batch.quarantined) == sorted(alone.batch.quarantined)


def test_a_stream_that_waits_holds_nothing_of_what_was_taken() -> None:
    chunk = b'{"action":"RING"}\n' * 4000
    streams = [Connection() for _ in range(50)]
    tracemalloc.start()
    for stream in streams:
        stream.receive(chunk)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < len(streams) * len(chunk) / 10
