"""Rows of a portal's ConferenceCall2, for the tests of all that reads them."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from zoneinfo import ZoneInfo

from cdrd.leg import ConferenceLeg, make_leg

NEW_YORK = ZoneInfo("America/New_York")

ROW: dict[str, str] = {
    "CallID": "1",
    "UniqueCallID": "1505372123456789",
    "ConferenceName": "green",
    "TenantName": "Default",
    "ConferenceType": "C",
    "EndpointType": "D",
    "CallerID": "alice",
    "CallerName": "Alice Ångström",
    "JoinTime": "2017-09-14 09:30:15",
    "LeaveTime": "2017-09-14 10:00:00",
    "CallState": "COMPLETED",
    "Direction": "I",
    "RouterID": "router-1",
    "GWID": "",
    "GWPrefix": "",
    "ReferenceNumber": "",
    "ApplicationName": "VidyoDesktop",
    "ApplicationVersion": "3.6.11",
    "ApplicationOs": "Linux",
    "DeviceModel": "",
    "EndpointPublicIPAddress": "192.0.2.7",
    "CallCompletionCode": "1",
    "Extension": "0042",
    "EndpointGUID": "6F9619FF-8B86-D011-B42D-00C04FC964FF",
    "AccessType": "U",
    "RoomType": "M",
    "RoomOwner": "alice",
}
IN_PROGRESS = {"LeaveTime": "", "CallState": "IN PROGRESS", "CallCompletionCode": "0"}


def row(call_id: int | str = 1, **changes: str) -> dict[str, str]:
    """A row, some of its values changed."""
    return ROW | {"CallID": str(call_id)} | changes


def leg(call_id: int | str = 1, **changes: str) -> ConferenceLeg:
    """The leg of a row, of the portal "video" in New York."""
    return make_leg(row(call_id, **changes), portal="video", zone=NEW_YORK)


def export(
    rows: Iterable[Mapping[str, str]], names: Sequence[str] = tuple(ROW), **form: str
) -> bytes:
    """Rows as a portal exports them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n", **form)  # type: ignore[arg-type]
    writer.writerow(names)
    writer.writerows([row[name] for name in names] for row in rows)
    return text.getvalue().encode()
