"""total_rows and synced_rows: a client that waits until they are equal waits no longer than it must."""

from tests.unit.api.worlds import World, key, position
from walvec.contracts.letters import DeadLetter


async def told(world: World) -> tuple[int, int]:
    """(total, synced), the same wherever they are told."""
    found = [
        await world.ask("GET", world.path),
        await world.ask("GET", f"{world.path}/sync/status"),
        *(await world.ask("GET", f"/v1/status/{world.table.id}"))["tables"],
    ]
    (counts,) = {(f["total_rows"], f["synced_rows"]) for f in found}
    return counts


async def test_rows_without_a_text_are_in_neither(world: World) -> None:
    await world.ready()
    world.source.rows = {key(1): "a", key(2): None, key(3): "b"}
    world.store.stored = {key(1): "a"}
    assert await told(world) == (2, 1)
    world.store.stored[key(3)] = "b"
    assert await told(world) == (2, 2)


async def test_an_estimate_gives_way_to_what_is_known_in_the_end(world: World) -> None:
    """A table that is too large to be counted: the planner's number would never be met."""
    await world.apply()
    world.source.estimate = 1_000
    world.store.stored = {key(n): "a" for n in range(7)}
    assert await told(world) == (1_000, 7)  # its backfill is open
    await world.backfilled()
    await world.append("changes", key(1), key(2))
    assert await told(world) == (1_000, 7)  # it is behind
    await world.consume()
    assert await told(world) == (7, 7)
    await world.control.letters.put([DeadLetter(world.table.id, 1, key(9), "provider_input", "no", position(5), 1)])
    assert await told(world) == (8, 7)
    await world.control.definitions.set_paused(world.table.id, True)
    assert await told(world) == (1_000, 7)


async def test_what_is_away_is_told_as_it_was_last_seen(world: World) -> None:
    await world.ready()
    world.source.rows = {key(1): "a"}
    world.store.stored = {key(1): "a"}
    assert await told(world) == (1, 1)
    world.source.down = True
    assert await told(world) == (1, 1)
