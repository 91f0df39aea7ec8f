"""The life of a vector table's generations, as functions table -> table. Pure. Next: `steps`.

Rule never-back: a generation is fed without a gap from its definition until it leaves the live ones, and then never
again; its number is given once. So a role that is behind misses nothing (it does not know the number yet and waits,
rule known-generation, or feeds what nobody wants any more), a record of a generation that is gone may be passed over
for ever, and no tombstone, floor or horizon of an earlier life meets a row. A rollback, and another try of one that
stalled, build a new generation of the same definition: its vectors are found by their hashes, so nothing is paid again.

  rebuild    ─► building ─► (filled, ready) ─► swapping ─► active ─► retired ─► expired
  rollback ──┘     │  └── stalled ◄── store, provider, letters; a swap that the store refuses
  retry ─────┘     └── abort (also of a stalled one): gone
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from walvec.contracts.errors import Conflict
from walvec.definitions.model import Generation, VectorTable

CHANGEABLE = frozenset(
    ("name", "keep_previous", "sync_mode", "backfill", "raw_source_table", "raw_primary_key", "primary_key_named")
)
"""Fields of the table that may change along with its generation."""

NOTHING_TO_ABORT = "nothing_to_abort"
NOTHING_TO_ROLL_BACK = "nothing_to_roll_back"
SWAP_IN_PROGRESS = "swap_in_progress"
BACKFILL_IN_PROGRESS = "backfill_in_progress"
GENERATION_TAKEN = "generation_taken"

REBUILD: Mapping[str, Any] = {"sweep": True}
"""Params of the task that reads a new generation. The sweep: what came before its first row is not to be trusted."""
ABORTED = "the rebuild was aborted"
REPLACED = "another generation is built instead"
RETIRED = "another generation took its place"


def entered(table: VectorTable, generation: Generation, changes: Mapping[str, Any]) -> VectorTable:
    """The generation is built from now on, instead of one that is being built."""
    _not_swapping(table)
    _next(table, generation)
    old = table.building
    kept = tuple(g if g is not old else _replaced(g, generation.number) for g in table.generations)
    new = replace(
        generation,
        state="building",
        ready=False,
        filled=False,
        fills=0,
        swapping=False,
        stalled=None,
        kept_until=None,
        embedding_provider_id=generation.embedding_provider_id or table.embedding_provider_id,
        provider_kind=generation.provider_kind or table.provider_kind,
    )
    return replace(
        _changed(table, changes),
        generations=(*kept, new),
        last_generation=generation.number,
        pending_rebackfill=True,
    )


def replaced_active(
    table: VectorTable, generation: Generation, changes: Mapping[str, Any], *, read: bool
) -> VectorTable:
    """A table that nobody has read yet gets another definition at once. `read`: a backfill is open, or one was."""
    _next(table, generation)
    if table.backfilled or read or len(table.generations) > 1:
        raise Conflict(f"{table.name!r} has been read already.", "Build a new generation.", code=BACKFILL_IN_PROGRESS)
    own = generation.embedding_provider_id, generation.provider_kind
    new = replace(generation, state="active", embedding_provider_id=None, provider_kind=None)
    return replace(
        _changed(table, changes),
        generations=(new,),
        last_generation=generation.number,
        embedding_provider_id=own[0] or table.embedding_provider_id,
        provider_kind=own[1] or table.provider_kind,
    )


def aborted(table: VectorTable) -> VectorTable:
    """What is being built, or has stalled, is gone; with it what was kept for its sake."""
    _not_swapping(table)
    if table.building is None:
        raise Conflict(f"{table.name!r} has no rebuild to abort.", code=NOTHING_TO_ABORT)
    kept = tuple(g for g in table.generations if g is not table.building and not was_replaced(g))
    return replace(table, generations=kept, last_generation=table.next_generation - 1, pending_rebackfill=False)


def rolled_back(table: VectorTable) -> VectorTable:
    """A new generation of the previous one's definition is built."""
    _not_swapping(table)
    if table.previous is None:
        raise Conflict(f"{table.name!r} has no previous generation.", code=NOTHING_TO_ROLL_BACK)
    return entered(table, replace(table.previous, number=table.next_generation), {})


