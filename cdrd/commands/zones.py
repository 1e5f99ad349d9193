"""Turns ``--timezone``, or else the configuration, into the zone of the times that a user gives.

The rule that must stay true: where those who are meant are in several zones, or one of them in none
that is configured, none is guessed.
"""

import argparse
from collections.abc import Collection, Iterable
from datetime import tzinfo
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


def zone_of(configured: Iterable[Pbx | Portal], names: Collection[str] = ()) -> tzinfo:
    """Return the zone that all of these names are in; no names: all that is configured.

    Raises Usage.
    """
    meant = [one for one in configured if not names or one.name in names]
    unknown = sorted(set(names) - {one.name for one in meant})
    if unknown or not meant:
        of = f" of {', '.join(map(repr, unknown))}" if unknown else ""
        raise Usage(f"no time zone{of} is configured: name one with --timezone")
    zones = {one.timezone for one in meant}
    if len(zones) > 1:
        raise Usage(f"the time zones differ ({', '.join(sorted(zones))}): name one with --timezone")
    return ZoneInfo(zones.pop())
