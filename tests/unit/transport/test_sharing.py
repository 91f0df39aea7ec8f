"""Shares are fair, move little, and every sequence of joins and leaves settles."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from walvec.transport.sharing import share

Owners = dict[int, int | None]


def step(members: list[int], owners: Owners) -> bool:
    """Everyone acts once; True when something moved."""
    moved = False
    for member in members:
        due = share(member, members, owners)
        assert not (due.release and due.claim)
        for partition in due.release:
            assert owners[partition] == member
            owners[partition] = None
        for partition in due.claim:
            assert owners[partition] not in members
            owners[partition] = member
        moved = moved or bool(due.release or due.claim)
    return moved


@given(
    st.integers(1, 20),
    st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=8, unique=True), min_size=1, max_size=6),
)
def test_every_history_settles_fairly(partitions: int, history: list[list[int]]) -> None:
    owners: Owners = dict.fromkeys(range(partitions))
    for members in history:
        rounds = 0
        while step(members, owners):
            rounds += 1
            assert rounds <= 4
        counts = [sum(owner == member for owner in owners.values()) for member in members]
        assert sum(counts) == partitions
        assert max(counts) - min(counts) <= 1


def test_a_single_member_takes_all_at_once() -> None:
    assert share(7, [7], {0: None, 1: 3, 2: None}).claim == (0, 1, 2)


def test_a_newcomer_takes_nothing_that_is_owned() -> None:
    owners: Owners = {0: 1, 1: 1, 2: 1}
    assert share(2, [1, 2], owners) == share(2, [1, 2], owners)
    assert share(2, [1, 2], owners).claim == ()
    assert share(1, [1, 2], owners).release == (2,)


def test_a_fair_share_stays_as_it_is() -> None:
    owners: Owners = {0: 2, 1: 1, 2: 2}
    assert share(1, [1, 2], owners) == share(2, [1, 2], owners)
    assert not step([1, 2], owners)
