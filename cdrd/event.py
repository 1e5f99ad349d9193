"""Turns the texts of events that are no released calls into their names, and makes no more of them.

A PBX tells of twenty other events to a released call. Nothing of what they say is kept, so it is
checked that each is one whole JSON object, and no objects are made of it: that takes less than half
the time of a parse. The rule that must stay true: a text that may be a released call's, or that is
odd in any way, is left to the parse.
"""

from collections import Counter
from contextlib import suppress
from typing import Final

import msgspec

from cdrd.report import NEW_CDR


class _Head(msgspec.Struct, gc=False):
    """What names an event, in the dialects known; anything else of a text is checked and left."""

    action: str | None = None
    event: str | None = None


_read_head: Final = msgspec.json.Decoder(_Head).decode

SAMPLE: Final = 8
"""So many texts of a block tell whether most of it is other events."""

MAX_LENGTH: Final = 1536
"""Characters; a longer text may nest so deeply that the parse takes it, or not, where we would do
the other: that bound is the interpreter's, and shared with what calls us."""

_ODD: Final = (msgspec.DecodeError, RecursionError)
"""What is raised for text that is no JSON object, an event's name that is none, deep nesting."""


def skim(texts: list[str]) -> tuple[list[str], Counter[str]]:
    """Part the other events from texts; return the texts left, and how often each event came.

    Where any text is odd, or long, all are left.
    """
    if max(map(len, texts)) > MAX_LENGTH:
        return texts, Counter()
    try:
        heads = list(map(_read_head, texts))
    except _ODD:
        return texts, Counter()
    names = [head.action or head.event or "" for head in heads]
    events = Counter(names)
    for name in [name for name in events if not _names_other(name)]:
        del events[name]
    left = [text for text, name in zip(texts, names, strict=True) if name not in events]
    return left, events


def are_mostly_events(texts: list[str]) -> bool:
    """Tell by the first few texts, where there are more, whether most are what is skimmed."""
    if len(texts) <= SAMPLE:
        return False
    left, _ = skim(texts[:SAMPLE])
    return len(left) < SAMPLE / 2


def name_of_other(text: bytes | bytearray) -> str:
    """Return by what name a text alone would be skimmed; ``""`` where it would be left."""
    with suppress(UnicodeDecodeError):
        _, events = skim([text.decode()])
        return next(iter(events), "")
    return ""


def _names_other(name: str) -> bool:
    """Tell whether a name, as spelt, is another event's for certain."""
    return name not in ("", NEW_CDR) and name == name.strip()
