"""The control database as plain objects in this process: the fake that tests of the roles use.

Held to the same contract suite as `postgres` (tests/contract/test_control.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from typing import Any

from walvec.contracts.errors import Conflict, NotFound
from walvec.contracts.letters import DeadLetter
from walvec.contracts.position import Position
from walvec.definitions import transitions
from walvec.definitions.model import (
    BridgeProgress,
    Connection,
    EmbeddingProvider,
    Generation,
    Snapshot,
    SourceProgress,
    Task,
    TaskStatus,
    TaskType,
    VectorTable,
)

OPEN: tuple[TaskStatus, ...] = ("pending", "running")
BACKFILLS: tuple[TaskType, ...] = ("backfill", "rebackfill")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class MemoryControl:
    """Implements `ports.Control`. Everything is lost with the process."""

    def __init__(self) -> None:
        self.feed = MemoryFeed()
        self.definitions = MemoryDefinitions(self)
        self.states = MemoryStates(self)
        self.tasks = MemoryTasks(self)
        self.letters = MemoryLetters(self)
        self.progress = MemoryProgress(self)
        self.reports = MemoryReports()

    def table(self, table_id: str) -> VectorTable:
        found = self.feed.current.vector_tables.get(table_id)
        if found is None:
            raise NotFound(f"there is no vector table {table_id!r}.")
        return found

    def connection(self, connection_id: str) -> Connection:
        found = self.feed.current.connections.get(connection_id)
        if found is None:
            raise NotFound(f"there is no connection {connection_id!r}.")
        return found

    def change(self, table_id: str, transition: Callable[[VectorTable], VectorTable]) -> None:
        table = self.table(table_id)
        changed = transition(table)
        if changed != table:
            self.feed.move(vector_tables={**self.feed.current.vector_tables, table_id: changed})

    async def close(self) -> None:
        """Nothing to give back."""


class MemoryFeed:
    def __init__(self) -> None:
        self.current = Snapshot(1, {}, {}, {})
        self._moved = asyncio.Event()

    def move(self, **parts: Any) -> None:
        self.current = replace(self.current, version=self.current.version + 1, **parts)
        self._moved.set()
        self._moved = asyncio.Event()

    async def changed(self, since: int) -> Snapshot:
        while self.current.version <= since:
            await self._moved.wait()
        return self.current


class MemoryDefinitions:
    def __init__(self, control: MemoryControl) -> None:
        self._control = control

    @property
    def _now(self) -> Snapshot:
        return self._control.feed.current

    async def snapshot(self) -> Snapshot:
        return self._now

    async def put_connection(self, connection: Connection) -> None:
        old = self._now.connections.get(connection.id)
        _unique("connection", connection.id, connection.name, self._now.connections)
        created = old.created_at if old else connection.created_at or _now()
        connection = replace(connection, created_at=created)
        if connection != old:
            self._control.feed.move(connections={**self._now.connections, connection.id: connection})

    async def put_provider(self, provider: EmbeddingProvider) -> None:
        old = self._now.providers.get(provider.id)
        _unique("embedding provider", provider.id, provider.name, self._now.providers)
        provider = replace(provider, created_at=old.created_at if old else provider.created_at or _now())
        if provider != old:
            self._control.feed.move(providers={**self._now.providers, provider.id: provider})

    async def put_vector_table(self, table: VectorTable) -> None:
        _unique("vector table", table.id, table.name, self._now.vector_tables)
        self._control.connection(table.connection_id)
        if table.embedding_provider_id not in self._now.providers:
            raise NotFound(f"there is no embedding provider {table.embedding_provider_id!r}.")
        old = self._now.vector_tables.get(table.id)
        new = transitions.put(old, table, _now())
        if new != old:
            self._control.feed.move(vector_tables={**self._now.vector_tables, table.id: new})

    async def set_paused(self, table_id: str, paused: bool) -> None:
        self._control.change(table_id, lambda t: transitions.paused(t, paused))

    async def set_connection_status(self, connection_id: str, status: str, message: str = "") -> None:
        old = self._control.connection(connection_id)
        new = replace(old, status=status, status_message=message)
        if new != old:
            self._control.feed.move(connections={**self._now.connections, connection_id: new})

    async def delete_connection(self, connection_id: str) -> None:
        found = self._control.connection(connection_id)
        if self._now.tables_of(connection_id):
            raise Conflict(f"connection {found.name!r} is used by vector tables.", "Delete them first.")
        rest = {k: v for k, v in self._now.connections.items() if k != connection_id}
        self._control.progress.forget(connection_id)
        self._control.feed.move(connections=rest)

    async def delete_provider(self, provider_id: str) -> None:
        found = self._now.providers.get(provider_id)
        if found is None:
            raise NotFound(f"there is no embedding provider {provider_id!r}.")
        if any(t.embedding_provider_id == provider_id for t in self._now.vector_tables.values()):
            raise Conflict(f"embedding provider {found.name!r} is used by vector tables.", "Delete them first.")
        self._control.feed.move(providers={k: v for k, v in self._now.providers.items() if k != provider_id})

    async def delete_vector_table(self, table_id: str) -> None:
        self._control.table(table_id)
        self._control.tasks.forget(table_id)
        self._control.letters.forget(table_id)
        self._control.progress.forget_table(table_id)
        self._control.reports.forget(table_id)
        self._control.feed.move(vector_tables={k: v for k, v in self._now.vector_tables.items() if k != table_id})


def _unique(what: str, own_id: str, name: str, existing: Mapping[str, Any]) -> None:
    if any(e.name == name and e.id != own_id for e in existing.values()):
        raise Conflict(f"there is already a {what} named {name!r}.", "Choose another name.")


class MemoryStates:
    def __init__(self, control: MemoryControl) -> None:
        self._control = control

    async def set_error(self, table_id: str, kind: str, message: str, cure: str) -> None:
        self._control.change(table_id, lambda t: transitions.failed(t, kind, message, cure))

    async def clear_error(self, table_id: str) -> None:
        self._control.change(table_id, transitions.recovered)

    async def set_blocked(self, table_id: str, reason: str | None) -> None:
        self._control.change(table_id, lambda t: transitions.blocked(t, reason))

    async def count_dead(self, table_id: str, letters: int) -> int:
        table = self._control.table(table_id)
        number = table.dead_in_row + letters if letters else 0
        feed = self._control.feed  # counted without moving the feed: the version stays
        tables = {**feed.current.vector_tables, table_id: replace(table, dead_in_row=number)}
        feed.current = replace(feed.current, vector_tables=tables)
        return number

    async def set_backfilled(self, table_id: str, generation: int) -> None:
        self._control.change(table_id, lambda t: transitions.backfilled(t, generation))

    async def set_ready(self, table_id: str, generation: int) -> None:
        self._control.change(table_id, lambda t: transitions.ready(t, generation))

    async def update_source_columns(self, table_id: str, generation: Generation) -> None:
        self._control.change(table_id, lambda t: transitions.source_columns(t, generation))


class MemoryTasks:
    def __init__(self, control: MemoryControl) -> None:
        self._control = control
        self._tasks: dict[str, Task] = {}
        self._ids = count(1)

    async def create(
        self,
        task_type: TaskType,
        target_id: str,
        generation: int,
        params: Mapping[str, Any],
        *,
        instead_of: Sequence[str] = (),
        reason: str = "",
    ) -> Task:
        table = self._control.table(target_id)
        if task_type in BACKFILLS and any(
            t.target_id == target_id and t.task_type in BACKFILLS and t.status in OPEN and t.id not in instead_of
            for t in self._tasks.values()
        ):
            raise Conflict(f"a backfill of {table.name!r} is already open.", "Wait for it, or cancel its task.")
        for task_id in instead_of:
            await self.update(task_id, status="cancelled", last_error=reason)
        now = _now()
        task = Task(
            f"task_{next(self._ids):08x}",
            task_type,
            target_id,
            generation,
            "pending",
            dict(params),
            created_at=now,
            updated_at=now,
        )
        self._tasks[task.id] = task
        self._control.feed.move()
        return task

    async def open_tasks(self, target_ids: Sequence[str]) -> list[Task]:
        return [t for t in self._tasks.values() if t.target_id in target_ids and t.status in OPEN]

    async def get(self, task_id: str) -> Task:
        found = self._tasks.get(task_id)
        if found is None:
            raise NotFound(f"there is no task {task_id!r}.")
        return found

    async def recent(self, target_id: str | None = None, limit: int = 100) -> list[Task]:
        return [t for t in reversed(self._tasks.values()) if target_id in (None, t.target_id)][:limit]

    async def update(
        self,
        task_id: str,
        *,
        status: TaskStatus | None = None,
        progress: Mapping[str, Any] | None = None,
        attempts: int | None = None,
        last_error: str | None = None,
    ) -> None:
        task = await self.get(task_id)
        if task.status not in OPEN:
            return
        self._tasks[task_id] = replace(
            task,
            status=status or task.status,
            progress=task.progress if progress is None else dict(progress),
            attempts=task.attempts if attempts is None else attempts,
            last_error=task.last_error if last_error is None else last_error,
            updated_at=_now(),
        )
        if status is not None and status != task.status:
            self._control.feed.move()

    def forget(self, table_id: str) -> None:
        self._tasks = {k: t for k, t in self._tasks.items() if t.target_id != table_id}


class MemoryLetters:
    def __init__(self, control: MemoryControl) -> None:
        self._control = control
        self._letters: dict[tuple[str, int, bytes], DeadLetter] = {}
        self._ids = count(1)

    async def put(self, letters: Sequence[DeadLetter]) -> None:
        for new in letters:
            self._control.table(new.vector_table_id)
            place = (new.vector_table_id, new.generation, new.key)
            stored = transitions.letter(self._letters.get(place), new)
            self._letters[place] = replace(
                stored, id=stored.id or next(self._ids), created_ms=stored.created_ms or int(time.time() * 1000)
            )

    def _of(self, table_id: str) -> list[DeadLetter]:
        found = [v for v in self._letters.values() if v.vector_table_id == table_id]
        return sorted(found, key=lambda v: v.id)

    async def page(self, table_id: str, *, limit: int = 1000, after_id: int = 0) -> list[DeadLetter]:
        return [v for v in self._of(table_id) if v.id > after_id][:limit]

    async def get(self, table_id: str, ids: Sequence[int]) -> list[DeadLetter]:
        return [v for v in self._of(table_id) if v.id in ids]

    async def count(self, table_id: str) -> int:
        return len(self._of(table_id))

    async def keys(self, table_id: str, generation: int) -> set[bytes]:
        return {v.key for v in self._of(table_id) if v.generation == generation}

    async def settle(self, table_id: str, generation: int, settled: Mapping[bytes, Position]) -> int:
        places = [(table_id, generation, key) for key in settled]
        gone = [p for p in places if p in self._letters and self._letters[p].position < settled[p[2]]]
        for place in gone:
            del self._letters[place]
        return len(gone)

    async def remove(self, table_id: str, ids: Sequence[int]) -> int:
        gone = [p for p, v in self._letters.items() if v.vector_table_id == table_id and v.id in ids]
        for place in gone:
            del self._letters[place]
        return len(gone)

    def forget(self, table_id: str) -> None:
        self._letters = {p: v for p, v in self._letters.items() if p[0] != table_id}


class MemoryProgress:
    def __init__(self, control: MemoryControl) -> None:
        self._control = control
        self._progress: dict[str, SourceProgress] = {}
        self._published: dict[str, Mapping[str, str]] = {}
        self._topics: dict[str, dict[str, str]] = {}
        self._bridges: dict[str, BridgeProgress] = {}

    async def get(self, connection_id: str) -> SourceProgress:
        return self._progress.get(connection_id, SourceProgress())

    async def put(self, connection_id: str, progress: SourceProgress) -> None:
        self._control.connection(connection_id)
        self._progress[connection_id] = progress

    async def published(self, connection_id: str) -> Mapping[str, str] | None:
        return self._published.get(connection_id)

    async def put_published(self, connection_id: str, marks: Mapping[str, str]) -> None:
        self._control.connection(connection_id)
        self._published[connection_id] = dict(marks)

    async def topics(self, table_ids: Sequence[str]) -> Mapping[str, str]:
        return {t: identity for i in table_ids for t, identity in self._topics.get(i, {}).items()}

    async def put_topics(self, table_id: str, identities: Mapping[str, str]) -> None:
        self._control.table(table_id)
        self._topics.setdefault(table_id, {}).update(identities)

    async def bridge(self, table_id: str) -> BridgeProgress | None:
        return self._bridges.get(table_id)

    async def put_bridge(
        self,
        table_id: str,
        *,
        starts: Mapping[int, int] | None = None,
        sequence: int = 0,
        snapshots: Mapping[int, Sequence[tuple[int, int]]] | None = None,
    ) -> None:
        self._control.table(table_id)
        found = self._bridges.get(table_id, BridgeProgress())
        if starts is not None:
            found = BridgeProgress(dict(starts), found.sequence)
        merged = {p: set(v) for p, v in found.snapshots.items()}
        for partition, met in (snapshots or {}).items():
            merged.setdefault(partition, set()).update((offset, lsn) for offset, lsn in met)
        self._bridges[table_id] = BridgeProgress(
            found.starts, max(found.sequence, sequence), {p: tuple(sorted(v)) for p, v in merged.items()}
        )

    def forget_table(self, table_id: str) -> None:
        self._topics.pop(table_id, None)
        self._bridges.pop(table_id, None)

    def forget(self, connection_id: str) -> None:
        self._progress.pop(connection_id, None)
        self._published.pop(connection_id, None)


class MemoryReports:
    def __init__(self) -> None:
        self._reports: dict[tuple[str, str], tuple[Mapping[str, Any], float]] = {}

    async def put(self, role: str, subject: str, report: Mapping[str, Any]) -> None:
        self._reports[role, subject] = (dict(report), time.monotonic())

    async def all(self) -> list[tuple[str, str, Mapping[str, Any], float]]:
        now = time.monotonic()
        return [(role, subject, report, now - at) for (role, subject), (report, at) in self._reports.items()]

    def forget(self, subject: str) -> None:
        self._reports = {k: v for k, v in self._reports.items() if k[1] != subject}
