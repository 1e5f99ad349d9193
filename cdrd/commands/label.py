"""Turns what a check has found into lines, each behind its label."""

from typing import Final

LABEL_WIDTH: Final = 16


def say(label: str, text: object) -> None:
    """Print a line."""
    print(f"  {label:<{LABEL_WIDTH}}  {text}")
