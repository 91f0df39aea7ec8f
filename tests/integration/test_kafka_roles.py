"""The roles on a real broker, as processes that share nothing else: what somebody does to the log ends in equality."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests.acceptance.harness import SCHEMA, TABLE, Workload, differences, document, running, wait_until
from tests.plugins.kafka import KafkaCluster
from tests.plugins.machines import Machines, machines
from tests.plugins.postgres import PostgresDatabase

pytestmark = pytest.mark.timeout(300)

Start = Callable[..., Machines]


@pytest.fixture
def start(tmp_path: Path, postgres: PostgresDatabase, kafka: KafkaCluster) -> Iterator[Start]:
    """`start(rows=…)`: all four roles, and the table `items` defined; `kafka=` another cluster."""
    opened: list[Any] = []

    def run(
        *roles: str, rows: int = 500, kafka: KafkaCluster | str = kafka, apply: bool = True, **env: str
    ) -> Machines:
        postgres.execute(SCHEMA)
        postgres.execute(
            "INSERT INTO items SELECT i, 'title ' || i, 'body ' || i % 7, i, '{a}', i % 5, now()"
            f" FROM generate_series(1, {rows}) i"
        )
        context = machines(tmp_path / "m", dsn=postgres.dsn, control=postgres.another(), kafka=kafka, **env)
        found = context.__enter__()
        opened.append(context)
        found.start_all(*roles)
        if apply:
            done = found.apply(document(postgres.dsn))
            assert done.returncode == 0, done.stdout + done.stderr + found.tail()
        return found

    yield run
    for context in reversed(opened):
        context.__exit__(None, None, None)


def topic_of(walvec: Machines, kafka: KafkaCluster, which: str) -> str:
    with psycopg.connect(walvec.env["WALVEC_CONTROL_DATABASE__URL"]) as c:
        row = c.execute("SELECT id FROM walvec_control.vector_tables").fetchone()
    assert row is not None
    short = row[0].removeprefix("vt_")[:8]
    return next(t for t in kafka.topics() if t.startswith(f"walvec.vt_{short}") and t.endswith(f".{which}"))


def equal(walvec: Machines, postgres: PostgresDatabase) -> None:
    walvec.drain("items", timeout=120)
    assert differences(postgres.dsn, postgres.dsn) == [], walvec.tail()


def status(walvec: Machines) -> Any:
    return walvec.ask("/v1/status")["tables"][0]


def tasks(walvec: Machines) -> list[tuple[str, str, str | None]]:
    with psycopg.connect(walvec.env["WALVEC_CONTROL_DATABASE__URL"]) as c:
        return c.execute(
            "SELECT task_type, params->>'reason', last_error FROM walvec_control.tasks ORDER BY sequence"
        ).fetchall()


def rows_read(walvec: Machines) -> int:
    with psycopg.connect(walvec.env["WALVEC_CONTROL_DATABASE__URL"]) as c:
        row = c.execute("SELECT progress->>'rows' FROM walvec_control.tasks ORDER BY sequence").fetchone()
    return int(row[0] or 0) if row is not None else 0


def test_roles_that_share_nothing_but_kafka(start: Start, postgres: PostgresDatabase) -> None:
    walvec = start()
    workload = Workload(postgres.dsn, seed=1)
    with running(workload):
        wait_until(lambda: workload.done > 200)
    equal(walvec, postgres)
    assert walvec.verify("items") == {"missing": [], "orphaned": [], "stale": [], "duplicate": [], "dead": []}
    for name in list(walvec.processes):
        assert walvec.end_one(name) == 0


@pytest.mark.parametrize("which", ["changes", "vectors"])
def test_restart_on_loss_a_topic_is_deleted_under_load(
    start: Start, postgres: PostgresDatabase, kafka: KafkaCluster, which: str
) -> None:
    """While the first backfill runs and the table changes."""
    walvec = start(rows=20_000, WALVEC_CDC__BACKFILL_CHUNK_ROWS="200")
    wait_until(lambda: rows_read(walvec) > 1000, what="a backfill that runs")
    workload = Workload(postgres.dsn, seed=2, truncate=False)
    with running(workload):
        topic = topic_of(walvec, kafka, which)
        kafka.delete_topic(topic)
        told = wait_until(lambda: [t for t in tasks(walvec) if topic in (t[2] or "")], timeout=60, what="the words")
        wait_until(lambda: topic in kafka.topics(), what="the topic anew")
    assert "deleted" in (told[0][2] or "")
    assert "read again" in (told[0][2] or "")
    equal(walvec, postgres)


def test_a_topic_is_deleted_while_nothing_runs(start: Start, postgres: PostgresDatabase, kafka: KafkaCluster) -> None:
    walvec = start()
    equal(walvec, postgres)
    for name in [n for n in walvec.processes if n != "api-1"]:
        walvec.end_one(name)
    kafka.delete_topic(topic_of(walvec, kafka, "changes"))
    kafka.delete_topic(topic_of(walvec, kafka, "vectors"))
    postgres.execute("DELETE FROM items WHERE id % 2 = 0")
    postgres.execute("UPDATE items SET title = 'other ' || id WHERE id % 3 = 0")
    for role in ("cdc", "embedder", "sink"):
        walvec.start_role(role)
    equal(walvec, postgres)
    assert any("were deleted" in (t[1] or "") for t in tasks(walvec))


@pytest.mark.parametrize(("role", "which"), [("embedder", "changes"), ("sink", "vectors")])
def test_records_expire_before_they_are_read(
    start: Start, postgres: PostgresDatabase, kafka: KafkaCluster, role: str, which: str
) -> None:
    walvec = start()
    equal(walvec, postgres)
    walvec.end_one(f"{role}-1")
    postgres.execute("UPDATE items SET title = 'other ' || id")
    postgres.execute("DELETE FROM items WHERE id % 5 = 0")
    topic = topic_of(walvec, kafka, which)

    def there() -> bool:
        lag = status(walvec)["stages"][role]
        return lag is not None and lag["lag_changes"] >= 500  # at least one for each key

    wait_until(there, what="records that wait")
    kafka.expire(topic)
    walvec.start_role(role)
    wait_until(lambda: any("gone before they were read" in (t[1] or "") for t in tasks(walvec)), what="a rebackfill")
    equal(walvec, postgres)


def test_dead_delete_rows_that_are_too_large(start: Start, postgres: PostgresDatabase, kafka: KafkaCluster) -> None:
    """Streamed and backfilled; the store serves no stale text, and the letters' replay works once more fits."""
    walvec = start(WALVEC_KAFKA__MAX_RECORD_BYTES=str(128 * 1024))
    equal(walvec, postgres)
    large = "SELECT string_agg(md5(i::text), '') FROM generate_series(1, 8000) i"
    postgres.execute(f"UPDATE items SET body = ({large}) WHERE id = 7")
    postgres.execute(f"INSERT INTO items (id, title, body) VALUES (9001, 'new', ({large}))")
    postgres.execute("UPDATE items SET title = 'behind it' WHERE id = 8")
    walvec.drain("items", timeout=60)
    letters = walvec.json("dead", "list", "items")["dead_letters"]
    assert {letter["kind"] for letter in letters} == {"too_large"}
    assert len(letters) == 2
    assert "MAX_RECORD_BYTES" in letters[0]["reason"]
    assert sorted(differences(postgres.dsn, postgres.dsn)) == ["missing 7", "missing 9001"]

    walvec.run("backfill", "items")
    walvec.drain("items", timeout=60)
    assert len(walvec.json("dead", "list", "items")["dead_letters"]) == 2
    assert sorted(differences(postgres.dsn, postgres.dsn)) == ["missing 7", "missing 9001"]

    for which in ("changes", "vectors"):
        kafka.configure(topic_of(walvec, kafka, which), max_message_bytes="4194304")
    done = walvec.run("dead", "replay", "items")
    assert done.returncode == 0, done.stdout + done.stderr

    def settled() -> bool:
        walvec.drain("items", timeout=60)
        return walvec.json("dead", "list", "items")["dead_letters"] == []

    wait_until(settled, timeout=60, what="no letters")
    assert differences(postgres.dsn, postgres.dsn) == []


