"""The store port in plain dictionaries: the readable reference that the other adapters are held to, and a test's store.

Every rule of the port is here in a few lines: guard, strict-guard, tombstones, tombstone-absent, floor, sweep-floor,
claim-check, claim-atomic, claim-advance, purge-horizon.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson

from walvec.contracts.errors import DefinitionError, StoreRejected
from walvec.contracts.keys import key_hex
from walvec.contracts.position import ZERO, Position
from walvec.contracts.stores import Applied, Condition, Differences, Filter, Hit, Place, StoredVersion
from walvec.contracts.vectors import Chunk, VectorRecord
from walvec.definitions.model import Generation, VectorTable
from walvec.definitions.views import check_view


@dataclass(frozen=True, slots=True)
class Row:
    """A tombstone when not live; it keeps its vectors, not its metadata."""

    position: Position
    live: bool
    chunks: tuple[Chunk, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hashes(self) -> tuple[str, ...]:
        return tuple(c.hash for c in self.chunks) if self.live else ()


@dataclass(slots=True)
class _Storage:
    dimensions: int
    rows: dict[bytes, Row] = field(default_factory=dict)
    floor: Position = ZERO
    horizon: Position = ZERO


class MemoryStore:
    def __init__(self) -> None:
        self._storages: dict[tuple[str, int], _Storage] = {}
        self.shown: dict[str, int] = {}
        self.indexed: set[tuple[str, int]] = set()

    async def ensure(self, table: VectorTable, generation: Generation) -> None:
        check_view(table, generation)
        key = (table.id, generation.number)
        found = self._storages.setdefault(key, _Storage(generation.embedding_dimensions))
        if found.dimensions != generation.embedding_dimensions:
            raise StoreRejected(f"The storage has {found.dimensions} dimensions.", "It needs a new generation.")

    async def show(self, table: VectorTable, generation: Generation) -> None:
        self._storage(table, generation)
        self.shown[table.id] = generation.number

    async def drop(self, table: VectorTable, generation: int | None = None) -> None:
        if generation is None:
            self.shown.pop(table.id, None)
        elif self.shown.get(table.id) == generation:
            return
        for key in [k for k in self._storages if k[0] == table.id and generation in (None, k[1])]:
            del self._storages[key]
            self.indexed.discard(key)

    async def generations(self, table: VectorTable) -> list[int]:
        return sorted(number for table_id, number in self._storages if table_id == table.id)

    async def apply(self, table: VectorTable, generation: Generation, records: Sequence[VectorRecord]) -> Applied:
        storage = self._storage(table, generation)
        applied = 0
        refused: list[VectorRecord] = []
        rejected: list[tuple[VectorRecord, str]] = []
        for record in records:
            if record.op == "truncate":
                storage.floor = max(storage.floor, record.position)
                storage.rows = {k: r for k, r in storage.rows.items() if r.position >= record.position}
                applied += 1
                continue
            row = storage.rows.get(record.key)
            if record.position < storage.floor or (row is None and record.position < storage.horizon):
                continue
            if row is not None and record.position <= row.position:
                continue
            if record.op == "metadata":
                if row is not None and row.live and row.hashes == tuple(c.hash for c in record.chunks):
                    storage.rows[record.key] = replace(row, position=record.position, metadata=record.metadata)
                    applied += 1
                else:
                    refused.append(record)
            elif record.op == "delete":
                storage.rows[record.key] = Row(record.position, False, row.chunks if row is not None else ())
                applied += 1
            else:
                reason = self._reason(storage, record)
                if reason:
                    rejected.append((record, reason))
                    continue
                storage.rows[record.key] = Row(record.position, True, record.chunks, record.metadata)
                applied += 1
        return Applied(applied, refused, rejected)

    def _reason(self, storage: _Storage, record: VectorRecord) -> str | None:
        for chunk in record.chunks:
            if chunk.vector is None or len(chunk.vector) != storage.dimensions:
                return "the vector has another number of dimensions"
            if not np.isfinite(chunk.vector).all():
                return "the vector is not finite"
            if "\x00" in chunk.text:
                return "the text holds a NUL"
        return None if record.chunks else "the record carries no text"

    async def versions(
        self, table: VectorTable, generation: Generation, keys: Sequence[bytes]
    ) -> Mapping[bytes, StoredVersion]:
        rows = self._storage(table, generation).rows
        return {k: StoredVersion(rows[k].position, rows[k].live, rows[k].hashes) for k in keys if k in rows}

    async def vectors(
        self, table: VectorTable, generation: Generation, hashes: Sequence[str]
    ) -> Mapping[str, np.ndarray]:
        wanted = set(hashes)
        rows = self._storage(table, generation).rows.values()
        return {c.hash: c.vector for r in rows for c in r.chunks if c.hash in wanted and c.vector is not None}

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
        known = {c.name for c in generation.metadata_columns} | {k.name for k in generation.key}
        hits = []
        for key, row in self._storage(table, generation).rows.items():
            if not row.live or (
                where is not None and not _matches(where, {**orjson.loads(key), **row.metadata}, known)
            ):
                continue
            for chunk in row.chunks:
                assert chunk.vector is not None
                norm = float(np.linalg.norm(chunk.vector) * np.linalg.norm(vector))
                if norm == 0:
                    continue
                score = float(np.dot(chunk.vector, vector)) / norm
                metadata = {c.name: row.metadata.get(c.name) for c in generation.metadata_columns}
                place = Place(1 - score, bytes.fromhex(key_hex(key)), chunk.no)
                shown = chunk.vector.tolist() if vectors else None
                hits.append(Hit(orjson.loads(key), chunk.no, score, chunk.text, metadata, place, shown))
        hits.sort(key=lambda h: h.place)
        if after is not None:
            hits = [h for h in hits if h.place[:3] > after[:3]]
        first = after.rank + 1 if after is not None else 1
        hits = [replace(h, place=h.place._replace(rank=first + i)) for i, h in enumerate(hits[:limit])]
        return [h for h in hits if min_score is None or h.score >= min_score]

    async def count(self, table: VectorTable, generation: Generation) -> int:
        return sum(r.live for r in self._storage(table, generation).rows.values())

    async def build_indexes(self, table: VectorTable, generation: Generation) -> None:
        self._storage(table, generation)
        self.indexed.add((table.id, generation.number))

    async def purge(self, table: VectorTable, generation: Generation, horizon: Position, keep: Set[bytes]) -> int:
        storage = self._storage(table, generation)
        gone = [k for k, r in storage.rows.items() if not r.live and r.position < horizon and k not in keep]
        for key in gone:
            del storage.rows[key]
        storage.horizon = max(storage.horizon, horizon)
        return len(gone)

    async def compare(
        self,
        table: VectorTable,
        generation: Generation,
        rows: AsyncIterator[Sequence[tuple[bytes, str | None]]],
        *,
        only: Sequence[bytes] | None = None,
    ) -> Differences:
        source = {key: content_hash async for batch in rows for key, content_hash in batch}
        live = {k: r for k, r in self._storage(table, generation).rows.items() if r.live}
        if only is not None:
            live = {k: r for k, r in live.items() if k in set(only)}
        return Differences(
            missing=sorted(k for k, h in source.items() if h is not None and k not in live),
            orphaned=sorted(k for k in live if source.get(k) is None),
            stale=sorted(k for k, r in live.items() if source.get(k) is not None and r.chunks[0].hash != source[k]),
        )

    async def close(self) -> None:
        self._storages.clear()

    def _storage(self, table: VectorTable, generation: Generation) -> _Storage:
        found = self._storages.get((table.id, generation.number))
        if found is None:
            raise StoreRejected(
                f"Vector table {table.name!r} has no storage for generation {generation.number}.",
                "Run `walvec apply` or `walvec backfill` on it.",
            )
        return found


def _matches(where: Filter, values: Mapping[str, Any], known: Set[str]) -> bool:
    return all(_holds(c, values, known) for c in where.conditions) and all(
        any(_matches(option, values, known) for option in group) for group in where.any_of
    )


def _holds(condition: Condition, values: Mapping[str, Any], known: Set[str]) -> bool:
    if condition.field not in known:
        raise DefinitionError(f"There is no metadata column {condition.field!r} to filter by.")
    value, wanted = values.get(condition.field), condition.value
    match condition.op:
        case "eq":
            return bool(value == wanted)
        case "ne":
            return bool(value != wanted)
        case "in":
            return value in wanted
        case "nin":
            return value not in wanted
        case "exists":
            return (value is not None) == bool(wanted)
    if value is None:
        return False
    if isinstance(value, str) != isinstance(wanted, str):
        raise DefinitionError(f"The filter on {condition.field!r} does not fit its values.", "Change the filter.")
    match condition.op:
        case "gt":
            return bool(value > wanted)
        case "gte":
            return bool(value >= wanted)
        case "lt":
            return bool(value < wanted)
        case _:
            return bool(value <= wanted)
