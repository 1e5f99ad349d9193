"""The frames of a stream are the same however it was cut, and a fault costs only itself."""

import json
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdrd.frame import BLOCK_BYTES, MAX_DEPTH, Broken, Frame, Framer
from cdrd.mend import mend
from cdrd.sizes import KIB, PAYLOAD_BYTES

SAMPLES = Path(__file__).parent / "samples"
MAX = 64 * KIB

REPORTS = [
    line
    for path in sorted(SAMPLES.glob("*.jsonl"))
    if not path.name.startswith("seed-")
    for line in path.read_bytes().splitlines()
]
CALLS = [report for report in REPORTS if b'"NewCdr"' in report or b'"type":30012' in report]
GOOD = b'{"action":"NewCdr","callid":"1495779310.371","timestart":"2017-05-25 22:15:10"}'
GOOD_2 = b'{"event":"NewCdr","callid":"1571897930.5","timestart":"2019-10-23 22:18:50"}'

DELIMITERS = {
    "newline": b"\n",
    "return and newline": b"\r\n",
    "blank line": b"\r\n\r\n",
    "none": b"",
    "blank": b" ",
    "tab": b"\t",
    "comma": b",",
    "byte order mark": b"\xef\xbb\xbf",
    "newline and byte order mark": b"\n\xef\xbb\xbf",
    "line of text": b"\r\nheartbeat response\r\n",
    "login answer": b"\r\nResponse: Success\r\nMessage: Authentication accepted\r\n\r\n",
}
delimited = pytest.mark.parametrize("delimiter", DELIMITERS.values(), ids=DELIMITERS.keys())


class Seen(NamedTuple):
    """A frame's text, or a broken stretch's head and size."""

    text: bytes
    broken_size: int | None = None
    mended: bool = False


def seen(frame: Frame | Broken) -> Seen:
    if isinstance(frame, Broken):
        return Seen(bytes(frame.payload), frame.size)
    return Seen(bytes(frame.text), mended=frame.mended)


def pull(framer: Framer, *, lines_first: bool = True) -> list[Frame | Broken]:
    """Pull all that is at hand as a stream does: lines first, else frames; or frames alone."""
    pulled: list[Frame | Broken] = []
    while True:
        if lines_first and (lines := framer.next_lines()) is not None:
            assert lines.texts
            pulled += map(Frame, map(str.encode, lines.texts), lines.reports)
            assert len(lines.texts) == len(lines.reports)
        elif (frame := framer.next_frame()) is not None:
            pulled.append(frame)
        else:
            return pulled


def feed(
    framer: Framer, stream: bytes, cuts: Iterable[int] = (), *, lines_first: bool = True
) -> list[Frame | Broken]:
    """Hand the stream over, cut at the given places; what comes out without its end."""
    ends = [*sorted({cut for cut in cuts if 0 < cut < len(stream)}), len(stream)]
    pulled = []
    start = 0
    for end in ends:
        framer.receive(stream[start:end])
        pulled += pull(framer, lines_first=lines_first)
        start = end
    return pulled


def read(
    stream: bytes, cuts: Iterable[int] = (), max_bytes: int = MAX, *, lines_first: bool = True
) -> list[Seen]:
    """Return everything that a whole stream gives."""
    framer = Framer(max_bytes)
    frames = feed(framer, stream, cuts, lines_first=lines_first)
    return [seen(frame) for frame in (*frames, *framer.close("closed"))]


def every_byte(stream: bytes) -> range:
    return range(1, len(stream))


def check_three_ways(stream: bytes, expected: Sequence[Seen], delimiter: bytes = b"\n") -> None:
    """Whole, byte by byte, and with more behind; also where no line is taken with others."""
    assert read(stream) == list(expected)
    assert read(stream, every_byte(stream)) == list(expected)
    assert read(stream, lines_first=False) == list(expected)
    more = stream + delimiter + GOOD + delimiter
    assert read(more) == [*expected, Seen(GOOD)]


@delimited
@pytest.mark.parametrize("report", REPORTS)
def test_a_published_report_is_one_frame(report: bytes, delimiter: bytes) -> None:
    check_three_ways(report + delimiter, [Seen(report)], delimiter)
    framer = Framer(MAX)
    (frame,) = feed(framer, report + delimiter)
    assert isinstance(frame, Frame)
    assert frame.report == json.loads(report)


