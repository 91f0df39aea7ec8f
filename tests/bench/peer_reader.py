"""walvec's reader as one program, for a rig that measures several readers beside each other.

python -m tests.bench.peer_reader --dsn URI --slot S --publication P --kafka HOST:PORT --topic T

Reads table public.bench through a slot and a publication that exist, and writes the change records of all its columns
to one topic. Reader, decoder, encoder, publisher and transport are the ones that `walvec cdc` runs; only the control
database is kept in memory, with one vector table in it. SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Sequence
from typing import Any

from cdc.reader import Reader
from cdc.stream import Stream
from tests.integration.cdc_world import CONNECTION, vector_table
from walvec.contracts.values import codec_name
from walvec.definitions.memory import MemoryControl
from walvec.definitions.model import Connection, EmbeddingProvider, SourceColumn
from walvec.runtime.settings import settings_from
from walvec.transport.open import open_log
from walvec.transport.ports import Log, Producer
from walvec.transport.records import Record, changes_topic


class OneTopic:
    """A log whose every topic is the rig's."""

    def __init__(self, log: Log, topic: str) -> None:
        self._log = log
        self._topic = topic

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def ensure_topic(self, topic: str, partitions: int | None = None) -> int:
        return await self._log.ensure_topic(self._topic, 1)

    async def topic_identity(self, topic: str) -> str:
        return await self._log.topic_identity(self._topic)

    async def end_offsets(self, topic: str) -> dict[int, int]:
        return await self._log.end_offsets(self._topic)

    def producer(self, *, backpressure: bool = False) -> Producer:
        return _Renamed(self._log.producer(backpressure=backpressure), self._topic)


class _Renamed:
    def __init__(self, producer: Producer, topic: str) -> None:
        self._producer = producer
        self._topic = topic

    async def append(self, topic: str, records: Sequence[Record]) -> None:
        await self._producer.append(self._topic, records)

    async def close(self) -> None:
        await self._producer.close()


def _column(name: str, type_oid: int, base: str) -> SourceColumn:
    return SourceColumn(name, base, type_oid, base, codec_name(base))


async def run(dsn: str, slot: str, publication: str, kafka: str, topic: str) -> None:
    class Given(Connection):
        """Its slot and publication are the rig's."""

        slot = property(lambda self: slot)  # type: ignore[assignment]
        publication = property(lambda self: publication)  # type: ignore[assignment]

    settings = settings_from({"log": {"kind": "kafka"}, "kafka": {"bootstrap_servers": kafka}})
    control, log = MemoryControl(), OneTopic(open_log(settings), topic)
    table = vector_table(
        "bench",
        key=(_column("id", 20, "bigint"),),
        columns=(_column("body", 25, "text"), _column("label", 25, "text")),
        metadata=(
            _column("id", 20, "bigint"),
            _column("price", 1700, "numeric"),
            _column("qty", 23, "integer"),
            _column("active", 16, "boolean"),
            _column("created_at", 1184, "timestamp with time zone"),
        ),
    )
    await control.definitions.put_connection(Given(CONNECTION, "src", "postgresql", "managed", dsn))
    await control.definitions.put_provider(EmbeddingProvider("prov_1", "p", "static"))
    await control.definitions.put_vector_table(table)
    assert changes_topic(table.storage_name) != topic
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await Reader(CONNECTION, control, log, settings, Stream()).run(stop)
    await log.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("dsn", "slot", "publication", "kafka", "topic"):
        parser.add_argument(f"--{name}", required=True)
    asyncio.run(run(**vars(parser.parse_args())))
