"""PUT of a vector table: what it changes, what it refuses by name, and who may overwrite whom."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.preconditions import strong_tags
from tests.unit.api.worlds import COLUMNS, World
from walvec.contracts.errors import StoreRejected
from walvec.definitions.model import Task, TaskStatus
from walvec.definitions.rebackfill import read_again
from walvec.runtime.settings import settings_from

OTHER = [*COLUMNS[:2], {"name": "stock", "role": "metadata", "filter_type": "integer"}]


async def synced(world: World) -> None:
    await world.apply()
    await world.backfilled()


async def test_other_columns_build_a_generation_and_the_old_one_serves(world: World) -> None:
    await synced(world)
    made = await world.ask("PUT", world.path, {"columns": OTHER})
    assert (made["sync_status"], made["columns"], made["active"]["columns"]) == ("pending_rebackfill", OTHER, COLUMNS)
    assert (made["generations"]["active"], made["generations"]["building"]["generation"]) == (1, 2)
    found = await world.ask("GET", f"{world.path}/generations")
    assert [(g["generation"], g["state"]) for g in found["data"]] == [(2, "building"), (1, "active")]
    (task,) = await world.control.tasks.open_tasks([world.table.id])
    assert (task.task_type, task.generation, task.params["sweep"]) == ("rebackfill", 2, True)
    adopted = await world.ask("POST", f"{world.path}/backfill")
    assert (adopted["task_id"], adopted["status"]) == (task.id, "pending")
    await world.swapped()
    now = await world.ask("GET", world.path)
    assert (now["sync_status"], now["columns"], now["generation"]) == ("synced", OTHER, 2)
    assert now["generations"]["previous"]["kept_until"] == "2999-01-01T00:00:00Z"


async def test_asking_for_what_has_been_read_meanwhile_is_no_second_backfill(world: World) -> None:
    """A small table's rows are read before the client, as the guide tells it, has asked for the rebackfill."""
    await synced(world)
    await world.ask("PUT", world.path, {"columns": OTHER})
    (task,) = await world.control.tasks.open_tasks([world.table.id])
    await world.built()
    asked = await world.ask("POST", f"{world.path}/backfill")
    assert (asked["task_id"], asked["task_type"]) == (task.id, "rebackfill")
    assert await world.control.tasks.open_tasks([world.table.id]) == []


async def test_a_second_backfill_is_refused_until_the_first_ones_generation_serves(world: World) -> None:
    await synced(world)
    await world.ask("PUT", world.path, {"columns": OTHER})
    await world.ask("POST", f"{world.path}/backfill")
    await world.ask("POST", f"{world.path}/backfill", status=409)
    await world.built()
    refused = await world.ask("POST", f"{world.path}/backfill", status=409)
    assert refused["error"]["code"] == "backfill_in_progress"
    await world.swapped()
    assert (await world.ask("POST", f"{world.path}/backfill"))["task_type"] == "rebackfill"


@pytest.mark.parametrize(
    "body",
    [
        {"name": "renamed"},
        {"keep_previous": 5},
        {"sync_mode": "batch"},
        {"backfill": "manual"},
        {"index": {"kind": "none"}},
        {"columns": [{**c, "filter_type": "keyword"} if c["name"] == "category" else c for c in COLUMNS]},
        {"columns": [*COLUMNS[:2], COLUMNS[4], COLUMNS[3], COLUMNS[2]]},
        {"columns": COLUMNS, "embedding_model": "minilm-static-256", "embedding_dimensions": 256},
        {},
    ],
)
async def test_what_rebuilds_nothing(world: World, body: dict[str, Any]) -> None:
    await synced(world)
    before = world.table
    made = await world.ask("PUT", world.path, body)
    assert (made["sync_status"], made["building_generation"]) == ("synced", None)
    for name, value in body.items():
        if name != "columns":
            assert made[name] == value
    assert await world.control.tasks.open_tasks([before.id]) == []
    assert world.table.storage_name == before.storage_name


async def test_a_name_needs_no_source(world: World) -> None:
    await synced(world)
    world.source.down = True
    assert (await world.ask("PUT", world.path, {"name": "renamed", "mode": "managed"}))["view"] == "renamed"
    refused = await world.ask("PUT", world.path, {"columns": OTHER}, 503)
    assert refused["error"]["code"] == "source_unavailable"


