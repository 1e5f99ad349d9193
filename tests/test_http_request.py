"""Each request is the same events however its bytes were cut, and nothing a peer sends raises."""

import json
import time
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdrd.http_request import (
    CHUNK_LINE_BYTES,
    HEAD_BYTES,
    ContinueExpected,
    Event,
    Fault,
    Request,
    RequestReader,
)
from cdrd.sizes import KIB

MAX = 4 * KIB

JSON = b'{"action":"NewCdr","callid":"1495779310.371","note":"a \\"}\\" and [","more":{"a":[1,{}]}}'
BOTH = b"[%b, %b]" % (JSON, JSON)
FORM = b'a=b "&msg=' + JSON
MARKED = b"\xef\xbb\xbf" + JSON
PRETTY = json.dumps(json.loads(JSON), indent=4).encode()
GET = b"GET /health HTTP/1.1\r\n\r\n"
GOT = Request("GET", "/health", b"", keep_alive=True)

# As the vendors' pages print them, with the JSON of the page.
BOOT_UP = b'{"action":"BootUp","sn":"369351034049"}'
YEASTAR = (
    b"POST / HTTP/1.1\r\n"
    b"User-Agent: WebAPI\r\n"
    b"Host: 192.168.5.150: 8260\r\n"
    b"Content-Type: application/json\r\n"
    b"Accept: application/json\r\n"
    b"\r\n" + BOOT_UP
)
YEASTAR_2_0_0 = YEASTAR.replace(
    b"Accept: application/json\r\n", b"Accept: application/json\r\n" * 2
)
OPENVOX = (
    b"POST  HTTP/1.1\r\n"
    b"Host: 192.168.5.150: 8260\r\n"
    b"Content-Type: application/json\r\n"
    b"Connection: close\r\n"
    b"Content-Length: 39\r\n"
    b"\r\n" + BOOT_UP
)


def post(body: bytes = JSON, *headers: str, line: str = "POST / HTTP/1.1") -> bytes:
    """Make a request; without a header of its own it has a Content-Length."""
    told = headers or (f"Content-Length: {len(body)}",)
    return "\r\n".join((line, *told, "\r\n")).encode("latin-1") + body


def posted(body: bytes = JSON, *, keep_alive: bool = True, whole: bool = True) -> Request:
    return Request("POST", "/", body, keep_alive, whole)


def events(pieces: Iterable[bytes], *, close: bool = False, max_bytes: int = MAX) -> list[Event]:
    """All that a reader tells of a connection; ``close`` ends the connection behind it."""
    reader = RequestReader(max_bytes)
    found: list[Event] = []
    for piece in pieces:
        reader.receive(piece)
        while (event := reader.next_event()) is not None:
            found.append(event)
    if close:
        reader.close()
        while (event := reader.next_event()) is not None:
            found.append(event)
    return found


def single(stream: bytes) -> list[bytes]:
    return [stream[at : at + 1] for at in range(len(stream))]


def chunked(*chunks: bytes, trailer: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b"")).removesuffix(
        b"\r\n"
    ) + (trailer + b"\r\n")


CHUNKED = ("Transfer-Encoding: chunked",)
NO_LENGTH = ("Host: 192.168.5.150: 8260",)

