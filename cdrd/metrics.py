"""Turns the daemon's state into what Prometheus and a load balancer ask for.

``/metrics`` tells the figures, ``/healthz`` whether the process still works (else restart it),
``/readyz`` whether reports are stored now. The rule that must stay true: a figure is read when it
is asked for, so that nobody pays for what nobody reads.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from cdrd import __version__
from cdrd.address import format_address, parse_address
from cdrd.stream import Totals

TEXT: Final = "text/plain"

MOST_CONNECTIONS: Final = 32
"""Whoever reaches the address could else take all descriptors; the newest have their places."""


@dataclass(frozen=True, slots=True)
class State:
    """What is asked for the figures, each when it is needed."""

    totals: Totals
    waiting: Callable[[], int]  # reports in custody that are not committed
    connections: Callable[[], Mapping[str, int]]  # open ones, by the way they came
    held: Callable[[], Mapping[str, bool]]  # PBX that we hold a connection to: is it there?
    refused: Callable[[], int]  # peers that are no configured PBX
    last_call: Callable[[], Mapping[str, float]]  # PBX: Unix seconds
    silent: Callable[[], Mapping[str, bool]]  # PBX: silent against its habit?
    database: Path
    sick: Callable[[], str]  # why the process should be restarted, or ""
    busy: Callable[[], str]  # why reports are not stored now, or ""


class _Figures(Collector):
    """The figures of one request: to be made in the loop, whose thread changes what they count."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._of_the_run = list(_of_the_run(state))

    def collect(self) -> Iterator[Metric]:
        """Hand out every figure; what takes its time, the database's, is read now."""
        yield from self._of_the_run
        yield _gauge(
            "cdrd_last_call_timestamp_seconds",
            "When the last call of a PBX began (Unix seconds), within 8 days.",
            "pbx",
            self._state.last_call(),
        )
        sizes = dict(_sizes(self._state.database))
        yield _gauge("cdrd_file_bytes", "The database's files.", "file", sizes)


def _of_the_run(state: State) -> Iterator[Metric]:
    totals = state.totals
    yield InfoMetricFamily("cdrd", "This program.", {"version": __version__})
    for name, told, count in (
        ("received", "Reports, and broken stretches, received in this run.", totals.received),
        ("stored", "Reports that became a new row.", totals.stored),
        ("duplicate", "Reports of a call that was stored before.", totals.duplicate),
        ("quarantined", "Reports that went to quarantine.", totals.quarantined),
        ("spooled", "Reports kept beside a database that does not take them.", totals.spooled),
    ):
        yield CounterMetricFamily(f"cdrd_reports_{name}", told, value=count)
    yield _counter("cdrd_events_passed_over", "Other events than calls.", "event", totals.events)
    yield CounterMetricFamily(
        "cdrd_peers_refused", "Connections of no configured PBX.", value=state.refused()
    )
    yield GaugeMetricFamily(
        "cdrd_reports_waiting", "Received, and not yet committed.", value=state.waiting()
    )
    yield _gauge("cdrd_connections", "Open connections.", "source", state.connections())
    yield _gauge("cdrd_pbx_connected", "1 while we reach the PBX.", "pbx", state.held())
    silent = "1 from a silence against its habit to the next call."
    yield _gauge("cdrd_pbx_silent", silent, "pbx", state.silent())


def _sizes(database: Path) -> Iterator[tuple[str, float]]:
    for name, ending in (("database", ""), ("wal", "-wal"), ("spool", ".spool")):
        path = Path(f"{database}{ending}")
        if path.exists():
            yield name, path.stat().st_size


def _counter(name: str, told: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, told, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def _gauge(name: str, told: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, told, labels=[label])
    for value, figure in values.items():
        family.add_metric([value], figure)
    return family


class MetricsServer:
    """The three pages on one address."""

    def __init__(self, state: State) -> None:
        self._state = state
        pages = web.Application()
        pages.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._health),
                web.get("/readyz", self._readiness),
            ]
        )
        faults = logging.getLogger(__name__)
        faults.addFilter(_is_ours)
        self._runner = web.AppRunner(pages, access_log=None, handle_signals=False, logger=faults)
        self._server: asyncio.Server | None = None

    async def open(self, address: str) -> str:
        """Serve on a ``host:port``; return the one that it became. Raises OSError."""
        await self._runner.setup()
        host, port = parse_address(address)
        self._server = await asyncio.get_running_loop().create_server(self._accept, host, port)
        opened, number, *_ = self._server.sockets[0].getsockname()
        return format_address(opened, number)

    async def close(self) -> None:
        """Serve no more."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()

    def _accept(self) -> asyncio.BaseProtocol:
        server = self._runner.server
        assert server is not None
        for oldest in server.connections[: -MOST_CONNECTIONS + 1]:  # in the order of their coming
            oldest.force_close()
        return server()

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        registry = CollectorRegistry()
        registry.register(_Figures(self._state))
        body = await asyncio.to_thread(encode, registry)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _health(self, _: web.Request) -> web.Response:
        return _answer(self._state.sick())

    async def _readiness(self, _: web.Request) -> web.Response:
        return _answer(self._state.sick() or self._state.busy())


def _is_ours(record: logging.LogRecord) -> bool:
    """Tell a fault of a page from a peer's bad request, which is answered 400 and no trace."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)


def _answer(fault: str) -> web.Response:
    return web.Response(text=f"{fault or 'ok'}\n", status=503 if fault else 200, content_type=TEXT)
