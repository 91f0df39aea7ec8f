"""The sink role on a real pgvector, with the log and the control database in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from sink.service import run
from sink.stores.registry import Stores
from sink.upkeep import Upkeep
from sink.worker import Worker
from tests.plugins.eventually import eventually
from tests.plugins.postgres import PostgresDatabase
from tests.plugins.stale_feed import StaleControl
from walvec.contracts.errors import StoreUnavailable
from walvec.contracts.letters import DeadLetter
from walvec.contracts.position import Position
from walvec.contracts.stores import Applied
from walvec.contracts.vectors import Chunk, VectorRecord
from walvec.contracts.wire import decode_change, encode_vector
from walvec.definitions.memory import MemoryControl
from walvec.definitions.model import (
    Column,
    Connection,
    EmbeddingProvider,
    Generation,
    SourceColumn,
    TopicSource,
    VectorTable,
)
from walvec.runtime.settings import Settings, settings_from
from walvec.transport.memory import MemoryLog
from walvec.transport.records import (
    Record,
    changes_topic,
    dead_topic,
    embedder_group,
    sink_group,
    vectors_topic,
)

ID = SourceColumn("id", "integer", 23, "integer", "int", nullable=False)
GENERATION = Generation(
    1,
    "active",
    "m",
    3,
    (Column("name", "embedding"), Column("price", "metadata", filter_type="float")),
    (ID,),
    (
        ID,
        SourceColumn("name", "text", 25, "text", "text"),
        SourceColumn("price", "numeric", 1700, "numeric", "numeric"),
    ),
)
TABLE = VectorTable(
    "vt_sinktest", "things", "conn_1", "ep_1", "static", "public", "things", "pgvector", "managed", (GENERATION,)
)


@dataclass
class Desk:
    settings: Settings
    control: MemoryControl
    log: MemoryLog
    stores: Stores

    async def send(self, *records: VectorRecord) -> None:
        topic = vectors_topic(TABLE.storage_name)
        await self.log.ensure_topic(topic)
        producer = self.log.producer()
        await producer.append(
            topic, [Record(r.key or None, encode_vector(r), 0 if not r.key else None) for r in records]
        )
        await producer.close()

    async def drained(self) -> bool:
        topic = vectors_topic(TABLE.storage_name)
        ends = await self.log.end_offsets(topic)
        return await self.log.committed(topic, sink_group(TABLE.storage_name)) == ends

    async def read(self, topic: str) -> list[Any]:
        partitions = await self.log.ensure_topic(topic)
        return [r for p in range(partitions) async for r in self.log.read(topic, p, 0)]


@pytest.fixture
async def desk(postgres: PostgresDatabase) -> AsyncIterator[Desk]:
    settings = settings_from({"pgvector": {"url": postgres.dsn}, "sink": {"purge_interval_seconds": 0.01}})
    control = MemoryControl()
    await control.definitions.put_connection(Connection("conn_1", "c", "postgresql", "managed", postgres.dsn))
    await control.definitions.put_provider(EmbeddingProvider("ep_1", "p", "static"))
    await control.definitions.put_vector_table(TABLE)
    stores = Stores(settings, control)
    made = Desk(settings, control, MemoryLog(), stores)
    yield made
    await stores.close()
    await made.log.close()


@asynccontextmanager
async def running(desk: Desk) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(run(desk.settings, stop, control=desk.control, log=desk.log, stores=desk.stores))
    try:
        yield
    finally:
        stop.set()
        await task


def upsert(i: int, lsn: int, text: str = "a", price: str = "1.5") -> VectorRecord:
    chunk = Chunk(0, text, f"hash-{text}", np.array([1, i, 0], dtype=np.float32))
    key = b'{"id":%d}' % i
    return VectorRecord("upsert", Position(0, lsn, 1), key, 1, {"price": price}, {}, (chunk,), commit_ms=1000)


async def test_records_reach_the_view(desk: Desk, postgres: PostgresDatabase) -> None:
    await desk.send(*(upsert(i, 10 + i) for i in range(500)))
    async with running(desk):
        await eventually(desk.drained)
    rows = postgres.execute("SELECT count(*), min(source_lsn)::text, sum(price) FROM walvec.things")
    assert rows[0][0] == 500
    assert rows[0][1] == "0/A"


async def test_reports_say_what_was_applied_and_how_late(desk: Desk) -> None:
    async def reported() -> Any:
        found = {subject: report for role, subject, report, _ in await desk.control.reports.all() if role == "sink"}
        return found.get(TABLE.id, {}).get("applied") == 3 and found[TABLE.id]

    async with running(desk):
        await desk.send(upsert(1, 10), upsert(2, 11), upsert(3, 12))
        report = await eventually(reported)
    assert (report["last_commit_ms"], report["refused"]) == (1000, 0)
    assert report["latency_ms_p99"] >= report["latency_ms_p50"] > 0


async def test_claim_back_a_refused_claim_returns_forced_at_its_own_position(desk: Desk) -> None:
    wrong = replace(upsert(1, 12), op="metadata", chunks=(Chunk(0, "full text", "hash-b"),), exact={"price": "1.50"})
    await desk.send(upsert(1, 10, "a"), wrong)
    async with running(desk):
        await eventually(desk.drained)
    (back,) = await desk.read(changes_topic(TABLE.storage_name))
    change = decode_change(back.key, back.value)
    assert (change.op, change.force, change.position, change.generation) == ("r", True, wrong.position, 1)
    assert (change.text, change.after, change.exact) == ("full text", {"price": "1.5"}, {"price": "1.50"})
    assert back.key == wrong.key


async def test_commit_after_output_an_outage_loses_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    apply, failures = desk.stores.apply, [3]
    committed: list[dict[int, int]] = []

    async def failing(*arguments: Any) -> Applied:
        committed.append(await desk.log.committed(vectors_topic(TABLE.storage_name), sink_group(TABLE.storage_name)))
        if failures[0]:
            failures[0] -= 1
            raise StoreUnavailable("away")
        return await apply(*arguments)

    monkeypatch.setattr(desk.stores, "apply", failing)
    await desk.send(upsert(1, 10))
    async with running(desk):
        await eventually(desk.drained)
    assert len(committed) == 4
    assert all(not any(offsets.values()) for offsets in committed)
    assert await desk.stores.count(TABLE, GENERATION) == 1


async def test_dead_delete_a_rejected_record_becomes_a_letter_and_a_delete(desk: Desk) -> None:
    bad = upsert(1, 12)
    bad = replace(bad, chunks=(replace(bad.chunks[0], text="a\x00", hash="hash-z"),))
    await desk.send(upsert(1, 10), upsert(2, 10), bad)
    async with running(desk):
        await eventually(desk.drained)
        (letter,) = await desk.control.letters.page(TABLE.id)
        assert (letter.kind, letter.key, letter.position) == ("store", bad.key, bad.position)
        assert letter.reason
        assert len(await desk.read(dead_topic(TABLE.storage_name))) == 1
        found = await desk.stores.versions(TABLE, GENERATION, [bad.key])
        assert (found[bad.key].position, found[bad.key].live) == (bad.position, False)
        await desk.send(upsert(1, 13))
        await eventually(lambda: _no_letters(desk))
    assert await desk.stores.count(TABLE, GENERATION) == 2


async def _no_letters(desk: Desk) -> bool:
    return await desk.control.letters.count(TABLE.id) == 0


async def test_a_letter_without_a_position_stays_until_a_person_acts(desk: Desk) -> None:
    """Of a record that could not be read nobody knows whether the store's version is newer."""
    unknown = DeadLetter(TABLE.id, 1, b'{"id":1}', "decode", "not a record", Position(0, 0, 0))
    worker = Worker(TABLE, desk.settings, control=desk.control, log=desk.log, store=desk.stores)
    upkeep = Upkeep(worker, desk.settings, control=desk.control, log=desk.log, store=desk.stores)
    await desk.stores.ensure(TABLE, GENERATION)
    await desk.stores.apply(TABLE, GENERATION, [upsert(1, 20), upsert(2, 20)])
    await desk.control.letters.put([unknown, replace(unknown, key=b'{"id":2}', position=Position(0, 15, 1))])
    await upkeep._letters()
    assert [x.key for x in await desk.control.letters.page(TABLE.id)] == [unknown.key]


