"""``cdrd import``: records from files, into the database or to the daemon that writes it."""

import argparse

from cdrd.commands.import_calls import add_calls_arguments, run_calls
from cdrd.commands.import_conferences import add_conferences_arguments, run_conferences


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two kinds of records."""
    kinds = parser.add_subparsers(metavar="RECORDS", required=True)
    calls = kinds.add_parser("calls", help="from a PBX's history, captured reports, our own export")
    add_calls_arguments(calls)
    calls.set_defaults(action=run_calls)
    conferences = kinds.add_parser("conferences", help="from a conferencing portal's CDR export")
    add_conferences_arguments(conferences)
    conferences.set_defaults(action=run_conferences)


def run(arguments: argparse.Namespace) -> int:
    """Import the files."""
    status: int = arguments.action(arguments)
    return status
