"""The doctor against a real server: each failing check's cure is run, and mends it."""

from collections.abc import Callable
from dataclasses import replace

import psycopg
import pytest

from cdc.source import SourceAccess
from tests.plugins.postgres import PostgresDatabase
from tests.plugins.source_table import connection, vector_table
from walvec.contracts.sources import Check
from walvec.definitions.model import Column, Generation, SourceColumn, VectorTable

DOC = [Column("doc", "embedding")]


def defined(name: str, key: tuple[str, ...], columns: tuple[str, ...] = ("doc",)) -> VectorTable:
    """A vector table as its definition says, whatever the source has."""
    source = tuple(SourceColumn(c, "text", 25, "text", "text") for c in dict.fromkeys((*key, *columns)))
    generation = Generation(
        1, "active", "m", 2, tuple(Column(c, "embedding") for c in columns),
        tuple(s for s in source if s.name in key), source,
    )  # fmt: skip
    return VectorTable(
        "vt_00000001", name, "conn_12345678", "p", "static", "public", name, "pgvector", "managed", (generation,)
    )


async def checks(dsn: str, *tables: VectorTable) -> dict[str, Check]:
    access = SourceAccess()
    found = await access.doctor(connection(dsn), tables)
    await access.close()
    return {c.name: c for c in found}


async def test_all_is_well(postgres: PostgresDatabase) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text)")
    found = await checks(postgres.dsn, await vector_table(postgres.dsn, "t", DOC))
    assert {n for n, c in found.items() if not c.ok} == set()
    assert {"wal_level", "replication_slots", "replica_identity", "select_right", "publish_right"} <= set(found)
    assert all(not c.cure for c in found.values())


async def test_a_source_that_is_down_is_a_check(postgres: PostgresDatabase) -> None:
    found = await checks("host=127.0.0.1 port=1 dbname=x user=x")
    assert list(found) == ["connection"]
    assert not found["connection"].ok
    assert found["connection"].cure


@pytest.mark.parametrize(
    ("create", "key", "check"),
    [
        ("CREATE TABLE t (id int, doc text)", ("id",), "primary_key"),
        ("CREATE TABLE t (id int PRIMARY KEY, doc text); ALTER TABLE t REPLICA IDENTITY NOTHING", ("id",),
         "replica_identity"),
        ("CREATE TABLE t (id int PRIMARY KEY, o int NOT NULL UNIQUE, doc text);"
         "ALTER TABLE t REPLICA IDENTITY USING INDEX t_o_key", ("id",), "replica_identity"),
        ("CREATE TABLE t (id int PRIMARY KEY, o int NOT NULL UNIQUE, doc text)", ("o",), "replica_identity"),
        ("CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, doc text)", ("id",), "replica_identity"),
        ("CREATE UNLOGGED TABLE t (id int PRIMARY KEY, doc text)", ("id",), "table"),
        ("CREATE TABLE t (id int NOT NULL, doc text); CREATE UNIQUE INDEX u ON t (id) WHERE id > 0", ("id",),
         "primary_key"),
        ("CREATE TABLE t (id int PRIMARY KEY, doc text) PARTITION BY RANGE (id);"
         "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (9); ALTER TABLE t1 REPLICA IDENTITY NOTHING", ("id",),
         "replica_identity"),
    ],
)  # fmt: skip
async def test_keys_and_identities(postgres: PostgresDatabase, create: str, key: tuple[str, ...], check: str) -> None:
    postgres.execute(create)
    table = defined("t", key)
    found = await checks(postgres.dsn, table)
    assert not found[check].ok
    for _ in range(3):  # an index that now exists may not be the replica identity yet
        failed = [c for c in (await checks(postgres.dsn, table)).values() if not c.ok]
        for c in failed:
            postgres.execute(c.cure)
    assert [c for c in (await checks(postgres.dsn, table)).values() if not c.ok] == []


