"""Looks at the log, the control database and the sources from outside, for Prometheus: what it says of lag, slots and
tables is right while any other role is down.

It looks when it is scraped, at most once a second, and for a few seconds at most; what it could not see has no sample,
and the failure is counted. Next: `service` gives its samples to the role's metrics.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import get_args

from api.lag import lag_of
from api.services import Services
from api.status import backfill_progress, stages_of, state_of
from walvec.contracts.errors import WalvecError
from walvec.definitions.model import Connection, SyncStatus, VectorTable
from walvec.runtime import measures
from walvec.runtime.measures import Sample
from walvec.transport.records import changes_topic, dead_topic, vectors_topic

_log = logging.getLogger(__name__)
_FRESH_SECONDS = 1.0
_PATIENCE_SECONDS = 5.0
_SOURCE_SECONDS = 3.0
_AT_ONCE = 8
_SLOT_STATUSES = ("reserved", "extended", "unreserved", "lost", "missing")


class Observer:
    """`look`, then `samples`. A look that takes too long goes on by itself; the samples are those of the last whole
    one then, and `walvec_observation_age_seconds` says how old they are."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._samples: Sequence[Sample] = ()
        self._seen_at = 0.0
        self._failures: Counter[str] = Counter()
        self._looking: asyncio.Task[None] | None = None

    async def look(self) -> None:
        if self._looking is None:
            if self._seen_at and time.monotonic() - self._seen_at < _FRESH_SECONDS:
                return
            self._looking = asyncio.create_task(self._look())
            self._looking.add_done_callback(self._looked)
        await asyncio.wait({self._looking}, timeout=_PATIENCE_SECONDS)

    def samples(self) -> Iterator[Sample]:
        yield from self._samples
        if self._seen_at:
            yield measures.OBSERVATION_AGE.of(time.monotonic() - self._seen_at)
        for what, count in list(self._failures.items()):
            yield measures.OBSERVATION_FAILURES.of(count, what)
        settings = self._services.settings
        if settings.log.kind == "local":
            yield measures.LOG_LIMIT.of(settings.log.max_bytes)

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._looking = None
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("observation failed", exc_info=error, extra={"action": "observe"})

    # ------------------------------------------------------------------ one look

    async def _look(self) -> None:
        found: list[Sample] = []
        began = time.monotonic()
        # as the feed last knew them: the lag is told while the control database is away, too
        snapshot = self._services.control.feed.current
        tables = list(snapshot.vector_tables.values())
        # a connection whose tables are all behind a Debezium has no slot of ours
        connections = [c for c in snapshot.connections.values() if snapshot.streamed_tables(c.id)]
        several = asyncio.Semaphore(_AT_ONCE)
        parts = [self._control(tables, connections, found), self._topics(tables, found, several)]
        parts += [self._slot(c, found) for c in connections]
        await asyncio.gather(*parts)
        self._samples = found
        self._seen_at = began

    @asynccontextmanager
    async def _seeing(self, what: str, seconds: float = _PATIENCE_SECONDS) -> AsyncIterator[None]:
        """What cannot be seen now is counted, and left out."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except (WalvecError, TimeoutError) as e:
            self._failures[what] += 1
            _log.debug("not observed", extra={"action": "observe", "what": what, "reason": str(e)})

    async def _lag(
        self, table: VectorTable, ends: Mapping[str, Mapping[int, int]], found: list[Sample], several: asyncio.Semaphore
    ) -> None:
        async with several, self._seeing("log"):
            for stage, (topic, group) in stages_of(table).items():
                lag = await lag_of(self._services.log, topic, group, ends.get(topic))
                found.append(measures.LAG_RECORDS.of(lag.changes, table.label, stage))
                found.append(measures.LAG_SECONDS.of(lag.seconds, table.label, stage))

    async def _topics(self, tables: Sequence[VectorTable], found: list[Sample], several: asyncio.Semaphore) -> None:
        """Sizes, and lags by the ends that were seen with them: one question for all topics, one more per group."""
        async with self._seeing("log"):
            topics = await self._services.log.topics()
            ends = {stats.topic: stats.end_offsets for stats in topics}
            sizes = {stats.topic: stats.bytes for stats in topics}
            await asyncio.gather(*(self._lag(table, ends, found, several) for table in tables))
            for table in tables:
                name = table.storage_name
                for kind, topic in (
                    ("changes", changes_topic(name)), ("vectors", vectors_topic(name)), ("dead", dead_topic(name)),
                ):  # fmt: skip
                    if topic in sizes:
                        found.append(measures.LOG_BYTES.of(sizes[topic], table.label, kind))

    async def _slot(self, connection: Connection, found: list[Sample]) -> None:
        up = False
        async with self._seeing("source", _SOURCE_SECONDS):
            slot = await self._services.source.slot(connection)
            up = True
            found.append(measures.SLOT_RETAINED.of(slot.retained, connection.label))
            found.append(measures.SLOT_UNCONFIRMED.of(slot.unconfirmed, connection.label))
            found.append(measures.SLOT_ACTIVE.of(slot.active, connection.label))
            found += _one_of(measures.SLOT_STATUS, _SLOT_STATUSES, slot.status, connection.label)
        found.append(measures.SOURCE_UP.of(up, connection.label))

    async def _control(
        self, tables: Sequence[VectorTable], connections: Sequence[Connection], found: list[Sample]
    ) -> None:
        control = self._services.control
        async with self._seeing("control_database"):
            ages = {subject: age for role, subject, _, age in await control.reports.all() if role == "cdc"}
            found += [measures.CDC_REPORT_AGE.of(ages[c.id], c.label) for c in connections if c.id in ages]
            for table in tables:
                await self._table(table, found)

    async def _table(self, table: VectorTable, found: list[Sample]) -> None:
        control = self._services.control
        tasks = await control.tasks.recent(table.id, 20)
        letters = await control.letters.count(table.id)
        found += _one_of(measures.TABLE_STATE, get_args(SyncStatus), state_of(table, tasks), table.label)
        found.append(measures.DEAD_LETTERS_OPEN.of(letters, table.label))
        backfill = backfill_progress(tasks)
        if backfill is not None:
            found.append(measures.BACKFILL_DONE.of(backfill["rows_done"], table.label))
            if backfill["estimated_total"] is not None:
                found.append(measures.BACKFILL_ESTIMATED.of(backfill["estimated_total"], table.label))


def _one_of(metric: measures.Metric, states: Sequence[str], now: str, label: str) -> list[Sample]:
    return [metric.of(state == now, label, state) for state in (*states, *(() if now in states else (now,)))]
