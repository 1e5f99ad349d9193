"""What one writes first: asyncio streams, ``readline``, aiosqlite, a commit for each record."""

import sys
from pathlib import Path

from tests.bench import naive_listener, peer_table
from tests.bench.server import Server, free_port


def missing() -> str:
    """It needs nothing that is not here."""
    return ""


def start(directory: Path, synchronous: str) -> Server:
    """Start it on the common table."""
    database, port = peer_table.make(directory), free_port()
    program = Path(naive_listener.__file__)
    command: list[str | Path] = [sys.executable, program, database, str(port), synchronous]
    return Server(directory, command, database=database, port=port)
