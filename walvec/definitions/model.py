"""Definitions as values. Pure: what a vector table is, without where it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from walvec.contracts.text import ContentHash, TextSpec, hasher
from walvec.contracts.values import Codec, codec, key_codec
from walvec.definitions import naming

Role = Literal["embedding", "metadata"]
FilterType = Literal["keyword", "integer", "float", "boolean", "datetime"]
SyncStatus = Literal["pending", "backfilling", "synced", "paused", "error", "blocked", "pending_rebackfill"]
Mode = Literal["managed", "platform"]
StoreKind = Literal["pgvector", "qdrant"]
TaskType = Literal["backfill", "rebackfill", "replay", "repair"]
GenerationState = Literal["building", "stalled", "active", "retired"]
Permission = Literal["full", "read_only"]
TaskStatus = Literal["pending", "running", "completed", "failed", "cancelled"]
BACKFILLS: tuple[TaskType, ...] = ("backfill", "rebackfill")
OPEN: tuple[TaskStatus, ...] = ("pending", "running")
DEFAULT_ORGANIZATION = "default"
FIRST_VIEW_SCHEMA = "walvec"


def label(view_schema: str, name: str) -> str:
    """A name that no other environment's can be taken for; in the first environment it is the name itself."""
    return name if view_schema == FIRST_VIEW_SCHEMA else f"{view_schema}.{name}"


@dataclass(frozen=True, slots=True)
class Environment:
    """Definitions that see each other, apart from those of other environments. `view_schema`: the schema of its views
    in a store's database."""

    id: str
    org_id: str
    name: str
    view_schema: str
    created_at: str = ""


@dataclass(frozen=True, slots=True)
class Organization:
    """Who owns environments and API keys. `deleting`: nobody may ask in its name any more, what it has is removed."""

    id: str
    name: str
    status: Literal["active", "deleting"] = "active"
    created_at: str = ""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A bearer token of an organization. `digest`: its SHA-256; the token itself is kept nowhere."""

    id: str
    org_id: str
    name: str
    digest: bytes = field(repr=False)
    prefix: str
    permission: Permission = "full"
    created_by: str | None = None
    created_at: str = ""
    revoked_at: str | None = None


@dataclass(frozen=True, slots=True)
class Connection:
    """One source database. `dsn` holds the password: never log it, never answer with it (repr hides it)."""

    id: str
    name: str
    provider: str
    mode: Mode
    dsn: str = field(repr=False)
    on_slot_loss: Literal["rebackfill", "halt"] = "rebackfill"
    status: str = "created"
    status_message: str = ""
    created_at: str = ""
    environment_id: str = ""
    last_tested_at: str | None = None
    view_schema: str = field(default=FIRST_VIEW_SCHEMA, compare=False)
    """Its environment's; not stored with it."""

    @property
    def label(self) -> str:
        return label(self.view_schema, self.name)

    @property
    def slot(self) -> str:
        """Name of its replication slot and of its publication."""
        return "walvec_" + self.id.rpartition("_")[2][:8]

    publication = slot


