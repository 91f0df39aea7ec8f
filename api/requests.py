"""A request's id, its line in the log, and an answer to whatever nobody expected.

The id stands in the answer, in the envelope of a failure, and in every line that is logged while it is served. One that
a client or a proxy sent is kept if it is well formed.
"""

from __future__ import annotations

import logging
import re
import time

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from walvec.runtime.logging import request_id as current

logger = logging.getLogger(__name__)

_GIVEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{7,63}")
_QUIET = ("GET", "HEAD", "OPTIONS")


class Requests:
    """The outermost. Plain ASGI, so that streams and hang-ups pass through."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Request(scope).headers.get("x-request-id", "")
        request_id = given if _GIVEN.fullmatch(given) else problems.new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        # not taken back: what the server logs of this request after us is of this request as well
        current.set(request_id)
        status = 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                if not any(name == b"x-request-id" for name, _ in headers):
                    headers.append((b"x-request-id", request_id.encode()))
            await send(message)

        began = time.perf_counter()
        try:
            await self._app(scope, receive, named)
        finally:
            _log(scope, status, began)


def _log(scope: Scope, status: int, began: float) -> None:
    """What changes something: info; what only asks: debug. Neither query string, nor body, nor key."""
    quiet = scope["method"] in _QUIET or scope["path"].endswith("/query")
    level = logging.DEBUG if quiet else logging.INFO
    if not logger.isEnabledFor(level):
        return
    caller = scope["state"].get("caller")
    key = getattr(caller, "key_id", None)
    path = scope.get("raw_path") or scope["path"].encode("utf-8", "replace")
    fields = {
        "action": "request",
        "method": scope["method"],
        "path": re.sub(r"[^!-~]", "?", path.decode("latin-1").partition("?")[0])[:200],
        "status": status,
        "ms": round((time.perf_counter() - began) * 1000, 1),
    }
    logger.log(level, "request served", extra=fields | ({"key": key} if key else {}))


class Unexpected:
    """The innermost: an exception that nobody knows becomes an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            answer = unexpected(scope)
            if started:
                raise  # half an answer is out: only breaking it off says so
            await answer(scope, receive, send)


def unexpected(scope: Scope) -> Response:
    """Of the exception in hand: a 500 that tells nothing of it; the log has it."""
    logger.exception("a request failed in an unexpected way", extra={"action": "request_failed"})
    return problems.known(Request(scope), "internal_error")
