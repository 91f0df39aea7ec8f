"""What only pgvector has: types, view, two writers at once, leftovers of a killed index build."""

from __future__ import annotations

import asyncio
import functools
import operator
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sink.stores import pgvector_indexes
from sink.stores.memory import MemoryStore
from sink.stores.pgvector import PgvectorStore
from sink.stores.pgvector_layout import STATE_TABLE, Layout, unlimited
from sink.stores.pgvector_session import Session, Sessions
from tests.plugins.postgres import PostgresDatabase
from walvec.contracts.errors import StoreRejected, StoreUnavailable
from walvec.contracts.position import Position
from walvec.contracts.stores import Condition, Filter
from walvec.contracts.values import codec, codec_name
from walvec.contracts.vectors import Chunk, VectorRecord
from walvec.definitions.model import Column, Generation, SourceColumn, VectorTable


def source(name: str, type_name: str, base: str | None = None, **extra: Any) -> SourceColumn:
    base = base or type_name.partition("(")[0].removesuffix("[]")
    return SourceColumn(name, type_name, 0, base, codec_name(base, array=type_name.endswith("[]")), **extra)


def table_of(*columns: SourceColumn, dimensions: int = 3, name: str = "things", **changes: Any) -> VectorTable:
    generation = Generation(
        1,
        "active",
        "m",
        dimensions,
        (Column("name", "embedding"), *(Column(c.name, "metadata") for c in columns)),
        changes.pop("key", (source("id", "bigint"),)),
        (source("name", "text"), source("id", "bigint"), *columns),
    )
    made = VectorTable(
        "vt_12345678", name, "c", "e", "static", "public", "things", "pgvector", "managed", (generation,)
    )
    return replace(made, **changes)


def record(op: Any, i: int, lsn: int, text: str = "a", dimensions: int = 3, **metadata: Any) -> VectorRecord:
    vector = np.full(dimensions, 1 + len(text), dtype=np.float32) if op == "upsert" else None
    chunks = () if op in ("delete", "truncate") else (Chunk(0, text, f"hash-{text}", vector),)
    return VectorRecord(op, Position(0, lsn, 1), b'{"id":%d}' % i, 1, metadata, {}, chunks)


@pytest.fixture
async def store(postgres: PostgresDatabase) -> AsyncIterator[PgvectorStore]:
    made = PgvectorStore(postgres.dsn, "walvec")
    yield made
    await made.close()


async def made(store: PgvectorStore, table: VectorTable) -> Generation:
    await store.ensure(table, table.active)
    await store.show(table, table.active)
    return table.active


VALUES = [
    ("smallint", "-7"),
    ("bigint", "9223372036854775807"),
    ("numeric(12,4)", "12345678.1230"),
    ("numeric", "NaN"),
    ("real", "0.1"),
    ("double precision", "-Infinity"),
    ("boolean", "t"),
    ("text", 'a"b\\c\nd,{}'),
    ("character varying(20)", "väl"),
    ("character(5)", "ab   "),
    ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("date", "2024-02-29"),
    ("timestamp with time zone", "2024-01-31 10:00:00.5+00"),
    ("timestamp without time zone", "infinity"),
    ("time without time zone", "10:00:00"),
    ("interval", "1 year 2 days 03:04:05"),
    ("bytea", "\\xdeadbeef"),
    ("jsonb", '{"a": [1, 2.50, null], "b": "x"}'),
    ("json", '{"a":1,   "b":2}'),
    ("integer[]", "{1,NULL,3}"),
    ("text[]", '{a,"b c",NULL}'),
    ("inet", "10.0.0.1/8"),
    ("point", "(1,2)"),
    ("int4range", "[1,5)"),
]


@pytest.mark.parametrize(("type_name", "raw"), VALUES, ids=[t for t, _ in VALUES])
async def test_a_column_keeps_type_and_value(
    store: PgvectorStore, postgres: PostgresDatabase, type_name: str, raw: str
) -> None:
    column = source("v", type_name)
    table = table_of(column)
    generation = await made(store, table)
    import orjson

    found = codec(column.codec)
    value = orjson.loads(found.encode(raw.encode()))
    exact = {} if found.same_value is None or found.same_value(raw.encode()) else {"v": raw}
    sent = replace(record("upsert", 1, 5, v=value), exact=exact)
    answer = await store.apply(table, generation, [sent, record("upsert", 2, 5, v=None)])
    assert not answer.rejected
    rows = postgres.execute(
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = 'walvec.things'::regclass AND attname = 'v'"
    )
    assert rows[0][0] == unlimited(type_name)
    with psycopg.connect(postgres.dsn) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        result = connection.execute("SELECT v FROM walvec.things WHERE id = 1").pgresult
        assert result is not None
        assert (result.get_value(0, 0) or b"").decode() == raw
    await store.build_indexes(table, generation)
    hits = await store.search(table, generation, np.ones(3, dtype=np.float32), limit=5)
    assert {h.key["id"] for h in hits} == {1, 2}
    if type_name not in ("point",):
        assert next(h for h in hits if h.key["id"] == 2).metadata == {"v": None}