async def test_a_letter_of_another_role_is_settled_once_overtaken(desk: Desk) -> None:
    async with running(desk):
        await desk.send(upsert(1, 20))
        await eventually(desk.drained)
        await desk.control.letters.put([DeadLetter(TABLE.id, 1, b'{"id":1}', "provider", "poison", Position(0, 15, 1))])
        await eventually(lambda: _no_letters(desk))


async def test_an_unreadable_record_does_not_hold_up_the_rest(desk: Desk) -> None:
    topic = vectors_topic(TABLE.storage_name)
    await desk.log.ensure_topic(topic)
    producer = desk.log.producer()
    await producer.append(topic, [Record(b'{"id":7}', b"not json")])
    await desk.send(upsert(1, 10))
    async with running(desk):
        await eventually(desk.drained)
        (letter,) = await desk.control.letters.page(TABLE.id)
    assert letter.kind == "decode"
    assert await desk.stores.count(TABLE, GENERATION) == 1


async def test_indexes_are_built_once_the_table_is_backfilled(desk: Desk, postgres: PostgresDatabase) -> None:
    async with running(desk):
        await desk.send(upsert(1, 10))
        await eventually(desk.drained)
        assert _hnsw(postgres) == 0
        await desk.control.states.set_backfilled(TABLE.id, 1)
        await eventually(lambda: desk.control.feed.current.vector_tables[TABLE.id].active.ready)
    assert _hnsw(postgres) == 1