def retried(table: VectorTable) -> VectorTable:
    """What stalled is built as a new generation; what is still being built, but not read any more, is left to be."""
    _not_swapping(table)
    old = table.building
    if old is None:
        raise Conflict(f"{table.name!r} has no rebuild to try again.", code=NOTHING_TO_ABORT)
    if old.state == "building":
        return table
    return entered(table, replace(old, number=table.next_generation), {})


def filled(table: VectorTable, generation: int) -> VectorTable:
    """All rows are in the store: of a building one that serves nobody yet, or of the active one."""
    found = table.generation(generation)
    if found is None or found.state not in ("building", "active"):
        return table
    if found.state == "building":
        return _with(table, replace(found, filled=True, fills=found.fills + 1))
    return replace(table, backfilled=True, pending_rebackfill=table.pending_rebackfill and table.building is not None)


def unfilled(table: VectorTable, generation: int) -> VectorTable:
    """It is read again: until that is done a building one must not serve."""
    found = table.generation(generation)
    if found is None or found.state != "building" or found.swapping:
        return table
    return _with(table, replace(found, filled=False))


def ready(table: VectorTable, generation: int, index: Mapping[str, Any] | None = None) -> VectorTable:
    """Its indexes are built. `index`: as it was when that was begun; unchanged when another one is wanted since."""
    found = table.generation(generation)
    if found is None or (index is not None and found.index != index):
        return table
    return _with(table, replace(found, ready=True))


Stall = Literal["stalled", "serves", "gone"]


def stalled(table: VectorTable, generation: int, reason: str) -> VectorTable:
    """Only of what is being built. What is being swapped in serves already, as far as anybody can tell."""
    found = table.generation(generation)
    if found is None or found.state != "building" or found.swapping:
        return table
    return _with(table, replace(found, state="stalled", stalled=reason, ready=False, filled=False))


def stall_of(table: VectorTable, generation: int) -> Stall:
    """After `stalled`: may its records be passed over, or must it be treated like the active one?"""
    found = table.generation(generation)
    if found is None:
        return "gone"
    return "serves" if found.state in ("building", "active") else "stalled"


def swap_begun(table: VectorTable, generation: int, *, fills: int, reading: bool) -> VectorTable:
    """`fills`: as it stood when the ends were taken up to which it was drained: what it was read once more for since
    may be behind them. `reading`: a backfill of it is open (rule fed-or-read). Unchanged when it may not be."""
    found = table.generation(generation)
    if found is None or found.state != "building" or not (found.filled and found.ready):
        return table
    if reading or found.fills != fills:
        return table
    return _with(table, replace(found, swapping=True))


def is_swapping(table: VectorTable, generation: int) -> bool:
    found = table.generation(generation)
    return found is not None and found.swapping


def swap_undone(table: VectorTable, generation: int, reason: str) -> VectorTable:
    """The store refuses to show it: the active one goes on."""
    found = table.generation(generation)
    if found is None or not found.swapping:
        return table
    return stalled(_with(table, replace(found, swapping=False)), generation, reason)


def swapped(table: VectorTable, generation: int, kept_until: str) -> VectorTable:
    """In one step: it is active, the one before is kept until then. The table's provider follows, all others keep
    their own."""
    found = table.generation(generation)
    if found is None or not found.swapping:
        return table
    generations = []
    for g in table.generations:
        if was_replaced(g):
            continue
        own = replace(
            g,
            embedding_provider_id=g.embedding_provider_id or table.embedding_provider_id,
            provider_kind=g.provider_kind or table.provider_kind,
        )
        if g is found:
            new = replace(own, state="active", swapping=False, embedding_provider_id=None, provider_kind=None)
        elif g.state == "active":
            new = replace(own, state="retired", kept_until=kept_until)
        else:
            new = own
        generations.append(new)
    other_provider = table.provider_of(found) != table.embedding_provider_id
    return replace(
        table,
        generations=tuple(generations),
        embedding_provider_id=table.provider_of(found),
        provider_kind=table.kind_of(found),
        backfilled=True,
        pending_rebackfill=False,
        blocked=None if other_provider else table.blocked,
    )


