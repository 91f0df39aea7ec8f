"""The short way of a query: half of its time was spent in what a framework puts around a route, and in waiting until
the control database had said that nothing moved, before the search was begun.

Here the search is begun with the definitions as they were last read, the same moment the database is asked; the answer
is given only when it says that these still hold. Whatever else comes goes the long way, through each layer and to the
route: other definitions meanwhile, a caller who is not let in, a body that is not well formed, a generation that is
gone. Law: whoever asks cannot tell which of the two has answered, but by the clock; nobody is told anything by
definitions that held no longer when the request came.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api import problems
from api.access import Access, Asked
from api.bodies import BodyReader, HungUp
from api.freshness import Freshness
from api.query import Overtaken, answer
from api.rate_limit import Permit, Rate
from api.requests import unexpected
from api.responses import Json
from api.schemas import Query
from api.services import Services, find_table
from walvec.contracts.errors import StoreRejected, WalvecError
from walvec.definitions.model import Snapshot
from walvec.definitions.tenancy import digest

_HEAD, _TAIL = "/v1/vector-tables/", "/query"
_ADMITTED_AT_MOST = 1000
_Mark = tuple[bytes, tuple[str | None, ...]]


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A caller's services, and what his environment holds."""

    services: Services
    own: Snapshot
    organization: str


class FastQuery:
    """Before the door, so that what it passes on goes through it. What was counted and read already is told in the
    scope's state: `permit`, `read`."""

    def __init__(
        self, app: ASGIApp, services: Services, freshness: Freshness, access: Access, rate: Rate, reader: BodyReader
    ) -> None:
        self._app = app
        self._services = services
        self._definitions = services.control.definitions
        self._freshness = freshness
        self._access = access
        self._rate = rate
        self._reader = reader
        self._known: Snapshot | None = None
        self._admitted: dict[_Mark, _Admitted] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        table = _table_of(scope)
        known = self._definitions.known if table is not None else None
        admitted = self._admit(known, scope) if known is not None else None
        if table is None or known is None or admitted is None:
            await self._app(scope, receive, send)
            return
        state = scope["state"]
        permit = state["permit"] = await self._rate.take(admitted.organization)
        if permit is None or permit.admitted:
            try:
                body = state["read"] = await self._reader.read(scope, receive)
            except HungUp:
                return
            found = await self._found(scope, known, admitted, table, body) if isinstance(body, bytes) else None
            if found is not None:
                await _counted(found, permit)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _admit(self, known: Snapshot, scope: Scope) -> _Admitted | None:
        if known is not self._known:
            self._known, self._admitted = known, {}
        asked = Asked.of(scope["headers"])
        mark = digest(asked.authorization), asked[1:]  # no token is kept
        found = self._admitted.get(mark)
        if found is None:
            try:
                caller = self._access.admit(
                    known,
                    scope["method"],
                    scope["path"],
                    asked.authorization,
                    asked.environment,
                    host=asked.host,
                    origin=asked.origin,
                )
            except WalvecError:
                return None
            services = self._services.within(caller)
            found = _Admitted(services, services.own(known), caller.organization.id)
            if len(self._admitted) >= _ADMITTED_AT_MOST:
                self._admitted.clear()
            self._admitted[mark] = found
        return found

    async def _found(
        self, scope: Scope, known: Snapshot, admitted: _Admitted, table: str, body: bytes
    ) -> Response | None:
        """None: the long way has to tell."""
        try:
            query = Query.model_validate_json(body)
        except ValidationError:
            return None
        version = self._definitions.version()  # sent when the search first waits
        found: Response
        try:
            own = admitted.own
            found = Json(await answer(admitted.services, self._freshness, own, find_table(own, table), query))
        except (StoreRejected, Overtaken):
            return None
        except WalvecError as e:
            found = problems.failure(Request(scope), e)
        except Exception:  # noqa: BLE001 - logged, and answered as a route's would be
            found = unexpected(scope)
        try:
            return found if await version == known.version else None
        except WalvecError:  # away, or it refuses us by now
            return None


def _counted(answer: Response, permit: Permit | None) -> Response:
    if permit is not None:
        answer.raw_headers.extend(permit.headers)
    return answer


def _table_of(scope: Scope) -> str | None:
    """The id or name in a query's path."""
    if scope["type"] != "http" or scope["method"] != "POST" or scope["query_string"]:
        return None
    path: str = scope["path"]
    if not path.startswith(_HEAD) or not path.endswith(_TAIL):
        return None
    found = path[len(_HEAD) : -len(_TAIL)]
    return found if found and "/" not in found and "\x00" not in found else None
