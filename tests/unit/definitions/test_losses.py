"""What was lost is made up for by a durable task before anybody goes on; what is too large becomes a dead letter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from cdc.counts import Counts
from cdc.oversized import FittingProducer
from cdc.topics import TopicGone, Topics
from tests.plugins.embedder_world import change, key, vector_table
from walvec.contracts.errors import NotFound, RecordsLost, RecordTooLarge
from walvec.contracts.wire import decode_change, encode_change
from walvec.definitions.memory import MemoryControl
from walvec.definitions.model import Connection, EmbeddingProvider
from walvec.definitions.rebackfill import go_on_after, read_again
from walvec.transport.memory import MemoryLog
from walvec.transport.records import Record, changes_topic, dead_topic, vectors_topic

TABLE = replace(vector_table(), backfilled=True)
CHANGES, VECTORS, DEAD = (f(TABLE.storage_name) for f in (changes_topic, vectors_topic, dead_topic))


@pytest.fixture
async def control() -> MemoryControl:
    found = MemoryControl()
    await found.definitions.put_connection(Connection("conn_1", "c", "postgresql", "managed", "dsn"))
    await found.definitions.put_provider(EmbeddingProvider("ep_1", "p", "openai", "sk-test"))
    await found.definitions.put_vector_table(TABLE)
    await found.states.set_backfilled(TABLE.id, 1)
    return found


async def rebackfills(control: MemoryControl) -> list[tuple[bool, str]]:
    tasks = await control.tasks.open_tasks([TABLE.id])
    assert {t.task_type for t in tasks} <= {"rebackfill"}
    return [(t.params["sweep"], t.last_error or "") for t in tasks]


# ---------------------------------------------------------------- topics


async def test_topics_that_were_never_stored_are_taken_as_they_are(control: MemoryControl) -> None:
    log = MemoryLog()
    for topic in (CHANGES, VECTORS):
        await log.ensure_topic(topic)
    await Topics(control, log).settle(TABLE)
    assert await rebackfills(control) == []
    assert set(await control.progress.topics([TABLE.id])) == {CHANGES, VECTORS}


@pytest.mark.parametrize("remade", [False, True])
@pytest.mark.parametrize("lost", [CHANGES, VECTORS])
async def test_restart_on_loss_a_topic_that_was_deleted(control: MemoryControl, lost: str, remade: bool) -> None:
    log = MemoryLog()
    topics = Topics(control, log)
    for topic in (CHANGES, VECTORS):
        await log.ensure_topic(topic)
    await topics.settle(TABLE)
    open_backfill = await control.tasks.create("backfill", TABLE.id, 1, {})
    before = await log.topic_identity(lost)
    await log.delete_topic(lost)
    if remade:
        await log.ensure_topic(lost)
    with pytest.raises(TopicGone, match="was deleted"):
        await topics.check([TABLE])
    await Topics(control, log).settle(TABLE)
    [(sweep, words)] = await rebackfills(control)
    assert sweep
    assert lost in words
    assert "read again" in words
    assert (await control.tasks.get(open_backfill.id)).status == "cancelled"
    assert (await control.progress.topics([TABLE.id]))[lost] == await log.topic_identity(lost) != before


async def test_a_topic_that_a_broker_has_not_heard_of_is_not_lost(control: MemoryControl) -> None:
    log = MemoryLog()
    await Topics(control, log).settle(TABLE)
    for task in await control.tasks.open_tasks([TABLE.id]):
        await control.tasks.update(task.id, status="completed")
    identity, refusals = log.topic_identity, [NotFound("not yet known to this broker")]

    async def late(topic: str) -> str:
        if refusals:
            raise refusals.pop()
        return await identity(topic)

    log.topic_identity = late  # type: ignore[method-assign]
    await Topics(control, log).settle(TABLE)
    assert not refusals
    assert await rebackfills(control) == []


async def test_the_identity_is_stored_only_after_the_task(control: MemoryControl) -> None:
    log = MemoryLog()
    await Topics(control, log).settle(replace(TABLE, backfilled=False))
    stored = await control.progress.topics([TABLE.id])
    await log.delete_topic(CHANGES)

    async def refused(*_: Any, **__: Any) -> None:
        raise RuntimeError("killed here")

    create = control.tasks.create
    control.tasks.create = refused  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError):
        await Topics(control, log).settle(TABLE)
    assert await control.progress.topics([TABLE.id]) == stored
    control.tasks.create = create  # type: ignore[method-assign]
    await Topics(control, log).settle(TABLE)
    assert len(await rebackfills(control)) == 1


# ---------------------------------------------------------------- records that expired


class Consumer:
    def __init__(self, control: MemoryControl) -> None:
        self.control = control
        self.done: list[tuple[str, Any, int]] = []

    async def seek(self, partition: int, offset: int) -> None:
        self.done.append(("seek", (partition, offset), len(await rebackfills(self.control))))

    async def commit(self, offsets: dict[int, int]) -> None:
        self.done.append(("commit", offsets, len(await rebackfills(self.control))))


async def test_reading_goes_on_only_after_the_rebackfill_is_there(control: MemoryControl) -> None:
    consumer = Consumer(control)
    lost = RecordsLost("offset 5 is not kept.", topic=CHANGES, partition=2, resume_at=40)
    await go_on_after(lost, TABLE, control=control, consumer=cast("Any", consumer))
    assert consumer.done == [("seek", (2, 40), 1), ("commit", {2: 40}, 1)]
    [(sweep, words)] = await rebackfills(control)
    assert sweep
    assert "gone before they were read" in words


# ---------------------------------------------------------------- records that are too large


class Narrow:
    """A producer of the log for which values above `limit` bytes are too large."""

    def __init__(self, log: MemoryLog, limit: int) -> None:
        self.inner = log.producer()
        self.limit = limit

    async def append(self, topic: str, records: Sequence[Record]) -> None:
        large = [i for i, r in enumerate(records) if len(r.value) > self.limit]
        if large and topic != DEAD:
            raise RecordTooLarge("too large.", indices=large, limit=self.limit)
        await self.inner.append(topic, records)

    async def close(self) -> None:
        return


class World:
    def __init__(self, control: MemoryControl, limit: int = 2000, letters: int = 100) -> None:
        self.control, self.log, self.counts = control, MemoryLog(), Counts()
        self.producer = FittingProducer(
            cast("Any", Narrow(self.log, limit)),
            control,
            self.log,
            tables=lambda: [TABLE],
            limit=letters,
            counts=self.counts,
        )

    async def send(self, *changes: Any) -> None:
        await self.log.ensure_topic(CHANGES)
        await self.producer.append(CHANGES, [Record(c.key, encode_change(c)) for c in changes])

    async def logged(self) -> dict[bytes, str]:
        return {
            r.key or b"": decode_change(r.key, r.value).op
            for p in (await self.log.end_offsets(CHANGES))
            async for r in self.log.read(CHANGES, p, 0)
        }


LARGE = "x" * 5000


async def test_dead_delete_a_change_that_is_too_large(control: MemoryControl) -> None:
    world = World(control)
    await world.send(change(1, 5, "a"), change(2, 6, LARGE), change(3, 7, "c"))
    assert await world.logged() == {key(1): "c", key(2): "d", key(3): "c"}
    [letter] = await control.letters.page(TABLE.id)
    assert (letter.kind, letter.key, letter.position.lsn, letter.generation) == ("too_large", key(2), 6, 1)
    assert "max.message.bytes" in letter.reason
    assert sum((await world.log.end_offsets(DEAD)).values()) == 1
    assert await control.states.count_dead(TABLE.id, 1) == 1  # others of the batch went through


async def test_a_delete_whose_old_image_is_too_large_needs_no_letter(control: MemoryControl) -> None:
    world = World(control)
    await world.send(replace(change(1, 5, op="d"), before={"title": LARGE}))
    assert await world.logged() == {key(1): "d"}
    assert await control.letters.count(TABLE.id) == 0


async def test_too_many_in_a_row_stop_the_table(control: MemoryControl) -> None:
    world = World(control, letters=3)
    for n in range(3):
        assert control.feed.current.vector_tables[TABLE.id].error is None
        await world.send(change(n, n + 1, LARGE))
    error = control.feed.current.vector_tables[TABLE.id].error
    assert error is not None
    assert error["kind"] == "dead_letters"
    assert "too large" in error["message"]


# ---------------------------------------------------------------- generations


async def test_fed_or_read_what_was_lost_is_read_again_by_every_live_generation(control: MemoryControl) -> None:
    """One that is filled already is not swapped in before it has been read again."""
    second = replace(TABLE.active, number=2)
    _, task = await control.definitions.rebuild(TABLE.id, second)
    await control.tasks.update(task.id, status="completed")
    await control.states.set_backfilled(TABLE.id, 2)
    await control.states.set_ready(TABLE.id, 2)
    await read_again(control, [TABLE], "the slot was lost")
    tasks = await control.tasks.open_tasks([TABLE.id])
    assert [(t.generation, t.params["sweep"]) for t in tasks] == [(1, True), (2, True)]
    assert not await control.states.begin_swap(TABLE.id, 2, fills=1)


async def test_what_is_not_fed_is_not_read_again(control: MemoryControl) -> None:
    await control.definitions.rebuild(TABLE.id, replace(TABLE.active, number=2))
    await control.states.set_stalled(TABLE.id, 2, "provider_stop", "no credit")
    await read_again(control, [TABLE], "the slot was lost")
    assert [t.generation for t in await control.tasks.open_tasks([TABLE.id])] == [1]


async def test_a_rebuild_that_begins_anew_is_still_asked_for(control: MemoryControl) -> None:
    _, task = await control.definitions.rebuild(TABLE.id, replace(TABLE.active, number=2))
    await control.tasks.adopt(task.id)
    await read_again(control, [TABLE], "the slot was lost")
    (active, again) = await control.tasks.open_tasks([TABLE.id])
    assert (active.params.get("asked"), again.params.get("asked")) == (None, True)
    assert (await control.tasks.get(task.id)).status == "cancelled"
