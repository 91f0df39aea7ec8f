"""Backfill, pause and resume of a vector table, and `sync/status`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request

from api import shapes
from api.freshness import Fresh
from api.letters import replay_letters
from api.lifecycle import IN_PROGRESS
from api.permits import permit, refusal
from api.problems import Problem
from api.responses import Json, iso
from api.schemas import Backfill
from api.services import Services, Use, find_table
from api.specs import spec_of
from api.status import all_statuses, counts, last_error
from api.validation import build_vector_table
from api.verify import open_letters
from api.waits import WaitForLsn, WaitSeconds, reaches
from walvec.contracts.errors import Conflict, DefinitionError
from walvec.contracts.position import format_lsn, parse_lsn
from walvec.definitions.model import BACKFILLS, OPEN, SyncStatus, Task, TaskType, VectorTable

router = APIRouter(prefix="/v1/vector-tables/{table_id}", tags=["sync"])


@router.post("/backfill")
async def backfill(table_id: str, services: Use, body: Backfill | None = None) -> Json:
    """Returns at once. On a table that is in the store already: reconciles (equal texts cost nothing) and sweeps. While
    a new generation is to be built: takes over the rebackfill that the change has opened, or tries it again."""
    snapshot = await services.snapshot()
    table = find_table(snapshot, table_id)
    task, state = await request_backfill(services, table, sweep=body.sweep if body else None)
    total, synced = await counts(services, table, snapshot)
    return Json(
        {
            **shapes.task(task, services.organization.id),
            "vector_table_id": table.id,
            "status": services.settings.api.backfill_status,
            "sync_status": state,
            "total_rows": total,
            "synced_rows": synced,
        }
    )


async def request_backfill(
    services: Services, table: VectorTable, *, sweep: bool | None = None
) -> tuple[Task, SyncStatus]:
    """The task, and what the table does then. Raises Problem `backfill_in_progress`."""
    control = services.control
    tasks = await control.tasks.recent(table.id, 100)
    state = permit(table, tasks, "backfill")
    building = table.building
    try:
        if building is None:
            kind: TaskType = "rebackfill" if table.backfilled else "backfill"
            params = {"sweep": table.backfilled if sweep is None else sweep}
            return await control.tasks.create(kind, table.id, table.active.number, params, alone=True), state
        opened = next((t for t in tasks if t.task_type in BACKFILLS and t.status in OPEN), None)
        read = (t for t in tasks if t.task_type in BACKFILLS and t.generation == building.number)
        if (
            opened is None
            and building.state == "building"
            and (newest := next(read, None)) is not None
            and newest.status == "completed"
        ):
            return newest, state  # all rows are read: it takes over by itself
        if building.state == "stalled" or opened is None or opened.generation != building.number:
            _, opened = await control.definitions.retry(table.id)
        return await control.tasks.adopt(opened.id), state
    except Conflict as e:
        raise refusal(IN_PROGRESS, table, "backfilling") from e


@router.get("/sync/status")
async def status(
    table_id: str, services: Use, request: Request, wait_for_lsn: WaitForLsn = None, timeout: WaitSeconds = 30
) -> Json:
    """Both documented spellings. `wait_for_lsn`: answers once that is searchable, or `timeout` seconds have passed."""
    snapshot = await services.snapshot()
    table = find_table(snapshot, table_id)
    waited: dict[str, Any] = {"wait_for_lsn": None, "lsn_reached": None, "wait_reason": None}
    if wait_for_lsn is not None:
        waited = await reaches(services, request, snapshot, table, wait_for_lsn, timeout)
        snapshot = await services.snapshot()
        table = find_table(snapshot, table.id)
    found = (await all_statuses(services, [table], snapshot))[0]
    fresh = await request.app.state.freshness.of(services, table, wait=table.backfilled)
    reached = parse_lsn(waited["wait_for_lsn"]) if waited["lsn_reached"] else None
    lsn = max((n for n in (fresh.lsn, reached) if n is not None), default=None)
    as_of = format_lsn(lsn) if lsn is not None else None
    return Json({**sync_status(found, staleness(table, found, fresh)), "as_of_lsn": as_of, **waited})


def staleness(table: VectorTable, found: Mapping[str, Any], fresh: Fresh) -> float | None:
    """Seconds, as queries tell them. Before that is known, and behind a topic of Debezium, for which it never is: how
    far what is applied is behind what is read, as long as somebody reads."""
    if not table.backfilled:
        return None
    if fresh.seconds is not None:
        return fresh.seconds
    source, behind = found["source"], found["lag_seconds"]
    age = source["report_age_seconds"]
    # without a report: the connection is new, its reader is about to give one
    reads = age is None or (source["reading"] and source.get("state") in ("streaming", "reading"))
    return float(max(behind, age or 0.0)) if reads and behind is not None else None


def sync_status(found: Mapping[str, Any], stale: float | None) -> dict[str, Any]:
    """`found`: as `status` says it."""
    synced_at = _ago(stale) if stale is not None else None
    return {
        "vector_table_id": found["id"],
        "sync_status": found["state"],
        "synced_rows": found["synced_rows"] or 0,
        "total_rows": found["total_rows"] or 0,
        "last_synced_at": synced_at,
        "last_sync_at": synced_at,
        "rows_pending": found["lag_changes"],
        "staleness_secs": round(stale, 3) if stale is not None else None,
        **_behind(found),
        "last_error": found["last_error"],
        "last_error_at": found["last_error_at"],
        "dead_letters": found["dead_letters"],
        "backfill": found["backfill"],
    }


def _behind(found: Mapping[str, Any]) -> dict[str, Any]:
    """How far what is applied is behind what was read; null where the log cannot be asked."""
    seconds = found["lag_seconds"]
    oldest = _ago(seconds) if found["lag_changes"] and seconds is not None else None
    return {"lag_changes": found["lag_changes"], "lag_seconds": seconds, "oldest_unprocessed_at": oldest}


def _ago(seconds: float) -> str | None:
    return iso(int((time.time() - seconds) * 1000))


@router.post("/sync/pause")
async def pause(table_id: str, services: Use) -> Json:
    """Changes are collected, not applied; queries keep working."""
    table = await services.table(table_id)
    tasks = await services.control.tasks.recent(table.id, 100)
    permit(table, tasks, "pause")
    await services.control.definitions.set_paused(table.id, True)
    return await _answer(services, table.id, "Sync has been paused")


@router.post("/sync/resume")
async def resume(table_id: str, services: Use) -> Json:
    """Also the way out of `error`: dead letters are replayed first, changed columns recorded anew and read again."""
    table = await services.table(table_id)
    tasks = await services.control.tasks.recent(table.id, 100)
    cure = f"{last_error(table, [])} It goes on by itself when that is mended." if table.blocked else ""
    permit(table, tasks, "resume", cure)
    if table.error:
        await _mend(services, table)
        await services.control.states.clear_error(table.id)
    if table.paused:
        await services.control.definitions.set_paused(table.id, False)
    return await _answer(services, table.id, "Sync has been resumed")


async def _answer(services: Services, table_id: str, message: str) -> Json:
    snapshot = await services.snapshot()
    table = find_table(snapshot, table_id)
    found = (await all_statuses(services, [table], snapshot))[0]
    return Json(
        {
            "vector_table_id": table.id,
            "name": table.name,
            "sync_status": found["state"],
            "message": message,
            **_behind(found),
        }
    )


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
        spec_of(table, table.active, connection, provider),
        connection,
        provider,
        services.source,
        services.models,
        others=[t for t in snapshot.vector_tables.values() if t.id != table.id],
        existing=replace(table, generations=(table.active,)),
        log=services.shared_log,
    )
    found = rebuilt.active
    if [k.name for k in found.key] != [k.name for k in table.active.key]:
        raise DefinitionError(
            f"the key of {table.name!r} changed at the source: its vectors are stored by the old one.",
            "Restore the key, or delete the vector table and define it again.",
        )
    await services.control.states.update_source_columns(table.id, replace(found, number=table.active.number))


async def _backfill_again(services: Services, table: VectorTable) -> None:
    """One that is open already will read everything."""
    if not table.backfilled and table.backfill == "manual":
        return
    try:
        await request_backfill(services, table, sweep=True)
    except Problem as e:
        if e.code != "backfill_in_progress":
            raise
