"""Turns the bytes of one stream into frames: each the text of one JSON object, with its parse.

A stream may delimit objects in any way or not at all, and may carry text between them. The cut is
guessed first (at a newline, at ``}{``) and proved by parsing what was cut; only where the proof
fails does an exact scan look at every token. The rule that must stay true: the frames of a stream
do not depend on how the stream was cut into chunks, and every byte is looked at a bounded number
of times, because the scan remembers its place.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any, Final, NamedTuple

import orjson

from cdrd.event import are_mostly_events, name_of_other, skim
from cdrd.mend import mend
from cdrd.sizes import KIB, PAYLOAD_BYTES

BLOCK_BYTES: Final = 32 * KIB
"""How much is taken at once where every line is an object: some 100 reports, with all that they
become, stay in the processor's cache."""

SKIMMED_BYTES: Final = 128 * KIB
"""The same where most are other events, of which nothing is made."""

GUESS_BYTES: Final = 2 * KIB
"""How far a guess over several lines looks: an indented report has some 700 bytes."""

MAX_DEPTH: Final = 1024
"""Deeper nesting than any parser here takes; it bounds the memory of the scan."""


class Frame(NamedTuple):
    """One whole JSON object: ``text`` as received (or mended), ``report`` as parsed."""

    text: bytes | bytearray
    report: dict[str, Any]
    mended: bool = False


class Lines(NamedTuple):
    """Whole JSON objects: the text of each as received, without blanks around it, and its parse.

    ``events`` were among them and are not parsed: how often each came, by its name.
    """

    texts: list[str]
    reports: list[dict[str, Any]]
    events: Mapping[str, int]


class Broken(NamedTuple):
    """A stretch that is no JSON object: its first 64 KiB, its full size in bytes, and why."""

    payload: bytes
    size: int
    reason: str


_OPEN, _CLOSE, _QUOTE, _NEWLINE = b'{}"\n'
_OPEN_ARRAY, _CLOSE_ARRAY, _COMMA, _COLON = b"[],:"
_BACKSLASH: Final = 0x5C

_BLANKS = re.compile(rb"[\s,\[\]\x00]*+")
_TOKEN = re.compile(rb'\s*+([{}\[\],:"]|[^\s{}\[\],:"]++|)')
_BEGINS_OBJECT: Final = b'" \t\r\n'  # what follows a brace that opens an object with keys
_STRING = re.compile(rb'[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+')
_TEXT_END = re.compile(rb"[{\n]")
_OPENINGS: Final = (b'{"action":', b'{"event":', b'{"type":30')
"""How a report begins in the dialects known; the P-Series' event types are 30000 and up."""
_GLUE = re.compile(rb"\}\s*+\{")


