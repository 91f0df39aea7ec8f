"""What each write does to a vector table, as functions table -> table. Pure, so every control database agrees.

A function that returns an equal table changed nothing, and then the feed does not move. Next: `generations` (what
becomes of each), `postgres`, `memory`.
"""

from __future__ import annotations

from dataclasses import replace

from walvec.contracts.errors import PreconditionFailed
from walvec.contracts.letters import DeadLetter
from walvec.definitions import generations
from walvec.definitions.model import Generation, VectorTable


def put(old: VectorTable | None, new: VectorTable, now: str) -> VectorTable:
    """A definition that is created, or that replaces `old` and leaves to it what roles wrote. Raises
    PreconditionFailed for one whose active generation is gone."""
    if old is None:
        return replace(new, created_at=new.created_at or now, updated_at=now)
    other = old.generation(new.active.number) is None  # it has its first backfill before it
    if other and new.active.number < old.next_generation:  # rule never-back: its storage may be dropped already
        raise PreconditionFailed(
            f"vector table {old.name!r} was changed meanwhile.", "Read it again and make the change anew."
        )
    asked = old.generation((new.building or new.active).number)
    if asked is not None and generations.was_replaced(asked):  # as a new one of the same definition: it was tried again
        raise PreconditionFailed(
            f"vector table {old.name!r} was changed meanwhile.", "Read it again and make the change anew."
        )
    stale = not other and new.active.number != old.active.number  # made from what was true before a swap
    # rule known-generation: who knows the former text alone would write it under the same number, so one is passed by
    retold = not other and not stale and new.active.text_spec != old.active.text_spec
    kept = replace(
        generations.renamed(old, new),
        generations=generations.kept(old, new),
        last_generation=max(old.next_generation, new.next_generation) - 1
        if other
        else old.next_generation
        if retold
        else old.last_generation,
        embedding_provider_id=old.embedding_provider_id if stale else new.embedding_provider_id,
        provider_kind=old.provider_kind if stale else new.provider_kind,
        paused=old.paused,
        error=old.error,
        blocked=old.blocked,
        backfilled=new.backfilled if other else old.backfilled,
        pending_rebackfill=new.pending_rebackfill if other else old.pending_rebackfill,
        dead_in_row=old.dead_in_row,
        failed_at=old.failed_at,
        created_at=old.created_at,
        updated_at=old.updated_at,
    )
    return kept if kept == old else replace(kept, updated_at=now)


def stamped(old: VectorTable, new: VectorTable, now: str) -> VectorTable:
    """What a role wrote, with the time when something else went wrong than before."""
    return new if new.wrong in (None, old.wrong) else replace(new, failed_at=now)


def paused(table: VectorTable, value: bool) -> VectorTable:
    return replace(table, paused=value)


def failed(table: VectorTable, kind: str, message: str, cure: str) -> VectorTable:
    return replace(table, error={"kind": kind, "message": message, "cure": cure})


def recovered(table: VectorTable) -> VectorTable:
    return replace(table, error=None, dead_in_row=0)


def blocked(table: VectorTable, reason: str | None) -> VectorTable:
    return replace(table, blocked=reason)


def source_columns(table: VectorTable, found: Generation) -> VectorTable:
    """The generation's recorded key and source columns, and nothing else of it. Raises PreconditionFailed when its
    definition needs others meanwhile: without one of them no role could read it."""
    now = table.generation(found.number)
    if now is not None and not {c.name for c in now.columns} <= {c.name for c in found.source}:
        raise PreconditionFailed(
            f"vector table {table.name!r} was changed meanwhile.", "Read it again, then try again."
        )
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
