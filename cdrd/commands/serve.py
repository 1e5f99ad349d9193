"""``cdrd serve``: the daemon, in the foreground."""

import argparse
import asyncio
import contextlib
import gc
import os
import resource
import signal
import sqlite3
import sys
from collections.abc import Iterator

import uvloop

from cdrd.commands.arguments import add_config_argument
from cdrd.exits import EXIT_DONE, EXIT_FAILED, ConfigError
from cdrd.store_process import StoreProcess


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``-c``: the configuration says the rest."""
    add_config_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    # A SIGHUP waits until the daemon takes it: its default is to end us.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    try:
        process = StoreProcess()
    except OSError as error:
        return _failed(error)
    # Imported here: it takes a fifth of a second, in which the process gets ready.
    with _hidden("rich"):  # structlog would import it, for tracebacks: 70 ms and 5 MiB
        from cdrd.config import find_config, load_config  # noqa: PLC0415
        from cdrd.daemon import serve  # noqa: PLC0415
        from cdrd.store import StoreUnusable  # noqa: PLC0415

    try:
        path = find_config(arguments.config, os.environ)
        config = load_config(path)
    except ConfigError:
        process.abandon()
        raise
    if not config.pbx:
        print(f"{path}: no [[pbx]] is configured: every peer will be refused", file=sys.stderr)
    _allow_all_descriptors()
    # What is there stays, and the 900 objects that hold others in a block of other events go with
    # it: to look for garbage among all that took a quarter of the time of such events.
    gc.freeze()
    gc.set_threshold(2000)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(config, path, process))
    except (StoreUnusable, OSError, sqlite3.Error) as error:
        return _failed(error)
    return EXIT_DONE


def _failed(error: Exception) -> int:
    print(f"cdrd serve: {error}", file=sys.stderr)
    return EXIT_FAILED


@contextlib.contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Have whatever is imported meanwhile do without a package that it can do without."""
    before = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore[assignment] # Python's way to say that it is not there
    try:
        yield
    finally:
        del sys.modules[package]
        if before is not None:
            sys.modules[package] = before


def _allow_all_descriptors() -> None:
    """Have as many connections as we may: a shell allows 1,024 unless it is asked for more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
