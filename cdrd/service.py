"""Turns a configuration into all that receives, stores and tells, and a new one into its changes.

The rule that must stay true: what has not changed in the configuration is not touched, a
configuration that cannot be used changes nothing, and an end commits what was received.
"""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cdrd import drain, purge
from cdrd.background import Background
from cdrd.batch import Waiting
from cdrd.beside import Beside
from cdrd.clock import ClockWatch
from cdrd.config import (
    Config,
    Portal,
    load_config,
    missing_packages,
    read_secret,
)
from cdrd.control import remove_control, serve_control
from cdrd.door import Door, entrances
from cdrd.exits import ConfigError
from cdrd.gap_watch import Pace
from cdrd.http_listen import ANSWER_SECONDS, Bounds, HttpConnections
from cdrd.intake import Intake, read_out
from cdrd.kept import RESTS, Keeper, Passed
from cdrd.listen import Listener, cannot_listen
from cdrd.log import LineWriter, Logger, set_level
from cdrd.pbxs import Pbxs
from cdrd.sender import Sender
from cdrd.silence import SilenceWatch
from cdrd.sizes import MIB
from cdrd.source import DIAL, HTTP, TCP, WEBSOCKET
from cdrd.store import Store
from cdrd.stream import Totals
from cdrd.tls import load_certificate, server_context
from cdrd.writer import Writer

if TYPE_CHECKING:
    from cdrd.metrics import MetricsServer, State

WAITING_BYTES: Final = 4 * MIB
"""What may wait for the writer before reading pauses: some 5,000 records.

With 8 MiB the rate was 9 % lower, and with 2.5 MiB 12 %.
"""

STALLED_SECONDS: Final = 20.0
"""Something waiting for longer than this without a commit is a writer that makes no progress."""

AT_A_RESTART: Final = (
    "database.path",
    "database.durability",
    "tcp.listen",
    "http.listen",
    "tls",
    "log.format",
    "log.numbers",
    "metrics.listen",
)
"""The settings that a reload leaves as they were."""


class Prepared(NamedTuple):
    """A configuration with what its files hold, all of it usable."""

    config: Config
    senders: list[Sender]
    doors: list[Door]


def prepare(config: Config, config_path: Path) -> Prepared:
    """Read what a configuration names. Raises ConfigError."""
    if missing := missing_packages(config):
        raise ConfigError("\n".join(f"{config_path}: {sentence}" for sentence in missing))
    senders = [pbx.sender() for pbx in config.pbx]
    return Prepared(config, senders, [pbx.door(config_path) for pbx in config.pbx])


