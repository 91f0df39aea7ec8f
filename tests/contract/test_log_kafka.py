"""What only Kafka's log must do: groups across processes and protocols, brokers that go, records that are gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import NewPartitions

from tests.plugins.kafka import KafkaCluster
from walvec.contracts.errors import LogUnavailable, NotFound, PartitionLost, RecordsLost
from walvec.runtime.settings import KafkaSettings
from walvec.transport.kafka import KafkaLog, open_kafka_log
from walvec.transport.kafka.client import KafkaClient
from walvec.transport.kafka.consumer import KafkaConsumer
from walvec.transport.kafka.fetcher import Patience
from walvec.transport.records import Fetch, Record

MEBIBYTE = 1024 * 1024
CHILD = Path(__file__).with_name("kafka_child.py")
PATIENCE = 4
"""Seconds until a member that does not poll is no member any more."""
HASTY = {
    "group_protocol": "classic",
    "max_poll_interval_ms": PATIENCE * 1000,
    "session_timeout_ms": PATIENCE * 1000,
    "heartbeat_interval_ms": 500,
}
Open = Callable[..., KafkaLog]
Start = Callable[..., Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
def topic() -> str:
    return f"walvec.vt_{uuid.uuid4().hex[:8]}_test.changes"


@pytest.fixture
def group(topic: str) -> str:
    """The test's own: what another test killed may be a member of its group for some seconds yet."""
    return topic.replace("changes", "embedder")


@pytest.fixture
async def open_log() -> AsyncIterator[Open]:
    logs: list[KafkaLog] = []

    def make(cluster: KafkaCluster, **values: Any) -> KafkaLog:
        logs.append(open_kafka_log(settings(cluster, **values)))
        return logs[-1]

    yield make
    for log in logs:
        await log.close()


@pytest.fixture
async def start(topic: str, group: str) -> AsyncIterator[Start]:
    """Processes of kafka_child.py, ended afterwards."""
    children: list[asyncio.subprocess.Process] = []

    async def run(cluster: KafkaCluster, command: str, **values: Any) -> asyncio.subprocess.Process:
        text = json.dumps(properties(cluster) | values)
        child = await asyncio.create_subprocess_exec(
            sys.executable, str(CHILD), text, topic, group, command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        children.append(child)
        return child

    yield run
    for child in children:
        if child.returncode is None:
            child.kill()
        await child.communicate()


def settings(cluster: KafkaCluster, **values: Any) -> KafkaSettings:
    return KafkaSettings.model_validate(properties(cluster) | values)


def properties(cluster: KafkaCluster) -> dict[str, str]:
    return {name.replace(".", "_"): value for name, value in cluster.client_properties.items()}


async def line(child: asyncio.subprocess.Process, start: str) -> str:
    """The next line that begins so."""
    assert child.stdout is not None
    while True:
        text = (await asyncio.wait_for(child.stdout.readline(), 60)).decode()
        assert text, "the process ended"
        if text.startswith(start):
            return text.strip()


async def take(consumer: Any, count: int, **limits: Any) -> list[Fetch]:
    fetches: list[Fetch] = []
    while sum(len(fetch.records) for fetch in fetches) < count:
        polled = await consumer.poll(
            max_records=limits.get("max_records", 1000), max_bytes=MEBIBYTE, timeout=limits.get("timeout", 30)
        )
        assert polled, "nothing came"
        fetches += polled
    return fetches


def values(fetches: list[Fetch]) -> list[bytes]:
    return [record.value for fetch in fetches for record in fetch.records]


async def poll_briefly(consumer: Any, seconds: float = 0.05) -> list[Fetch]:
    return list(await consumer.poll(max_records=1000, max_bytes=MEBIBYTE, timeout=seconds))


async def until(consumers: list[Any], done: Callable[[], bool], seconds: float = 60) -> float:
    """Polls them side by side until it is so; the seconds that took."""
    began = time.monotonic()

    async def keep(consumer: Any) -> None:
        while True:
            await consumer.poll(max_records=1000, max_bytes=MEBIBYTE, timeout=0.05)

    tasks = [asyncio.create_task(keep(consumer)) for consumer in consumers]
    try:
        async with asyncio.timeout(seconds):
            while not done():
                for task in tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.01)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return time.monotonic() - began


