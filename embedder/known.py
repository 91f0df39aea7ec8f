"""What need not be paid for: the store's own versions, and vectors of the same text.

A vector belongs to kind of provider, model, dimensions and text, which its content hash names: a generation takes those
of every other one of its table that says the same of itself, also of one that is not fed any more.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from embedder.context import Context
from walvec.contracts.errors import StoreRejected, StoreUnavailable
from walvec.contracts.stores import StoredVersion
from walvec.definitions.model import Generation, VectorTable
from walvec.runtime.retry import persistently

_log = logging.getLogger(__name__)
K = TypeVar("K")
V = TypeVar("V")


def same_vectors(table: VectorTable, a: Generation, b: Generation) -> bool:
    """Whether equal texts have equal vectors, and hashes, in both."""
    return (table.kind_of(a), a.embedding_model, a.embedding_dimensions) == (
        table.kind_of(b),
        b.embedding_model,
        b.embedding_dimensions,
    )


async def versions(context: Context, generation: Generation, keys: Sequence[bytes]) -> Mapping[bytes, StoredVersion]:
    return await _ask(lambda: context.lookup.versions(context.table, generation, keys)) if keys else {}


async def vectors(context: Context, generation: Generation, hashes: Sequence[str]) -> dict[str, bytes]:
    """Little-endian float32 by content hash: of its own storage, then of the others', the active one's first."""
    table = context.table
    others = [g for g in table.generations if g.number != generation.number and same_vectors(table, g, generation)]
    others.sort(key=lambda g: (g.state != "active", -g.number))
    found: dict[str, bytes] = {}
    left = list(hashes)
    for place in (generation, *others):
        if not left:
            break
        met: Mapping[str, np.ndarray] = await _ask(
            lambda place=place, left=left: context.lookup.vectors(table, place, left)  # type: ignore[misc]
        )
        found.update((h, np.ascontiguousarray(v, dtype="<f4").tobytes()) for h, v in met.items())
        left = [h for h in left if h not in found]
    return found


async def _ask(call: Callable[[], Awaitable[Mapping[K, V]]]) -> Mapping[K, V]:
    """A look-up only spares money: a store that refuses it, or a storage that is gone, knows nothing; a store that is
    down is waited for."""
    try:
        return await persistently(call, StoreUnavailable, action="look_up")
    except StoreRejected as e:
        _log.info("look-up refused", extra={"action": "look_up_refused", "reason": str(e)})
        return {}
