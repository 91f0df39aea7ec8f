"""Connections, embedding providers and vector tables."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, RootModel

from api.answers.activity import BackfillProgress
from api.answers.parts import (
    Answer,
    ConnectionId,
    CreatedAt,
    EnvironmentId,
    FreeForm,
    OrgId,
    ProviderId,
    SyncStatus,
    TableId,
    Time,
)

Mode = Annotated[
    Literal["managed", "platform"],
    Field(description="managed: vectors live in the server's store. platform: in the source database itself."),
]


class SourceReading(Answer):
    """What walvec's reader of this database says. It may say more than these fields."""

    model_config = Answer.model_config | {"extra": "allow"}

    durable_lsn: str = Field(examples=["0/1A2B3C8"])
    """Everything committed before it is in walvec's log."""
    lag_seconds: float | None
    """How far reading is behind; null without a reader."""
    report_age_seconds: float | None
    """Age of what is said here; null when no reader has ever said anything."""
    reading: bool
    """Whether a reader is there now."""


class Connection(Answer):
    """One source database. Its credentials are stored encrypted, and are in no answer."""

    id: ConnectionId
    org_id: OrgId
    environment_id: EnvironmentId
    name: str
    """Unique in its environment."""
    provider: Literal["postgresql"]
    """Kind of database."""
    mode: Mode
    status: str = Field(examples=["created", "connected", "failed"])
    """created: never tested. connected: the last test went well. failed: it did not, see `status_message`."""
    status_message: str
    """Why it is not connected; empty when it is."""
    on_slot_loss: Literal["rebackfill", "halt"]
    """What happens when the server lost walvec's place in its write-ahead log."""
    slot: str = Field(examples=["walvec_6f0d2a4b"])
    """Name of its replication slot and of its publication."""
    last_tested_at: Time | None
    """When it was last tested, UTC."""
    created_at: CreatedAt


class ConnectionWithSource(Connection):
    source: SourceReading
    """How far its write-ahead log is read."""


class Check(Answer):
    """One precondition at the source."""

    name: str = Field(examples=["wal_level"])
    """What is looked at."""
    ok: bool
    """Whether it is as it must be."""
    detail: str
    """What was found."""
    cure: str
    """The statement that mends it; empty when it is fine."""


class TestError(Answer):
    code: str = Field(examples=["source_unavailable", "source_rejected"])
    """What went wrong, for programs."""
    message: str
    """What went wrong, for people."""
    resolution: str
    """What mends it."""


class ConnectionTested(Answer):
    """`checks`: the whole preflight, with what mends each that is not fine."""

    status: Literal["ok"]
    """walvec reached the database."""
    latency_ms: int
    """Of connecting and one query."""
    ready: bool
    """Whether all checks are fine, so that its changes can be followed."""
    checks: list[Check]
    """The whole preflight."""


class ConnectionFailed(Answer):
    status: Literal["failed"]
    """walvec did not reach it, or was refused."""
    error: TestError
    """Why."""
    checks: list[Check]
    """The one that failed."""


Tested = RootModel[ConnectionTested | ConnectionFailed]
"""A failed test is an answer, not an error."""


class Doctor(Answer):
    """The whole preflight: server, rights, slot, and each vector table's key, identity and publication."""

    connection: str
    """Name of the connection."""
    connection_id: ConnectionId
    ok: bool
    """Whether all checks are."""
    checks: list[Check]
    """In the order in which they matter."""


class Model(Answer):
    model: str = Field(examples=["text-embedding-3-small"])
    """Name of the model."""
    dimensions: int = Field(examples=[1536])
    """Of its vectors."""


class Provider(Answer):
    """Who makes the vectors. Its key is stored encrypted, and is in no answer."""

    id: ProviderId
    org_id: OrgId
    environment_id: EnvironmentId
    name: str
    """Unique in its environment."""
    provider: str = Field(examples=["openai"])
    """Its kind."""
    default_model: str | None
    """Model of vector tables that name none."""
    has_api_key: bool
    """Whether a key is stored."""
    base_url: str | None
    """Address, where it is not the vendor's own."""
    limits: FreeForm
    """Requests and tokens per minute and the like."""
    created_at: CreatedAt
    models: list[Model]
    """Models of this kind that walvec knows; others can be used by name."""


class Kind(Answer):
    provider: str
    """A kind of provider."""
    available: bool
    """Whether this walvec can run it."""
    models: list[Model]
    """That are known; a kind without any takes every model by name."""


class Catalogue(Answer):
    data: list[Kind]
    """Those that are available first."""


class Column(Answer):
    """As it was written: what was left out stays out."""

    name: str
    """Name in the source table."""
    role: Literal["embedding", "metadata"]
    """embedding: part of the text that is embedded. metadata: stored beside the vector, to filter by."""
    ordinal: int = Field(0)
    """Place in the text; columns without one come last."""
    name_prefix: str = Field("", examples=["title: "])
    """Put before the value in the text."""
    filter_type: Literal["keyword", "integer", "float", "boolean", "datetime"] = Field("keyword")
    """How a metadata column is compared in filters."""
    alias: str = Field("")
    """Its name in the view, where its own collides with one of walvec's."""


