"""Queries: what is asked, pages, cursors, and how fresh an answer calls itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from api import cursors, freshness
from api.freshness import Known
from api.problems import Problem
from tests.plugins.eventually import eventually
from tests.unit.api.worlds import DOCUMENT, World
from walvec.contracts.errors import StoreRejected
from walvec.contracts.position import format_lsn
from walvec.contracts.stores import Hit, Place
from walvec.definitions.model import SourceProgress

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


async def test_a_question_without_either_is_refused_in_plain_words(world: World) -> None:
    await world.ready()
    answer = await world.ask("POST", QUERY, {}, status=422)
    assert answer["error"]["message"] == "the body: give either `query` or `vector`."


async def test_an_lsn_that_was_waited_for_is_in_what_the_status_promises(world: World) -> None:
    await world.ready()
    assert (await world.ask("POST", QUERY, {"vector": [1.0] * 256}))["as_of_lsn"] == format_lsn(10_000)
    world.source.marker = 20_000
    await world.read(20_000)
    found = await world.ask("GET", f"{world.path}/sync/status?wait_for_lsn={format_lsn(20_000)}")
    assert (found["lsn_reached"], found["as_of_lsn"]) == (True, format_lsn(20_000))


async def test_while_nobody_reads_the_source_the_status_tells_of_the_moment_before(world: World) -> None:
    """All that was read is applied; what was committed since is not searchable."""
    table = await world.ready()

    async def status() -> dict[str, Any]:
        found: dict[str, Any] = await world.ask("GET", f"{world.path}/sync/status")
        return found

    await world.control.reports.put("cdc", table.connection_id, {"state": "refused"})

    async def known() -> bool:
        return (await status())["staleness_secs"] is not None

    await eventually(known)
    await world.stop_reading()
    world.source.marker = 20_000
    unread = datetime.now(UTC)

    async def old() -> bool:
        return bool((await status())["staleness_secs"] > 1)

    await eventually(old)
    found = await status()
    assert (found["lag_changes"], found["as_of_lsn"]) == (0, format_lsn(10_000))
    assert datetime.fromisoformat(found["last_synced_at"]) <= unread
    assert (await world.control.progress.get(table.connection_id)).lsn == 10_000


async def test_what_is_promised_holds_of_the_generation_that_was_searched(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A swap while the question is embedded, and changes after it, which the former generation has never seen."""
    table = await world.ready()
    await world.ask("PUT", world.path, {"columns": DOCUMENT["vector_tables"][0]["columns"][:3]})
    assert (await world.ask("POST", QUERY, {"vector": [1.0] * 256}))["as_of_lsn"] == format_lsn(10_000)
    searched: list[int] = []
    embed, search = world.services.models.embed_query, world.store.search

    async def slowly(*args: Any) -> Any:
        if world.table.building is not None:
            await world.swapped()
            world.source.marker = 20_000

            async def seen() -> bool:
                found = await world.app.state.freshness.of(world.services, table)
                return found.lsn is not None and found.lsn >= 20_000

            await eventually(seen)
        return await embed(*args)

    async def noted(of: Any, generation: Any, *args: Any, **more: Any) -> list[Hit]:
        searched.append(generation.number)
        return await search(of, generation, *args, **more)

    monkeypatch.setattr(world.services.models, "embed_query", slowly)
    monkeypatch.setattr(world.store, "search", noted)
    found = await world.ask("POST", QUERY, {"query": "a"})
    assert (found["generation"], found["as_of_lsn"]) == (2, format_lsn(20_000))
    assert searched == [2]


async def test_of_rows_that_are_not_read_yet_nothing_is_promised(world: World) -> None:
    """A changed source table has got storage of its own, which is empty."""
    table = await world.ready()
    assert (await world.ask("POST", QUERY, {"query": "a"}))["as_of_lsn"] == format_lsn(10_000)
    first = replace(table.active, number=2, ready=False)
    await world.control.definitions.put_vector_table(replace(table, generations=(first,), backfilled=False))
    await world.control.tasks.create("rebackfill", table.id, 2, {"sweep": True})
    found = await world.ask("POST", QUERY, {"query": "a"})
    assert (found["generation"], found["as_of_lsn"], found["staleness_secs"]) == (2, None, None)
    assert found["freshness_reason"]


async def test_a_promise_of_another_timeline_is_taken_back_before_the_table_is_read_again(world: World) -> None:
    table = await world.ready()
    assert (await world.ask("POST", QUERY, {"query": "a"}))["as_of_lsn"] == format_lsn(10_000)
    await world.control.tasks.create("rebackfill", table.id, 1, {"sweep": True})
    await world.control.progress.put(table.connection_id, SourceProgress(epoch=1, lsn=5_000, timeline=2))

    async def taken_back() -> bool:
        return (await world.ask("POST", QUERY, {"query": "a"}))["as_of_lsn"] is None

    await eventually(taken_back)


async def test_who_asks_after_a_while_is_told_of_now(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks while nobody asks: the answer waits for a look, it does not tell of the last one."""
    monkeypatch.setattr(freshness, "_PACE_SECONDS", 0.0)
    monkeypatch.setattr(freshness, "_OLD_SECONDS", 0.0)
    monkeypatch.setattr(freshness, "_AGAIN_SECONDS", 10.0)
    table = await world.ready()
    assert (await world.ask("POST", QUERY, {"query": "a"}))["as_of_lsn"] == format_lsn(10_000)
    world.source.marker = 20_000

    async def read() -> bool:
        return (await world.control.progress.get(table.connection_id)).lsn == 20_000

    await eventually(read)
    assert (await world.ask("POST", QUERY, {"query": "a"}))["as_of_lsn"] == format_lsn(20_000)


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
    known.applied(90, source, 1)
    assert (known.lsn, known.at) == (90, None)  # the source stood above it already
    known.stood(120, at=2.0)
    known.applied(110, source, 1)
    assert (known.lsn, known.at) == (110, 1.0)
    known.applied(105, source, 1)  # a slower look takes nothing back
    assert (known.lsn, known.at) == (110, 1.0)
    known.applied(120, source, 1)
    assert (known.lsn, known.at) == (120, 2.0)
    known.applied(50, (1, "server"), 1)  # a fork: LSNs of before mean nothing
    assert (known.lsn, known.at) == (50, None)
