"""The control database on Postgres: `open_control` gives a `ports.Control`.

A write of definitions reads the row under lock, lets a pure transition make the new one, and moves the feed only if
something changed. Next: `feed` (how others feel it), `tasks`, `letters`, `progress`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from walvec.contracts.errors import NotFound
from walvec.definitions import transitions
from walvec.definitions.feed import ControlFeed
from walvec.definitions.letters import ControlLetters
from walvec.definitions.model import Connection, EmbeddingProvider, Generation, Snapshot, VectorTable
from walvec.definitions.pool import Connection as Session
from walvec.definitions.pool import Pool, connect
from walvec.definitions.progress import ControlProgress, ControlReports
from walvec.definitions.rows import table_from, table_json
from walvec.definitions.schema import prepare
from walvec.definitions.secrets import Secrets
from walvec.definitions.tasks import ControlTasks, as_json, instant, storable


async def open_control(dsn: str, *, environment: str, secret_key: str) -> ControlDatabase:
    """Upgrades the schema and starts to follow the definitions.

    Raises ControlUnavailable (try again) or ConfigError (address, rights, secret key, newer schema).
    """
    secrets = Secrets(secret_key)
    async with await connect(dsn) as conn:
        await prepare(conn, environment, secrets)
    pool = Pool(dsn, environment)
    await pool.open()
    try:
        definitions = ControlDefinitions(pool, secrets)
        feed = ControlFeed(dsn, environment, await definitions.snapshot(), definitions.snapshot)
    except BaseException:
        await pool.close()
        raise
    feed.start()
    return ControlDatabase(pool, definitions, feed)


class ControlDatabase:
    """Implements `ports.Control`."""

    def __init__(self, pool: Pool, definitions: ControlDefinitions, feed: ControlFeed) -> None:
        self._pool = pool
        self.definitions = definitions
        self.feed = feed
        self.states = ControlStates(pool)
        self.tasks = ControlTasks(pool)
        self.letters = ControlLetters(pool)
        self.progress = ControlProgress(pool)
        self.reports = ControlReports(pool)

    async def close(self) -> None:
        await self.feed.close()
        await self._pool.close()


async def _table(conn: Session, environment: str, table_id: str) -> VectorTable | None:
    cursor = await conn.execute(
        "SELECT definition, dead_in_row FROM walvec_control.vector_tables"
        " WHERE environment = %s AND id = %s FOR NO KEY UPDATE",
        [environment, table_id],
    )
    row = await cursor.fetchone()
    return table_from(row[0], row[1]) if row else None


async def _write(conn: Session, environment: str, table: VectorTable) -> None:
    await conn.execute(
        "UPDATE walvec_control.vector_tables SET name = %s, connection_id = %s, embedding_provider_id = %s,"
        " definition = %s, dead_in_row = %s WHERE environment = %s AND id = %s",
        [
            table.name,
            table.connection_id,
            table.embedding_provider_id,
            as_json(table_json(table)),
            table.dead_in_row,
            environment,
            table.id,
        ],
    )


async def _transform(pool: Pool, table_id: str, transition: Callable[[VectorTable], VectorTable]) -> None:
    async with pool.ordered() as conn:
        old = await _table(conn, pool.environment, table_id)
        if old is None:
            raise NotFound(f"there is no vector table {table_id!r}.")
        new = transition(old)
        if new != old:
            await _write(conn, pool.environment, new)
            await pool.move(conn)


class ControlDefinitions:
    """Implements `ports.Definitions`."""

    def __init__(self, pool: Pool, secrets: Secrets) -> None:
        self._pool = pool
        self._secrets = secrets

    async def snapshot(self) -> Snapshot:
        environment = [self._pool.environment]
        async with self._pool.transaction(snapshot=True) as conn:
            cursor = await conn.execute(
                "SELECT version FROM walvec_control.environments WHERE environment = %s", environment
            )
            row = await cursor.fetchone()
            cursor = await conn.execute(
                "SELECT id, name, provider, mode, credentials, on_slot_loss, status, status_message, created_at"
                " FROM walvec_control.connections WHERE environment = %s ORDER BY created_at, id",
                environment,
            )
            connections = {r[0]: self._connection(r) for r in await cursor.fetchall()}
            cursor = await conn.execute(
                "SELECT id, name, provider, api_key, base_url, default_model, limits, created_at"
                " FROM walvec_control.providers WHERE environment = %s ORDER BY created_at, id",
                environment,
            )
            providers = {r[0]: self._provider(r) for r in await cursor.fetchall()}
            cursor = await conn.execute(
                "SELECT id, definition, dead_in_row FROM walvec_control.vector_tables"
                " WHERE environment = %s ORDER BY created_at, id",
                environment,
            )
            tables = {r[0]: table_from(r[1], r[2]) for r in await cursor.fetchall()}
        return Snapshot(row[0] if row else 0, connections, providers, tables)

    def _connection(self, row: tuple[Any, ...]) -> Connection:
        return Connection(
            id=row[0],
            name=row[1],
            provider=row[2],
            mode=row[3],
            dsn=self._secrets.decrypt(row[4], f"connection/{row[0]}"),
            on_slot_loss=row[5],
            status=row[6],
            status_message=row[7],
            created_at=instant(row[8]),
        )

    def _provider(self, row: tuple[Any, ...]) -> EmbeddingProvider:
        return EmbeddingProvider(
            id=row[0],
            name=row[1],
            provider=row[2],
            api_key=None if row[3] is None else self._secrets.decrypt(row[3], f"provider/{row[0]}"),
            base_url=row[4],
            default_model=row[5],
            limits=row[6],
            created_at=instant(row[7]),
        )

    async def put_connection(self, connection: Connection) -> None:
        old = (await self.snapshot()).connections.get(connection.id)
        if old is not None and replace(connection, created_at=old.created_at) == old:
            return
        async with self._pool.change() as conn:
            await conn.execute(
                "INSERT INTO walvec_control.connections"
                " (environment, id, name, provider, mode, credentials, on_slot_loss, status, status_message,"
                " created_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, coalesce(%s::timestamptz, now()))"
                " ON CONFLICT (environment, id) DO UPDATE SET (name, provider, mode, credentials, on_slot_loss, status,"
                " status_message) = (excluded.name, excluded.provider, excluded.mode, excluded.credentials,"
                " excluded.on_slot_loss, excluded.status, excluded.status_message)",
                [
                    self._pool.environment,
                    connection.id,
                    connection.name,
                    connection.provider,
                    connection.mode,
                    self._secrets.encrypt(connection.dsn, f"connection/{connection.id}"),
                    connection.on_slot_loss,
                    connection.status,
                    storable(connection.status_message),
                    connection.created_at or None,
                ],
            )

    async def put_provider(self, provider: EmbeddingProvider) -> None:
        old = (await self.snapshot()).providers.get(provider.id)
        if old is not None and replace(provider, created_at=old.created_at) == old:
            return
        key = provider.api_key
        async with self._pool.change() as conn:
            await conn.execute(
                "INSERT INTO walvec_control.providers"
                " (environment, id, name, provider, api_key, base_url, default_model, limits, created_at)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, coalesce(%s::timestamptz, now()))"
                " ON CONFLICT (environment, id) DO UPDATE SET (name, provider, api_key, base_url, default_model,"
                " limits) = (excluded.name, excluded.provider, excluded.api_key, excluded.base_url,"
                " excluded.default_model, excluded.limits)",
                [
                    self._pool.environment,
                    provider.id,
                    provider.name,
                    provider.provider,
                    None if key is None else self._secrets.encrypt(key, f"provider/{provider.id}"),
                    provider.base_url,
                    provider.default_model,
                    as_json(provider.limits),
                    provider.created_at or None,
                ],
            )

    async def put_vector_table(self, table: VectorTable) -> None:
        environment = self._pool.environment
        now = instant(datetime.now(UTC))
        async with self._pool.ordered() as conn:
            old = await _table(conn, environment, table.id)
            new = transitions.put(old, table, now)
            if old is None:
                await conn.execute(
                    "INSERT INTO walvec_control.vector_tables"
                    " (environment, id, name, connection_id, embedding_provider_id, definition, dead_in_row)"
                    " VALUES (%s, %s, %s, %s, %s, %s, %s)",
                    [
                        environment,
                        new.id,
                        new.name,
                        new.connection_id,
                        new.embedding_provider_id,
                        as_json(table_json(new)),
                        new.dead_in_row,
                    ],
                )
            elif new != old:
                await _write(conn, environment, new)
            if new != old:
                await self._pool.move(conn)

    async def set_paused(self, table_id: str, paused: bool) -> None:
        await _transform(self._pool, table_id, lambda t: transitions.paused(t, paused))

    async def set_connection_status(self, connection_id: str, status: str, message: str = "") -> None:
        async with self._pool.ordered() as conn:
            cursor = await conn.execute(
                "SELECT status, status_message FROM walvec_control.connections"
                " WHERE environment = %s AND id = %s FOR NO KEY UPDATE",
                [self._pool.environment, connection_id],
            )
            row = await cursor.fetchone()
            if row is None:
                raise NotFound(f"there is no connection {connection_id!r}.")
            if row != (status, storable(message)):
                await conn.execute(
                    "UPDATE walvec_control.connections SET status = %s, status_message = %s"
                    " WHERE environment = %s AND id = %s",
                    [status, storable(message), self._pool.environment, connection_id],
                )
                await self._pool.move(conn)

    async def delete_connection(self, connection_id: str) -> None:
        await self._delete("connections", "connection", connection_id)

    async def delete_provider(self, provider_id: str) -> None:
        await self._delete("providers", "embedding provider", provider_id)

    async def delete_vector_table(self, table_id: str) -> None:
        await self._delete("vector_tables", "vector table", table_id)

    async def _delete(self, relation: str, noun: str, own_id: str) -> None:
        async with self._pool.change() as conn:
            cursor = await conn.execute(
                f"DELETE FROM walvec_control.{relation} WHERE environment = %s AND id = %s",
                [self._pool.environment, own_id],
            )
            if cursor.rowcount == 0:
                raise NotFound(f"there is no {noun} {own_id!r}.")
            await conn.execute(
                "DELETE FROM walvec_control.reports WHERE environment = %s AND subject = %s",
                [self._pool.environment, own_id],
            )


class ControlStates:
    """Implements `ports.TableStates`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def set_error(self, table_id: str, kind: str, message: str, cure: str) -> None:
        await _transform(self._pool, table_id, lambda t: transitions.failed(t, kind, message, cure))

    async def clear_error(self, table_id: str) -> None:
        await _transform(self._pool, table_id, transitions.recovered)

    async def set_blocked(self, table_id: str, reason: str | None) -> None:
        await _transform(self._pool, table_id, lambda t: transitions.blocked(t, reason))

    async def count_dead(self, table_id: str, letters: int) -> int:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                "UPDATE walvec_control.vector_tables SET dead_in_row = CASE WHEN %(n)s = 0 THEN 0"
                " ELSE dead_in_row + %(n)s END WHERE environment = %(environment)s AND id = %(id)s"
                " RETURNING dead_in_row",
                {"n": letters, "environment": self._pool.environment, "id": table_id},
            )
            row = await cursor.fetchone()
        if row is None:
            raise NotFound(f"there is no vector table {table_id!r}.")
        return int(row[0])

    async def set_backfilled(self, table_id: str, generation: int) -> None:
        await _transform(self._pool, table_id, lambda t: transitions.backfilled(t, generation))

    async def set_ready(self, table_id: str, generation: int) -> None:
        await _transform(self._pool, table_id, lambda t: transitions.ready(t, generation))

    async def update_source_columns(self, table_id: str, generation: Generation) -> None:
        await _transform(self._pool, table_id, lambda t: transitions.source_columns(t, generation))
