"""One vector table: poll, hand it to each generation's lane, commit what has no gap below it.

Next: `lanes` works on several batches of a generation at once; `service` starts one worker per table.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence

from embedder.channels import Channels
from embedder.context import Context
from embedder.intake import Polled, spans, take_in
from embedder.known import same_vectors
from embedder.lanes import Lane, within
from embedder.offsets import Offsets, Ticket
from embedder.watch import watch_providers
from walvec.contracts import wire
from walvec.contracts.errors import (
    ControlUnavailable,
    DecodeError,
    LogUnavailable,
    NotFound,
    PartitionLost,
    RecordsLost,
)
from walvec.definitions.making import ensure_topics
from walvec.definitions.model import Generation, VectorTable
from walvec.definitions.rebackfill import go_on_after
from walvec.runtime.lifecycle import cancelled
from walvec.runtime.retry import persistently
from walvec.runtime.settings import EmbedderSettings
from walvec.transport.ports import Consumer, Log
from walvec.transport.records import (
    Fetch,
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
_DRAIN_SECONDS = 3.0
_WARM_RECORDS = 50_000


class Worker:
    def __init__(self, context: Context, *, log: Log, settings: EmbedderSettings, channels: Channels) -> None:
        self.context = context
        self._log = log
        self._settings = settings
        self._channels = channels
        self._offsets = Offsets()
        self._due: dict[int, int] = {}
        self._lanes: dict[int, Lane] = {}
        self._commit = asyncio.Lock()
        self._warmed: dict[int, int] = {}
        self._owned: frozenset[int] = frozenset()
        self._collecting: bool | None = None
        self._consumer: Consumer | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._gated = False
        self._ending = False
        self.commit_ms = 0

    @property
    def table(self) -> VectorTable:
        return self.context.table

    def update(self, table: VectorTable) -> None:
        """The definition as it is now."""
        self.context.define(table)

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`, then finishes what is in hand within a few seconds. Raises what a restart may mend."""
        name = self.table.storage_name
        topics = (changes_topic(name), vectors_topic(name), dead_topic(name))
        await ensure_topics(self.table, *topics, control=self.context.control, log=self._log)
        consumer = self._log.consumer(changes_topic(name), embedder_group(name), self._revoked)
        self._consumer = consumer
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                beside = [
                    self.start(self._close_lanes()),
                    self.start(watch_providers(self.context, self._channels, self._settings, self._serving_idle)),
                ]
                try:
                    await self._loop(consumer, stop)
                    self._ending = True
                    await self._drain()
                finally:
                    self._ending = True  # a group that is being ended takes no more tasks
                    for task in beside:
                        task.cancel()
                # what still waits for a provider is given up: its offsets are not committed
                if any(lane.active for lane in self._lanes.values()):
                    raise _GivenUp
        except* _GivenUp:
            _log.info("gave up what waits for a provider", extra={"action": "drain", "vector_table": self.table.id})
        finally:
            await consumer.close()

    # ---------------------------------------------------------------- polling

    async def _loop(self, consumer: Consumer, stop: asyncio.Event) -> None:
        settings = self._settings
        while not stop.is_set():
            if await self._closed(consumer, stop):
                continue
            lanes = self._lanes_now()
            for lane in lanes:
                await lane.room_within(self._patience(lane.generation))
            busy = any(lane.waiting or lane.full for lane in lanes)
            timeout = _PATIENCE_SECONDS if busy else _POLL_SECONDS
            fetches = await self._poll(consumer, settings.batch_records, settings.batch_bytes, timeout)
            await self._warm(consumer)
            if fetches:
                await _unless(stop, self._take(fetches))

    async def _take(self, fetches: Sequence[Fetch]) -> None:
        """Once for all generations, then to each lane; lanes come and go with the definitions."""
        usage = self.context.usage
        count = sum(len(f.records) for f in fetches)
        usage.read += count
        usage.batches.add(count)
        ticket = self._offsets.begin(spans(fetches))
        polled = await take_in(self.context, fetches)
        lanes = self._lanes_now()
        ticket.share(len(lanes))
        for lane in lanes:
            await lane.take(polled, ticket)
        await self.finish(ticket)

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
        self._gated = bool(self.table.paused or self.table.error or await self._collects())
        if not self._gated:
            consumer.resume()
            return False
        consumer.pause()
        await self._poll(consumer, 1, 1, 0)
        await within(stop.wait(), _GATE_SECONDS)
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

    def _patience(self, generation: Generation) -> float:
        """How long a poll waits for room. A provider in this process is at work, not away: reading ahead of it would
        only do everything twice. What is only being built keeps nobody waiting for a provider that may be away."""
        dispatcher = self._channels.find(self.table, generation)
        if dispatcher is not None and dispatcher.limits.local:
            return _LOCAL_PATIENCE_SECONDS
        return _PATIENCE_SECONDS if self.context.serves(generation.number) else 0.0

    # ---------------------------------------------------------------- lanes

    def _lanes_now(self) -> list[Lane]:
        """One for each generation that is fed, the active one's first."""
        return [self._lanes.get(g.number) or self._open_lane(g) for g in self.context.live]

    def _open_lane(self, generation: Generation) -> Lane:
        lane = self._lanes[generation.number] = Lane(
            self.context, generation, self._log, self, max_batches=self._settings.max_batches
        )
        return lane

    async def _close_lanes(self) -> None:
        """Those of generations that are not fed any more."""
        redefined = self.context.redefined
        while True:
            redefined.clear()
            live = {g.number for g in self.context.live}
            for number in [n for n in self._lanes if n not in live]:
                await self._lanes.pop(number).close()
            await redefined.wait()

    @property
    def open(self) -> bool:
        return not (self._gated or self._ending)

    def start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        assert self._tasks is not None
        task = self._tasks.create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """One that failed ends the worker: nothing else begins."""
        if not task.cancelled() and task.exception() is not None:
            self._ending = True

    def applied(self, generation: int, polled: Polled) -> None:
        if not polled.fetches or not self.context.serves(generation):
            return
        self.commit_ms = max(self.commit_ms, polled.commit_ms)
        oldest = min(f.records[0].timestamp_ms for f in polled.fetches)
        self.context.usage.log_to_embedded.add(max(0.0, time.time() - oldest / 1000))

    def _serving_idle(self) -> bool:
        """Nothing waits for the active generation's provider."""
        return all(lane.idle for lane in self._lanes.values() if self.context.serves(lane.number))

    # ---------------------------------------------------------------- offsets

    async def finish(self, ticket: Ticket) -> None:
        """Rule commit-after-output."""
        self._due.update(self._offsets.done(ticket))
        async with self._commit:
            due = dict(self._due)  # also what somebody was kept from committing
            if not due or self._consumer is None:
                return
            consumer = self._consumer
            try:
                await persistently(lambda: consumer.commit(due), LogUnavailable, action="commit")
            except PartitionLost:
                _log.info("partition taken over", extra={"action": "partition_lost", "vector_table": self.table.id})
            self._due = {p: offset for p, offset in self._due.items() if due.get(p) != offset}

    async def _drain(self) -> None:
        """What is in hand may finish, within a few seconds."""
        end = asyncio.get_running_loop().time() + _DRAIN_SECONDS
        for lane in list(self._lanes.values()):
            await lane.emptied_within(end - asyncio.get_running_loop().time())

    async def _revoked(self, partitions: frozenset[int]) -> None:
        self._forget(partitions)
        self._owned -= partitions

    def _forget(self, partitions: frozenset[int]) -> None:
        self._offsets.forget(partitions)
        for partition in partitions:
            self._due.pop(partition, None)
        for lane in self._lanes.values():
            lane.forget(partitions)

    # ---------------------------------------------------------------- what was paid for before

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
        wanted = self._wanted()
        count = 0
        for partition, end in ends.items():
            start = max(consumed.get(partition, 0), self._warmed.get(partition, 0), end - _WARM_RECORDS)
            if start < end:
                count += await self._warm_partition(topic, partition, start, end, wanted)
            self._warmed[partition] = end
        if count:
            _log.info("vectors remembered", extra={"action": "warm", "vector_table": self.table.id, "count": count})

    def _wanted(self) -> dict[int, Generation]:
        """Generation whose vectors a live one can use -> that one."""
        table = self.table
        return {g.number: live for live in self.context.live for g in table.generations if same_vectors(table, g, live)}

    async def _warm_partition(
        self, topic: str, partition: int, start: int, end: int, wanted: dict[int, Generation]
    ) -> int:
        count = 0
        async for record in self._log.read(topic, partition, start, end):
            try:
                vector = wire.decode_vector(record.key, record.value)
            except DecodeError:
                continue  # the sink owns this record and says so
            generation = wanted.get(vector.generation)
            if generation is None or vector.op != "upsert":
                continue
            memory = self.context.memory_of(generation)
            for chunk in vector.chunks:
                if chunk.vector is not None and len(chunk.vector) == generation.embedding_dimensions:
                    memory.put(chunk.hash, chunk.vector.astype("<f4", copy=False).tobytes())
                    count += 1
        return count


class _GivenUp(Exception):
    """Ends the tasks that still wait, when the role stops."""


async def _unless(stop: asyncio.Event, work: Coroutine[None, None, None]) -> None:
    """Gives the work up when the role stops: what was not handed on is not committed."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        given_up = not task.done()
        # also where we are cancelled ourselves: nothing of it is left, and its failure is heard
        await cancelled(task, stopped)
    if not given_up:
        await task
