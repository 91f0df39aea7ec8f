"""Bodies of requests. What their schema admits is accepted, and nothing else: unknown fields are refused with their
name, and no value is bent into another type ("5" is no number, 1 is no true).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StrictBool,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypedDict

from walvec.definitions.document import ColumnSpec, IndexSpec, SourceSpec, VectorTableSpec
from walvec.definitions.model import SyncStatus


def _text(value: Any) -> Any:
    plain = value.get_secret_value() if isinstance(value, SecretStr) else value
    try:
        plain.encode()
    except UnicodeEncodeError as e:
        raise ValueError("is not whole Unicode text") from e
    if "\x00" in plain:
        raise ValueError("must not contain the character NUL")
    return value


def _number(value: Any) -> Any:
    """JSON's numbers alone; 10.0 is an integer there."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number")
    return value


_NO_NUL = Field(json_schema_extra={"pattern": "^[^\\u0000]*$"})
Text = Annotated[str, AfterValidator(_text), _NO_NUL]
Secret = Annotated[SecretStr, AfterValidator(_text), _NO_NUL]
Word = Annotated[Text, Field(min_length=1, max_length=1000)]
Name = Annotated[Text, Field(min_length=1, max_length=100)]


def _unique(value: list[str]) -> list[str]:
    if len(set(value)) < len(value):
        raise ValueError("names each column once")
    return value


NUMBER = BeforeValidator(_number)
"""Stands last, so that the limits before it show in the schema."""
Int = Annotated[int, NUMBER]
Float = Annotated[float, Field(allow_inf_nan=False), NUMBER]
Bool = StrictBool


def _told_as(words: str) -> WrapValidator:
    """One failure in these words, where pydantic tells one of each kind that the value is not."""

    def told(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError as e:
            raise ValueError(words) from e

    return WrapValidator(told)


Lsn = Annotated[
    str,
    Field(pattern=r"^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$"),
    _told_as("must be an LSN as pg_current_wal_lsn() tells it, for example 0/16B3748"),
]
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False), NUMBER]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)


FreeForm = dict[str, Any]


class Shown(Body):
    """What a GET shows and a PUT does not change: its whole answer may be sent back. Next: `readonly`."""

    id: Text | None = None
    """Only as it is."""
    org_id: Text | None = None
    """Only as it is."""
    environment_id: Text | None = None
    """Only as it is."""
    created_at: Text | None = None
    """Read-only: it changes nothing."""


class Credentials(Body):
    """`url` alone, or its parts."""

    model_config = Body.model_config | ConfigDict(
        json_schema_extra={
            "anyOf": [
                {
                    "required": ["url"],
                    "properties": {
                        "url": {"type": "string"},
                        **{n: {"type": "null"} for n in ("host", "port", "database", "user", "password", "ssl_mode")},
                    },
                },
                {
                    "required": ["host", "database"],
                    "properties": {"url": {"type": "null"}, "host": {"type": "string"}, "database": {"type": "string"}},
                },
            ]
        }
    )

    url: Secret | None = Field(None, examples=["postgresql://embedd_reader:your_password@your-db-host.com/myapp"])
    """A connection string."""
    host: Text | None = None
    """Name or address of the server."""
    port: Annotated[int, Field(ge=1, le=65535), NUMBER] | None = None
    """Default: 5432."""
    database: Text | None = None
    """Name of the database."""
    user: Text | None = None
    """Who connects."""
    password: Secret | None = None
    """Stored encrypted, and never shown again."""
    ssl_mode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] | None = None
    """libpq's sslmode. Default: prefer."""


class NewConnection(Body):
    name: Name
    """Unique in its environment."""
    mode: Literal["managed", "platform"]
    """managed: vectors live in the server's store. platform: in this database."""
    credentials: Credentials
    on_slot_loss: Literal["rebackfill", "halt"] = "rebackfill"
    """When the server lost walvec's place in its write-ahead log: read the tables again, or wait for a person."""


class ChangedCredentials(Body):
    """`url` alone, or the parts that change. A password that is not given stays, unless host, port or user change."""

    url: Secret | None = Field(None, examples=["postgresql://embedd_reader:your_password@your-db-host.com/myapp"])
    """A connection string."""
    host: Text | None = None
    """Name or address of the server."""
    port: Annotated[int, Field(ge=1, le=65535), NUMBER] | None = None
    """Of the server."""
    database: Text | None = None
    """Name of the database."""
    user: Text | None = None
    """Who connects."""
    password: Secret | None = None
    """Stored encrypted, and never shown again."""
    ssl_mode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] | None = None
    """libpq's sslmode."""


