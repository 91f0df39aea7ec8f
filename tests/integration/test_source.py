"""SourceAccess against a real server: names, types, rows by key, scans."""

import asyncio
from dataclasses import replace

import psycopg
import pytest

from cdc.catalog import fetch_one
from cdc.session import open_session, source_errors
from cdc.source import SourceAccess
from tests.plugins.eventually import eventually
from tests.plugins.postgres import PostgresDatabase
from tests.plugins.source_table import connection, vector_table
from walvec.contracts.changes import Change
from walvec.contracts.errors import DefinitionError, SourceRejected, SourceUnavailable, TableChanged
from walvec.contracts.position import Position
from walvec.contracts.sources import RowCount
from walvec.definitions.model import Column

ALL_TYPES = """
CREATE SCHEMA shop;
CREATE TYPE shop.mood AS ENUM ('sad', 'it''s "ok"');
CREATE DOMAIN shop.price AS numeric(10, 2) CHECK (VALUE > 0);
CREATE DOMAIN shop.tags AS text[];
CREATE TABLE shop."All Types" (
    id bigint PRIMARY KEY, flag boolean, small smallint, num numeric, dbl double precision, r real,
    tz timestamptz, ts timestamp, d date, iv interval, j json, jb jsonb, by bytea, u uuid, c char(5), v varchar(9),
    m shop.mood, p shop.price, t text[], tt shop.tags, ints int[], moods shop.mood[], b box[], iv2 int2vector,
    g int GENERATED ALWAYS AS (small + 1) STORED, txt text, money money, pt point, vec vector(3)
);
"""


async def both(postgres: PostgresDatabase, source: str, columns: list[Column]) -> dict[str, dict[str, str | None]]:
    """Texts of every row as the embedder composes them from read_rows, by canonical key."""
    access = SourceAccess()
    table = await vector_table(postgres.dsn, source, columns)
    generation = table.active
    keys = [k async for batch in access.scan(connection(postgres.dsn), table, generation) for k, _ in batch]
    read = await access.read_rows(connection(postgres.dsn), table, generation, keys)
    await access.close()
    out = {}
    for key, row in read.rows.items():
        change = Change("r", Position(0, 1, 0), key, row.after, exact=row.exact)
        out[key.decode()] = {c: change.text_of(c) for c in dict.fromkeys(generation.embedding_columns)}
    return out


async def test_inspect_all_types(postgres: PostgresDatabase) -> None:
    postgres.execute(ALL_TYPES)
    access = SourceAccess()
    found = await access.inspect(connection(postgres.dsn), 'shop."All Types"')
    await access.close()
    assert (found.schema, found.name, found.key, found.identity) == ("shop", "All Types", ("id",), "d")
    assert found.identity_columns == ("id",)
    by_name = {c.name: (c.type, c.base_type, c.codec, c.user_defined) for c in found.columns}
    assert by_name["m"] == ("shop.mood", "shop.mood", "text", True)
    assert by_name["p"] == ("shop.price", "numeric", "numeric", True)
    assert by_name["t"] == ("text[]", "text", "array:text", False)
    assert by_name["tt"] == ("shop.tags", "text", "array:text", True)
    assert by_name["moods"] == ("shop.mood[]", "shop.mood", "array:text", True)
    assert by_name["ints"][2] == "array:int"
    assert by_name["b"][2] == "text"
    assert by_name["iv2"][2] == "text"
    assert by_name["c"] == ("character(5)", "character", "text", False)
    assert by_name["tz"] == ("timestamp with time zone", "timestamp with time zone", "timestamp", False)
    assert by_name["vec"][0] == "public.vector(3)"
    assert [c.name for c in found.columns if c.generated] == ["g"]


