"""Faults in the system calls of a running process, by strace: an error, a delay, a kill."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.running import DEADLINE_SECONDS


@contextlib.contextmanager
def injected(process: int, calls: str, fault: str, path: Path | str) -> Iterator[None]:
    """Have a process's system calls end as strace's ``--inject`` says, for as long as this lasts.

    ``calls``: such as ``write,pwrite64``; ``fault``: such as ``error=EIO``, ``delay_enter=500ms``
    or ``signal=KILL:when=3``; ``path``: of the file, or ``pipe:[...]``, that they are about.
    """
    only = ["-P", str(path), "-e", f"trace={calls}"]
    inject = f"inject={calls}:{fault}"
    with subprocess.Popen(
        ["strace", "-f", "-o", "/dev/null", "-p", str(process), *only, "-e", inject],
        stderr=subprocess.PIPE,
        text=True,
    ) as strace:
        assert strace.stderr is not None
        said = strace.stderr.readline()
        assert "attached" in said, said
        try:
            yield
        finally:
            strace.send_signal(signal.SIGINT)
            strace.wait(DEADLINE_SECONDS)
