"""Generations in the control database: each step with its tasks in one transaction, held to the fake and Postgres."""

import asyncio
from dataclasses import replace

import pytest

from tests.contract.test_control import GENERATION, LOCAL, PRODUCTS, control, defined, table
from walvec.contracts.errors import Conflict, NotFound, PreconditionFailed
from walvec.definitions import revisions
from walvec.definitions.model import Generation, Task
from walvec.definitions.ports import Control

__all__ = ["control", "defined"]
OTHER = replace(LOCAL, id="emb_2", name="other", provider="static")
SECOND = replace(
    GENERATION, number=2, separator=" ", embedding_provider_id=OTHER.id, provider_kind="static", filled=True, ready=True
)


@pytest.fixture
async def read(defined: Control) -> Control:
    """The table is filled, and another provider is there."""
    await defined.definitions.put_provider(OTHER)
    await defined.states.set_backfilled(PRODUCTS.id, 1)
    return defined


async def open_tasks(control: Control) -> list[Task]:
    return await control.tasks.open_tasks([PRODUCTS.id])


async def swapped(control: Control, generation: Generation = SECOND) -> None:
    _, task = await control.definitions.rebuild(PRODUCTS.id, generation)
    await control.tasks.update(task.id, status="completed")
    await control.states.set_backfilled(PRODUCTS.id, generation.number)
    await control.states.set_ready(PRODUCTS.id, generation.number)
    assert await control.states.begin_swap(PRODUCTS.id, generation.number, fills=1)
    assert await control.states.finish_swap(PRODUCTS.id, generation.number, "2026-01-01T00:00:00Z")


async def test_a_rebuild_and_its_task_are_one(read: Control) -> None:
    version = (await read.definitions.snapshot()).version
    stored, task = await read.definitions.rebuild(PRODUCTS.id, SECOND, changes={"keep_previous": 9})
    assert stored == await table(read)
    assert (stored.keep_previous, stored.pending_rebackfill, stored.active.number) == (9, True, 1)
    assert stored.building == replace(SECOND, state="building", filled=False, ready=False)
    assert await open_tasks(read) == [task]
    assert (task.task_type, task.generation, task.params, task.status) == ("rebackfill", 2, {"sweep": True}, "pending")
    async with asyncio.timeout(1):
        await read.feed.changed(version)
    with pytest.raises(Conflict):
        await read.definitions.rebuild(PRODUCTS.id, SECOND)
    with pytest.raises(NotFound):
        await read.definitions.rebuild("vt_none", SECOND)
    with pytest.raises(NotFound):
        await read.definitions.rebuild(PRODUCTS.id, replace(SECOND, number=3, embedding_provider_id="emb_none"))
    assert await table(read) == stored


async def test_a_second_rebuild_ends_the_tasks_of_the_first(read: Control) -> None:
    _, first = await read.definitions.rebuild(PRODUCTS.id, SECOND)
    own = await read.tasks.create("backfill", PRODUCTS.id, 1, {})
    _, second = await read.definitions.rebuild(PRODUCTS.id, replace(SECOND, number=3))
    assert [t.id for t in await open_tasks(read)] == [own.id, second.id]
    assert (await read.tasks.get(first.id)).status == "cancelled"


async def test_two_writers_do_not_overwrite_each_other(read: Control) -> None:
    seen = await table(read)
    etag = revisions.etag(seen)
    await read.definitions.put_vector_table(replace(seen, keep_previous=7), etag=etag)
    for late in (
        lambda: read.definitions.put_vector_table(replace(seen, keep_previous=8), etag=etag),
        lambda: read.definitions.rebuild(PRODUCTS.id, SECOND, etag=etag),
        lambda: read.definitions.replace_active(PRODUCTS.id, SECOND, etag=etag),
    ):
        with pytest.raises(PreconditionFailed):
            await late()
    now = await table(read)
    assert (now.keep_previous, now.building) == (7, None)
    await read.definitions.rebuild(PRODUCTS.id, SECOND, etag=revisions.etag(now))


async def test_one_open_backfill_for_each_generation(read: Control) -> None:
    await read.definitions.rebuild(PRODUCTS.id, SECOND)
    with pytest.raises(Conflict) as refused:
        await read.tasks.create("backfill", PRODUCTS.id, 1, {}, alone=True)
    assert refused.value.code == "backfill_in_progress"
    active = await read.tasks.create("rebackfill", PRODUCTS.id, 1, {})
    for generation in (1, 2):
        with pytest.raises(Conflict):
            await read.tasks.create("backfill", PRODUCTS.id, generation, {})
    await read.tasks.update(active.id, status="completed")
    await read.definitions.abort(PRODUCTS.id)
    await read.tasks.create("backfill", PRODUCTS.id, 1, {}, alone=True)
    with pytest.raises(Conflict, match="not fed"):
        await read.tasks.create("backfill", PRODUCTS.id, 2, {})


