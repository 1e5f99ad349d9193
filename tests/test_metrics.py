"""The figures are those of the rows, and health tells what is true just now."""

import contextlib
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cdrd.metrics import MOST_CONNECTIONS, MetricsServer, State
from cdrd.simulate.reports import new_cdr, other_event
from cdrd.stream import Totals
from tests.damage import drop_wal
from tests.running import DEADLINE_SECONDS, HQ, RunningDaemon, cdrd, connect, send, write_config
from tests.test_serve import held_lock

STARTED = 1571897930
TABLES = '[metrics]\nlisten = "127.0.0.1:0"\n' + HQ


def ask(daemon: RunningDaemon, page: str) -> tuple[int, str]:
    """Return a page's status and text."""
    (opened,) = daemon.found("listener_opened", source="metrics")
    try:
        url = f"http://{opened['address']}/{page}"
        with urllib.request.urlopen(url, timeout=DEADLINE_SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def figures(daemon: RunningDaemon) -> dict[tuple[str, ...], float]:
    """Return each figure by its name and labels, as Prometheus itself would read them."""
    status, text = ask(daemon, "metrics")
    assert status == 200
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with RunningDaemon(tmp_path, TABLES) as running:
        running.wait_for("ready")
        yield running
        assert not running.found("fault_caught")


def test_the_figures_are_those_of_what_was_received(daemon: RunningDaemon) -> None:
    reports = [new_cdr(number, started=STARTED) for number in range(5)]
    send(daemon.port, *reports, reports[0], b'{"action":"NewCdr"}', other_event(1, "2.0.0"))
    with connect(daemon.port, source="127.0.0.3"), connect(daemon.port) as sock:
        daemon.wait_for("peer_refused")
        sock.sendall(new_cdr(6, started=STARTED))
        daemon.wait_for_calls(6)
        found = figures(daemon)
    assert found["cdrd_reports_received_total",] == 9
    assert found["cdrd_reports_stored_total",] == 6
    assert found["cdrd_reports_duplicate_total",] == 1
    assert found["cdrd_reports_quarantined_total",] == 1
    assert sum(value for name, value in found.items() if "passed_over" in name[0]) == 1
    assert found["cdrd_peers_refused_total",] == 1
    assert found["cdrd_reports_waiting",] == 0
    assert found["cdrd_connections", "tcp"] == 1
    assert found["cdrd_file_bytes", "database"] > 0
    assert found["cdrd_file_bytes", "wal"] > 0
    assert found["cdrd_pbx_silent", "hq"] == 0
    assert ("cdrd_last_call_timestamp_seconds", "hq") not in found  # it was years ago
    assert any(name[0] == "cdrd_info" for name in found)


def test_a_way_that_nobody_comes_by_has_no_connections(daemon: RunningDaemon) -> None:
    found = figures(daemon)
    ways = {name[1]: value for name, value in found.items() if name[0] == "cdrd_connections"}
    assert ways == {"tcp": 0, "dial": 0, "http": 0, "websocket": 0}


def test_the_last_call_is_the_newest_also_where_its_row_is_restored(tmp_path: Path) -> None:
    lately = int(time.time()) - 3600
    before = tmp_path / "before"
    before.mkdir()
    with RunningDaemon(before) as daemon:
        send(daemon.port, new_cdr(1, started=lately), new_cdr(2, started=lately - 3600))
        daemon.wait_for_calls(2)
        daemon.stop()
    exported = cdrd("export", "calls", "--db", daemon.database, "--format", "jsonl").stdout
    with RunningDaemon(tmp_path, TABLES) as daemon:
        daemon.wait_for("ready")
        name = "cdrd_last_call_timestamp_seconds", "hq"
        assert name not in figures(daemon)
        line = tmp_path / "call.jsonl"
        for text, began in zip(
            reversed(exported.splitlines()), (lately - 3600, lately), strict=True
        ):
            line.write_text(text)
            assert cdrd("import", "calls", "-c", daemon.config, line).returncode == 0
            assert figures(daemon)[name] == began


def test_a_pbx_that_was_silent_is_so_behind_a_restart(tmp_path: Path) -> None:
    (tmp_path / "cdr.sqlite3.silent").write_text('{"hq":"2024-03-06T11:00:00Z"}')
    with RunningDaemon(tmp_path, TABLES) as daemon:
        daemon.wait_for("ready")
        assert figures(daemon)["cdrd_pbx_silent", "hq"] == 1


def test_who_asks_for_openmetrics_gets_it(daemon: RunningDaemon) -> None:
    (opened,) = daemon.found("listener_opened", source="metrics")
    request = urllib.request.Request(
        f"http://{opened['address']}/metrics",
        headers={"Accept": "application/openmetrics-text; version=1.0.0"},
    )
    with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert answer.read().endswith(b"# EOF\n")


@pytest.mark.asyncio
async def test_what_the_loop_changes_is_read_by_the_loop_alone(tmp_path: Path) -> None:
    read_by: set[int] = set()

    def connections() -> dict[str, int]:
        read_by.add(threading.get_ident())
        return {}

    state = State(
        totals=Totals(),
        waiting=lambda: 0,
        connections=connections,
        held=dict,
        refused=lambda: 0,
        last_call=dict,
        silent=dict,
        database=tmp_path / "cdr.sqlite3",
        sick=str,
        busy=str,
    )
    server = MetricsServer(state)
    try:
        url = f"http://{await server.open('127.0.0.1:0')}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            assert answer.status == 200
    finally:
        await server.close()
    assert read_by == {threading.get_ident()}


def test_health_and_readiness_are_told_apart(daemon: RunningDaemon) -> None:
    assert ask(daemon, "healthz") == (200, "ok\n")
    assert ask(daemon, "readyz") == (200, "ok\n")
    assert ask(daemon, "else")[0] == 404
    with held_lock(daemon.database):
        send(daemon.port, new_cdr(1, started=STARTED))
        daemon.wait_for("commit_failed")
        assert ask(daemon, "healthz") == (200, "ok\n")  # a restart would help nobody
        assert ask(daemon, "readyz") == (503, "the database does not take records\n")
    daemon.wait_for("commit_recovered")
    assert ask(daemon, "readyz") == (200, "ok\n")


def test_an_address_that_cannot_be_had_is_a_sentence(tmp_path: Path) -> None:
    tables = TABLES.replace("127.0.0.1:0", "192.0.2.1:9861")
    ended = cdrd("serve", "-c", write_config(tmp_path, tables))
    assert ended.returncode == 1
    assert "192.0.2.1" in ended.stderr
    assert "Traceback" not in ended.stderr


# What is shipped for Prometheus and Grafana

SYSTEMD = Path(__file__).parent.parent / "systemd"
METRIC = re.compile(r"\bcdrd_\w+")


def asked_for() -> dict[str, set[str]]:
    """The metrics that each shipped file asks for."""
    names = ("prometheus-rules.yml", "grafana-dashboard.json")
    return {name: set(METRIC.findall((SYSTEMD / name).read_text())) for name in names}


def test_the_shipped_alerts_and_panels_ask_for_what_is_there(daemon: RunningDaemon) -> None:
    send(daemon.port, new_cdr(1, started=int(time.time())), other_event(1, "2.0.0"))
    daemon.wait_for_calls(1)
    _, text = ask(daemon, "metrics")
    there = set(METRIC.findall(text)) | {"cdrd_pbx_connected"}  # of PBXs that we connect to
    for name, metrics in asked_for().items():
        assert metrics, name
        assert metrics <= there, (name, metrics - there)


def exceeded(alert: str, found: dict[tuple[str, ...], float]) -> bool:
    """Whether an alert's figure, one with one label, is there and above its bound."""
    rules = (SYSTEMD / "prometheus-rules.yml").read_text()
    rule = re.search(rf'alert: {alert}\n +expr: (\w+)\{{\w+="(\w+)"\}} > (\d+)\n', rules)
    assert rule is not None
    name, label, bound = rule.groups()
    return found.get((name, label), 0) > float(bound)


def test_a_damaged_database_has_an_alert_until_its_spool_is_drained(tmp_path: Path) -> None:
    database = tmp_path / "cdr.sqlite3"
    database.write_bytes(b"\xff" * 100_000)
    with RunningDaemon(tmp_path, TABLES) as damaged:
        damaged.wait_for("database_damaged")
        send(damaged.port, new_cdr(1, started=STARTED))
        damaged.wait_for("records_spooled")
        found = figures(damaged)
        assert exceeded("CdrdReportsSpooled", found)
        assert found["cdrd_reports_spooled_total",] == 1
        assert found["cdrd_reports_waiting",] == 0, "the alert on what waits does not tell of it"
        damaged.stop()
    drop_wal(database)
    database.unlink()
    with RunningDaemon(tmp_path, TABLES) as mended:
        mended.wait_for("spool_drained", stored=1)
        assert not exceeded("CdrdReportsSpooled", figures(mended))


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    dashboard = orjson.loads((SYSTEMD / "grafana-dashboard.json").read_bytes())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 0
    assert all(target["expr"] for panel in panels for target in panel["targets"])


def test_who_says_nothing_takes_no_place_from_who_asks(daemon: RunningDaemon) -> None:
    (opened,) = daemon.found("listener_opened", source="metrics")
    port = int(opened["address"].rpartition(":")[2])
    with contextlib.ExitStack() as held:
        silent = [held.enter_context(connect(port)) for _ in range(3 * MOST_CONNECTIONS)]
        for _ in range(2):  # those that came at once are counted by the next one
            assert ask(daemon, "healthz") == (200, "ok\n")
        for sock in silent[: 2 * MOST_CONNECTIONS]:
            assert sock.recv(1) == b""