async def test_a_partition_whose_root_is_published_is_refused(postgres: PostgresDatabase) -> None:
    postgres.execute(
        "CREATE TABLE parent (id int PRIMARY KEY, doc text) PARTITION BY RANGE (id);"
        "CREATE TABLE t PARTITION OF parent FOR VALUES FROM (0) TO (9)"
    )
    table = defined("t", ("id",))
    assert (await checks(postgres.dsn, table))["publish_right"].ok
    name = connection(postgres.dsn).publication
    postgres.execute(f"CREATE PUBLICATION {name} FOR TABLE parent WITH (publish_via_partition_root = true)")
    found = (await checks(postgres.dsn, table))["published"]
    assert not found.ok
    assert "public.parent" in found.detail
    assert '"public"."parent"' in found.cure


async def test_virtual_generated_column_is_refused_and_stored_is_not(postgres: PostgresDatabase) -> None:
    postgres.execute(
        "CREATE TABLE t (id int PRIMARY KEY, a text, s text GENERATED ALWAYS AS (a || 's') STORED,"
        " v text GENERATED ALWAYS AS (a || 'v') VIRTUAL)"
    )
    found = await checks(postgres.dsn, defined("t", ("id",), ("s",)))
    assert found["generated_columns"].ok
    found = await checks(postgres.dsn, defined("t", ("id",), ("v",)))
    assert not found["generated_columns"].ok
    assert "STORED" in found["generated_columns"].cure


async def test_rights_of_a_plain_role(postgres: PostgresDatabase) -> None:
    role = f"plain_{postgres.name}"
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text); ALTER TABLE t ENABLE ROW LEVEL SECURITY")
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'plain'; ALTER TABLE t OWNER TO postgres")
    dsn = psycopg.conninfo.make_conninfo(postgres.dsn, user=role, password="plain")
    table = defined("t", ("id",))
    try:
        found = await checks(dsn, table)
        expected = {"replication_right", "create_publication", "select_right", "publish_right", "row_security"}
        assert {n for n, c in found.items() if not c.ok} == expected
        for c in found.values():
            if not c.ok:
                postgres.execute(c.cure.split(" or ")[0])
        assert [c for c in (await checks(dsn, table)).values() if not c.ok] == []
    finally:
        postgres.execute(f"REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}; DROP ROLE {role}")


async def test_what_the_publication_really_publishes(postgres: PostgresDatabase) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text)")
    name = connection("").publication
    table = defined("t", ("id",))
    postgres.execute(f"CREATE PUBLICATION {name} FOR TABLE t (id) WITH (publish = 'insert')")
    found = await checks(postgres.dsn, table)
    assert {n for n, c in found.items() if not c.ok} == {"publication_operations", "published"}
    for c in found.values():
        if not c.ok:
            postgres.execute(c.cure)
    assert [c for c in (await checks(postgres.dsn, table)).values() if not c.ok] == []
    postgres.execute(f"ALTER PUBLICATION {name} SET TABLE t WHERE (id > 1)")
    assert "rows out" in (await checks(postgres.dsn, table))["published"].detail


async def test_slots_are_used_up(postgres_with: Callable[..., PostgresDatabase]) -> None:
    postgres = postgres_with(max_replication_slots="1")
    postgres.execute("SELECT pg_create_physical_replication_slot('theirs')")
    found = await checks(postgres.dsn)
    assert not found["replication_slots"].ok
    assert "max_replication_slots = 5" in found["replication_slots"].cure
    postgres.execute("SELECT pg_drop_replication_slot('theirs')")
    postgres.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", connection("").slot)
    assert (await checks(postgres.dsn))["replication_slots"].ok


async def test_missing_table_and_column(postgres: PostgresDatabase) -> None:
    assert not (await checks(postgres.dsn, defined("t", ("id",))))["table"].ok
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY)")
    found = await checks(postgres.dsn, defined("t", ("id",)))
    assert not found["columns"].ok
    assert "doc" in found["columns"].cure
    temporary = replace(defined("t", ("id",)), source_table="nix")
    assert not (await checks(postgres.dsn, temporary))["table"].ok