@pytest.mark.parametrize(
    ("type_name", "stored", "op", "value", "found"),
    [
        ("date", "2024-01-05", "gte", "2024-01-05T12:00:00Z", False),
        ("date", "2024-01-05", "lt", "2024-01-05T00:00:01Z", True),
        ("date", "2024-01-05", "eq", "2024-01-05T12:00:00Z", False),
        ("date", "2024-01-05", "eq", "2024-01-05", True),
        ("date", "2024-01-05", "in", ["2024-01-05T02:00:00+02:00"], True),
        ("date", "infinity", "gt", "2024-01-05", True),
        ("timestamp without time zone", "2024-01-05 10:00:00", "eq", "2024-01-05T12:00:00+02:00", True),
        ("timestamp without time zone", "2024-01-05 10:00:00", "lt", "2024-01-05T12:00:00+02:00", False),
        ("timestamp without time zone", "2024-01-05 10:00:00", "gte", "2024-01-05T10:00:00", True),
        ("timestamp with time zone", "2024-01-05 10:00:00+00", "eq", "2024-01-05T12:00:00+02:00", True),
        ("character(5)", "c3   ", "eq", "c3   ", True),
        ("character(5)", "c3   ", "in", ["c3"], True),
        ("text", "c3", "eq", "c3 ", False),
    ],
)
async def test_a_filter_compares_whole_times_in_utc_and_text_as_its_type_does(
    store: PgvectorStore, type_name: str, stored: str, op: Any, value: Any, found: bool
) -> None:
    column = source("v", type_name)
    table = table_of(column)
    generation = await made(store, table)
    import orjson

    sent = record("upsert", 1, 5, v=orjson.loads(codec(column.codec).encode(stored.encode())))
    assert not (await store.apply(table, generation, [sent])).rejected
    where = Filter((Condition("v", op, value),))
    hits = await store.search(table, generation, np.ones(3, dtype=np.float32), limit=5, where=where)
    assert bool(hits) is found


async def test_types_that_the_database_lacks_show_as_text(store: PgvectorStore, postgres: PostgresDatabase) -> None:
    table = table_of(source("mood", "public.mood", "public.mood", user_defined=True), source("g", "no_such_type"))
    generation = await made(store, table)
    await store.apply(table, generation, [record("upsert", 1, 5, mood="sad", g="x")])
    assert postgres.execute("SELECT mood, g, pg_typeof(mood)::text FROM walvec.things") == [("sad", "x", "text")]
    where = Filter((Condition("mood", "eq", "sad"),))
    assert len(await store.search(table, generation, np.ones(3, dtype=np.float32), limit=5, where=where)) == 1


async def test_platform_mode_keeps_user_types_and_joins(postgres: PostgresDatabase) -> None:
    postgres.execute("CREATE TYPE public.mood AS ENUM ('sad', 'ok'); CREATE TABLE t (id bigint PRIMARY KEY, mood mood)")
    postgres.execute("INSERT INTO t VALUES (1, 'ok')")
    store = PgvectorStore(postgres.dsn, "walvec", own_database=True)
    table = table_of(source("mood", "public.mood", "public.mood", user_defined=True))
    generation = await made(store, table)
    await store.apply(table, generation, [record("upsert", 1, 5, mood="ok")])
    joined = postgres.execute("SELECT e.mood = t.mood, e.source_lsn::text FROM t JOIN walvec.things e USING (id)")
    assert joined == [(True, "0/5")]
    await store.build_indexes(table, generation)
    where = Filter((Condition("mood", "eq", "ok"),))
    assert len(await store.search(table, generation, np.ones(3, dtype=np.float32), limit=5, where=where)) == 1
    await store.close()


