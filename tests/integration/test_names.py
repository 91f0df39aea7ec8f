"""Vector tables whose names are written in any script, side by side in one store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from tests.integration.api_world import COLUMNS, ApiWorld, api_world, query
from tests.plugins.postgres import PostgresDatabase
from walvec.definitions.model import VectorTable


@pytest.fixture
async def world(tmp_path: Path, postgres: PostgresDatabase) -> AsyncIterator[ApiWorld]:
    query(postgres.dsn, "CREATE TABLE items (id int PRIMARY KEY, name text, price float8)")
    async with api_world(tmp_path, control=postgres.another(), store=postgres.another()) as made:
        yield made


async def stored(world: ApiWorld, table_id: str) -> VectorTable:
    return (await world.control.definitions.snapshot()).vector_tables[table_id]


@pytest.mark.parametrize(("one", "two"), [("Größe", "Grüße"), ("商品", "顧客"), ("हिन्दी", "हिन्दू")])
@pytest.mark.parametrize("mode", ["managed", "platform"])
async def test_two_names_that_ascii_cannot_tell_apart(
    world: ApiWorld, postgres: PostgresDatabase, one: str, two: str, mode: str
) -> None:
    connection, provider = await world.connection(postgres.dsn, mode=mode), await world.provider()
    made = [await world.table(connection, provider, name=name) for name in (one, two)]
    assert [m["view"] for m in made] == [one, two]
    url = world.settings.pgvector.url
    assert url is not None
    store = postgres.dsn if mode == "platform" else url.get_secret_value()
    for name in (one, two):
        assert query(store, f'SELECT count(*) FROM walvec."{name}"') == [(0,)]
        if name == name.lower():  # without quotes, too
            assert query(store, f"SELECT count(*) FROM walvec.{name}") == [(0,)]
    topics = {t.topic for t in await world.log.topics()}
    assert len(topics) == 6
    assert all(t.isascii() for t in topics)
    storage = (await stored(world, made[0]["id"])).storage_name
    # under another name the view is another, storage and topics stay
    renamed = await world.ask("PUT", f"/v1/vector-tables/{made[0]['id']}", {"name": one + "ß"})
    assert renamed["view"] == one + "ß"
    assert query(store, f'SELECT count(*) FROM walvec."{one}ß"') == [(0,)]
    assert (await stored(world, made[0]["id"])).storage_name == storage
    assert {t.topic for t in await world.log.topics()} == topics
    for m in made:
        await world.ask("DELETE", f"/v1/vector-tables/{m['id']}", status=204)
    assert await world.removals() == []
    assert await world.log.topics() == []


async def test_of_those_who_take_a_name_at_the_same_time_one_has_it(
    world: ApiWorld, postgres: PostgresDatabase
) -> None:
    connection, provider = await world.connection(postgres.dsn), await world.provider()
    body = {
        "name": "items", "connection_id": connection, "embedding_provider_id": provider, "source_table": "items",
        "columns": COLUMNS,
    }  # fmt: skip
    answers = await asyncio.gather(*(world.http.post("/v1/vector-tables", json=body) for _ in range(4)))
    assert sorted(a.status_code for a in answers) == [201, 409, 409, 409]
    codes = {a.json()["error"]["code"] for a in answers if a.status_code == 409}
    assert codes == {"vector_table_conflict"}
    assert await world.removals() == []


async def test_a_table_of_before_keeps_its_view_and_its_storage(world: ApiWorld, postgres: PostgresDatabase) -> None:
    connection, provider = await world.connection(postgres.dsn), await world.provider()
    made = await world.table(connection, provider, name="template")
    before = replace(
        await stored(world, made["id"]), id="vt_fedcba9876543210", name="Größe", storage="", unicode_view=False
    )
    await world.services.store.ensure(before, before.active)
    await world.services.store.show(before, before.active)
    await world.control.definitions.put_vector_table(before)
    assert (await world.ask("GET", f"/v1/vector-tables/{before.id}"))["view"] == "Gr__e"
    other = await world.table(connection, provider, name="Grüße")
    assert other["view"] == "Grüße"
    changed = await world.ask(
        "PUT",
        f"/v1/vector-tables/{before.id}",
        {"columns": [{"name": "price", "role": "metadata"}, {"name": "name", "role": "embedding"}]},
    )
    assert changed["view"] == "Gr__e"
    assert (await stored(world, before.id)).storage_name == "vt_fedcba98_gr__e"
    told = await world.table(connection, provider, name="Gr__e", status=422)
    assert "'Größe'" in told["error"]["message"]


async def test_a_store_that_cannot_write_the_name_says_so(world: ApiWorld, own_postgres: PostgresDatabase) -> None:
    with psycopg.connect(own_postgres.dsn, autocommit=True) as session:
        session.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0")
    dsn = own_postgres.server.dsn("latin")
    query(dsn, "CREATE TABLE items (id int PRIMARY KEY, name text, price float8)")
    connection, provider = await world.connection(dsn, mode="platform"), await world.provider()
    assert (await world.table(connection, provider, name="Größe"))["view"] == "Größe"
    told = await world.table(connection, provider, name="商品", status=422)
    assert "encoding" in told["error"]["message"].lower()
    assert [t["name"] for t in (await world.ask("GET", "/v1/vector-tables"))["data"]] == ["Größe"]