def test_the_broker_goes_away_and_comes_back(start: Start, postgres: PostgresDatabase, own_kafka: KafkaCluster) -> None:
    walvec = start(kafka=own_kafka)
    workload = Workload(postgres.dsn, seed=3)
    with running(workload):
        wait_until(lambda: workload.done > 50)
        own_kafka.kill()
        told = wait_until(lambda: unready(walvec), timeout=30, what="503")
        assert "Kafka" in told["checks"]["log"]["detail"]
        began = time.monotonic()
        done = walvec.run("status", "--json")
        assert time.monotonic() - began < 25  # 3 s are the API's patience, the rest is for a busy machine
        assert done.returncode == 0
        assert "Kafka" in done.stdout, done.stdout
        assert "Traceback" not in done.stderr
        before = workload.done
        wait_until(lambda: workload.done > before + 100)
        own_kafka.restart()
    equal(walvec, postgres)
    assert {p.poll() for p in walvec.processes.values()} == {None}
    assert httpx.get(f"{walvec.url}/health/ready", timeout=10).status_code == 200


def unready(walvec: Machines) -> Any:
    answer = httpx.get(f"{walvec.url}/health/ready", timeout=10)
    return answer.json() if answer.status_code == 503 else None


def test_the_broker_stands_still_for_twenty_seconds(
    start: Start, postgres: PostgresDatabase, own_kafka: KafkaCluster
) -> None:
    walvec = start(kafka=own_kafka)
    workload = Workload(postgres.dsn, seed=4)
    with running(workload):
        wait_until(lambda: workload.done > 50)
        own_kafka.pause()
        until = time.monotonic() + 20
        wait_until(lambda: time.monotonic() > until, timeout=30)
        own_kafka.resume()
    equal(walvec, postgres)


