"""Backfill, pause and resume of a vector table, and `sync/status`."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter

from api import shapes
from api.letters import replay_letters
from api.problems import Problem
from api.responses import Json, iso
from api.schemas import Backfill
from api.services import Services, Use, find_table
from api.status import all_statuses, counts, last_error, state_of
from api.validation import build_vector_table
from api.vector_tables import spec_of
from api.verify import open_letters
from walvec.contracts.errors import Conflict, DefinitionError
from walvec.definitions.model import Task, TaskType, VectorTable

router = APIRouter(prefix="/v1/vector-tables/{table_id}", tags=["sync"])


@router.post("/backfill")
async def backfill(table_id: str, services: Use, body: Backfill | None = None) -> Json:
    """Returns at once. On a table that is in the store already: reconciles (equal texts cost nothing) and sweeps."""
    snapshot = await services.snapshot()
    table = find_table(snapshot, table_id)
    task = await request_backfill(services, table, sweep=body.sweep if body else None)
    total, synced = await counts(services, table, snapshot)
    return Json(
        {
            **shapes.task(task),
            "vector_table_id": table.id,
            "sync_status": "backfilling",
            "total_rows": total,
            "synced_rows": synced,
        }
    )


async def request_backfill(services: Services, table: VectorTable, *, sweep: bool | None = None) -> Task:
    """Raises Problem `backfill_in_progress`."""
    building = next((g for g in table.generations if g.state == "building"), None)
    generation = building or table.active
    kind: TaskType = "rebackfill" if building or table.backfilled else "backfill"
    params = {"sweep": (table.backfilled and building is None) if sweep is None else sweep}
    try:
        return await services.control.tasks.create(kind, table.id, generation.number, params)
    except Conflict as e:
        raise Problem(
            409,
            "backfill_in_progress",
            f"a backfill of {table.name!r} is already running.",
            f"Wait for it: GET /v1/vector-tables/{table.id}/sync/status",
        ) from e


@router.get("/sync/status")
async def status(table_id: str, services: Use) -> Json:
    """Both documented spellings."""
    snapshot = await services.snapshot()
    table = find_table(snapshot, table_id)
    found = (await all_statuses(services, [table], snapshot))[0]
    behind = found["lag_seconds"]
    synced_at = iso(int((time.time() - behind) * 1000)) if table.backfilled and behind is not None else None
    return Json(
        {
            "vector_table_id": table.id,
            "sync_status": found["state"],
            "synced_rows": found["synced_rows"] or 0,
            "total_rows": found["total_rows"] or 0,
            "last_synced_at": synced_at,
            "last_sync_at": synced_at,
            "rows_pending": found["lag_changes"],
            "staleness_secs": behind,
            "last_error": found["last_error"],
            "last_error_at": None,
            "dead_letters": found["dead_letters"],
            "backfill": found["backfill"],
        }
    )


@router.post("/sync/pause")
async def pause(table_id: str, services: Use) -> Json:
    """Changes are collected, not applied; queries keep working."""
    table = await services.table(table_id)
    if table.paused:
        raise Problem(
            409, "sync_already_paused", f"{table.name!r} is paused already.", f"walvec resume {table.name} goes on."
        )
    await services.control.definitions.set_paused(table.id, True)
    return Json(_answer(table, "paused", "Sync has been paused"))


@router.post("/sync/resume")
async def resume(table_id: str, services: Use) -> Json:
    """Also the way out of `error`: dead letters are replayed first, changed columns recorded anew and read again."""
    table = await services.table(table_id)
    if not table.paused and not table.error:
        state = state_of(table, await services.control.tasks.recent(table.id, 20))
        cure = f"{last_error(table, [])} It goes on by itself when that is mended." if table.blocked else ""
        raise Problem(409, "sync_not_paused", f"{table.name!r} is not paused; it is {state}.", cure)
    if table.error:
        await _mend(services, table)
        await services.control.states.clear_error(table.id)
    if table.paused:
        await services.control.definitions.set_paused(table.id, False)
    after = await services.table(table.id)
    state = state_of(after, await services.control.tasks.recent(table.id, 20))
    return Json(_answer(table, state, "Sync has been resumed"))


async def _mend(services: Services, table: VectorTable) -> None:
    kind = (table.error or {}).get("kind", "")
    if kind in ("dead_letters", "dead_letter_limit"):
        await replay_letters(services, table, await open_letters(services, table))
    elif kind == "table_changed":
        await _record_again(services, table)
        await _backfill_again(services, await services.table(table.id))
    elif kind in ("slot_lost", "log_damaged"):
        await _backfill_again(services, table)


async def _record_again(services: Services, table: VectorTable) -> None:
    """The source's columns as they are now, if the definition still fits them. Raises DefinitionError."""
    snapshot = await services.snapshot()
    connection = snapshot.connections[table.connection_id]
    provider = snapshot.providers[table.embedding_provider_id]
    rebuilt = await build_vector_table(
        spec_of(table, connection, provider),
        connection,
        provider,
        services.source,
        services.models,
        others=[t for t in snapshot.vector_tables.values() if t.id != table.id],
        existing=table,
        log=services.shared_log,
    )
    found = rebuilt.active
    if [k.name for k in found.key] != [k.name for k in table.active.key]:
        raise DefinitionError(
            f"the key of {table.name!r} changed at the source: its vectors are stored by the old one.",
            "Restore the key, or delete the vector table and define it again.",
        )
    await services.control.states.update_source_columns(table.id, found)


async def _backfill_again(services: Services, table: VectorTable) -> None:
    """One that is open already will read everything."""
    if not table.backfilled and table.backfill == "manual":
        return
    try:
        await request_backfill(services, table, sweep=True)
    except Problem as e:
        if e.code != "backfill_in_progress":
            raise


def _answer(table: VectorTable, state: str, message: str) -> dict[str, Any]:
    return {"vector_table_id": table.id, "name": table.name, "sync_status": state, "message": message}
