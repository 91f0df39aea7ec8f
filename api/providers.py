"""`/v1/embedding-providers`: who makes the vectors. A key comes in and never goes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter

from api import shapes
from api.catalogue import catalogue, models_of, refuse_unrunnable
from api.pages import made, page
from api.paging import Cursor, Limit
from api.problems import Problem, invalid
from api.readonly import refuse_others
from api.responses import Json
from api.schemas import ChangedProvider, NewProvider
from api.services import Services, Use, find_provider
from api.status import now
from api.validation import known_provider, new_id
from walvec.contracts.errors import Conflict
from walvec.definitions.model import EmbeddingProvider, Snapshot
from walvec.runtime.addresses import check_base_url

router = APIRouter(prefix="/v1", tags=["embedding providers"])
_CURES = {"has_api_key": "Give api_key: another one, or an empty one to forget it."}


@router.post("/embedding-providers", status_code=201)
async def create(body: NewProvider, services: Use) -> Json:
    _runnable(body.provider, services)
    snapshot = await services.snapshot()
    if any(p.name == body.name for p in snapshot.providers.values()):
        raise _taken(body.name)
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
    _check(made, services)
    await _store(made, services)
    return Json(_with_models(made, services), status_code=201)


@router.get("/embedding-providers")
async def listed(services: Use, limit: Limit = 20, cursor: Cursor = None) -> Json:
    found = (await services.snapshot()).providers.values()
    some, pagination = page(found, limit, cursor, made)
    return Json({"data": [_with_models(p, services) for p in some], "pagination": pagination})


@router.get("/embedding-providers/models")
@router.get("/embedding-providers/catalogue")
async def models(services: Use) -> Json:
    """Kinds of provider with their models and dimensions; `available`: whether this walvec can run the kind."""
    return Json({"data": catalogue(services.models.providers())})


@router.get("/embedding-providers/{provider_id}")
async def one(provider_id: str, services: Use) -> Json:
    return Json(_with_models(find_provider(await services.snapshot(), provider_id), services))


@router.put("/embedding-providers/{provider_id}")
async def change(provider_id: str, body: ChangedProvider, services: Use) -> Json:
    """Running roles take it at once, another key too."""
    snapshot = await services.snapshot()
    old = find_provider(snapshot, provider_id)
    shown = shapes.provider(old, services.organization.id)
    fixed = ("id", "org_id", "environment_id", "has_api_key")
    refuse_others(body, {name: (shown[name],) for name in fixed}, _CURES)
    if body.provider not in (None, old.provider):
        _runnable(body.provider or "", services)
        if users := _users(old, snapshot):
            raise _used(old, users, "Its vectors are of another kind: make a new provider for them.")
    if any(p.name == body.name and p.id != old.id for p in snapshot.providers.values()):
        raise _taken(body.name or "")
    new = replace(
        old,
        name=body.name or old.name,
        provider=body.provider or old.provider,
        api_key=body.api_key.get_secret_value() if body.api_key is not None else old.api_key,
        base_url=old.base_url if body.base_url is None else body.base_url,
        default_model=body.default_model or old.default_model,
        limits=old.limits if body.limits is None else body.limits,
    )
    if (new.provider, new.base_url) != (old.provider, old.base_url) and old.api_key and body.api_key is None:
        raise invalid(
            "api_key: it is not sent to another address or vendor without being given again.",
            "Give the key for the new address (an empty one if it needs none).",
        )
    if _asked_by(new) != _asked_by(old):
        _check(new, services)
    await _store(new, services)
    return Json(_with_models((await services.snapshot()).providers.get(new.id, new), services))


@router.delete("/embedding-providers/{provider_id}", status_code=204)
async def delete(provider_id: str, services: Use) -> None:
    """A provider whose vectors are kept, for a rollback too, is in use."""
    snapshot = await services.snapshot()
    found = find_provider(snapshot, provider_id)
    if users := _users(found, snapshot):
        raise _used(found, users, "Delete them first, or give them another provider and wait until the swap is over.")
    try:
        await services.control.definitions.delete_provider(found.id)
    except Conflict as e:
        raise Problem(409, "embedding_provider_conflict", e.message, e.cure) from e


def _users(found: EmbeddingProvider, snapshot: Snapshot) -> list[str]:
    return sorted(t.name for t in snapshot.vector_tables.values() if t.uses_provider(found.id))


def _runnable(kind: str, services: Services) -> None:
    refuse_unrunnable(kind, services.models.providers())
    known_provider(kind, services.models)


def _check(found: EmbeddingProvider, services: Services) -> None:
    if found.base_url is not None:
        check_base_url(found.base_url)
    services.models.check_provider(found)


def _asked_by(provider: EmbeddingProvider) -> tuple[str | None, ...]:
    return provider.provider, provider.api_key, provider.base_url


async def _store(found: EmbeddingProvider, services: Services) -> None:
    try:
        await services.control.definitions.put_provider(found)
    except Conflict:
        raise _taken(found.name) from None


def _taken(name: str) -> Problem:
    message = f"there is an embedding provider {name!r} already."
    return Problem(409, "embedding_provider_conflict", message, "Take another name.")


def _used(found: EmbeddingProvider, users: Sequence[str], cure: str) -> Problem:
    message = f"embedding provider {found.name!r} is used by vector tables: {', '.join(users)}."
    return Problem(409, "embedding_provider_conflict", message, cure)


def _with_models(p: EmbeddingProvider, services: Services) -> dict[str, Any]:
    found = models_of(p.provider, services.models.providers())
    return {
        **shapes.provider(p, services.organization.id),
        "models": [{"model": m, "dimensions": d} for m, d in found],
    }
