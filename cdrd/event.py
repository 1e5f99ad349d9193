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

NEW_CDR: Final = "NewCdr"
"""What the S-Series and the Cloud PBX call the event of a released call."""


class _Head(msgspec.Struct, gc=False):
    """What names an event, in the dialects known; anything else of a text is checked and left."""

    action: str | None = None
    event: str | None = None


_read_head: Final = msgspec.json.Decoder(_Head).decode

_ODD: Final = (msgspec.DecodeError, RecursionError)
"""What is raised for text that is no JSON object, an event's name that is none, deep nesting."""


def skim(texts: list[str]) -> tuple[list[str], Counter[str]]:
    """Part the other events from texts; return the texts left, and how often each event came."""
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


def name_of_other(text: bytes | bytearray) -> str:
    """Return what the text of an event that is no released call calls it; ``""`` for any other."""
    with suppress(UnicodeDecodeError, *_ODD):
        head = _read_head(text.decode())
        name = head.action or head.event or ""
        return name if _names_other(name) else ""
    return ""


def _names_other(name: str) -> bool:
    """Tell whether a name, as spelt, is another event's for certain."""
    return name not in ("", NEW_CDR) and name == name.strip()
