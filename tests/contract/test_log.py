"""The contract of `walvec.transport.ports.Log`, for every implementation. A new one joins with one entry in `LOGS`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.kafka import KafkaCluster
from walvec.contracts.errors import Conflict, LogUnavailable, NotFound, PartitionLost
from walvec.runtime.settings import KafkaSettings, LogSettings
from walvec.transport.kafka import KafkaLog
from walvec.transport.local import LocalLog, log_path
from walvec.transport.memory import MemoryLog
from walvec.transport.records import Fetch, Record

TOPIC, GROUP = "walvec.vt_test.changes", "walvec.vt_test.embedder"
MEBIBYTE = 1024 * 1024
Open = Callable[..., Awaitable[Any]]


def settings(**values: Any) -> LogSettings:
    return LogSettings.model_validate({"retention_seconds": 3600, **values})


@contextlib.asynccontextmanager
async def local(folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[Open]:
    logs: list[LocalLog] = []

    async def make(**values: Any) -> LocalLog:
        # The fallback poll is out of the way: whoever wakes here was woken by a notification.
        logs.append(LocalLog(log_path(folder), settings(**values), fallback_seconds=3600))
        return logs[-1]

    try:
        yield make
    finally:
        for log in logs:
            await log.close()


@contextlib.asynccontextmanager
async def memory(folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[Open]:
    """Every opening is the same log, as every opening of one file is."""
    logs: list[MemoryLog] = []

    async def make(**values: Any) -> MemoryLog:
        if not logs:
            logs.append(MemoryLog(settings(**values)))
        return logs[0]

    yield make


@contextlib.asynccontextmanager
async def kafka(folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[Open]:
    """Every opening is a client of the session's broker; its topics and groups end with the test."""
    cluster: KafkaCluster = request.getfixturevalue("kafka")
    logs: list[KafkaLog] = []

    async def make() -> KafkaLog:
        logs.append(
            KafkaLog(KafkaSettings.model_validate({"bootstrap_servers": cluster.bootstrap_servers, "partitions": 4}))
        )
        return logs[-1]

    async def sweep() -> None:
        broom = KafkaLog(KafkaSettings.model_validate({"bootstrap_servers": cluster.bootstrap_servers}))
        for stats in await broom.topics():
            await broom.delete_topic(stats.topic)
        await broom.close()

    await sweep()  # what other files left
    try:
        yield make
    finally:
        await asyncio.gather(*(log.close() for log in logs))
        await sweep()


LOGS = {"kafka": kafka, "local": local, "memory": memory}


@pytest.fixture(params=sorted(LOGS))
async def open_log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    async with LOGS[request.param](tmp_path, request) as make:
        yield make


@pytest.fixture(params=["local", "memory"])
async def open_own_log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    """A log that only walvec reads, and that walvec keeps within its limits (the port says what that means)."""
    async with LOGS[request.param](tmp_path, request) as make:
        yield make


def records(count: int, start: int = 0, key: bytes | None = None, size: int = 0) -> list[Record]:
    return [
        Record(key or f"k{number}".encode(), f"v{number}".encode().ljust(size))
        for number in range(start, start + count)
    ]


async def take(consumer: Any, count: int, **limits: int) -> list[Fetch]:
    """Polls until `count` records came."""
    fetches: list[Fetch] = []
    while sum(len(fetch.records) for fetch in fetches) < count:
        polled = await consumer.poll(
            max_records=limits.get("max_records", 1000), max_bytes=limits.get("max_bytes", MEBIBYTE), timeout=20
        )
        assert polled, "nothing came"
        fetches += polled
    return fetches


async def poll_now(consumer: Any) -> list[Fetch]:
    return list(await consumer.poll(max_records=1000, max_bytes=MEBIBYTE, timeout=0))


def values(fetches: list[Fetch]) -> list[bytes]:
    return [record.value for fetch in fetches for record in fetch.records]


