"""What a step in the life of a generation does to its table and to the tasks that read it. Pure.

Both change together or not at all, in every control database. The transitions of the table alone: `generations`.
Next: `rebuilds` and `memory.rebuilds`, which carry a step out.
"""

from __future__ import annotations

from dataclasses import dataclass

from walvec.definitions import generations
from walvec.definitions.model import VectorTable


@dataclass(frozen=True, slots=True)
class Step:
    """`table`: as it is from now on. `cancels`: the generation whose open tasks end for `reason`; None: none do."""

    table: VectorTable
    cancels: int | None = None
    reason: str = ""


def entering(old: VectorTable, new: VectorTable, *, reading: bool) -> Step:
    """To `new`, where a generation is being built, and is to be read by a new task. `reading`: a backfill of it is
    open. Raises Conflict when it is read already and nothing else changes."""
    building = new.building
    assert building is not None
    if new == old and reading:
        raise generations.in_progress(old)
    new = generations.unfilled(new, building.number)
    if old.building is None or old.building.number == building.number:
        return Step(new)
    return Step(new, old.building.number, generations.REPLACED)


def aborting(old: VectorTable) -> Step:
    """Raises Conflict as `generations.aborted`."""
    new = generations.aborted(old)
    assert old.building is not None
    return Step(new, old.building.number, generations.ABORTED)


def stalling(old: VectorTable, generation: int, kind: str, reason: str) -> Step:
    new = generations.stalled(old, generation, reason)
    return Step(new) if new == old else Step(new, generation, f"{kind}: {reason}")


def swapping(old: VectorTable, generation: int, kept_until: str) -> Step:
    """The one that was active is not read any more."""
    new = generations.swapped(old, generation, kept_until)
    return Step(new) if new == old else Step(new, old.active.number, generations.RETIRED)
