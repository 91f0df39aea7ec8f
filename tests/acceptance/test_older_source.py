"""Source on PostgreSQL 15 without pgvector; control database and vectors in the server that walvec brings along."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.harness import SCHEMA, Walvec, differences, document, wait_until
from tests.plugins.postgres import PostgresDatabase
from tests.plugins.postgres15 import OlderDatabase

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]


@pytest.fixture
def walvec(tmp_path: Path, postgres: PostgresDatabase, postgres15: OlderDatabase) -> Iterator[Walvec]:
    """Gone before the databases are."""
    found = Walvec(tmp_path, control=postgres.dsn, store=postgres.dsn)
    yield found
    found.stop()


def equal(walvec: Walvec, source: OlderDatabase) -> None:
    walvec.drain("items", timeout=120)
    assert differences(source.dsn, walvec.env["WALVEC_PGVECTOR__URL"]) == []


def test_rows_of_an_older_server_are_followed(walvec: Walvec, postgres15: OlderDatabase) -> None:
    """Backfill, every kind of change, a dropped publication, a dropped slot, and the doctor: one running walvec."""
    source = postgres15
    source.execute(SCHEMA)
    source.execute(
        "INSERT INTO items (id, title, body, price) SELECT g, 'row ' || g, 'x', g FROM generate_series(1, 500) g"
    )
    walvec.start(walvec.definitions(document(source.dsn)))
    walvec.drain("items", timeout=120)

    source.execute("UPDATE items SET title = 'changed' WHERE id % 5 = 0; DELETE FROM items WHERE id % 7 = 0")
    source.execute("UPDATE items SET id = id + 1000 WHERE id < 20")
    source.execute("UPDATE items SET stock = 3, tags = '{a,b}' WHERE id % 2 = 0")
    equal(walvec, source)

    source.execute("TRUNCATE items; INSERT INTO items (id, title) VALUES (1, 'after')")
    equal(walvec, source)

    slot = str(source.execute("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()")[0][0])
    source.execute(f"DROP PUBLICATION {slot}; INSERT INTO items (id, title) VALUES (2, 'unseen')")
    source.execute("INSERT INTO items (id, title) VALUES (3, 'c')")
    equal(walvec, source)

    def dropped() -> bool:
        source.execute("SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots")
        source.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", slot
        )
        return True

    wait_until(dropped, what="a moment in which nobody reads the slot")
    source.execute("DELETE FROM items WHERE id = 3; INSERT INTO items (id, title) VALUES (4, 'd')")
    equal(walvec, source)
    assert not any(walvec.verify("items").values())

    checks = walvec.json("doctor", "source")
    failed = [c for found in checks["connections"] for c in found["checks"] if not c["ok"]]
    assert failed == []


def test_a_generated_column_of_an_older_server_is_refused(walvec: Walvec, postgres15: OlderDatabase) -> None:
    postgres15.execute("CREATE TABLE t (id int PRIMARY KEY, a text, g text GENERATED ALWAYS AS (a || '!') STORED)")
    table = {
        "name": "t", "connection": "source", "embedding_provider": "local", "source_table": "public.t",
        "columns": [{"name": "a", "role": "embedding"}, {"name": "g", "role": "metadata"}],
    }  # fmt: skip
    walvec.start(walvec.definitions(document(postgres15.dsn, table)), ready=False)
    assert walvec.process is not None
    assert wait_until(walvec.process.poll, timeout=60, what="the end of walvec up") == 1
    assert "generated" in walvec.tail()
    assert "Traceback" not in walvec.tail()
