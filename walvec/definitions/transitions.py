"""What each write does to a vector table, as functions table -> table. Pure, so every control database agrees.

A function that returns an equal table changed nothing, and then the feed does not move. Next: `postgres`, `memory`.
"""

from __future__ import annotations

from dataclasses import replace

from walvec.contracts.letters import DeadLetter
from walvec.definitions.model import Generation, VectorTable


def put(old: VectorTable | None, new: VectorTable, now: str) -> VectorTable:
    """A definition that is created, or that replaces `old` and leaves to it what roles wrote."""
    if old is None:
        return replace(new, created_at=new.created_at or now, updated_at=now)
    ready = {g.number: g.ready for g in old.generations}
    kept = replace(
        new,
        generations=tuple(replace(g, ready=ready.get(g.number, g.ready)) for g in new.generations),
        paused=old.paused,
        error=old.error,
        blocked=old.blocked,
        # another active generation has its first backfill before it
        backfilled=old.backfilled if old.active.number == new.active.number else new.backfilled,
        dead_in_row=old.dead_in_row,
        created_at=old.created_at,
        updated_at=old.updated_at,
    )
    return kept if kept == old else replace(kept, updated_at=now)


def paused(table: VectorTable, value: bool) -> VectorTable:
    return replace(table, paused=value)


def failed(table: VectorTable, kind: str, message: str, cure: str) -> VectorTable:
    return replace(table, error={"kind": kind, "message": message, "cure": cure})


def recovered(table: VectorTable) -> VectorTable:
    return replace(table, error=None, dead_in_row=0)


def blocked(table: VectorTable, reason: str | None) -> VectorTable:
    return replace(table, blocked=reason)


def backfilled(table: VectorTable, generation: int) -> VectorTable:
    """Only the active generation's backfill counts: a building one serves nobody yet."""
    if table.active.number != generation:
        return table
    return replace(table, backfilled=True, pending_rebackfill=False)


def ready(table: VectorTable, generation: int) -> VectorTable:
    return replace(
        table, generations=tuple(replace(g, ready=True) if g.number == generation else g for g in table.generations)
    )


def source_columns(table: VectorTable, found: Generation) -> VectorTable:
    """The generation's recorded key and source columns, and nothing else of it."""
    return replace(
        table,
        generations=tuple(
            replace(g, key=found.key, source=found.source) if g.number == found.number else g for g in table.generations
        ),
    )


def letter(old: DeadLetter | None, new: DeadLetter) -> DeadLetter:
    """One open letter per key: the higher position tells what is wrong now, attempts add up."""
    if old is None:
        return new
    last = new if new.position >= old.position else old
    return replace(last, id=old.id or new.id, attempts=old.attempts + new.attempts)
