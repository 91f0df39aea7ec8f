"""Generations in the control database: what a transition does to a table, and to its tasks, in one transaction.

The transitions themselves are pure (`generations`). Next: `postgres` joins these methods to its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from walvec.contracts.errors import Conflict, NotFound
from walvec.definitions import generations, revisions, stored
from walvec.definitions.model import Generation, Task, VectorTable
from walvec.definitions.pool import Connection, Pool
from walvec.definitions.tasks import cancel_tasks, ever_read, insert_task, instant, open_backfill


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
            new = generations.replaced_active(old, generation, changes or {}, read=read)
            return await self._store(conn, new)

    async def abort(self, table_id: str, *, etag: str | None = None) -> VectorTable:
        async with self._pool.ordered() as conn:
            old = await stored.locked(conn, table_id)
            revisions.check(old, etag)
            new = generations.aborted(old)
            assert old.building is not None
            await cancel_tasks(conn, table_id, old.building.number, generations.ABORTED)
            return await self._store(conn, new)

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
            if new == old and await open_backfill(conn, table_id, building.number):
                raise generations.in_progress(old)
            if old.building is not None and old.building.number != building.number:
                await cancel_tasks(conn, table_id, old.building.number, generations.REPLACED)
            new = await self._store(conn, generations.unfilled(new, building.number))
            task = await insert_task(conn, "rebackfill", table_id, building.number, generations.REBUILD)
        return new, task

    async def _store(self, conn: Connection, table: VectorTable) -> VectorTable:
        used = {table.provider_of(g) for g in table.live_generations}
        cursor = await conn.execute(
            "SELECT id FROM walvec_control.providers WHERE environment_id = %s AND id = ANY(%s)",
            [table.environment_id, list(used)],
        )
        if len(await cursor.fetchall()) < len(used):
            raise NotFound("there is no such embedding provider.")
        new = replace(table, updated_at=instant(datetime.now(UTC)))
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

    async def set_backfilled(self, table_id: str, generation: int) -> None:
        await stored.transform(self._pool, table_id, lambda t: generations.filled(t, generation))

    async def set_ready(self, table_id: str, generation: int) -> None:
        await stored.transform(self._pool, table_id, lambda t: generations.ready(t, generation))

    async def set_stalled(self, table_id: str, generation: int, kind: str, reason: str) -> bool:
        async with self._pool.ordered() as conn:
            old = await stored.locked(conn, table_id)
            new = stored.changed(old, generations.stalled(old, generation, reason))
            if new != old:
                await cancel_tasks(conn, table_id, generation, f"{kind}: {reason}")
                await stored.write(conn, new)
                await self._pool.move(conn)
        return generations.stall_of(new, generation) != "serves"

    async def begin_swap(self, table_id: str, generation: int, *, fills: int) -> bool:
        async with self._pool.ordered() as conn:
            old = await stored.locked(conn, table_id)
            reading = await open_backfill(conn, table_id, generation)
            new = generations.swap_begun(old, generation, fills=fills, reading=reading)
            if new != old:
                await stored.write(conn, new)
                await self._pool.move(conn)
        found = new.generation(generation)
        return found is not None and found.swapping

    async def undo_swap(self, table_id: str, generation: int, reason: str) -> None:
        await stored.transform(self._pool, table_id, lambda t: generations.swap_undone(t, generation, reason))

    async def finish_swap(self, table_id: str, generation: int, kept_until: str) -> bool:
        async with self._pool.ordered() as conn:
            old = await stored.locked(conn, table_id)
            new = generations.swapped(old, generation, kept_until)
            if new != old:
                await cancel_tasks(conn, table_id, old.active.number, generations.RETIRED)
                await stored.write(conn, new)
                await self._pool.move(conn)
        return new.active.number == generation

    async def expire(self, table_id: str, generation: int) -> None:
        await stored.transform(self._pool, table_id, lambda t: generations.expired(t, generation))
