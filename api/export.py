"""`GET /v1/export`: all definitions of the environment as the file that `apply` reads, without their secrets."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from api.responses import Json
from api.services import Use
from walvec.definitions.export import document_of, yaml_of

router = APIRouter(prefix="/v1", tags=["definitions"])
_YAML = "application/yaml"


@router.get("/export", response_model=None)
async def export(
    services: Use,
    form: Annotated[
        Literal["yaml", "json"] | None, Query(alias="format", description="Default: as Accept says, else yaml.")
    ] = None,
    placeholders: Annotated[bool, Query(description="`${NAME}` where a secret is stored; YAML only.")] = False,
    accept: Annotated[str, Header(include_in_schema=False)] = "*/*",
) -> Response:
    """Applied as it is, it changes nothing. The JSON form is the `document` of POST /v1/apply."""
    wanted = form or ("json" if "application/json" in accept and _YAML not in accept else "yaml")
    snapshot = await services.snapshot()
    if wanted == "json":
        return Json(document_of(snapshot))
    text = yaml_of(document_of(snapshot, placeholders=placeholders), placeholders=placeholders)
    return Response(text, media_type=_YAML)
