"""Vectors made from a text's hash, at once and from memory: for tests and measurements. They carry no meaning."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from embedder.packing import Limits
from embedder.providers.port import Kind, check_matrix

MODEL = "fake"
_BASES = 64


class FakeProvider:
    """Any dimensions; equal texts get equal vectors, different texts different ones (up to 32 bits of their hash)."""

    def __init__(self, dimensions: int, limits: Limits) -> None:
        self._dimensions = dimensions
        self._limits = limits
        self._bases = np.random.default_rng(dimensions).standard_normal((_BASES, dimensions)).astype(np.float32)

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def tokens(self) -> None:
        return None

    async def embed(self, texts: Sequence[str], *, kind: Kind) -> np.ndarray:
        digests = np.frombuffer(b"".join(blake2b(t.encode(), digest_size=8).digest() for t in texts), dtype="<u4")
        pairs = digests.reshape(len(texts), 2)
        matrix = self._bases[pairs[:, 0] % _BASES]
        matrix[:, 0] += pairs[:, 1] / np.float32(2**32)
        return check_matrix(matrix.astype(np.float32), len(texts), self._dimensions)

    async def close(self) -> None:
        """Nothing is held."""
