"""What a table needs beside its batches: letters that are settled, tombstones purged.

Next: `generations.py`, `service.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time

from sink.stalling import stalls
from sink.stores.port import Store
from sink.worker import Worker, persistently
from walvec.contracts.errors import StoreRejected
from walvec.contracts.position import ZERO, Position
from walvec.definitions.model import VectorTable
from walvec.definitions.ports import Control
from walvec.runtime.settings import Settings
from walvec.transport.ports import Log
from walvec.transport.records import changes_topic, embedder_group, sink_group, vectors_topic

logger = logging.getLogger(__name__)

_LETTERS_SECONDS = 2.0
_PAGE = 1000


class Upkeep:
    def __init__(self, worker: Worker, settings: Settings, *, control: Control, log: Log, store: Store) -> None:
        self._worker = worker
        self._settings = settings
        self._control = control
        self._log = log
        self._store = store

    async def run(self) -> None:
        purge_at = time.monotonic() + self._settings.sink.purge_interval_seconds
        purged: tuple[int, Position] | None = None
        while True:
            await persistently(self._letters, self._worker.table, "settle_letters")
            if time.monotonic() >= purge_at:
                purge_at = time.monotonic() + self._settings.sink.purge_interval_seconds
                purged = await persistently(lambda: self.purge(purged), self._worker.table, "purge")  # noqa: B023
            await asyncio.sleep(_LETTERS_SECONDS)

    async def _letters(self) -> None:
        """Letters may be written by others at any time: their number is looked at, and the store's versions of their
        keys are compared, so that none stays that is overtaken already."""
        table, letters = self._worker.table, self._control.letters
        count = await letters.count(table.id)
        after = 0
        while count:
            page = await letters.page(table.id, limit=_PAGE, after_id=after)
            if not page:
                break
            after = page[-1].id
            # of what is not fed any more nothing can be mended, nor need it be (rule never-back)
            gone = [x.id for x in page if 0 < x.generation < table.next_generation and _is_gone(table, x.generation)]
            count -= await letters.remove(table.id, gone) if gone else 0
            for generation in table.live_generations:
                # of a record that could not be read the position is not known, so nothing here can be called newer
                mine = [x for x in page if x.generation == generation.number and x.position > ZERO]
                keys = [letter.key for letter in mine if letter.key]
                if generation.number in self._worker.passed_over:
                    continue
                found = await self._store.versions(table, generation, keys)
                if found:
                    settled = {k: v.position for k, v in found.items()}
                    count -= await letters.settle(table.id, generation.number, settled)
        self._worker.counts.letters = max(0, count)

    async def purge(self, before: tuple[int, Position] | None = None) -> tuple[int, Position] | None:
        """Tombstones below what was durable *before* both topics were seen drained (rule purge-horizon). `before`: the
        end of `.vectors` and the horizon of the last purge; nothing to do where both are what they were."""
        table, control, log = self._worker.table, self._control, self._log
        if table.source is not None:
            # its positions are on Debezium's scale, of which the progress of the connection's own slot says nothing
            return before
        # of one that was not read to the end keys are unknown to the store: a row's stamp may lie below the horizon.
        # While any of them is read none is purged. What is purged has no life before (rule never-back), so no record
        # of one is older than the horizon and still to come
        whole = [g for g in table.live_generations if (table.backfilled if g.state == "active" else g.filled)]
        if not whole:
            return before
        progress = await control.progress.get(table.connection_id)
        horizon = Position(progress.epoch, progress.lsn, 0)
        if await control.tasks.open_tasks([table.id]):
            return before
        changes, vectors = changes_topic(table.storage_name), vectors_topic(table.storage_name)
        changes_end = await self._drained(changes, embedder_group(table.storage_name))
        vectors_end = await self._drained(vectors, sink_group(table.storage_name))
        # a refused claim went from one to the other in between: then the first has moved
        if changes_end is None or vectors_end is None or await log.end_offsets(changes) != changes_end:
            return before
        # with the same records and a higher one: what is stored of the stream's progress comes after its records
        now = sum(vectors_end.values()), horizon
        if before == now:
            return before
        if await control.tasks.open_tasks([table.id]):
            return before
        gone = 0
        for generation in whole:
            keep = await control.letters.keys(table.id, generation.number)
            try:
                gone += await self._store.purge(table, generation, horizon, keep)
            except StoreRejected as e:
                if not await stalls(control, table, generation, e):
                    raise
        if gone:
            extra = {"action": "purge", "table": table.name, "tombstones": gone}
            logger.info("tombstones purged", extra=extra)
        return now

    async def _drained(self, topic: str, group: str) -> dict[int, int] | None:
        ends = await self._log.end_offsets(topic)
        committed = await self._log.committed(topic, group)
        return ends if all(committed.get(p, 0) >= end for p, end in ends.items()) else None


def _is_gone(table: VectorTable, number: int) -> bool:
    found = table.generation(number)
    return found is None or found.state == "retired"
