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
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Final

from cdrd import __version__, handover, leg_request
from cdrd.batch import Waiting
from cdrd.config import Config, Events, Pbx, read_secret, unused_settings
from cdrd.control import Answer, RequestRefused, remove_control, serve_control
from cdrd.dial import Credentials, Dialer
from cdrd.http_listen import ANSWER_SECONDS, Bounds, HttpConnections
from cdrd.http_listen import SOURCE as HTTP
from cdrd.intake import Intake
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
from cdrd.quarantine import drop_quarantined, read_quarantine, retry
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
from cdrd.writer import Writer

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

    def __init__(self, config: Config, config_path: Path) -> None:
        self._config = config
        self._config_path = config_path
        self._senders = [pbx.sender() for pbx in config.pbx]
        self._notifier = Notifier()
        self._totals = Totals()
        self._waiting = Waiting(WAITING_BYTES)
        self._lines = LineWriter(1)
        self._dialers: list[Dialer] = []
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
        listener = Listener(intake, self._senders, log)
        answer_seconds = ANSWER_SECONDS + self._config.batch.max_delay
        posting = HttpConnections(intake, listener, log, Bounds(answer=answer_seconds))
        writer = Writer(
            store,
            self._waiting,
            self._totals,
            log=log,
            lines=self._lines,
            max_records=self._config.batch.max_records,
            max_delay=self._config.batch.max_delay,
            room_made=intake.room_made,
        )
        intake.feed(writer)
        control = await serve_control(store.path, lambda asked: self._work(asked, store, writer))
        committing = asyncio.create_task(writer.run())
        background: list[asyncio.Task[None]] = []
        try:
            await listener.open(self._config.tcp.listen, TCP, listener.accept)
            await listener.open(self._config.http.listen, HTTP, posting.accept)
            await self._make_dialers(store, intake, log)
            background = [
                asyncio.create_task(work)
                for work in (
                    *(dialer.run() for dialer in self._dialers),
                    *self._follow_portals(store, writer, log),
                    intake.drop_idle(),
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
            await asyncio.gather(intake.drain(), posting.drain())
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            posting.stop()
            await intake.close()
            writer.stop()
            await committing
            await posting.close()

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
        for setting in unused_settings(self._config):
            log.warning("setting_unused", setting=setting, advice="this version has no such part")
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

    async def _make_dialers(self, store: Store, intake: Intake, log: Logger) -> None:
        for pbx in self._config.pbx:
            if pbx.events is not None:
                guard = RefusalGuard(await store.run(read_refusals, pbx.name))
                self._dialers.append(self._dialer(pbx, pbx.events, guard, store, intake, log))

    def _dialer(
        self,
        pbx: Pbx,
        events: Events,
        guard: RefusalGuard,
        store: Store,
        intake: Intake,
        log: Logger,
    ) -> Dialer:
        return Dialer(
            pbx.sender(),
            events.address,
            Credentials(
                events.username, lambda: read_secret(events.password_file, self._config_path)
            ),
            intake=intake,
            log=log,
            guard=guard,
            remember_refusal=lambda name, at: _remember_refusal(store, log, name, at),
        )

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
            dialled = sum(dialer.connected for dialer in self._dialers)
            status = (
                f"STATUS={len(intake.connections)} connections ({dialled} of {len(self._dialers)}"
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
                case {"do": "drop", "ids": list() as ids}:
                    return {"dropped": await store.run(drop_quarantined, ids)}
                case {"do": "remember_refusal", "pbx": str() as pbx}:
                    now = time.time()
                    for dialer in self._dialers:
                        if dialer.pbx == pbx:
                            dialer.refused_elsewhere(now)
                    await store.run(remember_refusal, pbx, now)
                    return {}
        except sqlite3.Error as error:
            raise RequestRefused(f"the database: {error}") from error
        except (handover.Unfit, leg_request.NotAnArrival) as error:
            raise RequestRefused(str(error)) from error
        raise RequestRefused("this daemon does not know the request: is it an older version?")


async def _remember_refusal(store: Store, log: Logger, pbx: str, refused_at: float) -> None:
    try:
        await store.run(remember_refusal, pbx, refused_at)
    except sqlite3.Error as error:
        # This run counts it all the same; only a restart would not know of it.
        log.warning("refusal_not_stored", pbx=pbx, error=str(error))


def _refuse_reload(log: Logger) -> None:
    log.warning("reload_refused", advice="this version takes a new configuration at a restart")


def _log_fault(log: Logger, context: dict[str, Any]) -> None:
    """Log what nothing else caught: a fault of ours, with where it is."""
    error = context.get("exception")
    trace = "".join(traceback.format_exception(error)) if error else ""
    log.critical("fault_caught", error=context["message"], trace=trace)


async def serve(config: Config, config_path: Path) -> None:
    """Run the daemon until it is told to stop."""
    with contextlib.suppress(asyncio.CancelledError):
        await Daemon(config, config_path).run()
