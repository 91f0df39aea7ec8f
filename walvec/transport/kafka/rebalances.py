"""Partitions come and go: librdkafka's callbacks, called within the thread's `poll`, into plain state.

A revocation is handed to the event loop and waited for, for a bounded time; commits are served meanwhile. Law: no user
code is called here. Next: `fetcher` polls, `consumer` does what must be done before partitions go.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from walvec.transport.kafka.commits import Commits
from walvec.transport.kafka.membership import Membership

logger = logging.getLogger(__name__)

_ASK_SECONDS = 10.0
_ASK_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. `hang`: the event loop gives no sign of life, and the thread stops polling so that the group takes the
    partitions away. `pick_up`, `revoke`: until a poll begins, and ends, what must be done before partitions go."""

    hang: float = 10.0
    pick_up: float = 5.0
    revoke: float = 20.0


class Rebalances:
    """`failed` hears when nobody says where to start; `changed` whenever there is something new to see."""

    def __init__(
        self,
        topic: str,
        topic_identity: str,
        membership: Membership,
        commits: Commits,
        patience: Patience,
        *,
        failed: Callable[[KafkaError], None],
        changed: Callable[[], None],
    ) -> None:
        self._topic = topic
        self._topic_identity = topic_identity
        self._membership = membership
        self._commits = commits
        self._patience = patience
        self._failed = failed
        self._changed = changed

    def on_assign(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        numbers = [place.partition for place in partitions]
        starts = self._starts(consumer, numbers)
        if starts is None:
            consumer.incremental_assign([])
            return
        consumer.incremental_assign(
            [
                TopicPartition(self._topic, p, offset, "", *((epoch,) if epoch is not None and epoch >= 0 else ()))
                for p, (offset, epoch) in starts.items()
            ]
        )
        self._membership.assigned({p: offset for p, (offset, _) in starts.items()})
        logger.info(
            "partitions assigned",
            extra={"action": "partitions_assigned", "topic": self._topic, "partitions": sorted(numbers)},
        )
        self._changed()

    def _starts(self, consumer: Any, partitions: list[int]) -> dict[int, tuple[int, int | None]] | None:
        """Offset and leader epoch to start at. A commit that was made for another topic of this name counts for
        nothing. None: nobody answered, and `failed` has heard."""
        if not partitions:
            return {}
        error = KafkaError(KafkaError._TIMED_OUT)
        for _ in range(_ASK_ATTEMPTS):
            try:
                found = consumer.committed([TopicPartition(self._topic, p) for p in partitions], timeout=_ASK_SECONDS)
            except KafkaException as e:
                error = e.args[0]
                continue
            if bad := next((place.error for place in found if place.error is not None), None):
                error = bad
                continue
            return {
                place.partition: (place.offset, place.leader_epoch)
                if place.offset >= 0 and place.metadata in (None, "", self._topic_identity)
                else (0, None)
                for place in found
            }
        self._failed(error)
        return None

    def on_revoke(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        member = self._membership
        gone = frozenset(place.partition for place in partitions)
        with member.lock:
            asked = gone & frozenset(member.owned)
            if asked and not member.closing:
                member.revoking, member.taken_up = asked, False
        self._changed()
        self._wait_for_release(consumer)
        with member.lock:
            if member.revoking and not member.taken_up:
                member.lost |= member.revoking  # nobody polls: told afterwards
            member.revoking = frozenset()
            member.forget(gone)
        consumer.incremental_unassign(partitions)
        self._changed()

    def _wait_for_release(self, consumer: Any) -> None:
        member = self._membership
        began = time.monotonic()
        while True:
            self._commits.serve(consumer)
            with member.lock:
                limit = self._patience.revoke if member.taken_up else self._patience.pick_up
                left = began + limit - time.monotonic()
                if not member.revoking or left <= 0:
                    return
                taken_up = member.taken_up
                member.lock.wait_for(
                    lambda: not member.revoking or self._commits.waiting or member.taken_up != taken_up,  # noqa: B023
                    left,
                )

    def on_lost(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        member = self._membership
        gone = frozenset(place.partition for place in partitions)
        with member.lock:
            member.lost |= gone & frozenset(member.owned)
            member.forget(gone)
        consumer.incremental_unassign(partitions)
        logger.warning(
            "partitions were taken over",
            extra={"action": "partitions_lost", "topic": self._topic, "partitions": sorted(gone)},
        )
        self._changed()
