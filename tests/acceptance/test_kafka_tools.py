"""docs/kafka.md, command by command: what it shows is what walvec, Kafka's own tools and kcat print."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from tests.acceptance.harness import SCHEMA, Walvec, differences, document, wait_until
from tests.plugins.kafka import TOOLS, KafkaCluster
from tests.plugins.postgres import PostgresDatabase

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]

DOC = (Path(__file__).parents[2] / "docs" / "kafka.md").read_text()
TRACE = r"00-[0-9a-f]{32}-1[0-9a-f]{15}-01"


class Running:
    def __init__(self, walvec: Walvec, kafka: KafkaCluster, source: PostgresDatabase, store: str) -> None:
        self.walvec, self.kafka, self.source, self.store = walvec, kafka, source, store
        self.changes, self.dead, self.vectors = (t["topic"] for t in self.topics())
        self.embedder = self.changes.removesuffix("changes") + "embedder"

    def topics(self) -> list[dict[str, Any]]:
        found = self.walvec.json("topics")["topics"]
        return [t for t in found if t["vector_table"] == "items"]

    def tail(self, *args: str) -> list[str]:
        done = self.walvec.run("tail", "items", *args)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def letters(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.walvec.json("dead", "list", "items")["dead_letters"]
        return found

    def produce(self, topic: str, *records: tuple[bytes | None, bytes, list[tuple[str, bytes]]]) -> None:
        """As a foreign program would."""
        producer = Producer({"bootstrap.servers": self.kafka.bootstrap_servers})
        for key, value, headers in records:
            producer.produce(topic, value, key, headers=headers)
        assert producer.flush(20) == 0


@pytest.fixture
def running(tmp_path: Path, postgres: PostgresDatabase, kafka: KafkaCluster) -> Iterator[Running]:
    own = postgres.another()
    env = {"WALVEC_LOG__KIND": "kafka", "WALVEC_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers}
    walvec = Walvec(tmp_path, control=own, store=own, env=env)
    postgres.execute(SCHEMA)
    postgres.execute("INSERT INTO items (id, title, stock) SELECT i, 'title ' || i, i FROM generate_series(1, 20) i")
    try:
        walvec.start(walvec.definitions(document(postgres.dsn)))
        walvec.drain()
        postgres.execute("UPDATE items SET title = 'lamp' WHERE id = 3")
        walvec.drain()
        yield Running(walvec, kafka, postgres, own)
    finally:
        walvec.stop()


def test_every_tool_of_the_page_shows_what_the_page_says(running: Running) -> None:
    run, changes = running.kafka.run, running.changes
    for topic in running.topics():
        assert topic["partitions"] == 8
        assert topic["differences"] == []
        assert topic["bytes"] > 0 or topic["topic"] == running.dead
    assert "PartitionCount: 8" in run("kafka-topics", "--describe", "--topic", changes)
    group = run("kafka-consumer-groups", "--describe", "--group", running.embedder)
    assert re.search(rf"{re.escape(changes)} +\d+ +(\d+) +\1 +0 ", group), group
    ends = run("kafka-get-offsets", "--topic", changes, "--time", "latest")
    assert sum(int(line.rsplit(":", 1)[1]) for line in ends.splitlines()) == 21
    config = run("kafka-configs", "--describe", "--entity-type", "topics", "--entity-name", changes)
    assert "retention.ms=604800000" in config
    printed = run(
        "kafka-console-consumer", "--topic", changes, "--from-beginning", "--max-messages", "1", "--property",
        "print.key=true", "--property", "print.headers=true",
    )  # fmt: skip
    headers, key, value = printed.splitlines()[0].split("\t")
    assert re.fullmatch(f"content-type:application/json,walvec-schema:1,traceparent:{TRACE}", headers)
    assert list(json.loads(key)) == ["id"]
    assert json.loads(value)["walvec"]["v"] == 1
    segment = next(running.kafka.brokers[0].data.glob(f"{changes}-*/*.log"))
    dumped = run("kafka-dump-log", "--files", str(segment))
    assert re.search(r"size: \d+ magic: 2 compresscodec: lz4", dumped), dumped


@pytest.mark.skipif(
    shutil.which("kcat") is None and os.environ.get("CI") != "true", reason="kcat is not installed: this goes untested"
)
def test_kcat_shows_what_the_page_says(running: Running) -> None:
    base = ["kcat", "-b", running.kafka.bootstrap_servers]
    listed = subprocess.run([*base, "-L", "-t", running.changes], capture_output=True, text=True, check=True).stdout
    assert f'topic "{running.changes}" with 8 partitions' in listed
    read = [*base, "-C", "-t", running.changes, "-o", "beginning", "-e", "-q", "-f", "%p:%o %k %h\n"]
    lines = subprocess.run(read, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 21
    for line in lines:
        assert re.fullmatch(
            rf'\d:\d+ {{"id":\d+}} content-type=application/json,walvec-schema=1,traceparent={TRACE}', line
        ), line


def test_tail_follows_one_row_through_the_stages(running: Running) -> None:
    changes = running.tail("changes", "--key", "3")
    vectors = running.tail("vectors", "--key", '{"id":3}')
    assert [line.split()[3] for line in (*changes, *vectors)] == ["r", "u", "upsert", "upsert"]
    assert [line.split()[5] for line in changes] == [line.split()[5] for line in vectors]
    assert "title=lamp" in changes[1]
    assert "Title: lamp" in vectors[1]
    traces = [json.loads(line)["headers"]["traceparent"] for t in ("changes", "vectors")
              for line in running.tail(t, "--key", "3", "--json")]  # fmt: skip
    assert traces[:2] == traces[2:]
    assert len(set(traces)) == 2
    assert all(re.fullmatch(TRACE, trace) for trace in traces)
    assert running.tail("changes", "--from", "10m", "--key", "3") == changes
    assert running.tail("changes", "--from", "latest") == []
    assert len(running.tail("changes", "--from", "1h")) == 21


def test_foreign_records_become_letters_and_nothing_stops(running: Running) -> None:
    (record,) = [json.loads(line) for line in running.tail("changes", "--key", "5", "--json")]
    change = json.dumps(record["value"]).encode()
    (record,) = [json.loads(line) for line in running.tail("vectors", "--key", "5", "--json")]
    vector = json.dumps(record["value"]).encode()
    newer = [("walvec-schema", b"2")]
    running.produce(
        running.changes,
        (b'{"id":11}', b"hello", []),
        (b'{"id":12}', b'{"op":"c","after":{}}', []),
        (b'{"id":13}', change, newer),
        (b"not a key", change, []),
        (None, b"\xff\x00", []),
    )
    running.produce(
        running.vectors, (b'{"id":14}', b"hello", []), (b'{"id":15}', vector, newer), (b'{"id": 16}', vector, [])
    )
    running.walvec.drain()
    found = wait_until(lambda: running.letters() if len(running.letters()) == 6 else None, what="six letters")
    assert {letter["kind"] for letter in found} == {"decode"}
    assert sorted(letter["key"]["id"] for letter in found if letter["key"]) == [11, 12, 13, 14, 15]
    (rest,) = [letter for letter in found if letter["key"] is None]
    assert rest["attempts"] == 3
    reasons = {letter["key"]["id"]: letter["reason"] for letter in found if letter["key"]}
    assert "version '2'" in reasons[13]
    assert "upgrade" in reasons[15]
    dead = running.tail("dead", "--json")
    assert len(dead) == 8  # those without a usable key share an entry of the list, not a record
    running.source.execute("UPDATE items SET title = 'after' WHERE id = 11")
    running.walvec.drain()
    assert differences(running.source.dsn, running.store) == []
    # its row has a newer version in the store; the others are replayed, and what has no key is dropped
    wait_until(lambda: len(running.letters()) == 5, what="the letter of the row that changed is gone")
    shown = running.walvec.json("dead", "show", "items", str(found[0]["id"])) if found[0]["key"] != {"id": 11} else {}
    assert shown.get("payload") is not None or found[0]["key"] == {"id": 11}
    assert running.walvec.run("dead", "replay", "items").returncode == 0
    wait_until(lambda: [v["key"] for v in running.letters()] == [None], what="letters with a key are replayed")
    assert running.walvec.run("dead", "drop", "items").returncode == 0
    assert running.letters() == []
    assert not any(running.walvec.verify("items").values())


def test_partitions_grow_and_a_group_is_reset_while_nobody_reads(running: Running) -> None:
    kafka = running.kafka
    with pytest.raises(AssertionError, match="inactive"):
        _reset(running)
    kafka.run("kafka-topics", "--alter", "--topic", running.changes, "--partitions", "12")
    running.source.execute("UPDATE items SET title = 'grown ' || id")
    running.walvec.drain()
    assert differences(running.source.dsn, running.store) == []
    assert running.topics()[0]["partitions"] == 12
    assert running.walvec.stop() == 0
    wait_until(
        lambda: "Empty" in kafka.run("kafka-consumer-groups", "--describe", "--state", "--group", running.embedder),
        what="the group without members",
    )
    assert running.changes in _reset(running)
    running.walvec.start()
    running.walvec.drain()
    assert differences(running.source.dsn, running.store) == []


def _reset(running: Running) -> str:
    found = running.kafka.run(
        "kafka-consumer-groups", "--group", running.embedder, "--topic", running.changes, "--reset-offsets",
        "--to-earliest", "--execute",
    )  # fmt: skip
    assert "Error" not in found, found
    return found


def test_every_command_of_the_page_is_run_above() -> None:
    """A new command on the page wants a test here."""
    shown = set(re.findall(r"^\$ (?:.*\| )?(walvec \w+|kafka-[\w-]+|kcat)", DOC, re.MULTILINE))
    assert shown == {
        "walvec topics", "walvec tail", "walvec dead", "walvec replay", "kafka-topics", "kafka-consumer-groups",
        "kafka-get-offsets", "kafka-configs", "kafka-console-consumer", "kafka-dump-log", "kcat",
    }  # fmt: skip
    assert {name for name in shown if name.startswith("kafka-")} <= TOOLS.keys()
