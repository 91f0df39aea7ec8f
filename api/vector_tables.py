"""`/v1/vector-tables`: create, list, show, change, delete, and the source table's schema."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter

from api import shapes
from api.changing import change
from api.pages import made, page
from api.paging import Cursor, Limit
from api.preconditions import IfMatch, tag
from api.problems import Problem
from api.reconcile import create_vector_table
from api.removals import remove_vector_table
from api.responses import Json
from api.schemas import ChangedVectorTable, NewVectorTable
from api.services import Services, Use, find_connection, find_provider, find_table
from api.specs import exact_name
from api.status import backfill_progress, counts, state_of
from api.validation import build_vector_table
from walvec.contracts.errors import Conflict, SourceTableDenied
from walvec.definitions.model import Snapshot, SyncStatus, VectorTable

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
        environment=services.environment,
    )
    try:
        await create_vector_table(table, services.remover)
    except Conflict as e:
        raise Problem(409, "vector_table_conflict", e.message, e.cure) from e
    return await answer(services, table.id, status_code=201)


@router.get("/vector-tables")
async def listed(services: Use, limit: Limit = 20, cursor: Cursor = None) -> Json:
    snapshot = await services.snapshot()
    found = snapshot.vector_tables.values()
    some, pagination = page(found, limit, cursor, made)
    return Json({"data": await shown(services, some, snapshot), "pagination": pagination})


@router.get("/vector-tables/{table_id}")
async def one(table_id: str, services: Use) -> Json:
    return await answer(services, table_id)


@router.put("/vector-tables/{table_id}")
async def put(table_id: str, body: ChangedVectorTable, services: Use, if_match: IfMatch = None) -> Json:
    """Other columns, another model, other dimensions or another provider build a new generation from a backfill and the
    live stream, while the old one is kept up to date and queried; then they swap. Anything else changes in place."""
    table = await services.table(table_id)
    state = await change(services, table.id, body, if_match)
    return await answer(services, table.id, state=state)


@router.delete("/vector-tables/{table_id}", status_code=204)
async def delete(table_id: str, services: Use) -> None:
    """Record, storage, topics and its place in the publication; with the last one of a connection, slot and
    publication. What cannot be reached now is removed later, and listed as a task of type `removal` meanwhile. The
    source's rows stay untouched."""
    await remove_vector_table(await services.table(table_id), services.remover)


@router.get("/vector-tables/{table_id}/schema")
async def schema(table_id: str, services: Use) -> Json:
    """Columns of the source table under their native types."""
    snapshot = await services.snapshot()
    table = find_table(snapshot, table_id)
    connection = snapshot.connections[table.connection_id]
    found = await services.source.inspect(connection, exact_name(table))
    if not found.readable:
        raise SourceTableDenied(f"{found.schema}.{found.name} may not be read by the user of {connection.name!r}.")
    return Json({"columns": [{"name": c.name, "type": c.type, "nullable": c.nullable} for c in found.columns]})


async def answer(services: Services, ref: str, *, status_code: int = 200, state: SyncStatus | None = None) -> Json:
    """The whole object with its ETag. `state`: what an action has just made of it, however fast the roles are."""
    snapshot = await services.snapshot()
    table = find_table(snapshot, ref)
    found = (await shown(services, [table], snapshot))[0]
    if state is not None:
        found["sync_status"] = state
    return Json(found, status_code=status_code, headers=tag(table))


async def shown(services: Services, tables: Sequence[VectorTable], snapshot: Snapshot) -> list[dict[str, Any]]:
    async def show(table: VectorTable) -> dict[str, Any]:
        tasks = await services.control.tasks.recent(table.id, 20)
        total, synced = await counts(services, table, snapshot)
        progress = backfill_progress(tasks, table.building.number) if table.building else None
        return shapes.vector_table(table, services.organization.id, state_of(table, tasks), total, synced, progress)

    return list(await asyncio.gather(*(show(t) for t in tables)))
