"""A batch is committed whole or not at all, a row is durable, and one record is one row."""

import asyncio
import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest
import pytest_asyncio

from cdrd.batch import Batch, QuarantinedReport
from cdrd.record import CallRecord, make_records
from cdrd.report import ReleasedCall, read_reports
from cdrd.schema import APPLICATION_ID, PAGE_BYTES, VERSION
from cdrd.store import (
    _SAME_RECORD,
    CHECKPOINT_PAGES,
    MIB,
    WAL_LIMIT_BYTES,
    Store,
    StoreUnusable,
    checkpoint,
    open_reader,
    read_complete_until,
    read_progress,
    read_records,
    read_refusals,
    remember_refusal,
    set_complete_until,
    wal_reset_bug,
)
from tests.example import CALL, call, holding, varied

IDENTITY = (
    "pbx",
    "call_id",
    "started_local",
    "caller",
    "callee",
    "duration",
    "talk_duration",
    "status",
    "call_type",
)
NOBODY = 65534
READERS = 64321


def changed(field: str, value: object) -> CallRecord:
    """Make a record that differs in one field and in no identity, as no decoder would make."""
    return CallRecord(**(CALL._asdict() | {field: value}))


def another_value(field: str) -> dict[str, Any]:
    return {field: 30 if field.endswith("duration") else "2017-09-14 09:30:16"}


def calls(first: int, count: int) -> list[CallRecord]:
    return [call(number) for number in range(first, first + count)]


def batch_of(records: list[CallRecord]) -> Batch:
    batch = Batch()
    for record in records:
        batch.add(record)
    return batch


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    reader = open_reader(path)
    try:
        return reader.execute(query).fetchall()
    finally:
        reader.close()


@contextlib.asynccontextmanager
async def opened(path: Path, durability: str = "full", logged_seq: int = 0) -> AsyncIterator[Store]:
    """Close the store after a failure too: its thread would keep the tests from ending."""
    store = await Store.open(path, durability)
    try:
        yield store
    finally:
        await store.close(logged_seq)


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with opened(tmp_path / "cdr.sqlite3", "normal") as store:
        yield store


# Opening.


@pytest.mark.asyncio
@pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("normal", 1)])
async def test_the_settings_in_force_are_those_that_were_promised(
    tmp_path: Path, durability: str, synchronous: int
) -> None:
    async with opened(tmp_path / "cdr.sqlite3", durability) as store:
        expected = {
            "journal_mode": "wal",
            "synchronous": synchronous,
            "wal_autocheckpoint": 0,
            "journal_size_limit": WAL_LIMIT_BYTES,
            "page_size": PAGE_BYTES,
            "auto_vacuum": 2,
            "busy_timeout": 5000,
            "application_id": APPLICATION_ID,
            "user_version": VERSION,
        }
        for pragma, value in expected.items():
            query = f"PRAGMA {pragma}"
            found = await store.run(ask, query)
            assert found == (value,), pragma


@pytest.mark.asyncio
async def test_an_empty_file_is_adopted(tmp_path: Path) -> None:
    path = tmp_path / "cdr.sqlite3"
    path.touch()
    async with opened(path) as store:
        await store.commit(batch_of([CALL]), 0)
    assert rows(path, "SELECT count(*) FROM calls") == [(1,)]


@pytest.mark.asyncio
async def test_a_path_with_characters_of_a_uri_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "a b?mode=rw#c%20d.sqlite3"
    async with opened(path) as store:
        await store.commit(batch_of([CALL]), 0)
    assert rows(path, "SELECT count(*) FROM calls") == [(1,)]


def ask(connection: sqlite3.Connection, query: str) -> object:
    return connection.execute(query).fetchone()


async def refused(path: Path) -> str:
    try:
        with pytest.raises(StoreUnusable) as caught:
            await Store.open(path)
    finally:
        for thread in set(threading.enumerate()) - {threading.main_thread()}:
            thread.join(0.2)
    return str(caught.value)


