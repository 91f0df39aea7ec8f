"""All routes as one application. Next: `service` serves it."""

from __future__ import annotations

import os

from fastapi import FastAPI
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api import (
    api_keys,
    apply,
    connections,
    docs,
    environments,
    errors,
    export,
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
    waits,
)
from api.access import Access, Asked, Caller, is_loopback, keys_of
from api.bodies import Bodies, BodyReader
from api.fast_query import FastQuery
from api.freshness import Freshness
from api.idempotency import Idempotency
from api.rate_limit import Rate, RateLimit
from api.requests import Requests, Unexpected
from api.services import Services
from walvec import __version__
from walvec.contracts.errors import WalvecError
from walvec.definitions.ports import Definitions
from walvec.runtime.lifecycle import OWN_KEY

_OPEN = ("/health", "/docs", "/openapi.json", "/errors")


class App(FastAPI):
    """With two layers around the framework's own: what every request has, and the short way of queries."""

    outermost: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.outermost(scope, receive, send)

    async def framework(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(scope, receive, send)


def create_app(services: Services) -> App:
    app = App(title="walvec", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.services = services
    freshness = app.state.freshness = Freshness()
    problems.install(app)
    parts = (
        health,
        connections,
        providers,
        vector_tables,
        generations,
        sync,
        waits,
        query,
        letters,
        tasks,
        logs,
        operations,
        apply,
        export,
        organizations,
        environments,
        api_keys,
        errors,
    )
    for part in parts:
        app.include_router(part.router)
    docs.install(app)
    openapi.install(app)
    # from the innermost to the outermost
    settings = services.settings
    access = Access(keys_of(settings), is_loopback(settings.api.host), settings.environment, os.environ.get(OWN_KEY))
    rate = Rate(services.control.permits, settings.api.rate_limit)
    reader = BodyReader(settings.api)
    app.add_middleware(Unexpected)
    app.add_middleware(Idempotency, answers=services.control.answers)
    app.add_middleware(Bodies, reader=reader)
    app.add_middleware(RateLimit, rate=rate)
    app.add_middleware(Gate, definitions=services.control.definitions, access=access)
    fast = FastQuery(app.framework, services=services, freshness=freshness, access=access, rate=rate, reader=reader)
    app.outermost = Requests(fast)
    return app


class Gate:
    """Finds out who asks. Plain ASGI, so that streams and hang-ups pass through."""

    def __init__(self, app: ASGIApp, definitions: Definitions, access: Access) -> None:
        self._app = app
        self._definitions = definitions
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        if not scope["path"].startswith(_OPEN):
            try:
                scope["state"]["caller"] = await self._admitted(request)
            except WalvecError as e:
                await problems.failure(request, e)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _admitted(self, request: Request) -> Caller:
        """Raises Problem, ControlUnavailable."""
        snapshot = await self._definitions.snapshot()
        request.state.snapshot = snapshot  # as stored when the request came: what only reads need not ask again
        asked = Asked.of(request.scope["headers"])
        return self._access.admit(
            snapshot,
            request.method,
            request.scope["path"],  # as the router takes it; `url` is put together from what the client says of itself
            asked.authorization,
            asked.environment,
            host=asked.host,
            origin=asked.origin,
        )
