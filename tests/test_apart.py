"""A writer in a process of its own is as one at hand: complete, in order, and heard to fail."""

import errno
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cdrd.apart import Apart


class Lines:
    """Writes each row's text; with ``fault`` as a row it does what that says."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, rows: Sequence[Any]) -> None:
        with self.path.open("a") as file:
            for number, text in rows:
                if text == "full":
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if text == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                file.write(f"{number} {text}\n")

    def close(self) -> None:
        with self.path.open("a") as file:
            file.write("closed\n")


def apart(path: Path) -> Apart:
    @contextmanager
    def open_writer() -> Iterator[Lines]:
        yield Lines(path)

    return Apart(open_writer)


def test_all_is_written_in_order_when_close_returns(tmp_path: Path) -> None:
    writer = apart(tmp_path / "rows")
    for page in range(100):
        writer.write([(page, "ä" * 10_000), (page, None)])
    writer.close()
    lines = (tmp_path / "rows").read_text().splitlines()
    assert [int(line.split()[0]) for line in lines[:-1]] == [page // 2 for page in range(200)]
    assert lines[-1] == "closed"


def test_its_error_is_raised_here_however_much_is_behind_it(tmp_path: Path) -> None:
    writer = apart(tmp_path / "rows")

    def write() -> None:
        writer.write([(0, "full")])
        for number in range(10_000):
            writer.write([(number, "x" * 10_000)])

    with pytest.raises(OSError, match="No space left on device"):
        write()


def test_an_error_of_the_last_rows_is_raised_by_close(tmp_path: Path) -> None:
    writer = apart(tmp_path / "rows")
    writer.write([(0, "full")])
    with pytest.raises(OSError, match="No space left on device"):
        writer.close()


def test_a_process_that_was_killed_is_an_error(tmp_path: Path) -> None:
    writer = apart(tmp_path / "rows")
    writer.write([(0, "killed")])
    with pytest.raises(OSError, match="has ended"):
        writer.close()


def test_what_is_abandoned_is_not_closed(tmp_path: Path) -> None:
    writer = apart(tmp_path / "rows")
    writer.write([(0, "x")])
    writer.abandon()
    written = (tmp_path / "rows").read_text() if (tmp_path / "rows").exists() else ""
    assert "closed" not in written
