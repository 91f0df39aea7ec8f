"""The table of a vector table's life: every pair of it, against what the API and the control database really do."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from api import lifecycle
from api.lifecycle import (
    REFUSALS,
    REQUESTS,
    STATES,
    TABLE,
    Event,
    Refusal,
    When,
    Without,
    after,
    documented,
    facts_of,
    layers_of,
)
from api.status import state_of
from tests.unit.api.worlds import COLUMNS, World
from walvec.definitions.model import SyncStatus

ARCHITECTURE = Path(__file__).parents[3] / "docs" / "architecture.md"
OTHER = [*COLUMNS[:2], {"name": "stock", "role": "metadata", "filter_type": "integer"}]
AGAIN = [COLUMNS[0], {"name": "stock", "role": "metadata", "filter_type": "integer"}]


async def pending(world: World) -> None:
    await world.apply(backfill="manual")


async def first_backfill(world: World) -> None:
    await world.apply()


async def synced(world: World) -> None:
    await world.apply()
    await world.backfilled()


async def cancelled(world: World) -> None:
    await world.apply()
    await world.cancel()


async def reconciling(world: World) -> None:
    await synced(world)
    await world.ask("POST", f"{world.path}/backfill")


async def to_rebuild(world: World) -> None:
    await synced(world)
    await world.ask("PUT", world.path, {"columns": OTHER})


async def rebuilding(world: World) -> None:
    await to_rebuild(world)
    await world.ask("POST", f"{world.path}/backfill")


async def stalled(world: World) -> None:
    await to_rebuild(world)
    assert world.table.building
    await world.control.states.set_stalled(world.table.id, world.table.building.number, "provider_stop", "no money")


async def swapping(world: World) -> None:
    await to_rebuild(world)
    await world.built()
    assert world.table.building
    assert await world.control.states.begin_swap(world.table.id, world.table.building.number, fills=1)


async def swapped(world: World) -> None:
    await to_rebuild(world)
    await world.swapped()


BASES: dict[str, Callable[[World], Awaitable[None]]] = {
    f.__name__: f
    for f in (
        pending, first_backfill, synced, cancelled, reconciling, to_rebuild, rebuilding, stalled, swapping, swapped,
    )
}  # fmt: skip


async def nothing(world: World) -> None: ...


async def paused(world: World) -> None:
    await world.control.definitions.set_paused(world.table.id, True)


async def blocked(world: World) -> None:
    await world.control.states.set_blocked(world.table.id, "the provider wants money")


async def failed(world: World) -> None:
    await world.control.states.set_error(world.table.id, "dead_letters", "too many", "mend them")


async def lost(world: World) -> None:
    await world.control.states.set_error(world.table.id, "slot_lost", "the slot is gone", "resume")


async def paused_and_failed(world: World) -> None:
    await paused(world)
    await failed(world)


COVERS: dict[str, Callable[[World], Awaitable[None]]] = {
    f.__name__: f for f in (nothing, paused, blocked, failed, lost, paused_and_failed)
}


async def act(world: World, event: Event) -> int:
    """The status of the answer to a request; 200 for what a role does."""
    control, table = world.control, world.table
    building = table.building or table.active
    path = world.path
    requests = {
        "backfill": ("POST", f"{path}/backfill", None),
        "change": ("PUT", path, {"columns": AGAIN}),
        "adjust": ("PUT", path, {"name": "renamed"}),
        "pause": ("POST", f"{path}/sync/pause", None),
        "resume": ("POST", f"{path}/sync/resume", None),
        "abort": ("POST", f"{path}/rebuild/abort", None),
        "rollback": ("POST", f"{path}/rollback", None),
        "query": ("POST", f"{path}/query", {"query": "warm"}),
        "delete": ("DELETE", path, None),
    }
    if event in requests:
        method, where, body = requests[event]
        answer = await world.http.request(method, where, json=body)
        world.said = answer.json() if answer.content else {}
        return answer.status_code
    if event == "cancel":
        return await world.cancel()
    if event == "loaded":
        await (world.swapped() if table.building else world.backfilled())
    elif event == "stalled":
        await control.states.set_stalled(table.id, building.number, "provider_stop", "no money")
    elif event == "failed":
        await failed(world)
    elif event == "blocked":
        await blocked(world)
    else:
        await control.states.set_blocked(table.id, None)
    return 200


@pytest.mark.parametrize(("base", "cover"), [(b, c) for b in BASES for c in COVERS])
async def test_every_event_does_what_the_table_says(world: World, base: str, cover: str) -> None:
    for event in TABLE:
        await BASES[base](world)
        await COVERS[cover](world)
        await one_cell(world, event, f"{event} of {base}, {cover}")
        for table_id in world.control.feed.current.vector_tables:
            await world.control.definitions.delete_vector_table(table_id)


async def one_cell(world: World, event: Event, what: str) -> None:
    tasks = await world.control.tasks.recent(world.table.id, 100)
    layers, facts = layers_of(world.table, tasks), facts_of(world.table, tasks)
    said = after(layers, event, facts)
    if said is None or (event in ("loaded", "stalled") and "swapping" in facts):
        return
    if event == "loaded" and not facts & {"building", "open"}:
        return
    if event == "cancel" and not tasks:
        return
    status = await act(world, event)
    if isinstance(said, Refusal):
        assert (status, world.said["error"]["code"]) == (said.status, said.code), what
        assert world.said["error"]["message"], what
        return
    assert status < 300, (what, world.said)
    if said == "deleted":
        assert not world.control.feed.current.vector_tables, what
        return
    now = state_of(world.table, await world.control.tasks.recent(world.table.id, 100))
    assert now == said, what
    if event in REQUESTS:
        assert world.said.get("sync_status", now) == now, what


def test_the_table_is_whole() -> None:
    assert set(TABLE) == set(lifecycle.REQUESTS) | {"loaded", "stalled", "failed", "blocked", "healed"}
    for event, row in TABLE.items():
        assert set(row) == set(STATES), event
    for event in REQUESTS:
        assert None not in TABLE[event].values(), f"{event} is asked by people: every state must answer"


def test_every_refusal_has_its_words() -> None:
    def refusals(outcome: lifecycle.Outcome) -> list[Refusal]:
        if isinstance(outcome, When):
            return refusals(outcome.then) + refusals(outcome.otherwise)
        return [outcome] if isinstance(outcome, Refusal) else []

    found = {r for row in TABLE.values() for outcome in row.values() for r in refusals(outcome)}
    found |= {refusal for row in REFUSALS.values() for _, _, refusal in row}
    assert {r.code for r in found} == set(lifecycle._SAID)
    assert all(r.status in (409, 422) for r in found)


def test_worst_shows_first() -> None:
    layers: tuple[lifecycle.Layer, ...] = (("error", "error"), ("paused", "paused"), ("active", "synced"))
    assert after(layers, "resume", frozenset()) == "synced"
    assert after((*layers[:2], ("blocked", "blocked"), layers[2]), "resume", frozenset()) == "blocked"
    assert after(layers, "pause", frozenset({"paused"})) == Refusal(409, "sync_already_paused")
    assert after((("blocked", "blocked"), ("active", "synced")), "healed", frozenset()) == "synced"
    assert isinstance(TABLE["healed"]["blocked"], Without)


def test_the_documentation_shows_the_table() -> None:
    assert documented() in ARCHITECTURE.read_text()


async def test_the_walk_comes_through_every_state(world: World) -> None:
    reached: set[SyncStatus] = set()
    for base in BASES.values():
        for cover in COVERS.values():
            await base(world)
            await cover(world)
            reached.add(state_of(world.table, await world.control.tasks.recent(world.table.id, 100)))
            await world.control.definitions.delete_vector_table(world.table.id)
    assert reached == set(STATES)
