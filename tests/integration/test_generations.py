"""A generation is built beside the active one and takes its place: nobody sees an error, a gap or a mixture, whatever
dies on the way."""

from dataclasses import replace
from typing import Any

from tests.integration.generations_world import BODIES, NAMES, NO_PRICE, traffic, world
from tests.plugins.eventually import eventually


async def test_columns_and_dimensions_are_swapped_under_traffic_and_swapped_back(postgres: Any) -> None:
    async with world(postgres) as at:
        async with traffic(at) as seen:
            await at.active(await at.rebuild(BODIES))
            assert (await at.table()).previous == (await at.table()).generation(1)
            stored, _ = await at.control.definitions.rollback((await at.table()).id)
            assert stored.building is not None
            await at.active(stored.building.number)
            await at.active(await at.rebuild(NO_PRICE))
        assert seen.seen == {8, 12}
        assert min(seen.answers, seen.searches) > 20
        await at.equal()
        columns = await at.rows("SELECT attname FROM pg_attribute WHERE attrelid = 'walvec.products'::regclass")
        assert ("price",) not in columns
        assert (await at.table()).active.embedding_columns == ("name", "body")


async def test_what_is_not_kept_is_dropped_from_the_store(postgres: Any) -> None:
    async with world(postgres) as at:
        async with traffic(at):
            number = await at.rebuild(replace(NAMES, separator=" "), keep_previous=0)
            await at.active(number)

            async def alone() -> bool:
                storages = await at.rows("SELECT generation FROM walvec._walvec_stores")
                return storages == [(number,)] and len((await at.table()).generations) == 1

            await eventually(alone)
        await at.equal()
