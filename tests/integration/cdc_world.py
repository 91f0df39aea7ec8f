"""A reader on a real source, with the control database and the log in memory; and the fold of its records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import psycopg

from cdc.reader import Reader
from cdc.stream import Stream
from tests.plugins.eventually import eventually
from walvec.contracts.changes import Change
from walvec.contracts.wire import decode_change
from walvec.definitions.memory import MemoryControl
from walvec.definitions.model import Column, Connection, EmbeddingProvider, Generation, SourceColumn, VectorTable
from walvec.runtime.settings import Settings, settings_from
from walvec.transport.memory import MemoryLog
from walvec.transport.records import changes_topic

CODECS = {23: "int", 20: "int", 16: "bool", 1700: "numeric", 114: "json", 3802: "json", 701: "float"}
CONNECTION = "conn_abcdef12"


def column(name: str, type_oid: int = 25) -> SourceColumn:
    return SourceColumn(name, "text", type_oid, "text", CODECS.get(type_oid, "text"))


def settings(**cdc: Any) -> Settings:
    return settings_from({"cdc": {"status_interval_seconds": 0.05, "heartbeat_interval_seconds": 0.2, **cdc}})


def vector_table(
    source: str,
    *,
    key: Sequence[SourceColumn] = (column("id", 23),),
    columns: Sequence[SourceColumn] = (column("name"),),
    metadata: Sequence[SourceColumn] = (),
    schema: str = "public",
    table_id: str = "vt_00000001",
    **more: Any,
) -> VectorTable:
    generation = Generation(
        1,
        "active",
        "m",
        4,
        (*(Column(c.name, "embedding") for c in columns), *(Column(c.name, "metadata") for c in metadata)),
        tuple(key),
        tuple({c.name: c for c in (*key, *columns, *metadata)}.values()),
    )
    return VectorTable(
        table_id,
        f"t{table_id[-1]}",
        CONNECTION,
        "prov_1",
        "static",
        schema,
        source,
        "pgvector",
        "managed",
        (generation,),
        **more,
    )


@dataclass
class World:
    """One source, its reader, and what arrived."""

    dsn: str
    settings: Settings = field(default_factory=settings)
    control: MemoryControl = field(default_factory=MemoryControl)
    log: MemoryLog = field(default_factory=MemoryLog)
    stream: Stream = field(default_factory=Stream)
    slot: str = "walvec_abcdef12"

    async def define(self, *tables: VectorTable, **connection: Any) -> None:
        await self.control.definitions.put_connection(
            Connection(CONNECTION, "src", "postgresql", "managed", self.dsn, **connection)
        )
        await self.control.definitions.put_provider(EmbeddingProvider("prov_1", "p", "static"))
        for table in tables:
            await self.control.definitions.put_vector_table(table)

    @asynccontextmanager
    async def reading(self, *, wait: bool = True) -> AsyncIterator[None]:
        stop = asyncio.Event()
        task = asyncio.create_task(Reader(CONNECTION, self.control, self.log, self.settings, self.stream).run(stop))
        try:
            if wait:
                await eventually(lambda: self.stream.live or (task.done() and task.result()))
            yield
        finally:
            stop.set()
            await task

    async def routed(self, table: VectorTable) -> None:
        await eventually(lambda: self.stream.live and table.id in self.stream.routed)

    async def sql(self, *statements: str) -> None:
        """All in one transaction."""
        async with await psycopg.AsyncConnection.connect(self.dsn) as connection:
            for statement in statements:
                await connection.execute(statement)

    async def one(self, statement: str) -> Any:
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            row = await (await connection.execute(statement)).fetchone()
            return row[0] if row else None

    async def caught_up(self) -> None:
        """Everything committed before the call has been delivered."""
        from walvec.contracts.position import parse_lsn

        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            row = await (
                await connection.execute("SELECT pg_logical_emit_message(true, 'walvec', '{}')::text")
            ).fetchone()
            assert row is not None
        await eventually(lambda: self.stream.live and self.stream.received >= parse_lsn(row[0]))

    async def changes(self, table: VectorTable) -> list[Change]:
        """In order of position. A delivered record is appended within moments."""
        topic = changes_topic(table.storage_name)
        await self.caught_up()
        await eventually(self._stored_all)
        found = [
            decode_change(r.key, r.value)
            for p in await self.log.end_offsets(topic)
            async for r in self.log.read(topic, p, 0)
        ]
        return sorted(found, key=lambda c: c.position)

    async def _stored_all(self) -> bool:
        return (await self.control.progress.get(CONNECTION)).lsn >= self.stream.received or await self._beat()

    async def _beat(self) -> bool:
        reached = self.stream.received
        await eventually(lambda: self._stored(reached))
        return True

    async def _stored(self, lsn: int) -> bool:
        return (await self.control.progress.get(CONNECTION)).lsn >= lsn

    async def rows(self, table: VectorTable) -> dict[bytes, dict[str, Any]]:
        return fold(await self.changes(table))


def fold(changes: Sequence[Change]) -> dict[bytes, dict[str, Any]]:
    """Rows after all changes, as a store that guards by position would have them."""
    rows: dict[bytes, dict[str, Any]] = {}
    for c in sorted(changes, key=lambda c: c.position):
        if c.op == "t":
            rows.clear()
        elif c.op == "d":
            rows.pop(c.key, None)
        else:
            assert c.after is not None
            rows[c.key] = {**{n: rows.get(c.key, {}).get(n) for n in c.unchanged}, **c.after}
    return rows


def key(**columns: Any) -> bytes:
    return orjson.dumps(columns)
