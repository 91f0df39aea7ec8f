"""pgoutput frames as the server writes them, for tests: the inverse of `cdc.pgoutput`."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from cdc.pgoutput import UNCHANGED, Attribute, Binary, Relation, Value

EPOCH = 946_684_800_000


def frame(payload: bytes) -> bytes:
    return b"w" + struct.pack(">QQQ", 1, 2, 3) + payload


def keepalive(lsn: int, reply: bool = False) -> bytes:
    return b"k" + struct.pack(">QQB", lsn, 0, reply)


def begin(lsn: int, xid: int = 700, ms: int = EPOCH + 5) -> bytes:
    return b"B" + struct.pack(">QqI", lsn, (ms - EPOCH) * 1000, xid)


def commit(lsn: int, end: int) -> bytes:
    return b"C" + struct.pack(">BQQq", 0, lsn, end, 0)


def text(value: str) -> bytes:
    return value.encode() + b"\0"


def relation(r: Relation) -> bytes:
    out = b"R" + struct.pack(">I", r.oid) + text(r.schema) + text(r.name) + r.identity.encode()
    out += struct.pack(">H", len(r.columns))
    for c in r.columns:
        out += bytes([c.identity]) + text(c.name) + struct.pack(">Ii", c.type_oid, c.typmod)
    return out


def tuple_of(values: Sequence[Value]) -> bytes:
    out = struct.pack(">H", len(values))
    for v in values:
        if v is None:
            out += b"n"
        elif v is UNCHANGED:
            out += b"u"
        elif isinstance(v, Binary):
            out += b"b" + struct.pack(">I", len(v.data)) + v.data
        else:
            assert isinstance(v, bytes)
            out += b"t" + struct.pack(">I", len(v)) + v
    return out


def insert(oid: int, new: Sequence[Value]) -> bytes:
    return b"I" + struct.pack(">I", oid) + b"N" + tuple_of(new)


def update(oid: int, new: Sequence[Value], old: Sequence[Value] | None = None, kind: bytes = b"K") -> bytes:
    head = b"U" + struct.pack(">I", oid)
    return head + (kind + tuple_of(old) if old is not None else b"") + b"N" + tuple_of(new)


def delete(oid: int, old: Sequence[Value], kind: bytes = b"K") -> bytes:
    return b"D" + struct.pack(">I", oid) + kind + tuple_of(old)


def truncate(*oids: int, flags: int = 0) -> bytes:
    return b"T" + struct.pack(">iB", len(oids), flags) + b"".join(struct.pack(">I", o) for o in oids)


def message(lsn: int, content: bytes, prefix: str = "walvec", transactional: bool = False) -> bytes:
    return b"M" + struct.pack(">BQ", transactional, lsn) + text(prefix) + struct.pack(">I", len(content)) + content


def attributes(*columns: tuple[str, int], key: Sequence[str] = ("id",)) -> tuple[Attribute, ...]:
    return tuple(Attribute(name, oid, -1, name in key) for name, oid in columns)
