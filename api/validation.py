"""A requested vector table + what the source says of itself -> a VectorTable that will work, or DefinitionError.

Nothing is created here. Used by `plan` (the definitions file), and by POST and PUT of /v1/vector-tables.
"""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Iterable, Sequence

from api.partitions import check_partitions
from api.ports import Models, Source
from api.specs import wanted
from walvec.contracts.errors import DefinitionError, NotFound, SourceTableDenied
from walvec.contracts.sources import SourceTable, TableColumn
from walvec.definitions.document import ColumnSpec, VectorTableSpec
from walvec.definitions.model import (
    FIRST_VIEW_SCHEMA,
    Column,
    Connection,
    EmbeddingProvider,
    Environment,
    FilterType,
    Generation,
    Mode,
    SourceColumn,
    StoreKind,
    TopicSource,
    VectorTable,
)
from walvec.definitions.naming import storage_name
from walvec.definitions.views import check_view
from walvec.transport.ports import Log

_WITHOUT_TEXT = frozenset({"bytea", "vector", "halfvec", "sparsevec", "tsvector", "tsquery", "bit", "bit varying"})
_FILTERS: dict[str, FilterType] = {
    "smallint": "integer",
    "integer": "integer",
    "bigint": "integer",
    "oid": "integer",
    "real": "float",
    "double precision": "float",
    "numeric": "float",
    "money": "keyword",
    "boolean": "boolean",
    "date": "datetime",
    "timestamp without time zone": "datetime",
    "timestamp with time zone": "datetime",
}
_FITTING: dict[FilterType, tuple[FilterType, ...]] = {
    "integer": ("integer", "float", "keyword"),
    "float": ("float", "integer", "keyword"),
    "boolean": ("boolean", "keyword"),
    "datetime": ("datetime", "keyword"),
    "keyword": ("keyword",),
}
"""What a column of such a type can be compared as."""


def new_id(prefix: str) -> str:
    """`vt_` + 16 hexadecimal digits; the first 8 go into names of slots, topics and storage."""
    return f"{prefix}_{secrets.token_hex(8)}"


async def build_vector_table(
    request: VectorTableSpec,
    connection: Connection,
    provider: EmbeddingProvider,
    source: Source,
    models: Models,
    *,
    others: Iterable[VectorTable] = (),
    default_store: StoreKind = "pgvector",
    existing: VectorTable | None = None,
    preflight: bool = True,
    log: Log | None = None,
    environment: Environment | None = None,
) -> VectorTable:
    """The table as it would be stored: names resolved, key and columns recorded, model checked, preflight passed.

    `existing`: the table that this request describes anew; it keeps its id, and what the request leaves open.
    `environment`: where a new one is made; None: the first one of all.
    `preflight`: ask the source's doctor too, and look into the `source` topic (None: the log has no foreign topics).
    Raises DefinitionError, SourceUnavailable, SourceRejected.
    """
    known_provider(provider.provider, models)
    found = await source.inspect(connection, request.source_table)
    columns = _columns(request, found)
    key = _key(request, found)
    model, dimensions = await _model(request, provider, models, existing)
    store, mode = _place(request, connection, existing, default_store)
    wanted = {c.name for c in columns} | set(key)
    by_name = {c.name: c for c in found.columns}
    active = existing.active if existing else None
    generation = Generation(
        number=active.number if active else 1,
        state="active",
        embedding_model=model,
        embedding_dimensions=dimensions,
        columns=columns,
        key=tuple(_recorded(by_name[name]) for name in key),
        source=tuple(_recorded(c) for c in found.columns if c.name in wanted),
        index=request.index.model_dump(exclude_none=True),
        separator=request.separator,
        keep_embedding_columns=request.keep_embedding_columns,
        ready=active.ready if active else False,
    )
    named = request.primary_key_column
    own_id = existing.id if existing else new_id("vt")
    table = VectorTable(
        id=own_id,
        name=request.name,
        connection_id=connection.id,
        embedding_provider_id=provider.id,
        provider_kind=provider.provider,
        source_schema=found.schema,
        source_table=found.name,
        store=store,
        mode=mode,
        generations=(generation,),
        backfill=request.backfill,
        sync_mode=request.sync_mode,
        primary_key_named=named is not None,
        raw_source_table=request.source_table,
        raw_primary_key=named,
        created_at=existing.created_at if existing else "",
        source=TopicSource(**request.source.model_dump()) if request.source else None,
        environment_id=existing.environment_id if existing else connection.environment_id,
        view_schema=existing.view_schema if existing else environment.view_schema if environment else FIRST_VIEW_SCHEMA,
        storage=existing.storage if existing else storage_name(own_id, request.name),
        unicode_view=existing.unicode_view if existing else True,
        keep_previous=request.keep_previous,
    )
    if table.source is not None:
        await _topic(table, connection, source, log, look=preflight)
    others = list(others)
    check_view(table, generation, others)
    check_partitions(table, found, others, new=existing is None)
    if preflight:
        await check_source(table, connection, source)
    return table


