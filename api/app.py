"""All routes as one application. Next: `service` serves it."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import (
    apply,
    connections,
    docs,
    health,
    letters,
    logs,
    openapi,
    operations,
    problems,
    providers,
    query,
    sync,
    tasks,
    vector_tables,
)
from api.access import allowed
from api.services import Services
from walvec import __version__

_OPEN = ("/health", "/docs", "/openapi.json")


def create_app(services: Services, keys: Sequence[str] = ()) -> FastAPI:
    """`keys`: bearer tokens that may ask; none = everybody who reaches the address."""
    app = FastAPI(title="walvec", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.services = services
    problems.install(app)
    parts = (
        health,
        connections,
        providers,
        vector_tables,
        sync,
        query,
        letters,
        tasks,
        logs,
        operations,
        apply,
    )
    for part in parts:
        app.include_router(part.router)
    docs.install(app)
    openapi.install(app)
    app.add_middleware(Gate, keys=tuple(keys))
    return app


class Gate:
    """Gives each request its id and asks for the key. Plain ASGI, so that streams and hang-ups pass through."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = problems.new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.setdefault("headers", [])
                if not any(name == b"x-request-id" for name, _ in headers):
                    headers.append((b"x-request-id", request_id.encode()))
            await send(message)

        request = Request(scope)
        closed = bool(self._keys) and not request.url.path.startswith(_OPEN)
        if closed and not allowed(request.headers.get("authorization", ""), self._keys):
            refused = problems.answer(
                request,
                401,
                "unauthorized",
                "the API key is missing or wrong.",
                "Send Authorization: Bearer <one of WALVEC_API__KEYS>.",
            )
            await refused(scope, receive, named)
            return
        await self._app(scope, receive, named)