async def test_texts_are_the_servers_own_for_every_type(postgres: PostgresDatabase) -> None:
    postgres.execute(ALL_TYPES)
    postgres.execute(
        """INSERT INTO shop."All Types" VALUES
        (-9223372036854775808, true, -1, 'NaN', 'Infinity', '1e-30', '2024-01-31 10:00:00.5+02', '0044-03-15 BC',
         'infinity', '1 year -3 days', '{"a" : 1,  "a":2}', '{"b": 1.50, "a": null}', '\\xdeadbeef00',
         '6f1e0c1e-0000-4000-8000-00000000abcd', 'ab', 'x\ty', 'it''s "ok"', 12.50, '{a,"b c",NULL,"",null,"\\\\"}',
         '{x}', '{{1,2},{3,NULL}}', '{sad}', '{(1,1),(0,0)}', '1 2', DEFAULT,
         E'tab\\t nl\\n cr\\r bs\\\\ \\\\N bell\\b ü 🜚 \u200b', 12.3, '(1,2)', '[1,2.5,3]'),
        (9223372036854775807, false, NULL, 123456789012345678901234567890.12300, '-0', '0.1', 'infinity', NULL,
         '0044-03-15 BC', NULL, '[]', '[]', '', NULL, '', '', NULL, NULL, '{}', NULL, NULL, NULL, NULL, NULL, DEFAULT,
         '', NULL, NULL, NULL)"""
    )
    names = [c for c, in postgres.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'shop.\"All Types\"'::regclass AND attnum > 0"
    )]  # fmt: skip
    for roles in (("embedding",), ("embedding", "metadata")):
        columns = [Column(str(n), r) for n in names for r in roles]  # type: ignore[arg-type]
        texts = await both(postgres, 'shop."All Types"', columns)
        assert len(texts) == 2
        with psycopg.connect(postgres.dsn) as session:
            session.execute("SET TimeZone = 'UTC'; SET extra_float_digits = 1; SET bytea_output = 'hex'")
            for key, found in texts.items():
                number = key.removeprefix('{"id":').removesuffix("}")
                for name in names:
                    # concat() and array outputs spell booleans as the type's output does: t and f, so they are spelled
                    expected = session.execute(
                        f'SELECT CASE WHEN pg_typeof("{name}") = \'boolean\'::regtype THEN "{name}"::text'
                        f' ELSE format(\'%s\', "{name}") END, "{name}" IS NULL'
                        f' FROM shop."All Types" WHERE id = {number}'
                    ).fetchone()
                    assert expected is not None
                    assert found[str(name)] == (None if expected[1] else expected[0]), (name, roles)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("products", "public.products"), ("Products", "public.Products"), ('"Products"', "public.Products"),
        ("PRODUCTS", "public.products"), ("Public.products", "public.products"), ("public.Orders", "public.orders"),
    ],
)  # fmt: skip
async def test_names(postgres: PostgresDatabase, asked: str, expected: str) -> None:
    postgres.execute(
        'CREATE TABLE products (id int PRIMARY KEY); CREATE TABLE "Products" (id int PRIMARY KEY);'
        "CREATE TABLE orders (id int PRIMARY KEY)"
    )
    access = SourceAccess()
    found = await access.inspect(connection(postgres.dsn), asked)
    await access.close()
    assert f"{found.schema}.{found.name}" == expected


async def test_names_that_do_not_exist(postgres: PostgresDatabase) -> None:
    postgres.execute("CREATE TABLE products (id int PRIMARY KEY); CREATE VIEW seen AS SELECT 1 AS id")
    postgres.execute("CREATE UNLOGGED TABLE fast (id int PRIMARY KEY)")
    access = SourceAccess()
    with pytest.raises(DefinitionError, match=r"Did you mean public\.products\?"):
        await access.inspect(connection(postgres.dsn), "product")
    with pytest.raises(DefinitionError):
        await access.inspect(connection(postgres.dsn), '"PRODUCTS"')
    with pytest.raises(DefinitionError, match="a view"):
        await access.inspect(connection(postgres.dsn), "seen")
    with pytest.raises(DefinitionError, match="table of the system"):
        await access.inspect(connection(postgres.dsn), "pg_catalog.pg_class")
    with pytest.raises(DefinitionError, match="SET LOGGED"):
        await access.inspect(connection(postgres.dsn), "fast")
    await access.close()


