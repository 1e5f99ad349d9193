"""Turns text that is no JSON for one known reason into what it was meant to be."""

import re
from typing import Final

import orjson

_ESCAPE: Final = re.compile(rb"\\(.)", re.DOTALL)


def mend(text: bytes | bytearray) -> bytes | None:
    r"""Return the text with the escape ``\_`` (typed off a page) made ``_``, if that mends it.

    Source: the vendor's pages render ``_`` as ``\_`` in their report samples.
    """
    mended = _ESCAPE.sub(lambda escape: b"_" if escape[1] == b"_" else escape[0], bytes(text))
    if mended == text:
        return None
    try:
        orjson.loads(mended)
    except orjson.JSONDecodeError:
        return None
    return mended
