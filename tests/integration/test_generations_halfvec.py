"""Generations above 2000 dimensions, which are kept as halfvec, and back: under traffic, and by rollback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sink.stores.pgvector_layout import MAX_HALFVEC_INDEX, MAX_VECTOR_INDEX
from sink.stores.registry import Stores
from tests.integration.generations_world import BODIES, NAMES, TABLE, VIEW, World, traffic, world
from tests.plugins.eventually import eventually
from walvec.definitions.model import Generation


@pytest.fixture
async def at(postgres: Any) -> AsyncIterator[World]:
    async with world(postgres, rows=80) as made:
        yield made


def wide(dimensions: int) -> Generation:
    return replace(BODIES, embedding_dimensions=dimensions)


async def stored(at: World) -> tuple[str, str | None]:
    """The type of the active generation's vectors, and the operator class of their index, if they have one."""
    number = (await at.table()).active.number
    [(relation,)] = await at.rows(f"SELECT relation FROM walvec._walvec_stores WHERE generation = {number}")
    [(kind,)] = await at.rows(
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
        f" WHERE attrelid = 'walvec.{relation}'::regclass AND attname = 'embedding'"
    )
    [(shown,)] = await at.rows(
        f"SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = '{VIEW}'::regclass"
        " AND attname = 'embedding'"
    )
    assert shown == kind
    classes = await at.rows(
        "SELECT o.opcname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam"
        f" JOIN pg_opclass o ON o.oid = i.indclass[0] WHERE i.indrelid = 'walvec.{relation}'::regclass"
        " AND a.amname = 'hnsw'"
    )
    return kind, classes[0][0] if classes else None


async def test_from_vector_to_halfvec_and_back(at: World) -> None:
    """Nobody who reads or asks sees an error, a gap or a mixture; each generation's storage is of its own type."""
    assert await stored(at) == ("vector(8)", "vector_cosine_ops")
    async with traffic(at) as seen:
        for generation, kind, operators in (
            (wide(MAX_VECTOR_INDEX), "vector(2000)", "vector_cosine_ops"),
            (wide(MAX_VECTOR_INDEX + 1), "halfvec(2001)", "halfvec_cosine_ops"),
            (wide(MAX_HALFVEC_INDEX + 1), "halfvec(4001)", None),  # searched exactly
            (NAMES, "vector(8)", "vector_cosine_ops"),
        ):
            number = await at.rebuild(generation)
            await at.active(number)
            await eventually(lambda n=generation.embedding_dimensions: n in seen.seen)  # type: ignore[misc]
            assert await stored(at) == (kind, operators)
    await at.equal()


async def test_a_rollback_to_halfvec_takes_its_vectors_as_they_are(at: World) -> None:
    await at.active(await at.rebuild(wide(3072)))
    await at.equal()
    vectors = f"SELECT id, embedding::text FROM {VIEW} ORDER BY id"
    before = await at.rows(vectors)
    await at.active(await at.rebuild(NAMES))
    await at.sql("UPDATE products SET body = 'changed meanwhile' WHERE id = 7", "DELETE FROM products WHERE id = 8")
    _, task = await at.control.definitions.rollback(TABLE)
    await at.active(task.generation)
    await at.equal()
    after = await at.rows(vectors)
    assert [r for r in after if r[0] != 7] == [r for r in before if r[0] not in (7, 8)]
    assert await stored(at) == ("halfvec(3072)", "halfvec_cosine_ops")


async def test_queries_of_halfvec_find_what_is_nearest(at: World) -> None:
    """By the index, by a filter, and past a page: each row is nearest to its own vector, whatever its length."""
    await at.active(await at.rebuild(wide(3072)))
    stores, table = Stores(at.settings, at.control), await at.table()
    try:
        [near] = await stores.search(table, table.active, np.ones(3072, dtype=np.float32), limit=1, vectors=True)
        assert near.vector is not None
        own = np.asarray(near.vector, dtype=np.float32)
        for length in (1.0, 1e6, 1e-6):  # a half holds neither of the last two
            hits = await stores.search(table, table.active, own * np.float32(length), limit=5)
            assert hits[0].key == near.key
            assert hits[0].score == pytest.approx(1.0, abs=2e-3)
            rest = await stores.search(table, table.active, own * np.float32(length), limit=79, after=hits[4].place)
            assert len({str(h.key) for h in [*hits, *rest]}) == 80
            assert [h.score for h in rest] == sorted((h.score for h in rest), reverse=True)
    finally:
        await stores.close()
