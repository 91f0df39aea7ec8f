"""The pipeline over a real broker on this machine: rates, latencies, scale-out. For `tests.bench.pipeline`."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg
from confluent_kafka import Consumer, TopicPartition

from tests.acceptance.harness import document, wait_until
from tests.bench import pipeline
from tests.bench.pipeline import Bench, Figure
from tests.bench.rows import rows
from tests.plugins import jars
from tests.plugins.kafka import KafkaCluster
from tests.plugins.machines import Machines, machines


@contextmanager
def broker() -> Iterator[KafkaCluster]:
    """One node. Raises jars.Unavailable, which the caller reports in words."""
    cluster = KafkaCluster(heap="1g", measured=True)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


def reader(b: Bench) -> list[Figure]:
    from tests.bench.reader_bench import measure

    with broker() as kafka:
        found = measure(b.server, kind="kafka", kafka=kafka.bootstrap_servers)
        size = found["topic_bytes"]
    note = f"one row costs {size:.0f} bytes in the topic (lz4); CPU of the reader {found['cpu_us']:.1f} µs/row"
    return [
        Figure("reader into Kafka, acks=all, lz4", found["walvec"], "rows/s", found["pg_recvlogical"],
               "≥ 0.45 × pg_recvlogical", note)
    ]  # fmt: skip


@contextmanager
def running(b: Bench, kafka: KafkaCluster, *roles: str, **env: str) -> Iterator[tuple[Machines, str, str]]:
    b.n += 1
    source, store = b.database(f"source{b.n}"), b.database(f"store{b.n}")
    with machines(b.directory / f"run{b.n}", dsn=store, control=store, kafka=kafka, **env) as m:
        m.start_all(*roles)
        try:
            yield m, source, store
        finally:
            for name in list(m.processes):
                m.end_one(name)
            with psycopg.connect(source, autocommit=True) as c:
                c.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active")


class Listener:
    """When each key arrived in a topic, by its own consumer thread."""

    def __init__(self, servers: str, topic: str) -> None:
        self.arrived: dict[bytes, float] = {}
        self._done = threading.Event()
        self._consumer = Consumer(
            {"bootstrap.servers": servers, "group.id": "bench", "enable.auto.commit": False, "fetch.wait.max.ms": 5}
        )
        partitions = self._consumer.list_topics(topic, timeout=10).topics[topic].partitions
        places = [TopicPartition(topic, p) for p in partitions]
        for place in places:
            place.offset = self._consumer.get_watermark_offsets(place, timeout=10)[1]
        self._consumer.assign(places)
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while not self._done.is_set():
            message = self._consumer.poll(0.1)
            if message is not None and not message.error():
                self.arrived.setdefault(message.key() or b"", time.monotonic())

    def close(self) -> None:
        self._done.set()
        self._thread.join()
        self._consumer.close()


def live(b: Bench) -> list[Figure]:
    """Commits at 20/s: until the record can be read in Kafka, and until the row is in the view."""
    data = rows()[:2000]
    logged: list[float] = []
    shown: list[float] = []
    pause = threading.Event()
    with broker() as kafka, running(b, kafka) as (m, source, store):
        pipeline.fill(source, data)
        pipeline.load(m, store, document(source, pipeline.packages()), len(data))
        topic = next(t for t in kafka.topics() if t.endswith(".changes"))
        listener = Listener(kafka.bootstrap_servers, topic)
        try:
            with psycopg.connect(source, autocommit=True) as s, psycopg.connect(store, autocommit=True) as v:
                for n in range(420):
                    due = time.monotonic() + 0.05
                    key = 1_000_000 + n
                    s.execute(
                        "INSERT INTO packages (id, summary, description) VALUES (%s, %s, 'live')", (key, f"row {n}")
                    )
                    began = time.monotonic()
                    while not v.execute("SELECT 1 FROM walvec.packages WHERE id = %s", (key,)).fetchone():
                        if time.monotonic() - began > 30:
                            raise AssertionError("a committed row did not appear within 30 s\n" + m.tail())
                        pause.wait(0.001)
                    if n >= 20:
                        shown.append((time.monotonic() - began) * 1000)
                        logged.append((listener.arrived[b'{"id":%d}' % key] - began) * 1000)
                    pause.wait(max(0, due - time.monotonic()))
        finally:
            listener.close()
    cut, seen = statistics.quantiles(logged, n=100), statistics.quantiles(shown, n=100)
    return [
        Figure("commit to record readable in Kafka at 20/s, p50", cut[49], "ms", None, "< 8 ms"),
        Figure("commit to record readable in Kafka at 20/s, p99", cut[98], "ms", None, "< 25 ms"),
        Figure("commit to view through Kafka at 20/s, p50", seen[49], "ms", None, "< 100 ms"),
        Figure("commit to view through Kafka at 20/s, p99", seen[98], "ms", None, "< 400 ms"),
    ]


_SCALE_ROWS = 30_000


def scale(b: Bench) -> list[Figure]:
    """One embedder, then two, on the same backlog of changes; a provider that answers in 50 ms, one request at a time
    per embedder, so that waiting for it is what a second embedder shortens."""
    one, two = (_drain_backlog(b, count) for count in (1, 2))
    return [Figure("two embedders, provider of 50 ms, 64 texts a request", two, "rows/s", one, "≥ 1.8 × one embedder")]


def _drain_backlog(b: Bench, embedders: int) -> float:
    data = rows()[:_SCALE_ROWS]
    data = [(*row[:6], f"{row[6]} {n}", *row[7:]) for n, row in enumerate(data)]
    with ExitStack() as stack:
        url = stack.enter_context(pipeline.openai(50, 256))
        kafka = stack.enter_context(broker())
        env = {"WALVEC_CDC__BACKFILL_MAX_BACKLOG": "1000000"}
        m, source, store = stack.enter_context(running(b, kafka, "api", "cdc", "sink", **env))
        pipeline.fill(source, data)
        provider = {
            "name": "remote", "provider": "openai", "api_key": "k", "base_url": url,
            "limits": {"max_items": 64, "max_in_flight": 1},
        }  # fmt: skip
        table = pipeline.packages("remote", embedding_model="text-embedding-3-small", embedding_dimensions=256)
        answer = m.apply(document(source, table, providers=[provider]))
        assert answer.returncode == 0, answer.stdout + answer.stderr

        def logged() -> int:
            return sum(t["records"] for t in m.ask("/v1/topics")["topics"] if t["kind"] == "changes")

        wait_until(lambda: logged() >= len(data), timeout=120, what="the backlog of changes")
        for number in range(1, embedders + 1):
            m.start_role("embedder", number)
        with psycopg.connect(store, autocommit=True) as v:
            # the clock runs between two counts, so that starting processes and joining the group are outside
            first, last = len(data) // 10, len(data)
            pipeline.wait_for_rows(v, first, time.monotonic())
            have, began = pipeline.view_count(v), time.monotonic()
            pipeline.wait_for_rows(v, last, began)
            return (last - have) / (time.monotonic() - began)


def measured(name: str, b: Bench) -> list[Figure]:
    """The figures, or one line that says why there are none."""
    try:
        return {"reader": reader, "live": live, "scale": scale}[name](b)
    except jars.Unavailable as error:
        print(f"no figures over Kafka: {error}", file=sys.stderr)
        return []
