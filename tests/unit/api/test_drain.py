"""Drain and verify, against hands that play the roles."""

import asyncio
from typing import Any

from tests.plugins.eventually import eventually
from tests.plugins.stale_feed import StaleControl
from tests.unit.api.worlds import COLUMNS, World, key, position
from walvec.contracts.letters import DeadLetter
from walvec.contracts.stores import Differences
from walvec.definitions.rebackfill import read_again


async def test_waits_for_source_backfill_embedder_and_sink(world: World) -> None:
    await world.apply()
    await world.append("changes", key(1), key(2))
    waiting = asyncio.create_task(world.ask("POST", "/v1/drain", {"timeout": 20}))
    await asyncio.sleep(0)
    for step in (lambda: world.read(10_000), world.backfilled, lambda: world.consume("changes")):
        early, _ = await asyncio.wait({waiting}, timeout=0.15)
        assert not early
        await step()
    early, _ = await asyncio.wait({waiting}, timeout=0.15)
    assert early == set() or (await waiting)["drained"]
    assert (await waiting)["drained"] is True


async def test_a_source_that_refuses_ends_a_wait_with_the_code_that_says_so(world: World) -> None:
    await world.ready()
    world.source.refused = "the password is wrong."
    error = (await world.ask("POST", f"{world.path}/sync/drain", {"timeout": 20}, 422))["error"]
    assert (error["code"], "the password is wrong." in error["message"]) == ("connection_not_ready", True)
    found = await world.ask("GET", f"{world.path}/sync/status?wait_for_lsn=0/64&timeout=20")
    assert (found["wait_for_lsn"], found["lsn_reached"]) == ("0/64", False)
    assert found["wait_reason"].startswith("the password is wrong.")


async def test_a_source_that_is_away_is_told_to_who_asks_for_a_status(world: World) -> None:
    await world.ready()
    world.source.down = True
    found = await world.ask("GET", f"{world.path}/sync/status?wait_for_lsn=0/64&timeout=20")
    assert (found["lsn_reached"], found["wait_reason"]) == (False, "the source does not answer. Start it.")


async def test_an_lsn_that_is_not_written_is_refused_by_its_own_name(world: World) -> None:
    await world.ready()
    for method, path, body, name in (
        ("GET", "status?wait_for_lsn=F/0", None, "wait_for_lsn"),
        ("POST", "drain", {"lsn": "F/0"}, "lsn"),
    ):
        error = (await world.ask(method, f"{world.path}/sync/{path}", body, 422))["error"]
        assert error["message"].startswith(f"{name}: F/0 is above 0/")


async def test_an_lsn_is_asked_for_by_an_example(world: World) -> None:
    await world.ready()
    for path in ("status?wait_for_lsn=last", "status?wait_for_lsn="):
        error = (await world.ask("GET", f"{world.path}/sync/{path}", status=422))["error"]
        assert error["message"].endswith("for example 0/16B3748.")


async def test_what_the_sink_sends_back_is_waited_for(world: World) -> None:
    await world.ready()
    await world.append("vectors", key(1))
    waiting = asyncio.create_task(world.ask("POST", "/v1/drain", {"timeout": 20}))
    early, _ = await asyncio.wait({waiting}, timeout=0.1)
    assert not early
    await world.append("changes", key(1))
    await world.consume("vectors")
    early, _ = await asyncio.wait({waiting}, timeout=0.15)
    assert not early
    await world.consume("changes")
    assert (await waiting)["drained"] is True


async def test_records_that_were_lost_on_the_way_are_read_again_first(world: World) -> None:
    """The reader opens the rebackfill, then it goes on past what is gone."""
    table = await world.ready()
    await world.append("changes", key(1))
    waiting = asyncio.create_task(world.ask("POST", "/v1/drain", {"timeout": 20}))
    early, _ = await asyncio.wait({waiting}, timeout=0.3)
    assert not early
    await read_again(world.control, [table], "records are gone")
    await world.consume("changes")
    early, _ = await asyncio.wait({waiting}, timeout=0.5)
    assert not early
    [task] = await world.control.tasks.open_tasks([table.id])
    await world.control.tasks.update(task.id, status="completed")
    assert (await waiting)["drained"] is True


async def test_records_that_were_lost_while_a_generation_was_swapped_in_are_waited_for(world: World) -> None:
    """Of one that is only built a table's own drain does not wait; this one serves, and the feed does not know it."""
    table = await world.ready()
    await world.ask("PUT", world.path, {"columns": COLUMNS[:3]})
    await world.built()
    states = world.control.states
    assert await states.begin_swap(table.id, 2, fills=1)
    object.__setattr__(world.services, "control", StaleControl(world.control))
    await read_again(world.control, [table], "records are gone")
    assert await states.finish_swap(table.id, 2, "2999-01-01T00:00:00Z")
    waiting = asyncio.create_task(world.ask("POST", f"{world.path}/sync/drain", {"timeout": 20}))
    early, _ = await asyncio.wait({waiting}, timeout=0.5)
    assert not early
    [task] = await world.control.tasks.open_tasks([table.id])
    await world.control.tasks.update(task.id, status="completed")
    assert (await waiting)["drained"] is True


