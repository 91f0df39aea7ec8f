"""`/v1/connections`: the source databases. Credentials come in and never go out."""

from __future__ import annotations

from fastapi import APIRouter

from api import shapes
from api.dsn import dsn_of
from api.pages import made, page
from api.paging import Cursor, Limit
from api.problems import Problem, invalid
from api.responses import Json
from api.schemas import NewConnection
from api.services import Use, find_connection
from api.status import now, reports_of, source_status
from api.validation import new_id
from walvec.contracts.errors import SourceRejected, SourceUnavailable
from walvec.definitions.model import Connection

router = APIRouter(prefix="/v1", tags=["connections"])
_PROVIDERS = ("postgresql",)


@router.post("/providers/{provider}/connections", status_code=201)
async def create(provider: str, body: NewConnection, services: Use) -> Json:
    if provider not in _PROVIDERS:
        raise invalid(f"provider: {provider!r} is not a source that walvec reads.", "Use postgresql.")
    if any(c.name == body.name for c in (await services.snapshot()).connections.values()):
        raise Problem(409, "connection_conflict", f"there is a connection {body.name!r} already.", "Take another name.")
    made = Connection(
        id=new_id("conn"),
        name=body.name,
        provider=provider,
        mode=body.mode,
        dsn=dsn_of(body.name, body.credentials),
        on_slot_loss=body.on_slot_loss,
        status="created",
        created_at=now(),
        environment_id=services.environment.id,
    )
    await services.control.definitions.put_connection(made)
    return Json(shapes.connection(made, services.organization.id), status_code=201)


@router.get("/connections")
async def listed(services: Use, limit: Limit = 20, cursor: Cursor = None) -> Json:
    found = (await services.snapshot()).connections.values()
    some, pagination = page(found, limit, cursor, made)
    return Json({"data": [shapes.connection(c, services.organization.id) for c in some], "pagination": pagination})


@router.get("/connections/{connection_id}")
async def one(connection_id: str, services: Use) -> Json:
    found = await services.connection(connection_id)
    reading = await source_status(services, found.id, await reports_of(services))
    return Json({**shapes.connection(found, services.organization.id), "source": reading})


@router.post("/connections/{connection_id}/test")
async def test(connection_id: str, services: Use) -> Json:
    found = await services.connection(connection_id)
    try:
        latency = await services.source.test(found)
    except (SourceUnavailable, SourceRejected) as e:
        await services.control.definitions.set_connection_status(found.id, "failed", e.message)
        return Json({"status": "failed", "error": {"code": e.kind, "message": e.message, "resolution": e.cure}})
    if found.status in ("created", "failed"):
        await services.control.definitions.set_connection_status(found.id, "connected")
    return Json({"status": "ok", "latency_ms": max(1, round(latency))})


@router.delete("/connections/{connection_id}", status_code=204)
async def delete(connection_id: str, services: Use) -> None:
    snapshot = await services.snapshot()
    found = find_connection(snapshot, connection_id)
    users = sorted(t.name for t in snapshot.tables_of(found.id))
    if users:
        raise Problem(
            409,
            "connection_conflict",
            f"connection {found.name!r} is used by vector tables: {', '.join(users)}.",
            "Delete them first.",
        )
    await services.control.definitions.delete_connection(found.id)
    await services.source.release(found)


@router.get("/connections/{connection_id}/doctor")
async def doctor(connection_id: str, services: Use) -> Json:
    snapshot = await services.snapshot()
    found = find_connection(snapshot, connection_id)
    checks = await services.source.doctor(found, snapshot.tables_of(found.id))
    return Json(
        {
            "connection": found.name,
            "connection_id": found.id,
            "ok": all(c.ok for c in checks),
            "checks": [{"name": c.name, "ok": c.ok, "detail": c.detail, "cure": c.cure} for c in checks],
        }
    )