class ChangedConnection(Shown):
    """What is left out (or null) stays as it is; the whole answer of a GET may be sent back."""

    name: Name | None = None
    """Unique in its environment."""
    mode: Literal["managed", "platform"] | None = None
    """Of a connection that no vector table uses."""
    credentials: ChangedCredentials | None = None
    """Tested at once; they must lead to the same database while vector tables use the connection."""
    on_slot_loss: Literal["rebackfill", "halt"] | None = None
    """When the server lost walvec's place in its write-ahead log: read the tables again, or wait for a person."""
    provider: Text | None = None
    """Only as it is."""
    slot: Text | None = None
    """Only as it is."""
    status: Text | None = None
    """Read-only: it changes nothing, and neither do the next ones."""
    status_message: Text | None = None
    """Read-only."""
    last_tested_at: Text | None = None
    """Read-only."""
    source: FreeForm | None = None
    """Read-only."""


class Limits(TypedDict, total=False):
    """Of one request to the provider; what is left out is the kind's own."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    max_items: Annotated[int, Field(ge=1, le=1_000_000, description="Texts."), NUMBER]
    max_tokens: Annotated[int, Field(ge=0, le=1_000_000_000, description="Tokens; 0: no limit."), NUMBER]
    max_bytes: Annotated[int, Field(ge=0, le=1_000_000_000, description="Bytes of text; 0: no limit."), NUMBER]
    max_in_flight: Annotated[int, Field(ge=1, le=1000, description="Requests at the same time."), NUMBER]
    max_text_tokens: Annotated[
        int, Field(ge=0, le=1_000_000_000, description="A longer text is cut; 0: no limit."), NUMBER
    ]


class NewProvider(Body):
    name: Name
    """Unique in its environment."""
    provider: Word = Field(examples=["openai"])
    """Its kind; GET /v1/embedding-providers/models lists them."""
    api_key: Secret | None = None
    """Stored encrypted, and never shown again."""
    base_url: (
        Annotated[str, AfterValidator(_text), Field(max_length=2000, pattern=r"^https?://[^/\x00][^\x00]*$")] | None
    ) = None
    """Another address than the vendor's own."""
    default_model: Word | None = None
    """Model of vector tables that name none."""
    limits: Limits = Field(default_factory=lambda: Limits())
    """Of one request to the provider."""


class ChangedProvider(Shown):
    """What is left out (or null) stays as it is, the key too; the whole answer of a GET may be sent back."""

    name: Name | None = None
    """Unique in its environment."""
    provider: Word | None = Field(None, examples=["openai"])
    """Its kind; of a provider that no vector table uses."""
    api_key: Secret | None = None
    """Another key: running roles take it at once. Stored encrypted, and never shown again."""
    base_url: (
        Annotated[str, AfterValidator(_text), Field(max_length=2000, pattern=r"^https?://[^/\x00][^\x00]*$")] | None
    ) = None
    """Another address than the vendor's own. The key must be given with another one."""
    default_model: Word | None = None
    """Model of vector tables that name none."""
    limits: Limits | None = None
    """Of one request to the provider; all of them."""
    has_api_key: Bool | None = None
    """Only as it is: `api_key` changes it."""
    models: list[FreeForm] | None = None
    """Read-only: it changes nothing."""


class NewColumn(ColumnSpec):
    model_config = ConfigDict(coerce_numbers_to_str=False, use_attribute_docstrings=True)

    name: Word
    """Name in the source table, verbatim."""
    role: Literal["embedding", "metadata"]
    """embedding: part of the text that is embedded. metadata: stored beside the vector, to filter by."""
    ordinal: Annotated[int, Field(ge=-(2**31), lt=2**31), NUMBER] | None = None
    """Place in the text; columns without one come last."""
    name_prefix: Annotated[Text, Field(max_length=1000)] = Field("", examples=["title: "])
    """Put before the value in the text."""
    filter_type: Literal["keyword", "integer", "float", "boolean", "datetime"] | None = None
    """How a metadata column is compared in filters. Default: by its type."""
    alias: Word | None = None
    """Its name in the view, where its own collides with one of walvec's."""


class NewIndex(IndexSpec):
    model_config = ConfigDict(coerce_numbers_to_str=False, use_attribute_docstrings=True)

    kind: Literal["hnsw", "none"] = "hnsw"
    """none: exact search."""
    m: Annotated[int, Field(ge=2, le=100), NUMBER] | None = None
    """pgvector's own."""
    ef_construction: Annotated[int, Field(ge=4, le=1000), NUMBER] | None = None
    """pgvector's own; at least twice `m`."""


