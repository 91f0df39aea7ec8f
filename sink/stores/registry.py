"""A vector table -> the store it lives in, by its `store` and `mode`: the port of the API and of the embedder.

One adapter per database and schema, over one set of connections per database. Next: `port.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence, Set

import numpy as np

from sink.stores.pgvector import PgvectorStore
from sink.stores.port import Store
from walvec.contracts.errors import ConfigError, DefinitionError, NotFound
from walvec.contracts.position import Position
from walvec.contracts.stores import Applied, Differences, Filter, Hit, Place, StoredVersion
from walvec.contracts.vectors import VectorRecord
from walvec.definitions.model import Connection, Generation, VectorTable
from walvec.definitions.ports import Control
from walvec.runtime.settings import Settings

_FEED_SECONDS = 5.0


class Stores:
    """Implements `Store` (so a worker needs no other), `api.ports.SearchStore` and `embedder.ports.StoreLookup`."""

    def __init__(self, settings: Settings, control: Control) -> None:
        self._settings = settings
        self._feed = control.feed
        self._open: dict[tuple[str, bool, str], PgvectorStore] = {}

    async def of(self, table: VectorTable) -> Store:
        """Raises DefinitionError, ConfigError, NotFound."""
        if table.store == "qdrant":
            raise DefinitionError(
                f"Vector table {table.name!r} asks for store qdrant, which is not available in this version.",
                "Use store: pgvector.",
            )
        dsn = (await self._connection(table)).dsn if table.mode == "platform" else None
        return self._at(table, dsn)

    def _at(self, table: VectorTable, dsn: str | None) -> PgvectorStore:
        """`dsn`: of its connection, for mode platform."""
        if table.mode != "platform":
            url = self._settings.pgvector.url
            if url is None:
                raise ConfigError("No pgvector database is configured.", "Set WALVEC_PGVECTOR__URL.")
            dsn = url.get_secret_value()
        own = table.mode == "platform"
        if dsn is None:
            raise NotFound(f"The connection of {table.name!r} does not exist.")
        key = (dsn, own, table.view_schema)
        found = self._open.get(key)
        if found is None:
            same = next((store for (*place, _), store in self._open.items() if place == [dsn, own]), None)
            found = same.beside(table.view_schema) if same else PgvectorStore(dsn, table.view_schema, own_database=own)
            self._open[key] = found
        return found

    async def _connection(self, table: VectorTable) -> Connection:
        """A connection that was just made may reach the feed a moment later."""
        snapshot = self._feed.current
        found = snapshot.connections.get(table.connection_id)
        try:
            async with asyncio.timeout(_FEED_SECONDS):
                while found is None:
                    snapshot = await self._feed.changed(snapshot.version)
                    found = snapshot.connections.get(table.connection_id)
        except TimeoutError as e:
            raise NotFound(f"Connection {table.connection_id} of {table.name!r} does not exist.") from e
        return found

    async def ensure(self, table: VectorTable, generation: Generation) -> None:
        await (await self.of(table)).ensure(table, generation)

    async def show(self, table: VectorTable, generation: Generation) -> None:
        await (await self.of(table)).show(table, generation)

    async def drop(self, table: VectorTable, generation: int | None = None) -> None:
        await (await self.of(table)).drop(table, generation)

    async def generations(self, table: VectorTable) -> list[int]:
        return await (await self.of(table)).generations(table)

    async def remove(self, table: VectorTable, dsn: str | None) -> None:
        await self._at(table, dsn).remove(table)

    async def apply(self, table: VectorTable, generation: Generation, records: Sequence[VectorRecord]) -> Applied:
        return await (await self.of(table)).apply(table, generation, records)

    async def versions(
        self, table: VectorTable, generation: Generation, keys: Sequence[bytes]
    ) -> Mapping[bytes, StoredVersion]:
        return await (await self.of(table)).versions(table, generation, keys)

    async def vectors(
        self, table: VectorTable, generation: Generation, hashes: Sequence[str]
    ) -> Mapping[str, np.ndarray]:
        return await (await self.of(table)).vectors(table, generation, hashes)

    async def search(
        self,
        table: VectorTable,
        generation: Generation,
        vector: np.ndarray,
        *,
        limit: int,
        where: Filter | None = None,
        min_score: float | None = None,
        after: Place | None = None,
        vectors: bool = False,
    ) -> list[Hit]:
        store = await self.of(table)
        return await store.search(
            table, generation, vector, limit=limit, where=where, min_score=min_score, after=after, vectors=vectors
        )

    async def count(self, table: VectorTable, generation: Generation) -> int:
        return await (await self.of(table)).count(table, generation)

    async def build_indexes(self, table: VectorTable, generation: Generation) -> None:
        await (await self.of(table)).build_indexes(table, generation)

    async def purge(self, table: VectorTable, generation: Generation, horizon: Position, keep: Set[bytes]) -> int:
        return await (await self.of(table)).purge(table, generation, horizon, keep)

    async def compare(
        self,
        table: VectorTable,
        generation: Generation,
        rows: AsyncIterator[Sequence[tuple[bytes, str | None]]],
        *,
        only: Sequence[bytes] | None = None,
    ) -> Differences:
        return await (await self.of(table)).compare(table, generation, rows, only=only)

    async def close(self) -> None:
        for store in self._open.values():
            await store.close()
        self._open.clear()