def known_provider(kind: str, models: Models) -> None:
    """Raises DefinitionError for a kind of provider that nobody implements."""
    known = list(models.providers())
    if known and kind not in known:
        raise DefinitionError(f"there is no kind of provider called {kind!r}.", _near(kind, known))


def _near(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 3, 0.5)
    close = close or [k for k in known if k.lower() == name.lower()]
    if close:
        return "Did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "There are: " + ", ".join(sorted(known)[:30]) + "."


def _recorded(column: TableColumn) -> SourceColumn:
    return SourceColumn(
        column.name,
        column.type,
        column.type_oid,
        column.base_type,
        column.codec,
        column.nullable,
        column.user_defined,
    )


def _qualified(found: SourceTable) -> str:
    return f"{found.schema}.{found.name}"


def _columns(request: VectorTableSpec, found: SourceTable) -> tuple[Column, ...]:
    by_name = {c.name: c for c in found.columns}
    columns = []
    for spec in request.columns:
        column = by_name.get(spec.name)
        if column is None:
            raise DefinitionError(
                f"table {_qualified(found)} has no column {spec.name!r}.", _near(spec.name, list(by_name))
            )
        if spec.role == "embedding" and _textless(column):
            raise DefinitionError(
                f"column {spec.name!r} of {_qualified(found)} has type {column.type}, which has no text to embed.",
                "Embed another column, or give this one role metadata.",
            )
        columns.append(
            Column(spec.name, spec.role, spec.ordinal, spec.name_prefix, _filter_type(spec, column), spec.alias)
        )
    return tuple(columns)


def _textless(column: TableColumn) -> bool:
    return column.base_type.rpartition(".")[2].strip('"') in _WITHOUT_TEXT


def _filter_type(spec: ColumnSpec, column: TableColumn) -> FilterType | None:
    if spec.role == "embedding":
        return spec.filter_type
    own = _FILTERS.get(column.base_type, "keyword")
    if spec.filter_type is None:
        return own
    if spec.filter_type not in _FITTING[own]:
        raise DefinitionError(
            f"column {spec.name!r} has type {column.type}, which no filter of type {spec.filter_type} can compare.",
            f"Its filter_type is one of: {', '.join(_FITTING[own])}.",
        )
    return spec.filter_type


def _key(request: VectorTableSpec, found: SourceTable) -> tuple[str, ...]:
    """The key columns in index order."""
    named = request.primary_key_column
    usable = [found.key, *found.unique_keys.values()] if found.key else list(found.unique_keys.values())
    if named is None:
        if found.key:
            return found.key
        raise DefinitionError(
            f"table {_qualified(found)} has no primary key.",
            f"ALTER TABLE {_qualified(found)} ADD PRIMARY KEY (…);"
            + (f" or name a unique key: {_spelled(usable)}." if usable else ""),
        )
    names = [named] if isinstance(named, str) else list(named)
    known = [c.name for c in found.columns]
    for name in names:
        if name not in known:
            raise DefinitionError(f"table {_qualified(found)} has no key column {name!r}.", _near(name, known))
    for columns in usable:
        if set(columns) == set(names):
            return columns
    raise DefinitionError(
        f"({', '.join(names)}) is not a key of {_qualified(found)}: it needs a unique index over NOT NULL columns, "
        "neither partial nor deferrable.",
        f"Its keys are {_spelled(usable)}; primary_key_column takes one name or a list of them."
        if usable
        else f"ALTER TABLE {_qualified(found)} ADD PRIMARY KEY (…);",
    )


