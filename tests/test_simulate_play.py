"""Each call that is played is counted and kept, whether or not anyone gets to hear of it."""

import orjson
import pytest

from cdrd.simulate.history import History
from cdrd.simulate.play import COUNTERS, PlayingPBX
from cdrd.simulate.reports import new_cdr, other_event

STARTED = 1571897930


class Recorder(PlayingPBX):
    """Keeps what is sent, and how often it was asked to settle."""

    dialect = "1.0.2"

    def __init__(self, history: History | None = None) -> None:
        super().__init__(history)
        self.told: list[bytes] = []
        self.settled = 0

    async def logged_in(self) -> None:
        pass

    async def send(self, report: bytes, *, chunk: int = 0) -> int:
        del chunk
        self.told.append(report)
        return 1

    async def send_event(self, event: bytes, *, chunk: int = 0) -> int:
        return await self.send(event, chunk=chunk)

    async def reset(self, *, orderly: bool = False) -> None:
        self.told.append(b"orderly" if orderly else b"reset")

    async def settle(self) -> None:
        self.settled += 1

    async def close(self) -> None:
        pass


@pytest.mark.asyncio
async def test_what_is_not_pushed_is_counted_and_stands_in_the_history() -> None:
    history = History(60)
    pbx = Recorder(history)
    await pbx.stream(count=7, events=1, started=STARTED, utc_offset=60, unpushed_every=3)
    assert pbx.told == [
        message
        for number in (0, 1, 3, 4, 6)
        for message in (
            other_event(number, "1.0.2"),
            new_cdr(number, "1.0.2", started=STARTED, utc_offset=60),
        )
    ]
    total, rows = history.rows(1, 100)
    assert (pbx.calls, total) == (7, 7)
    assert [row["call_id"] for row in rows] == [f"{STARTED}.{number}" for number in range(7)]


@pytest.mark.asyncio
async def test_the_dialect_is_the_one_given_or_the_one_expected() -> None:
    pbx = Recorder()
    await pbx.stream(count=1, events=0, started=STARTED)
    await pbx.stream(count=1, events=0, started=STARTED, dialect="2.0.0")
    first, second = (orjson.loads(report) for report in pbx.told)
    assert ("action" in first, "event" in second) == (True, True)


@pytest.mark.asyncio
async def test_flat_out_each_call_waits_until_the_one_before_has_arrived() -> None:
    pbx = Recorder()
    await pbx.stream(count=3, rate=0)
    await pbx.stream(count=3, rate=10_000)
    assert pbx.settled == 3


@pytest.mark.asyncio
async def test_resets_take_turns() -> None:
    pbx = Recorder()
    await pbx.stream(count=4, events=0, started=STARTED, reset_every=2)
    assert [told for told in pbx.told if not told.startswith(b"{")] == [b"reset", b"orderly"]


def test_each_counter_begins_at_nothing() -> None:
    assert Recorder().counters == dict.fromkeys(COUNTERS, 0)
