"""What is left of a deleted vector table shows as a task, until it is removed or given up."""

from __future__ import annotations

from typing import Any

from tests.unit.api.worlds import World
from walvec.contracts.errors import SourceUnavailable


async def away(connection: Any) -> None:
    raise SourceUnavailable("the source does not answer.", "Start it.")


async def test_what_could_not_be_removed_is_listed_and_tried_again(world: World) -> None:
    table = await world.apply()
    release, world.source.release = world.source.release, away  # type: ignore[method-assign]
    await world.ask("DELETE", f"/v1/vector-tables/{table.id}", status=204)
    await world.ask("GET", f"/v1/vector-tables/{table.id}", status=404)
    assert world.store.dropped == [table.id]
    (left,) = (await world.ask("GET", "/v1/tasks?task_type=removal"))["data"]
    assert left["task_type"] == "removal"
    assert (left["target_id"], left["progress"]["what"], left["attempts"]) == (table.connection_id, "slot", 1)
    assert left["last_error"] == "the source does not answer. Start it."
    assert left["status"] == "running"
    assert (await world.ask("GET", "/v1/status"))["removals"] == [left]
    assert await world.ask("GET", f"/v1/tasks/{left['id']}") == left
    world.source.release = release  # type: ignore[method-assign]
    assert await world.services.remover.attempt(left["id"])
    assert world.source.released == [table.connection_id]
    assert (await world.ask("GET", "/v1/status"))["removals"] == []
    await world.ask("GET", f"/v1/tasks/{left['id']}", status=404)


async def test_a_source_that_never_comes_back_is_given_up(world: World) -> None:
    table = await world.apply()
    world.source.release = away  # type: ignore[method-assign]
    await world.ask("DELETE", f"/v1/vector-tables/{table.id}", status=204)
    (left,) = (await world.ask("GET", "/v1/tasks?task_type=removal"))["data"]
    given_up = await world.ask("POST", f"/v1/tasks/{left['id']}/cancel")
    assert (given_up["id"], given_up["status"]) == (left["id"], "cancelled")
    assert (await world.ask("GET", "/v1/tasks?task_type=removal"))["data"] == []
