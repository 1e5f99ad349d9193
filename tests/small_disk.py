"""A small file system of its own, to be filled."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

DISK = "4m"


@contextlib.contextmanager
def small_disk(directory: Path, size: str = DISK) -> Iterator[tuple[Path, list[str]]]:
    """A small file system in a mount namespace of its own: its place from outside, and a way in."""
    mount = f"mount -t tmpfs -o size={size} none {directory} && echo made; exec cat"
    command = ["unshare", "--mount", "--", "sh", "-c", mount]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "made\n", "unshare --mount needs root"
        inside = ["nsenter", f"--mount=/proc/{keeper.pid}/ns/mnt"]
        yield Path(f"/proc/{keeper.pid}/root{directory}"), inside
        keeper.kill()


def fill(file: Path) -> None:
    """Take all the room that the disk has left."""
    with file.open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"\0" * 4096)
