"""What a run knows is there for the next one."""

from pathlib import Path

import pytest

from cdrd.progress import (
    read_complete_until,
    read_progress,
    read_records,
    set_complete_until,
)
from cdrd.sizes import MIB
from tests.committing import batch_of, calls, opened
from tests.example import call


@pytest.mark.asyncio
async def test_how_far_the_log_has_told_is_remembered_and_never_goes_back(tmp_path: Path) -> None:
    path = tmp_path / "cdr.sqlite3"
    async with opened(path, logged_seq=9) as store:
        await store.commit(batch_of(calls(0, 9)), 7)
        await store.commit(batch_of([call(9)]), 3)
        assert (await store.run(read_progress)).logged_seq == 7
    async with opened(path) as store:
        assert (await store.run(read_progress)).logged_seq == 9
        assert [seq for seq, _ in await store.run(read_records, 9, 100)] == [10]
        assert [seq for seq, _ in await store.run(read_records, 2, 3)] == [3, 4, 5]


@pytest.mark.asyncio
async def test_what_the_log_is_to_tell_comes_without_the_text_that_it_never_tells(
    tmp_path: Path,
) -> None:
    record = call(1)._replace(raw="x" * MIB)
    async with opened(tmp_path / "cdr.sqlite3") as store:
        await store.commit(batch_of([record]), 0)
        assert await store.run(read_records, 0, 10) == [(1, record._replace(raw=""))]


@pytest.mark.asyncio
async def test_up_to_when_nothing_is_missing_is_remembered_for_each_pbx(tmp_path: Path) -> None:
    path = tmp_path / "cdr.sqlite3"
    async with opened(path) as store:
        assert await store.run(read_complete_until, "hq") is None
        for instant in (1709281021.9, 1709281100.0):
            await store.run(set_complete_until, "hq", instant)
        await store.run(set_complete_until, "branch", 5)
    async with opened(path) as store:
        assert await store.run(read_complete_until, "hq") == 1709281100
        assert await store.run(read_complete_until, "branch") == 5
