"""`/v1/connections`: the source databases. Credentials come in and never go out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends

from api import shapes
from api.dsn import changed_dsn, dsn_of
from api.pages import made, page
from api.paging import Cursor, Limit
from api.problems import Problem, invalid
from api.readonly import refuse_others
from api.removals import remove_connection
from api.responses import Json
from api.schemas import ChangedConnection, NewConnection
from api.services import Services, Use, find_connection
from api.status import now, reports_of, source_status
from api.validation import new_id
from walvec.contracts.errors import Conflict, SourceRejected, SourceUnavailable
from walvec.contracts.sources import Check
from walvec.definitions.document import database_of, same_dsn, same_server
from walvec.definitions.model import Connection

router = APIRouter(prefix="/v1", tags=["connections"])


async def _source(provider: str) -> str:
    """Before the body is looked at: that of another kind of source has other fields."""
    if provider == "snowflake":
        raise Problem(
            501, "not_supported", "walvec reads PostgreSQL; Snowflake is not supported.", "Use provider postgresql."
        )
    if provider != "postgresql":
        raise invalid(f"provider: {provider!r} is not a source that walvec reads.", "Use postgresql.")
    return provider


@router.post("/providers/{provider}/connections", status_code=201)
async def create(provider: Annotated[str, Depends(_source)], body: NewConnection, services: Use) -> Json:
    if any(c.name == body.name for c in (await services.snapshot()).connections.values()):
        raise _taken(body.name)
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
    try:
        await services.control.definitions.put_connection(made)
    except Conflict:  # another request was faster
        raise _taken(made.name) from None
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
    """`status`: whether walvec reaches the database. `ready`: whether it can follow it; `checks` has what is missing,
    each with the statement that mends it."""
    snapshot = await services.snapshot()
    found = find_connection(snapshot, connection_id)
    definitions = services.control.definitions
    try:
        latency = await services.source.test(found)
        checks = await services.source.doctor(found, snapshot.tables_of(found.id))
        if checks and checks[0].name == "connection" and not checks[0].ok:  # it went away in between
            raise SourceUnavailable(checks[0].detail, checks[0].cure)
    except (SourceUnavailable, SourceRejected) as e:
        await definitions.set_connection_status(found.id, "failed", e.message, tested=True)
        failed = [Check("connection", False, e.message, e.cure)]
        error = {"code": e.kind, "message": e.message, "resolution": e.cure}
        return Json({"status": "failed", "error": error, "checks": shapes.checks(failed)})
    # what the reader of a used connection says of it is newer than this
    reading = found.status not in ("created", "failed")
    status, message = (found.status, found.status_message) if reading else ("connected", "")
    await definitions.set_connection_status(found.id, status, message, tested=True)
    return Json(
        {
            "status": "ok",
            "latency_ms": max(1, round(latency)),
            "ready": all(c.ok for c in checks),
            "checks": shapes.checks(checks),
        }
    )


@router.put("/connections/{connection_id}")
async def change(connection_id: str, body: ChangedConnection, services: Use) -> Json:
    """Running readers take new credentials at once."""
    snapshot = await services.snapshot()
    old = find_connection(snapshot, connection_id)
    shown = shapes.connection(old, services.organization.id)
    fixed = ("id", "org_id", "environment_id", "provider", "slot")
    refuse_others(body, {name: (shown[name],) for name in fixed}, {})
    users = sorted(t.name for t in snapshot.tables_of(old.id))
    if any(c.name == body.name and c.id != old.id for c in snapshot.connections.values()):
        raise _taken(body.name or "")
    if body.mode not in (None, old.mode) and users:
        raise _used(old, users, "A vector table keeps its mode: delete them first.")
    new = replace(
        old,
        name=body.name or old.name,
        mode=body.mode or old.mode,
        on_slot_loss=body.on_slot_loss or old.on_slot_loss,
    )
    if body.credentials is not None:
        new = replace(new, dsn=changed_dsn(new.name, body.credentials, old.dsn))
    if not same_dsn(new.dsn, old.dsn):
        await _check_same(services, old, new, users)
        new = replace(new, status="connected", status_message="", last_tested_at=now())
    else:
        new = replace(new, dsn=old.dsn)
    try:
        await services.control.definitions.put_connection(new)
    except Conflict:
        raise _taken(new.name) from None
    stored = (await services.snapshot()).connections.get(new.id, new)
    return Json(shapes.connection(stored, services.organization.id))


async def _check_same(services: Services, old: Connection, new: Connection, users: Sequence[str]) -> None:
    """New credentials must be good, and lead to the same database of the same server while vector tables use it.

    Raises Problem, SourceUnavailable, SourceRejected."""
    found = await services.source.identity(new)
    if not users:
        return
    database = database_of(old.dsn)
    if database and found.database != database:
        raise _elsewhere(old, users, f"database {found.database!r} instead of {database!r}")
    system = (await services.control.progress.get(old.id)).system_identifier
    if not system:  # nothing was streamed yet: only the server itself can tell
        try:
            system = (await services.source.identity(old)).system_identifier
        except (SourceUnavailable, SourceRejected):
            system = ""
    if system and found.system_identifier:
        if system != found.system_identifier:
            raise _elsewhere(old, users, "another server (its system identifier differs)")
        return
    if not same_server(old.dsn, new.dsn):
        raise _elsewhere(old, users, "a server that cannot be told to be the same")


def _elsewhere(old: Connection, users: Sequence[str], where: str) -> Problem:
    return Problem(
        409,
        "connection_conflict",
        f"the credentials lead to {where}, and connection {old.name!r} is used by vector tables: {', '.join(users)}.",
        "Make a new connection and new vector tables for the other database, or delete these first.",
    )


def _taken(name: str) -> Problem:
    return Problem(409, "connection_conflict", f"there is a connection {name!r} already.", "Take another name.")


def _used(found: Connection, users: Sequence[str], cure: str) -> Problem:
    return Problem(
        409,
        "connection_conflict",
        f"connection {found.name!r} is used by vector tables: {', '.join(users)}.",
        cure,
    )


@router.delete("/connections/{connection_id}", status_code=204)
async def delete(connection_id: str, services: Use) -> None:
    """With what walvec has at the source; where that is away, later."""
    snapshot = await services.snapshot()
    found = find_connection(snapshot, connection_id)
    users = sorted(t.name for t in snapshot.tables_of(found.id))
    if users:
        raise _used(found, users, "Delete them first.")
    try:
        await remove_connection(found, services.remover)
    except Conflict as e:
        raise Problem(409, "connection_conflict", e.message, e.cure) from e


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
            "checks": shapes.checks(checks),
        }
    )
