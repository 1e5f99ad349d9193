"""Turns the command line into one command's run and its exit status."""

import argparse
import errno
import importlib
import sys
from collections.abc import Sequence
from typing import Final

from cdrd import __version__
from cdrd.exits import EXIT_CONFIG, EXIT_DONE, EXIT_FAILED, ConfigError
from cdrd.stdio import escape_unencodable, let_go, open_missing

COMMANDS: Final = {
    "serve": "the daemon, in the foreground; its log on stdout",
    "check": "read the configuration, say what is in force and what is wrong",
    "demo": "the main job with nothing configured, on a throw-away database",
    "follow": "stored calls as JSON lines, then each new one as it is committed",
    "export": "records to CSV, XLSX, JSON lines or Parquet",
    "import": "records from a PBX's history, captured reports, a portal's export",
    "fetch": "ask the PBXs for their history of a time, store what is missing",
    "report": "totals: calls, answered and missed, talk time, busiest hour, calls at once",
    "quarantine": "what could not become a record: list, show, retry, drop",
    "purge": "delete records by date and origin, beside a running daemon",
    "backup": "a consistent copy of the database beside a running daemon, verified",
    "simulate": "a PBX to test with, and a load of reports",
}

EXAMPLES: Final = {
    "": """first steps:
  cdrd demo                              see the whole job, nothing configured
  cdrd check -c config.example.toml      what a configuration means
  cdrd serve -c /etc/cdrd/config.toml    run the daemon
  cdrd follow --db /var/lib/cdrd/cdr.sqlite3 | jq .caller

exit status: 0 done, 1 failed, 2 usage, 78 configuration""",
    "serve": """The daemon listens for PBXs that connect to us ([tcp] listen) or POST their reports
([http] listen), dials those with [pbx.events], and stores every call report. SIGTERM commits what
was received and ends it.

example:
  cdrd serve -c /etc/cdrd/config.toml | jq 'select(.event == "call_released")'""",
    "check": """examples:
  cdrd check -c /etc/cdrd/config.toml            configuration and database
  cdrd check -c /etc/cdrd/config.toml --connect  also log in to each PBX that is dialled""",
    "demo": """A simulated PBX is dialled, another one connects; their calls appear as log lines
and at the end a summary compares what was sent with what the database holds.

example:
  cdrd demo --seconds 10""",
    "follow": """examples:
  cdrd follow --db /var/lib/cdrd/cdr.sqlite3                  all calls, then new ones
  cdrd follow --db /var/lib/cdrd/cdr.sqlite3 --since 1000     those behind seq 1000
  cdrd follow -c /etc/cdrd/config.toml --pbx hq | jq -c '[.started_at, .caller, .callee]'""",
    "export": """examples:
  cdrd export calls --db /var/lib/cdrd/cdr.sqlite3 -o calls.csv
  cdrd export calls --from 2026-10-01 --to 2026-11-01 --format xlsx -o october.xlsx
  cdrd export conferences --tenant Sales --split -o legs.csv""",
    "import": """examples:
  cdrd import calls --pbx hq history.csv         a PBX's history
  cdrd import calls export.jsonl.gz              our own export, each row as it was
  cdrd import conferences --portal video 2017-*.csv
A file that is imported again adds nothing.""",
    "fetch": """examples:
  cdrd fetch --from 2026-11-01 --to 2026-11-02             of each PBX with [pbx.history]
  cdrd fetch --pbx hq --from "2026-11-01 08:00" --to "2026-11-01 09:30"
A PBX that cannot be asked is told, and the others are asked.""",
    "report": """Figures of calls (the default) or of conferences, in all and by hour, day, weekday,
extension, trunk, pbx, portal, tenant, room, type or status. A range reads that range alone.

examples:
  cdrd report --by day --from 2026-10-01 --to 2026-11-01
  cdrd report --by trunk --pbx hq                            calls at once on each trunk
  cdrd report --by hour --from 2026-10-01 -o october.html    a page with charts, to print
  cdrd report conferences --by room --format json | jq .total""",
    "quarantine": """examples:
  cdrd quarantine list
  cdrd quarantine show 7             why, from whom, and the bytes
  cdrd quarantine retry 7 8          decode again, after an upgrade or a change of configuration
  cdrd quarantine retry --all
  cdrd quarantine drop 7             delete it for ever""",
    "purge": """examples:
  cdrd purge --before 2020-01-01 --dry-run             how much it would be
  cdrd purge --before 2020-01-01 --pbx old             the calls of one PBX
  cdrd purge --before 2020-01-01 --tenant Sales        the conference legs of one tenant""",
    "backup": """examples:
  cdrd backup /var/backups/cdr-$(date +%F).sqlite3
  cdrd export calls --db /var/backups/cdr-2026-11-01.sqlite3 -o calls.csv""",
    "simulate": """examples:
  cdrd simulate pbx --listen 127.0.0.1:8333 --rate 5       a PBX for [pbx.events] kind = "tcp"
  cdrd simulate pbx --listen 127.0.0.1:8333 --api 127.0.0.1:8088 --unpushed-every 10
                                                           with its history, to fetch the rest
  cdrd simulate pbx --kind websocket --listen 127.0.0.1:8088                       P-Series
  cdrd simulate pbx --kind webhook --post-to http://127.0.0.1:8260/ --secret-file key
  cdrd simulate load 127.0.0.1:8261 --count 100000         PBXs that connect to [tcp] listen
  cdrd simulate load 127.0.0.1:8260 --http --count 1000    PBXs that POST to [http] listen""",
}