def test_a_refused_database_leaves_no_thread_that_outlives_the_loop(tmp_path: Path) -> None:
    path = tmp_path / "cdr.sqlite3"
    path.write_bytes(b"not a database, but a text of some length\n" * 100)
    program = (
        "import asyncio, pathlib\n"
        "from cdrd.store import Store, StoreUnusable\n"
        "for _ in range(50):\n"
        f"    try: asyncio.run(Store.open(pathlib.Path({str(path)!r})))\n"
        "    except StoreUnusable: pass\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.asyncio
async def test_a_foreign_database_is_refused_and_not_one_byte_of_it_changed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "theirs.sqlite3"
    foreign = sqlite3.connect(path)
    foreign.execute("CREATE TABLE theirs (a)")
    foreign.close()
    before = path.read_bytes()
    assert "another program's database" in await refused(path)
    assert path.read_bytes() == before


@pytest.mark.asyncio
async def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cdr.sqlite3"
    async with opened(path) as store:
        await store.run(lambda c: c.execute(f"PRAGMA user_version = {VERSION + 1}").fetchall())
    assert "a newer cdrd wrote it" in await refused(path)


@pytest.mark.asyncio
async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cdr.sqlite3"
    path.write_bytes(b"not a database, but a text of some length\n" * 100)
    assert "not a database" in await refused(path)


@pytest.mark.asyncio
async def test_a_directory_that_is_not_there_is_told_with_what_to_do(tmp_path: Path) -> None:
    assert "create its directory" in await refused(tmp_path / "missing" / "cdr.sqlite3")


@pytest.mark.asyncio
async def test_a_directory_in_the_databases_place_is_refused(tmp_path: Path) -> None:
    assert str(tmp_path) in await refused(tmp_path)


@pytest.mark.asyncio
async def test_a_second_writer_is_refused_and_the_first_goes_on(store: Store) -> None:
    assert "another cdrd is writing it" in await refused(store.path)
    assert len((await store.commit(batch_of([CALL]), 0)).stored) == 1


@pytest.mark.asyncio
async def test_a_second_writer_by_another_name_of_the_file_is_refused(
    store: Store, tmp_path: Path
) -> None:
    link = tmp_path / "elsewhere"
    link.mkdir()
    (link / "link.sqlite3").symlink_to(store.path)
    with pytest.raises(StoreUnusable, match="another cdrd is writing it"):
        async with opened(link / "link.sqlite3"):
            pass


@pytest.mark.asyncio
async def test_the_lock_ends_with_the_store(tmp_path: Path) -> None:
    for _ in range(2):
        async with opened(tmp_path / "cdr.sqlite3"):
            pass


@pytest.mark.asyncio
async def test_the_group_may_read_the_files_and_others_may_not(store: Store) -> None:
    await store.commit(batch_of([CALL]), 0)
    for ending in ("", "-wal", "-shm", ".lock"):
        mode = os.stat(f"{store.path}{ending}").st_mode  # noqa: PTH116 - one call, not awaited
        assert stat.S_IMODE(mode) == 0o640, ending


# One commit.


@pytest.mark.asyncio
async def test_a_row_reads_back_as_the_record_that_was_stored(store: Store) -> None:
    full = CALL._replace(
        cdr_id="7",
        source_trunk="s",
        did_number="d",
        talk_duration=0,
        agent_ring_time=2**63 - 1,
        pin_code="4711",
        recording="r.wav",
        pbx_serial="9",
        raw='{"a": "\u00e4\U0001f4de"}',
    )
    await store.commit(batch_of([full]), 0)
    assert await store.run(read_records, 0, 10) == [(1, full)]
    assert rows(store.path, "SELECT * FROM calls") == [(1, *full[1:])]


@pytest.mark.asyncio
async def test_what_is_absent_is_null_in_the_view(store: Store) -> None:
    bare = CALL._replace(
        caller="",
        callee="",
        destination_trunk="",
        duration=-1,
        status="",
        call_type="",
        pin_code="",
    )
    await store.commit(batch_of([bare]), 0)
    (row,) = rows(store.path, "SELECT * FROM calls")
    absent = [value in ("", -1) for value in bare[1:]]
    assert absent.count(True) == 14
    assert [value is None for value in row[1:]] == absent


@pytest.mark.asyncio
async def test_seq_is_dense_and_rises_among_duplicates(store: Store) -> None:
    first = await store.commit(batch_of(calls(0, 45)), 0)
    assert first.stored == list(enumerate(calls(0, 45), 1))
    mixed = [call(50), call(3), call(51), call(50), *calls(52, 30), call(44)]
    second = await store.commit(batch_of(mixed), 0)
    assert [seq for seq, _ in second.stored] == list(range(46, 78))
    assert [record for _, record in second.stored] == [call(50), call(51), *calls(52, 30)]
    assert second.duplicates == 3
    assert second.quarantined == []
    third = await store.commit(batch_of([call(99)]), 0)
    assert third.stored == [(78, call(99))]


@pytest.mark.asyncio
async def test_a_batch_of_duplicates_stores_nothing_and_takes_no_seq(store: Store) -> None:
    await store.commit(batch_of(calls(0, 25)), 0)
    again = await store.commit(batch_of(calls(0, 25)), 0)
    assert (again.stored, again.duplicates) == ([], 25)
    assert (await store.commit(batch_of([call(25)]), 0)).stored == [(26, call(25))]


@pytest.mark.asyncio
async def test_a_seq_is_never_given_twice_although_rows_were_deleted(tmp_path: Path) -> None:
    path = tmp_path / "cdr.sqlite3"
    async with opened(path) as store:
        await store.commit(batch_of(calls(0, 5)), 0)
        await store.run(lambda c: c.execute("DELETE FROM call").fetchall())
        assert (await store.commit(batch_of([call(7)]), 0)).stored[0][0] == 6
        await store.run(lambda c: c.execute("DELETE FROM call").fetchall())
    async with opened(path) as store:
        assert (await store.commit(batch_of([call(8)]), 0)).stored[0][0] == 7


@pytest.mark.asyncio
@pytest.mark.parametrize("told_by_id", [True, False])
@pytest.mark.parametrize("field", IDENTITY)
async def test_records_that_differ_in_a_field_of_the_identity_are_two(
    store: Store, field: str, *, told_by_id: bool
) -> None:
    one = varied(told_by_id=told_by_id)
    other = varied(told_by_id=told_by_id, **another_value(field))
    committed = await store.commit(batch_of([one, other]), 0)
    assert [record for _, record in committed.stored] == [one, other]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "field", sorted(set(CallRecord._fields) - {*IDENTITY, "identity", "started_at"})
)
async def test_a_record_that_differs_in_any_other_field_is_the_same(
    store: Store, field: str
) -> None:
    number = isinstance(getattr(CALL, field), int)
    value: dict[str, Any] = {field: 30 if number else "other"}
    other = varied(**value)
    await store.commit(batch_of([CALL]), 0)
    assert (await store.commit(batch_of([other]), 0)).duplicates == 1
    assert await store.run(read_records, 0, 10) == [(1, CALL)]


