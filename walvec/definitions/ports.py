"""What the roles ask of the control database. Implemented by `postgres.ControlDatabase`; `memory` is the tests' fake.

All methods raise ControlUnavailable when the database cannot be reached, NotFound for unknown ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from walvec.contracts.letters import DeadLetter
from walvec.contracts.position import Position
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


class Feed(Protocol):
    """A live, consistent snapshot of the definitions. Changes are felt within a second, without a restart."""

    @property
    def current(self) -> Snapshot: ...

    async def changed(self, since: int) -> Snapshot:
        """Waits until the snapshot's version is above `since` (returns at once if it is)."""


class TableStates(Protocol):
    """What roles write about a vector table."""

    async def set_error(self, table_id: str, kind: str, message: str, cure: str) -> None:
        """The table stops until a person acts (`resume` or a new `apply` clears it)."""

    async def clear_error(self, table_id: str) -> None:
        """Also forgets the dead letters in a row, else the next one would stop the table again."""

    async def set_blocked(self, table_id: str, reason: str | None) -> None:
        """Provider says stop; None = healed."""

    async def count_dead(self, table_id: str, letters: int) -> int:
        """Adds to the letters in a row and returns the new number; 0 resets it."""

    async def set_backfilled(self, table_id: str, generation: int) -> None:
        """The first backfill is in the store."""

    async def set_ready(self, table_id: str, generation: int) -> None:
        """Indexes are built."""

    async def update_source_columns(self, table_id: str, generation: Generation) -> None: ...


class Tasks(Protocol):
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
        """Raises Conflict when a backfill of that table is open and another is asked for. `instead_of`: tasks that it
        replaces; they are cancelled for `reason` in the same moment: neither a kill nor a drain comes between."""

    async def open_tasks(self, target_ids: Sequence[str]) -> list[Task]:
        """pending and running, oldest first."""

    async def get(self, task_id: str) -> Task: ...

    async def recent(self, target_id: str | None = None, limit: int = 100) -> list[Task]: ...

    async def update(
        self,
        task_id: str,
        *,
        status: TaskStatus | None = None,
        progress: Mapping[str, Any] | None = None,
        attempts: int | None = None,
        last_error: str | None = None,
    ) -> None:
        """Durable on return (rule progress-after relies on it). A task that has ended stays as it ended."""


class Letters(Protocol):
    async def put(self, letters: Sequence[DeadLetter]) -> None:
        """Durable on return. One open letter per (table, generation, key): a newer one replaces, attempts add up."""

    async def page(self, table_id: str, *, limit: int = 1000, after_id: int = 0) -> list[DeadLetter]: ...

    async def get(self, table_id: str, ids: Sequence[int]) -> list[DeadLetter]: ...

    async def count(self, table_id: str) -> int: ...

    async def keys(self, table_id: str, generation: int) -> set[bytes]: ...

    async def settle(self, table_id: str, generation: int, settled: Mapping[bytes, Position]) -> int:
        """Removes letters whose own position is *strictly* below the given one; returns how many."""

    async def remove(self, table_id: str, ids: Sequence[int]) -> int: ...


class Progress(Protocol):
    async def get(self, connection_id: str) -> SourceProgress: ...

    async def put(self, connection_id: str, progress: SourceProgress) -> None:
        """Durable on return."""

    async def published(self, connection_id: str) -> Mapping[str, str] | None:
        """Vector table id -> mark of its place in the publication (`cdc.slots`), as last put. None = never put."""

    async def put_published(self, connection_id: str, marks: Mapping[str, str]) -> None:
        """Durable on return. Apart from `put`, so that neither writer undoes the other."""

    async def topics(self, table_ids: Sequence[str]) -> Mapping[str, str]:
        """Topic -> its identity when records of these vector tables were last routed to it."""

    async def put_topics(self, table_id: str, identities: Mapping[str, str]) -> None:
        """Durable on return; what is not named stays as it is."""

    async def bridge(self, table_id: str) -> BridgeProgress | None:
        """None = its topic was never read."""

    async def put_bridge(
        self,
        table_id: str,
        *,
        starts: Mapping[int, int] | None = None,
        sequence: int = 0,
        snapshots: Mapping[int, Sequence[tuple[int, int]]] | None = None,
    ) -> None:
        """Durable on return. Adds to what is stored, and never takes anything back: several processes read a topic.
        `starts` replace everything: the topic is another one."""


class Reports(Protocol):
    """What each role says of itself, for `status`: last values only, small, written at most every half second. What
    several processes of a role say of one subject comes back as one (`definitions.reports`)."""

    async def put(self, role: str, subject: str, report: Mapping[str, Any]) -> None: ...

    async def all(self) -> list[tuple[str, str, Mapping[str, Any], float]]:
        """(role, subject id, report, age in seconds)."""


class Definitions(Protocol):
    """Create, change and drop; every change moves the feed."""

    async def snapshot(self) -> Snapshot: ...

    async def put_connection(self, connection: Connection) -> None: ...

    async def put_provider(self, provider: EmbeddingProvider) -> None: ...

    async def put_vector_table(self, table: VectorTable) -> None:
        """Creates it, or changes its definition. What roles write about an existing table (paused, error, blocked,
        backfilled, dead letters in a row, a generation's `ready`) stays as it is stored: only its own methods change
        it, so that a slow writer of definitions never takes back what a role wrote meanwhile. Raises Conflict when
        another table has the name, NotFound for its connection or provider."""

    async def set_paused(self, table_id: str, paused: bool) -> None: ...

    async def set_connection_status(self, connection_id: str, status: str, message: str = "") -> None: ...

    async def delete_connection(self, connection_id: str) -> None:
        """Raises Conflict while vector tables use it."""

    async def delete_provider(self, provider_id: str) -> None:
        """Raises Conflict while vector tables use it."""

    async def delete_vector_table(self, table_id: str) -> None:
        """With its tasks, letters and reports."""


class Control(Protocol):
    """The control database of one environment."""

    @property
    def definitions(self) -> Definitions: ...

    @property
    def feed(self) -> Feed: ...

    @property
    def states(self) -> TableStates: ...

    @property
    def tasks(self) -> Tasks: ...

    @property
    def letters(self) -> Letters: ...

    @property
    def progress(self) -> Progress: ...

    @property
    def reports(self) -> Reports: ...

    async def close(self) -> None: ...
