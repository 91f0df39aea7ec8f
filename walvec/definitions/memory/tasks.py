"""Durable units of work that are not durable here. Implements `ports.Tasks`. Next: `rebuilds`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from walvec.contracts.errors import NotFound
from walvec.definitions import generations
from walvec.definitions.memory.feed import MemoryFeed
from walvec.definitions.model import BACKFILLS, OPEN, Task, TaskStatus, TaskType
from walvec.definitions.steps import Step
from walvec.definitions.values import now


class MemoryTasks:
    def __init__(self, feed: MemoryFeed) -> None:
        self._feed = feed
        self._tasks: dict[str, Task] = {}
        self._ids = count(1)

    async def create(
        self,
        task_type: TaskType,
        target_id: str,
        generation: int,
        params: Mapping[str, Any],
        *,
        instead_of: Sequence[str] = (),
        reason: str = "",
        alone: bool = False,
    ) -> Task:
        table = self._feed.table(target_id)
        if task_type in BACKFILLS:
            generations.check_fed(table, generation)
            if any(t.generation == generation or alone for t in self._backfills(target_id) if t.id not in instead_of):
                raise generations.in_progress(table)
            self._feed.change(target_id, lambda t: generations.unfilled(t, generation))
        for task_id in instead_of:
            await self.update(task_id, status="cancelled", last_error=reason)
        return self.add(task_type, target_id, generation, params)

    async def adopt(self, task_id: str) -> Task:
        task = await self.get(task_id)
        if task.status in OPEN:
            task = self._tasks[task_id] = replace(task, params={**task.params, "asked": True})
        return task

    def add(self, task_type: TaskType, target_id: str, generation: int, params: Mapping[str, Any]) -> Task:
        at = now()
        task = Task(
            f"task_{next(self._ids):08x}",
            task_type,
            target_id,
            generation,
            "pending",
            dict(params),
            created_at=at,
            updated_at=at,
        )
        self._tasks[task.id] = task
        self._feed.move()
        return task

    def _backfills(self, table_id: str) -> list[Task]:
        return [
            t for t in self._tasks.values() if t.target_id == table_id and t.task_type in BACKFILLS and t.status in OPEN
        ]

    def open_backfill(self, table_id: str, generation: int) -> bool:
        return any(t.generation == generation for t in self._backfills(table_id))

    def ever_read(self, table_id: str) -> bool:
        """Whether anybody has asked to read it."""
        return any(t.target_id == table_id and t.task_type in BACKFILLS for t in self._tasks.values())

    def cancel(self, step: Step) -> None:
        for task in [t for t in self._tasks.values() if t.target_id == step.table.id and t.status in OPEN]:
            if task.generation == step.cancels:
                self._tasks[task.id] = replace(task, status="cancelled", last_error=step.reason, updated_at=now())

    async def open_tasks(self, target_ids: Sequence[str]) -> list[Task]:
        return [t for t in self._tasks.values() if t.target_id in target_ids and t.status in OPEN]

    async def get(self, task_id: str) -> Task:
        found = self._tasks.get(task_id)
        if found is None:
            raise NotFound(f"there is no task {task_id!r}.")
        return found

    async def recent(
        self, target_id: str | None = None, limit: int = 100, *, environment_id: str | None = None
    ) -> list[Task]:
        tables = self._feed.current.vector_tables
        found = [t for t in reversed(self._tasks.values()) if target_id in (None, t.target_id)]
        return [t for t in found if environment_id in (None, tables[t.target_id].environment_id)][:limit]

    async def page(
        self,
        environment_id: str,
        *,
        limit: int,
        before: tuple[str, str] | None = None,
        target_id: str | None = None,
        status: TaskStatus | None = None,
        task_type: TaskType | None = None,
    ) -> list[Task]:
        tables = self._feed.current.vector_tables
        found = [
            t
            for t in self._tasks.values()
            if tables[t.target_id].environment_id == environment_id
            and target_id in (None, t.target_id)
            and status in (None, t.status)
            and task_type in (None, t.task_type)
            and (before is None or (t.created_at, t.id) < before)
        ]
        return sorted(found, key=lambda t: (t.created_at, t.id), reverse=True)[:limit]

    async def update(
        self,
        task_id: str,
        *,
        status: TaskStatus | None = None,
        progress: Mapping[str, Any] | None = None,
        attempts: int | None = None,
        last_error: str | None = None,
    ) -> bool:
        task = await self.get(task_id)
        if task.status not in OPEN:
            return False
        self._tasks[task_id] = replace(
            task,
            status=status or task.status,
            progress=task.progress if progress is None else dict(progress),
            attempts=task.attempts if attempts is None else attempts,
            last_error=task.last_error if last_error is None else last_error,
            updated_at=now(),
        )
        if status is not None and status != task.status:
            self._feed.move()
        return True

    def forget(self, table_id: str) -> None:
        self._tasks = {k: t for k, t in self._tasks.items() if t.target_id != table_id}
