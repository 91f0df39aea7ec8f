"""Durable units of work in the control database. Implements `ports.Tasks`."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from walvec.contracts.errors import NotFound
from walvec.definitions import generations, stored
from walvec.definitions.model import BACKFILLS, OPEN, Task, TaskStatus, TaskType
from walvec.definitions.pool import Connection, Pool
from walvec.definitions.steps import Step
from walvec.definitions.values import as_json, instant, storable

_COLUMNS = (
    "id, task_type, target_id, generation, status, params, progress, attempts, last_error, created_at, updated_at"
)


def _task(row: tuple[Any, ...]) -> Task:
    return Task(
        id=row[0],
        task_type=row[1],
        target_id=row[2],
        generation=row[3],
        status=row[4],
        params=row[5],
        progress=row[6],
        attempts=row[7],
        last_error=row[8],
        created_at=instant(row[9]),
        updated_at=instant(row[10]),
    )


async def insert_task(
    conn: Connection, task_type: TaskType, target_id: str, generation: int, params: Mapping[str, Any]
) -> Task:
    cursor = await conn.execute(
        "INSERT INTO walvec_control.tasks (id, task_type, target_id, generation, params, progress)"
        f" VALUES (%s, %s, %s, %s, %s, '{{}}') RETURNING {_COLUMNS}",
        [f"task_{secrets.token_hex(8)}", task_type, target_id, generation, as_json(params)],
    )
    (row,) = await cursor.fetchall()
    return _task(row)


async def cancel_tasks(conn: Connection, step: Step) -> None:
    if step.cancels is None:
        return
    await conn.execute(
        "UPDATE walvec_control.tasks SET status = 'cancelled', last_error = %s, updated_at = now()"
        " WHERE target_id = %s AND generation = %s AND status IN ('pending', 'running')",
        [storable(step.reason), step.table.id, step.cancels],
    )


async def open_backfill(
    conn: Connection, target_id: str, generation: int | None = None, *, except_for: Sequence[str] = ()
) -> bool:
    cursor = await conn.execute(
        "SELECT 1 FROM walvec_control.tasks WHERE target_id = %s AND (%s::int IS NULL OR generation = %s)"
        " AND task_type = ANY(%s) AND status IN ('pending', 'running') AND id <> ALL(%s) LIMIT 1",
        [target_id, generation, generation, list(BACKFILLS), list(except_for)],
    )
    return await cursor.fetchone() is not None


async def is_open(conn: Connection, task_id: str) -> bool:
    """It stays so until the transaction's end where that has the order of `Pool.ordered`, but for a user's cancel."""
    cursor = await conn.execute(
        "SELECT 1 FROM walvec_control.tasks WHERE id = %s AND status IN ('pending', 'running')", [task_id]
    )
    return await cursor.fetchone() is not None


async def ever_read(conn: Connection, target_id: str) -> bool:
    """Whether anybody has asked to read it."""
    cursor = await conn.execute(
        "SELECT 1 FROM walvec_control.tasks WHERE target_id = %s AND task_type = ANY(%s) LIMIT 1",
        [target_id, list(BACKFILLS)],
    )
    return await cursor.fetchone() is not None


class ControlTasks:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

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
        async with self._pool.change() as conn:
            if task_type in BACKFILLS:
                await self._may_be_read(conn, target_id, generation, instead_of, alone)
            if instead_of:
                await conn.execute(
                    "UPDATE walvec_control.tasks SET status = 'cancelled', last_error = %s, updated_at = now()"
                    " WHERE id = ANY(%s) AND status IN ('pending', 'running')",
                    [storable(reason), list(instead_of)],
                )
            return await insert_task(conn, task_type, target_id, generation, params)

    async def _may_be_read(
        self, conn: Connection, table_id: str, generation: int, instead_of: Sequence[str], alone: bool
    ) -> None:
        table = await stored.locked(conn, table_id)
        generations.check_fed(table, generation)
        if alone and await open_backfill(conn, table_id, except_for=instead_of):
            raise generations.in_progress(table)
        unfilled = generations.unfilled(table, generation)
        if unfilled != table:
            await stored.write(conn, unfilled)

    async def adopt(self, task_id: str) -> Task:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                f"SELECT {_COLUMNS} FROM walvec_control.tasks WHERE id = %s FOR NO KEY UPDATE", [task_id]
            )
            row = await cursor.fetchone()
            if row is None:
                raise NotFound(f"there is no task {task_id!r}.")
            task = _task(row)
            if task.status not in OPEN:
                return task
            params = {**task.params, "asked": True}
            await conn.execute("UPDATE walvec_control.tasks SET params = %s WHERE id = %s", [as_json(params), task_id])
        return replace(task, params=params)

    async def open_tasks(self, target_ids: Sequence[str]) -> list[Task]:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                f"SELECT {_COLUMNS} FROM walvec_control.tasks WHERE target_id = ANY(%s)"
                " AND status IN ('pending', 'running') ORDER BY sequence",
                [list(target_ids)],
            )
            return [_task(row) for row in await cursor.fetchall()]

    async def get(self, task_id: str) -> Task:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                f"SELECT {_COLUMNS} FROM walvec_control.tasks WHERE id = %s",
                [task_id],
            )
            row = await cursor.fetchone()
        if row is None:
            raise NotFound(f"there is no task {task_id!r}.")
        return _task(row)

    async def recent(
        self, target_id: str | None = None, limit: int = 100, *, environment_id: str | None = None
    ) -> list[Task]:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                f"SELECT {_COLUMNS} FROM walvec_control.tasks"
                " WHERE (%(target)s::text IS NULL OR target_id = %(target)s)"
                " AND (%(environment)s::text IS NULL OR target_id IN (SELECT v.id FROM walvec_control.vector_tables v"
                " WHERE v.environment_id = %(environment)s)) ORDER BY sequence DESC LIMIT %(limit)s",
                {"target": target_id, "environment": environment_id, "limit": limit},
            )
            return [_task(row) for row in await cursor.fetchall()]

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
        at, last = before or (None, None)
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                f"SELECT {_COLUMNS} FROM walvec_control.tasks WHERE target_id IN"
                " (SELECT v.id FROM walvec_control.vector_tables v WHERE v.environment_id = %(environment)s)"
                " AND (%(target)s::text IS NULL OR target_id = %(target)s)"
                " AND (%(status)s::text IS NULL OR status = %(status)s)"
                " AND (%(type)s::text IS NULL OR task_type = %(type)s)"
                ' AND (%(at)s::timestamptz IS NULL OR (created_at, id COLLATE "C") < (%(at)s::timestamptz, %(last)s))'
                ' ORDER BY created_at DESC, id COLLATE "C" DESC LIMIT %(limit)s',
                {
                    "environment": environment_id,
                    "target": target_id,
                    "status": status,
                    "type": task_type,
                    "at": at,
                    "last": last,
                    "limit": limit,
                },
            )
            return [_task(row) for row in await cursor.fetchall()]

    async def update(
        self,
        task_id: str,
        *,
        status: TaskStatus | None = None,
        progress: Mapping[str, Any] | None = None,
        attempts: int | None = None,
        last_error: str | None = None,
    ) -> bool:
        async with self._pool.transaction() if status is None else self._pool.ordered() as conn:
            cursor = await conn.execute(
                "SELECT status FROM walvec_control.tasks WHERE id = %s FOR NO KEY UPDATE",
                [task_id],
            )
            row = await cursor.fetchone()
            if row is None:
                raise NotFound(f"there is no task {task_id!r}.")
            before = row[0]
            if before not in OPEN:
                return False
            await conn.execute(
                "UPDATE walvec_control.tasks SET status = coalesce(%s, status), progress = coalesce(%s, progress),"
                " attempts = coalesce(%s, attempts), last_error = coalesce(%s, last_error), updated_at = now()"
                " WHERE id = %s",
                [
                    status,
                    None if progress is None else as_json(progress),
                    attempts,
                    None if last_error is None else storable(last_error),
                    task_id,
                ],
            )
            if status is not None and status != before:
                await self._pool.move(conn)
        return True
