"""The short form of the losses of power; ``python -m tests.faults power`` is the long one."""

from tests.faults.power import (
    NORMAL,
    Losses,
    lose_power_behind_a_kill,
    lose_power_draining_with_normal,
    lose_power_under_load,
    lose_power_while_files_are_made,
    lose_power_while_spooling,
)


def assert_kept(losses: Losses) -> None:
    assert (losses.missing, losses.doubled, losses.broken) == (0, 0, ()), losses
    assert losses.told


def test_a_logged_call_is_there_after_a_loss_of_power() -> None:
    assert_kept(lose_power_under_load(2, calls=200))


def test_with_normal_durability_calls_are_found_missing() -> None:
    losses = lose_power_under_load(1, calls=100, durability=NORMAL)
    assert losses.missing >= 100
    assert losses.broken == ()


def test_what_is_told_behind_a_killed_run_outlasts_a_loss_of_power() -> None:
    assert_kept(lose_power_behind_a_kill(1))


def test_what_was_spooled_outlasts_a_loss_of_power_with_normal_durability_too() -> None:
    assert_kept(lose_power_draining_with_normal(1))


def test_what_is_spooled_behind_a_killed_run_outlasts_a_loss_of_power() -> None:
    assert_kept(lose_power_while_spooling(1))


def test_a_file_is_whole_or_as_it_was_after_a_loss_of_power() -> None:
    assert lose_power_while_files_are_made(100) == []
