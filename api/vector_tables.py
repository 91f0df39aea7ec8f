"""`/v1/vector-tables`: create, list, show, delete, and the source table's schema."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from api import shapes
from api.pages import page
from api.paging import Cursor, Limit
from api.problems import Problem
from api.reconcile import create_vector_table, remove_vector_table
from api.responses import Json
from api.schemas import NewVectorTable
from api.services import Services, Use, find_connection, find_provider, find_table
from api.status import counts, state_of
from api.validation import build_vector_table
from walvec.contracts.errors import Conflict, SourceRejected
from walvec.definitions.document import ColumnSpec, IndexSpec, SourceSpec, VectorTableSpec
from walvec.definitions.model import Connection, EmbeddingProvider, Snapshot, VectorTable

router = APIRouter(prefix="/v1", tags=["vector tables"])


@router.post("/vector-tables", status_code=201)
async def create(body: NewVectorTable, services: Use) -> Json:
    """Its changes are collected from now on; `backfill: auto` also asks for its first backfill."""
    snapshot = await services.snapshot()
    connection = find_connection(snapshot, body.connection_id)
    provider = find_provider(snapshot, body.embedding_provider_id)
    if connection.status in ("created", "failed"):
        raise Problem(
            422,
            "connection_not_ready",
            f"connection {connection.name!r} is not tested yet.",
            f"POST /v1/connections/{connection.id}/test",
        )
    if any(t.name == body.name for t in snapshot.vector_tables.values()):
        raise Problem(
            409, "vector_table_conflict", f"there is a vector table {body.name!r} already.", "Take another name."
        )
    table = await build_vector_table(
        body,
        connection,
        provider,
        services.source,
        services.models,
        others=snapshot.vector_tables.values(),
        default_store=services.settings.store,
        log=services.shared_log,
    )
    try:
        await create_vector_table(table, services.control, services.store, services.log)
    except Conflict as e:
        raise Problem(409, "vector_table_conflict", e.message, e.cure) from e
    after = await services.snapshot()
    return Json((await shown(services, [find_table(after, table.id)], after))[0], status_code=201)


@router.get("/vector-tables")
async def listed(services: Use, limit: Limit = 20, cursor: Cursor = None) -> Json:
    snapshot = await services.snapshot()
    found = sorted(snapshot.vector_tables.values(), key=lambda t: (t.created_at, t.id))
    some, pagination = page(found, limit, cursor, lambda t: t.id)
    return Json({"data": await shown(services, some, snapshot), "pagination": pagination})


@router.get("/vector-tables/{table_id}")
async def one(table_id: str, services: Use) -> Json:
    snapshot = await services.snapshot()
    return Json((await shown(services, [find_table(snapshot, table_id)], snapshot))[0])


@router.delete("/vector-tables/{table_id}", status_code=204)
async def delete(table_id: str, services: Use) -> None:
    """Record, storage and topics; the source is not touched."""
    table = await services.table(table_id)
    await remove_vector_table(table, services.control, services.store, services.log)


@router.get("/vector-tables/{table_id}/schema")
async def schema(table_id: str, services: Use) -> Json:
    """Columns of the source table under their native types."""
    snapshot = await services.snapshot()
    table = find_table(snapshot, table_id)
    connection = snapshot.connections[table.connection_id]
    try:
        found = await services.source.inspect(connection, exact_name(table))
    except SourceRejected as e:
        raise Problem(403, "source_table_access_denied", e.message, e.cure) from e
    return Json({"columns": [{"name": c.name, "type": c.type, "nullable": c.nullable} for c in found.columns]})


def exact_name(table: VectorTable) -> str:
    """The resolved source table, quoted, so that it is found again exactly."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in (table.source_schema, table.source_table))


def spec_of(table: VectorTable, connection: Connection, provider: EmbeddingProvider) -> VectorTableSpec:
    """The definition as it would stand in a file."""
    active = table.active
    return VectorTableSpec(
        name=table.name,
        connection=connection.name,
        embedding_provider=provider.name,
        source_table=exact_name(table),
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
            for c in active.columns
        ),
        embedding_model=active.embedding_model,
        embedding_dimensions=active.embedding_dimensions,
        store=table.store,
        mode=table.mode,
        sync_mode=table.sync_mode,
        backfill=table.backfill,
        separator=active.separator,
        index=IndexSpec.model_validate(dict(active.index)),
        source=SourceSpec.model_validate(asdict(table.source)) if table.source else None,
    )


async def shown(services: Services, tables: Sequence[VectorTable], snapshot: Snapshot) -> list[dict[str, Any]]:
    async def show(table: VectorTable) -> dict[str, Any]:
        tasks = await services.control.tasks.recent(table.id, 20)
        total, synced = await counts(services, table, snapshot)
        return shapes.vector_table(table, state_of(table, tasks), services.settings.environment, total, synced)

    return list(await asyncio.gather(*(show(t) for t in tables)))