async def test_unusual_keys_read_by_key(postgres: PostgresDatabase) -> None:
    postgres.execute(
        "CREATE TYPE kind AS ENUM ('b', 'a');"
        'CREATE TABLE t (a text COLLATE "C", k kind, n numeric(8,2), c char(4), at timestamptz, by bytea, doc text,'
        " PRIMARY KEY (k, a, n, c, at, by))"
    )
    postgres.execute(
        "INSERT INTO t SELECT E'x\\ty'',\"\\\\' || i, CASE i % 2 WHEN 0 THEN 'a' ELSE 'b' END::kind, i, 'z',"
        " timestamptz '2024-01-01' + i * interval '1.5 s', decode(lpad(to_hex(i), 4, '0'), 'hex'), 'doc ' || i"
        " FROM generate_series(1, 2500) i"
    )
    access = SourceAccess()
    where = connection(postgres.dsn)
    table = await vector_table(postgres.dsn, "t", [Column("doc", "embedding")])
    rows = [r async for batch in access.scan(where, table, table.active) for r in batch]
    assert len(rows) == 2500
    assert len({k for k, _ in rows}) == 2500
    some = [k for k, _ in rows[::2]]
    read = await access.read_rows(where, table, table.active, [*some, rows[0][0].replace(b"doc", b"doc")])
    assert set(read.rows) == set(some)
    again = [r async for batch in access.scan(where, table, table.active, only=some) for r in batch]
    assert sorted(again) == sorted(r for r in rows if r[0] in set(some))
    assert await access.count(where, table) == RowCount(2500, exact=True)
    await access.close()


async def test_equal_but_differently_spelled_keys_stay_apart(postgres: PostgresDatabase) -> None:
    postgres.execute("CREATE TABLE t (n numeric PRIMARY KEY, doc text); INSERT INTO t VALUES (1.0, 'x')")
    access = SourceAccess()
    table = await vector_table(postgres.dsn, "t", [Column("doc", "embedding")])
    read = await access.read_rows(connection(postgres.dsn), table, table.active, [b'{"n":"1.00"}', b'{"n":"1.0"}'])
    assert list(read.rows) == [b'{"n":"1.0"}']
    await access.close()


async def test_rows_and_snapshot_come_from_one_transaction_rule_one_snapshot(postgres: PostgresDatabase) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text); INSERT INTO t VALUES (1, 'old')")
    access = SourceAccess()
    table = await vector_table(postgres.dsn, "t", [Column("doc", "embedding")])
    with psycopg.connect(postgres.dsn) as other:
        other.execute("UPDATE t SET doc = 'new'")
        row = other.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
        read = await access.read_rows(connection(postgres.dsn), table, table.active, [b'{"id":1}'])
        assert row is not None
        assert not read.snapshot.sees(row[0])
        assert read.rows[b'{"id":1}'].after == {"doc": "old"}
        other.commit()
        read = await access.read_rows(connection(postgres.dsn), table, table.active, [b'{"id":1}'])
        assert read.snapshot.sees(row[0])
        assert read.rows[b'{"id":1}'].after == {"doc": "new"}
    await access.close()


async def test_marker_lies_above_what_was_committed(postgres: PostgresDatabase) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    access = SourceAccess()
    before = postgres.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")[0][0]
    assert await access.emit_marker(connection(postgres.dsn)) >= int(str(before))
    assert await access.test(connection(postgres.dsn)) > 0
    await access.close()


async def test_a_scan_given_up_half_way_leaves_no_broken_session(postgres: PostgresDatabase) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text)")
    postgres.execute("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 5000) i")
    access = SourceAccess()
    where = connection(postgres.dsn)
    table = await vector_table(postgres.dsn, "t", [Column("doc", "embedding")])
    rows = access.scan(where, table, table.active)
    assert len(await anext(aiter(rows))) < 5000
    await rows.aclose()  # type: ignore[attr-defined]
    assert await access.count(where, table) == RowCount(5000, exact=True)
    await access.close()


