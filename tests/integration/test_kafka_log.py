"""What the log on Kafka does beyond the contract, against real brokers: limits, rights, outages, foreign topics."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from confluent_kafka import Producer as Librdkafka

from tests.plugins.kafka import KafkaCluster
from walvec.contracts.errors import (
    ConfigError,
    Conflict,
    LogUnavailable,
    NotFound,
    RecordTooLarge,
    WalvecError,
)
from walvec.contracts.keys import partition_of
from walvec.runtime.settings import KafkaSettings
from walvec.transport.kafka import KafkaLog, open_kafka_log
from walvec.transport.kafka.producer import size_of
from walvec.transport.records import Record

TOPIC, GROUP = "walvec.vt_kafka.changes", "walvec.vt_kafka.embedder"
Open = Callable[..., KafkaLog]


@pytest.fixture
async def open_log() -> AsyncIterator[Open]:
    logs: list[KafkaLog] = []

    def make(cluster: KafkaCluster, **values: Any) -> KafkaLog:
        properties = {name.replace(".", "_"): value for name, value in cluster.client_properties.items()}
        logs.append(open_kafka_log(KafkaSettings.model_validate({**properties, "partitions": 4, **values})))
        return logs[-1]

    yield make
    await asyncio.gather(*(log.close() for log in logs))


@pytest.fixture
def clean(kafka: KafkaCluster) -> AsyncIterator[KafkaCluster]:
    yield kafka
    for topic in kafka.topics():
        if topic.startswith(("walvec.", "shop.")):
            kafka.delete_topic(topic)


async def values(log: KafkaLog, topic: str, partition: int, *bounds: int) -> list[bytes]:
    return [record.value async for record in log.read(topic, partition, *(bounds or (0,)))]


async def eventually(done: Callable[[], Any], seconds: float = 60) -> None:
    """Tries until the call neither raises one of our errors nor returns something false."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                if await done() is not False:
                    return
            except WalvecError:
                await asyncio.sleep(0.1)


# ---- topics


async def test_a_topic_is_made_as_the_settings_say(clean: KafkaCluster, open_log: Open) -> None:
    log = open_log(clean, min_insync_replicas=1, retention_seconds=60, max_record_bytes=200_000)
    assert await log.ensure_topic(TOPIC, 3) == 3
    await log.ensure_topic("walvec.vt_kafka.dead", 1)
    expected = {
        "retention.ms": "60000",
        "max.message.bytes": "200000",
        "min.insync.replicas": "1",
        "cleanup.policy": "delete",
        "message.timestamp.type": "LogAppendTime",
    }
    assert expected.items() <= clean.settings(TOPIC).items()
    assert clean.settings("walvec.vt_kafka.dead")["retention.ms"] == "-1"


async def test_a_topic_with_other_settings_is_reported_once_and_left_alone(
    clean: KafkaCluster, open_log: Open, caplog: pytest.LogCaptureFixture
) -> None:
    clean.create_topic(TOPIC, 2, retention_ms="5000", cleanup_policy="compact")
    log = open_log(clean)
    with caplog.at_level(logging.WARNING):
        assert await log.ensure_topic(TOPIC) == 2
        assert await log.ensure_topic(TOPIC) == 2
    (stats,) = await log.topics()
    assert "it has 2 partitions; kafka.partitions is 4" in stats.differences
    assert "cleanup.policy is compact; walvec is set to make it delete" in stats.differences
    assert any(difference.startswith("retention.ms is 5000") for difference in stats.differences)
    told = [record for record in caplog.records if getattr(record, "action", "") == "topic_differs"]
    assert sorted(record.reason for record in told) == sorted(stats.differences)
    assert clean.settings(TOPIC)["retention.ms"] == "5000"


async def test_many_creators_make_one_topic(clean: KafkaCluster, open_log: Open) -> None:
    logs = [open_log(clean) for _ in range(4)]
    assert await asyncio.gather(*(log.ensure_topic(TOPIC) for log in logs)) == [4, 4, 4, 4]
    assert len({await log.topic_identity(TOPIC) for log in logs}) == 1


async def test_nothing_makes_a_topic_by_the_way(kafka_with: Callable[..., KafkaCluster], open_log: Open) -> None:
    cluster = kafka_with(properties={"auto.create.topics.enable": "true"})
    log = open_log(cluster)
    for attempt in (
        log.producer().append("walvec.no", [Record(b"k", b"v")]),
        log.consumer("walvec.no", GROUP).poll(max_records=1, max_bytes=1, timeout=0),
        log.topic_identity("walvec.no"),
        anext(log.read("walvec.no", 0, 0)),
        log.end_offsets("walvec.no"),
    ):
        with pytest.raises(NotFound):
            await attempt
    await log.delete_topic("walvec.no")
    assert "walvec.no" not in cluster.topics()


