"""The short form of the losses of power; ``python -m tests.faults power`` is the long one."""

from tests.faults.power import (
    NORMAL,
    lose_all_that_is_not_synced,
    lose_power_under_load,
    lose_power_while_files_are_made,
)


def test_a_logged_call_is_there_after_a_loss_of_power() -> None:
    losses = lose_power_under_load(3, calls=200)
    assert (losses.cuts, losses.missing, losses.doubled, losses.broken) == (3, 0, 0, ())
    assert losses.told


def test_with_normal_durability_calls_are_found_missing() -> None:
    losses = lose_all_that_is_not_synced(NORMAL)
    assert losses.missing == losses.told >= 200
    assert losses.broken == ()


def test_a_file_is_whole_or_as_it_was_after_a_loss_of_power() -> None:
    assert lose_power_while_files_are_made(300) == []