async def test_a_task_is_adopted(read: Control) -> None:
    _, task = await read.definitions.rebuild(PRODUCTS.id, SECOND)
    adopted = await read.tasks.adopt(task.id)
    assert adopted.params == {"sweep": True, "asked": True}
    assert await open_tasks(read) == [adopted]
    await read.tasks.update(task.id, status="cancelled")
    assert (await read.tasks.adopt(task.id)).status == "cancelled"
    with pytest.raises(NotFound):
        await read.tasks.adopt("task_none")


async def test_fed_or_read_what_is_read_again_does_not_swap(read: Control) -> None:
    """Rule fed-or-read: also when the task that reads it again fails, or is cancelled."""
    _, task = await read.definitions.rebuild(PRODUCTS.id, SECOND)
    await read.states.set_backfilled(PRODUCTS.id, 2)
    await read.states.set_ready(PRODUCTS.id, 2)
    assert not await read.states.begin_swap(PRODUCTS.id, 2, fills=1), "its task is open"
    await read.tasks.update(task.id, status="completed")
    again = await read.tasks.create("rebackfill", PRODUCTS.id, 2, {"sweep": True})
    await read.tasks.update(again.id, status="cancelled")
    assert not await read.states.begin_swap(PRODUCTS.id, 2, fills=1), "it was not read to the end"
    stored, retried = await read.definitions.retry(PRODUCTS.id)
    assert (stored.building is not None and stored.building.number, retried.generation) == (2, 2)
    with pytest.raises(Conflict) as refused:
        await read.definitions.retry(PRODUCTS.id)
    assert refused.value.code == "backfill_in_progress"
    await read.tasks.update(retried.id, status="completed")
    await read.states.set_backfilled(PRODUCTS.id, 2)
    assert not await read.states.begin_swap(PRODUCTS.id, 2, fills=1), "it was drained before it was read again"
    assert await read.states.begin_swap(PRODUCTS.id, 2, fills=2)
    assert await read.states.begin_swap(PRODUCTS.id, 2, fills=2), "whoever rolls it forward may ask again"


async def test_fed_or_read_who_was_replaced_says_nothing_of_its_rows(read: Control) -> None:
    """Something is lost after a backfill has looked whether it still counts, and before it says that all is read."""
    _, task = await read.definitions.rebuild(PRODUCTS.id, SECOND)
    await read.tasks.update(task.id, status="running")
    assert await read.states.set_backfilled(PRODUCTS.id, 2, by=task.id), "as long as it runs"
    again = await read.tasks.create("rebackfill", PRODUCTS.id, 2, {"sweep": True}, instead_of=[task.id], reason="lost")
    assert not await read.states.set_backfilled(PRODUCTS.id, 2, by=task.id)
    building = (await read.definitions.snapshot()).vector_tables[PRODUCTS.id].building
    assert building is not None
    assert not building.filled
    await read.states.set_ready(PRODUCTS.id, 2)
    await read.tasks.update(again.id, status="failed", last_error="the source refuses")
    assert not await read.states.begin_swap(PRODUCTS.id, 2, fills=building.fills), "nobody has read what was lost"


async def test_a_swap_ends_what_was_open_of_the_one_before(read: Control) -> None:
    old = await read.tasks.create("rebackfill", PRODUCTS.id, 1, {})
    await swapped(read)
    assert (await read.tasks.get(old.id)).status == "cancelled"
    now = await table(read)
    assert (now.active.number, now.embedding_provider_id, now.provider_kind) == (2, OTHER.id, "static")
    assert not await read.states.finish_swap(PRODUCTS.id, 1, "later")
    assert await read.states.finish_swap(PRODUCTS.id, 2, "later"), "a second sink finds it done"
    assert await table(read) == now
    await read.states.expire(PRODUCTS.id, 1)
    assert [g.number for g in (await table(read)).generations] == [2]


