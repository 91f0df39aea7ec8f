"""Appends over librdkafka: idempotent, acknowledged by all in-sync replicas, in call order, several in flight.

Every record has its delivery report and an append is done when all of its own are in: a report for the last record only
would be cheaper by a tenth and wrong, for earlier ones may time out alone. The reports are fetched on the event loop by
a timer that runs while something is outstanding; a thread that fetches them would fight for the interpreter with the
loop at every single report.

Law: nothing is told to be durable that the brokers have not acknowledged. One that fails for good takes everything with
it that the same instance of librdkafka has in flight; the next append gets a new one. Next: `admin` knows the limits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Sequence

from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka import Producer as Librdkafka

from walvec.contracts.errors import LogUnavailable, NotFound, RecordTooLarge, WalvecError
from walvec.transport.kafka.admin import Admin, Limits
from walvec.transport.kafka.client import KafkaClient, kafka_error
from walvec.transport.records import Record

_log = logging.getLogger(__name__)

# What a batch of one record adds at most: its header (61), lengths and deltas (6 numbers of up to 5 bytes), and room.
_OVERHEAD = 128
_SOON, _LATER, _IDLE = 0.001, 0.05, 10.0  # seconds between looks for reports: at first, in an outage, with none to come
_LIMITS_SECONDS = 60.0  # how long a topic's limits are believed
_OF_THE_TOPIC = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.UNKNOWN_TOPIC_ID,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.INVALID_RECORD,
    KafkaError.TOPIC_EXCEPTION,
)


class _Append:
    """One call's records on their way."""

    __slots__ = ("error", "future", "largest", "left", "topic")

    def __init__(self, topic: str, count: int, future: asyncio.Future[None]) -> None:
        self.topic = topic
        self.left = count
        self.future = future
        self.error: KafkaError | None = None
        self.largest = 0  # bytes of the largest record that the broker refused for its size

    def delivered(self, error: KafkaError | None, message: Message) -> None:
        """Delivery report of one record; called by `poll` on the event loop."""
        if error is not None:
            self.error = self.error or error
            if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                self.largest = max(self.largest, len(message.value() or b"") + len(message.key() or b""))
        self.left -= 1


