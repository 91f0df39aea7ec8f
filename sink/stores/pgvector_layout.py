"""A generation -> its storage in Postgres: physical columns, types and DDL. Pure.

`vt_<id>_<slug>_g<n>` has one row per key and chunk. The row with chunk 0 is the key's head: guard, claims and
tombstones look at it alone, the other chunks follow it in the same transaction. Next: `pgvector_apply.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from walvec.contracts.errors import DefinitionError
from walvec.contracts.values import Codec, codec
from walvec.definitions.model import Generation, SourceColumn, VectorTable
from walvec.definitions.views import STATE_TABLE, view_columns

MAX_VECTOR_INDEX = 2000
MAX_HALFVEC_INDEX = 4000
MAX_DIMENSIONS = 16000
FIRST_HALFVEC_VERSION = (0, 7)
FIRST_ITERATIVE_VERSION = (0, 8)


def ident(name: str) -> str:
    """A quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A quoted SQL string (standard_conforming_strings)."""
    return "'" + text.replace("'", "''") + "'"


@dataclass(frozen=True, slots=True)
class StoredColumn:
    """`type`: SQL type in the store; `codec` turns its text into JSON and back; `base_type`: for filters."""

    name: str
    physical: str
    type: str
    base_type: str
    codec: Codec
    key_codec: Codec | None = None
    filter_type: str | None = None
    alias: str | None = None
    filtered: bool = True
    """Whether anybody filters by it: a value that is only given back has no index."""


@dataclass(frozen=True, slots=True)
class Layout:
    schema: str
    relation: str
    dimensions: int
    half: bool
    keys: tuple[StoredColumn, ...]
    metadata: tuple[StoredColumn, ...]
    version: tuple[int, int] = (0, 8)

    @property
    def table(self) -> str:
        return f"{ident(self.schema)}.{ident(self.relation)}"

    @property
    def state(self) -> str:
        return f"{ident(self.schema)}.{ident(STATE_TABLE)}"

    @property
    def staging(self) -> str:
        """Session-temporary; the column count is in the name, so that a changed definition gets a new one."""
        return f"pg_temp.{ident(f'in_{self.relation[:40]}_{self.dimensions}_{len(self.keys)}_{len(self.metadata)}')}"

    @property
    def vector_type(self) -> str:
        return f"{'halfvec' if self.half else 'vector'}({self.dimensions})"

    @property
    def operator_class(self) -> str:
        return "halfvec_cosine_ops" if self.half else "vector_cosine_ops"

    @property
    def ann_possible(self) -> bool:
        return self.dimensions <= (MAX_HALFVEC_INDEX if self.half else MAX_VECTOR_INDEX)

    @property
    def index_head(self) -> str:
        """Head of its indexes' names: unique within the schema, short enough for any suffix."""
        return self.relation

    def create_table(self) -> list[str]:
        own = "".join(f", {c.physical} {c.type}" for c in (*self.keys, *self.metadata))
        head = ident(self.relation + "_hash")
        dead = ident(self.relation + "_dead")
        return [
            # fillfactor: room on the page for the next version of a row, so that a metadata change is a HOT update
            f"CREATE TABLE IF NOT EXISTS {self.table} (key_id uuid NOT NULL, chunk integer NOT NULL, "
            "chunks integer NOT NULL, epoch integer NOT NULL, lsn pg_lsn NOT NULL, ordinal bigint NOT NULL, "
            "live boolean NOT NULL, key bytea NOT NULL, hash text, embedded_text text, "
            f"embedding {self.vector_type}{own}, PRIMARY KEY (key_id, chunk)) WITH (fillfactor = 90)",
            # random floats do not compress: do not try
            f"ALTER TABLE {self.table} ALTER COLUMN embedding SET STORAGE EXTERNAL",
            f"CREATE INDEX IF NOT EXISTS {head} ON {self.table} (hash)",
            # never the position: a change that moves it alone must stay a HOT update, without any index work
            f"CREATE INDEX IF NOT EXISTS {dead} ON {self.table} (key_id) WHERE NOT live",
        ]

    def create_staging(self) -> str:
        own = "".join(f", {c.physical} text" for c in (*self.keys, *self.metadata))
        return (
            f"CREATE TEMP TABLE IF NOT EXISTS {self.staging.removeprefix('pg_temp.')} (n integer, key_id uuid, "
            "chunk integer, chunks integer, kind smallint, epoch integer, lsn pg_lsn, ordinal bigint, key bytea, "
            f"hash text, embedded_text text, embedding {self.vector_type}{own}) ON COMMIT DELETE ROWS"
        )

    def view(self, view_name: str, generation: Generation) -> tuple[str, str]:
        """(qualified name, SELECT) of the view."""
        keys, metadata = view_columns(generation)
        parts = [f"t.{c.physical} AS {ident(c.name)}" for c in keys]
        parts += ["t.chunk", "t.embedded_text", "t.embedding"]
        parts += [f"t.{c.physical} AS {ident(c.name)}" for c in metadata]
        parts.append("t.lsn AS source_lsn")
        name = f"{ident(self.schema)}.{ident(view_name)}"
        return name, f"SELECT {', '.join(parts)} FROM {self.table} t WHERE t.live"

    def column(self, field: str) -> StoredColumn:
        """The column that a filter means, by name or alias; metadata before key columns."""
        for column in (*self.metadata, *self.keys):
            if field in (column.name, column.alias):
                return column
        known = ", ".join(sorted({c.name for c in (*self.metadata, *self.keys)}))
        raise DefinitionError(
            f"There is no metadata column {field!r} to filter by.",
            f"Filter by one of: {known}; or add the column with role metadata.",
        )


