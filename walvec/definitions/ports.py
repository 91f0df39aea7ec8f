"""What the roles ask of the control database. Implemented by `postgres.ControlDatabase`; `memory` is the tests' fake.

All methods raise ControlUnavailable when the database cannot be reached (try again). A write is durable on return, and
raises NotFound for an unknown id; a question finds nothing there, but for `Tasks.get`. Times are texts, ISO 8601 in UTC
with Z; LSNs are integers; a row's keys are canonical JSON (contracts.keys).
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from walvec.contracts.letters import DeadLetter
from walvec.contracts.position import Position
from walvec.definitions.answers import Begun, KeptAnswer, RequestKey
from walvec.definitions.model import (
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
from walvec.definitions.permits import Lease
from walvec.definitions.removals import Removal, What


class Feed(Protocol):
    """A live, consistent snapshot of the definitions. Changes are felt within a second, without a restart."""

    @property
    def current(self) -> Snapshot:
        """As this process has heard: what was stored a moment ago may be missing (`Definitions.snapshot` asks)."""

    async def changed(self, since: int) -> Snapshot:
        """Waits until the snapshot's version is above `since` (returns at once if it is)."""


class TableStates(Protocol):
    """What roles write about a vector table."""

    async def set_error(self, table_id: str, kind: str, message: str, cure: str) -> None:
        """The table stops until a person acts (`resume` or a new `apply` clears it). `kind`: a WalvecError's; `message`
        and `cure` are shown as they stand."""

    async def clear_error(self, table_id: str) -> None:
        """Also forgets the dead letters in a row, else the next one would stop the table again."""

    async def set_blocked(self, table_id: str, reason: str | None) -> None:
        """Provider says stop, and why; None = healed."""

    async def count_dead(self, table_id: str, letters: int) -> int:
        """Adds to the letters in a row and returns the new number; 0 resets it. Does not move the feed."""

    async def set_backfilled(self, table_id: str, generation: int, *, by: str | None = None) -> bool:
        """All its rows are in the store. The active one serves from then on, a building one may be swapped in.

        `by`: the task that has read them. False, and nothing changes: it was ended in this moment, because something
        was lost and another one reads everything again.
        """

    async def set_ready(self, table_id: str, generation: int, *, index: Mapping[str, Any] | None = None) -> None:
        """Indexes are built. `index`: the definition that they were built by; nothing changes when it is another one by
        now."""

    async def set_stalled(self, table_id: str, generation: int, kind: str, reason: str) -> bool:
        """What is being built is not fed any more; its open backfill is cancelled with that reason. Durable on return.

        True: its records may be passed over, now and for ever. False: it serves, or is being swapped in, and is to be
        treated like every active one.
        """

    async def begin_swap(self, table_id: str, generation: int, *, fills: int) -> bool:
        """True when nothing else may become of it from now on than the active one (also when that was so before).
        False: rows or indexes are still missing, it is read again, was read again since its `fills` was that, or it is
        not built any more."""

    async def undo_swap(self, table_id: str, generation: int, reason: str) -> None:
        """The store refuses to show it: it is stalled, the active one goes on."""

    async def finish_swap(self, table_id: str, generation: int, kept_until: str) -> bool:
        """It is the active one, the one before is kept until then. Whether it is so now; False: the swap was undone."""

    async def expire(self, table_id: str, generation: int) -> None:
        """A retired one is not kept any more, unless another one is being built."""

    async def update_source_columns(self, table_id: str, generation: Generation) -> None:
        """Of the generation of that number: its `key` and `source`, as the source has them now, and nothing else.
        Raises PreconditionFailed when it needs other columns by now."""


class Tasks(Protocol):
    """Of vector tables (`target_id`). `params` and `progress`: JSON objects, whose fields `cdc.jobs` and those who open
    tasks know."""

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
        """Raises Conflict when a backfill of that generation (`alone`: of that table) is open and another is asked for,
        or the generation is not fed. A building generation is not filled from then on (rule fed-or-read).

        `instead_of`: tasks that it replaces; they are cancelled for `reason` in the same moment: neither a kill nor a
        drain comes between.
        """

    async def adopt(self, task_id: str) -> Task:
        """A user asks for what was opened without one: `params.asked`. Of an ended task nothing changes."""

    async def open_tasks(self, target_ids: Sequence[str]) -> list[Task]:
        """pending and running, oldest first."""

    async def get(self, task_id: str) -> Task:
        """Raises NotFound."""

    async def recent(
        self, target_id: str | None = None, limit: int = 100, *, environment_id: str | None = None
    ) -> list[Task]:
        """Newest first: of one vector table, of one environment, or all."""

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
        """Newest first, by (created_at, id). `before`: behind this place, which no new task comes to."""

    async def update(
        self,
        task_id: str,
        *,
        status: TaskStatus | None = None,
        progress: Mapping[str, Any] | None = None,
        attempts: int | None = None,
        last_error: str | None = None,
    ) -> bool:
        """None: as it was. Durable on return (rule progress-after relies on it). A task that has ended stays as it
        ended: False. The feed moves with the status alone."""


