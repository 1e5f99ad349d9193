"""A block holds exactly its records, and the rows that they become are told from it."""

import orjson
import pytest

from cdrd.block import SAMPLE, Block, StoredRows, pack, rows_of
from cdrd.record import CallRecord
from tests.example import CALL, call

RECORDS = [call(number) for number in range(7)]


def told(lines: str) -> list[tuple[int, str]]:
    return [(line["seq"], line["call_id"]) for line in map(orjson.loads, lines.splitlines())]


def test_its_records_are_those_that_it_was_made_of() -> None:
    block = pack(RECORDS)
    assert (block.count, block.records) == (7, RECORDS)
    assert {type(record) for record in block.records} == {CallRecord}


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 50, 110])
def test_a_few_of_its_records_stay_at_hand(number: int) -> None:
    records = [call(each) for each in range(number)]
    sample = pack(records).sample
    assert 1 <= len(sample) <= SAMPLE
    assert sample[0] == (0, records[0])
    assert all(records[place] == record for place, record in sample)


@pytest.mark.parametrize("most", [1, 3, 6, 7, 8])
def test_it_is_parted_in_order(most: int) -> None:
    parts = pack(RECORDS, mended=True).parted(most)
    assert [record for part in parts for record in part.records] == RECORDS
    assert all(part.mended and part.count <= most for part in parts)
    assert len(parts) == -(-7 // most)


def test_each_row_is_told_by_the_tail_of_its_record() -> None:
    rows = StoredRows(range(5, 12), [pack(RECORDS[:3]), pack(RECORDS[3:], plain=True)])
    assert told(rows.lines('{"seq":')) == [
        (seq, record.call_id) for seq, record in enumerate(RECORDS, 5)
    ]
    assert (rows.count, rows.last_seq) == (7, 11)


def test_a_record_that_added_no_row_is_not_told() -> None:
    rows = StoredRows([0, 5, 0, 6, 0, 0, 7], [pack(RECORDS[:3]), pack(RECORDS[3:], plain=True)])
    stored = [(5, RECORDS[1]), (6, RECORDS[3]), (7, RECORDS[6])]
    assert rows.records() == stored
    assert told(rows.lines('{"seq":')) == [(seq, record.call_id) for seq, record in stored]
    assert (rows.count, rows.last_seq) == (3, 7)


def test_only_what_became_a_row_is_in_the_sample() -> None:
    blocks = [pack([one]) for one in RECORDS[:3]]
    assert StoredRows([0, 4, 0], blocks).sample() == [RECORDS[1]]
    assert StoredRows([4, 5, 6], blocks).sample() == RECORDS[:3]


def test_rows_are_made_of_what_is_known_record_by_record() -> None:
    stored = [(7, CALL), (3, call(8))]
    assert rows_of(stored).records() == stored
    empty = rows_of([])
    assert (empty.records(), empty.last_seq, empty.count, empty.lines("x")) == ([], 0, 0, "")


def test_its_size_is_more_than_that_of_its_bytes() -> None:
    small, large = pack([CALL]), pack([CALL._replace(raw="x" * 10_000)])
    assert large.size - small.size > 9_000
    assert isinstance(small, Block)
    assert small.size > len(small.columns) + len(small.tails)
