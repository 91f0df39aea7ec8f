"""Generations in the control database: what a transition does to a table, and to its tasks, in one transaction.

What a step does is pure (`steps`, `generations`). Next: `postgres` joins these methods to its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from walvec.contracts.errors import Conflict, NotFound
from walvec.definitions import generations, revisions, steps, stored
from walvec.definitions.model import Generation, Task, VectorTable
from walvec.definitions.pool import Connection, Pool
from walvec.definitions.steps import Step
from walvec.definitions.tasks import cancel_tasks, ever_read, insert_task, is_open, open_backfill
from walvec.definitions.values import now


class Rebuilds:
    """The part of `ports.Definitions` that changes which generations there are."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def rebuild(
        self,
        table_id: str,
        generation: Generation,
        *,
        changes: Mapping[str, Any] | None = None,
        etag: str | None = None,
    ) -> tuple[VectorTable, Task]:
        return await self._enter(table_id, lambda t: generations.entered(t, generation, changes or {}), etag)

    async def replace_active(
        self,
        table_id: str,
        generation: Generation,
        *,
        changes: Mapping[str, Any] | None = None,
        etag: str | None = None,
    ) -> VectorTable:
        async with self._pool.ordered() as conn:
            old = await stored.locked(conn, table_id)
            revisions.check(old, etag)
            read = await ever_read(conn, table_id)
            return await self._take(conn, Step(generations.replaced_active(old, generation, changes or {}, read=read)))

    async def abort(self, table_id: str, *, etag: str | None = None) -> VectorTable:
        async with self._pool.ordered() as conn:
            old = await stored.locked(conn, table_id)
            revisions.check(old, etag)
            return await self._take(conn, steps.aborting(old))

    async def rollback(self, table_id: str) -> tuple[VectorTable, Task]:
        return await self._enter(table_id, generations.rolled_back, None)

    async def retry(self, table_id: str) -> tuple[VectorTable, Task]:
        return await self._enter(table_id, generations.retried, None)

    async def _enter(
        self, table_id: str, transition: Callable[[VectorTable], VectorTable], etag: str | None
    ) -> tuple[VectorTable, Task]:
        """What is built from now on, and the task that reads it: neither without the other."""
        async with self._pool.ordered() as conn:
            old = await stored.locked(conn, table_id)
            revisions.check(old, etag)
            new = transition(old)
            building = new.building
            assert building is not None
            reading = await open_backfill(conn, table_id, building.number)
            new = await self._take(conn, steps.entering(old, new, reading=reading))
            task = await insert_task(conn, "rebackfill", table_id, building.number, generations.REBUILD)
        return new, task

    async def _take(self, conn: Connection, step: Step) -> VectorTable:
        table = step.table
        used = {table.provider_of(g) for g in table.live_generations}
        cursor = await conn.execute(
            "SELECT id FROM walvec_control.providers WHERE environment_id = %s AND id = ANY(%s)",
            [table.environment_id, list(used)],
        )
        if len(await cursor.fetchall()) < len(used):
            raise NotFound("there is no such embedding provider.")
        await cancel_tasks(conn, step)
        new = replace(table, updated_at=now())
        await stored.write(conn, new)
        await self._pool.move(conn)
        return new

    @staticmethod
    async def check_unused(conn: Connection, provider_id: str) -> None:
        """Raises Conflict for a provider that a generation has beside its table's."""
        cursor = await conn.execute(
            "SELECT 1 FROM walvec_control.vector_tables t, json_array_elements(t.definition -> 'generations') g"
            " WHERE g ->> 'embedding_provider_id' = %s LIMIT 1",
            [provider_id],
        )
        if await cursor.fetchone() is not None:
            raise Conflict(
                "it is used by a generation of a vector table.", "Abort its rebuild, or wait until it is not kept."
            )


class Swaps:
    """The part of `ports.TableStates` that says what has become of a generation."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def set_backfilled(self, table_id: str, generation: int, *, by: str | None = None) -> bool:
        async with self._pool.ordered() as conn:  # in one order with the tasks that take another one's place
            old = await stored.locked(conn, table_id)
            if by is not None and not await is_open(conn, by):
                return False
            await self._take(conn, old, Step(generations.filled(old, generation)))
        return True

    async def set_ready(self, table_id: str, generation: int, *, index: Mapping[str, Any] | None = None) -> None:
        await stored.transform(self._pool, table_id, lambda t: generations.ready(t, generation, index))

    async def set_stalled(self, table_id: str, generation: int, kind: str, reason: str) -> bool:
        async with self._pool.ordered() as conn:
            old = await stored.locked(conn, table_id)
            new = await self._take(conn, old, steps.stalling(old, generation, kind, reason))
        return generations.stall_of(new, generation) != "serves"

    async def begin_swap(self, table_id: str, generation: int, *, fills: int) -> bool:
        async with self._pool.ordered() as conn:
            old = await stored.locked(conn, table_id)
            reading = await open_backfill(conn, table_id, generation)
            step = Step(generations.swap_begun(old, generation, fills=fills, reading=reading))
            new = await self._take(conn, old, step)
        return generations.is_swapping(new, generation)

    async def undo_swap(self, table_id: str, generation: int, reason: str) -> None:
        await stored.transform(self._pool, table_id, lambda t: generations.swap_undone(t, generation, reason))

    async def finish_swap(self, table_id: str, generation: int, kept_until: str) -> bool:
        async with self._pool.ordered() as conn:
            old = await stored.locked(conn, table_id)
            new = await self._take(conn, old, steps.swapping(old, generation, kept_until))
        return new.active.number == generation

    async def expire(self, table_id: str, generation: int) -> None:
        await stored.transform(self._pool, table_id, lambda t: generations.expired(t, generation))

    async def _take(self, conn: Connection, old: VectorTable, step: Step) -> VectorTable:
        new = stored.changed(old, step.table)
        if new != old:
            await cancel_tasks(conn, step)
            await stored.write(conn, new)
            await self._pool.move(conn)
        return new
