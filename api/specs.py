"""A stored vector table as it would stand in a definitions file. Pure."""

from __future__ import annotations

from dataclasses import asdict

from walvec.definitions.document import ColumnSpec, IndexSpec, SourceSpec, VectorTableSpec
from walvec.definitions.model import Connection, EmbeddingProvider, Generation, Snapshot, VectorTable


def wanted(table: VectorTable) -> Generation:
    """The generation that the definition asks for: the one being built, if there is one."""
    return table.building or table.active


def wanted_provider(table: VectorTable, snapshot: Snapshot) -> EmbeddingProvider:
    return snapshot.providers[table.provider_of(wanted(table))]


def exact_name(table: VectorTable) -> str:
    """The resolved source table, quoted, so that it is found again exactly."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in (table.source_schema, table.source_table))


def spec_of(
    table: VectorTable,
    generation: Generation,
    connection: Connection,
    provider: EmbeddingProvider,
    *,
    source_table: str | None = None,
) -> VectorTableSpec:
    """Every field is given. `source_table`: as it is to be written, else exact."""
    return VectorTableSpec(
        name=table.name,
        connection=connection.name,
        embedding_provider=provider.name,
        source_table=source_table or exact_name(table),
        primary_key_column=table.raw_primary_key,
        columns=tuple(
            ColumnSpec(
                name=c.name,
                role=c.role,
                ordinal=c.ordinal,
                name_prefix=c.name_prefix,
                filter_type=c.filter_type,
                alias=c.alias,
            )
            for c in generation.columns
        ),
        embedding_model=generation.embedding_model,
        embedding_dimensions=generation.embedding_dimensions,
        store=table.store,
        mode=table.mode,
        sync_mode=table.sync_mode,
        backfill=table.backfill,
        separator=generation.separator,
        index=IndexSpec.model_validate(dict(generation.index)),
        source=SourceSpec.model_validate(asdict(table.source)) if table.source else None,
        keep_previous=table.keep_previous,
        keep_embedding_columns=generation.keep_embedding_columns,
    )
