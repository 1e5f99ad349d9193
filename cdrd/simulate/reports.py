"""Turns running numbers into call reports and other events, in the field's own wire format.

A number makes the same call in each dialect and on each run, and no other number makes that call:
what arrives can be counted and compared. All is written from what is known of the wire (vendor's
pages, public client code, captures) and shares no code with the decoder that it serves to test.
"""

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import orjson

DIALECTS = ("1.0.0", "1.0.1", "1.0.2", "2.0.0", "openvox", "p-series")

DELIMITERS = {
    "newline": "a line feed after each report",
    "crlf": "carriage return and line feed after each report",
    "blank-line": "carriage return and line feed, twice, after each report",
    "none": "nothing: the next report begins where this one ends, }{",
    "pretty": "each report indented over several lines, a line feed after it",
    "text": "a block of AMI-like text lines before each report",
    "bom": "a byte order mark before each report, a line feed after it",
}

CALLS_A_SECOND = 50
"""So many consecutive numbers of `ReportForms` begin in the same second."""

_SERIAL = "369362089179"
_TIMESTART = "%Y-%m-%d %H:%M:%S"
_RECORDED = "%Y%m%d%H%M%S"
_NEW_CDR = 30012
"""P-Series numbers its events; this is the call report's."""


def duration(number: int) -> int:
    """Tell how many seconds the call of `new_cdr` lasts: it is reported at their end."""
    return _call(number).duration


def new_cdr(
    number: int,
    dialect: str = "2.0.0",
    *,
    started: int,
    utc_offset: int = 0,
    serial: str = _SERIAL,
) -> bytes:
    """Report one released call as compact JSON, about 350 bytes.

    `number` (0 or more) makes the call what it is; `started` is its UTC epoch in seconds,
    `utc_offset` the PBX's zone in minutes, east positive. Raises ValueError for an unknown dialect.
    """
    return _report(_call(number), dialect, _stamps(number, started, utc_offset), serial)


# The lengths of these two have no common divisor, so that each status meets each type. The
# spellings are those of the captures and of the vendor's tables, with their slips.
_STATUSES = (
    *("ANSWERED", "NO ANSWER", "ANSWERED", "BUSY", "ANSWERED", "NOANSWER", "ANSWERED", "VOICEMAIL"),
    *("ANSWERED", "NO ANSWERED", "ANSWERED", "FAILED", "ANSWERED", "ABANDONED", "ANSWERED"),
    *("ANSWERD", "ANSWERED", "NO ANSWER", "ANSWERED", "ANSWERED", "BUSY", "ANSWERED", "ANSWERED"),
)
_CALL_TYPES = (
    *("Inbound", "Outbound", "Internal", "Inbound", "Outbound", "Callback", "inbound"),
    *("Internal", "Outbound", "Transfer", "outbound", "Inbound", "internal"),
)
_TRUNKS = ("Apple_test", "SPS-6-36", "sip-142", "MEO", "27870000001_SIP")
_TALKED = frozenset(("ANSWERED", "ANSWERD", "VOICEMAIL"))
_COMES_IN = frozenset(("inbound", "callback"))
_GOES_OUT = frozenset(("outbound", "transfer"))
_PATTERN = 1000
"""A call's particulars, apart from its id and time, repeat after so many numbers."""


@dataclass(frozen=True, slots=True)
class _Call:
    caller: str
    callee: str
    duration: int
    talk_duration: int
    source_trunk: str
    destination_trunk: str
    status: str
    call_type: str
    pin_code: str
    recording_ending: str
    did_number: str
    agent_ring_time: int
    blank: str


@dataclass(frozen=True, slots=True)
class _Stamps:
    """What tells a call from the one that the same number made `_PATTERN` numbers earlier."""

    call_id: str
    timestart: str
    recorded: str


def _stamps(number: int, started: int, utc_offset: int) -> _Stamps:
    local = time.gmtime(started + 60 * utc_offset)
    return _Stamps(
        call_id=f"{started}.{number}",
        timestart=time.strftime(_TIMESTART, local),
        recorded=time.strftime(_RECORDED, local),
    )


