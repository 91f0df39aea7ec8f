"""`/health…`: is the process there, can it work, is what it was started with applied."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from fastapi import APIRouter

from api.responses import Json
from api.services import Services, Use
from walvec.contracts.errors import WalvecError
from walvec.runtime.readiness import applying

router = APIRouter(tags=["health"])
_PATIENCE = 3.0


@router.get("/health")
async def health(services: Use) -> Json:
    """200 once what `walvec up --apply` named is applied."""
    if applying(services.settings.data_dir):
        return Json({"status": "starting", "detail": "definitions are being applied"}, status_code=503)
    return Json({"status": "ok"})


@router.get("/health/live")
async def live() -> Json:
    return Json({"status": "ok"})


@router.get("/health/ready")
async def ready(services: Use) -> Json:
    """200 when the control database and the log answer."""
    checks = await _checks(services)
    fine = all(c["ok"] for c in checks.values())
    return Json({"status": "ok" if fine else "unavailable", "checks": checks}, status_code=200 if fine else 503)


async def _checks(services: Services) -> dict[str, dict[str, Any]]:
    control, log = await asyncio.gather(_answers(services.snapshot()), _answers(services.reach.check(_PATIENCE)))
    return {"control_database": control, "log": log}


async def _answers(question: Awaitable[Any]) -> dict[str, Any]:
    try:
        async with asyncio.timeout(_PATIENCE + 0.5):
            await question
    except TimeoutError:
        return {"ok": False, "detail": f"no answer within {_PATIENCE:g} s"}
    except WalvecError as e:
        return {"ok": False, "detail": str(e)}
    return {"ok": True, "detail": ""}
