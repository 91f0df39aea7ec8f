"""Connections, embedding providers and vector tables. Implements `ports.Definitions`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from walvec.contracts.errors import Conflict, NotFound
from walvec.definitions import revisions, transitions
from walvec.definitions.memory.feed import MemoryFeed
from walvec.definitions.memory.letters import MemoryLetters
from walvec.definitions.memory.progress import MemoryProgress
from walvec.definitions.memory.rebuilds import Rebuilds, check_name
from walvec.definitions.memory.removals import MemoryRemovals
from walvec.definitions.memory.reports import MemoryReports
from walvec.definitions.memory.tasks import MemoryTasks
from walvec.definitions.model import Connection, EmbeddingProvider, Environment, Snapshot, VectorTable
from walvec.definitions.removals import parts
from walvec.definitions.values import now


class MemoryDefinitions(Rebuilds):
    def __init__(
        self,
        feed: MemoryFeed,
        tasks: MemoryTasks,
        letters: MemoryLetters,
        progress: MemoryProgress,
        reports: MemoryReports,
        removals: MemoryRemovals,
    ) -> None:
        super().__init__(feed, tasks)
        self._letters = letters
        self._progress = progress
        self._reports = reports
        self._removals = removals

    @property
    def _stored(self) -> Snapshot:
        return self._feed.current

    @property
    def known(self) -> Snapshot:
        return self._stored

    def version(self) -> asyncio.Future[int]:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        found.set_result(self._stored.version)
        return found

    async def snapshot(self) -> Snapshot:
        return self._stored

    def _environment(
        self,
        old: Connection | EmbeddingProvider | VectorTable | None,
        new: Connection | EmbeddingProvider | VectorTable,
    ) -> Environment:
        found = self._stored.environments.get((old or new).environment_id or self._feed.home)
        if found is None:
            raise NotFound("there is no such environment.")
        return found

    async def put_connection(self, connection: Connection) -> None:
        old = self._stored.connections.get(connection.id)
        home = self._environment(old, connection)
        connection = replace(connection, environment_id=home.id, view_schema=home.view_schema)
        check_name("connection", connection, self._stored.connections)
        created = old.created_at if old else connection.created_at or now()
        connection = replace(connection, created_at=created)
        if connection != old:
            self._feed.move(connections={**self._stored.connections, connection.id: connection})

    async def put_provider(self, provider: EmbeddingProvider) -> None:
        old = self._stored.providers.get(provider.id)
        home = self._environment(old, provider)
        provider = replace(provider, environment_id=home.id, view_schema=home.view_schema)
        check_name("embedding provider", provider, self._stored.providers)
        provider = replace(provider, created_at=old.created_at if old else provider.created_at or now())
        if provider != old:
            self._feed.move(providers={**self._stored.providers, provider.id: provider})

    async def put_vector_table(self, table: VectorTable, *, etag: str | None = None) -> None:
        old = self._stored.vector_tables.get(table.id)
        environment = self._environment(old, table)
        table = replace(table, environment_id=environment.id, view_schema=environment.view_schema)
        check_name("vector table", table, self._stored.vector_tables)
        own = self._stored.within(environment.id)
        if table.connection_id not in own.connections:
            raise NotFound(f"there is no connection {table.connection_id!r}.")
        if table.embedding_provider_id not in own.providers:
            raise NotFound(f"there is no embedding provider {table.embedding_provider_id!r}.")
        if old is not None:
            revisions.check(old, etag)
        elif etag is not None:
            raise revisions.gone(table)
        new = transitions.put(old, table, now())
        if old is None and new.source is None:
            self._removals.take_back(new.connection_id)
        if new != old:
            self._feed.put(new)

    @asynccontextmanager
    async def making(self, table: VectorTable) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        with self._removals.held(table) as left:

            async def enter() -> None:
                await self.put_vector_table(table)
                for one in left:
                    self._removals.end(one)

            yield enter

    async def set_paused(self, table_id: str, paused: bool) -> None:
        self._feed.change(table_id, lambda t: transitions.paused(t, paused))

    async def set_connection_status(
        self, connection_id: str, status: str, message: str = "", *, tested: bool = False
    ) -> None:
        old = self._feed.connection(connection_id)
        at = now() if tested else old.last_tested_at
        new = replace(old, status=status, status_message=message, last_tested_at=at)
        if new != old:
            self._feed.move(connections={**self._stored.connections, connection_id: new})

    async def delete_connection(self, connection_id: str) -> Sequence[str]:
        found = self._feed.connection(connection_id)
        if self._stored.tables_of(connection_id):
            raise Conflict(f"connection {found.name!r} is used by vector tables.", "Delete them first.")
        self._progress.forget(connection_id)
        self._feed.move(connections={k: v for k, v in self._stored.connections.items() if k != connection_id})
        return self._removals.of(connection_id)

    async def delete_provider(self, provider_id: str) -> None:
        found = self._stored.providers.get(provider_id)
        if found is None:
            raise NotFound(f"there is no embedding provider {provider_id!r}.")
        if any(t.uses_provider(provider_id) for t in self._stored.vector_tables.values()):
            raise Conflict(f"embedding provider {found.name!r} is used by vector tables.", "Delete them first.")
        self._feed.move(providers={k: v for k, v in self._stored.providers.items() if k != provider_id})

    async def delete_vector_table(self, table_id: str) -> Sequence[str]:
        table = self._feed.table(table_id)
        left = self._removals.enter(table, parts(table, self._stored.tables_of(table.connection_id)))
        self._tasks.forget(table_id)
        self._letters.forget(table_id)
        self._progress.forget_table(table_id)
        self._reports.forget(table_id)
        self._feed.move(vector_tables={k: v for k, v in self._stored.vector_tables.items() if k != table_id})
        return left
