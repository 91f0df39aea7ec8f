"""What a connection's reader has made durable, and what the roles say of themselves. Neither moves the feed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from walvec.definitions.model import SourceProgress
from walvec.definitions.pool import Pool
from walvec.definitions.tasks import as_json


class ControlProgress:
    """Implements `ports.Progress`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def get(self, connection_id: str) -> SourceProgress:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                "SELECT epoch, lsn, system_identifier, timeline, log_identity, slot_created_lsn"
                " FROM walvec_control.progress WHERE environment = %s AND connection_id = %s",
                [self._pool.environment, connection_id],
            )
            row = await cursor.fetchone()
        return SourceProgress(*row) if row else SourceProgress()

    async def put(self, connection_id: str, progress: SourceProgress) -> None:
        async with self._pool.transaction() as conn:
            await conn.execute(
                "INSERT INTO walvec_control.progress (environment, connection_id, epoch, lsn, system_identifier,"
                " timeline, log_identity, slot_created_lsn) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
                " ON CONFLICT (environment, connection_id) DO UPDATE SET (epoch, lsn, system_identifier, timeline,"
                " log_identity, slot_created_lsn, updated_at) = (excluded.epoch, excluded.lsn,"
                " excluded.system_identifier, excluded.timeline, excluded.log_identity, excluded.slot_created_lsn,"
                " now())",
                [
                    self._pool.environment,
                    connection_id,
                    progress.epoch,
                    progress.lsn,
                    progress.system_identifier,
                    progress.timeline,
                    progress.log_identity,
                    progress.slot_created_lsn,
                ],
            )

    async def published(self, connection_id: str) -> Mapping[str, str] | None:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                "SELECT marks FROM walvec_control.published WHERE environment = %s AND connection_id = %s",
                [self._pool.environment, connection_id],
            )
            row = await cursor.fetchone()
        return row[0] if row else None

    async def put_published(self, connection_id: str, marks: Mapping[str, str]) -> None:
        async with self._pool.transaction() as conn:
            await conn.execute(
                "INSERT INTO walvec_control.published (environment, connection_id, marks) VALUES (%s, %s, %s)"
                " ON CONFLICT (environment, connection_id) DO UPDATE SET marks = excluded.marks",
                [self._pool.environment, connection_id, as_json(marks)],
            )


class ControlReports:
    """Implements `ports.Reports`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def put(self, role: str, subject: str, report: Mapping[str, Any]) -> None:
        async with self._pool.transaction() as conn:
            await conn.execute(
                "INSERT INTO walvec_control.reports (environment, role, subject, report) VALUES (%s, %s, %s, %s)"
                " ON CONFLICT (environment, role, subject) DO UPDATE SET report = excluded.report, updated_at = now()",
                [self._pool.environment, role, subject, as_json(report)],
            )

    async def all(self) -> list[tuple[str, str, Mapping[str, Any], float]]:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                "SELECT role, subject, report, extract(epoch FROM clock_timestamp() - updated_at)::float8"
                " FROM walvec_control.reports WHERE environment = %s ORDER BY role, subject",
                [self._pool.environment],
            )
            return [(role, subject, report, age) for role, subject, report, age in await cursor.fetchall()]
