"""Carries a `Redefinition` out: the definition first, under the revision that was seen, then storage and view.

What the store refuses is taken back, unless somebody has changed it again. What cannot be reached is rolled forward by
the sink. Whoever has made or shown something looks at the definitions again: a table that was deleted meanwhile leaves
nothing behind, and one whose generations were swapped does not show the former one. Next: `sink` (swap).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

from api.ports import SearchStore
from api.redefinition import Redefinition
from walvec.contracts.errors import Conflict, DefinitionError, NotFound, PreconditionFailed, StoreRejected, WalvecError
from walvec.definitions.generations import BACKFILL_IN_PROGRESS
from walvec.definitions.making import make
from walvec.definitions.model import BACKFILLS, VectorTable
from walvec.definitions.ports import Control
from walvec.definitions.revisions import etag as revision

_log = logging.getLogger(__name__)


async def redefine(change: Redefinition, *, control: Control, store: SearchStore) -> None:
    """Raises PreconditionFailed when the table is not what `change` was made of any more, Conflict (also while a new
    generation is swapped in), StoreRejected, and what cannot be reached."""
    refuse_fixed(change)
    old = change.old
    if change.kind == "nothing":
        return
    if change.kind == "recover":
        await _recover(change, control, store)
    elif change.kind == "generation":
        await _another(change, control, store)
    else:
        seen = revision(old)
        if change.kind == "back":
            seen = revision(await control.definitions.abort(old.id, etag=seen))
        await control.definitions.put_vector_table(change.table, etag=seen)
        await _shown(change, control, store)


def refuse_fixed(change: Redefinition) -> None:
    """Raises DefinitionError."""
    if change.fixed:
        names = ", ".join(sorted(change.fixed))
        raise DefinitionError(
            f"{names} of vector table {change.old.name!r} cannot be changed.",
            "Define a new vector table with it, and delete this one.",
        )


async def _another(change: Redefinition, control: Control, store: SearchStore) -> None:
    """A table that nobody has asked to read gets the new definition at once; else it is built beside the active one."""
    old, generation, seen = change.old, change.generation, revision(change.old)
    if not old.backfilled and len(old.generations) == 1:
        try:
            new = await control.definitions.replace_active(old.id, generation, changes=change.values, etag=seen)
        except Conflict as e:
            if e.code != BACKFILL_IN_PROGRESS:
                raise
        else:
            await _replaced(old, new, control, store)
            return
    new, _ = await control.definitions.rebuild(old.id, generation, changes=change.values, etag=seen)
    built = new.generation(generation.number)
    assert built is not None

    async def create() -> None:
        await store.ensure(new, built)
        if new.view_name != old.view_name:
            await _show(new, control, store)

    try:
        await _made(new, create, control)
    except StoreRejected:
        with suppress(Conflict, NotFound, PreconditionFailed):
            await control.definitions.abort(old.id, etag=revision(new))
        await _named_as_before(new, old, control)
        raise


async def _replaced(old: VectorTable, new: VectorTable, control: Control, store: SearchStore) -> None:
    try:
        await _stored(new, control, store)
    except StoreRejected:
        before = replace(
            old.active,
            number=new.next_generation,
            ready=False,
            embedding_provider_id=old.embedding_provider_id,
            provider_kind=old.provider_kind,
        )
        with suppress(Conflict, NotFound, PreconditionFailed):
            back = await control.definitions.replace_active(
                old.id, before, changes={"name": old.name}, etag=revision(new)
            )
            await _stored(back, control, store)
        raise
    await _dropped(store, new, old.active.number)


async def _shown(change: Redefinition, control: Control, store: SearchStore) -> None:
    old, new = change.old, change.table
    try:
        await _stored(new, control, store)
    except StoreRejected:
        with suppress(PreconditionFailed, NotFound):  # somebody has changed it again
            await control.definitions.put_vector_table(old, etag=revision(new))
        raise


async def _named_as_before(new: VectorTable, old: VectorTable, control: Control) -> None:
    if new.name != old.name:
        with suppress(Conflict, NotFound, PreconditionFailed):
            found = (await control.definitions.snapshot()).vector_tables.get(old.id)
            if found is not None and found.name == new.name:
                await control.definitions.put_vector_table(replace(found, name=old.name), etag=revision(found))


async def _stored(table: VectorTable, control: Control, store: SearchStore) -> None:
    async def create() -> None:
        await store.ensure(table, table.active)
        await _show(table, control, store)

    await _made(table, create, control)


async def _made(table: VectorTable, create: Callable[[], Awaitable[None]], control: Control) -> None:
    """Raises NotFound when the table is not defined any more: then a removal of what was made is entered."""

    async def take_back() -> None:
        await control.removals.put(table, ("storage",))

    await make(table, create, take_back, control=control)


async def _show(table: VectorTable, control: Control, store: SearchStore) -> None:
    """What is active now, under the name that it has now, whatever `table` says. While a generation is swapped in, the
    sink points the view, and looks again."""
    shown: tuple[int, str] | None = None
    while True:
        found = (await control.definitions.snapshot()).vector_tables.get(table.id)
        if found is None or any(g.swapping for g in found.generations):
            return
        if shown == (found.active.number, found.view_name):
            return
        await store.show(found, found.active)
        shown = found.active.number, found.view_name


async def _recover(change: Redefinition, control: Control, store: SearchStore) -> None:
    """An open backfill began under the former definition: it gives way to one that reads all rows and sweeps."""
    old, new = change.old, change.table

    async def create() -> None:
        await store.ensure(new, new.active)
        await store.show(new, new.active)

    await _made(new, create, control)
    try:
        await control.definitions.put_vector_table(new, etag=revision(old))
    except (Conflict, PreconditionFailed):
        await _show(old, control, store)
        raise
    await control.states.update_source_columns(new.id, change.generation)
    while not await _read_anew(new, control):
        continue  # somebody asked for a backfill in this moment, which may lack the sweep
    await control.states.clear_error(new.id)
    if old.active.number != new.active.number:
        await _dropped(store, new, old.active.number)


async def _read_anew(table: VectorTable, control: Control) -> bool:
    """False: somebody else was faster. What is built beside the active generation is read by tasks of its own."""
    now = (await control.definitions.snapshot()).vector_tables.get(table.id)
    number = table.active.number
    if now is None or now.active.number != number:
        return True  # a later definition's
    building = {g.number for g in now.live_generations} - {number}
    open_tasks = await control.tasks.open_tasks([table.id])
    try:
        await control.tasks.create(
            "rebackfill",
            table.id,
            number,
            {"sweep": True},
            instead_of=[t.id for t in open_tasks if t.task_type in BACKFILLS and t.generation not in building],
            reason="the definition was applied anew",
        )
    except Conflict:
        return False
    return True


async def _dropped(store: SearchStore, table: VectorTable, generation: int) -> None:
    """What no definition names any more is dropped by the sink too."""
    try:
        await store.drop(table, generation)
    except WalvecError as e:
        extra = {"action": "drop", "table": table.name, "generation": generation, "kind": e.kind}
        _log.warning("a former generation's storage stays for now", extra=extra)
