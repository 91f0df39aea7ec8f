"""A partitioned table and its partitions as source tables: what Postgres sends, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.integration.api_world import ApiWorld, api_world, query
from tests.plugins.eventually import eventually
from tests.plugins.postgres import PostgresDatabase

TABLES = (
    "CREATE TABLE orders (id int, name text, price float8, PRIMARY KEY (id)) PARTITION BY RANGE (id)",
    "CREATE TABLE low PARTITION OF orders FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id)",
    "CREATE TABLE lowest PARTITION OF low FOR VALUES FROM (0) TO (10)",
    "CREATE TABLE high PARTITION OF orders FOR VALUES FROM (100) TO (200)",
)


@pytest.fixture
async def world(tmp_path: Path, postgres: PostgresDatabase) -> AsyncIterator[ApiWorld]:
    async with api_world(tmp_path, control=postgres.another(), store=postgres.another()) as made:
        yield made


@pytest.fixture
def source(postgres: PostgresDatabase) -> str:
    for statement in TABLES:
        query(postgres.dsn, statement)
    return postgres.dsn


def test_postgres_tells_a_partitions_changes_under_its_root_alone(source: str) -> None:
    query(source, "CREATE PUBLICATION p FOR TABLE ONLY orders, ONLY lowest WITH (publish_via_partition_root = true)")
    assert query(source, "SELECT tablename::text FROM pg_publication_tables") == [("orders",)]
    with psycopg.connect(source, autocommit=True) as session:
        session.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput', temporary => true)")
        session.execute("INSERT INTO lowest VALUES (1, 'one', 1)")
        found = session.execute(
            "SELECT data FROM pg_logical_slot_get_binary_changes('s', NULL, NULL, 'proto_version', '1',"
            " 'publication_names', 'p')"
        ).fetchall()
    # Relation messages come for both: what counts is whose change it is
    changed = [int.from_bytes(bytes(data)[1:5]) for (data,) in found if bytes(data)[:1] == b"I"]
    assert [(oid,) for oid in changed] == query(source, "SELECT 'orders'::regclass::oid::bigint")


async def make(world: ApiWorld, connection: str, provider: str, name: str, status: int = 201, **more: Any) -> Any:
    return await world.table(connection, provider, name=name, source_table=f"public.{name}", status=status, **more)


@pytest.mark.parametrize(("first", "second"), [("orders", "lowest"), ("lowest", "orders"), ("low", "lowest")])
@pytest.mark.parametrize("published", [False, True])
async def test_a_table_and_its_partition_are_refused_side_by_side(
    world: ApiWorld, source: str, first: str, second: str, published: bool
) -> None:
    connection, provider = await world.connection(source), await world.provider()
    made = await make(world, connection, provider, first)
    if published:
        async with world.streaming():
            await eventually(lambda: query(source, "SELECT 1 FROM pg_publication_tables"))
    told = await make(world, connection, provider, second, 422)
    assert told["error"]["code"] == "validation_error"
    for name in (first, second):
        assert f"'{name}'" in told["error"]["message"]
        assert f"public.{name}" in told["error"]["message"]
    document = {
        "vector_tables": [
            {
                "name": second,
                "connection": "shop",
                "embedding_provider": "local",
                "source_table": f"public.{second}",
                "columns": [{"name": "name", "role": "embedding"}],
            }
        ],
        "connections": [{"name": "shop", "url": source}],
        "embedding_providers": [{"name": "local", "provider": "static"}],
    }
    told = await world.ask("POST", "/v1/apply", {"document": document}, 422)
    assert f"'{first}'" in told["error"]["message"]
    # what is there is none the worse, and can be changed
    changed = await world.ask("PUT", f"/v1/vector-tables/{made['id']}", {"keep_embedding_columns": True})
    assert changed["name"] == first


async def test_neighbours_and_other_connections_are_taken(world: ApiWorld, source: str) -> None:
    connection, provider = await world.connection(source), await world.provider()
    await make(world, connection, provider, "high")
    await make(world, connection, provider, "lowest")
    other = await world.connection(source, name="again")
    await make(world, other, provider, "orders")


async def test_a_file_that_names_both_is_refused_before_anything_is_made(world: ApiWorld, source: str) -> None:
    await world.connection(source)
    await world.provider()
    tables = [
        {
            "name": name,
            "connection": "shop",
            "embedding_provider": "local",
            "source_table": f"public.{name}",
            "columns": [{"name": "name", "role": "embedding"}],
        }
        for name in ("orders", "high")
    ]
    document = {
        "vector_tables": tables,
        "connections": [{"name": "shop", "url": source}],
        "embedding_providers": [{"name": "local", "provider": "static"}],
    }
    told = await world.ask("POST", "/v1/apply", {"document": document}, 422)
    assert "'orders'" in told["error"]["message"]
    assert "'high'" in told["error"]["message"]
    assert (await world.ask("GET", "/v1/vector-tables"))["data"] == []


async def test_a_table_that_became_a_partition_cannot_be_changed_until_one_of_the_two_goes(
    world: ApiWorld, source: str
) -> None:
    query(source, "CREATE TABLE alone (id int PRIMARY KEY, name text, price float8)")
    connection, provider = await world.connection(source), await world.provider()
    alone = await make(world, connection, provider, "alone")
    root = await make(world, connection, provider, "orders")
    query(source, "ALTER TABLE orders ATTACH PARTITION alone FOR VALUES FROM (200) TO (300)")
    change = {"columns": [{"name": "price", "role": "metadata"}, {"name": "name", "role": "embedding"}]}
    told = await world.ask("PUT", f"/v1/vector-tables/{alone['id']}", change, 422)
    assert "'alone'" in told["error"]["message"]
    assert "'orders'" in told["error"]["message"]
    await world.ask("PUT", f"/v1/vector-tables/{root['id']}", {"keep_embedding_columns": True})
    await world.ask("DELETE", f"/v1/vector-tables/{root['id']}", status=204)
    await world.ask("PUT", f"/v1/vector-tables/{alone['id']}", change)
