"""total_rows: rows that have a text, exactly those for which the embedder composes one."""

from dataclasses import replace

import psycopg
import pytest

from cdc.counting import blanks_of
from cdc.source import SourceAccess
from tests.plugins.postgres import PostgresDatabase
from tests.plugins.source_table import connection, vector_table
from walvec.contracts.sources import RowCount
from walvec.definitions.model import Column

SCHEMA = """
CREATE DOMAIN label AS text;
CREATE TYPE mood AS ENUM ('', 'sad');
CREATE TABLE texts (id int PRIMARY KEY, a text, v varchar(90), c char(3), n int, j jsonb, l label, m mood, t text[],
    "odd ""%s" text);
"""
BLANKS = ["", " ", "\t\n\v\f\r\x1c\x1f", "\x85\xa0", "\u2003\u3000\u2028", "\u200b", " " * 70, " " * 70 + "x", "x"]
SPECS = [
    [("a", "")],
    [("a", "Title: ")],
    [("a", " \u3000")],
    [("a", ""), ("v", "")],
    [("v", ""), ("c", "")],
    [("c", "C: ")],
    [("c", "")],
    [("n", "")],
    [("n", ""), ("j", "J")],
    [("l", ""), ("m", "")],
    [("m", "M")],
    [("t", ""), ("a", "")],
    [('odd "%s', "")],
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("separator", ["\n", " | ", ""])
async def test_as_many_rows_as_have_a_text(
    postgres: PostgresDatabase, spec: list[tuple[str, str]], separator: str
) -> None:
    postgres.execute(SCHEMA)
    with psycopg.connect(postgres.dsn, autocommit=True) as session:
        values = [None, *BLANKS]
        rows = [(a, v, c) for a in values for v in (None, "", " ", "x") for c in (None, "", " ", "y")]
        session.cursor().executemany(
            "INSERT INTO texts VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                (i, a, v, c, None if i % 3 else i, None if i % 2 else "[]", a, [None, "", "sad"][i % 3],
                 None if i % 5 else [], a)
                for i, (a, v, c) in enumerate(rows)
            ],
        )  # fmt: skip
    table = await vector_table(postgres.dsn, "texts", [Column(n, "embedding", name_prefix=p) for n, p in spec])
    (generation,) = table.generations
    table = replace(table, generations=(replace(generation, separator=separator),))
    access = SourceAccess()
    texts = [text async for batch in access.scan(connection(postgres.dsn), table, table.active) for _, text in batch]
    found = await access.count(connection(postgres.dsn), table)
    await access.close()
    assert len(texts) == len(rows)
    assert found == RowCount(sum(text is not None for text in texts), exact=True)


async def test_a_database_of_few_characters_has_other_white_space_than_asciis(postgres: PostgresDatabase) -> None:
    name = f"latin_{postgres.name}"
    postgres.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0")
    try:
        dsn = psycopg.conninfo.make_conninfo(postgres.dsn, dbname=name)
        with psycopg.connect(dsn, autocommit=True) as session:
            session.execute("CREATE TABLE texts (id int PRIMARY KEY, a text)")
            session.cursor().executemany(
                "INSERT INTO texts VALUES (%s, %s)", list(enumerate([None, "", " ", "\xa0", "\x85\n", "\xa0é"]))
            )
        table = await vector_table(dsn, "texts", [Column("a", "embedding")])
        access = SourceAccess()
        found = await access.count(connection(dsn), table)
        await access.close()
        assert found == RowCount(1, exact=True)
    finally:
        postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_no_encoding_is_asked_for_a_character_that_it_lacks(postgres: PostgresDatabase) -> None:
    found = postgres.execute("SELECT DISTINCT pg_encoding_to_char(conforencoding) FROM pg_conversion")
    encodings = {str(name) for (name,) in found} - {"MULE_INTERNAL"}  # which nothing is converted to from Unicode
    assert encodings > {"LATIN1", "WIN1252", "KOI8R", "EUC_JP", "EUC_CN"}
    for encoding in encodings - {"UTF8"}:
        postgres.execute("SELECT convert_to(%s, %s)", blanks_of(encoding), encoding)
    assert "\xa0" in blanks_of("LATIN9")
    assert "\u3000" in blanks_of("EUC_CN")
    assert "\u3000" in blanks_of("UTF8")
    assert blanks_of("SQL_ASCII").isascii()


async def test_what_takes_too_long_is_estimated(postgres: PostgresDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    postgres.execute("CREATE TABLE many (id int PRIMARY KEY, body text)")
    postgres.execute("INSERT INTO many SELECT i, 'body' FROM generate_series(1, 200000) i")
    postgres.execute("ANALYZE many")
    table = await vector_table(postgres.dsn, "many", [Column("body", "embedding")])
    access = SourceAccess()
    assert await access.count(connection(postgres.dsn), table) == RowCount(200_000, exact=True)
    monkeypatch.setattr("cdc.source._COUNT_TIMEOUT_MS", 1)
    found = await access.count(connection(postgres.dsn), table)
    await access.close()
    assert (found.exact, abs(found.rows - 200_000) < 20_000) == (False, True)
