"""Definitions on a real control database under several writers, and a task that is cancelled while cdc works on it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.services import Services
from tests.integration.test_backfill import DOC, running
from tests.plugins.postgres import PostgresDatabase
from tests.plugins.source_table import consuming, control_with, following, records, vector_table
from tests.unit.api.worlds import COLUMNS, World
from walvec.definitions.postgres import open_control
from walvec.runtime.settings import settings_from
from walvec.transport.memory import MemoryLog
from walvec.transport.ports import Log

OTHER = [*COLUMNS[:2], {"name": "stock", "role": "metadata", "filter_type": "integer"}]


def over(world: World, control: Any, log: Log) -> World:
    """The world's API over another control database and log."""
    found = world.services
    services = Services(found.settings, control, log, found.source, found.store, found.models)
    world.control, world.services = control, services
    world.http = httpx.AsyncClient(transport=httpx.ASGITransport(create_app(services)), base_url="http://localhost")
    return world


@pytest.fixture
async def stored(tmp_path: Path, postgres: PostgresDatabase) -> AsyncIterator[World]:
    control = await open_control(postgres.dsn, environment="prod", secret_key="k")
    made = over(World(tmp_path), control, MemoryLog())
    yield made
    await made.close()
    await control.close()


async def made(world: World) -> str:
    document = {
        "connections": [{"name": "shop", "url": "postgresql://u:hunter2@db/shop"}],
        "embedding_providers": [{"name": "local", "provider": "static"}],
        "vector_tables": [
            {"name": "products", "connection": "shop", "embedding_provider": "local", "source_table": "products",
             "columns": COLUMNS},
        ],
    }  # fmt: skip
    await world.ask("POST", "/v1/apply", {"document": document})
    table = await world.ask("GET", "/v1/vector-tables/products")
    (task,) = (await world.ask("GET", f"/v1/tasks?target_id={table['id']}"))["data"]
    await world.control.tasks.update(task["id"], status="completed")
    await world.control.states.set_backfilled(table["id"], 1)
    return f"/v1/vector-tables/{table['id']}"


async def test_of_writers_that_saw_the_same_one_is_taken(stored: World) -> None:
    path = await made(stored)
    seen = (await stored.http.get(path)).headers["ETag"]
    bodies: list[dict[str, Any]] = [{"keep_previous": n} for n in range(4)] + [{"columns": OTHER}, {"separator": "+"}]
    found = await asyncio.gather(*(stored.http.put(path, json=b, headers={"If-Match": seen}) for b in bodies))
    assert sorted(a.status_code for a in found) == [200, 412, 412, 412, 412, 412]
    assert {a.json()["error"]["code"] for a in found if a.status_code == 412} == {"precondition_failed"}


async def test_of_writers_without_a_revision_none_is_lost(stored: World) -> None:
    path = await made(stored)
    bodies: list[dict[str, Any]] = [
        {"columns": OTHER}, {"name": "goods"}, {"keep_previous": 5}, {"separator": "+"}, {"index": {"kind": "none"}},
    ]  # fmt: skip
    found = await asyncio.gather(*(stored.http.put(path, json=b) for b in bodies))
    assert [a.status_code for a in found] == [200] * 5, [a.text for a in found]
    now = await stored.ask("GET", path)
    for body in bodies:
        for name, value in body.items():
            assert now[name] == value, name
    tasks = (await stored.ask("GET", "/v1/tasks?task_type=rebackfill"))["data"]
    assert [t["status"] for t in tasks if t["generation"] == now["building_generation"]] == ["pending"]
    assert {t["status"] for t in tasks if t["generation"] != now["building_generation"]} <= {"cancelled"}


async def test_of_backfills_that_are_asked_for_at_once_one_is_made(stored: World) -> None:
    path = await made(stored)
    found = await asyncio.gather(*(stored.http.post(f"{path}/backfill") for _ in range(6)))
    assert sorted(a.status_code for a in found) == [200, 409, 409, 409, 409, 409]
    assert len((await stored.ask("GET", "/v1/tasks?status=pending"))["data"]) == 1


