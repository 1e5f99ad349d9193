"""``cdrd serve``: the daemon, in the foreground."""

import argparse
import asyncio
import os
import resource
import sqlite3
import sys

import uvloop

from cdrd.commands.arguments import add_config_argument
from cdrd.config import ConfigError, find_config, load_config, missing_packages
from cdrd.exits import EXIT_DONE, EXIT_FAILED
from cdrd.store import StoreUnusable
from cdrd.store_process import StoreProcess


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``-c``: the configuration says the rest."""
    add_config_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    path = find_config(arguments.config, os.environ)
    config = load_config(path)
    if missing := missing_packages(config):
        raise ConfigError("\n".join(f"{path}: {sentence}" for sentence in missing))
    if not config.pbx:
        print(f"{path}: no [[pbx]] is configured: every peer will be refused", file=sys.stderr)
    _allow_all_descriptors()
    try:
        process = StoreProcess()
        # Imported here: it takes a tenth of a second, in which the process gets ready.
        from cdrd.daemon import serve  # noqa: PLC0415

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(config, path, process))
    except (StoreUnusable, OSError, sqlite3.Error) as error:
        print(f"cdrd serve: {error}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_DONE


def _allow_all_descriptors() -> None:
    """Have as many connections as we may: a shell allows 1,024 unless it is asked for more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
