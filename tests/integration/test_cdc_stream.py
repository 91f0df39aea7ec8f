"""The stream through a real PostgreSQL: every kind of change arrives as the record it must be."""

from __future__ import annotations

import pytest

from tests.integration.cdc_world import World, column, key, vector_table
from tests.plugins.postgres import PostgresDatabase
from walvec.transport.records import changes_topic


async def world(postgres: PostgresDatabase, *statements: str) -> World:
    made = World(postgres.dsn)
    await made.sql(*statements)
    return made


ITEMS = "CREATE TABLE items (id int PRIMARY KEY, name text, price numeric)"


async def test_insert_update_delete_reinsert(postgres: PostgresDatabase) -> None:
    w = await world(postgres, ITEMS)
    table = vector_table("items", metadata=(column("price", 1700),))
    await w.define(table)
    async with w.reading():
        await w.sql("INSERT INTO items VALUES (1, 'Lämp \"x\"', 1.50), (2, NULL, NULL)")
        await w.sql("UPDATE items SET name = 'b' WHERE id = 1")
        await w.sql("DELETE FROM items WHERE id = 1")
        await w.sql("INSERT INTO items VALUES (1, 'again', 2)")
        changes = await w.changes(table)
    assert [(c.op, c.key) for c in changes] == [
        ("c", key(id=1)), ("c", key(id=2)), ("u", key(id=1)), ("d", key(id=1)), ("c", key(id=1)),
    ]  # fmt: skip
    assert changes[0].after == {"name": 'Lämp "x"', "price": "1.50"}
    assert changes[1].after == {"name": None, "price": None}
    assert [c.position.ordinal for c in changes] == [1, 2, 1, 1, 1]
    assert all(c.xid and c.commit_ms > 1_700_000_000_000 for c in changes)
    assert (changes[3].after, changes[3].before) == (None, None)


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL", "USING INDEX items_pkey"])
async def test_key_change(postgres: PostgresDatabase, identity: str) -> None:
    w = await world(postgres, ITEMS, f"ALTER TABLE items REPLICA IDENTITY {identity}")
    table = vector_table("items")
    await w.define(table)
    async with w.reading():
        await w.sql("INSERT INTO items VALUES (1, 'a', 1)")
        await w.sql("UPDATE items SET id = 2")
        await w.sql("UPDATE items SET name = 'b'")
        changes = await w.changes(table)
    assert [(c.op, c.key, c.position.ordinal) for c in changes][1:] == [
        ("d", key(id=1), 1),
        ("c", key(id=2), 2),
        ("u", key(id=2), 2 if identity == "FULL" else 1),
    ]
    assert changes[-1].before == ({"name": "a"} if identity == "FULL" else None)


async def test_swapped_keys_in_one_transaction(postgres: PostgresDatabase) -> None:
    w = await world(postgres, ITEMS)
    table = vector_table("items")
    await w.define(table)
    async with w.reading():
        await w.sql("INSERT INTO items VALUES (1, 'one', 1), (2, 'two', 1)")
        await w.sql(
            "UPDATE items SET id = -1 WHERE id = 1",
            "UPDATE items SET id = 1 WHERE id = 2",
            "UPDATE items SET id = 2 WHERE id = -1",
        )
        assert await w.rows(table) == {key(id=1): {"name": "two"}, key(id=2): {"name": "one"}}


async def test_truncate(postgres: PostgresDatabase) -> None:
    w = await world(postgres, ITEMS, "CREATE TABLE child (id int PRIMARY KEY, item int REFERENCES items, name text)")
    table, child = vector_table("items"), vector_table("child", table_id="vt_00000002")
    await w.define(table, child)
    async with w.reading():
        await w.sql("INSERT INTO items VALUES (1, 'a', 1)", "INSERT INTO child VALUES (1, 1, 'c')")
        await w.sql("TRUNCATE items CASCADE", "INSERT INTO items VALUES (2, 'b', 1)")
        assert await w.rows(table) == {key(id=2): {"name": "b"}}
        assert await w.rows(child) == {}
        markers = [c for c in await w.changes(table) if c.op == "t"]
    assert len(markers) == len(await w.log.end_offsets(changes_topic(table.storage_name)))
    assert len({c.position for c in markers}) == 1


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
async def test_unchanged_toast(postgres: PostgresDatabase, identity: str) -> None:
    w = await world(
        postgres,
        ITEMS,
        "ALTER TABLE items ALTER name SET STORAGE EXTERNAL",
        f"ALTER TABLE items REPLICA IDENTITY {identity}",
    )
    table = vector_table("items", metadata=(column("price", 1700),))
    await w.define(table)
    async with w.reading():
        await w.sql("INSERT INTO items VALUES (1, repeat('x', 5000), 1)")
        await w.sql("UPDATE items SET price = 2")
        changes = await w.changes(table)
    if identity == "FULL":
        assert changes[1].unchanged == ()
        assert changes[1].before == {"name": "x" * 5000}
        assert changes[1].after == {"name": "x" * 5000, "price": "2"}
    else:
        assert changes[1].unchanged == ("name",)
        assert changes[1].after == {"price": "2"}