def some(count: int, partition: int | None = None, start: int = 0) -> list[Record]:
    return [Record(f"k{n}".encode(), f"v{n}".encode(), partition) for n in range(start, start + count)]


# ---- groups


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_a_killed_member_is_replaced(
    kafka: KafkaCluster, open_log: Open, start: Start, topic: str, group: str, protocol: str, record_property: Any
) -> None:
    log = open_log(kafka, group_protocol=protocol)
    await log.ensure_topic(topic, 4)
    child = await start(kafka, "own", group_protocol=protocol)
    assert await line(child, "owns") == "owns [0, 1, 2, 3]"
    consumer = log.consumer(topic, group)
    await until([consumer], lambda: len(consumer.assignment()) == 2)
    child.kill()
    seconds = await until([consumer], lambda: len(consumer.assignment()) == 4)
    record_property("takeover_seconds", round(seconds, 1))
    # classic: our session timeout; consumer: the brokers' group.consumer.session.timeout.ms
    assert seconds < 20


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_a_commit_of_an_owner_that_was_away_is_refused(
    kafka: KafkaCluster, open_log: Open, start: Start, topic: str, group: str, protocol: str
) -> None:
    log = open_log(kafka, group_protocol=protocol)
    await log.ensure_topic(topic, 1)
    await log.producer().append(topic, some(10))
    child = await start(kafka, "hang", group_protocol=protocol)
    await line(child, "hangs")
    os.kill(child.pid, signal.SIGSTOP)
    try:
        consumer = log.consumer(topic, group)
        assert len(await take(consumer, 10)) == 1
        await consumer.commit({0: 4})
    finally:
        os.kill(child.pid, signal.SIGCONT)
    assert child.stdin is not None
    child.stdin.write(b"go\n")
    assert await line(child, "") in ("refused", "revoked [0]")
    assert await log.committed(topic, group) == {0: 4}
    await until([consumer], lambda: True)


async def test_a_role_that_hangs_gives_its_partitions_up(
    kafka: KafkaCluster, open_log: Open, topic: str, group: str
) -> None:
    """A process whose event loop stands still must not keep partitions by the heartbeats of a thread."""
    log = open_log(kafka)
    await log.ensure_topic(topic, 1)
    await log.producer().append(topic, some(1))
    own = KafkaClient(settings(kafka, **HASTY))
    told: list[frozenset[int]] = []

    async def on_revoke(partitions: frozenset[int]) -> None:
        told.append(partitions)

    consumer = KafkaConsumer(own, topic, group, on_revoke, own.settings, patience=Patience(hang=0.5))
    await take(consumer, 1)
    deadline = time.monotonic() + 60
    while kafka.admin.describe_consumer_groups([group])[group].result(30).members:  # the hang: nothing is awaited
        assert time.monotonic() < deadline, "it keeps its partitions"
    await until([consumer], lambda: bool(told))
    assert told == [{0}]
    await consumer.close()
    own.close()


async def test_a_role_that_is_slow_keeps_its_partitions(
    kafka: KafkaCluster, open_log: Open, topic: str, group: str
) -> None:
    log = open_log(kafka, **HASTY)
    await log.ensure_topic(topic, 1)
    consumer = log.consumer(topic, group)
    await log.producer().append(topic, [Record(None, bytes(100_000)) for _ in range(200)])
    first = await take(consumer, 1, max_records=10)
    await asyncio.sleep(1.5 * PATIENCE)  # no poll: the provider is slow. What is fetched ahead stays bounded meanwhile.
    assert consumer._fetcher is not None
    assert consumer._fetcher.buffer.bytes < 5 * MEBIBYTE + 500 * 100_000 // 2
    await consumer.commit({0: first[-1].next_offset})
    rest = await take(consumer, 200 - len(values(first)))
    offsets = [record.offset for fetch in first + rest for record in fetch.records]
    assert offsets == list(range(200))


