"""Failures as HTTP answers: one table from kind to status and code, one envelope for all of them.

`{"error": {"code", "message", "resolution", "docs_url", "request_id"}}`; nothing of the request is echoed but names.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from api.responses import Json
from walvec.contracts.errors import Conflict, WalvecError

logger = logging.getLogger(__name__)

KINDS: Mapping[str, tuple[int, str]] = {
    "config": (422, "validation_error"),
    "definition": (422, "validation_error"),
    "decode": (422, "validation_error"),
    "source_unavailable": (503, "source_unavailable"),
    "source_rejected": (422, "connection_not_ready"),
    "slot_in_use": (409, "slot_in_use"),
    "slot_lost": (409, "slot_lost"),
    "table_changed": (409, "source_table_changed"),
    "provider_wait": (503, "embedding_provider_unavailable"),
    "provider_stop": (502, "embedding_provider_rejected"),
    "provider_input": (422, "validation_error"),
    "store_unavailable": (503, "store_unavailable"),
    "store_rejected": (422, "store_rejected"),
    "log_unavailable": (503, "log_unavailable"),
    "log_damaged": (503, "log_damaged"),
    "partition_lost": (503, "log_unavailable"),
    "control_unavailable": (503, "control_unavailable"),
    "not_found": (404, "resource_not_found"),
    "conflict": (409, "conflict"),
    "precondition_failed": (412, "precondition_failed"),
    "internal": (500, "internal_error"),
}
_HTTP = {400: "validation_error", 401: "unauthorized", 404: "resource_not_found", 405: "method_not_allowed"}


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
            "docs_url": f"/docs#{code}",
            "request_id": request_id,
        }
    }


def answer(request: Request, status: int, code: str, message: str, resolution: str = "") -> Response:
    request_id = getattr(request.state, "request_id", None) or new_request_id()
    headers = {"X-Request-Id": request_id}
    if status == 503:
        headers["Retry-After"] = "1"
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Json(envelope(code, message, resolution, request_id), status_code=status, headers=headers)


def new_request_id() -> str:
    return f"req_{uuid4().hex[:16]}"


def failure(request: Request, error: WalvecError) -> Response:
    """An expected failure as an answer."""
    if isinstance(error, Problem):
        status, code = error.status, error.code
    else:
        status, code = KINDS.get(error.kind, KINDS["internal"])
        if isinstance(error, Conflict):
            code = error.code
    if status >= 500:
        logger.warning("request failed", extra={"action": "request_failed", "kind": error.kind, "code": code})
    return answer(request, status, code, error.message, error.cure)


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
        return answer(request, error.status_code, code, message, "See /docs for what is served.")

    async def unexpected(request: Request, error: Exception) -> Response:
        # the server writes the traceback to the log after this answer
        return answer(request, 500, "internal_error", "walvec failed in an unexpected way.", "See the API's log.")

    app.add_exception_handler(WalvecError, expected)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)


def explain(error: RequestValidationError) -> tuple[str, str]:
    """Message and resolution of a body or parameter that does not fit; values are not echoed."""
    parts = []
    for e in error.errors()[:5]:
        where = e["loc"][1:] if e["loc"][:1] in (("body",), ("query",), ("path",)) else e["loc"]
        place = ".".join(str(p) for p in where) or "the body"
        parts.append(f"{place}: {e['msg']}")
    return "; ".join(parts) + ".", "Correct the fields that are named."
