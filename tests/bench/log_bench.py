"""What the log costs: `log_bench.py --log local|kafka`, batches of 2000 changes as `cdc` writes them, 4 partitions.

Kafka is a broker of its own on the same machine, or the one that `--bootstrap` names.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.plugins.kafka import started
from walvec.runtime.settings import KafkaSettings, LogSettings
from walvec.transport.kafka import open_kafka_log
from walvec.transport.local import open_local_log
from walvec.transport.ports import Log
from walvec.transport.records import Record

SIZE, TOPIC = 2000, "walvec.bench.changes"
_WORDS = [os.urandom(4).hex() for _ in range(3000)]


def batch(number: int) -> list[Record]:
    chance = random.Random(number)
    records = []
    for at in range(number * SIZE, (number + 1) * SIZE):
        key = b'{"id":%d}' % at
        row = {"id": at, "name": f"product {at}", "description": " ".join(chance.choices(_WORDS, k=20))}
        lsn = 123_456_789 + 200 * at
        value = {
            "op": "c",
            "before": None,
            "after": row,
            "source": {"db": "shop", "schema": "public", "table": "products", "lsn": lsn, "ts_ms": 1_700_000_000_000},
            "ts_ms": 1_700_000_000_000,
            "walvec": {"v": 1, "position": [0, lsn, at % 500], "generation": 1},
        }
        headers = (
            ("content-type", b"application/json"),
            ("walvec-schema", b"1"),
            ("traceparent", b"00-%016x%016x-%016x-01" % (0, lsn, at % 500)),
        )
        records.append(Record(key, orjson.dumps(value), None, headers))
    return records


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextlib.asynccontextmanager
async def opened(kind: str, bootstrap: str | None) -> AsyncIterator[Log]:
    with contextlib.ExitStack() as stack:
        if kind == "local":
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir="."))
            log: Any = open_local_log(Path(folder), LogSettings.model_validate({}))
        else:
            servers = bootstrap or stack.enter_context(started()).bootstrap_servers
            log = open_kafka_log(KafkaSettings.model_validate({"bootstrap_servers": servers, "partitions": 4}))
        try:
            yield log
        finally:
            await log.close()


async def main(kind: str, bootstrap: str | None, batches: int) -> None:
    work = [batch(number) for number in range(batches)]
    count = batches * SIZE
    async with opened(kind, bootstrap) as log:
        await log.delete_topic(TOPIC)
        await log.ensure_topic(TOPIC)
        producer = log.producer()
        await producer.append(TOPIC, work[0][:1])
        cpu, started_at = cpu_seconds(), time.perf_counter()
        for at in range(0, batches, 4):
            await asyncio.gather(*(producer.append(TOPIC, part) for part in work[at : at + 4]))
        seconds, cpu = time.perf_counter() - started_at, cpu_seconds() - cpu
        stats = next(stats for stats in await log.topics() if stats.topic == TOPIC)
        size = sum(len(record.value) for record in work[0]) / SIZE
        print(
            f"append: {count / seconds:,.0f} records/s, {cpu / count * 1e6:.2f} µs CPU per record, "
            f"{stats.bytes / count:.0f} bytes in the topic per record (value {size:.0f})"
        )
        cpu, started_at, seen = cpu_seconds(), time.perf_counter(), 0
        for partition in range(stats.partitions):
            async for _ in log.read(TOPIC, partition, 0):
                seen += 1
        seconds, cpu = time.perf_counter() - started_at, cpu_seconds() - cpu
        print(f"read:   {seen / seconds:,.0f} records/s, {cpu / seen * 1e6:.2f} µs CPU per record")
        consumer = log.consumer(TOPIC, "walvec.bench.embedder")
        cpu, started_at, polled = cpu_seconds(), time.perf_counter(), 0
        while polled < seen:
            fetches = await consumer.poll(max_records=2000, max_bytes=4 * 1024**2, timeout=10)
            polled += sum(len(fetch.records) for fetch in fetches)
            await consumer.commit({fetch.partition: fetch.next_offset for fetch in fetches})
        seconds, cpu = time.perf_counter() - started_at, cpu_seconds() - cpu
        print(f"poll and commit: {polled / seconds:,.0f} records/s, {cpu / polled * 1e6:.2f} µs CPU per record")
        acknowledged, visible, short = [], [], []
        for number in range(100):
            waiting = asyncio.ensure_future(consumer.poll(max_records=10, max_bytes=10_000, timeout=10))
            await asyncio.sleep(0.05)
            began = time.perf_counter()
            await producer.append(TOPIC, [work[0][number]])
            acknowledged.append(time.perf_counter() - began)
            await waiting
            visible.append(time.perf_counter() - began)
            began = time.perf_counter()
            records = log.read(TOPIC, number % stats.partitions, number)
            await anext(records)
            await records.aclose()  # type: ignore[attr-defined]
            short.append(time.perf_counter() - began)
        for name, found in (("acknowledged", acknowledged), ("polled", visible), ("one record read", short)):
            found.sort()
            print(f"at 20/s, {name}: p50 {found[50] * 1000:.1f} ms, p99 {found[98] * 1000:.1f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", choices=["local", "kafka"], default="local")
    parser.add_argument("--bootstrap")
    parser.add_argument("--batches", type=int, default=100)
    options = parser.parse_args()
    asyncio.run(main(options.log, options.bootstrap, options.batches))
