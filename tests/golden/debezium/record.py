"""Records the samples beside this file through the real connector: `python -m tests.golden.debezium.record [NAME…]`.

Each scenario has a database, a worker and topics of its own. `<name>.jsonl` holds every record of its topics, one per
line, by topic, partition and offset; `<name>.tables.json` the tables as they were at the end, every value as Postgres
prints it. Needs Java and Maven (see tests/plugins/jars.py).
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from confluent_kafka import Consumer, TopicPartition
from psycopg import sql

from tests.golden.debezium import tables
from tests.plugins import kafka as broker
from tests.plugins import postgres as server
from tests.plugins import postgres15, processes
from tests.plugins.connect import STRING, DebeziumConnect

HERE = Path(__file__).parent
MARKER = "public.marker"
Steps = Callable[["World"], None]


@dataclass(frozen=True)
class Scenario:
    """`before` runs ahead of the connector (its rows are the snapshot), `steps` while it streams.

    `packaged`: on PostgreSQL 15 as the distribution has it, with the extensions that come along.
    """

    before: str
    steps: Steps | str
    tables: tuple[str, ...] = ("public.docs",)
    options: Mapping[str, str] = field(default_factory=dict)
    schemas: bool = False
    worker: Mapping[str, str] = field(default_factory=dict)
    packaged: bool = False


class World:
    """What the steps of one scenario can do."""

    def __init__(self, dsn: str, kafka: broker.KafkaCluster, connect: DebeziumConnect) -> None:
        self.dsn = dsn
        self.connect = connect
        self._kafka = kafka
        self._marks = 0

    def execute(self, script: str) -> None:
        """Statements, each a transaction of its own; BEGIN and COMMIT hold some together."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for statement in script.split(";\n"):
                if statement.strip():
                    connection.execute(statement)  # type: ignore[call-overload]

    def settled(self) -> None:
        """Until everything that has been committed so far lies in the topics."""
        self._marks += 1
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("INSERT INTO marker VALUES (%s)", (self._marks,))
        wanted = f'"id":{self._marks}'.encode()
        marker = self.connect.topic(MARKER)
        self.connect.wait(
            lambda: any(wanted in value for value in (v for _, v in self._keys_and_values(marker)) if value)
        )
        before, now = -1, len(self.records())
        while before != now:  # the producer may still hold records of other topics
            time.sleep(0.3)
            before, now = now, len(self.records())

    def records(self) -> list[dict[str, Any]]:
        """All records of the connector's topics but the marker's, in order."""
        names = sorted(t for t in self._kafka.topics() if not t.startswith("__consumer"))
        mine = (t for t in names if self.connect.prefix in t and t != self.connect.topic(MARKER))
        return [line for topic in mine for line in self._read(topic)]

    def _keys_and_values(self, topic: str) -> list[tuple[bytes | None, bytes | None]]:
        return [(m.key(), m.value()) for m in self._messages(topic)]

    def _read(self, topic: str) -> Iterator[dict[str, Any]]:
        for message in self._messages(topic):
            yield {
                "topic": topic,
                "partition": message.partition(),
                "offset": message.offset(),
                "timestamp": message.timestamp()[1],
                **_readable("key", message.key()),
                **_readable("value", message.value()),
                "headers": [
                    [name, None if value is None else value.decode()] for name, value in message.headers() or []
                ],
            }

    def _messages(self, topic: str) -> list[Any]:
        consumer = Consumer(
            {"bootstrap.servers": self._kafka.bootstrap_servers, "group.id": "recorder", "log_level": 0}
        )
        found: list[Any] = []
        try:
            described = consumer.list_topics(topic, timeout=20).topics[topic]
            for partition in sorted(described.partitions):
                place = TopicPartition(topic, partition, 0)
                low, high = consumer.get_watermark_offsets(place, timeout=20)
                place.offset = low
                consumer.assign([place])
                got = 0
                while got < high - low:
                    for message in consumer.consume(high - low - got, 5):
                        assert message.error() is None, message.error()
                        found.append(message)
                        got += 1
        finally:
            consumer.close()
        return found


def _readable(name: str, data: bytes | None) -> dict[str, str | None]:
    try:
        return {name: None if data is None else data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data or b"").decode()}


def _tables(dsn: str, names: tuple[str, ...]) -> dict[str, list[dict[str, str | None]]]:
    found = {}
    with psycopg.connect(dsn, autocommit=True) as connection:
        for name in names:
            query = sql.SQL("SELECT * FROM {}").format(sql.Identifier(*name.split(".")))
            columns = [c.name for c in connection.execute(query).description or []]
            texts = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(c)) for c in columns)
            rows = connection.execute(
                sql.SQL("SELECT {} FROM {} ORDER BY 1, 2").format(texts, sql.Identifier(*name.split(".")))
            )
            found[name] = [dict(zip(columns, row, strict=True)) for row in rows]
    return found