@pytest.mark.parametrize(
    ("body", "status", "code", "said"),
    [
        ({"connection_id": "conn_other"}, 422, "validation_error", "connection_id"),
        ({"source_table": "public.others"}, 422, "validation_error", "public.others"),
        ({"primary_key_column": "name"}, 422, "validation_error", "name"),
        ({"mode": "platform"}, 422, "validation_error", "mode"),
        ({"store": "qdrant"}, 422, "validation_error", "store"),
        ({"embedding_provider_id": "emb_no"}, 404, "embedding_provider_not_found", "emb_no"),
        ({"columns": [{"name": "nmae", "role": "embedding"}]}, 422, "validation_error", "'nmae'"),
        ({"columns": [{"name": "price", "role": "metadata"}]}, 422, "validation_error", "columns"),
        ({"columns": [COLUMNS[0], COLUMNS[0]]}, 422, "validation_error", "twice"),
        ({"name": "taken"}, 409, "vector_table_conflict", "taken"),
        ({"name": ""}, 422, "validation_error", "name"),
        ({"nmae": "x"}, 422, "validation_error", "nmae"),
        ({"keep_previous": -1}, 422, "validation_error", "keep_previous"),
    ],
)
async def test_what_cannot_be_changed_is_named(
    world: World, body: dict[str, Any], status: int, code: str, said: str
) -> None:
    await synced(world)
    now = world.table
    wanted = {
        "name": "taken", "connection_id": now.connection_id, "embedding_provider_id": now.embedding_provider_id,
        "source_table": "products", "columns": COLUMNS,
    }  # fmt: skip
    await world.ask("POST", "/v1/vector-tables", wanted, 201)
    error = (await world.ask("PUT", f"/v1/vector-tables/{now.id}", body, status))["error"]
    assert error["code"] == code
    assert said in error["message"]
    assert world.control.feed.current.vector_tables[now.id] == now


async def test_what_is_as_it_was_may_be_given(world: World) -> None:
    await synced(world)
    now = await world.ask("GET", world.path)
    names = ("connection_id", "source_table", "primary_key_column", "mode", "store", "embedding_provider_id")
    made = await world.ask("PUT", world.path, {name: now[name] for name in names})
    assert (made["sync_status"], made["updated_at"]) == ("synced", now["updated_at"])


async def test_another_model_takes_its_own_dimensions(world: World) -> None:
    await synced(world)
    made = await world.ask("PUT", world.path, {"embedding_model": "another"})
    assert (made["embedding_model"], made["embedding_dimensions"], made["active"]["embedding_model"]) == (
        "another", 256, "minilm-static-256",
    )  # fmt: skip


async def test_two_writers(world: World) -> None:
    await synced(world)
    answer = await world.http.get(world.path)
    seen = answer.headers["etag"]
    assert seen.startswith('"')
    first = await world.http.put(world.path, json={"keep_previous": 1}, headers={"If-Match": seen})
    second = await world.http.put(world.path, json={"columns": OTHER}, headers={"If-Match": seen})
    assert (first.status_code, second.status_code) == (200, 412)
    assert second.json()["error"]["code"] == "precondition_failed"
    assert world.table.building is None
    for header, status in (
        (first.headers["etag"], 200), ("*", 200), (f"W/{first.headers['etag']}", 412), ("nonsense", 412),
        (f'"other", {first.headers["etag"]}', 200),
    ):  # fmt: skip
        found = await world.http.put(world.path, json={"keep_previous": 1}, headers={"If-Match": header})
        assert found.status_code == status, header


async def test_who_gives_no_revision_changes_only_what_it_names(world: World) -> None:
    """Another writer comes in between reading and writing: both changes are there afterwards."""
    await synced(world)
    inspect = world.source.inspect

    async def inspect_late(connection: Any, source_table: str) -> Any:
        world.source.inspect = inspect  # type: ignore[method-assign]
        await world.ask("PUT", world.path, {"name": "renamed", "keep_previous": 7})
        return await inspect(connection, source_table)

    world.source.inspect = inspect_late  # type: ignore[method-assign]
    made = await world.ask("PUT", world.path, {"columns": OTHER})
    assert (made["name"], made["keep_previous"], made["columns"]) == ("renamed", 7, OTHER)


def test_tags_of_a_header() -> None:
    assert strong_tags('"a", W/"b" ,"c,d"') == {"a", "c,d"}
    assert strong_tags("a") == strong_tags('"a" x') == strong_tags("") == set()


