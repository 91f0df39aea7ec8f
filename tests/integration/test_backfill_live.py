"""The whole role: reader and jobs on one slot. The newest record of every key is the table's row."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from cdc import service
from tests.plugins.postgres import PostgresDatabase
from tests.plugins.source_table import consuming, control_with, records, vector_table
from walvec.contracts.changes import Change
from walvec.definitions.memory import MemoryControl
from walvec.definitions.model import Column
from walvec.runtime.settings import Settings, settings_from
from walvec.transport.memory import MemoryLog

COLUMNS = [Column("doc", "embedding"), Column("n", "metadata")]
SETTINGS = settings_from({"cdc": {"backfill_chunk_rows": 50, "heartbeat_interval_seconds": 0.2}})


@asynccontextmanager
async def role(control: MemoryControl, log: MemoryLog, settings: Settings = SETTINGS) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(service.run(settings, stop, control=control, log=log))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, 20)


def newest(changes: list[Change]) -> dict[bytes, tuple[str, int]]:
    """What a store that guards by position ends with."""
    best: dict[bytes, Change] = {}
    floor = max((c.position for c in changes if c.op == "t"), default=None)
    for change in changes:
        if change.op != "t" and (change.key not in best or change.position > best[change.key].position):
            best[change.key] = change
    return {
        k: (c.after["doc"], c.after["n"])
        for k, c in best.items()
        if c.after is not None and (floor is None or c.position >= floor)
    }


def table_rows(postgres: PostgresDatabase) -> dict[bytes, tuple[str, int]]:
    return {
        b'{"id":%d}' % int(str(i)): (str(d), int(str(n))) for i, d, n in postgres.execute("SELECT id, doc, n FROM t")
    }


async def test_backfill_beside_writers_ends_equal(postgres: PostgresDatabase, eventually: Callable[..., Any]) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text, n int)")
    postgres.execute("INSERT INTO t SELECT i, 'old ' || i, 0 FROM generate_series(1, 1500) i")
    table = await vector_table(postgres.dsn, "t", COLUMNS)
    control, log = await control_with(postgres.dsn, table), MemoryLog()
    done = threading.Event()

    def write() -> None:
        n = 0
        with psycopg.connect(postgres.dsn, autocommit=True) as other:
            while not done.is_set():
                n += 1
                key = n * 7919 % 1500 + 1
                with other.transaction():
                    other.execute("UPDATE t SET doc = %s, n = %s WHERE id = %s", (f"new {n}", n, key))
                    other.execute("DELETE FROM t WHERE id = %s", ((n * 31) % 1500 + 1,))
                    other.execute("INSERT INTO t VALUES (%s, %s, %s)", (2000 + n, f"grown {n}", n))
                if n % 50 == 0:
                    other.execute("UPDATE t SET id = id + 1000000 WHERE id = %s", (2000 + n,))

    async def backfilled() -> bool:
        return control.feed.current.vector_tables[table.id].backfilled

    async with consuming(log, table), role(control, log):
        writer = threading.Thread(target=write)
        writer.start()
        try:
            await eventually(backfilled, 30)
        finally:
            done.set()
            await asyncio.to_thread(writer.join)

        async def equal() -> bool:
            return newest(await records(log, table)) == table_rows(postgres)

        await eventually(equal)
    assert {c.op for c in await records(log, table)} >= {"r", "u", "d", "c"}


async def test_role_ended_in_mid_backfill_goes_on(postgres: PostgresDatabase, eventually: Callable[..., Any]) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text, n int)")
    postgres.execute("INSERT INTO t SELECT i, 'old ' || i, 0 FROM generate_series(1, 1000) i")
    table = await vector_table(postgres.dsn, "t", COLUMNS)
    control, log = await control_with(postgres.dsn, table), MemoryLog()
    slow = settings_from({"cdc": {"backfill_chunk_rows": 50, "backfill_max_backlog": 60}})

    async def stopped() -> bool:
        return any("embedder" in t.progress.get("waiting", "") for t in await control.tasks.open_tasks([table.id]))

    async with role(control, log, slow):
        await eventually(stopped)
    postgres.execute("DELETE FROM t WHERE id % 3 = 0; UPDATE t SET doc = 'while it was down' WHERE id % 3 = 1")

    async def finished() -> bool:
        return control.feed.current.vector_tables[table.id].backfilled

    async with consuming(log, table), role(control, log):
        await eventually(finished)

        async def equal() -> bool:
            return newest(await records(log, table)) == table_rows(postgres)

        await eventually(equal)


async def test_slot_lost_is_read_again_and_swept(postgres: PostgresDatabase, eventually: Callable[..., Any]) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text, n int)")
    postgres.execute("INSERT INTO t SELECT i, 'old ' || i, 0 FROM generate_series(1, 300) i")
    table = await vector_table(postgres.dsn, "t", COLUMNS)
    control, log = await control_with(postgres.dsn, table), MemoryLog()

    async def finished() -> bool:
        now = control.feed.current.vector_tables[table.id]
        return now.backfilled and not await control.tasks.open_tasks([table.id])

    async with consuming(log, table), role(control, log):
        await eventually(finished)
    slot = control.feed.current.connections[table.connection_id].slot
    postgres.execute("SELECT pg_drop_replication_slot(%s)", slot)
    postgres.execute("DELETE FROM t WHERE id % 3 = 0; UPDATE t SET doc = 'in the gap' WHERE id % 3 = 1")
    async with consuming(log, table), role(control, log):

        async def equal() -> bool:
            return newest(await records(log, table)) == table_rows(postgres)

        await eventually(equal)
        await eventually(finished)
