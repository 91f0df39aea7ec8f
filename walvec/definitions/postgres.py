"""The control database on Postgres: `open_control` gives a `ports.Control`.

A write of definitions reads the row under lock, lets a pure transition make the new one, and moves the feed only if
something changed. Next: `feed` (how others feel it), `tasks`, `letters`, `progress`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from walvec.contracts.errors import NotFound
from walvec.definitions import removals, revisions, transitions
from walvec.definitions.accounts import ControlAccounts, read_accounts
from walvec.definitions.answers import ControlAnswers
from walvec.definitions.feed import ControlFeed
from walvec.definitions.letters import ControlLetters
from walvec.definitions.model import (
    Connection,
    EmbeddingProvider,
    Generation,
    Snapshot,
    VectorTable,
)
from walvec.definitions.permits import ControlPermits
from walvec.definitions.pool import HUNG_SECONDS, Pool, connect, patience, translated
from walvec.definitions.pool import Connection as Session
from walvec.definitions.progress import ControlProgress, ControlReports
from walvec.definitions.rebuilds import Rebuilds, Swaps
from walvec.definitions.removals import ControlRemovals
from walvec.definitions.rotation import in_force
from walvec.definitions.rows import table_from, table_json
from walvec.definitions.schema import prepare
from walvec.definitions.secrets import Secrets
from walvec.definitions.stored import TABLES, find, locked, transform, write
from walvec.definitions.tasks import ControlTasks
from walvec.definitions.values import as_json, instant, now, storable

_MAKERS = 8
"""Vector tables that are made at once in one process; each has a session."""


async def open_control(dsn: str, *, environment: str, secret_key: str | Secrets) -> ControlDatabase:
    """Upgrades the schema, enters the default organization's environment of that name where it is missing, and starts
    to follow the definitions.

    Raises ControlUnavailable (try again) or ConfigError (address, rights, secret key, newer schema).
    """
    secrets = Secrets(secret_key) if isinstance(secret_key, str) else secret_key
    async with await connect(dsn) as conn:
        environment_id = await prepare(conn, environment, secrets)
    pool = Pool(dsn, environment_id)
    await pool.open()
    try:
        definitions = ControlDefinitions(pool, secrets)
        feed = ControlFeed(dsn, await definitions.snapshot(), definitions.snapshot)
    except BaseException:
        await pool.close()
        raise
    feed.start()
    return ControlDatabase(pool, definitions, feed, ControlRemovals(pool, secrets), ControlAnswers(pool, secrets))


class ControlDatabase:
    """Implements `ports.Control`."""

    def __init__(
        self,
        pool: Pool,
        definitions: ControlDefinitions,
        feed: ControlFeed,
        removals: ControlRemovals,
        answers: ControlAnswers,
    ) -> None:
        self._pool = pool
        self.answers = answers
        self.permits = ControlPermits(pool)
        self.removals = removals
        self.definitions = definitions
        self.feed = feed
        self.accounts = ControlAccounts(pool)
        self.states = ControlStates(pool)
        self.tasks = ControlTasks(pool)
        self.letters = ControlLetters(pool)
        self.progress = ControlProgress(pool)
        self.reports = ControlReports(pool)

    async def close(self) -> None:
        await self.feed.close()
        await self._pool.close()


class ControlDefinitions(Rebuilds):
    """Implements `ports.Definitions`."""

    def __init__(self, pool: Pool, secrets: Secrets) -> None:
        super().__init__(pool)
        self._secrets = secrets
        self._makers = asyncio.Semaphore(_MAKERS)
        self._last: Snapshot | None = None
        self._reading = asyncio.Lock()

    @property
    def known(self) -> Snapshot | None:
        return self._last

    def version(self) -> asyncio.Future[int]:
        return self._pool.version()

    async def snapshot(self) -> Snapshot:
        if self._last is not None and self._last.version == await self._pool.version():
            return self._last
        async with self._reading:  # those who waited for another one's reading need not read again
            if self._last is None or self._last.version != await self._pool.version():
                self._last = await self._read()
            return self._last

    async def _read(self) -> Snapshot:
        async with self._pool.transaction(snapshot=True) as conn:
            cursor = await conn.execute("SELECT version, keys_needed FROM walvec_control.installation")
            ((version, keys_needed),) = await cursor.fetchall()
            cursor = await conn.execute(
                "SELECT c.id, c.name, provider, mode, credentials, on_slot_loss, status, status_message, c.created_at,"
                " environment_id, last_tested_at, e.view_schema FROM walvec_control.connections c"
                " JOIN walvec_control.environments e ON e.id = c.environment_id ORDER BY c.created_at, c.id"
            )
            connections = {r[0]: self._connection(r) for r in await cursor.fetchall()}
            cursor = await conn.execute(
                "SELECT p.id, p.name, provider, api_key, base_url, default_model, limits, p.created_at, environment_id,"
                " e.view_schema FROM walvec_control.providers p"
                " JOIN walvec_control.environments e ON e.id = p.environment_id ORDER BY p.created_at, p.id"
            )
            providers = {r[0]: self._provider(r) for r in await cursor.fetchall()}
            cursor = await conn.execute(f"{TABLES} ORDER BY t.created_at, t.id")
            tables = {t.id: t for t in (table_from(*r) for r in await cursor.fetchall())}
            environments, organizations, keys = await read_accounts(conn)
        return Snapshot(version, connections, providers, tables, environments, organizations, keys, keys_needed)

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
            environment_id=row[9],
            last_tested_at=None if row[10] is None else instant(row[10]),
            view_schema=row[11],
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
            environment_id=row[8],
            view_schema=row[9],
        )

    async def put_connection(self, connection: Connection) -> None:
        old = (await self.snapshot()).connections.get(connection.id)
        if old is not None and replace(connection, created_at=old.created_at, environment_id=old.environment_id) == old:
            return
        async with self._pool.change() as conn:
            await in_force(conn, self._secrets)
            await conn.execute(
                "INSERT INTO walvec_control.connections"
                " (environment_id, id, name, provider, mode, credentials, on_slot_loss, status, status_message,"
                " created_at, last_tested_at)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, coalesce(%s::timestamptz, now()), %s)"
                " ON CONFLICT (id) DO UPDATE SET (name, provider, mode, credentials, on_slot_loss, status,"
                " status_message, last_tested_at) = (excluded.name, excluded.provider, excluded.mode,"
                " excluded.credentials, excluded.on_slot_loss, excluded.status, excluded.status_message,"
                " excluded.last_tested_at)",
                [
                    connection.environment_id or self._pool.environment_id,
                    connection.id,
                    connection.name,
                    connection.provider,
                    connection.mode,
                    self._secrets.encrypt(connection.dsn, f"connection/{connection.id}"),
                    connection.on_slot_loss,
                    connection.status,
                    storable(connection.status_message),
                    connection.created_at or None,
                    connection.last_tested_at,
                ],
            )

    async def put_provider(self, provider: EmbeddingProvider) -> None:
        old = (await self.snapshot()).providers.get(provider.id)
        if old is not None and replace(provider, created_at=old.created_at, environment_id=old.environment_id) == old:
            return
        key = provider.api_key
        async with self._pool.change() as conn:
            await in_force(conn, self._secrets)
            await conn.execute(
                "INSERT INTO walvec_control.providers"
                " (environment_id, id, name, provider, api_key, base_url, default_model, limits, created_at)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, coalesce(%s::timestamptz, now()))"
                " ON CONFLICT (id) DO UPDATE SET (name, provider, api_key, base_url, default_model,"
                " limits) = (excluded.name, excluded.provider, excluded.api_key, excluded.base_url,"
                " excluded.default_model, excluded.limits)",
                [
                    provider.environment_id or self._pool.environment_id,
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

    async def put_vector_table(self, table: VectorTable, *, etag: str | None = None) -> None:
        new = table.id not in (await self.snapshot()).vector_tables
        async with self._pool.transaction() as conn:
            await self._put(conn, table, etag, streamed=new and table.source is None)

    @asynccontextmanager
    async def making(self, table: VectorTable) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        # a session of its own: stores and logs may be slow, and the pool's are for those who are quick
        async with self._makers, await connect(self._pool.dsn) as conn:
            with translated():
                async with conn.transaction():
                    await patience(conn, HUNG_SECONDS)
                    # or a rotation that is under way would miss the copy of its credentials
                    await conn.execute(
                        "SELECT 1 FROM walvec_control.connections WHERE id = %s FOR SHARE", [table.connection_id]
                    )
                    left = await removals.enter(conn, table, removals.OF_MAKING, making=True)
                async with conn.transaction():
                    await removals.hold(conn, left)

                    async def enter() -> None:
                        with translated():
                            await patience(conn, HUNG_SECONDS)  # from here on others wait for this one
                            await self._put(conn, table, None, streamed=table.source is None)
                            await removals.made(conn, left)

                    yield enter

    async def _put(self, conn: Session, table: VectorTable, etag: str | None, *, streamed: bool) -> None:
        """`streamed`: it is a new one, whose changes come through the connection's slot."""
        # before the installation's lock: this may wait for a source that is slow to answer
        reused = streamed and await removals.take_back(conn, table.connection_id)
        await self._pool.order(conn)
        if streamed:  # and what was deleted in between
            reused = await removals.take_back(conn, table.connection_id) or reused
        if reused:
            await removals.forget_slot(conn, table.connection_id)
        old = await find(conn, table.id)
        if old is not None:
            revisions.check(old, etag)
        elif etag is not None:
            raise revisions.gone(table)
        environment_id = old.environment_id if old else table.environment_id or self._pool.environment_id
        schema = old.view_schema if old else table.view_schema
        new = transitions.put(old, replace(table, environment_id=environment_id, view_schema=schema), now())
        if old is None:
            await conn.execute(
                "INSERT INTO walvec_control.vector_tables"
                " (environment_id, id, name, connection_id, embedding_provider_id, definition, dead_in_row)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s)",
                [
                    new.environment_id,
                    new.id,
                    new.name,
                    new.connection_id,
                    new.embedding_provider_id,
                    as_json(table_json(new)),
                    new.dead_in_row,
                ],
            )
        elif new != old:
            await write(conn, new)
        if new != old:
            await self._pool.move(conn)

    async def set_paused(self, table_id: str, paused: bool) -> None:
        await transform(self._pool, table_id, lambda t: transitions.paused(t, paused))

    async def set_connection_status(
        self, connection_id: str, status: str, message: str = "", *, tested: bool = False
    ) -> None:
        async with self._pool.ordered() as conn:
            cursor = await conn.execute(
                "SELECT status, status_message FROM walvec_control.connections WHERE id = %s FOR NO KEY UPDATE",
                [connection_id],
            )
            row = await cursor.fetchone()
            if row is None:
                raise NotFound(f"there is no connection {connection_id!r}.")
            if tested or row != (status, storable(message)):
                await conn.execute(
                    "UPDATE walvec_control.connections SET status = %s, status_message = %s,"
                    " last_tested_at = CASE WHEN %s THEN now() ELSE last_tested_at END WHERE id = %s",
                    [status, storable(message), tested, connection_id],
                )
                await self._pool.move(conn)

    async def delete_connection(self, connection_id: str) -> Sequence[str]:
        async with self._pool.transaction() as conn:
            # before the installation's lock: this may wait for a source or a store that is slow to answer
            await removals.keep_credentials(conn, connection_id)
            await self._pool.move(conn)
            left = await removals.of_deleted_connection(conn, connection_id)
            await _delete(conn, "connections", "connection", connection_id)
        return left

    async def delete_provider(self, provider_id: str) -> None:
        async with self._pool.change() as conn:
            await self.check_unused(conn, provider_id)
            await _delete(conn, "providers", "embedding provider", provider_id)

    async def delete_vector_table(self, table_id: str) -> Sequence[str]:
        async with self._pool.change() as conn:
            table = await locked(conn, table_id)
            cursor = await conn.execute(f"{TABLES} WHERE t.connection_id = %s", [table.connection_id])
            others = [table_from(*r) for r in await cursor.fetchall()]
            left = await removals.enter(conn, table, removals.parts(table, others))
            await _delete(conn, "vector_tables", "vector table", table_id)
        return left