async def test_topics_of_others_are_not_listed(clean: KafkaCluster, open_log: Open) -> None:
    clean.create_topic("shop.orders", 1)
    log = open_log(clean)
    await log.ensure_topic(TOPIC, 2)
    await log.producer().append(TOPIC, [Record(b"k", os.urandom(100_000), 1)])
    (stats,) = await log.topics()
    assert (stats.topic, stats.end_offsets) == (TOPIC, {0: 0, 1: 1})
    assert 100_000 < stats.bytes < 110_000


async def test_a_topic_made_anew_takes_appends_of_an_old_producer(clean: KafkaCluster, open_log: Open) -> None:
    log = open_log(clean)
    await log.ensure_topic(TOPIC, 1)
    producer = log.producer()
    await producer.append(TOPIC, [Record(b"k", b"old")])
    clean.delete_topic(TOPIC)

    async def append_for_ever() -> None:
        while True:  # the brokers take a moment to forget it
            await producer.append(TOPIC, [Record(b"k", b"lost")])

    with pytest.raises(NotFound):
        await asyncio.wait_for(append_for_ever(), 60)
    await log.ensure_topic(TOPIC, 1)
    await eventually(lambda: producer.append(TOPIC, [Record(b"k", b"new")]))
    assert set(await values(log, TOPIC, 0)) == {b"new"}


async def test_a_key_goes_where_partition_of_says(clean: KafkaCluster, open_log: Open) -> None:
    log = open_log(clean)
    await log.ensure_topic(TOPIC, 7)
    keys = [b'{"id":%d}' % number for number in range(50)]
    await log.producer().append(TOPIC, [Record(key, key) for key in keys] + [Record(None, b"none"), Record(b"", b"")])
    for partition in range(7):
        expected = [key for key in keys if partition_of(key, 7) == partition]
        if partition == partition_of(b"", 7):
            expected += [b"none", b""]
        assert await values(log, TOPIC, partition) == expected


async def test_headers_are_kept(clean: KafkaCluster, open_log: Open) -> None:
    log = open_log(clean)
    await log.ensure_topic(TOPIC, 1)
    headers = (("content-type", b"application/json"), ("traceparent", b"00-1-2-01"), ("empty", b""))
    await log.producer().append(TOPIC, [Record(b"k", b"v", None, headers)])
    assert [record.headers async for record in log.read(TOPIC, 0, 0)] == [headers]


async def test_a_group_with_members_is_not_moved(clean: KafkaCluster, open_log: Open) -> None:
    log = open_log(clean)
    await log.ensure_topic(TOPIC, 1)
    await log.producer().append(TOPIC, [Record(b"k", b"%d" % number) for number in range(10)])
    consumer = log.consumer(TOPIC, GROUP)
    await consumer.poll(max_records=1, max_bytes=1, timeout=20)
    with pytest.raises(Conflict, match="members"):
        await log.reset(TOPIC, GROUP, {0: 5})
    await consumer.close()
    await log.reset(TOPIC, GROUP, {0: 5})
    assert await log.committed(TOPIC, GROUP) == {0: 5}
    await log.reset(TOPIC, GROUP, {0: 99})
    assert await log.committed(TOPIC, GROUP) == {0: 10}
    with pytest.raises(NotFound):
        await log.reset(TOPIC, GROUP, {1: 0})


# ---- size of records


async def test_the_largest_record_passes_and_a_larger_one_is_refused_before_anything_is_sent(
    clean: KafkaCluster, open_log: Open
) -> None:
    limit = 150_000
    clean.create_topic(TOPIC, 2, max_message_bytes=str(limit))
    log = open_log(clean, compression="none")
    producer = log.producer()
    headers = (("content-type", b"application/json"),)

    def record(size: int) -> Record:
        spare = size - size_of(Record(b"key", b"", 0, headers))
        return Record(b"key", os.urandom(spare), 0, headers)

    await producer.append(TOPIC, [record(limit)])
    small = Record(b"small", b"small", 1)
    with pytest.raises(RecordTooLarge) as caught:
        await producer.append(TOPIC, [small, record(limit + 1), small, record(limit * 5)])
    assert caught.value.indices == (1, 3)
    assert caught.value.limit < limit
    assert await log.end_offsets(TOPIC) == {0: 1, 1: 0}
    # many that fit, and together do not
    await producer.append(TOPIC, [record(100_000) for _ in range(20)] + [small] * 20_000)
    assert await log.end_offsets(TOPIC) == {0: 21, 1: 20_000}


