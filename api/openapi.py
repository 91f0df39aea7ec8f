"""/openapi.json: what the framework knows of paths, parameters and bodies, with the answers of `documented`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.answers.parts import Error
from api.codes import docs_url
from api.documented import CODES, OPERATIONS, Operation
from api.documented import PARAMETERS as MEANINGS
from api.idempotency import CREATES

NDJSON = "application/x-ndjson"
_REFERENCE = "#/components/schemas/{model}"
_INTEGER = {"type": "integer", "minimum": 0}
HEADERS: Mapping[str, dict[str, Any]] = {
    "X-Request-Id": {
        "description": "Names this request in walvec's log.",
        "required": True,
        "schema": {"type": "string"},
    },
    "X-RateLimit-Limit": {"description": "Requests that are allowed per minute.", "schema": _INTEGER},
    "X-RateLimit-Remaining": {"description": "Requests that are left now.", "schema": _INTEGER},
    "X-RateLimit-Reset": {"description": "When all are there again, in Unix seconds.", "schema": _INTEGER},
    "Retry-After": {"description": "Seconds to wait before asking again.", "required": True, "schema": _INTEGER},
    "ETag": {
        "description": "Version of the definition, for If-Match.",
        "required": True,
        "schema": {"type": "string"},
    },
    "WWW-Authenticate": {"description": "Bearer", "required": True, "schema": {"type": "string"}},
}
PARAMETERS: Mapping[str, dict[str, Any]] = {
    "Environment": {
        "name": "X-Environment-Id",
        "in": "header",
        "description": "Environment to work in, by its id. Default: the server's own, `prod`.",
        "schema": {"type": "string"},
    },
    "IdempotencyKey": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "A repeated request with the same key and body gets the first one's answer, and makes nothing.",
        "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    },
}
_TEXT = """\
Keeps vectors in step with Postgres rows. Every failure is one object, `error`, with a code of this table:

| code | status | meaning |
|---|---|---|
"""


def install(app: FastAPI) -> None:
    """`app.openapi()` and /openapi.json give the whole document, made at the first call."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def describe(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(title=app.title, version=app.version, description=_description(), routes=app.routes)
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    names = _models(schemas)
    for method, path, operation in _operations(found):
        _write(operation, OPERATIONS[method, path], method, path, names)
    found["components"] |= {
        "headers": dict(HEADERS),
        "parameters": dict(PARAMETERS),
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key, `sk_live_…`."}},
    }
    return found


def _description() -> str:
    return _TEXT + "".join(f"| `{code}` | {status} | {text} |\n" for code, (status, text) in sorted(CODES.items()))


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def _models(schemas: dict[str, Any]) -> dict[type[BaseModel], dict[str, Any]]:
    """Adds the answers' schemas to those of the bodies; by model the reference to its own."""
    answers = {o.answer for o in OPERATIONS.values() if o.answer is not None} | {Error}
    ordered = sorted(answers, key=lambda m: m.__name__)
    found, definitions = models_json_schema([(m, "validation") for m in ordered], ref_template=_REFERENCE)
    taken: dict[str, Any] = definitions.get("$defs", {})
    clash = sorted(set(taken) & set(schemas))
    assert not clash, f"an answer and a body have one name: {clash}"
    schemas |= taken
    return {model: found[model, "validation"] for model in ordered}


def _write(
    operation: dict[str, Any], known: Operation, method: str, path: str, names: Mapping[type[BaseModel], dict[str, Any]]
) -> None:
    private = path.startswith("/v1")
    operation["operationId"] = known.id
    operation["summary"] = known.summary
    operation["responses"] = _responses(operation, known, method, path, names)
    have = {p["name"] for p in operation.get("parameters", [])}
    for name in re.findall(r"{(\w+)}", path):
        if name not in have:
            place = {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            operation.setdefault("parameters", []).append(place)
    for parameter in operation.get("parameters", []):
        if parameter["name"] in MEANINGS:
            parameter.setdefault("description", MEANINGS[parameter["name"]])
    if private:
        operation["security"] = [{"key": []}]
        added = [
            *(["Environment"] if known.environment else []),
            *(["IdempotencyKey"] if _creates(method, path) else []),
        ]
        if added:
            operation.setdefault("parameters", []).extend({"$ref": f"#/components/parameters/{n}"} for n in added)


def _creates(method: str, path: str) -> bool:
    return method == "POST" and CREATES.fullmatch(path) is not None


def _responses(
    operation: Mapping[str, Any],
    known: Operation,
    method: str,
    path: str,
    names: Mapping[type[BaseModel], dict[str, Any]],
) -> dict[str, Any]:
    private = path.startswith("/v1")
    always = ["X-Request-Id", *(n for n in HEADERS if n.startswith("X-RateLimit") and private)]
    good: dict[str, Any] = {"description": known.summary, "headers": _headers(*always, *known.headers)}
    if known.answer is not None:
        good["content"] = {known.media: _content(known.media, names[known.answer])}
        good["content"] |= {media: {"schema": names[known.answer]} for media in known.also_as}
    found = {str(known.status): good}
    for status, text in (known.also or {}).items():
        found[str(status)] = good | {"description": text}
    by_status: dict[int, list[str]] = {}
    for code in _codes(operation, known, method, path):
        by_status.setdefault(CODES[code][0], []).append(code)
    for status, codes in sorted(by_status.items()):
        more = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",), 504: ("Retry-After",)}.get(
            status, ()
        )
        limited = always if status != 401 else ["X-Request-Id"]  # who is unknown has no count
        found[str(status)] = {
            "description": " ".join(f"`{c}`: {CODES[c][1]}" for c in codes),
            "headers": _headers(*limited, *more),
            "content": {"application/json": {"schema": _error(codes), "example": _example(codes[0])}},
        }
    return found


def _content(media: str, schema: dict[str, Any]) -> dict[str, Any]:
    if media != NDJSON:
        return {"schema": schema}
    # 3.1 has no words for a schema of each line
    return {"schema": {"type": "string", "description": "One JSON object per line."}, "x-itemSchema": schema}


def _codes(operation: Mapping[str, Any], known: Operation, method: str, path: str) -> list[str]:
    """Those of the operation, and those that it shares with its like."""
    if not path.startswith("/v1"):
        return list(known.codes)
    shared = ("unauthorized", "key_revoked", "permission_denied", "org_deleting", "rate_limit_exceeded")
    found = [*known.codes, *shared, "control_unavailable"]
    if known.environment:
        found.append("environment_not_found")
    if re.search(r"\{", path):
        found.append("resource_not_found")  # a name with a slash in it is another path
    if "requestBody" in operation:
        found += ["request_timeout", "payload_too_large", "unsupported_media_type", "validation_error"]
    if operation.get("parameters"):
        found.append("validation_error")
    if _creates(method, path):
        found += ["idempotency_in_progress", "idempotency_key_reused"]
    return list(dict.fromkeys(found))


def _headers(*names: str) -> dict[str, Any]:
    return {n: {"$ref": f"#/components/headers/{n}"} for n in names}


def _error(codes: list[str]) -> dict[str, Any]:
    """The envelope, with these codes and no other."""
    narrowed = {"properties": {"error": {"properties": {"code": {"enum": sorted(codes)}}}}}
    return {"allOf": [{"$ref": _REFERENCE.format(model="Error")}, narrowed]}


def _example(code: str) -> dict[str, Any]:
    return {
        "error": {
            "code": code,
            "message": CODES[code][1],
            "resolution": "",
            "docs_url": docs_url(code),
            "request_id": "req_3b1f8a0c9d7e4526",
        }
    }