async def test_toasted_key_column(postgres: PostgresDatabase) -> None:
    w = await world(
        postgres,
        "CREATE TABLE docs (path text, part int, name text, PRIMARY KEY (path, part))",
        "ALTER TABLE docs ALTER path SET STORAGE EXTERNAL",
    )
    table = vector_table("docs", key=(column("path"), column("part", 23)))
    await w.define(table)
    async with w.reading():
        await w.sql("INSERT INTO docs VALUES (repeat('p', 2200), 1, 'a')")
        await w.sql("UPDATE docs SET name = 'b'")
        await w.sql("UPDATE docs SET part = 2")
        rows = await w.rows(table)
    assert rows == {key(path="p" * 2200, part=2): {"name": "b"}}


async def test_composite_key_in_another_order_and_reserved_names(postgres: PostgresDatabase) -> None:
    w = await world(
        postgres,
        'CREATE SCHEMA "Select"',
        'CREATE TABLE "Select"."Order ""x""" ("from" int, "Group" text, "name" text, PRIMARY KEY ("Group", "from"))',
    )
    table = vector_table('Order "x"', schema="Select", key=(column("Group"), column("from", 23)))
    await w.define(table)
    async with w.reading():
        await w.sql('INSERT INTO "Select"."Order ""x""" VALUES (1, \'g\', \'a\')')
        await w.sql('DELETE FROM "Select"."Order ""x"""')
        changes = await w.changes(table)
    assert [(c.op, c.key) for c in changes] == [("c", b'{"Group":"g","from":1}'), ("d", b'{"Group":"g","from":1}')]


async def test_partitioned_table_and_row_movement(postgres: PostgresDatabase) -> None:
    w = await world(
        postgres,
        "CREATE TABLE items (id int, name text, part int, PRIMARY KEY (id, part)) PARTITION BY LIST (part)",
        "CREATE TABLE items_1 PARTITION OF items FOR VALUES IN (1)",
        "CREATE TABLE items_2 (part int NOT NULL, dropped int, id int NOT NULL, name text)",
        "ALTER TABLE items_2 DROP dropped",
        "ALTER TABLE items ATTACH PARTITION items_2 FOR VALUES IN (2)",
    )
    table = vector_table("items", key=(column("id", 23), column("part", 23)))
    await w.define(table)
    async with w.reading():
        await w.sql("INSERT INTO items VALUES (1, 'a', 1), (2, 'b', 2)")
        await w.sql("UPDATE items SET part = 2 WHERE id = 1")
        await w.sql("CREATE TABLE items_3 PARTITION OF items FOR VALUES IN (3)", "INSERT INTO items VALUES (3, 'c', 3)")
        assert await w.rows(table) == {
            key(id=1, part=2): {"name": "a"},
            key(id=2, part=2): {"name": "b"},
            key(id=3, part=3): {"name": "c"},
        }
        await w.sql("TRUNCATE items")
        assert await w.rows(table) == {}


async def test_savepoints_and_rollback(postgres: PostgresDatabase) -> None:
    w = await world(postgres, ITEMS)
    table = vector_table("items")
    await w.define(table)
    async with w.reading():
        await w.sql(
            "INSERT INTO items VALUES (1, 'a', 1)",
            "SAVEPOINT s",
            "INSERT INTO items VALUES (2, 'gone', 1)",
            "ROLLBACK TO s",
            "INSERT INTO items VALUES (3, 'c', 1)",
        )
        await w.sql("BEGIN; INSERT INTO items VALUES (4, 'never', 1); ROLLBACK")
        assert await w.rows(table) == {key(id=1): {"name": "a"}, key(id=3): {"name": "c"}}


async def test_values_have_one_text_whatever_the_server_is_set_to(postgres: PostgresDatabase) -> None:
    w = await world(
        postgres,
        "CREATE TABLE v (id int PRIMARY KEY, at timestamptz, raw bytea, span interval, f float8, b bool)",
        f"ALTER DATABASE {postgres.name} SET TimeZone = 'Asia/Kolkata'",
        f"ALTER DATABASE {postgres.name} SET bytea_output = 'escape'",
        f"ALTER DATABASE {postgres.name} SET IntervalStyle = 'iso_8601'",
        f"ALTER DATABASE {postgres.name} SET DateStyle = 'German'",
        f"ALTER DATABASE {postgres.name} SET extra_float_digits = -3",
    )
    names = (("at", 1184), ("raw", 17), ("span", 1186), ("f", 701), ("b", 16))
    table = vector_table("v", columns=[column(n, o) for n, o in names])
    await w.define(table)
    async with w.reading():
        await w.sql(
            r"INSERT INTO v VALUES (1, '2024-01-31 10:00Z', '\x0102', '1 day 2 hours', 0.1 + 0.2::float8, true)"
        )
        (change,) = await w.changes(table)
    assert {n: change.text_of(n) for n, _ in names} == {
        "at": "2024-01-31 10:00:00+00",
        "raw": "\\x0102",
        "span": "1 day 02:00:00",
        "f": "0.30000000000000004",
        "b": "true",
    }


async def test_a_large_transaction_arrives_whole(postgres: PostgresDatabase) -> None:
    w = await world(postgres, ITEMS)
    table = vector_table("items")
    await w.define(table)
    async with w.reading():
        await w.sql("INSERT INTO items SELECT i, repeat('x', 100), 1 FROM generate_series(1, 60000) i")
        changes = await w.changes(table)
    assert [c.position.ordinal for c in changes] == list(range(1, 60001))
    assert len({c.position.lsn for c in changes}) == 1