async def test_a_limit_that_is_changed_is_noticed(clean: KafkaCluster, open_log: Open) -> None:
    clean.create_topic(TOPIC, 1, max_message_bytes="100000")
    log = open_log(clean, compression="none")
    producer = log.producer()
    await producer.append(TOPIC, [Record(b"k", bytes(50_000))])

    def change(limit: int) -> None:
        # by a tool whose end takes longer than the broker's own hearing of it
        clean.run(
            "kafka-configs", "--alter", "--entity-type", "topics", "--entity-name", TOPIC,
            "--add-config", f"max.message.bytes={limit}",
        )  # fmt: skip

    with pytest.raises(RecordTooLarge):
        await producer.append(TOPIC, [Record(b"k", bytes(150_000))])
    await asyncio.to_thread(change, 200_000)
    await producer.append(TOPIC, [Record(b"k", bytes(150_000))])
    await asyncio.to_thread(change, 100_000)
    with pytest.raises(LogUnavailable, match="too large"):
        await producer.append(TOPIC, [Record(b"k", bytes(150_000))])
    with pytest.raises(RecordTooLarge):
        await producer.append(TOPIC, [Record(b"k", bytes(150_000))])
    assert await log.end_offsets(TOPIC) == {0: 2}


# ---- reading


async def test_reading_ends_behind_transactions(clean: KafkaCluster, open_log: Open) -> None:
    """Their markers take offsets; an aborted one's records are passed over."""
    clean.create_topic(TOPIC, 1)

    def transactions() -> None:
        producer = Librdkafka({"bootstrap.servers": clean.bootstrap_servers, "transactional.id": "shop"})
        producer.init_transactions(30)
        for number, end in enumerate((producer.commit_transaction, producer.abort_transaction)):
            producer.begin_transaction()
            producer.produce(TOPIC, b"%d" % number)
            producer.flush(30)
            end(30)

    await asyncio.to_thread(transactions)
    log = open_log(clean)
    assert await log.end_offsets(TOPIC) == {0: 4}
    async with asyncio.timeout(20):
        assert await values(log, TOPIC, 0) == [b"0"]
        assert await values(log, TOPIC, 0, 1, 4) == []


async def test_the_brokers_clock_counts(clean: KafkaCluster, open_log: Open) -> None:
    """One that is wrong where cdc runs would have its records deleted unread, as too old."""
    log = open_log(clean)
    await log.ensure_topic(TOPIC, 1)
    began = time.time() * 1000

    def append() -> None:
        producer = Librdkafka({"bootstrap.servers": clean.bootstrap_servers})
        producer.produce(TOPIC, b"v", timestamp=1000)
        producer.flush(30)

    await asyncio.to_thread(append)
    [record] = [record async for record in log.read(TOPIC, 0, 0)]
    assert abs(record.timestamp_ms - began) < 60_000


async def test_reading_begins_with_what_is_kept(clean: KafkaCluster, open_log: Open) -> None:
    log = open_log(clean)
    await log.ensure_topic(TOPIC, 1)
    await log.producer().append(TOPIC, [Record(b"k", b"%d" % number) for number in range(10)])
    await asyncio.to_thread(_delete_records, clean, TOPIC, 6)
    assert await values(log, TOPIC, 0) == [b"6", b"7", b"8", b"9"]
    assert await values(log, TOPIC, 0, 2, 4) == []
    assert (await log.topics())[0].start_offsets == {0: 6}


def _delete_records(cluster: KafkaCluster, topic: str, below: int) -> None:
    from confluent_kafka import TopicPartition

    for done in cluster.admin.delete_records([TopicPartition(topic, 0, below)]).values():
        done.result(30)


async def test_many_short_reads_share_their_connections(clean: KafkaCluster, open_log: Open) -> None:
    log = open_log(clean)
    await log.ensure_topic(TOPIC, 4)
    await log.producer().append(TOPIC, [Record(b"", b"%d" % number, number % 4) for number in range(4000)])

    async def first(partition: int, offset: int) -> bytes:
        records = log.read(TOPIC, partition, offset)
        try:
            return (await anext(records)).value
        finally:
            await records.aclose()

    places = [(number % 4, number) for number in range(100)]
    found = await asyncio.gather(*(first(*place) for place in places))
    assert found == [b"%d" % (offset * 4 + partition) for partition, offset in places]
    assert len(await values(log, TOPIC, 2)) == 1000


# ---- outages


