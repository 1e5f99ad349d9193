"""What was read becomes no new leg twice, and what was not there yet is awaited for a while."""

import pytest

from cdrd.followed import WINDOW_IDS, Followed

NONE = Followed(0, "UTC", {})


def test_a_row_that_was_read_is_due_no_more() -> None:
    followed = NONE.after({1: "af", 2: "b0"})
    assert followed == Followed(2, "UTC", {1: "af", 2: "b0"})
    rows = {1: "af", 2: "b0", 3: "c1"}
    assert [followed.is_due(*row) for row in rows.items()] == [False, False, True]


def test_a_row_that_was_not_there_is_due_until_it_comes() -> None:
    followed = NONE.after({1: "af", 3: "c1"})
    assert followed.is_due(2, "b0")
    assert not followed.after({1: "af", 2: "b0", 3: "c1"}).is_due(2, "b0")


def test_a_row_that_is_another_is_due_once() -> None:
    followed = NONE.after({1: "af"})
    assert followed.is_due(1, "b0")
    assert not followed.after({1: "b0"}).is_due(1, "b0")


def test_a_row_that_is_gone_is_remembered() -> None:
    followed = NONE.after({1: "af", 2: "b0"}).after({2: "b0"})
    assert not followed.is_due(1, "af")
    assert followed.is_due(1, "c1")


def test_nothing_is_due_that_no_look_begins_at() -> None:
    far = 10 * WINDOW_IDS
    followed = NONE.after({2: "af", far: "b0"})
    assert set(followed.digests) == set(range(far - WINDOW_IDS + 1, far + 1))
    assert not followed.is_due(far - WINDOW_IDS, "c1")
    later = followed.after({far + 2: "c1"})
    assert set(later.digests) == set(range(far - WINDOW_IDS + 3, far + 3))
    assert [later.digests[call_id] for call_id in (far, far + 1, far + 2)] == ["b0", "", "c1"]
    assert later.after({2: "c1"}) == later


def test_nothing_read_changes_nothing() -> None:
    followed = Followed(9, "UTC", {7: "", 8: "af"})
    assert followed.after({}) == followed


def test_what_is_left_of_a_table_is_still_known() -> None:
    followed = NONE.after(dict.fromkeys(range(1, 3 * WINDOW_IDS + 1), "af"))
    back = followed.back_to(2 * WINDOW_IDS + 1)
    assert back == (2 * WINDOW_IDS + 1, "UTC", {2 * WINDOW_IDS + 1: "af"})
    newest = 2 * WINDOW_IDS
    assert followed.back_to(newest) == Followed.with_all_due(newest, "UTC")


@pytest.mark.parametrize("newest", [0, 3, WINDOW_IDS, 2 * WINDOW_IDS])
def test_where_nothing_is_known_the_whole_window_is_due(newest: int) -> None:
    followed = Followed.with_all_due(newest, "UTC")
    assert list(followed.digests) == list(range(max(1, newest - WINDOW_IDS + 1), newest + 1))
    assert all(followed.is_due(call_id, "af") for call_id in followed.digests)