async def _delete(conn: Session, relation: str, noun: str, own_id: str) -> None:
    cursor = await conn.execute(f"DELETE FROM walvec_control.{relation} WHERE id = %s", [own_id])
    if cursor.rowcount == 0:
        raise NotFound(f"there is no {noun} {own_id!r}.")
    await conn.execute("DELETE FROM walvec_control.reports WHERE subject = %s", [own_id])


class ControlStates(Swaps):
    """Implements `ports.TableStates`."""

    async def set_error(self, table_id: str, kind: str, message: str, cure: str) -> None:
        await transform(self._pool, table_id, lambda t: transitions.failed(t, kind, message, cure))

    async def clear_error(self, table_id: str) -> None:
        await transform(self._pool, table_id, transitions.recovered)

    async def set_blocked(self, table_id: str, reason: str | None) -> None:
        await transform(self._pool, table_id, lambda t: transitions.blocked(t, reason))

    async def count_dead(self, table_id: str, letters: int) -> int:
        async with self._pool.transaction() as conn:
            cursor = await conn.execute(
                "UPDATE walvec_control.vector_tables SET dead_in_row = CASE WHEN %(n)s = 0 THEN 0"
                " ELSE dead_in_row + %(n)s END WHERE id = %(id)s"
                " RETURNING dead_in_row",
                {"n": letters, "id": table_id},
            )
            row = await cursor.fetchone()
        if row is None:
            raise NotFound(f"there is no vector table {table_id!r}.")
        return int(row[0])

    async def update_source_columns(self, table_id: str, generation: Generation) -> None:
        await transform(self._pool, table_id, lambda t: transitions.source_columns(t, generation))
