"""The query's route without what the framework puts around a route: half of a query's time was spent there.

Only what is well formed is served here. All else goes on to the route, which says what is wrong with it; the document
of the API is the route's as well. Law: whoever asks cannot tell which of the two has answered.
"""

from __future__ import annotations

from pydantic import ValidationError
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api import problems
from api.freshness import Freshness
from api.query import answered
from api.schemas import Query
from api.services import Services
from walvec.contracts.errors import WalvecError

_HEAD, _TAIL = "/v1/vector-tables/", "/query"


class FastQuery:
    """The innermost. Needs the caller, the snapshot and the body in the scope's state."""

    def __init__(self, app: ASGIApp, services: Services, freshness: Freshness) -> None:
        self._app = app
        self._services = services
        self._freshness = freshness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        table = _table_of(scope)
        state = scope.get("state", {})
        body, caller, snapshot = state.get("body"), state.get("caller"), state.get("snapshot")
        if table is None or not body or caller is None or snapshot is None:
            await self._app(scope, receive, send)
            return
        try:
            query = Query.model_validate_json(body)
        except ValidationError:
            await self._app(scope, receive, send)
            return
        try:
            answer = await answered(self._services.within(caller), self._freshness, snapshot, table, query)
        except WalvecError as e:
            answer = problems.failure(Request(scope), e)
        await answer(scope, receive, send)


def _table_of(scope: Scope) -> str | None:
    """The id or name in a query's path."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    path: str = scope["path"]
    if not path.startswith(_HEAD) or not path.endswith(_TAIL):
        return None
    found = path[len(_HEAD) : -len(_TAIL)]
    return found if found and "/" not in found else None
