"""A topic that Debezium writes, through the bridge and the table's tasks, beside a real source and a log in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer as Librdkafka
from confluent_kafka import TopicPartition

from cdc.bridges import Bridges
from cdc.debezium_order import ABOVE_CHANGES
from tests.plugins.kafka import KafkaCluster
from tests.plugins.postgres import PostgresDatabase
from tests.plugins.source_table import connection, consuming, control_with, records, vector_table
from tests.plugins.stale_feed import StaleControl
from tests.unit.cdc_bridge import samples
from walvec.contracts.errors import ControlUnavailable
from walvec.contracts.letters import DeadLetter
from walvec.contracts.position import Position
from walvec.definitions.memory import MemoryControl
from walvec.definitions.model import Column, TopicSource, VectorTable
from walvec.runtime.settings import KafkaSettings, settings_from
from walvec.transport.kafka import KafkaLog, open_kafka_log
from walvec.transport.memory import MemoryLog
from walvec.transport.ports import Log
from walvec.transport.records import Record, bridge_group

TOPIC = "shop.public.docs"
COLUMNS = [
    Column("id", "metadata"),
    Column("title", "embedding"),
    Column("body", "embedding"),
    Column("price", "metadata"),
]
DDL = "CREATE TABLE docs (id int PRIMARY KEY, title text, body text, price numeric(10,2))"
SETTINGS = settings_from({"embedder": {"dead_letter_limit": 5}})


@pytest.fixture
async def table(postgres: PostgresDatabase) -> VectorTable:
    postgres.execute(DDL)
    found = await vector_table(postgres.dsn, "docs", COLUMNS)
    return replace(found, source=TopicSource(TOPIC))


@asynccontextmanager
async def bridged(control: MemoryControl, log: Log, table: VectorTable) -> AsyncIterator[Bridges]:
    bridges = Bridges(SETTINGS, control, log, {})
    async with consuming(log, table):
        await bridges.follow(control.feed.current)
        try:
            yield bridges
        finally:
            await bridges.close()


async def write(log: Log, *found: Record) -> None:
    producer = log.producer()
    await producer.append(TOPIC, list(found))
    await producer.close()


def change(op: str, row: dict[str, Any], *, lsn: int, last: int | None, xid: int = 900, **source: Any) -> Record:
    place = {"db": "x", "schema": "public", "table": "docs", "lsn": lsn, "txId": xid, "ts_ms": 1, "snapshot": "false"}
    told = {**place, "sequence": json.dumps([last and str(last), str(lsn)]), **source}
    after = None if op == "d" else {"body": None, "price": None, **row}
    value = {"before": row if op == "d" else None, "after": after, "source": told, "op": op, "ts_ms": 1}
    return Record(json.dumps({"id": row["id"]}).encode(), json.dumps(value).encode(), 0)


async def loaded(control: MemoryControl, table: VectorTable) -> bool:
    return control.feed.current.vector_tables[table.id].backfilled


async def read(log: Log, table: VectorTable) -> bool:
    try:
        return await log.committed(TOPIC, bridge_group(table.storage_name)) == await log.end_offsets(TOPIC)
    except KeyError:
        return False


async def store_of(log: Log, table: VectorTable) -> samples.Store:
    store = samples.Store(table)
    for found in await records(log, table):
        store.take(found)
    return store


@pytest.mark.parametrize("sample", ["plain", "schema", "transactions"])
async def test_the_backfill_and_what_the_connector_writes_then(
    postgres: PostgresDatabase, table: VectorTable, eventually: Callable[..., Any], sample: str
) -> None:
    """The topic's rows from before the table was defined come by SELECT alone; its later ones from the topic."""
    for row in samples.held(sample):
        postgres.execute("INSERT INTO docs VALUES (%s, %s, %s, %s)", *row.values())
    logged = samples.records(sample)
    log = MemoryLog()
    await log.ensure_topic(TOPIC, len(logged))
    control = await control_with(postgres.dsn, table)
    for partition, found in logged.items():
        await write(log, *(Record(r.key, r.value, partition) for r in found))
    async with bridged(control, log, table):
        await eventually(lambda: loaded(control, table))
        await eventually(lambda: read(log, table))
        before = await records(log, table)
        assert {c.op for c in before} == {"r"}
        assert min(c.position for c in before).ordinal >= ABOVE_CHANGES
        for partition, found in logged.items():
            await write(log, *(Record(r.key, r.value, partition) for r in found))  # delivered again, all of it
        await eventually(lambda: read(log, table))
    store = await store_of(log, table)
    assert samples.differences(store, samples.held(sample)) == []
    assert not await control.letters.page(table.id)


