"""What dies, is lost or is refused while a generation is built or swapped in: the active one goes on, and in the end
the store is what the source is."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from sink.service import Service
from sink.stores.registry import Stores
from tests.integration.generations_world import (
    BODIES,
    BODY,
    CONNECTION,
    ID,
    NAME,
    NAMES,
    NO_PRICE,
    PRICE,
    TABLE,
    World,
    traffic,
    world,
)
from tests.plugins.eventually import eventually
from walvec.contracts.errors import Conflict
from walvec.definitions.model import Connection, Generation, Task, VectorTable


@pytest.fixture
async def at(postgres: Any) -> AsyncIterator[World]:
    async with world(postgres) as made:
        yield made


async def built(at: World) -> Generation:
    found = (await at.table()).building
    assert found is not None
    return found


async def task_of(at: World, number: int) -> Task | None:
    return next((t for t in await at.control.tasks.recent(TABLE) if t.generation == number), None)


async def rows_read(at: World, number: int) -> int:
    task = await task_of(at, number)
    return int(task.progress.get("rows", 0)) if task is not None else 0


class Stuck:
    """Stands still before or after one call, for a kill to come."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()

    async def __call__(self) -> None:
        self.reached.set()
        await asyncio.Event().wait()


class Between:
    """An object whose one method stands still `before` it does its work, or after it."""

    def __init__(self, real: Any, method: str, stuck: Stuck, *, before: bool) -> None:
        self._real, self._method, self._stuck, self._before = real, method, stuck, before

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        return self._call if name == self._method else found

    async def _call(self, *arguments: Any, **named: Any) -> Any:
        if self._before:
            await self._stuck()
        done = await getattr(self._real, self._method)(*arguments, **named)
        await self._stuck()
        return done


class ControlWith:
    def __init__(self, real: Any, states: Any) -> None:
        self._real, self.states = real, states

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


