"""`/v1/organizations`: who owns environments and API keys. The default organization's keys make and delete others;
another one's keys see their own alone. People, their logins and their bills are no part of walvec."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from api.pages import made, page
from api.paging import Cursor, Limit
from api.problems import Problem
from api.responses import Json
from api.schemas import Body, Name
from api.services import Services, Use
from walvec.contracts.errors import Conflict
from walvec.definitions.model import DEFAULT_ORGANIZATION, Organization
from walvec.definitions.tenancy import FIRST_ENVIRONMENT, new_environment, new_key, new_organization

router = APIRouter(prefix="/v1", tags=["organizations"])


class NewOrganization(Body):
    name: Name
    """Unique."""


@router.post("/organizations", status_code=201)
async def create(body: NewOrganization, services: Use) -> Json:
    """With its environment `prod` and a full API key, which is shown once."""
    if services.organization.name != DEFAULT_ORGANIZATION:
        raise Problem(
            403, "permission_denied", "this organization's keys make no others.", "Ask with a key of the default one."
        )
    made = new_organization(body.name)
    token, key = new_key(made, "first", "full")
    try:
        await services.control.accounts.create_organization(made, new_environment(made, FIRST_ENVIRONMENT), key)
    except Conflict as e:
        raise Problem(409, "organization_conflict", e.message, e.cure) from e
    return Json({"organization": _shape(await _find(services, made.id)), "api_key": token}, status_code=201)


@router.get("/organizations")
async def listed(services: Use, limit: Limit = 20, cursor: Cursor = None) -> Json:
    found = (await _visible(services)).values()
    some, pagination = page(found, limit, cursor, made)
    return Json({"data": [_shape(o) for o in some], "pagination": pagination})


@router.get("/organizations/{org_id}")
async def one(org_id: str, services: Use) -> Json:
    return Json(_shape(await _find(services, org_id)))


@router.delete("/organizations/{org_id}", status_code=202)
async def delete(org_id: str, services: Use) -> Json:
    """Its keys open nothing from now on; what it holds is removed soon, and then itself."""
    found = await _find(services, org_id)
    try:
        await services.control.accounts.mark_deleting(found.id)
    except Conflict as e:
        raise Problem(409, "organization_conflict", e.message, e.cure) from e
    return Json(_shape((await services.control.definitions.snapshot()).organizations[found.id]), status_code=202)


async def _visible(services: Services) -> dict[str, Organization]:
    now = await services.control.definitions.snapshot()
    every = services.organization.name == DEFAULT_ORGANIZATION
    return {k: o for k, o in now.organizations.items() if every or k == services.organization.id}


async def _find(services: Services, org_id: str) -> Organization:
    found = (await _visible(services)).get(org_id)
    if found is None:
        raise Problem(404, "org_not_found", "the organization does not exist.", "GET /v1/organizations.")
    return found


def _shape(o: Organization) -> dict[str, Any]:
    return {"id": o.id, "name": o.name, "status": o.status, "tier": "self_hosted", "created_at": o.created_at}


_ACCOUNT_PAGES = (
    ("POST", "/auth/otp"),
    ("POST", "/auth/verify"),
    ("POST", "/auth/refresh"),
    ("GET", "/organizations/{org_id}/members"),
    ("DELETE", "/organizations/{org_id}/members/{user_id}"),
    ("POST", "/organizations/{org_id}/leave"),
    ("POST", "/organizations/{org_id}/transfer-ownership"),
    ("GET", "/organizations/{org_id}/invitations"),
    ("POST", "/organizations/{org_id}/invitations"),
    ("POST", "/organizations/invitations/{token}/accept"),
    ("GET", "/billing/subscription"),
)


async def _account(request: Request) -> Json:
    raise Problem(
        501,
        "not_supported",
        "walvec keeps no people: neither logins, members, invitations nor bills.",
        "Work with API keys: POST /v1/api-keys, or `walvec keys create`.",
    )


for _method, _path in _ACCOUNT_PAGES:
    router.add_api_route(_path, _account, methods=[_method], status_code=501, response_model=None)
