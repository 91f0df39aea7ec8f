"""What a deleted vector table leaves behind goes, also when the source or the store is away at that moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.api_world import ApiWorld, api_world, left_at_source, query
from tests.plugins.eventually import eventually
from tests.plugins.postgres import PostgresDatabase
from walvec.definitions.model import SourceProgress


@pytest.fixture
async def world(tmp_path: Path, postgres: PostgresDatabase) -> AsyncIterator[ApiWorld]:
    async with api_world(tmp_path, control=postgres.another(), store=postgres.dsn) as made:
        yield made


def fill(dsn: str) -> None:
    query(dsn, "CREATE TABLE items (id int PRIMARY KEY, name text, price float8)")
    query(dsn, "INSERT INTO items SELECT i, 'item ' || i, i FROM generate_series(1, 5) i")


def stored(dsn: str) -> list[str]:
    return [r[0] for r in query(dsn, "SELECT relname FROM pg_class WHERE relname LIKE 'vt_%' AND relkind = 'r'")]


def slots(dsn: str) -> list[str]:
    return [r[0] for r in query(dsn, "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()")]


def published(dsn: str) -> list[str]:
    return [r[0] for r in query(dsn, "SELECT tablename FROM pg_publication_tables ORDER BY 1")]


async def test_the_last_table_takes_slot_and_publication_with_it_at_once(
    world: ApiWorld, postgres: PostgresDatabase
) -> None:
    source = postgres.another()
    fill(source)
    connection, provider = await world.connection(source), await world.provider()
    async with world.streaming():
        first = await world.table(connection, provider)
        query(source, "CREATE TABLE others (id int PRIMARY KEY, name text, price float8)")
        other = await world.table(connection, provider, name="others", source_table="public.others")
        await eventually(lambda: published(source) == ["items", "others"])
        await world.ask("DELETE", f"/v1/vector-tables/{other['id']}", status=204)
        await eventually(lambda: published(source) == ["items"])
        assert len(slots(source)) == 1
        assert await world.removals() == []
        await world.ask("DELETE", f"/v1/vector-tables/{first['id']}", status=204)
        assert left_at_source(source) == []
        assert stored(postgres.dsn) == []
        assert await world.log.topics() == []
        assert await world.removals() == []
        # the same again: nothing of the former life is believed in
        again = await world.table(connection, provider)
        await eventually(lambda: published(source) == ["items"])
        await eventually(lambda: slots(source))
        tasks = await world.ask("GET", f"/v1/tasks?table={again['id']}")
        assert tasks["data"] == []
        await world.ask("DELETE", f"/v1/vector-tables/{again['id']}", status=204)
        assert left_at_source(source) == []
    await world.ask("DELETE", f"/v1/connections/{connection}", status=204)
    assert await world.removals() == []


async def test_a_table_is_deleted_while_its_source_is_away(
    world: ApiWorld, postgres: PostgresDatabase, own_postgres: PostgresDatabase
) -> None:
    fill(own_postgres.dsn)
    connection, provider = await world.connection(own_postgres.dsn), await world.provider()
    async with world.streaming(), world.removing():
        table = await world.table(connection, provider)
        await eventually(lambda: slots(own_postgres.dsn))
        own_postgres.server.stop()
        await world.ask("DELETE", f"/v1/vector-tables/{table['id']}", status=204)
        (left,) = await world.removals()
        assert (left["target_id"], left["progress"]["what"]) == (connection, "slot")
        tried = await eventually(lambda: failed(world))
        assert "the source" in tried["last_error"]
        assert (await world.ask("GET", f"/v1/tasks/{left['id']}"))["status"] == "running"
        assert stored(postgres.dsn) == []
        # the connection may go meanwhile: what is left keeps what it needs
        await world.ask("DELETE", f"/v1/connections/{connection}", status=204)
        own_postgres.server.start()
        await eventually(lambda: left_at_source(own_postgres.dsn) == [], timeout=40)
        await eventually(lambda: nothing_left(world))
        await world.ask("GET", f"/v1/tasks/{left['id']}", status=404)


async def failed(world: ApiWorld) -> dict[str, str] | None:
    return next((r for r in await world.removals() if r["last_error"]), None)


async def nothing_left(world: ApiWorld) -> bool:
    return await world.removals() == []


async def test_a_table_is_deleted_while_the_store_is_away(
    tmp_path: Path, postgres: PostgresDatabase, own_postgres: PostgresDatabase
) -> None:
    source = postgres.another()
    fill(source)
    async with api_world(tmp_path, control=postgres.dsn, store=own_postgres.dsn) as world, world.removing():
        connection, provider = await world.connection(source), await world.provider()
        table = await world.table(connection, provider)
        assert len(stored(own_postgres.dsn)) == 1
        own_postgres.server.stop()
        await world.ask("DELETE", f"/v1/vector-tables/{table['id']}", status=204)
        left = await eventually(lambda: failed(world))
        assert (left["target_id"], left["progress"]["what"]) == (table["id"], "storage")
        own_postgres.server.start()
        await eventually(lambda: nothing_left(world), timeout=40)
        assert stored(own_postgres.dsn) == []


async def test_a_new_table_takes_the_slot_back_before_it_was_dropped(
    world: ApiWorld, postgres: PostgresDatabase, own_postgres: PostgresDatabase
) -> None:
    fill(own_postgres.dsn)
    connection, provider = await world.connection(own_postgres.dsn, on_slot_loss="halt"), await world.provider()
    async with world.streaming(), world.removing():
        table = await world.table(connection, provider)
        await eventually(lambda: slots(own_postgres.dsn))
        # as if the source had been away: the definition goes, and nobody works at the removal yet
        async with world.control.removals.claim():
            removals = await world.control.definitions.delete_vector_table(table["id"])
        assert len(removals) == 3
        again = await world.table(connection, provider, name="again")
        await eventually(lambda: read(world, connection))
        await eventually(lambda: nothing_left(world))
        assert len(slots(own_postgres.dsn)) == 1
        assert published(own_postgres.dsn) == ["items"]
        shown = await world.ask("GET", f"/v1/connections/{connection}")
        assert shown["status"] == "connected", shown
        await world.ask("DELETE", f"/v1/vector-tables/{again['id']}", status=204)
        await eventually(lambda: left_at_source(own_postgres.dsn) == [])


async def read(world: ApiWorld, connection: str) -> bool:
    """A stream is being read, and what is stored of it is its own."""
    return (await world.control.progress.get(connection)).lsn > 0


async def test_a_slot_that_was_dropped_and_not_yet_forgotten_is_no_loss_for_a_new_table(
    world: ApiWorld, postgres: PostgresDatabase
) -> None:
    """Killed between dropping the slot and writing so down: the policy `halt` must not stop the next table."""
    source = postgres.another()
    fill(source)
    connection, provider = await world.connection(source, on_slot_loss="halt"), await world.provider()
    async with world.streaming():
        table = await world.table(connection, provider)
        await eventually(lambda: read(world, connection))
        await world.control.definitions.delete_vector_table(table["id"])
        snapshot = await world.control.definitions.snapshot()
        await world.source.release(snapshot.connections[connection])
        assert (await world.control.progress.get(connection)) != SourceProgress()
        await world.table(connection, provider, name="again")
        await eventually(lambda: slots(source))
        await eventually(lambda: read(world, connection))
        shown = await world.ask("GET", f"/v1/connections/{connection}")
        assert shown["status"] == "connected", shown


async def test_a_reader_that_comes_late_leaves_nothing_at_the_source(
    world: ApiWorld, postgres: PostgresDatabase
) -> None:
    """It knows the table from its feed alone; the table and its removal are gone already."""
    source = postgres.another()
    fill(source)
    connection, provider = await world.connection(source), await world.provider()
    table = await world.table(connection, provider)
    entered = asyncio.Event()
    snapshot, gone = world.control.definitions.snapshot, asyncio.Event()

    async def late() -> object:
        found = await snapshot()
        if found.streamed_tables(connection) and not gone.is_set():
            entered.set()
            await gone.wait()
        return found

    async with world.streaming():
        world.control.definitions.snapshot = late  # type: ignore[method-assign]
        try:
            await asyncio.wait_for(entered.wait(), 20)
            world.control.definitions.snapshot = snapshot  # type: ignore[method-assign]
            await world.ask("DELETE", f"/v1/vector-tables/{table['id']}", status=204)
        finally:
            world.control.definitions.snapshot = snapshot  # type: ignore[method-assign]
            gone.set()
        await eventually(lambda: nothing_left(world))
        await eventually(lambda: left_at_source(source) == [])
