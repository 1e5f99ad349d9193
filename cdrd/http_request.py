"""Turns the bytes of one HTTP connection into requests: each a method with its whole body.

It takes what PBXs really send: no Content-Length (then the end of the JSON, or of the connection,
is the end of the body), a request line without a path, doubled headers, a blank in ``Host``. The
rule that must stay true: whatever a peer sends, the answer is an event and never an exception; the
events do not depend on how the bytes were cut; a fault is the last event, and costs nothing of the
requests before it. Sources: the vendors' printed requests, and RFC 9112 for everything else.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, Protocol

from cdrd.sizes import KIB

HEAD_BYTES: Final = 16 * KIB
"""The longest request line with its headers, and the longest trailer of a chunked body."""

CHUNK_LINE_BYTES: Final = 1 * KIB
"""The longest line between two chunks: a size of a few digits, rarely with an extension."""

SIZE_DIGITS: Final = 15
"""More digits than any size has that is not refused; int() is costly for thousands of them."""


class Request(NamedTuple):
    """One request; ``whole`` is False where its body ended with the connection, before its time."""

    method: str  # in capitals
    target: str  # "/" where the request line has none
    body: bytes
    keep_alive: bool
    whole: bool = True
    signature: str = ""  # the value of X-Signature


class ContinueExpected(NamedTuple):
    """The peer may wait for ``100 Continue`` before it sends the body of the request to come."""


class Fault(NamedTuple):
    """The connection's last event: the status that answers it, and why."""

    status: int
    reason: str


Event = Request | ContinueExpected | Fault

_BLANKS = re.compile(rb"[\s\x00]*+")
_HEAD_END = re.compile(rb"\n\r?\n")
_REQUEST_LINE = re.compile(rb"([A-Za-z][!-~]*)\s(.*)HTTP/(\d+)(?:\.(\d+))?\s*", re.IGNORECASE)
_HEADERS = re.compile(
    rb"\n(connection|content-encoding|content-length|expect|transfer-encoding)[ \t]*:([^\n]*)",
    re.IGNORECASE,
)
_SIGNATURE = re.compile(rb"\nx-signature[ \t]*:([^\n]*)", re.IGNORECASE)
_VALUE_BEGINS = re.compile(rb"[{\[]")
# The groups are not possessive: before 3.11.5 such a group that fails half way stays where it was.
# (gh-106052; Debian 12 has 3.11.2.)
_OUTSIDE = re.compile(
    rb'[^"{}\[\]]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*"[^"{}\[\]]*+)*', re.DOTALL
)  # up to a bracket, or to a string that does not end
_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*', re.DOTALL)
_CHUNK_SIZE = re.compile(rb"\s*([0-9A-Fa-f]+)\s*(?:;.*)?", re.DOTALL)
_QUOTE: Final = ord('"')


class RequestReader:
    """The requests of one connection, pulled with ``next_event`` after ``receive``.

    A body of more than ``max_body_bytes`` is a fault; changed, it holds for the next request.
    """

    def __init__(self, max_body_bytes: int) -> None:
        self.max_body_bytes = max_body_bytes
        self._buffer = bytearray()
        self._searched = 0  # up to where the head does not end
        self._head: _Head | None = None  # of the request that is read, or of the one before
        self._body: _Body | None = None  # of the request that is read, once its head is
        self.closed = False
        self._ended = False

    def receive(self, chunk: bytes) -> None:
        """Take the next bytes of the connection."""
        if not self._ended:
            self._buffer += chunk

    def close(self) -> None:
        """Take the connection's end: the end of a body that is not whole, too."""
        self.closed = True

    @property
    def pending(self) -> bool:
        """Whether a part of a request is held; to be asked when there is no event."""
        return self._body is not None or bool(self._buffer)

    def next_event(self) -> Event | None:
        """Return the next event, or None until more bytes have come."""
        if self._ended:
            return None
        event = self._read_head() if self._body is None else self._read_body()
        if isinstance(event, Fault) or (isinstance(event, Request) and not event.keep_alive):
            self._end()
        return event

    def _end(self) -> None:
        """Pass over all that may still come."""
        self._ended = True
        self._buffer.clear()
        self._body = None

    def _read_head(self) -> Event | None:
        buffer = self._buffer
        if not buffer[:1].isalpha():
            blanks = _BLANKS.match(buffer)
            assert blanks is not None
            del buffer[: blanks.end()]
            if not buffer:
                return None
            if not buffer[:1].isalpha():
                return self._begin_further_value()
        end = _HEAD_END.search(buffer, max(0, self._searched - 2))
        if (len(buffer) if end is None else end.end()) > HEAD_BYTES:
            return Fault(431, f"the head of the request is longer than {HEAD_BYTES} bytes")
        if end is None:
            self._searched = len(buffer)
            return None
        head = _parse_head(bytes(buffer[: end.end()]), self.max_body_bytes)
        del buffer[: end.end()]
        self._searched = 0
        if isinstance(head, Fault):
            return head
        return self._begin_body(head)

    def _begin_further_value(self) -> Event | None:
        """Begin another body of the last request, where that had no length: it may be a report.

        A peer that does not tell the length may send two objects, or JSON behind a GET.
        """
        head = self._head
        if head is None or head.sized or not self._buffer.startswith((b"{", b"[")):
            return Fault(400, "this is no HTTP request")
        self._body = _ValueBody(self.max_body_bytes)
        return self._read_body()

    def _begin_body(self, head: "_Head") -> Event | None:
        self._head, self._body = head, head.make_body(self.max_body_bytes)
        return ContinueExpected() if head.expects_continue else self._read_body()

    def _read_body(self) -> Event | None:
        head, body = self._head, self._body
        assert head is not None
        assert body is not None
        found = body.read(self._buffer)
        if found is None and self.closed:
            rest = body.rest(self._buffer)
            return head.make_request(rest, keep_alive=False, whole=not head.sized)
        if isinstance(found, bytes):
            self._body = None
            return head.make_request(found, keep_alive=head.keep_alive)
        return found


