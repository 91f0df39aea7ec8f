"""The port `Log` over a Kafka cluster.

Law: one instance belongs to one event loop; it talks to the brokers only when asked. Next: `producer`, `consumer`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Hashable, Mapping

from confluent_kafka.admin import OffsetSpec

from walvec.contracts.errors import LogUnavailable, NotFound, WalvecError
from walvec.runtime.settings import KafkaSettings
from walvec.transport.kafka.admin import Admin
from walvec.transport.kafka.client import KafkaClient
from walvec.transport.kafka.consumer import KafkaConsumer
from walvec.transport.kafka.producer import KafkaProducer
from walvec.transport.kafka.reading import Reading
from walvec.transport.ports import OnRevoke
from walvec.transport.records import StoredRecord, TopicStats

_FIRST_LOOK, _LONGEST_LOOK = 0.05, 1.0


def open_kafka_log(settings: KafkaSettings) -> KafkaLog:
    """Connects with the first use. Raises ConfigError."""
    return KafkaLog(settings)


class KafkaLog:
    keeps_headers = True

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._client = KafkaClient(settings)
        self._client.reader_config()  # what aiokafka cannot do is said now
        self._admin = Admin(self._client)
        self._reading = Reading(self._client)
        self._producers: list[KafkaProducer] = []
        self._consumers: list[KafkaConsumer] = []
        self._answers: dict[Hashable, object] = {}
        self._pause = _FIRST_LOOK
        self._closed = False

    async def identity(self) -> str:
        self._check_open()
        return await self._admin.identity()

    # ---- topics

    async def ensure_topic(self, topic: str, partitions: int | None = None) -> int:
        self._check_open()
        count = await self._admin.ensure(topic, partitions)
        await self._admin.differences(topic, count)
        return count

    async def delete_topic(self, topic: str) -> None:
        self._check_open()
        await self._admin.delete(topic)

    async def topic_identity(self, topic: str) -> str:
        self._check_open()
        found, cluster = await asyncio.gather(self._admin.found(topic), self._admin.identity())
        return f"{cluster}/{found.topic_id}"

    async def topics(self) -> list[TopicStats]:
        self._check_open()
        return await self._admin.stats()

    async def end_offsets(self, topic: str) -> dict[int, int]:
        self._check_open()
        numbers = await self._admin.numbers(topic)
        found = await self._admin.offsets([(topic, number) for number in numbers], OffsetSpec.latest())
        ends = {number: found[topic, number] for number in numbers}
        self._seen(topic, ends)
        return ends

    async def offsets_at(self, topic: str, since_ms: int) -> dict[int, int]:
        self._check_open()
        places = [(topic, number) for number in await self._admin.numbers(topic)]
        if since_ms <= 0:
            starts = await self._admin.offsets(places, OffsetSpec.earliest())
            return {number: offset for (_, number), offset in starts.items()}
        found, ends = await asyncio.gather(
            self._admin.offsets(places, OffsetSpec.for_timestamp(since_ms)),
            self._admin.offsets(places, OffsetSpec.latest()),
        )
        return {number: offset if offset >= 0 else ends[topic, number] for (_, number), offset in found.items()}

    # ---- groups

    async def committed(self, topic: str, group: str) -> dict[int, int]:
        self._check_open()
        found = await self._admin.committed(topic, group)
        self._seen((topic, group), found)
        return found

    async def reset(self, topic: str, group: str, offsets: Mapping[int, int]) -> None:
        self._check_open()
        await self._admin.reset(topic, group, offsets)

    async def delete_group(self, group: str) -> None:
        self._check_open()
        await self._admin.delete_group(group)

    # ---- reading and writing

    async def read(
        self, topic: str, partition: int, offset: int, end: int | None = None
    ) -> AsyncGenerator[StoredRecord, None]:
        self._check_open()
        numbers = await self._admin.numbers(topic)
        if partition not in numbers:
            raise NotFound(f"Topic {topic} has no partition {partition}.", f"It has {len(numbers)}, counted from 0.")
        place = (topic, partition)
        starts, ends = await asyncio.gather(
            self._admin.offsets([place], OffsetSpec.earliest()), self._admin.offsets([place], OffsetSpec.latest())
        )
        last = ends[place] if end is None else min(end, ends[place])
        records = self._reading.read(topic, partition, max(offset, starts[place]), last)
        try:
            async for record in records:
                yield record
        finally:
            await records.aclose()

    def producer(self, *, backpressure: bool = False) -> KafkaProducer:
        """`backpressure` says nothing here: how much is kept is the brokers' business, and time decides it."""
        self._check_open()
        producer = KafkaProducer(self._client, self._admin)
        self._producers.append(producer)
        return producer

    def consumer(self, topic: str, group: str, on_revoke: OnRevoke | None = None) -> KafkaConsumer:
        self._check_open()
        consumer = KafkaConsumer(self._client, topic, group, on_revoke, self._settings)
        self._consumers.append(consumer)
        return consumer

    async def wait_for_append(self, timeout: float) -> None:
        """Kafka tells nobody of appends and commits, so this is a pause: short while the offsets that were asked for
        here keep changing, then longer and longer, up to a second."""
        pause = min(self._pause, timeout)
        self._pause = min(self._pause * 1.5, _LONGEST_LOOK)
        await asyncio.sleep(max(0.0, pause))

    def _seen(self, what: Hashable, answer: object) -> None:
        if self._answers.get(what) != answer:
            self._answers[what] = answer
            self._pause = _FIRST_LOOK

    async def broken(self) -> WalvecError:
        await asyncio.Event().wait()  # a cluster that is away may come back: nothing here is past waiting
        raise AssertionError

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            await asyncio.gather(*(consumer.close() for consumer in self._consumers))
        finally:
            for producer in self._producers:
                await producer.close()
            await self._reading.close()
            await self._admin.close()
            self._client.close()

    def _check_open(self) -> None:
        if self._closed:
            raise LogUnavailable("The log is closed.", "Open it again.")