class _Instance:
    """One librdkafka producer, for topics that take records of up to `max_bytes`. Used from the event loop only."""

    def __init__(self, client: KafkaClient, max_bytes: int) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self.raw: Librdkafka = client.make(Librdkafka, client.producer_config(max_bytes))
        self._outstanding: dict[_Append, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._quiet = 0
        self._idle = False
        self._room: asyncio.Future[None] | None = None
        self.failure: WalvecError | None = None

    def begin(self, append: _Append) -> None:
        self._outstanding[append] = None
        self._quiet = 0
        self._look_soon()

    def abandon(self, append: _Append) -> None:
        """Whoever waited has gone, or some of it was never handed over: nobody is told of the rest."""
        self._outstanding.pop(append, None)

    def _look_soon(self) -> None:
        if self._idle and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._idle = False
            self._timer = self._loop.call_later(_SOON, self._look)

    def _look(self) -> None:
        self._timer = None
        served = self.raw.poll(0)
        self._quiet = 0 if served else self._quiet + 1
        for append in [append for append in self._outstanding if not append.left]:
            self._outstanding.pop(append, None)  # one that failed has taken the others along
            self._settle(append)
        if served and self._room is not None:
            self._room.set_result(None)
            self._room = None
        if self.failure is None:
            # while idle, too: librdkafka's own events would pile up
            self._idle = not self._outstanding and self._room is None
            pause = _IDLE if self._idle else _SOON if self._quiet < 100 else _LATER
            self._timer = self._loop.call_later(pause, self._look)

    def _settle(self, append: _Append) -> None:
        error = append.error
        if error is None:
            self._client.well()
            if not append.future.done():
                append.future.set_result(None)
            return
        failure = self._client.translate(error, append.topic)
        if not append.future.done():
            append.future.set_exception(failure)
        if error.fatal() or error.code() not in (*_OF_THE_TOPIC, KafkaError.MSG_SIZE_TOO_LARGE):
            self.fail(failure)

    async def room(self) -> None:
        """Waits until librdkafka may take more. Raises what the instance failed with."""
        if self._room is None:
            self._room = self._loop.create_future()
        self._look_soon()
        await asyncio.shield(self._room)
        if self.failure is not None:
            raise self.failure

    def fail(self, failure: WalvecError) -> None:
        """Everything in flight is in doubt; what was not sent is dropped, so that it cannot arrive late."""
        if self.failure is not None:
            return
        self.failure = failure
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for append in self._outstanding:
            if not append.future.done():
                append.future.set_exception(failure)
        self._outstanding.clear()
        if self._room is not None:
            self._room.set_result(None)
            self._room = None
        self.raw.purge(in_queue=True, in_flight=True, blocking=False)

    def close(self) -> None:
        """Blocks a moment; beside the event loop. Nothing is outstanding: `fail` was called."""
        self.raw.flush(0.1)


class KafkaProducer:
    def __init__(self, client: KafkaClient, admin: Admin) -> None:
        self._client = client
        self._admin = admin
        self._instances: dict[int, _Instance] = {}
        self._limits: dict[str, tuple[float, Limits]] = {}
        self._lines: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._closed = False

    async def append(self, topic: str, records: Sequence[Record]) -> None:
        self._check_open()
        if not records:
            return
        # first come, first sent: a topic's appends stand in line until all of their records are handed over
        async with self._lines[topic]:
            limits = await self._limits_of(topic, records)
            self._check_open()
            instance = self._instance(limits.max_bytes)
            append = _Append(topic, len(records), asyncio.get_running_loop().create_future())
            instance.begin(append)
            try:
                await self._hand_over(instance, append, records)
            except BaseException:
                instance.abandon(append)
                raise
        try:
            await append.future
        except asyncio.CancelledError:
            instance.abandon(append)
            raise
        except NotFound:
            self._limits.pop(topic, None)
            raise
        except WalvecError:
            if append.largest:
                self._learn(topic, limits, append.largest)
            raise

    async def _hand_over(self, instance: _Instance, append: _Append, records: Sequence[Record]) -> None:
        produce, topic, delivered = instance.raw.produce, append.topic, append.delivered
        for key, value, partition, headers in records:
            place = -1 if partition is None else partition
            while True:
                try:
                    produce(topic, value, key, place, delivered, headers=list(headers))
                    break
                except BufferError:
                    await instance.room()
                except KafkaException as error:
                    if instance.failure is not None:
                        raise instance.failure from None
                    failure = self._client.translate(error, topic)
                    if kafka_error(error).fatal():
                        instance.fail(failure)
                    self._limits.pop(topic, None)
                    raise failure from None

    async def _limits_of(self, topic: str, records: Sequence[Record]) -> Limits:
        """The topic's limits, which the records keep to. Raises NotFound, RecordTooLarge."""
        now = time.monotonic()
        asked, limits = self._limits.get(topic, (-_LIMITS_SECONDS, None))
        highest = max((r.partition for r in records if r.partition is not None), default=-1)
        if limits is None or now - asked >= _LIMITS_SECONDS or highest >= limits.partitions:
            limits = await self._ask(topic, limits)
            self._limits[topic] = (now, limits)
        if highest >= limits.partitions:
            raise NotFound(f"Topic {topic} has no partition {highest}.", f"It has {limits.partitions}, from 0 on.")
        if large := _too_large(records, limits.max_bytes):
            # It may have been raised since it was asked for, and a dead letter is a high price.
            limits = await self._ask(topic, limits)
            self._limits[topic] = (now, limits)
            large = _too_large(records, limits.max_bytes)
        if large:
            room = limits.max_bytes - _OVERHEAD
            raise RecordTooLarge(
                f"{len(large)} of {len(records)} records are larger than the {room:,} bytes that {topic} takes.",
                f"Raise max.message.bytes of the topic (now {limits.max_bytes:,}) and replay their dead letters.",
                indices=large,
                limit=room,
            )
        return limits

    async def _ask(self, topic: str, before: Limits | None) -> Limits:
        limits = await self._admin.limits(topic)
        if not limits.known and before is not None and not before.known:
            return Limits(limits.partitions, before.max_bytes, known=False)  # what refusals have taught stays
        return limits

    def _learn(self, topic: str, limits: Limits, refused: int) -> None:
        """The broker refused a size that was believed to fit."""
        if limits.known:
            self._limits.pop(topic, None)  # it was lowered: asked for anew
            return
        learnt = Limits(limits.partitions, max(1024, min(limits.max_bytes, refused) - 1), known=False)
        self._limits[topic] = (time.monotonic(), learnt)

    def _instance(self, max_bytes: int) -> _Instance:
        found = self._instances.get(max_bytes)
        if found is not None and found.failure is None:
            return found
        if found is not None:
            _log.warning(
                "kafka producer starts anew", extra={"action": "producer_restarts", "reason": str(found.failure)}
            )
            self._client.dispose(found.close)
        self._instances[max_bytes] = _Instance(self._client, max_bytes)
        return self._instances[max_bytes]

    async def close(self) -> None:
        """What is in flight may still arrive; nobody is told."""
        if self._closed:
            return
        self._closed = True
        for instance in self._instances.values():
            instance.fail(LogUnavailable("This producer is closed.", "Open another one."))
            await self._client.disposed(instance.close)
        self._instances.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise LogUnavailable("This producer is closed.", "Open another one.")


def _too_large(records: Sequence[Record], max_bytes: int) -> list[int]:
    """Places of those that a batch of their own could not carry uncompressed. Half the limit is looked at closely: what
    is below it cannot exceed the limit by its headers, which are walvec's own and small."""
    half = max_bytes // 2
    suspects = [at for at, r in enumerate(records) if len(r[1]) + (len(r[0]) if r[0] else 0) > half]
    return [at for at in suspects if size_of(records[at]) > max_bytes]


def size_of(record: Record) -> int:
    """Bytes that a batch of this record alone takes at most."""
    headers = sum(len(name.encode()) + len(value) + 10 for name, value in record.headers)
    return len(record.value) + len(record.key or b"") + headers + _OVERHEAD
