"""Turns what stands behind `cdrd simulate` into settings, and what it has to say into remarks."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from cdrd.address import parse_address
from cdrd.simulate.reports import DELIMITERS, DIALECTS

KINDS = {
    "tcp": "S-Series API 2.0.0, programs dial it",
    "http": "S-Series, posts to who has registered",
    "cloud": "Cloud PBX, as http, but its token is refreshed in place of a heartbeat",
    "websocket": "P-Series, programs subscribe",
    "webhook": "P-Series, posts to --post-to",
}

_DIGITS = 18
_FARTHEST_ZONE = 14 * 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `cdrd simulate pbx`."""
    parser.description = (
        "A PBX to test with: programs log in to it, or are posted to, and receive calls and other "
        "events as from a real one. Play begins with the first login, subscription or "
        "registration, or at once where it is told whom to post to. At its end it prints what it "
        "has sent as one JSON line. With a web API it serves its history on after the last call."
    )
    parser.set_defaults(usage_error=parser.error)
    _add_role_arguments(parser)
    _add_limit_arguments(parser)
    add_report_arguments(parser, "that of the kind", "")
    _add_play_arguments(parser)


def _add_role_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    kinds = "; ".join(f"{name}: {meaning}" for name, meaning in KINDS.items())
    add("--kind", choices=tuple(KINDS), default="tcp", help=f"how it reports. {kinds}")
    add(
        "--listen",
        type=address,
        metavar="HOST:PORT",
        help="where to listen: for tcp the event port (default: 127.0.0.1:8333), otherwise the web "
        "API (default: 127.0.0.1:8088; for webhook none); port 0 picks a free one",
    )
    add("--api", type=address, metavar="HOST:PORT", help="for tcp: serve the web API there too")
    add("--username", default="api", help="of the API account, or client id (default: api)")
    add(
        "--password-file",
        type=_first_line,
        dest="password",
        metavar="FILE",
        help="its first line is the API account's password (default: the password is api)",
    )
    add("--certificate", type=Path, metavar="FILE", help="serve the web API over https and wss")
    add("--key", type=Path, metavar="FILE", help="the certificate's private key")
    add("--post-to", metavar="URL", help="for webhook, and for http without a registration")
    add(
        "--secret-file",
        type=_first_line,
        dest="secret",
        metavar="FILE",
        help="for webhook: its first line is the key of X-Signature (default: no signature)",
    )


def _add_limit_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--token-seconds",
        type=amount,
        default=1800,
        metavar="N",
        help="a token of the web API dies after so long: S-Series without a request, P-Series in "
        "any case (default: 1800)",
    )
    add(
        "--silence-seconds",
        type=amount,
        default=60,
        metavar="N",
        help="a WebSocket that says nothing for so long is dropped (default: 60)",
    )
    add(
        "--random-seconds",
        type=amount,
        default=30,
        metavar="N",
        help="a random of the S-Series history is good for so long (default: 30)",
    )


def _add_play_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--rate", type=amount, default=1, metavar="CALLS", help="a second, 0: flat out (default: 1)"
    )
    add(
        "--events",
        type=at_least(0),
        default=3,
        metavar="N",
        help="other events a call (default: 3)",
    )
    add("--count", type=at_least(0), default=0, metavar="N", help="end after N calls (0: never)")
    add("--seconds", type=amount, default=0, metavar="N", help="end after N seconds (0: never)")
    add(
        "--unpushed-every",
        type=at_least(0),
        default=0,
        metavar="N",
        help="every Nth call is never sent and only stands in the history (0: none)",
    )
    add(
        "--reset-every",
        type=at_least(0),
        default=0,
        metavar="N",
        help="break all connections after every N calls, by reset and by close in turn (0: never)",
    )
    add(
        "--chunk",
        type=at_least(0),
        default=0,
        metavar="BYTES",
        help="cut the stream into writes of so many bytes (0: a report a write)",
    )


def add_report_arguments(
    parser: argparse.ArgumentParser, dialect: str, default: str | None = None
) -> None:
    """Declare how reports look: the dialect, with its default in words, the delimiter, the zone."""
    parser.add_argument(
        "--dialect",
        choices=DIALECTS,
        default=dialect if default is None else default,
        help=f"the reports' dialect (default: {dialect})",
    )
    meanings = "; ".join(f"{name}: {meaning}" for name, meaning in DELIMITERS.items())
    parser.add_argument(
        "--delimiter",
        choices=tuple(DELIMITERS),
        default="newline",
        help=f"what stands between two reports (default: newline). {meanings}",
    )
    parser.add_argument(
        "--utc-offset",
        type=_utc_offset,
        default=0,
        metavar="MINUTES",
        help="the PBX's own clock, minutes east of UTC (default: 0)",
    )


def address(text: str) -> tuple[str, int]:
    """HOST:PORT as a command-line argument."""
    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def at_least(lowest: int) -> Callable[[str], int]:
    """Make the type of a command-line argument that is a whole number of that size or more."""

    def whole_number(text: str) -> int:
        digits = text.isascii() and text.isdecimal() and len(text) <= _DIGITS
        if not digits or int(text) < lowest:
            raise argparse.ArgumentTypeError(f'"{text}" is no whole number of {lowest} or more')
        return int(text)

    return whole_number


def amount(text: str) -> float:
    """Seconds, or calls a second, as a command-line argument: a number of 0 or more."""
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f'"{text}" is no number of 0 or more')
    return number


def _utc_offset(text: str) -> int:
    """Minutes east of UTC as a command-line argument."""
    try:
        minutes = int(text)
    except ValueError:
        minutes = _FARTHEST_ZONE + 1
    if abs(minutes) > _FARTHEST_ZONE:
        zone = f"from {-_FARTHEST_ZONE} to {_FARTHEST_ZONE}"
        raise argparse.ArgumentTypeError(f'"{text}" is no number of minutes {zone}')
    return minutes


def _first_line(path: str) -> str:
    try:
        first_line = Path(path).read_text("utf-8").partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(
            f'cannot read a password from "{path}": {error}'
        ) from error
    if not first_line:
        raise argparse.ArgumentTypeError(f'the first line of "{path}" is empty: write a password')
    return first_line


def reason(error: OSError) -> str:
    """Say why, without the address that asyncio puts into some of these texts."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)


def remark(sentence: str) -> None:
    """Write a remark on stderr, at once."""
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()
