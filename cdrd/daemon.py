"""Turns a process into the running daemon, and a signal into a reload or an orderly end.

The rule that must stay true: what was received is committed before the end, and the last line,
``stopped``, accounts for all of it.
"""

import asyncio
import contextlib
import os
import signal
import sqlite3
import traceback
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

from cdrd import __version__
from cdrd.config import Config
from cdrd.database import wal_reset_bug
from cdrd.exits import ConfigError
from cdrd.gap_watch import Pace
from cdrd.kept import Keeper, take_passed
from cdrd.log import LineWriter, Logger, make_logger, under_journald, use_console
from cdrd.service import Service, prepare
from cdrd.store import Store
from cdrd.store_process import StoreProcess
from cdrd.stream import Totals
from cdrd.systemd import MICROSECONDS, Notifier
from cdrd.tls import server_context

LOG_SECONDS: Final = 1.5
"""At a stop, how long the reader of the log is waited for, thrice at most."""

STATUS_SECONDS: Final = 5.0
STOP_SECONDS: Final = 15
"""So much time is asked for, again and again, until all that was received is kept."""


class Daemon:
    """One run of ``cdrd serve``."""

    def __init__(
        self, config: Config, config_path: Path, process: StoreProcess, pace: Pace | None
    ) -> None:
        """Take the configuration; ``pace``: of the fetches of history. Raises ConfigError."""
        self._config = config
        self._config_path = config_path
        self._prepared = prepare(config, config_path)
        server_context(config.tls, config_path)  # before the database is touched
        self._process = process
        self._pace = pace
        self._notifier = Notifier()
        self._passed = take_passed()
        self._totals = Totals()
        self._accounted = False  # all that was received is committed, or was given up in order
        self._lines = LineWriter(1)
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises StoreUnusable and OSError before it is ready."""
        self._handle_signals()
        path = Path(self._config.database.path)
        durability = self._config.database.durability
        store = await Store.open(path, durability, even_damaged=True, process=self._process)
        try:
            log = self._make_logger()
            self._say_started(log, store)
            try:
                await self._serve(store, log)
            finally:
                await asyncio.to_thread(self._lines.finish, LOG_SECONDS)
        finally:
            await store.close(self._lines.logged_seq)
            if self._accounted:
                self._say_stopped(log)
                await asyncio.to_thread(self._lines.close, LOG_SECONDS)

    async def _serve(self, store: Store, log: Logger) -> None:
        service = Service(
            self._prepared,
            self._config_path,
            store=store,
            log=log,
            lines=self._lines,
            totals=self._totals,
            keeper=Keeper(self._notifier),
            pace=self._pace,
        )
        try:
            await service.begin(self._passed)
            service.background.start(self._keep_systemd_told(service))
            service.background.start(self._reload_when_asked(service))
            self._notifier.notify("READY=1", "STATUS=ready")
            log.info("ready", pid=os.getpid())
            await self._until_stopped(service)
        finally:
            self._notifier.notify("STOPPING=1", "STATUS=committing what was received")
            asking = asyncio.create_task(self._ask_for_time(service))
            await service.end()
            asking.cancel()
            self._accounted = True

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
            spooled=totals.spooled,
            events=dict(totals.events.most_common()),
        )

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._begin_to_stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])  # blocked by the command

    def _begin_to_stop(self) -> None:
        self._lines.release()
        self._stop.set()

    def _make_logger(self) -> Logger:
        settings = self._config.log
        log = make_logger(
            self._lines,
            console=use_console(settings.format),
            journal=under_journald(os.environ),
            level=settings.level,
        )
        loop = asyncio.get_running_loop()
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

    async def _until_stopped(self, service: Service) -> None:
        """Wait for a signal; a fault of what runs beside is a fault of ours, and is raised."""
        stop: Coroutine[Any, Any, Any] = self._stop.wait()
        stopping = asyncio.create_task(stop)
        waited: set[asyncio.Future[Any]] = {stopping, service.background.fault}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if service.background.fault.done():
            service.background.fault.result()

    async def _reload_when_asked(self, service: Service) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            await service.reload()

    async def _keep_systemd_told(self, service: Service) -> None:
        """Feed the watchdog while the loop turns and the writer makes progress."""
        watchdog = self._notifier.watchdog_seconds
        interval = min(watchdog / 3, STATUS_SECONDS) if watchdog else STATUS_SECONDS
        while True:
            alive = () if service.stalled else ("WATCHDOG=1",)
            self._notifier.notify(f"STATUS={service.status()}", *alive)
            await asyncio.sleep(interval)

    async def _ask_for_time(self, service: Service) -> None:
        """Keep systemd from killing a daemon whose records wait for a disk with room."""
        while True:
            if service.waits and not service.stalled:
                self._notifier.notify(f"EXTEND_TIMEOUT_USEC={STOP_SECONDS * MICROSECONDS}")
            await asyncio.sleep(STATUS_SECONDS)


def _log_fault(log: Logger, context: dict[str, Any]) -> None:
    """Log what nothing else caught: a fault of ours, with where it is."""
    error = context.get("exception")
    trace = "".join(traceback.format_exception(error)) if error else ""
    log.critical("fault_caught", error=context["message"], trace=trace)


async def serve(
    config: Config, config_path: Path, process: StoreProcess, pace: Pace | None = None
) -> None:
    """Run the daemon until it is told to stop; ``process``: the one that stores, started already.

    Raises ConfigError for files that it cannot use.
    """
    try:
        daemon = Daemon(config, config_path, process, pace)
    except ConfigError:
        process.abandon()
        raise
    with contextlib.suppress(asyncio.CancelledError):
        await daemon.run()
