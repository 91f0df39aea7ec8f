"""total_rows: rows that have a text, exactly those for which the embedder composes one."""

from dataclasses import replace

import psycopg
import pytest

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
