"""Puts finished files under their names: what is found there is whole, or was there before.

The rule that must stay true: whatever ends the work, nothing of it is left, and no file is replaced
that was not to be.
"""

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from cdrd.sync import sync

OF_A_DATABASE: Final = (
    *("", "-wal", "-shm", "-journal"),
    *(".lock", ".control", ".logins", ".silent", ".spool", ".spool.damaged"),
)
"""What the names of a database's own files end with; the first of them are SQLite's."""

_NO_LINKS: Final = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


class CannotWrite(Exception):
    """A file that cannot be written, or is there already; the text says why and what to do."""


def is_device(path: Path) -> bool:
    """Tell whether it is such as /dev/null or a pipe, which is written to and never replaced."""
    try:
        mode = path.stat().st_mode
    except OSError:  # it is not there, or whoever writes to it is told why that cannot be
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def check_free(paths: Sequence[Path], *, replace: bool) -> None:
    """Raise CannotWrite where one of the files may not appear."""
    for path in paths:
        with _told(path), contextlib.suppress(FileNotFoundError):
            path.lstat()  # may be refused, which the others do not always tell from none
            if path.is_dir():
                raise CannotWrite(f"{path} is a directory: name a file")
            if not replace:
                raise CannotWrite(f"{path} exists: --force replaces it")


def check_apart(paths: Sequence[Path], database: Path) -> None:
    """Raise CannotWrite where one of the files is the database's own, by whatever name."""
    own = [Path(f"{os.path.realpath(database)}{ending}") for ending in OF_A_DATABASE]
    there = {identity(file) for file in own} - {None}
    for path in paths:
        if Path(os.path.realpath(path)) in own or identity(path) in there:
            raise CannotWrite(f"{path} belongs to {database}, which is read: name another file")


def identity(path: Path) -> tuple[int, int] | None:
    """Tell a file from any other, by whatever name; None where it cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def drafts(paths: Sequence[Path], *, replace: bool) -> Iterator[list[Path]]:
    """Give a path to write to for each of the files, which are all in one directory.

    When the block ends without an error, the drafts appear under their names. They stand in a
    directory of their own beside the files, which is gone afterwards. Raises CannotWrite.
    """
    check_free(paths, replace=replace)
    paths = [Path(os.path.realpath(path)) for path in paths]
    directory = paths[0].parent
    with (
        _told(directory),
        tempfile.TemporaryDirectory(prefix=f".{paths[0].name}.", dir=directory) as workspace,
    ):
        written = [Path(workspace, path.name) for path in paths]
        yield written
        for draft in written:
            sync(draft)
        for draft, path in zip(written, paths, strict=True):
            _put(draft, path, replace=replace)
        sync(directory)


@contextlib.contextmanager
def _told(directory: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CannotWrite(f"{error.filename or directory}: {error.strerror}") from error


def _put(draft: Path, path: Path, *, replace: bool) -> None:
    """Give a file its name, without ever replacing one that has appeared meanwhile."""
    if replace:
        draft.replace(path)
        return
    try:
        path.hardlink_to(draft)
    except FileExistsError as error:
        raise CannotWrite(f"{path} exists: --force replaces it") from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        check_free([path], replace=False)  # such as a memory stick, which knows no links
        draft.replace(path)