def _hnsw(postgres: PostgresDatabase) -> int:
    return len(postgres.execute("SELECT 1 FROM pg_indexes WHERE schemaname = 'walvec' AND indexdef LIKE '%hnsw%'"))


async def test_a_paused_table_is_not_consumed(desk: Desk) -> None:
    async with running(desk):
        await desk.send(upsert(1, 10))
        await eventually(desk.drained)
        await desk.control.definitions.set_paused(TABLE.id, True)
        await desk.send(upsert(2, 11))
        assert not await desk.drained()
        await desk.control.definitions.set_paused(TABLE.id, False)
        await eventually(desk.drained)
    assert await desk.stores.count(TABLE, GENERATION) == 2


async def test_a_table_that_the_store_refuses_is_in_error_with_the_cure(desk: Desk, postgres: PostgresDatabase) -> None:
    postgres.execute("CREATE SCHEMA walvec; CREATE TABLE walvec.things (x int)")
    async with running(desk):
        error = await eventually(lambda: desk.control.feed.current.vector_tables[TABLE.id].error)
    assert "taken" in str(error)


async def test_known_generation_its_records_are_not_passed_over_while_the_feed_is_behind(desk: Desk) -> None:
    stale = StaleControl(desk.control)
    stop = asyncio.Event()
    role = asyncio.create_task(run(desk.settings, stop, control=stale, log=desk.log, stores=desk.stores))  # type: ignore[arg-type]
    await desk.send(upsert(1, 10))
    await eventually(desk.drained)
    building = replace(GENERATION, number=2, state="building")
    both, _ = await desk.control.definitions.rebuild(TABLE.id, building)
    await desk.send(replace(upsert(1, 11), generation=2))
    await eventually(lambda: stale.asked)
    assert not await desk.drained()
    stale.feed.bring()
    await eventually(desk.drained)
    stop.set()
    await role
    assert await desk.stores.count(both, building) == 1


