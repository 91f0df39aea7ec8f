"""`/v1/tasks`: backfills, repairs and replays, running and done."""

from __future__ import annotations

from fastapi import APIRouter

from api import shapes
from api.pages import page
from api.paging import Cursor, Limit
from api.problems import Problem
from api.responses import Json
from api.services import Use
from walvec.contracts.errors import NotFound

router = APIRouter(prefix="/v1", tags=["tasks"])
_KEPT = 1000


@router.get("/tasks")
async def listed(services: Use, limit: Limit = 20, cursor: Cursor = None, table: str | None = None) -> Json:
    target = (await services.table(table)).id if table is not None else None
    found = await services.control.tasks.recent(target, _KEPT)
    some, pagination = page(found, limit, cursor, lambda t: t.id)
    return Json({"data": [shapes.task(t) for t in some], "pagination": pagination})


@router.get("/tasks/{task_id}")
async def one(task_id: str, services: Use) -> Json:
    try:
        found = await services.control.tasks.get(task_id)
    except NotFound as e:
        raise Problem(404, "task_not_found", e.message, e.cure) from e
    return Json(shapes.task(found))
