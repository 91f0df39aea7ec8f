"""Waits until all that was committed at the source before the call is in the store.

A marker's LSN per connection -> the reader has made it durable -> no task of the table is open -> what is then in
`.changes` is embedded -> what is then in `.vectors` is applied; the last two twice, since a refused claim comes back
once. Goes on through restarts, pauses of a provider and outages; a table in error or paused ends it with the reason.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from api.services import Services
from api.status import durable_lsn, last_error, rows_done
from walvec.contracts.errors import (
    ControlUnavailable,
    LogUnavailable,
    NotFound,
    SlotInUse,
    SourceRejected,
    SourceUnavailable,
    StoreUnavailable,
    WalvecError,
)
from walvec.contracts.position import format_lsn
from walvec.definitions.model import BACKFILLS, Connection, Snapshot, Task, VectorTable
from walvec.transport.ports import Log
from walvec.transport.records import bridge_group, changes_topic, embedder_group, sink_group, vectors_topic

OUTAGES = (ControlUnavailable, LogUnavailable, SourceUnavailable, StoreUnavailable, SlotInUse)
_IDENTITY_SECONDS = 2.0  # how often a wait makes sure that its topic is still the one it began with
_LOOK_SECONDS = 0.1  # how long one wait for the log lasts when nothing is appended
_NUDGE_SECONDS = 1.0
_BREATH_SECONDS = 0.01  # least time between two looks, so that a busy log does not make this loop spin


class Ended(WalvecError):
    """The table will not be drained until a person acts. `code`: of the answer to who waits for this table alone."""

    kind = "conflict"

    def __init__(self, message: str, cure: str = "", code: str = "conflict") -> None:
        super().__init__(message, cure)
        self.code = code


@dataclass(frozen=True, slots=True)
class Drained:
    """`reasons`: by table name, for those that were not drained. `dead_letters`: by table name, where there are any."""

    drained: bool
    reasons: Mapping[str, str] = field(default_factory=dict)
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    tables: Sequence[str] = ()
    seconds: float = 0.0
    codes: Mapping[str, str] = field(default_factory=dict)
    markers: Mapping[str, int] = field(default_factory=dict)
    """By connection: what was committed below is in the store now."""

    @property
    def reason(self) -> str | None:
        return "; ".join(f"{name}: {reason}" for name, reason in self.reasons.items()) or None

    def as_json(self) -> dict[str, Any]:
        return {
            "drained": self.drained,
            "reason": self.reason,
            "reasons": dict(self.reasons),
            "tables": list(self.tables),
            "dead_letters": dict(self.dead_letters),
            "seconds": round(self.seconds, 3),
        }


async def drain(services: Services, tables: Sequence[VectorTable], timeout: float, *, rebuilds: bool = True) -> Drained:
    """Drains `tables` side by side; returns within `timeout` seconds and a little. `rebuilds`: generations that are
    being built, too."""
    start = time.monotonic()
    work = Waiting(services, {t.id: t.name for t in tables}, rebuilds=rebuilds)
    jobs: list[asyncio.Task[None]] = []
    streamed = [t for t in tables if t.source is None]
    for connection_id in dict.fromkeys(t.connection_id for t in streamed):
        ids = [t.id for t in streamed if t.connection_id == connection_id]
        jobs.append(asyncio.create_task(work.connection(connection_id, ids)))
    jobs += [asyncio.create_task(work.bridged(t)) for t in tables if t.source is not None]
    ended = asyncio.create_task(work.ended.wait())
    try:
        async with asyncio.timeout(timeout):
            rest = set(jobs)
            while rest and not ended.done():
                done, _ = await asyncio.wait({*rest, ended}, return_when=asyncio.FIRST_COMPLETED)
                rest -= done
                for job in done - {ended}:
                    await job
    except TimeoutError:
        for table_id in work.waiting:
            work.reasons[table_id] = f"not within {round(timeout, 1):g} s; {work.stages[table_id]}"
    finally:
        for job in (*jobs, ended):
            job.cancel()
        await asyncio.gather(*jobs, ended, return_exceptions=True)
    letters = await work.letters()
    return Drained(
        drained=not work.reasons,
        reasons={work.names[i]: reason for i, reason in work.reasons.items()},
        dead_letters=letters,
        tables=[t.name for t in tables],
        seconds=time.monotonic() - start,
        codes={work.names[i]: code for i, code in work.codes.items()},
        markers=work.markers,
    )


class Waiting:
    """For tables, by id. `rebuilds`: also for generations that are being built; `breath`: least seconds between two
    looks at the log."""

    def __init__(
        self,
        services: Services,
        names: Mapping[str, str],
        *,
        rebuilds: bool = True,
        breath: float = _BREATH_SECONDS,
    ) -> None:
        self.services = services
        self.names = names
        self._rebuilds = rebuilds
        self._breath = breath
        self.codes: dict[str, str] = {}
        self.markers: dict[str, int] = {}
        self.stages = dict.fromkeys(names, "waiting for the source")
        self.reasons: dict[str, str] = {}
        self.waiting = set(names)
        self.ended = asyncio.Event()

    async def letters(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for table_id, name in self.names.items():
            try:
                number = await self.services.control.letters.count(table_id)
            except OUTAGES:
                continue  # the drain itself has said what is out of reach
            if number:
                found[name] = number
        return found

    async def connection(self, connection_id: str, table_ids: Sequence[str]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                read = group.create_task(self._read(connection_id, table_ids))
                for table_id in table_ids:
                    group.create_task(self._table(table_id, read))
        except* WalvecError as failures:
            self._fail(table_ids, failures.exceptions[0])

    async def bridged(self, table: VectorTable) -> None:
        """A table behind an existing Debezium: what its topic holds now, and, where the connector's slot is named, all
        that was committed before the call."""
        try:
            async with asyncio.TaskGroup() as group:
                read = group.create_task(self._bridge(table))
                group.create_task(self._table(table.id, read))
        except* WalvecError as failures:
            self._fail([table.id], failures.exceptions[0])

    async def _bridge(self, table: VectorTable) -> None:
        source = table.source
        assert source is not None
        if source.slot is not None:
            await self._flushed(table, source.slot)
        log, group = self.services.log, bridge_group(table.storage_name)
        topic = source.kafka_topic
        try:
            ends = await self._try([table.id], lambda: log.end_offsets(topic))
        except NotFound as e:
            raise Ended(f"topic {topic} does not exist; start Debezium's connector, which makes it.") from e
        while table.id in self.waiting:
            done = await self._try([table.id], lambda: log.committed(topic, group))
            behind = sum(max(0, end - done.get(p, 0)) for p, end in ends.items())
            begun = await self._try([table.id], lambda: self.services.control.progress.bridge(table.id))
            if not behind and begun is not None:
                return
            self._say([table.id], f"waiting for cdc to read topic {topic} ({behind} records behind)")
            await self._pace()

    async def _flushed(self, table: VectorTable, slot: str) -> None:
        """Debezium confirms to its slot what the brokers have, once per offset.flush.interval.ms, and not before its
        next event: a logical message is one, where the database is idle."""
        snapshot = await self._try([table.id], self.services.snapshot)
        connection = _connection(snapshot, table.connection_id)
        ask = lambda: self.services.source.flushed(connection, slot)  # noqa: E731
        _, wanted = await self._try([table.id], ask)
        emit_at = time.monotonic()
        while table.id in self.waiting:
            if time.monotonic() >= emit_at:
                await self._try([table.id], lambda: self._emit(connection.id))
                emit_at = time.monotonic() + _NUDGE_SECONDS
            confirmed, _ = await self._try([table.id], ask)
            if confirmed >= wanted:
                return
            at = format_lsn(confirmed)
            self._say([table.id], f"waiting for Debezium to confirm {format_lsn(wanted)} to slot {slot} (at {at})")
            await asyncio.sleep(_LOOK_SECONDS)

    async def _table(self, table_id: str, read: asyncio.Task[None]) -> None:
        try:
            while not read.done():
                await self._check(table_id)
                await asyncio.wait((read,), timeout=_LOOK_SECONDS)
            await read  # what it failed with: without a mark, what is applied now says nothing
            await self.applied(table_id)
        except Ended as e:
            self._end([table_id], e.message, e.code)
        self.waiting.discard(table_id)

    async def applied(self, table_id: str) -> None:
        """Until all that is in `.changes` now is in the store. Raises Ended."""
        while True:
            topics = await self._topics(table_id)
            await self._tasks(table_id)
            for _ in range(2):
                await self._stage(table_id, "embedder", changes_topic, embedder_group)
                await self._stage(table_id, "sink", vectors_topic, sink_group)
            # a reader that hears of lost records opens the rebackfill before it goes on past them
            if await self._topics(table_id) == topics and not await self._read_again(table_id):
                return  # else one was deleted meanwhile: what was in it is read again

    def _fail(self, table_ids: Sequence[str], error: BaseException) -> None:
        code = "connection_not_ready" if isinstance(error, SourceRejected) else "conflict"
        self._end(table_ids, str(error), error.code if isinstance(error, Ended) else code)

    def _end(self, table_ids: Sequence[str], reason: str, code: str = "conflict") -> None:
        """One table that will not get on by itself ends the whole call."""
        for table_id in self.waiting.intersection(table_ids):
            self.reasons[table_id] = reason
            self.codes[table_id] = code
        self.waiting.difference_update(table_ids)
        self.ended.set()

    async def _read(self, connection_id: str, table_ids: Sequence[str]) -> None:
        """Until the reader has passed a marker. A marker below what was read already comes from a source that was
        forked and not noticed yet; it is emitted again when the reader has taken a new epoch."""
        while self.waiting.intersection(table_ids):
            before = await self._try(table_ids, lambda: self.services.control.progress.get(connection_id))
            marker = await self._try(table_ids, lambda: self._emit(connection_id))
            look = _BREATH_SECONDS  # the reader stores a marker at once, unless it has much to read
            while self.waiting.intersection(table_ids):
                now = await self._try(table_ids, lambda: self.services.control.progress.get(connection_id))
                if now.epoch != before.epoch or now.system_identifier != before.system_identifier:
                    break
                if marker >= before.lsn and max(now.lsn, await self.reported(connection_id)) >= marker:
                    await self._published(connection_id, table_ids)
                    self.markers[connection_id] = marker
                    return
                self._say(table_ids, f"waiting for cdc to read up to {format_lsn(marker)} (at {format_lsn(now.lsn)})")
                await asyncio.sleep(look)
                look = min(look * 2, _LOOK_SECONDS)

    async def _published(self, connection_id: str, table_ids: Sequence[str]) -> None:
        """A publication that somebody dropped sends the marker and no changes. Once the tables are published as cdc
        last saw them, either they were all the time or the rebackfill that makes up for it is open."""
        while self.waiting.intersection(table_ids):
            hidden = await self._try(table_ids, lambda: self.unpublished(connection_id, table_ids))
            if not hidden:
                return
            self._say(table_ids, f"waiting for cdc to publish the source table of {', '.join(hidden)} again")
            await asyncio.sleep(_LOOK_SECONDS)

    async def unpublished(self, connection_id: str, table_ids: Sequence[str]) -> list[str]:
        snapshot = await self.services.snapshot()
        open_ids = self.waiting.intersection(table_ids)
        tables = [t for i in open_ids if (t := snapshot.vector_tables.get(i)) is not None]
        marks = await self.services.control.progress.published(connection_id) or {}
        return await self.services.source.unpublished(_connection(snapshot, connection_id), tables, marks)

    async def _emit(self, connection_id: str) -> int:
        snapshot = await self.services.snapshot()
        return await self.services.source.emit_marker(_connection(snapshot, connection_id))

    async def reported(self, connection_id: str) -> int:
        try:
            for role, subject, report, _ in await self.services.control.reports.all():
                if role == "cdc" and subject == connection_id:
                    return durable_lsn(report)
        except ControlUnavailable:
            return 0
        return 0

    async def _tasks(self, table_id: str) -> None:
        while True:
            table = await self._check(table_id)
            tasks = await self._open(table_id)
            if not tasks:
                return
            waiting = tasks[0].progress.get("waiting")
            why = (f"; {waiting}" if waiting else "") + (f"; blocked: {table.blocked}" if table.blocked else "")
            self._say([table_id], f"waiting for its {tasks[0].task_type} ({rows_done(tasks[0])} rows read{why})")
            await self._pace()

    async def _read_again(self, table_id: str) -> bool:
        await self._check(table_id)
        return any(task.task_type in BACKFILLS for task in await self._open(table_id))

    async def _open(self, table_id: str) -> Sequence[Task]:
        """The tasks that count. A generation that is swapped in meanwhile may have one of its own, of which the feed
        cannot tell yet that it counts: the definition is asked for, and after the tasks. One that is being swapped in
        serves before anybody looks again; one that is not yet cannot begin to while it is read (rule fed-or-read)."""
        control = self.services.control
        tasks: Sequence[Task] = await self._try([table_id], lambda: control.tasks.open_tasks([table_id]))
        if self._rebuilds or not tasks:
            return tasks
        snapshot = await self._try([table_id], self.services.snapshot)
        table = snapshot.vector_tables.get(table_id)
        if table is None:
            raise Ended("it was deleted.", code="vector_table_not_found")
        serving = {g.number for g in table.live_generations if g.state == "active" or g.swapping}
        return [t for t in tasks if t.generation in serving]

    async def _topics(self, table_id: str) -> Mapping[str, str]:
        """Waits until the table's topics are those that cdc last routed to; their identities. A topic that somebody
        deleted looks drained: once cdc knows the new one, the rebackfill that makes up for it is open."""
        control, log = self.services.control, self.services.log
        while True:
            await self._check(table_id)
            stored: Mapping[str, str] = await self._try([table_id], lambda: control.progress.topics([table_id]))
            other = [t for t, i in stored.items() if await self._try([table_id], lambda t=t: _identity(log, t)) != i]  # type: ignore[misc]
            if not other:
                return stored
            self._say([table_id], f"waiting for cdc to make up for {', '.join(other)}, which was deleted")
            await asyncio.sleep(_LOOK_SECONDS)

    async def _stage(
        self, table_id: str, role: str, topic_of: Callable[[str], str], group_of: Callable[[str], str]
    ) -> None:
        table = await self._check(table_id)
        topic, group = topic_of(table.storage_name), group_of(table.storage_name)
        log = self.services.log
        try:
            ends = await self._try([table_id], lambda: log.end_offsets(topic))
        except NotFound:
            return  # nothing was ever written to it
        before = await self._try([table_id], lambda: _identity(log, topic))
        looked = time.monotonic()
        while True:
            if time.monotonic() - looked > _IDENTITY_SECONDS:
                looked = time.monotonic()
                if await self._try([table_id], lambda: _identity(log, topic)) != before:
                    return  # these ends will never be reached; the topics are compared after the last stage
            try:
                done = await self._try([table_id], lambda: log.committed(topic, group))
            except NotFound:
                return
            behind = sum(max(0, end - done.get(p, 0)) for p, end in ends.items())
            if not behind:
                return
            table = await self._check(table_id)
            blocked = f"; blocked: {table.blocked}" if table.blocked else ""
            self._say([table_id], f"waiting for the {role} ({behind} records behind{blocked}{_shared(table)})")
            await self._pace()

    async def _check(self, table_id: str) -> VectorTable:
        """The table as it is; raises Ended when it will not get on by itself."""
        table = self.services.control.feed.current.vector_tables.get(table_id)
        if table is None or _stopped(table):  # the feed may be late: asked again before giving up
            snapshot = await self._try([table_id], self.services.snapshot)
            table = snapshot.vector_tables.get(table_id)
        if table is None:
            raise Ended("it was deleted.", code="vector_table_not_found")
        if table.error:
            raise Ended(f"error: {last_error(table, [])}", code="sync_error")
        if table.paused:
            raise Ended(f"paused; `walvec resume {table.name}` goes on.", code="sync_paused")
        if not table.backfilled:
            recent = await self._try([table_id], lambda: self.services.control.tasks.recent(table_id, 20))
            backfills = [t for t in recent if t.task_type in BACKFILLS]
            if not backfills:
                raise Ended(
                    f"pending: its first backfill was not asked for; `walvec backfill {table.name}` does.",
                    code="vector_table_not_ready",
                )
            if backfills[0].status in ("failed", "cancelled"):
                reason = backfills[0].last_error or "see the log of cdc"
                raise Ended(f"its backfill {backfills[0].status}: {reason}", code="vector_table_not_ready")
        return table

    async def _try(self, table_ids: Sequence[str], ask: Callable[[], Awaitable[Any]]) -> Any:
        """Through outages: they end, or the time does."""
        while True:
            try:
                return await ask()
            except OUTAGES as e:
                self._say(table_ids, f"out of reach: {e.message}")
                await self._pace()

    def _say(self, table_ids: Sequence[str], stage: str) -> None:
        for table_id in table_ids:
            self.stages[table_id] = stage

    async def _pace(self) -> None:
        await pace(self.services, self._breath)


async def pace(services: Services, breath: float = _BREATH_SECONDS) -> None:
    """Returns after an append or commit, or a short while; never before `breath` seconds."""
    start = time.monotonic()
    try:
        await services.log.wait_for_append(_LOOK_SECONDS)
    except LogUnavailable:
        await asyncio.sleep(_LOOK_SECONDS)
    rest = breath - (time.monotonic() - start)
    if rest > 0:
        await asyncio.sleep(rest)


async def _identity(log: Log, topic: str) -> str | None:
    try:
        return await log.topic_identity(topic)
    except NotFound:
        return None


def _shared(table: VectorTable) -> str:
    """All generations share the offsets: a provider that keeps one waiting that is being built keeps the drain waiting,
    though what serves may have the rows."""
    building = table.building
    if building is None or building.state != "building":
        return ""
    return f"; generation {building.number}, which is being built, has to take them, too"


def _stopped(table: VectorTable) -> bool:
    return bool(table.error or table.paused or not table.backfilled)


def _connection(snapshot: Snapshot, connection_id: str) -> Connection:
    found = snapshot.connections.get(connection_id)
    if found is None:
        raise Ended("its connection was deleted.")
    return found
