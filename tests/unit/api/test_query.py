"""Queries: what is asked, pages, cursors, and how fresh an answer calls itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from api import cursors
from api.freshness import Known
from api.problems import Problem
from tests.unit.api.worlds import World
from walvec.contracts.errors import StoreRejected
from walvec.contracts.stores import Hit, Place

QUERY = "/v1/vector-tables/products/query"


def hits(number: int) -> list[Hit]:
    return [
        Hit({"id": i}, 0, 1 - i / 100, f"row {i}", {"price": i}, Place(i / 100, bytes([i] * 16), 0, i + 1), [0.5] * 256)
        for i in range(number)
    ]


@pytest.fixture
async def ready(world: World) -> World:
    table = await world.apply()
    await world.ask("POST", f"/v1/vector-tables/{table.id}/backfill", status=409)
    return world


async def test_text_or_vector_but_one_of_them(ready: World) -> None:
    assert (await ready.ask("POST", QUERY, {"vector": [1.0] * 256}))["query"] is None
    for body, named in (
        ({}, "query"),
        ({"query": None}, "query"),
        ({"query": "a", "vector": [1.0] * 256}, "vector"),
        ({"vector": [1.0] * 255}, "vector"),
        ({"vector": [0] * 256}, "vector"),
        ({"vector": [1e300] * 256}, "vector"),
        ({"vector": [True] * 256}, "vector"),
        ({"vector": ["1"] * 256}, "vector"),
        ({"query": "a", "limit": 0}, "limit"),
        ({"query": "a", "limit": 101}, "limit"),
        ({"query": "a", "min_similarity_score": 1.1}, "min_similarity_score"),
        ({"query": "a", "include": ["everything"]}, "include"),
        ({"query": "a", "mode": "hybrid"}, "mode"),
        ({"query": "a", "filters": {"price": {"gt": "much"}}}, "price"),
        ({"query": "a", "filters": {"name": "x"}}, "name"),
        ({"query": "a", "filters": {"$or": []}}, "$or"),
    ):
        answer = await ready.ask("POST", QUERY, body, status=422)
        assert answer["error"]["code"] == "validation_error", body
        assert named in answer["error"]["message"], (body, answer)


async def test_what_is_included(ready: World) -> None:
    ready.store.hits = hits(1)
    found = await ready.ask("POST", QUERY, {"query": "a"})
    assert found["results"][0]["embedded_text"] == "row 0"
    assert "vector" not in found["results"][0]
    found = await ready.ask("POST", QUERY, {"query": "a", "include": ["vector"]})
    assert found["results"][0]["vector"] == [0.5] * 256
    assert "embedded_text" not in found["results"][0]


async def test_a_page_leads_to_the_next_one_of_the_same_query(ready: World) -> None:
    ready.store.hits = hits(8)
    first = await ready.ask("POST", QUERY, {"query": "a", "limit": 5})
    assert (len(first["results"]), first["has_more"], first["total_results"]) == (5, True, 5)
    following = {"query": "a", "limit": 9, "cursor": first["next_cursor"]}
    last = await ready.ask("POST", QUERY, following)
    assert (last["has_more"], last["next_cursor"]) == (False, None)
    for other in ({"query": "b"}, {"filters": {"price": 1}}, {"min_similarity_score": 0.5}, {"cursor": "AAAA"}):
        answer = await ready.ask("POST", QUERY, {**following, **other}, status=422)
        assert "cursor" in answer["error"]["message"]
        assert "first page" in answer["error"]["resolution"]


async def test_a_storage_that_a_swap_removed_is_looked_for_once_more(
    ready: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    definitions = ready.services.control.definitions
    before = await definitions.snapshot()
    (table,) = before.vector_tables.values()
    swapped = replace(table, generations=(replace(table.active, number=2),))
    asked: list[int] = []

    async def search(_table: Any, generation: Any, _vector: Any, **_: Any) -> list[Hit]:
        asked.append(generation.number)
        if generation.number == 1:
            monkeypatch.setattr(definitions, "snapshot", snapshot)
            raise StoreRejected("its storage is gone.")
        return hits(1)

    async def snapshot() -> Any:
        return replace(before, vector_tables={table.id: swapped})

    monkeypatch.setattr(ready.store, "search", search)
    found = await ready.ask("POST", QUERY, {"query": "a"})
    assert (asked, found["generation"], len(found["results"])) == ([1, 2], 2, 1)


def test_a_cursor_is_read_back_and_nothing_else_is() -> None:
    place = Place(0.1 + 0.2, b"\x01" * 16, 3, 40)
    vector = np.arange(1, 5, dtype=np.float32)
    mark = cursors.fingerprint("vt_1", "a", b"", {"x": 1, "y": 2}, None)
    assert mark == cursors.fingerprint("vt_1", "a", b"", {"y": 2, "x": 1}, None)
    text = cursors.write(place, mark, 1, vector)
    found, kept = cursors.read(text, mark, 1, 4)
    assert found == place
    assert kept is not None
    assert kept.tolist() == vector.tolist()
    assert cursors.read(cursors.write(place, mark, 1, None), mark, 1, 4) == (place, None)
    with pytest.raises(Problem, match="new vectors"):
        cursors.read(text, mark, 2, 4)
    with pytest.raises(Problem, match="another query"):
        cursors.read(text, "other", 1, 4)
    for broken in (text[:-3], text[:10], "é", "=", "_" * 40, text + "AAAAAAAA", ""):
        with pytest.raises(Problem, match="cursor"):
            cursors.read(broken, mark, 1, 4)


def test_freshness_is_a_lower_bound() -> None:
    known = Known()
    source = (0, "server")
    known.stood(100, at=1.0)
    known.applied(90, source)
    assert (known.lsn, known.at) == (90, None)  # the source stood above it already
    known.stood(120, at=2.0)
    known.applied(110, source)
    assert (known.lsn, known.at) == (110, 1.0)
    known.applied(105, source)  # a slower look takes nothing back
    assert (known.lsn, known.at) == (110, 1.0)
    known.applied(120, source)
    assert (known.lsn, known.at) == (120, 2.0)
    known.applied(50, (1, "server"))  # a fork: LSNs of before mean nothing
    assert (known.lsn, known.at) == (50, None)
