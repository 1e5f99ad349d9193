"""Makes what was written outlast a loss of power: a file's bytes, or the names in a directory.

The rule that must stay true: a file is durable when both are. A sync of the file says nothing of
its name, and one of the directory nothing of its bytes.
"""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Make a file's bytes durable, or a directory's names. Raises OSError."""
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
