"""Turns a kind of load into a file of rendered reports, and the blocks in which it is sent.

What is sent is rendered beforehand, so that the sender costs its receiver next to nothing.
"""

import json
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

from cdrd.simulate.reports import ReportForms

DIALECT = "1.0.2"
STARTED = 1_700_000_000
BLOCK_BYTES = 64 * 1024
USUAL_BYTES = 310


@dataclass(frozen=True, slots=True)
class Load:
    """So many reports over so many connections, and how they lie on the stream."""

    count: int
    connections: int = 16
    delimiter: str = "newline"
    size: int = 0
    """Bytes that a report is padded to; 0 leaves it at its some 310."""
    events: int = 0
    """Other events behind each report."""
    started: int = STARTED
    """When the first call began, Unix seconds."""


def render(load: Load, directory: Path) -> Path:
    """Write the load to a file there, once, with its blocks beside it; return the file."""
    file = directory / "-".join(map(str, ("load", *astuple(load))))
    blocks_file = blocks_of(file)
    if blocks_file.exists():
        return file
    ends, end = [], 0
    with file.open("wb") as written:
        for block in _blocks(load):
            end += written.write(block)
            ends.append(end)
    blocks_file.write_text(json.dumps(ends))
    return file


def blocks_of(file: Path) -> Path:
    """Name the file that tells where each block of a load ends."""
    return file.with_name(f"{file.name}.blocks")


def _blocks(load: Load) -> Iterator[bytes]:
    """Whole reports, some 64 KiB in each block; at least one block for each connection."""
    forms = ReportForms(DIALECT, load.delimiter, started=load.started, events=load.events)
    reports = BLOCK_BYTES // max(load.size, forms.size)
    step = max(1, min(reports, load.count // load.connections))
    for start in range(0, load.count, step):
        block = forms.stamp(range(start, min(load.count, start + step)))
        yield _padded(block, load.size) if load.size else block


def _padded(block: bytes, size: int) -> bytes:
    """Give each line a last key that brings it to so many bytes, line feed included."""
    empty = len(b',"note":""\n')
    lines = (line[:-1] for line in block.splitlines())
    return b"".join(
        b'%b,"note":"%b"}\n' % (line, b"-" * (size - 1 - len(line) - empty)) for line in lines
    )