async def test_a_stalled_generation_takes_its_task_along(read: Control) -> None:
    _, task = await read.definitions.rebuild(PRODUCTS.id, SECOND)
    assert await read.states.set_stalled(PRODUCTS.id, 2, "provider_stop", "no credit")
    assert await read.states.set_stalled(PRODUCTS.id, 2, "provider_stop", "no credit at all")
    ended = await read.tasks.get(task.id)
    assert (ended.status, ended.last_error) == ("cancelled", "provider_stop: no credit")
    stored, retried = await read.definitions.retry(PRODUCTS.id)
    assert [(g.number, g.state) for g in stored.generations] == [(1, "active"), (2, "retired"), (3, "building")]
    assert [t.id for t in await open_tasks(read)] == [retried.id]
    assert await read.states.set_stalled(PRODUCTS.id, 9, "k", "gone: there is nothing to feed")
    assert not await read.states.set_stalled(PRODUCTS.id, 1, "k", "it serves")
    with pytest.raises(NotFound):
        await read.states.set_stalled("vt_none", 1, "k", "r")


async def test_a_swap_that_is_undone(read: Control) -> None:
    _, task = await read.definitions.rebuild(PRODUCTS.id, SECOND)
    await read.tasks.update(task.id, status="completed")
    await read.states.set_backfilled(PRODUCTS.id, 2)
    await read.states.set_ready(PRODUCTS.id, 2)
    assert await read.states.begin_swap(PRODUCTS.id, 2, fills=1)
    for refused in (
        lambda: read.definitions.abort(PRODUCTS.id),
        lambda: read.definitions.rebuild(PRODUCTS.id, replace(SECOND, number=3)),
    ):
        with pytest.raises(Conflict) as e:
            await refused()
        assert e.value.code == "swap_in_progress"
    assert not await read.states.set_stalled(PRODUCTS.id, 2, "k", "too late")
    await read.states.undo_swap(PRODUCTS.id, 2, "a view depends on it")
    found = (await table(read)).building
    assert found is not None
    assert (found.state, found.stalled) == ("stalled", "a view depends on it")
    assert not await read.states.finish_swap(PRODUCTS.id, 2, "later")
    await read.definitions.abort(PRODUCTS.id)


async def test_who_is_told_of_a_former_attempt_takes_no_change_for_made(read: Control) -> None:
    """What stalled is tried again under another number, of the same definition and revision."""
    await read.definitions.rebuild(PRODUCTS.id, SECOND)
    await read.states.set_stalled(PRODUCTS.id, 2, "provider_stop", "no money")
    seen = await table(read)
    await read.definitions.retry(PRODUCTS.id)
    flat = tuple(replace(g, index={"kind": "none"}) if g.number == 2 else g for g in seen.generations)
    with pytest.raises(PreconditionFailed):
        await read.definitions.put_vector_table(replace(seen, generations=flat), etag=revisions.etag(seen))


async def test_indexes_are_ready_only_by_the_definition_that_they_were_built_by(read: Control) -> None:
    seen = await table(read)
    other = replace(seen, generations=(replace(seen.active, index={"kind": "none"}),))
    await read.definitions.put_vector_table(other)
    await read.states.set_ready(PRODUCTS.id, 1, index=seen.active.index)
    assert not (await table(read)).active.ready
    await read.states.set_ready(PRODUCTS.id, 1, index={"kind": "none"})
    assert (await table(read)).active.ready


async def test_a_rollback_reads_the_previous_definition_anew(read: Control) -> None:
    with pytest.raises(Conflict) as refused:
        await read.definitions.rollback(PRODUCTS.id)
    assert refused.value.code == "nothing_to_roll_back"
    await swapped(read)
    stored, task = await read.definitions.rollback(PRODUCTS.id)
    assert stored.building is not None
    assert (stored.building.number, stored.building.separator) == (3, GENERATION.separator)
    assert (task.generation, task.params) == (3, {"sweep": True})


async def test_an_unread_table_gets_another_definition(defined: Control) -> None:
    await defined.definitions.put_provider(OTHER)
    stored = await defined.definitions.replace_active(PRODUCTS.id, SECOND, changes={"keep_previous": 3})
    assert stored == await table(defined)
    assert [(g.number, g.state) for g in stored.generations] == [(2, "active")]
    assert (stored.embedding_provider_id, stored.keep_previous) == (OTHER.id, 3)
    with pytest.raises(Conflict, match="not fed"):
        await defined.tasks.create("backfill", PRODUCTS.id, 1, {})
    await defined.tasks.create("backfill", PRODUCTS.id, 2, {})
    with pytest.raises(Conflict):
        await defined.definitions.replace_active(PRODUCTS.id, replace(SECOND, number=3))


async def test_a_provider_that_a_generation_uses_stays(read: Control) -> None:
    await read.definitions.rebuild(PRODUCTS.id, SECOND)
    with pytest.raises(Conflict):
        await read.definitions.delete_provider(OTHER.id)
    await read.definitions.abort(PRODUCTS.id)
    await read.definitions.delete_provider(OTHER.id)
