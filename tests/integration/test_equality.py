"""After everything has come to rest the store equals the source table, whatever crashed, came late or came twice.

The parts are the real ones; the history, the faults and their order are random, from fixed seeds and from hypothesis.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedder import batch
from embedder.packing import Limits
from embedder.providers.fake import FakeProvider
from sink.stores.memory import MemoryStore
from sink.stores.pgvector import PgvectorStore
from tests.integration.equality_world import GENERATION, TABLE, World
from tests.plugins.postgres import PostgresDatabase

Stored = dict[int, tuple[str, int]]
STEPS, ROUNDS = 120, 3


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_REREAD_PAUSE", 0.0)


async def in_memory(store: MemoryStore) -> Stored:
    """Live rows, each with the vector of its own text."""
    rows = store._storages[(TABLE.id, GENERATION.number)].rows
    fake = FakeProvider(GENERATION.embedding_dimensions, Limits())
    out: Stored = {}
    for key, row in rows.items():
        if not row.live:
            continue
        (chunk,) = row.chunks
        assert chunk.vector is not None
        np.testing.assert_array_equal(chunk.vector, (await fake.embed([chunk.text], kind="document"))[0])
        out[orjson.loads(key)["id"]] = (chunk.text, row.metadata["n"])
    return out


async def live_through(world: World, stored: Callable[[], Awaitable[Stored]], *, check_each: bool) -> None:
    await world.open()
    try:
        for _ in range(ROUNDS):
            for _ in range(STEPS):
                await world.step()
                if check_each:
                    await stored()
            await world.drain()
            have, letters = await stored(), await world.control.letters.keys(TABLE.id, GENERATION.number)
            open_letters = {orjson.loads(k)["id"] for k in letters}
            for k in have.keys() | world.rows.keys():
                if k in open_letters and k not in have:
                    continue
                assert have.get(k) == world.rows.get(k), f"key {k} after: {' '.join(world.trace[-400:])}"
    finally:
        await world.close()


async def once(seed: int) -> None:
    store = MemoryStore()
    world = World(store, seed, full=seed % 3 == 0, lie=seed % 2 == 0, faults=seed % 19)
    try:
        await live_through(world, lambda: in_memory(store), check_each=True)
    except Exception as e:
        e.add_note(f"seed {seed}")
        raise


@pytest.mark.parametrize("first", range(0, 120, 20))
async def test_store_equals_table(first: int) -> None:
    for seed in range(first, first + 20):
        await once(seed)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(100, 2**32))
def test_store_equals_table_hypothesis(seed: int) -> None:
    asyncio.run(once(seed))


@pytest.mark.parametrize("seed", [3, 8, 16])
async def test_store_equals_table_pgvector(postgres: PostgresDatabase, seed: int) -> None:
    async def stored() -> Stored:
        found = postgres.execute('SELECT id, embedded_text, n FROM walvec."t1"')
        return {int(str(i)): (str(text), int(str(n))) for i, text, n in found}

    store = PgvectorStore(postgres.dsn, "walvec")
    try:
        await live_through(World(store, seed, full=seed == 8, lie=True, faults=6), stored, check_each=False)
    finally:
        await store.close()
