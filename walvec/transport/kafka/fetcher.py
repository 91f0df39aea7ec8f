"""One librdkafka consumer and the thread that serves it: rebalances, records and errors into plain state.

librdkafka runs its rebalance callbacks in the thread that polls, so the thread hands a revocation to the event loop and
waits for it, for a bounded time. The Python binding lets one thread in at a time and is not fair about it: a second
thread's commit may wait for ever beside a polling one, and surely does within a callback. So every call is made by this
thread, and it commits while it waits. Law: everything that both sides touch is touched under `lock`; a callback never
calls user code. Next: `consumer` is the side of the event loop.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from walvec.contracts.errors import RecordsLost, WalvecError
from walvec.transport.kafka.buffer import Buffer
from walvec.transport.records import StoredRecord

logger = logging.getLogger(__name__)

GroupProtocol = Literal["classic", "consumer"]

_SLICE_SECONDS = 0.1
_BUSY_SLICE_SECONDS = 0.005
_BUSY_SECONDS = 2.0
_CHUNK_RECORDS = 500
_BUFFER_RECORDS = 10_000
_BUFFER_BYTES = 4 * 1024**2
_STALL_SECONDS = 1.0
_PULSE_SECONDS = 1.0
_ASK_SECONDS = 10.0
_AGAIN_SECONDS = 1.0
_ASK_ATTEMPTS = 3

_CLASSIC = {
    "session.timeout.ms": 6000,
    "heartbeat.interval.ms": 1500,
    "partition.assignment.strategy": "cooperative-sticky",
}
_LOST = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._LOG_TRUNCATION}
_NO_TOPIC = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.UNKNOWN_TOPIC_ID,
}
# The last is how a coordinator refuses to take a group of the older protocol over.
_NO_PROTOCOL = {
    KafkaError.UNSUPPORTED_VERSION,
    KafkaError._UNSUPPORTED_FEATURE,
    KafkaError.INCONSISTENT_GROUP_PROTOCOL,
    KafkaError.GROUP_ID_NOT_FOUND,
}
# What ends by itself: librdkafka connects again, finds the leader, joins again.
_PASSING = {
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError._MAX_POLL_EXCEEDED,
}


@dataclass(slots=True)
class Holding:
    """A partition that is owned.

    `committed`: up to where. `leader_epoch`: of what was read last. `read`: the offset behind the last record that was
    fetched. `end`: how far there is none behind it: markers of transactions and what was compacted have offsets, too.
    """

    committed: int
    read: int
    leader_epoch: int = -1
    end: int = 0

    def reached(self, offset: int) -> int:
        """What to commit when all before `offset` is done."""
        return max(offset, self.end) if offset >= self.read else offset


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. `hang`: the event loop gives no sign of life, and the thread stops polling so that the group takes the
    partitions away. `pick_up`, `revoke`: until a poll begins, and ends, what must be done before partitions go."""

    hang: float = 10.0
    pick_up: float = 5.0
    revoke: float = 20.0


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
        self.lock = threading.Condition()
        self.buffer = Buffer()
        self.owned: dict[int, Holding] = {}
        self.revoking: frozenset[int] = frozenset()
        self.lost: set[int] = set()
        self.failures: deque[WalvecError] = deque()
        self.trouble: WalvecError | None = None
        self.suspicious = False
        self.joined = False
        self.failed = False
        self.ended = False
        self.paused = False
        self.closing = False
        self.protocol = protocols[0]
        self._protocols = protocols
        self._properties = properties
        self._make = make
        self._translate = translate
        self._post = post
        self._changed = changed
        self._patience = patience or Patience()
        self._consumer: Any = None
        self.handed_out = 0.0
        self._ends: set[int] = set()
        self._ends_again = 0.0
        self._commits: deque[tuple[Mapping[int, int], Callable[[dict[int, KafkaError]], None]]] = deque()
        self._seeks: dict[int, int] = {}
        self._unreadable: set[int] = set()
        self._held_back: frozenset[int] = frozenset()
        self._still_held: frozenset[int] = frozenset()  # librdkafka keeps a pause when the partition leaves
        self._stalled = False
        self._taken_up = False
        self._refused = False
        self._may_fall_back = False
        self._pulse = time.monotonic()
        self._asked = 0.0
        self._thread = threading.Thread(target=self._run, name=f"kafka {topic}", daemon=True)

    # ---- for the event loop

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Leaves the group; the thread ends soon after."""
        with self.lock:
            self.closing = True
            self.revoking = frozenset()
            self.lock.notify_all()

    def seek(self, partition: int, offset: int) -> None:
        """What was fetched from elsewhere is dropped, and what is under way too."""
        with self.lock:
            self.buffer.drop((partition,))
            self._seeks[partition] = offset
            self.lock.notify_all()

    def take_up(self) -> frozenset[int]:
        """The partitions that must be given up; the caller promises `release`."""
        with self.lock:
            self._taken_up = bool(self.revoking)
            self.lock.notify_all()
            return self.revoking

    def release(self) -> None:
        """Nothing of them is handed out from now on, however long the thread takes to notice."""
        with self.lock:
            self._forget(self.revoking)
            self.revoking = frozenset()
            self.lock.notify_all()

    def commit(self, offsets: Mapping[int, int], done: Callable[[dict[int, KafkaError]], None]) -> None:
        """`done` gets what went wrong, by partition, on the event loop."""
        with self.lock:
            if not self.ended:
                self._commits.append((offsets, done))
                self.lock.notify_all()
                return
        done(dict.fromkeys(offsets, KafkaError(KafkaError.UNKNOWN_MEMBER_ID)))

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
                left, self._commits = self._commits, deque()
                self.lost |= set(self.owned)
                self._forget(frozenset(self.owned))
            for offsets, done in left:
                self._post(partial(done, dict.fromkeys(offsets, KafkaError(KafkaError.UNKNOWN_MEMBER_ID))))
            self._changed()

    def _serve_one(self, *, last: bool) -> None:
        self._may_fall_back = not last
        properties = {**_with_protocol(self.protocol, self._properties), "enable.partition.eof": True}
        consumer = self._make({**properties, "error_cb": self._on_client_error})
        with self.lock:
            self._consumer = consumer
        try:
            consumer.subscribe(
                [self.topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            while not (self.closing or self.failed or self._refused):
                self._serve()
        finally:
            consumer.close()

    def _serve(self) -> None:
        if not self._alive():
            with self.lock:
                self.lock.wait(_SLICE_SECONDS)
            return
        self._serve_commits()
        if not self._has_room():
            return
        self._apply()
        if self._ends and time.monotonic() >= self._ends_again:
            self._commit_ends()
        # Nothing wakes a poll but Kafka: a commit that is to be expected soon must not wait long.
        busy = time.monotonic() - self.handed_out < _BUSY_SECONDS
        try:
            first = self._consumer.poll(_BUSY_SLICE_SECONDS if busy else _SLICE_SECONDS)
            if first is None:
                return
            self._take_in([first, *self._consumer.consume(_CHUNK_RECORDS, 0)])
        except KafkaException as error:
            self._on_error(error.args[0])

    def _serve_commits(self) -> None:
        while self._commits:
            with self.lock:
                offsets, done = self._commits.popleft()
                epochs = {p: self.owned[p].leader_epoch for p in offsets if p in self.owned}
                reached = {p: at for p in epochs if (at := self.owned[p].reached(offsets[p])) > self.owned[p].committed}
            places = [
                TopicPartition(self.topic, p, offset, self.topic_identity, *((epochs[p],) if epochs[p] >= 0 else ()))
                for p, offset in reached.items()
            ]
            errors = {p: KafkaError(KafkaError.UNKNOWN_MEMBER_ID) for p in offsets if p not in epochs}
            try:
                if places:
                    answers = self._consumer.commit(offsets=places, asynchronous=False)
                    errors |= {place.partition: place.error for place in answers if place.error is not None}
            except KafkaException as error:
                errors = dict.fromkeys(offsets, error.args[0])
            with self.lock:
                for partition in reached.keys() - errors.keys():
                    if partition in self.owned:
                        self.owned[partition].committed = reached[partition]
            self._post(partial(done, errors))

    def _commit_ends(self) -> None:
        """Nobody commits what holds no record: the group would stay behind the end for ever."""
        with self.lock:
            ends, self._ends = self._ends, set()
            due = {p: self.owned[p] for p in ends if p in self.owned and p not in self.lost and p not in self._seeks}
            offsets = {p: h.end for p, h in due.items() if h.read <= h.committed < h.end}
            if offsets:
                self._commits.append((offsets, self._ends_committed))
        self._serve_commits()

    def _ends_committed(self, errors: dict[int, KafkaError]) -> None:
        if not errors:
            return
        reasons = {error.str() for error in errors.values()}
        logger.debug("end not committed", extra={"action": "commit_end", "topic": self.topic, "reason": str(reasons)})
        with self.lock:
            self._ends |= errors.keys()
            self._ends_again = time.monotonic() + _AGAIN_SECONDS

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
        with self.lock:
            if self._full():
                if not self._stalled:
                    self._stalled = not self.lock.wait_for(
                        lambda: not self._full() or self.closing or bool(self._seeks or self._commits),
                        _STALL_SECONDS,
                    )
                    return False
            elif self._stalled and self.buffer.bytes <= _BUFFER_BYTES // 2:
                self._stalled = False
        return True

    def _full(self) -> bool:
        return self.buffer.records >= _BUFFER_RECORDS or self.buffer.bytes >= _BUFFER_BYTES

    def _apply(self) -> None:
        """Pauses, resumes and seeks, as asked for since the last time."""
        with self.lock:
            seeks = {p: offset for p, offset in self._seeks.items() if p in self.owned}
            self._seeks = {}
            for partition, offset in seeks.items():
                self.owned[partition].read, self.owned[partition].end = offset, 0
            owned = frozenset(self.owned)
            wanted = owned if self.paused or self._stalled else frozenset()
            unreadable = self._unreadable & owned
        for partition, offset in seeks.items():
            self._move(partition, offset)
        if held := wanted - self._held_back:
            self._consumer.pause([TopicPartition(self.topic, p) for p in held])
        if freed := ((self._held_back | self._still_held) & owned) - wanted:
            self._consumer.resume([TopicPartition(self.topic, p) for p in freed])
        self._held_back, self._still_held = wanted, self._still_held - owned
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
            self._still_held |= self._held_back & {partition}
            self._held_back -= {partition}

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
            was_empty = not self.buffer.records
            for partition, batch in batches.items():
                holding = self.owned.get(partition)
                if holding is not None and partition not in self._seeks:
                    epoch = epochs[partition]
                    holding.leader_epoch = -1 if epoch is None else epoch
                    holding.read = batch[-1].offset + 1
                    self.buffer.put(partition, batch)
            for partition, end in ends.items():
                holding = self.owned.get(partition)
                if holding is not None and partition not in self._seeks:
                    holding.end = end
                    self._ends.add(partition)
            news = was_empty and self.buffer.records > 0
            if batches:
                self.trouble = None
        if news:
            self._changed()

    # ---- rebalances (called by librdkafka within `poll`)

    def _on_assign(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        numbers = [place.partition for place in partitions]
        starts = self._starts(consumer, numbers)
        if starts is None:
            consumer.incremental_assign([])
            return
        consumer.incremental_assign(
            [
                TopicPartition(self.topic, p, offset, "", *((epoch,) if epoch is not None and epoch >= 0 else ()))
                for p, (offset, epoch) in starts.items()
            ]
        )
        with self.lock:
            self.owned |= {p: Holding(offset, offset) for p, (offset, _) in starts.items()}
            self._held_back -= frozenset(numbers)
            self.joined = True
        logger.info(
            "partitions assigned",
            extra={"action": "partitions_assigned", "topic": self.topic, "partitions": sorted(numbers)},
        )
        self._changed()

    def _starts(self, consumer: Any, partitions: list[int]) -> dict[int, tuple[int, int | None]] | None:
        """Offset and leader epoch to start at. A commit that was made for another topic of this name counts for
        nothing. None: nobody answered, and `failures` says so."""
        if not partitions:
            return {}
        error = KafkaError(KafkaError._TIMED_OUT)
        for _ in range(_ASK_ATTEMPTS):
            try:
                found = consumer.committed([TopicPartition(self.topic, p) for p in partitions], timeout=_ASK_SECONDS)
            except KafkaException as e:
                error = e.args[0]
                continue
            if bad := next((place.error for place in found if place.error is not None), None):
                error = bad
                continue
            return {
                place.partition: (place.offset, place.leader_epoch)
                if place.offset >= 0 and place.metadata in (None, "", self.topic_identity)
                else (0, None)
                for place in found
            }
        self._fail(self._translate(error))
        return None

    def _on_revoke(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        gone = frozenset(place.partition for place in partitions)
        with self.lock:
            asked = gone & frozenset(self.owned)
            if asked and not self.closing:
                self.revoking, self._taken_up = asked, False
        self._changed()
        self._wait_for_release()
        with self.lock:
            if self.revoking and not self._taken_up:
                self.lost |= self.revoking  # nobody polls: told afterwards
            self.revoking = frozenset()
            self._forget(gone)
        consumer.incremental_unassign(partitions)
        self._changed()

    def _wait_for_release(self) -> None:
        began = time.monotonic()
        while True:
            self._serve_commits()
            with self.lock:
                limit = self._patience.revoke if self._taken_up else self._patience.pick_up
                left = began + limit - time.monotonic()
                if not self.revoking or left <= 0:
                    return
                taken_up = self._taken_up
                self.lock.wait_for(
                    lambda: not self.revoking or bool(self._commits) or self._taken_up != taken_up,  # noqa: B023
                    left,
                )

    def _on_lost(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        gone = frozenset(place.partition for place in partitions)
        with self.lock:
            self.lost |= gone & frozenset(self.owned)
            self._forget(gone)
        consumer.incremental_unassign(partitions)
        logger.warning(
            "partitions were taken over",
            extra={"action": "partitions_lost", "topic": self.topic, "partitions": sorted(gone)},
        )
        self._changed()

    def _forget(self, partitions: frozenset[int]) -> None:
        self.buffer.drop(partitions)
        self._unreadable -= partitions
        self._still_held |= self._held_back & partitions
        self._held_back -= partitions
        for partition in partitions:
            self.owned.pop(partition, None)
            self._seeks.pop(partition, None)

    # ---- errors

    def _on_message_error(self, error: KafkaError, partition: int | None) -> None:
        if error.code() in _LOST and partition is not None and partition >= 0:
            with self.lock:
                if partition in self.owned and partition not in self._seeks:
                    self._unreadable.add(partition)
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
            self._unreadable.discard(partition)
            if partition not in self.owned or partition in self._seeks:
                return
            holding = self.owned[partition]
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
        if self._may_fall_back and (code in _NO_PROTOCOL or (code == KafkaError._FATAL and not self.joined)):
            self._refused = True
            logger.info("group protocol is not offered", extra={"action": "group_protocol", "reason": error.str()})
            return
        if code in _NO_TOPIC:
            with self.lock:
                self.suspicious = True
            self._changed()
            return
        if error.fatal() or code == KafkaError._FATAL or code in _NO_PROTOCOL:
            self._fail(self._translate(error))
            return
        level = logging.DEBUG if code in _PASSING else logging.WARNING
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


def _with_protocol(protocol: GroupProtocol, properties: Mapping[str, Any]) -> dict[str, Any]:
    """What clients decide with one protocol, the brokers decide with the other, which refuses these properties."""
    if protocol == "consumer":
        return {**{k: v for k, v in properties.items() if k not in _CLASSIC}, "group.protocol": "consumer"}
    return {
        **_CLASSIC,
        **properties,
        "group.protocol": "classic",
        "partition.assignment.strategy": "cooperative-sticky",
    }