@pytest.mark.asyncio
async def test_absent_equals_absent(store: Store) -> None:
    bare = varied(caller="", callee="", duration=-1, talk_duration=-1, status="", call_type="")
    assert (await store.commit(batch_of([bare, bare]), 0)).duplicates == 1


def told_by_zone(zone: str, numbers: Iterable[int], start: str = "09:30:15") -> list[CallRecord]:
    """Make records whose call ids do not tell the start."""
    report = '{"action":"NewCdr","callid":"a%d","timestart":"2017-09-14 %s"}'
    raws = [report % (number, start) for number in numbers]
    parsed = read_reports(map(orjson.loads, raws))
    return make_records(
        [call for call in parsed if isinstance(call, ReleasedCall)],
        raws,
        pbx="hq",
        zone=ZoneInfo(zone),
        source="tcp",
        received_at="2017-09-14T01:30:45.123Z",
    )


@pytest.mark.asyncio
async def test_a_record_that_comes_again_after_its_zone_was_corrected_adds_no_row(
    store: Store,
) -> None:
    wrong, right = (told_by_zone(zone, range(45)) for zone in ("UTC", "Europe/Berlin"))
    assert wrong[0].started_at != right[0].started_at
    await store.commit(batch_of(wrong), 0)
    for again in (right, [right[7]], [*right[:30], *wrong[30:]]):
        committed = await store.commit(batch_of(again), 0)
        assert (committed.stored, committed.quarantined) == ([], [])
        assert committed.duplicates == len(again)
    new = told_by_zone("Europe/Berlin", range(40, 80))
    committed = await store.commit(batch_of(new), 0)
    assert committed.stored == list(enumerate(new[5:], 46))
    assert committed.duplicates == 5