async def test_sessions_survive_the_end_of_an_idle_one(postgres: PostgresDatabase) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text)")
    from cdc.session import Sessions

    access = SourceAccess(Sessions(check_after_seconds=0))
    where = connection(postgres.dsn)
    await access.emit_marker(where)
    postgres.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid()"
    )
    assert await access.emit_marker(where) > 0
    await access.close()


async def test_sessions_of_connections_that_nobody_uses_any_more_are_closed(postgres: PostgresDatabase) -> None:
    from cdc.session import Sessions

    now = 0.0
    access = SourceAccess(Sessions(keep_all=3, rest_seconds=60, clock=lambda: now))
    used = [replace(connection(postgres.dsn), id=f"conn_{n}") for n in range(5)]

    def open_now() -> int:
        found = postgres.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'walvec'"
        )
        return int(str(found[0][0]))

    for where in used:
        await access.test(where)
        await access.emit_marker(where)
    await eventually(lambda: open_now() == 3)
    now = 61.0
    await access.emit_marker(used[-1])
    await eventually(lambda: open_now() == 1)
    await access.close()
    await eventually(lambda: open_now() == 0)


async def test_errors_say_what_is_wrong(postgres: PostgresDatabase) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text)")
    access = SourceAccess()
    table = await vector_table(postgres.dsn, "t", [Column("doc", "embedding")])
    where = connection(postgres.dsn)
    postgres.execute("ALTER TABLE t RENAME doc TO text")
    with pytest.raises(TableChanged, match="'doc'"):
        await access.read_rows(where, table, table.active, [b'{"id":1}'])
    postgres.execute("DROP TABLE t")
    with pytest.raises(TableChanged):
        await access.count(where, table)
    with pytest.raises(SourceRejected, match="nix"):
        await access.test(connection(psycopg.conninfo.make_conninfo(postgres.dsn, dbname="nix")))
    with pytest.raises(SourceUnavailable):
        await access.test(connection("host=127.0.0.1 port=1 dbname=x user=x"))
    with pytest.raises(SourceRejected) as caught:
        await access.test(connection("postgresql://u:secret word@[h/db"))
    assert "secret" not in str(caught.value)
    await access.close()


async def test_release_drops_slot_and_publication(postgres: PostgresDatabase) -> None:
    where = connection(postgres.dsn)
    postgres.execute(f"CREATE PUBLICATION {where.publication}")
    postgres.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", where.slot)
    access = SourceAccess()
    await access.release(where)
    await asyncio.wait_for(access.release(where), 10)
    await access.close()
    assert postgres.execute("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", where.slot) == []
    assert postgres.execute("SELECT 1 FROM pg_publication") == []


async def test_names_with_percent_signs_are_read_by_key(postgres: PostgresDatabase) -> None:
    postgres.execute("CREATE TYPE \"100%s\" AS ENUM ('m')")
    postgres.execute('CREATE TABLE "p%t" ("%s" "100%s" PRIMARY KEY, "a%sb" text, "c%%" text)')
    postgres.execute("""INSERT INTO "p%t" VALUES ('m', 'x', 'y')""")
    found = await both(postgres, '"p%t"', [Column("a%sb", "embedding"), Column("c%%", "embedding")])
    assert found == {'{"%s":"m"}': {"a%sb": "x", "c%%": "y"}}


async def test_who_hangs_while_it_reads_holds_up_no_index_and_reads_again(postgres: PostgresDatabase) -> None:
    session = await open_session(postgres.dsn)
    assert (await fetch_one(session, "SHOW idle_in_transaction_session_timeout")) == "15s"
    await session.execute("SET idle_in_transaction_session_timeout = '200ms'")
    postgres.execute("CREATE TABLE held (n int)")
    await session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    await session.execute("SELECT FROM held")
    await asyncio.to_thread(postgres.execute, "CREATE INDEX CONCURRENTLY ON held (n)")
    with pytest.raises(SourceUnavailable), source_errors():
        await session.execute("SELECT FROM held")
    await session.close()
