"""A web API that answers as it is told, for what no PBX, played or real, does when it is well."""

import asyncio
import contextlib
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson
from aiohttp import web

from cdrd.batch import Waiting
from cdrd.intake import Intake
from cdrd.log import Logger
from cdrd.login_guard import LoginFile, LoginGuard
from cdrd.pbx_api import Account
from cdrd.sizes import KIB, MIB
from cdrd.stream import Totals

Json = dict[str, Any]
Answer = Json | bytes | web.Response | Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

SECRET = "pass5678"
ACCOUNT = Account("api", lambda: SECRET)


@dataclass
class Asked:
    """One request that came."""

    path: str
    query: dict[str, str]
    body: Json
    agent: str


@dataclass
class FakePbx:
    """Answers by path; of several answers each is given once, the last one from then on."""

    answers: dict[str, list[Answer]]
    base: str = ""
    asked: list[Asked] = field(default_factory=list)

    def asked_for(self, path: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.path == path]

    @property
    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]

    @property
    def times(self) -> Counter[str]:
        return Counter(self.paths)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        self.asked.append(
            Asked(
                request.path,
                dict(request.query),
                orjson.loads(body) if body else {},
                request.headers.get("User-Agent", ""),
            )
        )
        answers = self.answers.get(request.path)
        if not answers:
            return web.Response(status=404, text="nothing here")
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, dict):
            return web.Response(body=orjson.dumps(answer))
        if isinstance(answer, bytes):
            return web.Response(body=answer)
        if isinstance(answer, web.Response):  # one can be sent once only
            return web.Response(status=answer.status, text=answer.text, headers=answer.headers)
        return await answer(request)


@contextlib.asynccontextmanager
async def fake_pbx(
    answers: dict[str, Answer | list[Answer]], context: ssl.SSLContext | None = None
) -> AsyncIterator[FakePbx]:
    pbx = FakePbx({path: list(_listed(answer)) for path, answer in answers.items()})
    server = web.Server(pbx.answer)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port = runner.addresses[0][1]
    pbx.base = f"{'https' if context else 'http'}://127.0.0.1:{port}"
    try:
        yield pbx
    finally:
        await runner.cleanup()


def _listed(answer: Answer | list[Answer]) -> list[Answer]:
    return answer if isinstance(answer, list) else [answer]


async def hang(_: web.BaseRequest) -> web.StreamResponse:
    """Never answer."""
    await asyncio.Event().wait()
    raise AssertionError


class Suspended(Exception):
    """A login would have had to wait."""


NOWHERE = Path("/nowhere/cdr.sqlite3")


def a_guard(database: Path = NOWHERE) -> LoginGuard:
    """A guard that raises Suspended where the daemon would wait; nowhere, it counts alone."""

    def suspended(seconds: float) -> None:
        raise Suspended(str(seconds))

    def uncounted(error: OSError) -> None:
        assert error.filename == f"{database}.logins"

    accounts = frozenset(("api@h:8088",))
    return LoginGuard(LoginFile(database), accounts, suspended=suspended, uncounted=uncounted)


class Heard:
    """A log whose lines are kept, and can be waited for."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, Json]] = []
        self._more = asyncio.Event()

    def bind(self, **_: str) -> "Heard":
        return self

    def say(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))
        self._more.set()

    debug = info = warning = error = say

    async def wait_for(self, event: str, times: int = 1) -> Json:
        """Wait until an event was logged so often; return its fields."""
        while len(found := [fields for said, fields in self.lines if said == event]) < times:
            self._more.clear()
            async with asyncio.timeout(10):
                await self._more.wait()
        return found[times - 1]

    @property
    def events(self) -> list[str]:
        return [event for event, _ in self.lines]


class Gaps:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def broke(self, pbx: str) -> None:
        self.told.append(f"{pbx} broke")

    def mended(self, pbx: str) -> None:
        self.told.append(f"{pbx} mended")

    def missed(self, pbx: str) -> None:
        self.told.append(f"{pbx} missed")


class Unwritten:
    """A writer that writes nothing: what is received stays waiting."""

    def wake(self) -> None:
        pass


def an_intake(heard: Heard, gaps: Gaps, *, waiting_bytes: int = MIB) -> Intake:
    intake = Intake(
        Waiting(waiting_bytes), Totals(), log=cast(Logger, heard), max_report_bytes=64 * KIB
    )
    intake.feed(Unwritten())
    intake.tell_gaps(gaps)
    return intake


@contextlib.asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Run it meanwhile; what ends by itself has failed."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
