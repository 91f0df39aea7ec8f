"""The store port, and the contract that tests/contract/test_stores.py holds every adapter to.

Rules kept here, by name (see the executable model): guard, strict-guard, tombstones, tombstone-absent, floor,
sweep-floor, claim-check, claim-atomic, claim-advance, purge-horizon. Every method raises StoreUnavailable (try again)
or StoreRejected.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence, Set
from typing import Protocol

import numpy as np

from walvec.contracts.position import Position
from walvec.contracts.stores import Applied, Differences, Filter, Hit, Place, StoredVersion
from walvec.contracts.vectors import VectorRecord
from walvec.definitions.model import Generation, VectorTable


class Store(Protocol):
    async def ensure(self, table: VectorTable, generation: Generation) -> None:
        """Storage of the generation, idempotent. Raises StoreRejected when it exists with other dimensions."""

    async def show(self, table: VectorTable, generation: Generation) -> None:
        """Makes the generation the one that users read, in one step (pgvector: replaces the view). A query that takes
        long makes this wait, and nobody else: StoreUnavailable after a while."""

    async def drop(self, table: VectorTable, generation: int | None = None) -> None:
        """Drops the table with its view, or a generation that is not shown: one that is shown stays. Idempotent."""

    async def generations(self, table: VectorTable) -> list[int]:
        """Those that have a storage, in order."""

    async def apply(self, table: VectorTable, generation: Generation, records: Sequence[VectorRecord]) -> Applied:
        """One atomic batch: durable on return. Several records of a key may be in it.

        * An upsert or delete takes effect only if its position is strictly newer than the key's, is not below the
          floor, and (key unknown) not below the horizon. A delete leaves a tombstone, also where there was no row.
        * A claim (`metadata`) is granted only for a live row of the same hashes, then moves its position and metadata
          even if nothing else differs. A claim that is newer than the store's version but does not hold is returned
          in `refused_claims`; an older one is dropped. Check, guard and write are one atomic operation.
        * A truncate raises the floor to its position and deletes what is older, tombstones too.
        * A record that the store cannot take (a value out of range) is returned in `rejected`; the rest is applied.
        """

    async def versions(
        self, table: VectorTable, generation: Generation, keys: Sequence[bytes]
    ) -> Mapping[bytes, StoredVersion]: ...

    async def vectors(
        self, table: VectorTable, generation: Generation, hashes: Sequence[str]
    ) -> Mapping[str, np.ndarray]: ...

    async def search(
        self,
        table: VectorTable,
        generation: Generation,
        vector: np.ndarray,
        *,
        limit: int,
        where: Filter | None = None,
        min_score: float | None = None,
        after: Place | None = None,
        vectors: bool = False,
    ) -> list[Hit]:
        """The nearest rows, best first, ties by key and chunk; behind `after`, a hit's place. With `min_score`: those
        of the `limit` nearest that reach it. A filter costs no recall."""

    async def count(self, table: VectorTable, generation: Generation) -> int:
        """Live keys."""

    async def build_indexes(self, table: VectorTable, generation: Generation) -> None:
        """ANN, key and filter indexes, without blocking writes; idempotent, resumes after a kill."""

    async def purge(self, table: VectorTable, generation: Generation, horizon: Position, keep: Set[bytes]) -> int:
        """Removes tombstones below the horizon except `keep` (open dead letters), and raises the horizon, in one
        transaction (rule purge-horizon). Only called when both topics are drained to it and no backfill is open."""

    async def compare(
        self,
        table: VectorTable,
        generation: Generation,
        rows: AsyncIterator[Sequence[tuple[bytes, str | None]]],
        *,
        only: Sequence[bytes] | None = None,
    ) -> Differences:
        """Source rows as (canonical key, content hash or None where there is no text) against the live rows; with
        `only`, these keys are compared and no others. Memory bounded: a temporary table, not a Python set."""

    async def close(self) -> None: ...