async def test_the_view_is_replaced_when_its_columns_change(store: PgvectorStore, postgres: PostgresDatabase) -> None:
    old = table_of(source("a", "integer"), source("b", "text"))
    await made(store, old)
    second = replace(table_of(source("c", "date"), dimensions=4).active, number=2)
    new = replace(old, generations=(replace(old.active, state="retired"), second))
    await store.ensure(new, second)
    assert [c[0] for c in _columns(postgres)][-3:] == ["a", "b", "source_lsn"]
    await store.show(new, second)
    assert [c[0] for c in _columns(postgres)] == ["id", "chunk", "embedded_text", "embedding", "c", "source_lsn"]
    await store.drop(new, 1)
    await store.drop(new)
    assert postgres.execute("SELECT relname FROM pg_class WHERE relname LIKE 'vt\\_%'") == []


def _columns(postgres: PostgresDatabase) -> list[tuple[object, ...]]:
    return postgres.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'walvec.things'::regclass AND attnum > 0 ORDER BY attnum"
    )


async def test_a_widened_source_column_is_followed(store: PgvectorStore, postgres: PostgresDatabase) -> None:
    table = table_of(source("v", "character varying(3)"))
    generation = await made(store, table)
    await store.apply(table, generation, [record("upsert", 1, 5, v="abc")])
    wide = table_of(source("v", "character varying(9)"))
    await made(store, wide)
    await store.apply(wide, wide.active, [record("upsert", 2, 5, v="abcdefghi")])
    assert postgres.execute("SELECT v FROM walvec.things ORDER BY id") == [("abc",), ("abcdefghi",)]


async def test_two_vector_tables_on_one_view_are_refused(store: PgvectorStore) -> None:
    await made(store, table_of(name="a b"))
    other = replace(table_of(name="a_b"), id="vt_other")
    with pytest.raises(StoreRejected, match="taken"):
        await store.ensure(other, other.active)


async def test_an_unreachable_database_is_unavailable() -> None:
    store = PgvectorStore("postgresql://nobody@127.0.0.1:1/none", "walvec")
    table = table_of()
    with pytest.raises(StoreUnavailable):
        await store.ensure(table, table.active)


async def test_sessions_that_the_server_ended_are_not_used_again(
    store: PgvectorStore, postgres: PostgresDatabase
) -> None:
    table = table_of()
    generation = await made(store, table)
    await store.apply(table, generation, [record("upsert", 1, 5)])
    ended = postgres.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'walvec sink' "
        "AND datname = current_database()"
    )
    assert ended
    assert await store.count(table, generation) == 1


async def test_a_writer_that_hangs_in_a_transaction_is_not_waited_for(
    store: PgvectorStore, postgres: PostgresDatabase
) -> None:
    table = table_of()
    generation = await made(store, table)
    await store.apply(table, generation, [record("upsert", 1, 5)])
    [(relation,)] = postgres.execute(f"SELECT relation FROM walvec.{STATE_TABLE}")
    hung = Sessions(postgres.dsn, hung_seconds=0.5)

    async def hang() -> None:
        async with hung.session() as session, session.conn.transaction():
            await session.conn.execute(f"UPDATE walvec.{relation} SET lsn = lsn".encode())
            async with asyncio.timeout(30):
                applied = await store.apply(table, generation, [record("upsert", 1, 6, "newer")])
            assert applied.applied == 1
            await session.conn.execute(b"SELECT 1")

    with pytest.raises(StoreUnavailable, match="idle-in-transaction"):
        await hang()
    await hung.close()


