"""The OpenAPI document is whole, and /docs needs no network."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.openapi.utils import get_openapi
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from api.app import create_app
from api.documented import CODES, OPERATIONS
from api.lifecycle import REQUESTS, TABLE, Event, Outcome, Refusal, When
from api.openapi import describe
from tests.unit.api.worlds import World


@pytest.fixture
def document(world: World) -> dict[str, Any]:
    return describe(create_app(world.services))


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def test_every_route_is_documented_and_nothing_else(world: World) -> None:
    served = get_openapi(title="", version="", routes=create_app(world.services).routes)
    assert {(method, path) for method, path, _ in operations(served)} == set(OPERATIONS)


def test_operations_have_names_of_their_own(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z_]+", name) for name in names)


def test_every_code_is_used_and_every_used_code_is_explained() -> None:
    assert {code for known in OPERATIONS.values() for code in known.codes} <= set(CODES)


EVENTS: dict[Event, str] = {
    "backfill": "backfill",
    "change": "change_vector_table",
    "adjust": "change_vector_table",
    "pause": "pause_sync",
    "resume": "resume_sync",
    "abort": "abort_rebuild",
    "rollback": "roll_back",
    "cancel": "cancel_task",
    "query": "query",
    "delete": "delete_vector_table",
}


@pytest.mark.parametrize("event", REQUESTS)
def test_what_a_state_refuses_is_documented(event: Event) -> None:
    def codes(outcome: Outcome) -> Iterator[str]:
        if isinstance(outcome, Refusal):
            yield outcome.code
        elif isinstance(outcome, When):
            yield from codes(outcome.then)
            yield from codes(outcome.otherwise)

    (known,) = [k for k in OPERATIONS.values() if k.id == EVENTS[event]]
    assert {code for outcome in TABLE[event].values() for code in codes(outcome)} <= set(known.codes)


def test_every_answer_and_field_is_described(document: dict[str, Any]) -> None:
    """A reference has the words of what it refers to."""
    silent = []
    models = {k.answer for k in OPERATIONS.values() if k.answer is not None}
    assert all(issubclass(m, BaseModel) for m in models)
    for method, path, operation in operations(document):
        assert operation["summary"], (method, path)
        own = [p for p in operation.get("parameters", []) if "$ref" not in p]
        silent += [f"{method} {path}: {p['name']}" for p in own if not p.get("description")]
    for name, schema in document["components"]["schemas"].items():
        for field, described in schema.get("properties", {}).items():
            if not ({"description", "$ref"} & set(described)):
                silent.append(f"{name}.{field}")
    assert silent == []


def test_references_lead_somewhere(document: dict[str, Any]) -> None:
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for inner in value.values():
                yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    found = set(references(document))
    assert found
    for reference in found:
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


def test_examples_fit_their_schemas(document: dict[str, Any]) -> None:
    count = 0
    for method, path, operation in operations(document):
        contents = [*(r.get("content", {}) for r in operation["responses"].values())]
        contents.append(operation.get("requestBody", {}).get("content", {}))
        for content in contents:
            for media in content.values():
                for example in [media["example"]] if "example" in media else []:
                    schema = {**media["schema"], "components": document["components"]}
                    Draft202012Validator(schema).validate(example)
                    count += 1
        assert method in ("GET", "DELETE", "POST", "PUT"), path
    assert count > 50


async def test_docs_need_no_network(world: World) -> None:
    page = (await world.http.get("/docs")).text
    found = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(found) >= 3
    for address in found:
        assert address.startswith("/docs/")
        answer = await world.http.get(address)
        assert answer.status_code == 200
        assert len(answer.content) > 1000
