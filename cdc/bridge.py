"""One vector table behind an existing Debezium: its topic -> `<table>.changes`.

Several processes share the topic's partitions; who has partition 0 also works on the table's tasks. Law: what a batch
tells of the topic is stored before its records are appended, and both before its offsets are committed (rule
commit-after-output). Next: `bridge_topic` says where reading begins, `bridge_batch` translates, `bridges` runs it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from cdc.bridge_batch import Bridged, Translator
from cdc.bridge_topic import EPOCH, SourceTopic, TopicMissing
from cdc.catalog import leaves_and_enums
from cdc.debezium_order import Bases, Lives
from cdc.encoder import TablePlan
from cdc.oversized import FittingProducer
from cdc.session import open_session, source_errors
from cdc.stream import Stream
from cdc.topics import Topics
from walvec.contracts.errors import (
    ControlUnavailable,
    LogUnavailable,
    NotFound,
    PartitionLost,
    RecordsLost,
    TableChanged,
    WalvecError,
)
from walvec.definitions.model import BridgeProgress, TopicSource, VectorTable
from walvec.definitions.oversized import bury
from walvec.definitions.ports import Control
from walvec.definitions.rebackfill import go_on_after, read_again
from walvec.runtime import lifecycle
from walvec.runtime.retry import persistently
from walvec.runtime.settings import Settings
from walvec.transport.ports import Consumer, Log
from walvec.transport.records import Fetch, bridge_group, changes_topic

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_STORE_SECONDS = 1.0
_CHECK_SECONDS = 5.0
_LONGEST_SECONDS = 5.0
STRANGE_TOPIC = "source_topic"
"""Kind of table error: the topic does not hold what it should."""


class Bridge:
    """`stream`: what the table's tasks share with it; it is live while this process has partition 0."""

    def __init__(self, table_id: str, control: Control, transport: Log, settings: Settings, stream: Stream) -> None:
        self._id = table_id
        self._control = control
        self._log = transport
        self._settings = settings
        self._stream = stream
        self._topics = Topics(control, transport)
        self._source_topic = SourceTopic(control, transport)
        self._bases: dict[int, Bases] = {}
        self._uncommitted: dict[int, int] = {}
        self._progress = BridgeProgress()
        self._lives = Lives()
        self._owned: frozenset[int] = frozenset()
        self._in_row = 0
        self._sequence = 0
        self._stored_at = 0.0
        self._reported_at = 0.0
        self._events = 0
        self._told = ""
        self._plan: TablePlan | None = None

    def _table(self) -> VectorTable:
        found = self._control.feed.current.vector_tables.get(self._id)
        if found is None:
            raise NotFound("the vector table was removed")
        return found

    @property
    def _source(self) -> TopicSource:
        found = self._table().source
        assert found is not None
        return found

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`, or the table is gone. What is down is waited for."""
        failures = 0
        while not stop.is_set():
            began = time.monotonic()
            try:
                async with AsyncExitStack() as stack:
                    await self._session(stop, stack)
                failures = 0
            except WalvecError as e:
                if self._id not in self._control.feed.current.vector_tables:
                    return
                failures = 1 if time.monotonic() - began > 2 * _LONGEST_SECONDS else failures + 1
                log.warning(
                    "bridge ended, it is begun anew",
                    extra={"action": "bridge_again", "table_id": self._id, "kind": e.kind, "reason": e.message},
                )
                await self._tell(f"{e}" if failures > 1 or isinstance(e, TopicMissing) else "", state="waiting")
            finally:
                self._stream.stop()
            if failures:
                pause = min(0.1 * 2.0**failures, _LONGEST_SECONDS) * random.uniform(0.5, 1.0)
                await lifecycle.pause(stop, pause)

    # ------------------------------------------------------------------ one session

    async def _session(self, stop: asyncio.Event, stack: AsyncExitStack) -> None:
        table, source = self._table(), self._source
        if _stopped(table):
            await self._moved(stop)
            return
        partitions = await self._topics.settle(table)
        await self._source_topic.settle(table, source)
        translator = await self._translator(table, source, partitions)
        producer = FittingProducer(
            self._log.producer(backpressure=True),
            self._control,
            self._log,
            tables=lambda: [self._table()],
            limit=self._settings.embedder.dead_letter_limit,
            counts=self._stream.counts,
        )
        stack.push_async_callback(producer.close)
        self._owned, self._bases, self._uncommitted = frozenset(), {}, {}
        consumer = self._log.consumer(source.kafka_topic, bridge_group(table.storage_name), self._revoked)
        stack.push_async_callback(consumer.close)
        self._plan, checked = TablePlan.of(table), time.monotonic()
        while not stop.is_set():
            now = self._table()
            if TablePlan.of(now) != self._plan or now.source != source or _stopped(now):
                return  # the next session begins with the new definition
            fetches = await self._poll(consumer, now)
            await self._assigned(consumer, source.kafka_topic, table)
            fetches = [f for f in (self._begun(f) for f in fetches) if f is not None]
            if fetches:
                translator = await self._took(translator, now, source, partitions, fetches, producer)
                self._uncommitted.update({f.partition: f.next_offset for f in fetches})
            await self._settle(consumer, idle=not fetches)
            await self._tell("")
            if time.monotonic() - checked > _CHECK_SECONDS:
                checked = time.monotonic()
                await self._topics.check([now])
                await self._source_topic.settle(now, source)
        await self._settle(consumer, idle=True)

    async def _moved(self, stop: asyncio.Event) -> None:
        """Until a definition changes, or `stop`."""
        feed = self._control.feed
        waits = [asyncio.create_task(feed.changed(feed.current.version)), asyncio.create_task(stop.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _poll(self, consumer: Consumer, table: VectorTable) -> Sequence[Fetch]:
        settings = self._settings.cdc
        try:
            return await consumer.poll(
                max_records=settings.batch_records, max_bytes=settings.batch_bytes, timeout=_POLL_SECONDS
            )
        except RecordsLost as e:
            # the rebackfill is stamped with it: a row whose last change was lost must not stand above its stamp
            await self._control.progress.put_bridge(self._id, sequence=self._sequence)
            await go_on_after(e, table, control=self._control, consumer=consumer)
            return []

    async def _settle(self, consumer: Consumer, *, idle: bool) -> None:
        """Commits what was appended, once the place of the connector that it reached is stored: a rebackfill after a
        crash is stamped with the stored one, which must not lie below rows that went on to the store."""
        if not self._uncommitted:
            return
        if self._sequence > self._progress.sequence and (idle or self._due()):
            await self._store_sequence()
        if self._sequence <= self._progress.sequence and await self._routed_for_all():
            offsets, self._uncommitted = self._uncommitted, {}
            await self._commit(consumer, offsets)

    async def _routed_for_all(self) -> bool:
        """Rule since-routed: what was written for the generations that this process knows is written again when there
        is another one by now, whose backfill may have read its rows before. Asked after the append, before the commit:
        one that is defined later is read later."""
        found = (await self._control.definitions.snapshot()).vector_tables.get(self._id)
        return found is not None and TablePlan.of(found) == self._plan

    def _due(self) -> bool:
        return time.monotonic() - self._stored_at > _STORE_SECONDS

    async def _store_sequence(self) -> None:
        await self._control.progress.put_bridge(self._id, sequence=self._sequence)
        self._progress = await self._control.progress.bridge(self._id) or BridgeProgress()
        self._stored_at = time.monotonic()

    async def _commit(self, consumer: Consumer, offsets: Mapping[int, int]) -> None:
        try:
            await persistently(lambda: consumer.commit(offsets), LogUnavailable, action="commit")
        except PartitionLost:
            log.info("partition taken over", extra={"action": "partition_lost", "table_id": self._id})

    async def _revoked(self, partitions: frozenset[int]) -> None:
        self._owned -= partitions
        self._uncommitted = {p: offset for p, offset in self._uncommitted.items() if p not in partitions}
        if 0 in partitions:
            self._stream.stop()

    async def _assigned(self, consumer: Consumer, topic: str, table: VectorTable) -> None:
        """New partitions begin where reading of the topic began, unless the group has come further."""
        owned = consumer.assignment()
        new = owned - self._owned
        if new:
            self._progress = await self._control.progress.bridge(self._id) or BridgeProgress()
            done = await self._log.committed(topic, bridge_group(table.storage_name))
            for partition in new:
                self._bases[partition] = Bases(list(self._progress.snapshots.get(partition, ())))
                start = self._progress.starts.get(partition, 0)
                if done.get(partition, 0) < start:
                    await consumer.seek(partition, start)
                    await self._commit(consumer, {partition: start})
        self._owned = owned
        if 0 in owned and (not self._stream.live or 0 in new):  # a new session may have other generations
            self._stream.restart(epoch=EPOCH, at=0, horizon=0, fresh=False)
            self._stream.route(table.id, frozenset(g.number for g in table.live_generations))
        elif 0 not in owned and self._stream.live:
            self._stream.stop()

    def _begun(self, fetch: Fetch) -> Fetch | None:
        """Without what lies before the place where reading of the topic began."""
        start = self._progress.starts.get(fetch.partition, 0)
        if fetch.records[0].offset >= start:
            return fetch
        kept = [r for r in fetch.records if r.offset >= start]
        return Fetch(fetch.partition, kept) if kept else None

    async def _translator(self, table: VectorTable, source: TopicSource, partitions: int) -> Translator:
        """With what the catalog has now: a connector may name partitions instead of the table."""
        session = await open_session(self._control.feed.current.connections[table.connection_id].dsn)
        try:
            with source_errors():
                leaves, enums = await leaves_and_enums(session, table.source_schema, table.source_table)
        finally:
            await session.close()
        return Translator(
            table,
            source,
            epoch=EPOCH,
            topic=changes_topic(table.storage_name),
            partitions=partitions,
            headers=self._log.keeps_headers,
            leaves=leaves,
            enums=enums,
        )

    # ------------------------------------------------------------------ one batch

    async def _took(
        self,
        translator: Translator,
        table: VectorTable,
        source: TopicSource,
        partitions: int,
        fetches: Sequence[Fetch],
        producer: FittingProducer,
    ) -> Translator:
        parsed = translator.parse(fetches)
        if translator.strangers(parsed):
            translator = await self._translator(table, source, partitions)
            parsed = translator.parse(fetches)
        known = self._progress
        sequence = max(self._sequence, known.sequence)
        out = translator.translate(parsed, self._bases, self._lives, sequence, known.snapshot_lsns)
        await self._note(table, out)
        if out.letters:
            await bury(out.letters, table, control=self._control, log=self._log)
        if out.records:
            began = time.monotonic()
            await producer.append(changes_topic(table.storage_name), out.records)
            since = time.time() - out.commit_ms / 1000 if out.commit_ms else 0.0
            counts = self._stream.counts.table(changes_topic(table.storage_name))
            counts.appended(len(out.records), time.monotonic() - began, since)
        if out.cleared:
            await read_again(self._control, [table], "a partition of the source table was truncated")
        self._events += out.events
        await self._limit(table, source, out)
        return translator

    async def _note(self, table: VectorTable, out: Bridged) -> None:
        """Stores what was learned of the topic: how far the connector has come, and where a snapshot began. What
        happened while a connector had lost its place may not be in the topic: the table is read again, and swept."""
        self._sequence = max(self._sequence, out.sequence)
        if not (out.snapshots or out.begins):
            return
        if out.begins:
            stored = (await self._control.progress.bridge(table.id) or BridgeProgress()).snapshot_lsns
            new = {lsn for found in out.snapshots.values() for _, lsn in found}
            if not new or not new <= set(stored):  # else the reader of another partition has noticed it
                # the rebackfill is stamped with it; the snapshots come last, so that a crash finds them new again
                await self._control.progress.put_bridge(table.id, sequence=self._sequence)
                await read_again(self._control, [table], "the connector began anew, without its offsets")
        await self._control.progress.put_bridge(table.id, sequence=self._sequence, snapshots=out.snapshots)
        self._progress = await self._control.progress.bridge(table.id) or BridgeProgress()
        self._stored_at = time.monotonic()

    async def _limit(self, table: VectorTable, source: TopicSource, out: Bridged) -> None:
        """Past a limit of letters in a row the table stops instead of draining the topic into them."""
        self._in_row = out.in_row if out.events else self._in_row + out.in_row
        if self._in_row < self._settings.embedder.dead_letter_limit:
            return
        self._in_row = 0
        last = out.letters[-1].reason if out.letters else ""
        await self._control.states.set_error(
            table.id,
            STRANGE_TOPIC,
            f"the records of topic {source.kafka_topic} are not changes of"
            f" {table.source_schema}.{table.source_table}: {last}",
            f"Mend the connector or the definition, then `walvec resume {table.name}`; `walvec verify --repair` makes"
            " up for what was not read.",
        )

    async def _tell(self, reason: str, *, state: str = "reading") -> None:
        now = time.monotonic()
        if now - self._reported_at < _STORE_SECONDS and reason == self._told:
            return
        self._reported_at, self._told = now, reason
        report = {"state": state, "reason": reason, "events": self._events, "partitions": sorted(self._owned)}
        try:
            await self._control.reports.put("bridge", self._id, report)
        except (ControlUnavailable, NotFound) as e:
            log.warning("report not stored", extra={"action": "report_unstored", "reason": e.message})


def _stopped(table: VectorTable) -> bool:
    """Dead letters of later stages do not stop the bridge: what the topic has still reaches the log."""
    return table.error is not None and table.error.get("kind") in (STRANGE_TOPIC, TableChanged.kind)