@pytest.mark.asyncio
async def test_a_zone_that_changes_within_a_batch_makes_no_second_row(store: Store) -> None:
    [one], [other] = (told_by_zone(zone, [1]) for zone in ("UTC", "Europe/Berlin"))
    committed = await store.commit(batch_of([one, other]), 0)
    assert (committed.stored, committed.duplicates) == ([(1, one)], 1)


@pytest.mark.asyncio
async def test_records_whose_zones_make_them_one_instant_are_two(store: Store) -> None:
    [one] = told_by_zone("UTC", [1], "07:30:15")
    [other] = told_by_zone("Europe/Berlin", [1], "09:30:15")
    assert one.started_at == other.started_at
    assert len((await store.commit(batch_of([one, other]), 0)).stored) == 2


@pytest.mark.asyncio
@pytest.mark.parametrize("told_by_id", [True, False])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("field", sorted(set(IDENTITY) - {"call_id"}))
async def test_two_records_that_share_their_identity_by_chance_are_both_kept(
    store: Store, field: str, *, together: bool, told_by_id: bool
) -> None:
    """The later one in quarantine: its checksum is that of another record."""
    first = varied(told_by_id=told_by_id)
    later = first._replace(**another_value(field), raw="the later")
    batches = [[first, later]] if together else [[first], [later]]
    for batch in batches:
        committed = await store.commit(batch_of(batch), 0)
    ((_, report),) = committed.quarantined
    assert report.reason == "refused by the database: another record has its identity"
    assert (report.payload, report.size) == (b"the later", 9)
    assert committed.duplicates == 0
    assert await store.run(read_records, 0, 10) == [(1, first)]
    again = await store.commit(batch_of([first, call(1)]), 0)
    assert (again.stored, again.duplicates) == ([(2, call(1))], 1)


@pytest.mark.asyncio
async def test_a_record_that_shares_anothers_identity_by_chance_stays_in_quarantine(
    store: Store,
) -> None:
    await store.commit(batch_of([CALL, CALL._replace(caller="1001")]), 0)
    retried = holding([CALL._replace(caller="1001")], resolved=[1])
    assert (await store.commit(retried, 0)).stored == []
    assert rows(store.path, "SELECT count(*) FROM quarantine") == [(1,)]


@pytest.mark.asyncio
async def test_a_duplicate_is_compared_by_index(store: Store) -> None:
    plan = await store.run(
        lambda c: c.execute(f"EXPLAIN QUERY PLAN {_SAME_RECORD}", CALL._asdict()).fetchall()
    )
    steps = [step for *_, step in plan]
    key = "call_id=? AND identity=?)"
    assert f"SEARCH call USING INDEX call_identity (started_at=? AND {key}" in steps
    assert f"SEARCH call USING INDEX call_identity_local (started_local=? AND {key}" in steps
    assert not any("SCAN" in step for step in steps)


POISON: dict[str, tuple[str, object]] = {
    "a lone surrogate": ("caller", "\ud800"),
    "a lone surrogate in the report": ("raw", '{"caller": "\ud800"}'),
    "beyond 63 bits": ("duration", 2**63),
    "text for a number": ("duration", "soon"),
    "NOT NULL": ("callee", None),
}


@pytest.mark.asyncio
@pytest.mark.parametrize("fault", POISON)
async def test_a_poisoned_row_costs_exactly_itself(store: Store, fault: str) -> None:
    poison = changed(*POISON[fault])
    records = calls(0, 100)
    records[37] = poison
    committed = await store.commit(batch_of(records), 0)
    del records[37]
    assert committed.stored == list(enumerate(records, 1))
    assert committed.duplicates == 0
    ((quarantine_id, report),) = committed.quarantined
    assert report.reason.startswith("refused by the database: ")
    assert (report.pbx, report.source, report.received_at) == ("hq", "tcp", CALL.received_at)
    assert rows(store.path, "SELECT * FROM quarantine") == [(quarantine_id, *report)]
    assert rows(store.path, "SELECT count(*) FROM calls") == [(99,)]


