"""The figures are those of the rows, and health tells what is true just now."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cdrd.simulate.reports import new_cdr, other_event
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


def test_who_asks_for_openmetrics_gets_it(daemon: RunningDaemon) -> None:
    (opened,) = daemon.found("listener_opened", source="metrics")
    request = urllib.request.Request(
        f"http://{opened['address']}/metrics",
        headers={"Accept": "application/openmetrics-text; version=1.0.0"},
    )
    with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert answer.read().endswith(b"# EOF\n")


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
