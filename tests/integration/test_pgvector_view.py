"""The view changes hands: nobody waits behind it, nobody loses a right, nothing that depends on it is torn away."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import psycopg
import pytest

from sink.stores import pgvector_view
from sink.stores.pgvector import PgvectorStore
from tests.integration.test_pgvector import made, record, source, table_of
from tests.plugins.eventually import eventually
from tests.plugins.postgres import PostgresDatabase
from walvec.contracts.errors import StoreRejected, StoreUnavailable
from walvec.definitions.model import Generation, VectorTable

OLD = table_of(source("a", "integer"))
SECOND = replace(table_of(source("a", "integer"), dimensions=4).active, number=2, state="building")
OTHER_COLUMNS = replace(table_of(source("b", "text")).active, number=2, state="building")


@pytest.fixture
async def store(postgres: PostgresDatabase) -> AsyncIterator[PgvectorStore]:
    opened = PgvectorStore(postgres.dsn, "walvec")
    yield opened
    await opened.close()


async def both(store: PgvectorStore, second: Generation) -> VectorTable:
    await made(store, OLD)
    table = replace(OLD, generations=(OLD.active, second))
    await store.ensure(table, second)
    return table


@pytest.mark.parametrize("second", [SECOND, OTHER_COLUMNS])
async def test_a_long_query_delays_the_swap_and_no_other_query(
    store: PgvectorStore, postgres: PostgresDatabase, second: Generation
) -> None:
    table = await both(store, second)
    async with (
        await psycopg.AsyncConnection.connect(postgres.dsn) as long,
        await psycopg.AsyncConnection.connect(postgres.dsn, autocommit=True) as other,
    ):
        await long.execute("SELECT count(*) FROM walvec.things")
        swap = asyncio.create_task(store.show(table, second))

        async def waits() -> bool:
            cursor = await other.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            return (await cursor.fetchone() or (0,))[0] > 0

        loop, slowest = asyncio.get_running_loop(), 0.0
        await eventually(waits)
        for _ in range(100):
            began = loop.time()
            await other.execute("SELECT count(*) FROM walvec.things", prepare=False)
            slowest = max(slowest, loop.time() - began)
        assert not swap.done()
        assert slowest < 10 * pgvector_view.LOCK_MILLISECONDS / 1000, "it did not wait for the long one"
        await long.commit()
        await swap
    assert postgres.execute("SELECT generation FROM walvec._walvec_stores WHERE shown IS NOT NULL") == [(2,)]


async def test_a_query_that_never_ends_is_told_and_changes_nothing(
    store: PgvectorStore, postgres: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgvector_view, "_PATIENCE_SECONDS", 0.3)
    table = await both(store, SECOND)
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as long:
        await long.execute("SELECT count(*) FROM walvec.things")
        with pytest.raises(StoreUnavailable):
            await store.show(table, SECOND)
    assert postgres.execute("SELECT generation FROM walvec._walvec_stores WHERE shown IS NOT NULL") == [(1,)]
    await store.apply(table, OLD.active, [record("upsert", 1, 5, a=1)])
    assert postgres.execute("SELECT id FROM walvec.things") == [(1,)]


@pytest.mark.parametrize("change", ["columns", "name"])
async def test_who_could_read_the_view_still_can(store: PgvectorStore, postgres: PostgresDatabase, change: str) -> None:
    table = await both(store, OTHER_COLUMNS)
    role = f"reader_{postgres.name}"
    postgres.execute(f'CREATE ROLE "{role}"; GRANT USAGE ON SCHEMA walvec TO "{role}"')
    try:
        postgres.execute(f'GRANT SELECT ON walvec.things TO "{role}" WITH GRANT OPTION')
        name = "things"
        if change == "name":
            table, name = replace(table, name="goods"), "goods"
        await store.show(table, OTHER_COLUMNS)
        assert postgres.execute(
            "SELECT has_table_privilege(%s, %s, 'SELECT WITH GRANT OPTION')", role, f"walvec.{name}"
        ) == [(True,)]
        assert postgres.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'v' AND relname IN ('things', 'goods')"
        ) == [(name,)]
    finally:
        postgres.execute(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"')


async def test_what_depends_on_the_view_is_not_torn_away(store: PgvectorStore, postgres: PostgresDatabase) -> None:
    table = await both(store, OTHER_COLUMNS)
    postgres.execute("CREATE VIEW mine AS SELECT id, a FROM walvec.things")
    with pytest.raises(StoreRejected, match="other objects depend on it"):
        await store.show(table, OTHER_COLUMNS)
    assert postgres.execute("SELECT generation FROM walvec._walvec_stores WHERE shown IS NOT NULL") == [(1,)]
    postgres.execute("DROP VIEW mine")
    await store.show(table, OTHER_COLUMNS)


async def test_what_depends_on_the_view_goes_along_with_a_new_name(
    store: PgvectorStore, postgres: PostgresDatabase
) -> None:
    await made(store, OLD)
    postgres.execute("CREATE VIEW mine AS SELECT id FROM walvec.things; GRANT SELECT ON walvec.things TO PUBLIC")
    renamed = replace(OLD, name="others", storage=OLD.storage_name)
    await store.ensure(renamed, renamed.active)
    await store.show(renamed, renamed.active)
    await store.show(renamed, renamed.active)
    assert postgres.execute("SELECT to_regclass('walvec.things'), count(*) FROM mine") == [(None, 0)]
    assert postgres.execute("SELECT relacl::text LIKE '%=r/%' FROM pg_class WHERE relname = 'others'") == [(True,)]


async def test_storage_that_is_retyped_leaves_the_view_of_another_alone(
    store: PgvectorStore, postgres: PostgresDatabase
) -> None:
    table = await both(store, SECOND)
    wider = replace(SECOND, source=(source("name", "text"), source("id", "bigint"), source("a", "bigint")))
    await store.ensure(replace(table, generations=(OLD.active, wider)), wider)
    assert postgres.execute("SELECT count(*) FROM walvec.things") == [(0,)]


async def test_storage_that_is_read_is_dropped_later(store: PgvectorStore, postgres: PostgresDatabase) -> None:
    table = await both(store, SECOND)
    await store.show(table, SECOND)
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as long:
        ((relation,),) = postgres.execute("SELECT relation FROM walvec._walvec_stores WHERE generation = 1")
        await long.execute(f'SELECT count(*) FROM walvec."{relation}"'.encode())
        with pytest.raises(StoreUnavailable):
            await store.drop(table, 1)
        assert await store.generations(table) == [1, 2]
    await store.drop(table, 1)
    assert await store.generations(table) == [2]


async def test_storage_that_is_retyped_is_shown_all_the_time(store: PgvectorStore, postgres: PostgresDatabase) -> None:
    """The source's column has got another type: whoever read the view still may, and meets it at any moment."""
    await made(store, OLD)
    async with await psycopg.AsyncConnection.connect(postgres.dsn, autocommit=True) as other:
        await other.execute("GRANT SELECT ON walvec.things TO pg_monitor WITH GRANT OPTION")
        wider = table_of(source("a", "bigint"))
        await store.ensure(wider, wider.active)
        query = "SELECT grantee, is_grantable FROM information_schema.role_table_grants WHERE table_name = 'things'"
        assert ("pg_monitor", "YES") in await (await other.execute(query)).fetchall()
        await other.execute("SELECT a FROM walvec.things")
        await store.show(wider, wider.active)
        assert ("pg_monitor", "YES") in await (await other.execute(query)).fetchall()
        await store.apply(wider, wider.active, [record("upsert", 1, 5, a=2**40)])
        found = await (await other.execute("SELECT a FROM walvec.things")).fetchall()
        assert found == [(2**40,)]
