"""The embedder role: one worker per vector table, built from the live feed; `channels` to the providers are shared.

A table that fails is tried again with back-off and stops nobody else. Next: `worker`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import get_args

from embedder.batch import first_of
from embedder.channels import Channels
from embedder.context import Context
from embedder.dispatch import Dispatcher
from embedder.ports import RowReader, StoreLookup
from embedder.usage import Usage
from embedder.worker import Worker
from walvec.contracts.errors import ControlUnavailable, DefinitionError, NotFound, WalvecError
from walvec.contracts.letters import LetterKind
from walvec.definitions.model import Snapshot, VectorTable
from walvec.definitions.ports import Control
from walvec.definitions.reports import Told
from walvec.runtime import measures
from walvec.runtime.lifecycle import cancelled
from walvec.runtime.measures import Sample
from walvec.runtime.metrics import Metrics
from walvec.runtime.settings import Settings
from walvec.transport.ports import Log, Producer

_log = logging.getLogger(__name__)
_REPORT_SECONDS = 0.5
_LONGEST_RESTART = 10.0


@dataclass(slots=True, eq=False)
class _Desk:
    """A table's worker, restarted when it fails."""

    table: VectorTable
    task: asyncio.Task[None]
    stop: asyncio.Event
    worker: Worker | None = None
    told: Told = field(default_factory=Told)


async def run(
    settings: Settings,
    stop: asyncio.Event,
    *,
    control: Control,
    log: Log,
    lookup: StoreLookup,
    rows: RowReader,
    metrics: Metrics | None = None,
) -> None:
    """Until `stop`, then what is in hand is finished within a few seconds. The caller closes what it passed in."""
    service = Service(settings, control=control, log=log, lookup=lookup, rows=rows)
    with (metrics or Metrics("embedder")).source(service.samples):
        await service.run(stop)


