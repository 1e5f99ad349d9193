"""Turns a configuration into the running daemon, and a signal into an orderly end.

The rule that must stay true: what was received is committed before the end, and the last line,
``stopped``, accounts for all of it.
"""

import asyncio
import contextlib
import os
import signal
import sqlite3
import time
import traceback
from collections import Counter
from collections.abc import Coroutine
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cdrd import __version__, handover, leg_request, purge
from cdrd.batch import Waiting
from cdrd.clock import ClockWatch
from cdrd.config import Config, Events, History, Pbx, read_secret
from cdrd.control import Answer, RequestRefused, remove_control, serve_control
from cdrd.dial import Credentials, Dialer
from cdrd.door import HTTP, entrances
from cdrd.gap_watch import Pace
from cdrd.gaps import Asked, GapFollower, Gaps
from cdrd.http_listen import ANSWER_SECONDS, Bounds, HttpConnections
from cdrd.intake import Intake, read_out
from cdrd.listen import SOURCE as TCP
from cdrd.listen import Listener
from cdrd.log import (
    LineWriter,
    Logger,
    log_calls,
    make_logger,
    number_rule,
    under_journald,
    use_console,
)
from cdrd.login import RefusalGuard
from cdrd.pbx_api import (
    LoginGuard,
    account_of,
    base_of,
    family_of,
    open_history,
    trust_of,
)
from cdrd.quarantine import drop_quarantined, read_quarantine, retry
from cdrd.silence import SilenceWatch, last_calls
from cdrd.store import (
    MIB,
    Store,
    read_progress,
    read_records,
    read_refusals,
    remember_refusal,
    wal_reset_bug,
)
from cdrd.stream import Totals
from cdrd.systemd import Notifier
from cdrd.tls import server_context
from cdrd.writer import Writer

if TYPE_CHECKING:
    from cdrd.metrics import MetricsServer, State
    from cdrd.p_series import PSeriesApi
    from cdrd.register import Registration
    from cdrd.s_series import SSeriesApi
    from cdrd.subscribe import Subscription

WAITING_BYTES: Final = 2 * MIB
"""What may wait for the writer before reading pauses: some 1,600 records.

More gains nothing: with 7,000 records waiting the rate was 15 % lower.
"""

LOG_FLUSH_SECONDS: Final = 2.0
PAGE_ROWS: Final = 1000
STATUS_SECONDS: Final = 5.0
STALLED_SECONDS: Final = 20.0
"""Something waiting for longer than this without a commit is a writer that makes no progress."""