class Service:
    """All that runs while the daemon serves; begun, changed and ended in order."""

    def __init__(
        self,
        prepared: Prepared,
        config_path: Path,
        *,
        store: Store,
        log: Logger,
        lines: LineWriter,
        totals: Totals,
        keeper: Keeper,
        pace: Pace | None = None,
    ) -> None:
        """Make what is needed; nothing is received yet. Raises ConfigError."""
        config, senders, doors = prepared
        self._config = self._begun_with = config
        self._config_path = config_path
        self._senders = senders
        self._store = store
        self._log = log
        self._lines = lines
        self._totals = totals
        self._stopping = False
        self._waiting = Waiting(WAITING_BYTES)
        self._tls = server_context(config.tls, config_path)
        self.background = Background()
        self._intake = Intake(
            self._waiting,
            totals,
            log=log,
            max_report_bytes=config.tcp.max_report_bytes,
            idle_timeout=config.tcp.idle_timeout,
            keeper=keeper,
        )
        self._keeper = keeper
        self._listener = Listener(self._intake, senders, log, self._tls)
        self._posting = HttpConnections(self._intake, self._listener, entrances(doors), log)
        self._clocks = ClockWatch()
        self.writer = Writer(
            store,
            self._waiting,
            totals,
            log=log,
            lines=lines,
            clocks=self._clocks,
            grouping=config.batch,
            room_made=self._intake.room_made,
        )
        self._intake.feed(self.writer)
        self._drainer = drain.Drainer(
            store,
            self.writer,
            log,
            config.log.numbers,
            reopened=self._reopened,
            look_seconds=drain.LOOK_SECONDS,
        )
        self._pbxs = Pbxs(
            config_path,
            store=store,
            intake=self._intake,
            writer=self.writer,
            log=log,
            background=self.background,
            pace=pace,
        )
        self._intake.tell_gaps(self._pbxs)
        self._silence = SilenceWatch(store.path, log)
        self.writer.when_restored = self._silence.last_calls.read_anew
        self._portals: dict[str, tuple[Portal, asyncio.Task[None]]] = {}
        self._http_port = 0
        self._control: asyncio.Server | None = None
        self._committing: asyncio.Task[None] | None = None
        self._metrics: MetricsServer | None = None

    async def begin(self, passed: Passed) -> None:
        """Open the doors, and go on with what the process before has left. Raises OSError."""
        config, listener = self._config, self._listener
        await self._drainer.begin()
        beside = Beside(
            self._store,
            self.writer,
            senders=lambda: self._senders,
            max_report_bytes=lambda: self._config.tcp.max_report_bytes,
        )
        self._control = await serve_control(self._store.path, beside.work)
        self._committing = asyncio.create_task(self.writer.run())
        self.background.watch(self._committing)
        sockets = passed.listeners
        streaming = await listener.open(
            config.tcp.listen, TCP, listener.accept, sockets.get(TCP, ())
        )
        posting = await listener.open(
            config.http.listen, HTTP, self._posting.accept, sockets.get(HTTP, ())
        )
        self._http_port = posting[0] if posting else 0
        if not (streaming or posting):
            self._say_unheard()
        if config.metrics.listen:
            self._metrics = await _open_metrics(self._state(), config.metrics.listen, self._log)
        self._take(config, self._senders)
        await listener.adopt(passed)
        changes = await self._pbxs.apply(config, self._pbxs.make(config, self._http_port), passed)
        listener.admit(self._senders, changes.added)  # who is connected by now counts as that
        self._give_up(passed)
        await self._follow_portals(config)
        for work in (
            self._intake.drop_idle(),
            self._silence.run(),
            purge.keep_age(self._store, self._log),
            self.writer.calls.run(),
            self._drainer.run(),
        ):
            self.background.start(work)

    async def reload(self) -> None:
        """Take the configuration's file anew; one that cannot be used changes nothing."""
        try:
            new = prepare(load_config(self._config_path), self._config_path)
            config = new.config
            tls = self._tls if config.tls == self._begun_with.tls else None
            if tls is not None:
                server_context(config.tls, self._config_path)
            made = self._pbxs.make(config, self._http_port)
            if tls is not None:
                load_certificate(tls, config.tls, self._config_path)
        except ConfigError as error:
            self._refuse_reload(str(error), "mend the file and reload again")
            return
        except Exception as error:  # noqa: BLE001 - a fault of ours, while all is as it was
            fault = {"message": "a reload could not be prepared", "exception": error}
            asyncio.get_running_loop().call_exception_handler(fault)
            self._refuse_reload(repr(error), "the trace of fault_caught says where it is")
            return
        self._config = config
        self._take(config, new.senders)
        self._posting.admit(entrances(new.doors))
        changes = await self._pbxs.apply(config, made)
        begun = {*changes.added, *changes.changed}
        self._listener.admit(new.senders, begun)
        portals = await self._follow_portals(config)
        self._log.info(
            "reloaded",
            added=changes.added,
            changed=changes.changed,
            removed=changes.removed,
            portals=portals,
        )
        if later := _at_a_restart(self._begun_with, config):
            self._log.warning(
                "restart_needed", settings=later, advice="these take effect at the next start"
            )

    def _refuse_reload(self, error: str, advice: str) -> None:
        advice = f"nothing has changed: {advice}"
        self._log.error("reload_refused", error=error, advice=advice)

    async def end(self) -> None:
        """Accept no more, commit what was received, and close."""
        self._stopping = True
        self.writer.hurry()
        intake, posting = self._intake, self._posting
        if self._control is not None:
            self._control.close()
            remove_control(self._store.path)
        await self._listener.drain()
        self._listener.close()
        connections = len(intake.connections) + len(posting.connections)
        self._log.info("stopping", connections=connections, waiting=len(self._waiting))
        await self._until_roomy()
        await asyncio.gather(intake.drain(), posting.drain(), read_out(self._pbxs.subscriptions))
        intake.hand_over()
        await self._pbxs.end()
        await self.background.end()
        posting.stop()
        await intake.close()
        self.writer.stop()
        if self._committing is not None:
            await self._committing
        await posting.close()
        if self._metrics is not None:
            await self._metrics.close()

    async def _until_roomy(self) -> None:
        """Wait until reading may go on, or until a fault of ours is what keeps it from that."""
        room = asyncio.create_task(self._intake.room.wait())
        either: set[asyncio.Future[Any]] = {room, self.background.fault}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        room.cancel()

    def _say_unheard(self) -> None:
        """Warn of the PBXs that nothing listens for."""
        if unheard := [pbx.name for pbx in self._config.pbx if pbx.only_connects]:
            self._log.warning(
                "no_listener_opened",
                pbxs=unheard,
                advice="enable cdrd.socket, or name an address in tcp.listen or http.listen",
            )

    def _give_up(self, passed: Passed) -> None:
        """Close what was kept of a PBX that is dialled no longer, or otherwise."""
        for name, sock in passed.connections.items():
            self._keeper.forget(name)
            sock.close()
        passed.connections.clear()
        if passed.has_rests:
            self._keeper.forget(RESTS)

    def status(self) -> str:
        """Say in one line how things are."""
        held, totals = self._pbxs.held.values(), self._totals
        return (
            f"{len(self._intake.connections)} connections ({sum(held)} of {len(held)} dialled),"
            f" {totals.stored} stored, {len(self._waiting)} waiting,"
            f" {totals.quarantined} quarantined"
        )

    @property
    def waits(self) -> bool:
        """Whether anything that was received is not kept yet."""
        return len(self._waiting) > 0

    @property
    def stalled(self) -> bool:
        """Whether the writer makes no progress."""
        return self.writer.stalled_seconds >= STALLED_SECONDS

    def _take(self, config: Config, senders: list[Sender]) -> None:
        """Put the settings in force that are only asked for when they are needed."""
        self._senders = senders
        self._store.max_age_days = config.database.max_age_days
        self._clocks.zones = {sender.name: sender.zone for sender in senders}
        self._silence.pbxs = tuple(sender.name for sender in senders)
        self._intake.max_report_bytes = config.tcp.max_report_bytes
        self._intake.idle_timeout = config.tcp.idle_timeout
        self._posting.bounds = Bounds(answer=ANSWER_SECONDS + config.batch.max_delay)
        self.writer.regroup(config.batch)
        set_level(self._lines, config.log.level)

    def _reopened(self) -> None:
        self._pbxs.reopened()
        self._silence.last_calls.read_anew()

    async def _follow_portals(self, config: Config) -> list[str]:
        """Follow the portals that are new or have changed; return their names."""
        wanted = {portal.name: portal for portal in config.portal}
        gone = [name for name, (known, _) in self._portals.items() if wanted.get(name) != known]
        await self.background.end([self._portals.pop(name)[1] for name in gone])
        begun = [name for name in wanted if name not in self._portals]
        if begun:
            # Its driver is an optional package: prepare has seen that it is there.
            from cdrd.portal import PortalFollower  # noqa: PLC0415
        for name in begun:
            portal = wanted[name]
            follower = PortalFollower(
                portal,
                read_password=partial(read_secret, portal.password_file, self._config_path),
                store=self._store,
                writer=self.writer,
                log=self._log,
            )
            self._portals[name] = portal, self.background.start(follower.run())
        return begun

    def _state(self) -> "State":
        """Say where the metrics find each figure."""
        from cdrd.metrics import State  # noqa: PLC0415 - as _open_metrics

        return State(
            totals=self._totals,
            waiting=lambda: len(self._waiting),
            connections=self._connections,
            held=lambda: self._pbxs.held,
            refused=lambda: self._listener.refused,
            last_call=self._last_calls,
            silent=lambda: {pbx: pbx in self._silence.silent for pbx in self._silence.pbxs},
            database=self._store.path,
            sick=self._sick,
            busy=self._busy,
        )

    def _connections(self) -> Mapping[str, int]:
        sources = Counter(connection.stream.source for connection in self._intake.connections)
        posting = len(self._posting.connections)
        subscribed = sum(one.connected for one in self._pbxs.subscriptions)
        return {TCP: 0, DIAL: 0, **sources, HTTP: posting, WEBSOCKET: subscribed}

    def _last_calls(self) -> Mapping[str, float]:
        try:
            found = self._silence.last_calls.until(datetime.now(UTC))
        except sqlite3.Error:
            return {}  # the other figures are asked for all the more
        return {pbx: found[pbx].timestamp() for pbx in self._silence.pbxs if pbx in found}

    def _sick(self) -> str:
        return f"nothing was committed for {STALLED_SECONDS:.0f} s" if self.stalled else ""

    def _busy(self) -> str:
        if self._stopping:
            return "the daemon stops"
        if self._store.damage:
            return "the database is damaged: what is received goes to the spool"
        return "the database does not take records" if self.writer.failing else ""


async def _open_metrics(state: "State", address: str, log: Logger) -> "MetricsServer":
    # Its packages are optional, and take 0.3 s: prepare has seen that they are there.
    from cdrd.metrics import MetricsServer  # noqa: PLC0415

    server = MetricsServer(state)
    try:
        opened = await server.open(address)
    except OSError as error:
        raise cannot_listen("metrics", address, error) from error
    log.info("listener_opened", address=opened, source="metrics", tls=False)
    return server


def _at_a_restart(begun_with: Config, config: Config) -> list[str]:
    """Name the settings that differ from those in force and that only a restart changes."""
    return [name for name in AT_A_RESTART if _value(begun_with, name) != _value(config, name)]


def _value(config: Config, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value
