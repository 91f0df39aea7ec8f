"""How far a stage is behind: records of a topic that its group has not committed, and the age of the oldest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

from walvec.contracts.errors import NotFound
from walvec.transport.ports import Log


@dataclass(frozen=True, slots=True)
class Lag:
    changes: int
    seconds: float


async def lag_of(log: Log, topic: str, group: str, ends: Mapping[int, int] | None = None) -> Lag:
    """Zero for a topic that is not made yet. `ends`: where known already."""
    try:
        if ends is not None:
            return await lag_between(log, topic, await log.committed(topic, group), ends)
        now, done = await asyncio.gather(log.end_offsets(topic), log.committed(topic, group))
    except NotFound:
        return Lag(0, 0.0)
    return await lag_between(log, topic, done, now)


async def lag_between(log: Log, topic: str, done: Mapping[int, int], ends: Mapping[int, int]) -> Lag:
    """`done`: committed offsets by partition; a partition that is caught up costs nothing, the others are asked side
    by side."""
    behind = {p: end - done.get(p, 0) for p, end in ends.items() if end > done.get(p, 0)}
    appended = await asyncio.gather(*(appended_at(log, topic, p, done.get(p, 0)) for p in behind))
    oldest = min((ms for ms in appended if ms is not None), default=None)
    seconds = max(0.0, time.time() - oldest / 1000) if oldest is not None else 0.0
    return Lag(sum(behind.values()), round(seconds, 3))


async def appended_at(log: Log, topic: str, partition: int, offset: int) -> int | None:
    """When the first record at or behind `offset` was appended, milliseconds since 1970."""
    records = log.read(topic, partition, offset)
    async for record in records:
        found = record.timestamp_ms
        close = getattr(records, "aclose", None)
        if close is not None:
            await close()
        return found
    return None
