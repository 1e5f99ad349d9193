"""What the fuzzing begins with: what PBXs, portals and commands send, whole and torn."""

from pathlib import Path

import orjson

from cdrd.batch import Batch, RestoredCall
from cdrd.handover import make_requests
from cdrd.leg_request import make_request as make_leg_request
from cdrd.leg_store import Arrival
from cdrd.line import told_fields
from cdrd.purge import Place, Purge
from cdrd.purge import make_request as make_purge_request
from cdrd.sizes import KIB
from cdrd.spool_line import spell_lines
from tests.example import varied
from tests.fuzz.reading import ENDED, HQ, RECEIVED_AT, Custody, connection, exported
from tests.portal_rows import NEW_YORK, export, leg, row

SAMPLES = Path(__file__).parents[1] / "samples"
EXAMPLE_CONFIG = Path(__file__).parents[2] / "config.example.toml"


CAPTURED = [path.read_bytes() for path in sorted(SAMPLES.glob("*.jsonl"))]
REPORTS = [line for capture in CAPTURED for line in capture.splitlines()]
CALL = REPORTS[0]
TORN = [
    CALL[:40] + b"\n" + CALL + b"\n",
    CALL[:60] + CALL + CALL,
    CALL[: CALL.index(b":") + 1] + CALL + b"\n",
    CALL.replace(b'"}', b'\\_"}') + b"\n" + CALL,
    b"[\n" + CALL + b",\n" + CALL + b"]",
    b"Response: Success\r\n\r\n" + CALL + b"\r\n\r\n" + CALL,
    b'{"a":[{"b":{"c":[1,2,{}]}},"\\"}{"]}' + CALL,
    CALL + b"\xff\xfe\n" + CALL + b"\xc2\xa0\n" + CALL,
    b'{"action":"NewCdr","callid":"1","timestart":"soon"}\n' + CALL,
    b"heartbeat response\n" + CALL + b"}" + CALL,
]
_LISTS = b"[" * 1020 + b"]" * 1020  # JSON may be so deep, and Python cannot spell it
DEEP = [b'{"%b":%b}' % (key, _LISTS) for key in (b"x", b"type", b"time", b"timestamp", b"errno")]
STREAMS = [*CAPTURED, *TORN, *(CALL + deep + b"\n" + CALL for deep in DEEP[:2])]
VALUES = [
    b"1495779310.371\n2017-05-25 22:15:10\n1000\n91000\n29\n-1\n1.5\nANSWERED\nInbound",
    b'"\\u0000"\nnull\ntrue\n[]\n{}\n"x"\n 7 \n99999999999999999999\n9223372036854775807',
    b"0001-01-01 00:00:00\n9999-12-31 23:59:59\n2017/05/25 22:15:10\n2017-02-29T24:00:60\n\n",
    "ŉ straße ß\n\xa0x\u2028\n\uff10\uff11\nNO_ANSWER\ncall back\n".encode(),
]
HEADER = b"callid,timestart,callfrom,callto,callduraction,talkduraction,status,type,pincode,sn"
ROWS = [
    b"1495779310.371,2017-05-25 22:15:10,1000,91000,29,21,ANSWERED,Inbound,,369451090405\n" * 2,
    b'1495779310.371,2017-05-25 22:15:10,"10\n00",91000,29,21,"a""b",Inbound,,\r\n',
    b'1495779310.371;2017-05-25 22:15:10;"1000;91000;29;21;ANSWERED;Inbound;;\n' * 3,
    HEADER + b"\n1\t2\t3\n\xff\n",
    b"00,29{1*\x9f\xff4-",  # no line of a history ends, and it came in many pieces
]
LOGGED = orjson.dumps(
    {"timestamp": "2017-09-14T01:30:44.518112Z", "level": "info", "event": "call_released"}
    | {"seq": 1, **told_fields(varied())}
)
CAPTURES = [
    (SAMPLES / "cdr-download.csv").read_bytes(),
    orjson.dumps(exported(RestoredCall(7, varied()))) + b"\n",
    orjson.dumps(exported(RestoredCall(8, varied(told_by_id=False, call_id="x")))) + b"\n" + CALL,
    LOGGED + b"\n" + LOGGED,
    *STREAMS[::3],
    b'{"event":"call_released","pbx":%b}' % _LISTS,
]


_HEADS = (
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n",
    b"POST /cloud HTTP/1.1\nX-Signature: abc=\nContent-Length: %d\n\n",
    b"post / http/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n",
)
POSTS = [
    *((head % len(CALL) + CALL) * 2 for head in _HEADS),
    b"POST HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + CALL + CALL,
    b"GET / HTTP/1.1\r\n\r\n" + CALL,
    b'POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"a":\r\n2;x=y\r\n1}\r\n0\r\n\r\n',
]


def _batch() -> Batch:
    custody = Custody()
    stream = connection(HQ, max_report_bytes=64 * KIB)(custody.waiting, custody.totals)
    stream.receive(b"\n".join(REPORTS) + b'\n{"x":\n', RECEIVED_AT)
    stream.close(ENDED, RECEIVED_AT)
    return custody.batch


BATCH = _batch()
ARRIVAL = Arrival("video", NEW_YORK, 1.5, legs=[leg(1)], quarantined=BATCH.quarantined)
ASKED = [
    *map(orjson.dumps, make_requests(BATCH, 2 * KIB)),
    orjson.dumps(make_leg_request(ARRIVAL, "America/New_York")),
    orjson.dumps(make_purge_request(Purge("2020-01-01T00:00:00Z"), "call", Place("a", 1))),
]
SPOOLED = list(spell_lines(BATCH))
SPOOLS = [*SPOOLED, *(line[9:-1] for line in SPOOLED)]  # the latter to be behind a right checksum
ANSWERS = [
    b'{"status":"Success","errno":"0","token":"abc","random":"1"}',
    b'{"errcode":10004,"errmsg":"TOKEN EXPIRED","data":[]}',
    b'{"data":[{"time":"2017-05-25 22:15:10","timestamp":1495779310,"call_from":"Ann<1000>"}]}',
    b'{"errcode":0,"total_number":1,"data":[{"time":"05/25/2017 10:15:10 PM"},{"time":7}]}',
    *(b'{"data":[%b]}' % deep for deep in DEEP),
    *DEEP,
]
PORTAL_HEADER = export([])
PORTAL_ROWS = [
    export([row(1), row(2)])[len(PORTAL_HEADER) :],
    export([row(1, CallerName='a "b"\nc'), row(2, JoinTime="0000-00-00 00:00:00")]),
    export([row(1)], delimiter=";"),
    export([row(1)]).decode().encode("utf-16"),
    export([row(1, CallerName="Å")]).decode().encode("cp1252"),
]
EXPORTS = [b"=1+1|+4930123|-x|@a|\t|\r\n|'", '"|,""|"],["|\\"|\\\\|\\u0041|\x01\x7fé'.encode()]
CONFIGS = [
    EXAMPLE_CONFIG.read_bytes(),
    b'[[pbx]]\nname = "hq"\npeers = ["127.0.0.1", "::1/64"]\n',
    b'pbx = [{events = {kind = "tcp", address = "a:1", username = "api", password_file = "x"}}]\n',
    b"[a]\nb = [[1], {c = 1979-05-27T07:32:00Z}]\n",
]
