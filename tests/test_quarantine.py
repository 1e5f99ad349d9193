"""A report leaves quarantine with all that it holds, or by its number, or not at all."""

import sqlite3
from collections.abc import Iterator
from datetime import UTC
from ipaddress import ip_network
from pathlib import Path

import orjson
import pytest

from cdrd.batch import QuarantinedReport
from cdrd.quarantine import drop_quarantined, read_quarantine, retry
from cdrd.schema import migrate
from cdrd.sender import Sender
from tests.committing import commit

RECEIVED_AT = "2017-09-14T01:30:45.123Z"
HQ = Sender("hq", UTC, (ip_network("192.0.2.0/24"),))


def new_cdr(number: int, **changes: object) -> bytes:
    return orjson.dumps(
        {
            "action": "NewCdr",
            "callid": f"1505352615.{number}",
            "timestart": "2017-09-14 01:30:15",
            "callfrom": "1000",
            "callto": "91000",
            "callduraction": "29",
            "talkduraction": "29",
            "status": "ANSWERED",
            "type": "Outbound",
        }
        | changes
    )


def kept(payload: bytes, pbx: str = "hq", size: int | None = None) -> QuarantinedReport:
    length = len(payload) if size is None else size
    return QuarantinedReport(RECEIVED_AT, pbx, "192.0.2.1:5", "tcp", "why", payload, length)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(tmp_path / "cdr.sqlite3", isolation_level=None)
    migrate(opened)
    yield opened
    opened.close()


def put(connection: sqlite3.Connection, *payloads: bytes) -> list[int]:
    insert = (
        "INSERT INTO quarantined_report (received_at, pbx, peer, source, reason, payload, size)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)"
    )
    ids = [connection.execute(insert, kept(payload)).lastrowid for payload in payloads]
    return [quarantine_id for quarantine_id in ids if quarantine_id is not None]


def ids_in(connection: sqlite3.Connection) -> list[int]:
    return [quarantine_id for quarantine_id, _ in read_quarantine(connection)]


# Reading and dropping.


def test_reports_are_read_oldest_first_the_newest_of_them(connection: sqlite3.Connection) -> None:
    put(connection, b"a", b"b", b"c")
    assert read_quarantine(connection) == [(1, kept(b"a")), (2, kept(b"b")), (3, kept(b"c"))]
    assert [number for number, _ in read_quarantine(connection, limit=2)] == [2, 3]


def test_reports_are_read_by_their_ids(connection: sqlite3.Connection) -> None:
    put(connection, b"a", b"b", b"c")
    assert [number for number, _ in read_quarantine(connection, [3, 1, 99])] == [3, 1]
    assert read_quarantine(connection, []) == []


@pytest.mark.parametrize("absent", [0, -1, 99, 2**63, -(2**63) - 1])
def test_an_id_that_is_not_there_is_passed_over(
    connection: sqlite3.Connection, absent: int
) -> None:
    put(connection, b"a")
    assert read_quarantine(connection, [absent]) == []
    assert drop_quarantined(connection, [absent, 1]) == 1


def test_dropped_reports_are_counted_and_gone(connection: sqlite3.Connection) -> None:
    put(connection, b"a", b"b", b"c")
    assert drop_quarantined(connection, [1, 3, 3, 99]) == 2
    assert ids_in(connection) == [2]


def test_a_drop_that_fails_drops_nothing_and_leaves_no_transaction_open(
    connection: sqlite3.Connection,
) -> None:
    put(connection, b"a", b"b")
    connection.execute(
        "CREATE TEMP TRIGGER refuse BEFORE DELETE ON main.quarantined_report WHEN old.id = 2"
        " BEGIN SELECT raise(ABORT, 'the disk is full'); END"
    )
    with pytest.raises(sqlite3.IntegrityError, match="the disk is full"):
        drop_quarantined(connection, [1, 2])
    assert not connection.in_transaction
    assert ids_in(connection) == [1, 2]


# Retrying.


