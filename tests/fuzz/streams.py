"""What has to be true of a stream of reports, of a report's values and of files of records."""

import orjson

from cdrd.batch import RestoredCall
from cdrd.capture import HEAD_BYTES, NotImportable, Provenance, open_capture
from cdrd.fetch import RestStream
from cdrd.frame import Broken, Frame, Framer
from cdrd.history import Header, HistoryStream, read_header
from cdrd.mend import mend
from cdrd.report import SPELLINGS
from cdrd.sender import Origin
from cdrd.sizes import KIB, PAYLOAD_BYTES
from tests.fuzz.reading import (
    ENDED,
    HQ,
    PEER,
    RECEIVED_AT,
    SHOPS,
    Custody,
    Reading,
    chance,
    check_records,
    check_restored,
    connection,
    cut,
    read,
    read_handed_over,
)
from tests.fuzz.seeds import HEADER

BEFORE = b'{"action":"NewCdr","callid":"before","timestart":"2017-05-25 22:15:10"}'
BEHIND = BEFORE.replace(b"before", b"behind")


def check_frames(stream: bytes) -> None:
    """The frames do not depend on the cuts, nor on whether lines are taken together."""
    choose = chance(stream)
    most = choose.choice([64 * KIB, 64 * KIB, 200])
    whole = _frames(stream, [stream], most, lines_first=True)
    pieces, lines_first = cut(stream, choose), choose.random() < 0.5
    assert _frames(stream, pieces, most, lines_first=lines_first) == whole


def _frames(
    stream: bytes, pieces: list[bytes], most: int, *, lines_first: bool
) -> list[tuple[object, ...]]:
    framer = Framer(most)
    frames: list[tuple[object, ...]] = []
    for piece in pieces:
        framer.receive(piece)
        while True:
            if lines_first and (lines := framer.next_lines()) is not None:
                assert len(lines.texts) == len(lines.reports) > 0
                frames += zip(map(str.encode, lines.texts), lines.reports, strict=True)
            elif (frame := framer.next_frame()) is not None:
                frames.append(_checked(frame, most))
            else:
                break
    frames += (_checked(frame, most) for frame in framer.close("closed"))
    assert sum(map(_size, frames)) <= len(stream)
    return frames


def _checked(frame: Frame | Broken, most: int) -> tuple[object, ...]:
    if isinstance(frame, Broken):
        assert frame.payload
        assert len(frame.payload) == min(frame.size, PAYLOAD_BYTES)
        return frame
    text = bytes(frame.text)
    assert len(text) <= most
    assert orjson.loads(text) == frame.report
    assert not frame.mended or mend(text) is None
    return text, frame.report


def _size(frame: tuple[object, ...]) -> int:
    text, told = frame[:2]
    if isinstance(told, int):
        return told
    assert isinstance(text, bytes)
    return len(text)


def check_stream(stream: bytes) -> None:
    """What becomes of a stream does not depend on the cuts, blocks or processes it came through."""
    choose = chance(stream)
    senders = choose.choice([(HQ,), (HQ,), SHOPS])
    most = choose.choice([64 * KIB, 64 * KIB, 400])
    make = connection(*senders, max_report_bytes=most)
    custody = Custody()
    whole_stream = make(custody.waiting, custody.totals)
    whole_stream.receive(stream, RECEIVED_AT)
    whole_stream.close(ENDED, RECEIVED_AT)
    check_records(custody.batch)
    whole = custody.reading()
    match choose.randrange(4):
        case 0:
            assert read(make, cut(stream, choose)) == whole
        case 1:
            assert read(make, [stream], one_by_one=True) == whole
        case 2:
            assert read(make, [stream], skims=True) == whole
        case 3 if most > len(stream):  # of what is too long, only the beginning is handed over
            at = choose.randrange(len(stream) + 1)
            assert read_handed_over(make, stream[:at], stream[at:]) == whole
    for record in whole.records:
        again = read(make, [record.raw.encode()])
        assert (again.records, again.received) == ([record], 1)


def check_neighbours(stream: bytes) -> None:
    """Whatever stands between two reports on lines of their own, both are records."""
    choose = chance(stream)
    make = connection(HQ, max_report_bytes=choose.choice([64 * KIB, 200]))
    between = BEFORE + b"\n" + stream + b"\n" + BEHIND + b"\n"
    call_ids = [record.call_id for record in read(make, cut(between, choose)).records]
    assert (call_ids[0], call_ids[-1]) == ("before", "behind")


