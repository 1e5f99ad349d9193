"""What a run has measured, as a page: ``measured.md``, whose first part the README quotes.

The rule that must stay true: the README's figures are that page's, word for word.
"""

import os
import platform
import re
import sqlite3
import textwrap
from collections.abc import Sequence
from pathlib import Path

from tests.bench.table import WIDTH, Table

PAGE = Path(__file__).with_name("measured.md")
README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- from tests/bench/measured.md -->\n", "<!-- to here -->\n"
QUOTED = ("Goals", "Beside others")
"""The tables that stand in the README too."""


def machine() -> str:
    """Describe where this runs."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    system = platform.freedesktop_os_release()["PRETTY_NAME"]
    return textwrap.fill(
        f"{os.cpu_count()} cores of {model[1] if model else platform.machine()}, {system},"
        f" Linux {platform.release()}, Python {platform.python_version()},"
        f" SQLite {sqlite3.sqlite_version}; the senders on the same machine, not counted;"
        f" load average {os.getloadavg()[0]:.1f} when it began.",
        WIDTH,
    )


def page(where: str, tables: Sequence[Table]) -> str:
    """Put the machine and the tables on a page."""
    return "\n".join([f"# Measured by `make bench`\n\n{where}\n", *(t.markdown() for t in tables)])


def quoted(whole: str) -> str:
    """Cut from the page what the README quotes, its headings a level lower."""
    head, *parts = re.split(r"^## ", whole, flags=re.MULTILINE)
    where = head.partition("\n\n")[2]
    return where + "".join(f"### {part}" for part in parts if part.startswith(QUOTED))


def quote(readme: str, whole: str) -> str:
    """Put the quotation into the README's text, in place of the last one."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{quoted(whole).rstrip()}\n\n{END}{after}"


def publish(where: str, tables: Sequence[Table]) -> None:
    """Write the page, and what the README quotes of it."""
    whole = page(where, tables)
    PAGE.write_text(whole)
    README.write_text(quote(README.read_text(), whole))
