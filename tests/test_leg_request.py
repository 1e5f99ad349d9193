"""What a command asks the daemon to store is what it would have stored itself."""

from typing import Any

import orjson
import pytest

from cdrd.batch import QuarantinedReport
from cdrd.leg_request import NotAnArrival, make_answer, make_request, read_request
from cdrd.leg_store import Arrival, StoredLegs
from tests.portal_rows import IN_PROGRESS, NEW_YORK, leg

BAD = QuarantinedReport("2017-09-14T13:30:15.000Z", "video", "x.csv:2", "import", "why", b"\xff", 9)
ARRIVAL = Arrival(
    "video", NEW_YORK, 1.5e9, legs=[leg(1), leg(2, **IN_PROGRESS)], quarantined=[BAD]
)  # fmt: skip


def request() -> dict[str, Any]:
    asked: dict[str, Any] = orjson.loads(orjson.dumps(make_request(ARRIVAL, "America/New_York")))
    return asked


def test_a_request_brings_what_had_arrived() -> None:
    assert read_request(request()) == ARRIVAL


@pytest.mark.parametrize(
    "change",
    [
        {"portal": None},
        {"zone": "Mars"},
        {"zone": "../../etc/passwd"},
        {"until": "now"},
        {"legs": None},
        {"legs": [[]]},
        {"legs": [None]},
        {"legs": [[*leg(1)[:1], "1", *leg(1)[2:]]]},
        {"legs": [[*leg(1)[:9], None, *leg(1)[10:]]]},  # without its join_time
        {"quarantined": [[1]]},
        {"quarantined": [[*BAD[:5], "not Base64", 1]]},
        {"quarantined": [[*BAD[:4], None, "", 0]]},
    ],
)
def test_a_request_that_is_unfit_is_refused_whole(change: dict[str, Any]) -> None:
    with pytest.raises(NotAnArrival, match="legs that this daemon does not know"):
        read_request(request() | change)


def test_a_request_of_another_version_is_refused() -> None:
    with pytest.raises(NotAnArrival, match="is it an older version"):
        read_request({"do": "store_legs"})


def test_an_answer_tells_what_became_of_legs() -> None:
    outcome = StoredLegs(stored=1, unchanged=2, quarantined=[(7, BAD)], told={5: False})
    assert orjson.loads(orjson.dumps(make_answer(outcome))) == {
        "stored": 1,
        "updated": 0,
        "unchanged": 2,
        "quarantined": 1,
        "told": [[5, False]],
    }