async def test_the_newer_protocol_is_used_where_the_brokers_have_it(
    kafka: KafkaCluster, open_log: Open, topic: str, group: str
) -> None:
    log = open_log(kafka)
    await log.ensure_topic(topic, 2)
    consumer = log.consumer(topic, group)
    await until([consumer], lambda: len(consumer.assignment()) == 2)
    assert "Consumer" in kafka.run("kafka-consumer-groups", "--list", "--type") or (
        consumer._fetcher is not None and consumer._fetcher.protocol == "consumer"
    )


async def test_the_older_protocol_is_fallen_back_to(
    kafka_with: Callable[..., KafkaCluster], open_log: Open, topic: str, group: str
) -> None:
    old = kafka_with(properties={"group.coordinator.rebalance.protocols": "classic"})
    log = open_log(old)
    await log.ensure_topic(topic, 2)
    await log.producer().append(topic, some(10))
    consumer = log.consumer(topic, group)
    assert len(values(await take(consumer, 10))) == 10
    assert consumer._fetcher is not None
    assert consumer._fetcher.protocol == "classic"


async def test_members_of_both_protocols_share(kafka: KafkaCluster, open_log: Open, topic: str, group: str) -> None:
    """As while the processes of a group are replaced one by one."""
    old, new = open_log(kafka, group_protocol="classic"), open_log(kafka, group_protocol="auto")
    await old.ensure_topic(topic, 4)
    first, second = old.consumer(topic, group), new.consumer(topic, group)
    await until([first], lambda: len(first.assignment()) == 4)
    await until([first, second], lambda: len(first.assignment()) == len(second.assignment()) == 2)
    await first.commit(dict.fromkeys(first.assignment(), 0))
    await first.close()
    await until([second], lambda: len(second.assignment()) == 4)


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
async def test_members_that_come_and_go_under_load_lose_nothing(
    kafka: KafkaCluster, open_log: Open, topic: str, protocol: str
) -> None:
    log = open_log(kafka, group_protocol=protocol)
    await log.ensure_topic(topic, 6)
    seen: dict[int, set[int]] = {p: set() for p in range(6)}
    in_hand: dict[int, int] = {}
    twice: list[int] = []

    async def member(number: int, stop: asyncio.Event) -> None:
        async def on_revoke(partitions: frozenset[int]) -> None:
            for partition in partitions:
                in_hand.pop(partition, None)

        consumer = log.consumer(topic, "group-" + protocol, on_revoke)
        while not stop.is_set():
            fetches = await consumer.poll(max_records=50, max_bytes=MEBIBYTE, timeout=0.1)
            for fetch in fetches:
                # from the first record until on_revoke it is this member's alone
                if in_hand.setdefault(fetch.partition, number) != number:
                    twice.append(fetch.partition)
                seen[fetch.partition] |= {record.offset for record in fetch.records}
            await asyncio.sleep(0)
            with contextlib.suppress(PartitionLost):
                await consumer.commit({fetch.partition: fetch.next_offset for fetch in fetches})
        await consumer.close()

    sent = 0
    running: list[tuple[asyncio.Event, asyncio.Task[None]]] = []
    producer = log.producer()
    for number in range(12):
        stop = asyncio.Event()
        running.append((stop, asyncio.create_task(member(number, stop))))
        for _ in range(10):
            await producer.append(topic, some(60, start=sent))
            sent += 60
            await asyncio.sleep(0.02)
        if len(running) > 3:
            running[0][0].set()
            await running.pop(0)[1]
    ends = await log.end_offsets(topic)
    async with asyncio.timeout(60):
        while (
            any(len(seen[p]) < end for p, end in ends.items())
            or await log.committed(topic, "group-" + protocol) != ends
        ):
            for _, task in running:
                if task.done():
                    task.result()
            await asyncio.sleep(0.05)
    for stop, task in running:
        stop.set()
        await task
    assert sum(ends.values()) == sent
    assert {p: sorted(offsets) for p, offsets in seen.items()} == {p: list(range(end)) for p, end in ends.items()}
    assert twice == []


