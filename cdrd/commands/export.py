"""``cdrd export``: call records or conference legs, to files for people and programs."""

import argparse
import contextlib
import importlib
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from cdrd.apart import Apart, has_processors
from cdrd.columns import RECORDS, Layout, NoSuchColumn, lay_out
from cdrd.commands.arguments import Usage
from cdrd.commands.selecting import add_selection_arguments, open_selected, selected
from cdrd.exits import EXIT_DONE, EXIT_FAILED, EXIT_USAGE
from cdrd.export import LIMIT, Snapshot, open_snapshot, pages
from cdrd.formats import (
    BINARY,
    CELL_UNITS,
    COMPRESSED,
    FORMATS,
    LIBRARIES,
    Writer,
    compressed,
    split_ending,
)
from cdrd.leg import missing_columns
from cdrd.record import MAX_INTEGER
from cdrd.store import StoreUnusable
from cdrd.target import CannotWrite, check_apart, check_free, drafts, is_device

STDOUT: Final = "-"
REFRESH_SECONDS: Final = 0.1

Advance = Callable[[int], None]


class Refused(Exception):
    """An export that is not begun, or not finished; the text says why and what to do."""


class Output(NamedTuple):
    """Where an export goes, and in which form."""

    path: Path | None  # None is stdout
    format: str
    compress: bool
    split: bool
    replace: bool

    def parts(self, count: int) -> list[Path]:
        """Return the files that so many records go to."""
        if self.path is None or is_device(self.path):
            return []
        if not self.split:
            return [self.path]
        return [_part(self.path, number) for number in range(1, max(1, -(-count // LIMIT)) + 1)]


@dataclass(slots=True)
class Tally:
    """How many records have been written, and where to."""

    records: str
    written: int = 0
    place: str = ""

    def __str__(self) -> str:
        return f"{self.written} {self.records} written{self.place}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the two kinds of records."""
    kinds = parser.add_subparsers(metavar="RECORDS", required=True)
    for records, told in (("calls", "call records"), ("conferences", "a portal's conference legs")):
        kind = kinds.add_parser(records, help=told, description=f"Exports {told}.")
        add_selection_arguments(kind, records)
        _add_output_arguments(kind)
        kind.set_defaults(records=records)


def _add_output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--columns", default="", metavar="A,B,C", help="only these, in this order (default: all)"
    )
    parser.add_argument(
        "--header",
        choices=("view", "original"),
        default="view",
        help="our column names, or those of the PBX or portal (default view)",
    )
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        help="default: by FILE's ending; on stdout csv; for a spreadsheet take xlsx, as in csv it"
        " makes 42 of 0042 unless the columns are opened as text",
    )
    parser.add_argument(
        "-o",
        "--output",
        default=STDOUT,
        metavar="FILE",
        help="write there; with .gz behind its ending compressed (default -: stdout)",
    )
    parser.add_argument("--force", action="store_true", help="replace FILE where there is one")
    larger = parser.add_mutually_exclusive_group()
    larger.add_argument(
        "--split", action="store_true", help=f"files of {LIMIT} records each: FILE-001, FILE-002"
    )
    larger.add_argument(
        "--no-limit", action="store_true", help=f"also more than {LIMIT} records into one file"
    )


def run(arguments: argparse.Namespace) -> int:
    """Export; the last line on stderr tells how many records were written."""
    tally = Tally(arguments.records)
    try:
        with _ended_by_sigterm():
            _export(arguments, tally)
    except (Usage, NoSuchColumn) as error:
        print(f"cdrd export: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (Refused, StoreUnusable, CannotWrite, KeyboardInterrupt) as error:
        print(f"cdrd export: {str(error) or 'interrupted'}", file=sys.stderr)
        print(tally, file=sys.stderr)
        return EXIT_FAILED
    print(tally, file=sys.stderr)
    return EXIT_DONE


def _export(arguments: argparse.Namespace, tally: Tally) -> None:
    """Do it. Raises Usage, NoSuchColumn, Refused, StoreUnusable and CannotWrite."""
    records = RECORDS[arguments.records]
    names = [name.strip() for name in arguments.columns.split(",")] if arguments.columns else []
    layout = lay_out(records, names, original=arguments.header == "original")
    output = _output(arguments)
    _check_library(output.format)
    database, selection, zone = selected(arguments, arguments.records)
    with open_selected(database) as reader, open_snapshot(reader, records, selection) as snapshot:
        count = snapshot.count()
        if count > LIMIT and not (arguments.split or arguments.no_limit):
            raise Refused(_too_many(snapshot, count, arguments.records, zone))
        paths = output.parts(count)
        check_apart(paths, database)
        _check_parts(output, paths)
        _check_portals(snapshot, layout)
        _check_cells(snapshot, layout, output)
        rows = snapshot.rows(FORMATS[output.format].query(layout))
        with _progress(count, output) as advance:
            export = _Export(rows, layout, output, advance, tally)
            if not paths:
                export.to_stream()
            else:
                export.to_files(paths)
        assert tally.written == count  # of one moment, both


def _output(arguments: argparse.Namespace) -> Output:
    """Make the arguments agree on where to and in which form. Raises Usage."""
    to_stdout = arguments.output == STDOUT
    ending, compress = split_ending(arguments.output)
    form = arguments.format or ("csv" if to_stdout else ending)
    if form not in FORMATS:
        raise Usage(
            f"{arguments.output}: its ending tells no format: give one of "
            f"{', '.join(f'.{name}' for name in FORMATS)}, or --format"
        )
    if form in BINARY and compress:
        raise Usage(f"{form} is compressed in itself: leave {COMPRESSED} away")
    if form in BINARY and to_stdout and sys.stdout.isatty():
        raise Usage(f"{form} is not for a terminal: name a file with -o")
    path = None if to_stdout else Path(arguments.output)
    if arguments.split and (path is None or is_device(path)):
        raise Usage("--split makes files: name them with -o")
    return Output(path, form, compress, arguments.split, arguments.force)


def _check_library(form: str) -> None:
    library = LIBRARIES.get(form)
    try:
        if library is not None:
            importlib.import_module(library)
    except ImportError as error:
        raise Refused(
            f"{library}, which {form} needs, is not installed: pip install 'cdrd[{form}]'"
        ) from error


def _too_many(snapshot: Snapshot, count: int, records: str, zone: tzinfo) -> str:
    months = snapshot.months(zone)
    width = len(str(count))
    lines = "\n".join(f"  {month}  {number:>{width}}" for month, number in months.items())
    return (
        f"{count} {records} are more than {LIMIT}, so nothing was written; by month ({zone}):\n"
        f"{lines}\n"
        f"Narrow --from and --to, or give --split for files of {LIMIT} each, or --no-limit for one."
    )


def _check_portals(snapshot: Snapshot, layout: Layout) -> None:
    """Refuse what an import would take for one portal's legs, and is of several. Raises Refused."""
    if "portal" in layout.headings or missing_columns(layout.headings):
        return
    portals = snapshot.senders()
    if len(portals) > 1:
        raise Refused(
            f"the legs are of portals {', '.join(portals)}, and no column would tell which: "
            "export each by itself with --portal NAME"
        )


def _check_cells(snapshot: Snapshot, layout: Layout, output: Output) -> None:
    """Refuse what a format cannot hold, before its first byte. Raises Refused."""
    longer = snapshot.longer_texts(layout, CELL_UNITS) if output.format == "xlsx" else []
    if longer:
        raise Refused(
            f"a cell of XLSX holds {CELL_UNITS} characters, and {len(longer)} records have a "
            f"longer one (seq {', '.join(map(str, longer[:5]))}{', ...' if longer[5:] else ''}): "
            "choose --columns without it, or another --format"
        )


@dataclass(slots=True)
class _Export:
    """The rows of one export on their way."""

    rows: sqlite3.Cursor
    layout: Layout
    output: Output
    advance: Advance
    tally: Tally

    def to_stream(self) -> None:
        """Write to stdout or a device. Raises CannotWrite, and BrokenPipeError."""
        name = self.output.path or "stdout"
        try:
            with _stream(self.output.path) as stream, tempfile.TemporaryDirectory() as workspace:
                if self.output.format in BINARY:
                    self._copy_whole(stream, Path(workspace))
                else:
                    for written in self._write(stream, Path(workspace)):
                        self.tally.written += written
        except BaseException as error:
            self.tally.place = " at most"  # the last of them may be on their way
            if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                raise CannotWrite(f"{name}: {error.strerror}") from error
            raise

    def to_files(self, paths: Sequence[Path]) -> None:
        """Write files that appear when all of them are complete. Raises CannotWrite."""
        written = 0
        limit = LIMIT if self.output.split else MAX_INTEGER
        with drafts(paths, replace=self.output.replace) as written_to:
            for draft in written_to:
                with draft.open("wb") as file:
                    written += sum(self._write(file, draft.parent, limit))
        self.tally.written = written
        self.tally.place = f" to {paths[0]}{f' ... {paths[-1]}' if paths[1:] else ''}"

    def _copy_whole(self, stream: BinaryIO, workspace: Path) -> None:
        """Make aside what cannot be written from front to back, and copy it."""
        with tempfile.TemporaryFile(dir=workspace) as whole:
            written = sum(self._write(whole, workspace))
            whole.seek(0)
            shutil.copyfileobj(whole, stream)
        self.tally.written = written

    def _write(self, file: BinaryIO, workspace: Path, limit: int = MAX_INTEGER) -> Iterator[int]:
        """Write the next rows, a page at a time, and yield how many they were."""
        with self._writer(file, workspace) as writer:
            for page in pages(self.rows, FORMATS[self.output.format].page_rows, limit):
                writer.write(page)
                self.advance(len(page))
                yield len(page)
            writer.close()

    @contextlib.contextmanager
    def _writer(self, file: BinaryIO, workspace: Path) -> Iterator[Writer | Apart]:
        """Give a writer, apart from this process where that is faster."""

        @contextlib.contextmanager
        def open_writer() -> Iterator[Writer]:
            with compressed(file) if self.output.compress else nullcontext(file) as target:
                yield FORMATS[self.output.format](self.layout, target, workspace)
            file.flush()

        if self.output.format in BINARY or not has_processors():
            with open_writer() as writer:
                yield writer
            return
        apart = Apart(open_writer)
        try:
            yield apart
        except BaseException:
            apart.abandon()
            raise


@contextlib.contextmanager
def _stream(path: Path | None) -> Iterator[BinaryIO]:
    with open(1 if path is None else path, "wb", closefd=path is not None) as stream:
        yield stream


def _check_parts(output: Output, paths: Sequence[Path]) -> None:
    """Refuse to leave a part of an earlier export behind ours. Raises Refused and CannotWrite."""
    check_free(paths, replace=output.replace)
    if output.path and paths and output.split:
        behind = _part(output.path, len(paths) + 1)
        if behind.exists():
            raise Refused(f"{behind} is of an earlier, longer export: remove it first")


def _part(path: Path, number: int) -> Path:
    """Put a part's number before the ending: calls-001.csv.gz."""
    ending = "".join(path.suffixes[-2:]) if path.suffix.lower() == COMPRESSED else path.suffix
    return path.with_name(f"{path.name.removesuffix(ending)}-{number:03}{ending}")


@contextlib.contextmanager
def _progress(count: int, output: Output) -> Iterator[Advance]:
    """Show on a terminal how far it has come, where the rows themselves do not go there."""
    if not sys.stderr.isatty() or (output.path is None and sys.stdout.isatty()):
        yield lambda _: None
        return
    from rich import console  # noqa: PLC0415 - 0.1 s that a pipe need not wait
    from rich import progress as bars  # noqa: PLC0415

    columns = (bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeRemainingColumn())
    # It would refresh itself in a thread, and a program with threads should not fork.
    shown = bars.Progress(
        *columns, console=console.Console(stderr=True), auto_refresh=False, transient=True
    )
    with shown:
        task = shown.add_task("", total=count)
        due = 0.0

        def advance(written: int) -> None:
            nonlocal due
            shown.advance(task, written)
            if time.monotonic() >= due:
                shown.refresh()
                due = time.monotonic() + REFRESH_SECONDS

        yield advance


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does, with no draft left behind."""
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