@delimited
def test_all_published_reports_on_one_stream_are_all_told_apart(delimiter: bytes) -> None:
    stream = b"".join(report + delimiter for report in REPORTS)
    check_three_ways(stream, [Seen(report) for report in REPORTS], delimiter)


@delimited
@pytest.mark.parametrize("indent", [0, 2])
def test_reports_printed_over_several_lines_are_frames(delimiter: bytes, indent: int) -> None:
    reports = [json.dumps(json.loads(report), indent=indent).encode() for report in REPORTS]
    stream = b"".join(report + delimiter for report in reports)
    check_three_ways(stream, [Seen(report) for report in reports], delimiter)


@pytest.mark.parametrize("comma", [b",", b", ", b",\n", b"\r\n, "])
@pytest.mark.parametrize("brackets", [(b"[", b"]"), (b"[\n", b"\n]\n")])
def test_an_array_around_reports_is_passed_over(
    comma: bytes, brackets: tuple[bytes, bytes]
) -> None:
    stream = brackets[0] + comma.join(REPORTS) + brackets[1]
    check_three_ways(stream, [Seen(report) for report in REPORTS])


def test_delimiters_may_change_within_a_stream() -> None:
    stream = b"".join(GOOD + delimiter for delimiter in [*DELIMITERS.values()] * 3)
    check_three_ways(stream, [Seen(GOOD)] * 3 * len(DELIMITERS))


@delimited
@pytest.mark.parametrize(
    "report",
    [
        b"{}",
        b'{"a":{"b":{"c":[{"d":{}},[[{}]]]}}}',
        b'{"a":"}{"}',
        b'{"a":"}\\n{"}',
        b'{"a":"{","b":"}"}',
        b'{"a":"{\\"action\\":\\"NewCdr\\"}"}',
        b'{"a":"\\\\"}',
        b'{"a":"\\\\\\""}',
        b'{"{":"}","\\"":"\\\\"}',
        b'{"a":"\\u007b\\u007d"}',
        b'{"a":"[]],,"}',
        b'{ "a" : [ 1 , 2.5e-3 , true , null ] }',
        '{"a":"Müller 東京 📞"}'.encode(),
    ],
)
def test_braces_and_escapes_within_a_report_do_not_end_it(report: bytes, delimiter: bytes) -> None:
    check_three_ways(report + delimiter, [Seen(report)], delimiter)


def test_a_repeated_key_parses_and_its_last_value_counts() -> None:
    (frame,) = feed(Framer(MAX), b'{"ext":{"extid":"1"},"ext":{"extid":"2"}}\n')
    assert isinstance(frame, Frame)
    assert frame.report == {"ext": {"extid": "2"}}


def test_a_report_without_a_delimiter_comes_out_with_its_last_byte() -> None:
    for report in REPORTS:
        assert [seen(frame) for frame in feed(Framer(MAX), report)] == [Seen(report)]


def test_text_between_reports_is_no_frame() -> None:
    text = b"Asterisk Call Manager/1.1\r\nResponse: Success\r\n\r\n  OK }]\r\n"
    check_three_ways(text, [])


def test_text_with_a_quote_is_kept_for_it_may_be_the_rest_of_a_report() -> None:
    rest = b'22:15:10","callfrom":"1002"}'
    check_three_ways(rest + b"\n", [Seen(rest, len(rest))])


@pytest.mark.parametrize("quote_at", [0, 50, 99, 100, 101, 150, 249])
def test_long_text_with_a_quote_gives_the_same_in_any_chunking(quote_at: int) -> None:
    text = b"x" * quote_at + b'"' + b"x" * (249 - quote_at)
    for delimiter in (b"\n", b"", b" "):
        stream = text + delimiter + GOOD + b"\n"
        assert read(stream, every_byte(stream), 100) == read(stream, max_bytes=100)
        assert read(stream, range(0, 300, 7), 100) == read(stream, max_bytes=100)


