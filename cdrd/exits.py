"""The exit statuses of every command."""

from typing import Final

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_CONFIG: Final = 78
"""EX_CONFIG of sysexits.h."""
