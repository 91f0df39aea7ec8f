"""Tasks, synchronisation, status, dead letters, the log."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from api.answers.parts import Answer, CreatedAt, FreeForm, OrgId, Pagination, SyncStatus, TableId, TaskId, Time

TaskType = Literal["backfill", "rebackfill", "replay", "repair", "removal"]
TaskStatus = Literal["pending", "running", "completed", "failed", "cancelled"]


class Task(Answer):
    """A durable piece of work; it goes on where it was after a restart."""

    id: TaskId
    task_id: TaskId
    """The same as `id`."""
    org_id: OrgId
    task_type: TaskType
    """What is done."""
    target_id: str
    """Id of what it works on."""
    status: TaskStatus
    """How it stands."""
    priority: int
    """Lower goes first."""
    generation: int
    """Generation of the vector table that it fills."""
    progress: FreeForm
    """How far it is: `rows_processed`, and what it needs to go on."""
    attempts: int
    """How often it was begun."""
    max_attempts: int
    """How often it is tried in a row."""
    last_error: str | None
    """Why the last attempt did not end well."""
    created_at: CreatedAt
    updated_at: Time
    """When it last got anywhere, UTC."""


class Tasks(Answer):
    replayed: int
    """Dead letters that are tried again."""
    tasks: list[Task]
    """That do it."""


class BackfillRequested(Task):
    """The task, and the vector table's counts."""

    vector_table_id: TableId
    sync_status: SyncStatus
    total_rows: int
    """Rows of the source table that have a text to embed; where counting takes too long, estimated."""
    synced_rows: int
    """Rows that have a vector already."""


class BackfillProgress(Answer):
    task_id: TaskId
    task_type: TaskType
    """What is done."""
    status: TaskStatus
    """How it stands."""
    rows_done: int
    """Rows that were read."""
    estimated_total: int | None
    """Rows that there are to read."""
    rate: float | None
    """Rows per second."""
    remaining_seconds: float | None
    """At this rate."""
    waiting: str | None
    """What it waits for."""
    last_error: str | None
    """Why the last attempt did not end well."""


class SyncState(Answer):
    """Both documented spellings."""

    vector_table_id: TableId
    sync_status: SyncStatus
    synced_rows: int
    """Rows that have a vector: all of `total_rows` once it is synced, but for dead letters."""
    total_rows: int
    """Rows of the source table that have a text to embed; where counting takes too long, estimated."""
    last_synced_at: Time | None
    """The source's state at this moment is searchable; null where that is not known."""
    last_sync_at: Time | None
    """The same."""
    rows_pending: int | None
    """Changes that are not applied yet; null: the log cannot be asked."""
    staleness_secs: float | None
    """How long ago `last_synced_at` is; grows while the source cannot be read."""
    as_of_lsn: str | None
    """Everything committed at the source up to here is searchable; null where that is not known yet."""
    wait_for_lsn: str | None
    """As it was asked for."""
    lsn_reached: bool | None
    """Whether that is searchable; null where it was not asked for."""
    wait_reason: str | None
    """Why it was not reached in time."""
    lag_changes: int | None
    """Changes that were read and are not applied yet; null: the log cannot be asked."""
    lag_seconds: float | None
    """Age of the oldest of them."""
    oldest_unprocessed_at: Time | None
    """When that one was read, UTC."""
    last_error: str | None
    """What went wrong last, with what mends it; else why the source cannot be read."""
    last_error_at: Time | None
    """When that came up, UTC; of a backfill that goes on, when it last got anywhere. Of a source: null."""
    dead_letters: int
    """Changes that could not be processed."""
    backfill: BackfillProgress | None
    """The one that is open."""


class SyncChanged(Answer):
    vector_table_id: TableId
    name: str
    """Of the vector table."""
    sync_status: SyncStatus
    message: str
    """For people."""
    lag_changes: int | None
    """Changes that were read and are not applied yet; null: the log cannot be asked."""
    lag_seconds: float | None
    """Age of the oldest of them."""
    oldest_unprocessed_at: Time | None
    """When that one was read, UTC."""


class Lag(Answer):
    lag_changes: int
    """Records that are not consumed."""
    lag_seconds: float | None
    """Age of the oldest of them."""


