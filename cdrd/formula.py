"""Keeps a text from being run by a spreadsheet as a formula, and gives it back as it was.

The rule that must stay true: what is taken off is what was put on, whatever the text.
"""

import re
from typing import Final

NUMBER: Final = r"[-+]?[0-9]+(?:\.[0-9]+|(?: [0-9]+)+)?"
"""A number or a telephone number, its groups of digits parted by blanks: nothing there to run."""

# A text that has an apostrophe in front already gets another one, so that it keeps its own.
_RUNS: Final = re.compile(rf"'*(?!{NUMBER}\Z)[-=+@\t\n\r]")


def guarded(text: str) -> str:
    """Put an apostrophe before what a spreadsheet may run, as it takes it for text then."""
    return f"'{text}" if _RUNS.match(text) else text


def unguarded(text: str) -> str:
    """Take off the apostrophe that ``guarded`` has put there."""
    return text[1:] if text[:1] == "'" and _RUNS.match(text, 1) else text
