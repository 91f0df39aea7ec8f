"""Records by their offsets, without a group: over aiokafka, on the event loop, with no thread of its own.

Such reads are many, short and concurrent (the age of a lag, `tail`, parked batches): a librdkafka consumer for each
costs four threads and opens slowly. Connections are kept for the next read.

Law: a read ends at its end, also where the last offsets hold no record (transactions, compaction). Next: `log`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import (
    KafkaError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from walvec.contracts.errors import LogUnavailable, WalvecError
from walvec.transport.kafka.client import ANSWER_SECONDS, KafkaClient, missing
from walvec.transport.records import StoredRecord

logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what it complains of comes as an exception, too

_SPARE = 8  # idle connections kept
_RECORDS = 1000
_FETCH_BYTES = 256 * 1024


class Reading:
    def __init__(self, client: KafkaClient) -> None:
        self._client = client
        self._spare: list[AIOKafkaConsumer] = []
        self._closed = False

    async def read(self, topic: str, partition: int, start: int, end: int) -> AsyncGenerator[StoredRecord, None]:
        """Records from `start` (not below what is kept) up to `end`, exclusive; both must exist."""
        if start >= end:
            return
        place = TopicPartition(topic, partition)
        reader = await self._take(topic)
        sound = False
        try:
            reader.assign([place])
            reader.seek(place, start)
            async for record in self._records(reader, place, end):
                yield record
            sound = True
        except GeneratorExit:
            sound = True  # the caller has seen enough
            raise
        finally:
            await self._give_back(reader, sound)

    async def _records(
        self, reader: AIOKafkaConsumer, place: TopicPartition, end: int
    ) -> AsyncGenerator[StoredRecord, None]:
        heard = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    found = await reader.getmany(place, timeout_ms=200, max_records=_RECORDS)
                    at = await reader.position(place)
            except OffsetOutOfRangeError:
                # Retention deleted it meanwhile; what is left is read.
                at = await self._earliest(reader, place)
                reader.seek(place, at)
                found = {}
            except (KafkaError, TimeoutError) as error:
                raise _translate(error, place.topic) from None
            for record in found.get(place, ()):
                if record.offset >= end:
                    return
                yield StoredRecord(
                    record.offset, record.timestamp, record.key, record.value or b"", tuple(record.headers)
                )
            if at >= end:
                return
            if found:
                heard = time.monotonic()
            elif time.monotonic() - heard > ANSWER_SECONDS:
                raise LogUnavailable(
                    f"Kafka sends nothing of partition {place.partition} of {place.topic}.",
                    "Check that the partition has a leader; it is tried again.",
                )

    async def _earliest(self, reader: AIOKafkaConsumer, place: TopicPartition) -> int:
        try:
            return int((await reader.beginning_offsets([place]))[place])
        except (KafkaError, TimeoutError) as error:
            raise _translate(error, place.topic) from None

    async def _take(self, topic: str) -> AIOKafkaConsumer:
        if self._closed:
            raise LogUnavailable("The log is closed.", "Open it again.")
        if self._spare:
            return self._spare.pop()
        options: dict[str, Any] = self._client.reader_config()
        reader = AIOKafkaConsumer(
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=50,  # a read never waits for records to come
            max_partition_fetch_bytes=_FETCH_BYTES,
            check_crcs=True,
            **options,
        )
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await reader.start()
        except (KafkaError, TimeoutError, OSError) as error:
            await _stop(reader)
            raise _translate(error, topic) from None
        except BaseException:
            await _stop(reader)
            raise
        return reader

    async def _give_back(self, reader: AIOKafkaConsumer, sound: bool) -> None:
        if sound and not self._closed and len(self._spare) < _SPARE:
            reader.unsubscribe()  # or it would go on fetching
            self._spare.append(reader)
        else:
            await _stop(reader)

    async def close(self) -> None:
        self._closed = True
        while self._spare:
            await _stop(self._spare.pop())


async def _stop(reader: AIOKafkaConsumer) -> None:
    # aiokafka cancels a task that has not begun, and hears its CancelledError as if it were ours.
    stopping = asyncio.ensure_future(reader.stop())
    with contextlib.suppress(asyncio.CancelledError, KafkaError):
        await asyncio.wait((stopping,))
        if not stopping.cancelled():
            stopping.result()


def _translate(error: BaseException, topic: str) -> WalvecError:
    if isinstance(error, UnknownTopicOrPartitionError):
        return missing(topic)
    if isinstance(error, TopicAuthorizationFailedError):
        return LogUnavailable(f"Kafka does not let walvec read {topic}.", "Grant Read on it with kafka-acls.sh.")
    return LogUnavailable(f"Kafka does not answer: {type(error).__name__}.", "It goes on by itself.")