async def test_a_new_partition_is_read_from_its_beginning(kafka: KafkaCluster, open_log: Open, topic: str) -> None:
    for protocol in ("classic", "consumer"):
        name = f"{topic}.{protocol}"
        log = open_log(kafka, group_protocol=protocol, topic_metadata_refresh_interval_ms=1000)
        await log.ensure_topic(name, 1)
        consumer = log.consumer(name, protocol)
        assert await poll_briefly(consumer, 0) == []
        kafka.admin.create_partitions([NewPartitions(name, 3)])[name].result(30)
        producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
        producer.produce(name, b"first", partition=2)
        assert producer.flush(30) == 0
        assert values(await take(consumer, 1)) == [b"first"]


# ---- records that are gone


async def test_records_that_were_dropped_before_they_were_read(
    kafka: KafkaCluster, open_log: Open, topic: str, group: str
) -> None:
    log = open_log(kafka)
    await log.ensure_topic(topic, 2)
    await log.producer().append(topic, some(10, 0) + some(10, 1))
    consumer = log.consumer(topic, group)
    await take(consumer, 20)
    await consumer.commit({0: 2, 1: 10})
    await consumer.close()
    kafka.admin.delete_records([TopicPartition(topic, 0, 6)])[TopicPartition(topic, 0)].result(30)
    assert await log.committed(topic, group) == {0: 2, 1: 10}
    again = log.consumer(topic, group)
    with pytest.raises(RecordsLost, match="partition 0") as lost:
        await take(again, 1)
    assert (lost.value.topic, lost.value.partition, lost.value.resume_at) == (topic, 0, 6)
    # told once; the others go on meanwhile
    await log.producer().append(topic, some(1, 1, 10))
    assert values(await take(again, 1)) == [b"v10"]
    await again.seek(0, lost.value.resume_at)
    assert [record.offset for fetch in await take(again, 4) for record in fetch.records] == [6, 7, 8, 9]
    await again.commit({0: 10})
    assert (await log.committed(topic, group))[0] == 10


async def test_a_new_group_hears_of_records_that_nobody_read(
    kafka: KafkaCluster, open_log: Open, topic: str, group: str
) -> None:
    log = open_log(kafka)
    await log.ensure_topic(topic, 1)
    await log.producer().append(topic, some(5))
    kafka.admin.delete_records([TopicPartition(topic, 0, 5)])[TopicPartition(topic, 0)].result(30)
    assert await log.committed(topic, group) == {0: 0}  # nobody may call it drained
    consumer = log.consumer(topic, group)
    with pytest.raises(RecordsLost) as lost:
        await take(consumer, 1)
    assert lost.value.resume_at == 5
    await consumer.commit({0: 5})
    assert await log.committed(topic, group) == await log.end_offsets(topic)


async def test_a_group_beyond_the_end_hears_of_it(kafka: KafkaCluster, open_log: Open, topic: str, group: str) -> None:
    """As after an unclean election: what was read and committed is not there any more."""
    log = open_log(kafka)
    await log.ensure_topic(topic, 1)
    await log.producer().append(topic, some(5))
    consumer = log.consumer(topic, group)
    await take(consumer, 5)
    await consumer.seek(0, 4711)
    with pytest.raises(RecordsLost) as lost:
        await take(consumer, 1)
    assert lost.value.resume_at == 0
    await consumer.seek(0, 0)
    assert len(values(await take(consumer, 5))) == 5