class Service:
    def __init__(self, settings: Settings, *, control: Control, log: Log, lookup: StoreLookup, rows: RowReader) -> None:
        self._settings = settings
        self._control = control
        self._log = log
        self._lookup = lookup
        self._rows = rows
        self._snapshot = Snapshot(0, {}, {}, {})
        self._channels = Channels(settings)
        self._desks: dict[str, _Desk] = {}
        self._producer: Producer | None = None
        self._usage: dict[str, Usage] = {}
        """Counts of a table outlive its worker."""

    async def run(self, stop: asyncio.Event) -> None:
        self._producer = self._log.producer()
        follow = asyncio.create_task(self._follow())
        report = asyncio.create_task(self._report())
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({follow, report, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            done = await cancelled(follow, report, stopped)
            await self._wind_down(list(self._desks.values()))
            await self._channels.close()
            with suppress(ControlUnavailable):
                await self._report_once()
            await self._producer.close()
        for result in done:
            if isinstance(result, Exception):
                raise result

    async def _follow(self) -> None:
        """Feels every change of the definitions."""
        while True:
            try:
                snapshot = await self._control.feed.changed(self._snapshot.version)
                await self._apply(snapshot)
            except ControlUnavailable as e:
                _log.warning("control database away", extra={"action": "feed", "reason": str(e)})
                await asyncio.sleep(1)

    async def _apply(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        await self._channels.define(snapshot)
        gone = [d for t, d in self._desks.items() if self._other(d.table, snapshot.vector_tables.get(t))]
        await self._end(gone)
        for table in snapshot.vector_tables.values():
            if table.error is not None or table.connection_id not in snapshot.connections:
                continue
            desk = self._desks.get(table.id)
            if desk is None:
                self._open(table)
                continue
            desk.table = table
            if desk.worker is not None:
                desk.worker.update(table)
                desk.worker.context.connection = snapshot.connections[table.connection_id]
        for table_id in self._usage.keys() - snapshot.vector_tables.keys():
            del self._usage[table_id]
        await self._channels.close_unused()

    @staticmethod
    def _other(old: VectorTable, new: VectorTable | None) -> bool:
        """The worker cannot go on with the new definition: it ends, and starts anew if there is still a table. With a
        swap it can: the generations keep their providers."""
        if new is None or new.error is not None:
            return True
        asked = {g.number: old.provider_of(g) for g in old.live_generations}
        return (new.storage_name, new.connection_id) != (old.storage_name, old.connection_id) or any(
            asked.get(g.number, new.provider_of(g)) != new.provider_of(g) for g in new.live_generations
        )

    def _open(self, table: VectorTable) -> None:
        stop = asyncio.Event()
        desk = _Desk(table, asyncio.create_task(self._keep_running(table.id)), stop)
        self._desks[table.id] = desk

    async def _end(self, desks: Sequence[_Desk]) -> None:
        await self._wind_down(desks)
        for desk in desks:
            if self._desks.get(desk.table.id) is desk:
                del self._desks[desk.table.id]

    async def _wind_down(self, desks: Sequence[_Desk]) -> None:
        for desk in desks:
            desk.stop.set()
        for desk in desks:
            if desk.table.id not in self._snapshot.vector_tables or (
                self._snapshot.vector_tables[desk.table.id].error is not None
            ):
                desk.task.cancel()
        await asyncio.gather(*(d.task for d in desks), return_exceptions=True)

    async def _keep_running(self, table_id: str) -> None:
        pause = 0.5
        while True:
            desk = self._desks[table_id]
            try:
                worker = desk.worker = self._worker(desk.table)
                await worker.run(desk.stop)
            except Exception as e:  # noqa: BLE001  one table's failure, whatever it is, stops no other
                error = first_of(e)
                expected = isinstance(error, WalvecError)
                _log.log(
                    logging.WARNING if expected else logging.ERROR,
                    "worker failed, starts again",
                    exc_info=_unexpected(e),
                    extra={
                        "action": "worker_failed",
                        "vector_table": table_id,
                        "reason": str(error) if expected else type(error).__name__,
                    },
                )
                await self._tell(table_id, error)
            if desk.stop.is_set():
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await desk.stop.wait()
                    return
            pause = min(pause * 2, _LONGEST_RESTART)

    async def _tell(self, table_id: str, error: Exception) -> None:
        """A definition that cannot be used is what a person must mend; all else is tried again."""
        if isinstance(error, DefinitionError):
            with suppress(ControlUnavailable, NotFound):
                await self._control.states.set_error(table_id, error.kind, error.message, error.cure)

    def _worker(self, table: VectorTable) -> Worker:
        assert self._producer is not None
        current = self._snapshot.vector_tables.get(table.id, table)
        channels = self._channels
        context = Context(
            table=current,
            connection=self._snapshot.connections[current.connection_id],
            producer=self._producer,
            control=self._control,
            lookup=self._lookup,
            rows=self._rows,
            dispatcher_of=lambda g: channels.dispatcher(context.table, g),
            memory_of=lambda g: channels.memory(context.table, g),
            dead_letter_limit=self._settings.embedder.dead_letter_limit,
            usage=self._usage.setdefault(current.id, Usage()),
        )
        return Worker(context, log=self._log, settings=self._settings.embedder, channels=channels)

    def samples(self) -> Iterator[Sample]:
        """What this process has counted of each vector table, and of each provider and model."""
        for table_id, usage in list(self._usage.items()):
            table = self._snapshot.vector_tables.get(table_id)
            if table is not None:
                yield from _of_table(usage, table.label)
        for (_, model, dimensions), channel in self._channels:
            yield from _of_provider(channel.dispatcher, channel.provider.label, model, str(dimensions))

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            try:
                await self._report_once()
            except ControlUnavailable as e:
                _log.warning("control database away", extra={"action": "report", "reason": str(e)})

    async def _report_once(self) -> None:
        for table_id, desk in list(self._desks.items()):
            worker = desk.worker
            if worker is None:
                continue
            usage = worker.context.usage
            serving = self._channels.find(desk.table, desk.table.active)
            report: dict[str, object] = {
                "texts_sent": usage.texts_sent,
                "texts_saved": usage.texts_saved,
                "texts_cut": usage.texts_cut,
                "requests": usage.requests,
                "tokens": usage.tokens,
                "retries": dict(usage.retries),
                "commit_ms": worker.commit_ms,
                "blocked": serving.stopped if serving is not None else None,
            }
            if desk.told.news(report):
                await self._control.reports.put("embedder", table_id, report)
                desk.told.say(report)


def _of_table(usage: Usage, table: str) -> Iterator[Sample]:
    yield measures.RECORDS_READ.of(usage.read, table, "embedder")
    yield measures.RECORDS_WRITTEN.of(usage.written, table, "embedder")
    yield measures.BATCH_RECORDS.of(usage.batches, table, "embedder")
    yield measures.LOG_TO_EMBEDDED.of(usage.log_to_embedded, table)
    yield measures.ROWS_EMBEDDED.of(usage.embedded, table)
    yield measures.TEXTS_SENT.of(usage.texts_sent, table)
    yield measures.TEXTS_CUT.of(usage.texts_cut, table)
    yield measures.TOKENS_ESTIMATED.of(usage.tokens, table)
    for reason, count in usage.saved.items():
        yield measures.TEXTS_SAVED.of(count, table, reason)
    for what, count in usage.retries.items():
        yield measures.PROVIDER_RETRIES.of(count, table, what)
    for kind in get_args(LetterKind):
        yield measures.DEAD_LETTERS.of(usage.buried[kind], table, kind)


def _of_provider(dispatcher: Dispatcher, *labels: str) -> Iterator[Sample]:
    """`labels`: provider, model, dimensions."""
    for outcome, seconds in list(dispatcher.requests.items()):
        yield measures.PROVIDER_REQUEST.of(seconds, *labels, outcome)
    yield measures.PROVIDER_TEXTS.of(dispatcher.request_texts, *labels)
    yield measures.PROVIDER_IN_FLIGHT.of(dispatcher.in_flight, *labels)
    yield measures.PROVIDER_QUEUED.of(dispatcher.queued, *labels)
    yield measures.PROVIDER_STOPPED.of(dispatcher.stopped is not None, *labels)
    if dispatcher.tokens is not None:
        yield measures.TOKENS.of(dispatcher.tokens, *labels)


def _unexpected(error: Exception) -> Exception | None:
    """What is a defect of an exception or a group of them."""
    if isinstance(error, ExceptionGroup):
        return error.split(WalvecError)[1]
    return None if isinstance(error, WalvecError) else error