class TableStatus(Answer):
    """Every number that can be had; what is out of reach is null and named in `unreachable`."""

    id: TableId
    name: str
    """Of the vector table."""
    state: SyncStatus
    sync_status: SyncStatus
    """The same."""
    total_rows: int | None
    """Rows of the source table that have a text to embed; where counting takes too long, estimated."""
    synced_rows: int | None
    """Rows that have a vector: all of `total_rows` once it is synced, but for dead letters."""
    dead_letters: int
    """Changes that could not be processed."""
    lag_changes: int | None
    """Changes between source and store."""
    lag_seconds: float | None
    """Age of the oldest of them."""
    stages: dict[str, Lag | None]
    """The same by stage: embedder, sink."""
    backfill: BackfillProgress | None
    """The one that is open."""
    last_error: str | None
    """What went wrong last, with what mends it; else why the source cannot be read."""
    last_error_at: Time | None
    """When that came up, UTC; of a backfill that goes on, when it last got anywhere. Of a source: null."""
    error: dict[str, str] | None
    """What a person must mend: `kind`, `message`, `cure`."""
    blocked: str | None
    """What it waits for; heals by itself."""
    texts_sent: int | None
    """Texts sent to the provider since the embedder started."""
    texts_saved: int | None
    """Texts that need not be sent."""
    embedder: FreeForm
    """The embedder's report."""
    sink: FreeForm
    """The sink's report."""
    source: FreeForm
    """The connection, and its reader's report."""
    generation: int
    """Number of the generation that answers queries."""
    embedding_model: str
    """Its model."""
    store: str
    """Where its vectors live."""
    unreachable: list[str]
    """What could not be asked, and why."""


class Statuses(Answer):
    tables: list[TableStatus]
    """By name."""
    removals: list[Task]
    """What deleted definitions have left behind and is still to be removed; never of one table's status."""


class TableDrained(Answer):
    vector_table_id: TableId
    drained: Literal[True]
    """What was not drained in time is an error."""
    lsn: str | None
    """As it was asked for."""
    as_of_lsn: str | None
    """Everything committed at the source up to here is searchable; null where its changes come from a topic."""
    seconds: float
    """That it took."""
    dead_letters: int
    """Rows that are not searchable because they could not be embedded or stored."""


class Drained(Answer):
    drained: bool
    """Whether everything that was committed before the call is searchable."""
    reason: str | None
    """Why not."""
    reasons: dict[str, str]
    """The same by vector table."""
    tables: list[str]
    """That were waited for."""
    dead_letters: dict[str, int]
    """Changes that could not be processed, by vector table; they do not hold a drain up."""
    seconds: float
    """That it took."""


class Verified(Answer):
    """Keys that differ between source and store."""

    missing: list[Any]
    """In the source, not in the store."""
    orphaned: list[Any]
    """In the store, not in the source."""
    stale: list[Any]
    """In both, with another text."""
    duplicate: list[Any]
    """In the store more than once."""
    dead: list[Any]
    """With an open dead letter."""


class Letter(Answer):
    """A change that could not be processed."""

    id: int
    """Counts up."""
    key: Any
    """The row's key, by column; null where the record had none that can be read."""
    kind: str
    """Who could not process it."""
    reason: str
    """Why."""
    position: str
    """The change's place in the source's history."""
    attempts: int
    """How often it was tried."""
    generation: int
    """Of the vector table."""
    created_at: Time | None
    """When it was put aside, UTC."""


class WholeLetter(Letter):
    payload: Any
    """The record as it was."""


class Letters(Answer):
    dead_letters: list[Letter]
    """The oldest first."""
    total: int
    """Of all pages."""
    pagination: Pagination


class Dropped(Answer):
    dropped: int
    """How many."""


class Topic(Answer):
    topic: str
    """Its name."""
    vector_table: str | None
    """Name of its vector table; null: of none."""
    kind: Literal["changes", "vectors", "dead"] | None
    """What it holds."""
    partitions: int
    """How many."""
    records: int
    """That it holds."""
    start_offsets: dict[str, int]
    """Of the first record, by partition."""
    end_offsets: dict[str, int]
    """Of the next record, by partition."""
    group: str | None
    """The consumer group that reads it."""
    committed: dict[str, int]
    """Where that group is, by partition."""
    lag: int | None
    """Records that the group has not consumed."""
    lag_seconds: float | None
    """Age of the oldest of them."""
    bytes: int | None
    """Its size, where the log says."""
    oldest: Time | None
    """Time of its oldest record."""
    differences: list[str]
    """Settings of the topic that are not what walvec would make."""


class Topics(Answer):
    topics: list[Topic]
    """By name."""


class Health(Answer):
    status: str = Field(examples=["ok", "starting"])
    """In one word."""
    detail: str = Field("")
    """Why it is not ok."""


class Readiness(Answer):
    class Part(Answer):
        ok: bool
        """Whether it answered."""
        detail: str
        """Why not."""

    status: Literal["ok", "unavailable"]
    """In one word."""
    checks: dict[str, Part]
    """By what was asked."""


class Record(Answer):
    """One record of a topic, as one line."""

    topic: str
    """Where it is."""
    partition: int
    """Where it is."""
    offset: int
    """Where it is."""
    timestamp_ms: int
    """When it was appended, in milliseconds since 1970."""
    headers: dict[str, str]
    """As text."""
    key: Any
    """As JSON where it is JSON."""
    value: Any
    """As JSON where it is JSON; other bytes as `base64`."""


class Replayed(Answer):
    """Progress of a replay, as one line; the last one has `done`."""

    replayed: int
    """Records that were appended so far."""
    of: int
    """Records that will be."""
    oldest: Time | None = None
    """Time of the oldest one."""
    done: bool = False
    """Whether this is the end."""