REQUESTS = {
    "yeastar as printed": (YEASTAR, posted(BOOT_UP)),
    "yeastar 2.0.0 with a doubled header": (YEASTAR_2_0_0, posted(BOOT_UP)),
    "a length": (post(), posted()),
    "a length, and line feeds alone": (post().replace(b"\r\n", b"\n"), posted()),
    "no length": (post(JSON, *NO_LENGTH), posted()),
    "no length, indented": (post(PRETTY, *NO_LENGTH), posted(PRETTY)),
    "no length, an array": (post(BOTH, *NO_LENGTH), posted(BOTH)),
    "no length, a form": (post(FORM, *NO_LENGTH), posted(FORM)),
    "no length, a byte order mark": (post(MARKED, *NO_LENGTH), posted(MARKED)),
    "a blank length is none": (post(JSON, "Content-Length: "), posted()),
    "length 0": (post(b""), posted(b"")),
    "several objects": (post(JSON + b"\n" + JSON), posted(JSON + b"\n" + JSON)),
    "no JSON": (post(b"hello"), posted(b"hello")),
    "doubled lengths that agree": (
        post(JSON, f"Content-Length: {len(JSON)}, 0{len(JSON)}", f"CONTENT-LENGTH:{len(JSON)}"),
        posted(),
    ),
    "a blank before a colon": (post(JSON, f"content-length : {len(JSON)}"), posted()),
    "lines that are no headers": (
        post(JSON, "nonsense", " folded", ":", f"Content-Length: {len(JSON)}"),
        posted(),
    ),
    "a small method, and blanks": (post(line="post  /  http/1.1 "), posted()),
    "no path": (post(line="POST HTTP/1.1"), posted()),
    "a path with a blank": (
        post(line="POST /a b?c=\xe4 HTTP/1.1"),
        Request("POST", "/a b?c=\xe4", JSON, keep_alive=True),
    ),
    "chunks": (post(chunked(JSON[:5], JSON[5:6], JSON[6:]), *CHUNKED), posted()),
    "chunks, with more": (
        post(
            chunked(JSON, trailer=b"Expires: never\r\n").replace(b"\r\n", b" ;name=value\r\n", 1),
            *CHUNKED,
        ),
        posted(),
    ),
    "chunks told twice": (post(chunked(JSON), *CHUNKED, *CHUNKED), posted()),
    "no chunk": (post(chunked(), *CHUNKED), posted(b"")),
    "the identity coding": (
        post(JSON, "Transfer-Encoding: identity", "Content-Encoding: identity"),
        posted(),
    ),
    "GET": (GET, GOT),
    "GET with a body": (post(line="GET / HTTP/1.1"), Request("GET", "/", JSON, keep_alive=True)),
    "HEAD": (GET.replace(b"GET", b"HEAD"), GOT._replace(method="HEAD")),
    "another method": (GET.replace(b"GET", b"PROPFIND-2"), GOT._replace(method="PROPFIND-2")),
    "HTTP/1.0 that stays": (
        post(b"", "Connection: Keep-Alive", "Content-Length: 0", line="POST / HTTP/1.0"),
        posted(b""),
    ),
    "HTTP/1.9": (GET.replace(b"1.1", b"1.9"), GOT),
}

LAST_REQUESTS = {
    "openvox as printed": (OPENVOX, posted(BOOT_UP, keep_alive=False)),
    "openvox without a length": (
        OPENVOX.replace(b"Content-Length: 39\r\n", b""),
        posted(BOOT_UP, keep_alive=False),
    ),
    "close among others": (
        post(JSON, "Connection: te, Close", f"Content-Length: {len(JSON)}"),
        posted(keep_alive=False),
    ),
    "HTTP/1.0": (post(line="POST / HTTP/1.0"), posted(keep_alive=False)),
    "a length and chunks": (
        post(chunked(JSON), *CHUNKED, "Content-Length: 7"),
        posted(keep_alive=False),
    ),
}

