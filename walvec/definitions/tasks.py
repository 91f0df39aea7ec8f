"""Durable units of work in the control database. Implements `ports.Tasks`."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from psycopg.types.json import Json

from walvec.contracts.errors import NotFound
from walvec.definitions.model import Task, TaskStatus, TaskType
from walvec.definitions.pool import Pool

_COLUMNS = (
    "id, task_type, target_id, generation, status, params, progress, attempts, last_error, created_at, updated_at"
)


def instant(value: datetime) -> str:
    """UTC, ISO 8601 with Z."""
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def storable(text: str) -> str:
    """Postgres text holds neither NUL nor lone surrogates; a provider's message may."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def as_json(value: Mapping[str, Any]) -> Json:
    return Json(dict(value), dumps=json.dumps)


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
    ) -> Task:
        async with self._pool.change() as conn:
            if instead_of:
                await conn.execute(
                    "UPDATE walvec_control.tasks SET status = 'cancelled', last_error = %s, updated_at = now()"
                    " WHERE environment = %s AND id = ANY(%s) AND status IN ('pending', 'running')",
                    [storable(reason), self._pool.environment, list(instead_of)],
                )
            cursor = await conn.execute(
                "INSERT INTO walvec_control.tasks (environment, id, task_type, target_id, generation, params, progress)"
                f" VALUES (%s, %s, %s, %s, %s, %s, '{{}}') RETURNING {_COLUMNS}",
                [
                    self._pool.environment,
                    f"task_{secrets.token_hex(8)}",
                    task_type,
                    target_id,
                    generation,
                    as_json(params),
                ],
            )
            (row,) = await cursor.fetchall()
        return _task(row)

    async def open_tasks(self, target_ids: Sequence[str]) -> list[Task]:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                f"SELECT {_COLUMNS} FROM walvec_control.tasks WHERE environment = %s AND target_id = ANY(%s)"
                " AND status IN ('pending', 'running') ORDER BY sequence",
                [self._pool.environment, list(target_ids)],
            )
            return [_task(row) for row in await cursor.fetchall()]

    async def get(self, task_id: str) -> Task:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                f"SELECT {_COLUMNS} FROM walvec_control.tasks WHERE environment = %s AND id = %s",
                [self._pool.environment, task_id],
            )
            row = await cursor.fetchone()
        if row is None:
            raise NotFound(f"there is no task {task_id!r}.")
        return _task(row)

    async def recent(self, target_id: str | None = None, limit: int = 100) -> list[Task]:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                f"SELECT {_COLUMNS} FROM walvec_control.tasks WHERE environment = %s"
                " AND (%s::text IS NULL OR target_id = %s) ORDER BY sequence DESC LIMIT %s",
                [self._pool.environment, target_id, target_id, limit],
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
    ) -> None:
        async with self._pool.transaction() if status is None else self._pool.ordered() as conn:
            cursor = await conn.execute(
                "SELECT status FROM walvec_control.tasks WHERE environment = %s AND id = %s FOR NO KEY UPDATE",
                [self._pool.environment, task_id],
            )
            row = await cursor.fetchone()
            if row is None:
                raise NotFound(f"there is no task {task_id!r}.")
            before = row[0]
            if before not in ("pending", "running"):
                return
            await conn.execute(
                "UPDATE walvec_control.tasks SET status = coalesce(%s, status), progress = coalesce(%s, progress),"
                " attempts = coalesce(%s, attempts), last_error = coalesce(%s, last_error), updated_at = now()"
                " WHERE environment = %s AND id = %s",
                [
                    status,
                    None if progress is None else as_json(progress),
                    attempts,
                    None if last_error is None else storable(last_error),
                    self._pool.environment,
                    task_id,
                ],
            )
            if status is not None and status != before:
                await self._pool.move(conn)
