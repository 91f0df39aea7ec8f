"""Mode platform: vectors in the source database itself, through the API; and what it says where that cannot be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from embedder import service as embedder_service
from sink import service as sink_service
from sink.stores.registry import Stores
from tests.integration.api_world import ApiWorld, api_world, left_at_source, query
from tests.plugins.eventually import eventually
from tests.plugins.postgres import PostgresDatabase

EXTENSION = "SELECT 1 FROM pg_extension WHERE extname = 'vector'"


@pytest.fixture
async def world(tmp_path: Path, postgres: PostgresDatabase) -> AsyncIterator[ApiWorld]:
    async with api_world(tmp_path, control=postgres.another(), store=postgres.another()) as made:
        yield made


@asynccontextmanager
async def pipeline(world: ApiWorld) -> AsyncIterator[None]:
    """All roles."""
    stop = asyncio.Event()
    common: dict[str, Any] = {"control": world.control, "log": world.log}
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(world.streaming())
        stores = Stores(world.settings, world.control)
        stack.push_async_callback(stores.close)
        roles = [
            asyncio.create_task(embedder_service.run(world.settings, stop, lookup=stores, rows=world.source, **common)),
            asyncio.create_task(sink_service.run(world.settings, stop, stores=stores, **common)),
        ]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*roles)


def fill(dsn: str) -> None:
    query(dsn, "CREATE TABLE items (id int PRIMARY KEY, name text, price float8)")
    query(dsn, "INSERT INTO items VALUES (1, 'warm wool jacket', 90), (2, 'steel kettle', 30), (3, 'red kite', 12)")


def joined(dsn: str) -> list[tuple[Any, ...]]:
    return query(
        dsn,
        "SELECT i.id, e.embedded_text, e.price FROM items i JOIN walvec.items e USING (id) ORDER BY i.id",
    )


@pytest.mark.parametrize("mode", ["platform", "managed"])
async def test_from_connection_to_query_and_away_again(world: ApiWorld, postgres: PostgresDatabase, mode: str) -> None:
    source = postgres.dsn
    fill(source)
    made = await world.ask(
        "POST",
        "/v1/providers/postgresql/connections",
        {"name": "shop", "mode": mode, "credentials": {"url": source}},
        201,
    )
    tested = await world.ask("POST", f"/v1/connections/{made['id']}/test")
    assert (tested["status"], tested["ready"]) == ("ok", True), tested
    assert ("vector_extension" in {c["name"] for c in tested["checks"]}) == (mode == "platform")
    table = await world.table(made["id"], await world.provider(), mode=mode)
    assert table["mode"] == mode
    assert (table["platform_vector_ref"] is None) == (mode == "managed")
    assert (table["qdrant_collection"] is None) == (mode == "platform")
    path = f"/v1/vector-tables/{table['id']}"
    async with pipeline(world):
        await world.ask("POST", f"{path}/backfill")
        await eventually(lambda: synced(world, path, 3), timeout=40)
        query(source, "UPDATE items SET name = 'silk scarf' WHERE id = 3")
        query(source, "DELETE FROM items WHERE id = 2")
        lsn = query(source, "SELECT pg_current_wal_lsn()::text")[0][0]
        await world.ask("POST", f"{path}/sync/drain", {"lsn": lsn, "timeout": 30})
        found = await world.ask("POST", f"{path}/query", {"query": "something warm", "limit": 2})
        assert [r["id"] for r in found["results"]] == ["1", "3"]
        if mode == "platform":
            assert joined(source) == [(1, "warm wool jacket", 90.0), (3, "silk scarf", 12.0)]
            # what walvec writes there is not streamed back
            assert query(source, "SELECT schemaname, tablename FROM pg_publication_tables") == [("public", "items")]
            before = await world.control.progress.get(made["id"])
            assert before.lsn > 0
            names = {t.topic for t in await world.log.topics()}
            assert names == {t for t in names if table["id"].removeprefix("vt_")[:8] in t}
        else:
            assert query(source, "SELECT 1 FROM pg_namespace WHERE nspname = 'walvec'") == []
        await world.ask("DELETE", path, status=204)
        assert left_at_source(source) == []
        assert await world.removals() == []
    assert left_at_source(source) == []
    assert query(source, "SELECT relname FROM pg_class WHERE relname LIKE '%walvec%' OR relname LIKE 'vt_%'") == []
    assert query(source, "SELECT id FROM items ORDER BY id") == [(1,), (3,)]


async def synced(world: ApiWorld, path: str, rows: int) -> bool:
    found = await world.ask("GET", f"{path}/sync/status")
    return bool(found["sync_status"] == "synced" and found["synced_rows"] == rows)


async def test_what_is_missing_is_told_with_the_statement_that_mends_it(
    world: ApiWorld, postgres: PostgresDatabase
) -> None:
    source, role = postgres.dsn, f"reader_{postgres.name}"
    fill(source)
    query(source, "DROP EXTENSION vector")
    query(source, f"CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'x'")
    query(source, f"ALTER TABLE items OWNER TO {role}")
    dsn = make_conninfo(source, user=role, password="x")
    try:
        connection = await world.connection(dsn)
        provider = await world.provider()
        refused = await world.table(connection, provider, mode="platform", status=422)
        message = refused["error"]["message"]
        assert "CREATE EXTENSION vector;" in message
        assert f'GRANT CREATE ON DATABASE "{postgres.name}" TO "{role}";' in message
        assert left_at_source(source) == []
        with psycopg.connect(source, autocommit=True) as admin:
            admin.execute("CREATE EXTENSION vector")
            admin.execute(f'GRANT CREATE ON DATABASE "{postgres.name}" TO "{role}"')
        table = await world.table(connection, provider, mode="platform")
        assert query(source, "SELECT viewname FROM pg_views WHERE schemaname = 'walvec'") == [("items",)]
        await world.ask("DELETE", f"/v1/vector-tables/{table['id']}", status=204)
        assert left_at_source(source) == []
        assert query(source, EXTENSION) == [(1,)]
    finally:
        query(source, f"DROP OWNED BY {role} CASCADE")
        query(source, f"DROP ROLE {role}")


async def test_what_others_keep_in_walvecs_schema_stays(world: ApiWorld, postgres: PostgresDatabase) -> None:
    fill(postgres.dsn)
    connection, provider = await world.connection(postgres.dsn), await world.provider()
    first = await world.table(connection, provider, mode="platform")
    second = await world.table(connection, provider, mode="platform", name="again")
    await world.ask("DELETE", f"/v1/vector-tables/{first['id']}", status=204)
    assert query(postgres.dsn, "SELECT viewname FROM pg_views WHERE schemaname = 'walvec'") == [("again",)]
    query(postgres.dsn, "CREATE TABLE walvec.notes (id int)")
    await world.ask("DELETE", f"/v1/vector-tables/{second['id']}", status=204)
    assert query(postgres.dsn, "SELECT tablename FROM pg_tables WHERE schemaname = 'walvec'") == [("notes",)]
    assert await world.removals() == []
