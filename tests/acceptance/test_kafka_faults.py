"""What happens to roles on several machines and to the Kafka between them, under load and with a backfill running: the
end is equality, and no version of a row is ever followed by an older one."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql

from tests.acceptance.faults import PACED, Provider, equal, filled, provider, rows_read, status
from tests.acceptance.harness import TABLE, Workload, after, document, running, wait_until
from tests.plugins.kafka import KafkaBroker, KafkaCluster
from tests.plugins.machines import Machines, machines
from tests.plugins.postgres import PostgresDatabase

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

VIEWS = ("items", "paid")
ROWS = 12_000
SLOW, QUICK = 1.0, 0.02
"""Seconds that the provider takes: its backfill lasts as long as it is slow."""
STANDBY, TAKEN = "another process reads the slot", "partitions were taken over"


class Versions:
    """Reads the views without pause; what it finds going backwards is kept."""

    def __init__(self, store: str) -> None:
        self.store = store
        self.samples = 0
        self.backwards: list[str] = []
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        seen: dict[str, dict[int, int]] = {view: {} for view in VIEWS}
        try:
            with psycopg.connect(self.store, autocommit=True) as c:
                while not self._stop.wait(0.2):
                    for view, before in seen.items():
                        query = sql.SQL("SELECT id, source_lsn - '0/0'::pg_lsn FROM walvec.{}")
                        for key, lsn in c.execute(query.format(sql.Identifier(view))):
                            if lsn < before.get(key, 0):
                                self.backwards.append(f"{view} {key}: {lsn} after {before[key]}")
                            before[key] = int(lsn)
                    self.samples += 1
        except BaseException as e:  # noqa: BLE001 - handed to the test by stop()
            self.failure = e

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=30)
        if self.failure:
            raise self.failure


class World:
    """Two tables of one source: `items` embedded by the role itself, `paid` by a slow provider."""

    def __init__(
        self, walvec: Machines, kafka: KafkaCluster, source: PostgresDatabase, store: str, paid: Provider, seed: int
    ) -> None:
        self.walvec, self.kafka, self.source, self.store, self.paid = walvec, kafka, source, store, paid
        self.workload = Workload(source.dsn, seed=seed, truncate=False, pause=0.01)
        self.dice = random.Random(seed)

    def after(self, transactions: int) -> None:
        after(self.workload, transactions, timeout=120)

    def reads(self) -> None:
        """The backfill is in its middle, and a fault that comes now hits it."""
        assert rows_read(self.walvec, "paid") is not None, "the backfill was over too early to prove anything"

    def gets_on(self, timeout: float = 120) -> None:
        """Something committed from now on reaches the store: the fault is over."""
        key = self.dice.randrange(10**9, 2 * 10**9)
        self.source.execute("INSERT INTO items (id, title) VALUES (%s, 'a sign of life')", key)
        wait_until(lambda: self._stored(key), timeout=timeout, what="a row of now in the store")
        self.source.execute("DELETE FROM items WHERE id = %s", key)

    def _stored(self, key: int) -> bool:
        with psycopg.connect(self.store) as c:
            return c.execute("SELECT FROM walvec.items WHERE id = %s", (key,)).fetchone() is not None

    def signal(self, sent: signal.Signals, *names: str) -> None:
        for name in names:
            self.walvec.processes[name].send_signal(sent)

    def stop_in_transaction(self, sink: str) -> None:
        """SIGSTOP while the store waits for its next statement, with rows locked."""
        hangs = (
            "SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'walvec sink'"
            " AND state = 'idle in transaction' AND backend_xid IS NOT NULL"
            " AND clock_timestamp() - state_change > '0.3 s'"
        )

        def stopped() -> bool:
            self.signal(signal.SIGSTOP, sink)
            until = time.monotonic() + 0.6
            with psycopg.connect(self.store, autocommit=True) as c:
                while time.monotonic() < until:
                    if c.execute(hangs).fetchone() is not None:
                        return True
            self.signal(signal.SIGCONT, sink)
            return False

        wait_until(stopped, timeout=90, what=f"{sink} in a transaction")

    def kill(self, *names: str) -> None:
        """At once, then waited for."""
        self.signal(signal.SIGKILL, *names)
        for name in names:
            self.walvec.kill_one(name)

    def topic(self, view: str, which: str) -> str:
        found = self.walvec.ask("/v1/topics")["topics"]
        names = [t["topic"] for t in found if t["vector_table"] == view and t["topic"].endswith(f".{which}")]
        assert len(names) == 1, found
        return str(names[0])

    def group(self, view: str, role: str) -> str:
        return self.topic(view, "changes").removesuffix("changes") + role

    def members(self, group: str) -> set[str]:
        """Those that have partitions, in a group that has settled."""
        found = self.kafka.admin.describe_consumer_groups([group])[group].result(30)
        if found.state.name != "STABLE":
            return set()
        return {m.member_id for m in found.members if m.assignment.topic_partitions}

    def shared_by(self, role: str, number: int, timeout: float = 120) -> None:
        for view in VIEWS:
            group = self.group(view, role)
            wait_until(
                lambda group=group: len(self.members(group)) == number,
                timeout=timeout,
                what=f"{number} members of {group}",
            )

    def judge(self, timeout: float = 120) -> None:
        """Equal by plain SQL and by the program's own word; every role is there, and none logged a defect."""
        equal(self.walvec, self.source.dsn, self.store, VIEWS, timeout)
        for view in VIEWS:
            done = self.walvec.run("verify", view, "--json")
            assert done.returncode == 0, f"verify {view}: {done.stdout}{done.stderr}\n{self.walvec.tail()}"
        ended = {name: p.poll() for name, p in self.walvec.processes.items() if p.poll() is not None}
        assert ended == {}, self.walvec.tail()
        for path in self.walvec.directory.glob("*.log"):
            text = path.read_text(errors="replace")
            assert "Traceback" not in text, path.name + text[text.index("Traceback") - 2000 :][:6000]