async def settled(*consumers: Any, count: int = 4) -> None:
    """Polls all in turn until they share `count` partitions fairly."""
    async with asyncio.timeout(20):
        while True:
            for consumer in consumers:
                await consumer.poll(max_records=1, max_bytes=1, timeout=0)
                for partition in consumer.assignment():
                    with contextlib.suppress(PartitionLost):  # another process may have taken it in this moment
                        await consumer.seek(partition, 0)
            sizes = sorted(len(consumer.assignment()) for consumer in consumers)
            if sum(sizes) == count and sizes[-1] - sizes[0] <= 1:
                return


# ---- topics


async def test_a_topic_is_made_once(open_log: Open) -> None:
    log = await open_log()
    assert await log.ensure_topic(TOPIC) == 4
    assert await log.ensure_topic(TOPIC, 7) == 4
    assert await log.ensure_topic("walvec.other.dead", 7) == 7
    assert [stats.topic for stats in await log.topics()] == ["walvec.other.dead", TOPIC]


async def test_unknown_topics_are_refused(open_log: Open) -> None:
    log = await open_log()
    for attempt in (
        log.producer().append("no", [Record(b"k", b"v")]),
        log.end_offsets("no"),
        log.committed("no", GROUP),
        log.reset("no", GROUP, {0: 0}),
        log.consumer("no", GROUP).poll(max_records=1, max_bytes=1, timeout=0),
        anext(log.read("no", 0, 0)),
    ):
        with pytest.raises(NotFound, match="no topic no"):
            await attempt
    await log.delete_topic("no")


async def test_an_append_that_fails_takes_no_other_along(open_log: Open) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC, 2)
    producer = log.producer()
    outcomes = await asyncio.gather(
        producer.append(TOPIC, [Record(b"a", b"1", 0)]),
        producer.append("no", [Record(b"a", b"2")]),
        producer.append(TOPIC, [Record(b"a", b"3", 2)]),
        producer.append(TOPIC, [Record(b"a", b"4", 0)]),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [type(None), NotFound, NotFound, type(None)]
    assert [record.value async for record in log.read(TOPIC, 0, 0)] == [b"1", b"4"]


async def test_statistics_tell_offsets_size_and_age(open_log: Open) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC, 2)
    await log.producer().append(TOPIC, [Record(None, bytes(1000), 1), Record(b"", b"", 1)])
    (stats,) = await log.topics()
    assert (stats.start_offsets, stats.end_offsets) == ({0: 0, 1: 0}, {0: 0, 1: 2})
    assert stats.bytes > 0
    assert stats.oldest_ms is not None
    assert [record[2:4] async for record in log.read(TOPIC, 1, 0)] == [(None, bytes(1000)), (b"", b"")]


async def test_the_identity_stays(open_log: Open) -> None:
    first, second = await open_log(), await open_log()
    assert await first.identity() == await second.identity()


async def test_a_topic_made_anew_has_another_identity(open_log: Open) -> None:
    log = await open_log()
    with pytest.raises(NotFound, match="no topic"):
        await log.topic_identity(TOPIC)
    await log.ensure_topic(TOPIC, 1)
    before = await log.topic_identity(TOPIC)
    assert await log.topic_identity(TOPIC) == before
    await log.delete_topic(TOPIC)
    await log.ensure_topic(TOPIC, 1)
    assert await log.topic_identity(TOPIC) != before


async def test_a_topic_deleted_and_made_anew_starts_from_zero(open_log: Open) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC, 1)
    await log.producer().append(TOPIC, records(3))
    revoked: list[frozenset[int]] = []

    async def on_revoke(partitions: frozenset[int]) -> None:
        revoked.append(partitions)

    consumer = log.consumer(TOPIC, GROUP, on_revoke)
    await take(consumer, 3)
    await log.delete_topic(TOPIC)
    with pytest.raises(PartitionLost):
        await consumer.commit({0: 3})
    # Not at once where the group's rebalance takes the partition before a member asks what became of the topic.
    with pytest.raises(NotFound):
        await take(consumer, 1)
    assert revoked == [{0}]
    await log.ensure_topic(TOPIC, 1)
    await log.producer().append(TOPIC, records(1, 9))
    assert values(await take(consumer, 1)) == [b"v9"]
    assert await log.committed(TOPIC, GROUP) == {0: 0}