class Daemon:
    """One run of ``cdrd serve``."""

    def __init__(self, config: Config, config_path: Path, pace: Pace | None = None) -> None:
        """Take the configuration; ``pace``: of the fetches of history."""
        self._config = config
        self._pace = pace
        self._config_path = config_path
        self._senders = [pbx.sender() for pbx in config.pbx]
        self._doors = [pbx.door(config_path) for pbx in config.pbx]
        self._tls = server_context(config.tls, config_path)
        self._notifier = Notifier()
        self._totals = Totals()
        self._waiting = Waiting(WAITING_BYTES)
        self._lines = LineWriter(1)
        self._guards: dict[str, LoginGuard] = {}
        self._apis: dict[str, SSeriesApi | PSeriesApi] = {}
        self._subscriptions: list[Subscription] = []
        self._held: list[Dialer | Registration | Subscription] = []
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises StoreUnusable and OSError before it is ready."""
        self._handle_signals()
        path = Path(self._config.database.path)
        store = await Store.open(path, self._config.database.durability)
        try:
            log = await self._begin(store)
            await self._serve(store, log)
            await asyncio.to_thread(self._lines.flush, LOG_FLUSH_SECONDS)
        finally:
            await store.close(self._lines.logged_seq)
        self._say_stopped(log)
        await asyncio.to_thread(self._lines.close, LOG_FLUSH_SECONDS)

    async def _begin(self, store: Store) -> Logger:
        """Begin the log where the last run left it."""
        progress = await store.run(read_progress)
        self._lines.logged_seq = progress.logged_seq
        log = self._make_logger(progress.number_key)
        self._say_started(log, store)
        await self._tell_unlogged(log, store)
        return log

    async def _serve(self, store: Store, log: Logger) -> None:
        intake = Intake(
            self._waiting,
            self._totals,
            log=log,
            max_report_bytes=self._config.tcp.max_report_bytes,
            idle_timeout=self._config.tcp.idle_timeout,
        )
        listener = Listener(intake, self._senders, log, self._tls)
        answer_seconds = ANSWER_SECONDS + self._config.batch.max_delay
        bounds = Bounds(answer=answer_seconds)
        posting = HttpConnections(intake, listener, entrances(self._doors), log, bounds)
        writer = Writer(
            store,
            self._waiting,
            self._totals,
            log=log,
            lines=self._lines,
            clocks=ClockWatch({sender.name: sender.zone for sender in self._senders}),
            grouping=self._config.batch,
            room_made=intake.room_made,
        )
        intake.feed(writer)
        followers = [
            self._follow_history(pbx, pbx.history, store, writer, log)
            for pbx in self._config.pbx
            if pbx.history is not None
        ]
        intake.tell_gaps(Gaps(followers))
        control = await serve_control(store.path, lambda asked: self._work(asked, store, writer))
        committing = asyncio.create_task(writer.run())
        background: list[asyncio.Task[None]] = []
        silence = SilenceWatch(store.path, [sender.name for sender in self._senders], log)
        metrics: MetricsServer | None = None
        try:
            await listener.open(self._config.tcp.listen, TCP, listener.accept)
            ports = await listener.open(self._config.http.listen, HTTP, posting.accept)
            await self._hold_pbxs(store, intake, log, ports)
            if address := self._config.metrics.listen:
                state = self._state(store, writer, intake, posting, listener, silence)
                metrics = await _open_metrics(state, address, log)
            background = [
                asyncio.create_task(work)
                for work in (
                    *(held.run() for held in self._held),
                    *self._follow_portals(store, writer, log),
                    *(follower.run() for follower in followers),
                    intake.drop_idle(),
                    silence.run(),
                    purge.keep_age(store, log, self._config.database.max_age_days),
                    self._keep_systemd_told(writer, intake),
                )
            ]
            self._notifier.notify("READY=1", "STATUS=ready")
            log.info("ready", pid=os.getpid())
            await self._until_stopped(committing, background)
        finally:
            control.close()
            remove_control(store.path)
            await listener.drain()
            listener.close()
            self._notifier.notify("STOPPING=1", "STATUS=committing what was received")
            connections = len(intake.connections) + len(posting.connections)
            log.info("stopping", connections=connections, waiting=len(self._waiting))
            await asyncio.gather(intake.drain(), posting.drain(), read_out(self._subscriptions))
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await asyncio.gather(*(api.close() for api in self._apis.values()))
            posting.stop()
            await intake.close()
            writer.stop()
            await committing
            await posting.close()
            if metrics is not None:
                await metrics.close()

    def _state(
        self,
        store: Store,
        writer: Writer,
        intake: Intake,
        posting: HttpConnections,
        listener: Listener,
        silence: SilenceWatch,
    ) -> "State":
        """Say where the metrics find each figure."""
        from cdrd.metrics import State  # noqa: PLC0415 - as _open_metrics

        def connections() -> dict[str, int]:
            counts = Counter(connection.stream.source for connection in intake.connections)
            subscribed = sum(subscription.connected for subscription in self._subscriptions)
            return {**counts, HTTP: len(posting.connections), "websocket": subscribed}

        def busy() -> str:
            if self._stop.is_set():
                return "the daemon stops"
            return "the database does not take records" if writer.failing else ""

        stalled = f"nothing was committed for {STALLED_SECONDS:.0f} s"
        pbxs = [sender.name for sender in self._senders]
        return State(
            totals=self._totals,
            waiting=lambda: len(self._waiting),
            connections=connections,
            held=lambda: {held.pbx: held.connected for held in self._held},
            refused=lambda: listener.refused,
            last_call=lambda: {
                pbx: began.timestamp()
                for pbx, began in last_calls(store.path, pbxs, datetime.now(UTC)).items()
            },
            silent=lambda: {pbx: pbx in silence.silent for pbx in pbxs},
            database=store.path,
            sick=lambda: stalled if writer.stalled_seconds >= STALLED_SECONDS else "",
            busy=busy,
        )

    def _say_stopped(self, log: Logger) -> None:
        """Account for everything received: the last line of a run."""
        totals = self._totals
        log.info(
            "stopped",
            received=totals.received,
            stored=totals.stored,
            duplicate=totals.duplicate,
            quarantined=totals.quarantined,
            passed_over=totals.passed_over,
            events=dict(totals.events.most_common()),
        )

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._begin_to_stop)

    def _begin_to_stop(self) -> None:
        self._lines.release()
        self._stop.set()

    def _make_logger(self, number_key: bytes) -> Logger:
        settings = self._config.log
        log = make_logger(
            self._lines,
            console=use_console(settings.format),
            journal=under_journald(os.environ),
            level=settings.level,
            number_rule=number_rule(settings.numbers, number_key),
        )
        loop = asyncio.get_running_loop()
        # A hang-up would end the process with what it holds.
        loop.add_signal_handler(signal.SIGHUP, _refuse_reload, log)
        loop.set_exception_handler(lambda _, context: _log_fault(log, context))
        return log

    def _say_started(self, log: Logger, store: Store) -> None:
        log.info("started", version=__version__, database=str(store.path))
        if wal_reset_bug(sqlite3.sqlite_version_info):
            log.warning(
                "sqlite_outdated",
                version=sqlite3.sqlite_version,
                advice="readers must open mode=ro: two writers can corrupt the WAL before 3.51.3",
            )

    async def _tell_unlogged(self, log: Logger, store: Store) -> None:
        """Log the rows that were committed before a crash and not told."""
        told = self._lines.logged_seq
        while rows := await store.run(read_records, told, PAGE_ROWS):
            log_calls(log, self._lines, rows)
            told = rows[-1][0]
            if self._stop.is_set():
                return
            if self._lines.full:
                await asyncio.to_thread(self._lines.wait_until_room)

    async def _hold_pbxs(
        self, store: Store, intake: Intake, log: Logger, http_ports: list[int]
    ) -> None:
        """Prepare to hold each PBX that we connect to; all logins to one count together."""
        for pbx in self._config.pbx:
            if pbx.events is None and pbx.history is None:
                continue
            refusals = RefusalGuard(await store.run(read_refusals, pbx.name))
            remember = partial(_remember_refusal, store, log, pbx.name)
            self._guards[pbx.name] = LoginGuard(
                refusals, remember, partial(_say_suspended, log, pbx)
            )
            match pbx.events:
                case Events(kind="tcp") as events:
                    self._held.append(self._dialer(pbx, events, intake, log))
                case Events(kind="http") as events:
                    self._held.append(self._registration(pbx, events, intake, log, http_ports[0]))
                case Events(kind="websocket") as events:
                    self._subscriptions.append(self._subscription(pbx, events, intake, log))
        self._held += self._subscriptions

    def _dialer(self, pbx: Pbx, events: Events, intake: Intake, log: Logger) -> Dialer:
        return Dialer(
            pbx.sender(),
            events.address,
            Credentials(
                events.username, lambda: read_secret(events.password_file, self._config_path)
            ),
            intake=intake,
            log=log,
            guard=self._guards[pbx.name],
        )

    def _registration(
        self, pbx: Pbx, events: Events, intake: Intake, log: Logger, port: int
    ) -> "Registration":
        # Here and below: an HTTP library, whose import takes a third of a second.
        from cdrd.register import Registration  # noqa: PLC0415
        from cdrd.s_series import Announced, SSeriesApi  # noqa: PLC0415

        api = SSeriesApi(
            base_of(events),
            account_of(events, self._config_path),
            trust_of(events, self._config_path),
            self._guards[pbx.name],
            announced=Announced(port, events.path or "/"),
        )
        self._apis[pbx.name] = api
        return Registration(pbx.name, api, intake=intake, log=log)

    def _subscription(
        self, pbx: Pbx, events: Events, intake: Intake, log: Logger
    ) -> "Subscription":
        from cdrd.p_series import PSeriesApi  # noqa: PLC0415
        from cdrd.subscribe import Subscription  # noqa: PLC0415

        api = PSeriesApi(
            base_of(events),
            account_of(events, self._config_path),
            trust_of(events, self._config_path),
            self._guards[pbx.name],
        )
        self._apis[pbx.name] = api
        return Subscription(pbx.sender(), api, intake=intake, log=log)

    def _follow_history(
        self, pbx: Pbx, history: History, store: Store, writer: Writer, log: Logger
    ) -> GapFollower:
        async def open_api() -> "SSeriesApi | PSeriesApi":
            return await open_history(
                history.url,
                account_of(history, self._config_path),
                trust_of(history, self._config_path),
                self._guards[pbx.name],
                family_of(pbx.events),
                held=self._apis.get(pbx.name),
            )

        return GapFollower(
            Asked(pbx.sender(), history.url, self._is_awaited(pbx), history.interval),
            open_api,
            store=store,
            writer=writer,
            log=log,
            pace=self._pace,
        )

    def _is_awaited(self, pbx: Pbx) -> bool:
        """Tell whether a PBX's reports come over a connection, so that without one none come."""
        if pbx.events is not None:
            return pbx.events.kind != "webhook"
        return bool(pbx.peers and self._config.tcp.listen and not self._config.http.listen)

    def _follow_portals(
        self, store: Store, writer: Writer, log: Logger
    ) -> list[Coroutine[Any, Any, None]]:
        if not self._config.portal:
            return []
        # Its driver is an optional package: commands/serve.py has seen that it is there.
        from cdrd.portal import PortalFollower  # noqa: PLC0415

        return [
            PortalFollower(
                portal,
                read_password=partial(read_secret, portal.password_file, self._config_path),
                store=store,
                writer=writer,
                log=log,
            ).run()
            for portal in self._config.portal
        ]

    async def _until_stopped(
        self, committing: asyncio.Task[None], background: list[asyncio.Task[None]]
    ) -> None:
        """Wait for a signal; a task that ends by itself is a fault of ours, and is raised."""
        stop: Coroutine[Any, Any, Any] = self._stop.wait()
        stopping = asyncio.create_task(stop)
        waited: set[asyncio.Task[Any]] = {stopping, committing, *background}
        while not stopping.done():
            ended, waited = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()

    async def _keep_systemd_told(self, writer: Writer, intake: Intake) -> None:
        """Feed the watchdog while the loop turns and the writer makes progress."""
        watchdog = self._notifier.watchdog_seconds
        interval = min(watchdog / 3, STATUS_SECONDS) if watchdog else STATUS_SECONDS
        while True:
            totals = self._totals
            dialled = sum(held.connected for held in self._held)
            status = (
                f"STATUS={len(intake.connections)} connections ({dialled} of {len(self._held)}"
                f" dialled), {totals.stored} stored, {len(self._waiting)} waiting,"
                f" {totals.quarantined} quarantined"
            )
            alive = ("WATCHDOG=1",) if writer.stalled_seconds < STALLED_SECONDS else ()
            self._notifier.notify(status, *alive)
            await asyncio.sleep(interval)

    async def _work(self, request: dict[str, Any], store: Store, writer: Writer) -> Answer:
        """Do what a command beside the daemon asks for."""
        try:
            match request:
                case {"do": "retry", "ids": list() | None as ids}:
                    kept = await store.run(read_quarantine, ids)
                    retried = retry(kept, self._senders, self._config.tcp.max_report_bytes)
                    committed = await writer.commit_beside(retried.batch)
                    return {
                        "resolved": len(retried.batch.resolved),
                        "stored": len(committed.stored),
                        "duplicate": committed.duplicates,
                        "staying": retried.staying,
                    }
                case {"do": handover.IMPORT_CALLS}:
                    committed = await writer.commit_beside(handover.read_request(request))
                    return {
                        "stored": len(committed.stored),
                        "duplicate": committed.duplicates,
                        "quarantined": len(committed.quarantined),
                    }
                case {"do": leg_request.STORE_LEGS}:
                    outcome = await writer.store_legs(leg_request.read_request(request))
                    return leg_request.make_answer(outcome)
                case {"do": purge.PURGE}:
                    step = await store.run(purge.take_step, *purge.read_request(request))
                    store.wrote(step.deleted)
                    return {"deleted": step.deleted, "place": step.place and list(step.place)}
                case {"do": "drop", "ids": list() as ids}:
                    return {"dropped": await store.run(drop_quarantined, ids)}
                case {"do": "remember_refusal", "pbx": str() as pbx}:
                    now = time.time()
                    if pbx in self._guards:
                        self._guards[pbx].refused_elsewhere(now)
                    await store.run(remember_refusal, pbx, now)
                    return {}
        except sqlite3.Error as error:
            raise RequestRefused(f"the database: {error}") from error
        except (handover.Unfit, leg_request.NotAnArrival, purge.NotAPurge) as error:
            raise RequestRefused(str(error)) from error
        raise RequestRefused("this daemon does not know the request: is it an older version?")


