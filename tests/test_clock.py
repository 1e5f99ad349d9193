"""A PBX whose clock or zone jumps is told once; what is normal, and what is late, never."""

import itertools
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from cdrd.clock import WITNESSES, ClockJump, ClockWatch, Jump, OffsetJump
from cdrd.record import CallRecord
from cdrd.simulate.reports import duration, new_cdr
from cdrd.source import LIVE
from tests.example import varied
from tests.running import RunningDaemon, send

BERLIN = ZoneInfo("Europe/Berlin")
NOON = datetime(2024, 1, 10, 12, tzinfo=UTC)


def record(
    began: datetime = NOON,
    *,
    offset: int = 60,
    late: float = 1,
    duration: int = 29,
    source: str = "tcp",
    pbx: str = "hq",
    told: bool = True,
) -> CallRecord:
    """A record whose report came ``late`` seconds after the end of the call, by the PBX's clock."""
    received = began + timedelta(seconds=duration + late)
    return varied(
        told_by_id=told,
        pbx=pbx,
        started_at=began.strftime("%Y-%m-%dT%H:%M:%SZ"),
        utc_offset=offset,
        duration=duration,
        source=source,
        received_at=received.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    )


def watch(*commits: list[CallRecord]) -> list[Jump]:
    """What is said in all of some commits."""
    clocks = ClockWatch()
    clocks.zones = {"hq": BERLIN, "shop": ZoneInfo("UTC")}
    said: list[Jump] = []
    for records in commits:
        said += clocks.look(records)
    return said


def test_what_is_normal_is_never_said() -> None:
    assert watch([record(NOON + timedelta(minutes=n), late=n % 7) for n in range(100)]) == []


def test_the_change_to_summer_time_is_normal() -> None:
    spring = datetime(2024, 3, 31, 1, tzinfo=UTC)
    before, after = record(spring - timedelta(seconds=1)), record(spring, offset=120)
    assert watch([before], [after]) == []


def test_an_offset_that_is_not_the_zones_is_said_once_and_its_end_too() -> None:
    wrong, right = record(offset=-300), record()
    assert watch([right], [wrong], [wrong, wrong], [right], [right]) == [
        OffsetJump("hq", -300, 60),
        OffsetJump("hq", 60, 60),
    ]


def test_a_wrong_zone_of_ours_is_said_at_the_first_record() -> None:
    assert watch([record(pbx="shop")]) == [OffsetJump("shop", 60, 0)]


def test_an_offset_that_no_call_id_told_shows_nothing() -> None:
    assert watch([record(offset=0, told=False)]) == []


@pytest.mark.parametrize(("late", "behind"), [(-3600, -3600), (400, 400), (-31, -31)])
def test_a_clock_that_jumps_is_said_once_and_its_end_too(late: int, behind: int) -> None:
    wrong, right = [record(late=late)], [record(late=0)]
    said = watch(right, *[wrong] * 20, *[right] * 20)
    assert said == [ClockJump("hq", behind, 0), ClockJump("hq", 0, behind)]


def test_reports_that_were_held_up_are_no_jump_of_a_clock() -> None:
    late = [record(late=seconds) for seconds in (1, 900, 800, 700, 600, 500, 1, 900)]
    assert watch(late) == []


def test_four_reports_are_not_enough_to_tell() -> None:
    assert watch([record(late=900)] * 4) == []
    assert watch([record(late=900)] * 5) == [ClockJump("hq", 900, 0)]


def test_a_clock_that_is_wrong_by_half_a_minute_is_right_enough() -> None:
    assert watch([record(late=30)] * 9, [record(late=-30)] * 9) == []


def test_what_was_fetched_or_imported_shows_nothing_of_the_clock() -> None:
    assert {"history", "import"}.isdisjoint(LIVE)
    assert watch([record(late=86_400, offset=0, source="history")] * 9) == []
    assert watch([record(late=86_400, offset=0, source="import")] * 9) == []


def test_a_call_without_a_duration_shows_nothing_of_the_clock() -> None:
    assert watch([record(late=900, duration=-1)] * 9) == []


def test_each_pbx_has_its_own_clock() -> None:
    mixed = [record(late=900), record(late=1, pbx="shop", offset=0)] * 9
    assert watch(mixed) == [ClockJump("hq", 900, 0)]


def test_a_pbx_that_is_no_longer_configured_is_passed_over() -> None:
    assert watch([record(late=900, pbx="gone")] * 9) == []


def test_a_flood_is_looked_at_in_part_and_told_all_the_same() -> None:
    assert watch([record(late=900)] * 10_000) == [ClockJump("hq", 900, 0)]


# The daemon


def test_a_pbx_whose_zone_or_clock_is_wrong_is_told_once_and_so_is_its_mending(
    tmp_path: Path,
) -> None:
    numbers = itertools.count()

    def report(*, behind: int = 0, utc_offset: int = 0) -> None:
        """Report a call that has just ended, by a clock that is so many seconds behind."""
        number = next(numbers)
        started = int(time.time()) - behind - duration(number)
        send(daemon.port, new_cdr(number, started=started, utc_offset=utc_offset) + b"\n")
        daemon.wait_for_call(f"{started}.{number}")

    with RunningDaemon(tmp_path) as daemon:
        for behind in (0, 3600, 0):
            for _ in range(WITNESSES):
                report(behind=behind)
        for utc_offset in (60, 60, 0, 0):
            report(utc_offset=utc_offset)
        jumped = daemon.wait_for("pbx_clock_jumped", pbx="hq", level="warning")
        mended = daemon.wait_for("pbx_clock_mended", pbx="hq", level="info")
        offset = daemon.wait_for("pbx_offset_jumped", pbx="hq", level="warning")
        daemon.wait_for("pbx_offset_mended", pbx="hq", level="info")
        daemon.stop()
    assert 3590 < jumped["behind"] < 3700
    assert (jumped["before"], mended["before"]) == (0, jumped["behind"])
    assert (offset["utc_offset"], offset["expected"]) == (60, 0)
    for event in ("pbx_clock_jumped", "pbx_clock_mended", "pbx_offset_jumped", "pbx_offset_mended"):
        assert len(daemon.found(event)) == 1
