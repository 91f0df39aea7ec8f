"""The whole answer of a GET, sent back by PUT: it changes nothing but what was changed in it."""

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.api.worlds import COLUMNS, World
from walvec.definitions.model import TopicSource

CONNECTION = {"name": "shop", "mode": "managed", "credentials": {"url": "postgresql://u:hunter2@db/shop"}}
OPENAI = {"name": "openai-prod", "provider": "openai", "api_key": "sk-first", "limits": {"max_items": 3}}


async def test_a_vector_table_as_it_is(world: World) -> None:
    await world.ready()
    before = world.table
    world.source.down = True  # nothing that a source would be asked for
    shown = await world.ask("GET", world.path)
    again = await world.ask("PUT", world.path, shown)
    assert again == shown
    assert world.table == before


@pytest.mark.parametrize("state", ["building", "paused", "error"])
async def test_a_vector_table_in_any_state(world: World, state: str) -> None:
    await world.ready()
    if state == "building":
        await world.ask("PUT", world.path, {"columns": COLUMNS[:3]})
    elif state == "paused":
        await world.ask("POST", f"{world.path}/sync/pause")
    else:
        await world.control.states.set_error(world.table.id, "dead_letter_limit", "too many.", "resume")
    before = world.table
    shown = await world.ask("GET", world.path)
    again = await world.ask("PUT", world.path, shown)
    assert again["sync_status"] == shown["sync_status"]
    assert world.table == before


async def test_what_only_tells_of_state_may_have_moved_since(world: World) -> None:
    await world.ready()
    before = world.table
    moved = {
        "sync_status": "backfilling", "generation": 7, "building_generation": 8, "active": {"generation": 7},
        "generations": {}, "total_rows": 99, "synced_rows": 98, "created_at": "2020-01-01T00:00:00Z",
        "updated_at": "2020-01-01T00:00:00Z",
    }  # fmt: skip
    await world.ask("PUT", world.path, moved)
    assert world.table == before


async def test_one_field_of_it_is_changed(world: World) -> None:
    await world.ready()
    shown = await world.ask("GET", world.path)
    renamed = await world.ask("PUT", world.path, {**shown, "name": "renamed"})
    assert (renamed["name"], renamed["view"], renamed["building_generation"]) == ("renamed", "renamed", None)
    await world.ask("PUT", world.path, shown)  # as it was read before: its view's name too
    columns = [{**COLUMNS[0], "name_prefix": "Article: "}, *COLUMNS[1:]]
    made = await world.ask("PUT", world.path, {**shown, "columns": columns})
    assert (made["columns"], made["building_generation"], made["embedding_dimensions"]) == (columns, 2, 256)


@pytest.mark.parametrize(
    ("field", "value", "cure"),
    [
        ("id", "vt_other", "Leave it out"),
        ("org_id", "org_other", "Leave it out"),
        ("environment_id", "env_other", "Leave it out"),
        ("qdrant_collection", "vt_other", "leave it out"),
        ("platform_vector_ref", "other", "`name`"),
        ("view", "other", "`name`"),
        ("connection_id", "conn_other", "Define a new vector table"),
        ("mode", "platform", "Define a new vector table"),
        ("sync_status", "paused", "/sync/pause"),
    ],
)
async def test_another_value_that_would_be_a_wish_is_refused(world: World, field: str, value: str, cure: str) -> None:
    await world.ready()
    before = world.table
    shown = await world.ask("GET", world.path)
    error = (await world.ask("PUT", world.path, {**shown, field: value}, 422))["error"]
    assert field in error["message"]
    assert cure in error["resolution"]
    assert world.table == before


@pytest.mark.parametrize("unknown", ["task_id", "last_error", "api_key", "nmae"])
async def test_what_is_no_field_stays_refused(world: World, unknown: str) -> None:
    await world.ready()
    shown = await world.ask("GET", world.path)
    assert unknown in (await world.ask("PUT", world.path, {**shown, unknown: "x"}, 422))["error"]["message"]


async def test_kept_embedding_columns_change_in_a_new_generation(world: World) -> None:
    await world.ready(keep_embedding_columns=True)
    before = (await world.http.get(world.path)).headers["etag"]
    shown = await world.ask("GET", world.path)
    made = await world.ask("PUT", world.path, {**shown, "keep_embedding_columns": False})
    assert (made["keep_embedding_columns"], made["columns"], made["building_generation"]) == (False, COLUMNS, 2)
    building = world.table.building
    assert building is not None
    assert [c.name for c in building.metadata_columns] == ["category", "price", "in_stock"]
    assert building.hasher("static")("x") == world.table.active.hasher("static")("x")  # nothing is embedded again
    assert (await world.http.get(world.path)).headers["etag"] != before
    back = await world.ask("PUT", world.path, {"keep_embedding_columns": True})
    assert (back["keep_embedding_columns"], back["building_generation"]) == (True, None)


