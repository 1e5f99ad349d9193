"""Turns known inputs into further ones, and those that fail a check into what was found."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import NamedTuple

MARKS = (b'"', b"{", b"}", b"}{", b"[", b"]", b",", b":", b"\\", b"\\_", b"\n", b"\r\n", b"\0")
BLANKS = (b" ", b"\t", b"\x1c", b"\xc2\xa0", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\xff", b"")
MOST_BYTES = 2048


class Finding(NamedTuple):
    """An input that fails its check, the shortest of those that fail in the same place."""

    given: bytes
    trace: str


def search(
    check: Callable[[bytes], None], seeds: Sequence[bytes], inputs: int, seed: int
) -> dict[object, Finding]:
    """Check the seeds and their mutations, so many in all; what was found, by its place."""
    found: dict[object, Finding] = {}
    for given in _inputs(seeds, inputs, Random(seed)):
        try:
            check(given)
        except Exception as error:  # noqa: BLE001 - whatever it is, it was found
            place = _place(error)
            if place not in found or len(given) < len(found[place].given):
                found[place] = Finding(given, "".join(traceback.format_exception(error)))
    return found


def _inputs(seeds: Sequence[bytes], inputs: int, choose: Random) -> Iterator[bytes]:
    yield from seeds[:inputs]
    for _ in range(inputs - len(seeds)):
        yield _mutated(seeds, choose)


def _mutated(seeds: Sequence[bytes], choose: Random) -> bytes:
    # Of three the shortest: it takes half the time, and a fault seldom needs a long one.
    given = bytearray(min((choose.choice(seeds) for _ in range(3)), key=len))
    for _ in range(choose.choice((1, 1, 1, 2, 2, 3, 5))):
        start = int(choose.random() * (len(given) + 1))
        end = start + int(choose.random() ** 3 * 40)
        given[start:end] = _piece(seeds, choose)
    return bytes(given[:MOST_BYTES])


def _piece(seeds: Sequence[bytes], choose: Random) -> bytes:
    kind = choose.random()
    if kind < 0.4:
        return choose.choice(MARKS)
    if kind < 0.5:
        return choose.choice(BLANKS)
    if kind < 0.6:
        return bytes([int(choose.random() * 256)])
    other = choose.choice(seeds)
    start = int(choose.random() * (len(other) + 1))
    return other[start : start + int(choose.random() ** 2 * 120)]


def _place(error: BaseException) -> object:
    """Tell where an error was raised, within so many calls."""
    calls = traceback.extract_tb(error.__traceback__)[-3:]
    return type(error), *((call.filename, call.lineno) for call in calls)
