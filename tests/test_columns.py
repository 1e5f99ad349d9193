"""An export's columns are the view's, and have two names."""

import contextlib
import sqlite3

import pytest

from cdrd.columns import RECORDS, Kind, NoSuchColumn, lay_out
from cdrd.leg import COLUMNS
from cdrd.report import SPELLINGS
from cdrd.schema import migrate


@pytest.mark.parametrize("kind", RECORDS)
def test_the_columns_are_those_of_the_view_and_of_its_table(kind: str) -> None:
    records = RECORDS[kind]
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
        migrate(database)
        shown = database.execute(f"SELECT * FROM {records.view.name}").description
        declared = {
            name: declared.lower()
            for _, name, declared, *_ in database.execute(f"PRAGMA table_info({records.table})")
        }
    assert [column.name for column in records.columns] == [name for name, *_ in shown]
    for column in records.columns:
        assert (declared[column.name] == "integer") == (column.kind is Kind.INTEGER), column


def test_the_originals_are_the_sources_own_names() -> None:
    calls, legs = RECORDS["calls"], RECORDS["conferences"]
    for column in calls.columns:
        assert not column.original or SPELLINGS[column.original] == column.name
    layout = lay_out(legs, original=True)
    assert set(layout.headings) == set(COLUMNS)
    named = {column.name: heading for column, heading in zip(*layout[1:], strict=True)}
    assert (named["join_local"], named["leave_local"]) == ("JoinTime", "LeaveTime")


def test_columns_are_chosen_in_an_order_and_keep_our_name_where_the_source_has_none() -> None:
    layout = lay_out(RECORDS["calls"], ["raw", "caller", "seq"], original=True)
    assert layout.headings == ("raw", "callfrom", "seq")
    assert layout.query == "SELECT raw, caller, seq FROM calls"


@pytest.mark.parametrize(
    ("names", "said"),
    [(["caler"], "'caler'.*there are seq, pbx"), (["seq", "seq"], "twice"), ([""], "''")],
)
def test_what_is_no_column_is_told(names: list[str], said: str) -> None:
    with pytest.raises(NoSuchColumn, match=said):
        lay_out(RECORDS["calls"], names)
