"""The exit statuses of every command, and the error that every command may end with."""

from typing import Final

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_CONFIG: Final = 78
"""EX_CONFIG of sysexits.h."""


class ConfigError(Exception):
    """The configuration cannot be used; the text names every fault, a line each."""