async def test_purge_horizon_only_when_both_topics_are_drained(desk: Desk) -> None:
    await desk.control.states.set_backfilled(TABLE.id, 1)
    progress = await desk.control.progress.get("conn_1")
    await desk.control.progress.put("conn_1", replace(progress, lsn=1000))
    changes = changes_topic(TABLE.storage_name)
    await desk.log.ensure_topic(changes)
    producer = desk.log.producer()
    await producer.append(changes, [Record(b"k", b"pending", 0)])
    dead = VectorRecord("delete", Position(0, 10, 1), b'{"id":1}', 1)

    async def gone(keys: Sequence[bytes] = (dead.key,)) -> bool:
        return not await desk.stores.versions(TABLE, GENERATION, keys)

    async with running(desk):
        await desk.send(dead, upsert(2, 10))
        await eventually(desk.drained)
        await desk.send(upsert(3, 10))
        await eventually(desk.drained)
        assert not await gone()
        await desk.log.reset(changes, embedder_group(TABLE.storage_name), {0: 1})
        await eventually(gone)
    late = await desk.stores.apply(TABLE, GENERATION, [upsert(1, 9)])
    assert late.applied == 0


async def test_purge_horizon_that_came_late_is_heard_of_without_another_record(desk: Desk) -> None:
    """The last deletion of a table that is quiet from then on; cdc stores its progress after the record."""
    await desk.control.states.set_backfilled(TABLE.id, 1)
    progress = await desk.control.progress.get("conn_1")
    await desk.control.progress.put("conn_1", replace(progress, lsn=5))
    await desk.log.ensure_topic(changes_topic(TABLE.storage_name))
    dead = VectorRecord("delete", Position(0, 10, 1), b'{"id":1}', 1)
    async with running(desk):
        await desk.send(dead)
        await eventually(desk.drained)
        upkeep = Upkeep(
            Worker((await desk.control.definitions.snapshot()).vector_tables[TABLE.id], desk.settings,
                   control=desk.control, log=desk.log, store=desk.stores),
            desk.settings, control=desk.control, log=desk.log, store=desk.stores,
        )  # fmt: skip
        before = await upkeep.purge()
        assert await desk.stores.versions(TABLE, GENERATION, [dead.key])
        await desk.control.progress.put("conn_1", replace(progress, lsn=1000))
        assert await upkeep.purge(before) != before
    assert not await desk.stores.versions(TABLE, GENERATION, [dead.key])


async def test_purge_horizon_of_a_bridged_table_is_not_that_of_the_slot_beside_it(desk: Desk) -> None:
    """Debezium may be behind the connection's own slot: what it brings later is new to the store all the same."""
    bridged = replace(TABLE, source=TopicSource("shop.public.things"))
    await desk.control.definitions.put_vector_table(bridged)
    await desk.control.states.set_backfilled(TABLE.id, 1)
    progress = await desk.control.progress.get("conn_1")
    await desk.control.progress.put("conn_1", replace(progress, lsn=1000))
    await desk.log.ensure_topic(changes_topic(TABLE.storage_name))
    async with running(desk):
        await desk.send(upsert(1, 10))
        await eventually(desk.drained)
        table = (await desk.control.definitions.snapshot()).vector_tables[TABLE.id]
        worker = Worker(table, desk.settings, control=desk.control, log=desk.log, store=desk.stores)
        upkeep = Upkeep(worker, desk.settings, control=desk.control, log=desk.log, store=desk.stores)
        assert await upkeep.purge() is None
        await desk.send(upsert(2, 900))
        await eventually(desk.drained)
    assert await desk.stores.count(TABLE, GENERATION) == 2


async def test_purge_horizon_stays_low_before_the_first_backfill(desk: Desk) -> None:
    """Its rows may be stamped below a transaction that waits, and none of their keys is known yet."""
    progress = await desk.control.progress.get("conn_1")
    await desk.control.progress.put("conn_1", replace(progress, lsn=1000))
    await desk.log.ensure_topic(changes_topic(TABLE.storage_name))
    async with running(desk):
        await desk.send(VectorRecord("delete", Position(0, 10, 1), b'{"id":1}', 1))
        await eventually(desk.drained)
        upkeep = Upkeep(
            Worker(TABLE, desk.settings, control=desk.control, log=desk.log, store=desk.stores),
            desk.settings, control=desk.control, log=desk.log, store=desk.stores,
        )  # fmt: skip
        assert await upkeep.purge() is None
        await desk.send(upsert(2, 900))
        await eventually(desk.drained)
    assert await desk.stores.count(TABLE, GENERATION) == 1
