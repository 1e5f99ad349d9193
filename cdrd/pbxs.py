"""Turns the ``[[pbx]]`` tables into what makes each PBX report to us, also while they change.

The rule that must stay true: a PBX whose table has not changed is not touched; its connections stay
and what is known of its gaps does too.
"""

import asyncio
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cdrd.background import Background
from cdrd.config import Config, Events, History, Pbx
from cdrd.dial import Dialer
from cdrd.gap_watch import Pace
from cdrd.gaps import Asked, GapFollower
from cdrd.intake import Intake
from cdrd.kept import Passed
from cdrd.log import Logger
from cdrd.login_guard import LoginFile, LoginGuard, accounts_of
from cdrd.pbx_api import account_of, base_of, family_of, trust_of
from cdrd.store import Store
from cdrd.writer import Writer

if TYPE_CHECKING:
    from cdrd.p_series import PSeriesApi
    from cdrd.register import Registration
    from cdrd.s_series import SSeriesApi
    from cdrd.subscribe import Subscription


class Changes(NamedTuple):
    """What has become of the tables, by the names of the PBXs."""

    added: list[str]
    changed: list[str]
    removed: list[str]


@dataclass(slots=True)
class _Link:
    """What one PBX has running."""

    pbx: Pbx
    guard: LoginGuard
    held: "Dialer | Registration | Subscription | None" = None
    subscription: "Subscription | None" = None  # the same, where it is one
    api: "SSeriesApi | PSeriesApi | None" = None  # of what is held
    follower: GapFollower | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Pbxs:
    """All configured PBXs; told of their connections, it tells those who close their gaps."""

    def __init__(
        self,
        config_path: Path,
        *,
        store: Store,
        intake: Intake,
        writer: Writer,
        log: Logger,
        background: Background,
        pace: Pace | None = None,
    ) -> None:
        self._config_path = config_path
        self._store = store
        self._intake = intake
        self._writer = writer
        self._log = log
        self._background = background
        self._pace = pace
        self._links: dict[str, _Link] = {}

    def make(self, config: Config, http_port: int) -> list[_Link]:
        """Make what is new or has changed, without a change to what runs.

        ``http_port``: where those post to that we tell to.
        """
        links = self._links
        changed = [p for p in config.pbx if p.name not in links or links[p.name].pbx != p]
        return [self._make(pbx, http_port) for pbx in changed]

    async def apply(
        self, config: Config, made: list[_Link], passed: Passed | None = None
    ) -> Changes:
        """Begin what was made, end what is gone or what it stands for.

        ``passed``: what was kept for us.
        """
        wanted = {pbx.name: pbx for pbx in config.pbx}
        gone = [name for name, link in self._links.items() if wanted.get(name) != link.pbx]
        await asyncio.gather(*(self._end(self._links.pop(name)) for name in gone))
        for link in made:
            self._links[link.pbx.name] = link
            self._begin(link, passed)
        begun = [link.pbx.name for link in made]
        return Changes(
            added=[name for name in begun if name not in gone],
            changed=[name for name in begun if name in gone],
            removed=[name for name in gone if name not in wanted],
        )

    async def end(self) -> None:
        """End everything; a logout that fails must not keep what was received from its commit."""
        ending = (self._end(link) for link in self._links.values())
        await asyncio.gather(*ending, return_exceptions=True)

    def broke(self, pbx: str) -> None:
        """Take note that reports of a PBX may be missing from now on."""
        link = self._links.get(pbx)
        if link is not None and link.follower is not None:
            link.follower.broke()

    def mended(self, pbx: str) -> None:
        """Take note that reports of a PBX come again."""
        link = self._links.get(pbx)
        if link is not None and link.follower is not None:
            link.follower.mended()

    def missed(self, pbx: str) -> None:
        """Take note that reports of a PBX may be missing until now."""
        link = self._links.get(pbx)
        if link is not None and link.follower is not None:
            link.follower.missed()

    def reopened(self) -> None:
        """Take note that the database may be an older one, before it stores anything."""
        for link in self._links.values():
            if link.follower is not None:
                link.follower.reopened()

    @property
    def held(self) -> dict[str, bool]:
        """For each PBX that we connect to, whether it is connected."""
        links = self._links.items()
        return {name: link.held.connected for name, link in links if link.held is not None}

    @property
    def subscriptions(self) -> "list[Subscription]":
        """The WebSockets that are held."""
        links = self._links.values()
        return [link.subscription for link in links if link.subscription is not None]

    def _make(self, pbx: Pbx, http_port: int) -> _Link:
        guard = LoginGuard(
            LoginFile(self._store.path),
            accounts_of(pbx),
            suspended=partial(_say_suspended, self._log, pbx),
            uncounted=partial(_say_uncounted, self._log, pbx),
        )
        link = _Link(pbx, guard)
        match pbx.events:
            case Events(kind="tcp") as events:
                link.held = self._dialer(pbx, events, guard)
            case Events(kind="http") as events:
                self._register(link, events, http_port)
            case Events(kind="websocket") as events:
                self._subscribe(link, events)
        if pbx.history is not None:
            link.follower = self._follower(link, pbx.history)
        return link

    def _begin(self, link: _Link, passed: Passed | None) -> None:
        if passed is not None and isinstance(link.held, Dialer):
            link.held.adopt(passed)
        for running in (link.held, link.follower):
            if running is not None:
                link.tasks.append(self._background.start(running.run()))

    async def _end(self, link: _Link) -> None:
        await self._background.end(link.tasks)
        if link.api is not None:
            await link.api.close()

    def _dialer(self, pbx: Pbx, events: Events, guard: LoginGuard) -> Dialer:
        return Dialer(
            pbx.sender(),
            events.address,
            account_of(events, self._config_path),
            intake=self._intake,
            log=self._log,
            guard=guard,
        )

    def _register(self, link: _Link, events: Events, port: int) -> None:
        # Here and below: an HTTP library, whose import takes a third of a second.
        from cdrd.register import Registration  # noqa: PLC0415
        from cdrd.s_series import Announced, SSeriesApi  # noqa: PLC0415

        api = link.api = SSeriesApi(
            base_of(events),
            account_of(events, self._config_path),
            trust_of(events, self._config_path),
            link.guard,
            announced=Announced(port, events.path or "/"),
        )
        link.held = Registration(link.pbx.name, api, intake=self._intake, log=self._log)

    def _subscribe(self, link: _Link, events: Events) -> None:
        from cdrd.p_series import PSeriesApi  # noqa: PLC0415
        from cdrd.subscribe import Subscription  # noqa: PLC0415

        api = link.api = PSeriesApi(
            base_of(events),
            account_of(events, self._config_path),
            trust_of(events, self._config_path),
            link.guard,
        )
        subscription = Subscription(link.pbx.sender(), api, intake=self._intake, log=self._log)
        link.held = link.subscription = subscription

    def _follower(self, link: _Link, history: History) -> GapFollower:
        async def open_api() -> "SSeriesApi | PSeriesApi":
            from cdrd.history_api import open_history  # noqa: PLC0415 - as in _register

            return await open_history(
                history.url,
                account_of(history, self._config_path),
                trust_of(history, self._config_path),
                link.guard,
                family_of(link.pbx.events),
                held=link.api,
            )

        return GapFollower(
            Asked(link.pbx.sender(), history.url, history.interval),
            open_api,
            store=self._store,
            writer=self._writer,
            log=self._log,
            pace=self._pace,
        )


def _say_suspended(log: Logger, pbx: Pbx, seconds: float) -> None:
    address = (pbx.events and pbx.events.address) or (pbx.history and pbx.history.url)
    log.error(
        "login_suspended",
        pbx=pbx.name,
        address=address,
        seconds=round(seconds),
        advice="the PBX locks the account at the fifth refusal: mend username or password",
    )


def _say_uncounted(log: Logger, pbx: Pbx, error: OSError) -> None:
    log.warning("refusal_not_stored", pbx=pbx.name, error=str(error))
