"""The wire format: records of the log, as bytes. The only module that knows it; held by tests/golden.

`.changes` carries Debezium's envelope (so that people and tools who know it can read it) plus a block `walvec`:
`{"op","before","after","source":{…},"ts_ms","walvec":{"v":1,"position":[epoch,lsn,ordinal],"generation",…}}`; empty
members of the block are left out. `.vectors` carries
`{"op","position","generation","metadata","exact","chunks":[{"no","text","hash","vector"}],"commit_ms"}` with `vector`
as base64 of little-endian float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, get_args

import numpy as np
import orjson
import pybase64

from walvec.contracts.changes import Change, Json, Op
from walvec.contracts.errors import DecodeError
from walvec.contracts.letters import DeadLetter
from walvec.contracts.position import Position
from walvec.contracts.vectors import Chunk, VectorOp, VectorRecord

VERSION = 1
UPGRADE = "A newer walvec wrote it: upgrade this one."
_OPS = frozenset(get_args(Op))
_VECTOR_OPS = frozenset(get_args(VectorOp))


def encode_change(change: Change, *, source: dict[str, Any] | None = None) -> bytes:
    """Change -> value bytes. `cdc` writes the same format column by column without building a Change (cdc.encoder)."""
    block: dict[str, Any] = {"v": VERSION, "position": list(change.position), "generation": change.generation}
    if change.exact:
        block["exact"] = dict(change.exact)
    if change.unchanged:
        block["unchanged"] = list(change.unchanged)
    if change.force:
        block["force"] = True
    if change.text is not None:
        block["text"] = change.text
    if change.newest:
        block["newest"] = change.newest
    if change.xid:
        block["xid"] = change.xid
    return orjson.dumps(
        {
            "op": change.op,
            "before": change.before,
            "after": change.after,
            "source": source or {"lsn": change.position.lsn, "ts_ms": change.commit_ms},
            "ts_ms": change.commit_ms,
            "walvec": block,
        }
    )


def decode_change(key: bytes | None, value: bytes) -> Change:
    """Value bytes -> Change. Raises DecodeError on foreign or damaged records and on unknown versions."""
    try:
        record = orjson.loads(value)
        block = record["walvec"]
        if block["v"] != VERSION:
            raise _newer(block["v"])
        op = record["op"]
        if op not in _OPS:
            raise DecodeError(f"unknown op {op!r}")
        position = block["position"]
        return Change(
            op=op,
            position=Position(int(position[0]), int(position[1]), int(position[2])),
            key=b"" if op == "t" else (key or b""),
            after=record["after"],
            before=record["before"],
            exact=block.get("exact", {}),
            unchanged=tuple(block.get("unchanged", ())),
            generation=block.get("generation", 0),
            force=block.get("force", False),
            text=block.get("text"),
            newest=block.get("newest", 0),
            xid=block.get("xid", 0),
            commit_ms=record["ts_ms"] or 0,
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError, ValueError) as e:
        raise DecodeError(f"not a walvec change record ({type(e).__name__})") from e


def _newer(version: object) -> DecodeError:
    return DecodeError(f"record version {version!r} is not {VERSION}.", UPGRADE)


class Head(Protocol):
    """What every record of `.vectors` says, whatever its chunks."""

    @property
    def position(self) -> Position: ...

    @property
    def generation(self) -> int: ...

    @property
    def commit_ms(self) -> int: ...

    @property
    def metadata(self) -> Mapping[str, Json]: ...

    @property
    def exact(self) -> Mapping[str, str]: ...


def vector_head(op: VectorOp, record: Head) -> dict[str, Any]:
    """All of a `.vectors` record's JSON but its chunks. The embedder writes the same format without building a
    VectorRecord (embedder.encoder)."""
    out: dict[str, Any] = {
        "v": VERSION,
        "op": op,
        "position": list(record.position),
        "generation": record.generation,
        "commit_ms": record.commit_ms,
    }
    if record.metadata:
        out["metadata"] = record.metadata
    if record.exact:
        out["exact"] = record.exact
    return out


def encode_vector(record: VectorRecord) -> bytes:
    """VectorRecord -> value bytes."""
    out = vector_head(record.op, record)
    if record.chunks:
        out["chunks"] = [
            {"no": c.no, "text": c.text, "hash": c.hash}
            if c.vector is None
            else {"no": c.no, "text": c.text, "hash": c.hash, "vector": encode_floats(c.vector)}
            for c in record.chunks
        ]
    return orjson.dumps(out)


def decode_vector(key: bytes | None, value: bytes) -> VectorRecord:
    """Value bytes -> VectorRecord. Raises DecodeError as `decode_change` does."""
    try:
        record = orjson.loads(value)
        if record["v"] != VERSION:
            raise _newer(record["v"])
        op = record["op"]
        if op not in _VECTOR_OPS:
            raise DecodeError(f"unknown op {op!r}")
        epoch, lsn, ordinal = record["position"]
        return VectorRecord(
            op=op,
            position=Position(epoch, lsn, ordinal),
            key=b"" if op == "truncate" else (key or b""),
            generation=record["generation"],
            metadata=record.get("metadata", {}),
            exact=record.get("exact", {}),
            chunks=tuple(
                Chunk(c["no"], c["text"], c["hash"], decode_floats(c["vector"]) if "vector" in c else None)
                for c in record.get("chunks", ())
            ),
            commit_ms=record.get("commit_ms", 0),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as e:
        raise DecodeError(f"not a walvec vector record ({type(e).__name__})") from e


def encode_floats(vector: np.ndarray) -> str:
    """float32 array -> base64 of little-endian float32."""
    return pybase64.b64encode_as_string(np.ascontiguousarray(vector, dtype="<f4").tobytes())


def decode_floats(text: str) -> np.ndarray:
    """The inverse of `encode_floats`. Raises ValueError."""
    return np.frombuffer(pybase64.b64decode(text, validate=True), dtype="<f4")


def encode_letter(letter: DeadLetter) -> bytes:
    """DeadLetter -> value bytes of `<table>.dead`."""
    return orjson.dumps(
        {
            "v": VERSION,
            "kind": letter.kind,
            "reason": letter.reason,
            "position": list(letter.position),
            "generation": letter.generation,
            "attempts": letter.attempts,
            "ts_ms": letter.created_ms,
        }
    )
