"""Rows per second into a fresh pgvector table, decoding included. `python tests/bench/sink_bench.py DSN [ROWS]`."""

from __future__ import annotations

import asyncio
import sys
import time

import numpy as np

from sink.stores.pgvector import PgvectorStore
from walvec.contracts.position import Position
from walvec.contracts.vectors import Chunk, VectorRecord
from walvec.contracts.wire import decode_vector, encode_vector
from walvec.definitions.model import Column, Generation, SourceColumn, VectorTable

BATCH = 2000


def table(dimensions: int) -> VectorTable:
    key = SourceColumn("id", "bigint", 20, "bigint", "int", nullable=False)
    text = SourceColumn("name", "text", 25, "text", "text")
    price = SourceColumn("price", "numeric", 1700, "numeric", "numeric")
    columns = (Column("name", "embedding"), Column("price", "metadata"))
    generation = Generation(1, "active", "m", dimensions, columns, (key,), (key, text, price))
    name = f"bench{dimensions}"
    return VectorTable(
        f"vt_bench{dimensions:04}", name, "c", "e", "static", "public", name, "pgvector", "managed", (generation,)
    )


async def measure(dsn: str, dimensions: int, rows: int) -> None:
    store = PgvectorStore(dsn, "walvec_bench")
    made = table(dimensions)
    generation = made.active
    await store.drop(made)
    await store.ensure(made, generation)
    vectors = np.random.default_rng(1).normal(size=(BATCH, dimensions)).astype(np.float32)
    wire = []
    for i in range(rows):
        text = f"A product of some kind, number {i}, with a description of ordinary length for a shop"
        key = b'{"id":%d}' % i
        chunk = Chunk(0, text, f"{i:032x}", vectors[i % BATCH])
        wire.append(
            (key, encode_vector(VectorRecord("upsert", Position(0, i + 1, 1), key, 1, {"price": "9.99"}, {}, (chunk,))))
        )
    decoding = applying = 0.0
    for at in range(0, rows, BATCH):
        t0 = time.perf_counter()
        records = [decode_vector(k, v) for k, v in wire[at : at + BATCH]]
        t1 = time.perf_counter()
        await store.apply(made, generation, records)
        applying += time.perf_counter() - t1
        decoding += t1 - t0
    one = []
    for i in range(50):
        t0 = time.perf_counter()
        await store.apply(made, generation, [decode_vector(wire[i][0], wire[i][1])])
        one.append(time.perf_counter() - t0)
    sys.stdout.write(
        f"{dimensions} dims: decode {rows / decoding:,.0f}/s, apply {rows / applying:,.0f}/s, "
        f"both {rows / (decoding + applying):,.0f}/s, single record {sorted(one)[25] * 1000:.1f} ms\n"
    )
    await store.drop(made)
    await store.close()


async def main() -> None:
    rows = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    await measure(sys.argv[1], 256, rows)
    await measure(sys.argv[1], 1536, rows // 3)


if __name__ == "__main__":
    asyncio.run(main())
