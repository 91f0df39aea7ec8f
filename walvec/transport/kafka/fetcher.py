"""One librdkafka consumer and the thread that serves it: rebalances, records and errors into plain state.

librdkafka runs its rebalance callbacks in the thread that polls, so the thread hands a revocation to the event loop and
waits for it, for a bounded time. The Python binding lets one thread in at a time and is not fair about it: a second
thread's commit may wait for ever beside a polling one, and surely does within a callback. So every call is made by this
thread, and it commits while it waits. Law: what both sides touch is in `membership`, or touched under its lock; a
callback never calls user code. In the thread: `rebalances`, `commits`. Next: `consumer` is the side of the event loop.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from walvec.contracts.errors import RecordsLost, WalvecError
from walvec.transport.kafka.buffer import Buffer
from walvec.transport.kafka.commits import Commits
from walvec.transport.kafka.membership import Membership
from walvec.transport.kafka.protocols import LOST, NO_PROTOCOL, NO_TOPIC, PASSING, GroupProtocol, with_protocol
from walvec.transport.kafka.rebalances import Patience, Rebalances
from walvec.transport.records import StoredRecord

logger = logging.getLogger(__name__)

_SLICE_SECONDS = 0.1
_BUSY_SLICE_SECONDS = 0.005
_BUSY_SECONDS = 2.0
_CHUNK_RECORDS = 500
_BUFFER_RECORDS = 10_000
_BUFFER_BYTES = 4 * 1024**2
_STALL_SECONDS = 1.0
_PULSE_SECONDS = 1.0
_ASK_SECONDS = 10.0


class Fetcher:
    """`start` it once; `changed` is called from its thread whenever there is something new to see."""

    def __init__(
        self,
        properties: Mapping[str, Any],
        topic: str,
        topic_identity: str,
        *,
        protocols: tuple[GroupProtocol, ...],
        make: Callable[[dict[str, Any]], Any],
        translate: Callable[[KafkaError], WalvecError],
        post: Callable[[Callable[[], None]], None],
        changed: Callable[[], None],
        patience: Patience | None = None,
    ) -> None:
        self.topic = topic
        self.topic_identity = topic_identity
        self.membership = Membership()
        self.lock = self.membership.lock
        self.commits = Commits(topic, topic_identity, self.membership, post)
        self.failures: deque[WalvecError] = deque()
        self.trouble: WalvecError | None = None
        self.suspicious = False
        self.failed = False
        self.ended = False
        self.paused = False
        self.protocol = protocols[0]
        self.handed_out = 0.0
        self._protocols = protocols
        self._properties = properties
        self._make = make
        self._translate = translate
        self._post = post
        self._changed = changed
        self._patience = patience or Patience()
        self._rebalances = Rebalances(
            topic,
            topic_identity,
            self.membership,
            self.commits,
            self._patience,
            failed=lambda error: self._fail(translate(error)),
            changed=changed,
        )
        self._consumer: Any = None
        self._stalled = False
        self._refused = False
        self._may_fall_back = False
        self._pulse = time.monotonic()
        self._asked = 0.0
        self._thread = threading.Thread(target=self._run, name=f"kafka {topic}", daemon=True)

    @property
    def buffer(self) -> Buffer:
        return self.membership.buffer

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Leaves the group; the thread ends soon after."""
        self.membership.close()

    # ---- the thread

    def _run(self) -> None:
        try:
            for number, protocol in enumerate(self._protocols):
                self.protocol = protocol
                self._refused = False
                self._serve_one(last=number == len(self._protocols) - 1)
                if not self._refused:
                    break
        except KafkaException as error:
            self._fail(self._translate(error.args[0]))
        except WalvecError as error:
            self._fail(error)
        except BaseException as error:
            # Whoever polls must hear of a defect too, or would wait for ever.
            logger.exception("consumer thread ended", extra={"action": "consumer_failed", "topic": self.topic})
            self._fail(self._translate(KafkaError(KafkaError._FAIL, f"the consumer's thread ended: {error!r}")))
            raise
        finally:
            with self.lock:
                self.ended = True
                self.commits.end()
                self.membership.lose_all()
            self._changed()

    def _serve_one(self, *, last: bool) -> None:
        self._may_fall_back = not last
        properties = {**with_protocol(self.protocol, self._properties), "enable.partition.eof": True}
        consumer = self._make({**properties, "error_cb": self._on_client_error})
        with self.lock:
            self._consumer = consumer
        try:
            consumer.subscribe(
                [self.topic],
                on_assign=self._rebalances.on_assign,
                on_revoke=self._rebalances.on_revoke,
                on_lost=self._rebalances.on_lost,
            )
            while not (self.membership.closing or self.failed or self._refused):
                self._serve()
        finally:
            consumer.close()

    def _serve(self) -> None:
        if not self._alive():
            with self.lock:
                self.lock.wait(_SLICE_SECONDS)
            return
        self.commits.serve(self._consumer)
        if not self._has_room():
            return
        self._apply()
        self.commits.serve_ends(self._consumer)
        # Nothing wakes a poll but Kafka: a commit that is to be expected soon must not wait long.
        busy = time.monotonic() - self.handed_out < _BUSY_SECONDS
        try:
            first = self._consumer.poll(_BUSY_SLICE_SECONDS if busy else _SLICE_SECONDS)
            if first is None:
                return
            self._take_in([first, *self._consumer.consume(_CHUNK_RECORDS, 0)])
        except KafkaException as error:
            self._on_error(error.args[0])

    def _alive(self) -> bool:
        """False: the event loop hangs. Not to poll is then what lets others have the partitions."""
        now = time.monotonic()
        if now - self._asked >= _PULSE_SECONDS:
            self._asked = now
            self._post(self._beat)
        return now - self._pulse < self._patience.hang

    def _beat(self) -> None:
        self._pulse = time.monotonic()

    def _has_room(self) -> bool:
        """False: look again. A buffer that nobody empties stops the fetching, and polling goes on without it."""
        member = self.membership
        with self.lock:
            if self._full():
                if not self._stalled:
                    self._stalled = not self.lock.wait_for(
                        lambda: not self._full() or member.closing or bool(member.seeks) or self.commits.waiting,
                        _STALL_SECONDS,
                    )
                    return False
            elif self._stalled and member.buffer.bytes <= _BUFFER_BYTES // 2:
                self._stalled = False
        return True

    def _full(self) -> bool:
        return self.buffer.records >= _BUFFER_RECORDS or self.buffer.bytes >= _BUFFER_BYTES

    def _apply(self) -> None:
        """Pauses, resumes and seeks, as asked for since the last time."""
        member = self.membership
        with self.lock:
            seeks = member.take_seeks()
            owned = frozenset(member.owned)
            wanted = owned if self.paused or self._stalled else frozenset()
            unreadable = member.unreadable & owned
        for partition, offset in seeks.items():
            self._move(partition, offset)
        if held := wanted - member.held_back:
            self._consumer.pause([TopicPartition(self.topic, p) for p in held])
        if freed := ((member.held_back | member.still_held) & owned) - wanted:
            self._consumer.resume([TopicPartition(self.topic, p) for p in freed])
        with self.lock:
            member.held_back, member.still_held = wanted, member.still_held - owned
        for partition in unreadable:
            self._tell_lost(partition)

    def _move(self, partition: int, offset: int) -> None:
        place = TopicPartition(self.topic, partition, offset)
        try:
            self._consumer.seek(place)
        except KafkaException as error:
            if error.args[0].code() != KafkaError._STATE:
                raise
            # Its fetching was ended by an error: only a partition that is assigned anew starts again.
            self._consumer.incremental_unassign([place])
            self._consumer.incremental_assign([place])
            self.membership.reassigned(partition)

    def _take_in(self, messages: list[Any]) -> None:
        batches: dict[int, list[StoredRecord]] = {}
        epochs: dict[int, int | None] = {}
        ends: dict[int, int] = {}
        for message in messages:
            partition = message.partition()
            if (error := message.error()) is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    ends[partition] = message.offset()
                else:
                    self._on_message_error(error, partition)
                continue
            headers = message.headers()
            record = StoredRecord(
                message.offset(),
                message.timestamp()[1],
                message.key(),
                message.value() or b"",
                tuple((name, value or b"") for name, value in headers) if headers else (),
            )
            batch = batches.get(partition)
            if batch is None:
                batches[partition] = [record]
            else:
                batch.append(record)
            epochs[partition] = message.leader_epoch()
        with self.lock:
            news = self.membership.take_in(batches, epochs, ends)
            if batches:
                self.trouble = None
        if news:
            self._changed()

    # ---- errors

    def _on_message_error(self, error: KafkaError, partition: int | None) -> None:
        if error.code() in LOST and partition is not None and partition >= 0:
            with self.lock:
                if self.membership.reading(partition) is not None:
                    self.membership.unreadable.add(partition)
        else:
            self._on_error(error)

    def _tell_lost(self, partition: int) -> None:
        place = TopicPartition(self.topic, partition)
        try:
            earliest, _ = self._consumer.get_watermark_offsets(place, timeout=_ASK_SECONDS)
        except KafkaException as error:
            self._on_error(error.args[0])  # asked again in the next round
            return
        with self.lock:
            self.membership.unreadable.discard(partition)
            holding = self.membership.reading(partition)
            if holding is None:
                return
            if holding.committed >= earliest:
                # The log was cut below a commit, which would pass for records that are appended there from now on.
                holding.committed, holding.leader_epoch = earliest - 1, -1
            self.failures.append(
                RecordsLost(
                    f"Records of partition {partition} of {self.topic} are gone: they were deleted before they were "
                    f"read, or the log was cut.",
                    "The table is read again from its source.",
                    topic=self.topic,
                    partition=partition,
                    resume_at=earliest,
                )
            )
        self._changed()

    def _on_client_error(self, error: KafkaError) -> None:
        self._properties["error_cb"](error)
        self._on_error(error)

    def _on_error(self, error: KafkaError) -> None:
        code = error.code()
        if self._refused:
            return  # the echoes of a refusal
        joined = self.membership.joined
        if self._may_fall_back and (code in NO_PROTOCOL or (code == KafkaError._FATAL and not joined)):
            self._refused = True
            logger.info("group protocol is not offered", extra={"action": "group_protocol", "reason": error.str()})
            return
        if code in NO_TOPIC:
            with self.lock:
                self.suspicious = True
            self._changed()
            return
        if error.fatal() or code == KafkaError._FATAL or code in NO_PROTOCOL:
            self._fail(self._translate(error))
            return
        level = logging.DEBUG if code in PASSING else logging.WARNING
        logger.log(
            level, "consumer in trouble", extra={"action": "consumer", "topic": self.topic, "reason": error.str()}
        )
        with self.lock:
            self.trouble = self._translate(error)
        self._changed()

    def _fail(self, error: WalvecError) -> None:
        with self.lock:
            self.failures.append(error)
            self.failed = True
        self._changed()