async def test_a_topic_deleted_under_a_waiting_poll_wakes_it(open_log: Open) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC, 1)
    consumer = log.consumer(TOPIC, GROUP)
    await poll_now(consumer)
    waiting = asyncio.ensure_future(consumer.poll(max_records=1, max_bytes=1, timeout=60))
    await asyncio.sleep(0)
    await log.delete_topic(TOPIC)
    with pytest.raises(NotFound):
        await asyncio.wait_for(waiting, 20)


async def test_a_deleted_group_begins_anew(open_log: Open) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC, 1)
    await log.producer().append(TOPIC, records(3))
    consumer = log.consumer(TOPIC, GROUP)
    await take(consumer, 3)
    await consumer.commit({0: 3})
    await consumer.close()
    assert await log.committed(TOPIC, GROUP) == {0: 3}
    await log.delete_group(GROUP)
    await log.delete_group(GROUP)
    await log.delete_group("a-group-that-never-was")
    assert await log.committed(TOPIC, GROUP) == {0: 0}


async def test_a_group_with_a_member_is_kept_or_its_member_begins_anew(open_log: Open) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC, 1)
    await log.producer().append(TOPIC, records(3))
    consumer = log.consumer(TOPIC, GROUP)
    await take(consumer, 3)
    await consumer.commit({0: 2})
    refused: Conflict | None = None
    try:
        await log.delete_group(GROUP)
    except Conflict as e:
        refused = e
    if refused is not None:  # nothing was taken from anybody
        assert GROUP in refused.message
        assert refused.cure
        assert await log.committed(TOPIC, GROUP) == {0: 2}
        await consumer.commit({0: 3})
        await log.producer().append(TOPIC, records(1, 7))
        assert values(await take(consumer, 1)) == [b"v7"]
    else:  # what the member says of its former life is not believed
        assert await log.committed(TOPIC, GROUP) == {0: 0}
        with pytest.raises(PartitionLost):
            await consumer.commit({0: 3})
        assert await log.committed(TOPIC, GROUP) == {0: 0}
        assert values(await take(consumer, 3)) == [b"v0", b"v1", b"v2"]
        await consumer.commit({0: 3})
    assert await log.committed(TOPIC, GROUP) == {0: 3}
    await consumer.close()
    await log.delete_group(GROUP)
    assert await log.committed(TOPIC, GROUP) == {0: 0}


async def test_a_deleted_group_takes_nothing_from_others(open_log: Open) -> None:
    log = await open_log()
    other = GROUP.replace("embedder", "sink")
    await log.ensure_topic(TOPIC, 1)
    await log.producer().append(TOPIC, records(2))
    for group in (GROUP, other):
        consumer = log.consumer(TOPIC, group)
        await take(consumer, 2)
        await consumer.commit({0: 2})
        await consumer.close()
    await log.delete_group(GROUP)
    assert await log.committed(TOPIC, GROUP) == {0: 0}
    assert await log.committed(TOPIC, other) == {0: 2}
    await log.delete_group(other)


async def test_offsets_are_found_by_time(open_log: Open) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC, 3)
    producer = log.producer()
    await producer.append(TOPIC, [Record(b"a", b"1", 0), Record(b"a", b"2", 0), Record(b"b", b"3", 1)])
    # each partition may have been given its own time
    first = sorted([r.timestamp_ms for p in (0, 1) for r in [r async for r in log.read(TOPIC, p, 0)]])
    assert await log.offsets_at(TOPIC, 0) == {0: 0, 1: 0, 2: 0}
    assert await log.offsets_at(TOPIC, first[0]) == {0: 0, 1: 0, 2: 0}
    while time.time() * 1000 <= first[-1] + 1:
        await log.wait_for_append(0.001)
    await producer.append(TOPIC, [Record(b"a", b"4", 0)])
    (later,) = [r.timestamp_ms async for r in log.read(TOPIC, 0, 2)]
    assert await log.offsets_at(TOPIC, first[-1] + 1) == {0: 2, 1: 1, 2: 0}
    assert await log.offsets_at(TOPIC, later + 1) == await log.end_offsets(TOPIC) == {0: 3, 1: 1, 2: 0}
    with pytest.raises(NotFound):
        await log.offsets_at("nothing", 0)


# ---- order and limits


