"""What groups have committed, over one connection of aiokafka's that is kept.

Not with librdkafka's administration client: its OffsetFetch can end the process (SIGSEGV in `rd_kafka_cgrp_op`),
seen with a broker just started; most likely when the coordinator is loading or has moved. Next: `admin`.
"""

from __future__ import annotations

import asyncio
import time

import aiokafka.errors
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.protocol.commit import OffsetFetchRequest
from confluent_kafka import KafkaError

from walvec.contracts.errors import LogUnavailable, WalvecError
from walvec.transport.kafka.client import ANSWER_SECONDS, KafkaClient

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5
_COORDINATOR_MOVES = (
    aiokafka.errors.GroupLoadInProgressError.errno,
    aiokafka.errors.GroupCoordinatorNotAvailableError.errno,
    aiokafka.errors.NotCoordinatorForGroupError.errno,
)


class Groups:
    def __init__(self, client: KafkaClient) -> None:
        self._client = client
        self._link: AIOKafkaClient | None = None
        self._opening = asyncio.Lock()
        self._coordinators: dict[str, int] = {}
        self._closed = False

    async def committed(self, topic: str, group: str) -> dict[int, tuple[int, str]]:
        """Offset and metadata by partition, of those that have one. Raises LogUnavailable."""
        deadline = time.monotonic() + ANSWER_SECONDS
        pause = _FIRST_PAUSE
        while True:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    return await self._ask(topic, group)
            except (aiokafka.errors.KafkaError, TimeoutError, OSError) as error:
                self._coordinators.pop(group, None)
                if time.monotonic() + pause >= deadline:
                    raise self._translate(error, topic) from None
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _ask(self, topic: str, group: str) -> dict[int, tuple[int, str]]:
        link = await self._open()
        try:
            node = self._coordinators.get(group)
            if node is None:
                node = await link.coordinator_lookup(CoordinationType.GROUP, group)
                self._coordinators[group] = node
            answer = await link.send(node, OffsetFetchRequest(group, None))
        except (aiokafka.errors.KafkaError, OSError):
            await self._drop(link)
            raise
        found: dict[int, tuple[int, str]] = {}
        codes = {answer.error_code}
        for name, partitions in answer.topics:
            if name == topic:
                # librdkafka's binding commits the text with the NUL that ends it
                found = {n: (offset, (text or "").rstrip("\0")) for n, offset, text, _ in partitions if offset >= 0}
                codes |= {code for _, _, _, code in partitions}
        for code in codes - {0}:
            if code in _COORDINATOR_MOVES:
                raise aiokafka.errors.for_code(code)()
            raise self._client.translate(KafkaError(code), topic)
        return found

    async def _open(self) -> AIOKafkaClient:
        async with self._opening:
            if self._closed:
                raise LogUnavailable("The log is closed.", "Open it again.")
            if self._link is None:
                link: AIOKafkaClient = AIOKafkaClient(**self._client.reader_config())
                try:
                    await link.bootstrap()
                except BaseException:
                    await link.close()
                    raise
                self._link = link
            return self._link

    async def _drop(self, link: AIOKafkaClient) -> None:
        """It may know brokers that are gone; those who wait on it ask again, too."""
        in_use = self._link is link
        if in_use:
            self._link = None
            await link.close()

    def _translate(self, error: BaseException, topic: str) -> WalvecError:
        code = getattr(error, "errno", None)
        if isinstance(code, int) and code > 0 and code not in _COORDINATOR_MOVES:
            return self._client.translate(KafkaError(code), topic)
        return self._client.translate(KafkaError(KafkaError._TIMED_OUT), topic)

    async def close(self) -> None:
        async with self._opening:
            self._closed = True
        if self._link is not None:
            await self._drop(self._link)
