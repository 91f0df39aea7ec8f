"""What a member commits: asked for by the event loop, sent by the thread, also while it waits for a rebalance.

Law: for owned partitions only, and never below what is committed; a commit names the topic's id. Next: `fetcher`.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from walvec.transport.kafka.membership import Membership

logger = logging.getLogger(__name__)

_AGAIN_SECONDS = 1.0

Done = Callable[[dict[int, KafkaError]], None]
"""Gets what went wrong, by partition."""


class Commits:
    """`post` calls something on the event loop."""

    def __init__(
        self, topic: str, topic_identity: str, membership: Membership, post: Callable[[Callable[[], None]], None]
    ) -> None:
        self._topic = topic
        self._topic_identity = topic_identity
        self._membership = membership
        self._post = post
        self._asked: deque[tuple[Mapping[int, int], Done]] = deque()
        self._ends_again = 0.0
        self._ended = False

    @property
    def waiting(self) -> bool:
        return bool(self._asked)

    def ask(self, offsets: Mapping[int, int], done: Done) -> None:
        """From the event loop, where `done` is called."""
        with self._membership.lock:
            if not self._ended:
                self._asked.append((offsets, done))
                self._membership.lock.notify_all()
                return
        done(_not_ours(offsets))

    def end(self) -> None:
        """Nobody serves any more: all that waits is refused, and what comes."""
        with self._membership.lock:
            self._ended = True
            left, self._asked = self._asked, deque()
        for offsets, done in left:
            self._post(partial(done, _not_ours(offsets)))

    def serve(self, consumer: Any) -> None:
        while self._asked:
            with self._membership.lock:
                offsets, done = self._asked.popleft()
                due = {p: holding for p in offsets if (holding := self._membership.owned.get(p)) is not None}
                epochs = {p: holding.leader_epoch for p, holding in due.items()}
                reached = {p: at for p, h in due.items() if (at := h.reached(offsets[p])) > h.committed}
            places = [
                TopicPartition(self._topic, p, offset, self._topic_identity, *((epochs[p],) if epochs[p] >= 0 else ()))
                for p, offset in reached.items()
            ]
            errors = _not_ours(offsets.keys() - epochs.keys())
            try:
                if places:
                    answers = consumer.commit(offsets=places, asynchronous=False)
                    errors |= {place.partition: place.error for place in answers if place.error is not None}
            except KafkaException as error:
                errors = dict.fromkeys(offsets, error.args[0])
            with self._membership.lock:
                for partition in reached.keys() - errors.keys():
                    if partition in self._membership.owned:
                        self._membership.owned[partition].committed = reached[partition]
            self._post(partial(done, errors))

    def serve_ends(self, consumer: Any) -> None:
        """Nobody commits what holds no record: the group would stay behind the end for ever."""
        if not self._membership.ends or time.monotonic() < self._ends_again:
            return
        with self._membership.lock:
            ends, self._membership.ends = self._membership.ends, set()
            read = {p: self._membership.reading(p) for p in ends - self._membership.lost}
            offsets = {p: h.end for p, h in read.items() if h is not None and h.read <= h.committed < h.end}
            if offsets:
                self._asked.append((offsets, self._ends_committed))
        self.serve(consumer)

    def _ends_committed(self, errors: dict[int, KafkaError]) -> None:
        if not errors:
            return
        reasons = {error.str() for error in errors.values()}
        logger.debug("end not committed", extra={"action": "commit_end", "topic": self._topic, "reason": str(reasons)})
        with self._membership.lock:
            self._membership.ends |= errors.keys()
            self._ends_again = time.monotonic() + _AGAIN_SECONDS


def _not_ours(partitions: Iterable[int]) -> dict[int, KafkaError]:
    return {p: KafkaError(KafkaError.UNKNOWN_MEMBER_ID) for p in partitions}
