"""Each family of PBX, by each way in that it has: the same call becomes the same row.

The real simulator plays the same calls, by number, as every PBX of the facts page's first table,
into one real daemon. What a dialect cannot say is listed here by name, so that one thing more that
went missing on its way would be seen.
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import quick_serve
from tests.running import DEADLINE_SECONDS, RunningDaemon, assert_accounted, rows
from tests.simulated import SimulatedPbx

CALLS = 120
OFFSET = 480
"""Minutes, in the zone of ``TABLES``."""

Row = dict[str, Any]


class Way(NamedTuple):
    """How calls come: by which simulated PBX, and what they cannot tell by it."""

    source: str
    kind: str  # of ``cdrd simulate pbx``; empty: ``load``, a relay
    dialect: str = ""
    api: str = ""  # the path of the version that history is asked from
    lacks: frozenset[str] = frozenset()
    silent_zero: bool = False  # 1.x leaves out what has no value, and 0 seconds are none to it


OLDEST = frozenset(("did_number", "agent_ring_time", "pbx_serial"))
NO_RING = frozenset(("agent_ring_time",))
REST = frozenset(("recording", "pbx_serial"))

WAYS = {
    "dialled": Way("dial", "tcp"),
    "posts 1.0.0": Way("http", "http", "1.0.0", lacks=OLDEST),
    "posts 1.0.1": Way("http", "http", "1.0.1", lacks=OLDEST),
    "posts 1.0.2": Way("http", "http", "1.0.2", silent_zero=True),
    "posts 2.0.0": Way("http", "http", "2.0.0"),
    "posts of OpenVox": Way("http", "http", "openvox", silent_zero=True),
    "posts of a Cloud PBX": Way("http", "cloud", "2.0.0"),
    "WebSocket": Way("websocket", "websocket"),
    "webhook": Way("webhook", "webhook"),
    "history 1.1.0": Way("history", "tcp", api="/api/v1.1.0", lacks=NO_RING),
    "history 2.0.0": Way("history", "tcp", api="/api/v2.0.0", lacks=NO_RING),
    "history of a Cloud PBX": Way("history", "cloud", api="/api/v2.0.0", lacks=NO_RING),
    "history P-Series": Way("history", "websocket", api="/openapi/v1.0", lacks=REST),
    "relayed 1.0.0": Way("tcp", "", "1.0.0", lacks=OLDEST),
    "relayed 1.0.1": Way("tcp", "", "1.0.1", lacks=OLDEST),
    "relayed 1.0.2": Way("tcp", "", "1.0.2", silent_zero=True),
    "relayed 2.0.0": Way("tcp", "", "2.0.0"),
    "relayed OpenVox": Way("tcp", "", "openvox", silent_zero=True),
    "relayed P-Series": Way("tcp", "", "p-series"),
}
REFERENCE = "relayed 2.0.0"

FAMILIES = {
    "S-Series 1.0.0": ["posts 1.0.0"],
    "S-Series 1.0.1": ["posts 1.0.1"],
    "S-Series 1.0.2": ["posts 1.0.2", "history 1.1.0"],
    "S-Series 2.0.0": ["posts 2.0.0", "dialled", "history 2.0.0"],
    "K2": ["posts 1.0.2", "posts 2.0.0", "dialled", "history 1.1.0", "history 2.0.0"],
    "Cloud PBX": ["posts of a Cloud PBX", "history of a Cloud PBX"],
    "P-Series": ["WebSocket", "webhook", "history P-Series"],
    "OpenVox": ["posts of OpenVox"],
    "relay": [name for name in WAYS if name.startswith("relayed")],
}

OF_THE_WAY = ("seq", "pbx", "source", "received_at", "raw", "cdr_id")
"""Columns in which rows of the same call may differ."""

HEAD = """
[http]
listen = ["127.0.0.1:0"]
[[pbx]]
name = "relay"
timezone = "Asia/Shanghai"
peers = ["127.0.0.1"]
"""
PBX = """
[[pbx]]
name = "{name}"
timezone = "Asia/Shanghai"
peers = ["127.0.0.1"]
[pbx.events]
kind = "{kind}"
"""
ACCOUNT = 'username = "api"\npassword_file = "password"\n'


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, dict[int, Row]]:
    """Play on every way; return each way's rows, by the number of their call."""
    directory = tmp_path_factory.mktemp("families")
    (directory / "password").write_text("api\n")
    played = {name: way for name, way in WAYS.items() if way.kind}
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        stack.callback(pool.shutdown)
        dialled = {name: way for name, way in played.items() if way.kind != "webhook"}
        pbxs = dict(zip(dialled, pool.map(simulated, dialled.values()), strict=True))
        for pbx in pbxs.values():
            stack.enter_context(pbx)
        settings = "".join(table(name, way, pbxs.get(name)) for name, way in played.items())
        serve = [sys.executable, quick_serve.__file__]
        daemon = stack.enter_context(RunningDaemon(directory, HEAD + settings, inside=serve))
        tcp, http = daemon.ports
        url = f"http://127.0.0.1:{http}{path_of('webhook')}"
        posting = ("--post-to", url, "--secret-file", directory / "password")
        stack.enter_context(simulated(WAYS["webhook"], *posting))
        relayed = [way for way in WAYS.values() if not way.kind]
        list(pool.map(lambda place: relay(tcp, relayed[place], place + 1), range(len(relayed))))
        daemon.wait_for_calls(CALLS * len(WAYS))
        stored = [dict(row) for row in rows(daemon.database)]
        assert rows(daemon.database, "SELECT * FROM quarantine") == []
        _, stopped = daemon.stop()
    assert stopped["events"]["message"] == 1  # with which the webhook's page tries it
    assert_accounted(stopped)
    found: dict[str, dict[int, Row]] = {name: {} for name in WAYS}
    relays = [name for name, way in WAYS.items() if not way.kind]
    for row in stored:
        number = int(row["call_id"].partition(".")[2])
        name = relays[number // 1000 - 1] if row["pbx"] == "relay" else row["pbx"]
        found[name][number % 1000] = row
    return found


def simulated(way: Way, *more: str | Path) -> SimulatedPbx:
    unpushed = ("--unpushed-every", "1") if way.api else ()
    dialect = ("--dialect", way.dialect) if way.dialect else ()
    play = ("--count", f"{CALLS}", "--rate", "0", "--utc-offset", f"{OFFSET}", "--events", "1")
    return SimulatedPbx(*play, *unpushed, *dialect, *more, kind=way.kind)


def relay(port: int, way: Way, place: int) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "cdrd", "simulate", "load", f"127.0.0.1:{port}"),
            *("--count", f"{CALLS}", "--connections", "1", "--events", "1"),
            *("--dialect", way.dialect, "--first", f"{1000 * place}"),
            *("--utc-offset", f"{OFFSET}"),
        ],
        check=True,
        capture_output=True,
        timeout=DEADLINE_SECONDS,
    )


