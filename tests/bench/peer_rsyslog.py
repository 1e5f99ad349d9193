"""rsyslog: imptcp, mmjsonparse, and omprog with a writer of rows (``row_writer.py``)."""

import sys
from pathlib import Path

from tests.bench import peer_table
from tests.bench.server import Server, free_port

ROOT = peer_table.UNPACKED / "rsyslog"
PROGRAM = ROOT / "usr/sbin/rsyslogd"
WRITER = Path(__file__).with_name("row_writer.py")

CONFIG = """
global(workDirectory="{directory}")
module(load="imptcp" threads="2" processOnPoller="off")
module(load="mmjsonparse")
module(load="omprog")
template(name="row" type="list") {{
{properties}
  constant(value="\\n")
}}
input(type="imptcp" address="127.0.0.1" port="{port}" ruleset="pbxs")
ruleset(name="pbxs" queue.type="LinkedList" queue.size="100000" queue.dequeueBatchSize="1000"
        queue.workerThreads="1") {{
  action(type="mmjsonparse" cookie="" useRawMsg="on")
  action(type="omprog" template="row" binary="{writer}")
}}
"""


def missing() -> str:
    """Say why it cannot run here."""
    return "" if PROGRAM.exists() else "rsyslog is not under build/peers"


def start(directory: Path, synchronous: str) -> Server:
    """Start it in the foreground with a configuration of its own."""
    database, port = peer_table.make(directory), free_port()
    properties = [f'  property(name="$!{key}") constant(value="\\t")' for key in peer_table.FIELDS]
    config = directory / "rsyslog.conf"
    config.write_text(
        CONFIG.format(
            directory=directory,
            port=port,
            properties="\n".join([*properties, '  property(name="rawmsg")']),
            writer=f"{sys.executable} {WRITER} {database} {synchronous}",
        )
    )
    modules = ROOT / "usr/lib/x86_64-linux-gnu/rsyslog"
    command: list[str | Path] = [
        PROGRAM,
        "-n",
        "-f",
        config,
        "-i",
        directory / "pid",
        "-M",
        modules,
    ]
    environment = {"LD_LIBRARY_PATH": str(ROOT / "usr/lib/x86_64-linux-gnu")}
    return Server(directory, command, database=database, port=port, environment=environment)
