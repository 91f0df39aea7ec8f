"""What a connection's reader has made durable, and what the roles say of themselves. Neither moves the feed."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import sql

from walvec.definitions.model import BridgeProgress, SourceProgress
from walvec.definitions.pool import Pool
from walvec.definitions.reports import SILENT_SECONDS, Report, merged
from walvec.definitions.values import as_json

_WHOLE_TOPIC = -1
"""The partition under which a bridge keeps what belongs to no partition."""


class ControlProgress:
    """Implements `ports.Progress`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def get(self, connection_id: str) -> SourceProgress:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                "SELECT epoch, lsn, system_identifier, timeline, log_identity, slot_created_lsn"
                " FROM walvec_control.progress WHERE connection_id = %s",
                [connection_id],
            )
            row = await cursor.fetchone()
        return SourceProgress(*row) if row else SourceProgress()

    async def put(self, connection_id: str, progress: SourceProgress) -> None:
        async with self._pool.transaction() as conn:
            await conn.execute(
                "INSERT INTO walvec_control.progress (connection_id, epoch, lsn, system_identifier,"
                " timeline, log_identity, slot_created_lsn) VALUES (%s, %s, %s, %s, %s, %s, %s)"
                " ON CONFLICT (connection_id) DO UPDATE SET (epoch, lsn, system_identifier, timeline,"
                " log_identity, slot_created_lsn, updated_at) = (excluded.epoch, excluded.lsn,"
                " excluded.system_identifier, excluded.timeline, excluded.log_identity, excluded.slot_created_lsn,"
                " now())",
                [
                    connection_id,
                    progress.epoch,
                    progress.lsn,
                    progress.system_identifier,
                    progress.timeline,
                    progress.log_identity,
                    progress.slot_created_lsn,
                ],
            )

    async def advance(self, connection_id: str, progress: SourceProgress) -> bool:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                "UPDATE walvec_control.progress SET lsn = %s, updated_at = now()"
                " WHERE connection_id = %s AND slot_created_lsn = %s",
                [progress.lsn, connection_id, progress.slot_created_lsn],
            )
            return cursor.rowcount == 1

    async def published(self, connection_id: str) -> Mapping[str, str] | None:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                "SELECT marks FROM walvec_control.published WHERE connection_id = %s",
                [connection_id],
            )
            row = await cursor.fetchone()
        return row[0] if row else None

    async def put_published(self, connection_id: str, marks: Mapping[str, str]) -> None:
        async with self._pool.transaction() as conn:
            await conn.execute(
                "INSERT INTO walvec_control.published (connection_id, marks) VALUES (%s, %s)"
                " ON CONFLICT (connection_id) DO UPDATE SET marks = excluded.marks",
                [connection_id, as_json(marks)],
            )

    async def topics(self, table_ids: Sequence[str]) -> Mapping[str, str]:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                "SELECT topic, identity FROM walvec_control.topics WHERE vector_table_id = ANY(%s)",
                [list(table_ids)],
            )
            return dict(await cursor.fetchall())

    async def put_topics(self, table_id: str, identities: Mapping[str, str]) -> None:
        async with self._pool.transaction() as conn:
            await conn.execute(
                "INSERT INTO walvec_control.topics (vector_table_id, topic, identity)"
                " SELECT %s, * FROM unnest(%s::text[], %s::text[])"
                " ON CONFLICT (vector_table_id, topic) DO UPDATE SET identity = excluded.identity",
                [table_id, list(identities), list(identities.values())],
            )

    async def bridge(self, table_id: str) -> BridgeProgress | None:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                "SELECT partition, start_offset, sequence FROM walvec_control.bridges WHERE vector_table_id = %s",
                [table_id],
            )
            rows = await cursor.fetchall()
            cursor = await conn.execute(
                "SELECT partition, start_offset, lsn FROM walvec_control.bridge_snapshots"
                " WHERE vector_table_id = %s ORDER BY partition, start_offset",
                [table_id],
            )
            met = await cursor.fetchall()
        if not rows:
            return None
        snapshots: dict[int, tuple[tuple[int, int], ...]] = {}
        for partition, offset, lsn in met:
            snapshots[partition] = (*snapshots.get(partition, ()), (offset, lsn))
        starts = {partition: start for partition, start, _ in rows if partition != _WHOLE_TOPIC}
        return BridgeProgress(starts, max(sequence for *_, sequence in rows), snapshots)

    async def put_bridge(
        self,
        table_id: str,
        *,
        starts: Mapping[int, int] | None = None,
        sequence: int = 0,
        snapshots: Mapping[int, Sequence[tuple[int, int]]] | None = None,
    ) -> None:
        place = [table_id]
        begun = [(*place, partition, start, 0) for partition, start in (starts or {}).items()]
        met = [(*place, p, offset, lsn) for p, found in (snapshots or {}).items() for offset, lsn in found]
        async with self._pool.transaction() as conn, conn.cursor() as cursor:
            if starts is not None:
                for name in ("bridges", "bridge_snapshots"):
                    partitions = "partition <> -1 AND " if name == "bridges" else ""
                    await cursor.execute(
                        sql.SQL("DELETE FROM walvec_control.{} WHERE " + partitions + "vector_table_id = %s").format(
                            sql.Identifier(name)
                        ),
                        place,
                    )
            await cursor.executemany(
                "INSERT INTO walvec_control.bridges (vector_table_id, partition, start_offset, sequence)"
                " VALUES (%s, %s, %s, %s) ON CONFLICT (vector_table_id, partition)"
                " DO UPDATE SET sequence = greatest(bridges.sequence, excluded.sequence)",
                [*begun, (*place, _WHOLE_TOPIC, 0, sequence)],
            )
            if met:
                await cursor.executemany(
                    "INSERT INTO walvec_control.bridge_snapshots (vector_table_id, partition,"
                    " start_offset, lsn) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
                    met,
                )


class ControlReports:
    """Implements `ports.Reports`. One object is one process: rows of others that fell silent go with its own."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._instance = uuid.uuid4().hex

    async def put(self, role: str, subject: str, report: Mapping[str, Any]) -> None:
        async with self._pool.transaction() as conn:
            await conn.execute(
                "INSERT INTO walvec_control.reports (role, subject, instance, report)"
                " VALUES (%s, %s, %s, %s) ON CONFLICT (role, subject, instance)"
                " DO UPDATE SET report = excluded.report, updated_at = now()",
                [role, subject, self._instance, as_json(report)],
            )
            await conn.execute(
                "DELETE FROM walvec_control.reports WHERE role = %s AND subject = %s"
                " AND updated_at < now() - make_interval(secs => %s)",
                [role, subject, SILENT_SECONDS],
            )

    async def all(self) -> list[Report]:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                "SELECT role, subject, report, extract(epoch FROM clock_timestamp() - updated_at)::float8"
                " FROM walvec_control.reports ORDER BY role, subject"
            )
            return merged([(role, subject, report, age) for role, subject, report, age in await cursor.fetchall()])
