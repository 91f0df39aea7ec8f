"""Records per second through the local log: batches of 2000 x 700 B over 4 partitions."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import orjson

from walvec.runtime.settings import LogSettings
from walvec.transport.local import open_local_log
from walvec.transport.records import Record

BATCHES, SIZE, TOPIC = 100, 2000, "walvec.bench.changes"


def batch(number: int) -> list[Record]:
    records = []
    for index in range(SIZE):
        key = orjson.dumps({"id": number * SIZE + index})
        row = {"id": number * SIZE + index, "name": f"product {index}", "description": os.urandom(150).hex()}
        value = orjson.dumps({"op": "c", "before": None, "after": row, "source": {"db": "shop", "table": "products"}})
        records.append(Record(key, value.ljust(700)))
    return records


async def main() -> None:
    batches = [batch(number) for number in range(BATCHES)]
    with tempfile.TemporaryDirectory(dir=".") as folder:
        log = open_local_log(Path(folder), LogSettings.model_validate({}))
        await log.ensure_topic(TOPIC)
        producer = log.producer()
        started = time.perf_counter()
        for at in range(0, BATCHES, 4):
            await asyncio.gather(*(producer.append(TOPIC, part) for part in batches[at : at + 4]))
        appended = time.perf_counter() - started
        consumer = log.consumer(TOPIC, "bench")
        started = time.perf_counter()
        count = 0
        while count < BATCHES * SIZE:
            fetches = await consumer.poll(max_records=2000, max_bytes=4 * 1024**2, timeout=10)
            count += sum(len(fetch.records) for fetch in fetches)
            await consumer.commit({fetch.partition: fetch.next_offset for fetch in fetches})
        polled = time.perf_counter() - started
        latencies = []
        for number in range(200):
            waiting = asyncio.ensure_future(consumer.poll(max_records=10, max_bytes=10_000, timeout=10))
            await asyncio.sleep(0)
            began = time.perf_counter()
            await producer.append(TOPIC, [batches[0][number]])
            await waiting
            latencies.append(time.perf_counter() - began)
        size = sum(entry.stat().st_size for entry in os.scandir(folder))
        await log.close()
    sys.stdout.write(
        f"appended {count / appended:,.0f} records/s, polled and committed {count / polled:,.0f} records/s, "
        f"append to poll {sorted(latencies)[100] * 1000:.1f} ms (median), files {size / 1024**2:.0f} MiB\n"
    )


if __name__ == "__main__":
    asyncio.run(main())