Open = Callable[..., World]


@pytest.fixture
def open_world(tmp_path: Path, postgres: PostgresDatabase) -> Iterator[Open]:
    """`open_world(kafka, "cdc", "embedder", …, seed=1)`: the api and these roles (named twice: two of them), both
    tables, a backfill under way, a workload and `Versions` running until the fixture's end or `settle`."""
    contexts: list[Any] = []

    def entered(context: Any) -> Any:
        found = context.__enter__()
        contexts.append(context)
        return found

    def run(kafka: KafkaCluster, *roles: str, seed: int, **env: str) -> World:
        filled(postgres.dsn, ROWS)
        store = postgres.another()
        paid = entered(provider(latency=SLOW))
        walvec = entered(machines(tmp_path / "m", dsn=store, control=store, kafka=kafka, **PACED, **env))
        walvec.start_role("api")
        for n, role in enumerate(roles):
            walvec.start_role(role, 1 + roles[:n].count(role))
        walvec.wait_listening()
        definition = document(
            postgres.dsn, TABLE, paid.table(), providers=[paid.definition(max_items=50, max_in_flight=4)]
        )
        done = walvec.apply(definition)
        assert done.returncode == 0, done.stdout + done.stderr + walvec.tail()
        world = World(walvec, kafka, postgres, store, paid, seed)
        wait_until(lambda: rows_read(walvec, "paid"), timeout=60, what="a backfill that reads")
        return world

    yield run
    for context in reversed(contexts):
        context.__exit__(None, None, None)


@contextmanager
def loaded(world: World) -> Iterator[None]:
    """Workload and backfill around the block, with the versions watched; then equality."""
    versions = Versions(world.store)
    versions._thread.start()
    try:
        with running(world.workload):
            yield
            world.reads()
            world.paid.control(latency=QUICK)
            world.after(30)
        world.judge()
    except AssertionError as e:
        e.add_note(world.walvec.tail())
        raise
    finally:
        versions.stop()
    assert versions.backwards == []
    assert versions.samples > 10


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_machines_die_hang_and_come_back(open_world: Open, kafka: KafkaCluster, protocol: str) -> None:
    """Killed one by one and all together, ended in order, and stopped for longer than the group's patience."""
    roles = ("cdc", "cdc", "embedder", "embedder", "sink", "sink")
    world = open_world(
        kafka, *roles, seed=7, WALVEC_KAFKA__GROUP_PROTOCOL=protocol, WALVEC_SINK__PURGE_INTERVAL_SECONDS="1"
    )
    walvec = world.walvec
    with loaded(world):
        world.shared_by("embedder", 2)
        world.shared_by("sink", 2)
        one_after_another = list(walvec.processes)
        world.dice.shuffle(one_after_another)
        for name in one_after_another:
            world.after(world.dice.randrange(5, 40))
            world.kill(name)
            role, number = name.split("-")
            walvec.start_role(role, int(number))
        walvec.wait_listening()
        world.reads()

        world.after(20)
        world.kill(*walvec.processes)
        world.after(20)
        walvec.start_all("api", *roles[::2])
        world.gets_on()
        world.reads()

        # more machines, fewer machines
        for role in ("cdc", "embedder", "sink"):
            walvec.start_role(role, 2)
        world.shared_by("embedder", 2)
        world.shared_by("sink", 2)
        assert [walvec.end_one(name) for name in ("embedder-1", "sink-1", "cdc-1")] == [0, 0, 0]
        world.gets_on()
        stood_by = walvec.log_of("cdc-1").count(STANDBY)
        for role in ("cdc", "embedder", "sink"):
            walvec.start_role(role, 1)
        wait_until(lambda: walvec.log_of("cdc-1").count(STANDBY) > stood_by, what="a standby")
        world.shared_by("embedder", 2)
        world.shared_by("sink", 2)

        # a machine that hangs with work in hand, and does it when others have done it, and more, already
        hung = ("embedder-2", "sink-2", "cdc-2")
        taken = {name: walvec.log_of(name).count(TAKEN) for name in hung}
        world.stop_in_transaction("sink-2")
        world.signal(signal.SIGSTOP, *hung)
        world.source.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
            " WHERE active_pid IS NOT NULL AND database = current_database()"
        )  # as the server does itself after wal_sender_timeout
        world.shared_by("embedder", 1)
        world.shared_by("sink", 1)
        world.source.execute("DELETE FROM items WHERE id % 9 = 1")
        world.source.execute("UPDATE items SET title = 'newer than what hangs' WHERE id % 9 = 2")
        world.gets_on()
        world.signal(signal.SIGCONT, *hung)
        for name in hung[:2]:
            wait_until(
                lambda name=name: walvec.log_of(name).count(TAKEN) > taken[name],
                what=f"{name} hears that others have its partitions",
            )
        world.shared_by("embedder", 2)
        world.shared_by("sink", 2)


