"""Every role, started as its user starts it, tells Prometheus what it did; nobody opens a port unasked."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.acceptance.harness import SCHEMA, TABLE, Walvec, document, wait_until
from tests.plugins.kafka import KafkaCluster, properties_environment
from tests.plugins.ports import free_port
from tests.plugins.postgres import PostgresDatabase
from walvec.runtime import measures

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(180)]

IN_ORDER = ("cdc", "embedder", "sink", "api")
BACKFILLED, STREAMED = 30, 20


def four_ports() -> int:
    """The first of four free ports in a row, below those that outgoing connections get by themselves."""
    for _ in range(100):
        first = random.randrange(20_000, 30_000)
        taken: list[socket.socket] = []
        try:
            for port in range(first, first + 4):
                taken.append(socket.socket())
                taken[-1].bind(("127.0.0.1", port))
        except OSError:
            continue
        else:
            return first
        finally:
            for one in taken:
                one.close()
    raise AssertionError("no four free ports in a row")


class Scrape:
    """One look at all four roles."""

    def __init__(self, first: int) -> None:
        self.samples: list[Sample] = []
        self.names: dict[str, set[str]] = {}
        for place, role in enumerate(IN_ORDER):
            answer = httpx.get(f"http://127.0.0.1:{first + place}/metrics", timeout=15).raise_for_status()
            assert answer.headers["content-type"].startswith("text/plain")
            for family in text_string_to_metric_families(answer.text):
                self.names.setdefault(role, set()).add(family.name + ("_total" if family.type == "counter" else ""))
                series = [(s.name, tuple(sorted(s.labels.items()))) for s in family.samples]
                assert len(series) == len(set(series)), f"{role} tells a series of {family.name} twice"
                self.samples += family.samples

    def all(self, name: str, **labels: str) -> list[Sample]:
        return [s for s in self.samples if s.name == name and all(s.labels.get(k) == v for k, v in labels.items())]

    def sum(self, name: str, **labels: str) -> float:
        return sum(s.value for s in self.all(name, **labels))

    def one(self, name: str, **labels: str) -> float:
        found = self.all(name, **labels)
        assert len(found) == 1, f"{name} {labels}: {found}"
        return float(found[0].value)


class Provider:
    """The OpenAI-compatible server in a process of its own."""

    def __init__(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "tests.plugins.openai_server", "--port", str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(self.stats, what="the provider")

    def stats(self) -> Mapping[str, int]:
        found: Mapping[str, int] = httpx.get(f"{self.url}/stats").json()
        return found

    def control(self, **faults: Any) -> None:
        httpx.post(f"{self.url}/control", json=faults).raise_for_status()


@pytest.fixture
def provider() -> Iterator[Provider]:
    found = Provider()
    yield found
    found.process.kill()
    found.process.wait()


@contextmanager
def running(directory: Path, postgres: PostgresDatabase, *args: str, first: int | None, **of: Any) -> Iterator[Walvec]:
    own = postgres.another()
    env = {**of.get("env", {}), **({} if first is None else {"WALVEC_METRICS__PORT": str(first)})}
    walvec = Walvec(directory, control=own, store=own, env=env)
    try:
        walvec.start(walvec.definitions(document(postgres.dsn, *of.get("tables", ()), **of.get("more", {}))), args=args)
        yield walvec
    finally:
        walvec.stop()


def insert(dsn: str, *rows: tuple[int, str]) -> None:
    """Each in a transaction of its own."""
    with psycopg.connect(dsn, autocommit=True) as c:
        for row in rows:
            c.execute("INSERT INTO items (id, title) VALUES (%s, %s)", row)


def test_what_the_roles_tell_is_what_they_did(tmp_path: Path, postgres: PostgresDatabase, provider: Provider) -> None:
    dsn, first = postgres.dsn, four_ports()
    postgres.execute(SCHEMA)
    insert(dsn, *((n, f"first {n}") for n in range(BACKFILLED)))
    vendor = {"name": "vendor", "provider": "openai", "api_key": "sk-x", "base_url": f"{provider.url}/v1"}
    table = {**TABLE, "embedding_provider": "vendor", "embedding_dimensions": 16}
    with running(tmp_path, postgres, first=first, tables=[table], more={"providers": [vendor]}) as walvec:
        walvec.drain()
        insert(dsn, *((1000 + n, f"second {n}") for n in range(STREAMED)))
        walvec.drain()
        provider.control(status=429, answers=1, code="rate_limit_exceeded", message="slow down")
        insert(dsn, (2000, "asked for twice"))
        walvec.drain()
        with psycopg.connect(dsn, autocommit=True) as c:
            c.execute("UPDATE items SET stock = 1 WHERE id < 5")
            c.execute("DELETE FROM items WHERE id = 5")
        insert(dsn, (3000, "first 7"))
        insert(dsn, (4000, "[[reject]]"))
        walvec.drain()
        changes = STREAMED + 1 + 5 + 1 + 1 + 1
        found = Scrape(first)
        stats = provider.stats()

        of = {"table": "items"}
        assert found.one("walvec_changes_read_total", connection="source") == changes
        assert found.one("walvec_backfill_rows_read_total", **of) == BACKFILLED
        assert found.one("walvec_records_written_total", **of, stage="backfill") == BACKFILLED
        assert found.one("walvec_records_written_total", **of, stage="cdc") == changes
        assert found.one("walvec_records_read_total", **of, stage="embedder") == changes + BACKFILLED
        assert found.one("walvec_records_written_total", **of, stage="embedder") == changes + BACKFILLED
        assert found.one("walvec_records_read_total", **of, stage="sink") == changes + BACKFILLED
        assert found.one("walvec_vectors_applied_total", **of) == changes + BACKFILLED
        assert found.one("walvec_vectors_refused_total", **of) == 0
        for stage, count in (("cdc", changes), ("embedder", changes + BACKFILLED), ("sink", changes + BACKFILLED)):
            assert found.one("walvec_batch_records_sum", **of, stage=stage) == count

        assert found.one("walvec_texts_sent_total", **of) == stats["texts_received"]
        assert found.one("walvec_provider_request_texts_sum", provider="vendor") == stats["texts_received"]
        assert found.sum("walvec_provider_request_seconds_count", provider="vendor") == stats["requests"]
        assert found.one("walvec_provider_request_seconds_count", outcome="wait") == 1
        assert found.one("walvec_provider_request_seconds_count", outcome="input") == 1
        assert found.one("walvec_provider_retries_total", **of, **{"class": "wait"}) == 1
        assert found.one("walvec_provider_retries_total", **of, **{"class": "stop"}) == 0
        assert found.one("walvec_provider_tokens_total", provider="vendor") == stats["tokens"]
        assert found.one("walvec_texts_saved_total", **of, reason="unchanged") == 5
        assert found.one("walvec_texts_saved_total", **of, reason="memory") == 1
        assert found.one("walvec_rows_embedded_total", **of) == BACKFILLED + STREAMED + 2
        assert found.sum("walvec_dead_letters_total", **of, kind="provider") == 1
        assert found.one("walvec_dead_letters_open", **of) == 1

        assert found.one("walvec_commit_to_stored_seconds_count", **of) == changes
        assert found.one("walvec_commit_to_stored_seconds_bucket", **of, le="600.0") == changes
        assert (
            0
            < found.one("walvec_commit_to_log_seconds_sum", **of)
            < found.one("walvec_commit_to_stored_seconds_sum", **of)
        )
        assert found.one("walvec_log_to_embedded_seconds_count", **of) > 0
        assert found.one("walvec_store_apply_seconds_sum", **of) > 0
        assert found.one("walvec_log_append_seconds_count", **of) == found.one(
            "walvec_commit_to_log_seconds_count", **of
        )

        source = {"connection": "source"}
        assert found.one("walvec_streaming", **source) == 1
        assert found.one("walvec_slot_active", **source) == 1
        assert found.one("walvec_slot_status", **source, status="reserved") == 1
        assert found.sum("walvec_slot_status", **source) == 1
        assert found.one("walvec_slot_retained_bytes", **source) > 0
        positions = [found.one("walvec_wal_position_bytes", **source, position=p) for p in ("received", "durable")]
        assert positions[0] >= positions[1] >= found.one("walvec_wal_position_bytes", position="confirmed") > 0
        for age in ("feedback", "heartbeat", "cdc_report"):
            assert 0 <= found.one(f"walvec_{age}_age_seconds", **source) < 10, age
        assert found.one("walvec_in_flight_bytes", **source) == 0

        assert found.one("walvec_table_state", **of, state="synced") == 1
        assert found.sum("walvec_table_state", **of) == 1
        assert found.sum("walvec_lag_records", **of) == found.sum("walvec_lag_seconds", **of) == 0
        assert found.one("walvec_log_bytes", **of, topic="changes") > 0
        assert found.one("walvec_log_limit_bytes") == 4 * 1024**3
        assert {s.value for s in found.all("walvec_dependency_up")} == {1}
        assert len(found.all("walvec_dependency_up")) == 8
        assert [s.labels["role"] for s in found.all("walvec_build_info")] == list(IN_ORDER)
        assert len(found.all("process_cpu_seconds_total")) == 4
        for role in IN_ORDER:
            wanted = {m.name for m in measures.ALL if role in m.roles}
            assert {n for n in found.names[role] if n.startswith("walvec_")} == wanted

        _lag_while_the_sink_is_down(walvec, dsn, first)
        deleted = httpx.delete(f"{walvec.url}/v1/vector-tables/items", timeout=30)
        assert deleted.status_code < 300, deleted.text
        wait_until(lambda: not any("table" in s.labels for s in Scrape(first).samples), what="no series of the table")


def _lag_while_the_sink_is_down(walvec: Walvec, dsn: str, first: int) -> None:
    (sink,) = walvec.roles()["sink"]
    sink.send_signal(signal.SIGSTOP)
    try:
        insert(dsn, *((5000 + n, f"third {n}") for n in range(7)))

        def behind() -> bool:
            text = httpx.get(f"http://127.0.0.1:{first + 3}/metrics", timeout=15).text
            samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
            told = {(s.name, s.labels["stage"]): s.value for s in samples if s.name.startswith("walvec_lag_")}
            assert told["walvec_lag_records", "embedder"] in range(8)
            return told["walvec_lag_records", "sink"] == 7 and told["walvec_lag_seconds", "sink"] > 1

        wait_until(behind, what="the sink's lag")
    finally:
        sink.send_signal(signal.SIGCONT)
    walvec.drain()
    wait_until(lambda: Scrape(first).sum("walvec_lag_records", table="items") == 0, what="no lag")


def test_roles_in_one_process_have_their_own_ports(tmp_path: Path, postgres: PostgresDatabase) -> None:
    postgres.execute(SCHEMA)
    first = four_ports()
    with running(tmp_path, postgres, "--in-process", first=first) as walvec:
        found = Scrape(first)
        assert [s.labels["role"] for s in found.all("walvec_build_info")] == list(IN_ORDER), walvec.tail()
        for place in range(4):
            assert httpx.get(f"http://127.0.0.1:{first + place}/health/live").json() == {"status": "ok"}
            ready = httpx.get(f"http://127.0.0.1:{first + place}/health/ready")
            assert (ready.status_code, ready.json()["role"]) == (200, IN_ORDER[place])


def test_without_the_setting_only_the_api_listens(tmp_path: Path, postgres: PostgresDatabase) -> None:
    postgres.execute(SCHEMA)
    with running(tmp_path, postgres, first=None) as walvec:
        listening = {
            (role, connection.laddr.port)
            for role, processes in walvec.roles().items()
            for process in processes
            for connection in process.net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {("api", walvec.port)}


@pytest.mark.timeout(300)
def test_over_kafka_and_while_the_broker_is_away(
    tmp_path: Path, postgres: PostgresDatabase, own_kafka: KafkaCluster
) -> None:
    postgres.execute(SCHEMA)
    first = four_ports()
    env = {"WALVEC_LOG__KIND": "kafka", **properties_environment(own_kafka.client_properties)}
    with running(tmp_path, postgres, first=first, env=env) as walvec:
        walvec.drain()
        insert(postgres.dsn, *((n, f"text {n}") for n in range(STREAMED)))
        walvec.drain()
        found = Scrape(first)
        of = {"table": "items"}
        assert found.one("walvec_records_written_total", **of, stage="cdc") == STREAMED
        assert found.one("walvec_commit_to_stored_seconds_count", **of) == STREAMED
        assert found.sum("walvec_lag_records", **of) == found.sum("walvec_lag_seconds", **of) == 0
        assert {s.labels["stage"] for s in found.all("walvec_lag_seconds")} == {"embedder", "sink"}
        assert found.one("walvec_log_bytes", **of, topic="changes") > 0
        assert not found.all("walvec_log_limit_bytes")
        assert {s.value for s in found.all("walvec_dependency_up")} == {1}

        own_kafka.pause()
        try:
            wait_until(lambda: _log_is_up(first) == {0.0}, what="all roles miss the broker")
            ready = httpx.get(f"http://127.0.0.1:{first + 2}/health/ready", timeout=15)
            assert ready.status_code == 503
            assert not ready.json()["checks"]["log"]["ok"]
            assert ready.json()["checks"]["control_database"]["ok"]
        finally:
            own_kafka.resume()
        wait_until(lambda: _log_is_up(first) == {1.0}, timeout=60, what="all roles have the broker again")


def _log_is_up(first: int) -> set[float]:
    return {s.value for s in Scrape(first).all("walvec_dependency_up", dependency="log")}
