"""A database that a disk has damaged, and what an operator does about it."""

import shutil
from pathlib import Path

from cdrd.schema import PAGE_BYTES


def damage(database: Path, spared: int = PAGE_BYTES) -> bytes:
    """Overwrite all pages but the first, as they stand in the file; return what it is then.

    ``spared``: so many bytes at its beginning; 0 takes the first page too.
    """
    with database.open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(spared)
        file.write(b"\xff" * (size - spared))
    return database.read_bytes()


def drop_wal(database: Path) -> None:
    """Remove the WAL of a database that nobody has open."""
    for ending in ("-wal", "-shm"):
        Path(f"{database}{ending}").unlink(missing_ok=True)


def put_back(backup: Path, database: Path) -> None:
    """Replace a database by a copy, as the advice says."""
    drop_wal(database)
    draft = database.with_name("draft")
    shutil.copyfile(backup, draft)
    draft.replace(database)
