"""The control database as plain objects in this process: the fake that tests of the roles use.

Held to the same contract suite as `postgres` (tests/contract/test_control.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from typing import Any, TypeVar

from walvec.contracts.errors import Conflict, NotFound
from walvec.contracts.letters import DeadLetter
from walvec.contracts.position import Position
from walvec.definitions import generations, revisions, transitions
from walvec.definitions.answers import MemoryAnswers
from walvec.definitions.model import (
    DEFAULT_ORGANIZATION,
    ApiKey,
    BridgeProgress,
    Connection,
    EmbeddingProvider,
    Environment,
    Generation,
    Organization,
    Snapshot,
    SourceProgress,
    Task,
    TaskStatus,
    TaskType,
    VectorTable,
)
from walvec.definitions.permits import MemoryPermits
from walvec.definitions.removals import parts
from walvec.definitions.removals_memory import MemoryRemovals
from walvec.definitions.tenancy import FIRST_ENVIRONMENT, new_environment, new_organization

Named = TypeVar("Named", Connection, EmbeddingProvider, VectorTable)
OPEN: tuple[TaskStatus, ...] = ("pending", "running")
BACKFILLS: tuple[TaskType, ...] = ("backfill", "rebackfill")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class MemoryControl:
    """Implements `ports.Control`. Everything is lost with the process."""

    def __init__(self) -> None:
        self.feed = MemoryFeed()
        self.accounts = MemoryAccounts(self)
        self.definitions = MemoryDefinitions(self)
        self.states = MemoryStates(self)
        self.tasks = MemoryTasks(self)
        self.letters = MemoryLetters(self)
        self.progress = MemoryProgress(self)
        self.reports = MemoryReports()
        self.permits = MemoryPermits()
        self.answers = MemoryAnswers()
        self.removals = MemoryRemovals(self)

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
        changed = transitions.stamped(table, transition(table), _now())
        if changed != table:
            self.feed.move(vector_tables={**self.feed.current.vector_tables, table_id: changed})

    async def close(self) -> None:
        """Nothing to give back."""


class MemoryFeed:
    def __init__(self) -> None:
        home = new_organization(DEFAULT_ORGANIZATION)
        first = new_environment(home, FIRST_ENVIRONMENT)
        self.current = Snapshot(1, {}, {}, {}, {first.id: first}, {home.id: home})
        self.home = first.id  # where definitions belong that name no environment
        self._moved = asyncio.Event()

    def move(self, **parts: Any) -> None:
        self.current = replace(self.current, version=self.current.version + 1, **parts)
        self._moved.set()
        self._moved = asyncio.Event()

    async def changed(self, since: int) -> Snapshot:
        while self.current.version <= since:
            await self._moved.wait()
        return self.current


class MemoryAccounts:
    def __init__(self, control: MemoryControl) -> None:
        self._feed = control.feed

    @property
    def _now(self) -> Snapshot:
        return self._feed.current

    async def create_organization(self, organization: Organization, environment: Environment, key: ApiKey) -> None:
        if any(o.name == organization.name for o in self._now.organizations.values()):
            raise Conflict("there is already an organization of that name.", "Choose another name.")
        self._feed.move(
            organizations={**self._now.organizations, organization.id: replace(organization, created_at=_now())},
            environments={**self._now.environments, environment.id: replace(environment, created_at=_now())},
            api_keys={**self._now.api_keys, key.id: replace(key, created_at=_now())},
            keys_needed=self._now.keys_needed or key.permission == "full",
        )

    def _deletable(self, org_id: str) -> Organization:
        found = self._now.organizations.get(org_id)
        if found is None:
            raise NotFound(f"there is no organization {org_id!r}.")
        if found.name == DEFAULT_ORGANIZATION:
            raise Conflict("the default organization cannot be deleted.", "Delete what it holds instead.")
        return found

    async def mark_deleting(self, org_id: str) -> None:
        found = replace(self._deletable(org_id), status="deleting")
        self._feed.move(organizations={**self._now.organizations, org_id: found})

    async def delete_organization(self, org_id: str) -> None:
        self._deletable(org_id)
        for environment in [e for e in self._now.environments.values() if e.org_id == org_id]:
            self._empty(environment.id)
        kept = {k: e for k, e in self._now.environments.items() if e.org_id != org_id}
        self._feed.move(
            organizations={k: o for k, o in self._now.organizations.items() if k != org_id},
            environments=kept,
            providers={k: p for k, p in self._now.providers.items() if p.environment_id in kept},
            api_keys={k: a for k, a in self._now.api_keys.items() if a.org_id != org_id},
        )

    def _empty(self, environment_id: str) -> None:
        held = self._now.within(environment_id)
        if held.connections or held.vector_tables:
            raise Conflict("it holds connections or vector tables.", "Delete them first.")

    async def create_environment(self, environment: Environment) -> None:
        if environment.org_id not in self._now.organizations:
            raise NotFound("there is no such organization.")
        if any((e.org_id, e.name) == (environment.org_id, environment.name) for e in self._now.environments.values()):
            raise Conflict("there is already an environment of that name.", "Choose another name.")
        made = replace(environment, created_at=_now())
        self._feed.move(environments={**self._now.environments, made.id: made})

    async def delete_environment(self, environment_id: str) -> None:
        if environment_id not in self._now.environments:
            raise NotFound(f"there is no environment {environment_id!r}.")
        self._empty(environment_id)
        self._feed.move(
            environments={k: e for k, e in self._now.environments.items() if k != environment_id},
            providers={k: p for k, p in self._now.providers.items() if p.environment_id != environment_id},
        )

    async def create_key(self, key: ApiKey) -> None:
        if key.org_id not in self._now.organizations:
            raise NotFound("there is no such organization.")
        self._feed.move(
            api_keys={**self._now.api_keys, key.id: replace(key, created_at=_now())},
            keys_needed=self._now.keys_needed or key.permission == "full",
        )

    async def revoke_key(self, key_id: str) -> None:
        found = self._now.api_keys.get(key_id)
        if found is None:
            raise NotFound(f"there is no API key {key_id!r}.")
        revoked = replace(found, revoked_at=found.revoked_at or _now())
        self._feed.move(api_keys={**self._now.api_keys, key_id: revoked})


class MemoryDefinitions:
    def __init__(self, control: MemoryControl) -> None:
        self._control = control

    @property
    def _now(self) -> Snapshot:
        return self._control.feed.current

    async def snapshot(self) -> Snapshot:
        return self._now

    @property
    def known(self) -> Snapshot:
        return self._now

    def version(self) -> asyncio.Future[int]:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        found.set_result(self._now.version)
        return found

    def _environment(self, old: Named | None, new: Named) -> Environment:
        found = self._now.environments.get((old or new).environment_id or self._control.feed.home)
        if found is None:
            raise NotFound("there is no such environment.")
        return found

    async def put_connection(self, connection: Connection) -> None:
        old = self._now.connections.get(connection.id)
        home = self._environment(old, connection)
        connection = replace(connection, environment_id=home.id, view_schema=home.view_schema)
        _unique("connection", connection, self._now.connections)
        created = old.created_at if old else connection.created_at or _now()
        connection = replace(connection, created_at=created)
        if connection != old:
            self._control.feed.move(connections={**self._now.connections, connection.id: connection})

    async def put_provider(self, provider: EmbeddingProvider) -> None:
        old = self._now.providers.get(provider.id)
        home = self._environment(old, provider)
        provider = replace(provider, environment_id=home.id, view_schema=home.view_schema)
        _unique("embedding provider", provider, self._now.providers)
        provider = replace(provider, created_at=old.created_at if old else provider.created_at or _now())
        if provider != old:
            self._control.feed.move(providers={**self._now.providers, provider.id: provider})

    async def put_vector_table(self, table: VectorTable, *, etag: str | None = None) -> None:
        old = self._now.vector_tables.get(table.id)
        environment = self._environment(old, table)
        table = replace(table, environment_id=environment.id, view_schema=environment.view_schema)
        _unique("vector table", table, self._now.vector_tables)
        own = self._now.within(environment.id)
        if table.connection_id not in own.connections:
            raise NotFound(f"there is no connection {table.connection_id!r}.")
        if table.embedding_provider_id not in own.providers:
            raise NotFound(f"there is no embedding provider {table.embedding_provider_id!r}.")
        if old is not None:
            revisions.check(old, etag)
        new = transitions.put(old, table, _now())
        if old is None and new.source is None:
            self._control.removals.take_back(new.connection_id)
        if new != old:
            self._control.feed.move(vector_tables={**self._now.vector_tables, table.id: new})

    @asynccontextmanager
    async def making(self, table: VectorTable) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        with self._control.removals.held(table) as left:

            async def enter() -> None:
                await self.put_vector_table(table)
                for one in left:
                    self._control.removals.end(one)

            yield enter

    async def rebuild(
        self,
        table_id: str,
        generation: Generation,
        *,
        changes: Mapping[str, Any] | None = None,
        etag: str | None = None,
    ) -> tuple[VectorTable, Task]:
        return self._enter(table_id, lambda t: generations.entered(t, generation, changes or {}), etag)

    async def replace_active(
        self,
        table_id: str,
        generation: Generation,
        *,
        changes: Mapping[str, Any] | None = None,
        etag: str | None = None,
    ) -> VectorTable:
        old = self._control.table(table_id)
        revisions.check(old, etag)
        read = self._control.tasks.ever_read(table_id)
        return self._store(table_id, generations.replaced_active(old, generation, changes or {}, read=read))

    async def abort(self, table_id: str, *, etag: str | None = None) -> VectorTable:
        old = self._control.table(table_id)
        revisions.check(old, etag)
        new = self._store(table_id, generations.aborted(old))
        assert old.building is not None
        self._control.tasks.cancel(table_id, old.building.number, generations.ABORTED)
        return new

    async def rollback(self, table_id: str) -> tuple[VectorTable, Task]:
        return self._enter(table_id, generations.rolled_back, None)

    async def retry(self, table_id: str) -> tuple[VectorTable, Task]:
        return self._enter(table_id, generations.retried, None)

    def _enter(
        self, table_id: str, transition: Callable[[VectorTable], VectorTable], etag: str | None
    ) -> tuple[VectorTable, Task]:
        old = self._control.table(table_id)
        revisions.check(old, etag)
        new = transition(old)
        building = new.building
        assert building is not None
        if new == old and self._control.tasks.open_backfill(table_id, building.number):
            raise generations.in_progress(old)
        new = self._store(table_id, generations.unfilled(new, building.number))
        if old.building is not None and old.building.number != building.number:
            self._control.tasks.cancel(table_id, old.building.number, generations.REPLACED)
        return new, self._control.tasks.add("rebackfill", table_id, building.number, generations.REBUILD)

    def _store(self, table_id: str, new: VectorTable) -> VectorTable:
        _unique("vector table", new, self._now.vector_tables)
        providers = self._now.within(new.environment_id).providers
        if any(new.provider_of(g) not in providers for g in new.live_generations):
            raise NotFound("there is no such embedding provider.")
        new = replace(new, updated_at=_now())
        self._control.feed.move(vector_tables={**self._now.vector_tables, table_id: new})
        return new

    async def set_paused(self, table_id: str, paused: bool) -> None:
        self._control.change(table_id, lambda t: transitions.paused(t, paused))

    async def set_connection_status(
        self, connection_id: str, status: str, message: str = "", *, tested: bool = False
    ) -> None:
        old = self._control.connection(connection_id)
        at = _now() if tested else old.last_tested_at
        new = replace(old, status=status, status_message=message, last_tested_at=at)
        if new != old:
            self._control.feed.move(connections={**self._now.connections, connection_id: new})

    async def delete_connection(self, connection_id: str) -> Sequence[str]:
        found = self._control.connection(connection_id)
        if self._now.tables_of(connection_id):
            raise Conflict(f"connection {found.name!r} is used by vector tables.", "Delete them first.")
        rest = {k: v for k, v in self._now.connections.items() if k != connection_id}
        self._control.progress.forget(connection_id)
        self._control.feed.move(connections=rest)
        return self._control.removals.of(connection_id)

    async def delete_provider(self, provider_id: str) -> None:
        found = self._now.providers.get(provider_id)
        if found is None:
            raise NotFound(f"there is no embedding provider {provider_id!r}.")
        if any(t.uses_provider(provider_id) for t in self._now.vector_tables.values()):
            raise Conflict(f"embedding provider {found.name!r} is used by vector tables.", "Delete them first.")
        self._control.feed.move(providers={k: v for k, v in self._now.providers.items() if k != provider_id})

    async def delete_vector_table(self, table_id: str) -> Sequence[str]:
        table = self._control.table(table_id)
        left = self._control.removals.enter(table, parts(table, self._now.tables_of(table.connection_id)))
        self._control.tasks.forget(table_id)
        self._control.letters.forget(table_id)
        self._control.progress.forget_table(table_id)
        self._control.reports.forget(table_id)
        self._control.feed.move(vector_tables={k: v for k, v in self._now.vector_tables.items() if k != table_id})
        return left


def _unique(what: str, new: Named, existing: Mapping[str, Any]) -> None:
    place = (new.environment_id, new.name)
    if any((e.environment_id, e.name) == place and e.id != new.id for e in existing.values()):
        raise Conflict(f"there is already a {what} named {new.name!r}.", "Choose another name.")


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
        self._control.change(table_id, lambda t: generations.filled(t, generation))

    async def set_ready(self, table_id: str, generation: int) -> None:
        self._control.change(table_id, lambda t: generations.ready(t, generation))

    async def set_stalled(self, table_id: str, generation: int, kind: str, reason: str) -> bool:
        self._control.change(table_id, lambda t: generations.stalled(t, generation, reason))
        stall = generations.stall_of(self._control.table(table_id), generation)
        if stall == "stalled":
            self._control.tasks.cancel(table_id, generation, f"{kind}: {reason}")
        return stall != "serves"

    async def begin_swap(self, table_id: str, generation: int, *, fills: int) -> bool:
        reading = self._control.tasks.open_backfill(table_id, generation)
        self._control.change(table_id, lambda t: generations.swap_begun(t, generation, fills=fills, reading=reading))
        found = self._control.table(table_id).generation(generation)
        return found is not None and found.swapping

    async def undo_swap(self, table_id: str, generation: int, reason: str) -> None:
        self._control.change(table_id, lambda t: generations.swap_undone(t, generation, reason))

    async def finish_swap(self, table_id: str, generation: int, kept_until: str) -> bool:
        before = self._control.table(table_id).active.number
        self._control.change(table_id, lambda t: generations.swapped(t, generation, kept_until))
        now = self._control.table(table_id).active.number
        if now != before:
            self._control.tasks.cancel(table_id, before, generations.RETIRED)
        return now == generation

    async def expire(self, table_id: str, generation: int) -> None:
        self._control.change(table_id, lambda t: generations.expired(t, generation))

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
        alone: bool = False,
    ) -> Task:
        table = self._control.table(target_id)
        if task_type in BACKFILLS:
            generations.check_fed(table, generation)
            if any(t.generation == generation or alone for t in self._backfills(target_id) if t.id not in instead_of):
                raise generations.in_progress(table)
            self._control.change(target_id, lambda t: generations.unfilled(t, generation))
        for task_id in instead_of:
            await self.update(task_id, status="cancelled", last_error=reason)
        return self.add(task_type, target_id, generation, params)

    async def adopt(self, task_id: str) -> Task:
        task = await self.get(task_id)
        if task.status in OPEN:
            task = self._tasks[task_id] = replace(task, params={**task.params, "asked": True})
        return task

    def add(self, task_type: TaskType, target_id: str, generation: int, params: Mapping[str, Any]) -> Task:
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

    def _backfills(self, table_id: str) -> list[Task]:
        return [
            t for t in self._tasks.values() if t.target_id == table_id and t.task_type in BACKFILLS and t.status in OPEN
        ]

    def open_backfill(self, table_id: str, generation: int) -> bool:
        return any(t.generation == generation for t in self._backfills(table_id))

    def ever_read(self, table_id: str) -> bool:
        return any(t.target_id == table_id and t.task_type in BACKFILLS for t in self._tasks.values())

    def cancel(self, table_id: str, generation: int, reason: str) -> None:
        for task in [t for t in self._tasks.values() if t.target_id == table_id and t.status in OPEN]:
            if task.generation == generation:
                self._tasks[task.id] = replace(task, status="cancelled", last_error=reason, updated_at=_now())

    async def open_tasks(self, target_ids: Sequence[str]) -> list[Task]:
        return [t for t in self._tasks.values() if t.target_id in target_ids and t.status in OPEN]

    async def get(self, task_id: str) -> Task:
        found = self._tasks.get(task_id)
        if found is None:
            raise NotFound(f"there is no task {task_id!r}.")
        return found

    async def recent(
        self, target_id: str | None = None, limit: int = 100, *, environment_id: str | None = None
    ) -> list[Task]:
        tables = self._control.feed.current.vector_tables
        found = [t for t in reversed(self._tasks.values()) if target_id in (None, t.target_id)]
        return [t for t in found if environment_id in (None, tables[t.target_id].environment_id)][:limit]

    async def page(
        self,
        environment_id: str,
        *,
        limit: int,
        before: tuple[str, str] | None = None,
        target_id: str | None = None,
        status: TaskStatus | None = None,
        task_type: TaskType | None = None,
    ) -> list[Task]:
        tables = self._control.feed.current.vector_tables
        found = [
            t
            for t in self._tasks.values()
            if tables[t.target_id].environment_id == environment_id
            and target_id in (None, t.target_id)
            and status in (None, t.status)
            and task_type in (None, t.task_type)
            and (before is None or (t.created_at, t.id) < before)
        ]
        return sorted(found, key=lambda t: (t.created_at, t.id), reverse=True)[:limit]

    async def update(
        self,
        task_id: str,
        *,
        status: TaskStatus | None = None,
        progress: Mapping[str, Any] | None = None,
        attempts: int | None = None,
        last_error: str | None = None,
    ) -> bool:
        task = await self.get(task_id)
        if task.status not in OPEN:
            return False
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
        return True

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

    async def advance(self, connection_id: str, progress: SourceProgress) -> bool:
        stored = self._progress.get(connection_id)
        if stored is None or stored.slot_created_lsn != progress.slot_created_lsn:
            return False
        self._progress[connection_id] = replace(stored, lsn=progress.lsn)
        return True

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
