"""What a group's protocol wants of its members, and what Kafka's errors mean to one: data.

Next: `fetcher` and `consumer`, which act on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from confluent_kafka import KafkaError

GroupProtocol = Literal["classic", "consumer"]

_CLASSIC = {
    "session.timeout.ms": 6000,
    "heartbeat.interval.ms": 1500,
    "partition.assignment.strategy": "cooperative-sticky",
}

LOST = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._LOG_TRUNCATION}
"""Records are gone that were not read."""
NO_TOPIC = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.UNKNOWN_TOPIC_ID,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
}
NO_PROTOCOL = {
    KafkaError.UNSUPPORTED_VERSION,
    KafkaError._UNSUPPORTED_FEATURE,
    KafkaError.INCONSISTENT_GROUP_PROTOCOL,
    KafkaError.GROUP_ID_NOT_FOUND,
}
"""The brokers don't offer it. The last is how a coordinator refuses to take a group of the older protocol over."""
PASSING = {
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError._MAX_POLL_EXCEEDED,
}
"""What ends by itself: librdkafka connects again, finds the leader, joins again."""
EVICTED = {
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.FENCED_MEMBER_EPOCH,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError._FENCED,
    *NO_TOPIC,
}
"""Of a commit: the partition is not this member's any more."""
IN_BETWEEN = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.STALE_MEMBER_EPOCH,
    KafkaError.REBALANCE_IN_PROGRESS,
}
"""A rebalance is under way: soon the partition is either lost or the commit is taken."""


def wanted(setting: Literal["auto", "classic", "consumer"]) -> tuple[GroupProtocol, ...]:
    """What is tried, in this order."""
    return ("consumer", "classic") if setting == "auto" else (setting,)


def with_protocol(protocol: GroupProtocol, properties: Mapping[str, Any]) -> dict[str, Any]:
    """What clients decide with one protocol, the brokers decide with the other, which refuses these properties."""
    if protocol == "consumer":
        return {**{k: v for k, v in properties.items() if k not in _CLASSIC}, "group.protocol": "consumer"}
    return {
        **_CLASSIC,
        **properties,
        "group.protocol": "classic",
        "partition.assignment.strategy": "cooperative-sticky",
    }
