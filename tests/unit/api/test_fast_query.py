"""The short way of a query answers as the route does: neither status, nor body, nor headers tell them apart."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from api import fast_query, query
from tests.unit.api.test_query import hits
from tests.unit.api.worlds import World
from walvec.contracts.errors import ConfigError, ControlUnavailable, ProviderWait, StoreUnavailable, WalvecError

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


def stale(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process has read last stays as it is now, whatever is stored from here on."""
    monkeypatch.setattr(type(world.control.definitions), "known", world.control.feed.current)


def asked(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ways that queries took from now on: `short` and `route`."""
    ways: list[str] = []
    inner = outer = query.answer

    async def short(*arguments: Any) -> Any:
        ways.append("short")
        return await outer(*arguments)

    async def route(*arguments: Any) -> Any:
        ways.append("route")
        return await inner(*arguments)

    monkeypatch.setattr(fast_query, "answer", short)
    monkeypatch.setattr(query, "answer", route)
    return ways


async def test_definitions_that_hold_no_longer_answer_nothing(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stale(ready, monkeypatch)
    ways = asked(ready, monkeypatch)
    body = b'{"query": "a", "limit": 3}'
    assert (await answer(ready, PATH, body))[0] == 200
    assert ways == ["short"]
    renamed = PATH.replace("products", "renamed")
    await ready.ask("PUT", ready.path, {"name": "renamed"})
    assert (await answer(ready, PATH, body))[1]["error"]["code"] == "vector_table_not_found"
    assert ways == ["short", "short"], "the old name was found, and then not told of"
    assert (await answer(ready, renamed, body))[0] == 200
    assert ways == ["short", "short", "route"]
    await ready.ask("DELETE", f"/v1/vector-tables/{ready.table.id}", status=204)
    for path in (PATH, renamed):
        assert (await answer(ready, path, body))[1]["error"]["code"] == "vector_table_not_found"


async def test_a_key_that_was_revoked_opens_nothing(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await ready.ask("POST", "/v1/api-keys", {"name": "short-lived", "permission": "full"}, 201)
    headers = {"Authorization": f"Bearer {made['key']}"}
    stale(ready, monkeypatch)
    assert (await ready.http.post(PATH, json={"query": "a"}, headers=headers)).status_code == 200
    await ready.ask("DELETE", f"/v1/api-keys/{made['api_key']['id']}", status=204, headers=headers)
    for _ in range(2):
        refused = await ready.http.post(PATH, json={"query": "a"}, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "key_revoked")


async def test_a_query_that_goes_both_ways_counts_once(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def left() -> int:
        found = await ready.http.post(PATH, json={"query": "a"})
        assert found.status_code == 200
        return int(found.headers["x-ratelimit-remaining"])

    before = await left()
    assert await left() == before - 1
    stale(ready, monkeypatch)
    await ready.ask("PUT", ready.path, {"keep_previous": 5})  # a request as well
    ways = asked(ready, monkeypatch)
    assert await left() == before - 3
    assert ways == ["short", "route"]


@pytest.mark.parametrize(
    ("away", "status", "code"),
    [
        (ControlUnavailable("the control database cannot be reached."), 503, "control_unavailable"),
        (ConfigError("the control database refuses the connection."), 422, "validation_error"),
    ],
    ids=["away", "refuses"],
)
async def test_nothing_is_told_while_the_control_database_is_away(
    ready: World, monkeypatch: pytest.MonkeyPatch, away: WalvecError, status: int, code: str
) -> None:

    def version() -> asyncio.Future[int]:
        told: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        told.set_exception(away)
        return told

    async def snapshot() -> Any:
        raise away

    monkeypatch.setattr(ready.control.definitions, "version", version)
    monkeypatch.setattr(ready.control.definitions, "snapshot", snapshot)
    refused = await ready.http.post(PATH, json={"query": "a"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)


async def test_of_a_header_that_comes_twice_both_ways_take_the_first(
    ready: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await ready.ask("POST", "/v1/api-keys", {"name": "one", "permission": "full"}, 201)
    good, bad = f"Bearer {made['key']}", "Bearer sk_live_none"
    for _ in range(2):
        for first, second, status in ((good, bad, 200), (bad, good, 401)):
            headers = [("authorization", first), ("authorization", second)]
            assert (await ready.http.post(PATH, json={"query": "a"}, headers=headers)).status_code == status
        monkeypatch.setattr(fast_query, "_table_of", lambda _: None)
