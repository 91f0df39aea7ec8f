"""The short way of a query answers as the route does: neither status, nor body, nor headers tell them apart."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from api import fast_query
from tests.unit.api.test_query import hits
from tests.unit.api.worlds import World
from walvec.contracts.errors import ProviderWait, StoreUnavailable

PATH = "/v1/vector-tables/products/query"
PASSING = ("x-request-id", "x-ratelimit-remaining", "x-ratelimit-reset")


@pytest.fixture
async def ready(world: World) -> World:
    table = await world.apply()
    await world.ask("POST", f"/v1/vector-tables/{table.id}/backfill", status=409)
    world.store.hits = hits(5)
    return world


async def answer(world: World, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
    found = await world.http.post(path, content=body, headers={"content-type": "application/json"})
    told = found.json()
    told.get("error", {}).pop("request_id", None)
    told.pop("staleness_secs", None)
    headers = {n: v for n, v in found.headers.items() if n not in PASSING}
    headers.pop("content-length")
    assert {n for n in PASSING if n in found.headers} == set(PASSING)
    return found.status_code, told, headers


BODIES = [
    b'{"query": "a"}',
    b'{"query": "a", "limit": 2}',
    b'{"query": "a", "limit": 2.0, "include": ["vector"]}',
    b'{"query": "a", "limit": 1, "filters": {"price": {"gt": 18446744073709551616}}}',
    b'{"query": "a", "filters": {"price": {"gt": "much"}}}',
    b'{"query": "a", "filters": {"price": 1, "price": 2}}',
    b'{"query": "\\ud83d\\ude00", "min_similarity_score": 0.5}',
    b'{"query": "\\ud800"}',
    b'{"query": "a", "limit": "5"}',
    b'{"query": "a", "limit": true}',
    b'{"query": "a", "limit": 2.5}',
    b'{"query": "a", "limit": 1e400}',
    b'{"query": "a", "cursor": "nonsense"}',
    b'{"query": "a", "more": 1}',
    b'{"query": "", "vector": null}',
    b'{"vector": [' + b", ".join([b"1"] * 256) + b"]}",
    b'{"vector": [' + b", ".join([b"1"] * 256) + b', "1"]}',
    b'{"vector": []}',
    b"{}",
    b"[]",
    b"null",
    b"{",
    b"",
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
async def test_both_ways_answer_alike(ready: World, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    paths = (PATH, "/v1/vector-tables/none/query", "/v1/vector-tables/a%2Fb/query")
    short = [await answer(ready, path, body) for path in paths]
    monkeypatch.setattr(fast_query, "_table_of", lambda _: None)
    assert short == [await answer(ready, path, body) for path in paths]


async def test_failures_are_the_routes_own(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, short in itertools.product(
        (StoreUnavailable("the store is away."), ProviderWait("busy.", retry_after=7), RuntimeError("unforeseen")),
        (True, False),
    ):

        async def fail(*_: Any, error: Exception = error, **__: Any) -> Any:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(ready.store, "search", fail)
            if short:
                seen = await answer(ready, PATH, b'{"query": "a"}')
                continue
            patch.setattr(fast_query, "_table_of", lambda _: None)
            assert await answer(ready, PATH, b'{"query": "a"}') == seen
            assert seen[0] in (500, 503)


async def test_what_is_well_formed_does_not_reach_the_route(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready.app, "router", None)  # who comes so far finds nothing
    ready.app.middleware_stack = None
    status, told, _ = await answer(ready, PATH, b'{"query": "a", "limit": 3}')
    assert (status, told["total_results"]) == (200, 3)
