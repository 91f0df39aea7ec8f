"""Changes or vectors were lost: the durable task that makes up for it. Any role opens it, `cdc` works on it.

Rule restart-on-loss: a backfill that was running when something was lost starts again from its first key, with a new
lowest stamp; rule sweep: rows that were deleted meanwhile are swept after it. Next: `cdc.jobs` does the reading.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from walvec.contracts.errors import Conflict, NotFound, PartitionLost, RecordsLost
from walvec.definitions.model import BACKFILLS, Task, VectorTable
from walvec.definitions.ports import Control
from walvec.transport.ports import Consumer

log = logging.getLogger(__name__)


async def read_again(control: Control, tables: Iterable[VectorTable], reason: str, *, tell: bool = False) -> None:
    """Opens a sweeping rebackfill of each table's live generations, durable on return; one that is open begins anew.

    What was never read, and nobody has asked to read, has nothing to make up for; nor has what is not fed (rule
    never-back). `tell`: the reason is
    the task's last error, which `status` shows until the table is read.
    """
    for table in tables:
        try:
            await _read_again(control, table, reason, tell)
        except NotFound:
            continue  # deleted meanwhile


async def go_on_after(error: RecordsLost, table: VectorTable, *, control: Control, consumer: Consumer) -> None:
    """Reading goes on from `error.resume_at`, and only after the rebackfill is durable.

    Raises LogUnavailable and ControlUnavailable: then it is to be called again.
    """
    await lost_records(error, table, control=control)
    try:
        await consumer.seek(error.partition, error.resume_at)
        # or else nobody would be drained before the partition's next record
        await consumer.commit({error.partition: error.resume_at})
    except PartitionLost:
        log.info("the partition's next owner goes on", extra={"action": "partition_lost", "topic": error.topic})


async def lost_records(error: RecordsLost, table: VectorTable, *, control: Control) -> None:
    """Opens the rebackfill, durable on return."""
    log.error(
        "records were lost",
        extra={
            "action": "records_lost",
            "table": table.name,
            "topic": error.topic,
            "partition": error.partition,
            "resume_at": error.resume_at,
            "reason": error.message,
        },
    )
    reason = (
        f"records of partition {error.partition} of topic {error.topic} are gone before they were read: {error.message}"
        " The table is read again. Let the topic keep its records for longer (retention) if this comes back."
    )
    await read_again(control, [table], reason, tell=True)


async def _read_again(control: Control, table: VectorTable, reason: str, tell: bool) -> None:
    # as it is stored: the caller's definition may be older than its first backfill, or than a swap
    table = (await control.definitions.snapshot()).vector_tables.get(table.id, table)
    open_tasks = await control.tasks.open_tasks([table.id])
    for task in open_tasks:
        if task.task_type == "repair":
            await control.tasks.update(task.id, progress={})
    for generation in table.live_generations:
        replaced = [t.id for t in open_tasks if t.task_type in BACKFILLS and t.generation == generation.number]
        fed = table.backfilled if generation.state == "active" else generation.filled
        if not (replaced or fed):
            continue
        try:
            task = await control.tasks.create(
                "rebackfill",
                table.id,
                generation.number,
                {**_asked(open_tasks, replaced), "sweep": True, "reason": reason},
                instead_of=replaced,
                reason=f"read anew: {reason}",
            )
        except Conflict:
            # somebody asked for one in this moment, which may lack the sweep, so it is replaced; or the generation is
            # not fed any more
            await _read_again(control, table, reason, tell)
            return
        if tell:
            await control.tasks.update(task.id, last_error=reason)
        log.warning(
            "changes were lost, the table is read again",
            extra={"action": "read_again", "table": table.name, "generation": generation.number, "reason": reason},
        )


def _asked(tasks: Sequence[Task], replaced: Sequence[str]) -> dict[str, Any]:
    """What a user has asked for stays asked for."""
    return {"asked": True} if any(t.params.get("asked") for t in tasks if t.id in replaced) else {}