def _call(number: int) -> _Call:
    kind = number % _PATTERN
    call_type = _CALL_TYPES[kind % len(_CALL_TYPES)]
    status = _STATUSES[kind % len(_STATUSES)]
    comes_in, goes_out = call_type.lower() in _COMES_IN, call_type.lower() in _GOES_OUT
    ringing = 0 if status == "FAILED" else 2 + kind * 7 % 29
    talk = _talk_duration(kind) if status in _TALKED else 0
    trunk = _TRUNKS[kind % len(_TRUNKS)]
    return _Call(
        caller=_outside(kind) if comes_in else _extension(kind),
        callee=_callee(kind) if comes_in else _outside(kind) if goes_out else _extension(kind + 7),
        duration=ringing + talk,
        talk_duration=talk,
        source_trunk=trunk if comes_in else "",
        destination_trunk=trunk if goes_out else "",
        status=status,
        call_type=call_type,
        pin_code=f"{1000 + kind}" if goes_out and kind % 3 == 0 else "",
        recording_ending=("wav", "yswav")[kind % 2] if talk and kind % 5 else "",
        did_number=f"9200000{kind % 10:03}" if comes_in else "",
        agent_ring_time=ringing if comes_in and kind % 3 == 0 else 0,
        blank=("", " ")[kind % 2],
    )


def _talk_duration(kind: int) -> int:
    """Vary over ten minutes; each 97th call lasts for hours."""
    seconds = 1 + kind * kind % 599
    return seconds * 30 if kind % 97 == 0 else seconds


def _extension(kind: int) -> str:
    return f"{1000 + kind * 37 % 200}"


def _outside(kind: int) -> str:
    return (f"0180000{kind:03}", f"+49180000{kind:03}", f"9200000{kind:03}")[kind % 3]


def _callee(kind: int) -> str:
    """Name who was called from outside: extension, queue or both, in each spelling of the field."""
    queue, agent = f"62{kind % 10:02}", _extension(kind)
    return (agent, queue, f"{queue}({agent})", f"({agent})")[kind % 4]


def _report(call: _Call, dialect: str, stamps: _Stamps, serial: str) -> bytes:
    match dialect:
        case "1.0.0" | "1.0.1":
            return orjson.dumps(_release_1(call, stamps, dialect))
        case "1.0.2" | "openvox":
            return orjson.dumps(_release_1(call, stamps, dialect) | _added_in_1_0_2(call, serial))
        case "2.0.0":
            return orjson.dumps(_release_2(call, stamps, serial))
        case "p-series":
            return _envelope(_NEW_CDR, _p_series(call, stamps), serial)
        case _:
            raise _unknown("dialect", dialect, DIALECTS)


def _release_1(call: _Call, stamps: _Stamps, dialect: str) -> dict[str, str]:
    """Leave out what has no value, except the trunk that 1.0.0 sends empty for an internal call."""
    fields = {
        "action": "NewCdr",
        "callid": stamps.call_id,
        "timestart": stamps.timestart,
        "callfrom": call.caller,
        "callto": call.callee,
        "srctrunkname": call.source_trunk,
        "desttrunkname": call.destination_trunk,
        "callduraction": f"{call.duration}",
        "talkduraction": f"{call.talk_duration}",
        "status": call.status,
        "type": call.call_type,
        "pincode": call.pin_code,
        "recording": _recording(call, stamps),
    }
    kept = "desttrunkname" if dialect == "1.0.0" and not call.source_trunk else None
    return {key: value for key, value in fields.items() if value or key == kept}


def _added_in_1_0_2(call: _Call, serial: str) -> dict[str, str]:
    fields = {
        "didnumber": call.did_number,
        "agentringtime": f"{call.agent_ring_time}" if call.agent_ring_time else "",
        "sn": serial,
    }
    return {key: value for key, value in fields.items() if value}


