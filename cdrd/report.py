"""Turns the parse of one frame into a report: a released call's fields, or an event to pass over.

Every dialect of a pushed record is read here, and nowhere else: the vendor's spellings stand in
one table. The rule that must stay true: whatever JSON a peer sends, the answer is a value and
never an exception. Sources: the vendor's API pages for S-Series 1.0.0 to 2.0.0, Cloud PBX,
P-Series 30012, and OpenVox (facts gathered from them and from captures).
"""

from dataclasses import dataclass
from typing import Any, Final

import orjson

from cdrd.frame import mend

CALL_RELEASED: Final = "NewCdr"
P_SERIES_CALL_RELEASED: Final = "30012"
API_STATUSES: Final = ("Success", "Failed")

SPELLINGS: Final = {
    "callid": "call_id",
    "call_id": "call_id",
    "cdrid": "cdr_id",
    "uid": "cdr_id",
    "timestart": "started_local",
    "time_start": "started_local",
    "callfrom": "caller",
    "call_from": "caller",
    "callto": "callee",
    "call_to": "callee",
    "callduraction": "duration",  # sic, in every S-Series dialect
    "callduration": "duration",
    "call_duration": "duration",
    "talkduraction": "talk_duration",  # sic
    "talkduration": "talk_duration",
    "talk_duration": "talk_duration",
    "srctrunkname": "source_trunk",
    "src_trunk_name": "source_trunk",
    "desttrunkname": "destination_trunk",  # samples of 1.x
    "dstrunkname": "destination_trunk",  # parameter tables of 1.x
    "dsttrcunkname": "destination_trunk",  # sic, 2.0.0
    "dsttrunkname": "destination_trunk",  # history CSV
    "dst_trunk_name": "destination_trunk",
    "status": "status",
    "type": "call_type",
    "pincode": "pin_code",
    "pin_code": "pin_code",
    "recording": "recording",
    "didnumber": "did_number",
    "did_number": "did_number",
    "agentringtime": "agent_ring_time",
    "agent_ring_time": "agent_ring_time",
    "sn": "pbx_serial",
}
"""The vendor's key, in any dialect: our name for it."""


@dataclass(frozen=True, slots=True)
class ReleasedCall:
    """What a report says of a released call: our name of each field, its value as sent."""

    fields: dict[str, Any]
    mended: bool = False


@dataclass(frozen=True, slots=True)
class OtherEvent:
    """A report of anything but a released call, by the PBX's name for the event."""

    name: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """JSON that is no report, and why."""

    reason: str


Report = ReleasedCall | OtherEvent | Unreadable


def read_report(parsed: dict[str, Any]) -> Report:
    """Tell what one parsed JSON object reports."""
    event = parsed.get("action") or parsed.get("event")
    if event == CALL_RELEASED:
        return ReleasedCall(_fields(parsed))
    if event is not None:
        if isinstance(event, str):
            return OtherEvent(event)
        return Unreadable("the event's name is not text")
    return _read_envelope(parsed)


def _read_envelope(parsed: dict[str, Any]) -> Report:
    """Read the P-Series' ``{"type": 30012, "sn": ..., "msg": "<JSON text>"}``."""
    if "callid" not in parsed and ("errcode" in parsed or parsed.get("status") in API_STATUSES):
        return OtherEvent("answer")  # of the PBX's API, to a login or a subscription
    event_type = parsed.get("type")
    name = event_type.strip() if isinstance(event_type, str) else str(event_type)
    if not (name.isascii() and name.isdigit()):
        return Unreadable("no action, event or numeric type names the event")
    if name != P_SERIES_CALL_RELEASED:
        return OtherEvent(name)
    message = parsed.get("msg")
    if isinstance(message, str):
        return _read_message(message, parsed.get("sn"))
    if isinstance(message, dict):
        return ReleasedCall(_fields({"sn": parsed.get("sn"), **message}))
    return Unreadable("msg is neither JSON text nor an object")


def _read_message(message: str, serial: object) -> Report:
    mended = None
    try:
        record = orjson.loads(message)
    except orjson.JSONDecodeError as error:
        mended = mend(message.encode())
        if mended is None:
            return Unreadable(f"msg is not valid JSON: {error}")
        record = orjson.loads(mended)
    if not isinstance(record, dict):
        return Unreadable("msg is not a JSON object")
    return ReleasedCall(_fields({"sn": serial, **record}), mended=mended is not None)


def _fields(parsed: dict[str, Any]) -> dict[str, Any]:
    """Name the known keys our way; of two spellings in one report the first with a value counts."""
    fields: dict[str, Any] = {}
    for key, value in parsed.items():
        name = SPELLINGS.get(key)
        if name is None or value is None:
            continue
        if type(value) is str:
            value = value.strip()  # noqa: PLW2901 - a second name would only be read as another value
            if not value:
                continue
        fields.setdefault(name, value)
    return fields
