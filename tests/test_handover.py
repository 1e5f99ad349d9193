"""What a request brings to the daemon is what the batch held, or the request is refused whole."""

from typing import Any

import orjson
import pytest

from cdrd.batch import Batch, QuarantinedReport, RestoredCall
from cdrd.handover import REQUEST_BYTES, TooLarge, Unfit, make_requests, read_request
from cdrd.sizes import KIB, PAYLOAD_BYTES
from tests.example import CALL, call, content, varied

LIMIT = 1024 * KIB
BAD = QuarantinedReport("now", "hq", "file", "import", "none", bytes(range(256)), 70_000)


def batch_of(*rows: RestoredCall | QuarantinedReport) -> Batch:
    batch = Batch()
    for row in rows:
        if isinstance(row, RestoredCall):
            batch.add_restored(row)
        else:
            batch.add_quarantined(row)
    return batch


def sent(batch: Batch) -> list[bytes]:
    return [orjson.dumps(request) for request in make_requests(batch, LIMIT)]


def test_a_batch_arrives_as_it_was() -> None:
    batch = batch_of(
        RestoredCall(7, varied(caller="Müller", duration=2**63 - 1)),
        RestoredCall(2**53 - 1, call(8), local_told=False),
        BAD,
    )
    batch.add(CALL, call(9))
    (request,) = sent(batch)
    assert content(read_request(orjson.loads(request))) == content(batch)


def test_an_empty_batch_makes_a_request_too() -> None:
    (request,) = sent(Batch())
    assert content(read_request(orjson.loads(request))) == content(Batch())


def test_requests_stay_well_below_what_the_daemon_takes() -> None:
    batch = batch_of(*[BAD._replace(payload=bytes(PAYLOAD_BYTES))] * 20)
    batch.add(*map(call, range(5000)))
    requests = sent(batch)
    assert max(map(len, requests)) < REQUEST_BYTES + KIB
    assert len(requests) > 5
    arrived = [read_request(orjson.loads(request)) for request in requests]
    assert [record for one in arrived for record in one.records] == batch.records
    assert [report for one in arrived for report in one.quarantined] == batch.quarantined


def test_a_large_record_travels_alone() -> None:
    batch = Batch()
    batch.add(CALL, varied(raw='{"a":"' + "x" * (REQUEST_BYTES + 9) + '"}'), call(8))
    assert [len(read_request(orjson.loads(request))) for request in sent(batch)] == [1, 1, 1]


def test_a_record_that_fits_into_no_request_is_told() -> None:
    batch = Batch()
    batch.add(varied(raw="x" * LIMIT))
    with pytest.raises(TooLarge, match=r"^a record of 10\d{5} bytes"):
        sent(batch)


def request(**changes: Any) -> dict[str, Any]:
    return {"do": "import_calls", "records": [], "restored": [], "quarantined": []} | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"records": None},
        {"records": [7]},
        {"records": [[*CALL, "more"]]},
        {"records": [list(CALL)[1:]]},
        {"records": [list(CALL._replace(caller=None))]},  # type: ignore[arg-type]
        {"records": [list(CALL._replace(duration=1.5))]},  # type: ignore[arg-type]
        {"restored": [list(CALL)]},
        {"restored": [[7, 1, *CALL]]},
        {"restored": [[True, True, *CALL]]},
        {"restored": [[0, True, *CALL]]},
        {"restored": [[2**53, True, *CALL]]},
        {"quarantined": [["now", "hq", "file", "import", "none", "no Base64!", 7]]},
        {"quarantined": [["now", "hq", "file", "import", "none", "", "7"]]},
    ],
)
def test_another_request_is_refused_whole(changes: dict[str, Any]) -> None:
    with pytest.raises(Unfit):
        read_request(request(**changes))
