"""A day in half an hour: all ways in, all that breaks, all that asks; what is lost, and what grows.

The promise beside those of the other faults: memory and descriptors are flat.
"""

import asyncio
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from random import Random

from cdrd.address import format_address
from cdrd.simulate.history import History
from cdrd.simulate.p_series import PSeriesApi
from cdrd.simulate.pbx import SimulatedPBX
from cdrd.simulate.play import PlayingPBX
from cdrd.simulate.posting import PostingPBX, Registration, Target, WebhookPBX
from cdrd.simulate.subscribed import SubscribedPBX
from cdrd.simulate.web_api import WebServer
from tests.faults.company import Calls, Connecting, Played, Posting, Reporter, be_a_nuisance
from tests.faults.outcome import Outcome, compare
from tests.faults.watch import SoakedDaemon, Watch
from tests.running import Line, assert_accounted, rows

CONNECTING = ("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5")
SHARE = 10**8
"""The numbers that each PBX has for its calls."""

PURGED = "2010-01-01"
LONG_AGO = 1_000_000_000  # in 2001

LONG_SECONDS = 300
"""Before that, caches are still being filled."""

TABLES = """http.listen = ["127.0.0.1:0"]
[[pbx]]
name = "hq"
peers = ["127.0.0.2/31", "127.0.0.4/31"]
[[pbx]]
name = "dialled"
events = {{ kind = "tcp", address = "{dialled}", username = "api", password_file = "password" }}
[[pbx]]
name = "subscribed"
[pbx.events]
kind = "websocket"
address = "{subscribed}"
tls = false
username = "api"
password_file = "password"
[[pbx]]
name = "posting"
peers = ["127.0.0.1"]
[[pbx]]
name = "webhook"
peers = ["127.0.0.1"]
events = {{ kind = "webhook", secret_file = "password", path = "/cloud" }}
"""


def soak(seconds: int, seed: int = 1) -> Outcome:
    """Report for so long; what grows is told where that is long enough to tell."""
    with tempfile.TemporaryDirectory(prefix="cdrd-soak-") as directory:
        return asyncio.run(_soak(Path(directory), seconds, Random(seed)))


async def _soak(directory: Path, seconds: int, choose: Random) -> Outcome:
    began = time.monotonic()
    (directory / "password").write_text("api\n")
    async with _dialled_pbxs() as (dialled, subscribed, tables):
        with SoakedDaemon(directory, tables) as daemon:
            tcp, http = await asyncio.to_thread(lambda: daemon.ports)
            played = _played(dialled, subscribed, choose)
            *reporters, old = [*_connecting(tcp, choose), *played, *_posting(http, choose)]
            with Watch(daemon) as watch:
                await _report([*reporters, old], daemon, seconds, choose)
            await _cdrd(daemon, "purge", "--before", PURGED)
            _, stopped = await asyncio.to_thread(daemon.stop)
    kept = {number for reporter in reporters for number in reporter.calls.numbers}
    _check(daemon, stopped, len(kept) + len(old.calls.numbers))
    broken = watch.grown if seconds >= LONG_SECONDS else ()
    return compare(daemon.database, kept, began)._replace(remark=watch.remark, broken=broken)


@contextlib.asynccontextmanager
async def _dialled_pbxs() -> AsyncIterator[tuple[PlayingPBX, PlayingPBX, str]]:
    """Begin two PBXs that the daemon connects to; give them, and the tables of all."""
    dialled, subscribed = SimulatedPBX(), SubscribedPBX()
    api = WebServer(PSeriesApi(("api", "api"), History(), subscribed).app())
    await dialled.start()
    await api.start()
    addresses = format_address(*dialled.address), format_address(*api.address)
    try:
        yield dialled, subscribed, TABLES.format(dialled=addresses[0], subscribed=addresses[1])
    finally:
        await dialled.close()
        await subscribed.close()
        await api.close()


# Some 500 reports a second in all: those that connect pause between their connections.


def _connecting(port: int, choose: Random) -> list[Reporter]:
    calls = Calls(0)
    return [Connecting(calls, 130, choose, port=port, at=address) for address in CONNECTING]


