"""The log, readable: records of a topic, oldest first, as JSON objects."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson

from api.problems import invalid
from walvec.contracts.errors import NotFound
from walvec.transport.ports import Log
from walvec.transport.records import StoredRecord

_AGE = re.compile(r"(\d+)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


async def start_offsets(log: Log, topic: str, start: str) -> dict[int, int]:
    """`earliest`, `latest`, an age (10m) or an offset, by partition. Raises Problem for anything else."""
    age = _AGE.fullmatch(start)
    is_offset = start.isdecimal() and len(start) < 19
    if start not in ("earliest", "latest") and not is_offset and age is None:
        raise invalid(
            f"from: {start[:40]!r} is no place in the log.", "earliest, latest, an age like 10m, or an offset."
        )
    try:
        if start == "latest":
            return await log.end_offsets(topic)
        if age is None:
            first = await log.offsets_at(topic, 0)
            return {p: max(int(start), offset) for p, offset in first.items()} if is_offset else first
        since = time.time() - int(age[1]) * _UNITS[age[2]]
        return await log.offsets_at(topic, max(1, int(since * 1000)))
    except NotFound:
        return {}


async def tail(
    log: Log, topic: str, offsets: dict[int, int], only: frozenset[int] | None = None
) -> AsyncIterator[dict[str, Any]]:
    """From `offsets`, which move on with what was read, to the ends as of the call; partitions merged by time.

    `only`: these partitions; None = all, those that are made later too.
    """
    try:
        ends = await log.end_offsets(topic)
    except NotFound:
        return
    heads: dict[int, tuple[StoredRecord, AsyncIterator[StoredRecord]]] = {}
    for partition, end in ends.items():
        if only is not None and partition not in only:
            continue
        start = offsets.setdefault(partition, 0)
        if start < end:
            records = log.read(topic, partition, start, end)
            await _advance(heads, partition, records)
            if partition not in heads:
                offsets[partition] = end
    while heads:
        partition = min(heads, key=lambda p: (heads[p][0].timestamp_ms, p))
        record, records = heads[partition]
        yield readable(topic, partition, record)
        offsets[partition] = record.offset + 1
        await _advance(heads, partition, records)
        if partition not in heads:
            offsets[partition] = ends[partition]  # what is left holds no record


async def _advance(
    heads: dict[int, tuple[StoredRecord, AsyncIterator[StoredRecord]]],
    partition: int,
    records: AsyncIterator[StoredRecord],
) -> None:
    record = await anext(records, None)
    if record is None:
        heads.pop(partition, None)
    else:
        heads[partition] = (record, records)


def readable(topic: str, partition: int, record: StoredRecord) -> dict[str, Any]:
    return {
        "topic": topic,
        "partition": partition,
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
        "headers": {name: value.decode("utf-8", "replace") for name, value in record.headers},
        "key": _json(record.key),
        "value": _json(record.value),
    }


def _json(data: bytes | None) -> Any:
    """JSON as it is, other text as a string, other bytes as base64."""
    if data is None:
        return None
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            return data.decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(data).decode()}


def has_key(record: Mapping[str, Any], wanted: str) -> bool:
    """`wanted`: the key's JSON, or the plain value of a single key column."""
    key = record["key"]
    only = next(iter(key.values())) if isinstance(key, dict) and len(key) == 1 else key
    try:
        value = orjson.loads(wanted)
    except orjson.JSONDecodeError:
        value = wanted
    return str(only) == wanted or any(one == value and type(one) is type(value) for one in (key, only))
