"""Rows per second of the embedder stage alone: memory log, a provider that answers at once, no store look-ups hit.

`python -m tests.bench.embedder_bench [--rows N] [--dimensions D] [--static] [--profile]`
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import time
from collections.abc import Sequence

import numpy as np

from embedder.packing import Limits
from embedder.providers import registry
from embedder.providers.port import Kind, Provider
from tests.plugins.embedder_world import World, change, generation, vector_table
from walvec.definitions.model import EmbeddingProvider
from walvec.runtime.settings import Settings

_TEXT = "A lamp of brushed steel with a long arm, made for reading in bed and for desks that are too deep. " * 4


class _Instant:
    limits = Limits(max_items=512, max_in_flight=4)
    tokens = None

    def __init__(self, dimensions: int) -> None:
        self._matrix = np.random.default_rng(1).standard_normal((512, dimensions)).astype("<f4")

    async def embed(self, texts: Sequence[str], *, kind: Kind) -> np.ndarray:
        return self._matrix[: len(texts)]

    async def close(self) -> None:
        return


def _make(provider: EmbeddingProvider, model: str, dimensions: int, settings: Settings) -> Provider:
    return _Instant(dimensions)


async def _run(rows: int, dimensions: int, static: bool) -> tuple[float, int]:
    if not static:
        registry.KINDS["openai"] = registry.ProviderKind(_make)
    world = World("", kind="static" if static else "openai")
    model = "minilm-static-256" if static else "m"
    await world.define(
        vector_table(generation(model=model, dimensions=dimensions), provider_kind=world.provider.provider)
    )
    await world.put(*(change(i, 10 + i, f"{_TEXT}{i}", op="r") for i in range(rows)))
    start = time.perf_counter()
    async with world.running():
        await world.drained()
        took = time.perf_counter() - start
    return took, len(await world.outputs())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--static", action="store_true")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    profile = cProfile.Profile()
    if args.profile:
        profile.enable()
    took, records = asyncio.run(_run(args.rows, args.dimensions, args.static))
    if args.profile:
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(22)
    print(f"{args.rows / took:,.0f} rows/s ({records} records in {took:.2f} s)")


if __name__ == "__main__":
    main()