@pytest.mark.asyncio
async def test_a_missing_value_is_refused_by_name_and_not_swallowed(store: Store) -> None:
    committed = await store.commit(batch_of([changed("callee", None)]), 0)
    ((_, report),) = committed.quarantined
    assert "NOT NULL constraint failed: call.callee" in report.reason
    assert committed.duplicates == 0


@pytest.mark.asyncio
async def test_quarantined_reports_are_stored_with_the_records(store: Store) -> None:
    batch = batch_of([CALL])
    report = QuarantinedReport("now", "hq", "192.0.2.10:1", "tcp", "why", b"\x00\xff{", 99)
    batch.add_quarantined(report)
    committed = await store.commit(batch, 0)
    assert committed.quarantined == [(1, report)]
    assert rows(store.path, "SELECT * FROM quarantine") == [(1, *report)]


@pytest.mark.asyncio
async def test_what_is_resolved_leaves_quarantine_with_the_commit(store: Store) -> None:
    batch = Batch()
    batch.add_quarantined(QuarantinedReport("now", "hq", "", "tcp", "why", b"", 0))
    await store.commit(batch, 0)
    await store.commit(holding([CALL], resolved=[1]), 0)
    assert rows(store.path, "SELECT count(*) FROM quarantine") == [(0,)]


@pytest.mark.asyncio
async def test_a_report_stays_in_quarantine_when_the_database_refuses_its_record(
    store: Store,
) -> None:
    batch = Batch()
    batch.add_quarantined(QuarantinedReport("then", "hq", "peer", "tcp", "why", b"bytes", 5))
    await store.commit(batch, 0)
    await store.commit(holding([CALL._replace(duration=2**63)], resolved=[1]), 0)
    kept = rows(store.path, "SELECT id, peer, payload FROM quarantine WHERE id = 1")
    assert kept == [(1, "peer", b"bytes")]


@pytest.mark.asyncio
async def test_a_commit_that_fails_stores_nothing_and_the_next_one_all(store: Store) -> None:
    await store.run(lambda c: c.execute("PRAGMA busy_timeout = 10").fetchall())
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        await store.commit(batch_of(calls(0, 30)), 0)
    other.execute("ROLLBACK")
    other.close()
    assert rows(store.path, "SELECT count(*) FROM calls") == [(0,)]
    committed = await store.commit(batch_of(calls(0, 30)), 0)
    assert [seq for seq, _ in committed.stored] == list(range(1, 31))


@pytest.mark.asyncio
async def test_a_full_disk_stores_nothing_and_the_next_commit_all(store: Store) -> None:
    await store.run(lambda c: c.execute("PRAGMA max_page_count = 20").fetchall())
    batch = batch_of([call(n)._replace(raw="x" * 20_000) for n in range(50)])
    with pytest.raises(sqlite3.OperationalError, match="full"):
        await store.commit(batch, 0)
    assert rows(store.path, "SELECT count(*) FROM calls") == [(0,)]
    await store.run(lambda c: c.execute("PRAGMA max_page_count = 1000000").fetchall())
    assert len((await store.commit(batch, 0)).stored) == 50


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
async def test_refused_logins_are_remembered_for_each_pbx_and_forgotten_after_an_hour(
    store: Store,
) -> None:
    await store.run(remember_refusal, "hq", 1000.5)
    await store.run(remember_refusal, "branch", 1001)
    assert await store.run(read_refusals, "hq") == [1001]  # never early
    await store.run(remember_refusal, "hq", 4602)
    assert await store.run(read_refusals, "hq") == [4602]


@pytest.mark.asyncio
async def test_a_refusal_that_cannot_be_remembered_does_not_stop_later_commits(
    store: Store,
) -> None:
    with pytest.raises((OverflowError, sqlite3.Error)):
        await store.run(remember_refusal, "hq", 2.0**70)
    assert len((await store.commit(batch_of([CALL]), 0)).stored) == 1


# Readers.


@pytest.fixture
def shared_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        subprocess.run(["/bin/chgrp", str(READERS), directory], check=True)
        path.chmod(0o2750)
        yield path