class Source(Answer):
    kafka_topic: str
    """Topic that an existing Debezium writes."""
    unavailable_value: str
    """Debezium's placeholder for values that it was not sent."""
    slot: str | None
    """Debezium's replication slot, which a drain waits for."""


class Serving(Answer):
    """What answers queries now."""

    generation: int
    """Number of the generation."""
    embedding_provider_id: ProviderId
    embedding_model: str
    """Queries are embedded with it."""
    embedding_dimensions: int
    """Of its vectors."""
    columns: list[Column]
    """Of its text and its metadata."""
    separator: str
    """Stands between the embedding columns in the text."""
    index: FreeForm
    """Kind and parameters of its vector index."""


class Generation(Answer):
    """One materialisation of a vector table: its own storage, columns and model."""

    generation: int
    """Its number; the highest is the newest."""
    state: Literal["building", "stalled", "active", "retired", "swapping"]
    """building: is to take the active one's place. swapping: is taking it. stalled: was building, see `reason`. active:
    answers queries. retired: was active, and is kept for a rollback."""
    embedding_provider_id: ProviderId
    embedding_model: str
    """Name of its model."""
    embedding_dimensions: int
    """Of its vectors."""
    columns: list[Column]
    """Of its text and its metadata."""
    separator: str
    """Stands between the embedding columns in the text."""
    index: FreeForm
    """Kind and parameters of its vector index."""
    filled: bool
    """Whether all rows are in the store."""
    indexed: bool
    """Whether its indexes are built."""
    reason: str | None
    """Why it stalled."""
    kept_until: Time | None
    """Until when it is kept, UTC."""
    progress: BackfillProgress | None
    """Of the backfill that fills it."""


class GenerationsInShort(Answer):
    active: int
    """Number of the one that answers queries."""
    building: Generation | None
    """The one that is to take its place; it may have stalled."""
    previous: Generation | None
    """The one that a rollback brings back."""


class Generations(Answer):
    vector_table_id: TableId
    data: list[Generation]
    """All that are kept, the newest first."""


class VectorTable(Answer):
    """As it is wanted: while another generation is being built, columns, model and provider are that one's."""

    id: TableId
    org_id: OrgId
    environment_id: EnvironmentId
    connection_id: ConnectionId
    embedding_provider_id: ProviderId
    name: str
    """Unique in its environment."""
    source_table: str
    """As it was asked for."""
    primary_key_column: str | list[str]
    """The key's column, or its columns where it has several."""
    columns: list[Column]
    """As they were asked for; while another generation is being built, its own."""
    embedding_model: str
    """As it was asked for; while another generation is being built, its own."""
    embedding_dimensions: int
    """Of its vectors."""
    mode: Mode
    sync_mode: Literal["batch", "cdc"]
    """Accepted as documented; both follow the write-ahead log."""
    sync_status: SyncStatus
    store: Literal["pgvector", "qdrant"]
    """Where its vectors live."""
    source: Source | None
    """Topic of an existing Debezium; null: the connection's own slot."""
    backfill: Literal["auto", "manual"]
    """auto: its first backfill begins by itself."""
    separator: str
    """Stands between the embedding columns in the text."""
    index: FreeForm
    """Kind and parameters of the vector index."""
    keep_previous: int
    """Seconds that a generation is kept for a rollback after it was replaced."""
    keep_embedding_columns: bool
    """Whether query results hold the values of embedding columns in `metadata`."""
    generation: int
    """Number of the generation that answers queries."""
    building_generation: int | None
    """Number of the generation that is to take its place; null: none is being built."""
    active: Serving
    generations: GenerationsInShort
    qdrant_collection: str | None
    """Its storage in managed mode, whatever the store; also part of its topics' names."""
    platform_vector_ref: str | None
    """Its view in platform mode."""
    view: str
    """Its view in SQL."""
    total_rows: int
    """Rows of the source table that have a text to embed; where counting takes too long, estimated."""
    synced_rows: int
    """Rows that have a vector: all of `total_rows` once it is synced, but for dead letters."""
    created_at: CreatedAt
    updated_at: Time
    """When the definition last changed, UTC."""


class SchemaColumn(Answer):
    name: str
    """As the server spells it."""
    type: str = Field(examples=["timestamp with time zone"])
    """The server's own name of the type."""
    nullable: bool
    """Whether it may be NULL."""


class Schema(Answer):
    """Columns of the source table."""

    columns: list[SchemaColumn]
    """In their order."""


class Change(Answer):
    before: Any
    """As it is stored."""
    after: Any
    """As the document wants it."""


class Difference(Answer):
    action: Literal["created", "changed", "removed", "unchanged"]
    """What is to be done."""
    kind: str = Field(examples=["vector table"])
    """Of thing."""
    name: str
    """Of the thing."""
    fields: dict[str, Change | str]
    """What differs, by field; secrets only as a word."""
    text: str
    """The same for people."""


class Applied(Answer):
    applied: bool
    """False for a dry run."""
    changed: bool
    """Whether anything differed."""
    differences: list[Difference]
    """One for each thing that the document names, or that is pruned."""


class ExportedDocument(Answer):
    """A definitions document, without secrets; applied as it is, it changes nothing."""

    connections: list[FreeForm]
    """As in a definitions file."""
    embedding_providers: list[FreeForm]
    """As in a definitions file."""
    vector_tables: list[FreeForm]
    """As in a definitions file."""