async def test_both_documented_answers_to_a_backfill(world: World) -> None:
    """S2 and S3 of the documentation name different fields, and another word for the same moment: a setting chooses."""
    await world.apply(backfill="manual")
    found = await world.ask("POST", f"{world.path}/backfill")
    assert found.keys() >= {"task_id", "task_type", "target_id", "created_at", "vector_table_id", "total_rows"}
    assert (found["status"], found["synced_rows"]) == ("pending", 0)
    await world.cancel()
    services = replace(world.services, settings=settings_from({"api": {"backfill_status": "backfilling"}}))
    transport = httpx.ASGITransport(create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as other:
        assert (await other.post(f"{world.path}/backfill")).json()["status"] == "backfilling"


@pytest.mark.parametrize("body", [{"name": "renamed"}, {"columns": OTHER}, {"columns": OTHER, "name": "renamed"}])
@pytest.mark.parametrize("backfill", ["auto", "manual"])
async def test_what_the_store_refuses_is_taken_back(world: World, body: dict[str, Any], backfill: str) -> None:
    await world.apply(backfill=backfill)
    if backfill == "auto":
        await world.backfilled()
    before = await world.ask("GET", world.path)
    ensure = world.store.ensure

    async def refuse(table: Any, generation: Any) -> None:
        if table.name == "renamed" or generation.columns[-1].name == "stock":
            raise StoreRejected("that name is taken.", "Choose another name.")
        await ensure(table, generation)

    world.store.ensure = refuse  # type: ignore[method-assign]
    assert (await world.ask("PUT", world.path, body, 422))["error"]["code"] == "store_rejected"
    after = await world.ask("GET", world.path)
    for name in ("name", "columns", "sync_status", "building_generation"):
        assert after[name] == before[name]
    assert await world.control.tasks.open_tasks([world.table.id]) == []


@pytest.mark.parametrize("end", ["failed", "cancelled"])
async def test_a_rebuild_whose_reading_ended_early_is_read_again_on_demand(world: World, end: TaskStatus) -> None:
    await world.ready()
    await world.ask("PUT", world.path, {"columns": COLUMNS[:3]})
    [first] = await world.control.tasks.open_tasks([world.table.id])
    await world.control.tasks.update(first.id, status=end)
    await world.ask("POST", f"{world.path}/backfill")
    [again] = await world.control.tasks.open_tasks([world.table.id])
    assert (again.generation, again.params["sweep"]) == (2, True)
    assert again.id != first.id


async def test_a_change_that_mends_an_error_leaves_the_source_tables_spelling(world: World) -> None:
    table = await world.ready()
    await world.services.control.states.set_error(table.id, "table_changed", "a column is gone", "name another")
    columns = COLUMNS[:3]
    assert (await world.ask("PUT", world.path, {"columns": columns}))["source_table"] == "public.products"


@pytest.mark.parametrize("swapping", [False, True], ids=["built", "swapped in"])
async def test_a_change_that_mends_an_error_leaves_what_else_is_read(world: World, swapping: bool) -> None:
    """What is built lacks the changes of the time of the error, as the active one does. While it is swapped in no sink
    goes on with it before the error is gone, so this is the only way out."""
    table = await world.ready()
    await world.ask("PUT", world.path, {"columns": COLUMNS[:3]})
    await world.built()
    states = world.services.control.states
    if swapping:
        assert await states.begin_swap(table.id, 2, fills=1)
    await states.set_error(table.id, "table_changed", "a column is gone", "name another")
    await read_again(world.control, [table], "the table was stopped")
    await world.ask("PUT", world.path, {"columns": COLUMNS})
    assert world.table.error is None
    assert [(g.number, g.state, g.swapping) for g in world.table.generations] == [
        (1, "active", False), (2, "building", swapping),
    ]  # fmt: skip
    found = await world.control.tasks.open_tasks([table.id])
    assert sorted((t.task_type, t.generation, t.params["sweep"]) for t in found) == [
        ("rebackfill", 1, True), ("rebackfill", 2, True),
    ]  # fmt: skip


async def test_a_change_that_mends_an_error_sweeps_whatever_is_asked_for_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that were deleted while the table was stopped would stay."""
    table = await world.ready()
    await world.services.control.states.set_error(table.id, "table_changed", "a column is gone", "name another")
    tasks = world.control.tasks
    look = tasks.open_tasks

    async def slow(ids: Sequence[str]) -> list[Task]:
        found = await look(ids)
        monkeypatch.undo()
        await tasks.create("rebackfill", table.id, world.table.active.number, {"sweep": False})
        return found

    monkeypatch.setattr(tasks, "open_tasks", slow)
    await world.ask("PUT", world.path, {"columns": COLUMNS[:3]})
    (task,) = await tasks.open_tasks([table.id])
    assert task.params["sweep"]


async def test_a_backfill_that_was_cancelled_leaves_no_error(world: World) -> None:
    await world.ready()
    task = await world.ask("POST", f"{world.path}/backfill")
    assert (await world.ask("POST", f"/v1/tasks/{task['id']}/cancel"))["last_error"]
    status = await world.ask("GET", f"{world.path}/sync/status")
    assert (status["sync_status"], status["last_error"]) == ("synced", None)


@pytest.mark.parametrize(
    ("column", "filter_type"),
    [("name", "integer"), ("name", "datetime"), ("in_stock", "float"), ("seen", "boolean"), ("price", "boolean")],
)
async def test_a_filter_that_could_compare_nothing_is_refused(world: World, column: str, filter_type: str) -> None:
    table = await world.ready()
    columns = [*COLUMNS[:2], {"name": column, "role": "metadata", "filter_type": filter_type}]
    error = await world.ask("PUT", f"/v1/vector-tables/{table.id}", {"columns": columns}, status=422)
    assert column in error["error"]["message"]
    assert filter_type in error["error"]["message"]
    assert "filter_type is one of" in error["error"]["resolution"]


async def test_another_source_table_is_refused_by_name_whatever_its_columns(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await synced(world)
    inspect = world.source.inspect

    async def with_others(connection: Any, source_table: str) -> Any:
        if source_table != "others":
            return await inspect(connection, source_table)
        found = await inspect(connection, "products")
        return replace(found, name="others", columns=found.columns[:1])

    monkeypatch.setattr(world.source, "inspect", with_others)
    refused = (await world.ask("PUT", world.path, {"source_table": "others"}, 422))["error"]
    assert refused["message"].startswith("source_table: ")
    assert "new vector table" in refused["resolution"]