class NewSource(SourceSpec):
    model_config = ConfigDict(coerce_numbers_to_str=False, use_attribute_docstrings=True)

    kafka_topic: str = Field(min_length=1, max_length=249, pattern=r"^[a-zA-Z0-9._-]+$")
    """Topic that the connector writes."""
    unavailable_value: Annotated[Text, Field(min_length=1)] = "__debezium_unavailable_value"
    """The connector's placeholder for values that it was not sent."""
    slot: str | None = Field(None, pattern=r"^[a-z0-9_]{1,63}$")
    """The connector's replication slot, which a drain then waits for."""


Columns = Annotated[
    tuple[NewColumn, ...],
    Field(min_length=1, max_length=1600, json_schema_extra={
        "contains": {"type": "object", "properties": {"role": {"const": "embedding"}}, "required": ["role"]}
    }),
]  # fmt: skip


KeyColumns = Annotated[
    Word
    | Annotated[
        list[Word],
        Field(min_length=1, max_length=32, json_schema_extra={"uniqueItems": True}),
        AfterValidator(_unique),
    ],
    _told_as("must be the name of a column, or a list of 1 to 32 different ones"),
]
Model = Annotated[Text, Field(min_length=1, max_length=200)]
Dimensions = Annotated[int, Field(ge=1, le=16_000), NUMBER]
Kept = Annotated[int, Field(ge=0, le=2_592_000), NUMBER]


class NewVectorTable(VectorTableSpec):
    """A vector table of the definitions file, with ids for names, and with the documented defaults."""

    model_config = ConfigDict(coerce_numbers_to_str=False, use_attribute_docstrings=True)

    connection: SkipJsonSchema[str] = ""
    embedding_provider: SkipJsonSchema[str] = ""
    name: Name
    """Unique in its environment; also names the view, where punctuation and spaces become `_`."""
    connection_id: Word
    """The source database; its last test went well."""
    embedding_provider_id: Word
    """Who makes the vectors."""
    source_table: Annotated[Text, Field(min_length=1, max_length=200)] = Field(examples=["public.products"])
    """A quoted name is exact; an unquoted one is looked for as it stands, then in lower case."""
    primary_key_column: KeyColumns | None = None
    """Column or columns of a unique key. Default: the table's primary key."""
    columns: Columns
    """At least one with role embedding; a column may stand once in each role."""
    embedding_model: Model | None = None
    """Default: the provider's."""
    embedding_dimensions: Dimensions | None = None
    """Default: the model's."""
    store: Literal["pgvector", "qdrant"] | None = None
    """Where vectors live. Default: the server's."""
    mode: Literal["managed", "platform"] | None = None
    """Default: the connection's."""
    sync_mode: Literal["batch", "cdc"] = "batch"
    """Accepted as documented; both follow the write-ahead log."""
    backfill: Literal["auto", "manual"] = "manual"
    """auto: the first backfill begins by itself."""
    separator: Annotated[Text, Field(max_length=100)] = "\n"
    """Stands between the embedding columns in the text."""
    index: NewIndex = Field(default_factory=lambda: NewIndex.model_validate({}))
    """Of the vectors."""
    keep_previous: Kept = 3600
    """Seconds that a generation is kept after a swap, for a rollback."""
    keep_embedding_columns: Bool = True
    """Whether the values of embedding columns are stored too, so that `metadata` of query results holds them."""
    source: NewSource | None = None
    """A topic of an existing Debezium, instead of the connection's own slot."""

    @model_validator(mode="before")
    @classmethod
    def _ids(cls, value: Any) -> Any:
        for name in ("connection", "embedding_provider"):
            if isinstance(value, dict) and name in value:
                raise ValueError(f"give `{name}_id` instead of `{name}`")
        return value


