"""`/v1/tasks`: backfills, repairs and replays, running and done, and what deleted definitions have left behind."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from api import shapes
from api.pages import Place, foreign, page, place_of
from api.paging import Cursor, Limit
from api.problems import Problem
from api.responses import Json
from api.services import Services, Use
from walvec.contracts.errors import NotFound
from walvec.definitions.model import BACKFILLS, OPEN, Task, VectorTable
from walvec.definitions.removals import Removal

router = APIRouter(prefix="/v1", tags=["tasks"])
_PLACE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z task_[0-9a-f]{1,32}", re.ASCII)
_REASON = "cancelled by request"
Ref = Annotated[str | None, Query(max_length=1000)]


@router.get("/tasks")
async def listed(
    services: Use,
    limit: Limit = 20,
    cursor: Cursor = None,
    table: Ref = None,
    target_id: Ref = None,
    status: Literal["pending", "running", "completed", "failed", "cancelled"] | None = None,
    task_type: Literal["backfill", "rebackfill", "replay", "repair", "removal"] | None = None,
) -> Json:
    """`target_id` (or `table`, its older name): a vector table's id or name."""
    ref = target_id if target_id is not None else table
    target = (await services.table(ref)).id if ref is not None else None
    own = services.environment.id
    found: list[Task | Removal] = []
    if task_type != "removal":
        before = _behind(cursor) if cursor is not None else None
        found += await services.control.tasks.page(
            own, limit=limit + 1, before=before, target_id=target, status=status, task_type=task_type
        )
    if target is None and task_type in (None, "removal"):
        found += await services.control.removals.open(own)
    shown = [_shown(t, services.organization.id) for t in found]
    kept = [t for t in shown if status in (None, t["status"])]
    some, pagination = page(kept, limit, cursor, _place, newest_first=True)
    return Json({"data": some, "pagination": pagination})


def _behind(cursor: str) -> Place:
    """The place of the last task that was shown. Raises Problem."""
    place = place_of(cursor)
    if not _PLACE.fullmatch(" ".join(place)):
        raise foreign()
    try:
        datetime.fromisoformat(place[0])
    except ValueError as e:
        raise foreign() from e
    return place


@router.get("/tasks/{task_id}")
async def one(task_id: str, services: Use) -> Json:
    for removal in await services.control.removals.open(services.environment.id):
        if removal.id == task_id:
            return Json(shapes.removal(removal, services.organization.id))
    return Json(shapes.task((await _own(services, task_id))[0], services.organization.id))


@router.post("/tasks/{task_id}/cancel")
async def cancel(task_id: str, services: Use) -> Json:
    """It never runs on. Rows that were read stay. Of a generation that is being built: that one stalls, and
    POST …/backfill tries it again; a table whose first backfill is cancelled is pending. Of a removal: it is given up,
    and what is there stays, for a source that never comes back."""
    for removal in await services.control.removals.open(services.environment.id):
        if removal.id == task_id:
            await services.control.removals.give_up(removal.id)
            return Json({**shapes.removal(removal, services.organization.id), "status": "cancelled"})
    task, table = await _own(services, task_id)
    control = services.control
    if task.status not in OPEN:
        raise _ended(task.id, task.status)
    building = table.building
    if task.task_type in BACKFILLS and building is not None and building.number == task.generation:
        stalled = await control.states.set_stalled(table.id, building.number, "cancelled", _REASON)
        if not stalled:
            raise _ended(task.id, "done: its generation takes the old one's place")
    else:
        await control.tasks.update(task.id, status="cancelled", last_error=_REASON)
    found = await control.tasks.get(task.id)
    if found.status != "cancelled":
        raise _ended(task.id, found.status)
    return Json(shapes.task(found, services.organization.id))


def _ended(task_id: str, state: str, cure: str = "") -> Problem:
    return Problem(409, "task_not_cancellable", f"task {task_id} is {state}.", cure)


async def _own(services: Services, task_id: str) -> tuple[Task, VectorTable]:
    """Of the request's environment."""
    tables = (await services.snapshot()).vector_tables
    try:
        found = await services.control.tasks.get(task_id)
    except NotFound as e:
        raise Problem(404, "task_not_found", e.message, e.cure) from e
    if found.target_id not in tables:
        raise Problem(404, "task_not_found", f"there is no task {task_id!r}.")
    return found, tables[found.target_id]


def _place(shown: dict[str, Any]) -> tuple[str, str]:
    return str(shown["created_at"]), str(shown["id"])


def _shown(found: Task | Removal, org_id: str) -> dict[str, Any]:
    return shapes.removal(found, org_id) if isinstance(found, Removal) else shapes.task(found, org_id)
