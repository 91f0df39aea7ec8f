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


def test_an_api_that_is_killed_while_it_makes_a_table_leaves_nothing_behind(
    tmp_path: Path, postgres: PostgresDatabase
) -> None:
    postgres.execute("CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items VALUES (1, 'one')")
    control, store = postgres.another(), postgres.another()
    walvec = Walvec(tmp_path, control=control, store=store)
    document = {
        "connections": [{"name": "shop", "url": postgres.dsn}],
        "embedding_providers": [{"name": "local", "provider": "static"}],
    }
    walvec.start(walvec.definitions(document))

    def stored() -> list[str]:
        with psycopg.connect(store, autocommit=True) as session:
            found = session.execute(
                "SELECT relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
                " WHERE nspname = 'walvec' AND (relname LIKE 'vt%' AND relkind = 'r' OR relkind = 'v')"
            ).fetchall()
        return [row[0] for row in found]

    def topics() -> list[str]:
        answer = httpx.get(f"{walvec.url}/v1/topics", timeout=10)
        return [t["topic"] for t in answer.raise_for_status().json()["topics"]]

    def waiting() -> bool:
        with psycopg.connect(control, autocommit=True) as session:
            return bool(
                session.execute(
                    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                ).fetchall()
            )

    body = {
        "name": "items",
        "connection_id": "shop",
        "embedding_provider_id": "local",
        "source_table": "public.items",
        "primary_key_column": "id",
        "columns": [{"name": "name", "role": "embedding"}],
    }
    try:
        with psycopg.connect(control) as holder:
            # no definition can be entered while this is open: all that comes before it is done
            holder.execute("SELECT 1 FROM walvec_control.installation FOR UPDATE")

            def create() -> None:
                with contextlib.suppress(httpx.HTTPError):
                    httpx.post(f"{walvec.url}/v1/vector-tables", json=body, timeout=30)

            creating = threading.Thread(target=create)
            creating.start()
            wait_until(waiting, what="the definition is about to be entered")
            assert len(stored()) == 2
            assert len(topics()) == 3
            walvec.kill("api")
            creating.join()
        wait_until(lambda: stored() == [], what="storage and view are gone")
        wait_until(lambda: topics() == [], what="the topics are gone")
        made = httpx.post(f"{walvec.url}/v1/vector-tables", json=body, timeout=30)
        assert made.status_code == 201, made.text
        assert len(topics()) == 3
    finally:
        walvec.stop()
