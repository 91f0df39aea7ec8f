"""Somebody else changes, swaps or deletes the table between two steps of a change: nothing of it is taken back, nothing
that is gone comes back, and the view shows what is fed."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from api.redefine import redefine
from api.redefinition import Redefinition, redefinition
from api.removals import Remover, remove_vector_table
from cdc.source import SourceAccess
from sink.stores.registry import Stores
from tests.integration.generations_world import BODIES, NO_PRICE, TABLE, World, world
from walvec.contracts.errors import NotFound, StoreRejected
from walvec.definitions.model import Generation, VectorTable


@pytest.fixture
async def at(postgres: Any) -> AsyncIterator[World]:
    async with world(postgres) as made:
        yield made


@pytest.fixture
async def stores(at: World) -> AsyncIterator[Stores]:
    made = Stores(at.settings, at.control)
    yield made
    await made.close()


class Slow:
    """The store of an API process that stands still before it makes a storage."""

    def __init__(self, real: Stores) -> None:
        self._real = real
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def ensure(self, table: VectorTable, generation: Generation) -> None:
        self.reached.set()
        await self.go_on.wait()
        await self._real.ensure(table, generation)


async def change(at: World, generation: Generation | None = None, **fields: Any) -> Redefinition:
    table = await at.table()
    return redefinition(table, replace(table, generations=(generation or table.active,), **fields))


async def stored(at: World) -> list[tuple[Any, ...]]:
    return await at.rows("SELECT generation, shown IS NOT NULL FROM walvec._walvec_stores ORDER BY generation")


async def gone(at: World) -> bool:
    return await stored(at) == []


@pytest.mark.parametrize("another", [False, True], ids=["in place", "another generation"])
async def test_a_table_that_is_deleted_while_it_is_changed_leaves_nothing_behind(
    at: World, stores: Stores, another: bool
) -> None:
    """Its storage would keep the view's name from every other table, for ever."""
    table, slow = await at.table(), Slow(stores)
    made = await change(at, BODIES) if another else await change(at, name="goods")
    changing = asyncio.create_task(redefine(made, control=at.control, store=slow))  # type: ignore[arg-type]
    await slow.reached.wait()
    source = SourceAccess()
    remover = Remover(at.control, stores, at.log, source)
    await remove_vector_table(table, remover)
    assert await gone(at)
    slow.go_on.set()
    with pytest.raises(NotFound):
        await changing
    while await remover.attempt():
        pass
    assert await gone(at)
    after = replace(table, id="vt_2222feed")
    await stores.ensure(after, after.active)
    await stores.show(after, after.active)
    await source.close()


async def test_a_view_that_is_renamed_while_a_generation_is_swapped_in_shows_that_one(
    at: World, stores: Stores
) -> None:
    slow = Slow(stores)
    changing = asyncio.create_task(
        redefine(await change(at, name="goods"), control=at.control, store=slow)  # type: ignore[arg-type]
    )
    await slow.reached.wait()
    number = await at.rebuild(BODIES)
    await at.active(number)
    await at.kill("sink")  # nobody else looks at the view
    slow.go_on.set()
    await changing
    assert (number, True) in await stored(at)
    assert (1, True) not in await stored(at)
    assert (await at.rows("SELECT count(*) FROM walvec.goods WHERE vector_dims(embedding) = 12")) == [(200,)]


async def test_what_the_store_refuses_takes_nobody_else_along(at: World, stores: Stores) -> None:
    class Refusing(Slow):
        async def ensure(self, table: VectorTable, generation: Generation) -> None:
            await at.control.definitions.rebuild(TABLE, replace(NO_PRICE, number=table.next_generation))
            raise StoreRejected("no", "")

    await at.kill("cdc")  # what is built stays what is built
    with pytest.raises(StoreRejected):
        await redefine(await change(at, BODIES), control=at.control, store=Refusing(stores))  # type: ignore[arg-type]
    building = (await at.table()).building
    assert building is not None
    assert (building.number, building.columns) == (3, NO_PRICE.columns)