async def test_a_key_keeps_its_partition_and_its_order(open_log: Open) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC)
    producer = log.producer()
    calls = [[Record(f"k{number % 10}".encode(), f"{call}".encode()) for number in range(30)] for call in range(50)]
    await asyncio.gather(*(producer.append(TOPIC, call) for call in calls))
    seen: dict[bytes, list[int]] = {}
    homes: dict[bytes, set[int]] = {}
    for fetch in await take(log.consumer(TOPIC, GROUP), 1500):
        for record in fetch.records:
            assert record.key is not None
            seen.setdefault(record.key, []).append(int(record.value))
            homes.setdefault(record.key, set()).add(fetch.partition)
    assert all(order == sorted(order) and len(order) == 150 for order in seen.values())
    assert all(len(home) == 1 for home in homes.values())
    assert len(seen) == 10


async def test_offsets_have_no_gaps(open_log: Open) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC)
    producer = log.producer()
    await asyncio.gather(*(producer.append(TOPIC, records(7, 7 * call)) for call in range(20)))
    ends = await log.end_offsets(TOPIC)
    assert sum(ends.values()) == 140
    for partition, end in ends.items():
        assert [record.offset async for record in log.read(TOPIC, partition, 0)] == list(range(end))


@pytest.mark.parametrize("limit", [1, 3, 1000])
async def test_a_poll_keeps_to_its_number_of_records(open_log: Open, limit: int) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC)
    await log.producer().append(TOPIC, records(25))
    consumer = log.consumer(TOPIC, GROUP)
    got: list[bytes] = []
    while len(got) < 25:
        polled = await take(consumer, 1, max_records=limit)
        assert len(values(polled)) <= limit
        assert len({fetch.partition for fetch in polled}) == len(polled)
        got += values(polled)
    assert sorted(got) == sorted(record.value for record in records(25))


async def test_a_poll_keeps_to_its_bytes_but_never_returns_nothing(open_log: Open) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC, 1)
    sizes = [400, 400, 400, 3 * MEBIBYTE, 100]
    await log.producer().append(TOPIC, [Record(b"", bytes(size)) for size in sizes])
    consumer = log.consumer(TOPIC, GROUP)
    got = [[len(value) for value in values(await take(consumer, 1, max_bytes=1000))] for _ in range(4)]
    assert got == [[400, 400], [400], [3 * MEBIBYTE], [100]]


async def test_a_busy_partition_does_not_starve_the_others(open_log: Open) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC, 2)
    busy = [Record(b"", os.urandom(4096), 0) for _ in range(2000)]
    await log.producer().append(TOPIC, [*busy, Record(b"", b"quiet", 1)])
    consumer = log.consumer(TOPIC, GROUP)
    got: list[bytes] = []
    while b"quiet" not in got:
        got += values(await take(consumer, 1, max_records=10))
    assert len(got) < 1000


async def test_read_keeps_to_its_range(open_log: Open) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC, 1)
    producer = log.producer()
    for start in (0, 4, 8):
        await producer.append(TOPIC, records(4, start))

    async def read(*bounds: int) -> list[int]:
        return [record.offset async for record in log.read(TOPIC, 0, *bounds)]

    assert await read(0) == list(range(12))
    assert await read(3, 9) == list(range(3, 9))
    assert await read(5, 5) == []
    assert await read(11, 99) == [11]
    assert await read(12) == []
    with pytest.raises(NotFound):
        await anext(log.read(TOPIC, 1, 0))


async def test_read_ends_where_the_log_ended_at_the_call(open_log: Open) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC, 1)
    await log.producer().append(TOPIC, records(2))
    seen = []
    async for record in log.read(TOPIC, 0, 0):
        seen.append(record.offset)
        await log.producer().append(TOPIC, records(1))
    assert seen == [0, 1]


# ---- groups


async def test_a_single_member_owns_everything_in_its_first_poll(open_log: Open) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC)
    consumer = log.consumer(TOPIC, GROUP)
    assert consumer.assignment() == frozenset()
    assert await poll_now(consumer) == []
    assert consumer.assignment() == {0, 1, 2, 3}