def test_roles_that_start_before_the_broker(start: Start, postgres: PostgresDatabase, own_kafka: KafkaCluster) -> None:
    own_kafka.kill()
    walvec = start(kafka=own_kafka, apply=False)
    assert wait_until(lambda: unready(walvec), timeout=30)
    refused = walvec.apply(document(postgres.dsn))
    assert refused.returncode == 1
    assert "Kafka" in refused.stdout + refused.stderr
    own_kafka.restart()
    assert walvec.apply(document(postgres.dsn)).returncode == 0
    equal(walvec, postgres)


def test_a_second_cdc_takes_over(start: Start, postgres: PostgresDatabase) -> None:
    """With a backfill open, which the standby goes on with."""
    walvec = start(rows=20_000, WALVEC_CDC__BACKFILL_CHUNK_ROWS="200")
    wait_until(lambda: rows_read(walvec) > 1000, what="a backfill that runs")
    walvec.start_role("cdc", 2)
    wait_until(lambda: "another process reads the slot" in walvec.log_of("cdc-2"), what="the standby")
    workload = Workload(postgres.dsn, seed=5)
    with running(workload):
        wait_until(lambda: workload.done > 50)
        walvec.kill_one("cdc-1")
        began = time.monotonic()
        wait_until(lambda: '"streaming"' in walvec.log_of("cdc-2") or "streaming" in walvec.log_of("cdc-2"), timeout=30)
        assert time.monotonic() - began < 10
    equal(walvec, postgres)
    reads = [t for t in tasks(walvec) if t[0] in ("backfill", "rebackfill")]
    assert len(reads) == 1, reads  # taken over, not begun anew: there was no gap


