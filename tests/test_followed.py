"""What was read becomes no new leg twice, and what was not there yet is awaited for a while."""

import pytest

from cdrd.followed import WINDOW_IDS, Followed

NONE = Followed(0, "UTC", {})


def test_what_was_made_a_leg_is_due_no_more() -> None:
    followed = NONE.after({1: None, 2: None})
    assert followed == Followed(2, "UTC", {})
    assert [followed.is_due(call_id) for call_id in (1, 2, 3)] == [False, False, True]


def test_a_row_that_was_not_there_is_due_until_it_comes() -> None:
    followed = NONE.after({1: None, 4: None})
    assert followed.due == {2: "", 3: ""}
    assert followed.after({1: None, 3: None, 4: None}) == Followed(4, "UTC", {2: ""})


def test_a_row_that_could_be_no_leg_is_due_until_it_can_be_one() -> None:
    followed = NONE.after({1: "af", 2: None})
    assert followed.due == {1: "af"}
    assert followed.after({1: "b0"}).due == {1: "b0"}
    assert followed.after({1: None}).due == {}


def test_a_leg_whose_row_has_become_unfit_is_not_due_again() -> None:
    assert NONE.after({1: None}).after({1: "af"}).due == {}


def test_nothing_is_due_that_no_look_begins_at() -> None:
    far = 10 * WINDOW_IDS
    followed = NONE.after({2: None, far: None})
    assert set(followed.due) == set(range(far - WINDOW_IDS + 1, far))
    assert followed.after({far + 2: None}).due == dict.fromkeys(
        [*range(far - WINDOW_IDS + 3, far), far + 1], ""
    )


def test_nothing_read_changes_nothing() -> None:
    followed = Followed(9, "UTC", {7: "", 8: "af"})
    assert followed.after({}) == followed


@pytest.mark.parametrize("newest", [0, 3, WINDOW_IDS, 2 * WINDOW_IDS])
def test_where_nothing_is_known_the_whole_window_is_due(newest: int) -> None:
    followed = Followed.with_all_due(newest, "UTC")
    assert list(followed.due) == list(range(max(1, newest - WINDOW_IDS + 1), newest + 1))