async def test_a_broker_that_hangs_delays_appends_and_loses_none(own_kafka: KafkaCluster, open_log: Open) -> None:
    log = open_log(own_kafka)
    await log.ensure_topic(TOPIC, 1)
    producer = log.producer()
    await producer.append(TOPIC, [Record(b"k", b"0")])
    own_kafka.pause()
    try:
        waiting = [asyncio.ensure_future(producer.append(TOPIC, [Record(b"k", b"%d" % n)])) for n in range(1, 50)]
        done, _ = await asyncio.wait(waiting, timeout=3)
        assert not done
    finally:
        own_kafka.resume()
    await asyncio.wait_for(asyncio.gather(*waiting), 60)
    assert await values(log, TOPIC, 0) == [b"%d" % n for n in range(50)]


async def test_an_append_that_times_out_says_so_and_the_next_one_goes_on(
    own_kafka: KafkaCluster, open_log: Open
) -> None:
    log = open_log(own_kafka, delivery_timeout_ms=2000, request_timeout_ms=1000)
    await log.ensure_topic(TOPIC, 1)
    producer = log.producer()
    await producer.append(TOPIC, [Record(b"k", b"0")])
    own_kafka.pause()
    try:
        outcomes = await asyncio.gather(
            *(producer.append(TOPIC, [Record(b"k", b"%d" % n)]) for n in range(1, 20)), return_exceptions=True
        )
    finally:
        own_kafka.resume()
    assert {type(outcome) for outcome in outcomes} == {LogUnavailable}
    await eventually(lambda: producer.append(TOPIC, [Record(b"k", b"after")]))
    kept = await values(log, TOPIC, 0)
    assert (kept[0], kept[-1]) == (b"0", b"after")


async def test_a_broker_that_is_killed_takes_no_acknowledged_record_along(
    own_kafka: KafkaCluster, open_log: Open
) -> None:
    log = open_log(own_kafka)
    await log.ensure_topic(TOPIC, 4)
    producer = log.producer()
    acknowledged: list[int] = []
    stop = asyncio.Event()

    async def write() -> None:
        number = 0
        while not stop.is_set():
            call = range(number, number + 100)
            number += 100
            await eventually(lambda call=call: producer.append(TOPIC, [Record(b"%d" % n, b"%d" % n) for n in call]))
            acknowledged.extend(call)

    writing = asyncio.ensure_future(write())
    await eventually(lambda: _is(len(acknowledged) > 5000))
    await asyncio.to_thread(own_kafka.kill)
    with pytest.raises(LogUnavailable):
        await log.identity()
    before = len(acknowledged)
    await asyncio.to_thread(own_kafka.restart)
    await eventually(lambda: _is(len(acknowledged) > before + 5000), 90)
    stop.set()
    await writing
    found = [int(value) for partition in range(4) for value in await values(log, TOPIC, partition)]
    assert set(acknowledged) <= set(found)


async def test_a_full_disk_refuses_appends_until_there_is_room(
    kafka_with: Callable[..., KafkaCluster], open_log: Open
) -> None:
    cluster = kafka_with(disk_bytes=96 * 1024 * 1024)
    log = open_log(cluster, delivery_timeout_ms=5000, request_timeout_ms=2000)
    await log.ensure_topic(TOPIC, 1)
    producer = log.producer()
    acknowledged = 0

    async def fill() -> None:
        nonlocal acknowledged
        while True:
            noise = os.urandom(500_000)
            await producer.append(TOPIC, [Record(b"k", b"%06d" % (acknowledged + n) + noise) for n in range(10)])
            acknowledged += 10

    with pytest.raises(LogUnavailable):
        await asyncio.wait_for(fill(), 90)
    assert acknowledged >= 50
    await asyncio.to_thread(cluster.resize_disk, 512 * 1024 * 1024)
    await asyncio.to_thread(cluster.stop)  # a broker whose only disk failed ends by itself, sooner or later
    await asyncio.to_thread(cluster.restart)
    await eventually(lambda: producer.append(TOPIC, [Record(b"k", b"after!")]), 90)
    found = [value[:6] for value in await values(log, TOPIC, 0)]
    assert {b"%06d" % n for n in range(acknowledged)} <= set(found)
    assert found[-1] == b"after!"


async def _is(condition: bool) -> bool:
    await asyncio.sleep(0)
    return condition


async def test_a_cancelled_append_is_harmless(clean: KafkaCluster, open_log: Open) -> None:
    log = open_log(clean)
    await log.ensure_topic(TOPIC, 1)
    producer = log.producer()
    for number in range(20):
        appending = asyncio.ensure_future(producer.append(TOPIC, [Record(b"k", b"%d" % number)]))
        for _ in range(number % 4):
            await asyncio.sleep(0)
        appending.cancel()
        await asyncio.wait((appending,))
    await producer.append(TOPIC, [Record(b"k", b"end")])
    assert (await values(log, TOPIC, 0))[-1] == b"end"


