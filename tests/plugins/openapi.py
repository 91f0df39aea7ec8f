"""Holds real answers to the OpenAPI document: status, headers, and a body with every field and no other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from jsonschema import Draft202012Validator


class Contract:
    """`seen`: the operations, by id, whose good answers were looked at."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.seen: set[str] = set()
        places = sorted(document["paths"], key=lambda p: p.count("{"))  # the literal one of two that fit
        self._paths = [(re.compile(re.sub(r"\{\w+\}", "[^/]+", p)), p) for p in places]

    def check(self, method: str, path: str, status: int, headers: Iterable[str], body: Any) -> None:
        """`body`: parsed; None where there is none. Paths that are not in the document are passed over."""
        place = next((p for pattern, p in self._paths if pattern.fullmatch(path.partition("?")[0])), None)
        operation = self.document["paths"].get(place, {}).get(method.lower())
        if operation is None:
            return
        where = f"{method} {path}: {status}"
        assert str(status) in operation["responses"], f"{where} is not documented: {body}"
        response = operation["responses"][str(status)]
        for name, reference in response.get("headers", {}).items():
            header = self.document["components"]["headers"][reference["$ref"].rpartition("/")[2]]
            assert not header.get("required") or name.lower() in {h.lower() for h in headers}, f"{where}: no {name}"
        content = response.get("content", {}).get("application/json")
        if content is None:
            assert body is None or "content" in response, f"{where}: {body}"
        else:
            schema = {**content["schema"], "components": self.document["components"]}
            errors = [f"{e.json_path}: {e.message[:400]}" for e in Draft202012Validator(schema).iter_errors(body)]
            assert not errors, f"{where}: {errors[:5]}"
        if status < 300:
            self.seen.add(operation["operationId"])
