"""What was played stands in the history: each call once, by the PBX's own clock."""

import csv
import io
from calendar import timegm
from time import strptime

from cdrd.simulate.history import History
from cdrd.simulate.reports import history_row, rest_row

STARTED = 1571897930
EVER = (0, 1 << 40)


def at(text: str) -> int:
    return timegm(strptime(text, "%Y-%m-%d %H:%M:%S"))


def played(numbers: range, utc_offset: int = 0) -> History:
    """One call a minute."""
    history = History(utc_offset)
    for number in numbers:
        history.add(number, STARTED + 60 * number)
    return history


def told(history: History, parties: str = "all", between: tuple[int, int] = EVER) -> list[str]:
    table = csv.DictReader(io.StringIO(history.csv(parties, *between), newline=""))
    return [row["callid"] for row in table]


def test_the_csv_has_each_call_once_in_the_order_played() -> None:
    table = csv.DictReader(io.StringIO(played(range(50)).csv("all", *EVER), newline=""))
    assert list(table) == [
        history_row(number, started=STARTED + 60 * number) for number in range(50)
    ]


def test_an_empty_history_has_its_column_names() -> None:
    assert History().csv("all", *EVER) == (
        "callid,timestart,callfrom,callto,callduraction,talkduraction,srctrunkname,dsttrunkname,"
        "status,type,pincode,recording,didnumber,sn\r\n"
    )


def test_a_range_is_inclusive_and_by_the_clock_of_the_pbx() -> None:
    history = played(range(10), utc_offset=120)
    # 2019-10-24 06:18:50 UTC
    between = at("2019-10-24 08:19:50"), at("2019-10-24 08:21:50")
    expected = [f"{STARTED + 60 * number}.{number}" for number in (1, 2, 3)]
    assert told(history, between=between) == expected
    assert told(history, between=(between[0] + 1, between[1] - 1)) == expected[1:2]
    assert told(history, between=between[::-1]) == []
    assert history.rows(1, 100, between)[0] == 3


def test_extensions_choose_the_calls_that_they_take_part_in() -> None:
    history = played(range(1000))
    extension = history_row(0, started=STARTED)["callto"]
    chosen = told(history, f"{extension}, 9999")
    assert 0 < len(chosen) < 100
    assert chosen[0] == f"{STARTED}.0"
    assert told(history, "9999") == []


def test_pages_are_the_rows_without_overlap() -> None:
    history = played(range(25), utc_offset=60)
    pages = [history.rows(page, 10) for page in (1, 2, 3, 4)]
    assert [(total, len(rows)) for total, rows in pages] == [(25, 10), (25, 10), (25, 5), (25, 0)]
    rows = [row for _, page in pages for row in page]
    assert rows == [
        rest_row(number, started=STARTED + 60 * number, utc_offset=60) for number in range(25)
    ]