def test_embedders_and_sinks_come_and_go(start: Start, postgres: PostgresDatabase) -> None:
    walvec = start(rows=5000, WALVEC_SINK__PURGE_INTERVAL_SECONDS="1")
    workload = Workload(postgres.dsn, seed=6)
    with running(workload):
        for number in (2, 3):
            walvec.start_role("embedder", number)
            walvec.start_role("sink", number)
            before = workload.done
            wait_until(lambda before=before: workload.done > before + 150)
        walvec.kill_one("embedder-1")
        walvec.kill_one("sink-2")
        before = workload.done
        wait_until(lambda: workload.done > before + 150)
        assert walvec.end_one("embedder-3") == 0
        assert walvec.end_one("sink-1") == 0
    equal(walvec, postgres)


def test_never_back_who_stands_still_while_generations_come_and_go_takes_nothing_back(
    start: Start, postgres: PostgresDatabase
) -> None:
    """With records of the first generation in hand; when they wake up, two others have been active since, the table was
    emptied, and nothing of the first is kept."""
    walvec = start(rows=3000, WALVEC_SINK__PURGE_INTERVAL_SECONDS="1")
    walvec.start_role("embedder", 2)
    walvec.start_role("sink", 2)
    path = f"{walvec.url}/v1/vector-tables/items"

    def active(number: int) -> bool:
        found = httpx.get(f"{path}/generations", timeout=30).json()["data"]
        return [(g["generation"], g["state"]) for g in found] == [(number, "active")]

    workload = Workload(postgres.dsn, seed=7)
    with running(workload):
        wait_until(lambda: workload.done > 300)
        still = [walvec.processes[name] for name in ("embedder-1", "sink-1")]
        for process in still:
            process.send_signal(signal.SIGSTOP)
        texts = [c for c in TABLE["columns"] if c["name"] != "body"]
        for number, columns in ((2, texts), (3, TABLE["columns"])):
            assert httpx.put(path, json={"columns": columns, "keep_previous": 0}, timeout=60).status_code == 200
            if number == 3:
                postgres.execute("TRUNCATE items")
            wait_until(lambda number=number: active(number), timeout=120, what=f"generation {number}")
        for process in still:
            process.send_signal(signal.SIGCONT)
        before = workload.done
        wait_until(lambda: workload.done > before + 300)
    equal(walvec, postgres)
    assert active(3)


def test_no_right_to_create_topics_and_a_wrong_password(
    start: Start, postgres: PostgresDatabase, kafka_with: Callable[..., KafkaCluster]
) -> None:
    """What an administrator has to do is in apply's answer; a wrong password is told as such. Both heal."""
    cluster = kafka_with(security="SASL_PLAINTEXT", acl=True)
    cluster.grant("walvec", "TOPIC", "walvec.", "READ", "WRITE", "DESCRIBE", "DESCRIBE_CONFIGS", "DELETE")
    cluster.grant("walvec", "GROUP", "walvec.", "READ", "DESCRIBE")
    walvec = start("api", kafka=cluster, apply=False)
    refused = walvec.apply(document(postgres.dsn))
    said = refused.stdout + refused.stderr
    assert refused.returncode == 1
    assert "An administrator runs" in said
    assert [which for which in ("changes", "vectors", "dead") if f".{which}" not in said] == []
    cluster.grant("walvec", "TOPIC", "walvec.", "ALL")
    wait_until(lambda: walvec.apply(document(postgres.dsn)).returncode == 0, timeout=60, what="apply")

    wrong = {"WALVEC_KAFKA__SASL_PASSWORD": "wrong"}
    for role in ("cdc", "embedder", "sink"):
        walvec.start_role(role, 1, **wrong)
    for role in ("cdc", "embedder", "sink"):
        wait_until(lambda role=role: "Kafka refuses the login" in walvec.log_of(f"{role}-1"), timeout=60, what=role)
        assert walvec.processes[f"{role}-1"].poll() is None
        assert walvec.end_one(f"{role}-1") == 0
        walvec.start_role(role)
    equal(walvec, postgres)