async def test_since_routed_what_was_written_for_fewer_generations_is_written_again(
    postgres: PostgresDatabase, table: VectorTable, eventually: Callable[..., Any]
) -> None:
    """Another process may have read the new generation's rows already, before this one has heard of it."""
    log, control = MemoryLog(), await control_with(postgres.dsn, table)
    await log.ensure_topic(TOPIC, 1)
    stale = StaleControl(control)
    async with bridged(stale, log, table):  # type: ignore[arg-type]
        await eventually(lambda: loaded(control, table))
        stale.feed.bring()
        await control.definitions.rebuild(table.id, replace(table.active, number=2))
        await write(log, change("u", {"id": 1, "title": "new"}, lsn=2_000_000, last=1_900_000))
        await eventually(lambda: _newest(log, table, {0}))
        await eventually(lambda: stale.asked)
        assert not await read(log, table)
        stale.feed.bring()
        await eventually(lambda: read(log, table))
        assert await _newest(log, table, {0, 2})
    streamed = [c for c in await records(log, table) if c.op == "u"]
    assert len({c.position for c in streamed}) == 1


async def _newest(log: Log, table: VectorTable, wanted: set[int]) -> bool:
    return {c.newest for c in await records(log, table) if c.op == "u"} == wanted


async def test_a_transaction_that_is_not_visible_yet_is_waited_for(
    postgres: PostgresDatabase, table: VectorTable, eventually: Callable[..., Any]
) -> None:
    """Its change is in the topic already (the commit waits for a standby); read now, the old row would win over it."""
    postgres.execute("INSERT INTO docs VALUES (1, 'old')")
    log, control = MemoryLog(), await control_with(postgres.dsn, table)
    await log.ensure_topic(TOPIC, 1)
    await write(log, change("u", {"id": 1, "title": "new"}, lsn=2_000_000, last=1_900_000))
    with psycopg.connect(postgres.dsn) as slow:
        slow.execute("UPDATE docs SET title = 'new' WHERE id = 1")
        async with bridged(control, log, table):
            await eventually(lambda: _waits(control, table, "waiting for 1 older transaction"))
            slow.commit()
            await eventually(lambda: loaded(control, table))
    [found] = await records(log, table)
    assert (found.after or {})["title"] == "new"
    assert found.position == Position(0, 1_900_000, ABOVE_CHANGES)


async def _waits(control: MemoryControl, table: VectorTable, text: str) -> bool:
    return any(text in str(t.progress.get("waiting", "")) for t in await control.tasks.open_tasks([table.id]))


async def test_a_connector_that_began_anew_is_made_up_for(
    postgres: PostgresDatabase, table: VectorTable, eventually: Callable[..., Any]
) -> None:
    postgres.execute("INSERT INTO docs VALUES (1, 'one'), (2, 'two')")
    log, control = MemoryLog(), await control_with(postgres.dsn, table)
    await log.ensure_topic(TOPIC, 1)
    async with bridged(control, log, table):
        await eventually(lambda: loaded(control, table))
        await write(log, change("u", {"id": 1, "title": "one"}, lsn=2_000_000, last=1_900_000))
        await eventually(lambda: read(log, table))
        postgres.execute("DELETE FROM docs WHERE id = 2")  # nobody tells
        await write(log, change("r", {"id": 1, "title": "one"}, lsn=3_000_000, last=None, snapshot="last"))

        async def swept() -> bool:
            return b'{"id":2}' not in (await store_of(log, table)).rows()

        await eventually(swept)
    assert b'{"id":1}' in (await store_of(log, table)).rows()
    reasons = [t.params.get("reason", "") for t in await control.tasks.recent(table.id)]
    assert any("began anew" in r for r in reasons)


