"""syslog-ng, tuned: network() with flow control, json-parser, sql(sqlite3) in transactions."""

from pathlib import Path

from tests.bench import peer_table
from tests.bench.server import Server, free_port

ROOT = peer_table.UNPACKED / "syslog-ng"
LIBRARIES = ROOT / "usr/lib/syslog-ng"
PROGRAM = ROOT / "usr/sbin/syslog-ng"

CONFIG = """@version: 3.38
options {{ stats-freq(0); log-fifo-size(2000000); threaded(yes); }};
source pbxs {{
  network(transport("tcp") ip("127.0.0.1") port({port}) flags(no-parse)
    max-connections(2000) log-fetch-limit(1000) log-iw-size(2000000));
}};
parser report {{ json-parser(prefix(".cdr.")); }};
filter released {{ "${{.cdr.action}}" eq "NewCdr" }};
destination rows {{
  sql(type(sqlite3) database("{database}") table("cdr")
    columns({columns}) values({values}) indexes() null("")
    session-statements("PRAGMA busy_timeout=5000", "PRAGMA synchronous={synchronous}")
    flags(explicit-commits) batch-lines(1000) batch-timeout(1));
}};
log {{ source(pbxs); parser(report); filter(released); destination(rows); flags(flow-control); }};
"""


def missing() -> str:
    """Say why it cannot run here."""
    return "" if PROGRAM.exists() else "syslog-ng is not under build/peers"


def start(directory: Path, synchronous: str) -> Server:
    """Start it in the foreground with a configuration of its own."""
    database, port = peer_table.make(directory), free_port()
    values = [peer_table.PBX, *(f"${{.cdr.{key}}}" for key in peer_table.FIELDS), "$MSG"]
    config = directory / "syslog-ng.conf"
    config.write_text(
        CONFIG.format(
            port=port,
            database=database,
            columns=", ".join(f'"{column}"' for column in peer_table.COLUMNS),
            values=", ".join(f'"{value}"' for value in values),
            synchronous=synchronous,
        )
    )
    own = [f"--{name}={directory / name}" for name in ("persist-file", "pidfile", "control")]
    command: list[str | Path] = [
        PROGRAM,
        "--foreground",
        "--no-caps",
        "--stderr",
        f"--cfgfile={config}",
        *own,
    ]
    modules = f"--module-path={LIBRARIES / '3.38'}"
    libraries = (LIBRARIES, ROOT / "usr/lib/x86_64-linux-gnu", ROOT / "lib/x86_64-linux-gnu")
    environment = {"LD_LIBRARY_PATH": ":".join(map(str, libraries))}
    return Server(
        directory, [*command, modules], database=database, port=port, environment=environment
    )
