"""`/errors/{code}`: what a failure's `docs_url` leads to, as a page or as JSON."""

from __future__ import annotations

from html import escape

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from api.codes import CODES
from api.problems import Problem
from api.responses import Json

router = APIRouter(include_in_schema=False)
_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>
<body><h1>{title}</h1><dl>{rows}</dl></body></html>
"""


@router.get("/errors")
async def listed() -> Json:
    return Json({"data": [{"code": name, **code._asdict()} for name, code in sorted(CODES.items())]})


@router.get("/errors/{code}")
async def one(code: str, request: Request) -> Response:
    found = CODES.get(code)
    if found is None:
        raise Problem(404, "resource_not_found", "there is no such code.", "GET /errors lists them.")
    told = {"code": code, **found._asdict()}
    if "text/html" not in request.headers.get("accept", ""):
        return Json(told)
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in told.items())
    return HTMLResponse(_PAGE.format(title=escape(code), rows=rows))