MODULES: Final = {"import": "importing"}
"""The code of a command whose name is a word of the language."""


UNTIL_INTERRUPTED: Final = ("serve", "demo", "follow", "simulate")
"""The commands that have no other end, or whose work is whole at any moment; ``simulate load`` is
neither, and says itself that it was interrupted."""


UNWRITTEN: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""Why output cannot be written."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; for anything a user did, one clear sentence and an exit status."""
    open_missing()
    escape_unencodable()
    words = sys.argv[1:] if argv is None else argv
    command = next((word for word in words if word in COMMANDS), "")
    status = EXIT_DONE
    try:
        status = _run(command, words)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has left
        let_go()
    except OSError as error:
        if error.filename is None and error.errno not in UNWRITTEN:
            raise  # a fault of ours
        let_go()
        told = f"{error.filename or 'stdout'}: {error.strerror or error}"
        print(f"cdrd {command}".rstrip(), told, sep=": ", file=sys.stderr)
        return EXIT_FAILED
    return status


def _run(command: str, argv: Sequence[str]) -> int:
    try:
        arguments = make_parser(argv).parse_args(argv)
        status: int = arguments.run(arguments)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    except SystemExit as ended:  # of argparse: a help that was asked for, or wrong usage
        return int(ended.code or EXIT_DONE)
    except KeyboardInterrupt:
        if command in UNTIL_INTERRUPTED:
            return EXIT_DONE
        print(f"cdrd {command}: interrupted before its end", file=sys.stderr)
        return EXIT_FAILED
    return status


def make_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Make the parser; only the command that is named is imported."""
    parser = _parser("cdrd", "Keeps every call record that a PBX reports.", EXAMPLES[""])
    parser.add_argument("--version", action="version", version=f"cdrd {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=EXAMPLES[name],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in argv:
            module = importlib.import_module(f"cdrd.commands.{MODULES.get(name, name)}")
            module.add_arguments(command)
            if name != "simulate":
                command.set_defaults(run=module.run)
    _refuse_empty(parser, argv)
    return parser


def _refuse_empty(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """End with exit status 2 where a value is empty: it would count as not given.

    A shell variable that is not set would else have all PBXs' calls deleted in place of one's.
    """
    for before, word in zip(["cdrd", *argv], argv, strict=False):
        option, equals, value = word.partition("=")
        is_pair = bool(equals) and option.startswith("--")
        if not (value if is_pair else word):
            behind = option if is_pair else before
            parser.error(f"nothing stands behind {behind}: is a variable of the shell not set?")


def _parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=name,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