async def test_a_commit_beyond_the_end_is_taken_back(
    kafka: KafkaCluster, open_log: Open, topic: str, group: str
) -> None:
    """Else what is appended up to it passes for consumed, and is skipped after a restart."""
    log = open_log(kafka)
    await log.ensure_topic(topic, 1)
    await log.producer().append(topic, some(5))
    beyond = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, 0, 8)])
    kafka.admin.alter_consumer_group_offsets([beyond])[group].result(30)
    assert await log.committed(topic, group) == {0: 0}
    consumer = log.consumer(topic, group)
    with pytest.raises(RecordsLost) as lost:
        await take(consumer, 1)
    await consumer.seek(0, lost.value.resume_at)
    await consumer.commit({0: lost.value.resume_at})
    assert len(values(await take(consumer, 5))) == 5
    await consumer.commit({0: 5})
    await consumer.close()
    await log.producer().append(topic, some(5, start=5))
    assert await log.committed(topic, group) == {0: 5}
    again = log.consumer(topic, group)
    assert values(await take(again, 5)) == [f"v{n}".encode() for n in range(5, 10)]


async def test_a_topic_made_anew_under_a_reader_is_not_skipped_into(
    kafka: KafkaCluster, open_log: Open, topic: str, group: str
) -> None:
    log = open_log(kafka)
    await log.ensure_topic(topic, 1)
    await log.producer().append(topic, some(5))
    told: list[frozenset[int]] = []

    async def on_revoke(partitions: frozenset[int]) -> None:
        told.append(partitions)

    consumer = log.consumer(topic, group, on_revoke)
    await take(consumer, 5)
    await consumer.commit({0: 5})
    # by somebody else, and filled beyond where this group reads
    kafka.delete_topic(topic)
    await until([], lambda: topic not in kafka.topics())
    kafka.create_topic(topic, 1)
    await until([], lambda: topic in kafka.topics())
    await open_log(kafka).producer().append(topic, some(20, start=100))
    with contextlib.suppress(PartitionLost):
        await consumer.commit({0: 12})  # of the old topic: must count for nothing in the new one
    with pytest.raises(NotFound):
        await poll_on(consumer)
    assert set(told) == {frozenset({0})}  # twice, where the new topic was assigned before it was known to be new
    assert values(await take(consumer, 20)) == [f"v{n}".encode() for n in range(100, 120)]
    await consumer.commit({0: 20})
    assert await log.committed(topic, group) == {0: 20}


# ---- what others write


async def test_foreign_records_are_read_as_they_are(
    kafka: KafkaCluster, open_log: Open, topic: str, group: str
) -> None:
    """Aborted transactions are not seen, null values are empty bytes, and gaps in the offsets are no loss."""
    log = open_log(kafka)
    await log.ensure_topic(topic, 1)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": topic})
    producer.init_transactions(30)
    for outcome, value in ((producer.commit_transaction, b"one"), (producer.abort_transaction, b"no")):
        producer.begin_transaction()
        producer.produce(topic, value, key=b"k", headers=[("name", b"x"), ("none", None)])
        producer.produce(topic, None, key=b"tombstone")
        assert producer.flush(30) == 0
        outcome(30)
    producer.begin_transaction()
    producer.produce(topic, b"two")
    producer.commit_transaction(30)
    (fetch,) = await take(log.consumer(topic, group), 3)
    assert [(r.offset, r.key, r.value, r.headers) for r in fetch.records] == [
        (0, b"k", b"one", (("name", b"x"), ("none", b""))),
        (1, b"tombstone", b"", ()),
        (6, None, b"two", ()),
    ]


# ---- brokers that go


async def test_a_paused_table_holds_up_no_other(kafka: KafkaCluster, open_log: Open, topic: str) -> None:
    log = open_log(kafka)
    busy, quiet = f"{topic}.busy", f"{topic}.quiet"
    for name in (busy, quiet):
        await log.ensure_topic(name, 2)
    await log.producer().append(busy, [Record(b"", bytes(10_000), n % 2) for n in range(2000)])
    slow, other = log.consumer(busy, "one"), log.consumer(quiet, "two")
    await take(slow, 1, max_records=1)
    await until([other], lambda: len(other.assignment()) == 2)
    slow.pause()
    for number in range(5):
        await log.producer().append(quiet, some(1, start=number))
        assert values(await take(other, 1, timeout=5)) == [f"v{number}".encode()]
        assert await poll_briefly(slow, 0) == []
    slow.resume()
    assert len(values(await take(slow, 1999))) == 1999


