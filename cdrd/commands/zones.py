"""Turns ``--timezone``, or else the configuration, into the zone of the times that a user gives.

The rule that must stay true: where those who are meant are in several zones, none is guessed.
"""

import argparse
from collections.abc import Iterable
from datetime import UTC, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cdrd.commands.arguments import Usage
from cdrd.config import Pbx, Portal


def add_timezone_argument(parser: argparse.ArgumentParser, told: str) -> None:
    """Add ``--timezone``, with what it is the zone of."""
    parser.add_argument("--timezone", type=_zone, metavar="ZONE", help=told)


def _zone(text: str) -> ZoneInfo:
    try:
        return ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(
            f"no time zone {text!r}: give one such as Europe/Berlin"
        ) from error


def zone_of(meant: Iterable[Pbx | Portal]) -> tzinfo:
    """Return the zone that all who are meant are in, UTC where there is none. Raises Usage."""
    zones = {one.timezone for one in meant}
    if len(zones) > 1:
        raise Usage(f"the time zones differ ({', '.join(sorted(zones))}): name one with --timezone")
    return ZoneInfo(zones.pop()) if zones else UTC