async def test_reading_goes_on_from_the_committed_offset(open_log: Open) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC, 1)
    await log.producer().append(TOPIC, records(10))
    first = log.consumer(TOPIC, GROUP)
    await take(first, 10)
    await first.commit({0: 4})
    await first.close()
    again = await open_log()
    assert [record.offset for fetch in await take(again.consumer(TOPIC, GROUP), 6) for record in fetch.records] == [
        4, 5, 6, 7, 8, 9,
    ]  # fmt: skip


async def test_a_commit_never_moves_backwards(open_log: Open) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC, 2)
    await log.producer().append(TOPIC, [Record(b"", b"", 0)] * 9)
    consumer = log.consumer(TOPIC, GROUP)
    await take(consumer, 9)
    await consumer.commit({0: 7})
    await consumer.commit({0: 3})
    await consumer.commit({})
    assert await log.committed(TOPIC, GROUP) == {0: 7, 1: 0}
    assert await log.committed(TOPIC, "another") == {0: 0, 1: 0}


async def test_groups_do_not_disturb_each_other(open_log: Open) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC, 2)
    await log.producer().append(TOPIC, records(10))
    one, two = log.consumer(TOPIC, "one"), log.consumer(TOPIC, "two")
    assert sorted(values(await take(one, 10))) == sorted(values(await take(two, 10)))


async def test_members_share_and_a_leaver_hands_over(open_log: Open) -> None:
    one, two, three = await open_log(), await open_log(), await open_log()
    await one.ensure_topic(TOPIC, 5)
    given: list[frozenset[int]] = []

    async def on_revoke(partitions: frozenset[int]) -> None:
        # Still owned here: this is the last chance to commit.
        assert partitions <= first.assignment()
        await first.commit(dict.fromkeys(partitions, 0))
        given.append(partitions)

    first = one.consumer(TOPIC, GROUP, on_revoke)
    await poll_now(first)
    second, third = two.consumer(TOPIC, GROUP), three.consumer(TOPIC, GROUP)
    await settled(first, second, count=5)
    assert len(given) == 1
    assert len(first.assignment()) == 3
    await settled(first, second, third, count=5)
    owned = [consumer.assignment() for consumer in (first, second, third)]
    assert frozenset().union(*owned) == set(range(5))
    await first.close()
    assert first.assignment() == frozenset()
    await settled(second, third, count=5)
    await second.close()
    await settled(third, count=5)


async def test_a_newcomer_wakes_the_owner(open_log: Open) -> None:
    one, two = await open_log(), await open_log()
    await one.ensure_topic(TOPIC)
    await one.producer().append(TOPIC, [])
    old = one.consumer(TOPIC, GROUP)
    await poll_now(old)
    asking = asyncio.ensure_future(old.poll(max_records=1, max_bytes=1, timeout=60))
    new = two.consumer(TOPIC, GROUP)
    await poll_now(new)
    newcomer = asyncio.ensure_future(new.poll(max_records=1, max_bytes=1, timeout=60))
    async with asyncio.timeout(20):
        while len(new.assignment()) < 2:
            await one.wait_for_append(0.2)
    assert len(old.assignment()) == 2
    await old.close()
    await new.close()
    assert (await asking, await newcomer) == ([], [])


async def test_more_members_than_partitions(open_log: Open) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC, 1)
    consumers = [log.consumer(TOPIC, GROUP) for _ in range(3)]
    await settled(*consumers, count=1)


async def test_a_commit_of_a_lost_partition_is_refused_and_the_others_are_done(open_log: Open) -> None:
    one, two = await open_log(), await open_log()
    await one.ensure_topic(TOPIC, 2)
    await one.producer().append(TOPIC, [Record(b"", b"", 0), Record(b"", b"", 1)])
    old = one.consumer(TOPIC, GROUP)
    await take(old, 2)
    new = two.consumer(TOPIC, GROUP)
    await settled(old, new, count=2)
    (kept,), (lost,) = old.assignment(), new.assignment()
    with pytest.raises(PartitionLost, match=str(lost)):
        await old.commit({kept: 1, lost: 1})
    assert await one.committed(TOPIC, GROUP) == {kept: 1, lost: 0}