def _release_2(call: _Call, stamps: _Stamps, serial: str) -> dict[str, str]:
    """Send each key, empty where there is no value; `dsttrcunkname` is the vendor's spelling."""
    return {
        "event": "NewCdr",
        "callid": stamps.call_id,
        "timestart": stamps.timestart,
        "callfrom": call.caller,
        "callto": call.callee,
        "callduraction": f"{call.duration}",
        "talkduraction": f"{call.talk_duration}",
        "srctrunkname": call.source_trunk,
        "dsttrcunkname": call.destination_trunk,
        "pincode": call.pin_code,
        "status": call.status,
        "type": call.call_type,
        "recording": _recording(call, stamps),
        "didnumber": call.did_number,
        "agentringtime": f"{call.agent_ring_time}",
        "sn": serial,
    }


def _p_series(call: _Call, stamps: _Stamps) -> dict[str, str | int]:
    """Send each key, empty or a blank where there is no value, and durations as numbers."""
    return {
        "call_id": stamps.call_id,
        "time_start": stamps.timestart,
        "call_from": call.caller,
        "call_to": call.callee,
        "call_duration": call.duration,
        "talk_duration": call.talk_duration,
        "src_trunk_name": call.source_trunk or call.blank,
        "dst_trunk_name": call.destination_trunk or call.blank,
        "pin_code": call.pin_code or call.blank,
        "status": call.status,
        "type": call.call_type,
        "recording": _recording(call, stamps),
        "did_number": call.did_number,
        "agent_ring_time": call.agent_ring_time,
    }


def _envelope(event: int, fields: Mapping[str, object], serial: str) -> bytes:
    """P-Series: JSON inside a string, in an envelope that tells the event by its number."""
    return orjson.dumps({"type": event, "sn": serial, "msg": orjson.dumps(fields).decode()})


def history_row(
    number: int, *, started: int, utc_offset: int = 0, serial: str = _SERIAL
) -> dict[str, str]:
    """Tell the call of `new_cdr` as a row of the S-Series history CSV: each column, in its order.

    What has no value is empty; there is no column for the time that an agent's phone rang.
    """
    call, stamps = _call(number), _stamps(number, started, utc_offset)
    return {
        "callid": stamps.call_id,
        "timestart": stamps.timestart,
        "callfrom": call.caller,
        "callto": call.callee,
        "callduraction": f"{call.duration}",
        "talkduraction": f"{call.talk_duration}",
        "srctrunkname": call.source_trunk,
        "dsttrunkname": call.destination_trunk,
        "status": call.status,
        "type": call.call_type,
        "pincode": call.pin_code,
        "recording": _recording(call, stamps),
        "didnumber": call.did_number,
        "sn": serial,
    }


def rest_row(number: int, *, started: int, utc_offset: int = 0) -> dict[str, str | int]:
    """Tell the call of `new_cdr` as a row of the P-Series REST history, its durations as numbers.

    Callers and callees are `Name<number>`. The name of an extension may hold blanks, commas and
    brackets; who has no name goes by the number.
    """
    call, stamps = _call(number), _stamps(number, started, utc_offset)
    return {
        "uid": f"{time.strftime('%Y%m%d', time.gmtime(started))}{number:08}",
        "time": stamps.timestart,
        "timestamp": started,
        "call_id": stamps.call_id,
        "call_from": _named(call.caller),
        "call_to": _named(call.callee),
        "duration": call.duration,
        "talk_duration": call.talk_duration,
        "ring_duration": call.agent_ring_time,
        "src_trunk": call.source_trunk,
        "dst_trunk": call.destination_trunk,
        "disposition": call.status,
        "call_type": call.call_type,
        "pin_code": call.pin_code,
        "did": call.did_number,
        "did_name": "",
    }


def _named(party: str) -> str:
    is_extension = len(party) == len("1000") and party.startswith("1")
    return f"Doe, <Jo> {party[1:]}<{party}>" if is_extension else f"{party}<{party}>"


