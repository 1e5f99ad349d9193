"""The database that each peer is given: a call's fields, its raw text, a unique key, an index."""

import sqlite3
from pathlib import Path

UNPACKED = Path(__file__).parents[2] / "build/peers"
"""Where the Makefile puts them."""

FIELDS = (
    *("callid", "timestart", "callfrom", "callto", "srctrunkname", "desttrunkname"),
    *("callduraction", "talkduraction", "status", "type", "pincode", "recording"),
    *("didnumber", "sn"),
)
"""The keys of a report, as the PBX spells them; so are the columns named."""

COLUMNS = ("pbx", *FIELDS, "raw")
PBX = "bench"
INSERT = f"INSERT INTO cdr VALUES ({', '.join('?' * len(COLUMNS))})"


def make(directory: Path) -> Path:
    """Make an empty database with cdrd's page size, in WAL mode; return its path."""
    path = directory / "cdr.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA page_size = 16384")
    connection.execute("PRAGMA journal_mode = WAL")
    columns = ", ".join(f"{column} TEXT" for column in COLUMNS)
    unique = "UNIQUE (pbx, callid) ON CONFLICT IGNORE"
    connection.execute(f"CREATE TABLE cdr ({columns}, {unique})")
    connection.execute("CREATE INDEX cdr_timestart ON cdr (timestart)")
    connection.close()
    return path