async def test_seek_moves_only_the_reader(open_log: Open) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC, 1)
    await log.producer().append(TOPIC, records(10))
    consumer = log.consumer(TOPIC, GROUP)
    with pytest.raises(PartitionLost):
        await consumer.seek(0, 3)
    await take(consumer, 10)
    await consumer.seek(0, 8)
    assert values(await take(consumer, 2)) == [b"v8", b"v9"]
    await consumer.seek(0, 2)
    assert values(await take(consumer, 1, max_records=1)) == [b"v2"]
    assert values(await take(consumer, 1, max_records=1)) == [b"v3"]
    assert await log.committed(TOPIC, GROUP) == {0: 0}


async def test_a_seek_wakes_a_waiting_poll(open_log: Open) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC, 1)
    await log.producer().append(TOPIC, records(1))
    consumer = log.consumer(TOPIC, GROUP)
    await take(consumer, 1)
    waiting = asyncio.ensure_future(consumer.poll(max_records=1, max_bytes=1, timeout=60))
    await asyncio.sleep(0)
    await consumer.seek(0, 0)
    assert values(await asyncio.wait_for(waiting, 20)) == [b"v0"]


async def test_a_reset_moves_members_and_refuses_their_late_commits(open_own_log: Open) -> None:
    log = await open_own_log()
    await log.ensure_topic(TOPIC, 1)
    await log.producer().append(TOPIC, records(10))
    told: list[frozenset[int]] = []

    async def on_revoke(partitions: frozenset[int]) -> None:
        told.append(partitions)

    consumer = log.consumer(TOPIC, GROUP, on_revoke)
    await take(consumer, 10)
    await consumer.commit({0: 10})
    other = await open_own_log()
    await other.reset(TOPIC, GROUP, {0: 2})
    with pytest.raises(PartitionLost):
        await consumer.commit({0: 10})
    assert values(await take(consumer, 8)) == [record.value for record in records(8, 2)]
    assert told == [{0}]
    await consumer.commit({0: 3})
    assert await log.committed(TOPIC, GROUP) == {0: 3}
    await log.reset(TOPIC, GROUP, {0: 99})
    assert await log.committed(TOPIC, GROUP) == {0: 10}
    with pytest.raises(NotFound):
        await log.reset(TOPIC, GROUP, {1: 0})


async def test_pause_stops_records_but_not_the_sharing(open_log: Open) -> None:
    one, two = await open_log(), await open_log()
    await one.ensure_topic(TOPIC)
    consumer, other = one.consumer(TOPIC, GROUP), two.consumer(TOPIC, GROUP)
    await poll_now(consumer)
    consumer.pause()
    await one.producer().append(TOPIC, records(100))
    assert await poll_now(consumer) == []
    await settled(consumer, other)
    assert len(consumer.assignment()) == 2
    await other.close()
    await settled(consumer)
    consumer.resume()
    assert len(values(await take(consumer, 100))) == 100


async def test_a_partition_that_left_paused_is_read_when_it_is_back(open_log: Open) -> None:
    one, two = await open_log(), await open_log()
    await one.ensure_topic(TOPIC)
    await one.producer().append(TOPIC, records(100))
    consumer, other = one.consumer(TOPIC, GROUP), two.consumer(TOPIC, GROUP)
    await take(consumer, 1, max_records=1)
    consumer.pause()
    await settled(consumer)
    await settled(consumer, other)
    consumer.resume()
    await other.close()
    await settled(consumer)
    assert len(values(await take(consumer, 100))) == 100


async def test_a_cancelled_poll_loses_nothing(open_log: Open) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC)
    consumer = log.consumer(TOPIC, GROUP)
    for _ in range(20):
        waiting = asyncio.ensure_future(consumer.poll(max_records=10, max_bytes=1000, timeout=60))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait((waiting,))
    await log.producer().append(TOPIC, records(5))
    assert len(values(await take(consumer, 5))) == 5
    assert len(consumer.assignment()) == 4


async def test_what_is_closed_says_so(open_log: Open) -> None:
    log = await open_log()
    await log.ensure_topic(TOPIC)
    consumer = log.consumer(TOPIC, GROUP)
    await consumer.close()
    await consumer.close()
    with pytest.raises(LogUnavailable):
        await poll_now(consumer)


