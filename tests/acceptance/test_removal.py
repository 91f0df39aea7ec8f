"""The API is killed while it removes: what it has begun is finished by the next one."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import httpx
import psycopg

from tests.acceptance.harness import Walvec, wait_until
from tests.plugins.postgres import PostgresDatabase

TABLE = {
    "name": "items",
    "connection": "shop",
    "embedding_provider": "local",
    "source_table": "public.items",
    "columns": [{"name": "name", "role": "embedding"}],
}


def left(dsn: str) -> list[str]:
    with psycopg.connect(dsn, autocommit=True) as session:
        found = session.execute(
            "SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database()"
            " UNION ALL SELECT pubname::text FROM pg_publication"
        ).fetchall()
    return [row[0] for row in found]


def test_a_killed_api_leaves_nothing_behind(tmp_path: Path, postgres: PostgresDatabase) -> None:
    postgres.execute("CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items VALUES (1, 'one')")
    control = postgres.another()
    walvec = Walvec(tmp_path, control=control, store=postgres.another())
    document = {
        "connections": [{"name": "shop", "url": postgres.dsn}],
        "embedding_providers": [{"name": "local", "provider": "static"}],
        "vector_tables": [TABLE],
    }
    walvec.start(walvec.definitions(document))
    try:
        wait_until(lambda: len(left(postgres.dsn)) == 2, what="slot and publication")
        with psycopg.connect(postgres.dsn) as holder:
            # the publication cannot be dropped while this is open: the removal is in the middle of its work
            holder.execute("LOCK TABLE pg_publication IN SHARE MODE")

            def delete() -> None:
                with contextlib.suppress(httpx.HTTPError):
                    httpx.delete(f"{walvec.url}/v1/vector-tables/items", timeout=30)

            deleting = threading.Thread(target=delete)
            deleting.start()
            wait_until(lambda: len(left(postgres.dsn)) == 1, what="the slot is gone")
            with psycopg.connect(control, autocommit=True) as session:
                stored = "SELECT what FROM walvec_control.removals WHERE what = 'slot'"
                assert session.execute(stored).fetchall() == [("slot",)]
                walvec.kill("api")
                deleting.join()
                assert session.execute(stored).fetchall() == [("slot",)]
        wait_until(lambda: left(postgres.dsn) == [], what="nothing is left at the source")

        def listed() -> bool:
            found = httpx.get(f"{walvec.url}/v1/tasks", timeout=5).json()["data"]
            return not [t for t in found if t["task_type"] == "removal"]

        wait_until(listed, what="no removal is listed")
        assert httpx.get(f"{walvec.url}/v1/status", timeout=5).json() == {"tables": [], "removals": []}
    finally:
        walvec.stop()
