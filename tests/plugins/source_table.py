"""Vector tables over a real source table, and a stream that follows a real slot by SQL functions.

Not a pytest plugin: imported by the tests of reading by SELECT.
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import psycopg

from cdc import catalog
from cdc.session import open_session
from cdc.stream import Stream
from tests.plugins.postgres import PostgresDatabase
from walvec.contracts.changes import Change
from walvec.contracts.errors import LogUnavailable
from walvec.contracts.wire import decode_change
from walvec.definitions.memory import MemoryControl
from walvec.definitions.model import (
    Column,
    Connection,
    EmbeddingProvider,
    Generation,
    SourceColumn,
    SourceProgress,
    VectorTable,
)
from walvec.transport.ports import Log
from walvec.transport.records import changes_topic, embedder_group, sink_group, vectors_topic

CONNECTION = "conn_12345678"


def connection(dsn: str) -> Connection:
    return Connection(CONNECTION, "shop", "postgresql", "managed", dsn)


async def vector_table(
    dsn: str,
    source: str,
    columns: Sequence[Column],
    *,
    table_id: str = "vt_abcdef01",
    key: Sequence[str] | None = None,
    backfill: str = "auto",
    backfilled: bool = False,
) -> VectorTable:
    session = await open_session(dsn)
    try:
        found = await catalog.inspect(session, source)
    finally:
        await session.close()
    as_source = {
        c.name: SourceColumn(c.name, c.type, c.type_oid, c.base_type, c.codec, c.nullable, c.user_defined)
        for c in found.columns
    }
    generation = Generation(
        1,
        "active",
        "minilm-static-256",
        256,
        tuple(columns),
        tuple(as_source[k] for k in (key or found.key)),
        tuple(as_source.values()),
    )
    return VectorTable(
        table_id,
        found.name,
        CONNECTION,
        "prov_1",
        "static",
        found.schema,
        found.name,
        "pgvector",
        "managed",
        (generation,),
        backfill=backfill,  # type: ignore[arg-type]
        backfilled=backfilled,
    )


async def control_with(dsn: str, *tables: VectorTable) -> MemoryControl:
    control = MemoryControl()
    await control.definitions.put_connection(connection(dsn))
    await control.definitions.put_provider(EmbeddingProvider("prov_1", "local", "static"))
    for table in tables:
        await control.definitions.put_vector_table(table)
    await control.progress.put(CONNECTION, SourceProgress(log_identity="log", slot_created_lsn=1))
    return control


@dataclass
class Follower:
    """Feeds a Stream from a slot: commits with their xids, messages, in order."""

    stream: Stream
    dsn: str
    slot: str
    commits: list[tuple[int, int]] = field(default_factory=list)

    async def run(self) -> None:
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as session:
            xid = lsn = 0
            while True:
                rows = await (
                    await session.execute(
                        "SELECT data FROM pg_logical_slot_get_binary_changes(%s, NULL, NULL,"
                        " 'proto_version', '1', 'publication_names', 'pub', 'messages', 'true')",
                        (self.slot,),
                    )
                ).fetchall()
                for (data,) in rows:
                    kind = data[:1]
                    if kind == b"B":
                        lsn, _, xid = struct.unpack_from(">QqI", data, 1)
                    elif kind == b"C":
                        self.commits.append((xid, lsn))
                        self.stream.delivered.add(xid, lsn)
                        self.stream.advance(struct.unpack_from(">Q", data, 10)[0])
                    elif kind == b"M":
                        self.stream.advance(struct.unpack_from(">Q", data, 2)[0])
                await asyncio.sleep(0.01)


@asynccontextmanager
async def following(postgres: PostgresDatabase, *tables: VectorTable, fresh: bool = False) -> AsyncIterator[Follower]:
    """A live stream over a new slot and an all-tables publication."""
    postgres.execute("CREATE PUBLICATION pub FOR ALL TABLES")
    slot = f"slot_{postgres.name}"
    postgres.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", slot)
    horizon = int(str(postgres.execute("SELECT pg_current_xact_id()::text")[0][0]))
    stream = Stream()
    stream.restart(epoch=0, at=0, horizon=horizon, fresh=fresh)
    for table in tables:
        stream.route(table.id, frozenset(g.number for g in table.live_generations))
    follower = Follower(stream, postgres.dsn, slot)
    task = asyncio.create_task(follower.run())
    try:
        yield follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        stream.stop()


async def records(log: Log, table: VectorTable) -> list[Change]:
    """Everything in `.changes`, by partition."""
    topic = changes_topic(table.storage_name)
    found = []
    for partition in await log.end_offsets(topic):
        async for record in log.read(topic, partition, 0):
            found.append(decode_change(record.key, record.value))  # noqa: PERF401
    return found


async def consume(log: Log, table: VectorTable) -> None:
    """Commits all that is there, as an embedder and a sink that have done their work."""
    name = table.storage_name
    for topic, group in ((changes_topic(name), embedder_group(name)), (vectors_topic(name), sink_group(name))):
        ends = await log.end_offsets(topic)
        if await log.committed(topic, group) != ends:  # each commit wakes whoever waits for the log
            await log.reset(topic, group, ends)


@asynccontextmanager
async def consuming(log: Log, table: VectorTable) -> AsyncIterator[None]:
    async def loop() -> None:
        await log.ensure_topic(changes_topic(table.storage_name))
        await log.ensure_topic(vectors_topic(table.storage_name))
        while True:
            with suppress(LogUnavailable):  # a broker's coordinator may not be ready yet
                await consume(log, table)
            await log.wait_for_append(0.05)

    task = asyncio.create_task(loop())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
