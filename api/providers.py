"""`/v1/embedding-providers`: who makes the vectors. A key comes in and never goes out."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from api import shapes
from api.pages import made, page
from api.paging import Cursor, Limit
from api.problems import Problem
from api.responses import Json
from api.schemas import NewProvider
from api.services import Services, Use, find_provider
from api.status import now
from api.validation import known_provider, new_id
from walvec.definitions.model import EmbeddingProvider
from walvec.runtime.addresses import check_base_url

router = APIRouter(prefix="/v1", tags=["embedding providers"])


@router.post("/embedding-providers", status_code=201)
async def create(body: NewProvider, services: Use) -> Json:
    known_provider(body.provider, services.models)
    if body.base_url is not None:
        check_base_url(body.base_url)
    snapshot = await services.snapshot()
    if any(p.name == body.name for p in snapshot.providers.values()):
        raise Problem(409, "embedding_provider_conflict", f"there is an embedding provider {body.name!r} already.")
    made = EmbeddingProvider(
        id=new_id("emb"),
        name=body.name,
        provider=body.provider,
        api_key=body.api_key.get_secret_value() if body.api_key else None,
        base_url=body.base_url,
        default_model=body.default_model,
        limits=body.limits,
        created_at=now(),
        environment_id=services.environment.id,
    )
    await services.control.definitions.put_provider(made)
    return Json(_with_models(made, services), status_code=201)


@router.get("/embedding-providers")
async def listed(services: Use, limit: Limit = 20, cursor: Cursor = None) -> Json:
    found = (await services.snapshot()).providers.values()
    some, pagination = page(found, limit, cursor, made)
    return Json({"data": [_with_models(p, services) for p in some], "pagination": pagination})


@router.get("/embedding-providers/{provider_id}")
async def one(provider_id: str, services: Use) -> Json:
    return Json(_with_models(find_provider(await services.snapshot(), provider_id), services))


@router.delete("/embedding-providers/{provider_id}", status_code=204)
async def delete(provider_id: str, services: Use) -> None:
    snapshot = await services.snapshot()
    found = find_provider(snapshot, provider_id)
    users = [t.name for t in snapshot.vector_tables.values() if t.embedding_provider_id == found.id]
    if users:
        raise Problem(
            409,
            "embedding_provider_conflict",
            f"embedding provider {found.name!r} is used by vector tables: {', '.join(sorted(users))}.",
            "Delete them first.",
        )
    await services.control.definitions.delete_provider(found.id)


def _with_models(p: EmbeddingProvider, services: Services) -> dict[str, Any]:
    catalogue = services.models.providers().get(p.provider, ())
    return {
        **shapes.provider(p, services.organization.id),
        "models": [{"model": m, "dimensions": d} for m, d in catalogue],
    }
