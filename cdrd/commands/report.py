"""``cdrd report``: the figures of calls or conferences, in all and by group."""

import argparse
import contextlib
import gzip
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cdrd.commands.arguments import Usage, text
from cdrd.commands.report_page import NoCharts, check_charts, sheet_page
from cdrd.commands.report_sheet import Sheet, sheet_csv, sheet_json, sheet_table
from cdrd.commands.selecting import add_selection_arguments, open_selected, selected
from cdrd.exits import EXIT_DONE, EXIT_FAILED, EXIT_USAGE
from cdrd.formats import COMPRESSION, split_ending
from cdrd.seizures import SOURCES, read_seizures, read_span
from cdrd.store import StoreUnusable
from cdrd.target import CannotWrite, check_apart, check_free, drafts, is_device
from cdrd.traffic import TIMES, Seizure, Window, measure

FORMS: Final = {
    "table": sheet_table,
    "csv": sheet_csv,
    "json": sheet_json,
    "html": sheet_page,
}
ENDINGS: Final = {"txt": "table", "csv": "csv", "json": "json", "html": "html", "htm": "html"}
SHOWN_EVERY: Final = 5000
"""Seizures between two looks at the progress bar; each costs some 20 us."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add of what, which of it, by what, and in what form."""
    parser.add_argument(
        "records", nargs="?", choices=tuple(SOURCES), default="calls", help="default: calls"
    )
    add_selection_arguments(parser, "conferences")
    parser.add_argument(
        "--pbx",
        dest="pbxs",
        type=text,
        action="append",
        default=[],
        metavar="NAME",
        help="only of this PBX (may be repeated)",
    )
    groupings = [name for source in SOURCES.values() for name in source.groupings]
    parser.add_argument(
        "--by",
        choices=tuple(dict.fromkeys((*TIMES, *groupings))),
        help="the figures of each of these, beside those of all",
    )
    parser.add_argument(
        "--format", choices=tuple(FORMS), help="default: by FILE's ending; on stdout table"
    )
    parser.add_argument(
        "-o",
        "--output",
        default="-",
        metavar="FILE",
        help="write there; with .gz behind its ending compressed (default -: stdout)",
    )
    parser.add_argument("--force", action="store_true", help="replace FILE where there is one")


def run(arguments: argparse.Namespace) -> int:
    """Print the figures, or write them to a file."""
    try:
        _check(arguments)
        _deliver(_report(arguments), arguments.output, replace=arguments.force)
    except Usage as error:
        print(f"cdrd report: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (StoreUnusable, NoCharts, CannotWrite) as error:
        print(f"cdrd report: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("cdrd report: interrupted: there is no report", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_DONE


def _check(arguments: argparse.Namespace) -> None:
    """Make the arguments agree. Raises Usage, CannotWrite and NoCharts, before anything is read."""
    if arguments.records == "calls":
        if arguments.senders or arguments.tenants:
            raise Usage("calls have no portal and no tenant: say cdrd report conferences")
        arguments.senders = arguments.pbxs
    elif arguments.pbxs:
        raise Usage("conferences come from portals: give --portal instead of --pbx")
    choices = (*TIMES, *SOURCES[arguments.records].groupings)
    if arguments.by not in (None, *choices):
        raise Usage(f"{arguments.records} can be grouped by {', '.join(choices)}")
    path = Path(arguments.output)
    makes_file = arguments.output != "-" and not is_device(path)
    ending, arguments.compress = split_ending(arguments.output)
    arguments.format = arguments.format or ENDINGS.get(ending, "" if makes_file else "table")
    if not arguments.format:
        raise Usage(
            f"{arguments.output}: its ending tells no format: give one of "
            f"{', '.join(f'.{name}' for name in ENDINGS)}, or --format"
        )
    if arguments.format == "html":
        check_charts()
    if makes_file:
        check_free([path], replace=arguments.force)


def _report(arguments: argparse.Namespace) -> bytes:
    database, selection, zone = selected(arguments, arguments.records, tells_times=True)
    check_apart([Path(arguments.output)], database)
    source = SOURCES[arguments.records]
    start, end = map(_epoch, selection.period)
    now, by = int(time.time()), arguments.by or ""
    with open_selected(database) as reader:
        span = read_span(reader, source, selection) if sys.stderr.isatty() else None
        with contextlib.closing(
            read_seizures(reader, source, selection, by=by, now=now)
        ) as seizures:
            shown = _watched(seizures, *span) if span else seizures
            traffic = measure(shown, Window(start, end, zone), now=now, by=by)
    told = Sheet(
        arguments.records, _shown(start, zone), _shown(end, zone), str(zone), arguments.by, traffic
    )
    page = FORMS[arguments.format](told).encode(errors="replace")
    return gzip.compress(page, COMPRESSION, mtime=0) if arguments.compress else page


def _epoch(instant: str) -> int | None:
    return int(datetime.fromisoformat(instant).timestamp()) if instant else None


def _shown(instant: int | None, zone: tzinfo) -> str | None:
    """Spell an end of the range as the zone's clocks show it, with its offset."""
    if instant is None:
        return None
    try:
        return datetime.fromtimestamp(instant, zone).isoformat()
    except (ValueError, OverflowError):  # the zone's clocks show the year 10000
        return datetime.fromtimestamp(instant, UTC).isoformat()


def _watched(seizures: Iterable[Seizure], first: int, last: int) -> Iterator[Seizure]:
    """Show on the terminal how far the reading has come, by the time that it has reached."""
    console = Console(stderr=True)
    columns = (TextColumn("reading"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=max(last - first, 1))
        for number, seizure in enumerate(seizures):
            if number % SHOWN_EVERY == 0:
                progress.update(task, completed=max(seizure.started - first, 0))
            yield seizure


def _deliver(page: bytes, output: str, *, replace: bool) -> None:
    """Write to stdout, or a file that appears when it is complete. Raises CannotWrite."""
    path = Path(output)
    if output == "-":
        sys.stdout.buffer.write(page)
        sys.stdout.flush()
    elif is_device(path):
        try:
            path.write_bytes(page)
        except OSError as error:
            raise CannotWrite(f"{path}: {error.strerror}") from error
    else:
        with drafts([path], replace=replace) as [draft]:
            draft.write_bytes(page)