def path_of(name: str) -> str:
    return "/" + name.replace(" ", "-")


def table(name: str, way: Way, pbx: SimulatedPbx | None) -> str:
    kind = "http" if way.kind == "cloud" else way.kind
    written = PBX.format(name=name, kind=kind)
    if kind in ("http", "webhook"):
        written += f'path = "{path_of(name)}"\n'
    if pbx is None:
        return written + 'secret_file = "password"\n'
    written += ACCOUNT
    if way.kind == "tcp":
        written += f'address = "{pbx.address}"\n'
    else:
        written += f'address = "{pbx.url.removeprefix("http://")}"\ntls = false\n'
    if way.api:
        written += f'[pbx.history]\nurl = "{pbx.url}{way.api}"\ninterval = 0.3\n' + ACCOUNT
    return written


def told(row: Row) -> Row:
    """What a row says of its call: without the way it came, and as if all had begun at once."""
    said = {name: value for name, value in row.items() if name not in OF_THE_WAY}
    began = datetime.fromisoformat(said.pop("started_at"))
    local = (began + timedelta(minutes=OFFSET)).replace(tzinfo=None)
    assert said.pop("started_local") == f"{local}"
    call_id = said.pop("call_id")
    assert call_id.startswith(f"{began.timestamp():.0f}.")
    if said["recording"] is not None:
        stamp = f"{local:%Y%m%d%H%M%S}-{call_id}-"
        assert said["recording"].startswith(stamp)
        said["recording"] = said["recording"].removeprefix(stamp)
    return said


def expected(row: Row, way: Way) -> Row:
    said = told(row) | dict.fromkeys(way.lacks)
    if way.silent_zero and said["agent_ring_time"] == 0:
        said["agent_ring_time"] = None
    return said


def family_ways() -> Iterator[tuple[str, str]]:
    return ((family, name) for family, names in FAMILIES.items() for name in names)


@pytest.mark.parametrize(("family", "name"), list(family_ways()))
def test_a_call_is_the_same_row_by_whichever_way_it_comes(
    calls: Mapping[str, dict[int, Row]], family: str, name: str
) -> None:
    way, reference = WAYS[name], calls[REFERENCE]
    assert calls[name].keys() == reference.keys() == set(range(CALLS)), family
    assert {row["source"] for row in calls[name].values()} == {way.source}
    for number, row in calls[name].items():
        assert told(row) == expected(reference[number], way), (family, number)


def test_every_way_in_belongs_to_a_family() -> None:
    assert {name for _, name in family_ways()} == WAYS.keys()


def test_the_call_that_is_compared_with_says_all_that_a_row_can_hold(
    calls: Mapping[str, dict[int, Row]],
) -> None:
    said = [told(row) for row in calls[REFERENCE].values()]
    for name in said[0]:
        assert any(row[name] not in (None, 0) for row in said), name
