"""What a vector store tells and takes, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from walvec.contracts.position import Position
from walvec.contracts.vectors import VectorRecord


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """The store's version of a key. `hashes`: content hash per chunk (`text.ContentHash`), () for a tombstone."""

    position: Position
    live: bool
    hashes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a batch. `applied`: records that took effect. `refused_claims` go back to `.changes`, forced;
    `rejected`, each with the store's reason, become dead letters."""

    applied: int = 0
    refused_claims: Sequence[VectorRecord] = ()
    rejected: Sequence[tuple[VectorRecord, str]] = ()


FilterOp = Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin", "exists"]


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison on a metadata column, `field`. `value`: JSON; a list for in and nin, a boolean for exists (is not
    NULL). ne and nin hold for NULL, too."""

    field: str
    op: FilterOp
    value: Any


@dataclass(frozen=True, slots=True)
class Filter:
    """All of `conditions` and, for each group of `any_of`, at least one of its filters."""

    conditions: tuple[Condition, ...] = ()
    any_of: tuple[tuple[Filter, ...], ...] = ()


class Place(NamedTuple):
    """Where a search result stands among all: by distance (cosine, 0 to 2), then key, then chunk. A page goes on behind
    the last one's. `identity`: the key's 16-byte id. `rank`: how many stand before it, as far as pages were read."""

    distance: float
    identity: bytes
    chunk: int
    rank: int = 0


_NOWHERE = Place(0.0, bytes(16), 0)


@dataclass(frozen=True, slots=True)
class Hit:
    """One search result. `key`: key columns by name, JSON values; `score`: cosine similarity, -1 to 1;
    `text`: what was embedded; `metadata`: JSON values by column; `vector`: if wanted."""

    key: Mapping[str, Any]
    chunk: int
    score: float
    text: str
    metadata: Mapping[str, Any]
    place: Place = _NOWHERE
    vector: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Differences:
    """Canonical keys where source and store disagree.

    `missing`: a row with a text, and no vector. `orphaned`: a vector, and no such row. `stale`: of another text.
    `duplicate`: chunks that the row does not have.
    """

    missing: list[bytes] = field(default_factory=list)
    orphaned: list[bytes] = field(default_factory=list)
    stale: list[bytes] = field(default_factory=list)
    duplicate: list[bytes] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.missing or self.orphaned or self.stale or self.duplicate)
