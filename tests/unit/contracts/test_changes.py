"""Whom a change concerns."""

import pytest

from walvec.contracts.changes import ALL_GENERATIONS, Change
from walvec.contracts.position import Position


@pytest.mark.parametrize(
    ("generation", "newest", "concerned"),
    [(ALL_GENERATIONS, 0, {1}), (ALL_GENERATIONS, 1, {1}), (ALL_GENERATIONS, 3, {1, 2, 3}), (2, 0, {2}), (2, 3, {2})],
)
def test_since_routed_a_record_is_for_the_generations_that_were_routed_then(
    generation: int, newest: int, concerned: set[int]
) -> None:
    """A younger one may use columns that the record lacks: taken for NULL, they would make a text that never was, at a
    position that the same change, streamed again with all columns, could only tie with."""
    change = Change("c", Position(0, 5, 1), b"{}", after={}, generation=generation, newest=newest)
    assert {g for g in range(1, 5) if change.concerns(g)} == concerned
