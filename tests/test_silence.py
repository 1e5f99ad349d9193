"""Silent is who had calls at these hours in the weeks before, and nobody else."""

import asyncio
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from cdrd.batch import Batch
from cdrd.log import LineWriter, make_logger
from cdrd.row import commit
from cdrd.schema import migrate
from cdrd.silence import SilenceWatch, find_silent, last_calls
from tests.example import varied

NOON = datetime(2024, 3, 6, 12, tzinfo=UTC)
WEEK = timedelta(days=7)
HOUR = timedelta(hours=1)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "cdr.sqlite3"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = wal")
    migrate(connection)
    connection.close()
    return path


def store(database: Path, *began: datetime, pbx: str = "hq") -> None:
    """Store a call that began at each of these instants."""
    batch = Batch()
    for instant in began:
        start = instant.strftime("%Y-%m-%dT%H:%M:%SZ")
        batch.add(varied(call_id=f"{instant.timestamp()}", started_at=start, pbx=pbx))
    connection = sqlite3.connect(database, isolation_level=None)
    commit(connection, batch, 0)
    connection.close()


def habit(*weeks: int, calls: int = 10, until: datetime = NOON) -> list[datetime]:
    """So many calls in the hour before, some weeks ago."""
    return [
        until - WEEK * week - timedelta(minutes=5 * number + 1)
        for week in weeks
        for number in range(calls)
    ]


def silent(database: Path, now: datetime = NOON, *pbxs: str) -> dict[str, str]:
    return find_silent(database, pbxs or ("hq",), now)


def test_who_had_calls_at_these_hours_and_has_none_is_silent(database: Path) -> None:
    store(database, NOON - HOUR, *habit(1, 2))
    assert silent(database) == {"hq": "2024-03-06T11:00:00Z"}


def test_who_has_calls_is_not(database: Path) -> None:
    store(database, NOON - timedelta(minutes=3), *habit(1, 2))
    assert silent(database) == {}


@pytest.mark.parametrize(
    "before",
    [
        habit(1),
        habit(2),
        habit(1, 3),
        [*habit(1), *habit(2, calls=9)],
        habit(1, 2, until=NOON + HOUR),
    ],
)
def test_a_habit_is_of_two_weeks_and_of_ten_calls(database: Path, before: list[datetime]) -> None:
    store(database, NOON - HOUR, *before)
    assert silent(database) == {}


def test_who_has_only_begun_has_no_habit(database: Path) -> None:
    assert silent(database) == {}
    store(database, NOON - HOUR)
    assert silent(database) == {}


def test_each_pbx_is_compared_with_itself(database: Path) -> None:
    store(database, NOON - HOUR, *habit(1, 2), pbx="branch")
    store(database, NOON - timedelta(minutes=1), *habit(1, 2))
    assert silent(database, NOON, "hq", "branch", "gone") == {"branch": "2024-03-06T11:00:00Z"}


def test_a_silence_of_weeks_is_still_one_while_there_is_a_habit(database: Path) -> None:
    store(database, *habit(1, 2))
    assert silent(database) == {"hq": "2024-02-28T11:59:00Z"}
    assert silent(database, NOON + WEEK * 2) == {}  # by then silence is the habit


def test_the_last_calls_are_told_as_far_as_they_are_of_interest(database: Path) -> None:
    store(database, NOON - HOUR)
    store(database, NOON - WEEK * 2, pbx="old")
    assert last_calls(database, ["hq", "old", "gone"], NOON) == {"hq": NOON - HOUR}


def test_it_is_told_once_and_so_is_its_end(database: Path, tmp_path: Path) -> None:
    store(database, NOON - HOUR, *habit(1, 2))
    with (tmp_path / "log").open("wb") as file:
        lines = LineWriter(file.fileno())
        watch = SilenceWatch(database, make_logger(lines), ["hq"])

        async def look(*instants: datetime) -> None:
            for now in instants:
                await watch.look(now)

        asyncio.run(look(NOON, NOON + timedelta(minutes=5)))
        assert watch.silent == {"hq"}
        store(database, NOON + timedelta(minutes=6))
        asyncio.run(look(NOON + timedelta(minutes=10), NOON + timedelta(minutes=15)))
        assert watch.silent == set()
        lines.close(5)
    told = [orjson.loads(line) for line in (tmp_path / "log").read_bytes().splitlines()]
    assert [line["event"] for line in told] == ["pbx_silent", "pbx_heard"]
    assert told[0]["last_call"] == "2024-03-06T11:00:00Z"
