"""pgoutput bytes -> messages. Sans-I/O, protocol version 1 (open transactions are not streamed to us).

`decode` gives any message as a value. For rows, of which there are millions, `read_tuple` is the tight form that
`assembler` calls directly. Law: what is unknown or cut short is a DecodeError, never a guess.
PostgreSQL manual, "Logical Replication Message Formats". Next: `cdc.assembler`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Literal

from walvec.contracts.errors import DecodeError

WAL: Final = 0x77
KEEPALIVE: Final = 0x6B
WAL_HEADER: Final = 25
"""Bytes before the payload of a `w` frame: type, start, server end, clock."""

BEGIN: Final = 0x42
COMMIT: Final = 0x43
ORIGIN: Final = 0x4F
RELATION: Final = 0x52
TYPE: Final = 0x59
INSERT: Final = 0x49
UPDATE: Final = 0x55
DELETE: Final = 0x44
TRUNCATE: Final = 0x54
MESSAGE: Final = 0x4D

NULL: Final = 0x6E
UNCHANGED_VALUE: Final = 0x75
TEXT_VALUE: Final = 0x74
_BINARY = 0x62
NEW: Final = 0x4E
_KEY, _OLD = 0x4B, 0x4F
_EPOCH_2000_MS = 946_684_800_000

_U16 = struct.Struct(">H").unpack_from
U32 = struct.Struct(">I").unpack_from
_I32 = struct.Struct(">i").unpack_from
_RELATION_COLUMN = struct.Struct(">Ii").unpack_from
_BEGIN = struct.Struct(">QqI").unpack_from
_COMMIT = struct.Struct(">BQQq").unpack_from
_KEEPALIVE = struct.Struct(">QqB").unpack_from
_MESSAGE = struct.Struct(">BQ").unpack_from
_U64 = struct.Struct(">Q").unpack_from


class Unchanged:
    """The value of a TOAST column that the server did not send because it did not change. It is not NULL."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "UNCHANGED"


@dataclass(frozen=True, slots=True)
class Binary:
    """A value in binary form; sent only to those who ask for it. Not bytes, so that nobody takes it for text."""

    data: bytes


UNCHANGED: Final = Unchanged()
Value = bytes | Binary | Unchanged | None
Tuple = list[Value]


@dataclass(frozen=True, slots=True)
class Begin:
    """`commit_lsn`: where the commit record starts, known already. `commit_ms`: milliseconds since 1970."""

    commit_lsn: int
    commit_ms: int
    xid: int


@dataclass(frozen=True, slots=True)
class Commit:
    commit_lsn: int
    end_lsn: int
    commit_ms: int


@dataclass(frozen=True, slots=True)
class Origin:
    lsn: int
    name: str


@dataclass(frozen=True, slots=True)
class Attribute:
    """`identity`: part of the replica identity (all of them under FULL)."""

    name: str
    type_oid: int
    typmod: int
    identity: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """`identity`: d n f i, as in pg_class.relreplident."""

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[Attribute, ...]


@dataclass(frozen=True, slots=True)
class Type:
    oid: int
    schema: str
    name: str


@dataclass(frozen=True, slots=True)
class Insert:
    oid: int
    new: Tuple


@dataclass(frozen=True, slots=True)
class Update:
    """`old_kind`: K = `old` has only the identity columns, O = the whole old row, None = there is no old tuple."""

    oid: int
    old_kind: Literal["K", "O"] | None
    old: Tuple | None
    new: Tuple


@dataclass(frozen=True, slots=True)
class Delete:
    oid: int
    old_kind: Literal["K", "O"]
    old: Tuple


@dataclass(frozen=True, slots=True)
class Truncate:
    oids: tuple[int, ...]
    cascade: bool
    restart_identity: bool


@dataclass(frozen=True, slots=True)
class LogicalMessage:
    """`lsn` is the message's end: where the next COMMIT may start."""

    transactional: bool
    lsn: int
    prefix: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Keepalive:
    """`end_lsn`: everything that commits below it has been sent."""

    end_lsn: int
    reply_wanted: bool


Message = Begin | Commit | Origin | Relation | Type | Insert | Update | Delete | Truncate | LogicalMessage


def decode(data: bytes, at: int = 0) -> Message:
    """The message that starts at `at` and takes all the rest of `data`."""
    try:
        message, end = _decode(data, at)
    except (struct.error, IndexError) as e:
        raise DecodeError("a replication message is cut short.", _CURE) from e
    except UnicodeDecodeError as e:
        raise DecodeError("a name in the replication stream is not UTF-8.", _CURE) from e
    if end != len(data):
        raise DecodeError(f"a replication message is {end} bytes long where {len(data)} came.", _CURE)
    return message


def decode_keepalive(data: bytes) -> Keepalive:
    """A `k` frame."""
    if len(data) != 18:
        raise DecodeError("a keepalive of the wrong length.", _CURE)
    end_lsn, _clock, reply = _KEEPALIVE(data, 1)
    return Keepalive(end_lsn, reply != 0)


