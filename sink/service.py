"""The sink role: one desk per vector table, made and ended as the definitions change.

A desk that fails for a reason that a person must mend puts its table into `error`; the others go on. Next: `worker.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

from sink.generations import Generations, show_right
from sink.stalling import stalls
from sink.stores.registry import Stores
from sink.upkeep import Upkeep
from sink.worker import Worker, persistently
from walvec.contracts.errors import (
    ConfigError,
    ControlUnavailable,
    DefinitionError,
    NotFound,
    StoreRejected,
    WalvecError,
)
from walvec.definitions.making import make
from walvec.definitions.model import Generation, VectorTable
from walvec.definitions.ports import Control
from walvec.definitions.reports import Told
from walvec.runtime.lifecycle import cancelled
from walvec.runtime.measures import Sample
from walvec.runtime.metrics import Metrics
from walvec.runtime.settings import Settings
from walvec.transport.ports import Log

logger = logging.getLogger(__name__)

_REPORT_SECONDS = 0.5
_FEED_SECONDS = 2.0
_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 10.0


@dataclass(slots=True, eq=False)
class _Desk:
    table: VectorTable
    task: asyncio.Task[None]
    worker: Worker | None = None
    told: Told = field(default_factory=Told)


async def run(
    settings: Settings,
    stop: asyncio.Event,
    *,
    control: Control,
    log: Log,
    stores: Stores,
    metrics: Metrics | None = None,
) -> None:
    """Until `stop`; a batch in hand is either stored and committed or done again. The caller closes what it passed."""
    service = Service(settings, control=control, log=log, stores=stores)
    with (metrics or Metrics("sink")).source(service.samples):
        await service.run(stop)


class Service:
    def __init__(self, settings: Settings, *, control: Control, log: Log, stores: Stores) -> None:
        self._settings = settings
        self._control = control
        self._log = log
        self._stores = stores
        self._desks: dict[str, _Desk] = {}

    async def run(self, stop: asyncio.Event) -> None:
        follow = asyncio.create_task(self._follow())
        report = asyncio.create_task(self._report())
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({follow, report, stopped}, return_when=asyncio.FIRST_COMPLETED)
            for task in (follow, report):
                if task.done():
                    task.result()
        finally:
            await cancelled(follow, report, stopped, *(d.task for d in self._desks.values()))

    async def _follow(self) -> None:
        while True:
            snapshot = self._control.feed.current
            wanted = {t.id: t for t in snapshot.vector_tables.values() if not t.paused and t.error is None}
            for table_id, desk in list(self._desks.items()):
                table = wanted.get(table_id)
                if table is None or _other(desk.table, table):
                    await cancelled(desk.task)
                    del self._desks[table_id]
                else:
                    desk.table = table
                    if desk.worker is not None:
                        desk.worker.table = table
            for table_id, table in wanted.items():
                known = self._desks.get(table_id)
                if known is None:
                    self._desks[table_id] = desk = _Desk(table, asyncio.create_task(asyncio.sleep(0)))
                    desk.task = asyncio.create_task(self._keep(desk))
            await self._control.feed.changed(snapshot.version)

    async def _keep(self, desk: _Desk) -> None:
        """Restarts a failed desk with back-off; gives up only for what a person must mend."""
        pause = _FIRST_PAUSE
        while True:
            table = desk.table
            try:
                await self._attempt(desk)
            except (StoreRejected, DefinitionError, ConfigError) as e:
                # the storage of a generation that was just replaced, or of a table that was just dropped, is gone
                # before the feed tells: then this desk is ended while it waits here
                await asyncio.sleep(_FEED_SECONDS)
                if await self._as_it_was(table):
                    await self._stop_table(desk.table, e)
                    return
            except WalvecError as e:
                extra = {"action": "worker_failed", "table": desk.table.name, "kind": e.kind, "reason": str(e)}
                logger.warning("worker failed, starts again", extra=extra)
            except Exception:
                logger.exception("worker failed, starts again", extra={"action": "worker_failed"})
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _as_it_was(self, table: VectorTable) -> bool:
        """Otherwise the trouble may have been that of a generation that is not fed any more."""
        snapshot = await persistently(self._control.definitions.snapshot, table, "get_definitions")
        now = snapshot.vector_tables.get(table.id)
        return now is not None and _live(now) == _live(table)

    async def _attempt(self, desk: _Desk) -> None:
        """In a task of its own: a TaskGroup whose part fails cancels the task that it stands in, and hides whether
        somebody else did. Of the desk's task a cancellation says that the desk ends."""
        work = asyncio.create_task(self._work(desk))
        try:
            await asyncio.wait((work,))
        finally:
            await cancelled(work)
        work.result()

    async def _work(self, desk: _Desk) -> None:
        table = desk.table
        store = self._stores
        passed_over: set[int] = set()
        for generation in table.live_generations:
            try:
                await persistently(lambda g=generation: self.ensure(table, g), table, "ensure")  # type: ignore[misc]
            except (StoreRejected, DefinitionError) as e:
                if not await stalls(self._control, table, generation, e):
                    raise
                passed_over.add(generation.number)
        await show_right(self._control, store, table)
        worker = Worker(table, self._settings, control=self._control, log=self._log, store=store)
        worker.passed_over |= passed_over
        if desk.worker is not None:
            worker.counts = desk.worker.counts
        desk.worker = worker
        generations = Generations(worker, control=self._control, log=self._log, store=store)
        upkeep = Upkeep(worker, self._settings, control=self._control, log=self._log, store=store)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(worker.run())
                group.create_task(upkeep.run())
                group.create_task(generations.run())
        except ExceptionGroup as e:
            raise e.exceptions[0] from e

    async def ensure(self, table: VectorTable, generation: Generation) -> None:
        """The generation's storage. Raises NotFound when it was dropped for good: the feed, which is behind then, ends
        this desk, or takes the generation away from it."""
        store = await self._stores.of(table)  # one store for both: its connection may be deleted in between

        async def create() -> None:
            await store.ensure(table, generation)

        async def take_back() -> None:
            found = (await self._control.definitions.snapshot()).vector_tables.get(table.id)
            await store.drop(table, generation.number if found is not None else None)

        await make(table, create, take_back, control=self._control, generation=generation.number)

    async def _stop_table(self, table: VectorTable, error: WalvecError) -> None:
        extra = {"action": "table_error", "table": table.name, "kind": error.kind, "reason": str(error)}
        logger.error("table stopped", extra=extra)
        with contextlib.suppress(NotFound):  # it was dropped meanwhile
            await persistently(
                lambda: self._control.states.set_error(table.id, error.kind, error.message, error.cure),
                table,
                "set_error",
            )

    def samples(self) -> Iterator[Sample]:
        """What this process has counted of each vector table."""
        for desk in list(self._desks.values()):
            if desk.worker is not None:
                yield from desk.worker.counts.samples(desk.table.label)

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            for table_id, desk in list(self._desks.items()):
                report = desk.worker.report() if desk.worker is not None else {}
                if not report or not desk.told.news(report):
                    continue
                try:
                    await self._control.reports.put("sink", table_id, report)
                    desk.told.say(report)
                except ControlUnavailable as e:
                    logger.debug("control database away", extra={"action": "report", "reason": str(e)})


def _other(old: VectorTable, new: VectorTable) -> bool:
    """What a desk was not built for; what has become of its generations it takes as it comes."""

    def places(table: VectorTable) -> tuple[object, ...]:
        return (table.name, table.store, table.mode, table.connection_id, table.view_schema)

    return places(old) != places(new) or bool(_live(new) - _live(old))


def _live(table: VectorTable) -> frozenset[object]:
    return frozenset((g.number, g.columns, g.key, g.source) for g in table.live_generations)
