"""``cdrd simulate``: a PBX to test with, and a load of reports."""

import argparse

from cdrd.simulate import load, pbx


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what can be simulated."""
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    for name, module, summary in (
        ("pbx", pbx, "a PBX that reports over TCP, HTTP, WebSocket or webhook, with its history"),
        ("load", load, "many kept-open connections that send reports to a listening daemon"),
    ):
        kind = kinds.add_parser(name, help=summary, description=summary)
        module.add_arguments(kind)
        kind.set_defaults(run=module.run)