async def test_a_writer_that_hangs_while_it_sends_rows_holds_nothing(
    store: PgvectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of()
    generation = await made(store, table)
    await store.apply(table, generation, [record("upsert", 1, 5)])
    sending, goes_on = asyncio.Event(), asyncio.Event()
    write = psycopg.AsyncCopy.write

    async def hang(copy: psycopg.AsyncCopy, rows: bytes) -> None:
        sending.set()
        await goes_on.wait()
        await write(copy, rows)

    monkeypatch.setattr(psycopg.AsyncCopy, "write", hang)
    hung = asyncio.create_task(store.apply(table, generation, [record("upsert", i, 6 + i) for i in (1, 2, 3)]))
    await sending.wait()
    async with asyncio.timeout(10):
        await store.apply(table, generation, [record("truncate", 0, 8)])
    goes_on.set()
    applied = await hung
    assert applied.applied == 2, "what is older than the truncate is refused, though it was on its way before"
    assert await store.count(table, generation) == 2


async def test_a_value_out_of_range_is_rejected_alone(store: PgvectorStore) -> None:
    table = table_of(source("v", "smallint"))
    generation = await made(store, table)
    batch = [record("upsert", i, 5, v=99999 if i == 7 else i) for i in range(20)]
    answer = await store.apply(table, generation, batch)
    assert [r.key for r, _ in answer.rejected] == [b'{"id":7}']
    assert answer.applied == 19
    claim = record("metadata", 8, 6, v=99999)
    answer = await store.apply(table, generation, [claim])
    assert answer.rejected[0][0] is claim


async def test_halfvec_above_2000_dimensions(store: PgvectorStore, postgres: PostgresDatabase) -> None:
    table = table_of(dimensions=3072)
    generation = await made(store, table)
    await store.apply(table, generation, [record("upsert", i, 5, dimensions=3072) for i in range(5)])
    await store.build_indexes(table, generation)
    indexes = postgres.execute("SELECT indexdef FROM pg_indexes WHERE schemaname = 'walvec'")
    assert any("halfvec_cosine_ops" in str(d) for (d,) in indexes)
    assert len(await store.search(table, generation, np.ones(3072, dtype=np.float32), limit=5)) == 5


async def test_another_index_takes_the_place_of_the_one_before(
    store: PgvectorStore, postgres: PostgresDatabase
) -> None:
    table = table_of()
    generation = table.active
    await store.ensure(table, generation)
    for index, options in (
        ({"kind": "hnsw"}, [None]),
        ({"kind": "hnsw", "m": 4}, [["m=4"]]),
        ({"kind": "hnsw", "m": 4, "ef_construction": 20}, [["m=4", "ef_construction=20"]]),
        ({"kind": "none"}, []),
        ({"kind": "hnsw"}, [None]),
    ):
        await store.build_indexes(table, replace(generation, index=index))
        found = postgres.execute("SELECT reloptions FROM pg_class WHERE relname LIKE '%\\_ann' AND relkind = 'i'")
        assert [r for (r,) in found] == options


async def test_an_invalid_index_of_a_killed_build_is_made_anew(
    store: PgvectorStore, postgres: PostgresDatabase
) -> None:
    table = table_of()
    generation = await made(store, table)
    await store.apply(table, generation, [record("upsert", i, 5) for i in range(5)])
    await store.build_indexes(table, generation)
    postgres.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid::regclass::text LIKE '%_ann%'")
    await store.build_indexes(table, generation)
    invalid = "SELECT 1 FROM pg_index WHERE NOT indisvalid"
    assert postgres.execute(invalid) == []


async def test_a_builder_that_hangs_is_not_waited_for(
    store: PgvectorStore, postgres: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of()
    generation = await made(store, table)
    hung = Sessions(postgres.dsn, hung_seconds=0.3)
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def hang(session: Session, layout: Layout) -> None:
        begun.set()
        await goes_on.wait()
        await session.conn.execute(b"SELECT 1")

    async def build() -> None:
        async with hung.session() as session:
            layout = await store._layout(session, table, generation)
            await pgvector_indexes.build_indexes(session, layout, generation.index)

    with monkeypatch.context() as patched:
        patched.setattr(pgvector_indexes, "_raise_memory", hang)
        building = asyncio.create_task(build())
        await begun.wait()
    async with asyncio.timeout(30):
        await store.build_indexes(table, generation)
    goes_on.set()
    with pytest.raises(StoreUnavailable):
        await building
    await hung.close()


async def test_filtered_search_reaches_beyond_ef_search(store: PgvectorStore) -> None:
    table = table_of(source("v", "integer"))
    generation = await made(store, table)
    rng = np.random.default_rng(1)
    batch = [
        VectorRecord(
            "upsert", Position(0, 5, 1), b'{"id":%d}' % i, 1, {"v": int(i >= 1990)}, {},
            (Chunk(0, str(i), f"h{i}", rng.normal(size=3).astype(np.float32)),),
        )
        for i in range(2000)
    ]  # fmt: skip
    await store.apply(table, generation, batch)
    await store.build_indexes(table, generation)
    where = Filter((Condition("v", "eq", 1),))
    hits = await store.search(table, generation, np.ones(3, dtype=np.float32), limit=10, where=where)
    assert len(hits) == 10
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)


async def test_claim_atomic_and_guard_hold_for_two_writers_at_once(postgres: PostgresDatabase) -> None:
    """Whatever two sinks do at the same time: highest position wins, and a claim never lands on another text."""
    stores = [PgvectorStore(postgres.dsn, "walvec") for _ in range(3)]
    table = table_of(source("v", "integer"))
    generation = await made(stores[0], table)
    rng = random.Random(7)
    batches = []
    for n in range(60):
        batch = []
        for i in rng.sample(range(12), 8):
            op = rng.choice(["upsert", "upsert", "delete", "metadata"])
            lsn = rng.randrange(10, 500)
            batch.append(record(op, i, lsn, "abc"[lsn % 3], v=lsn))
        if n % 20 == 10:
            batch.append(record("truncate", 0, rng.randrange(10, 100)))
        batches.append(batch)

    async def write(store: PgvectorStore, mine: list[list[VectorRecord]]) -> list[VectorRecord]:
        refused: list[VectorRecord] = []
        for batch in mine:
            refused += (await store.apply(table, generation, batch)).refused_claims
        return refused

    refused = functools.reduce(
        operator.iadd, await asyncio.gather(*(write(s, batches[i::3]) for i, s in enumerate(stores))), []
    )
    forced = [record("upsert", int(r.key[6:-1]), r.position.lsn, r.chunks[0].text, **r.metadata) for r in refused]
    await stores[0].apply(table, generation, forced)
    everything = [r for batch in batches for r in batch]
    floor = max(r.position for r in everything if r.op == "truncate")
    live = postgres.execute("SELECT id, (source_lsn - '0/0')::int, v, embedded_text FROM walvec.things ORDER BY id")
    want = []
    for i in range(12):
        mine = [r for r in everything if r.key == b'{"id":%d}' % i and r.op != "truncate" and r.position >= floor]
        top = max(mine, key=lambda r: r.position)
        if top.op != "delete":
            want.append((i, top.position.lsn, top.position.lsn, "abc"[top.position.lsn % 3]))
    assert live == want
    for store in stores:
        await store.close()


_op = st.tuples(
    st.sampled_from(["upsert", "upsert", "upsert", "delete", "metadata", "truncate"]),
    st.integers(0, 3),
    st.integers(1, 12),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ops=st.lists(_op, max_size=25), cuts=st.lists(st.integers(1, 6), max_size=25), seed=st.integers(0, 999))
def test_both_stores_agree_and_the_highest_position_wins(
    postgres: PostgresDatabase, ops: list[tuple[Any, int, int]], cuts: list[int], seed: int
) -> None:
    """Any order, any batches, repeats: the same state, once refused claims have come back in full."""

    async def check() -> None:
        table = table_of(source("v", "integer"))
        # one version per (key, position), as the log has it
        records = {(i, lsn): record(op, i, lsn, "abc"[lsn % 3], v=lsn) for op, i, lsn in ops if op != "truncate"}
        marks = [record("truncate", 0, lsn) for op, _, lsn in ops if op == "truncate"]
        sequence = [*records.values(), *marks, *list(records.values())[:3]]
        random.Random(seed).shuffle(sequence)
        batches, at = [], 0
        for size in [*cuts, len(sequence)]:
            batches.append(sequence[at : at + size])
            at += size
        states = []
        for store in (MemoryStore(), PgvectorStore(postgres.dsn, "walvec")):
            generation = table.active
            await store.ensure(table, generation)
            await store.show(table, generation)
            for batch in batches:
                answer = await store.apply(table, generation, batch)
                assert not answer.rejected
                back = [
                    record("upsert", int(r.key[6:-1]), r.position.lsn, r.chunks[0].text, **r.metadata)
                    for r in answer.refused_claims
                ]
                await store.apply(table, generation, back)
            versions = await store.versions(table, generation, [b'{"id":%d}' % i for i in range(4)])
            hits = await store.search(table, generation, np.ones(3, dtype=np.float32), limit=99)
            states.append((versions, sorted((h.key["id"], h.text, h.metadata["v"]) for h in hits)))
            await store.drop(table)
            await store.close()
        assert states[0] == states[1]
        floor = max((m.position.lsn for m in marks), default=0)
        want = {}
        for (i, lsn), r in sorted(records.items()):
            if lsn >= floor:
                want[i] = (lsn, r.op != "delete")
        assert {int(k[6:-1]): (v.position.lsn, v.live) for k, v in states[0][0].items()} == want

    asyncio.run(check())


async def test_a_claim_that_moves_the_position_alone_touches_no_index(
    postgres: PostgresDatabase, store: PgvectorStore
) -> None:
    table = table_of(source("size", "bigint"))
    generation = await made(store, table)
    await store.apply(table, generation, [record("upsert", 1, 5, size=1)])
    await store.build_indexes(table, generation)
    await store.apply(table, generation, [record("metadata", 1, 6, size=1)])
    await store.close()  # a session that ends tells its counts
    counted = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'vt_12345678_things_g1'"
    assert postgres.execute(counted) == [(1, 1)]