READ = f"""
import os, sqlite3, sys
os.setgroups([{READERS}]), os.setgid({NOBODY}), os.setuid({NOBODY})
reader = sqlite3.connect(f"file:{{sys.argv[1]}}?mode=ro", uri=True)
print(reader.execute("SELECT count(*) FROM calls").fetchone()[0])
try:
    sqlite3.connect(sys.argv[1]).execute("DELETE FROM call")
except sqlite3.OperationalError as error:
    print(error)
"""


async def read_as_another_user(path: Path) -> list[str]:
    # The program changes its user itself: the interpreter may stand where nobody else may look.
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", READ, str(path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said, _ = await program.communicate()
    return said.decode().splitlines()


@pytest.mark.asyncio
async def test_a_reader_of_the_group_reads_beside_the_writer_and_after_it_and_cannot_write(
    shared_directory: Path,
) -> None:
    path = shared_directory / "cdr.sqlite3"
    async with opened(path, logged_seq=3) as store:
        told = "attempt to write a readonly database"
        assert await read_as_another_user(path) == ["0", told]
        await store.commit(batch_of(calls(0, 3)), 0)
        assert await read_as_another_user(path) == ["3", told]
    assert await read_as_another_user(path) == ["3", told]
    async with opened(path, logged_seq=3):
        pass
    assert await read_as_another_user(path) == ["3", told]


@pytest.mark.asyncio
async def test_our_own_reader_cannot_write(store: Store) -> None:
    reader = open_reader(store.path)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("DELETE FROM call")
    reader.close()


@pytest.mark.asyncio
async def test_a_reader_between_two_pages_sees_only_whole_commits(store: Store) -> None:
    await store.commit(batch_of(calls(0, 3)), 0)
    reader = open_reader(store.path)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM calls").fetchone() == (3,)
    await store.commit(batch_of(calls(3, 3)), 0)
    assert reader.execute("SELECT count(*) FROM calls").fetchone() == (3,)
    reader.execute("COMMIT")
    assert reader.execute("SELECT count(*) FROM calls").fetchone() == (6,)
    reader.close()


# The WAL.


def wal_bytes(store: Store) -> int:
    return Path(f"{store.path}-wal").stat().st_size


@pytest.mark.asyncio
async def test_no_checkpoint_is_made_before_it_is_due(store: Store) -> None:
    await store.commit(batch_of([CALL]), 0)
    assert await store.checkpoint_if_due() is None


@pytest.mark.asyncio
async def test_the_wal_stays_bounded_over_many_small_commits(store: Store) -> None:
    checkpoints = 0
    for number in range(2 * CHECKPOINT_PAGES):
        await store.commit(batch_of([call(number)]), 0)
        checkpoints += await store.checkpoint_if_due() is not None
    assert checkpoints > 0
    assert wal_bytes(store) < WAL_LIMIT_BYTES


@pytest.mark.asyncio
async def test_the_wal_stays_bounded_over_commits_of_large_reports(store: Store) -> None:
    # 24 commits of 5 MiB each: reports of 64 KiB are within [tcp] max_report_bytes.
    raw = "x" * 64_000
    for commit in range(24):
        records = [record._replace(raw=raw) for record in calls(80 * commit, 80)]
        await store.commit(batch_of(records), 0)
        await store.checkpoint_if_due()
    assert wal_bytes(store) < WAL_LIMIT_BYTES + 16 * MIB


@pytest.mark.asyncio
async def test_an_idle_readers_transaction_pins_the_wal_and_blocks_no_commit(store: Store) -> None:
    await store.commit(batch_of([CALL]), 0)
    reader = open_reader(store.path)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM calls").fetchall()
    for number in range(20):
        committed = await store.commit(batch_of([call(number)]), 0)
        assert len(committed.stored) == 1
    pinned = (await store.run(checkpoint)).pinned_bytes
    assert pinned >= 20 * PAGE_BYTES
    reader.execute("COMMIT")
    reader.close()
    assert (await store.run(checkpoint)).pinned_bytes == 0


@pytest.mark.parametrize(
    ("version", "has_bug"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 43, 9), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 49, 2), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), False),
        ((4, 0, 0), False),
    ],
)
def test_the_versions_that_can_corrupt_a_wal_are_known(
    version: tuple[int, int, int], *, has_bug: bool
) -> None:
    assert wal_reset_bug(version) is has_bug


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
