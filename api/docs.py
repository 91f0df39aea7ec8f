"""`/docs`: the API to read and to try, from files of this installation: it needs no network."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.responses import HTMLResponse

router = APIRouter()
_FILES = "/docs/files"


@router.get("/docs", include_in_schema=False)
async def page() -> HTMLResponse:
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="walvec",
        swagger_js_url=f"{_FILES}/swagger-ui-bundle.js",
        swagger_css_url=f"{_FILES}/swagger-ui.css",
        swagger_favicon_url=f"{_FILES}/favicon.png",
    )


def install(app: FastAPI) -> None:
    app.include_router(router)
    app.mount(_FILES, StaticFiles(directory=str(files("fastapi_offline") / "static")))
