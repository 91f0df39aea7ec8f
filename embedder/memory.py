"""Vectors that were sent for and may not be in the store yet, by content hash: bounded by bytes, oldest out. Pure."""

from __future__ import annotations

from collections import OrderedDict

_OVERHEAD = 200


class Memory:
    def __init__(self, max_bytes: int = 32 * 1024**2) -> None:
        self._max = max_bytes
        self._size = 0
        self._vectors: OrderedDict[str, bytes] = OrderedDict()

    def bound(self, max_bytes: int) -> None:
        """At most so much from now on."""
        self._max = min(self._max, max_bytes)
        self._drop()

    def get(self, content_hash: str) -> bytes | None:
        """Little-endian float32."""
        return self._vectors.get(content_hash)

    def put(self, content_hash: str, vector: bytes) -> None:
        old = self._vectors.pop(content_hash, None)
        if old is not None:
            self._size -= len(old) + _OVERHEAD
        self._vectors[content_hash] = vector
        self._size += len(vector) + _OVERHEAD
        self._drop()

    def _drop(self) -> None:
        while self._size > self._max and len(self._vectors) > 1:
            _, dropped = self._vectors.popitem(last=False)
            self._size -= len(dropped) + _OVERHEAD

    def __len__(self) -> int:
        return len(self._vectors)
