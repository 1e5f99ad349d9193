"""Opens the files of a database so that they belong to whom the database belongs.

The rule that must stay true: a command that root runs does not shut the daemon out.
"""

import os
from pathlib import Path


def open_owned(path: Path, mode: int, database: Path) -> int:
    """Open one of a database's files, or make it; root gives it to the database's owner.

    Where there is no database yet it is the directory's. ``database`` is resolved. A link in the
    file's place is refused: it may name a file of root's. Raises OSError.
    """
    is_root = os.geteuid() == 0
    known = database if is_root and database.exists() else database.parent
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    if is_root:
        owner = known.stat()
        os.fchown(file, owner.st_uid, owner.st_gid)
    return file
