"""The role as a whole: connections come and go, and leave nothing behind at the source."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from api.removals import Remover
from cdc import service
from cdc.source import SourceAccess
from tests.integration.cdc_world import World, key, vector_table
from tests.plugins.eventually import eventually
from tests.plugins.postgres import PostgresDatabase
from walvec.contracts.wire import decode_change
from walvec.definitions.model import VectorTable
from walvec.transport.records import changes_topic


@asynccontextmanager
async def running(w: World) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(service.run(w.settings, stop, control=w.control, log=w.log))
    try:
        yield
    finally:
        stop.set()
        await task


async def slots(w: World) -> int:
    return int(await w.one("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"))


async def keys(w: World, table: VectorTable) -> set[bytes]:
    topic = changes_topic(table.storage_name)
    if topic not in {t.topic for t in await w.log.topics()}:
        return set()
    return {
        decode_change(r.key, r.value).key for p in await w.log.end_offsets(topic) async for r in w.log.read(topic, p, 0)
    }


@pytest.mark.parametrize("again", [False, True])
async def test_streams_beside_a_backfill_and_leaves_nothing_behind(postgres: PostgresDatabase, again: bool) -> None:
    w = World(postgres.dsn)
    await w.sql("CREATE TABLE items (id int PRIMARY KEY, name text)", "INSERT INTO items VALUES (1, 'read')")
    table = vector_table("items")
    await w.define()
    source = SourceAccess()
    remover = Remover(w.control, cast("Any", NoStore()), w.log, source)
    async with running(w):
        for _ in range(2 if again else 1):
            await w.control.definitions.put_vector_table(table)
            await w.control.tasks.create("backfill", table.id, 1, {})
            await eventually(lambda: slots(w))
            await eventually(lambda: read(w, table, b'{"id":1}'))
            await w.sql("INSERT INTO items VALUES (2, 'streamed') ON CONFLICT (id) DO UPDATE SET name = 'again'")
            await eventually(lambda: read(w, table, key(id=2)))
            # the API's part: the reader has let go, or is ended
            await remover.at_once(await w.control.definitions.delete_vector_table(table.id))
            await eventually(lambda: gone(w))
            assert await w.control.removals.open() == []
    await source.close()


class NoStore:
    """A store in which nothing was made."""

    async def remove(self, table: VectorTable, dsn: str | None) -> None:
        return


async def read(w: World, table: VectorTable, wanted: bytes) -> bool:
    return wanted in await keys(w, table)


async def gone(w: World) -> bool:
    publications = await w.one("SELECT count(*) FROM pg_publication WHERE pubname LIKE 'walvec%'")
    return await slots(w) == 0 and publications == 0