def _spelled(keys: Iterable[Sequence[str]]) -> str:
    return ", ".join("(" + ", ".join(k) + ")" for k in keys)


async def _model(
    request: VectorTableSpec, provider: EmbeddingProvider, models: Models, existing: VectorTable | None
) -> tuple[str, int]:
    former = wanted(existing) if existing is not None else None
    if existing is not None and former is not None and existing.provider_of(former) != provider.id:
        former = None
    default, _ = models.defaults(provider.provider)
    model = request.embedding_model or (former.embedding_model if former else provider.default_model or default)
    if model is None:
        raise DefinitionError(
            f"vector table {request.name!r} names no embedding_model, and provider {provider.name!r} has no default.",
            "Add embedding_model to the table, or default_model to the provider.",
        )
    dimensions = request.embedding_dimensions
    if dimensions is None and former is not None and former.embedding_model == model:
        dimensions = former.embedding_dimensions
    return model, await models.check(provider, model, dimensions)


def _place(
    request: VectorTableSpec, connection: Connection, existing: VectorTable | None, default_store: StoreKind
) -> tuple[StoreKind, Mode]:
    mode = request.mode or (existing.mode if existing else connection.mode)
    fallback: StoreKind = "pgvector" if mode == "platform" else default_store
    store = request.store or (existing.store if existing else fallback)
    if mode == "platform" and store != "pgvector":
        raise DefinitionError(
            f"vector table {request.name!r}: mode platform keeps vectors in the source database, so its store is "
            "pgvector.",
            "Remove `store`, or choose mode managed.",
        )
    return store, mode


_LOOK = 50
"""Records at the end of each partition of a `source` topic that are looked at."""


async def _topic(table: VectorTable, connection: Connection, source: Source, log: Log | None, *, look: bool) -> None:
    assert table.source is not None
    name = table.source.kafka_topic
    if log is None:
        raise DefinitionError(
            f"vector table {table.name!r} reads topic {name!r}, and the log is not Kafka, or the organization not the "
            "default one, which alone reads topics of others.",
            "Set WALVEC_LOG__KIND=kafka and WALVEC_KAFKA__BOOTSTRAP_SERVERS to the brokers that Debezium writes to.",
        )
    if not look:
        return
    try:
        ends = await log.end_offsets(name)
    except NotFound as e:
        raise DefinitionError(
            f"vector table {table.name!r}: there is no topic {name!r}.",
            "Debezium names it <topic.prefix>.<schema>.<table> and makes it with the first record; start the connector "
            "first, or make the topic.",
        ) from e
    records = {p: [r async for r in log.read(name, p, max(0, end - _LOOK), end)] for p, end in ends.items()}
    found = await source.judge_topic(connection, table, records)
    if not found.ok:
        raise DefinitionError(found.detail, found.cure)


async def check_source(table: VectorTable, connection: Connection, source: Source) -> None:
    """The source's doctor. Raises DefinitionError with every check that fails, and its cure; SourceTableDenied, if one
    of them is that the table may not be read."""
    failed = [c for c in await source.doctor(connection, [table]) if not c.ok]
    if failed:
        kind = SourceTableDenied if any(c.name == "select_right" for c in failed) else DefinitionError
        raise kind(
            f"connection {connection.name!r} cannot feed vector table {table.name!r}:"
            + "".join(f"\n  {c.name}: {c.detail}{f' Cure: {c.cure}' if c.cure else ''}" for c in failed),
            "" if any(c.cure for c in failed) else "Run `walvec doctor` and mend what it names.",
        )
