"""``cdrd simulate``: a PBX to test with, and a load of reports."""

import argparse

from cdrd.simulate import arguments, load, roles


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be simulated."""
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    summary = "a PBX that reports over TCP, HTTP, WebSocket or webhook, with its history"
    pbx = kinds.add_parser("pbx", help=summary)
    arguments.add_arguments(pbx)
    pbx.set_defaults(run=roles.run)
    flood = kinds.add_parser(
        "load", help="many kept-open connections that send reports to a listening daemon"
    )
    load.add_arguments(flood)
    flood.set_defaults(run=load.run)
