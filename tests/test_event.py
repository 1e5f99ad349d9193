"""Other events are named without a parse, and whatever is no such event becomes what it did."""

from collections import Counter

import orjson
import pytest

from cdrd.event import MAX_LENGTH, are_mostly_events, name_of_other, skim
from cdrd.frame import BLOCK_BYTES, MAX_DEPTH, SKIMMED_BYTES, Framer
from cdrd.sizes import KIB
from tests.fuzz.reading import HQ, RECEIVED_AT, Custody, connection, read

MOST = 64 * KIB
CALL = '{"action":"NewCdr","callid":"1700000000.1","timestart":"2023-11-14 22:13:20"}'
RING = '{"action":"RING","callid":"1571897079.1","call":[{"ext":{"extid":"1037"}}]}'
IDLE = '{"event":"ExtensionStatus","extension":{"number":"1000","status":"Idle"}}'
LONG = '{"event":"RING","a":"' + "x" * MAX_LENGTH + '"}'
OTHERS = (f"{RING}\n{IDLE}\n" * 5).encode()

ODD = {
    "a call": CALL,
    "a call whose name is escaped": CALL.replace("NewCdr", "\\u004eewCdr"),
    "a call whose key is escaped": CALL.replace("action", "\\u0061ction"),
    "a call with blanks in its name": CALL.replace("NewCdr", " NewCdr "),
    "a call that is named again": '{"action":"RING",' + CALL[1:],
    "a call named by its event, without an action": CALL.replace("action", "event"),
    "a call beside a blank action": CALL.replace("action", "event").replace("{", '{"action":"",'),
    "a call beside no action": CALL.replace("action", "event").replace("{", '{"action":null,'),
    "a call of the P-Series": '{"type":30012,"sn":"369362089179","msg":"{\\"call_id\\":\\"1\\",'
    '\\"time_start\\":\\"2023-11-14 22:13:20\\"}"}',
    "another event of the P-Series": '{"type":30008,"sn":"369362089179","msg":"{}"}',
    "an event named again": CALL[:-1] + ',"action":"RING"}',
    "an event with blanks in its name": '{"event":" RING\\t"}',
    "an event of two names": '{"event":"RING","action":"ANSWER"}',
    "a blank name": '{"event":" "}',
    "an empty name": '{"event":""}',
    "a number for a name": '{"event":30012}',
    "a list for a name": '{"event":["RING"]}',
    "no name": '{"callid":"1"}',
    "no name and no call": '{"a":"1"}',
    "an answer": '{"status":"Success"}',
    "no object": '["RING"]',
    "a long event": LONG,
    "a long call": CALL[:-1] + LONG[15:],
    "a long event with a number beyond any": LONG[:-1] + ',"b":1e999}',
    "two events": RING + IDLE,
    "two events with a blank": RING + " " + IDLE,
    "an event and a call": RING + CALL,
    "an event over two lines": RING.replace(",", ",\n"),
    "two events over three lines": RING + " " + RING.replace(",", ",\n", 1),
    "a number beyond 64 bits": '{"event":"RING","a":123456789012345678901234567890}',
    "a number beyond any": '{"event":"RING","a":1e999}',
    "a number of 5,000 digits": '{"event":"RING","a":' + "1" * 5000 + "}",
    "a call with a number beyond any": CALL[:-1] + ',"a":1e999}',
    "nested": '{"event":"RING","a":' + "[" * 400 + "]" * 400 + "}",
    "nested deeply": '{"event":"RING","a":' + "[" * 1000 + "]" * 1000 + "}",
    "nested too deeply": '{"event":"RING","a":' + "[" * 1100 + "]" * 1100 + "}",
    "what is no JSON": '{"event":"RING","a":NaN}',
    "a comma too many": '{"event":"RING",}',
    "a tab in a text": '{"event":"RING","a":"\t"}',
    "a lone surrogate": '{"event":"RING","a":"\\ud800"}',
    "a name of half a character": '{"event":"\\ud800"}',
    "an escape off a page": '{"event":"RING","a":"\\_"}',
    "an event that is torn": RING[:40],
    "a call that is torn": CALL[:40],
    "text": "heartbeat response",
    "blanks of Unicode": "\u3000" + RING + "\u2028",
    "blanks": " \t" + RING + " \r",
    "an event that is too long": '{"event":"RING","a":"' + "x" * MOST + '"}',
    "a call that is too long": CALL[:-1] + ',"a":"' + "x" * MOST + '"}',
}
odd = pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())


