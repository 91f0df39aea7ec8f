"""Changes that were lost, and the backfill that makes up for them.

Rule restart-on-loss: a backfill that was running when changes were lost starts again from its first key, with a new
lowest stamp; rule sweep: rows that were deleted meanwhile are swept after it. Next: `cdc.jobs` does the reading.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from walvec.contracts.errors import Conflict, DecodeError, NotFound
from walvec.contracts.wire import decode_change
from walvec.definitions.model import VectorTable
from walvec.definitions.ports import Control
from walvec.transport.ports import Log
from walvec.transport.records import changes_topic

log = logging.getLogger(__name__)

_TAIL = 1000
"""Records at the end of a partition that are looked at; streamed ones come in the order of their positions."""


async def read_again(control: Control, tables: Iterable[VectorTable], reason: str) -> None:
    """Opens a sweeping rebackfill of each table, durable on return; a backfill that is open begins anew.

    A table that was never read, and that nobody has asked to read, has nothing to make up for.
    """
    for table in tables:
        try:
            await _read_again(control, table, reason)
        except NotFound:
            continue  # deleted meanwhile


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


async def _read_again(control: Control, table: VectorTable, reason: str) -> None:
    generation = next((g.number for g in table.generations if g.state == "active"), None)
    replaced: list[str] = []
    for task in await control.tasks.open_tasks([table.id]):
        if task.task_type == "repair":
            await control.tasks.update(task.id, progress={})
        elif task.task_type in ("backfill", "rebackfill"):
            generation = task.generation
            replaced.append(task.id)
    if generation is None or not (replaced or table.backfilled):
        return
    try:
        await control.tasks.create(
            "rebackfill",
            table.id,
            generation,
            {"sweep": True, "reason": reason},
            instead_of=replaced,
            reason=f"read anew: {reason}",
        )
    except Conflict:
        # somebody asked for one in this moment: that one may lack the sweep, so it is replaced
        await _read_again(control, table, reason)
        return
    log.warning(
        "changes were lost, the table is read again",
        extra={"action": "read_again", "table": table.name, "generation": generation, "reason": reason},
    )
