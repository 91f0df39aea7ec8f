"""`walvec replay`: what it mends in a store that was damaged by hand, and what it leaves to `verify --repair`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.acceptance.harness import SCHEMA, Walvec, differences, document, wait_until
from tests.plugins.kafka import KafkaCluster
from tests.plugins.postgres import PostgresDatabase

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]

ROWS = 60


def _kafka(request: pytest.FixtureRequest) -> dict[str, str]:
    cluster: KafkaCluster = request.getfixturevalue("kafka")
    return {"WALVEC_LOG__KIND": "kafka", "WALVEC_KAFKA__BOOTSTRAP_SERVERS": cluster.bootstrap_servers}


class Store:
    """The table that walvec keeps vectors in, as an administrator gets at it."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        (name,) = self.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'walvec' AND tablename LIKE 'vt\\_%\\_g1'"
        )[0]
        self.table = sql.Identifier("walvec", name)

    def execute(self, statement: str) -> list[Any]:
        with psycopg.connect(self.dsn) as connection:
            query = sql.SQL(statement).format(t=self.table) if "{t}" in statement else sql.SQL(statement)  # type: ignore[arg-type]
            found = connection.execute(query)
            return found.fetchall() if found.description else []


class Replayed:
    def __init__(self, walvec: Walvec, source: PostgresDatabase, store: str) -> None:
        self.walvec, self.source, self.dsn = walvec, source, store

    def differences(self) -> list[str]:
        return differences(self.source.dsn, self.dsn, limit=ROWS * 3)

    def replay(self, start: str = "earliest") -> int:
        found = self.walvec.json("replay", "items", "--from", start)
        assert found["done"], found
        self.walvec.drain()
        count: int = found["replayed"]
        return count

    def changes(self) -> None:
        """Every kind of change, over all rows."""
        for statement in (
            "UPDATE items SET title = 'new ' || title WHERE id % 5 = 0",
            "UPDATE items SET stock = 9 WHERE id % 5 = 1",
            "DELETE FROM items WHERE id % 5 = 2",
            "UPDATE items SET id = id + 1000 WHERE id % 5 = 3",
            "INSERT INTO items (id, title) SELECT i, 'later ' || i FROM generate_series(2000, 2009) i",
        ):
            self.source.execute(statement)
        self.walvec.drain()
        assert self.differences() == []


@pytest.fixture(params=["local", "kafka"])
def begun(request: pytest.FixtureRequest, tmp_path: Path, postgres: PostgresDatabase) -> Iterator[Replayed]:
    """A table with rows of a backfill and rows of the stream, drained; tombstones are not purged."""
    env = {"WALVEC_SINK__PURGE_INTERVAL_SECONDS": "3600"}
    if request.param == "kafka":
        env |= _kafka(request)
    own = postgres.another()
    walvec = Walvec(tmp_path, control=own, store=own, env=env)
    postgres.execute(SCHEMA)
    fill = (
        "INSERT INTO items (id, title, body, stock)"
        " SELECT i, 'title ' || i, 'body ' || i % 7, i % 3 FROM generate_series({}, {}) i"
    )
    postgres.execute(fill.format(1, ROWS // 2))
    try:
        walvec.start(walvec.definitions(document(postgres.dsn)))
        walvec.drain()
        postgres.execute(fill.format(ROWS // 2 + 1, ROWS))
        walvec.drain()
        found = Replayed(walvec, postgres, own)
        assert found.differences() == []
        yield found
    finally:
        walvec.stop()


def test_a_store_that_was_set_back_catches_up(begun: Replayed) -> None:
    store = Store(begun.dsn)
    store.execute("CREATE TABLE public.copy AS SELECT * FROM {t}")
    begun.changes()
    store.execute("TRUNCATE {t}")
    store.execute("INSERT INTO {t} SELECT * FROM public.copy")
    assert begun.differences()
    assert begun.replay() > ROWS
    assert begun.differences() == []
    assert not any(begun.walvec.verify("items").values())


def test_rows_that_were_lost_come_back_and_a_second_replay_changes_nothing(begun: Replayed) -> None:
    begun.changes()
    store = Store(begun.dsn)
    store.execute("DELETE FROM {t} WHERE k0 % 2 = 0")
    assert begun.differences()
    first = begun.replay()
    assert begun.differences() == []
    before = store.execute("SELECT * FROM {t} ORDER BY key_id, chunk")
    assert begun.replay() == first * 2  # what the first one appended is in the log now
    assert store.execute("SELECT * FROM {t} ORDER BY key_id, chunk") == before
    assert begun.replay("latest") == 0


def test_what_was_damaged_in_place_is_left_to_repair(begun: Replayed) -> None:
    Store(begun.dsn).execute("UPDATE {t} SET embedded_text = 'damaged', hash = repeat('0', 32) WHERE k0 = 1")
    begun.replay()
    assert begun.differences() != []
    assert begun.walvec.verify("items")["stale"] == [{"id": 1}]
    assert not any(begun.walvec.verify("items", "--repair").values())
    assert begun.differences() == []


def test_what_was_lost_below_the_horizon_is_left_to_repair(tmp_path: Path, postgres: PostgresDatabase) -> None:
    own = postgres.another()
    walvec = Walvec(tmp_path, control=own, store=own, env={"WALVEC_SINK__PURGE_INTERVAL_SECONDS": "0.2"})
    postgres.execute(SCHEMA)
    walvec.start(walvec.definitions(document(postgres.dsn)))
    try:
        walvec.drain()  # its stream has begun: what follows is told by it, and not by the backfill
        postgres.execute("INSERT INTO items (id, title) SELECT i, 't' || i FROM generate_series(1, 20) i")
        postgres.execute("DELETE FROM items WHERE id = 20")
        walvec.drain()
        store = Store(own)
        wait_until(lambda: store.execute("SELECT count(*) FROM {t}") == [(19,)], what="the tombstone's end")
        store.execute("DELETE FROM {t} WHERE k0 = 1")
        found = Replayed(walvec, postgres, own)
        assert found.replay() >= 21
        assert found.differences() == ["missing 1"]
        assert not any(walvec.verify("items", "--repair").values())
        assert found.differences() == []
    finally:
        walvec.stop()
