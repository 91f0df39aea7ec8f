"""Makes a plan true, in the order of the flow. Idempotent.

Nothing half-made stays: a vector table is entered last, once its storage, its view and its topics are there; their
removal is entered first, so that it is done even if this process is killed in between. Next: `cdc` feels the new
definition through the feed.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

from api.plan import Difference, Plan, Step
from api.ports import SearchStore, Source
from api.redefine import redefine
from api.removals import Remover, remove_connection, remove_vector_table, topics_of
from walvec.contracts.errors import Conflict, NotFound, WalvecError
from walvec.definitions.making import create_topics
from walvec.definitions.model import Connection, EmbeddingProvider, VectorTable
from walvec.definitions.ports import Control
from walvec.transport.ports import Log

_log = logging.getLogger(__name__)


async def apply(plan: Plan, control: Control, store: SearchStore, log: Log, source: Source) -> list[Difference]:
    """Makes the plan true and returns its differences. What it has created is taken back when a later step fails."""
    created: list[Any] = []
    try:
        for step in plan.steps:
            await _apply_step(step, control, store, log, source)
            if step.difference.action == "created":
                created.append(step.value)
    except WalvecError:
        for value in reversed(created):
            try:
                await _remove(value, control, store, log, source)
            except WalvecError as e:
                _log.warning("a definition of a refused file stays", extra={"action": "undo", "kind": e.kind})
        raise
    return plan.differences


async def _apply_step(step: Step, control: Control, store: SearchStore, log: Log, source: Source) -> None:
    difference, value, before = step.difference, step.value, step.before
    if difference.action == "removed":
        await _remove(before, control, store, log, source)
    elif isinstance(value, VectorTable):
        await _apply_table(step, value, Remover(control, store, log, source))
    elif difference.action == "unchanged":
        return
    elif isinstance(value, Connection):
        await control.definitions.put_connection(value)
    elif isinstance(value, EmbeddingProvider):
        await control.definitions.put_provider(value)
    if difference.action != "unchanged":
        _log.info(
            "definition applied",
            extra={"action": "apply", "what": difference.action, "kind": difference.kind, "subject": difference.name},
        )


async def _apply_table(step: Step, value: VectorTable, remover: Remover) -> None:
    if step.change is None:
        await create_vector_table(value, remover)
        return
    control, store = remover.control, remover.store
    await redefine(step.change, control=control, store=store)
    if "error" in step.difference.fields and step.change.kind != "recover":
        await control.states.clear_error(value.id)
    await _first_backfill(value, step.change.old.backfilled, control)


async def _first_backfill(table: VectorTable, backfilled: bool, control: Control) -> None:
    """Also where a former apply was killed between entering the table and asking for its backfill."""
    if table.backfill == "auto" and not backfilled and not await control.tasks.recent(table.id, 1):
        with suppress(Conflict):  # asked for meanwhile
            await control.tasks.create("backfill", table.id, table.active.number, {})


async def create_vector_table(table: VectorTable, remover: Remover) -> None:
    """Storage, view and topics, then the definition, then the first backfill unless it is manual. `remover`: takes what
    was begun away again."""
    control, store, log = remover.control, remover.store, remover.log
    for other in (await control.definitions.snapshot()).vector_tables.values():
        if (other.view_schema, other.view_name) == (table.view_schema, table.view_name):
            raise Conflict(f"there is already a vector table named {other.name!r}.", "Choose another name.")
    try:
        async with control.definitions.making(table) as enter:
            await store.ensure(table, table.active)
            await store.show(table, table.active)
            await create_topics(log, topics_of(table))
            await enter()
    except WalvecError:
        await _undo(table, remover)
        raise
    await _first_backfill(table, False, control)


async def _undo(table: VectorTable, remover: Remover) -> None:
    """The definition first here too: it may have been entered although the answer was lost, and roles are at work.
    Where something is away, what was begun is a removal like any other."""
    try:
        try:
            left = await remover.control.definitions.delete_vector_table(table.id)
        except NotFound:
            left = await remover.control.removals.put(table, ("storage", "topics"))
        await remover.at_once(left)
    except WalvecError as e:
        _log.warning(
            "storage of a refused vector table stays behind",
            extra={"action": "undo", "storage": table.storage_name, "kind": e.kind},
        )


async def _remove(before: Any, control: Control, store: SearchStore, log: Log, source: Source) -> None:
    remover = Remover(control, store, log, source)
    if isinstance(before, VectorTable):
        await remove_vector_table(before, remover)
    elif isinstance(before, EmbeddingProvider):
        await control.definitions.delete_provider(before.id)
    elif isinstance(before, Connection):
        await remove_connection(before, remover)
