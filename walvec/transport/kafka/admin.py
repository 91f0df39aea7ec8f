"""Topics and groups of a cluster: made, described, deleted, moved.

Law: what exists is reported, never changed; a refusal says which command an administrator would run.
Next: `log` is the port, `producer` asks here how large a record may be.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import ConfigResource, NewTopic, OffsetSpec, ResourceType, TopicDescription

from walvec.contracts.errors import ConfigError, Conflict, LogUnavailable, NotFound, WalvecError
from walvec.transport.kafka.client import ANSWER_SECONDS, KafkaClient, kafka_error, missing
from walvec.transport.kafka.groups import Groups
from walvec.transport.kafka.sizes import Sizes
from walvec.transport.records import TopicStats

_log = logging.getLogger(__name__)

PREFIX = "walvec."
_READY_SECONDS = 30.0
_NEWS_SECONDS = 5.0
_LEADER_MOVES = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.OFFSET_NOT_AVAILABLE,
)
_WRONG = (
    KafkaError.INVALID_CONFIG,
    KafkaError.INVALID_PARTITIONS,
    KafkaError.INVALID_REQUEST,
    KafkaError.POLICY_VIOLATION,
    KafkaError.TOPIC_EXCEPTION,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What appending to a topic must know. `known`: False where the brokers do not tell, and settings were taken."""

    partitions: int
    max_bytes: int
    known: bool