def pour_stream(pieces: list[bytes]) -> None:
    """Read a connection with the largest reports that a configuration allows."""
    read(connection(HQ, max_report_bytes=16 * KIB * KIB), pieces)


_KEYS = [*SPELLINGS, "action", "event", "type", "msg", "note"]


def check_fields(values: bytes) -> None:
    """Whatever JSON the fields of a report hold, it is one record, or one quarantined with why."""
    choose = chance(values)
    fields = {"callid": "1495779310.371", "timestart": "2017-05-25 22:15:10"}
    fields = dict(choose.sample(list(fields.items()), choose.choice([2, 2, 2, 1, 0])))
    keys = choose.sample(_KEYS, len(_KEYS))
    said = dict(zip(keys, map(_value, values.split(b"\n")), strict=False))
    report = {"action": "NewCdr", **fields, **said}
    if choose.randrange(3) == 0:
        inner = choose.choice([report, orjson.dumps(report).decode()])
        report = {"type": 30012, "sn": said.get("sn"), "msg": inner}
    custody = Custody()
    make = connection(*choose.choice([(HQ,), SHOPS]), max_report_bytes=64 * KIB)
    stream = make(custody.waiting, custody.totals)
    text = orjson.dumps(report)
    stream.receive(text + b"\n", RECEIVED_AT)
    check_records(custody.batch)
    reading = custody.reading()
    assert reading.received == 1
    assert [record.raw for record in reading.records if not reading.mended] in ([], [text.decode()])
    _check_rest_rows([report, said])


def _value(text: bytes) -> object:
    """Read a value as JSON, or else as text."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text.decode(errors="replace")


def _check_rest_rows(rows: list[object]) -> None:
    custody = Custody()
    stream = RestStream(Origin([HQ]), peer=PEER, waiting=custody.waiting, totals=custody.totals)
    stream.take_rows(rows, RECEIVED_AT)
    check_records(custody.batch)
    assert custody.reading().received == len(rows)


def check_history(rows: bytes) -> None:
    """A history's rows do not depend on the cuts, and each that is read is in one place."""
    choose = chance(rows)
    delimiter = choose.choice([b",", b",", b";", b"\t"])
    first = HEADER.replace(b",", delimiter)
    header = read_header(first)
    assert header is not None
    history = first + b"\n" + rows
    whole = _read_history(header, [history])
    assert _read_history(header, cut(history, choose)) == whole
    for record in whole.records:
        check_restored(RestoredCall(1, record))


def pour_history(pieces: list[bytes]) -> None:
    """Read a history whose first line is no part of the pieces."""
    header = read_header(HEADER)
    assert header is not None
    _read_history(header, pieces)


def _read_history(header: Header, pieces: list[bytes]) -> Reading:
    custody = Custody()
    stream = HistoryStream(
        header,
        Origin([HQ]),
        peer=PEER,
        source="history",
        waiting=custody.waiting,
        totals=custody.totals,
    )
    for piece in pieces:
        stream.receive(piece, RECEIVED_AT)
    stream.close("ended", RECEIVED_AT)
    return custody.reading()


def check_capture(file: bytes) -> None:
    """A file of any kind is refused with the reason, or read, and that however it is cut."""
    choose = chance(file)
    senders = choose.choice([HQ, HQ, None])
    provenance = Provenance(senders, {"hq": HQ.zone}, choose.choice([HQ.zone, None]))
    whole = _read_capture(file, [file], provenance)
    assert _read_capture(file, cut(file, choose), provenance) == whole


def pour_capture(pieces: list[bytes]) -> None:
    """Read a file."""
    _read_capture(b"".join(pieces), pieces, Provenance(HQ, {}, HQ.zone))


def _read_capture(file: bytes, pieces: list[bytes], provenance: Provenance) -> Reading | None:
    custody = Custody()
    try:
        stream = open_capture(
            file[:HEAD_BYTES],
            provenance,
            name="file",
            waiting=custody.waiting,
            totals=custody.totals,
        )
        if stream is None:
            return None
        for piece in pieces:
            stream.receive(piece, RECEIVED_AT)
        stream.close("the file ends within a report", RECEIVED_AT)
    except NotImportable:
        return None
    check_records(custody.batch)
    for call in custody.batch.restored:
        if call.local_told:
            check_restored(call)
    return custody.reading()