async def test_offsets_wait_until_the_connectors_place_is_stored(
    postgres: PostgresDatabase, table: VectorTable, eventually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in between, a rebackfill would be stamped below rows in the store, and be refused."""
    log, control = MemoryLog(), await control_with(postgres.dsn, table)
    await log.ensure_topic(TOPIC, 1)
    put, away = control.progress.put_bridge, asyncio.Event()

    async def put_bridge(table_id: str, **more: Any) -> None:
        if away.is_set() and more.get("sequence", 0) >= 1_900_000:
            raise ControlUnavailable("away")
        await put(table_id, **more)

    monkeypatch.setattr(control.progress, "put_bridge", put_bridge)
    async with bridged(control, log, table):
        await eventually(lambda: loaded(control, table))
        await eventually(lambda: read(log, table))
        place = await log.committed(TOPIC, bridge_group(table.storage_name))
        away.set()
        await write(log, change("u", {"id": 1, "title": "one"}, lsn=2_000_000, last=1_900_000))
        await eventually(lambda: _logged(log, table))
        assert await log.committed(TOPIC, bridge_group(table.storage_name)) == place
        away.clear()
        await eventually(lambda: read(log, table))
    stored = await control.progress.bridge(table.id)
    assert stored is not None
    assert stored.sequence >= 1_900_000


async def _logged(log: Log, table: VectorTable) -> bool:
    return any((c.after or {}).get("title") == "one" for c in await records(log, table))


async def test_a_topic_that_is_deleted_is_waited_for_and_read_anew(
    postgres: PostgresDatabase, table: VectorTable, eventually: Callable[..., Any]
) -> None:
    postgres.execute("INSERT INTO docs VALUES (1, 'one')")
    log, control = MemoryLog(), await control_with(postgres.dsn, table)
    await log.ensure_topic(TOPIC, 1)
    await write(log, change("u", {"id": 1, "title": "one"}, lsn=2_000_000, last=1_900_000))
    async with bridged(control, log, table):
        await eventually(lambda: loaded(control, table))
        await log.delete_topic(TOPIC)
        postgres.execute("UPDATE docs SET title = 'from the new topic'")

        async def told() -> bool:
            found = [report for role, _, report, _ in await control.reports.all() if role == "bridge"]
            return any("does not exist" in r["reason"] for r in found)

        await eventually(told, timeout=30)
        await log.ensure_topic(TOPIC, 1)
        await write(log, change("u", {"id": 1, "title": "from the new topic"}, lsn=5_000_000, last=4_900_000))

        async def came() -> bool:
            row = (await store_of(log, table)).rows().get(b'{"id":1}')
            return row is not None and row["title"] == "from the new topic"

        await eventually(came, timeout=30)
    reasons = [t.params.get("reason", "") for t in await control.tasks.recent(table.id)]
    assert any("deleted and made anew" in r for r in reasons)


async def test_foreign_records_become_letters_and_stop_the_table(
    postgres: PostgresDatabase, table: VectorTable, eventually: Callable[..., Any]
) -> None:
    log, control = MemoryLog(), await control_with(postgres.dsn, table)
    await log.ensure_topic(TOPIC, 1)
    async with bridged(control, log, table):
        await eventually(lambda: loaded(control, table))
        others = [change("c", {"id": i}, lsn=2_000_000 + i, last=1_900_000, table="orders") for i in range(3)]
        await write(log, *others, change("c", {"id": 1, "title": "mine"}, lsn=2_100_000, last=1_900_000))
        await eventually(lambda: read(log, table))
        assert control.feed.current.vector_tables[table.id].error is None
        [letter] = await control.letters.page(table.id)
        assert "a change of table public.orders, not of public.docs" in letter.reason
        await write(log, *(Record(None, b"\x00\x00\x00\x00\x01avro", 0) for _ in range(5)))
        await eventually(lambda: control.feed.current.vector_tables[table.id].error)
    error = control.feed.current.vector_tables[table.id].error or {}
    assert error["kind"] == "source_topic"
    assert "JsonConverter" in error["message"]


async def test_a_letter_is_replayed_above_its_position(
    postgres: PostgresDatabase, table: VectorTable, eventually: Callable[..., Any]
) -> None:
    """Also where nothing was ever streamed: a letter of the connector's snapshot, and the letter of that replay."""
    postgres.execute("INSERT INTO docs VALUES (1, 'one')")
    log, control = MemoryLog(), await control_with(postgres.dsn, table)
    await log.ensure_topic(TOPIC, 1)
    await write(log, change("r", {"id": 1, "title": "one"}, lsn=3_000_000, last=None, snapshot="last"))
    async with bridged(control, log, table):
        await eventually(lambda: loaded(control, table))
        key = b'{"id":1}'
        for at in (Position(0, 3_000_000, 0), Position(0, 3_000_000, 1)):
            await control.letters.put([DeadLetter(table.id, 1, key, "provider", "poison", at)])
            [letter] = await control.letters.page(table.id)
            await control.tasks.create("replay", table.id, 1, {"letters": [letter.id]})

            async def settled() -> bool:
                return not await control.letters.page(table.id)

            await eventually(settled)
            newest = max(c.position for c in await records(log, table))
            assert newest == Position(0, 3_000_000, at.ordinal + 1)


async def test_the_partitions_are_shared(
    postgres: PostgresDatabase, table: VectorTable, eventually: Callable[..., Any]
) -> None:
    log, control = MemoryLog(), await control_with(postgres.dsn, table)
    await log.ensure_topic(TOPIC, 4)
    async with bridged(control, log, table), bridged(control, log, table):
        await eventually(lambda: loaded(control, table))
        for i in range(200):
            row = {"id": i, "title": f"row {i}"}
            await write(log, change("c", row, lsn=2_000_000 + i, last=1_900_000)._replace(partition=i % 4))
        await eventually(lambda: read(log, table))
    assert len((await store_of(log, table)).rows()) == 200
    assert connection(postgres.dsn).slot not in {
        r[0] for r in postgres.execute("SELECT slot_name FROM pg_replication_slots")
    }


# ---- on a broker: what a log of walvec's own never does


@pytest.fixture
async def broker(kafka: KafkaCluster) -> AsyncIterator[KafkaLog]:
    properties = {name.replace(".", "_"): value for name, value in kafka.client_properties.items()}
    log = open_kafka_log(KafkaSettings.model_validate({**properties, "partitions": 2, "max_record_bytes": 100_000}))
    yield log
    await log.close()
    for topic in kafka.topics():
        if topic.startswith(("walvec.", "shop.")):
            kafka.delete_topic(topic)


async def titles(log: Log, table: VectorTable) -> dict[bytes, Any]:
    return {key: row["title"] for key, row in (await store_of(log, table)).rows().items()}


async def reasons(control: MemoryControl, table: VectorTable) -> str:
    return " ".join(str(t.params.get("reason", "")) for t in await control.tasks.recent(table.id))


async def test_markers_and_aborted_records_are_passed(
    postgres: PostgresDatabase,
    table: VectorTable,
    kafka: KafkaCluster,
    broker: KafkaLog,
    eventually: Callable[..., Any],
) -> None:
    """A connector that writes exactly once: the topic's end is behind a marker that no poll returns."""
    kafka.create_topic(TOPIC, 2)
    control = await control_with(postgres.dsn, table)
    writer = Librdkafka({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": "connect-1"})
    await asyncio.to_thread(writer.init_transactions, 30)
    async with bridged(control, broker, table):
        await eventually(lambda: loaded(control, table), timeout=60)
        outcomes = (writer.commit_transaction, writer.abort_transaction)
        for i in range(4):
            row = change("c", {"id": i % 2, "title": f"number {i}"}, lsn=2_000_000 + i, last=1_900_000)
            writer.begin_transaction()
            writer.produce(TOPIC, row.value, row.key, i // 2)
            assert writer.flush(30) == 0
            await asyncio.to_thread(outcomes[i % 2], 30)
        await eventually(lambda: read(broker, table), timeout=30)
        assert await broker.end_offsets(TOPIC) == {0: 4, 1: 4}
        assert await titles(broker, table) == {b'{"id":0}': "number 2"}


async def test_records_gone_by_retention_are_made_up_for(
    postgres: PostgresDatabase,
    table: VectorTable,
    kafka: KafkaCluster,
    broker: KafkaLog,
    eventually: Callable[..., Any],
) -> None:
    kafka.create_topic(TOPIC, 1)
    postgres.execute("INSERT INTO docs VALUES (1, 'one'), (2, 'two')")
    control = await control_with(postgres.dsn, table)
    async with bridged(control, broker, table):
        await eventually(lambda: loaded(control, table), timeout=60)
        await write(broker, change("u", {"id": 1, "title": "one"}, lsn=2_000_000, last=1_900_000))
        await eventually(lambda: read(broker, table), timeout=30)
    postgres.execute("DELETE FROM docs WHERE id = 2")
    await write(broker, change("d", {"id": 2, "title": None}, lsn=2_000_100, last=2_000_050))
    for done in kafka.admin.delete_records([TopicPartition(TOPIC, 0, 2)]).values():
        done.result(30)
    async with bridged(control, broker, table):

        async def swept() -> bool:
            return await titles(broker, table) == {b'{"id":1}': "one"} and await read(broker, table)

        await eventually(swept, timeout=60)
        assert f"records of partition 0 of topic {TOPIC} are gone before they were read" in await reasons(
            control, table
        )
        await write(broker, change("c", {"id": 3, "title": "three"}, lsn=2_000_200, last=2_000_150))
        await eventually(lambda: read(broker, table), timeout=30)
        assert await titles(broker, table) == {b'{"id":1}': "one", b'{"id":3}': "three"}


async def test_a_topic_of_a_broker_that_is_deleted_and_made_anew(
    postgres: PostgresDatabase,
    table: VectorTable,
    kafka: KafkaCluster,
    broker: KafkaLog,
    eventually: Callable[..., Any],
) -> None:
    kafka.create_topic(TOPIC, 1)
    postgres.execute("INSERT INTO docs VALUES (1, 'one'), (2, 'two')")
    control = await control_with(postgres.dsn, table)
    async with bridged(control, broker, table):
        await eventually(lambda: loaded(control, table), timeout=60)
        for i in range(3):
            await write(broker, change("u", {"id": 1, "title": f"{i}"}, lsn=2_000_000 + i, last=1_900_000))
        await eventually(lambda: read(broker, table), timeout=30)
        kafka.delete_topic(TOPIC)
        postgres.execute("DELETE FROM docs WHERE id = 2")

        async def told() -> bool:
            found = [report for role, _, report, _ in await control.reports.all() if role == "bridge"]
            return any("Start Debezium's connector, which makes it" in r["reason"] for r in found)

        await eventually(told, timeout=60)
        kafka.create_topic(TOPIC, 1)
        await write(broker, change("u", {"id": 1, "title": "from the new topic"}, lsn=5_000_000, last=4_900_000))

        async def equal() -> bool:
            return await titles(broker, table) == {b'{"id":1}': "from the new topic"} and await read(broker, table)

        postgres.execute("UPDATE docs SET title = 'from the new topic' WHERE id = 1")
        await eventually(equal, timeout=60)
    assert f"topic {TOPIC} was deleted and made anew" in await reasons(control, table)


async def test_a_change_that_is_too_large_for_the_changes_is_a_letter(
    postgres: PostgresDatabase,
    table: VectorTable,
    kafka: KafkaCluster,
    broker: KafkaLog,
    eventually: Callable[..., Any],
) -> None:
    kafka.create_topic(TOPIC, 1, max_message_bytes="2000000")
    control = await control_with(postgres.dsn, table)
    large = change("u", {"id": 1, "title": "x" * 300_000}, lsn=2_000_100, last=2_000_050)
    writer = Librdkafka({"bootstrap.servers": kafka.bootstrap_servers})
    async with bridged(control, broker, table):
        await eventually(lambda: loaded(control, table), timeout=60)
        await write(broker, change("c", {"id": 1, "title": "small"}, lsn=2_000_000, last=1_900_000))
        writer.produce(TOPIC, large.value, large.key, 0)
        writer.flush(30)
        await write(broker, change("c", {"id": 2, "title": "behind it"}, lsn=2_000_200, last=2_000_150))
        await eventually(lambda: read(broker, table), timeout=30)
    assert await titles(broker, table) == {b'{"id":2}': "behind it"}
    [letter] = await control.letters.page(table.id)
    assert (letter.kind, letter.key) == ("too_large", b'{"id":1}')
    assert "Raise WALVEC_KAFKA__MAX_RECORD_BYTES" in letter.reason
