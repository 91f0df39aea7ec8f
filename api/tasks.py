"""`/v1/tasks`: backfills, repairs and replays, running and done, and what deleted definitions have left behind."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from api import shapes
from api.pages import page
from api.paging import Cursor, Limit
from api.problems import Problem
from api.responses import Json
from api.services import Use
from walvec.contracts.errors import NotFound
from walvec.definitions.model import Task
from walvec.definitions.removals import Removal

router = APIRouter(prefix="/v1", tags=["tasks"])
_KEPT = 1000


@router.get("/tasks")
async def listed(services: Use, limit: Limit = 20, cursor: Cursor = None, table: str | None = None) -> Json:
    target = (await services.table(table)).id if table is not None else None
    found: list[Task | Removal] = [*await services.control.tasks.recent(target, _KEPT)]
    if target is None:
        found += await services.control.removals.open(services.environment.id)
        found.sort(key=lambda t: t.created_at, reverse=True)
    some, pagination = page(found, limit, cursor, lambda t: t.id)
    return Json({"data": [_shown(t) for t in some], "pagination": pagination})


@router.get("/tasks/{task_id}")
async def one(task_id: str, services: Use) -> Json:
    for removal in await services.control.removals.open(services.environment.id):
        if removal.id == task_id:
            return Json(shapes.removal(removal))
    try:
        found = await services.control.tasks.get(task_id)
    except NotFound as e:
        raise Problem(404, "task_not_found", e.message, e.cure) from e
    return Json(shapes.task(found))


def _shown(found: Task | Removal) -> dict[str, Any]:
    return shapes.removal(found) if isinstance(found, Removal) else shapes.task(found)