@dataclass(frozen=True, slots=True)
class _Head:
    method: str
    target: str
    keep_alive: bool
    expects_continue: bool
    chunked: bool
    length: int | None
    signature: str

    def make_request(self, body: bytes, *, keep_alive: bool, whole: bool = True) -> Request:
        return Request(self.method, self.target, body, keep_alive, whole, self.signature)

    @property
    def sized(self) -> bool:
        """Whether the head tells where the body ends."""
        return self.chunked or self.length is not None

    def make_body(self, max_bytes: int) -> "_Body":
        if self.chunked:
            return _ChunkedBody(max_bytes)
        if self.length is None and self.method == "POST":
            return _ValueBody(max_bytes)
        return _SizedBody(self.length or 0)


@lru_cache(maxsize=256)  # a PBX's heads differ in the length alone, and it posts one a connection
def _parse_head(head: bytes, max_body_bytes: int) -> _Head | Fault:
    line = _REQUEST_LINE.fullmatch(head[: head.index(b"\n")])
    if line is None:
        return Fault(400, "the request line is not METHOD PATH HTTP/1.1")
    if int(line[3][:2]) != 1:
        return Fault(505, "HTTP/1.0 and HTTP/1.1 are spoken here")
    is_1_0 = line[4] is not None and not line[4].strip(b"0")
    values: dict[bytes, list[bytes]] = {}
    for name, value in _HEADERS.findall(head):
        parts = filter(None, map(bytes.strip, value.lower().split(b",")))
        values.setdefault(name.lower(), []).extend(parts)
    codings = {*values.get(b"transfer-encoding", ())} - {b"identity"}
    if not codings <= {b"chunked"}:
        return Fault(501, "the only transfer coding that is understood is chunked")
    if not {*values.get(b"content-encoding", ())} <= {b"identity"}:
        return Fault(415, "the body is to be sent without a content coding")
    length = _parse_length(values.get(b"content-length", []), max_body_bytes)
    if isinstance(length, Fault):
        return length
    tokens = values.get(b"connection", [])
    signature = _SIGNATURE.search(head)
    keep_alive = b"keep-alive" in tokens if is_1_0 else b"close" not in tokens
    return _Head(
        method=line[1].decode("ascii").upper(),
        target=line[2].strip().decode("latin-1") or "/",
        # Two ways to tell the length are one too many: what follows may not be a request.
        keep_alive=keep_alive and not (codings and length is not None),
        expects_continue=b"100-continue" in values.get(b"expect", ()) and not is_1_0,
        chunked=bool(codings),
        length=length,
        signature=signature[1].strip().decode("latin-1") if signature else "",
    )


def _parse_length(told: list[bytes], max_body_bytes: int) -> int | Fault | None:
    """Read what may have been told twice; None where no length was told."""
    if not all(map(bytes.isdigit, told)):
        return Fault(400, "Content-Length is no number")
    lengths = {digits.lstrip(b"0") for digits in told}
    if not lengths:
        return None
    if len(lengths) > 1:
        return Fault(400, "two values of Content-Length contradict each other")
    digits = lengths.pop()
    if len(digits) > SIZE_DIGITS or int(digits or b"0") > max_body_bytes:
        return _too_large(max_body_bytes)
    return int(digits or b"0")


