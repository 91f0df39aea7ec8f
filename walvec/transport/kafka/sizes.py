"""How much disk topics take, as the brokers say (DescribeLogDirs): one copy of each partition, the largest.

Neither client has this request, so it is spelled here in aiokafka's words. Next: `admin`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection, Iterable

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Int64, Schema, String

from walvec.transport.kafka.client import ANSWER_SECONDS, KafkaClient

_log = logging.getLogger(__name__)


class _Answer(Response):  # type: ignore[misc]
    API_KEY = 35
    API_VERSION = 1
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "directories",
            Array(
                ("error_code", Int16),
                ("directory", String("utf-8")),
                (
                    "topics",
                    Array(
                        ("topic", String("utf-8")),
                        (
                            "partitions",
                            Array(("partition", Int32), ("size", Int64), ("lag", Int64), ("future", Boolean)),
                        ),
                    ),
                ),
            ),
        ),
    )


class _Question(RequestStruct):  # type: ignore[misc]
    API_KEY = 35
    API_VERSION = 1
    RESPONSE_TYPE = _Answer
    SCHEMA = Schema(("topics", Array(("topic", String("utf-8")), ("partitions", Array(Int32)))))


class _Describe(Request[_Question]):  # type: ignore[misc]
    API_KEY = 35

    def __init__(self, places: Iterable[tuple[str, int]]) -> None:
        asked: defaultdict[str, list[int]] = defaultdict(list)
        for topic, partition in places:
            asked[topic].append(partition)
        self._asked = list(asked.items())

    def build(self, request_struct_class: type[_Question]) -> _Question:
        return request_struct_class(self._asked)


class Sizes:
    def __init__(self, client: KafkaClient) -> None:
        self._client = client
        self._refused = False

    async def of(self, places: Collection[tuple[str, int]]) -> dict[str, int]:
        """Bytes on disk by topic, of those partitions; empty where the brokers do not tell (it needs the right to
        describe the cluster)."""
        link = AIOKafkaClient(**self._client.reader_config())
        largest: dict[tuple[str, int], int] = {}
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await link.bootstrap()
                answers = await asyncio.gather(
                    *(link.send(broker.nodeId, _Describe(places)) for broker in link.cluster.brokers())
                )
        except (KafkaError, TimeoutError, OSError, NotImplementedError) as error:
            self._complain(type(error).__name__)
            return {}
        finally:
            await link.close()
        for answer in answers:
            if not answer.directories:
                self._complain("no right to describe the cluster")
            for _, _, found in answer.directories:
                for topic, partitions in found:
                    for number, size, _, future in partitions:
                        if not future:
                            largest[topic, number] = max(size, largest.get((topic, number), 0))
        sizes = dict.fromkeys((topic for topic, _ in places), 0)
        for (topic, _), size in largest.items():
            sizes[topic] += size
        return sizes

    def _complain(self, reason: str) -> None:
        if not self._refused:
            self._refused = True
            _log.warning("sizes of topics are not known", extra={"action": "topic_sizes_unknown", "reason": reason})