def test_the_escape_typed_off_a_page_is_mended() -> None:
    for line in (SAMPLES / "seed-000.jsonl").read_bytes().splitlines():
        mended = line.replace(b"\\_", b"_")
        check_three_ways(line + b"\n", [Seen(mended, mended=mended != line)])


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        (b'{"a":"Apple\\_test"}', b'{"a":"Apple_test"}'),
        (b'{"a":"\\\\\\_"}', b'{"a":"\\\\_"}'),
        (b'{"a":"\\\\_"}', None),  # valid: an escaped backslash
        (b'{"a":"\\x"}', None),
        (b'{"a":"\\_\\x"}', None),
        (b"{}", None),
    ],
)
def test_only_that_escape_is_mended(text: bytes, mended: bytes | None) -> None:
    assert mend(text) == mended


def test_a_whole_object_that_is_no_json_goes_alone() -> None:
    for bad in [
        b"{action:NewCdr}",
        b'{"a":1,}',
        b'{"a" 1}',
        b"{'a':1}",
        b'{"a":NaN}',
        b'{"a":"\\x"}',
        b'{"a":"\xff"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\t"}',
    ]:
        for delimiter in (b"\n", b"\r\n"):
            stream = bad + delimiter + GOOD + delimiter
            for cuts in ((), every_byte(stream)):
                first, second = read(stream, cuts)
                assert first.broken_size is not None
                assert first.text.startswith(bad)
                assert second == Seen(GOOD)


# Lines.


def taken_together(stream: bytes, max_bytes: int = MAX) -> list[int]:
    """How many objects each block of lines has, up to the first that is not all lines."""
    framer = Framer(max_bytes)
    framer.receive(stream)
    sizes = []
    while (lines := framer.next_lines()) is not None:
        sizes.append(len(lines.texts))
    return sizes


@pytest.mark.parametrize("delimiter", [b"\n", b"\r\n", b"\n\n", b"\r\n \r\n", b" \t\n", b"\n  "])
def test_whole_lines_are_taken_together(delimiter: bytes) -> None:
    stream = b"".join(report + delimiter for report in REPORTS)
    assert taken_together(stream) == [len(REPORTS)]
    check_three_ways(stream, [Seen(report) for report in REPORTS], delimiter)


def test_objects_that_nothing_parts_are_taken_together_up_to_the_last() -> None:
    assert taken_together(b"".join(REPORTS)) == [len(REPORTS) - 1]
    assert taken_together(GOOD) == []