async def test_partitions_that_come_while_paused_are_paused(
    kafka: KafkaCluster, open_log: Open, topic: str, group: str
) -> None:
    log = open_log(kafka)
    await log.ensure_topic(topic, 2)
    first, second = log.consumer(topic, group), log.consumer(topic, group)
    await until([first, second], lambda: len(first.assignment()) == len(second.assignment()) == 1)
    first.pause()
    await second.close()
    await log.producer().append(topic, some(3, 0) + some(3, 1))
    await until([first], lambda: len(first.assignment()) == 2)
    assert await poll_briefly(first, 0.5) == []
    first.resume()
    assert len(values(await take(first, 6))) == 6


async def test_a_broker_that_hangs_is_waited_for(
    own_kafka: KafkaCluster, open_log: Open, topic: str, group: str
) -> None:
    log = open_log(own_kafka, socket_timeout_ms=5000)
    await log.ensure_topic(topic, 2)
    await log.producer().append(topic, some(10))
    consumer = log.consumer(topic, group)
    first = await take(consumer, 10)
    own_kafka.pause()
    began = time.monotonic()
    busy = time.process_time()
    try:
        while time.monotonic() - began < 10:  # twice the socket's patience
            with contextlib.suppress(LogUnavailable):
                assert await poll_briefly(consumer, 1) == []
    finally:
        own_kafka.resume()
    assert time.process_time() - busy < 1
    with contextlib.suppress(PartitionLost):  # the group's patience may have ended while nobody could heartbeat
        await poll_through(lambda: consumer.commit({fetch.partition: fetch.next_offset for fetch in first}))
    await poll_through(lambda: log.producer().append(topic, some(5, 0, start=10)))
    new = {f"v{n}".encode() for n in range(10, 15)}
    rest: list[bytes] = []
    async with asyncio.timeout(90):
        while not new <= set(rest):
            rest += values(await poll_through(lambda: poll_briefly(consumer, 1)))
    assert [v for v in rest if v in new] == sorted(new)


async def test_a_broker_that_was_killed_is_waited_for(
    own_kafka: KafkaCluster, open_log: Open, topic: str, group: str
) -> None:
    log = open_log(own_kafka)
    await log.ensure_topic(topic, 1)
    await log.producer().append(topic, some(10))
    consumer = log.consumer(topic, group)
    assert len(values(await take(consumer, 10))) == 10
    await consumer.commit({0: 10})
    own_kafka.kill()
    with pytest.raises(LogUnavailable, match="does not answer"):
        await poll_on(consumer)
    own_kafka.restart()
    await poll_through(lambda: log.producer().append(topic, some(5, start=10)))
    got = values(await read_through(consumer, 5))
    assert got[-5:] == [f"v{n}".encode() for n in range(10, 15)]
    await poll_through(lambda: consumer.commit({0: 15}))
    assert await log.committed(topic, group) == {0: 15}


@pytest.mark.timeout(300)
async def test_a_leader_that_moves_loses_nothing(
    kafka_with: Callable[..., KafkaCluster], open_log: Open, topic: str, group: str
) -> None:
    three = kafka_with(nodes=3)
    log = open_log(three)
    await log.ensure_topic(topic, 3)
    consumer = log.consumer(topic, group)
    got: list[bytes] = []
    sent = 0
    for number in range(2):
        for _ in range(5):
            await poll_through(lambda: log.producer().append(topic, some(30, start=sent)))  # noqa: B023
            sent += 30
            got += values(await poll_through(lambda: poll_briefly(consumer)))
        leader = await asyncio.to_thread(three.leader, topic, number)
        await asyncio.to_thread(leader.kill)
        for _ in range(5):
            await poll_through(lambda: log.producer().append(topic, some(30, start=sent)))  # noqa: B023
            sent += 30
            got += values(await poll_through(lambda: poll_briefly(consumer)))
        await asyncio.to_thread(leader.start)
    async with asyncio.timeout(60):
        while len(set(got)) < sent:
            got += values(await poll_through(lambda: poll_briefly(consumer, 1)))
    assert set(got) == {f"v{n}".encode() for n in range(sent)}