async def test_kept_embedding_columns_change_in_place_where_all_are_metadata(world: World) -> None:
    columns = [COLUMNS[0], {"name": "name", "role": "metadata", "filter_type": "keyword"}]
    await world.ready(columns=columns, keep_embedding_columns=True)
    made = await world.ask("PUT", world.path, {"keep_embedding_columns": False})
    assert (made["keep_embedding_columns"], made["building_generation"]) == (False, None)


async def test_another_column_is_filtered_by_and_no_text_is_said_twice(world: World) -> None:
    """Both columns are embedded, both are kept: it is another one that is metadata by name."""
    first, second = ({"name": n, "role": "embedding"} for n in ("name", "description"))
    filtered = [{"name": n, "role": "metadata", "filter_type": "keyword"} for n in ("name", "description")]
    await world.ready(columns=[first, second, filtered[0]], keep_embedding_columns=True)
    columns = [first, second, filtered[1]]
    assert (await world.ask("PUT", world.path, {"columns": columns}))["columns"] == columns
    building = world.table.building
    assert building is not None
    assert building.embedding_columns == ("name", "description")


async def test_a_vector_tables_topic_stays_and_its_options_change(world: World) -> None:
    await world.ready()
    feed = world.control.feed
    topic = TopicSource("shop.public.products")
    feed.move(vector_tables={world.table.id: replace(world.table, source=topic)})
    shown = await world.ask("GET", world.path)
    assert (await world.ask("PUT", world.path, shown))["source"] == shown["source"]
    other = {"source": {**shown["source"], "kafka_topic": "another"}}
    refused = await world.ask("PUT", world.path, {**shown, **other}, 422)
    assert refused["error"]["message"].startswith("source: ")
    changed = {"source": {**shown["source"], "slot": "debezium"}}
    assert (await world.ask("PUT", world.path, {**shown, **changed}))["source"]["slot"] == "debezium"
    assert world.table.building is None


async def test_a_vector_table_without_a_topic_gets_none(world: World) -> None:
    await world.ready()
    refused = await world.ask("PUT", world.path, {"source": {"kafka_topic": "shop.public.products"}}, 422)
    assert refused["error"]["message"].startswith("source: ")


async def test_a_connection_as_it_is(world: World) -> None:
    path = f"/v1/connections/{(await made_connection(world))['id']}"
    (before,) = world.control.feed.current.connections.values()
    shown = await world.ask("GET", path)
    again = await world.ask("PUT", path, {**shown, "status": "failed", "last_tested_at": "2020-01-01T00:00:00Z"})
    assert again == {k: v for k, v in shown.items() if k != "source"}
    assert list(world.control.feed.current.connections.values()) == [before]
    assert (await world.ask("PUT", path, {**shown, "name": "renamed"}))["name"] == "renamed"
    for field in ("id", "org_id", "environment_id", "provider", "slot"):
        assert field in (await world.ask("PUT", path, {**shown, field: "other"}, 422))["error"]["message"]
    await world.ask("PUT", path, {**shown, "url": "postgresql://elsewhere/shop"}, 422)


async def made_connection(world: World) -> dict[str, Any]:
    found: dict[str, Any] = await world.ask("POST", "/v1/providers/postgresql/connections", CONNECTION, 201)
    return found


async def test_an_embedding_provider_as_it_is(world: World) -> None:
    path = f"/v1/embedding-providers/{(await world.ask('POST', '/v1/embedding-providers', OPENAI, 201))['id']}"
    (before,) = world.control.feed.current.providers.values()
    shown = await world.ask("GET", path)
    assert await world.ask("PUT", path, shown) == shown
    assert list(world.control.feed.current.providers.values()) == [before]  # with its key
    await world.ask("PUT", path, {**shown, "name": "renamed", "models": []})
    assert list(world.control.feed.current.providers.values()) == [replace(before, name="renamed")]
    error = (await world.ask("PUT", path, {**shown, "has_api_key": False}, 422))["error"]
    assert "has_api_key" in error["message"]
    assert "api_key" in error["resolution"]
    for field in ("id", "org_id", "environment_id"):
        assert field in (await world.ask("PUT", path, {**shown, field: "other"}, 422))["error"]["message"]
