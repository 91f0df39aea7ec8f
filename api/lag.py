"""How far a stage is behind: records of a topic that its group has not committed, and the age of the oldest."""

from __future__ import annotations

import time
from dataclasses import dataclass

from walvec.contracts.errors import NotFound
from walvec.transport.ports import Log


@dataclass(frozen=True, slots=True)
class Lag:
    changes: int
    seconds: float


async def lag_of(log: Log, topic: str, group: str) -> Lag:
    """Zero for a topic that is not made yet."""
    try:
        ends = await log.end_offsets(topic)
        done = await log.committed(topic, group)
    except NotFound:
        return Lag(0, 0.0)
    behind = {p: end - done.get(p, 0) for p, end in ends.items() if end > done.get(p, 0)}
    oldest: int | None = None
    for partition in behind:
        appended = await appended_at(log, topic, partition, done.get(partition, 0))
        if appended is not None and (oldest is None or appended < oldest):
            oldest = appended
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
