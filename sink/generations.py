"""What becomes of a table's generations at the store: indexed when filled, swapped in when caught up, dropped when
nobody names them any more. Every sink process does it; each step can be done twice, and whoever comes next goes on.

A swap: (1) `begin_swap`: nothing else may become of it (2) the view shows it (3) `finish_swap`: it is the active one.
Both generations are fed until (3), so the view is right before, between and after. A crash in between is rolled
forward. What the view shows is looked at after every step, and now and then: a process that was behind may have turned
it back.
Next: `worker.py` feeds them, `service.py` runs it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from sink.stalling import stalls
from sink.stores.port import Store
from sink.worker import Worker, persistently
from walvec.contracts.errors import DefinitionError, NotFound, StoreRejected, StoreUnavailable
from walvec.definitions.model import Generation, VectorTable
from walvec.definitions.ports import Control
from walvec.transport.ports import Log
from walvec.transport.records import changes_topic, embedder_group, sink_group, vectors_topic

logger = logging.getLogger(__name__)

TURN_SECONDS = 1.0
DRAIN_SECONDS = 0.05
_LOOK_SECONDS = 30.0


async def show_right(control: Control, store: Store, table: VectorTable) -> None:
    """The view shows what is active now, whatever this process has heard of. Raises NotFound when the table is gone."""
    while True:
        found = await _now(control, table)
        if any(g.swapping for g in found.generations):
            return  # it is being pointed at; whoever does it looks again
        await persistently(lambda found=found: store.show(found, found.active), table, "show")  # type: ignore[misc]
        try:
            again = await _now(control, table)
        except NotFound:
            await persistently(lambda: store.drop(table), table, "drop")
            raise
        if (again.active.number, again.view_name) == (found.active.number, found.view_name):
            return


async def _now(control: Control, table: VectorTable) -> VectorTable:
    snapshot = await persistently(control.definitions.snapshot, table, "get_definitions")
    found = snapshot.vector_tables.get(table.id)
    if found is None:
        raise NotFound(f"vector table {table.name!r} was removed meanwhile.")
    return found


class Generations:
    """Those of one table, in one process."""

    def __init__(self, worker: Worker, *, control: Control, log: Log, store: Store) -> None:
        self._worker = worker
        self._control = control
        self._log = log
        self._store = store
        self._looked: tuple[frozenset[int], float] = (frozenset(), 0.0)

    async def run(self) -> None:
        feed = self._control.feed
        while True:
            seen = feed.current.version
            await self.turn()
            try:
                async with asyncio.timeout(TURN_SECONDS):
                    await feed.changed(seen)
            except TimeoutError:
                continue

    async def turn(self) -> None:
        """Whatever can be done now."""
        for generation in self._worker.table.live_generations:
            await self._index(generation)
        await self._swap()
        await self._expire()
        await self._look()

    # ------------------------------------------------------------------ filled -> ready

    async def _index(self, generation: Generation) -> None:
        """Search works before, by exact scan; a filled table is indexed 8 times faster than a growing one."""
        table = self._worker.table
        filled = table.backfilled if generation.state == "active" else generation.filled
        if not filled or generation.ready or generation.number in self._worker.passed_over:
            return
        try:
            await persistently(lambda: self._store.build_indexes(table, generation), table, "build_indexes")
        except (StoreRejected, DefinitionError) as e:
            if not await stalls(self._control, table, generation, e):
                raise
            return
        states, index = self._control.states, generation.index
        # it took its time: who asks for another index meanwhile is not told that it is there
        await persistently(lambda: states.set_ready(table.id, generation.number, index=index), table, "set_ready")
        extra = {"action": "build_indexes", "table": table.name, "generation": generation.number}
        logger.info("indexes built", extra=extra)

    # ------------------------------------------------------------------ ready -> active

    async def _swap(self) -> None:
        table, states = self._worker.table, self._control.states
        generation = table.building
        if generation is None or generation.state != "building":
            return
        number = generation.number
        if not generation.swapping:
            fills = generation.fills
            if not (generation.filled and generation.ready) or not await self._caught_up(number, fills):
                return
            if not await persistently(lambda: states.begin_swap(table.id, number, fills=fills), table, "begin_swap"):
                return
        try:
            await persistently(lambda: self._store.show(table, generation), table, "show")
        except (StoreRejected, DefinitionError) as e:
            reason = str(e)
            await persistently(lambda: states.undo_swap(table.id, number, reason), table, "undo_swap")
            extra = {"action": "swap_undone", "table": table.name, "generation": number, "reason": reason}
            logger.error("the store refuses the swap", extra=extra)
            await show_right(self._control, self._store, table)
            return
        until = _text(datetime.now(UTC) + timedelta(seconds=table.keep_previous))
        done = await persistently(lambda: states.finish_swap(table.id, number, until), table, "finish_swap")
        await show_right(self._control, self._store, table)
        if done:
            logger.info("swapped", extra={"action": "swapped", "table": table.name, "generation": number})

    async def _caught_up(self, number: int, fills: int) -> bool:
        """What was in the topics when it got ready is in the store, with what came back from there once: from then on
        it is as far as the active one, which is fed by the same offsets. False: it is not built any more, or is read
        again.

        The definition that this looks at may be old: it may have been read again, and its sweep may still be behind
        these ends. So `begin_swap` asks for the very `fills` that was known before the ends were taken."""
        name = self._worker.table.storage_name
        changes, vectors = changes_topic(name), vectors_topic(name)
        for topic, group in ((changes, embedder_group(name)), (vectors, sink_group(name))) * 2:
            ends = await persistently(lambda topic=topic: self._log.end_offsets(topic), self._worker.table, "swap")  # type: ignore[misc]
            while not await self._reached(topic, group, ends):
                found = self._worker.table.generation(number)
                if found is None or not (found.state == "building" and found.filled and found.fills == fills):
                    return False
                await asyncio.sleep(DRAIN_SECONDS)
        return True

    async def _reached(self, topic: str, group: str, ends: Mapping[int, int]) -> bool:
        done = await persistently(lambda: self._log.committed(topic, group), self._worker.table, "swap")
        return all(done.get(partition, 0) >= end for partition, end in ends.items())

    # ------------------------------------------------------------------ retired -> gone

    async def _expire(self) -> None:
        table, now = self._worker.table, datetime.now(UTC)
        if table.building is not None:
            return  # vectors of what is kept may be wanted still
        for generation in table.generations:
            if generation.state != "retired" or (generation.kept_until and _time(generation.kept_until) > now):
                continue
            number = generation.number
            await persistently(lambda n=number: self._control.states.expire(table.id, n), table, "expire")  # type: ignore[misc]
            logger.info("generation expired", extra={"action": "expired", "table": table.name, "generation": number})

    async def _look(self) -> None:
        """The view, and storages that no definition names: what an abort, an expiry or a crash has left. They are
        listed before the definition is asked for: a storage is made for a generation that is defined already, so what
        the definition does not name then, it never will again (rule never-back)."""
        table = self._worker.table
        numbers = frozenset(g.number for g in table.generations)
        if numbers == self._looked[0] and time.monotonic() < self._looked[1]:
            return
        await show_right(self._control, self._store, table)
        there = await persistently(lambda: self._store.generations(table), table, "generations")
        named = await _now(self._control, table)
        left = False
        for number in there:
            if named.generation(number) is not None:
                continue
            try:
                await self._store.drop(named, number)
            except StoreUnavailable as e:
                left = True  # somebody reads it still
                extra = {"action": "drop_later", "table": table.name, "generation": number, "reason": str(e)}
                logger.info("storage is in use, it is dropped later", extra=extra)
            else:
                extra = {"action": "dropped", "table": table.name, "generation": number}
                logger.info("storage dropped", extra=extra)
        self._looked = numbers, time.monotonic() + (TURN_SECONDS if left else _LOOK_SECONDS)


def _text(at: datetime) -> str:
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