async def test_a_producer_waits_when_its_queue_is_full(clean: KafkaCluster, open_log: Open) -> None:
    log = open_log(clean, queue_buffering_max_messages=1000)
    await log.ensure_topic(TOPIC, 1)
    producer = log.producer()
    calls = [[Record(b"k", b"%d" % (call * 3000 + n)) for n in range(3000)] for call in range(4)]
    await asyncio.gather(*(producer.append(TOPIC, call) for call in calls))
    assert await values(log, TOPIC, 0) == [b"%d" % n for n in range(12_000)]


async def test_nobody_at_the_address_is_said_and_waited_for(open_log: Open) -> None:
    log = open_kafka_log(KafkaSettings.model_validate({"bootstrap_servers": "127.0.0.1:1"}))
    for attempt in (
        log.identity(),
        log.ensure_topic(TOPIC),
        log.topics(),
        log.producer().append(TOPIC, [Record(b"", b"")]),
    ):
        with pytest.raises(LogUnavailable, match="does not answer"):
            await attempt
    await log.close()
    with pytest.raises(LogUnavailable, match="closed"):
        await log.identity()


# ---- security


async def test_a_login_by_password(
    kafka_with: Callable[..., KafkaCluster], open_log: Open, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = kafka_with(security="SASL_PLAINTEXT", acl=True)
    log = open_log(cluster)
    with pytest.raises(
        LogUnavailable, match=r"kafka-topics.sh .*--create --topic walvec.vt_kafka.changes --partitions 4"
    ):
        await log.ensure_topic(TOPIC)
    cluster.create_topic(TOPIC, 4)
    user = next(iter(cluster.users))
    cluster.grant(user, "TOPIC", "walvec.", "ALL")
    cluster.grant(user, "GROUP", "walvec.", "ALL")
    await eventually(lambda: log.ensure_topic(TOPIC))
    await log.producer().append(TOPIC, [Record(b"k", b"v", 0)])
    assert await values(log, TOPIC, 0) == [b"v"]
    (stats,) = await log.topics()
    assert stats.end_offsets[0] == 1

    wrong = open_log(cluster, sasl_password="not-the-secret-password")
    with caplog.at_level(logging.DEBUG):
        for attempt in (wrong.identity(), wrong.producer().append(TOPIC, [Record(b"k", b"v")])):
            with pytest.raises(LogUnavailable, match=r"refuses the login.*WALVEC_KAFKA__SASL_PASSWORD"):
                await attempt
    said = caplog.text + "".join(str(vars(record)) for record in caplog.records) + repr(wrong)
    assert "not-the-secret-password" not in said


async def test_tls(kafka_with: Callable[..., KafkaCluster], open_log: Open) -> None:
    cluster = kafka_with(security="SSL")
    log = open_log(cluster)
    await log.ensure_topic(TOPIC, 1)
    await log.producer().append(TOPIC, [Record(b"k", b"v")])
    assert await values(log, TOPIC, 0) == [b"v"]
    (stats,) = await log.topics()
    assert stats.bytes > 0
    consumer = log.consumer(TOPIC, GROUP)
    (fetch,) = await consumer.poll(max_records=1, max_bytes=1, timeout=20)
    assert fetch.records[0].value == b"v"
    stranger = KafkaLog(
        KafkaSettings.model_validate({"bootstrap_servers": cluster.bootstrap_servers, "security_protocol": "SSL"})
    )
    with pytest.raises(LogUnavailable, match=r"TLS connection to Kafka fails.*WALVEC_KAFKA__SSL_CA_LOCATION"):
        await stranger.identity()
    await stranger.close()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sasl_pasword": "x"}, "Did you mean `sasl.password`"),
        ({"partition": 3}, "Did you mean `partitions`"),
        ({"entirely_else": 3}, "neither a setting of walvec nor a property of librdkafka"),
        ({"acks": "1"}, "walvec sets it itself. Leave out WALVEC_KAFKA__ACKS"),
        ({"compression_type": "gzip"}, "Set WALVEC_KAFKA__COMPRESSION instead"),
        ({"retry_backoff_ms": "soon"}, "retry.backoff.ms"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER"}, "OAUTHBEARER cannot be used"),
        ({"security_protocol": "SSL", "ssl_ca_location": "/no/such/file"}, "ssl.ca.location"),
    ],
)
def test_properties_that_cannot_be_used_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_kafka_log(KafkaSettings.model_validate(given))
    assert said in str(caught.value)
