"""A record is in exactly one place: waiting until the commit, and let go of after it."""

import pickle

from hypothesis import given, settings
from hypothesis import strategies as st

from cdrd.batch import Batch, QuarantinedReport, RestoredCall, Waiting
from cdrd.record import CallRecord


def record(number: int) -> CallRecord:
    columns: dict[str, str | int] = dict.fromkeys(CallRecord._fields, "")
    numbers = {
        "identity": number,
        "utc_offset": 0,
        "duration": 1,
        "talk_duration": 1,
        "agent_ring_time": -1,
    }
    return CallRecord._make({**columns, **numbers, "call_id": f"{number}", "raw": "{}"}.values())


def quarantined(number: int) -> QuarantinedReport:
    return QuarantinedReport("", "hq", "192.0.2.1:5", "tcp", f"fault {number}", b"{", 1)


def test_what_arrives_is_taken_in_order_and_in_pieces() -> None:
    waiting = Waiting(10**6)
    records = [record(number) for number in range(7)]
    for one in records:
        waiting.arriving.add(one)
    taken = []
    while batch := waiting.take(3):
        taken.append(list(batch.records))
        waiting.committed()
    assert taken == [records[:3], records[3:6], records[6:]]


def test_records_added_together_are_those_added_one_by_one() -> None:
    together, alone = Batch(), Batch()
    records = [record(number) for number in range(5)]
    together.add(*records[:3])
    together.add(*records[3:], mended=True)
    together.add()
    for number, one in enumerate(records):
        alone.add(one, mended=number >= 3)
    assert together.records == alone.records == records
    assert together.mended == alone.mended == records[3:]
    assert len(together) == len(alone) == 5
    assert len(together.blocks) == 2


def test_a_block_is_parted_only_where_it_has_to_be() -> None:
    waiting = Waiting(10**6)
    records = [record(number) for number in range(11)]
    waiting.arriving.add(*records[:2])
    waiting.arriving.add(*records[2:4])
    waiting.arriving.add(*records[4:11], mended=True)
    taken = []
    while batch := waiting.take(3):
        taken.append(batch)
        waiting.committed()
    assert [len(batch) for batch in taken] == [2, 2, 3, 3, 1]
    assert [one for batch in taken for one in batch.records] == records
    assert [one for batch in taken for one in batch.mended] == records[4:]


def test_a_batch_that_was_not_committed_is_taken_again_and_unchanged() -> None:
    waiting = Waiting(10**6)
    waiting.arriving.add(record(1))
    batch = waiting.take(10)
    waiting.arriving.add(record(2))
    assert waiting.take(10) is batch
    assert batch.records == [record(1)]
    assert len(waiting) == 2
    waiting.committed()
    assert waiting.take(10).records == [record(2)]


def test_what_is_quarantined_counts_as_rows_of_the_batch() -> None:
    waiting = Waiting(10**6)
    for number in range(3):
        waiting.arriving.add(record(number))
        waiting.arriving.add_quarantined(quarantined(number))
    sizes = []
    while batch := waiting.take(2):
        sizes.append(len(batch))
        waiting.committed()
    assert sizes == [2, 2, 2]


def test_reading_pauses_when_full_and_goes_on_when_a_quarter_is_free() -> None:
    one = Batch()
    one.add(record(1))
    assert one.size > len(record(1).raw)
    waiting = Waiting(10 * one.size)
    assert waiting.roomy
    for number in range(10):
        assert not waiting.full
        waiting.arriving.add(record(number))
    assert waiting.full
    waiting.take(2)
    assert waiting.full  # what is taken is ours until it is committed
    waiting.committed()
    assert not waiting.full
    assert not waiting.roomy
    waiting.take(1)
    waiting.committed()
    assert waiting.roomy


def test_a_mended_record_is_said_with_the_batch_that_holds_it() -> None:
    waiting = Waiting(10**6)
    waiting.arriving.add(record(1))
    waiting.arriving.add(record(2), mended=True)
    first = waiting.take(1)
    assert (first.records, first.mended) == ([record(1)], [])
    waiting.committed()
    second = waiting.take(1)
    assert (second.records, second.mended) == ([record(2)], [record(2)])


def test_of_two_equal_records_the_mended_one_is_said() -> None:
    waiting = Waiting(10**6)
    waiting.arriving.add(record(1), record(2))
    waiting.arriving.add(record(1), mended=True)
    first = waiting.take(2)
    assert (first.records, first.mended) == ([record(1), record(2)], [])
    waiting.committed()
    second = waiting.take(2)
    assert (second.records, second.mended) == ([record(1)], [record(1)])


def test_what_a_batch_resolves_is_not_forgotten_when_it_is_parted() -> None:
    waiting = Waiting(10**6)
    for number in range(3):
        waiting.arriving.add(record(number))
    waiting.arriving.resolved.append(7)
    resolved = []
    while batch := waiting.take(2):
        resolved += batch.resolved
        waiting.committed()
    assert resolved == [7]


def test_who_waits_is_told_by_the_commit_of_the_last_that_was_there() -> None:
    waiting = Waiting(10**6)
    told: list[str] = []
    waiting.arriving.add(record(1), record(2))
    waiting.when_committed(lambda: told.append("two records"))
    waiting.arriving.add_quarantined(quarantined(1))
    waiting.when_committed(lambda: told.append("and a quarantined report"))
    waiting.arriving.add(record(3))
    waiting.when_committed(lambda: told.append("and a record"))
    after = []
    while waiting.take(2):  # what is quarantined goes first
        waiting.committed()
        after.append(len(told))
    assert after == [0, 2, 3]
    assert told == ["two records", "and a quarantined report", "and a record"]


