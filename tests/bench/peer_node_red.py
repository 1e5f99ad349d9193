"""Node-RED: a TCP node, a function that gathers reports, and one statement for each batch."""

import json
import shutil
from pathlib import Path

from tests.bench import peer_table
from tests.bench.server import Server, free_port

ROOT = peer_table.UNPACKED / "node-red"
PROGRAM = ROOT / "node_modules/node-red/red.js"
BATCH = 1000
WAIT_MILLISECONDS = 20

FUNCTION = f"""
const lines = context.get("lines") || [];
context.set("lines", lines);
const flush = () => {{
  if (lines.length) node.send({{ topic: STATEMENT, payload: ["[" + lines.join(",") + "]"] }});
  lines.length = 0;
}};
lines.push(msg.payload);
if (lines.length >= {BATCH}) flush();
else if (lines.length === 1) setTimeout(flush, {WAIT_MILLISECONDS});
"""


def missing() -> str:
    """Say why it cannot run here."""
    if not shutil.which("node"):
        return "there is no node"
    return "" if PROGRAM.exists() else "Node-RED is not under build/peers"


def start(directory: Path, synchronous: str) -> Server:
    """Start it with one flow; the statement takes the batch apart, the fastest way there is."""
    database, port = peer_table.make(directory), free_port()
    (directory / "flows.json").write_text(json.dumps(_flow(database, port, synchronous)))
    settings = f'module.exports = {{ uiPort: {free_port()}, uiHost: "127.0.0.1" }};'
    (directory / "settings.js").write_text(settings)
    for name in ("node_modules", "package.json"):
        (directory / name).symlink_to(ROOT / name)
    command: list[str | Path] = ["node", PROGRAM, "--userDir", directory, "flows.json"]
    return Server(directory, command, database=database, port=port)


def _flow(database: Path, port: int, synchronous: str) -> list[dict[str, object]]:
    values = [f"ifnull(value->>'{key}', '')" for key in peer_table.FIELDS]
    row = ", ".join([f"'{peer_table.PBX}'", *values, "value"])
    statement = f"INSERT INTO cdr SELECT {row} FROM json_each($1)"
    gather = f"const STATEMENT = {json.dumps(statement)};{FUNCTION}"
    pragma = f"PRAGMA synchronous = {synchronous}"
    inject = {"once": True, "onceDelay": 0.1, "props": [{"p": "topic", "vt": "str"}]}
    stream = {"datamode": "stream", "datatype": "utf8", "newline": "\\n"}
    return [
        {"id": "flow", "type": "tab", "label": "bench"},
        {"id": "db", "type": "sqlitedb", "db": str(database), "mode": "RW"},
        _node("once", "inject", "rows", topic=pragma, **inject),
        _node("pbxs", "tcp in", "gather", server="server", port=str(port), **stream),
        _node("gather", "function", "rows", func=gather, outputs=1, libs=[]),
        _node("rows", "sqlite", mydb="db", sqlquery="msg.topic"),
    ]


def _node(name: str, kind: str, *wires: str, **properties: object) -> dict[str, object]:
    """Make a node; without a place on the page it would be taken for a configuration."""
    place = {"id": name, "type": kind, "z": "flow", "x": 0, "y": 0, "wires": [list(wires)]}
    return place | properties