P_SERIES = '{"type":30008,"sn":"369362089179","msg":"{}"}'


@odd
@pytest.mark.parametrize("delimiter", ["\n", "\r\n", ""], ids=["lines", "returns", "glued"])
def test_what_stands_among_other_events_becomes_what_it_does_alone(
    odd: str, delimiter: str
) -> None:
    make = connection(HQ, max_report_bytes=MOST)
    texts = [RING, IDLE] * 5 + [CALL.replace(".1", ".2"), odd, IDLE, CALL, RING, ""]
    mixed = delimiter.join(texts).encode()
    expected = read(make, [mixed], one_by_one=True)
    assert read(make, [mixed]) == expected
    assert read(make, [mixed[:700], mixed[700:]], skims=True) == expected


@pytest.mark.parametrize("odd", [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xe6\x9d"])
def test_an_event_that_is_no_utf_8_is_quarantined_among_others(odd: bytes) -> None:
    make = connection(HQ, max_report_bytes=MOST)
    broken = b'{"event":"RING","a":"' + odd + b'"}\n'
    reading = read(make, [OTHERS + broken + OTHERS])
    assert [one.payload for one in reading.quarantined] == [broken.rstrip()]
    assert reading == read(make, [OTHERS + broken + OTHERS], one_by_one=True)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([RING] * 9, True),
        ([RING] * 5 + [CALL] * 90, True),
        ([RING] * 4 + [CALL] * 5, False),
        ([CALL] + [RING] * 8, True),
        ([RING] * 8, False),  # so few are parsed as soon
        ([CALL] * 9, False),
        ([P_SERIES] * 9, False),
        ([RING] * 7 + ["[]", RING], False),
        ([], False),
    ],
)
def test_the_first_texts_tell_whether_most_are_other_events(
    texts: list[str], *, expected: bool
) -> None:
    assert are_mostly_events(texts) is expected


def test_a_framer_parses_no_event_where_most_are() -> None:
    chunk = OTHERS + CALL.encode() + b"\n" + OTHERS
    framer = Framer(MOST, skims=True)
    framer.receive(chunk)
    lines = framer.next_lines()
    assert lines is not None
    assert (lines.texts, [one["callid"] for one in lines.reports]) == ([CALL], ["1700000000.1"])
    assert lines.events == {"RING": 10, "ExtensionStatus": 10}
    assert framer.next_lines() is None


def test_a_framer_that_may_not_skim_parses_all() -> None:
    framer = Framer(MOST)
    framer.receive(OTHERS)
    lines = framer.next_lines()
    assert lines is not None
    assert (len(lines.reports), lines.events) == (10, {})


def test_a_stream_counts_what_was_skimmed() -> None:
    custody = Custody()
    stream = connection(HQ, max_report_bytes=MOST)(custody.waiting, custody.totals)
    stream.receive(OTHERS + f"{P_SERIES}\n{CALL}\n".encode() + OTHERS, RECEIVED_AT)
    assert custody.totals.events == {"RING": 10, "ExtensionStatus": 10, "30008": 1}
    assert (custody.reading().received, custody.reading().passed_over) == (22, 21)


def test_more_is_taken_at_once_behind_a_block_that_was_skimmed() -> None:
    framer = Framer(MOST, skims=True)
    line = RING.encode() + b"\n"
    framer.receive(line * 9 * (BLOCK_BYTES // len(line)) + CALL.encode() + b"\n")
    sizes = [sum(lines.events.values()) * len(line) for lines in iter(framer.next_lines, None)]
    assert sizes[0] <= BLOCK_BYTES < sizes[1] <= SKIMMED_BYTES


@odd
def test_a_name_is_told_of_what_is_skimmed_alone(odd: str) -> None:
    left, events = skim([odd])
    assert name_of_other(odd.encode()) == next(iter(events), "")
    assert left == ([] if events else [odd])


@pytest.mark.parametrize("odd", ["[]", '{"event":1}', '{"event":"RING"', LONG])
def test_one_odd_text_leaves_all_to_the_parse(odd: str) -> None:
    texts = [RING, odd, IDLE]
    assert skim(texts) == (texts, Counter())


def test_no_text_that_is_skimmed_nests_deeper_than_every_parser_takes() -> None:
    deepest = '{"event":"RING","a":'
    room = (MAX_LENGTH - len(deepest) - 1) // 2
    assert room < MAX_DEPTH
    text = deepest + "[" * room + "]" * room + "}"
    assert orjson.loads(text)["event"] == "RING"
    assert skim([text]) == ([], {"RING": 1})