def test_what_arrives_while_a_commit_runs_waits_for_the_next_one() -> None:
    waiting = Waiting(10**6)
    told: list[int] = []
    waiting.arriving.add(record(1))
    assert not waiting.committing
    waiting.take(10)
    assert waiting.committing
    waiting.arriving.add(record(2))
    waiting.when_committed(lambda: told.append(2))
    waiting.committed()
    assert not waiting.committing
    assert told == []
    waiting.take(10)
    waiting.committed()
    assert told == [2]


def test_who_is_told_may_take_custody_of_more() -> None:
    waiting = Waiting(10**6)
    told: list[int] = []

    def go_on(number: int) -> None:
        waiting.arriving.add(record(number))
        waiting.when_committed(lambda: told.append(number))

    waiting.arriving.add(record(1))
    waiting.when_committed(lambda: go_on(2))
    waiting.take(10)
    waiting.committed()
    assert (told, len(waiting)) == ([], 1)
    waiting.take(10)
    waiting.committed()
    assert (told, len(waiting)) == ([2], 0)


def test_a_whole_batch_is_taken_ahead_and_no_part_of_one() -> None:
    waiting = Waiting(10**6)
    for number in range(7):
        waiting.arriving.add(record(number))
    assert waiting.take_ahead(0, 2) is None, "nothing is taken that it could be ahead of"
    first = waiting.take(2)
    assert waiting.take_ahead(1, 6) is None
    second = waiting.take_ahead(1, 2)
    assert second is not None
    assert waiting.take_ahead(1, 2) is second, "one that is to be committed again"
    third = waiting.take_ahead(2, 2)
    assert waiting.take_ahead(3, 2) is None
    assert waiting.take(2) is first
    assert len(waiting) == 7
    waiting.committed()
    assert waiting.take(2) is second
    assert [one.call_id for one in second.records] == ["2", "3"]
    assert (len(waiting), waiting.committing) == (5, True)
    waiting.committed()
    assert waiting.take(2) is third


def test_who_waits_is_told_by_the_batch_that_holds_it_and_not_by_the_one_in_front() -> None:
    waiting = Waiting(10**6)
    told: list[int] = []
    waiting.arriving.add(record(1), record(2))
    waiting.when_committed(lambda: told.append(2))
    waiting.take(1)
    waiting.take_ahead(1, 1)
    waiting.committed()
    assert told == []
    waiting.committed()
    assert told == [2]


def test_a_batch_keeps_what_a_commit_needs_when_it_is_pickled() -> None:
    batch = Batch(resolved=[7], restored=[RestoredCall(3, record(3))], repeated=True)
    batch.add(record(1))
    batch.add(record(2), mended=True)
    batch.add_quarantined(quarantined(4))
    left_out: list[pickle.PickleBuffer] = []
    text = pickle.dumps(batch, pickle.HIGHEST_PROTOCOL, buffer_callback=left_out.append)
    assert len(left_out) == len(batch.blocks) == 2
    for block, of_it in zip(batch.blocks, left_out, strict=True):
        assert of_it.raw().obj is block.columns
    there = pickle.loads(text, buffers=left_out)
    assert there.records == batch.records
    assert {type(one) for one in there.records} == {CallRecord}
    assert there.quarantined == batch.quarantined
    assert there.restored == batch.restored
    assert (there.resolved, there.repeated, len(there)) == ([7], True, len(batch))
    assert not pickle.loads(pickle.dumps(Batch(), pickle.HIGHEST_PROTOCOL))


steps = st.sampled_from(
    ["add", "add", "add many", "mend", "quarantine", "take", "take ahead", "commit"]
)


@settings(max_examples=200)
@given(st.lists(steps, max_size=60), st.integers(1, 5))
def test_nothing_is_lost_nor_doubled_whatever_the_order(order: list[str], max_records: int) -> None:
    waiting = Waiting(10**6)
    added: list[CallRecord | QuarantinedReport] = []
    stored: list[CallRecord | QuarantinedReport] = []
    awaited: list[tuple[int, int]] = []  # how much had been added, and stored when it was told
    taken: list[Batch] = []

    def await_commit(there: int) -> None:
        waiting.when_committed(lambda: awaited.append((there, len(stored))))

    for number, step in enumerate([*order, *["take", "commit"] * 60]):
        if step == "take" and (batch := waiting.take(max_records)) not in taken and batch:
            taken.append(batch)
        elif step == "take ahead" and (ahead := waiting.take_ahead(len(taken), max_records)):
            taken.append(ahead)
            assert 0 < len(ahead) <= max_records
        elif step == "commit" and taken:
            assert len(taken[0]) <= max_records
            stored += [*taken[0].records, *taken.pop(0).quarantined]
            waiting.committed()
        elif step == "quarantine":
            waiting.arriving.add_quarantined(quarantined(number))
            added.append(quarantined(number))
        elif step == "add many":
            waiting.arriving.add(*[record(number)] * 3)
            added += [record(number)] * 3
        elif step in ("add", "mend"):
            waiting.arriving.add(record(number), mended=step == "mend")
            added.append(record(number))
        assert len(waiting) == len(added) - len(stored)
        if waiting:
            await_commit(len(added))
    assert all(stored_then >= there for there, stored_then in awaited)
    assert awaited == sorted(awaited)
    assert not waiting._awaited
    assert sorted(map(repr, stored)) == sorted(map(repr, added))
    assert [one for one in stored if isinstance(one, CallRecord)] == [
        one for one in added if isinstance(one, CallRecord)
    ]
    assert waiting.roomy
    assert waiting.arriving.size == 0
