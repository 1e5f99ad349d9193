"""Turns the end and the beginning of what a PBX sends us into notice of a gap: who is told of it.

The rule that must stay true: whoever receives a PBX's reports tells when some may be missing from
now on, and when they come again; what is done about it is no matter of theirs.
"""

from dataclasses import dataclass
from typing import Protocol


class GapWatch(Protocol):
    """What is told that reports of a PBX, by its configured name, may be missing.

    Each connection of a PBX's own, or what stands for one, is told once when it has begun and once
    when it ends.
    """

    def broke(self, pbx: str) -> None:
        """Take note that reports may be missing from now on."""

    def mended(self, pbx: str) -> None:
        """Take note that they come again."""

    def missed(self, pbx: str) -> None:
        """Take note that some may be missing until now, whatever stands of its own."""


class NoWatch:
    """For whoever has nobody to tell."""

    def broke(self, pbx: str) -> None:
        """Do nothing."""

    def mended(self, pbx: str) -> None:
        """Do nothing."""

    def missed(self, pbx: str) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How soon, and how often at most, a PBX is asked for its history; all in seconds."""

    settle: float = 5.0  # after a gap's end: the PBX may still be writing the last of its calls
    apart: float = 60.0  # between two fetches, so that a line that flaps is one gap
    first_retry: float = 60.0  # after a failure; half of a wait is random
    longest_retry: float = 10 * 60.0
    note: float = 60.0  # between two notes of how far nothing is missing
    overlap: float = 10.0  # within which a dead connection is gone once its PBX has come anew
