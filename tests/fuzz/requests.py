"""What has to be true of HTTP, of what commands ask the daemon for, and of a PBX's answers."""

from collections.abc import Sequence
from contextlib import suppress

import orjson

from cdrd import handover, leg_request, purge
from cdrd.door import Door, Entrance, NotAdmitted
from cdrd.http_request import ContinueExpected, Event, Request, RequestReader
from cdrd.p_series import _rows, display_formats, errcode_of, spell_error
from cdrd.pbx_api import Unreachable
from cdrd.s_series import _errno
from cdrd.sizes import KIB
from tests.fuzz.reading import (
    ENDED,
    HQ,
    RECEIVED_AT,
    SHOPS,
    Custody,
    chance,
    check_records,
    connection,
    cut,
)

MOST = 1 * KIB
ENTRANCE = Entrance([Door(HQ), Door(SHOPS[0], "/cloud", b"secret"), Door(SHOPS[1], "/other")])


def check_requests(stream: bytes) -> None:
    """The requests do not depend on the cuts, a fault is the last event, and bodies are read."""
    whole = _events([stream], MOST)
    assert _events(cut(stream, chance(stream)), MOST) == whole
    for event in whole[:-1]:
        assert isinstance(event, ContinueExpected) or (
            isinstance(event, Request) and event.keep_alive
        )
    requests = [event for event in whole if isinstance(event, Request)]
    for request in requests:
        assert len(request.body) <= MOST
        admitted = ENTRANCE.admit(request.target, request.signature, request.body)
        assert not isinstance(admitted, NotAdmitted) or admitted.reason
    check_bodies([request.body for request in requests])


def pour_requests(pieces: list[bytes]) -> None:
    """Read a connection with the longest bodies that a configuration allows."""
    _events(pieces, 16 * KIB * KIB)


def _events(pieces: Sequence[bytes], most: int) -> list[Event]:
    reader = RequestReader(most)
    events = []
    for piece in pieces:
        reader.receive(piece)
        while (event := reader.next_event()) is not None:
            events.append(event)
    reader.close()
    while (event := reader.next_event()) is not None:
        events.append(event)
    return events


def check_bodies(bodies: Sequence[bytes]) -> None:
    """Bodies that are taken together become what each becomes by itself."""
    make = connection(HQ, max_report_bytes=MOST)
    together, alone = Custody(), Custody()
    taken = make(together.waiting, together.totals).take_whole(bodies, RECEIVED_AT)
    assert sorted([*taken.waiting, *taken.passed_over, *taken.left]) == [*range(len(bodies))]
    for custody, places in ((together, taken.left), (alone, range(len(bodies)))):
        for place in places:
            stream = make(custody.waiting, custody.totals)
            stream.receive(bodies[place], RECEIVED_AT)
            stream.close(ENDED, RECEIVED_AT)
    check_records(together.batch)
    ours, theirs = together.reading(), alone.reading()
    assert sorted(ours.records) == sorted(theirs.records)
    assert sorted(ours.quarantined) == sorted(theirs.quarantined)
    assert (ours.events, ours.received) == (theirs.events, theirs.received)


def check_asked(request: bytes) -> None:
    """What a command asks the daemon for is what it holds, or refused."""
    try:
        asked = orjson.loads(request)
    except orjson.JSONDecodeError:
        return
    if not isinstance(asked, dict):
        return
    with suppress(handover.Unfit):
        batch = handover.read_request(asked)
        with suppress(handover.TooLarge, orjson.JSONEncodeError):
            [again] = handover.make_requests(batch, 1024 * KIB)
            assert handover.read_request(orjson.loads(orjson.dumps(again))).records == batch.records
    with suppress(leg_request.NotAnArrival):
        arrival = leg_request.read_request(asked)
        spelled = leg_request.make_request(arrival, str(asked["zone"]))
        assert leg_request.read_request(orjson.loads(orjson.dumps(spelled))) == arrival
    with suppress(purge.NotAPurge):
        wanted = purge.read_request(asked)
        assert purge.read_request(purge.make_request(*wanted)) == wanted


def check_answer(answer: bytes) -> None:
    """Whatever a PBX's API answers, it is understood, or an error with a sentence."""
    try:
        said = orjson.loads(answer)
    except orjson.JSONDecodeError:
        return
    if not isinstance(said, dict):
        return
    assert _errno(said) or str(said["status"]).strip().lower() == "success"
    assert isinstance(errcode_of(said), int)
    assert len(spell_error(said)) < KIB
    rows = [row for row in _rows(said) or [] if isinstance(row, dict)]
    if rows:
        with suppress(Unreachable):
            assert display_formats(rows)