def expired(table: VectorTable, generation: int) -> VectorTable:
    """A retired one is not kept any more. While another is being built its vectors may be wanted still."""
    found = table.generation(generation)
    if found is None or found.state != "retired" or table.building is not None:
        return table
    return replace(
        table,
        generations=tuple(g for g in table.generations if g is not found),
        last_generation=table.next_generation - 1,
    )


def kept(old: VectorTable, new: VectorTable) -> tuple[Generation, ...]:
    """The generations of a definition that is put: what roles have made of them meanwhile stays, however old the
    definition is that it was made from."""
    if old.generation(new.active.number) is None:
        return new.generations  # another active one: all of it is new
    wanted = {g.number: g for g in new.generations}
    return tuple(_loose(g, wanted[g.number]) if g.number in wanted else g for g in old.generations)


def _loose(old: Generation, new: Generation) -> Generation:
    same = {c.name for c in new.columns} <= {c.name for c in old.source}
    return replace(
        new,
        key=old.key if same else new.key,
        source=old.source if same else new.source,
        state=old.state,
        ready=old.ready and old.index == new.index,
        filled=old.filled,
        fills=old.fills,
        swapping=old.swapping,
        stalled=old.stalled,
        kept_until=old.kept_until,
        embedding_provider_id=old.embedding_provider_id,
        provider_kind=old.provider_kind,
    )


def check_fed(table: VectorTable, generation: int) -> None:
    """Raises Conflict for a backfill whose rows nobody would apply. 0 stands for the active one."""
    found = table.generation(generation) if generation else table.active
    if found is None or found not in table.live_generations:
        raise Conflict(f"generation {generation} of {table.name!r} is not fed.", "Read its definition again.")


def in_progress(table: VectorTable) -> Conflict:
    return Conflict(
        f"a backfill of {table.name!r} is already open.", "Wait for it, or cancel its task.", code=BACKFILL_IN_PROGRESS
    )


def _not_swapping(table: VectorTable) -> None:
    if any(g.swapping for g in table.generations):
        raise Conflict(
            f"a new generation of {table.name!r} is being swapped in.",
            "Try again in a moment.",
            code=SWAP_IN_PROGRESS,
        )


def _next(table: VectorTable, generation: Generation) -> None:
    if generation.number != table.next_generation:
        raise Conflict(
            f"generation {generation.number} of {table.name!r} is not the next one ({table.next_generation}).",
            "Read the definition again, then try again.",
            code=GENERATION_TAKEN,
        )


def _changed(table: VectorTable, changes: Mapping[str, Any]) -> VectorTable:
    foreign = changes.keys() - CHANGEABLE
    if foreign:
        raise ValueError(f"not a field that changes with a generation: {', '.join(sorted(foreign))}")
    return renamed(table, replace(table, **changes))


def renamed(old: VectorTable, new: VectorTable) -> VectorTable:
    """Topics and storage keep the name that they were made with."""
    return new if new.name == old.name else replace(new, storage=old.storage_name)


def _replaced(old: Generation, by: int) -> Generation:
    reason = old.stalled or f"replaced by generation {by} before it was active"
    return replace(old, state="retired", stalled=reason, filled=False, ready=False)


def was_replaced(generation: Generation) -> bool:
    """It was to be active and another one was built instead, perhaps of the same definition."""
    return generation.state == "retired" and generation.stalled is not None


def _with(table: VectorTable, generation: Generation) -> VectorTable:
    return replace(
        table, generations=tuple(generation if g.number == generation.number else g for g in table.generations)
    )