class ChangedVectorTable(Shown):
    """What is left out (or null) stays as it is; the whole answer of a GET may be sent back."""

    name: Name | None = None
    """Renames the view too; topics and storage keep their names."""
    columns: Columns | None = None
    """Other columns, prefixes or an other order of the text build a new generation."""
    embedding_model: Model | None = None
    """Builds a new generation."""
    embedding_dimensions: Dimensions | None = None
    """Builds a new generation. Left out with another model or provider: the model's own."""
    embedding_provider_id: Word | None = None
    """Builds a new generation."""
    separator: Annotated[Text, Field(max_length=100)] | None = None
    """Builds a new generation."""
    index: NewIndex | None = None
    """Built anew in place."""
    keep_previous: Kept | None = None
    """Seconds that a generation is kept after a swap, for a rollback."""
    sync_mode: Literal["batch", "cdc"] | None = None
    """Accepted as documented; both follow the write-ahead log."""
    backfill: Literal["auto", "manual"] | None = None
    """Whether a first backfill begins by itself."""
    keep_embedding_columns: Bool | None = None
    """Other values beside the vectors: builds a new generation, which takes over the vectors that there are."""
    source: NewSource | None = None
    """Of a vector table that has one: `unavailable_value` and `slot`; the topic only as it is."""
    connection_id: Word | None = None
    """Only as it is: it cannot be changed, and neither can the next ones."""
    source_table: Annotated[Text, Field(min_length=1, max_length=200)] | None = None
    """Only as it is."""
    primary_key_column: KeyColumns | None = None
    """Only as it is."""
    mode: Literal["managed", "platform"] | None = None
    """Only as it is."""
    store: Literal["pgvector", "qdrant"] | None = None
    """Only as it is."""
    qdrant_collection: Text | None = None
    """Only as it is."""
    platform_vector_ref: Text | None = None
    """Only as it is: `name` changes it."""
    view: Text | None = None
    """Only as it is: `name` changes it."""
    sync_status: SyncStatus | None = None
    """Read-only: it changes nothing, and neither do the next ones."""
    generation: Int | None = None
    """Read-only."""
    building_generation: Int | None = None
    """Read-only."""
    active: FreeForm | None = None
    """Read-only."""
    generations: FreeForm | None = None
    """Read-only."""
    total_rows: Int | None = None
    """Read-only."""
    synced_rows: Int | None = None
    """Read-only."""
    updated_at: Text | None = None
    """Read-only."""


class Backfill(Body):
    sweep: Bool | None = None
    """Delete what the source does not have. Default: whenever the table was in the store before."""


class Query(Body):
    """`query` or `vector`, one of them."""

    model_config = Body.model_config | ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["query"], "properties": {"query": {"type": "string"}, "vector": {"type": "null"}}},
                {"required": ["vector"], "properties": {"vector": {"type": "array"}, "query": {"type": "null"}}},
            ]
        }
    )

    query: Annotated[Text, Field(min_length=1)] | None = Field(None, examples=["something warm for hiking"])
    """What is looked for, in words."""
    vector: Annotated[list[Float], Field(min_length=1, max_length=16_000)] | None = None
    """What is looked for, as the vector table's model embeds it."""
    mode: Literal["vector"] = "vector"
    """What results are ranked by: similarity."""
    limit: Annotated[int, Field(ge=1, le=100), NUMBER] = 10
    """Results at most."""
    min_similarity_score: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NUMBER] | None = None
    """Worse results are left out."""
    filters: dict[str, Any] | None = Field(None, examples=[{"in_stock": {"eq": True}, "price": {"lte": 150}}])
    """By metadata column: a value, or operators (eq ne gt gte lt lte in nin exists); `$or`: a list of such objects."""
    cursor: Annotated[Text, Field(min_length=1, max_length=200_000)] | None = None
    """`next_cursor` of the page before, with everything else as it was there; `limit` and `include` may differ."""
    include: Annotated[tuple[Literal["embedded_text", "vector"], ...], Field(max_length=2)] = ("embedded_text",)
    """What results hold beside the documented fields."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.query is None) == (self.vector is None):
            raise ValueError("give either `query` or `vector`")
        return self


class Apply(Body):
    document: dict[str, Any]
    """A definitions file as JSON."""
    dry_run: Bool = False
    """Only say what would change."""
    prune: Bool = False
    """Delete what the document does not name."""


class DrainRequest(Body):
    tables: Annotated[list[Word], Field(max_length=1000)] | None = None
    """Ids or names. Default: all."""
    timeout: Seconds = 300
    """Seconds to wait at most."""


class DrainTable(Body):
    lsn: Lsn | None = Field(None, examples=["0/16B3748"])
    """What is to be searchable: pg_current_wal_lsn() of the source after a commit. Default: all committed before."""
    timeout: Seconds = 30
    """Seconds to wait at most."""


class VerifyRequest(Body):
    repair: Bool = False
    """Mend what is found."""
    timeout: Seconds = 300
    """Seconds to take at most."""


class ReplayFrom(Body):
    start: Annotated[
        str,
        Field(alias="from", max_length=20, pattern=r"^(earliest|latest|\d{1,9}(ms|s|m|h|d)|\d{1,18})$"),
    ]
    """A place in the log's changes: earliest, latest, an age (10m) or an offset."""


class Replay(Body):
    ids: Annotated[list[Int], Field(max_length=100_000)] | None = None
    """Dead letters to try again. Default: all open ones."""
