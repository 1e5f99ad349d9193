"""Arguments that several commands share."""

import argparse
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final, cast

from cdrd.exits import ConfigError

STDIN: Final = "-"
"""The FILE that is standard input."""


class Usage(Exception):
    """Arguments that do not go together; the text says what to do. Exit status 2."""


def text(given: str) -> str:
    """Take an option's value that is looked for in the database, or is a name that SQLite gets.

    What is no UTF-8 comes as text with surrogates in it, which SQLite takes none of.
    """
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"{given!r} is no UTF-8") from error
    return given


def as_text(name: str) -> str:
    """Return a file's name as text that the database and any output can take."""
    return os.fsencode(name).decode(errors="replace")


def open_stdin() -> BinaryIO:
    """Return standard input unbuffered.

    A buffered read is several system calls, and a Ctrl-C between two of them is not seen until the
    pipe has more.
    """
    return cast(BinaryIO, io.FileIO(0, closefd=False))


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``-c/--config``."""
    parser.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        help="configuration (default: $CDRD_CONFIG, ./config.toml, /etc/cdrd/config.toml)",
    )


def add_database_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--db`` and ``-c``, for a command that only reads records."""
    add_config_argument(parser)
    parser.add_argument(
        "--db", metavar="FILE", help="the database itself; no configuration is read"
    )


def database_path(arguments: argparse.Namespace) -> Path:
    """Return the database that ``--db`` or the configuration names. Raises ConfigError."""
    if arguments.db:
        path = Path(arguments.db)
    else:
        # Imported here: it takes a tenth of a second, and serve has other things to do first.
        from cdrd.config import find_config, load_config  # noqa: PLC0415

        path = Path(load_config(find_config(arguments.config, os.environ)).database.path)
    return existing(path)


def existing(path: Path) -> Path:
    """Return a database's path if there is one. Raises ConfigError."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: there is no such database; cdrd serve makes it at its first start"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: join the group of the database") from error
    if stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{path} is a directory: name the database in it")
    return path
