"""Failures as HTTP answers: one table from kind to code (`codes` has what a code means), one envelope for all of them.

`{"error": {"code", "message", "resolution", "docs_url", "request_id"}}`; nothing of the request is echoed but names.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.responses import Response

from api.codes import CODES, docs_url
from api.responses import Json
from walvec.contracts.errors import Conflict, ProviderWait, WalvecError

logger = logging.getLogger(__name__)

_LONGEST_WAIT = 3600.0

KINDS: Mapping[str, str] = {
    "config": "validation_error",
    "definition": "validation_error",
    "decode": "validation_error",
    "source_table_denied": "source_table_access_denied",
    "source_unavailable": "source_unavailable",
    "source_rejected": "connection_not_ready",
    "slot_in_use": "slot_in_use",
    "slot_lost": "slot_lost",
    "table_changed": "source_table_changed",
    "provider_wait": "embedding_provider_unavailable",
    "provider_stop": "embedding_provider_rejected",
    "provider_input": "validation_error",
    "store_unavailable": "store_unavailable",
    "store_rejected": "store_rejected",
    "view_taken": "vector_table_conflict",
    "log_unavailable": "log_unavailable",
    "log_damaged": "log_damaged",
    "partition_lost": "log_unavailable",
    "control_unavailable": "control_unavailable",
    "not_found": "resource_not_found",
    "conflict": "conflict",
    "precondition_failed": "precondition_failed",
    "internal": "internal_error",
}
_HTTP = {401: "unauthorized", 404: "resource_not_found", 405: "method_not_allowed"}


class Problem(WalvecError):
    """A failure that the API itself finds, with the documented code."""

    def __init__(self, status: int, code: str, message: str, cure: str = "") -> None:
        super().__init__(message, cure)
        self.status = status
        self.code = code


def invalid(message: str, cure: str = "") -> Problem:
    return Problem(422, "validation_error", message, cure)


def envelope(code: str, message: str, resolution: str, request_id: str) -> dict[str, Any]:
    return {
        "error": {
            "code": code,
            "message": message,
            "resolution": resolution,
            "docs_url": docs_url(code),
            "request_id": request_id,
        }
    }


def answer(
    request: Request, status: int, code: str, message: str, resolution: str = "", retry_after: float = 1
) -> Response:
    request_id = getattr(request.state, "request_id", None) or new_request_id()
    headers = {"X-Request-Id": request_id}
    if status in (429, 503, 504):
        headers["Retry-After"] = str(max(1, math.ceil(min(retry_after, _LONGEST_WAIT))))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    told = resolution or (CODES[code].cure if code in CODES else "")
    return Json(envelope(code, message, told, request_id), status_code=status, headers=headers)


def known(request: Request, code: str, message: str = "", retry_after: float = 1) -> Response:
    """The answer that the table of codes has."""
    found = CODES[code]
    return answer(request, found.status, code, message or found.means, found.cure, retry_after)


def new_request_id() -> str:
    return f"req_{uuid4().hex[:16]}"


def failure(request: Request, error: WalvecError) -> Response:
    """An expected failure as an answer."""
    if isinstance(error, Problem):
        status, code = error.status, error.code
    else:
        code = error.code if isinstance(error, Conflict) else KINDS.get(error.kind, KINDS["internal"])
        status = CODES[code].status if code in CODES else 409
    if status >= 500:
        logger.warning("request failed", extra={"action": "request_failed", "kind": error.kind, "code": code})
    told = error.retry_after if isinstance(error, ProviderWait) else None
    return answer(request, status, code, error.message, error.cure, told or 1)


def install(app: FastAPI) -> None:
    """Every exception becomes the envelope."""

    async def expected(request: Request, error: Exception) -> Response:
        assert isinstance(error, WalvecError)
        return failure(request, error)

    async def validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return answer(request, 422, "validation_error", *explain(error))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = _HTTP.get(error.status_code, "request_failed")
        message = str(error.detail)
        if error.status_code == 404:
            message = f"there is no {request.method} {request.url.path} here."
        if error.status_code == 405:
            message = f"{request.url.path} has no {request.method}."
        told = answer(request, error.status_code, code, message, CODES[code].cure)
        if error.status_code == 405:
            told.headers["Allow"] = ", ".join(_methods(request))
        return told

    async def unexpected(request: Request, error: Exception) -> Response:
        # the server writes the traceback to the log after this answer
        return known(request, "internal_error")

    app.add_exception_handler(WalvecError, expected)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)


def _methods(request: Request) -> list[str]:
    """All that its path has; the framework's own answer names those of one route."""
    path = request.scope["path"]
    places = [r for r in iter_route_contexts(request.app.routes) if r.path_regex.match(path)]
    places = [r for r in places if r.path == path] or places  # a name in the path of others is no place of its own
    return sorted({method for route in places for method in route.methods or ()})


def explain(error: RequestValidationError) -> tuple[str, str]:
    """Message and resolution of a body or parameter that does not fit; values are not echoed."""
    parts = []
    found = error.errors()
    for e in [e for e in found if not _follows(e, found)][:5]:
        where = e["loc"][1:] if e["loc"][:1] in (("body",), ("query",), ("path",)) else e["loc"]
        place = ".".join(str(p) for p in where) or "the body"
        parts.append(f"{place}: {_said(e)}")
    return "; ".join(parts) + ".", "Correct the fields that are named."


def _follows(error: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a list is only too short because of its items that do not fit."""
    place = error["loc"]
    return error["type"] == "too_short" and any(
        len(e["loc"]) > len(place) and e["loc"][: len(place)] == place for e in found
    )


_LENGTHS = {"too_long": ("most", "max_length"), "too_short": ("least", "min_length")}
_TYPES = {
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def _said(error: Mapping[str, Any]) -> str:
    """In JSON's words, where pydantic's are Python's; a text has characters, also where a check stands before its
    length."""
    kind = error["type"]
    if kind in _LENGTHS:
        bound, limit = _LENGTHS[kind]
        number = error["ctx"][limit]
        of = "character" if isinstance(error["input"], str) else "item"
        return f"must have at {bound} {number} {of}{'' if number == 1 else 's'}"
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}"
    return str(error["msg"]).removeprefix("Value error, ")