def test_what_is_a_record_now_is_stored_and_leaves_quarantine(
    connection: sqlite3.Connection,
) -> None:
    put(connection, new_cdr(1), b"\x00garbage", new_cdr(2) + new_cdr(3))
    retried = retry(read_quarantine(connection), [HQ], 65536)
    assert retried.batch.resolved == [1, 3]
    assert [number for number, _ in retried.staying] == [2]
    committed = commit(connection, retried.batch, 0)
    assert [record.call_id[-1] for _, record in committed.stored] == ["1", "2", "3"]
    assert {record.received_at for _, record in committed.stored} == {RECEIVED_AT}
    assert {record.source for _, record in committed.stored} == {"tcp"}
    assert ids_in(connection) == [2]


def test_what_is_stored_already_leaves_quarantine_as_a_duplicate(
    connection: sqlite3.Connection,
) -> None:
    put(connection, new_cdr(1), new_cdr(1))
    committed = commit(connection, retry(read_quarantine(connection), [HQ], 65536).batch, 0)
    assert (len(committed.stored), committed.duplicates) == (1, 1)
    assert ids_in(connection) == []


def why_it_stays(report: QuarantinedReport, *senders: Sender) -> str:
    retried = retry([(7, report)], senders or [HQ], 1024)
    assert not retried.batch.records
    assert not retried.batch.resolved
    ((quarantine_id, reason),) = retried.staying
    assert quarantine_id == 7
    return reason


def test_a_report_of_which_only_the_beginning_was_kept_stays() -> None:
    assert why_it_stays(kept(new_cdr(1), size=99_999)) == "only its beginning was kept"


def test_a_report_of_a_pbx_that_is_not_configured_stays() -> None:
    assert why_it_stays(kept(new_cdr(1), pbx="gone")) == "no PBX 'gone' is configured"


@pytest.mark.parametrize(
    ("source", "payload", "advice"),
    [
        ("history", b"1505352615.7,soon,1000", "cdrd fetch asks for its time again; then drop"),
        ("history", b'{"call_id":"7","time":"soon"}', "cdrd fetch asks for its time again"),
        ("portal", b'{"CallID":"x"}', "cdrd import conferences takes it from an export"),
        ("import", b"1505352615.7,soon,1000", "mend it in its file and import that again"),
    ],
)
def test_a_row_stays_and_what_to_do_instead_is_told(
    source: str, payload: bytes, advice: str
) -> None:
    why = why_it_stays(kept(payload)._replace(source=source, reason="timestart 'soon'"))
    assert why.startswith("timestart 'soon': ")
    assert advice in why


def test_a_report_that_was_imported_is_decoded_as_any_other() -> None:
    retried = retry([(7, kept(new_cdr(1))._replace(source="import"))], [HQ], 1024)
    assert retried.batch.resolved == [7]


def test_a_report_that_holds_no_record_stays() -> None:
    assert why_it_stays(kept(b'{"action": "Ring"}')) == "it holds no record"
    assert why_it_stays(kept(b"")) == "it holds no record"


def test_a_report_that_is_still_none_stays_with_the_reason_of_now() -> None:
    assert "timestart" in why_it_stays(kept(new_cdr(1, timestart="soon")))
    why_it_stays(kept(new_cdr(1)[:-5]))


def test_a_report_of_which_a_part_is_still_none_stays_whole() -> None:
    assert "timestart" in why_it_stays(kept(new_cdr(1) + new_cdr(2, timestart="soon")))


def test_a_report_larger_than_the_limit_of_today_is_still_decoded() -> None:
    large = new_cdr(1, recording="r" * 5000)
    retried = retry([(7, kept(large))], [HQ], 1024)
    assert retried.batch.resolved == [7]


def test_a_serial_tells_the_pbxs_of_one_address_apart() -> None:
    senders = [Sender("a", UTC, (), "1"), Sender("b", UTC, (), "2"), HQ]
    retried = retry([(7, kept(new_cdr(1, sn="2"), pbx="a/b"))], senders, 65536)
    assert [record.pbx for record in retried.batch.records] == ["b"]
    assert "belongs to no PBX" in why_it_stays(kept(new_cdr(1, sn="3"), pbx="a/b"), *senders)


def test_a_slash_in_a_name_is_a_part_of_it() -> None:
    sender = Sender("hq/main", UTC)
    retried = retry([(7, kept(new_cdr(1), pbx="hq/main"))], [HQ, sender], 65536)
    assert [record.pbx for record in retried.batch.records] == ["hq/main"]
