"""Changes that `.changes` does not take: dead letters, and the delete that keeps the store from serving an older text.

Counts them in a row, as the embedder and the sink do: past the limit the table stops. Next: `cdc.publisher` and
`cdc.work` append through it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from cdc.counts import Counts
from walvec.contracts.changes import ALL_GENERATIONS, Change
from walvec.contracts.errors import NotFound
from walvec.contracts.letters import DeadLetter
from walvec.contracts.wire import decode_change, encode_change
from walvec.definitions.model import VectorTable
from walvec.definitions.oversized import append_fitting, bury, words
from walvec.definitions.ports import Control
from walvec.transport.ports import Log, Producer
from walvec.transport.records import Record, changes_topic

log = logging.getLogger(__name__)


class FittingProducer:
    """A producer of `.changes` records. `tables()`: as they are defined now; `limit`: dead letters in a row that stop a
    table.

    Where records were too large, their batch is appended again, and may come behind later ones then: the guard at the
    store keeps the order of a key.
    """

    def __init__(
        self,
        producer: Producer,
        control: Control,
        transport: Log,
        *,
        tables: Callable[[], Iterable[VectorTable]],
        limit: int,
        counts: Counts,
    ) -> None:
        self._producer = producer
        self._control = control
        self._log = transport
        self._tables = tables
        self._limit = limit
        self._counts = counts
        self._in_row: dict[str, str] = {}
        """Tables whose last records were too large, by topic."""

    async def append(self, topic: str, records: Sequence[Record]) -> None:
        """Durable on return: each record, or its letter with what stands in for it. Also raises ControlUnavailable."""
        buried = 0

        async def instead(large: Sequence[Record], limit: int) -> list[Record | None]:
            nonlocal buried
            places, letters = await self._instead(topic, large, limit)
            buried += letters
            return places

        await append_fitting(self._producer, topic, records, instead)
        if self._in_row and buried < len(records) and (table_id := self._in_row.pop(topic, None)) is not None:
            await self._control.states.count_dead(table_id, 0)

    async def close(self) -> None:
        await self._producer.close()

    def _table(self, topic: str) -> VectorTable:
        for table in self._tables():
            if changes_topic(table.storage_name) == topic:
                return table
        raise NotFound(f"topic {topic} belongs to no vector table any more.")

    async def _instead(self, topic: str, large: Sequence[Record], limit: int) -> tuple[list[Record | None], int]:
        table, now = self._table(topic), int(time.time() * 1000)
        places: list[Record | None] = []
        letters: list[DeadLetter] = []
        rows = 0
        for record in large:
            change = decode_change(record.key, record.value)
            if change.op == "d" and change.before is None:
                # nothing smaller can be said of this key: a letter is there already, or there never was such a row
                log.error("delete is too large", extra={"action": "too_large", "table": table.name, "topic": topic})
                places.append(None)
                continue
            places.append(Record(record.key, encode_change(_delete(change)), record.partition, record.headers))
            if change.op == "d":
                continue  # only the old image was too large
            rows += 1
            reason = words(topic, record, limit)
            letters += [
                DeadLetter(table.id, number, change.key, "too_large", reason, change.position, created_ms=now)
                for number in _generations(change, table)
            ]
        if letters:
            await bury(letters, table, control=self._control, log=self._log)
            log.warning(
                "records are too large",
                extra={"action": "too_large", "table": table.name, "topic": topic, "count": rows, "limit": limit},
            )
            await self._count(table, topic, rows)
        return places, rows

    async def _count(self, table: VectorTable, topic: str, rows: int) -> None:
        self._counts.table(topic).buried["too_large"] += rows
        number = await self._control.states.count_dead(table.id, rows)
        self._in_row[topic] = table.id
        if number >= self._limit:
            await self._control.states.set_error(
                table.id,
                "dead_letters",
                f"{number} changes in a row are too large for the log.",
                "See `walvec dead list`; mend the cause, then resume the table.",
            )


def _delete(change: Change) -> Change:
    return replace(
        change, op="d", before=None, after=None, exact={}, unchanged=(), force=False, text=None
    )  # fmt: skip


def _generations(change: Change, table: VectorTable) -> list[int]:
    if change.generation != ALL_GENERATIONS:
        return [change.generation]
    return [g.number for g in table.live_generations if change.concerns(g.number)]
