"""The embedder role around in-memory neighbours: a log, a control database, a store's look-ups and a source."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from embedder import service
from tests.plugins.eventually import eventually
from walvec.contracts import wire
from walvec.contracts.changes import Change
from walvec.contracts.position import Position
from walvec.contracts.snapshots import XidSnapshot
from walvec.contracts.sources import ReadRow, RowsRead
from walvec.contracts.stores import StoredVersion
from walvec.contracts.vectors import VectorRecord
from walvec.definitions.memory import MemoryControl
from walvec.definitions.model import Column, Connection, EmbeddingProvider, Generation, SourceColumn, VectorTable
from walvec.runtime.settings import Settings, settings_from
from walvec.transport.memory import MemoryLog
from walvec.transport.records import Record, changes_topic, embedder_group, sink_group, vectors_topic


def column(name: str, type_: str = "text", codec: str = "text") -> SourceColumn:
    return SourceColumn(name, type_, 25, type_, codec)


def generation(
    number: int = 1, *, model: str = "text-embedding-3-small", dimensions: int = 8, state: Any = "active"
) -> Generation:
    return Generation(
        number=number,
        state=state,
        embedding_model=model,
        embedding_dimensions=dimensions,
        columns=(Column("title", "embedding", 1, "T: "), Column("body", "embedding", 2), Column("price", "metadata")),
        key=(column("id", "integer", "int"),),
        source=(
            column("id", "integer", "int"),
            column("title"),
            column("body"),
            column("price", "numeric", "numeric"),
        ),
    )


def vector_table(
    *generations: Generation, table_id: str = "vt_aaaaaaaa", name: str = "docs", **more: Any
) -> VectorTable:
    return VectorTable(
        id=table_id,
        name=name,
        connection_id="conn_1",
        embedding_provider_id="ep_1",
        provider_kind=more.pop("provider_kind", "openai"),
        source_schema="public",
        source_table=name,
        store="pgvector",
        mode="managed",
        generations=generations or (generation(),),
        **more,
    )


def key(n: int) -> bytes:
    return b'{"id":%d}' % n


def change(
    n: int, lsn: int, title: str | None = "", *, op: Any = "c", body: str | None = None, price: str = "1", **more: Any
) -> Change:
    after = None if op in ("d", "t") else {"id": n, "title": title, "body": body, "price": price}
    for name in more.get("unchanged", ()):
        assert after is not None
        after.pop(name)
    ordinal = more.pop("ordinal", 1)
    return Change(
        op=op, position=Position(1, lsn, ordinal), key=b"" if op == "t" else key(n), after=after, commit_ms=lsn, **more
    )


class Lookup:
    """What the store would say."""

    def __init__(self) -> None:
        self.stored: dict[bytes, StoredVersion] = {}
        self.by_hash: dict[str, np.ndarray] = {}
        self.calls = 0
        self.fail: Exception | None = None

    async def versions(
        self, table: VectorTable, generation: Generation, keys: Sequence[bytes]
    ) -> Mapping[bytes, StoredVersion]:
        self.calls += 1
        if self.fail:
            raise self.fail
        return {k: self.stored[k] for k in keys if k in self.stored}

    async def vectors(
        self, table: VectorTable, generation: Generation, hashes: Sequence[str]
    ) -> Mapping[str, np.ndarray]:
        self.calls += 1
        if self.fail:
            raise self.fail
        return {h: self.by_hash[h] for h in hashes if h in self.by_hash}


class Rows:
    """The source: rows, and the snapshot that a read gets."""

    def __init__(self) -> None:
        self.rows: dict[bytes, ReadRow] = {}
        self.snapshot = XidSnapshot.parse("1000:1000:")
        self.reads = 0
        self.fail: Exception | None = None

    async def read_rows(
        self, connection: Connection, table: VectorTable, generation: Generation, keys: Sequence[bytes]
    ) -> RowsRead:
        self.reads += 1
        if self.fail:
            raise self.fail
        return RowsRead({k: self.rows[k] for k in keys if k in self.rows}, self.snapshot)


class World:
    def __init__(self, base_url: str, *, kind: str = "openai", limits: Mapping[str, Any] | None = None) -> None:
        self.control = MemoryControl()
        self.log = MemoryLog()
        self.lookup = Lookup()
        self.rows = Rows()
        self.provider = EmbeddingProvider("ep_1", "p", kind, "sk-test-secret", base_url or None, limits=limits or {})
        self.table = vector_table(provider_kind=kind)
        self.settings: Settings = settings_from({})

    async def define(self, *tables: VectorTable) -> None:
        d = self.control.definitions
        await d.put_connection(Connection("conn_1", "c", "postgresql", "managed", "dsn"))
        await d.put_provider(self.provider)
        for table in tables or (self.table,):
            for topic in (changes_topic(table.storage_name), vectors_topic(table.storage_name)):
                await self.log.ensure_topic(topic)
            await d.put_vector_table(table)
        self.table = (tables or (self.table,))[0]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Event]:
        stop = asyncio.Event()
        task = asyncio.create_task(
            service.run(self.settings, stop, control=self.control, log=self.log, lookup=self.lookup, rows=self.rows)
        )
        try:
            yield stop
        finally:
            stop.set()
            await asyncio.wait_for(task, 20)

    @asynccontextmanager
    async def killed(self) -> AsyncIterator[None]:
        """Runs the role and ends it as a kill would: nothing is finished."""
        task = asyncio.create_task(
            service.run(
                self.settings, asyncio.Event(), control=self.control, log=self.log, lookup=self.lookup, rows=self.rows
            )
        )
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def put(self, *changes: Change, table: VectorTable | None = None) -> None:
        topic = changes_topic((table or self.table).storage_name)
        records = [Record(c.key or None, wire.encode_change(c), 0 if c.op == "t" else None) for c in changes]
        await self.log.producer().append(topic, records)

    async def outputs(self, table: VectorTable | None = None) -> list[VectorRecord]:
        topic = vectors_topic((table or self.table).storage_name)
        out = []
        for partition, end in (await self.log.end_offsets(topic)).items():
            out += [wire.decode_vector(r.key, r.value) async for r in self.log.read(topic, partition, 0, end)]
        return out

    async def lag(self, table: VectorTable | None = None) -> int:
        name = (table or self.table).storage_name
        ends = await self.log.end_offsets(changes_topic(name))
        done = await self.log.committed(changes_topic(name), embedder_group(name))
        return sum(end - done[p] for p, end in ends.items())

    async def drained(self) -> None:
        async def empty() -> bool:
            return await self.lag() == 0

        await eventually(empty)

    async def store_all(self) -> None:
        """What a sink would have done with all outputs so far; its offsets are committed."""
        for record in await self.outputs():
            if record.op == "upsert":
                hashes = tuple(c.hash for c in record.chunks)
                self.lookup.stored[record.key] = StoredVersion(record.position, True, hashes)
                for chunk in record.chunks:
                    assert chunk.vector is not None
                    self.lookup.by_hash[chunk.hash] = chunk.vector
        topic = vectors_topic(self.table.storage_name)
        await self.log.reset(topic, sink_group(self.table.storage_name), await self.log.end_offsets(topic))

    def set_limits(self, **limits: Any) -> None:
        self.provider = replace(self.provider, limits={**self.provider.limits, **limits})