FAULTS = {
    "JSON without a head": (JSON, 400),
    "TLS": (b"\x16\x03\x01\x02\x00", 400),
    "no version": (b"POST /\r\n\r\n", 400),
    "no path and no version": (b"POST\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\n", 505),
    "HTTP/0.9": (b"GET / HTTP/0.9\r\n\r\n", 505),
    "a version of many digits": (b"GET / HTTP/%b.1\r\n\r\n" % (b"1" * 9000), 505),
    "a length that is none": (post(JSON, "Content-Length: ten"), 400),
    "a negative length": (post(JSON, "Content-Length: -1"), 400),
    "a length in hexadecimal": (post(JSON, "Content-Length: 0x10"), 400),
    "lengths that differ": (post(JSON, "Content-Length: 1", "Content-Length: 2"), 400),
    "a length of many digits": (post(JSON, "Content-Length: " + "9" * 9000), 413),
    "a body too long": (post(JSON, f"Content-Length: {MAX + 1}"), 413),
    "no length, too long": (post(b"[" + b" " * MAX, *NO_LENGTH), 413),
    "no length, text too long": (post(b"x" * (MAX + 1), *NO_LENGTH), 413),
    "no length, whole and too long": (post(b'["' + b"x" * MAX + b'"]', *NO_LENGTH), 413),
    "a coding of the transfer": (post(JSON, "Transfer-Encoding: gzip, chunked"), 501),
    "a coding of the content": (post(JSON, "Content-Encoding: gzip", "Content-Length: 5"), 415),
    "a chunk without a size": (post(b"{}\r\n", *CHUNKED), 400),
    "a chunk of a negative size": (post(b"-1\r\n", *CHUNKED), 400),
    "a chunk longer than its size": (post(b"1\r\n{}\r\n", *CHUNKED), 400),
    "a chunk too long": (post(b"1001\r\n", *CHUNKED), 413),
    "chunks too long": (post(b"fff\r\n" + b" " * 4095 + b"\r\n2\r\n", *CHUNKED), 413),
    "a chunk's size of many digits": (post(b"f" * 900 + b"\r\n", *CHUNKED), 413),
    "a chunk's line without an end": (post(b"1;" + b"a" * CHUNK_LINE_BYTES, *CHUNKED), 400),
    "a trailer without an end": (post(b"0\r\n" + (b"a" * 999 + b"\r\n") * 17, *CHUNKED), 431),
    "a head without an end": (b"POST / HTTP/1.1\r\n" + b"a: b\r\n" * (HEAD_BYTES // 6), 431),
    "a head too long": (post(JSON, "a: " + "b" * HEAD_BYTES), 431),
}


# The three ways


@pytest.mark.parametrize(("stream", "request_"), REQUESTS.values(), ids=REQUESTS)
def test_a_request_is_the_same_whole_byte_by_byte_and_with_more_behind(
    stream: bytes, request_: Request
) -> None:
    assert events([stream]) == [request_]
    assert events(single(stream)) == [request_]
    for behind in (b"", b"\r\n", b" \n\x00"):
        assert events([stream + behind + GET]) == [request_, GOT]
        assert events(single(stream + behind + GET), close=True) == [request_, GOT]


@pytest.mark.parametrize(("stream", "request_"), LAST_REQUESTS.values(), ids=LAST_REQUESTS)
def test_nothing_follows_a_request_that_ends_the_connection(
    stream: bytes, request_: Request
) -> None:
    for pieces in ([stream], single(stream), [stream + GET], [stream, GET], single(stream + JSON)):
        assert events(pieces, close=True) == [request_]


@pytest.mark.parametrize(("stream", "status"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_the_last_event_and_costs_nothing_before_it(stream: bytes, status: int) -> None:
    for pieces in ([post() + stream + GET], single(post() + stream + GET), [post(), stream, GET]):
        first, fault = events(pieces, close=True)
        assert first == posted()
        assert isinstance(fault, Fault)
        assert fault.status == status
        assert fault.reason


@given(
    st.lists(st.sampled_from([*REQUESTS.values()]), max_size=4),
    st.sampled_from([*REQUESTS.values(), *LAST_REQUESTS.values(), *FAULTS.values()]),
    st.lists(st.integers(0, 3000), max_size=20),
)
def test_the_events_do_not_depend_on_how_the_bytes_were_cut(
    requests: list[tuple[bytes, Request]], last: tuple[bytes, Event], cuts: list[int]
) -> None:
    stream = b"".join([stream for stream, _ in requests] + [last[0]])
    ends = sorted({cut for cut in cuts if cut < len(stream)} | {len(stream)})
    pieces = [stream[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    found = events(pieces, close=True)
    assert found == events([stream], close=True)
    assert found[: len(requests)] == [request for _, request in requests]


@given(
    st.lists(
        st.sampled_from([*(stream for stream, _ in REQUESTS.values()), JSON, b"{", b'"', b"\\"])
        | st.binary(max_size=30)
    ),
    st.lists(st.integers(0, 2000), max_size=10),
)
def test_whatever_a_peer_sends_is_events_and_the_same_in_any_cut(
    parts: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(parts)
    ends = sorted({cut for cut in cuts if cut < len(stream)} | {len(stream)})
    pieces = [stream[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    found = events(pieces, close=True)
    assert found == events([stream], close=True)
    assert not any(isinstance(event, Fault) for event in found[:-1])


# Where a body ends


@pytest.mark.parametrize("cut", range(1, len(JSON)))
def test_the_end_of_the_connection_ends_a_body_of_no_length(cut: int) -> None:
    assert events([post(JSON[:cut], *NO_LENGTH)]) == []
    assert events([post(JSON[:cut], *NO_LENGTH)], close=True) == [
        posted(JSON[:cut], keep_alive=False)
    ]


@pytest.mark.parametrize(
    ("stream", "rest"),
    [
        (post()[:-3], JSON[:-3]),
        (post(JSON, f"Content-Length: {len(JSON) + 2}"), JSON),
        (post(chunked(JSON), *CHUNKED)[:-2], JSON),
        (post(chunked(JSON), *CHUNKED)[:-9], JSON[:-2]),
        (post(b"", "Content-Length: 5"), b""),
    ],
)
def test_a_body_that_the_connection_cuts_off_is_told_to_be_torn(stream: bytes, rest: bytes) -> None:
    for pieces in ([stream], single(stream)):
        assert events(pieces) == []
        assert events(pieces, close=True) == [posted(rest, keep_alive=False, whole=False)]


def test_a_head_that_the_connection_cuts_off_is_nothing() -> None:
    head = post(b"")
    for cut in range(len(head)):
        assert events([head[:cut]], close=True) == []


def test_json_behind_a_request_of_no_length_is_a_further_body_of_it() -> None:
    stream = post(JSON, *NO_LENGTH) + b"\r\n" + JSON + BOOT_UP + GET
    found = [posted(), posted(), posted(BOOT_UP), GOT]
    assert events([stream]) == events(single(stream)) == found
    assert events([GET + JSON]) == [GOT, GOT._replace(body=JSON)]


def test_json_behind_a_request_with_a_length_is_a_fault() -> None:
    found = events([post() + JSON])
    assert found[0] == posted()
    assert isinstance(found[1], Fault)


def test_the_largest_body_is_taken_in_each_form() -> None:
    body = b'["' + b"x" * (MAX - 4) + b'"]'
    for stream in (post(body), post(body, *NO_LENGTH), post(chunked(body), *CHUNKED)):
        assert events([stream]) == events(single(stream)) == [posted(body)]


def test_the_longest_head_is_taken() -> None:
    line, end = b"GET / HTTP/1.1\r\na: ", b"\r\n\r\n"
    head = line + b"b" * (HEAD_BYTES - len(line) - len(end)) + end
    assert events([head]) == events(single(head)) == [GOT._replace(target="/")]


# What is asked in between


def test_who_expects_to_be_told_to_go_on_is_told_before_the_body() -> None:
    stream = post(JSON, "Expect: 100-Continue", f"Content-Length: {len(JSON)}")
    for pieces in ([stream], single(stream)):
        assert events(pieces) == [ContinueExpected(), posted()]
    assert events([stream.replace(b"HTTP/1.1", b"HTTP/1.0")]) == [posted(keep_alive=False)]


def test_a_body_that_is_too_long_is_refused_before_it_is_sent() -> None:
    stream = post(b"", "Expect: 100-continue", f"Content-Length: {MAX + 1}")
    assert [type(event) for event in events([stream])] == [Fault]


@pytest.mark.parametrize("headers", [(), NO_LENGTH], ids=["length", "no length"])
def test_another_limit_holds_from_the_next_request_on(headers: tuple[str, ...]) -> None:
    reader = RequestReader(2)
    reader.receive(post(b"{}", *headers))
    assert isinstance(reader.next_event(), Request)
    reader.max_body_bytes = len(JSON)
    reader.receive(post(JSON, *headers))
    assert isinstance(reader.next_event(), Request)
    reader.max_body_bytes = 2
    reader.receive(post(JSON, *headers))
    assert isinstance(reader.next_event(), Fault)


def test_what_is_pending_is_a_part_of_a_request() -> None:
    reader = RequestReader(MAX)
    assert not reader.pending
    for part, pending in ((b"\r\n\n", False), (b"P", True), (post()[1:-1], True)):
        reader.receive(part)
        assert reader.next_event() is None
        assert reader.pending == pending
    reader.receive(post()[-1:])
    assert reader.next_event() == posted()
    assert reader.next_event() is None
    assert not reader.pending


# Cost


@pytest.mark.parametrize(
    "stream",
    [
        post(b'{"a":"' + b"\\\\" * 30_000, *NO_LENGTH),
        post(b'{"a":"' * 5_000, *NO_LENGTH),
        post(b"{" * 60_000, *NO_LENGTH),
        post(b'{"a' + b'"' * 60_000, *NO_LENGTH),
        post(b"x" * 60_000, *NO_LENGTH),
        post(b"".join(b"1\r\n \r\n" for _ in range(10_000)), *CHUNKED),
        b"POST " + b"HTTP/1" * 2_700,
        b"POST / HTTP/" + b"1" * 16_000,
        b"\r\n" * 30_000,
    ],
    ids=range(9),
)
def test_bytes_that_come_one_by_one_cost_no_more_than_their_number(stream: bytes) -> None:
    began = time.process_time()
    events(single(stream), max_bytes=64 * KIB)
    assert time.process_time() - began < 2
