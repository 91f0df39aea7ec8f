"""Rows become the bytes of `.vectors` records: `wire.encode_vector`'s format, written without an array per row.

Held equal to `wire` by tests. `vector` comes and goes as little-endian float32 bytes.
"""

from __future__ import annotations

import orjson
import pybase64

from embedder.planner import Delete, Row, Truncate
from walvec.contracts import wire
from walvec.contracts.vectors import VectorRecord


def upsert(row: Row, text: str, vector: bytes) -> bytes:
    """`text`: what was sent, the head of the row's text where that is above the provider's limit."""
    out = wire.vector_head("upsert", row)
    # base64 has nothing to escape: a fragment spares the parser's look at every character
    encoded = orjson.Fragment(b'"%b"' % pybase64.b64encode(vector))
    out["chunks"] = [{"no": 0, "text": text, "hash": row.hash, "vector": encoded}]
    return orjson.dumps(out)


def claim(row: Row) -> bytes:
    """Rule claim-text: text, hash and all metadata."""
    out = wire.vector_head("metadata", row)
    out["chunks"] = [{"no": 0, "text": row.text, "hash": row.hash}]
    return orjson.dumps(out)


def gone(plan: Delete) -> bytes:
    return wire.encode_vector(
        VectorRecord("delete", plan.position, plan.key, plan.generation, commit_ms=plan.commit_ms)
    )


def cleared(plan: Truncate) -> bytes:
    return wire.encode_vector(VectorRecord("truncate", plan.position, b"", plan.generation, commit_ms=plan.commit_ms))
