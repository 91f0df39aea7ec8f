"""cdc, embedder and sink at work on a real source, store and control database; a writer that never rests, and readers
that look at every answer. The text says which generation it is of, and so does the number of dimensions."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson
import psycopg

import cdc.service
import embedder.service
import sink.service
from cdc.source import SourceAccess
from sink.stores.registry import Stores
from tests.plugins.eventually import eventually
from walvec.contracts.errors import StoreRejected
from walvec.definitions.model import Column, Connection, EmbeddingProvider, Generation, SourceColumn, VectorTable
from walvec.definitions.ports import Control
from walvec.definitions.postgres import open_control
from walvec.runtime.settings import Settings, settings_from
from walvec.transport.memory import MemoryLog

CONNECTION, PROVIDER, TABLE = "conn_abcdef12", "emb_1", "vt_0000feed"
ID = SourceColumn("id", "integer", 23, "integer", "int", nullable=False)
NAME = SourceColumn("name", "text", 25, "text", "text")
BODY = SourceColumn("body", "text", 25, "text", "text")
PRICE = SourceColumn("price", "integer", 23, "integer", "int")
VIEW = "walvec.products"
NAMES = Generation(
    1, "active", "fake", 8, (Column("name", "embedding"), Column("price", "metadata")), (ID,), (ID, NAME, BODY, PRICE)
)
BODIES = replace(
    NAMES,
    embedding_dimensions=12,
    columns=(Column("name", "embedding", 1), Column("body", "embedding", 2, "| "), Column("price", "metadata")),
)
NO_PRICE = replace(BODIES, columns=BODIES.columns[:2])
STABLE = 40
"""Rows that are changed, and never deleted."""


def text_of(generation: Generation, name: str, body: str) -> str:
    return name if len(generation.embedding_columns) == 1 else f"{name}\n| {body}"


@dataclass
class Role:
    stop: asyncio.Event
    task: asyncio.Task[None]


@dataclass
class World:
    dsn: str
    control: Control
    settings: Settings
    log: MemoryLog = field(default_factory=MemoryLog)
    roles: dict[str, Role] = field(default_factory=dict)
    wrap: Callable[[Control], Control] = lambda control: control
    """What stands between the sink and the control database."""

    async def sql(self, *statements: str) -> None:
        async with await psycopg.AsyncConnection.connect(self.dsn) as connection:
            for statement in statements:
                await connection.execute(statement.encode())

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            return await (await connection.execute(query.encode())).fetchall()

    # ------------------------------------------------------------------ roles

    def start(self, *names: str) -> None:
        for name in names or ("cdc", "embedder", "sink"):
            stop = asyncio.Event()
            self.roles[name] = Role(stop, asyncio.create_task(self._role(name, stop)))

    async def _role(self, name: str, stop: asyncio.Event) -> None:
        stores = Stores(self.settings, self.control)
        try:
            if name == "cdc":
                await cdc.service.run(self.settings, stop, control=self.control, log=self.log)
            elif name == "embedder":
                rows = SourceAccess()
                await embedder.service.run(
                    self.settings, stop, control=self.control, log=self.log, lookup=stores, rows=rows
                )
                await rows.close()
            else:
                await sink.service.run(
                    self.settings, stop, control=self.wrap(self.control), log=self.log, stores=stores
                )
        finally:
            await stores.close()

    async def kill(self, name: str) -> None:
        """Without a chance to finish anything."""
        role = self.roles.pop(name)
        role.task.cancel()
        await asyncio.gather(role.task, return_exceptions=True)

    async def close(self) -> None:
        for role in self.roles.values():
            role.stop.set()
        done = await asyncio.gather(*(r.task for r in self.roles.values()), return_exceptions=True)
        await self.log.close()
        await self.control.close()
        for result in done:
            if isinstance(result, Exception):
                raise result

    # ------------------------------------------------------------------ the table

    async def table(self) -> VectorTable:
        return (await self.control.definitions.snapshot()).vector_tables[TABLE]

    async def ready(self) -> bool:
        return (await self.table()).active.ready

    async def rebuild(self, generation: Generation, **changes: Any) -> int:
        number = (await self.table()).next_generation
        await self.control.definitions.rebuild(TABLE, replace(generation, number=number), changes=changes)
        return number

    async def active(self, number: int) -> None:
        async def is_active() -> bool:
            return (await self.table()).active.number == number

        await eventually(is_active, 60)

    async def equal(self) -> None:
        """The view and the store are what the source is, in the active generation's form."""
        await eventually(self._equal, 30)

    async def _equal(self) -> bool:
        generation = (await self.table()).active
        source = await self.rows("SELECT id, name, body, price FROM products ORDER BY id")
        wanted = [(i, text_of(generation, name, body), generation.embedding_dimensions) for i, name, body, _ in source]
        shown = await self.rows(f"SELECT id, embedded_text, vector_dims(embedding) FROM {VIEW} ORDER BY id")
        assert shown == wanted, f"{len(shown)} of {len(wanted)} rows, different: {list(set(shown) ^ set(wanted))[:6]}"
        if any(c.name == "price" for c in generation.metadata_columns):
            assert await self.rows(f"SELECT id, price FROM {VIEW} ORDER BY id") == [(r[0], r[3]) for r in source]
        return True


