"""The API over fakes: control database and log in memory, a source that is a dict, a store that remembers."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI

from api.app import create_app
from api.services import Services
from embedder.providers import registry
from tests.plugins.openapi import Contract
from walvec.contracts.errors import DefinitionError, SourceRejected, SourceUnavailable
from walvec.contracts.keys import partition_of
from walvec.contracts.position import Position
from walvec.contracts.sources import Check, RowCount, SourceIdentity, SourceTable, TableColumn
from walvec.contracts.stores import Differences, Hit
from walvec.definitions.memory import MemoryControl
from walvec.definitions.model import BACKFILLS, OPEN, EmbeddingProvider, SourceProgress, VectorTable
from walvec.runtime.settings import settings_from
from walvec.transport.memory import MemoryLog
from walvec.transport.records import Record, changes_topic, embedder_group, sink_group, vectors_topic

_contracts: list[Contract] = []


def contract(app: FastAPI) -> Contract:
    """Every app has the same one; it is made once."""
    if not _contracts:
        _contracts.append(Contract(app.openapi()))
    return _contracts[0]


def column(name: str, kind: str = "text", codec: str = "text", *, nullable: bool = True) -> TableColumn:
    return TableColumn(name, kind, 25, kind, codec, nullable, False)


PRODUCTS = SourceTable(
    schema="public",
    name="products",
    oid=1000,
    columns=(
        column("id", "bigint", "int", nullable=False),
        column("name"),
        column("description"),
        column("category"),
        column("price", "double precision", "float"),
        column("in_stock", "boolean", "bool"),
        column("stock", "integer", "int"),
        column("seen", "timestamp with time zone", "timestamp"),
    ),
    key=("id",),
    unique_keys={},
    identity="d",
    identity_columns=("id",),
    partitioned=False,
    estimated_rows=3,
)


class FakeSource:
    def __init__(self) -> None:
        self.rows: dict[bytes, str | None] = {}
        self.marker = 100
        self.estimate = 0
        self.down = False
        self.refused = ""
        self.released: list[str] = []
        self.hidden: list[list[str]] = []
        self.checks = [Check("wal_level", True, "logical")]
        self.before_scan: Any = None

    def _up(self) -> None:
        if self.down:
            raise SourceUnavailable("the source does not answer.", "Start it.")
        if self.refused:
            raise SourceRejected(self.refused, "Mend the connection.")

    async def test(self, connection: Any) -> float:
        self._up()
        return 0.4

    async def doctor(self, connection: Any, tables: Any) -> list[Check]:
        self._up()
        return self.checks

    async def inspect(self, connection: Any, source_table: str) -> SourceTable:
        self._up()
        if source_table.replace('"', "") not in ("public.products", "products"):
            raise DefinitionError(f"there is no table {source_table}.", "Create it.")
        return PRODUCTS

    async def count(self, connection: Any, table: Any) -> RowCount:
        self._up()
        if self.estimate:
            return RowCount(self.estimate, exact=False)
        return RowCount(sum(text is not None for text in self.rows.values()), exact=True)

    async def written(self, connection: Any) -> int:
        self._up()
        return self.marker

    async def emit_marker(self, connection: Any) -> int:
        self._up()
        self.marker += 10
        return self.marker

    async def unpublished(self, connection: Any, tables: Any, marks: Any) -> list[str]:
        self._up()
        return self.hidden.pop(0) if self.hidden else []

    async def scan(
        self, connection: Any, table: Any, generation: Any, *, only: Sequence[bytes] | None = None
    ) -> AsyncIterator[Sequence[tuple[bytes, str | None]]]:
        if self.before_scan:
            done = self.before_scan()
            if inspect.isawaitable(done):
                await done
        yield [(k, v) for k, v in self.rows.items() if only is None or k in only]

    async def identity(self, connection: Any) -> SourceIdentity:
        self._up()
        return SourceIdentity("1", "shop")

    async def unpublish(self, connection: Any, wanted: Any) -> None:
        self._up()

    async def release(self, connection: Any) -> None:
        self.released.append(connection.id)


class FakeStore:
    def __init__(self) -> None:
        self.stored: dict[bytes, str] = {}
        self.dropped: list[str] = []
        self.searched: list[Any] = []
        self.hits = [Hit({"id": 4821}, 0, 0.892, "Product: Fleece", {"price": 129.99, "in_stock": True})]

    async def ensure(self, table: Any, generation: Any) -> None: ...

    async def show(self, table: Any, generation: Any) -> None: ...

    async def drop(self, table: Any, generation: int | None = None) -> None:
        self.dropped.append(table.id)

    async def remove(self, table: Any, dsn: str | None) -> None:
        self.dropped.append(table.id)

    async def count(self, table: Any, generation: Any) -> int:
        return len(self.stored)

    async def search(
        self,
        table: Any,
        generation: Any,
        vector: Any,
        *,
        limit: int,
        where: Any = None,
        min_score: Any = None,
        after: Any = None,
        vectors: bool = False,
    ) -> list[Hit]:
        self.searched.append(where)
        return self.hits[:limit]

    async def compare(
        self, table: Any, generation: Any, rows: Any, *, only: Sequence[bytes] | None = None
    ) -> Differences:
        source = {key: found async for batch in rows for key, found in batch if found is not None}
        stored = {k: v for k, v in self.stored.items() if only is None or k in only}
        return Differences(
            missing=[k for k in source if k not in stored],
            orphaned=[k for k in stored if k not in source],
            stale=[k for k in source if k in stored and stored[k] != source[k]],
        )


class FakeModels:
    async def embed_query(self, provider: Any, generation: Any, text: str) -> np.ndarray:
        return np.ones(generation.embedding_dimensions, dtype=np.float32)

    def defaults(self, provider: str) -> tuple[str | None, int | None]:
        return ("minilm-static-256", 256) if provider == "static" else (None, None)

    async def check(self, provider: Any, model: str, dimensions: int | None) -> int:
        return dimensions or 256

    def check_provider(self, provider: EmbeddingProvider) -> None:
        registry.check(provider, settings_from({}))

    def providers(self) -> Mapping[str, Sequence[tuple[str, int]]]:
        return {"static": [("minilm-static-256", 256)], "openai": [("text-embedding-3-small", 1536)]}


COLUMNS = [
    {"name": "name", "role": "embedding", "ordinal": 1, "name_prefix": "Product: "},
    {"name": "description", "role": "embedding", "ordinal": 2, "name_prefix": "Description: "},
    {"name": "category", "role": "metadata", "filter_type": "keyword"},
    {"name": "price", "role": "metadata", "filter_type": "float"},
    {"name": "in_stock", "role": "metadata", "filter_type": "boolean"},
]
DOCUMENT: dict[str, Any] = {
    "connections": [{"name": "shop", "url": "postgresql://u:hunter2@db/shop"}],
    "embedding_providers": [{"name": "local", "provider": "static", "api_key": "sk-secret"}],
    "vector_tables": [
        {
            "name": "products",
            "connection": "shop",
            "embedding_provider": "local",
            "source_table": "public.products",
            "columns": COLUMNS,
        }
    ],
}


class World:
    """An API and the hands of the roles that it waits for."""

    def __init__(self, tmp_path: Path) -> None:
        self.control = MemoryControl()
        self.log = MemoryLog()
        self.source = FakeSource()
        self.store = FakeStore()
        settings = settings_from({"data_dir": tmp_path})
        self.said: Any = {}
        self.services = Services(settings, self.control, self.log, self.source, self.store, FakeModels())
        self.app = create_app(self.services)
        transport = httpx.ASGITransport(self.app)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    async def ask(self, method: str, path: str, body: Any = None, status: int = 200, **more: Any) -> Any:
        """The answer, after it was held to the OpenAPI document."""
        answer = await self.http.request(method, path, json=body, **more)
        assert answer.status_code == status, answer.text
        found = answer.json() if answer.content else None
        contract(self.app).check(method, path, status, answer.headers, found)
        return found

    async def apply(self, **table: Any) -> VectorTable:
        tables = [{**DOCUMENT["vector_tables"][0], **table}]
        await self.ask("POST", "/v1/apply", {"document": {**DOCUMENT, "vector_tables": tables}})
        return self.table

    @property
    def table(self) -> VectorTable:
        return next(iter(self.control.feed.current.vector_tables.values()))

    async def read(self, lsn: int) -> None:
        """As cdc: the stream is durable up to there."""
        await self.control.progress.put(self.table.connection_id, SourceProgress(lsn=lsn))

    async def append(self, kind: str, *keys: bytes) -> None:
        topic = (changes_topic if kind == "changes" else vectors_topic)(self.table.storage_name)
        await self.log.producer().append(topic, [Record(k, b'{"op":"c","vector":"AAAA"}') for k in keys])

    async def consume(self, *kinds: str) -> None:
        """As embedder and sink: all there is."""
        name = self.table.storage_name
        for kind in kinds or ("changes", "vectors"):
            topic = (changes_topic if kind == "changes" else vectors_topic)(name)
            group = (embedder_group if kind == "changes" else sink_group)(name)
            await self.log.reset(topic, group, await self.log.end_offsets(topic))

    async def backfilled(self) -> None:
        """As cdc at the end of the first backfill."""
        for task in await self.control.tasks.open_tasks([self.table.id]):
            await self.control.tasks.update(task.id, status="completed")
        await self.control.states.set_backfilled(self.table.id, self.table.active.number)

    @property
    def path(self) -> str:
        return f"/v1/vector-tables/{self.table.id}"

    async def built(self) -> None:
        """As cdc and sink: what is being built is filled and indexed."""
        building = self.table.building
        assert building is not None
        for task in await self.control.tasks.open_tasks([self.table.id]):
            if task.generation == building.number:
                await self.control.tasks.update(task.id, status="running")
                await self.control.tasks.update(task.id, status="completed")
        await self.control.states.set_backfilled(self.table.id, building.number)
        await self.control.states.set_ready(self.table.id, building.number)

    async def swapped(self, kept_until: str = "2999-01-01T00:00:00Z") -> None:
        """As sink: what is being built takes the active one's place."""
        await self.built()
        building = self.table.building
        assert building is not None
        assert await self.control.states.begin_swap(self.table.id, building.number, fills=building.fills)
        assert await self.control.states.finish_swap(self.table.id, building.number, kept_until)

    async def cancel(self) -> int:
        """Cancels the newest backfill, of what is being built if there is one; the status of the answer."""
        tasks = [t for t in await self.control.tasks.recent(self.table.id) if t.task_type in BACKFILLS]
        building = self.table.building
        tasks.sort(key=lambda t: (t.status not in OPEN, building is None or t.generation != building.number))
        answer = await self.http.post(f"/v1/tasks/{tasks[0].id}/cancel")
        self.said = answer.json()
        return answer.status_code

    async def ready(self, **table: Any) -> VectorTable:
        """A table in the store, and a cdc that has read everything."""
        await self.apply(**table)
        await self.backfilled()
        await self.read(10_000)
        self.source.marker = 10_000
        self._reader = asyncio.create_task(self._follow())
        return self.table

    async def _follow(self) -> None:
        connection = self.table.connection_id
        while True:
            await self.log.wait_for_append(0.01)
            now = await self.control.progress.get(connection)
            if now.lsn < self.source.marker:
                await self.control.progress.put(connection, replace(now, lsn=self.source.marker))

    async def stop_reading(self) -> None:
        reader = getattr(self, "_reader", None)
        if reader is not None:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def close(self) -> None:
        await self.stop_reading()
        await self.http.aclose()


def key(n: int) -> bytes:
    return b'{"id":%d}' % n


def position(lsn: int) -> Position:
    return Position(1, lsn, 1)


__all__ = ["COLUMNS", "DOCUMENT", "World", "key", "partition_of", "position"]
