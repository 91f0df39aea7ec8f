"""What the log tells about changes that were lost. Next: `walvec.definitions.rebackfill` makes up for them."""

from __future__ import annotations

from collections.abc import Iterable

from walvec.contracts.errors import DecodeError, NotFound
from walvec.contracts.wire import decode_change
from walvec.definitions.model import VectorTable
from walvec.transport.ports import Log
from walvec.transport.records import changes_topic

_TAIL = 1000
"""Records at the end of a partition that are looked at; streamed ones come in the order of their positions."""


async def highest_logged(transport: Log, tables: Iterable[VectorTable], epoch: int) -> int:
    """The highest LSN of that epoch near the end of the tables' topics: records may be ahead of stored progress, and
    a timeline that forked between the two has lost what they tell (rule epoch)."""
    highest = 0
    for table in tables:
        topic = changes_topic(table.storage_name)
        try:
            ends = await transport.end_offsets(topic)
        except NotFound:
            continue
        for partition, end in ends.items():
            async for record in transport.read(topic, partition, max(end - _TAIL, 0), end):
                try:
                    position = decode_change(record.key, record.value).position
                except DecodeError:
                    continue  # not one of ours, so it tells nothing of the source's timeline
                if position.epoch == epoch:
                    highest = max(highest, position.lsn)
    return highest
