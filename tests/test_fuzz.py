"""The short form of ``make fuzz``: some inputs for each target, and that a fault would be found."""

import pytest

from tests.fuzz.growth import too_slow
from tests.fuzz.mutation import search
from tests.fuzz.targets import TARGETS

INPUTS = 700


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_what_has_to_be_true_of_it_is(name: str) -> None:
    target = TARGETS[name]
    found = search(target.check, target.seeds, INPUTS, seed=1)
    assert not found, "\n".join(f"{one.given!r}: {one.trace}" for one in found.values())


@pytest.mark.parametrize("name", [name for name in TARGETS if TARGETS[name].pour])
def test_the_cost_of_a_byte_does_not_rise_with_what_came_before(name: str) -> None:
    target = TARGETS[name]
    assert target.pour is not None
    assert list(too_slow(target.pour, [target.seeds[0], target.seeds[-1]])) == []


def test_an_input_that_fails_is_found_and_the_shortest_is_told() -> None:
    def refuse_glue(given: bytes) -> None:
        assert b"}{" not in given

    [found] = search(refuse_glue, [b"{}", b"{}{}}{}{}{}"], 300, seed=1).values()
    assert b"}{" in found.given
    assert len(found.given) < 10
    assert "refuse_glue" in found.trace


def test_a_cost_that_is_not_linear_is_found() -> None:
    def pour(pieces: list[bytes]) -> None:
        """Look at everything anew with each piece."""
        held = b""
        for piece in pieces:
            held += piece
            held.count(b"xy")

    assert next(too_slow(pour, [b"x"])).endswith(b"x")