def test_a_cluster_loses_brokers(open_world: Open, kafka_with: Callable[..., KafkaCluster]) -> None:
    """Of three: one is killed, one hangs for 20 s while it leads, all are killed at once."""
    kafka = kafka_with(nodes=3, heap="256m")
    world = open_world(
        kafka, "cdc", "embedder", "sink", seed=8,
        WALVEC_KAFKA__REPLICATION_FACTOR="3", WALVEC_KAFKA__MIN_INSYNC_REPLICAS="2",
    )  # fmt: skip
    walvec = world.walvec
    with loaded(world):
        changes = world.topic("items", "changes")
        for end in (KafkaBroker.kill, KafkaBroker.stop):
            leader = kafka.leader(changes)
            end(leader)
            world.gets_on()
            assert kafka.leader(changes) is not leader
            world.reads()
            leader.start()
            world.after(20)

        wait_until(lambda: in_sync(kafka, changes), timeout=60, what="three copies")
        leader = kafka.leader(changes)
        leader.pause()
        world.gets_on()
        until = time.monotonic() + 20
        wait_until(lambda: time.monotonic() > until, timeout=30)
        leader.resume()
        wait_until(lambda: in_sync(kafka, changes), timeout=60, what="three copies")
        world.reads()

        kafka.kill()
        world.after(50)
        kafka.restart()
        world.gets_on()
        assert {p.poll() for p in walvec.processes.values()} == {None}


def in_sync(kafka: KafkaCluster, topic: str) -> bool:
    partitions = kafka.admin.list_topics(topic, timeout=30).topics[topic].partitions.values()
    return all(len(p.isrs) == 3 for p in partitions)


def test_hands_on_the_log(open_world: Open, kafka_with: Callable[..., KafkaCluster]) -> None:
    """Partitions grow, topics are deleted, the disk is full, groups are set back, changes are replayed."""
    kafka = kafka_with(disk_bytes=192 * 1024**2, properties={"log.segment.bytes": str(8 * 1024**2)})
    world = open_world(kafka, "cdc", "embedder", "embedder", "sink", "sink", seed=9)
    walvec = world.walvec
    with loaded(world):
        for view in VIEWS:
            for which in ("changes", "vectors"):
                kafka.grow(world.topic(view, which), 7)
                world.after(20)
        world.gets_on()

        for which in ("changes", "vectors"):
            world.reads()
            topic = world.topic("paid", which)
            kafka.delete_topic(topic)
            told = wait_until(
                lambda topic=topic: words(status(walvec, "paid"), topic), timeout=60, what=f"words of {topic}"
            )
            assert "deleted" in told
            assert "read again" in told
            printed = walvec.run("status", "paid")
            assert topic in printed.stdout, printed.stdout + printed.stderr
            wait_until(lambda topic=topic: topic in kafka.topics(), timeout=60, what="the topic anew")
            world.gets_on()

        kafka.fill_disk()
        wait_until(lambda: not ready(walvec), timeout=90, what="503 of /health/ready")
        world.after(100)
        kafka.resize_disk(512 * 1024**2)
        kafka.stop()
        kafka.restart()
        world.gets_on()
        world.reads()

        names = [name for name in walvec.processes if name.split("-")[0] in ("embedder", "sink")]
        assert [walvec.end_one(name) for name in names] == [0] * len(names)
        for view in VIEWS:
            for role, which in (("embedder", "changes"), ("sink", "vectors")):
                set_back(kafka, world.group(view, role), world.topic(view, which))
        world.after(50)
        for name in names:
            role, number = name.split("-")
            walvec.start_role(role, int(number))
        world.gets_on()
        replayed = walvec.json("replay", "items", "--from", "earliest")
        assert replayed["done"]
        assert replayed["replayed"] > 0
        world.gets_on()
    assert {p.poll() for p in walvec.processes.values()} == {None}


def words(found: Any, topic: str) -> str:
    said = str(found["last_error"] or "")
    return said if topic in said else ""


def ready(walvec: Machines) -> bool:
    return httpx.get(f"{walvec.url}/health/ready", timeout=10).status_code == 200


def set_back(kafka: KafkaCluster, group: str, topic: str) -> None:
    """By hand, with Kafka's own tool."""
    wait_until(lambda: not kafka.admin.describe_consumer_groups([group])[group].result(30).members, timeout=60)
    printed = kafka.run(
        "kafka-consumer-groups", "--group", group, "--topic", topic, "--reset-offsets", "--to-earliest", "--execute"
    )
    assert topic in printed, printed
    assert "Error" not in printed, printed