class Framer:
    """The frames of one stream, pulled with ``next_lines`` and ``next_frame`` after ``receive``.

    An object of more than ``max_report_bytes`` is passed over to its end and told as ``Broken``.
    With ``skims``, events that are no released calls need not be parsed.
    """

    def __init__(self, max_report_bytes: int, *, skims: bool = False) -> None:
        self._max = max_report_bytes
        self._skims = skims
        self._block_bytes = BLOCK_BYTES
        self._buffer = bytearray()
        self._start = 0  # where the current frame, or the text before it, begins
        self._line_end = 0  # the next newline, or up to where there is none
        self._line_ends = False
        self._glue_searched = 0  # up to where there is no "}{"
        self._brace_searched = 0  # up to where there is no "}"
        self._text_searched = 0  # up to where the text between objects does not end
        self._glued = False  # the last guess that held was "}{"
        self._scan: _Scan | None = None  # set where guessing has failed for the current frame
        self._irregular = False  # what was received last is not all whole lines
        self._head = b""  # of an oversized frame, whose bytes are passed over
        self._passed = 0  # how many of them were dropped

    def limit(self, max_report_bytes: int) -> None:
        """Take longer objects from now on, or only shorter ones.

        One that is passed over already stays so, and is told as longer than the bound it met.
        """
        if not self._passed:
            self._max = max_report_bytes

    def receive(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the stream."""
        self.let_go()
        self._buffer += chunk
        self._irregular = False

    def let_go(self) -> None:
        """Hold no bytes of what was taken: a thousand connections would each hold their last."""
        start = self._start
        if not start:
            return
        del self._buffer[:start]
        self._start = 0
        if self._buffer or self._scan is not None:
            self._shift(start)
        else:  # most often all was taken
            self._line_ends = False
            self._line_end = self._glue_searched = 0
            self._brace_searched = self._text_searched = 0

    def _shift(self, dropped: int) -> None:
        """Follow the buffer, whose first bytes were dropped."""
        self._line_ends = self._line_ends and self._line_end >= dropped
        self._line_end = max(0, self._line_end - dropped)
        self._glue_searched = max(0, self._glue_searched - dropped)
        self._brace_searched = max(0, self._brace_searched - dropped)
        self._text_searched = max(0, self._text_searched - dropped)
        if self._scan is not None:
            self._scan.shift(dropped)

    @property
    def pending(self) -> int:
        """How many bytes are held of a frame that is not complete."""
        return len(self._buffer) - self._start + self._passed

    @property
    def rest(self) -> bytes:
        """What is held of a frame that is not complete; the dropped bytes of one too long are not.

        A new framer that begins with it goes on where this one has stopped.
        """
        return self._head + bytes(self._buffer[self._start :])

    def next_lines(self) -> Lines | None:
        """Return the whole objects at hand where newlines part them, or nothing does.

        That is the common case, in few steps for each object. It is None where anything else comes
        next: ``next_frame`` tells what.
        """
        if self._irregular or self._scan is not None:
            return None
        buffer, start = self._buffer, self._start
        if not buffer.startswith(b"{", start):
            return None
        end = self._last_cut()
        if end < 0:
            return None
        texts = self._cut(buffer[start : end + 1])
        left, events = skim(texts) if self._is_to_skim(texts) else (texts, {})
        self._block_bytes = SKIMMED_BYTES if events else BLOCK_BYTES
        reports = _parse_objects(left)
        if len(reports) == len(left) and texts:
            self._start = end + 1
            return Lines(left, reports, events)
        if events:
            reports = _parse_objects(texts)
        whole = len(reports)
        # One look a chunk: looking again behind each oddity would cost the square of their number.
        self._irregular = True
        self._line_ends, self._line_end, self._glue_searched = False, 0, 0
        for text in texts[:whole]:
            encoded = text.encode()
            self._start = buffer.index(encoded, self._start) + len(encoded)
        return Lines(texts[:whole], reports, {}) if whole else None

    def _is_to_skim(self, texts: list[str]) -> bool:
        return self._skims and are_mostly_events(texts)

    def _last_cut(self) -> int:
        """Find the last newline of a block, or else its last ``}{``; -1 where there is neither."""
        start = self._start
        known = start if self._line_ends else max(start, self._line_end)
        end = self._find_last(b"\n", known)
        self._line_ends, self._line_end = False, len(self._buffer) if end < 0 else end + 1
        if end < 0:
            end = self._find_last(b"}{", max(start, self._glue_searched - 1))
            self._glue_searched = len(self._buffer) if end < 0 else end + 1
        return end

    def _find_last(self, mark: bytes, known: int) -> int:
        """Find the last mark within a block, or else the first one behind."""
        block_end = self._start + self._block_bytes
        end = self._buffer.rfind(mark, known, block_end)
        return end if end >= 0 else self._buffer.find(mark, max(known, block_end - len(mark) + 1))

    def _cut(self, stretch: bytearray) -> list[str]:
        """Cut at newlines, or else at ``}{``; into nothing where that would not be safe."""
        try:
            text = stretch.decode()
        except UnicodeDecodeError:
            return []
        if not text.endswith("\n"):
            text = text.replace("}{", "}\n{")
        texts = list(filter(None, map(str.strip, text.split("\n"))))
        longest = self._max if text.isascii() else self._max // 4  # bytes to a character, at most
        return texts if max(map(len, texts)) <= longest else []

    def next_frame(self) -> Frame | Broken | None:
        """Return the next frame or broken stretch, or None until more bytes have come."""
        while self._scan is None:
            buffer, start = self._buffer, self._start
            if buffer.startswith(b"{", start):
                frame = self._guess()
                if frame is not None or self._scan is None:
                    return frame
                break
            stretch = self._skip_text()
            if stretch is not None:
                return stretch
            if self._start == start:
                return None
        return self._finish_scan()

    def close(self, reason: str) -> list[Frame | Broken]:
        """End the stream: what is held of a frame comes out as broken, for the reason given."""
        rest: list[Frame | Broken] = []
        while True:
            while (frame := self.next_frame()) is not None:
                rest.append(frame)
            if self._scan is None and self._buffer.startswith(b"{", self._start):
                self._scan = _Scan(self._start)
            elif self._scan is not None and (inner := self._inner_report(self._scan)):
                rest.append(self._break(inner, reason))
            else:
                break
        if self._scan is not None or b'"' in self._buffer[self._start :]:
            rest.append(self._break(len(self._buffer), reason))
        return rest

    def _guess(self) -> Frame | None:
        """Cut at the likeliest end and let the parse prove it; where it does not, begin a scan."""
        buffer, start = self._buffer, self._start
        if self._line_end < start or not self._line_ends:
            newline = buffer.find(b"\n", max(start, self._line_end))
            self._line_ends = newline >= 0
            self._line_end = newline if newline >= 0 else len(buffer)
        if self._line_ends and not self._glued:
            frame = self._prove(self._line_end)
            if frame is not None:
                return frame
        frame = self._guess_glued()
        if frame is not None:
            return frame
        if not self._line_ends:
            if (
                buffer.find(b"}", max(start, self._brace_searched)) < 0
                and len(buffer) - start <= self._max
            ):
                self._brace_searched = len(buffer)
                return None  # every whole object ends in a brace
        elif self._glued and (frame := self._prove(self._line_end)) is not None:
            self._glued = False
            return frame
        if (frame := self._guess_over_lines()) is None:
            self._scan = _Scan(start)
        return frame

    def _guess_glued(self) -> Frame | None:
        """Cut at ``}{`` before the line's end."""
        searched = max(self._start, self._glue_searched - 1)
        glue = self._buffer.find(b"}{", searched, self._line_end)
        if glue < 0:
            self._glue_searched = self._line_end
            return None
        self._glued = True
        return self._prove(glue + 1)

    def _guess_over_lines(self) -> Frame | None:
        """Cut where blanks alone part two objects, or at the end of what was received.

        Where a line within begins like a report, the scan decides whether it is one.
        """
        window = self._start + GUESS_BYTES
        glue = _GLUE.search(self._buffer, self._start, window)
        end = len(self._buffer) if glue is None else glue.start() + 1
        if end > window or self._buffer.find(b'\n{"', self._start, end) >= 0:
            return None
        return self._prove(end)

    def _prove(self, end: int) -> Frame | None:
        if end - self._start > self._max:
            return None
        candidate = self._buffer[self._start : end]
        try:
            report = orjson.loads(candidate)
        except orjson.JSONDecodeError:
            return None
        if candidate[-1] != _CLOSE:
            candidate = candidate.rstrip()
        self._start = end + (self._line_ends and end == self._line_end)  # past the newline, if any
        return Frame(candidate, report)

    def _skip_text(self) -> Broken | None:
        """Pass over what stands between objects; a piece of JSON among it is a broken stretch.

        Blanks, brackets, a byte order mark and lines of text carry no record. Text with a quote in
        it may be the rest of a torn report, so it is kept.
        """
        buffer = self._buffer
        blanks = _BLANKS.match(buffer, self._start)
        assert blanks is not None
        self._start = blanks.end()
        found = _TEXT_END.search(buffer, max(self._start, self._text_searched))
        end = len(buffer) if found is None else found.start()
        if end - self._start > self._max:
            end = self._start + self._max
        elif found is None:
            self._text_searched = end
            return None
        if b'"' in buffer[self._start : end]:
            return self._break(end, "text outside of any JSON object")
        self._start = end
        return None

    def _finish_scan(self) -> Frame | Broken | None:
        scan = self._scan
        assert scan is not None
        end = scan.run(self._buffer)
        if end is None:
            self._pass_over_oversized(scan)
            return None
        if scan.torn:
            return self._break(self._inner_report(scan) or end, scan.torn)
        if self._is_oversized(scan):
            return self._break(end, f"longer than max_report_bytes = {self._max}")
        return self._parse(end)

    def _is_oversized(self, scan: "_Scan") -> bool:
        return self._passed > 0 or scan.position - self._start > self._max

    def _inner_report(self, scan: "_Scan") -> int:
        """Tell where within a torn frame a whole report began; 0 where none did."""
        return 0 if self._is_oversized(scan) else scan.completed_report()

    def _pass_over_oversized(self, scan: "_Scan") -> None:
        """Drop what an oversized frame has shown so far, all but its head and its last byte.

        Whether a line begins behind that byte tells if a report does.
        """
        if self._is_oversized(scan):
            end = scan.position - 1
            self._keep_head(end)
            self._passed += end - self._start
            self._start = end

    def _keep_head(self, end: int) -> None:
        room = PAYLOAD_BYTES - len(self._head)
        self._head += bytes(self._buffer[self._start : min(end, self._start + room)])

    def _break(self, end: int, reason: str) -> Broken:
        self._keep_head(end)
        broken = Broken(self._head, self._passed + end - self._start, reason)
        self._start, self._head, self._passed, self._scan = end, b"", 0, None
        return broken

    def _parse(self, end: int) -> Frame | Broken:
        text = self._buffer[self._start : end]
        try:
            frame = Frame(text, orjson.loads(text))
        except orjson.JSONDecodeError as error:
            if self._skims and (event := name_of_other(text)):
                # It has a number beyond what a double holds, and could have been skimmed.
                frame = Frame(text, {"event": event})
            elif (mended := mend(text)) is not None:
                frame = Frame(mended, orjson.loads(mended), mended=True)
            else:
                return self._break(end, f"not valid JSON: {error}")
        self._start, self._scan = end, None
        return frame


def _parse_objects(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Parse texts up to the first that is not one object."""
    values: list[Any] = []
    with suppress(orjson.JSONDecodeError):
        values.extend(map(orjson.loads, texts))
    if set(map(type, values)) <= {dict}:
        return values
    return list(takewhile(lambda value: isinstance(value, dict), values))


class _Scan:
    """An exact, position-remembering look at one object, from its opening brace on.

    It follows strings and nesting and knows where a value may stand. ``torn`` is set when the
    object cannot be whole: a line ends inside a string, or a new object opens where none may
    stand; then the stretch ends there, and the next report begins.
    """

    def __init__(self, start: int) -> None:
        self.position = start
        self.torn = ""
        self._nesting = bytearray()
        self._previous = _COLON  # the last token's first byte; the outermost object may stand
        self._in_string = False
        self._inner = 0  # where the last report within this object began, and how deep
        self._inner_depth = 0

    def shift(self, dropped: int) -> None:
        """Follow the buffer, whose first bytes were dropped."""
        self.position -= dropped
        self._inner = max(0, self._inner - dropped)

    def completed_report(self) -> int:
        """Tell where, within the torn object, a whole report has just ended; 0 where none did.

        A report cut off just after a colon is followed by the next one as if that were the value.
        """
        ended = len(self._nesting) == self._inner_depth and self._previous == _CLOSE
        return self._inner if ended else 0

    def run(self, buffer: bytearray) -> int | None:
        """Go on to the object's end, or to where it is torn; None until more bytes have come."""
        while True:
            if self._in_string:
                end = self._run_string(buffer)
                if end is not None or self._in_string:
                    return end
            token = _TOKEN.match(buffer, self.position)
            assert token is not None
            at = self.position = token.start(1)
            if not token[1]:
                return None
            byte = buffer[at]
            if byte == _OPEN and self._nesting:
                begins_anew = self._begins_anew(buffer, at)
                if begins_anew is None:
                    return None
                if begins_anew:
                    self.torn = "broken off: another object begins within it"
                    return at
            self.position = token.end()
            self._take(byte)
            if not self._nesting:
                return self.position
            if len(self._nesting) > MAX_DEPTH:
                self.torn = f"nested deeper than {MAX_DEPTH}"
                return self.position

    def _run_string(self, buffer: bytearray) -> int | None:
        """Go on to the closing quote; a position where the string is torn; None otherwise."""
        body = _STRING.match(buffer, self.position)
        assert body is not None
        end = body.end()
        ends_with_brace = end > body.start() and buffer[end - 1] == _OPEN
        self.position = end - ends_with_brace  # a brace is kept to look back at
        if end == len(buffer) or (buffer[end] == _BACKSLASH and end + 1 == len(buffer)):
            return None
        if buffer[end] != _QUOTE:
            self.torn = "broken off: the line ends within a string"
            return buffer.index(b"\n", end) + 1
        if ends_with_brace:
            opens = opens_report(buffer, end - 1)
            if opens is None:
                return None
            if opens:
                self.torn = "broken off: another report begins within a string"
                return end - 1
        self._in_string = False
        self.position = end + 1
        self._previous = _QUOTE
        return None

    def _begins_anew(self, buffer: bytearray, at: int) -> bool | None:
        """Tell whether an object is no part of this one; None until the bytes that decide come."""
        opens = opens_report(buffer, at)
        if opens is None or at + 1 == len(buffer):
            return None
        if not self._value_may_stand():
            return buffer[at + 1] in _BEGINS_OBJECT
        if opens:
            self._inner, self._inner_depth = at, len(self._nesting)
        return opens and buffer[at - 1] == _NEWLINE

    def _value_may_stand(self) -> bool:
        if self._previous == _COMMA:
            return self._nesting[-1] == _OPEN_ARRAY
        return self._previous in (_COLON, _OPEN_ARRAY)

    def _take(self, byte: int) -> None:
        nesting = self._nesting
        if byte == _QUOTE:
            self._in_string = True
            return
        if byte in (_OPEN, _OPEN_ARRAY):
            nesting.append(byte)
        elif byte == _CLOSE:
            while nesting.pop() != _OPEN:
                pass
        elif byte == _CLOSE_ARRAY and nesting[-1] == _OPEN_ARRAY:
            nesting.pop()
        self._previous = byte


def opens_report(buffer: bytes | bytearray, at: int) -> bool | None:
    """Tell whether a report begins at ``at``; None where the bytes end before that is known."""
    for opening in _OPENINGS:
        window = buffer[at : at + len(opening)]
        if window == opening:
            return True
        if len(window) < len(opening) and opening.startswith(window):
            return None
    return False
