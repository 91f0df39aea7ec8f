"""A table is removed while somebody makes what belongs to it: whatever the order, nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from api.reconcile import create_vector_table
from api.removals import Remover, remove_vector_table
from cdc.assembler import Assembler
from cdc.backfill import Backfill
from cdc.rereads import Reread
from cdc.routes import Routes
from cdc.stream import Stream
from cdc.work import Work
from embedder import service as embedder
from sink.service import Service, _Desk
from sink.worker import Worker
from tests.plugins.embedder_world import vector_table
from tests.plugins.eventually import eventually
from tests.plugins.stale_feed import StaleControl
from walvec.contracts.errors import ControlUnavailable, LogUnavailable, NotFound, StoreUnavailable
from walvec.definitions.making import ensure_topics
from walvec.definitions.memory import MemoryControl
from walvec.definitions.model import Connection, EmbeddingProvider, Generation, Task, VectorTable
from walvec.runtime.settings import settings_from
from walvec.transport.memory import MemoryLog
from walvec.transport.records import changes_topic, dead_topic, vectors_topic

Step = Callable[[], Coroutine[Any, Any, None]]


class Storage:
    """A store that has only storage and a view."""

    def __init__(self) -> None:
        self.there: set[tuple[str, int]] = set()
        self.before_ensure: Step | None = None
        self.dropped = 0

    async def of(self, table: VectorTable) -> Storage:
        return self

    async def ensure(self, table: VectorTable, generation: Generation) -> None:
        if self.before_ensure is not None:
            step, self.before_ensure = self.before_ensure, None
            await step()
        self.there.add((table.id, generation.number))

    async def show(self, table: VectorTable, generation: Generation) -> None:
        return

    async def remove(self, table: VectorTable, dsn: str | None) -> None:
        await self.drop(table)

    async def drop(self, table: VectorTable, generation: int | None = None) -> None:
        self.dropped += 1
        self.there = {(t, g) for t, g in self.there if t != table.id or generation not in (None, g)}


class Source:
    """A source where nothing was made."""

    async def release(self, connection: Connection) -> None:
        return


class Log(MemoryLog):
    """`before_create`, `after_create`: what happens around the next creation of a topic."""

    def __init__(self) -> None:
        super().__init__()
        self.before_create: Step | None = None
        self.after_create: Step | None = None
        self.deleted: list[str] = []
        self.loses_answers = False

    async def ensure_topic(self, topic: str, partitions: int | None = None) -> int:
        if self.before_create is not None:
            step, self.before_create = self.before_create, None
            await step()
        found = await super().ensure_topic(topic, partitions)
        if self.after_create is not None:
            step, self.after_create = self.after_create, None
            await step()
        if self.loses_answers:
            raise LogUnavailable("no answer.")
        return found

    async def delete_topic(self, topic: str) -> None:
        self.deleted.append(topic)
        await super().delete_topic(topic)

    @property
    def names(self) -> list[str]:
        return sorted(self._topics)


class World:
    def __init__(self) -> None:
        self.control = MemoryControl()
        self.log = Log()
        self.store = Storage()
        self.table = vector_table()
        self.topics = [f(self.table.storage_name) for f in (changes_topic, vectors_topic, dead_topic)]

    async def define(self) -> None:
        await self.control.definitions.put_connection(Connection("conn_1", "c", "postgresql", "managed", "dsn"))
        await self.control.definitions.put_provider(EmbeddingProvider("ep_1", "p", "openai", "sk-test"))
        await self.control.definitions.put_vector_table(self.table)

    @property
    def remover(self) -> Remover:
        return Remover(self.control, cast("Any", self.store), self.log, cast("Any", Source()))

    async def remove(self) -> None:
        await remove_vector_table(self.table, self.remover)

    async def ensure(self) -> list[int]:
        return await ensure_topics(self.table, *self.topics, control=self.control, log=self.log)


@pytest.fixture
async def world() -> World:
    made = World()
    await made.define()
    return made


async def test_topics_of_a_defined_table_are_made_and_counted(world: World) -> None:
    assert await world.ensure() == [4, 4, 4]
    assert world.log.names == sorted(world.topics)


async def test_removed_before_the_creation(world: World) -> None:
    world.log.before_create = world.remove
    with pytest.raises(NotFound, match="removed meanwhile"):
        await world.ensure()
    assert world.log.names == []


async def test_removed_between_creation_and_question(world: World) -> None:
    world.log.after_create = world.remove
    with pytest.raises(NotFound):
        await world.ensure()
    assert world.log.names == []


async def test_definition_deleted_before_the_question_and_topics_after_it(world: World) -> None:
    async def delete() -> None:
        await world.control.definitions.delete_vector_table(world.table.id)

    world.log.after_create = delete
    with pytest.raises(NotFound):
        await world.ensure()
    assert world.log.names == []


async def test_removed_after_the_question(world: World) -> None:
    await world.ensure()
    await world.remove()
    assert world.log.names == []


async def test_made_although_the_answer_was_lost(world: World) -> None:
    world.log.loses_answers = True
    with pytest.raises(LogUnavailable):
        await world.ensure()
    world.log.before_create = world.remove
    with pytest.raises(NotFound):
        await world.ensure()
    assert world.log.names == []


async def test_cancelled_while_it_makes(world: World) -> None:
    """A role that hears of the removal ends its worker, which may be just here."""
    removed = asyncio.Event()
    goes_on = asyncio.Event()

    async def removal() -> None:
        await world.remove()
        removed.set()
        await goes_on.wait()

    world.log.before_create = removal
    worker = asyncio.create_task(world.ensure())
    await removed.wait()
    worker.cancel()
    goes_on.set()
    assert isinstance((await asyncio.gather(worker, return_exceptions=True))[0], asyncio.CancelledError)
    assert world.log.names == []


async def test_a_creation_whose_entry_has_no_answer_takes_the_definition_back_first() -> None:
    """It was entered, roles are at work on it, and then the caller is told that it failed."""
    world = World()
    await world.define()
    await world.control.definitions.delete_vector_table(world.table.id)
    enter = world.control.definitions.put_vector_table

    async def entered_without_an_answer(table: VectorTable) -> None:
        await enter(table)
        raise ControlUnavailable("no answer.")

    world.control.definitions.put_vector_table = entered_without_an_answer  # type: ignore[method-assign]
    with pytest.raises(ControlUnavailable):
        await create_vector_table(world.table, world.remover)
    assert world.control.feed.current.vector_tables == {}
    assert world.log.names == []
    assert world.store.there == set()


# ---------------------------------------------------------------- the roles, whose feed is behind


async def test_embedder(world: World) -> None:
    stale = cast("Any", StaleControl(world.control))
    await world.remove()
    stop = asyncio.Event()
    role = asyncio.create_task(
        embedder.run(
            settings_from({}), stop, control=stale, log=world.log, lookup=cast("Any", None), rows=cast("Any", None)
        )
    )
    before = len(world.log.deleted)
    await eventually(lambda: len(world.log.deleted) >= before + 3)
    stop.set()
    await role
    assert world.log.names == []


async def test_sink_topics(world: World) -> None:
    stale = cast("Any", StaleControl(world.control))
    await world.remove()
    worker = Worker(world.table, settings_from({}), control=stale, log=world.log, store=cast("Any", world.store))
    with pytest.raises(NotFound):
        await worker.run()
    assert world.log.names == []


async def test_sink_storage(world: World) -> None:
    """Removed after the desk has looked, before it makes storage."""
    stale = cast("Any", StaleControl(world.control))
    service = Service(settings_from({}), control=stale, log=world.log, stores=cast("Any", world.store))
    world.store.before_ensure = world.remove
    desk = _Desk(world.table, asyncio.create_task(asyncio.sleep(0)))
    with pytest.raises(NotFound):
        await service._work(desk)
    assert world.store.dropped == 2
    assert world.store.there == set()
    assert world.log.names == []


async def test_sink_storage_of_a_generation_that_was_replaced(world: World) -> None:
    async def replaced() -> None:
        newer = vector_table(Generation(2, "active", "m", 8, (), (), ()))
        await world.control.definitions.put_vector_table(newer)
        await world.store.drop(newer, 1)

    service = Service(settings_from({}), control=world.control, log=world.log, stores=cast("Any", world.store))
    world.store.before_ensure = replaced
    with pytest.raises(NotFound):
        await service.ensure(world.table, world.table.active)
    assert world.store.there == set()


async def test_sink_storage_when_the_store_goes_away(world: World) -> None:
    async def away() -> None:
        world.store.there.add((world.table.id, 1))
        await world.control.definitions.delete_vector_table(world.table.id)
        raise StoreUnavailable("it is away.")

    service = Service(settings_from({}), control=world.control, log=world.log, stores=cast("Any", world.store))
    world.store.before_ensure = away
    with pytest.raises(NotFound):
        await service.ensure(world.table, world.table.active)
    assert world.store.there == set()


async def test_cdc_routes(world: World) -> None:
    stale = cast("Any", StaleControl(world.control))
    await world.remove()
    stream = Stream()
    routes = Routes(world.control.feed.current.connections["conn_1"], stale, world.log, stream, {}, 180000)
    assembler = Assembler(0, "db")
    routes.bind(assembler)
    await routes.apply(cast("Any", None), [world.table], {world.table.id: 4711})
    assert not assembler.wants(world.table.id)
    assert stream.routed == {}
    assert world.log.names == []


@pytest.mark.parametrize("job", [Backfill, Reread])
async def test_cdc_jobs(world: World, job: Any) -> None:
    stale = cast("Any", StaleControl(world.control))
    work = Work(settings_from({}), stale, world.log, Stream(), "conn_1", cast("Any", None), cast("Any", None))
    await world.remove()
    with pytest.raises(NotFound):
        await job(work, Task("task_1", "backfill", world.table.id, 1, "running")).run()
    assert world.log.names == []
