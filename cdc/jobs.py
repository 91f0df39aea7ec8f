"""Runs a connection's tasks beside its reader: backfill, rebackfill, replay, repair.

Law: tasks are rows of the control database; this process only works on them, and any other goes on where it stopped.
A table's trouble stays the table's; what is down is waited for. Params: backfill and rebackfill `{"sweep": bool}`,
replay `{"letters": [id]}`, repair `{"keys": [canonical key or its base64]}`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Iterable
from typing import Any

from cdc.backfill import Backfill
from cdc.oversized import FittingProducer
from cdc.rereads import Reread
from cdc.session import Sessions
from cdc.stream import Stream
from cdc.work import TaskEnded, Work
from walvec.contracts.errors import (
    Conflict,
    ControlUnavailable,
    DecodeError,
    DefinitionError,
    LogUnavailable,
    NotFound,
    SourceRejected,
    SourceUnavailable,
    TableChanged,
    WalvecError,
)
from walvec.definitions.model import BACKFILLS, OPEN, Task, VectorTable
from walvec.definitions.ports import Control
from walvec.runtime.lifecycle import cancelled
from walvec.runtime.settings import Settings
from walvec.transport.ports import Log

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
MAX_PAUSE_SECONDS = 10.0
_WAIT_FOR = (SourceUnavailable, LogUnavailable, ControlUnavailable)


class Jobs:
    """The task runner of one connection, or of one table whose changes do not come through the connection's slot."""

    def __init__(
        self,
        settings: Settings,
        control: Control,
        log: Log,
        stream: Stream,
        connection_id: str,
        *,
        only: str | None = None,
    ) -> None:
        self._settings = settings
        self._control = control
        self._log = log
        self._stream = stream
        self._connection_id = connection_id
        self._only = only
        self._running: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._known: set[tuple[str, int]] = set()
        """Tables and active generations whose first backfill was looked for in this process."""

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`. Works only while the stream is live: another process may hold the slot otherwise."""
        sessions = Sessions()
        producer = FittingProducer(
            self._log.producer(backpressure=True),
            self._control,
            self._log,
            tables=self._tables,
            limit=self._settings.embedder.dead_letter_limit,
            counts=self._stream.counts,
        )
        work = Work(self._settings, self._control, self._log, self._stream, self._connection_id, sessions, producer)
        pause = POLL_SECONDS
        try:
            while not stop.is_set():
                if not await _first(stop.wait(), self._stream.wait_live()):
                    break
                try:
                    await self._look(work)
                    pause = POLL_SECONDS
                except ControlUnavailable as e:
                    pause = min(pause * 2, MAX_PAUSE_SECONDS)
                    log.warning("tasks cannot be read now", extra={"action": "tasks_wait", "reason": e.message})
                await self._rest(stop, pause)
        finally:
            await self._end(t for _, t in self._running.values())
            await producer.close()
            await sessions.close()

    def _tables(self) -> list[VectorTable]:
        now = self._control.feed.current
        if self._only is None:
            return now.streamed_tables(self._connection_id)
        table = now.vector_tables.get(self._only)
        return [table] if table is not None else []

    async def _rest(self, stop: asyncio.Event, seconds: float) -> None:
        """Until a definition changes, a task ends, or some seconds have passed."""
        feed = self._control.feed
        waits = [asyncio.ensure_future(feed.changed(feed.current.version)), asyncio.ensure_future(stop.wait())]
        try:
            jobs = [t for _, t in self._running.values()]
            await asyncio.wait([*waits, *jobs], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._end(waits)

    @staticmethod
    async def _end(tasks: Iterable[asyncio.Future[Any]]) -> None:
        for ended in await cancelled(*tasks):
            if isinstance(ended, Exception):
                log.error("a task's runner broke", exc_info=ended, extra={"action": "runner_broke"})

    async def _look(self, work: Work) -> None:
        """Starts what is open, stops what is not open any more."""
        tables = {t.id: t for t in self._tables()}
        open_tasks = await self._control.tasks.open_tasks(list(tables)) if tables else []
        for table in tables.values():
            own = table.active.number
            if not any(
                t.target_id == table.id and t.task_type in BACKFILLS and t.generation in (0, own) for t in open_tasks
            ):
                created = await self._first_backfill(table)
                if created is not None:
                    open_tasks.append(created)
        wanted = {t.id for t in open_tasks}
        for task_id in [i for i in self._running if i not in wanted or self._running[i][1].done()]:
            _, job = self._running.pop(task_id)
            await self._end([job])
        busy = {lane for lane, _ in self._running.values()}
        for task in open_tasks:
            if task.generation >= tables[task.target_id].next_generation:
                continue  # rule known-generation: it is on its way in the feed; not known is not gone
            lane = f"{task.target_id}:{'backfill' if task.task_type in BACKFILLS else 'keys'}"
            if task.id not in self._running and lane not in busy:
                busy.add(lane)
                self._running[task.id] = (lane, asyncio.create_task(self._guard(work, task)))

    async def _first_backfill(self, table: VectorTable) -> Task | None:
        """`backfill: auto`: exactly one first backfill, of the active generation; what a user cancelled is not begun
        again."""
        if table.backfill != "auto" or table.backfilled or (table.id, table.active.number) in self._known:
            return None
        earlier = await self._control.tasks.recent(table.id, 100)
        if any(t.task_type in BACKFILLS and t.generation in (0, table.active.number) for t in earlier):
            self._known.add((table.id, table.active.number))
            return None
        try:
            task = await self._control.tasks.create("backfill", table.id, table.active.number, {})
        except (Conflict, NotFound) as e:
            log.info("no first backfill", extra={"action": "backfill_exists", "table": table.name, "reason": e.kind})
            return None
        self._known.add((table.id, table.active.number))
        log.info("first backfill created", extra={"action": "backfill_created", "table": table.name})
        return task

    # ------------------------------------------------------------------ one task

    async def _guard(self, work: Work, task: Task) -> None:
        """Runs a task to its end, whatever is down on the way."""
        pause = 0.2
        while True:
            try:
                await self._clear(work, task)
                job = Backfill(work, task) if task.task_type in BACKFILLS else Reread(work, task)
                await job.run()
                return
            except TaskEnded as e:
                await self._give_up(task, str(e))
                return
            except NotFound as e:
                if not await self._wanted(task):
                    await self._give_up(task, str(e))
                    return
                extra = {"action": "task_waits", "task": task.id, "reason": e.message}
                log.warning("a topic was deleted, the task makes it anew", extra=extra)
            except _WAIT_FOR as e:
                extra = {"action": "task_waits", "task": task.id, "kind": e.kind, "reason": e.message}
                log.warning("task waits for what is down", extra=extra)
            except (TableChanged, SourceRejected, DefinitionError, DecodeError) as e:
                if await self._blame(work, task, e):
                    pause = 0.2
            except Exception as e:
                log.exception("task failed", extra={"action": "task_failed", "task": task.id})
                if await self._failed(task, e):
                    return
            await asyncio.sleep(pause * random.uniform(0.7, 1.3))
            pause = min(pause * 2, MAX_PAUSE_SECONDS)

    async def _clear(self, work: Work, task: Task) -> None:
        """Waits while a person has to act on the table, or has paused it (a backfill waits by itself)."""
        while (table := work.table(task)).error or (table.paused and task.task_type in BACKFILLS):
            feed = self._control.feed
            await feed.changed(feed.current.version)

    async def _blame(self, work: Work, task: Task, e: WalvecError) -> bool:
        """The table stops with reason and cure; its task goes on once a person has cleared the error."""
        try:
            # a refused password is the connection's trouble, not the table's: the reader tells it
            async with work.sessions.borrow(work.connection()):
                table = work.table(task)
        except (SourceRejected, SourceUnavailable, TaskEnded) as again:
            log.warning("source refuses", extra={"action": "task_waits", "task": task.id, "reason": again.args[0]})
            return False
        try:
            building = table.building
            if (
                building is not None
                and building.number == task.generation
                and await self._control.states.set_stalled(table.id, building.number, e.kind, str(e))
            ):
                extra = {"action": "stalled", "table": table.name, "generation": building.number, "reason": str(e)}
                log.error("generation stalled", extra=extra)
                return True  # the task has ended with it
            log.error("table stops", extra={"action": "table_stopped", "table": table.name, "kind": e.kind})
            await self._control.states.set_error(table.id, e.kind, e.message, e.cure)
            await self._control.tasks.update(task.id, last_error=str(e))
            version = self._control.feed.current.version
            while not work.table(task).error:
                async with asyncio.timeout(5.0):
                    await self._control.feed.changed(version)
                version = self._control.feed.current.version
        except (ControlUnavailable, NotFound, TaskEnded, TimeoutError) as again:
            log.warning("error not stored yet", extra={"action": "task_waits", "task": task.id, "reason": str(again)})
            return False
        return True

    async def _failed(self, task: Task, e: Exception) -> bool:
        """Counts the attempt; True when there are no more. What makes up for changes that were lost is never given up:
        without it the table would call itself synced."""
        try:
            now = await self._control.tasks.get(task.id)
            attempts = min(now.attempts + 1, now.max_attempts)
            last = attempts == now.max_attempts and not now.params.get("sweep")
            text = f"{type(e).__name__}: {e}"
            await self._control.tasks.update(
                task.id, status="failed" if last else None, attempts=attempts, last_error=text
            )
        except ControlUnavailable:
            return False
        except NotFound:
            return True
        return last

    async def _wanted(self, task: Task) -> bool:
        """Whether what was not found is something that comes back: the task and its table are still there."""
        try:
            now = await self._control.tasks.get(task.id)
            tables = (await self._control.definitions.snapshot()).vector_tables
        except NotFound:
            return False
        except ControlUnavailable:
            return True
        return now.status in OPEN and task.target_id in tables

    async def _give_up(self, task: Task, reason: str) -> None:
        try:
            await self._control.tasks.update(task.id, status="cancelled", last_error=reason)
        except (NotFound, ControlUnavailable) as e:
            log.info("task is gone", extra={"action": "task_gone", "task": task.id, "kind": e.kind})


async def _first(stop: Awaitable[Any], go: Awaitable[Any]) -> bool:
    """True when `go` came before `stop`."""
    waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(stop), asyncio.ensure_future(go)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        return not waits[0].done()
    finally:
        await cancelled(*waits)
