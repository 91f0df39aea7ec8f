"""Which generations a vector table has: the table and the tasks that read it change in one step.

What a step does is pure (`steps`, `generations`). Next: `definitions` and `states` join these methods to their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from walvec.contracts.errors import Conflict, NotFound
from walvec.definitions import generations, revisions, steps
from walvec.definitions.memory.feed import MemoryFeed
from walvec.definitions.memory.tasks import MemoryTasks
from walvec.definitions.model import OPEN, Connection, EmbeddingProvider, Generation, Task, VectorTable
from walvec.definitions.steps import Step
from walvec.definitions.values import now


def check_name(
    what: str,
    new: Connection | EmbeddingProvider | VectorTable,
    existing: Mapping[str, Connection | EmbeddingProvider | VectorTable],
) -> None:
    """Raises Conflict when another one of its environment has the name."""
    place = (new.environment_id, new.name)
    if any((e.environment_id, e.name) == place and e.id != new.id for e in existing.values()):
        raise Conflict(f"there is already a {what} named {new.name!r}.", "Choose another name.")


class Rebuilds:
    """The part of `ports.Definitions` that changes which generations there are."""

    def __init__(self, feed: MemoryFeed, tasks: MemoryTasks) -> None:
        self._feed = feed
        self._tasks = tasks

    async def rebuild(
        self,
        table_id: str,
        generation: Generation,
        *,
        changes: Mapping[str, Any] | None = None,
        etag: str | None = None,
    ) -> tuple[VectorTable, Task]:
        return self._enter(table_id, lambda t: generations.entered(t, generation, changes or {}), etag)

    async def replace_active(
        self,
        table_id: str,
        generation: Generation,
        *,
        changes: Mapping[str, Any] | None = None,
        etag: str | None = None,
    ) -> VectorTable:
        old = self._feed.table(table_id)
        revisions.check(old, etag)
        read = self._tasks.ever_read(table_id)
        return self._take(Step(generations.replaced_active(old, generation, changes or {}, read=read)))

    async def abort(self, table_id: str, *, etag: str | None = None) -> VectorTable:
        old = self._feed.table(table_id)
        revisions.check(old, etag)
        return self._take(steps.aborting(old))

    async def rollback(self, table_id: str) -> tuple[VectorTable, Task]:
        return self._enter(table_id, generations.rolled_back, None)

    async def retry(self, table_id: str) -> tuple[VectorTable, Task]:
        return self._enter(table_id, generations.retried, None)

    def _enter(
        self, table_id: str, transition: Callable[[VectorTable], VectorTable], etag: str | None
    ) -> tuple[VectorTable, Task]:
        old = self._feed.table(table_id)
        revisions.check(old, etag)
        new = transition(old)
        building = new.building
        assert building is not None
        number = building.number
        new = self._take(steps.entering(old, new, reading=self._tasks.open_backfill(table_id, number)))
        return new, self._tasks.add("rebackfill", table_id, number, generations.REBUILD)

    def _take(self, step: Step) -> VectorTable:
        table = step.table
        check_name("vector table", table, self._feed.current.vector_tables)
        providers = self._feed.current.within(table.environment_id).providers
        if any(table.provider_of(g) not in providers for g in table.live_generations):
            raise NotFound("there is no such embedding provider.")
        table = replace(table, updated_at=now())
        self._feed.put(table)
        self._tasks.cancel(step)
        return table


class Swaps:
    """The part of `ports.TableStates` that says what has become of a generation."""

    def __init__(self, feed: MemoryFeed, tasks: MemoryTasks) -> None:
        self._feed = feed
        self._tasks = tasks

    async def set_backfilled(self, table_id: str, generation: int, *, by: str | None = None) -> bool:
        if by is not None and (await self._tasks.get(by)).status not in OPEN:
            return False
        self._feed.change(table_id, lambda t: generations.filled(t, generation))
        return True

    async def set_ready(self, table_id: str, generation: int, *, index: Mapping[str, Any] | None = None) -> None:
        self._feed.change(table_id, lambda t: generations.ready(t, generation, index))

    async def set_stalled(self, table_id: str, generation: int, kind: str, reason: str) -> bool:
        new = self._take(steps.stalling(self._feed.table(table_id), generation, kind, reason))
        return generations.stall_of(new, generation) != "serves"

    async def begin_swap(self, table_id: str, generation: int, *, fills: int) -> bool:
        reading = self._tasks.open_backfill(table_id, generation)
        new = self._feed.change(table_id, lambda t: generations.swap_begun(t, generation, fills=fills, reading=reading))
        return generations.is_swapping(new, generation)

    async def undo_swap(self, table_id: str, generation: int, reason: str) -> None:
        self._feed.change(table_id, lambda t: generations.swap_undone(t, generation, reason))

    async def finish_swap(self, table_id: str, generation: int, kept_until: str) -> bool:
        new = self._take(steps.swapping(self._feed.table(table_id), generation, kept_until))
        return new.active.number == generation

    async def expire(self, table_id: str, generation: int) -> None:
        self._feed.change(table_id, lambda t: generations.expired(t, generation))

    def _take(self, step: Step) -> VectorTable:
        new = self._feed.change(step.table.id, lambda _: step.table)
        self._tasks.cancel(step)
        return new
