"""A clock that is set: of one program and its children, whatever the machine's own shows."""

import struct
import subprocess
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_suffix(".c")
SECOND: Final = 1_000_000_000  # nanoseconds


class SetClock:
    """What programs with its ``environment`` take for the time; it begins as the machine's."""

    def __init__(self, directory: Path) -> None:
        """Keep what it needs in a directory."""
        library = directory / "set_clock.so"
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
        self._file = directory / "clock-ahead"
        self._file.write_bytes(_spell(0))
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_AHEAD": str(self._file)}

    def set_ahead(self, seconds: float) -> None:
        """Set it so many seconds ahead of the machine's; behind it where they are negative."""
        with self._file.open("r+b") as file:
            file.write(_spell(seconds))


def _spell(seconds: float) -> bytes:
    return struct.pack("q", round(seconds * SECOND))