@contextmanager
def _packaged() -> Iterator[postgres15.OlderServer]:
    directory = processes.directory("walvec-golden15-")
    programs = next(Path(p) for p in postgres15.PLACES if (Path(p) / "postgres").is_file())
    older = postgres15.OlderServer(programs, directory)
    try:
        older.start()
        yield older
    finally:
        older.stop()


@contextmanager
def _world(name: str, scenario: Scenario, dsn_of: Callable[[str], str], kafka: broker.KafkaCluster) -> Iterator[World]:
    with psycopg.connect(dsn_of("postgres"), autocommit=True) as connection:
        template = "template0" if scenario.packaged else server.TEMPLATE
        made = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        connection.execute(made.format(sql.Identifier(name), sql.Identifier(template)))
    dsn = dsn_of(name)
    options = {"skipped.operations": "none", **scenario.options}
    connect = DebeziumConnect(
        dsn, kafka, name, [*scenario.tables, MARKER], options, schemas=scenario.schemas, worker=scenario.worker
    )
    world = World(dsn, kafka, connect)
    world.execute("CREATE TABLE marker (id int PRIMARY KEY);\n" + scenario.before)
    with connect:
        yield world


def record(name: str, scenario: Scenario, dsn_of: Callable[[str], str], kafka: broker.KafkaCluster) -> int:
    """The number of records. `dsn_of`: the connection string of a database."""
    with _world(name, scenario, dsn_of, kafka) as world:
        if isinstance(scenario.steps, str):
            world.execute(scenario.steps)
        else:
            scenario.steps(world)
        world.settled()
        records = world.records()
        held = _tables(world.dsn, scenario.tables)
    lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in records)
    (HERE / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    (HERE / f"{name}.tables.json").write_text(json.dumps(held, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return len(records)


def _redelivery(world: World) -> None:
    """Kill -9 with the offsets of a while ago, then an orderly restart."""
    world.connect.stop()  # writes the offsets: from here on a kill delivers again
    world.connect.start()
    world.execute("INSERT INTO docs VALUES (10, 'ten', 'ten', 1);\nUPDATE docs SET title = 'ten again' WHERE id = 10")
    world.execute("DELETE FROM docs WHERE id = 3;\nUPDATE docs SET id = 11 WHERE id = 10")
    world.settled()
    world.connect.kill()
    world.execute("UPDATE docs SET title = 'nobody reads' WHERE id = 11;\nDELETE FROM docs WHERE id = 2")
    world.connect.start()
    world.settled()
    world.connect.stop()
    world.execute("UPDATE docs SET title = 'stopped in order' WHERE id = 11")
    world.connect.start()


def _snapshot_again(world: World) -> None:
    """The connector's offsets are lost, and rows are deleted meanwhile; at the end the table is empty."""
    world.execute("INSERT INTO docs VALUES (10, 'ten', 'ten', 1);\nUPDATE docs SET title = 'ten again' WHERE id = 10")
    world.settled()
    world.connect.kill()
    world.connect.forget_offsets()
    world.execute("UPDATE docs SET title = 'ten, nobody reads' WHERE id = 10;\nDELETE FROM docs WHERE id = 2")
    world.connect.start()
    world.execute("UPDATE docs SET title = 'ten, after the second snapshot' WHERE id = 10")
    world.settled()
    world.connect.stop()
    world.connect.forget_offsets()
    world.execute("DELETE FROM docs")
    world.connect.start()
    world.execute("INSERT INTO docs VALUES (12, 'twelve', 'after a snapshot of no row', 1)")


def _incremental(world: World) -> None:
    """Ad-hoc snapshots by signal, with changes between the chunks; then a blocking one."""
    what = '{{"data-collections": ["public.docs"], "type": "{1}"}}'
    signal = f"INSERT INTO signals VALUES ('{{0}}', 'execute-snapshot', '{what}')"
    world.execute("UPDATE docs SET title = 'before the signal' WHERE id = 1")
    world.execute(
        signal.format("i", "incremental")
        + ";\nUPDATE docs SET title = 'after the signal' WHERE id = 2;\nDELETE FROM docs WHERE id = 3;\n"
        "INSERT INTO docs VALUES (20, 'new meanwhile', 'b', 1)"
    )
    world.settled()
    world.connect.wait(lambda: _closed(world, 3))
    world.execute("UPDATE docs SET title = 'after the incremental' WHERE id = 1")
    world.settled()
    before = _read_by_snapshots(world)
    world.execute(signal.format("b", "blocking"))
    world.connect.wait(lambda: _read_by_snapshots(world) >= before + 3)
    world.settled()
    world.execute("UPDATE docs SET title = 'after the blocking' WHERE id = 1")


def _read_by_snapshots(world: World) -> int:
    return sum('"op":"r"' in (record["value"] or "") for record in world.records())


def _closed(world: World, chunks: int) -> bool:
    with psycopg.connect(world.dsn, autocommit=True) as connection:
        found = connection.execute("SELECT count(*) FROM signals WHERE type = 'snapshot-window-close'").fetchone()
    return found is not None and found[0] >= chunks


def _transactions(world: World) -> None:
    """A long transaction around a short one: commits, and so the topic, are not in the order of the changes' LSNs."""
    with psycopg.connect(world.dsn) as long, psycopg.connect(world.dsn, autocommit=True) as short:
        long.execute("INSERT INTO docs VALUES (100, 'long, first', 'b', 1)")
        short.execute("INSERT INTO docs VALUES (200, 'short', 'b', 1)")
        short.execute("UPDATE docs SET title = 'short again' WHERE id = 1")
        with short.cursor().copy("COPY docs (id, title) FROM STDIN") as rows:  # one WAL record for several rows
            for number in range(300, 304):
                rows.write_row((number, "copied"))
        long.execute("UPDATE docs SET title = 'long' WHERE id = 2")
        long.execute("UPDATE docs SET title = 'long, twice' WHERE id = 2")
        long.commit()
    world.execute("UPDATE docs SET title = 'afterwards' WHERE id = 1")


def _long_transaction(world: World) -> None:
    """Changes made before a snapshot and committed after it: it has not seen them, and their LSN is below its own."""
    signal = """INSERT INTO signals VALUES ('{0}', 'execute-snapshot',
        '{{"data-collections": ["public.docs"], "type": "{0}"}}')"""
    with psycopg.connect(world.dsn) as long:
        long.execute("UPDATE docs SET title = 'before the incremental, committed after it' WHERE id = 1")
        world.execute(signal.format("incremental"))
        world.connect.wait(lambda: _closed(world, 1))
        world.settled()
    world.settled()
    with psycopg.connect(world.dsn) as long:
        long.execute("UPDATE docs SET title = 'before the blocking, committed after it' WHERE id = 2")
        before = _read_by_snapshots(world)
        world.execute(signal.format("blocking"))
        world.connect.wait(lambda: _read_by_snapshots(world) >= before + 3)
        world.settled()
    world.settled()
    world.connect.stop()
    world.connect.forget_offsets()
    with psycopg.connect(world.dsn) as long:
        long.execute("UPDATE docs SET title = 'before the second initial, committed after it' WHERE id = 3")
        world.execute("UPDATE docs SET title = 'in the second initial' WHERE id = 2")
        world.connect.start()
    world.execute("UPDATE docs SET title = 'last' WHERE id = 1")


SCENARIOS: dict[str, Scenario] = {
    "plain": Scenario(tables.DOCS, tables.WORKLOAD),
    "schema": Scenario(tables.DOCS, tables.WORKLOAD, schemas=True),
    "full": Scenario(tables.DOCS + "ALTER TABLE docs REPLICA IDENTITY FULL;\n", tables.WORKLOAD),
    "keys": Scenario(tables.KEYS, tables.KEYS_STREAMED, tables.KEYS_TABLES),
    "keys_schema": Scenario(tables.KEYS, tables.KEYS_STREAMED, tables.KEYS_TABLES, schemas=True),
    "redelivery": Scenario(tables.DOCS, _redelivery, worker={"offset.flush.interval.ms": "600000"}),
    "snapshot_again": Scenario(tables.DOCS, _snapshot_again),
    "incremental": Scenario(
        tables.DOCS + "CREATE TABLE signals (id varchar(64) PRIMARY KEY, type varchar(32), data text);\n",
        _incremental,
        options={"signal.data.collection": "public.signals", "incremental.snapshot.chunk.size": "1"},
    ),
    "long_transaction": Scenario(
        tables.DOCS + "CREATE TABLE signals (id varchar(64) PRIMARY KEY, type varchar(32), data text);\n",
        _long_transaction,
        options={"signal.data.collection": "public.signals"},
    ),
    "transactions": Scenario(
        tables.DOCS,
        _transactions,
        options={"provide.transaction.metadata": "true", "topic.creation.default.partitions": "3"},
    ),
    "types_precise": Scenario(tables.TYPES, tables.TYPES_STREAMED, tables.TYPES_TABLES, schemas=True),
    "types_precise_plain": Scenario(tables.TYPES, tables.TYPES_STREAMED, tables.TYPES_TABLES),
    "types_string": Scenario(
        tables.TYPES,
        tables.TYPES_STREAMED,
        tables.TYPES_TABLES,
        schemas=True,
        options={
            "decimal.handling.mode": "string",
            "time.precision.mode": "isostring",
            "binary.handling.mode": "hex",
            "interval.handling.mode": "string",
        },
    ),
    "types_double": Scenario(
        tables.TYPES,
        tables.TYPES_STREAMED,
        tables.TYPES_TABLES,
        schemas=True,
        options={
            "decimal.handling.mode": "double",
            "time.precision.mode": "connect",
            "binary.handling.mode": "base64-url-safe",
            "include.unknown.datatypes": "true",
        },
    ),
    "types_microseconds": Scenario(
        tables.TYPES,
        tables.TYPES_STREAMED,
        tables.TYPES_TABLES,
        schemas=True,
        options={
            "decimal.handling.mode": "string",
            "time.precision.mode": "microseconds",
            "binary.handling.mode": "base64",
        },
    ),
    "types_nanoseconds": Scenario(
        tables.TYPES,
        tables.TYPES_STREAMED,
        tables.TYPES_TABLES,
        schemas=True,
        options={"decimal.handling.mode": "string", "time.precision.mode": "nanoseconds"},
    ),
    "contrib": Scenario(tables.CONTRIB, tables.CONTRIB_STREAMED, tables.CONTRIB_TABLES, schemas=True, packaged=True),
    "contrib_map": Scenario(
        tables.CONTRIB,
        tables.CONTRIB_STREAMED,
        tables.CONTRIB_TABLES,
        options={"hstore.handling.mode": "map"},
        packaged=True,
    ),
    "unwrapped": Scenario(
        tables.DOCS,
        tables.WORKLOAD,
        options={"transforms": "unwrap", "transforms.unwrap.type": "io.debezium.transforms.ExtractNewRecordState"},
    ),
    "unwrapped_rewrite": Scenario(
        tables.DOCS,
        tables.WORKLOAD,
        options={
            "transforms": "unwrap",
            "transforms.unwrap.type": "io.debezium.transforms.ExtractNewRecordState",
            "transforms.unwrap.delete.tombstone.handling.mode": "rewrite",
            "transforms.unwrap.add.fields": "op,source.lsn",
        },
    ),
    "heartbeat": Scenario(
        tables.DOCS,
        "SELECT pg_logical_emit_message(true, 'walvec', 'a message');\nUPDATE docs SET title = 'x' WHERE id = 1",
        options={"heartbeat.interval.ms": "500"},
    ),
    "string_key": Scenario(tables.DOCS, tables.WORKLOAD, worker={"key.converter": STRING}),
    "string_key_extracted": Scenario(
        tables.DOCS,
        tables.WORKLOAD,
        worker={"key.converter": STRING},
        options={
            "transforms": "key",
            "transforms.key.type": "org.apache.kafka.connect.transforms.ExtractField$Key",
            "transforms.key.field": "id",
            "transforms.key.predicate": "docs",
            "predicates": "docs",
            "predicates.docs.type": "org.apache.kafka.connect.transforms.predicates.TopicNameMatches",
            "predicates.docs.pattern": ".*docs",
        },
    ),
    "no_key": Scenario(tables.NO_KEY, tables.NO_KEY_STREAMED),
    "own_key": Scenario(tables.DOCS, tables.WORKLOAD, options={"message.key.columns": "public.docs:title"}),
    "no_tombstones": Scenario(tables.DOCS, tables.WORKLOAD, options={"tombstones.on.delete": "false"}),
    "schema_change": Scenario(tables.DOCS, tables.SCHEMA_CHANGE, schemas=True),
    "partitioned": Scenario(
        tables.PARTITIONED, tables.PARTITIONED_STREAMED, options={"publish.via.partition.root": "true"}
    ),
}


def main(names: list[str]) -> None:
    with server.started() as postgres, _packaged() as older, broker.started(heap="256m") as kafka:
        servers = {False: postgres.dsn, True: older.dsn}
        for name in names or list(SCENARIOS):
            print(name, record(name, SCENARIOS[name], servers[SCENARIOS[name].packaged], kafka), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
