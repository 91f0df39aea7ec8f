"""Bodies before anything reads them: their size, their type, and what no JSON reader should be given.

A body is read whole, counted as it comes, within a minute; then routes and `idempotency` have it at once. JSON of any
other content type is refused: a web page may send text/plain to an address on loopback without asking, application/json
it may not.
"""

from __future__ import annotations

import asyncio
import re

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import problems
from walvec.runtime.settings import ApiSettings

_BODIES = ("POST", "PUT", "PATCH", "DELETE")
_JSON = re.compile(r"application/(json|[a-z0-9.+-]+\+json)\s*(;.*)?", re.IGNORECASE)
_DEEPEST = 100
_PATIENCE_SECONDS = 60.0
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|([\[{])|([\]}])', re.DOTALL)
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class _TooLarge(Exception):
    """More came than is taken."""


class HungUp(Exception):
    """The client is gone."""


class BodyReader:
    def __init__(self, settings: ApiSettings, patience: float = _PATIENCE_SECONDS) -> None:
        self._patience = patience
        self._limit = settings.max_body_bytes
        self._apply_limit = max(settings.max_body_bytes, settings.max_apply_bytes)

    async def read(self, scope: Scope, receive: Receive) -> bytes | Response:
        """The body, or what is answered instead of serving it. Raises HungUp."""
        request = Request(scope)
        try:
            async with asyncio.timeout(self._patience):
                body = await self._whole(request, receive)
        except TimeoutError:
            refused = problems.known(request, "request_timeout")
            refused.headers["Connection"] = "close"
            return refused
        except _TooLarge:
            limit = self._limit_of(scope["path"])
            refused = problems.known(request, "payload_too_large", f"the body is larger than {limit} bytes.")
            refused.headers["Connection"] = "close"  # the rest of it is not read
            return refused
        if body:
            if not _JSON.fullmatch(request.headers.get("content-type", "").strip()):
                return problems.known(request, "unsupported_media_type")
            fault = faults(body)
            if fault is not None:
                return problems.answer(request, 422, "validation_error", f"the body {fault}.")
        return body

    def _limit_of(self, path: str) -> int:
        return self._apply_limit if path == "/v1/apply" else self._limit

    async def _whole(self, request: Request, receive: Receive) -> bytes:
        limit = self._limit_of(request.scope["path"])
        told = request.headers.get("content-length", "")
        if told.isdigit() and (len(told) > 18 or int(told) > limit):
            raise _TooLarge
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise HungUp
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise _TooLarge
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)


class Bodies:
    """The state's `read`: it was read before. Whoever is behind finds it as `body`."""

    def __init__(self, app: ASGIApp, reader: BodyReader) -> None:
        self._app = app
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if "\x00" in scope["path"] or b"%00" in scope.get("query_string", b""):
            why = "the address must not contain the character NUL."
            await problems.answer(Request(scope), 422, "validation_error", why)(scope, receive, send)
            return
        if scope["method"] not in _BODIES:
            await self._app(scope, receive, send)
            return
        state = scope["state"]
        try:
            body = state["read"] if "read" in state else await self._reader.read(scope, receive)
        except HungUp:
            return
        if isinstance(body, Response):
            await body(scope, receive, send)
            return
        state["body"] = body
        await self._app(scope, _again(body, receive), send)


def _again(body: bytes, receive: Receive) -> Receive:
    """As if it came now; then whatever comes."""
    given = False

    async def read() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return read


def faults(body: bytes) -> str | None:
    """What makes a body unreadable, as the end of a sentence; None = it is JSON that every reader reads alike."""
    if _depth(body) > _DEEPEST:
        return f"is nested deeper than {_DEEPEST} levels"
    if b"\\u0000" in body and _NUL.search(body):
        return "must not contain the character NUL"
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError as e:
        return f"is not JSON ({e.msg.partition(':')[0]}, line {e.lineno}, column {e.colno})"
    return None


def _depth(body: bytes) -> int:
    if body.count(b"[") + body.count(b"{") <= _DEEPEST:
        return 0
    deepest = depth = 0
    for found in _BRACKETS.finditer(body):
        if found.group(1):
            depth += 1
            deepest = max(deepest, depth)
        elif found.group(2):
            depth -= 1
    return deepest
