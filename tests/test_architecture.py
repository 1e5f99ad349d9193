"""The core is told the time and handed bytes: it neither waits, logs nor touches the world."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cdrd"

CORE = {
    "address",
    "batch",
    "block",
    "capture",
    "clock",
    "columns",
    "csv_lines",
    "door",
    "event",
    "fetch",
    "followed",
    "formula",
    "frame",
    "gap_watch",
    "handover",
    "history",
    "hours",
    "http_answer",
    "http_request",
    "leg",
    "line",
    "local_time",
    "login",
    "mend",
    "period",
    "portal_file",
    "record",
    "report",
    "restore",
    "selection",
    "sender",
    "sizes",
    "source",
    "spool_line",
    "stream",
    "traffic",
}
SHELL = {
    "__init__",
    "__main__",
    "apart",
    "background",
    "beside",
    "call_log",
    "cli",
    "commands.__init__",
    "commands.arguments",
    "commands.backup",
    "commands.check",
    "commands.check_api",
    "commands.check_database",
    "commands.check_integrity",
    "commands.check_login",
    "commands.demo",
    "commands.export",
    "commands.fetch",
    "commands.follow",
    "commands.import_calls",
    "commands.label",
    "commands.import_conferences",
    "commands.importing",
    "commands.purge",
    "commands.quarantine",
    "commands.report",
    "commands.report_page",
    "commands.report_sheet",
    "commands.selecting",
    "commands.serve",
    "commands.simulate",
    "commands.tables",
    "commands.trying",
    "commands.zones",
    "config",
    "connection",
    "control",
    "daemon",
    "database",
    "dial",
    "drain",
    "exits",
    "export",
    "formats",
    "gaps",
    "history_api",
    "http_listen",
    "intake",
    "kept",
    "last_calls",
    "leg_request",
    "leg_store",
    "listen",
    "log",
    "login_guard",
    "metrics",
    "owner",
    "p_series",
    "pbx_api",
    "pbxs",
    "portal",
    "portal_table",
    "progress",
    "purge",
    "quarantine",
    "register",
    "row",
    "s_series",
    "schema",
    "service",
    "silence",
    "seizures",
    "simulate.__init__",
    "simulate.account",
    "simulate.arguments",
    "simulate.history",
    "simulate.load",
    "simulate.p_series",
    "simulate.pbx",
    "simulate.play",
    "simulate.posting",
    "simulate.posts",
    "simulate.reports",
    "simulate.roles",
    "simulate.s_series",
    "simulate.sent",
    "simulate.subscribed",
    "simulate.web_api",
    "spool",
    "sqlite_library",
    "stdio",
    "store",
    "store_process",
    "subscribe",
    "sync",
    "systemd",
    "target",
    "tls",
    "tls_connection",
    "web_session",
    "writer",
}
FORBIDDEN = {"asyncio", "logging", "os", "socket", "sqlite3", "structlog", "time"}


def modules() -> set[str]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")
    }


def imported(module: str) -> Iterator[str]:
    """Name the modules that a module imports, wherever in it the import stands."""
    tree = ast.parse((PACKAGE / module.replace(".", "/")).with_suffix(".py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"cdrd/{module}.py has a relative import"
            assert node.module is not None
            yield node.module
            if node.module == "cdrd":
                yield from (f"cdrd.{alias.name}" for alias in node.names)


def test_no_imports_go_in_a_circle() -> None:
    """Not within functions either, nor for types alone: graphlib raises a CycleError."""
    needed = {
        module: {name.removeprefix("cdrd.") for name in imported(module)} & (CORE | SHELL)
        for module in CORE | SHELL
    }
    assert {*TopologicalSorter(needed).static_order()} == CORE | SHELL


def test_every_module_is_of_the_core_or_of_the_shell() -> None:
    assert not CORE & SHELL
    assert modules() == CORE | SHELL


@pytest.mark.parametrize("module", sorted(CORE))
def test_a_core_module_neither_waits_logs_nor_touches_the_outside_world(module: str) -> None:
    packages = {name.partition(".")[0] for name in imported(module)}
    assert not packages & FORBIDDEN


@pytest.mark.parametrize("module", sorted(CORE))
def test_a_core_module_builds_on_the_core_alone(module: str) -> None:
    ours = {name.removeprefix("cdrd.") for name in imported(module) if name.startswith("cdrd.")}
    assert ours <= CORE
