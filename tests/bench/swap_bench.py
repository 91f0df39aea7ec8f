"""What a swap costs those who query meanwhile: searches and reads of the view without a pause, writes beside them, and
the view changing hands. Used by `pipeline` (scenario swap); alone: `python tests/bench/swap_bench.py DSN [ROWS]`.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from dataclasses import dataclass, field, replace

import numpy as np
import psycopg

from sink.stores.pgvector import PgvectorStore
from walvec.contracts.position import Position
from walvec.contracts.vectors import Chunk, VectorRecord
from walvec.definitions.model import Column, Generation, SourceColumn, VectorTable

SCHEMA = "walvec_swap"
VIEW = f"{SCHEMA}.swapped"
DIMENSIONS = 256
SWAPS = 20
BATCH = 2000
KEY = SourceColumn("id", "bigint", 20, "bigint", "int", nullable=False)
NAME = SourceColumn("name", "text", 25, "text", "text")
PRICE = SourceColumn("price", "integer", 23, "integer", "int")
FIRST = Generation(
    1, "active", "m", DIMENSIONS, (Column("name", "embedding"), Column("price", "metadata")), (KEY,), (KEY, NAME, PRICE)
)
SECOND = replace(FIRST, number=2, state="building", columns=FIRST.columns[:1])
TABLE = VectorTable("vt_swapped0", "swapped", "c", "e", "static", "public", "t", "pgvector", "managed", (FIRST, SECOND))


@dataclass
class Asked:
    """(began, ended) of each query; an error or an empty answer ends the run."""

    spans: list[tuple[float, float]] = field(default_factory=list)

    def slowest(self, began: float, ended: float) -> float:
        """Of those that ran at some moment in between."""
        return max((e - b for b, e in self.spans if b <= ended and e >= began), default=0.0)


@dataclass(frozen=True)
class Swapped:
    """Seconds. `extra`: per swap, how much longer the slowest query beside it took than the slowest in as long a time
    without one."""

    queries: int
    p50: float
    swaps: list[float]
    extra: list[float]


async def fill(dsn: str, store: PgvectorStore, rows: int) -> None:
    vectors = np.random.default_rng(1).normal(size=(BATCH, DIMENSIONS)).astype(np.float32)
    await store.drop(TABLE)
    for generation in TABLE.generations:
        await store.ensure(TABLE, generation)
    for at in range(0, rows, BATCH):
        records = [record("upsert", i, i + 1, vectors[i % BATCH]) for i in range(at, min(at + BATCH, rows))]
        for generation in TABLE.generations:
            await store.apply(TABLE, generation, records)
    await asyncio.gather(*(store.build_indexes(TABLE, g) for g in TABLE.generations))
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("VACUUM ANALYZE")


def record(op: str, i: int, lsn: int, vector: np.ndarray) -> VectorRecord:
    chunk = Chunk(0, f"row {i}", f"{i:032x}", vector)
    return VectorRecord(op, Position(0, lsn, 1), b'{"id":%d}' % i, 1, {"price": i}, {}, (chunk,))  # type: ignore[arg-type]


async def searches(store: PgvectorStore, asked: Asked, stop: asyncio.Event) -> None:
    vectors = np.random.default_rng(2).normal(size=(64, DIMENSIONS)).astype(np.float32)
    n = 0
    while not stop.is_set():
        n += 1
        began = time.perf_counter()
        hits = await store.search(TABLE, TABLE.generations[n % 2], vectors[n % 64], limit=10)
        if len(hits) != 10:
            raise AssertionError("an answer lacks rows")
        asked.spans.append((began, time.perf_counter()))


async def reads(dsn: str, asked: Asked, stop: asyncio.Event) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        n = 0
        while not stop.is_set():
            n += 1
            began = time.perf_counter()
            cursor = await connection.execute(
                f"SELECT id, embedded_text FROM {VIEW} WHERE id = %s".encode(), (n % 100,), prepare=False
            )
            if len(await cursor.fetchall()) != 1:
                raise AssertionError("an answer lacks rows")
            asked.spans.append((began, time.perf_counter()))


async def writes(store: PgvectorStore, rows: int, stop: asyncio.Event) -> None:
    vector = np.ones(DIMENSIONS, dtype=np.float32)
    n = rows
    while not stop.is_set():
        n += 1
        for generation in TABLE.generations:
            await store.apply(
                TABLE, generation, [record("upsert", i, n, vector) for i in range(n % 50, rows, rows // 20)]
            )
        await asyncio.sleep(0.02)


async def measure(dsn: str, rows: int) -> Swapped:
    store = PgvectorStore(dsn, SCHEMA)
    try:
        await fill(dsn, store, rows)
        await store.show(TABLE, FIRST)
        asked, stop = Asked(), asyncio.Event()
        parts = [
            asyncio.create_task(searches(store, asked, stop)),
            asyncio.create_task(reads(dsn, asked, stop)),
            asyncio.create_task(reads(dsn, asked, stop)),
            asyncio.create_task(writes(store, rows, stop)),
        ]
        swaps: list[float] = []
        extra: list[float] = []
        try:
            await asyncio.sleep(1.0)
            for n in range(SWAPS):
                quiet = time.perf_counter()
                await asyncio.sleep(0.5)
                began = time.perf_counter()
                await store.show(TABLE, TABLE.generations[(n + 1) % 2])
                ended = time.perf_counter()
                await asyncio.sleep(0.5 - min(0.4, ended - began))
                swaps.append(ended - began)
                extra.append(asked.slowest(began, time.perf_counter()) - asked.slowest(quiet, began))
        finally:
            stop.set()
            await asyncio.gather(*parts)
        return Swapped(len(asked.spans), statistics.median(e - b for b, e in asked.spans), swaps, extra)
    finally:
        await store.drop(TABLE)
        await store.close()


def main() -> None:
    rows = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
    found = asyncio.run(measure(sys.argv[1], rows))
    sys.stdout.write(
        f"{rows:,} rows, {SWAPS} swaps, {found.queries:,} queries (p50 {found.p50 * 1000:.1f} ms): a swap takes "
        f"{statistics.median(found.swaps) * 1000:.1f} ms (at most {max(found.swaps) * 1000:.1f}), a query beside it "
        f"{statistics.median(found.extra) * 1000:+.1f} ms longer (at most {max(found.extra) * 1000:+.1f})\n"
    )


if __name__ == "__main__":
    main()
