"""What is asked for becomes a condition that real SQLite answers, by an index if there is one."""

import asyncio
import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cdrd.batch import Batch
from cdrd.commands.selecting import open_selected
from cdrd.period import Period
from cdrd.selection import CALLS, CONFERENCES, Selection, View
from cdrd.store import Store
from tests.example import varied

CALLERS = ("1000", "0180001", "+49180001", "0180", "01x80", "")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "cdr.sqlite3"
    asyncio.run(fill(path))
    return path


async def fill(path: Path) -> None:
    store = await Store.open(path)
    batch = Batch()
    for day, caller in enumerate(CALLERS, 1):
        at = f"2024-03-{day:02}"
        batch.add(
            varied(
                caller=caller,
                started_at=f"{at}T00:00:00Z",
                started_local=f"{at} 00:00:00",
                pbx="hq" if day % 2 else "branch",
                status="BUSY" if day == 2 else "ANSWERED",
            )
        )
    await store.commit(batch, 0)
    await store.close(0)


@pytest.fixture
def reader(database: Path) -> Iterator[sqlite3.Connection]:
    with open_selected(database) as connection:
        yield connection


def found(reader: sqlite3.Connection, selection: Selection) -> list[int]:
    condition = selection.condition(CALLS)
    query = f"SELECT seq FROM calls WHERE {condition.text} ORDER BY seq"
    return [seq for (seq,) in reader.execute(query, condition.arguments)]


@pytest.mark.parametrize(
    ("selection", "seqs"),
    [
        (Selection(), [1, 2, 3, 4, 5, 6]),
        (Selection(Period("2024-03-02T00:00:00Z")), [2, 3, 4, 5, 6]),
        (Selection(Period(end="2024-03-02T00:00:00Z")), [1]),
        (Selection(Period("2024-03-02T00:00:00Z", "2024-03-03T00:00:00Z")), [2]),
        (Selection(senders=("branch",)), [2, 4, 6]),
        (Selection(senders=("branch", "hq")), [1, 2, 3, 4, 5, 6]),
        (Selection(senders=("hq' OR '1'='1",)), []),
        (Selection(statuses=("busy",)), [2]),
        (Selection(types=("OUTBOUND",)), [1, 2, 3, 4, 5, 6]),
        (Selection(types=("Inbound",)), []),
        (Selection(tenants=("Sales",)), []),
        (Selection(number="1000"), [1]),
        (Selection(number="100"), []),
        (Selection(number="0180*"), [2, 4]),
        (Selection(number="*0180*"), [2, 4]),
        (Selection(number="+*180001"), [3]),
        (Selection(number="*"), [1, 2, 3, 4, 5, 6]),  # the callee is 91000 in each
        (Selection(number="9*0"), [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_records_asked_for_are_found(
    reader: sqlite3.Connection, selection: Selection, seqs: list[int]
) -> None:
    assert found(reader, selection) == seqs


@pytest.fixture(scope="module")
def empty() -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        yield connection


def is_matched(connection: sqlite3.Connection, number: str, caller: str) -> bool:
    condition = Selection(number=number).condition(CALLS)
    query = f"SELECT {condition.text} FROM (SELECT ? AS caller, NULL AS callee)"
    [(answer,)] = connection.execute(query, [*condition.arguments, caller])
    return bool(answer)


@given(st.text("01*x?[]^+", min_size=1, max_size=8), st.text("01x?[]^+\u0661", max_size=8))
@example("0[x*", "0[x1")
@example("1*x*", "1x+")
def test_a_star_in_a_number_stands_for_any_digits(
    empty: sqlite3.Connection, number: str, caller: str
) -> None:
    matched = re.fullmatch("[0-9]*".join(map(re.escape, number.split("*"))), caller)
    assert is_matched(empty, number, caller) == (matched is not None)


def test_many_stars_are_matched_at_once(empty: sqlite3.Connection) -> None:
    """To try each way to part the digits among the stars would take for ever."""
    assert not is_matched(empty, "*1" * 50 + "x", "1" * 200)
    assert is_matched(empty, "*1" * 50 + "*", "1" * 200)


def test_what_was_typed_is_never_part_of_the_query() -> None:
    typed = "x'); DROP TABLE call; --"
    selection = Selection(Period(typed, typed), (typed,), (typed,), (typed,), (typed,), typed)
    for view in (CALLS, CONFERENCES):
        text, arguments = selection.condition(view)
        assert typed not in text
        assert text.count("?") == len(arguments)
        assert set(arguments) == {typed}


MARCH = Period("2024-03-01T00:00:00Z", "2024-04-01T00:00:00Z")


@pytest.mark.parametrize("view", [CALLS, CONFERENCES], ids=lambda view: str(view.name))
@pytest.mark.parametrize(
    ("selection", "plan"),
    [
        (Selection(MARCH), "SEARCH {} ({started}>? AND {started}<?)"),
        (
            Selection(MARCH, ("hq",), (), ("BUSY",), ("C",), "1*"),
            "SEARCH {} ({started}>? AND {started}<?)",
        ),
        (Selection(Period("2024-03-01T00:00:00Z")), "SEARCH {} ({started}>?)"),
        (Selection(), "SCAN {}"),
        (Selection(senders=("hq",)), "SCAN {}"),
    ],
    ids=["a range", "a range and more", "an open range", "all", "all of a sender"],
)
def test_a_range_is_read_by_its_index_and_nothing_is_sorted(
    reader: sqlite3.Connection, view: View, selection: Selection, plan: str
) -> None:
    text, arguments = selection.condition(view)
    order = view.started if plan.startswith("SEARCH") else "seq"
    query = f"EXPLAIN QUERY PLAN SELECT * FROM {view.name} WHERE {text} ORDER BY {order}"
    [found] = [row[3] for row in reader.execute(query, arguments)]
    start, end = plan.format("|", started=view.started).split("|")
    assert found.startswith(start)
    assert found.endswith(end)
