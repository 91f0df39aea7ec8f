"""A filter costs no recall: searches against exact ones, for rows near the query and rows far from it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import psycopg
import pytest

from sink.stores import pgvector_search
from sink.stores.pgvector import PgvectorStore
from tests.integration.test_pgvector import made, source, table_of
from tests.plugins.postgres import PostgresDatabase
from walvec.contracts.keys import key_id
from walvec.contracts.stores import Condition, Filter

ROWS, DIMENSIONS, CLUSTERS = 20_000, 64, 50
TABLE = table_of(source("tenth", "integer"), source("near", "integer"), dimensions=DIMENSIONS)
GENERATION = TABLE.active


class Filled:
    """Rows in clusters. `tenth`: a random number below 1000; `near`: rows by distance from `query`, in per mille."""

    def __init__(self, store: PgvectorStore) -> None:
        self.store = store
        random = np.random.default_rng(7)
        centres = random.normal(size=(CLUSTERS, DIMENSIONS))
        self.vectors = (centres[random.integers(CLUSTERS, size=ROWS)] + random.normal(size=(ROWS, DIMENSIONS))).astype(
            np.float32
        )
        self.unit = self.vectors / np.linalg.norm(self.vectors, axis=1, keepdims=True)
        self.query = self.vectors[0]
        self.queries = [self.query, *self.vectors[1:4]]
        order = np.argsort(-(self.unit @ self.unit[0]))
        self.near = np.empty(ROWS, dtype=int)
        self.near[order] = np.arange(ROWS) * 1000 // ROWS
        self.tenth = random.integers(1000, size=ROWS)

    async def recall(self, query: np.ndarray, where: Filter | None, kept: np.ndarray, **more: Any) -> float:
        scores = self.unit @ (query / np.linalg.norm(query))
        ids = np.flatnonzero(kept)
        wanted = set(ids[np.argsort(-scores[ids])][:10].tolist())
        if "min_score" in more:
            wanted = {i for i in wanted if scores[i] >= more["min_score"]}
        found = await self.store.search(TABLE, GENERATION, query, limit=10, where=where, **more)
        assert all(kept[h.key["id"]] for h in found)
        return len(wanted & {h.key["id"] for h in found}) / len(wanted) if wanted else 1.0


@pytest.fixture
async def filled(postgres: PostgresDatabase) -> AsyncIterator[Filled]:
    store = PgvectorStore(postgres.dsn, "walvec")
    await made(store, TABLE)
    filled = Filled(store)
    relation = postgres.execute("SELECT relation FROM walvec._walvec_stores")[0][0]
    columns = "key_id, chunk, chunks, epoch, lsn, ordinal, live, key, hash, embedded_text, embedding, k0, m0, m1"
    statement = f"COPY walvec.{relation} ({columns}) FROM STDIN".encode()
    with psycopg.connect(postgres.dsn) as connection, connection.cursor().copy(statement) as copy:
        for i, vector in enumerate(filled.vectors):
            key = b'{"id":%d}' % i
            own = (i, int(filled.tenth[i]), int(filled.near[i]))
            copy.write_row((key_id(key), 0, 1, 0, "0/1", 1, True, key, str(i), "", str(vector.tolist()), *own))
    await store.build_indexes(TABLE, GENERATION)
    yield filled
    await store.close()


def below(field: str, value: int) -> Filter:
    return Filter((Condition(field, "lt", value),))


def above(field: str, value: int) -> Filter:
    return Filter((Condition(field, "gte", value),))


def cases(filled: Filled) -> dict[str, tuple[Filter | None, np.ndarray]]:
    """Filters that keep 0.1 % to 30 % of the rows: at random, and those that lie farthest from the query."""
    found: dict[str, tuple[Filter | None, np.ndarray]] = {"none": (None, filled.tenth >= 0)}
    for n in (1, 10, 100, 300):
        found[f"random {n}"] = (below("tenth", n), filled.tenth < n)
        found[f"far {n}"] = (above("near", 1000 - n), filled.near >= 1000 - n)
        found[f"near {n}"] = (below("near", n), filled.near < n)
    return found


@pytest.mark.parametrize("exact_floats", [None, 0], ids=["as set", "index wherever it can"])
async def test_a_filter_keeps_its_recall(
    filled: Filled, monkeypatch: pytest.MonkeyPatch, exact_floats: int | None
) -> None:
    if exact_floats is not None:
        monkeypatch.setattr(pgvector_search, "_EXACT_FLOATS", exact_floats)
    recalls = {
        name: float(np.mean([await filled.recall(query, where, kept) for query in filled.queries]))
        for name, (where, kept) in cases(filled).items()
    }
    assert {name: r for name, r in recalls.items() if r < 0.95} == {}
    for score in (0.2, 0.9):
        where, kept = cases(filled)["random 10"]
        assert await filled.recall(filled.query, where, kept, min_score=score) >= 0.95


async def test_an_older_pgvector_answers_filters_exactly(filled: Filled, postgres: PostgresDatabase) -> None:
    """Its index does not go on behind the first rows that do not pass."""
    await filled.recall(filled.query, None, filled.tenth >= 0)
    kept, layout = filled.store._layouts[TABLE.id, 1]
    filled.store._layouts[TABLE.id, 1] = (kept, replace(layout, version=(0, 7)))
    for name, (where, passing) in cases(filled).items():
        if where is not None:
            assert await filled.recall(filled.query, where, passing) == 1.0, name


async def test_pages_hold_every_row_once_while_rows_are_added(filled: Filled, postgres: PostgresDatabase) -> None:
    where, kept = cases(filled)["random 100"]
    relation = postgres.execute("SELECT relation FROM walvec._walvec_stores")[0][0]
    for chosen in (where, None):
        after, found = None, []
        for page in range(12):
            hits = await filled.store.search(TABLE, GENERATION, filled.query, limit=100, where=chosen, after=after)
            found += hits
            after = hits[-1].place
            postgres.execute(  # a copy of a row that was shown already, at its very place but for the key
                f"INSERT INTO walvec.{relation} SELECT gen_random_uuid(), chunk, chunks, epoch, lsn, ordinal, live, "
                f"key, hash, embedded_text, embedding, k0 + 1000000, m0, m1 FROM walvec.{relation} WHERE k0 = {page}"
            )
        ids = [h.key["id"] for h in found if h.place.identity == key_id(b'{"id":%d}' % h.key["id"]).bytes]
        assert len(ids) == len(set(ids))
        assert [h.place[:3] for h in found] == sorted(h.place[:3] for h in found)
        assert [h.place.rank for h in found] == list(range(1, 1201))
        scores = filled.unit @ filled.unit[0]
        rows = np.flatnonzero(kept) if chosen is not None else np.arange(ROWS)
        nearest = set(rows[np.argsort(-scores[rows])][:1000].tolist())
        assert len(nearest & set(ids)) >= 950


async def test_a_search_gives_back_vectors_when_asked(filled: Filled) -> None:
    hit = (await filled.store.search(TABLE, GENERATION, filled.query, limit=1, vectors=True))[0]
    assert hit.vector == pytest.approx(filled.vectors[hit.key["id"]].tolist(), rel=1e-6)
    assert (await filled.store.search(TABLE, GENERATION, filled.query, limit=1))[0].vector is None