def test_a_block_ends_at_a_whole_line() -> None:
    for delimiter, last in ((b"\n", 0), (b"", 1)):
        line = GOOD + delimiter
        sizes = taken_together(line * 1500)
        assert sum(sizes) == 1500 - last
        assert all(size == BLOCK_BYTES // len(line) for size in sizes[:-1])
        assert len(sizes) == -(-1500 * len(line) // BLOCK_BYTES)


def test_a_line_longer_than_a_block_is_one_of_its_own() -> None:
    long = b'{"a":"' + b"x" * (BLOCK_BYTES + 5) + b'"}'
    assert taken_together((long + b"\n" + GOOD + b"\n") * 2) == [1, 1, 1, 1]
    check_three_ways((long + b"\n" + GOOD + b"\n") * 2, [Seen(long), Seen(GOOD)] * 2)


def test_the_lines_before_a_partial_one_are_taken() -> None:
    for cut in range(1, len(GOOD)):
        framer = Framer(MAX)
        framer.receive((GOOD_2 + b"\n") * 2 + GOOD[:cut])
        assert [seen(frame) for frame in pull(framer)] == [Seen(GOOD_2)] * 2
        assert framer.pending == cut
        framer.receive(GOOD[cut:] + b"\n" + GOOD_2 + b"\n")
        assert [seen(frame) for frame in pull(framer)] == [Seen(GOOD), Seen(GOOD_2)]


ODD = {
    "a number": (b"123", []),
    "true": (b"true", []),
    "text": (b"heartbeat response", []),
    "an empty array": (b"[]", []),
    "an array of numbers": (b"[1,2]", []),
    "an array of texts": (b'["1"]', [Seen(b'"1"]', 4)]),
    "a text in quotes": (b'"OK"', [Seen(b'"OK"', 4)]),
    "an array of an object": (b"[" + GOOD_2 + b"]", [Seen(GOOD_2)]),
    "a comma behind": (GOOD_2 + b",", [Seen(GOOD_2)]),
    "text behind": (GOOD_2 + b" OK", [Seen(GOOD_2)]),
    "two objects glued": (GOOD_2 + GOOD, [Seen(GOOD_2), Seen(GOOD)]),
    "two objects with a blank": (GOOD_2 + b" " + GOOD, [Seen(GOOD_2), Seen(GOOD)]),
    "blanks before": (b" \t " + GOOD_2, [Seen(GOOD_2)]),
    "blanks behind": (GOOD_2 + b" \t ", [Seen(GOOD_2)]),
    "blanks of Unicode": (
        " \u3000\u2028\x85".encode() + GOOD_2 + b"\x1c\x0b\xc2\xa0",
        [Seen(GOOD_2)],
    ),
    "NUL": (b"\0" + GOOD_2 + b"\0", [Seen(GOOD_2)]),
    "a byte order mark": (b"\xef\xbb\xbf" + GOOD_2, [Seen(GOOD_2)]),
    "nested objects": (b'{"a":{"b":[{"c":{}},{}]}}', [Seen(b'{"a":{"b":[{"c":{}},{}]}}')]),
    "an object over lines": (b'{\n"a":\n{}\n}', [Seen(b'{\n"a":\n{}\n}')]),
    "other letters": ('{"a":"Müller 東京 📞"}'.encode(), [Seen('{"a":"Müller 東京 📞"}'.encode())]),
    "what is no JSON": (b"{action:NewCdr}", [Seen(b"{action:NewCdr}", 15)]),
    "what is no UTF-8": (b'{"a":"\xff"}', [Seen(b'{"a":"\xff"}', 9)]),
    "text that is no UTF-8": (b"\xff", []),
    "half a character": (b'{"a":"\xe6\x9d"}', [Seen(b'{"a":"\xe6\x9d"}', 10)]),
    "a lone surrogate": (b'{"a":"\\ud800"}', [Seen(b'{"a":"\\ud800"}', 14)]),
    "an escape off a page": (b'{"a":"\\_"}', [Seen(b'{"a":"_"}', mended=True)]),
    "a torn report": (GOOD_2[:60], [Seen(GOOD_2[:60] + b"\n", 61)]),
    "too long a report": (
        b'{"a":"' + b"x" * MAX + b'"}',
        [Seen(b'{"a":"' + b"x" * (PAYLOAD_BYTES - 6), MAX + 8)],
    ),
}
"""Lines that are not one whole object and nothing else, and what each gives."""


@pytest.mark.parametrize("before", [0, 1, BLOCK_BYTES // len(GOOD + b"\n"), 700])
@pytest.mark.parametrize(("odd", "expected"), ODD.values(), ids=ODD.keys())
def test_an_odd_line_among_others_costs_none_of_them(
    odd: bytes, expected: list[Seen], before: int
) -> None:
    stream = (GOOD + b"\n") * before + odd + b"\n" + (GOOD + b"\n") * 600
    whole = [Seen(GOOD)] * before + expected + [Seen(GOOD)] * 600
    for chunk_bytes in (len(stream), 64 * KIB, 1000):
        assert read(stream, range(0, len(stream), chunk_bytes)) == whole
    returned = stream.replace(b"\n", b"\r\n")
    assert read(returned) == read(returned, lines_first=False)


def test_a_report_of_other_letters_is_measured_in_bytes() -> None:
    for letter in ("ä", "東", "📞"):
        report = ('{"a":"' + letter * 30 + '"}').encode()
        stream = (report + b"\n") * 3
        assert read(stream, max_bytes=len(report)) == [Seen(report)] * 3
        assert read(stream, max_bytes=len(report) - 1) == [Seen(report, len(report))] * 3


# A torn report.


@pytest.mark.parametrize("delimiter", [b"\n", b"\r\n"])
@pytest.mark.parametrize("torn", REPORTS)
def test_a_torn_report_does_not_take_its_successor(torn: bytes, delimiter: bytes) -> None:
    for cut in range(1, len(torn)):
        stream = torn[:cut] + delimiter + GOOD
        *broken, good = [seen(frame) for frame in feed(Framer(MAX), stream)]
        assert good == Seen(GOOD), torn[:cut]
        assert sum(one.broken_size or 0 for one in broken) >= cut, torn[:cut]


@pytest.mark.parametrize("torn", CALLS)
@pytest.mark.parametrize("successor", CALLS)
def test_every_dialect_survives_a_torn_report_before_it(torn: bytes, successor: bytes) -> None:
    for cut in range(1, len(torn)):
        frames = feed(Framer(MAX), torn[:cut] + b"\n" + successor)
        assert seen(frames[-1]) == Seen(successor), torn[:cut]


def test_a_torn_report_gives_the_same_byte_by_byte() -> None:
    torn = CALLS[0]
    for cut in range(1, len(torn)):
        stream = torn[:cut] + b"\n" + GOOD + b"\n"
        assert read(stream, every_byte(stream)) == read(stream)


@pytest.mark.parametrize("torn", CALLS)
def test_an_undelimited_torn_call_gives_its_successor_up_to_the_next_report(torn: bytes) -> None:
    for cut in range(1, len(torn)):
        framer = Framer(MAX)
        frames = feed(framer, torn[:cut] + GOOD + GOOD_2)
        assert [seen(frame) for frame in frames[-2:]] == [Seen(GOOD), Seen(GOOD_2)], torn[:cut]
        assert not framer.close("closed")


@pytest.mark.parametrize("torn", CALLS)
def test_an_undelimited_torn_call_gives_its_successor_at_the_end(torn: bytes) -> None:
    for cut in range(1, len(torn)):
        assert read(torn[:cut] + GOOD)[-1] == Seen(GOOD), torn[:cut]


@pytest.mark.parametrize("torn", [report for report in REPORTS if report not in CALLS])
def test_an_undelimited_torn_event_does_not_take_a_call(torn: bytes) -> None:
    for cut in range(1, len(torn)):
        assert read(torn[:cut] + GOOD)[-1] == Seen(GOOD), torn[:cut]
        assert read(torn[:cut] + GOOD + GOOD_2)[-2:] == [Seen(GOOD), Seen(GOOD_2)], torn[:cut]


def test_a_report_torn_before_a_value_keeps_one_of_no_known_opening_in_its_bytes() -> None:
    torn = b'{"action":"NewCdr","callid":'
    other = b'{"callid":"1495779310.371","action":"NewCdr"}'
    *broken, good = read(torn + b"\n" + other + b"\n" + GOOD + b"\n")
    assert good == Seen(GOOD)
    assert other in b"".join(one.text for one in broken)


def test_several_torn_reports_in_a_row_cost_only_themselves() -> None:
    torn = GOOD[:40]
    for delimiter in (b"\n", b"\r\n"):
        stream = (torn + delimiter) * 3 + GOOD + delimiter
        *broken, good = read(stream)
        assert [one.broken_size for one in broken] == [len(torn + delimiter)] * 3
        assert good == Seen(GOOD)


def test_what_is_held_at_the_end_is_told_with_the_reason_given() -> None:
    for cut in range(1, len(GOOD)):
        framer = Framer(MAX)
        assert feed(framer, GOOD[:cut], every_byte(GOOD)) == []
        assert framer.pending == cut
        assert framer.close("the peer closed") == [Broken(GOOD[:cut], cut, "the peer closed")]


def test_nothing_held_at_the_end_is_nothing_told() -> None:
    for stream in (b"", b"\r\n", GOOD, GOOD + b"\n", b"[" + GOOD + b"]", b"OK\r\nthe end"):
        framer = Framer(MAX)
        feed(framer, stream)
        assert framer.close("closed") == []


# Sizes.


def test_a_report_of_exactly_the_limit_is_a_frame_and_one_byte_more_is_not() -> None:
    for delimiter in DELIMITERS.values():
        for size, is_frame in ((200, True), (201, False)):
            report = b'{"a":"' + b"x" * (size - 8) + b'"}'
            stream = report + delimiter + GOOD + delimiter
            expected = [Seen(report, None if is_frame else size), Seen(GOOD)]
            assert read(stream, max_bytes=200) == expected
            assert read(stream, every_byte(stream), max_bytes=200) == expected


@pytest.mark.parametrize("delimiter", [b"\n", b""])
def test_another_limit_holds_from_the_next_piece_on(delimiter: bytes) -> None:
    report = b'{"a":"' + b"x" * 292 + b'"}'
    stream = report + delimiter + GOOD + delimiter
    for cut in range(len(report)):
        framer = Framer(200)
        first = feed(framer, stream[:cut])
        framer.limit(400)
        told, good = first + feed(framer, stream[cut:])
        # What was passed over already is longer than the limit that it met.
        assert isinstance(told, Broken) == (cut > 200)
        assert not isinstance(told, Broken) or told.reason.endswith("= 200")
        assert seen(good) == Seen(GOOD)
        framer.limit(200)
        assert len(feed(framer, report + delimiter)) == 1
        framer = Framer(400)
        first = feed(framer, stream[:cut])
        framer.limit(200)
        frames = first + feed(framer, stream[cut:])
        assert [seen(frame) for frame in frames] == [Seen(report, 300), Seen(GOOD)]


def long_string() -> bytes:
    return b'{"action":"NewCdr","x":"' + b"x" * 10_000_000 + b'"}'


def many_values() -> bytes:
    return b'{"action":"NewCdr","x":[' + b'{"y":["}{",{}]},' * 20_000 + b"0]}"


def many_lines() -> bytes:
    return b'{\n  "action": "NewCdr",\n  "x": [' + b"\n    12345," * 100_000 + b"0]\n}"


@pytest.mark.parametrize("oversized", [long_string, many_values, many_lines])
@pytest.mark.parametrize("delimiter", [b"\n", b""])
def test_megabytes_are_passed_over_with_their_head_and_size(
    oversized: Callable[[], bytes], delimiter: bytes
) -> None:
    report = oversized()
    stream = report + delimiter + GOOD + delimiter
    framer = Framer(MAX)
    tracemalloc.start()
    try:
        frames = feed(framer, stream, range(0, len(stream), 64 * KIB))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [seen(frame) for frame in frames] == [
        Seen(report[:PAYLOAD_BYTES], len(report)),
        Seen(GOOD),
    ]
    assert peak < 1024 * KIB


def test_an_oversized_report_that_is_torn_does_not_take_its_successor() -> None:
    torn = b'{"action":"NewCdr","x":"' + b"x" * 300_000
    for delimiter in (b"\n", b"\r\n"):
        size = len(torn + delimiter)
        framer = Framer(MAX)
        frames = feed(framer, torn + delimiter + GOOD, range(0, size, 4 * KIB))
        assert [seen(frame) for frame in frames] == [Seen(torn[:PAYLOAD_BYTES], size), Seen(GOOD)]


def test_a_report_that_begins_a_piece_behind_an_oversized_one_is_told_by_its_line() -> None:
    torn = b'{"action":"NewCdr","note":"' + b"x" * 300 + b'","callid":\n'
    for piece in range(1, len(GOOD)):
        cuts = (len(torn), len(torn) + piece)
        assert read(torn + GOOD + b"\n", cuts, 200) == [Seen(torn, len(torn)), Seen(GOOD)]
    # Within its line it is a value, though the piece ends as a line does.
    nested = torn[:-1] + GOOD + b",\n" + b'"a":1}\n'
    whole = [Seen(nested[:-1], len(nested) - 1)]
    assert read(nested, (len(torn) - 1, len(nested) - len(b'"a":1}\n')), 200) == whole


def test_an_oversized_report_that_never_ends_is_told_at_the_end_with_its_size() -> None:
    torn = b'{"x":"' + b"x" * 300_000
    framer = Framer(MAX)
    assert feed(framer, torn, range(0, len(torn), 4 * KIB)) == []
    assert framer.pending == len(torn)
    assert framer.close("closed") == [Broken(torn[:PAYLOAD_BYTES], len(torn), "closed")]


@pytest.mark.parametrize("waiting", [b"{\n", b'{"a":1 {', b'{"a":\n', b"", b"{", b'{"a":"}'])
def test_blanks_without_end_do_not_fill_memory(waiting: bytes) -> None:
    framer = Framer(MAX)
    tracemalloc.start()
    try:
        framer.receive(waiting)
        for _ in range(64):
            pull(framer)
            framer.receive(b" " * 64 * KIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1024 * KIB


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
def test_nesting_deeper_than_a_parser_takes_is_broken_and_costs_only_itself(opening: bytes) -> None:
    closing = opening.replace(b'"a":', b"").replace(b"{", b"}").replace(b"[", b"]")[::-1]
    for depth in (1, 100, MAX_DEPTH - 2, MAX_DEPTH, MAX_DEPTH + 1, 3 * MAX_DEPTH):
        deep = b'{"x":' + opening * depth + b"1" + closing * depth + b"}"
        stream = deep + b"\n" + GOOD + b"\n"
        assert read(stream)[-1] == Seen(GOOD)
        assert read(stream, every_byte(stream)) == read(stream)


def test_nesting_too_deep_does_not_take_a_report_behind_it_in_any_chunking() -> None:
    stream = b'{"x":' + b"[" * (MAX_DEPTH + 76) + b"1 " + GOOD + b"\n"
    assert read(stream)[-1] == Seen(GOOD)
    assert read(stream, every_byte(stream)) == read(stream)


# Any stream.

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["}{", "{", "}", '"', "\\", "\n", "\r\n", "[", "],", '{"action":', "}\n{", "\\_", "\x00"]
)
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(texts, values, max_size=6)


@st.composite
def spelled_reports(draw: st.DrawFn) -> bytes:
    """A JSON object as any serializer may spell it."""
    indent = draw(st.sampled_from([None, None, 0, 1, 2]))
    separators = None if indent is not None else draw(st.sampled_from([None, (",", ":")]))
    ensure_ascii = draw(st.booleans())
    report = draw(objects)
    return json.dumps(
        report, indent=indent, separators=separators, ensure_ascii=ensure_ascii
    ).encode()


delimiters = st.sampled_from([*DELIMITERS.values(), b"[", b"]", b"\x00", b"\n\n", b"\r", b" OK ; "])
cut_places = st.lists(st.integers(0, 2000), max_size=30)
quick = settings(max_examples=150)


@quick
@given(st.lists(st.tuples(spelled_reports(), delimiters), max_size=6), delimiters, cut_places)
def test_any_reports_in_any_chunking_with_any_delimiter_are_read_exactly(
    reports: list[tuple[bytes, bytes]], first: bytes, cuts: list[int]
) -> None:
    stream = first + b"".join(report + delimiter for report, delimiter in reports)
    framer = Framer(MAX)
    frames = feed(framer, stream, cuts)
    assert framer.close("closed") == []
    assert [seen(frame) for frame in frames] == [Seen(report) for report, _ in reports]
    parsed: list[Any] = [frame.report for frame in frames if isinstance(frame, Frame)]
    assert parsed == [json.loads(report) for report, _ in reports]


pieces = st.sampled_from(
    [
        *(bytes([byte]) for byte in b'{}[]",:\\\n\r \t1e-'),
        b"}{",
        b'{"',
        b'"}',
        b'":',
        b"\\\\",
        b'\\"',
        b"\r\n",
        b"\n{",
        b'\n{"',
        b"null",
        b"text",
        b"\xef\xbb\xbf",
        b"\xff",
        b'{"action":',
        b'{"event":"BYE"}',
        b'{"type":30',
        b'{"a":{"b":[1,',
        GOOD,
        GOOD[:50],
        GOOD[50:],
    ]
)
garbage = st.binary(max_size=60) | st.lists(pieces, max_size=25).map(b"".join)


@settings(max_examples=400)
@given(garbage, cut_places, st.sampled_from([MAX, 100, 20]))
def test_no_bytes_raise_and_their_frames_do_not_depend_on_the_chunks(
    stream: bytes, cuts: list[int], max_bytes: int
) -> None:
    whole = read(stream, max_bytes=max_bytes)
    assert read(stream, cuts, max_bytes) == whole
    assert read(stream, every_byte(stream), max_bytes) == whole
    assert read(stream, cuts, max_bytes, lines_first=False) == whole


odd_lines = st.sampled_from([odd for odd, _ in ODD.values() if len(odd) < KIB]) | garbage
line_ends = st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n", b""])
runs = st.tuples(st.integers(0, 900), odd_lines, line_ends)


@settings(max_examples=150)
@given(
    st.lists(runs, max_size=6),
    line_ends,
    st.lists(st.integers(0, 400_000), max_size=12),
    st.sampled_from([MAX, 100]),
)
def test_many_lines_with_odd_ones_among_them_are_the_same_frames_in_any_chunking(
    parts: list[tuple[int, bytes, bytes]], line_end: bytes, cuts: list[int], max_bytes: int
) -> None:
    stream = b"".join((GOOD + line_end) * count + odd + end for count, odd, end in parts)
    whole = read(stream, lines_first=False, max_bytes=max_bytes)
    assert read(stream, max_bytes=max_bytes) == whole
    assert read(stream, cuts, max_bytes) == whole


@settings(max_examples=400)
@given(garbage, st.sampled_from([b"\n", b"\r\n"]), cut_places)
def test_no_bytes_take_the_report_on_the_next_line(
    stream: bytes, delimiter: bytes, cuts: list[int]
) -> None:
    frames = feed(Framer(MAX), stream + delimiter + GOOD, cuts)
    assert frames
    assert seen(frames[-1]) == Seen(GOOD)


@quick
@given(st.binary(max_size=200).map(lambda raw: raw.translate(None, b'{"')), cut_places)
def test_bytes_without_a_brace_or_quote_leave_no_trace(stream: bytes, cuts: list[int]) -> None:
    for delimiter in (b"\n", b""):
        assert read(stream + delimiter + GOOD + b"\n", cuts) == [Seen(GOOD)]


@settings(max_examples=400)
@given(garbage, st.sampled_from([MAX, 100]))
def test_every_byte_is_in_a_frame_in_a_broken_stretch_or_is_text_without_a_quote(
    stream: bytes, max_bytes: int
) -> None:
    position = 0
    for one in read(stream, max_bytes=max_bytes):
        at = stream.index(one.text, position)
        assert not set(b'{"') & set(stream[position:at])
        position = at + (len(one.text) if one.broken_size is None else one.broken_size)
    assert not set(b'{"') & set(stream[position:])


# Cost.


def cost(stream: bytes, *, whole: bool) -> float:
    """Return the processor seconds that a stream takes, whole or one byte at a time."""
    began = time.process_time()
    framer = Framer(MAX)
    feed(framer, stream, () if whole else every_byte(stream))
    return time.process_time() - began


SLOW = {
    "string": b'{"a":"' + b"x" * MAX,
    "escapes": b'{"a":"}' + b"\\" * MAX,
    "quotes": b'{"a":' + b'"",' * (MAX // 3),
    "blanks": b"{\n" + b" " * MAX,
    "blanks after a misplaced brace": b'{"a":1 {' + b" " * MAX,
    "blanks after a line": b'{"a":\n' + b" " * MAX,
    "a number": b'{"a":}' + b"1" * MAX,
    "arrays": b'{"a":{},"b":' + b"[]," * (MAX // 3),
    "objects": b'{"a":[' + b"{}," * (MAX // 3),
    "depth": b'{"a":[1,' * (MAX // 8),
    "braces": b"}" * MAX,
    "openings": b"{" * MAX,
    "text": b"x" * MAX,
    "text with a quote": b'"' + b"x" * MAX,
    "lines": b"{\n" + b'"a":1,\n' * (MAX // 7),
    "keys": b'{"a":"b",' + b'"a":"b",' * (MAX // 8),
    "torn": b'{"action":' * (MAX // 10),
    "glued": b"{}" * (MAX // 2),
    "listed": b"{}," * (MAX // 3),
    "listed over lines": b"{\n}," * (MAX // 4),
    "reports": (GOOD + b",\n") * (MAX // len(GOOD + b",\n")),
    "odd lines": b"{}\n1\n" * (MAX // 5),
    "bad lines": b"{}\n{x}\n" * (MAX // 7),
    "glue in texts": b'{"a":"}{"}' * (MAX // 10),
    "lines in an array": b'{"a":[\n' + b"{}\n,\n" * (MAX // 5),
    "a long line behind a short one": b"{}\n{" + b'"}{",' * (MAX // 5),
}
"""Streams of 64 KiB, most of them of what never becomes whole."""


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("stream", SLOW.values(), ids=SLOW.keys())
def test_four_times_the_bytes_cost_about_four_times_as_much(stream: bytes, *, whole: bool) -> None:
    quarter = min(cost(stream[: len(stream) // 4], whole=whole) for _ in range(2))
    assert cost(stream, whole=whole) < 7 * quarter + 0.5  # a quadratic cost is 16 times as much