async def test_a_sink_that_dies_in_a_swap_is_followed_by_one_that_finishes_it(
    at: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with traffic(at) as seen:
        for method, before, shape in (
            ("begin_swap", False, BODIES),
            ("finish_swap", True, NAMES),
            ("finish_swap", False, NO_PRICE),
        ):
            stuck = Stuck()
            await at.kill("sink")
            at.wrap = lambda c, m=method, s=stuck, b=before: cast(  # type: ignore[misc]
                "Any", ControlWith(c, Between(c.states, m, s, before=b))
            )
            at.start("sink")
            number = await at.rebuild(shape)
            await asyncio.wait_for(stuck.reached.wait(), 60)
            await at.kill("sink")
            answers = seen.answers
            await eventually(lambda n=answers: seen.answers > n + 20)
            if (await at.table()).active.number != number:
                with pytest.raises(Conflict, match="swapped in"):
                    await at.control.definitions.abort(TABLE)
            at.wrap = lambda c: c
            at.start("sink")
            await at.active(number)
    await at.equal()


async def test_cdc_that_dies_while_it_reads_goes_on_and_misses_nothing(at: World) -> None:
    async with traffic(at):
        number = await at.rebuild(BODIES)
        await eventually(lambda: rows_read(at, number))
        await at.kill("cdc")
        assert (await at.table()).active.number == 1
        await at.sql("UPDATE products SET body = 'late ' || id WHERE id % 2 = 0", "DELETE FROM products WHERE id = 150")
        at.start("cdc")
        await at.active(number)
    await at.equal()


async def test_a_slot_that_is_lost_reads_both_generations_again(at: World) -> None:
    await at.kill("sink")  # so that it is filled no sooner than we look
    number = await at.rebuild(BODIES)
    await eventually(lambda: rows_read(at, number))
    await at.kill("cdc")
    slot = Connection(CONNECTION, "", "", "managed", "").slot
    await eventually(lambda: _dropped(at, slot))
    await at.sql(
        "DELETE FROM products WHERE id IN (60, 61)", "UPDATE products SET body = 'gap', name = 'gap' WHERE id = 5"
    )
    at.start("cdc", "sink")
    await at.active(number)
    reads = {t.generation for t in await at.control.tasks.recent(TABLE) if t.params.get("reason")}
    assert reads == {1, number}
    await at.equal()


async def _dropped(at: World, slot: str) -> bool:
    found = await at.rows(f"SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'")
    if found and not found[0][0]:
        await at.rows(f"SELECT pg_drop_replication_slot('{slot}')")
    return not found


async def test_truncate_while_a_generation_is_built(at: World) -> None:
    async with traffic(at, truncates=True):
        number = await at.rebuild(BODIES)
        await eventually(lambda: rows_read(at, number))
        await at.sql("TRUNCATE products")
        await at.sql("INSERT INTO products SELECT i, 'new ' || i, 'row ' || i, 1 FROM generate_series(1, 90) i")
        await at.active(number)
    await at.equal()


async def test_what_was_deleted_since_it_was_retired_does_not_come_back(at: World) -> None:
    await at.active(await at.rebuild(BODIES))
    await at.sql("DELETE FROM products WHERE id <= 30", "UPDATE products SET name = 'other' WHERE id = 31")
    await at.equal()
    await at.sql("INSERT INTO products VALUES (7, 'name 7', 'body 7', 7)")
    _, task = await at.control.definitions.rollback(TABLE)
    await at.active(task.generation)
    assert (await at.table()).active.embedding_columns == ("name",)
    await at.equal()


async def test_a_second_rebuild_takes_the_place_of_the_first(at: World) -> None:
    async with traffic(at):
        first = await at.rebuild(BODIES)
        await eventually(lambda: rows_read(at, first))
        second = await at.rebuild(NO_PRICE)
        await at.active(second)

        async def alone() -> bool:
            return await at.rows("SELECT generation FROM walvec._walvec_stores ORDER BY 1") == [(1,), (second,)]

        await eventually(alone)
    task = await task_of(at, first)
    assert task is not None
    assert task.status == "cancelled"
    await at.equal()


async def test_an_abort_at_every_moment_leaves_the_active_one(at: World) -> None:
    moments: list[Callable[[Generation, Task | None], bool]] = [
        lambda g, t: True,
        lambda g, t: t is not None and t.status == "running",
        lambda g, t: t is not None and t.progress.get("rows", 0) > 0,
        lambda g, t: g.filled,
        lambda g, t: g.ready,
    ]
    refused = 0
    async with traffic(at):
        for moment in moments:
            number = await at.rebuild(BODIES)

            async def come(moment: Any = moment, number: int = number) -> bool:
                found = (await at.table()).generation(number)
                return found is None or found.state != "building" or moment(found, await task_of(at, number))

            await eventually(come, 60)
            try:
                await at.control.definitions.abort(TABLE)
            except Conflict as e:
                if e.code not in ("swap_in_progress", "nothing_to_abort"):
                    raise
                refused += 1  # too late: it is swapped in, or was
                await at.active(number)
                _, task = await at.control.definitions.rollback(TABLE)
                await at.active(task.generation)
        assert refused <= 2

        async def dropped() -> bool:
            there = {n for (n,) in await at.rows("SELECT generation FROM walvec._walvec_stores")}
            return there == {g.number for g in (await at.table()).generations}

        await eventually(dropped)
    await at.equal()


async def test_a_store_that_refuses_the_new_generation_stalls_it_and_nothing_else(at: World) -> None:
    number = await at.rebuild(replace(BODIES, embedding_dimensions=20_000))

    async def stalled() -> bool:
        return (await built(at)).state == "stalled"

    await eventually(stalled)
    table = await at.table()
    assert (table.error, table.pending_rebackfill) == (None, True)
    assert "at most 16000" in str((await built(at)).stalled)
    task = await task_of(at, number)
    assert task is not None
    assert "at most 16000" in str(task.last_error)
    await at.sql("UPDATE products SET name = 'it goes on' WHERE id = 3")
    await at.equal()
    await at.active(await at.rebuild(BODIES))
    await at.equal()


async def test_a_column_that_only_the_new_generation_needs_is_dropped(at: World) -> None:
    """Rows that follow no longer fit it, and its reading is refused: it stalls, the active one goes on."""
    await at.kill("sink")
    number = await at.rebuild(BODIES)
    await eventually(lambda: rows_read(at, number))
    await at.sql("ALTER TABLE products DROP COLUMN body", "UPDATE products SET name = 'it goes on' WHERE id = 3")

    async def stalled() -> bool:
        return (await built(at)).state == "stalled"

    await eventually(stalled, 60)
    assert "body" in str((await built(at)).stalled)
    assert (await at.table()).error is None
    at.start("sink")

    async def goes_on() -> bool:
        return await at.rows("SELECT embedded_text FROM walvec.products WHERE id = 3") == [("it goes on",)]

    await eventually(goes_on)
    with pytest.raises(Conflict):
        await at.control.tasks.create("backfill", TABLE, number, {})


async def test_a_definition_that_names_a_former_type_stalls_alone(at: World) -> None:
    """As a rollback may: what was retired knows the columns as they were then."""
    await at.kill("sink")
    former = replace(NAME, type="character varying", type_oid=1043, base_type="character varying")
    number = await at.rebuild(replace(BODIES, source=(ID, former, BODY, PRICE)))
    await eventually(lambda: rows_read(at, number))
    await at.sql("UPDATE products SET name = 'it goes on' WHERE id = 3")

    async def stalled() -> bool:
        assert (await at.table()).error is None
        return (await built(at)).state == "stalled"

    await eventually(stalled, 60)
    assert '"name"' in str((await built(at)).stalled)
    at.start("sink")

    async def goes_on() -> bool:
        return await at.rows("SELECT embedded_text FROM walvec.products WHERE id = 3") == [("it goes on",)]

    await eventually(goes_on)
    await at.equal()
    assert (await at.table()).error is None


async def test_a_type_that_only_the_active_one_does_not_know_yet_stops_the_table(at: World) -> None:
    """What is built was defined after the change: it must not speak for the one that serves."""
    await at.kill("cdc")
    await at.sql("ALTER TABLE products ALTER COLUMN price TYPE text")
    text = replace(PRICE, type="text", type_oid=25, base_type="text", codec="text")
    await at.rebuild(replace(BODIES, source=(ID, NAME, BODY, text)))
    await at.sql("UPDATE products SET price = 'dear' WHERE id = 3")
    at.start("cdc")

    async def stopped() -> bool:
        return ((await at.table()).error or {}).get("kind") == "table_changed"

    await eventually(stopped)


async def test_a_swap_that_the_store_refuses_is_undone_and_can_be_tried_again(at: World) -> None:
    await at.sql("CREATE VIEW mine AS SELECT id, price FROM walvec.products")
    await at.rebuild(NO_PRICE)

    async def stalled() -> bool:
        return (await built(at)).state == "stalled"

    await eventually(stalled, 60)
    assert "other objects depend on it" in str((await built(at)).stalled)
    await at.sql("UPDATE products SET name = 'it goes on' WHERE id = 3")
    await at.equal()
    await at.sql("DROP VIEW mine")
    _, task = await at.control.definitions.retry(TABLE)
    await at.active(task.generation)
    await at.equal()


async def test_a_process_that_was_behind_and_turned_the_view_back_is_mended(at: World) -> None:
    number = await at.rebuild(BODIES)
    await at.active(number)
    stores, table = Stores(at.settings, at.control), await at.table()
    first = table.generation(1)
    assert first is not None
    await eventually(lambda: _shown(at, number))
    await stores.show(table, first)
    await stores.close()
    await at.kill("sink")
    at.start("sink")
    await eventually(lambda: _shown(at, number))
    await at.equal()


async def _shown(at: World, number: int) -> bool:
    return await at.rows("SELECT generation FROM walvec._walvec_stores WHERE shown IS NOT NULL") == [(number,)]


async def test_names_change_while_a_generation_is_built(at: World) -> None:
    """Topics and storage keep their names; the view is renamed at once."""
    number = await at.rebuild(BODIES, name="goods")

    async def renamed() -> bool:
        return await at.rows(
            "SELECT relname::text FROM pg_class WHERE relkind = 'v' AND relnamespace = 'walvec'::regnamespace"
        ) == [("goods",)]

    await eventually(renamed)
    await at.active(number)
    await eventually(renamed)
    assert len(await at.rows("SELECT id FROM walvec.goods")) == 200
    table: VectorTable = await at.table()
    assert table.storage_name.endswith("products")


async def test_a_sink_that_is_behind_drops_nothing_that_is_kept(at: World) -> None:
    """Its desk is made for generations that are retired by now: it must not take them for gone."""
    before = await at.table()
    number = await at.rebuild(BODIES)
    await at.active(number)
    stores = Stores(at.settings, at.control)
    service = Service(at.settings, control=at.control, log=at.log, stores=stores)
    await service.ensure(before, before.active)
    assert await stores.generations(before) == [1, number]
    assert await stores.count(before, before.active) == 200
    await stores.close()
