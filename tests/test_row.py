"""A batch is committed whole or not at all, and one record is one row."""

import re
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest

from cdrd.batch import Batch, QuarantinedReport
from cdrd.database import connect
from cdrd.record import CallRecord
from cdrd.report import ReleasedCall, read_reports
from cdrd.row import _SAME_RECORD
from cdrd.store import Store
from tests.asked import whole_records
from tests.committing import batch_of, calls, commit, opened, rows
from tests.example import CALL, call, holding, make_records, varied

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


def changed(field: str, value: object) -> CallRecord:
    """Make a record that differs in one field and in no identity, as no decoder would make."""
    return CallRecord(**(CALL._asdict() | {field: value}))


def another_value(field: str) -> dict[str, Any]:
    return {field: 30 if field.endswith("duration") else "2017-09-14 09:30:16"}


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
    assert await store.run(whole_records) == [(1, full)]
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
    assert await store.run(whole_records) == [(1, CALL)]


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
    assert await store.run(whole_records) == [(1, first)]
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


def test_a_commit_writes_nothing_but_the_wal(tmp_path: Path) -> None:
    connection = connect(tmp_path / "cdr.sqlite3", "normal")
    wal = tmp_path / "cdr.sqlite3-wal"
    before, size = written_bytes(), wal.stat().st_size
    commit(connection, batch_of(calls(0, 1000)))
    assert written_bytes() - before == wal.stat().st_size - size > 1000 * len(CALL.raw)
    connection.close()


def written_bytes() -> int:
    """Return how many bytes this thread has written, wherever to."""
    io = Path("/proc/thread-self/io").read_text()
    return int(re.findall(r"wchar: (\d+)", io)[0])
