"""Lists in pages: nothing that was there all the time is missed or shown twice, whatever is added meanwhile."""

import base64
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest

from tests.unit.api.worlds import World, key, position
from walvec.contracts.letters import DeadLetter


async def walk(world: World, path: str, field: str, between: Callable[[], Awaitable[Any]], **query: Any) -> list[Any]:
    """Ids of all pages; between two pages something is added."""
    seen: list[Any] = []
    cursor: str | None = None
    while True:
        params = {**query, **({"cursor": cursor} if cursor else {})}
        page = await world.ask("GET", path, params=params)
        assert len(page[field]) <= query["limit"]
        seen += [one["id"] for one in page[field]]
        cursor = page["pagination"]["next_cursor"]
        assert page["pagination"]["has_more"] is (cursor is not None)
        if cursor is None:
            return seen
        await between()


async def test_every_task_is_in_the_pages(world: World) -> None:
    await world.apply()
    for n in range(1200):
        await world.control.tasks.create("replay", world.table.id, 1, {"n": n})
    before = [t.id for t in await world.control.tasks.recent(world.table.id, 10_000)]

    async def another() -> None:
        await world.control.tasks.create("replay", world.table.id, 1, {})

    assert await walk(world, "/v1/tasks", "data", another, limit=100) == before
    replays = await walk(world, "/v1/tasks", "data", another, limit=100, task_type="replay", status="pending")
    assert len(set(replays)) == len(replays) > 1200


async def test_tasks_and_what_is_to_be_removed_are_one_list(world: World) -> None:
    await world.apply()
    table = world.table
    await world.ask("POST", "/v1/vector-tables", {
        "name": "others", "connection_id": table.connection_id, "embedding_provider_id": table.embedding_provider_id,
        "source_table": "products", "columns": [{"name": "name", "role": "embedding"}], "backfill": "auto",
    }, 201)  # fmt: skip
    world.source.down = True
    await world.ask("DELETE", "/v1/vector-tables/products", status=204)

    async def nothing() -> None: ...

    whole = [t["id"] for t in (await world.ask("GET", "/v1/tasks"))["data"]]
    (left,) = (await world.ask("GET", "/v1/tasks?task_type=removal"))["data"]
    assert left["id"] in whole
    assert len(whole) == 2
    assert await walk(world, "/v1/tasks", "data", nothing, limit=1) == whole


def letter(world: World, n: int, lsn: int = 5) -> DeadLetter:
    return DeadLetter(world.table.id, 1, key(n), "provider_input", "no", position(lsn), 1)


async def test_every_dead_letter_is_in_the_pages(world: World) -> None:
    table = await world.apply()
    await world.control.letters.put([letter(world, n) for n in range(25)])
    before = [v.id for v in await world.control.letters.page(table.id)]
    added = iter(range(100, 200))

    async def another() -> None:
        """One more, and a newer change of one that was shown: it does not come again."""
        await world.control.letters.put([letter(world, next(added)), letter(world, 0, lsn=9)])

    seen = await walk(world, f"{world.path}/dead-letters", "dead_letters", another, limit=10)
    assert seen[: len(before)] == before
    assert len(set(seen)) == len(seen)
    assert (await world.ask("GET", f"{world.path}/dead-letters"))["total"] == len(before) + 2


def cursor(at: Any, name: Any) -> str:
    return base64.urlsafe_b64encode(orjson.dumps({"at": at, "id": name})).decode()


@pytest.mark.parametrize(
    "foreign",
    [
        cursor("", "7"),
        cursor("2026-13-41T00:00:00.000000Z", "task_1"),
        cursor("2026-W01-1T00:00:00.000000Z", "task_1"),
        cursor("0000-01-01T00:00:00.000000Z", "task_1"),
        cursor("2026-01-01T00:00:00.000000Z", "task_\x00"),
        cursor("2026-01-01T00:00:00.000000Z", "conn_1"),
        cursor("", "9" * 19),
        cursor("", "-000000000000000001"),
        cursor("", "\u0667" * 19),
        cursor("202\u0666-01-01T00:00:00.000000Z", "task_1"),
        cursor(1, 2),
        "hunter2",
    ],
)
@pytest.mark.parametrize("path", ["/v1/tasks", "/v1/vector-tables/products/dead-letters"])
async def test_a_cursor_of_another_list_is_refused(world: World, path: str, foreign: str) -> None:
    await world.apply()
    error = (await world.ask("GET", path, status=422, params={"cursor": foreign}))["error"]
    assert error["message"].startswith("cursor")
