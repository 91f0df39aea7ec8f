"""The store port's contract, against every adapter: one test per rule of the executable model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sink.stores.memory import MemoryStore
from sink.stores.pgvector import PgvectorStore
from sink.stores.port import Store
from walvec.contracts.errors import DefinitionError, StoreRejected
from walvec.contracts.position import Position
from walvec.contracts.stores import Condition, Filter
from walvec.contracts.vectors import Chunk, VectorRecord
from walvec.definitions.model import Column, Generation, SourceColumn, VectorTable

GENERATION = Generation(
    number=1,
    state="active",
    embedding_model="m",
    embedding_dimensions=3,
    columns=(
        Column("name", "embedding"),
        Column("price", "metadata", filter_type="float"),
        Column("tag", "metadata", filter_type="keyword"),
        Column("n", "metadata", filter_type="integer"),
        Column("ok", "metadata", filter_type="boolean"),
        Column("at", "metadata", filter_type="datetime"),
    ),
    key=(SourceColumn("id", "integer", 23, "integer", "int", nullable=False),),
    source=(
        SourceColumn("id", "integer", 23, "integer", "int", nullable=False),
        SourceColumn("name", "text", 25, "text", "text"),
        SourceColumn("price", "numeric(10,2)", 1700, "numeric", "numeric"),
        SourceColumn("tag", "text", 25, "text", "text"),
        SourceColumn("n", "bigint", 20, "bigint", "int"),
        SourceColumn("ok", "boolean", 16, "boolean", "bool"),
        SourceColumn("at", "timestamp with time zone", 1184, "timestamp with time zone", "timestamp"),
    ),
)
TABLE = VectorTable(
    id="vt_abcdefgh12",
    name="Product-Search",
    connection_id="conn_1",
    embedding_provider_id="ep_1",
    provider_kind="static",
    source_schema="public",
    source_table="products",
    store="pgvector",
    mode="managed",
    generations=(GENERATION,),
)
VECTORS = {"A": [1.0, 0.0, 0.0], "B": [0.0, 1.0, 0.0], "C": [0.6, 0.8, 0.0]}


@pytest.fixture(params=["memory", "pgvector"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    made: Store
    if request.param == "memory":
        made = MemoryStore()
    else:
        made = PgvectorStore(request.getfixturevalue("postgres").dsn, "walvec")
    await made.ensure(TABLE, GENERATION)
    await made.show(TABLE, GENERATION)
    yield made
    await made.close()


def key(i: int) -> bytes:
    return b'{"id":%d}' % i


def at(lsn: int, ordinal: int = 1, epoch: int = 0) -> Position:
    return Position(epoch, lsn, ordinal)


def upsert(i: int, position: Position, text: str = "A", **metadata: Any) -> VectorRecord:
    chunk = Chunk(0, text, f"hash-{text}", np.array(VECTORS[text], dtype=np.float32))
    return VectorRecord("upsert", position, key(i), 1, metadata, {}, (chunk,))


def claim(i: int, position: Position, text: str = "A", **metadata: Any) -> VectorRecord:
    return VectorRecord("metadata", position, key(i), 1, metadata, {}, (Chunk(0, text, f"hash-{text}"),))


def delete(i: int, position: Position) -> VectorRecord:
    return VectorRecord("delete", position, key(i), 1)


def truncate(position: Position) -> VectorRecord:
    return VectorRecord("truncate", position, b"", 1)


async def state(store: Store) -> dict[int, tuple[Position, bool, tuple[str, ...]]]:
    found = await store.versions(TABLE, GENERATION, [key(i) for i in range(50)])
    return {int(k[6:-1]): (v.position, v.live, v.hashes) for k, v in found.items()}


async def metadata(store: Store) -> dict[Any, dict[str, Any]]:
    hits = await store.search(TABLE, GENERATION, np.array([1, 1, 1], dtype=np.float32), limit=100)
    return {h.key["id"]: {k: v for k, v in h.metadata.items() if v is not None} for h in hits}


async def test_guard_an_older_record_changes_nothing(store: Store) -> None:
    await store.apply(TABLE, GENERATION, [upsert(1, at(9), "B")])
    await store.apply(TABLE, GENERATION, [upsert(1, at(5), "A"), delete(1, at(6)), claim(1, at(7), "B")])
    assert await state(store) == {1: (at(9), True, ("hash-B",))}


async def test_guard_within_one_batch(store: Store) -> None:
    await store.apply(TABLE, GENERATION, [upsert(1, at(9), "B", n=1), upsert(1, at(5), "A", n=2), delete(1, at(6))])
    assert await state(store) == {1: (at(9), True, ("hash-B",))}


async def test_guard_compares_epoch_then_lsn_then_ordinal(store: Store) -> None:
    for position, text in ((at(9, 1), "A"), (at(9, 2), "B"), (at(2**62, 1), "A"), (at(1, 1, epoch=1), "C")):
        await store.apply(TABLE, GENERATION, [upsert(1, position, text)])
        assert await state(store) == {1: (position, True, (f"hash-{text}",))}
    await store.apply(TABLE, GENERATION, [upsert(1, at(2**62 + 1), "A")])
    assert (await state(store))[1][0] == at(1, 1, epoch=1)


async def test_strict_guard_a_tie_changes_nothing(store: Store) -> None:
    await store.apply(TABLE, GENERATION, [upsert(1, at(9), "B", n=1)])
    applied = await store.apply(TABLE, GENERATION, [upsert(1, at(9), "A", n=2)])
    assert applied.applied == 0
    assert await state(store) == {1: (at(9), True, ("hash-B",))}
    assert await metadata(store) == {1: {"n": 1}}


async def test_tombstones_a_late_upsert_does_not_revive(store: Store) -> None:
    await store.apply(TABLE, GENERATION, [upsert(1, at(5))])
    await store.apply(TABLE, GENERATION, [delete(1, at(9))])
    await store.apply(TABLE, GENERATION, [upsert(1, at(7), "B")])
    assert await state(store) == {1: (at(9), False, ())}
    assert await store.count(TABLE, GENERATION) == 0
    await store.apply(TABLE, GENERATION, [upsert(1, at(10), "C")])
    assert await state(store) == {1: (at(10), True, ("hash-C",))}
    assert await store.count(TABLE, GENERATION) == 1


async def test_tombstones_keep_their_vector_by_hash(store: Store) -> None:
    await store.apply(TABLE, GENERATION, [upsert(1, at(5), "C"), upsert(2, at(5), "B")])
    await store.apply(TABLE, GENERATION, [delete(1, at(9))])
    found = await store.vectors(TABLE, GENERATION, ["hash-C", "hash-B", "hash-none"])
    assert {k: v.tolist() for k, v in found.items()} == {
        "hash-C": pytest.approx(VECTORS["C"]),
        "hash-B": pytest.approx(VECTORS["B"]),
    }


async def test_tombstone_absent_a_delete_before_its_row(store: Store) -> None:
    await store.apply(TABLE, GENERATION, [delete(1, at(9))])
    await store.apply(TABLE, GENERATION, [upsert(1, at(5, 0))])
    assert await state(store) == {1: (at(9), False, ())}


async def test_floor_truncate_removes_what_is_older_and_refuses_it(store: Store) -> None:
    await store.apply(TABLE, GENERATION, [upsert(1, at(5)), upsert(2, at(8)), delete(3, at(5))])
    await store.apply(TABLE, GENERATION, [truncate(at(7))])
    assert await state(store) == {2: (at(8), True, ("hash-A",))}
    answer = await store.apply(TABLE, GENERATION, [upsert(1, at(6)), delete(4, at(6)), claim(5, at(6))])
    assert not answer.refused_claims
    assert await state(store) == {2: (at(8), True, ("hash-A",))}
    await store.apply(TABLE, GENERATION, [truncate(at(3)), upsert(1, at(6))])
    assert set(await state(store)) == {2}


async def test_floor_within_one_batch(store: Store) -> None:
    await store.apply(TABLE, GENERATION, [upsert(1, at(5)), truncate(at(7)), upsert(2, at(8)), upsert(3, at(6))])
    assert set(await state(store)) == {2}


async def test_sweep_floor_a_record_at_the_floor_stays_and_is_applied(store: Store) -> None:
    low = Position(0, 7, 0)
    await store.apply(TABLE, GENERATION, [upsert(1, at(5)), upsert(2, low)])
    await store.apply(TABLE, GENERATION, [truncate(low)])
    await store.apply(TABLE, GENERATION, [upsert(3, low), upsert(4, at(6))])
    assert set(await state(store)) == {2, 3}


async def test_claim_check_another_text_or_no_row_goes_back(store: Store) -> None:
    await store.apply(TABLE, GENERATION, [upsert(1, at(5), "B"), delete(3, at(5))])
    wanted = [claim(1, at(6), "A", n=1), claim(2, at(6), "A"), claim(3, at(6), "A")]
    answer = await store.apply(TABLE, GENERATION, wanted)
    assert sorted(r.key for r in answer.refused_claims) == [key(1), key(2), key(3)]
    assert (await state(store))[1] == (at(5), True, ("hash-B",))
    assert await metadata(store) == {1: {}}


async def test_claim_check_an_older_claim_is_dropped(store: Store) -> None:
    await store.apply(TABLE, GENERATION, [upsert(1, at(5), "B")])
    answer = await store.apply(TABLE, GENERATION, [claim(1, at(4), "A"), claim(1, at(5), "A")])
    assert not answer.refused_claims


async def test_claim_atomic_upsert_and_claim_of_one_batch(store: Store) -> None:
    batch = [upsert(1, at(5), "A", n=1), claim(1, at(6), "A", n=2), upsert(2, at(5), "A"), claim(2, at(6), "B")]
    answer = await store.apply(TABLE, GENERATION, batch)
    assert [r.key for r in answer.refused_claims] == [key(2)]
    assert await state(store) == {1: (at(6), True, ("hash-A",)), 2: (at(5), True, ("hash-A",))}
    assert (await metadata(store))[1] == {"n": 2}


async def test_claim_advance_moves_the_position_of_an_equal_row(store: Store) -> None:
    await store.apply(TABLE, GENERATION, [upsert(1, at(5), "A", n=1)])
    await store.apply(TABLE, GENERATION, [claim(1, at(9), "A", n=1)])
    await store.apply(TABLE, GENERATION, [truncate(at(7))])
    assert await state(store) == {1: (at(9), True, ("hash-A",))}


async def test_purge_horizon_refuses_what_is_older_for_unknown_keys(store: Store) -> None:
    await store.apply(
        TABLE, GENERATION, [delete(1, at(5)), delete(2, at(5)), upsert(3, at(4)), delete(4, at(20)), upsert(5, at(6))]
    )
    assert await store.purge(TABLE, GENERATION, Position(0, 10, 0), {key(2)}) == 1
    assert set(await state(store)) == {2, 3, 4, 5}
    answer = await store.apply(TABLE, GENERATION, [upsert(1, at(4)), claim(6, at(4)), upsert(3, at(7), "B")])
    assert not answer.refused_claims
    assert await state(store) == {
        2: (at(5), False, ()),
        3: (at(7), True, ("hash-B",)),
        4: (at(20), False, ()),
        5: (at(6), True, ("hash-A",)),
    }
    await store.apply(TABLE, GENERATION, [upsert(1, Position(0, 10, 0))])
    assert (await state(store))[1][1]


async def test_a_value_the_store_cannot_take_is_rejected_alone(store: Store) -> None:
    bad = upsert(2, at(5))
    bad = replace(bad, chunks=(replace(bad.chunks[0], text="a\x00b"),))
    short = upsert(4, at(5))
    short = replace(short, chunks=(replace(short.chunks[0], vector=np.zeros(2, dtype=np.float32)),))
    nan = upsert(6, at(5))
    nan = replace(nan, chunks=(replace(nan.chunks[0], vector=np.array([1, np.nan, 0], dtype=np.float32)),))
    answer = await store.apply(
        TABLE, GENERATION, [upsert(1, at(5)), bad, upsert(3, at(5)), short, upsert(5, at(5)), nan]
    )
    assert sorted(r.key for r, _ in answer.rejected) == [key(2), key(4), key(6)]
    assert all(reason for _, reason in answer.rejected)
    assert set(await state(store)) == {1, 3, 5}
    await store.apply(TABLE, GENERATION, [delete(2, at(5))])
    assert (await state(store))[2] == (at(5), False, ())


async def test_several_chunks_live_and_die_with_their_key(store: Store) -> None:
    def chunked(position: Position, *texts: str) -> VectorRecord:
        chunks = tuple(Chunk(i, t, f"hash-{t}", np.array(VECTORS[t], dtype=np.float32)) for i, t in enumerate(texts))
        return VectorRecord("upsert", position, key(1), 1, {}, {}, chunks)

    await store.apply(TABLE, GENERATION, [chunked(at(5), "A", "B", "C"), upsert(2, at(5))])
    assert (await state(store))[1] == (at(5), True, ("hash-A", "hash-B", "hash-C"))
    assert await store.count(TABLE, GENERATION) == 2
    both = replace(claim(1, at(6)), chunks=(Chunk(0, "A", "hash-A"), Chunk(1, "B", "hash-B")))
    assert (await store.apply(TABLE, GENERATION, [both])).refused_claims
    whole = replace(both, chunks=(*both.chunks, Chunk(2, "C", "hash-C")))
    assert not (await store.apply(TABLE, GENERATION, [whole])).refused_claims
    await store.apply(TABLE, GENERATION, [chunked(at(4), "C", "C", "C")])
    assert (await state(store))[1] == (at(6), True, ("hash-A", "hash-B", "hash-C"))
    await store.apply(TABLE, GENERATION, [chunked(at(7), "B", "A")])
    assert (await state(store))[1] == (at(7), True, ("hash-B", "hash-A"))
    await store.apply(TABLE, GENERATION, [delete(1, at(8))])
    assert (await state(store))[1] == (at(8), False, ())
    assert {h.key["id"] for h in await store.search(TABLE, GENERATION, np.ones(3, dtype=np.float32), limit=9)} == {2}


async def test_search_orders_by_cosine_and_cuts_by_score(store: Store) -> None:
    await store.apply(
        TABLE, GENERATION, [upsert(1, at(5), "A", price="12.50", tag="x"), upsert(2, at(5), "B"), upsert(3, at(5), "C")]
    )
    query = np.array([1, 0, 0], dtype=np.float32)
    hits = await store.search(TABLE, GENERATION, query, limit=10)
    assert [h.key["id"] for h in hits] == [1, 3, 2]
    assert [h.score for h in hits] == [pytest.approx(1), pytest.approx(0.6), pytest.approx(0)]
    assert (hits[0].text, hits[0].chunk, hits[0].metadata["tag"]) == ("A", 0, "x")
    assert [h.key["id"] for h in await store.search(TABLE, GENERATION, query, limit=10, min_score=0.5)] == [1, 3]
    assert len(await store.search(TABLE, GENERATION, query, limit=1)) == 1


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([Condition("tag", "eq", "x")], {1}),
        ([Condition("tag", "ne", "x")], {2, 3}),
        ([Condition("tag", "in", ["x", "y"])], {1, 2}),
        ([Condition("tag", "in", [])], set()),
        ([Condition("tag", "nin", ["x"])], {2, 3}),
        ([Condition("tag", "eq", None)], {3}),
        ([Condition("tag", "exists", True)], {1, 2}),
        ([Condition("n", "gt", 1), Condition("n", "lte", 3)], {2, 3}),
        ([Condition("n", "gte", 1.5)], {2, 3}),
        ([Condition("n", "eq", 2**80)], set()),
        ([Condition("ok", "eq", True)], {1}),
        ([Condition("at", "lt", "2024-06-01T00:00:00Z")], {1}),
        ([Condition("tag", "gt", "X")], {1, 2}),
        ([Condition("id", "in", [1, 3])], {1, 3}),
    ],
)
async def test_filters(store: Store, conditions: list[Condition], expected: set[int]) -> None:
    await store.apply(
        TABLE,
        GENERATION,
        [
            upsert(1, at(5), "A", tag="x", n=1, ok=True, at="2024-01-01T00:00:00Z"),
            upsert(2, at(5), "B", tag="y", n=2, ok=False, at="2025-01-01T00:00:00Z"),
            upsert(3, at(5), "C", n=3),
        ],
    )
    query = np.ones(3, dtype=np.float32)
    where = Filter(tuple(conditions))
    assert {h.key["id"] for h in await store.search(TABLE, GENERATION, query, limit=10, where=where)} == expected
    either = Filter((), ((where, Filter((Condition("n", "eq", 3),))),))
    found = {h.key["id"] for h in await store.search(TABLE, GENERATION, query, limit=10, where=either)}
    assert found == expected | {3}


async def test_a_filter_that_does_not_fit_is_a_definition_error(store: Store) -> None:
    await store.apply(TABLE, GENERATION, [upsert(1, at(5), "A", n=1)])
    query = np.ones(3, dtype=np.float32)
    for condition in (Condition("nothing", "eq", 1), Condition("n", "gt", "many")):
        with pytest.raises(DefinitionError):
            await store.search(TABLE, GENERATION, query, limit=1, where=Filter((condition,)))


async def test_compare_finds_missing_orphaned_and_stale(store: Store) -> None:
    await store.apply(
        TABLE,
        GENERATION,
        [upsert(1, at(5)), upsert(2, at(5)), upsert(3, at(5)), upsert(4, at(5)), delete(5, at(5)), delete(6, at(5))],
    )

    async def source() -> AsyncIterator[Sequence[tuple[bytes, str | None]]]:
        yield [(key(1), "hash-A"), (key(2), "hash-B")]
        yield [(key(4), None), (key(5), "hash-A"), (key(7), None), (key(8), "hash-A")]

    found = await store.compare(TABLE, GENERATION, source())
    assert found.missing == [key(5), key(8)]
    assert found.orphaned == [key(3), key(4)]
    assert found.stale == [key(2)]
    assert found.duplicate == []

    async def some() -> AsyncIterator[Sequence[tuple[bytes, str | None]]]:
        yield [(key(1), "hash-A")]

    found = await store.compare(TABLE, GENERATION, some(), only=[key(1), key(3)])
    assert (found.missing, found.orphaned, found.stale) == ([], [key(3)], [])


async def test_other_dimensions_are_refused_and_ensure_is_idempotent(store: Store) -> None:
    await store.apply(TABLE, GENERATION, [upsert(1, at(5))])
    await store.ensure(TABLE, GENERATION)
    assert await store.count(TABLE, GENERATION) == 1
    with pytest.raises(StoreRejected):
        await store.ensure(TABLE, replace(GENERATION, embedding_dimensions=4))


async def test_drop_is_idempotent_and_what_is_dropped_is_missing(store: Store) -> None:
    await store.drop(TABLE)
    await store.drop(TABLE)
    with pytest.raises(StoreRejected):
        await store.apply(TABLE, GENERATION, [upsert(1, at(5))])
    await store.ensure(TABLE, GENERATION)
    await store.apply(TABLE, GENERATION, [upsert(1, at(5))])
    assert await store.count(TABLE, GENERATION) == 1


async def test_indexes_are_built_twice_without_harm(store: Store) -> None:
    await store.apply(TABLE, GENERATION, [upsert(i, at(5), "ABC"[i % 3], tag="x" * (i * 400)) for i in range(40)])
    await store.build_indexes(TABLE, GENERATION)
    await store.build_indexes(TABLE, GENERATION)
    where = Filter((Condition("tag", "eq", "x" * 4000),))
    hits = await store.search(TABLE, GENERATION, np.ones(3, dtype=np.float32), limit=5, where=where)
    assert [h.key["id"] for h in hits] == [10]


async def test_what_users_read_is_not_dropped_and_storages_are_listed(store: Store) -> None:
    second = replace(GENERATION, number=2)
    both = replace(TABLE, generations=(GENERATION, replace(second, state="building")))
    await store.ensure(both, second)
    assert await store.generations(both) == [1, 2]
    await store.drop(both, 1)
    assert await store.generations(both) == [1, 2], "it is shown"
    await store.show(both, second)
    await store.drop(both, 1)
    await store.drop(both, 1)
    assert await store.generations(both) == [2]
    assert await store.generations(replace(TABLE, id="vt_other")) == []
    await store.drop(both)
    assert await store.generations(both) == []