def _recording(call: _Call, stamps: _Stamps) -> str:
    if not call.recording_ending:
        return ""
    parties = f"{call.caller}-{call.callee}-{call.call_type}"
    return f"{stamps.recorded}-{stamps.call_id}-{parties}.{call.recording_ending}"


def _unknown(what: str, given: str, known: Iterable[str]) -> ValueError:
    return ValueError(f'"{given}" is no {what}; known are {", ".join(known)}')


# Each dialect's events as its pages print them, or in the manner of those where a page prints none.
_BOTH_EXT = '"ext":{"extid":"%(from)s"},"ext":{"extid":"%(to)s"}}'
_INBOUND = '"inbound":{"from":"180000001","to":"%(to)s","trunk":"SPS-6-36","inboundid":"%(call)s"}'
_OUTBOUND = '"outbound":{"from":"%(from)s","to":"41000","trunk":"sip-142","outboundid":"%(call)s"}'
_EVENTS_1_0_0 = (
    '{"action":"RING","callid":"%(call)s",' + _BOTH_EXT,
    '{"action":"ALERT","callid":"%(call)s","ext":{"extid":"%(to)s"}}',
    '{"action":"RI","callid":"%(call)s",' + _BOTH_EXT,
    '{"action":"ANSWERED","callid":"%(call)s",' + _BOTH_EXT,
    '{"action":"BYE","callid":"%(call)s",' + _BOTH_EXT,
    '{"action":"Tranfer","callid":"%(call)s",' + _INBOUND + "}",
    '{"action":"CallFailed","reason":"User busy","callid":"%(call)s"}',
    '{"action":"Invite","callid":"%(call)s",' + _INBOUND + "}",
    '{"action":"Incoming","callid":"%(call)s",' + _INBOUND + "}",
    '{"action":"DTMF","callid":"%(call)s",' + _OUTBOUND + ',"info":"#"}',
    '{"action":"PlayPromptEnd","callid":"%(call)s","ext":{"extid":"%(from)s"},"prompt":"111"}',
)
_SN = ',"sn":"%(sn)s"}'
_TWO_EXT = '"call":[{"ext":{"extid":"%(from)s"}},{"ext":{"extid":"%(to)s"}}]' + _SN
_FROM_TRUNK = '"call":[{' + _INBOUND + "}]" + _SN
_EVENTS_1_0_2 = (
    '{"action":"BootUp"' + _SN,
    '{"action":"RING","callid":"%(call)s",' + _TWO_EXT,
    '{"action":"ALERT","callid":"%(call)s","call":[{"ext":{"extid":"%(to)s"}}]' + _SN,
    '{"action":"ANSWER","callid":"%(call)s",' + _TWO_EXT,
    '{"action":"BYE","callid":"%(call)s",' + _TWO_EXT,
    '{"action":"Tranfer","callid":"%(call)s",' + _TWO_EXT,
    '{"action":"CallFailed","reason":"486 Busy Here","callid":"%(call)s",' + _OUTBOUND + _SN,
    '{"action":"Invite","callid":"%(call)s",' + _FROM_TRUNK,
    '{"action":"Incoming","callid":"%(call)s",' + _FROM_TRUNK,
    '{"action":"ExtensionStatus","extension":"%(from)s","status":"Registered"' + _SN,
    '{"action":"ConfigChange","type":"extension","extid":"%(from)s","operation":"update"' + _SN,
)
_TRUNK_MEMBER = (
    '"members":[{"inbound":{"from":"12345678","to":"%(to)s","trunkname":"siptrunk",'
    '"channelid":"PJSIP/trunk-siptrunk-endpoint-0000001c"}}]' + _SN
)
_FROM_MEMBER = '{"ext":{"number":"%(from)s","channelid":"PJSIP/%(from)s-00000025"}}'
_TO_MEMBER = '{"ext":{"number":"%(to)s","channelid":"PJSIP/%(to)s-00000026"}}'
_TWO_MEMBERS = '"members":[' + _FROM_MEMBER + "," + _TO_MEMBER + "]" + _SN
_EVENTS_2_0_0 = (
    '{"event":"CallStatus","callid":"%(call)s",' + _TWO_MEMBERS,
    '{"event":"ExtensionStatus","extension":"%(from)s","status":"Ringing"' + _SN,
    '{"event":"ConfigChange","type":"extension","extid":"%(from)s","operation":"update"' + _SN,
    '{"event":"Incoming","callid":"%(call)s",' + _TRUNK_MEMBER,
    '{"event":"Forward","callid":"%(call)s",' + _TRUNK_MEMBER,
    '{"event":"Tranfer","callid":"%(call)s",' + _TWO_MEMBERS,
    '{"event":"CallFailed","callid":"%(call)s","reason":"User busy"' + _SN,
    '{"event":"DTMF","callid":"%(call)s","digit":"#","members":[' + _FROM_MEMBER + "]" + _SN,
    '{"event":"satisfaction","callid":"%(call)s","surveyresult":"1"' + _SN,
    '{"event":"uacstacall","operation":"callanswer","extnumber":"%(from)s","cstacallid":"32788"'
    ',"ipaddress":"192.0.2.70:5060"' + _SN,
)
_P_SERIES_EVENTS = tuple(event for event in range(30005, 30037) if event != _NEW_CDR)


