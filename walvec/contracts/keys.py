"""A row's identity in the log and in the stores.

On the wire a key is a JSON object of the key columns in index order, made by `values.encode_key`: the same key has the
same bytes whether it was streamed or read, so bytes are compared, hashed to a partition and hashed to the store's id.
"""

from __future__ import annotations

from hashlib import blake2b
from uuid import UUID
from zlib import crc32


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key, from 0: the same in every process and version."""
    return crc32(key) % partitions


def key_id(key: bytes) -> UUID:
    """128-bit id of a key, the store's primary key: keys of any length and type fit one index."""
    return UUID(bytes=blake2b(key, digest_size=16).digest())


def key_hex(key: bytes) -> str:
    """`key_id(key).hex`, where thousands are wanted."""
    return blake2b(key, digest_size=16).hexdigest()
