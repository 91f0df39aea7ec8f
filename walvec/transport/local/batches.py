"""Records to the blob of one batch row and back. PURE.

A blob is `2 * count` little-endian int32 lengths (key, value; -1 = no key), then keys and values in turn; lz4 when it
helps. Law: a blob that is not what was packed is a DecodeError, never a wrong record.
Next: `writer` stores batches, `fetching` reads them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

from lz4.block import LZ4BlockError, compress, decompress  # type: ignore[attr-defined]

from walvec.contracts.errors import DecodeError
from walvec.transport.records import Record, StoredRecord

BATCH_BYTES = 1024 * 1024
BATCH_RECORDS = 4096
PLAIN, LZ4 = 0, 1


@dataclass(frozen=True, slots=True)
class Packed:
    """`checksum` is of `data` as stored; `raw_size` is that of the unpacked blob."""

    count: int
    codec: int
    checksum: int
    raw_size: int
    data: bytes


def split(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """Runs of at most BATCH_RECORDS records and about BATCH_BYTES: a reader never unpacks much more than it wants."""
    start = size = 0
    for index, record in enumerate(records):
        length = len(record.value)
        if index > start and (size + length > BATCH_BYTES or index - start >= BATCH_RECORDS):
            yield records[start:index]
            start, size = index, 0
        size += length
    if start < len(records):
        yield records[start:]


def pack(records: Sequence[Record]) -> Packed:
    lengths: list[int] = []
    parts: list[bytes] = []
    for key, value, _, _ in records:
        if key is None:
            lengths += (-1, len(value))
            parts.append(value)
        else:
            lengths += (len(key), len(value))
            parts += (key, value)
    raw = struct.pack(f"<{len(lengths)}i", *lengths) + b"".join(parts)
    squeezed: bytes = compress(raw, store_size=False)
    codec, data = (LZ4, squeezed) if len(squeezed) < len(raw) * 0.9 else (PLAIN, raw)
    return Packed(len(records), codec, crc32(data), len(raw), data)


def unpack(packed: Packed, base: int, timestamp_ms: int, first: int) -> list[StoredRecord]:
    """The batch's records from offset `first` on."""
    if crc32(packed.data) != packed.checksum:
        raise DecodeError("A batch of the log does not match its checksum.")
    raw = packed.data
    if packed.codec == LZ4:
        try:
            raw = decompress(raw, uncompressed_size=packed.raw_size)
        except LZ4BlockError as error:
            raise DecodeError("A batch of the log cannot be unpacked.") from error
    lengths = iter(struct.unpack_from(f"<{2 * packed.count}i", raw))
    at = 8 * packed.count
    records: list[StoredRecord] = []
    for offset, (key_length, length) in enumerate(zip(lengths, lengths, strict=True), base):
        start = at + key_length if key_length > 0 else at
        end = start + length
        if offset >= first:
            key = None if key_length < 0 else raw[at:start]
            records.append(StoredRecord(offset, timestamp_ms, key, raw[start:end]))
        at = end
    if at != len(raw):
        raise DecodeError("A batch of the log has another length than its records.")
    return records
