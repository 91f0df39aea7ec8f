"""`/v1/api-keys`: bearer tokens of the asking organization. Each is shown once, and kept as its hash."""

from __future__ import annotations

from fastapi import APIRouter

from api.pages import made, page
from api.paging import Cursor, Limit
from api.problems import Problem
from api.responses import Json
from api.schemas import Body, Name
from api.services import Use
from walvec.definitions.model import Permission
from walvec.definitions.tenancy import new_key, shown

router = APIRouter(prefix="/v1", tags=["API keys"])


class NewKey(Body):
    name: Name
    """What it is for."""
    permission: Permission = "full"
    """read_only: GET, and queries."""


@router.post("/api-keys", status_code=201)
async def create(body: NewKey, services: Use) -> Json:
    asked_by = services.caller.key_id if services.caller else None
    token, made = new_key(services.organization, body.name, body.permission, asked_by)
    await services.control.accounts.create_key(made)
    stored = (await services.account()).api_keys[made.id]
    return Json({"key": token, "api_key": shown(stored)}, status_code=201)


@router.get("/api-keys")
async def listed(services: Use, limit: Limit = 20, cursor: Cursor = None) -> Json:
    """Revoked ones too."""
    found = (await services.account()).api_keys.values()
    some, pagination = page(found, limit, cursor, made)
    return Json({"data": [shown(k) for k in some], "pagination": pagination})


@router.delete("/api-keys/{key_id}", status_code=204)
async def revoke(key_id: str, services: Use) -> None:
    """At once, in every process."""
    if key_id not in (await services.account()).api_keys:
        raise Problem(404, "api_key_not_found", "the API key does not exist.", "GET /v1/api-keys lists them.")
    await services.control.accounts.revoke_key(key_id)