def other_event(number: int, dialect: str) -> bytes:
    """Make one of the events that share the stream with call reports, as compact JSON.

    The names of the dialect take turns as `number` runs. OpenVox borrows those of 1.0.2, and 1.0.1
    those of 1.0.0, where an object may hold the key `ext` twice. Raises ValueError for an unknown
    dialect.
    """
    match dialect:
        case "1.0.0" | "1.0.1":
            return _event(number, _EVENTS_1_0_0)
        case "1.0.2" | "openvox":
            return _event(number, _EVENTS_1_0_2)
        case "2.0.0":
            return _event(number, _EVENTS_2_0_0)
        case "p-series":
            return _p_series_event(number)
        case _:
            raise _unknown("dialect", dialect, DIALECTS)


def _event(number: int, events: tuple[str, ...]) -> bytes:
    fields = {
        "call": _event_call_id(number),
        "from": _extension(number),
        "to": _extension(number + 7),
        "sn": _SERIAL,
    }
    return (events[number % len(events)] % fields).encode()


def _p_series_event(number: int) -> bytes:
    event = _P_SERIES_EVENTS[number % len(_P_SERIES_EVENTS)]
    match event:
        case 30008:
            fields: dict[str, object] = {"extension": _extension(number), "status": "Ring"}
        case 30015:
            fields = {"call_id": _event_call_id(number), "reason": "NOT found", "members": None}
        case _:
            fields = {"call_id": _event_call_id(number), "members": [_p_series_member(number)]}
    return _envelope(event, fields, _SERIAL)


def _p_series_member(number: int) -> dict[str, object]:
    extension = _extension(number)
    return {
        "extension": {
            "number": extension,
            "channel_id": f"PJSIP/{extension}-00000023",
            "member_status": ("ALERT", "ANSWERED", "BYE")[number % 3],
            "call_path": "",
        }
    }


def _event_call_id(number: int) -> str:
    return f"1571897079.{number % _PATTERN}"


_AROUND = {
    "newline": (b"", b"\n"),
    "crlf": (b"", b"\r\n"),
    "blank-line": (b"", b"\r\n\r\n"),
    "none": (b"", b""),
    "pretty": (b"", b"\n"),
    "text": (b"Event: Alarm\r\nPrivilege: system,all\r\nMessage: Keep alive\r\n\r\n", b"\r\n"),
    "bom": (b"\xef\xbb\xbf", b"\n"),
}
_JSON_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


def lay(report: bytes, delimiter: str) -> bytes:
    """Lay a report on the stream with what stands before and after it; see `DELIMITERS`.

    Raises ValueError for an unknown delimiter.
    """
    if delimiter not in _AROUND:
        raise _unknown("delimiter", delimiter, DELIMITERS)
    before, after = _AROUND[delimiter]
    return before + (_indented(report) if delimiter == "pretty" else report) + after