async def test_what_was_built_is_aborted_or_changed_but_not_both(stored: World) -> None:
    path = await made(stored)
    await stored.ask("PUT", path, {"columns": OTHER})
    found = await asyncio.gather(*(stored.http.post(f"{path}/rebuild/abort") for _ in range(4)))
    assert sorted(a.status_code for a in found) == [200, 409, 409, 409]
    assert {a.json()["error"]["code"] for a in found if a.status_code == 409} == {"nothing_to_abort"}
    assert (await stored.ask("GET", path))["sync_status"] == "synced"
    assert (await stored.ask("POST", f"{path}/rollback", status=409))["error"]["code"] == "nothing_to_roll_back"


async def test_tasks_in_pages_by_state_and_kind(stored: World) -> None:
    path = await made(stored)
    for _ in range(4):
        await stored.ask("PUT", path, {"columns": OTHER})
        await stored.ask("POST", f"{path}/rebuild/abort")
    seen: list[str] = []
    cursor = ""
    while True:
        page = await stored.ask("GET", f"/v1/tasks?limit=3&status=cancelled&task_type=rebackfill{cursor}")
        seen += [t["id"] for t in page["data"]]
        assert {(t["status"], t["max_attempts"], t["priority"]) for t in page["data"]} == {("cancelled", 3, 3)}
        if not page["pagination"]["has_more"]:
            break
        cursor = f"&cursor={page['pagination']['next_cursor']}"
    assert len(seen) == len(set(seen)) == 4
    await stored.ask("GET", "/v1/tasks?status=nonsense", status=422)
    assert (await stored.ask("POST", "/v1/tasks/task_no/cancel", status=404))["error"]["code"] == "task_not_found"


async def test_a_cancelled_backfill_never_runs_on(
    tmp_path: Path, postgres: PostgresDatabase, eventually: Callable[..., Any]
) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text)")
    postgres.execute("INSERT INTO t SELECT i, 'doc ' || i FROM generate_series(1, 2000) i")
    table = await vector_table(postgres.dsn, "t", DOC)
    control, log = await control_with(postgres.dsn, table), MemoryLog()
    world = over(World(tmp_path), control, log)
    settings = settings_from({"cdc": {"backfill_chunk_rows": 100, "backfill_max_backlog": 300}})

    async def waiting() -> Any:
        """It has read some rows and waits, since nobody embeds."""
        tasks = await control.tasks.open_tasks([table.id])
        return next((t for t in tasks if t.status == "running" and t.progress.get("waiting")), None)

    async with following(postgres, table) as f, running(control, log, f.stream, settings):
        task = await eventually(waiting)
        cancelled = await world.http.post(f"/v1/tasks/{task.id}/cancel")
        assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
        assert 0 < cancelled.json()["progress"]["rows_processed"] < 2000
        before = len(await records(log, table))
        again = await world.http.post(f"/v1/tasks/{task.id}/cancel")
        assert (again.status_code, again.json()["error"]["code"]) == (409, "task_not_cancellable")
        found = (await world.http.get(f"/v1/vector-tables/{table.id}")).json()
        assert found["sync_status"] == "pending"
        async with consuming(log, table):  # now it could go on, beside the one that is asked for anew
            task_id = (await world.http.post(f"/v1/vector-tables/{table.id}/backfill")).json()["task_id"]
            await eventually(lambda: _done(control, task_id))
        ended = await control.tasks.get(task.id)
        assert (ended.status, ended.progress["rows"]) == ("cancelled", cancelled.json()["progress"]["rows_processed"])
        assert len(await records(log, table)) == before + 2000
    await world.close()


async def _done(control: Any, task_id: str) -> bool:
    return bool((await control.tasks.get(task_id)).status == "completed")
