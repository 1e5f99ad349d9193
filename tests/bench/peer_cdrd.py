"""``cdrd serve`` with its defaults: durable ``full``, its log in a file."""

import json
import re
import sqlite3
import sys
import time
from pathlib import Path

from tests.bench.server import START_SECONDS, Failed, Server

CONFIG = """
database.path = "{directory}/cdr.sqlite3"
tcp.listen = [{tcp}]
http.listen = [{http}]
[[pbx]]
name = "bench"
peers = ["127.0.0.1"]
"""


class Cdrd(Server):
    """The daemon, listening for ``tcp`` or ``http``; its port is read from its log.

    ``more``: what its configuration says of the PBX beside its address.
    """

    def __init__(self, directory: Path, way: str = "tcp", more: str = "") -> None:
        self.log = directory / "log.jsonl"
        config = directory / "config.toml"
        listen = {"tcp": "", "http": "", way: '"127.0.0.1:0"'}
        config.write_text(CONFIG.format(directory=directory, **listen) + more)
        super().__init__(
            directory,
            [sys.executable, "-m", "cdrd", "serve", "-c", config],
            database=directory / "cdr.sqlite3",
            table="call",
            port=0,
            stdout=self.log,
        )

    def wait_until_ready(self) -> None:
        """Wait until the log says so, and take the port from it."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            log = self.log.read_text()
            found = re.search(r'"listener_opened","address":"127.0.0.1:(\d+)"', log)
            if found and '"event":"ready"' in log:
                self.port = int(found[1])
                return
            time.sleep(0.005)
        raise Failed(f"it did not start: {self.output.read_text()}")

    def wait_for_lines(self, event: str, number: int) -> None:
        """Wait until the log has told of so many."""
        wanted, deadline = f'"event":"{event}"'.encode(), time.monotonic() + START_SECONDS
        while self.log.read_bytes().count(wanted) < number:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise Failed(f"{number} x {event} was not logged")
            time.sleep(0.05)

    def has_call(self, reader: sqlite3.Connection, started: int, call_id: str) -> bool:
        """Look it up by the index that cdrd has."""
        began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started))
        query = "SELECT 1 FROM call WHERE started_at = ? AND call_id = ?"
        return reader.execute(query, (began, call_id)).fetchone() is not None

    def check(self, count: int) -> None:
        """End it, and hold its totals and its log to the rows."""
        self.end()
        stopped = json.loads(self.log.read_bytes().splitlines()[-1])
        lines = self.log.read_bytes().count(b'"event":"call_released"')
        if not stopped["stored"] == lines == count:
            raise Failed(f"{count:,} were sent, {stopped}, {lines:,} lines")
