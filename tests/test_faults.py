"""The short form of ``python -m tests.faults``: each fault a few times."""

from collections.abc import Callable

import pytest

from tests.faults.chaos import bring_through_chaos
from tests.faults.clocks import AHEAD, set_clock
from tests.faults.gaps import cut_line, kill_under_posts, stop_hearing
from tests.faults.kills import kill_under_load
from tests.faults.outcome import Outcome
from tests.faults.points import kill_daemon_at_points, kill_storing_in_commits
from tests.faults.soak import soak
from tests.faults.starts import start_with_much_behind
from tests.faults.storms import (
    end_under_load,
    kill_what_stores,
    reconnect_storm,
    reload_under_load,
    restart_with_kept_connections,
)
from tests.faults.systemd import restart_under_systemd
from tests.faults.troubles import disk_fills, slow_syncs, syncs_fail, writes_fail


@pytest.mark.parametrize("rate", [500, 4000])
def test_a_kill_takes_the_last_moments_at_most_and_no_logged_call(rate: int) -> None:
    result = kill_under_load(4, rate=rate, seed=rate)
    assert result.faults == [], result
    assert result.kills == 4
    assert result.stored > 0


@pytest.mark.parametrize("rate", [500, 4000])
def test_a_kill_of_the_process_that_stores_loses_nothing(rate: int) -> None:
    outcome = kill_what_stores(3, rate=rate, seed=rate)
    assert (outcome.lost, outcome.doubled) == (0, 0)
    assert outcome.sent > 0


def test_a_restart_under_load_loses_nothing_of_a_kept_connection() -> None:
    outcome = restart_with_kept_connections(3, crash=False)
    assert (outcome.lost, outcome.doubled) == (0, 0)
    assert outcome.sent > 100


def test_a_crash_under_load_takes_the_last_moments_of_a_kept_connection() -> None:
    outcome = restart_with_kept_connections(3, crash=True)
    assert outcome.doubled == 0
    assert outcome.lost <= 1000  # within 3 times what comes in some 150 ms


def test_a_storm_of_reconnects_with_what_is_known_is_each_call_once() -> None:
    outcome = reconnect_storm(20, 200)
    assert (outcome.sent, outcome.lost, outcome.doubled) == (4000, 0, 0)


def test_sigterm_under_load_loses_nothing() -> None:
    outcome = end_under_load()
    assert (outcome.lost, outcome.doubled) == (0, 0)
    assert outcome.seconds < 20


def test_a_clock_that_is_set_under_load_loses_nothing_and_holds_nothing_up() -> None:
    outcome = set_clock(len(AHEAD), rate=500)
    assert (outcome.lost, outcome.doubled, outcome.broken) == (0, 0, ())
    assert outcome.sent > 0


def test_reloads_under_load_lose_nothing() -> None:
    outcome = reload_under_load(9)
    assert (outcome.lost, outcome.doubled) == (0, 0)


def test_churn_on_all_ways_in_loses_nothing_and_doubles_nothing() -> None:
    outcome = soak(8)
    assert (outcome.lost, outcome.doubled) == (0, 0)
    assert outcome.sent > 2000


def test_a_line_that_is_cut_under_traffic_loses_nothing_that_the_history_has() -> None:
    outcome = cut_line(1)
    assert (outcome.lost, outcome.doubled, outcome.broken) == (0, 0, ())


def test_a_daemon_that_is_dead_under_traffic_loses_nothing_that_the_history_has() -> None:
    outcome = stop_hearing(1)
    assert (outcome.lost, outcome.doubled, outcome.broken) == (0, 0, ())


def test_a_network_that_splits_delays_half_closes_and_resets_takes_what_it_resets_alone() -> None:
    outcome = bring_through_chaos(1)
    assert (outcome.sent, outcome.lost, outcome.doubled) == (1500, 0, 0)


def test_a_kill_under_posts_loses_nothing_that_is_posted_again() -> None:
    outcome = kill_under_posts(2)
    assert (outcome.sent, outcome.lost, outcome.doubled) == (1200, 0, 0)


@pytest.mark.parametrize("trouble", [syncs_fail, writes_fail, slow_syncs, disk_fills])
def test_a_store_in_trouble_for_a_while_loses_nothing(trouble: Callable[[int], Outcome]) -> None:
    outcome = trouble(1)
    assert (outcome.lost, outcome.doubled, outcome.broken) == (0, 0, ())
    assert outcome.sent > 0


def test_a_kill_of_the_process_that_stores_at_named_points_loses_nothing() -> None:
    outcome = kill_storing_in_commits(1)
    assert (outcome.lost, outcome.doubled) == (0, 0)


def test_a_kill_at_named_points_takes_no_logged_call() -> None:
    outcome = kill_daemon_at_points(1)
    assert (outcome.doubled, outcome.broken) == (0, ())


def test_a_start_with_much_behind_takes_calls_at_once() -> None:
    outcome = start_with_much_behind(100_000)
    assert outcome.lost == 0
    assert outcome.seconds < 20  # 2 on a machine that does nothing else


def test_a_restart_by_systemd_under_load_loses_nothing() -> None:
    outcome = restart_under_systemd(1)
    assert (outcome.lost, outcome.doubled) == (0, 0)
    assert outcome.sent > 0
