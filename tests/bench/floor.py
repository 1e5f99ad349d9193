"""The floor: a C program that inserts the rows which cdrd has made, and does nothing else."""

import contextlib
import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench import sender
from tests.bench.load import Load, render
from tests.bench.peer_cdrd import Cdrd
from tests.bench.run import STRACE, Run, count_syncs
from tests.bench.server import Failed

SOURCE = Path(__file__).with_name("floor.c")


def run(load: Load, loads: Path) -> Run:
    """Insert all; the program has the rows at hand, so its memory says nothing. Raises Failed."""
    inserted = _inserted(load, loads)
    cpu = inserted["cpu_seconds"] / inserted["rows"] * 1e6
    return Run(inserted["rows"] / inserted["seconds"], cpu, math.nan)


def syncs(load: Load, loads: Path) -> float | None:
    """Count the calls that bring data to the disk, for 1,000 rows; None without strace."""
    if not shutil.which("strace"):
        return None
    traced = loads / "floor-trace"
    inserted = _inserted(load, loads, [*STRACE, str(traced)])
    return count_syncs(traced) / inserted["rows"] * 1000


def _inserted(load: Load, loads: Path, under: Sequence[str] = ()) -> dict[str, float]:
    program, rows = _compiled(loads), _stored(load, loads)
    with tempfile.TemporaryDirectory(prefix="cdrd-bench-") as name:
        command = [*under, str(program), str(rows), f"{name}/cdr.sqlite3"]
        output = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    inserted: dict[str, float] = json.loads(output)
    return inserted


def _compiled(directory: Path) -> Path:
    program = directory / "floor"
    command = ["gcc", "-O2", "-o", str(program), str(SOURCE), "-lsqlite3"]
    try:
        if not program.exists():
            subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Failed("it needs gcc and libsqlite3-dev") from error
    return program


def _stored(load: Load, loads: Path) -> Path:
    """Have cdrd store the load, once; return its database."""
    directory = loads / f"{render(load, loads).name}-rows"
    database = directory / "cdr.sqlite3"
    if not database.exists():
        directory.mkdir()
        with Cdrd(directory) as server:
            with (
                contextlib.closing(server.reader()) as reader,
                sender.sending(render(load, loads), server.port, load.connections),
            ):
                server.wait_for_rows(reader, load.count)
            server.check(load.count)
    return database