def read_tuple(data: bytes, at: int) -> tuple[Tuple, int]:
    """The tuple's values and where it ends. Callers check that end against the data's length: slices do not.

    Raises IndexError or struct.error where the data ends too early.
    """
    values: Tuple = []
    append = values.append
    count = data[at] << 8 | data[at + 1]
    at += 2
    for _ in range(count):
        kind = data[at]
        if kind == TEXT_VALUE:
            start = at + 5
            at = start + U32(data, at + 1)[0]
            append(data[start:at])
        elif kind == NULL:
            append(None)
            at += 1
        elif kind == UNCHANGED_VALUE:
            append(UNCHANGED)
            at += 1
        elif kind == _BINARY:
            start = at + 5
            at = start + U32(data, at + 1)[0]
            append(Binary(data[start:at]))
        else:
            raise DecodeError(f"unknown kind of column value {kind:#x}.", _CURE)
    return values, at


def read_old_and_new(data: bytes, at: int) -> tuple[int, Tuple | None, Tuple, int]:
    """An UPDATE's tuples: `(kind of the old one or 0, old, new, end)`."""
    kind = data[at]
    old = None
    if kind in (_KEY, _OLD):
        old, at = read_tuple(data, at + 1)
        marker = data[at]
    else:
        marker, kind = kind, 0
    if marker != NEW:
        raise DecodeError(f"unknown kind of tuple {marker:#x} in an UPDATE.", _CURE)
    new, at = read_tuple(data, at + 1)
    return kind, old, new, at


def read_new(data: bytes, at: int) -> tuple[Tuple, int]:
    """An INSERT's tuple and its end."""
    if data[at] != NEW:
        raise DecodeError(f"unknown kind of tuple {data[at]:#x} in an INSERT.", _CURE)
    return read_tuple(data, at + 1)


def read_old(data: bytes, at: int) -> tuple[int, Tuple, int]:
    """A DELETE's `(kind, old, end)`."""
    kind = data[at]
    if kind != _KEY and kind != _OLD:
        raise DecodeError(f"unknown kind of tuple {kind:#x} in a DELETE.", _CURE)
    old, at = read_tuple(data, at + 1)
    return kind, old, at


WHOLE_ROW: Final = _OLD
"""Kind of an old tuple that holds every column (replica identity FULL)."""

_CURE = "The server speaks a protocol this version does not know: upgrade walvec."


def _decode(data: bytes, at: int) -> tuple[Message, int]:
    kind, at = data[at], at + 1
    if kind == BEGIN:
        commit_lsn, time, xid = _BEGIN(data, at)
        return Begin(commit_lsn, _milliseconds(time), xid), at + 20
    if kind == COMMIT:
        _flags, commit_lsn, end_lsn, time = _COMMIT(data, at)
        return Commit(commit_lsn, end_lsn, _milliseconds(time)), at + 25
    if kind == RELATION:
        return _relation(data, at)
    if kind == INSERT:
        new, end = read_new(data, at + 4)
        return Insert(U32(data, at)[0], new), end
    if kind == UPDATE:
        old_kind, old, new, end = read_old_and_new(data, at + 4)
        return Update(U32(data, at)[0], "O" if old_kind == _OLD else "K" if old_kind else None, old, new), end
    if kind == DELETE:
        old_kind, gone, end = read_old(data, at + 4)
        return Delete(U32(data, at)[0], "O" if old_kind == _OLD else "K", gone), end
    if kind == TRUNCATE:
        count, flags = _I32(data, at)[0], data[at + 4]
        if count < 0 or count > len(data):
            raise DecodeError(f"a TRUNCATE of {count} relations.", _CURE)
        oids = tuple(U32(data, at + 5 + 4 * i)[0] for i in range(count))
        return Truncate(oids, bool(flags & 1), bool(flags & 2)), at + 5 + 4 * count
    if kind == MESSAGE:
        flags, lsn = _MESSAGE(data, at)
        prefix, at = _string(data, at + 9)
        size = _I32(data, at)[0]
        if size < 0 or at + 4 + size > len(data):
            raise DecodeError("a logical message is cut short.", _CURE)
        return LogicalMessage(bool(flags & 1), lsn, prefix, data[at + 4 : at + 4 + size]), at + 4 + size
    if kind == TYPE:
        schema, end = _string(data, at + 4)
        name, end = _string(data, end)
        return Type(U32(data, at)[0], schema or "pg_catalog", name), end
    if kind == ORIGIN:
        name, end = _string(data, at + 8)
        return Origin(_U64(data, at)[0], name), end
    raise DecodeError(f"unknown replication message {kind:#x}.", _CURE)


def _relation(data: bytes, at: int) -> tuple[Relation, int]:
    oid = U32(data, at)[0]
    schema, at = _string(data, at + 4)
    name, at = _string(data, at)
    identity, count = chr(data[at]), _U16(data, at + 1)[0]
    at += 3
    columns = []
    for _ in range(count):
        flags = data[at]
        column, at = _string(data, at + 1)
        type_oid, typmod = _RELATION_COLUMN(data, at)
        at += 8
        columns.append(Attribute(column, type_oid, typmod, bool(flags & 1)))
    if identity not in "dnfi":
        raise DecodeError(f"unknown replica identity {identity!r}.", _CURE)
    return Relation(oid, schema or "pg_catalog", name, identity, tuple(columns)), at


def _string(data: bytes, at: int) -> tuple[str, int]:
    end = data.find(b"\0", at)
    if end < 0:
        raise IndexError
    return data[at:end].decode(), end + 1


def _milliseconds(microseconds_since_2000: int) -> int:
    return _EPOCH_2000_MS + microseconds_since_2000 // 1000
