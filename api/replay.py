"""What `.changes` holds from a place on, appended once more: the same bytes, to the same partitions, in their order.

Embedder and sink do their work again; rule guard keeps what the store has of the same or a newer position. So it mends
a store that was set back (an older copy, lost rows), without asking the source. It does not mend what was damaged at
the same position, nor what lies below the store's horizon: `verify --repair` does. Memory: one batch. Next: `logs`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from api.responses import iso
from walvec.contracts.errors import LogUnavailable
from walvec.runtime.retry import persistently
from walvec.transport.ports import Log
from walvec.transport.records import Record, StoredRecord

_BATCH_RECORDS = 5000
_BATCH_BYTES = 4 * 1024**2


async def replay(log: Log, topic: str, starts: Mapping[int, int]) -> AsyncIterator[dict[str, Any]]:
    """From `starts` to the ends as of the call; progress after every batch, with `done` at last. Outages of the log are
    waited out. Raises NotFound, RecordTooLarge."""
    ends = await log.end_offsets(topic) if starts else {}
    spans = {p: (start, ends[p]) for p, start in starts.items() if start < ends.get(p, 0)}
    total = sum(end - start for start, end in spans.values())
    replayed = 0
    oldest: int | None = None
    producer = log.producer(backpressure=True)
    try:
        for partition, (start, end) in spans.items():
            at = start
            while at < end:
                records = await persistently(
                    lambda at=at, partition=partition, end=end: _take(log, topic, partition, at, end),  # type: ignore[misc]
                    LogUnavailable,
                    action="replay_read",
                )
                if not records:
                    break  # what was there is not kept any more
                at = records[-1].offset + 1
                again = [Record(r.key, r.value, partition, r.headers) for r in records]
                await persistently(
                    lambda again=again: producer.append(topic, again),  # type: ignore[misc]
                    LogUnavailable,
                    action="replay_append",
                )
                replayed += len(records)
                first = records[0].timestamp_ms
                oldest = first if oldest is None else min(oldest, first)
                yield {"replayed": replayed, "of": total}
    finally:
        await producer.close()
    yield {"replayed": replayed, "of": total, "oldest": iso(oldest), "done": True}


async def _take(log: Log, topic: str, partition: int, start: int, end: int) -> list[StoredRecord]:
    """One batch from `start` on."""
    taken: list[StoredRecord] = []
    size = 0
    records = log.read(topic, partition, start, end)
    try:
        async for record in records:
            taken.append(record)
            size += len(record.value)
            if len(taken) >= _BATCH_RECORDS or size >= _BATCH_BYTES:
                break
    finally:
        close = getattr(records, "aclose", None)
        if close is not None:
            await close()
    return taken
