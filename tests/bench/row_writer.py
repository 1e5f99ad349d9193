"""Turns lines of tab-separated fields on stdin into rows, what has come at once in a transaction.

A program of its own, ``python row_writer.py DATABASE SYNCHRONOUS``, which rsyslog starts.
"""

import fcntl
import os
import sqlite3
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench.peer_table import INSERT, PBX

READ_BYTES = 1 << 20
"""As much as the largest pipe holds, so that a flood makes large transactions."""


def main() -> None:
    """Write until stdin ends."""
    database, synchronous = sys.argv[1:]
    connection = sqlite3.connect(database)
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    fcntl.fcntl(0, fcntl.F_SETPIPE_SZ, READ_BYTES)
    rest = ""
    while read := os.read(0, READ_BYTES):
        *lines, rest = (rest + read.decode()).split("\n")
        with connection:
            connection.executemany(INSERT, ([PBX, *line.split("\t")] for line in lines))
    connection.close()


if __name__ == "__main__":
    main()