@dataclass(frozen=True, slots=True)
class EmbeddingProvider:
    id: str
    name: str
    provider: str
    api_key: str | None = field(default=None, repr=False)
    base_url: str | None = None
    default_model: str | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    created_at: str = ""
    environment_id: str = ""
    view_schema: str = field(default=FIRST_VIEW_SCHEMA, compare=False)
    """Its environment's; not stored with it."""

    @property
    def label(self) -> str:
        return label(self.view_schema, self.name)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a definition, as the user wrote it. `alias` is its name in the view where its own collides."""

    name: str
    role: Role
    ordinal: int | None = None
    name_prefix: str = ""
    filter_type: FilterType | None = None
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class SourceColumn:
    """A source column as it was when the definition was accepted.

    `type`: format_type() with modifiers, schema-qualified for user types; `base_type`: without modifiers, of a domain's
    base, of an array's element; `codec`: see contracts.values; `user_defined`: enum, domain, composite or reg…, so that
    another database may lack it.
    """

    name: str
    type: str
    type_oid: int
    base_type: str
    codec: str
    nullable: bool = True
    user_defined: bool = False


@dataclass(frozen=True, slots=True)
class Generation:
    """One materialisation of a vector table: its own storage, model and columns.

    building: fed beside the active one, to take its place. stalled: was building, is not fed any more (`stalled`: why).
    retired: not fed any more, and kept: what was active until `kept_until`, for a rollback; what another one replaced
    while it was built (`stalled`: why) until that one is active, for its vectors. Nothing comes back from stalled or
    retired: a new generation of the same definition is built instead (rule never-back).
    `filled`: all rows are in the store and it was fed since; `fills`: how often they were read to the end. `ready`:
    indexes are built. `swapping`: the view is being pointed at it; nothing else may become of it.
    `embedding_provider_id`, `provider_kind`: None = the table's.
    """

    number: int
    state: GenerationState
    embedding_model: str
    embedding_dimensions: int
    columns: tuple[Column, ...]
    key: tuple[SourceColumn, ...]
    source: tuple[SourceColumn, ...]
    index: Mapping[str, Any] = field(default_factory=lambda: {"kind": "hnsw"})
    separator: str = "\n"
    ready: bool = False
    filled: bool = False
    fills: int = 0
    swapping: bool = False
    stalled: str | None = None
    kept_until: str | None = None
    embedding_provider_id: str | None = None
    provider_kind: str | None = None
    keep_embedding_columns: bool = False
    """Whether the values of columns that are only embedded are stored beside the metadata, to be given back."""

    @property
    def text_spec(self) -> TextSpec:
        """Embedding columns, numbered before un-numbered, array order among equals."""
        found = [c for c in self.columns if c.role == "embedding"]
        found.sort(key=lambda c: (c.ordinal is None, c.ordinal or 0))
        return TextSpec(tuple((c.name, c.name_prefix) for c in found), self.separator)

    @property
    def embedding_columns(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.text_spec.columns)

    @property
    def metadata_columns(self) -> tuple[Column, ...]:
        """Columns whose values are stored one by one: those of that role, then those that are kept."""
        found = tuple(c for c in self.columns if c.role == "metadata")
        if not self.keep_embedding_columns:
            return found
        names = {c.name for c in found}
        return found + tuple(Column(n, "embedding") for n in self.embedding_columns if n not in names)

    @property
    def used_columns(self) -> tuple[SourceColumn, ...]:
        """Source columns that a change record's `after` carries, in source order, each once."""
        wanted = {c.name for c in self.columns}
        return tuple(s for s in self.source if s.name in wanted)

    @property
    def key_codecs(self) -> tuple[tuple[str, Codec], ...]:
        return tuple((k.name, key_codec(k.codec)) for k in self.key)

    def source_column(self, name: str) -> SourceColumn:
        return next(s for s in self.source if s.name == name)

    def wire_codec(self, name: str) -> Codec:
        """A column that is only embedded travels as its text; a metadata column travels typed."""
        column = self.source_column(name)
        typed = any(c.name == name for c in self.metadata_columns)
        return codec(column.codec if typed or column.codec == "bool" else "text")

    def needs_exact_text(self, name: str) -> bool:
        """Both roles: the typed JSON must also give the embedded text back, letter by letter. Base64 does not, without
        its codec, which the reader of a change does not have."""
        codec = self.wire_codec(name)
        return name in self.embedding_columns and (codec.name == "bytea" or not codec.same_text)

    def hasher(self, provider: str) -> ContentHash:
        return hasher(provider, self.embedding_model, self.embedding_dimensions)


@dataclass(frozen=True, slots=True)
class TopicSource:
    """A topic that Debezium's Postgres connector writes, instead of the connection's own slot.

    `unavailable_value`: the connector's placeholder for an unchanged TOAST value. `slot`: the connector's replication
    slot, where a drain should wait for it.
    """

    kafka_topic: str
    unavailable_value: str = "__debezium_unavailable_value"
    slot: str | None = None


