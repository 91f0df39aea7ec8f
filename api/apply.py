"""`POST /v1/apply`: a definitions document made true, or the difference it would make."""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakValueDictionary

from fastapi import APIRouter

from api import reconcile
from api.plan import Difference, plan
from api.responses import Json
from api.schemas import Apply
from api.services import Use
from walvec.definitions.document import parse

router = APIRouter(prefix="/v1", tags=["definitions"])
_one_at_a_time: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
"""By environment: a source that does not answer keeps nobody else waiting."""


@router.post("/apply")
async def apply(body: Apply, services: Use) -> Json:
    """Variables of the document are expanded by who sends it: their values are the client's."""
    document = parse(body.document, "the document")
    async with _one_at_a_time.setdefault(services.environment.id, asyncio.Lock()):
        planned = await plan(
            document,
            await services.snapshot(),
            services.source,
            services.models,
            services.store,
            prune=body.prune,
            default_store=services.settings.store,
            log=services.shared_log,
            environment=services.environment,
        )
        differences = planned.differences
        if not body.dry_run:
            differences = await reconcile.apply(
                planned, services.control, services.store, services.log, services.source
            )
    return Json(
        {
            "applied": not body.dry_run,
            "changed": not planned.empty,
            "differences": [as_json(d) for d in differences],
        }
    )


def as_json(difference: Difference) -> dict[str, Any]:
    return {
        "action": difference.action,
        "kind": difference.kind,
        "name": difference.name,
        "fields": {
            name: change if isinstance(change, str) else {"before": change[0], "after": change[1]}
            for name, change in difference.fields.items()
        },
        "text": str(difference),
    }