def _indented(report: bytes) -> bytes:
    """Indent token by token: to decode and encode again would drop the doubled key of 1.0.0."""
    depth, pieces = 0, []
    for token in _JSON_TOKEN.findall(report):
        if token in b"}]":
            depth -= 1
            pieces.append(_line_break(depth))
        pieces.append(token + b" " if token == b":" else token)
        if token in b"{[":
            depth += 1
        if token in b"{[,":
            pieces.append(_line_break(depth))
    return b"".join(pieces)


def _line_break(depth: int) -> bytes:
    return b"\n" + b"    " * depth


# Where a form is to be stamped. One byte each, and none that a report holds otherwise:
# bytes.replace looks for one byte by memchr, 0.13 us a report; longer marks cost 0.93 us.
_CALL_MARK, _TIMESTART_MARK, _RECORDED_MARK = b"~", b"^", b"|"


class ReportForms:
    """A dialect's calls as forms that need only be stamped, for senders that must cost little.

    A call's particulars repeat after 1,000 numbers, so there are 1,000 forms, the last three digits
    of the number printed on each. What is left to fill in is then one text for all the calls of a
    second. A stamped report is byte for byte that of `new_cdr`.
    """

    def __init__(
        self,
        dialect: str,
        delimiter: str = "newline",
        *,
        first: int = 0,
        started: int,
        utc_offset: int = 0,
        events: int = 0,
    ) -> None:
        """Let number `first` begin at `started` (UTC epoch); `events` others follow each report.

        The second advances where a number is a multiple of `CALLS_A_SECOND`. Raises ValueError for
        an unknown dialect or delimiter.
        """
        self._dialect, self._delimiter, self._events = dialect, delimiter, events
        self._epoch_of_number_0 = started - first // CALLS_A_SECOND
        self._zone = 60 * utc_offset
        self._forms = [self._form(kind, f"{kind:03}") for kind in range(_PATTERN)]
        # Numbers below 1,000 have no thousands, and so no leading zeros.
        below = range(_PATTERN if first < _PATTERN else 0)
        self._first_forms = [self._form(kind, f"{kind}") for kind in below]
        self.size = max(map(len, self._forms))

    def started(self, number: int) -> int:
        """UTC epoch at which the call of that number begins."""
        return self._epoch_of_number_0 + number // CALLS_A_SECOND

    def stamp(self, numbers: range) -> bytes:
        """Lay consecutive reports, of `first` or later, on the stream, each with its events."""
        return b"".join(self._stamp_second(second) for second in _seconds(numbers))

    def _stamp_second(self, numbers: range) -> bytes:
        thousands, low = divmod(numbers.start, _PATTERN)
        forms = self._forms if thousands else self._first_forms
        started = self.started(numbers.start)
        local = time.gmtime(started + self._zone)
        return (
            b"".join(forms[low : low + len(numbers)])
            .replace(_CALL_MARK, b"%d.%b" % (started, b"%d" % thousands if thousands else b""))
            .replace(_TIMESTART_MARK, time.strftime(_TIMESTART, local).encode())
            .replace(_RECORDED_MARK, time.strftime(_RECORDED, local).encode())
        )

    def _form(self, kind: int, digits: str) -> bytes:
        marks = (_CALL_MARK.decode() + digits, _TIMESTART_MARK.decode(), _RECORDED_MARK.decode())
        report = _report(_call(kind), self._dialect, _Stamps(*marks), _SERIAL)
        numbers = range(kind * self._events, (kind + 1) * self._events)
        others = (other_event(number, self._dialect) for number in numbers)
        return b"".join(lay(message, self._delimiter) for message in (report, *others))


def _seconds(numbers: range) -> Iterator[range]:
    """Cut consecutive numbers where the second advances."""
    start = numbers.start
    while start < numbers.stop:
        stop = min(numbers.stop, start - start % CALLS_A_SECOND + CALLS_A_SECOND)
        yield range(start, stop)
        start = stop
