"""All routes as one application. Next: `service` serves it."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import (
    api_keys,
    apply,
    connections,
    docs,
    environments,
    generations,
    health,
    letters,
    logs,
    openapi,
    operations,
    organizations,
    problems,
    providers,
    query,
    sync,
    tasks,
    vector_tables,
)
from api.access import Access, Caller, is_loopback, keys_of
from api.services import Services
from walvec import __version__
from walvec.contracts.errors import WalvecError

_OPEN = ("/health", "/docs", "/openapi.json")


def create_app(services: Services) -> FastAPI:
    app = FastAPI(title="walvec", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.services = services
    problems.install(app)
    parts = (
        health,
        connections,
        providers,
        vector_tables,
        generations,
        sync,
        query,
        letters,
        tasks,
        logs,
        operations,
        apply,
        organizations,
        environments,
        api_keys,
    )
    for part in parts:
        app.include_router(part.router)
    docs.install(app)
    openapi.install(app)
    app.add_middleware(Gate, services=services)
    return app


class Gate:
    """Gives each request its id and finds out who asks. Plain ASGI, so that streams and hang-ups pass through."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._definitions = services.control.definitions
        settings = services.settings
        self._access = Access(keys_of(settings), is_loopback(settings.api.host), settings.environment)

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
        if not request.url.path.startswith(_OPEN):
            try:
                scope["state"]["caller"] = await self._admitted(request)
            except WalvecError as e:
                await problems.failure(request, e)(scope, receive, named)
                return
        await self._app(scope, receive, named)

    async def _admitted(self, request: Request) -> Caller:
        """Raises Problem, ControlUnavailable."""
        return self._access.admit(
            await self._definitions.snapshot(),
            request.method,
            request.url.path,
            request.headers.get("authorization", ""),
            request.headers.get("x-environment-id"),
        )
