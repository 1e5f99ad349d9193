"""The naive listener: ``python naive_listener.py DATABASE PORT SYNCHRONOUS``."""

import asyncio
import sys
from pathlib import Path

import aiosqlite
import orjson

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench.peer_table import FIELDS, INSERT, PBX


async def serve(database: str, port: int, synchronous: str) -> None:
    """Take reports, a row and a commit for each."""
    async with aiosqlite.connect(database) as connection:
        await connection.execute(f"PRAGMA synchronous = {synchronous}")

        async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                report = orjson.loads(line)
                row = [PBX, *(report.get(key, "") for key in FIELDS), line.decode()]
                await connection.execute(INSERT, row)
                await connection.commit()
            writer.close()

        server = await asyncio.start_server(receive, "127.0.0.1", port, backlog=2000)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
