"""`…/generations`, `…/rebuild/abort`, `…/rollback`: what becomes of a vector table's materialisations."""

from __future__ import annotations

from fastapi import APIRouter

from api import shapes
from api.permits import permit
from api.responses import Json
from api.services import Use
from api.status import backfill_progress
from api.vector_tables import answer

router = APIRouter(prefix="/v1/vector-tables/{table_id}", tags=["generations"])


@router.get("/generations")
async def listed(table_id: str, services: Use) -> Json:
    """All that are kept, the newest first."""
    table = await services.table(table_id)
    tasks = await services.control.tasks.recent(table.id, 100)
    newest_first = sorted(table.generations, key=lambda g: -g.number)
    return Json(
        {
            "vector_table_id": table.id,
            "data": [shapes.generation(table, g, backfill_progress(tasks, g.number)) for g in newest_first],
        }
    )


@router.post("/rebuild/abort")
async def abort(table_id: str, services: Use) -> Json:
    """Gives up the generation that is being built, or has stalled. Nothing changes for queries."""
    table = await services.table(table_id)
    state = permit(table, await services.control.tasks.recent(table.id, 100), "abort")
    await services.control.definitions.abort(table.id)
    return await answer(services, table.id, state=state)


@router.post("/rollback")
async def rollback(table_id: str, services: Use) -> Json:
    """Builds the previous generation's definition again, from its own vectors where the text is the same, and swaps."""
    table = await services.table(table_id)
    state = permit(table, await services.control.tasks.recent(table.id, 100), "rollback")
    await services.control.definitions.rollback(table.id)
    return await answer(services, table.id, state=state)