# ---- waking


async def test_an_append_wakes_a_poll_and_a_commit_wakes_waiters(open_log: Open) -> None:
    one, two = await open_log(), await open_log()
    await one.ensure_topic(TOPIC)
    consumer = one.consumer(TOPIC, GROUP)
    await poll_now(consumer)
    await two.wait_for_append(0)
    for number in range(20):
        waiting = asyncio.ensure_future(consumer.poll(max_records=10, max_bytes=1000, timeout=60))
        await two.producer().append(TOPIC, records(1, number))
        (fetch,) = await asyncio.wait_for(waiting, 20)
        watching = asyncio.ensure_future(two.wait_for_append(60))
        await asyncio.sleep(0)
        await consumer.commit({fetch.partition: fetch.next_offset})
        await asyncio.wait_for(watching, 20)


async def test_a_wait_ends_by_itself(open_log: Open) -> None:
    log = await open_log()
    await log.wait_for_append(0.01)
    await log.ensure_topic(TOPIC)
    assert await log.consumer(TOPIC, GROUP).poll(max_records=1, max_bytes=1, timeout=0.01) == []


# ---- retention and back-pressure


async def test_retention_waits_for_every_group(open_own_log: Open) -> None:
    log = await open_own_log(retention_seconds=0)
    await log.ensure_topic(TOPIC, 1)
    one, two = log.consumer(TOPIC, "one"), log.consumer(TOPIC, "two")
    for start in (0, 5):
        await log.producer().append(TOPIC, records(5, start))
    await take(one, 10)
    await one.commit({0: 10})
    await take(two, 10)
    await log.sweep()
    assert (await log.topics())[0].start_offsets == {0: 0}
    await two.commit({0: 5})
    await log.sweep()
    (stats,) = await log.topics()
    assert (stats.start_offsets, stats.end_offsets) == ({0: 5}, {0: 10})
    assert await log.committed(TOPIC, "new") == {0: 5}
    assert [record.offset async for record in log.read(TOPIC, 0, 0)] == [5, 6, 7, 8, 9]
    await two.commit({0: 10})
    await log.sweep()
    assert (await log.topics())[0].start_offsets == {0: 10}
    assert (await log.topics())[0].oldest_ms is None
    await log.producer().append(TOPIC, records(1))
    assert [record.offset for fetch in await take(one, 1) for record in fetch.records] == [10]


async def test_a_topic_without_groups_and_young_records_are_kept(open_own_log: Open) -> None:
    log = await open_own_log(retention_seconds=1000)
    await log.ensure_topic("dead", 1)
    await log.ensure_topic(TOPIC, 1)
    await log.producer().append("dead", records(5))
    await log.producer().append(TOPIC, records(5))
    consumer = log.consumer(TOPIC, GROUP)
    await take(consumer, 5)
    await consumer.commit({0: 5})
    await log.sweep()
    assert [stats.start_offsets for stats in await log.topics()] == [{0: 0}, {0: 0}]


async def test_a_full_log_holds_patient_producers_until_there_is_room(open_own_log: Open) -> None:
    log = await open_own_log(max_bytes=16 * MEBIBYTE)
    await log.ensure_topic(TOPIC, 1)
    patient, hasty = log.producer(backpressure=True), log.producer()
    noise = [Record(b"", bytes(range(256)) * 4096) for _ in range(2)]
    consumer = log.consumer(TOPIC, GROUP)
    await poll_now(consumer)
    for _ in range(9):
        await hasty.append(TOPIC, [Record(None, os.urandom(2 * MEBIBYTE))])
    held = [asyncio.ensure_future(patient.append(TOPIC, [Record(None, f"{number}".encode())])) for number in range(3)]
    await hasty.append(TOPIC, noise)
    assert not any(append.done() for append in held)
    for _ in range(11):
        for fetch in await take(consumer, 1, max_bytes=1):
            await consumer.commit({fetch.partition: fetch.next_offset})
    await asyncio.wait_for(asyncio.gather(*held), 20)
    assert values(await take(consumer, 3)) == [b"0", b"1", b"2"]
