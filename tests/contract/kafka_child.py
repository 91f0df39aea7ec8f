"""Another process in a group on Kafka: `kafka_child.py PROPERTIES TOPIC GROUP COMMAND`; prints one line per event."""

from __future__ import annotations

import asyncio
import json
import sys

from walvec.contracts.errors import PartitionLost
from walvec.runtime.settings import KafkaSettings
from walvec.transport.kafka import open_kafka_log


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def main(properties: str, topic: str, group: str, command: str) -> None:
    """own: polls for ever, says what it owns and reads, commits nothing. work: commits what it read.
    hang: blocks its event loop once it owns something, until a line comes; then commits."""
    log = open_kafka_log(KafkaSettings.model_validate(json.loads(properties)))

    async def revoked(partitions: frozenset[int]) -> None:
        say(f"revoked {sorted(partitions)}")

    consumer = log.consumer(topic, group, revoked)
    owned: frozenset[int] = frozenset()
    while True:
        fetches = await consumer.poll(max_records=100, max_bytes=10**6, timeout=0.05)
        if consumer.assignment() != owned:
            owned = consumer.assignment()
            say(f"owns {sorted(owned)}")
        for fetch in fetches:
            for record in fetch.records:
                say(f"read {fetch.partition} {record.offset} {record.value.decode()}")
        if command == "hang" and owned and fetches:
            say("hangs")
            sys.stdin.readline()
            try:
                await consumer.commit({f.partition: f.next_offset for f in fetches})
                say("committed")
            except PartitionLost:
                say("refused")
        if command == "work" and fetches:
            try:
                await consumer.commit({f.partition: f.next_offset for f in fetches})
            except PartitionLost as lost:
                say(f"lost {lost}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
