"""Turns inputs into long ones, and the time that these take into those whose cost is not linear.

A peer decides what comes and in which pieces: whatever it sends over and over, the last megabyte
must take no longer than the first.
"""

import time
from collections.abc import Callable, Iterable, Iterator

from cdrd.sizes import KIB

SMALL, LARGE = 32 * KIB, 256 * KIB
PIECE = 100
"""As many bytes come at once: what is looked at again with each piece shows."""

MOST = 3
"""So many times longer a byte of the large one may take, where in truth it is as long."""

HEADS = (b"", b'{"a":"', b'{"action":[{"a":', b'{"a":1,\n', b"POST / HTTP/1.1\r\n", b'"')

Pour = Callable[[list[bytes]], None]


def too_slow(pour: Pour, units: Iterable[bytes]) -> Iterator[bytes]:
    """Return the units whose repetition takes the more time a byte the longer it is."""
    for unit in units:
        for head in HEADS:
            if unit and _is_too_slow(pour, head, unit):
                yield head + b" ... " + unit


def _is_too_slow(pour: Pour, head: bytes, unit: bytes) -> bool:
    factor = MOST * LARGE / SMALL
    small = _seconds(pour, head, unit, SMALL)
    # The machine is never exact: only what is confirmed by the best of several counts.
    return all(
        _seconds(pour, head, unit, LARGE) > factor * max(small, _seconds(pour, head, unit, SMALL))
        for _ in range(3)
    )


def _seconds(pour: Pour, head: bytes, unit: bytes, size: int) -> float:
    stream = (head + unit * (size // len(unit) + 1))[:size]
    pieces = [stream[at : at + PIECE] for at in range(0, size, PIECE)]
    began = time.thread_time()
    pour(pieces)
    return time.thread_time() - began
