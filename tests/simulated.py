"""A simulated PBX as a program, as ``tests.running`` has the daemon."""

import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson

from tests.running import DEADLINE_SECONDS


class SimulatedPbx:
    """``cdrd simulate pbx`` with a history, and the addresses that it has said it listens on."""

    def __init__(self, *arguments: str | Path, kind: str = "tcp") -> None:
        listening = ["--api", "127.0.0.1:0"] if kind == "tcp" else []
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "cdrd", "simulate", "pbx", "--kind", kind),
                *("--listen", "127.0.0.1:0", *listening, *map(str, arguments)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.address = self._said("listening on ")
        self.url = self._said("API on ")
        self._said("play begins")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate(timeout=DEADLINE_SECONDS)

    def stop(self) -> dict[str, int]:
        """End it, and return its counters."""
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=DEADLINE_SECONDS)
        counters: dict[str, int] = orjson.loads(out.splitlines()[-1])
        return counters

    def _said(self, before: str) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if before in line:
                return line.partition(before)[2].strip()
        raise AssertionError(f"it has not said {before!r}")
