"""Vector records -> rows of a binary COPY into the staging table. Pure.

PostgreSQL manual, COPY, "Binary Format"; pgvector's `vector_recv` and `halfvec_recv`: int16 dimensions, int16 zero,
then big-endian floats. Law: one pass, no object per value of a vector. Next: `pgvector_apply.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from struct import Struct

import numpy as np
import orjson

from sink.coalescer import Step
from sink.stores.pgvector_layout import Layout
from walvec.contracts.errors import DecodeError
from walvec.contracts.vectors import VectorRecord

HEAD = b"PGCOPY\n\xff\r\n\x00" + b"\x00" * 8
TAIL = b"\xff\xff"
UPSERT, DELETE, CLAIM = 0, 1, 2
_KIND = {"upsert": UPSERT, "delete": DELETE, "metadata": CLAIM}
_NULL = b"\xff\xff\xff\xff"
_LENGTH = Struct(">i").pack
# field count; then length and value of n, key_id, chunk, chunks, kind, epoch, lsn, ordinal
_FIXED = Struct(">h ii i16s ii ii ih ii iQ iq").pack
_VECTOR_HEAD = Struct(">ihh").pack


def columns(layout: Layout) -> str:
    own = "".join(f", {c.physical}" for c in (*layout.keys, *layout.metadata))
    return f"n, key_id, chunk, chunks, kind, epoch, lsn, ordinal, key, hash, embedded_text, embedding{own}"


def reject_reason(layout: Layout, record: VectorRecord) -> str | None:
    """What can be seen to be wrong without asking the store."""
    if record.op == "delete":
        return None
    if not record.chunks:
        return "the record carries no text"
    if record.chunks[0].no != 0 or [c.no for c in record.chunks[1:]] != list(range(1, len(record.chunks))):
        return "the record's chunks are not numbered from 0"
    if record.op == "upsert":
        for chunk in record.chunks:
            if chunk.vector is None:
                return "the record carries no vector"
            if len(chunk.vector) != layout.dimensions:
                return f"the vector has {len(chunk.vector)} dimensions, the table {layout.dimensions}"
    return None


def encode(layout: Layout, steps: Sequence[Step]) -> tuple[bytes, list[tuple[VectorRecord, str]]]:
    """All rows as one COPY body, and the records that have no row because they cannot be written."""
    records = [r for step in steps for r in step.records]
    bodies = _vector_fields(layout, records)
    out = [HEAD]
    bad: list[tuple[VectorRecord, str]] = []
    for n, record in enumerate(records):
        reason = reject_reason(layout, record)
        if reason is None:
            try:
                out.append(_rows(layout, n, record, bodies))
                continue
            except (DecodeError, UnicodeEncodeError, ValueError, KeyError, TypeError) as e:
                reason = (
                    f"a value cannot be written: {e}" if isinstance(e, DecodeError) else "a value is not valid text"
                )
        bad.append((record, reason))
    out.append(TAIL)
    return b"".join(out), bad


def _vector_fields(layout: Layout, records: Iterable[VectorRecord]) -> dict[int, bytes]:
    """id(vector) -> its COPY field; all vectors are converted in one go."""
    vectors = [
        c.vector
        for r in records
        if r.op == "upsert"
        for c in r.chunks
        if c.vector is not None and len(c.vector) == layout.dimensions
    ]
    if not vectors:
        return {}
    with np.errstate(over="ignore"):  # what a half cannot hold becomes infinity, which the store refuses
        block = np.stack(vectors).astype(">f2" if layout.half else ">f4").tobytes()
    width = layout.dimensions * (2 if layout.half else 4)
    head = _VECTOR_HEAD(4 + width, layout.dimensions, 0)
    return {id(v): head + block[i * width : (i + 1) * width] for i, v in enumerate(vectors)}


def _field(text: str | None) -> bytes:
    if text is None:
        return _NULL
    raw = text.encode()
    return _LENGTH(len(raw)) + raw


def _rows(layout: Layout, n: int, record: VectorRecord, bodies: dict[int, bytes]) -> bytes:
    kind = _KIND[record.op]
    fields = 12 + len(layout.keys) + len(layout.metadata)
    key = record.key
    key_id = blake2b(key, digest_size=16).digest()
    epoch, lsn, ordinal = record.position
    key_field = _LENGTH(len(key)) + key
    if kind == DELETE:
        return (
            _FIXED(fields, 4, n, 16, key_id, 4, 0, 4, 1, 2, kind, 4, epoch, 8, lsn, 8, ordinal)
            + key_field
            + _NULL * (fields - 9)
        )
    own = _own_columns(layout, record)
    rows = []
    for chunk in record.chunks:
        rows.append(_FIXED(fields, 4, n, 16, key_id, 4, chunk.no, 4, len(record.chunks), 2, kind, 4, epoch, 8, lsn,
                           8, ordinal))  # fmt: skip
        rows.append(key_field)
        rows.append(_field(chunk.hash))
        rows.append(_field(chunk.text))
        rows.append(_NULL if kind == CLAIM else bodies[id(chunk.vector)])
        rows.append(own)
    return b"".join(rows)


def _own_columns(layout: Layout, record: VectorRecord) -> bytes:
    """Key and metadata columns as Postgres texts; the merge casts them."""
    out = []
    key = orjson.loads(record.key)
    for column in layout.keys:
        assert column.key_codec is not None
        out.append(_field(column.key_codec.decode(key[column.name])))
    metadata, exact = record.metadata, record.exact
    for column in layout.metadata:
        name = column.name
        if name in exact:
            out.append(_field(exact[name]))
            continue
        value = metadata.get(name)
        out.append(_NULL if value is None else _field(column.codec.decode(value)))
    return b"".join(out)
