"""A swap is begun only after what the generation was read for last has been drained, however old the definitions are
that the sink looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from sink.generations import Generations
from sink.stores.memory import MemoryStore
from tests.plugins.embedder_world import vector_table
from walvec.definitions.memory import MemoryControl
from walvec.definitions.model import Connection, EmbeddingProvider, VectorTable
from walvec.definitions.rebackfill import read_again
from walvec.transport.memory import MemoryLog
from walvec.transport.records import Record, changes_topic, embedder_group, vectors_topic

TABLE = replace(vector_table(), backfilled=True)
CHANGES = changes_topic(TABLE.storage_name)


class ReadAgain(MemoryLog):
    """At the end of what the sink drains, records are lost, all is read again, and a sweep is put into the log."""

    control: MemoryControl
    looks = 0

    async def committed(self, topic: str, group: str) -> dict[int, int]:
        self.looks += 1
        if self.looks == 4:  # both topics, twice
            await read_again(self.control, [TABLE], "records are gone")
            for task in await self.control.tasks.open_tasks([TABLE.id]):
                await self.producer().append(CHANGES, [Record(b"{}", b"{}")])
                await self.control.tasks.update(task.id, status="completed")
                await self.control.states.set_backfilled(TABLE.id, task.generation)
        return await super().committed(topic, group)


async def now(control: MemoryControl) -> VectorTable:
    return (await control.definitions.snapshot()).vector_tables[TABLE.id]


async def test_fed_or_read_a_swap_is_not_begun_on_old_definitions() -> None:
    """Rule fed-or-read: neither its feed nor what it drained knew of the last reading."""
    control, store, log = MemoryControl(), MemoryStore(), ReadAgain()
    log.control = control
    await control.definitions.put_connection(Connection("conn_1", "c", "postgresql", "managed", "dsn"))
    await control.definitions.put_provider(EmbeddingProvider("ep_1", "p", "openai", "sk-test"))
    await control.definitions.put_vector_table(TABLE)
    for topic in (CHANGES, vectors_topic(TABLE.storage_name)):
        await log.ensure_topic(topic, 1)
    _, task = await control.definitions.rebuild(TABLE.id, replace(TABLE.active, number=2))
    await control.tasks.update(task.id, status="completed")
    await control.states.set_backfilled(TABLE.id, 2)
    await control.states.set_ready(TABLE.id, 2)
    table = await now(control)
    for generation in table.generations:
        await store.ensure(table, generation)
    worker = SimpleNamespace(table=table, passed_over=set())
    generations = Generations(cast("Any", worker), control=control, log=log, store=store)
    await generations.turn()
    assert log.looks == 4
    assert (await now(control)).active.number == 1, "the sweep is still in the log"

    worker.table = await now(control)
    consumer = log.consumer(CHANGES, embedder_group(TABLE.storage_name))
    await consumer.poll(max_records=10, max_bytes=1_000_000, timeout=0)
    ends: Mapping[int, int] = await log.end_offsets(CHANGES)
    await consumer.commit(dict(ends))
    await consumer.close()
    await generations.turn()
    assert (await now(control)).active.number == 2
    assert store.shown[TABLE.id] == 2
