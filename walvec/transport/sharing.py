"""Who should own which partition: members and owners in, what one member gives up or takes out. PURE.

Law: every member computes its own share from the same rows, so no coordinator is needed. Shares differ by one at most
and move as little as possible. A partition is taken only when nobody alive owns it; so it is given up first.
Next: `local.groups` keeps the rows in the file; `memory` keeps them in a dict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from walvec.contracts.errors import PartitionLost


@dataclass(frozen=True, slots=True)
class Share:
    """`release`: owned beyond the fair share. `claim`: free and part of it. Never both."""

    release: tuple[int, ...] = ()
    claim: tuple[int, ...] = ()


def share(me: int, members: Sequence[int], owners: Mapping[int, int | None]) -> Share:
    """`members`: the live ones, `me` among them. `owners`: member by partition, for every partition of the topic."""
    counts = dict.fromkeys(members, 0)
    for owner in owners.values():
        if owner in counts:
            counts[owner] += 1
    # Those who own most keep the odd ones: nothing moves that need not.
    order = sorted(counts, key=lambda member: (-counts[member], member))
    quota, odd = divmod(len(owners), len(order))
    if order.index(me) < odd:
        quota += 1
    mine = sorted(partition for partition, owner in owners.items() if owner == me)
    if len(mine) > quota:
        return Share(release=tuple(mine[quota:]))
    free = sorted(partition for partition, owner in owners.items() if owner not in counts)
    return Share(claim=tuple(free[: quota - len(mine)]))


def given_away(partitions: Iterable[int], topic: str) -> PartitionLost:
    """For a commit that came too late."""
    return PartitionLost(
        f"Partitions {sorted(partitions)} of {topic} belong to another consumer now.",
        "Nothing to do: that consumer reads them from the last committed offset.",
    )


def not_owned(partition: int, topic: str) -> PartitionLost:
    """For who asks about a partition before it is his."""
    return PartitionLost(f"Partition {partition} of {topic} is not owned here.", "Poll first.")