async def _open_metrics(state: "State", address: str, log: Logger) -> "MetricsServer":
    # Its packages are optional, and take 0.3 s: commands/serve.py has seen that they are there.
    from cdrd.metrics import MetricsServer  # noqa: PLC0415

    server = MetricsServer(state)
    opened = await server.open(address)
    log.info("listener_opened", address=opened, source="metrics", tls=False)
    return server


async def _remember_refusal(store: Store, log: Logger, pbx: str, refused_at: float) -> None:
    try:
        await store.run(remember_refusal, pbx, refused_at)
    except sqlite3.Error as error:
        # This run counts it all the same; only a restart would not know of it.
        log.warning("refusal_not_stored", pbx=pbx, error=str(error))


def _say_suspended(log: Logger, pbx: Pbx, seconds: float) -> None:
    address = (pbx.events and pbx.events.address) or (pbx.history and pbx.history.url)
    log.error(
        "login_suspended",
        pbx=pbx.name,
        address=address,
        seconds=round(seconds),
        advice="the PBX locks the account at the fifth refusal: mend username or password",
    )


def _refuse_reload(log: Logger) -> None:
    log.warning("reload_refused", advice="this version takes a new configuration at a restart")


def _log_fault(log: Logger, context: dict[str, Any]) -> None:
    """Log what nothing else caught: a fault of ours, with where it is."""
    error = context.get("exception")
    trace = "".join(traceback.format_exception(error)) if error else ""
    log.critical("fault_caught", error=context["message"], trace=trace)


async def serve(config: Config, config_path: Path, pace: Pace | None = None) -> None:
    """Run the daemon until it is told to stop. Raises ConfigError for files that it cannot use."""
    with contextlib.suppress(asyncio.CancelledError):
        await Daemon(config, config_path, pace).run()
