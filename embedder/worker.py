"""One vector table: poll, work on several batches at once, commit what has no gap below it.

Deletes and claims never wait for a provider: when all batches in work wait for one, the worker reads on, sends what can
go at once and *parks* the rest as offsets alone, to be read again when there is room. Memory stays bounded by
`max_batches` polled batches. Next: `batch` does the work; `service` starts one worker per table.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from embedder.batch import Batch, Context, spans
from embedder.dispatch import Dispatcher
from embedder.offsets import Offsets, Ticket
from walvec.contracts import wire
from walvec.contracts.errors import (
    ControlUnavailable,
    DecodeError,
    LogUnavailable,
    NotFound,
    PartitionLost,
    RecordsLost,
    TableChanged,
)
from walvec.definitions.making import ensure_topics
from walvec.definitions.model import Generation, VectorTable
from walvec.definitions.ports import Control
from walvec.definitions.rebackfill import go_on_after, lost_records
from walvec.runtime.retry import persistently
from walvec.runtime.settings import EmbedderSettings
from walvec.transport.ports import Consumer, Log
from walvec.transport.records import (
    Fetch,
    StoredRecord,
    changes_topic,
    dead_topic,
    embedder_group,
    sink_group,
    vectors_topic,
)

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 0.25
_LOCAL_PATIENCE_SECONDS = 2.0
_GATE_SECONDS = 0.25
_TOO_SHORT_SECONDS = 3.0
_DRAIN_SECONDS = 3.0
_WARM_RECORDS = 50_000


class DeadCount:
    """Dead letters in a row, kept in the control database so that a restart counts on."""

    def __init__(self, control: Control, table: VectorTable, limit: int) -> None:
        self._control = control
        self._table_id = table.id
        self._limit = limit
        self._number = table.dead_in_row

    async def count(self, letters: int) -> None:
        states = self._control.states
        self._number = await persistently(
            lambda: states.count_dead(self._table_id, letters), ControlUnavailable, action="count_dead"
        )
        if self._number < self._limit:
            return
        _log.error(
            "dead letter limit reached",
            extra={"action": "table_error", "vector_table": self._table_id, "count": self._number},
        )
        await persistently(
            lambda: states.set_error(
                self._table_id,
                "dead_letters",
                f"{self._number} changes in a row could not be embedded.",
                'See "walvec dead list", mend the cause, then resume the table.',
            ),
            ControlUnavailable,
            action="set_error",
        )

    async def reset(self) -> None:
        if not self._number:
            return
        self._number = 0
        await persistently(
            lambda: self._control.states.count_dead(self._table_id, 0), ControlUnavailable, action="count_dead"
        )


@dataclass(slots=True, eq=False)
class _Parked:
    partition: int
    start: int
    end: int
    records: int
    ticket: Ticket


class Worker:
    def __init__(
        self,
        context: Context,
        *,
        log: Log,
        settings: EmbedderSettings,
        dispatchers: Callable[[], Sequence[Dispatcher]],
    ) -> None:
        self.context = context
        self._log = log
        self._settings = settings
        self._dispatchers = dispatchers
        self._offsets = Offsets()
        self._parked: deque[_Parked] = deque()
        self._active = 0
        self._room = asyncio.Event()
        self._commit = asyncio.Lock()
        self._warmed: dict[int, int] = {}
        self._owned: frozenset[int] = frozenset()
        self._collecting: bool | None = None
        self._blocked = context.table.blocked
        self._consumer: Consumer | None = None
        self.commit_ms = 0

    @property
    def table(self) -> VectorTable:
        return self.context.table

    def update(self, table: VectorTable) -> None:
        """The definition as it is now."""
        self.context.table = table

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`, then finishes what is in hand within a few seconds. Raises what a restart may mend."""
        name = self.table.storage_name
        topics = (changes_topic(name), vectors_topic(name), dead_topic(name))
        await ensure_topics(self.table, *topics, control=self.context.control, log=self._log)
        consumer = self._log.consumer(changes_topic(name), embedder_group(name), self._revoked)
        self._consumer = consumer
        try:
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(self._watch_providers())
                try:
                    await self._loop(consumer, stop, tasks)
                    await self._drain()
                finally:
                    watch.cancel()
                # what still waits for a provider is given up: its offsets are not committed
                if self._active:
                    raise _GivenUp
        except* _GivenUp:
            _log.info("gave up what waits for a provider", extra={"action": "drain", "vector_table": self.table.id})
        finally:
            await consumer.close()

    async def _loop(self, consumer: Consumer, stop: asyncio.Event, tasks: asyncio.TaskGroup) -> None:
        settings = self._settings
        while not stop.is_set():
            if await self._closed(consumer, stop):
                continue
            full = self._active >= settings.max_batches and not await self._room_within(self._patience())
            if not full and self._parked:
                self._active += 1
                tasks.create_task(self._work_parked(self._parked.popleft()))
                continue
            timeout = _PATIENCE_SECONDS if self._parked or full else _POLL_SECONDS
            fetches = await self._poll(consumer, settings.batch_records, settings.batch_bytes, timeout)
            await self._warm(consumer)
            if not fetches:
                continue
            self._polled(fetches)
            ticket = self._offsets.begin(spans(fetches))
            if full:
                await self._ahead(fetches, ticket)
            else:
                self._active += 1
                tasks.create_task(self._work(fetches, ticket))

    async def _poll(self, consumer: Consumer, max_records: int, max_bytes: int, timeout: float) -> list[Fetch]:
        try:
            return await persistently(
                lambda: consumer.poll(max_records=max_records, max_bytes=max_bytes, timeout=timeout),
                LogUnavailable,
                action="poll",
            )
        except RecordsLost as e:
            error = e
        self._forget(frozenset({error.partition}))
        async with self._commit:
            await persistently(
                lambda: go_on_after(error, self.table, control=self.context.control, consumer=consumer),
                LogUnavailable,
                ControlUnavailable,
                action="records_lost",
            )
        return []

    async def _closed(self, consumer: Consumer, stop: asyncio.Event) -> bool:
        """Paused, in error, or collecting before the first backfill: nothing is consumed, membership goes on."""
        if not (self.table.paused or self.table.error or await self._collects()):
            consumer.resume()
            return False
        consumer.pause()
        await self._poll(consumer, 1, 1, 0)
        await _within(stop.wait(), _GATE_SECONDS)
        return True

    async def _collects(self) -> bool:
        """`backfill: manual`: changes are collected from the start, and applied from the first backfill on."""
        if self._collecting is False:
            return False
        table = self.table
        if table.backfill == "manual" and not table.backfilled and len(table.generations) == 1:
            recent = await persistently(
                lambda: self.context.control.tasks.recent(table.id), ControlUnavailable, action="recent_tasks"
            )
            self._collecting = not any(t.task_type in ("backfill", "rebackfill") for t in recent)
        else:
            self._collecting = False
        return self._collecting

    def _patience(self) -> float:
        """How long a poll waits for room. A provider in this process is at work, not away: reading ahead of it would
        only do everything twice."""
        local = all(d.limits.local for d in self._dispatchers())
        return _LOCAL_PATIENCE_SECONDS if local else _PATIENCE_SECONDS

    async def _room_within(self, seconds: float) -> bool:
        self._room.clear()
        if self._active >= self._settings.max_batches:
            await _within(self._room.wait(), seconds)
        return self._active < self._settings.max_batches

    async def _work(self, fetches: Sequence[Fetch], ticket: Ticket) -> None:
        batch = Batch(self.context)
        try:
            await self._settle(batch, fetches, ticket)
        finally:
            self._active -= 1
            self._room.set()

    async def _ahead(self, fetches: Sequence[Fetch], ticket: Ticket) -> None:
        """All batches in work wait: what can go at once goes, the rest stays in the log until there is room."""
        batch = Batch(self.context, only_at_once=True)
        await self._run(batch, fetches)
        if not batch.rest:
            self._embedded(fetches)
            await self._finish(batch, ticket)
            return
        for fetch in fetches:
            part = Ticket({fetch.partition: ticket.spans[fetch.partition]})
            start, end = fetch.records[0].offset, fetch.next_offset
            self._parked.append(_Parked(fetch.partition, start, end, len(fetch.records), part))

    async def _work_parked(self, parked: _Parked) -> None:
        try:
            records = await self._read_again(parked)
            fetches = [Fetch(parked.partition, records)] if records else []
            if len(records) < parked.records:
                await self._expired(parked)
            await self._settle(Batch(self.context), fetches, parked.ticket)
        finally:
            self._active -= 1
            self._room.set()

    async def _read_again(self, parked: _Parked) -> list[StoredRecord]:
        """Fewer than were parked only when the log has let them go: a partition whose leader has just moved may end too
        early for a moment."""
        topic = changes_topic(self.table.storage_name)
        until = time.monotonic() + _TOO_SHORT_SECONDS
        while True:
            records = [r async for r in self._log.read(topic, parked.partition, parked.start, parked.end)]
            if len(records) >= parked.records or time.monotonic() > until:
                return records
            kept = next((t.start_offsets for t in await self._log.topics() if t.topic == topic), {})
            if kept.get(parked.partition, 0) > parked.start:
                return records
            await self._log.wait_for_append(_PATIENCE_SECONDS)

    async def _expired(self, parked: _Parked) -> None:
        """The log did not keep what was parked: a provider was away for longer than its records are kept."""
        topic = changes_topic(self.table.storage_name)
        lost = RecordsLost(
            f"offsets {parked.start} to {parked.end} waited for the embedding provider and were not kept.",
            topic=topic,
            partition=parked.partition,
            resume_at=parked.end,
        )
        await persistently(
            lambda: lost_records(lost, self.table, control=self.context.control),
            ControlUnavailable,
            action="records_lost",
        )

    async def _settle(self, batch: Batch, fetches: Sequence[Fetch], ticket: Ticket) -> None:
        await self._run(batch, fetches)
        self._embedded(fetches)
        await self._finish(batch, ticket)

    def _polled(self, fetches: Sequence[Fetch]) -> None:
        usage = self.context.usage
        count = sum(len(f.records) for f in fetches)
        usage.read += count
        usage.batches.add(count)

    def _embedded(self, fetches: Sequence[Fetch]) -> None:
        if fetches:
            oldest = min(f.records[0].timestamp_ms for f in fetches)
            self.context.usage.log_to_embedded.add(max(0.0, time.time() - oldest / 1000))

    async def _run(self, batch: Batch, fetches: Sequence[Fetch]) -> None:
        try:
            await batch.run(fetches)
        except TableChanged as e:
            table_id, message, cure = self.table.id, e.message, e.cure
            await persistently(
                lambda: self.context.control.states.set_error(table_id, "table_changed", message, cure),
                ControlUnavailable,
                action="set_error",
            )
            raise

    async def _finish(self, batch: Batch, ticket: Ticket) -> None:
        """Rule commit-after-output."""
        offsets = self._offsets.done(ticket)
        self.commit_ms = max(self.commit_ms, batch.commit_ms)
        if not offsets or self._consumer is None:
            return
        consumer = self._consumer
        async with self._commit:
            try:
                await persistently(lambda: consumer.commit(offsets), LogUnavailable, action="commit")
            except PartitionLost:
                _log.info("partition taken over", extra={"action": "partition_lost", "vector_table": self.table.id})

    async def _drain(self) -> None:
        """What is in hand may finish, within a few seconds."""
        end = asyncio.get_running_loop().time() + _DRAIN_SECONDS
        while self._active and (left := end - asyncio.get_running_loop().time()) > 0:
            self._room.clear()
            await _within(self._room.wait(), left)

    async def _revoked(self, partitions: frozenset[int]) -> None:
        self._forget(partitions)
        self._owned -= partitions

    def _forget(self, partitions: frozenset[int]) -> None:
        self._offsets.forget(partitions)
        self._parked = deque(p for p in self._parked if p.partition not in partitions)

    async def _warm(self, consumer: Consumer) -> None:
        """Newly owned partitions: whoever had them may have paid for vectors that no store has yet. They are read back
        from the tail of `.vectors` that the sink has not consumed."""
        owned = consumer.assignment()
        if owned <= self._owned:
            self._owned = owned
            return
        self._owned = owned
        name = self.table.storage_name
        topic = vectors_topic(name)
        try:
            consumed = await self._log.committed(topic, sink_group(name))
            ends = await self._log.end_offsets(topic)
        except (LogUnavailable, NotFound) as e:
            _log.warning("tail of vectors not read", extra={"action": "warm", "reason": str(e)})
            return
        generations = {g.number: g for g in self.table.live_generations}
        count = 0
        for partition, end in ends.items():
            start = max(consumed.get(partition, 0), self._warmed.get(partition, 0), end - _WARM_RECORDS)
            if start < end:
                count += await self._warm_partition(topic, partition, start, end, generations)
            self._warmed[partition] = end
        if count:
            _log.info("vectors remembered", extra={"action": "warm", "vector_table": self.table.id, "count": count})

    async def _warm_partition(
        self, topic: str, partition: int, start: int, end: int, generations: dict[int, Generation]
    ) -> int:
        count = 0
        async for record in self._log.read(topic, partition, start, end):
            try:
                vector = wire.decode_vector(record.key, record.value)
            except DecodeError:
                continue  # the sink owns this record and says so
            generation = generations.get(vector.generation)
            if generation is None or vector.op != "upsert":
                continue
            memory = self.context.dispatcher_of(generation).memory
            for chunk in vector.chunks:
                if chunk.vector is not None and len(chunk.vector) == generation.embedding_dimensions:
                    memory.put(chunk.hash, chunk.vector.astype("<f4", copy=False).tobytes())
                    count += 1
        return count

    async def _watch_providers(self) -> None:
        """`blocked` while a provider of this table says stop; cleared once it has answered again."""
        changed = asyncio.Event()
        while True:
            changed.clear()
            dispatchers = self._dispatchers()
            ends = [d.listen(changed.set) for d in dispatchers]
            try:
                reason = next((d.stopped for d in dispatchers if d.stopped is not None), None)
                healed = self._blocked is not None and reason is None and self._works(dispatchers)
                if (reason is not None and reason != self._blocked) or healed:
                    self._blocked = reason
                    await persistently(
                        lambda reason=reason: self.context.control.states.set_blocked(  # type: ignore[misc]
                            self.table.id, reason
                        ),
                        ControlUnavailable,
                        action="set_blocked",
                    )
                    continue
                await _within(changed.wait(), 1.0)
            finally:
                for end in ends:
                    end()

    def _works(self, dispatchers: Sequence[Dispatcher]) -> bool:
        """All have answered since, or nothing is left that waits for them."""
        return all(d.served for d in dispatchers) or (not self._active and self._offsets.idle)


class _GivenUp(Exception):
    """Ends the tasks that still wait, when the role stops."""


async def _within(waiter: object, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await waiter  # type: ignore[misc]
    except TimeoutError:
        return