async def test_a_wrong_password_is_named(
    kafka_with: Callable[..., KafkaCluster], open_log: Open, topic: str, group: str
) -> None:
    cluster = kafka_with(security="SASL_PLAINTEXT")
    right = open_log(cluster)
    await right.ensure_topic(topic, 1)
    wrong = open_log(cluster, sasl_password="guessed")
    with pytest.raises(LogUnavailable, match="refuses the login") as refused:
        await poll_on(wrong.consumer(topic, group))
    assert "guessed" not in str(refused.value)
    await right.producer().append(topic, some(1))
    assert values(await take(right.consumer(topic, group), 1)) == [b"v0"]


async def poll_on(consumer: Any) -> None:
    """Until it raises."""
    async with asyncio.timeout(60):
        while True:
            await poll_briefly(consumer, 1)


async def poll_through(call: Callable[[], Awaitable[Any]]) -> Any:
    """As the roles do: an outage is waited out."""
    async with asyncio.timeout(90):
        while True:
            try:
                return await call()
            except LogUnavailable:
                await asyncio.sleep(0.2)


async def read_through(consumer: Any, count: int) -> list[Fetch]:
    fetches: list[Fetch] = []
    async with asyncio.timeout(90):
        while len(values(fetches)) < count:
            fetches += await poll_through(lambda: poll_briefly(consumer, 1))
    return fetches


async def test_a_group_reaches_an_end_that_holds_no_record(
    kafka: KafkaCluster, open_log: Open, topic: str, group: str
) -> None:
    """Markers of transactions have offsets, and who waits for the end must not wait for a record there."""
    log = open_log(kafka)
    await log.ensure_topic(topic, 1)
    other = Producer(kafka.client_properties | {"transactional.id": topic, "log_level": 0})
    await asyncio.to_thread(other.init_transactions, 30)

    def transaction(*texts: str, commit: bool = True) -> None:
        other.begin_transaction()
        for text in texts:
            other.produce(topic, text, partition=0)
        other.flush(30)
        (other.commit_transaction if commit else other.abort_transaction)(30)

    async def reached(end: int, consumer: KafkaConsumer) -> None:
        async with asyncio.timeout(20):
            # the brokers write markers in their own time
            while await log.end_offsets(topic) != {0: end}:
                await log.wait_for_append(0.05)
            while await log.committed(topic, group) != {0: end}:
                assert not values(await poll_briefly(consumer))

    consumer = log.consumer(topic, group)
    await asyncio.to_thread(transaction, "given up", commit=False)
    await reached(2, consumer)  # nothing was ever handed out
    await asyncio.to_thread(transaction, "a", "b")
    fetches = await take(consumer, 2)
    assert values(fetches) == [b"a", b"b"]
    await consumer.commit({0: fetches[0].records[0].offset + 1})
    await poll_briefly(consumer, 1.0)
    assert await log.committed(topic, group) == {0: 3}, "what is not done is not committed, marker or not"
    await consumer.commit({0: 4})
    await reached(5, consumer)
    await asyncio.to_thread(transaction, "given up too", commit=False)
    await reached(7, consumer)
    await log.producer().append(topic, some(3))
    assert len(values(await take(consumer, 3))) == 3
    await consumer.commit({0: 10})
    await reached(10, consumer)
    await consumer.close()
    await asyncio.to_thread(transaction, "last", commit=False)
    consumer = log.consumer(topic, group)
    await reached(12, consumer)  # by the next owner
    assert [r async for r in log.read(topic, 0, 0)][-1].value == some(3)[-1].value
