"""One instruction to a store. Written by the embedder, carried by `wire`, applied by the sink."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from walvec.contracts.changes import Json
from walvec.contracts.position import Position

VectorOp = Literal["upsert", "metadata", "delete", "truncate"]


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """One vector of a row. `no` counts from 0. `text`: what was embedded, cut where it was too long for the provider;
    `hash`: of the whole text (`text.ContentHash`). `vector`: float32, of the generation's dimensions; None in a
    claim."""

    no: int
    text: str
    hash: str
    vector: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class VectorRecord:
    """A record of `<table>.vectors`.

    `metadata` is a claim: "the store's vector of this key has this text hash" (rule claim-text: it always carries text,
    hash and all metadata). `truncate`: rows older than `position` go, and the floor rises to it.
    `metadata` (the field): typed JSON of the metadata columns; `exact`, `commit_ms` as in Change. `key` is b"" for
    truncate; a delete has no chunks.
    """

    op: VectorOp
    position: Position
    key: bytes
    generation: int
    metadata: Mapping[str, Json] = field(default_factory=dict)
    exact: Mapping[str, str] = field(default_factory=dict)
    chunks: tuple[Chunk, ...] = ()
    commit_ms: int = 0
