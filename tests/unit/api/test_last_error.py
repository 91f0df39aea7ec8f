"""`last_error` and when it came up."""

from datetime import UTC, datetime

from tests.unit.api.worlds import COLUMNS, World


async def told(world: World) -> tuple[str | None, bool]:
    """What is told, and whether with a time of just now, wherever it is told."""
    status = await world.ask("GET", f"{world.path}/sync/status")
    (whole,) = (await world.ask("GET", f"/v1/status/{world.table.id}"))["tables"]
    assert (whole["last_error"], whole["last_error_at"]) == (status["last_error"], status["last_error_at"])
    at = status["last_error_at"]
    return status["last_error"], at is not None and 0 <= (datetime.now(UTC) - datetime.fromisoformat(at)).seconds < 60


async def test_of_a_table(world: World) -> None:
    table = await world.ready()
    states = world.control.states
    assert await told(world) == (None, False)
    await states.set_blocked(table.id, "no credit")
    assert await told(world) == ("no credit", True)
    await states.set_error(table.id, "slot_lost", "gone.", "Resume it.")
    assert await told(world) == ("gone. Resume it.", True)
    await states.clear_error(table.id)
    await states.set_blocked(table.id, None)
    assert await told(world) == (None, False)


async def test_of_a_source_that_refuses(world: World) -> None:
    """Nothing is wrong with the table, and nothing new comes to it."""
    table = await world.ready()
    definitions = world.control.definitions
    await definitions.set_connection_status(table.connection_id, "error", "the source refused the connection.")
    assert await told(world) == ("the source refused the connection.", False)
    await definitions.set_connection_status(table.connection_id, "connected", "")
    assert await told(world) == (None, False)


async def test_of_what_is_being_built(world: World) -> None:
    table = await world.ready()
    await world.ask("PUT", world.path, {"columns": COLUMNS[:3]})
    await world.control.states.set_stalled(table.id, 2, "provider_stop", "no such model")
    assert await told(world) == ("no such model", True)


async def test_of_a_backfill(world: World) -> None:
    await world.ready()
    task = await world.ask("POST", f"{world.path}/backfill")
    await world.control.tasks.update(task["id"], status="failed", last_error="a lock")
    assert await told(world) == ("a lock", True)