async def test_what_is_being_swapped_in_is_waited_for_like_what_serves(world: World) -> None:
    """Its swap may end in the moment after the answer. What it lost was lost to both, and each is read by itself."""
    table = await world.ready()
    await world.ask("PUT", world.path, {"columns": COLUMNS[:3]})
    await world.built()
    states, tasks = world.control.states, world.control.tasks
    assert await states.begin_swap(table.id, 2, fills=1)
    await read_again(world.control, [table], "records are gone")
    active, swapping = await tasks.open_tasks([table.id])
    assert (active.generation, swapping.generation) == (1, 2)
    await tasks.update(active.id, status="completed")
    waiting = asyncio.create_task(world.ask("POST", f"{world.path}/sync/drain", {"timeout": 20}))
    early, _ = await asyncio.wait({waiting}, timeout=0.5)
    assert not early
    assert await states.finish_swap(table.id, 2, "2999-01-01T00:00:00Z")
    await tasks.update(swapping.id, status="completed")
    assert (await waiting)["drained"] is True


async def test_what_is_only_built_holds_up_neither_a_drain_nor_a_verify_of_its_table(world: World) -> None:
    await world.ready()
    await world.ask("PUT", world.path, {"columns": COLUMNS[:3]})
    assert await world.control.tasks.open_tasks([world.table.id])
    assert (await world.ask("POST", f"{world.path}/sync/drain", {"timeout": 5}))["drained"] is True
    found = await world.ask("POST", f"{world.path}/verify", {"timeout": 5})
    assert not any(found.values())


async def test_what_is_built_shares_the_offsets_and_a_wait_says_so(world: World) -> None:
    await world.ready()
    await world.ask("PUT", world.path, {"columns": COLUMNS[:3]})
    await world.append("changes", key(1))
    error = (await world.ask("POST", f"{world.path}/sync/drain", {"timeout": 0.3}, 504))["error"]
    assert "1 records behind; generation 2, which is being built" in error["message"]


async def test_verify_compares_the_generation_that_is_active_in_the_end(world: World) -> None:
    """The first one is equal; the second, swapped in while it is looked at, lacks a row."""
    table = await world.ready()
    await world.ask("PUT", world.path, {"columns": COLUMNS[:3]})
    await world.built()
    world.source.rows = {key(1): "text"}
    real, compared = world.store.compare, []

    async def compare(table: Any, generation: Any, rows: Any, *, only: Any = None) -> Differences:
        compared.append((generation.number, only))
        world.store.stored = {key(1): generation.hasher("static")("text")} if generation.number == 1 else {}
        return await real(table, generation, rows, only=only)

    async def before_scan() -> None:
        if len(compared) == 1:
            assert await world.control.states.begin_swap(table.id, 2, fills=1)
            assert await world.control.states.finish_swap(table.id, 2, "2999-01-01T00:00:00Z")

    world.store.compare = compare  # type: ignore[method-assign]
    world.source.before_scan = before_scan
    found = await world.ask("POST", f"{world.path}/verify", {})
    assert found["missing"] == [{"id": 1}]
    assert compared[:2] == [(1, None), (2, None)]


async def test_a_repair_that_a_swap_ends_goes_on_with_what_serves_now(world: World) -> None:
    table = await world.ready()
    await world.ask("PUT", world.path, {"columns": COLUMNS[:3]})
    await world.built()
    world.source.rows = {key(1): "text"}
    repairing = asyncio.create_task(world.ask("POST", f"{world.path}/verify", {"repair": True}))

    async def repair(generation: int) -> Any:
        opened = await world.control.tasks.open_tasks([table.id])
        return next((t for t in opened if t.task_type == "repair" and t.generation == generation), None)

    await eventually(lambda: repair(1))
    assert await world.control.states.begin_swap(table.id, 2, fills=1)
    assert await world.control.states.finish_swap(table.id, 2, "2999-01-01T00:00:00Z")
    task = await eventually(lambda: repair(2))
    world.store.stored = {key(1): world.table.active.hasher("static")("text")}
    await world.control.tasks.update(task.id, status="completed")
    assert not any((await repairing).values())


async def test_stops_early_with_the_reason(world: World) -> None:
    table = await world.ready()
    await world.append("changes", key(1))
    await world.control.definitions.set_paused(table.id, True)
    found = await world.ask("POST", "/v1/drain", {"timeout": 60})
    assert not found["drained"]
    assert "paused" in found["reason"]
    await world.control.definitions.set_paused(table.id, False)
    await world.control.states.set_error(table.id, "dead_letters", "100 in a row.", "Mend it.")
    found = await world.ask("POST", "/v1/drain", {"timeout": 60})
    assert "100 in a row. Mend it." in found["reason"]


