"""Silent is who had calls at these hours in the weeks before, and nobody else."""

import asyncio
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from cdrd.batch import Batch
from cdrd.last_calls import LastCalls
from cdrd.log import LineWriter, make_logger
from cdrd.row import commit
from cdrd.schema import migrate
from cdrd.silence import SilenceWatch, find_silent
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
    return find_silent(database, pbxs or ("hq",), now, {}, LastCalls(database).until(now))


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


# What is told


class Log:
    """A log and what was told in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("wb")
        self.lines = LineWriter(self.file.fileno())
        self.logger = make_logger(self.lines)

    def told(self) -> list[dict[str, Any]]:
        """Return all lines; no more can come."""
        self.lines.close(5)
        return [orjson.loads(line) for line in self.path.read_bytes().splitlines()]

    def events(self) -> list[str]:
        return [line["event"] for line in self.told()]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path / "log")
    yield log
    log.lines.close(5)
    log.file.close()


def a_watch(database: Path, log: Log) -> SilenceWatch:
    watch = SilenceWatch(database, log.logger)
    watch.pbxs = ["hq"]
    return watch


@pytest.fixture
def watch(database: Path, log: Log) -> SilenceWatch:
    """A watch of a PBX that is silent since eleven o'clock."""
    store(database, NOON - HOUR, *habit(1, 2))
    return a_watch(database, log)


SILENT = {"hq": "2024-03-06T11:00:00Z"}


def look(watch: SilenceWatch, *instants: datetime) -> None:
    async def look_at_each() -> None:
        for now in instants:
            await watch.look(now)

    asyncio.run(look_at_each())


def test_it_is_told_once_and_so_is_its_end(database: Path, watch: SilenceWatch, log: Log) -> None:
    look(watch, NOON, NOON + timedelta(minutes=5))
    assert watch.silent == SILENT
    store(database, NOON + timedelta(minutes=6))
    look(watch, NOON + timedelta(minutes=10), NOON + timedelta(minutes=15))
    assert watch.silent == {}
    told = log.told()
    assert [line["event"] for line in told] == ["pbx_silent", "pbx_heard"]
    assert told[0]["last_call"] == "2024-03-06T11:00:00Z"


def test_it_lasts_until_there_is_a_newer_call(
    database: Path, watch: SilenceWatch, log: Log
) -> None:
    look(watch, *(NOON + timedelta(days=days) for days in range(40)))
    assert watch.silent == SILENT, "no week before has calls any more"
    store(database, NOON - HOUR * 2)
    look(watch, NOON + HOUR)
    assert watch.silent == SILENT, "what a history brings later may be of before"
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("DELETE FROM call")
    connection.close()
    look(watch, NOON + timedelta(days=40))
    assert watch.silent == SILENT, "a purge is no call"
    store(database, NOON + timedelta(days=40))
    look(watch, NOON + timedelta(days=40, minutes=5))
    assert watch.silent == {}
    assert log.events() == ["pbx_silent", "pbx_heard"]


def test_a_restart_knows_it_at_once_and_does_not_tell_it_again(
    database: Path, watch: SilenceWatch, log: Log
) -> None:
    look(watch, NOON)
    watch = a_watch(database, log)
    assert watch.silent == SILENT
    look(watch, NOON + WEEK * 3)
    assert watch.silent == SILENT
    store(database, NOON + WEEK * 3)
    look(watch, NOON + WEEK * 3 + HOUR)
    assert a_watch(database, log).silent == {}
    assert log.events() == ["pbx_silent", "pbx_heard"]


@pytest.mark.parametrize("left", [b'{"hq":"2024', b"null"])
def test_what_a_kill_has_left_half_written_is_found_anew(
    database: Path, watch: SilenceWatch, log: Log, left: bytes
) -> None:
    Path(f"{database}.silent").write_bytes(left)
    watch = a_watch(database, log)
    assert watch.silent == {}
    look(watch, NOON)
    assert watch.silent == SILENT


def test_a_file_that_cannot_be_written_tells_it_once_all_the_same(
    database: Path, watch: SilenceWatch, log: Log
) -> None:
    Path(f"{database}.silent").mkdir()
    look(watch, NOON, NOON + HOUR)
    assert watch.silent == SILENT
    assert log.events() == ["pbx_silent"]


def test_a_pbx_that_was_removed_is_forgotten_and_not_heard(watch: SilenceWatch, log: Log) -> None:
    look(watch, NOON)
    watch.pbxs = ()
    look(watch, NOON + HOUR)
    assert watch.silent == {}
    watch.pbxs = ("hq",)
    look(watch, NOON + WEEK * 3)
    assert watch.silent == {}
    assert log.events() == ["pbx_silent"]