class Admin:
    def __init__(self, client: KafkaClient) -> None:
        self._client = client
        self._settings = client.settings
        self._sizes = Sizes(client)
        self._groups = Groups(client)
        self._told: set[tuple[str, str]] = set()
        self._ensured: dict[str, float] = {}

    async def close(self) -> None:
        await self._groups.close()

    # ---- topics

    async def identity(self) -> str:
        """The cluster's id, asked for anew each time: so it is also a sign of life."""
        future = self._client.admin.describe_cluster(request_timeout=ANSWER_SECONDS)
        cluster = await self._client.answer(future)
        return f"kafka:{cluster.cluster_id}"

    async def ensure(self, topic: str, partitions: int | None) -> int:
        """Its number of partitions, once every one of them has a leader."""
        wanted = self._settings.partitions if partitions is None else partitions
        if wanted < 1:
            raise ValueError("a topic has at least one partition")
        try:
            found = await self._look(topic)
        except KafkaException as error:
            if kafka_error(error).code() != KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise self._client.translate(error, topic) from None
            found = None  # not to be seen: creating it tells what is missing
        if found is None:
            await self._create(topic, wanted)
        deadline = time.monotonic() + _READY_SECONDS
        pause = 0.02
        while found is None or any(p.leader is None or p.leader.id < 0 for p in found.partitions):
            if time.monotonic() > deadline:
                raise LogUnavailable(
                    f"The topic {topic} has no leader for every partition.", "Check that enough brokers run."
                )
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.5)
            found = await self.describe(topic)
        places = [(topic, p.id) for p in found.partitions]
        while True:
            try:
                await self.offsets(places, OffsetSpec.latest())
                self._ensured[topic] = time.monotonic()
                return len(places)
            except (LogUnavailable, NotFound):
                # a leader that was just chosen may not know it yet
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.5)

    async def _create(self, topic: str, partitions: int) -> None:
        config = self._config(topic)
        new = NewTopic(topic, partitions, self._settings.replication_factor, config=config)
        future = self._client.admin.create_topics([new], request_timeout=_READY_SECONDS)[topic]
        try:
            await asyncio.wrap_future(future)
        except KafkaException as error:
            code = kafka_error(error).code()
            if code == KafkaError.TOPIC_ALREADY_EXISTS:
                return  # another process was quicker
            if code in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED):
                raise LogUnavailable(
                    f"Kafka does not let walvec create the topic {topic}.",
                    f"An administrator runs: {self._command(topic, partitions, config)}\n"
                    "or lets walvec do it: kafka-acls.sh --bootstrap-server "
                    f"{self._settings.bootstrap_servers} --add --allow-principal User:<walvec's user> --operation All "
                    f"--resource-pattern-type prefixed --topic {PREFIX}",
                ) from None
            if code in _WRONG:
                raise ConfigError(
                    f"Kafka refuses to create the topic {topic}: {kafka_error(error).str()}",
                    "Correct the section `kafka` of the settings.",
                ) from None
            raise self._client.translate(error, topic) from None
        _log.info(
            "topic created",
            extra={"action": "create_topic", "topic": topic, "partitions": partitions, **_fields(config)},
        )

    def _config(self, topic: str) -> dict[str, str]:
        """What walvec asks of a topic it makes."""
        keeps = -1 if topic.endswith(".dead") else self._settings.retention_seconds
        config = {
            "cleanup.policy": "delete",
            # by the brokers' clock: records of a machine whose own is wrong would be refused, or deleted unread
            "message.timestamp.type": "LogAppendTime",
            "max.message.bytes": str(self._settings.max_record_bytes),
            "retention.ms": str(-1 if keeps < 0 else int(keeps * 1000)),
        }
        if self._settings.min_insync_replicas is not None:
            config["min.insync.replicas"] = str(self._settings.min_insync_replicas)
        return config

    def _command(self, topic: str, partitions: int, config: Mapping[str, str]) -> str:
        factor = self._settings.replication_factor
        return " ".join(
            [
                f"kafka-topics.sh --bootstrap-server {self._settings.bootstrap_servers} --create --topic {topic}",
                f"--partitions {partitions}",
                *([f"--replication-factor {factor}"] if factor > 0 else []),
                *(f"--config {name}={value}" for name, value in config.items()),
            ]
        )

    async def delete(self, topic: str) -> None:
        """Returns once no broker that is asked knows it any more."""
        self._ensured.pop(topic, None)
        future = self._client.admin.delete_topics([topic], request_timeout=_READY_SECONDS)[topic]
        try:
            await self._client.answer(future, topic)
        except NotFound:
            return
        deadline = time.monotonic() + _READY_SECONDS
        while await self.describe(topic) is not None:
            if time.monotonic() > deadline:
                raise LogUnavailable(f"Kafka has not deleted the topic {topic} yet.", "It is tried again.")
            await asyncio.sleep(0.05)

    async def describe(self, topic: str) -> TopicDescription | None:
        """None: there is no such topic."""
        try:
            return await self._look(topic)
        except KafkaException as error:
            raise self._client.translate(error, topic) from None

    async def _look(self, topic: str) -> TopicDescription | None:
        """Raises Kafka's own errors."""
        future = self._client.admin.describe_topics(TopicCollection([topic]), request_timeout=ANSWER_SECONDS)[topic]
        try:
            found: TopicDescription = await asyncio.wrap_future(future)
        except KafkaException as error:
            self._client.admin.poll(0)
            if isinstance(self._client.translate(error, topic), NotFound):
                return None
            raise
        self._client.well()
        return found

    async def found(self, topic: str) -> TopicDescription:
        """Raises NotFound."""
        description = await self.describe(topic)
        while description is None:
            # It may be news to the broker that is asked, and a topic that is missing costs a rebackfill.
            if time.monotonic() - self._ensured.get(topic, -_NEWS_SECONDS) >= _NEWS_SECONDS:
                raise missing(topic)
            await asyncio.sleep(0.1)
            description = await self.describe(topic)
        return description

    async def limits(self, topic: str) -> Limits:
        """Raises NotFound."""
        description = await self.found(topic)
        config = (await self._described([topic]))[topic]
        size = config.get("max.message.bytes")
        return Limits(
            len(description.partitions), int(size) if size else self._settings.max_record_bytes, size is not None
        )

    async def stats(self) -> list[TopicStats]:
        metadata = await self._client.call(lambda: self._client.admin.list_topics(timeout=ANSWER_SECONDS))
        names = sorted(name for name in metadata.topics if name.startswith(PREFIX))
        places = [(name, number) for name in names for number in metadata.topics[name].partitions]
        if not places:
            return []
        starts, ends, times, sizes, configs = await asyncio.gather(
            self.offsets(places, OffsetSpec.earliest()),
            self.offsets(places, OffsetSpec.latest()),
            self._times(places),
            self._sizes.of(places),
            self._described(names),
        )
        found: list[TopicStats] = []
        for name in names:
            numbers = sorted(metadata.topics[name].partitions)
            oldest = [times[name, n] for n in numbers if (name, n) in times]
            found.append(
                TopicStats(
                    topic=name,
                    partitions=len(numbers),
                    start_offsets={n: starts[name, n] for n in numbers},
                    end_offsets={n: ends[name, n] for n in numbers},
                    bytes=sizes.get(name, 0),
                    oldest_ms=min(oldest, default=None),
                    differences=self._differences(name, len(numbers), configs[name]),
                )
            )
        return found

    async def differences(self, topic: str, partitions: int) -> tuple[str, ...]:
        """What an existing topic is not, although the settings say so; told in the log once."""
        return self._differences(topic, partitions, (await self._described([topic]))[topic])

    def _differences(self, topic: str, partitions: int, config: Mapping[str, str]) -> tuple[str, ...]:
        found: list[str] = []
        if partitions < self._settings.partitions:
            found.append(f"it has {partitions} partitions; kafka.partitions is {self._settings.partitions}")
        for name, wanted in self._config(topic).items():
            if name in config and config[name] != wanted:
                found.append(f"{name} is {config[name]}; walvec is set to make it {wanted}")
        for difference in found:
            if (topic, difference) not in self._told:
                self._told.add((topic, difference))
                _log.warning(
                    "topic has other settings",
                    extra={"action": "topic_differs", "topic": topic, "reason": difference},
                )
        return tuple(found)

    async def _described(self, topics: Iterable[str]) -> dict[str, dict[str, str]]:
        """The topics' settings, in one request; empty where the right to see them is missing."""
        asked = [ConfigResource(ResourceType.TOPIC, topic) for topic in topics]
        futures = self._client.admin.describe_configs(asked, request_timeout=ANSWER_SECONDS)
        found: dict[str, dict[str, str]] = {}
        for resource, future in futures.items():
            topic = str(resource.name)
            try:
                entries = await asyncio.wrap_future(future)
            except KafkaException as error:
                if kafka_error(error).code() != KafkaError.TOPIC_AUTHORIZATION_FAILED:
                    raise self._client.translate(error, topic) from None
                entries = {}
            found[topic] = {name: entry.value for name, entry in entries.items() if entry.value is not None}
        return found

    # ---- offsets

    async def numbers(self, topic: str) -> list[int]:
        """The topic's partitions. Raises NotFound."""
        return [partition.id for partition in (await self.found(topic)).partitions]

    async def offsets(self, places: Iterable[tuple[str, int]], spec: OffsetSpec) -> dict[tuple[str, int], int]:
        """Offsets by topic and partition. Raises NotFound."""
        return {place: offset for place, (offset, _) in (await self._list(places, spec)).items()}

    async def _times(self, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """Milliseconds since 1970 of the oldest record, for partitions that have one."""
        found = await self._list(places, OffsetSpec.for_timestamp(0))
        return {place: at for place, (offset, at) in found.items() if offset >= 0 and at >= 0}

    async def _list(
        self, places: Iterable[tuple[str, int]], spec: OffsetSpec
    ) -> dict[tuple[str, int], tuple[int, int]]:
        left = set(places)
        found: dict[tuple[str, int], tuple[int, int]] = {}
        deadline = time.monotonic() + ANSWER_SECONDS
        while left:
            asked = {TopicPartition(topic, number): spec for topic, number in left}
            futures = self._client.admin.list_offsets(
                asked, request_timeout=ANSWER_SECONDS, isolation_level=IsolationLevel.READ_COMMITTED
            )
            failures: list[tuple[KafkaError, str]] = []
            for place, future in futures.items():
                try:
                    result = await asyncio.wrap_future(future)
                except KafkaException as error:
                    failures.append((kafka_error(error), place.topic))
                    continue
                found[place.topic, place.partition] = (result.offset, result.timestamp)
                left.discard((place.topic, place.partition))
            for failure, topic in failures:
                if failure.code() not in _LEADER_MOVES or time.monotonic() > deadline:
                    raise self._client.translate(failure, topic)
            if left:
                await asyncio.sleep(0.05)
        return found

    async def committed(self, topic: str, group: str) -> dict[int, int]:
        """A place below what is kept, and 0 where a member would start although the records there are gone, stay what
        they are: until a member has heard of the loss, nobody may take the group for drained. So does 0 for a commit
        beyond the end, or of another topic of this name."""
        description = await self.found(topic)
        commits = await self._groups.committed(topic, group)
        numbers = [partition.id for partition in description.partitions]
        # after the commits, which are never ahead of them then
        ends = await self.offsets([(topic, n) for n in numbers], OffsetSpec.latest())
        identities = ("", str(description.topic_id))
        stored = {n: offset for n, (offset, identity) in commits.items() if identity in identities}
        return {n: at if 0 <= (at := stored.get(n, 0)) <= ends[topic, n] else 0 for n in numbers}

    async def reset(self, topic: str, group: str, offsets: Mapping[int, int]) -> None:
        """Moves a group that has no member. Raises Conflict, NotFound."""
        numbers = await self.numbers(topic)
        for partition in offsets:
            if partition not in numbers:
                raise NotFound(
                    f"Topic {topic} has no partition {partition}.", f"It has {len(numbers)}, counted from 0."
                )
        if not offsets:
            return
        places = [(topic, n) for n in offsets]
        starts = await self.offsets(places, OffsetSpec.earliest())
        ends = await self.offsets(places, OffsetSpec.latest())
        places_to_be = [
            TopicPartition(topic, n, min(max(offset, starts[topic, n]), ends[topic, n]))
            for n, offset in offsets.items()
        ]
        future = self._client.admin.alter_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(group, places_to_be)], request_timeout=ANSWER_SECONDS
        )[group]
        try:
            answer = await asyncio.wrap_future(future)
        except KafkaException as error:
            raise self._refused(error, topic, group) from None
        for place in answer.topic_partitions:
            if place.error is not None:
                raise self._refused(place.error, topic, group)

    async def delete_group(self, group: str) -> None:
        """One that is not there is no error. Raises Conflict while it has members."""
        future = self._client.admin.delete_consumer_groups([group], request_timeout=ANSWER_SECONDS)[group]
        try:
            await asyncio.wrap_future(future)
        except KafkaException as error:
            code = kafka_error(error).code()
            if code == KafkaError.GROUP_ID_NOT_FOUND:
                return
            if code == KafkaError.NON_EMPTY_GROUP:
                raise Conflict(
                    f"The group {group} has members yet.", "It is deleted once they have heard that it is not wanted."
                ) from None
            raise self._client.translate(error) from None

    def _refused(self, error: Any, topic: str, group: str) -> WalvecError:
        if kafka_error(error).code() in (KafkaError.UNKNOWN_MEMBER_ID, KafkaError.NON_EMPTY_GROUP):
            return Conflict(
                f"The group {group} has members, and Kafka moves only groups without.",
                "Stop them first (pause the vector table, or stop the role), or use `walvec replay`: it needs none.",
            )
        return self._client.translate(error, topic)


def _fields(config: Mapping[str, str]) -> dict[str, str]:
    return {name.replace(".", "_"): value for name, value in config.items()}