class Letters(Protocol):
    """Open dead letters."""

    async def put(self, letters: Sequence[DeadLetter]) -> None:
        """Durable on return. One open letter per (table, generation, key): a newer one replaces, attempts add up."""

    async def page(self, table_id: str, *, limit: int = 1000, after_id: int = 0) -> list[DeadLetter]:
        """Of all generations, in the order of their ids, which begin above 0."""

    async def get(self, table_id: str, ids: Sequence[int]) -> list[DeadLetter]:
        """Those that are there, in the order of their ids."""

    async def count(self, table_id: str) -> int:
        """Of all generations."""

    async def keys(self, table_id: str, generation: int) -> set[bytes]:
        """That have one."""

    async def settle(self, table_id: str, generation: int, settled: Mapping[bytes, Position]) -> int:
        """Removes letters whose own position is *strictly* below their key's; returns how many there were."""

    async def remove(self, table_id: str, ids: Sequence[int]) -> int:
        """Returns how many there were."""


class Progress(Protocol):
    """What has been read of a connection's stream, and of the topics that a bridge reads. Does not move the feed."""

    async def get(self, connection_id: str) -> SourceProgress:
        """All at their defaults where nothing was put yet."""

    async def put(self, connection_id: str, progress: SourceProgress) -> None:
        """Durable on return."""

    async def advance(self, connection_id: str, progress: SourceProgress) -> bool:
        """As `put`, while what is stored is of the same slot (`slot_created_lsn`). False = it is not, and nothing was
        stored: a reader that comes late never writes over what belongs to the next one."""

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

    async def put(self, role: str, subject: str, report: Mapping[str, Any]) -> None:
        """`subject`: id of a connection or vector table, known or not. `report`: a JSON object, instead of the last one
        that this process put."""

    async def all(self) -> list[tuple[str, str, Mapping[str, Any], float]]:
        """(role, subject id, report, age in seconds)."""


class Accounts(Protocol):
    """Organizations, their environments and API keys; every change moves the feed. Raises Conflict for taken names."""

    async def create_organization(self, organization: Organization, environment: Environment, key: ApiKey) -> None:
        """With its first environment and key."""

    async def mark_deleting(self, org_id: str) -> None:
        """Raises Conflict for the default organization."""

    async def delete_organization(self, org_id: str) -> None:
        """With its environments, providers and keys. Raises Conflict while connections or vector tables are there."""

    async def create_environment(self, environment: Environment) -> None:
        """In an organization that is there: else NotFound."""

    async def delete_environment(self, environment_id: str) -> None:
        """With its embedding providers. Raises Conflict while it holds connections or vector tables."""

    async def create_key(self, key: ApiKey) -> None:
        """From the first full key on every request needs one (`Snapshot.keys_needed`), for good."""

    async def revoke_key(self, key_id: str) -> None:
        """At once, in every process. A revoked one stays as it was revoked."""


