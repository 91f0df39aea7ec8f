"""walvec's own end points: status, drain, verify."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import APIRouter, Request

from api import shapes
from api.drain import drain
from api.problems import Problem
from api.responses import Json
from api.schemas import DrainRequest, VerifyRequest
from api.services import Services, Use, find_table
from api.status import all_statuses
from api.verify import verify

router = APIRouter(prefix="/v1", tags=["operations"])
T = TypeVar("T")


@router.get("/status")
async def status(services: Use) -> Json:
    snapshot = await services.snapshot()
    tables = sorted(snapshot.vector_tables.values(), key=lambda t: t.name)
    left = await services.control.removals.open(services.environment.id)
    removals = [shapes.removal(r, services.organization.id) for r in left]
    return Json({"tables": await all_statuses(services, tables, snapshot), "removals": removals})


@router.get("/status/{table_id}")
async def table_status(table_id: str, services: Use) -> Json:
    snapshot = await services.snapshot()
    found = await all_statuses(services, [find_table(snapshot, table_id)], snapshot)
    return Json({"tables": found, "removals": []})


@router.post("/drain")
async def drained(services: Use, request: Request, body: DrainRequest | None = None) -> Json:
    """Answers when it is done; a client that goes away ends it."""
    body = body or DrainRequest.model_validate({})
    snapshot = await services.snapshot()
    if body.tables:
        tables = list({t.id: t for t in (find_table(snapshot, ref) for ref in body.tables)}.values())
    else:
        tables = sorted(snapshot.vector_tables.values(), key=lambda t: t.name)
    result = await while_connected(services, request, drain(services, tables, body.timeout))
    return Json(result.as_json())


@router.post("/vector-tables/{table_id}/verify")
async def verified(table_id: str, services: Use, request: Request, body: VerifyRequest | None = None) -> Json:
    body = body or VerifyRequest.model_validate({})
    work = verify(services, table_id, repair=body.repair, timeout=body.timeout)
    found = await while_connected(services, request, work)
    return Json(found.as_json())


async def while_connected(services: Services, request: Request, work: Awaitable[T]) -> T:
    """Cancels the work when the client hangs up or the process is asked to end."""
    job = asyncio.ensure_future(work)
    gone = asyncio.create_task(_gone(request))
    stopped = asyncio.create_task(services.stop.wait())
    try:
        await asyncio.wait({job, gone, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise Problem(503, "shutting_down", "walvec's API is ending.", "Ask again when it is back.")
        return await job
    finally:
        for task in (job, gone, stopped):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(job, gone, stopped, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
