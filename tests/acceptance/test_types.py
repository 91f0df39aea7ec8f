"""Every type of metadata column keeps its value and its type in the view: backfilled, streamed and updated, in the
store's own database and beside the source; and keys of every type lead to their own row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from sink.stores.pgvector_layout import unlimited
from tests.acceptance.harness import Walvec, document
from tests.plugins.postgres import PostgresDatabase

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]


OWN_TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'so, so', 'it''s "fine"', 'NULL', '');
CREATE DOMAIN share AS numeric(5,4) CHECK (value BETWEEN 0 AND 1);
CREATE DOMAIN label AS varchar(12);
CREATE DOMAIN tagset AS text[];
CREATE TYPE size AS (width numeric, note text, at timestamptz);
CREATE TYPE span AS RANGE (subtype = float8);
CREATE SCHEMA "Odd Schema";
CREATE TYPE "Odd Schema"."My Enum" AS ENUM ('A b', 'ß');
"""

STRANGE = "a'b\"c\\d,{e}\n\t\u2003 \u00e9\U0001f600"

# column type -> values as SQL literals; type in a database that lacks it, where it is another one
TYPES: list[tuple[str, list[str], str | None]] = [
    ("numeric", ["'NaN'", "'Infinity'", "'-Infinity'", "1.0", "1.00", "'1e500'", "'-1e-300'", "0"], None),
    ("numeric(12,4)", ["12345678.1230", "-0.0001", "'NaN'"], None),
    ("numeric(3,-2)", ["12300"], None),
    ("smallint", ["-32768", "32767"], None),
    ("integer", ["-2147483648", "2147483647"], None),
    ("bigint", ["-9223372036854775808", "9223372036854775807", "9007199254740993"], None),
    ("real", ["'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "0.1", "'1e-45'", "'3.4028235e38'", "16777217"], None),
    (
        "double precision",
        ["'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "0.1", "'5e-324'", "'1.7976931348623157e308'", "'1e15'", "1"],
        None,
    ),
    ("boolean", ["true", "false"], None),
    ("text", ["''", "' '", "'NULL'", "'null'", "e'{}'", f"$x${STRANGE}$x$", "repeat('long ', 4000)", "'true'"], None),
    ("character varying(8)", ["'väl'", "''"], None),
    ("character(6)", ["'ab'", "''", "'abcdef'"], None),
    ('"char"', ["'x'", "'\"'"], None),
    ("name", ["'a_name'"], None),
    ("uuid", ["'A0EEBC99-9c0b-4ef8-bb6d-6bb9bd380a11'"], None),
    ("bytea", ["'\\x00ff7f80'", "''", "decode(repeat('ab', 5000), 'hex')"], None),
    (
        "timestamp with time zone",
        [
            "'infinity'", "'-infinity'", "'2024-01-31 10:00:00.5+05:30'", "'0044-03-15 12:00:00 BC'",
            "'12024-01-31 10:00:00+00'", "'294276-12-31 23:59:59.999999+00'", "'1900-01-01'",
        ],
        None,
    ),
    (
        "timestamp without time zone",
        ["'infinity'", "'-infinity'", "'2024-01-31 10:00:00.000001'", "'4713-01-01 BC'", "'99999-01-01'"],
        None,
    ),
    ("timestamp(0) with time zone", ["'2024-01-31 10:00:00+00'"], None),
    ("date", ["'infinity'", "'-infinity'", "'2024-02-29'", "'0001-01-01 BC'", "'5874897-12-31'"], None),
    ("time without time zone", ["'24:00'", "'10:00:00.123456'"], None),
    ("time with time zone", ["'10:00:00+05:30'"], None),
    ("interval", ["'1 year -2 mons 3 days -04:05:06.789'", "'0'", "'infinity'", "'-178000000 years'"], None),
    ("interval day to second(3)", ["'3 days 04:05:06.789'"], None),
    ("json", [
        "'{\"a\":1,   \"a\":2, \"b\": 1e400}'", "'12345678901234567890123456789.10'", "'null'", "'\"x\"'", "'[]'",
        "e'{\\n \"k\" : [1.0, -0, 1E2]}'", "'\"\\u0000\"'", "'\"\\ud83d\\ude00\"'", "'\"\\ud83d\"'", "'true'",
        "(repeat('[', 300) || repeat(']', 300))::json",
    ], None),
    ("jsonb", [
        "'{\"a\":1, \"b\":[1,2.50,null,1e-9]}'", "'123456789012345678901234567890'", "'null'", "'\"null\"'", "'1.0'",
        "'\"\\ud83d\\ude00 é\"'", "'{\"z\":1,\"aa\":2,\"\":3}'", "'false'", "'0'", "'\"\"'",
    ], None),
    ("integer[]", ["'{}'", "'{1,NULL,3}'", "'{{1,2},{3,4}}'", "'[2:3]={7,8}'", "'[0:1][-1:0]={{1,2},{3,4}}'"], None),
    ("text[]", ["'{}'", "array['', 'NULL', null, 'null', 'a\"b', e'\\\\', '{x}', 'a,b', ' x ', e'new\\nline', 'é']",
                "array[['a','b'],['c','d']]"], None),
    ("numeric(6,2)[]", ["'{1.10,NaN,NULL}'"], None),
    ("double precision[]", ["'{NaN,-Infinity,-0,1e300}'"], None),
    ("boolean[]", ["'{t,f,NULL}'"], None),
    ("bytea[]", ["array['\\x00'::bytea, ''::bytea, null]"], None),
    ("jsonb[]", ["array['{\"a\":[1,2]}'::jsonb, 'null', null, '\"x\"']"], None),
    ("json[]", ["array['{\"a\": 1,  \"a\":2}'::json, 'null', null]"], None),
    ("timestamp with time zone[]", ["array['infinity'::timestamptz, '2024-01-01', null]"], None),
    ("uuid[]", ["array['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid]"], None),
    ("box[]", ["'{(1,1),(0,0);(3,3),(2,2)}'"], None),
    ("inet", ["'10.0.0.1/8'", "'::1'", "'192.168.0.0/24'"], None),
    ("cidr", ["'10.0.0.0/8'"], None),
    ("macaddr", ["'08:00:2b:01:02:03'"], None),
    ("point", ["'(1,-2.5)'"], None),
    ("polygon", ["'((0,0),(1,1),(2,0))'"], None),
    ("int4range", ["'[1,5)'", "'empty'", "'(,)'"], None),
    ("numrange", ["'(1.50,2.0]'"], None),
    ("tstzrange", ["'[2024-01-01 10:00:00+05,infinity)'"], None),
    ("int8multirange", ["'{[1,3),[7,9)}'", "'{}'"], None),
    ("bit(5)", ["'10110'"], None),
    ("bit varying", ["'101'", "''"], None),
    ("money", ["12.34"], None),
    ("tsvector", ["'''a b'':1 c:2A'"], None),
    ("tsquery", ["'a & !b'"], None),
    ("pg_lsn", ["'16/B374D848'"], None),
    ("oid", ["4294967295"], None),
    ("jsonpath", ["'$.a[*] ? (@ > 1)'"], None),
    ("regclass", ["'types'"], "text"),
    ("regtype", ["'mood'"], "text"),
    ("regrole", ["'pg_monitor'"], "text"),
    ("mood", ["'sad'", "'so, so'", "'it''s \"fine\"'", "'NULL'", "''"], "text"),
    ("mood[]", ["array['sad', 'NULL', '', null]::mood[]"], "text"),
    ('"Odd Schema"."My Enum"', ["'A b'", "'ß'"], "text"),
    ("share", ["0.25", "1"], "text"),
    ("label", ["'twelve chars'", "''"], "text"),
    ("tagset", ["array['a', null, 'b c']"], "text"),
    ("size", ["row(1.50, 'a,\"b', '2024-01-01')", "row(null, '', null)"], "text"),
    ("size[]", ["array[row(1, 'x', null)::size, null]"], "text"),
    ("span", ["'[1.5,2.5)'"], "text"),
    ("vector(3)", ["'[1,-2.5,3e-5]'"], None),
    ("halfvec(2)", ["'[1,-0.5]'"], None),
    ("vector", ["'[1,2]'"], None),
]  # fmt: skip


def names() -> list[str]:
    return [f"c{i}" for i in range(len(TYPES))]


def values(n: int) -> sql.SQL:
    """VALUES of row `n`: every column's values in turn; 0 is the row of NULLs."""
    if n == 0:
        return sql.SQL("NULL" + ", NULL" * (len(TYPES) - 1))
    return sql.SQL(", ".join(found[(n - 1) % len(found)] for _, found, _ in TYPES))


ROWS = max(len(found) for _, found, _ in TYPES) + 1


def insert(source: psycopg.Connection[Any], first: int) -> None:
    for n in range(ROWS):
        source.execute(
            sql.SQL("INSERT INTO types VALUES ({}, {}, {})").format(first + n, sql.Literal(f"row {n}"), values(n))
        )


def texts(dsn: str, relation: str) -> dict[int, tuple[str | None, ...]]:
    columns = ", ".join(f"{c}::text" for c in names())
    with psycopg.connect(dsn, options="-c TimeZone=UTC -c extra_float_digits=1 -c search_path=public") as c:
        rows = c.execute(f"SELECT id, {columns} FROM {relation}").fetchall()
    assert len({r[0] for r in rows}) == len(rows)
    return {r[0]: r[1:] for r in rows}


def view_types(dsn: str, relation: str) -> list[str]:
    with psycopg.connect(dsn) as c:
        found = dict(
            c.execute(
                "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = %s::regclass"
                " AND attnum > 0",
                (relation,),
            ).fetchall()
        )
    return [found[c] for c in names()]


WITHOUT_TEXT = ("bytea", "vector", "halfvec", "tsvector", "tsquery", "bit")


def composed(dsn: str) -> dict[int, str]:
    """What every row's text must be; format() gives a value's own text, where a cast would cut char(n)'s padding."""
    parts = [
        f"nullif({c}::text, '')"
        if t == "boolean"
        else f"CASE WHEN num_nonnulls({c}) = 1 THEN nullif(format('%s', {c}), '') END"
        for c, (t, _, _) in zip(names(), TYPES, strict=True)
        if not t.startswith(WITHOUT_TEXT)
    ]
    # more arguments than a function takes: a row's cells are joined in order
    cells = ", ".join(f"({n}, {part})" for n, part in enumerate(parts))
    with psycopg.connect(dsn, options="-c TimeZone=UTC -c extra_float_digits=1 -c search_path=public") as c:
        rows = c.execute(
            f"SELECT id, (SELECT string_agg(x, E'\\n' ORDER BY n) FROM (VALUES {cells}) v (n, x)) FROM types"  # type: ignore[arg-type]
        ).fetchall()
    return {key: text for key, text in rows if text is not None and not text.isspace()}


def compare(walvec: Walvec, source: str) -> None:
    walvec.drain()
    letters = [walvec.json("dead", "list", name)["dead_letters"] for name in ("managed", "platform", "texts")]
    assert letters == [[], [], []]
    sent = composed(source)
    with psycopg.connect(walvec.env["WALVEC_PGVECTOR__URL"]) as c:
        shown = dict(c.execute("SELECT id, embedded_text FROM walvec.texts").fetchall())
    assert shown.keys() == sent.keys()
    for key, text in sent.items():
        assert shown[key] == text, (
            key,
            [p for p in zip(shown[key].split("\n"), text.split("\n"), strict=False) if p[0] != p[1]],
        )
    want = texts(source, "public.types")
    for name, dsn in (("managed", walvec.env["WALVEC_PGVECTOR__URL"]), ("platform", source)):
        have = texts(dsn, f"walvec.{name}")
        assert have.keys() == want.keys(), name
        wrong = [
            f"{name} row {key} {TYPES[i][0]}: {have[key][i]!r} is not {want[key][i]!r}"
            for key in want
            for i in range(len(TYPES))
            if have[key][i] != want[key][i]
        ]
        assert wrong == [], "\n".join(wrong)


def test_metadata_of_every_type(walvec: Walvec, postgres: PostgresDatabase) -> None:
    postgres.execute(OWN_TYPES)
    columns = ", ".join(f"c{i} {t}" for i, (t, _, _) in enumerate(TYPES))
    postgres.execute(f"CREATE TABLE types (id int PRIMARY KEY, title text, {columns})")
    texts_too = [n for n, (t, _, _) in zip(names(), TYPES, strict=True) if not t.startswith(WITHOUT_TEXT)]
    used_texts = [{"name": n, "role": "embedding"} for n in texts_too]
    used_texts += [{"name": n, "role": "metadata"} for n in texts_too[::2]]
    used = [{"name": "title", "role": "embedding"}] + [{"name": c, "role": "metadata"} for c in names()]
    one = {"connection": "source", "embedding_provider": "local", "source_table": "types", "columns": used}
    with psycopg.connect(postgres.dsn, autocommit=True) as source:
        insert(source, 100)
        walvec.start(
            walvec.definitions(
                document(
                    postgres.dsn,
                    {"name": "managed", **one},
                    {"name": "platform", "mode": "platform", **one},
                    {"name": "texts", **one, "columns": used_texts},
                )
            )
        )
        insert(source, 200)
        compare(walvec, postgres.dsn)
        own = [unlimited(t) for t in view_types(postgres.dsn, "public.types")]
        assert view_types(postgres.dsn, "walvec.platform") == own
        lacking = [other or own[i] for i, (_, _, other) in enumerate(TYPES)]
        assert view_types(walvec.env["WALVEC_PGVECTOR__URL"], "walvec.managed") == lacking

        for first in (100, 200):  # each row takes the next row's values, first with its text, then without
            for n in range(ROWS):
                source.execute(
                    sql.SQL("UPDATE types SET ({}) = ROW({}), title = title || {} WHERE id = {}").format(
                        sql.SQL(", ".join(names())), values((n + 1) % ROWS), "!" if n % 2 else "", first + n
                    )
                )
        compare(walvec, postgres.dsn)
        source.execute("ALTER TABLE types REPLICA IDENTITY FULL")
        for n in range(ROWS):
            source.execute(
                sql.SQL("UPDATE types SET ({}) = ROW({}) WHERE id = {}").format(
                    sql.SQL(", ".join(names())), values((n + 2) % ROWS), 100 + n
                )
            )
        compare(walvec, postgres.dsn)
    for name in ("managed", "platform", "texts"):
        assert walvec.run("verify", name).returncode == 0


# name -> (key columns as DDL, key, rows' keys as SQL, a spare key)
KEYS: dict[str, tuple[str, list[str], list[str], str]] = {
    "uuids": ("k uuid", ["k"], [f"'{n:032x}'" for n in (0, 1, 2**128 - 1, 77)],
              "'A0EEBC99-9c0b-4ef8-bb6d-6bb9bd380a11'"),
    "texts": ("k text", ["k"], [
        "''", "' '", "'a'", "'A'", "'a '", "'null'", "'1'", "e'\\\\'", "e'\\\\x41'", "'\"'", "''''", "'$$'", "'%s'",
        "'{\"k\":1}'", "e'new\\nline'", "e'\\t\\r\\x01\\x7f'", "'\u00e9'", "'e\u0301'", "'\U0001f600'", "'\u2028'",
        "(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 60) n)", "';--'", "'\\N'", "'\\.'",
        "'</script>&amp;'", "'a,b'", "'(a)'", "'\ufeff'", "'\uffff'",
    ], "'spare'"),
    "varchars": ("k varchar(10)", ["k"], ["'x'", "'X'", "'x '"], "'y'"),
    "chars": ("k char(4)", ["k"], ["'x'", "'xy'", "'wxyz'", "'\u00e9'"], "'s'"),
    "bigints": ("k bigint", ["k"], ["-9223372036854775808", "9223372036854775807", "9007199254740993", "0", "-1"], "5"),
    "numerics": ("k numeric", ["k"],
                 ["1.00", "'NaN'", "'Infinity'", "'-Infinity'", "1e30", "1e-30", "-0.10", "0"], "2.0"),
    "doubles": ("k double precision", ["k"],
                ["0.1", "'NaN'", "'Infinity'", "1e300", "1e15", "1e20", "5e-324", "1"], "3"),
    "moments": ("k timestamptz", ["k"], [
        "'2024-01-31 10:00:00.5+05:30'", "'infinity'", "'-infinity'", "'0044-03-15 12:00 BC'", "'12024-01-31'",
    ], "'2024-01-01'"),
    "days": ("k date", ["k"], ["'2024-02-29'", "'infinity'", "'0001-01-01 BC'"], "'2024-01-01'"),
    "spans": ("k interval", ["k"], ["'1 day'", "'2 mons -1 day'", "'-1 sec'"], "'1 year'"),
    "moods": ("k mood", ["k"], ["'sad'", "'so, so'", "'NULL'", "''"], "'it''s \"fine\"'"),
    "shares": ("k share", ["k"], ["0.25", "1", "0"], "0.5"),
    "flags": ("k boolean", ["k"], ["true"], "false"),
    "blobs": ("k bytea", ["k"], ["''", "'\\x00'", "'\\x27225c'", "decode(repeat('ab', 1000), 'hex')"], "'\\x01'"),
    "lists": ("k text[]", ["k"], ["'{}'", "array['a', null]", "array['NULL', '', 'x,y']", "'[2:3]={a,b}'"], "'{s}'"),
    "addresses": ("k inet", ["k"], ["'10.0.0.1/8'", "'10.0.0.1'", "'::1'"], "'::2'"),
    "ranges": ("k int4range", ["k"], ["'[1,5)'", "'empty'"], "'[2,3)'"),
    "documents": ("k jsonb", ["k"], ["'{\"a\":1.0}'", "'null'", "'\"null\"'", "'[]'", "'\"\"'"], "'1'"),
    "pairs": (
        "a text, b int, c \"char\"", ["c", "a", "b"],
        ["'x', 'p\"q', 1", "'x', 'p', 1", "'x', '1', 1", "'y', 'p', 2", "'y', '', -1"], "'z', 'p', 1",
    ),
}  # fmt: skip


def rows_of(dsn: str, relation: str, key: list[str], text: str) -> list[tuple[Any, ...]]:
    columns = ", ".join(f"{c}::text" for c in key)
    with psycopg.connect(dsn, options="-c TimeZone=UTC -c search_path=public") as c:
        return sorted(
            c.execute(f"SELECT {columns}, {text}, note FROM {relation} WHERE {text} <> ''").fetchall(), key=repr
        )


def test_keys_of_every_type(walvec: Walvec, postgres: PostgresDatabase) -> None:
    postgres.execute(OWN_TYPES)
    definitions: list[dict[str, Any]] = []
    for n, (name, (ddl, key, _, _)) in enumerate(KEYS.items()):
        postgres.execute(f"CREATE TABLE {name} ({ddl}, body text, note int, PRIMARY KEY ({', '.join(key)}))")
        definitions.append(
            {
                "name": name,
                "connection": "source",
                "embedding_provider": "local",
                "source_table": name,
                "mode": "platform" if n % 3 == 1 else "managed",
                "columns": [{"name": "body", "role": "embedding"}, {"name": "note", "role": "metadata"}],
            }
        )

    def store(name: str) -> str:
        platform = list(KEYS).index(name) % 3 == 1
        return postgres.dsn if platform else walvec.env["WALVEC_PGVECTOR__URL"]

    def equal(when: str) -> None:
        walvec.drain()
        wrong = []
        for name, (_, key, _, _) in KEYS.items():
            want, have = (
                rows_of(postgres.dsn, f"public.{name}", key, "body"),
                rows_of(store(name), f"walvec.{name}", key, "embedded_text"),
            )
            if want != have:
                wrong.append(f"{name}: missing {set(want) - set(have)!r}, too many {set(have) - set(want)!r}")
        assert wrong == [], f"{when}:\n" + "\n".join(wrong)

    with psycopg.connect(postgres.dsn, autocommit=True) as source:

        def each(statement: str, step: int = 1, first: int = 0) -> None:
            with source.transaction():
                for name, (_, key, keys, spare) in KEYS.items():
                    for n, one in enumerate(keys[first::step]):
                        source.execute(
                            statement.format(
                                table=name,
                                key=f"({', '.join(key)})",
                                one=f"({one})",
                                spare=f"({spare})",
                                columns=", ".join(key),
                                values=one,
                                n=n,
                            )
                        )

        each("INSERT INTO {table} ({columns}, body, note) VALUES ({values}, 'first {n}', {n})", 2)
        walvec.start(walvec.definitions(document(postgres.dsn, *definitions)))
        each("INSERT INTO {table} ({columns}, body, note) VALUES ({values}, 'streamed {n}', {n})", 2, 1)
        equal("inserted")
        each("UPDATE {table} SET body = body || '!' WHERE {key} = {one}")
        each("UPDATE {table} SET note = note + 100 WHERE {key} = {one}", 2)
        equal("updated")
        each("DELETE FROM {table} WHERE {key} = {one}", 3)
        equal("deleted")
        each("INSERT INTO {table} ({columns}, body, note) VALUES ({values}, 'again', {n})", 3)
        equal("inserted again")
        # every row moves to the spare key and back, the last of them stays there
        each(
            "UPDATE {table} SET {key} = ROW{spare} WHERE {key} = {one};"
            "UPDATE {table} SET {key} = ROW{one}, note = -note WHERE {key} = {spare}"
        )
        for name, (_, key, keys, spare) in KEYS.items():
            columns = ", ".join(key)
            source.execute(f"UPDATE {name} SET ({columns}) = ROW({spare}) WHERE ({columns}) = ({keys[-1]})")
        source.execute("UPDATE numerics SET k = 1.0 WHERE k = 1.00")  # equal, and spelled otherwise
        source.execute("UPDATE doubles SET k = '-0' WHERE k = 1")
        equal("moved")
        for name in KEYS:
            found = walvec.json("verify", name)
            assert not any(found[kind] for kind in ("missing", "orphaned", "stale", "duplicate", "dead")), (name, found)
        joined = source.execute(
            "SELECT count(*) FROM moods s JOIN walvec.moods v USING (k) WHERE s.body = v.embedded_text"
            " AND v.embedding <=> v.embedding < 0.001"
        ).fetchone()
        assert joined == (4,)


def test_an_older_source_with_types_that_the_store_lacks(
    tmp_path: Path, postgres: PostgresDatabase, postgres15: Any
) -> None:
    """citext, hstore and ltree come with extensions, and the store's server is built without xml."""
    with psycopg.connect(postgres15.dsn, autocommit=True) as source:
        source.execute("CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION ltree")
        source.execute(
            "CREATE TABLE mixed (code citext PRIMARY KEY, body citext, tags hstore, doc xml, path ltree, docs xml[])"
        )
        row = (
            """('{0}', '{1}', 'a=>NULL, "b c"=>"d\\"e"', '<a b="1">x &amp; y</a>', 'top.sub',"""
            " array['<x/>'::xml, null])"
        )
        source.execute("INSERT INTO mixed VALUES " + row.format("Key", "First"))  # type: ignore[arg-type]
        own = postgres.another()
        walvec = Walvec(tmp_path, control=own, store=own)
        names = ("tags", "doc", "path", "docs", "body")
        used = [{"name": "body", "role": "embedding"}, *({"name": n, "role": "metadata"} for n in names)]
        table = {"name": "mixed", "connection": "source", "embedding_provider": "local", "source_table": "mixed"}
        walvec.start(walvec.definitions(document(postgres15.dsn, {**table, "columns": used})))

        def equal() -> None:
            walvec.drain()
            shown = "code::text, tags::text, doc::text, path::text, docs::text, body::text"
            want = source.execute(f"SELECT body::text, {shown} FROM mixed ORDER BY code::text").fetchall()  # type: ignore[arg-type]
            with psycopg.connect(own) as c:
                have = c.execute(f"SELECT embedded_text, {shown} FROM walvec.mixed ORDER BY code::text").fetchall()  # type: ignore[arg-type]
            assert have == want
            assert not any(walvec.verify("mixed").values())

        try:
            equal()
            source.execute("INSERT INTO mixed VALUES " + row.format("Other", "Second"))  # type: ignore[arg-type]
            source.execute("UPDATE mixed SET code = 'KEY', body = 'FIRST' WHERE code = 'key'")
            source.execute("INSERT INTO mixed (code, body) VALUES ('nothing', 'else')")
            equal()
            source.execute("UPDATE mixed SET doc = '<b/>', tags = tags || 'x=>y' WHERE code = 'other'")
            source.execute("DELETE FROM mixed WHERE code = 'NOTHING'")
            equal()
        finally:
            walvec.stop()