async def test_a_table_that_is_not_published_is_waited_for(world: World) -> None:
    """A publication that somebody dropped lets the marker through, and no changes."""
    await world.ready()
    world.source.hidden = [["products"]] * 1000
    found = await world.ask("POST", "/v1/drain", {"timeout": 0.3})
    assert "publish the source table of products again" in found["reason"]
    world.source.hidden = [["products"]]
    assert (await world.ask("POST", "/v1/drain", {"timeout": 20}))["drained"]
    assert world.source.hidden == []


async def test_a_source_that_is_down_is_waited_for(world: World) -> None:
    await world.ready()
    world.source.down = True
    found = await world.ask("POST", "/v1/drain", {"timeout": 0.3})
    assert "the source does not answer" in found["reason"]
    waiting = asyncio.create_task(world.ask("POST", "/v1/drain", {"timeout": 20}))
    early, _ = await asyncio.wait({waiting}, timeout=0.1)
    assert not early
    world.source.down = False
    assert (await waiting)["drained"]


async def test_blocked_is_waited_for_and_named(world: World) -> None:
    table = await world.ready()
    await world.append("changes", key(1))
    await world.control.states.set_blocked(table.id, "the key was refused")
    found = await world.ask("POST", "/v1/drain", {"timeout": 0.4})
    assert "the key was refused" in found["reason"]
    await world.consume()
    assert (await world.ask("POST", "/v1/drain", {"timeout": 20}))["drained"]


async def test_dead_letters_are_told_and_do_not_hold_it_up(world: World) -> None:
    table = await world.ready()
    await world.control.letters.put([DeadLetter(table.id, 1, key(1), "provider", "no", position(5))])
    found = await world.ask("POST", "/v1/drain", {"tables": ["products"]})
    assert found["drained"]
    assert found["dead_letters"] == {"products": 1}


async def test_pending_says_how_to_start(world: World) -> None:
    await world.apply(backfill="manual")
    await world.read(10_000)
    found = await world.ask("POST", "/v1/drain", {})
    assert "walvec backfill products" in found["reason"]


async def test_no_tables_is_drained(world: World) -> None:
    assert (await world.ask("POST", "/v1/drain"))["drained"]


async def test_verify_lists_what_differs_and_repairs(world: World) -> None:
    table = await world.ready()
    hash_of = table.active.hasher("static")
    world.source.rows = {key(n): f"text {n}" for n in range(1, 6)} | {key(9): None}
    world.store.stored = {key(n): hash_of(f"text {n}") for n in (1, 2)} | {key(3): "old", key(7): "gone"}
    await world.control.letters.put([DeadLetter(table.id, 1, key(5), "provider", "no", position(5))])
    found = await world.ask("POST", f"/v1/vector-tables/{table.name}/verify", {})
    assert found == {
        "missing": [{"id": 4}],
        "orphaned": [{"id": 7}],
        "stale": [{"id": 3}],
        "duplicate": [],
        "dead": [{"id": 5}],
    }

    async def work() -> None:
        """As cdc, embedder and sink would."""
        done = 0
        while done < 2:
            for task in await world.control.tasks.open_tasks([table.id]):
                assert task.generation == 1
                if task.task_type == "repair":
                    assert sorted(task.params["keys"]) == ['{"id":3}', '{"id":4}', '{"id":7}']
                    world.store.stored = {k: hash_of(v) for k, v in world.source.rows.items() if v and k != key(5)}
                else:
                    assert task.task_type == "replay"
                    await world.control.letters.remove(table.id, task.params["letters"])
                    world.store.stored[key(5)] = hash_of("text 5")
                    world.source.rows[key(5)] = "text 5"
                await world.control.tasks.update(task.id, status="completed")
                done += 1
            await world.log.wait_for_append(0.01)
        world.store.stored[key(5)] = hash_of("text 5")

    worker = asyncio.create_task(work())
    found = await world.ask("POST", f"/v1/vector-tables/{table.id}/verify", {"repair": True})
    await worker
    assert not any(found.values()), found


async def test_a_difference_that_a_drain_mends_does_not_count(world: World) -> None:
    table = await world.ready()
    world.source.rows = {key(1): "text"}
    looks = 0

    def before_scan() -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            world.store.stored = {key(1): table.active.hasher("static")("text")}

    world.source.before_scan = before_scan
    found = await world.ask("POST", "/v1/vector-tables/products/verify", {})
    assert not any(found.values())
    assert looks == 2


async def test_verify_of_a_paused_table_says_why_not(world: World) -> None:
    table = await world.ready()
    await world.control.definitions.set_paused(table.id, True)
    error = (await world.ask("POST", "/v1/vector-tables/products/verify", {}, 409))["error"]
    assert error["code"] == "not_drained"
    assert "paused" in error["message"]