@dataclass(frozen=True, slots=True)
class VectorTable:
    """A vector table with its generations.

    `source_table`: (schema, name) resolved, exact. `error` is what a person must mend, `blocked` what heals by itself.
    `backfill` "manual": changes are collected, and applied from the first backfill on. `log_kind` etc. are settings.
    """

    id: str
    name: str
    connection_id: str
    embedding_provider_id: str
    provider_kind: str
    source_schema: str
    source_table: str
    store: StoreKind
    mode: Mode
    generations: tuple[Generation, ...]
    backfill: Literal["auto", "manual"] = "auto"
    sync_mode: Literal["batch", "cdc"] = "cdc"
    paused: bool = False
    error: Mapping[str, str] | None = None
    blocked: str | None = None
    backfilled: bool = False
    pending_rebackfill: bool = False
    dead_in_row: int = 0
    primary_key_named: bool = False
    raw_source_table: str = ""
    raw_primary_key: Any = None
    created_at: str = ""
    updated_at: str = ""
    source: TopicSource | None = None
    """Where its changes come from; None = from the connection's own slot."""
    environment_id: str = ""
    view_schema: str = FIRST_VIEW_SCHEMA
    storage: str = ""
    """Its storage name, fixed when it is created: topics and storage keep it when the table gets another name."""
    unicode_view: bool = False
    """Whether its view takes letters of any script; those of earlier versions do not."""
    keep_previous: int = 3600
    """Seconds that a generation is kept after a swap, for a rollback."""
    last_generation: int = 0
    """The highest number that a generation ever had: none comes back (rule never-back)."""
    failed_at: str | None = None
    """When `wrong` became what it is."""

    @property
    def storage_name(self) -> str:
        """`vt_<8 chars of id>_<slug of name>`; also the head of its topics' names."""
        return self.storage or naming.ascii_storage_name(self.id, self.name)

    @property
    def label(self) -> str:
        return label(self.view_schema, self.name)

    @property
    def view_name(self) -> str:
        """Its view's name in SQL."""
        return naming.view_name(self.name) if self.unicode_view else naming.ascii_view_name(self.name)

    @property
    def active(self) -> Generation:
        return next(g for g in self.generations if g.state == "active")

    @property
    def live_generations(self) -> tuple[Generation, ...]:
        """Those that changes are applied to."""
        return tuple(g for g in self.generations if g.state in ("building", "active"))

    @property
    def building(self) -> Generation | None:
        """The one that is to take the active one's place; it may be stalled."""
        return next((g for g in self.generations if g.state in ("building", "stalled")), None)

    @property
    def wrong(self) -> Mapping[str, str] | str | None:
        """What is worst: a person is needed, it waits, or what is being built has stalled."""
        return self.error or self.blocked or (self.building.stalled if self.building is not None else None)

    @property
    def previous(self) -> Generation | None:
        """The newest one that was active and is kept for a rollback."""
        kept = (g for g in self.generations if g.state == "retired" and g.stalled is None)
        return max(kept, key=lambda g: g.number, default=None)

    @property
    def next_generation(self) -> int:
        """The number of the next one."""
        return max(self.last_generation, *(g.number for g in self.generations)) + 1

    def provider_of(self, generation: Generation) -> str:
        """Id of the embedding provider of that generation's vectors."""
        return generation.embedding_provider_id or self.embedding_provider_id

    def kind_of(self, generation: Generation) -> str:
        """Kind of that provider."""
        return generation.provider_kind or self.provider_kind

    def uses_provider(self, provider_id: str) -> bool:
        """Also by a generation that is kept."""
        return provider_id == self.embedding_provider_id or any(
            g.embedding_provider_id == provider_id for g in self.generations
        )

    def generation(self, number: int) -> Generation | None:
        return next((g for g in self.generations if g.number == number), None)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All definitions at one version, consistent among themselves; by id."""

    version: int
    connections: Mapping[str, Connection]
    providers: Mapping[str, EmbeddingProvider]
    vector_tables: Mapping[str, VectorTable]
    environments: Mapping[str, Environment] = field(default_factory=dict)
    organizations: Mapping[str, Organization] = field(default_factory=dict)
    api_keys: Mapping[str, ApiKey] = field(default_factory=dict)
    keys_needed: bool = False
    """Whether there ever was a full key: since then nobody asks without one."""

    def within(self, environment_id: str) -> Snapshot:
        """What one environment holds, as if there were no other."""
        return replace(
            self,
            connections={k: c for k, c in self.connections.items() if c.environment_id == environment_id},
            providers={k: p for k, p in self.providers.items() if p.environment_id == environment_id},
            vector_tables={k: t for k, t in self.vector_tables.items() if t.environment_id == environment_id},
        )

    @property
    def default_organization(self) -> Organization:
        return next(o for o in self.organizations.values() if o.name == DEFAULT_ORGANIZATION)

    def environment(self, org_id: str, ref: str) -> Environment | None:
        """An organization's environment, by id or by name."""
        own = [e for e in self.environments.values() if e.org_id == org_id]
        return next((e for e in own if e.id == ref), None) or next((e for e in own if e.name == ref), None)

    def tables_of(self, connection_id: str) -> list[VectorTable]:
        return [t for t in self.vector_tables.values() if t.connection_id == connection_id]

    def streamed_tables(self, connection_id: str) -> list[VectorTable]:
        """Those whose changes come through the connection's own slot."""
        return [t for t in self.tables_of(connection_id) if t.source is None]


@dataclass(frozen=True, slots=True)
class Task:
    """A durable unit of work. `params`: see cdc.jobs; `progress`: next key, lowest stamp, rows done, estimate, rate."""

    id: str
    task_type: TaskType
    target_id: str
    generation: int
    status: TaskStatus
    params: Mapping[str, Any] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)
    attempts: int = 0
    max_attempts: int = 3
    last_error: str | None = None
    created_at: str = ""
    updated_at: str = ""


@dataclass(frozen=True, slots=True)
class SourceProgress:
    """What a connection's reader has made durable. `lsn` is stored before it is confirmed to Postgres, so a slot that
    stands above it shows a gap (the start gate). `log_identity`: the log that these records went to."""

    epoch: int = 0
    lsn: int = 0
    system_identifier: str = ""
    timeline: int = 0
    log_identity: str = ""
    slot_created_lsn: int = 0


@dataclass(frozen=True, slots=True)
class BridgeProgress:
    """How far a vector table's `source` topic was read, over all partitions.

    `starts`: where reading began, by partition. `sequence`: the highest last commit that a streamed change named.
    `snapshots`: those that a partition holds, as (offset of the first row, LSN), in offset order.
    """

    starts: Mapping[int, int] = field(default_factory=dict)
    sequence: int = 0
    snapshots: Mapping[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)

    @property
    def snapshot_lsns(self) -> tuple[int, ...]:
        return tuple(sorted({lsn for found in self.snapshots.values() for _, lsn in found}))
