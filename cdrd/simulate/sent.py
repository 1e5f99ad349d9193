"""Turns a load into what came of it: all of it was sent, or why not and how much was.

The rule that must stay true: what is told as sent was taken by the system, or answered 200.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sent:
    """What a load came to: bytes on the wire, and seconds from the first write to the last."""

    reports: int
    events: int
    bytes: int
    seconds: float

    @property
    def rate(self) -> float:
        """Reports a second."""
        return self.reports / self.seconds if self.seconds else 0.0


class LoadFailed(Exception):
    """The daemon could not be reached, or did not take all; the text says how much it had."""