@asynccontextmanager
async def world(postgres: Any, *, rows: int = 200, **sink_settings: Any) -> AsyncIterator[World]:
    """A table with rows, its first generation filled and indexed."""
    settings = settings_from(
        {
            "pgvector": {"url": postgres.dsn},
            "cdc": {"status_interval_seconds": 0.05, "heartbeat_interval_seconds": 0.1, "backfill_chunk_rows": 50},
            "sink": {"purge_interval_seconds": 0.2, **sink_settings},
        }
    )
    control = await open_control(postgres.another(), environment="prod", secret_key="k")
    made = World(postgres.dsn, control, settings)
    await made.sql(
        "CREATE TABLE products (id int PRIMARY KEY, name text NOT NULL, body text NOT NULL, price int)",
        f"INSERT INTO products SELECT i, 'name ' || i, 'body ' || i, i FROM generate_series(1, {rows}) i",
    )
    await control.definitions.put_connection(
        Connection(CONNECTION, "src", "postgresql", "managed", postgres.dsn, status="connected")
    )
    await control.definitions.put_provider(EmbeddingProvider(PROVIDER, "p", "fake"))
    await control.definitions.put_vector_table(
        VectorTable(
            TABLE, "products", CONNECTION, PROVIDER, "fake", "public", "products", "pgvector", "managed", (NAMES,)
        )
    )
    try:
        made.start()
        await eventually(made.ready, 60)
        yield made
    finally:
        await made.close()


@dataclass
class Traffic:
    """A writer, a reader of the view and a searcher. What they saw; an error ends the test."""

    answers: int = 0
    searches: int = 0
    seen: set[int] = field(default_factory=set)
    slowest: float = 0.0


@asynccontextmanager
async def traffic(at: World, *, truncates: bool = False) -> AsyncIterator[Traffic]:
    seen, stop = Traffic(), asyncio.Event()
    parts: list[Callable[[World, Traffic, asyncio.Event], Awaitable[None]]] = [_write, _read, _search]
    if truncates:
        parts = [_write]
    tasks = [asyncio.create_task(part(at, seen, stop)) for part in parts]  # type: ignore[arg-type]
    try:
        yield seen
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def _write(at: World, seen: Traffic, stop: asyncio.Event) -> None:
    random_ = random.Random(7)
    async with await psycopg.AsyncConnection.connect(at.dsn, autocommit=True) as connection:
        count = 0
        while not stop.is_set():
            count += 1
            row = random_.randint(1, 300)
            what = random_.random()
            if what < 0.3:
                await connection.execute("UPDATE products SET name = %s WHERE id = %s", (f"name {row}.{count}", row))
            elif what < 0.5:
                await connection.execute("UPDATE products SET body = %s WHERE id = %s", (f"body {row}.{count}", row))
            elif what < 0.7:
                await connection.execute("UPDATE products SET price = %s WHERE id = %s", (count, row))
            elif what < 0.85 and row > STABLE:
                await connection.execute("DELETE FROM products WHERE id = %s", (row,))
            else:
                await connection.execute(
                    "INSERT INTO products VALUES (%s, %s, %s, 1) ON CONFLICT DO NOTHING",
                    (row, f"name {row}.{count}", f"body {row}.{count}"),
                )
            await asyncio.sleep(0.002)


async def _read(at: World, seen: Traffic, stop: asyncio.Event) -> None:
    """Each answer is wholly one generation's, and has all rows that are always there."""
    loop = asyncio.get_running_loop()
    async with await psycopg.AsyncConnection.connect(at.dsn, autocommit=True) as connection:
        while not stop.is_set():
            began = loop.time()
            cursor = await connection.execute(
                f"SELECT id, embedded_text, vector_dims(embedding) FROM {VIEW}".encode(), prepare=False
            )
            rows = await cursor.fetchall()
            seen.slowest = max(seen.slowest, loop.time() - began)
            _whole({r[0] for r in rows}, [r[1] for r in rows], {r[2] for r in rows})
            seen.answers += 1
            seen.seen.add(rows[0][2])
            await asyncio.sleep(0)


async def _search(at: World, seen: Traffic, stop: asyncio.Event) -> None:
    """As the API does: the active generation of the newest definition, looked at again when it is gone."""
    stores = Stores(at.settings, at.control)
    try:
        while not stop.is_set():
            for again in (False, True):
                table = await at.table()
                generation = table.active
                vector = np.ones(generation.embedding_dimensions, dtype=np.float32)
                try:
                    hits = await stores.search(table, generation, vector, limit=1000)
                    break
                except StoreRejected:
                    if again:
                        raise
            _whole({h.key["id"] for h in hits}, [h.text for h in hits], {generation.embedding_dimensions})
            seen.searches += 1
            await asyncio.sleep(0.01)
    finally:
        await stores.close()


def _whole(ids: set[int], texts: list[str], dimensions: set[int]) -> None:
    assert set(range(1, STABLE + 1)) <= ids, f"rows are missing: {sorted(set(range(1, STABLE + 1)) - ids)[:5]}"
    (one,) = dimensions
    assert all(("\n| " in text) == (one != NAMES.embedding_dimensions) for text in texts), "a mixture"


def key(row: int) -> bytes:
    return orjson.dumps({"id": row})
