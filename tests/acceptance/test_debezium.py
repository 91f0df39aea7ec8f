"""A table behind an existing Debezium: whatever happens to the connector, the view equals the table in the end."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.faults import filled
from tests.acceptance.harness import TABLE, Workload, after, differences, document, running
from tests.plugins.connect import JSON, DebeziumConnect
from tests.plugins.kafka import KafkaCluster
from tests.plugins.machines import Machines, machines
from tests.plugins.postgres import PostgresDatabase

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

ROWS = 300


class Captured:
    """`items` captured by a running connector, and walvec's roles reading its topic."""

    def __init__(self, connect: DebeziumConnect, walvec: Machines, postgres: PostgresDatabase) -> None:
        self.connect = connect
        self.walvec = walvec
        self.postgres = postgres
        self.store = walvec.env["WALVEC_PGVECTOR__URL"]

    def equal(self) -> None:
        """Drained (the connector has sent everything, then); by plain SQL, and by the program's own word."""
        self.walvec.drain("items", timeout=300)
        wrong = differences(self.postgres.dsn, self.store)
        assert not wrong, f"{wrong}\n{self.walvec.tail()}\n{self.connect.tail()}"
        done = self.walvec.run("verify", "items", "--json")
        assert done.returncode == 0, f"verify: {done.stdout}{done.stderr}\n{self.walvec.tail()}"


@pytest.fixture
def capture(
    tmp_path: Path, postgres: PostgresDatabase, kafka: KafkaCluster, debezium: Callable[..., DebeziumConnect]
) -> Iterator[Callable[..., Captured]]:
    """`capture(schemas=True, **{"decimal.handling.mode": "string"})`: the connector's converter and its options."""
    opened: list[Any] = []

    def start(*, schemas: bool = False, partitions: int = 3, **options: str) -> Captured:
        filled(postgres.dsn, ROWS)
        prefix = f"dbz{uuid.uuid4().hex[:8]}"
        options = {
            "skipped.operations": "none",
            "topic.creation.default.partitions": str(partitions),
            "heartbeat.interval.ms": "500",  # without it nothing is confirmed to the slot while the table is quiet
            **options,
        }
        connect = debezium(postgres.dsn, kafka, prefix, ["public.items"], options, schemas=schemas)
        connect.start()
        store = postgres.another()
        context = machines(tmp_path / "m", dsn=store, control=store, kafka=kafka)
        walvec = context.__enter__()
        opened.append(context)
        walvec.start_all()
        source = {"kafka_topic": connect.topic("public.items"), "slot": connect.slot}
        done = walvec.apply(document(postgres.dsn, {**TABLE, "source": source}))
        assert done.returncode == 0, done.stdout + done.stderr + walvec.tail()
        return Captured(connect, walvec, postgres)

    yield start
    for context in opened:
        context.__exit__(None, None, None)


def test_whatever_happens_to_the_connector(capture: Callable[..., Captured]) -> None:
    """Killed, so that it delivers again; a bridge killed; another converter; at last its offsets are lost: what was
    deleted while it had none is nowhere in its topic. Each start of the connector costs seconds, so it is one story."""
    captured = capture()
    with running(Workload(captured.postgres.dsn, seed=5, pause=0.1)) as workload:
        after(workload, 20)
        captured.connect.kill()
        after(workload, 20)
        captured.connect.start()
        captured.walvec.kill_one("cdc-1")
        after(workload, 20)
        captured.walvec.start_role("cdc")
        after(workload, 20)
    captured.equal()
    captured.connect.kill()
    captured.connect.forget_offsets()
    captured.postgres.execute("DELETE FROM items WHERE id % 3 = 0")
    captured.connect.start(**{"value.converter": JSON, "value.converter.schemas.enable": "true"})
    captured.postgres.execute("UPDATE items SET title = 'afterwards' WHERE id % 5 = 0")
    captured.equal()