def _too_large(max_body_bytes: int) -> Fault:
    return Fault(413, f"the body is longer than max_report_bytes = {max_body_bytes}")


class _Body(Protocol):
    """How the end of a body is found."""

    def read(self, buffer: bytearray) -> bytes | Fault | None:
        """Take the body off the buffer once it is whole; None until then."""

    def rest(self, buffer: bytearray) -> bytes:
        """Return what has come of a body that is not whole."""


class _SizedBody:
    """A body of known length."""

    def __init__(self, length: int) -> None:
        self._length = length

    def read(self, buffer: bytearray) -> bytes | None:
        if len(buffer) < self._length:
            return None
        body = bytes(buffer[: self._length])
        del buffer[: self._length]
        return body

    def rest(self, buffer: bytearray) -> bytes:
        return bytes(buffer)


class _ValueBody:
    """A body of unknown length: one JSON object or array, with what stands before it."""

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._position = 0
        self._depth = 0
        self._in_string = False

    def read(self, buffer: bytearray) -> bytes | Fault | None:
        end = self._find_end(buffer)
        if (len(buffer) if end is None else end) > self._max:
            return _too_large(self._max)
        if end is None:
            return None
        body = bytes(buffer[:end])
        del buffer[:end]
        return body

    def rest(self, buffer: bytearray) -> bytes:
        return bytes(buffer)

    def _find_end(self, buffer: bytearray) -> int | None:
        """Go on to the bracket that closes the value; the scan remembers its place."""
        if not self._depth and not self._find_beginning(buffer):
            return None
        while self._position < len(buffer):
            if self._in_string:
                if not self._pass_string(buffer):
                    return None
                continue
            outside = _OUTSIDE.match(buffer, self._position)
            assert outside is not None
            self._position = at = outside.end()
            if at == len(buffer):
                return None
            self._position += 1
            if buffer[at] == _QUOTE:
                self._in_string = True
            else:
                self._depth += 1 if buffer[at] in b"{[" else -1
                if not self._depth:
                    return self._position
        return None

    def _find_beginning(self, buffer: bytearray) -> bool:
        beginning = _VALUE_BEGINS.search(buffer, self._position)
        if beginning is None:
            self._position = len(buffer)
            return False
        self._position, self._depth = beginning.end(), 1
        return True

    def _pass_string(self, buffer: bytearray) -> bool:
        """Go on behind the quote that ends the string; False until it has come."""
        string = _STRING.match(buffer, self._position)
        assert string is not None
        self._position = string.end()
        if buffer[string.end() : string.end() + 1] != b'"':
            return False  # at the end, or at an escape whose second byte has not come
        self._position += 1
        self._in_string = False
        return True


class _ChunkedBody:
    """A body in chunks, each behind its size in hexadecimal."""

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._body = bytearray()
        self._left = 0  # bytes of the chunk that have not come
        self._at_size = True  # a size comes next, and not the line end behind a chunk
        self._trailer: int | None = None  # bytes of it so far, once the last chunk has come

    def read(self, buffer: bytearray) -> bytes | Fault | None:
        while True:
            if self._left:
                piece = buffer[: self._left]
                self._body += piece
                self._left -= len(piece)
                del buffer[: len(piece)]
                if self._left:
                    return None
            end = buffer.find(b"\n", 0, CHUNK_LINE_BYTES)
            if end < 0:
                too_long = len(buffer) >= CHUNK_LINE_BYTES
                return Fault(400, "a line between chunks is too long") if too_long else None
            line = bytes(buffer[:end]).strip()
            del buffer[: end + 1]
            fault = self._take_line(line)
            if fault is not None:
                return fault
            if self._trailer is not None and not line:
                return bytes(self._body)

    def rest(self, buffer: bytearray) -> bytes:
        del buffer
        return bytes(self._body)

    def _take_line(self, line: bytes) -> Fault | None:
        if self._trailer is not None:
            self._trailer += len(line)
            return Fault(431, "the trailer is too long") if self._trailer > HEAD_BYTES else None
        if not self._at_size:
            self._at_size = True
            return Fault(400, "a chunk is longer than its size") if line else None
        size = _CHUNK_SIZE.fullmatch(line)
        if size is None:
            return Fault(400, "the size of a chunk is no hexadecimal number")
        return self._begin_chunk(size[1].lstrip(b"0"))

    def _begin_chunk(self, digits: bytes) -> Fault | None:
        if len(digits) > SIZE_DIGITS or len(self._body) + int(digits or b"0", 16) > self._max:
            return _too_large(self._max)
        if not digits:
            self._trailer = 0
            return None
        self._left, self._at_size = int(digits, 16), False
        return None