def create_state(schema: str) -> list[str]:
    """The schema and its small table of storages: one row per generation, which is also its lock."""
    return [
        f"CREATE SCHEMA IF NOT EXISTS {ident(schema)}",
        f"CREATE TABLE IF NOT EXISTS {ident(schema)}.{ident(STATE_TABLE)} (table_id text NOT NULL, "
        "generation integer NOT NULL, relation text NOT NULL, view_name text NOT NULL, dimensions integer NOT NULL, "
        "shown text, chunked boolean NOT NULL DEFAULT false, "
        "floor_epoch integer NOT NULL DEFAULT 0, floor_lsn pg_lsn NOT NULL DEFAULT '0/0', "
        "floor_ordinal bigint NOT NULL DEFAULT 0, horizon_epoch integer NOT NULL DEFAULT 0, "
        "horizon_lsn pg_lsn NOT NULL DEFAULT '0/0', horizon_ordinal bigint NOT NULL DEFAULT 0, "
        "PRIMARY KEY (table_id, generation))",
    ]


_LIMITED = re.compile(
    r"(?:(?P<plain>numeric|character varying|bit varying)\([\d,-]+\)|(?P<padded>character)\(\d+\)"
    r"|(?P<clock>time|timestamp)\(\d\)(?P<zone> with.*? zone)|(?P<interval>interval)[ (][a-z \d()]+)(?P<array>\[\])?"
)


def unlimited(type_name: str) -> str:
    """Without length, precision or scale: the source may widen a column at any time, nothing may be cut or rounded."""
    found = _LIMITED.fullmatch(type_name)
    if found is None:
        return type_name
    name = found["plain"] or found["interval"] or ("bpchar" if found["padded"] else f"{found['clock']}{found['zone']}")
    return name + (found["array"] or "")


def wanted_types(generation: Generation, *, own_database: bool) -> dict[str, str | None]:
    """Physical column -> the type to keep, None where only its text can be (another database lacks user types)."""

    def wanted(column: SourceColumn) -> str | None:
        return unlimited(column.type) if own_database or not column.user_defined else None

    types = {f"k{i}": wanted(k) for i, k in enumerate(generation.key)}
    for i, c in enumerate(generation.metadata_columns):
        types[f"m{i}"] = wanted(generation.source_column(c.name))
    return types


def relation_name(table: VectorTable, generation: int) -> str:
    return f"{table.storage_name}_g{generation}"


def layout_of(
    schema: str, relation: str, generation: Generation, types: Mapping[str, str], version: tuple[int, int]
) -> Layout:
    """`types`: physical column -> SQL type as it is (or will be) in the store."""
    alias = {c.name: c.alias for c in generation.columns if c.alias}

    def stored(
        physical: str, source: SourceColumn, *, key: bool, filter_type: str | None = None, filtered: bool = True
    ) -> StoredColumn:
        key_codec = dict(generation.key_codecs)[source.name] if key else None
        return StoredColumn(
            source.name, physical, types[physical], source.base_type, codec(source.codec), key_codec, filter_type,
            alias.get(source.name), filtered,
        )  # fmt: skip

    keys = tuple(stored(f"k{i}", k, key=True) for i, k in enumerate(generation.key))
    metadata = tuple(
        stored(
            f"m{i}",
            generation.source_column(c.name),
            key=False,
            filter_type=c.filter_type,
            filtered=c.role == "metadata",
        )
        for i, c in enumerate(generation.metadata_columns)
    )
    dimensions = generation.embedding_dimensions
    return Layout(schema, relation, dimensions, dimensions > MAX_VECTOR_INDEX, keys, metadata, version)