def _played(dialled: PlayingPBX, subscribed: PlayingPBX, choose: Random) -> list[Reporter]:
    return [
        Played(Calls(SHARE), 90, choose, dialled),
        Played(Calls(2 * SHARE), 60, choose, subscribed),
    ]


def _posting(port: int, choose: Random) -> list[Reporter]:
    """Make PBXs that post; the calls of the last one are long ago."""
    plain, signing, late = PostingPBX("1.0.2"), WebhookPBX("api"), PostingPBX("2.0.0")
    for pbx, path in ((plain, "/"), (signing, "/cloud"), (late, "/")):
        pbx.register(Registration(Target("127.0.0.1", port, path), pbx.dialect))
    return [
        Posting(Calls(3 * SHARE), 50, choose, plain),
        Posting(Calls(4 * SHARE), 50, choose, signing),
        Posting(Calls(5 * SHARE, LONG_AGO), 10, choose, late),
    ]


async def _report(
    reporters: Sequence[Reporter], daemon: SoakedDaemon, seconds: int, choose: Random
) -> None:
    """Have all report, with nuisances and commands between, and at last what may be missing."""
    end = asyncio.get_running_loop().time() + seconds
    async with asyncio.TaskGroup() as tasks:
        for reporter in reporters:
            tasks.create_task(reporter.report(end))
        tasks.create_task(be_a_nuisance(daemon.ports, end, choose))
        tasks.create_task(_command(daemon, seconds, end))
    for reporter in reporters:
        await reporter.report_the_rest()


async def _command(daemon: SoakedDaemon, seconds: int, end: float) -> None:
    """Reload, purge, back up and read the log slowly, by turns."""
    good, turn = daemon.config.read_text(), 0
    async for _ in _every(max(1, seconds / 300), end):
        turn += 1
        match turn % 6:
            case 1 | 2:
                _reload(daemon, f'{good}[[pbx]]\nname = "new{turn}"\n')
            case 3:
                _reload(daemon, f"{good}[[pbx]\n")
            case 4:
                _reload(daemon, good)
                await _cdrd(daemon, "purge", "--before", PURGED)
            case 5:
                daemon.read_slowly.set()
            case _ if turn % 60 == 6:
                await _cdrd(daemon, "backup", str(daemon.directory / "copy"), "--force")
            case _:
                pass
    _reload(daemon, good)  # the last may have been broken


async def _every(seconds: float, end: float) -> AsyncIterator[None]:
    clock = asyncio.get_running_loop().time
    while clock() + seconds < end:
        await asyncio.sleep(seconds)
        yield


def _reload(daemon: SoakedDaemon, text: str) -> None:
    aside = daemon.directory / "aside"
    aside.write_text(text)
    aside.replace(daemon.config)
    daemon.process.send_signal(signal.SIGHUP)


async def _cdrd(daemon: SoakedDaemon, *arguments: str) -> None:
    """Run a command beside the daemon."""
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cdrd", *arguments, "-c", str(daemon.config)),
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await command.communicate()
    assert command.returncode == 0, said


def _check(daemon: SoakedDaemon, stopped: Line, reported: int) -> None:
    """Hold what the daemon has counted and logged to what was reported."""
    assert_accounted(stopped)
    assert stopped["stored"] == reported, (stopped, reported)
    assert min(stopped[kind] for kind in ("duplicate", "quarantined", "passed_over")) > 0, stopped
    # Each row was logged once, those too that are purged by now.
    assert [count for count in daemon.logged if count] == [1] * reported
    kept = rows(daemon.database, "SELECT seq FROM calls")
    assert all(daemon.logged[seq] for (seq,) in kept)
    assert not rows(daemon.database, f"SELECT seq FROM calls WHERE started_at < '{PURGED}'")
    for event in (
        "reloaded",
        "reload_refused",
        "peer_refused",
        "request_refused",
        "pbx_disconnected",
    ):
        assert daemon.found(event), event
    assert not daemon.found("fault_caught"), daemon.found("fault_caught")