class Definitions(Protocol):
    """Create, change and drop; every change moves the feed. What names no environment belongs to the one that the
    control database was opened with."""

    async def snapshot(self) -> Snapshot:
        """As stored now, exactly; one short question where nothing moved. Raises ConfigError for what a newer version
        or another secret key wrote."""

    @property
    def known(self) -> Snapshot | None:
        """As this process has last read it, without asking. It may have moved since: `version` tells."""

    def version(self) -> Future[int]:
        """That of what is stored now: whatever was committed before the call is in it. It is asked for from the call
        on, awaited or not. Raises ControlUnavailable, and ConfigError where the database refuses us (where it is
        awaited)."""

    async def put_connection(self, connection: Connection) -> None:
        """Creates it, or changes all but its environment and the time of its creation. Raises Conflict when another one
        of the environment has the name, NotFound for the environment."""

    async def put_provider(self, provider: EmbeddingProvider) -> None:
        """As `put_connection`."""

    async def put_vector_table(self, table: VectorTable, *, etag: str | None = None) -> None:
        """Creates it, or changes its definition; with `etag` it changes one that is there. What roles write about an
        existing table (paused, error, blocked, backfilled, dead letters in a row, what has become of each generation,
        its recorded key and source columns) stays as it is stored: only its own methods change it, so that a slow
        writer of definitions never takes back what a role wrote meanwhile. Raises Conflict when another table has the
        name, NotFound for its connection or provider, and with `etag` for a table that was deleted, PreconditionFailed
        when the definition has another `revisions.etag`."""

    def making(self, table: VectorTable) -> AbstractAsyncContextManager[Callable[[], Awaitable[None]]]:
        """Held by whoever makes a new vector table's storage and topics: their removal is durable before the first of
        them is made, and nobody works at it meanwhile. What it gives enters the definition (as `put_vector_table`) and
        takes the removal back, in one transaction that ends with the block. Left without, or killed: they are removed.
        """

    async def rebuild(
        self,
        table_id: str,
        generation: Generation,
        *,
        changes: Mapping[str, Any] | None = None,
        etag: str | None = None,
    ) -> tuple[VectorTable, Task]:
        """The generation (`VectorTable.next_generation`) is built beside the active one, instead of one that is being
        built; its sweeping rebackfill is opened in the same moment. `changes`: fields of the table that change along.
        Raises Conflict (while one is swapped in, or for another number), NotFound, PreconditionFailed."""

    async def replace_active(
        self,
        table_id: str,
        generation: Generation,
        *,
        changes: Mapping[str, Any] | None = None,
        etag: str | None = None,
    ) -> VectorTable:
        """Of a table that was never read, and that nobody has asked to read: else Conflict. Otherwise as `rebuild`."""

    async def abort(self, table_id: str, *, etag: str | None = None) -> VectorTable:
        """What is being built, or has stalled, is gone, its tasks are cancelled. Raises Conflict when there is none,
        or it is being swapped in."""

    async def rollback(self, table_id: str) -> tuple[VectorTable, Task]:
        """Builds a generation of the previous one's definition (rule never-back). Raises Conflict as `rebuild`, and
        when there is none."""

    async def retry(self, table_id: str) -> tuple[VectorTable, Task]:
        """Builds what has stalled as a new generation, or reads again what is being built without a backfill. Raises
        Conflict when there is neither."""

    async def set_paused(self, table_id: str, paused: bool) -> None:
        """A wish of the user's: roles leave it alone until it is taken back."""

    async def set_connection_status(
        self, connection_id: str, status: str, message: str = "", *, tested: bool = False
    ) -> None:
        """`status`: connected or error, as its reader says; failed or connected, as a test. `tested`: somebody asked
        for one, and this is what came out."""

    async def delete_connection(self, connection_id: str) -> Sequence[str]:
        """Raises Conflict while vector tables use it. Returns the removals that are still open at its source."""

    async def delete_provider(self, provider_id: str) -> None:
        """Raises Conflict while vector tables use it."""

    async def delete_vector_table(self, table_id: str) -> Sequence[str]:
        """With its tasks, letters and reports. Returns the removals of what it leaves behind, entered with it."""


class Claim(Protocol):
    """A removal in hand: nobody else works at it, and nobody takes it back. What is said of it is durable once the
    claim is left; left without a word, it stays as it was."""

    @property
    def removal(self) -> Removal: ...

    async def done(self) -> None:
        """Of a slot: with all that is stored of its stream."""

    async def failed(self, reason: str, again_in: float) -> None:
        """Tried again in so many seconds."""


class Removals(Protocol):
    """What deleted vector tables leave behind, until it is removed. `Definitions` enters them with a deletion, and
    takes back those of a slot and its publication with a new vector table on their connection."""

    async def open(self, environment_id: str | None = None) -> list[Removal]:
        """Oldest first, of one environment or all; none of a vector table that is being made."""

    def claim(
        self, removal_id: str | None = None, *, but: Collection[str] = ()
    ) -> AbstractAsyncContextManager[Claim | None]:
        """This one, or the next that is due. None: there is none, or others have it in hand."""

    async def adopt(self) -> None:
        """Enters the slots of connections that stream no vector table any more, where nothing was entered: an earlier
        version, or a reader that was killed at the wrong moment, left them."""

    async def put(self, table: VectorTable, what: Sequence[What]) -> Sequence[str]:
        """Of a vector table that was never entered, or not wholly; due at once. What its `making` has left is one of
        them."""

    async def give_up(self, removal_id: str) -> None:
        """It is not removed any more. Raises NotFound."""


class Permits(Protocol):
    """A rate limit's count, shared by all API processes."""

    async def lease(self, subject: str, limit: int, seconds: int, wanted: int) -> Lease:
        """At most `wanted` permits for who is counted as `subject`, counted at once, so that all together stay below
        `limit` in a sliding window of so many seconds."""


class Answers(Protocol):
    """Answers of requests that carry an idempotency key (see `answers`). Durable on return."""

    async def begin(self, key: RequestKey, request: str, digest: bytes) -> Begun:
        """Takes the key for a new attempt, for `answers.HELD_SECONDS`, or tells why not. `request`: method and path;
        `digest`: of these and the body."""

    async def prolong(self, key: RequestKey, attempt: str) -> None:
        """The attempt is still alive, and has the key for `answers.HELD_SECONDS` more."""

    async def finish(self, key: RequestKey, attempt: str, answer: KeptAnswer) -> None:
        """Does nothing when another attempt has the key by now."""

    async def abandon(self, key: RequestKey, attempt: str) -> None:
        """Nothing was done: the key is free."""


class Control(Protocol):
    """The control database of all organizations and environments."""

    @property
    def accounts(self) -> Accounts: ...

    @property
    def permits(self) -> Permits: ...

    @property
    def answers(self) -> Answers: ...

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

    @property
    def removals(self) -> Removals: ...

    async def close(self) -> None: ...
