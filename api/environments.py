"""`/v1/environments`: definitions apart from each other, within one organization."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from api.pages import made, page
from api.paging import Cursor, Limit
from api.problems import Problem
from api.responses import Json
from api.schemas import Body
from api.services import Services, Use
from walvec.contracts.errors import Conflict
from walvec.definitions.model import Environment
from walvec.definitions.tenancy import FIRST_ENVIRONMENT, new_environment

router = APIRouter(prefix="/v1", tags=["environments"])


class NewEnvironment(Body):
    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,50}$")]
    """Unique in its organization."""


@router.post("/environments", status_code=201)
async def create(body: NewEnvironment, services: Use) -> Json:
    made = new_environment(services.organization, body.name)
    try:
        await services.control.accounts.create_environment(made)
    except Conflict as e:
        raise Problem(409, "environment_conflict", e.message, e.cure) from e
    return Json(_shape((await services.account()).environments[made.id]), status_code=201)


@router.get("/environments")
async def listed(services: Use, limit: Limit = 20, cursor: Cursor = None) -> Json:
    now = await services.account()
    found = now.environments.values()
    some, pagination = page(found, limit, cursor, made)
    return Json({"data": [_shape(e) for e in some], "pagination": pagination})


@router.get("/environments/{environment_id}")
async def one(environment_id: str, services: Use) -> Json:
    return Json(_shape(await _find(services, environment_id)))


@router.delete("/environments/{environment_id}", status_code=204)
async def delete(environment_id: str, services: Use) -> None:
    found = await _find(services, environment_id)
    home = services.control.feed.current.default_organization.id
    if found.name == (services.settings.environment if found.org_id == home else FIRST_ENVIRONMENT):
        raise Problem(409, "environment_conflict", "it is the environment of requests that name none.")
    try:
        await services.control.accounts.delete_environment(found.id)
    except Conflict as e:
        raise Problem(409, "environment_conflict", e.message, e.cure) from e


async def _find(services: Services, ref: str) -> Environment:
    found = (await services.account()).environment(services.organization.id, ref)
    if found is None:
        raise Problem(404, "environment_not_found", "the environment does not exist.", "GET /v1/environments.")
    return found


def _shape(e: Environment) -> dict[str, Any]:
    return {"id": e.id, "org_id": e.org_id, "name": e.name, "created_at": e.created_at}
