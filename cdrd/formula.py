"""Keeps a text from being run by a spreadsheet as a formula, and gives it back as it was.

The rule that must stay true: what is taken off is what was put on, whatever the text.
"""

import re
from typing import Final

NUMBER: Final = r"[-+]?[0-9]+(?:\.[0-9]+|(?: [0-9]+)+)?"
"""A number or a telephone number, its groups of digits parted by blanks: nothing there to run."""

CUTS: Final = r"[;\n\r]"
"""Where a spreadsheet that goes by semicolons, as in Germany, cuts a text and begins another cell.

Quotes do not keep it from that: to such a one a quotation mark behind a comma is none.
"""

RUNS: Final = r"[-=+@]"

# What has apostrophes in front already gets another one, so that it keeps its own.
_IS_RUN: Final = rf"(?='*(?!{NUMBER}\Z){RUNS})"
_BEGINS: Final = r"(?='*[\t\n\r])"
_BARE: Final = re.compile(rf"\A{_BEGINS}|(?:\A|(?<={CUTS})){_IS_RUN}")
_GUARDED: Final = re.compile(rf"\A'{_BEGINS}|(?:\A|(?<={CUTS}))'{_IS_RUN}")


def guarded(text: str) -> str:
    """Put an apostrophe before what a spreadsheet may run, as it takes it for text then."""
    return _BARE.sub("'", text)


def unguarded(text: str) -> str:
    """Take off the apostrophes that ``guarded`` has put there."""
    return _GUARDED.sub("", text) if "'" in text else text
