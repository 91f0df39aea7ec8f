"""The client of the two documented pages, request by request and in their order, against a real `walvec up`.

Bodies and headers are the pages' own; only the address, the database's credentials and ids that an answer gave differ.
Every field that a page shows is checked, and the supersets where the pages disagree.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.acceptance.harness import Walvec, wait_until
from tests.plugins.openai_server import vector_of
from tests.plugins.openapi import Contract
from tests.plugins.ports import free_port
from tests.plugins.postgres import PostgresDatabase

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]

KEY = "sk_your_api_key"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
PRODUCTS = """
CREATE TABLE public.products (
    id bigint PRIMARY KEY, name text NOT NULL, description text, category text, price numeric(10,2), in_stock boolean
);
INSERT INTO public.products VALUES
    (4821, 'Alpine Fleece Jacket',
     'Lightweight fleece jacket with wind-resistant outer layer', 'outerwear', 129.99, true),
    (7733, 'Merino Wool Base Layer',
     'Moisture-wicking merino wool top for cold-weather hiking', 'base-layers', 89.00, true),
    (9001, 'Expedition Parka', 'Warm', 'outerwear', 499.00, true),
    (9002, 'Wool Socks', NULL, 'socks', 19.00, false);
"""
COLUMNS = json.loads(
    """[
{"name": "name", "role": "embedding", "ordinal": 1, "name_prefix": "Product: "},
{"name": "description", "role": "embedding", "ordinal": 2, "name_prefix": "Description: "},
{"name": "category", "role": "metadata", "filter_type": "keyword"},
{"name": "price", "role": "metadata", "filter_type": "float"},
{"name": "in_stock", "role": "metadata", "filter_type": "boolean"}
]"""
)
QUERY = json.loads(
    """{
"query": "something warm for hiking",
"limit": 5,
"filters": {
"in_stock": {"eq": true},
"price": {"lte": 150}
}
}"""
)
REFERENCE_COLUMNS = json.loads(
    """[
{"name": "TITLE", "role": "embedding", "ordinal": 1, "name_prefix": "title: "},
{"name": "DESCRIPTION", "role": "embedding", "ordinal": 2},
{"name": "CATEGORY", "role": "metadata", "filter_type": "keyword"},
{"name": "PRICE", "role": "metadata", "filter_type": "float"},
{"name": "IN_STOCK", "role": "metadata", "filter_type": "boolean"}
]"""
)
REFERENCE_FIELDS = {
    "id", "org_id", "environment_id", "connection_id", "embedding_provider_id", "name", "source_table",
    "primary_key_column", "columns", "embedding_model", "embedding_dimensions", "mode", "sync_mode", "sync_status",
    "qdrant_collection", "platform_vector_ref", "total_rows", "synced_rows", "created_at", "updated_at",
}  # fmt: skip


class Client:
    """Sends what the pages send, each request on a connection of its own."""

    def __init__(self, url: str, **headers: str) -> None:
        self.url, self.headers = url, {"Authorization": f"Bearer {KEY}", **headers}
        self.contract = Contract(httpx.get(f"{url}/openapi.json").json())

    def ask(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        answer = httpx.request(method, self.url + path, json=body, headers=self.headers, timeout=60)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
        assert answer.headers["X-Request-Id"].startswith("req_")
        found = answer.json() if answer.content else None
        self.contract.check(method, path, status, answer.headers, found)
        return found

    def refused(self, method: str, path: str, status: int, code: str, body: Any = None) -> None:
        error = self.ask(method, path, body, status)["error"]
        assert error["code"] == code, error
        assert set(error) == {"code", "message", "resolution", "docs_url", "request_id"}


@pytest.fixture
def openai() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.plugins.openai_server", "--port", str(port)], stdout=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/stats").is_success, what="the provider")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def walvec(tmp_path: Path, postgres: PostgresDatabase, openai: str) -> Iterator[Walvec]:
    own = postgres.another()
    env = {"WALVEC_API__KEYS": KEY, "WALVEC_PROVIDERS__OPENAI__BASE_URL": openai}
    found = Walvec(tmp_path, control=own, store=own, env=env)
    found.start()
    yield found
    found.stop()


def connected(client: Client, postgres: PostgresDatabase) -> str:
    """Steps 1 and 2."""
    place = conninfo_to_dict(postgres.dsn)
    made = client.ask(
        "POST",
        "/v1/providers/postgresql/connections",
        {
            "name": "product-db",
            "mode": "managed",
            "credentials": {
                "host": place["host"],
                "port": int(place["port"]),
                "database": place["dbname"],
                "user": place["user"],
                "password": place["password"],
            },
        },
        201,
    )
    assert made["id"].startswith("conn_")
    shown = {"name": "product-db", "provider": "postgresql", "mode": "managed", "status": "created"}
    assert {k: made[k] for k in shown} == shown
    assert TIME.fullmatch(made["created_at"])
    assert str(place["password"]) not in json.dumps(made)
    tested = client.ask("POST", f"/v1/connections/{made['id']}/test")
    assert tested["status"] == "ok"
    assert tested["latency_ms"] >= 0
    after = client.ask("GET", f"/v1/connections/{made['id']}")
    assert after["status"] == "connected"
    return str(made["id"])


def provided(client: Client) -> str:
    """Step 3."""
    made = client.ask(
        "POST",
        "/v1/embedding-providers",
        {
            "name": "openai-prod",
            "provider": "openai",
            "api_key": "sk-proj-your-openai-key",
            "default_model": "text-embedding-3-small",
        },
        201,
    )
    assert made["id"].startswith("emb_")
    shown = {"name": "openai-prod", "provider": "openai", "default_model": "text-embedding-3-small"}
    assert {k: made[k] for k in shown} == shown
    assert TIME.fullmatch(made["created_at"])
    assert "sk-proj-your-openai-key" not in json.dumps(made)
    return str(made["id"])


def status(client: Client, table: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = client.ask("GET", f"/v1/vector-tables/{table}/sync/status")
    assert {
        "sync_status", "synced_rows", "total_rows", "last_synced_at",
        "vector_table_id", "last_sync_at", "rows_pending", "staleness_secs", "last_error", "last_error_at",
    } <= set(found)  # fmt: skip
    return found


def synced(client: Client, table: str, rows: int) -> Mapping[str, Any]:
    def done() -> Any:
        found = status(client, table)
        assert found["last_error"] is None
        whole = (found["sync_status"], found["synced_rows"], found["total_rows"]) == ("synced", rows, rows)
        return found if whole else None

    found: Mapping[str, Any] = wait_until(done, timeout=60, what="sync_status synced")
    assert TIME.fullmatch(found["last_synced_at"])
    return found


def test_managed_and_postgresql(walvec: Walvec, postgres: PostgresDatabase) -> None:
    """The page "Managed + PostgreSQL", from its first step to its last, and what the reference says comes after."""
    postgres.execute(PRODUCTS)
    client = Client(walvec.url)
    connection = connected(client, postgres)
    provider = provided(client)
    made = client.ask(
        "POST",
        "/v1/vector-tables",
        {
            "name": "products-search",
            "connection_id": connection,
            "embedding_provider_id": provider,
            "source_table": "public.products",
            "primary_key_column": "id",
            "embedding_model": "text-embedding-3-small",
            "embedding_dimensions": 1536,
            "columns": COLUMNS,
        },
        201,
    )
    table = made["id"]
    path = f"/v1/vector-tables/{table}"
    shown = {
        "name": "products-search", "connection_id": connection, "embedding_provider_id": provider,
        "source_table": "public.products", "mode": "managed", "sync_status": "pending",
        "embedding_model": "text-embedding-3-small", "embedding_dimensions": 1536, "columns": COLUMNS,
    }  # fmt: skip
    assert {k: made[k] for k in shown} == shown
    assert TIME.fullmatch(made["created_at"])
    client.refused("POST", f"{path}/query", 422, "vector_table_not_ready", QUERY)

    task = client.ask("POST", f"{path}/backfill")
    assert task["task_id"].startswith("task_")
    assert (task["task_type"], task["target_id"], task["status"]) == ("backfill", table, "pending")
    assert TIME.fullmatch(task["created_at"])
    assert task["vector_table_id"] == table
    assert (task["total_rows"], task["synced_rows"]) == (4, 0)
    assert client.ask("GET", f"/v1/tasks/{task['task_id']}")["id"] == task["task_id"]
    synced(client, table, 4)
    assert client.ask("GET", f"/v1/tasks/{task['task_id']}")["status"] == "completed"

    found = client.ask("POST", f"{path}/query", QUERY)
    assert sorted(r["id"] for r in found["results"]) == ["4821", "7733"]
    assert [r["score"] for r in found["results"]] == sorted((r["score"] for r in found["results"]), reverse=True)
    jacket = next(r for r in found["results"] if r["id"] == "4821")
    text = "Product: Alpine Fleece Jacket\nDescription: Lightweight fleece jacket with wind-resistant outer layer"
    assert jacket["embedded_text"] == text
    assert jacket["score"] == jacket["similarity_score"]
    assert jacket["score"] == pytest.approx(float(vector_of(QUERY["query"], 1536) @ vector_of(text, 1536)), abs=1e-3)
    assert jacket["metadata"] == {
        "name": "Alpine Fleece Jacket",
        "description": "Lightweight fleece jacket with wind-resistant outer layer",
        "category": "outerwear",
        "price": 129.99,
        "in_stock": True,
    }
    assert (found["query"], found["model"]) == (QUERY["query"], "text-embedding-3-small")
    assert found["total_results"] == 2
    for spelled in (
        {"category": {"ne": "outerwear"}},
        {"category": {"neq": "outerwear"}},
        {"category": {"$ne": "outerwear"}},
    ):
        others = client.ask("POST", f"{path}/query", {"query": "warm", "filters": spelled})
        assert {r["id"] for r in others["results"]} == {"7733", "9002"}

    postgres.execute("INSERT INTO products VALUES (9100, 'Down Vest', 'Light', 'outerwear', 99.50, true)")
    postgres.execute("DELETE FROM products WHERE id = 9002")
    postgres.execute("UPDATE products SET in_stock = false WHERE id = 7733")

    def hits() -> set[str]:
        return {r["id"] for r in client.ask("POST", f"{path}/query", QUERY)["results"]}

    wait_until(lambda: hits() == {"4821", "9100"}, what="changes in the answers")
    synced(client, table, 4)
    paused = client.ask("POST", f"{path}/sync/pause")
    assert (paused["vector_table_id"], paused["sync_status"], paused["message"]) == (
        table, "paused", "Sync has been paused",
    )  # fmt: skip
    client.refused("POST", f"{path}/sync/pause", 409, "sync_already_paused")
    assert status(client, table)["sync_status"] == "paused"
    postgres.execute("INSERT INTO products VALUES (9101, 'Rain Shell', 'Dry', 'outerwear', 149.00, true)")
    assert hits() == {"4821", "9100"}
    resumed = client.ask("POST", f"{path}/sync/resume")
    assert (resumed["vector_table_id"], resumed["sync_status"], resumed["message"]) == (
        table, "synced", "Sync has been resumed",
    )  # fmt: skip
    client.refused("POST", f"{path}/sync/resume", 409, "sync_not_paused")
    wait_until(lambda: hits() == {"4821", "9100", "9101"}, what="what was changed meanwhile")

    changed_with_queries(client, path, hits)
    client.refused("DELETE", f"/v1/connections/{connection}", 409, "connection_conflict")
    deleted(client, postgres, table, connection)


def changed_with_queries(client: Client, path: str, hits: Any) -> None:
    """PUT of columns and model; queries go on all the while, and are answered by one of both, never by none."""
    wanted = [*COLUMNS[:3], *COLUMNS[3:4], {"name": "in_stock", "role": "metadata", "filter_type": "boolean"}]
    wanted[0] = {**COLUMNS[0], "name_prefix": "Article: "}
    stop = threading.Event()
    answers: list[tuple[str, int]] = []
    failures: list[str] = []

    def ask_on() -> None:
        with httpx.Client(base_url=client.url, headers=client.headers, timeout=30) as http:
            while not stop.is_set():
                answer = http.post(f"{path}/query", json={"query": "warm", "limit": 100})
                if answer.status_code != 200:
                    failures.append(answer.text)
                else:
                    found = answer.json()
                    prefixes = {r["embedded_text"].split(":")[0] for r in found["results"]}
                    model = "Article" if found["model"] == "text-embedding-3-large" else "Product"
                    if prefixes != {model}:
                        failures.append(f"{found['model']}: {prefixes}")
                    answers.append((found["model"], len(found["results"])))

    asking = threading.Thread(target=ask_on)
    asking.start()
    try:
        wait_until(lambda: answers, what="an answer before the change")
        before = client.ask("GET", path)
        body = {"columns": wanted, "embedding_model": "text-embedding-3-large", "embedding_dimensions": 1024}
        after = client.ask("PUT", path, body)
        assert after["sync_status"] == "pending_rebackfill"
        assert (after["embedding_model"], after["embedding_dimensions"]) == ("text-embedding-3-large", 1024)
        assert after["columns"] == wanted
        assert after["created_at"] == before["created_at"]
        task = client.ask("POST", f"{path}/backfill")
        assert task["task_type"] == "rebackfill"
        wait_until(lambda: answers[-1][0] == "text-embedding-3-large", timeout=60, what="the swap")
        wait_until(lambda: status(client, after["id"])["sync_status"] == "synced", what="synced after the swap")
    finally:
        stop.set()
        asking.join()
    assert failures == []
    assert {count for _, count in answers} == {5}
    models = [model for model, _ in answers]
    assert models == sorted(models, key=["text-embedding-3-small", "text-embedding-3-large"].index)
    assert hits() == {"4821", "9100", "9101"}
    renamed = client.ask("PUT", path, {"name": "product-finder"})
    assert (renamed["name"], renamed["sync_status"]) == ("product-finder", "synced")


def deleted(client: Client, postgres: PostgresDatabase, table: str, connection: str) -> None:
    assert client.ask("DELETE", f"/v1/vector-tables/{table}", status=204) is None
    client.refused("GET", f"/v1/vector-tables/{table}", 404, "vector_table_not_found")
    assert client.ask("GET", "/v1/vector-tables")["data"] == []

    def nothing_is_held() -> bool:
        return postgres.execute(
            "SELECT FROM pg_replication_slots WHERE database = current_database() UNION ALL SELECT FROM pg_publication"
        ) == []  # fmt: skip

    wait_until(nothing_is_held, timeout=60, what="slot and publication gone")
    assert postgres.execute("SELECT count(*) FROM products") == [(5,)]
    assert client.ask("DELETE", f"/v1/connections/{connection}", status=204) is None


def test_the_reference_page(walvec: Walvec, postgres: PostgresDatabase, openai: str) -> None:
    """The page "Vector Tables": its requests as they stand, with the environment's header and upper-case names."""
    postgres.execute(
        'CREATE TABLE "PRODUCTS" ("ID" bigint PRIMARY KEY, "TITLE" varchar NOT NULL, "DESCRIPTION" varchar,'
        ' "CATEGORY" varchar, "PRICE" numeric, "IN_STOCK" boolean)'
    )
    postgres.execute("""INSERT INTO "PRODUCTS" SELECT i, 'title ' || i, 'words', 'c', i, true
        FROM generate_series(1, 10) i""")
    plain = Client(walvec.url)
    (environment,) = [e for e in plain.ask("GET", "/v1/environments")["data"] if e["name"] == "prod"]
    client = Client(walvec.url, **{"X-Environment-Id": environment["id"]})
    connection, provider = connected(client, postgres), provided(client)
    made = client.ask(
        "POST",
        "/v1/vector-tables",
        {
            "name": "product-search",
            "connection_id": connection,
            "embedding_provider_id": provider,
            "source_table": "PRODUCTS",
            "primary_key_column": "ID",
            "columns": REFERENCE_COLUMNS,
            "embedding_model": "text-embedding-3-small",
            "embedding_dimensions": 1536,
            "mode": "managed",
            "sync_mode": "cdc",
        },
        201,
    )
    table = made["id"]
    assert set(made) >= REFERENCE_FIELDS
    assert table.startswith("vt_")
    assert made["org_id"].startswith("org_")
    assert (made["environment_id"], made["source_table"], made["primary_key_column"]) == (
        environment["id"], "PRODUCTS", "ID",
    )  # fmt: skip
    assert made["columns"] == REFERENCE_COLUMNS
    assert (made["mode"], made["sync_mode"], made["sync_status"]) == ("managed", "cdc", "pending")
    assert re.fullmatch(r"vt_[0-9a-f]{8}_product-search", made["qdrant_collection"])
    assert made["platform_vector_ref"] is None
    assert (made["total_rows"], made["synced_rows"]) == (10, 0) or (made["total_rows"], made["synced_rows"]) == (0, 0)
    assert TIME.fullmatch(made["updated_at"])
    listed = client.ask("GET", "/v1/vector-tables")
    assert [t["id"] for t in listed["data"]] == [table]
    assert listed["pagination"] == {"limit": 20, "has_more": False, "next_cursor": None}
    assert client.ask("GET", f"/v1/vector-tables/{table}")["name"] == "product-search"
    schema = client.ask("GET", f"/v1/vector-tables/{table}/schema")
    assert schema["columns"][:3] == [
        {"name": "ID", "type": "bigint", "nullable": False},
        {"name": "TITLE", "type": "character varying", "nullable": False},
        {"name": "DESCRIPTION", "type": "character varying", "nullable": True},
    ]
    renamed = client.ask("PUT", f"/v1/vector-tables/{table}", {"name": "product-search-2"})
    assert (renamed["name"], renamed["sync_status"]) == ("product-search-2", "pending")
    httpx.post(f"{openai.removesuffix('/v1')}/control", json={"status": 503}).raise_for_status()
    backfill = client.ask("POST", f"/v1/vector-tables/{table}/backfill")
    assert (backfill["vector_table_id"], backfill["total_rows"]) == (table, 10)
    client.refused("POST", f"/v1/vector-tables/{table}/backfill", 409, "backfill_in_progress")
    httpx.post(f"{openai.removesuffix('/v1')}/reset").raise_for_status()
    synced(client, table, 10)
    assert client.ask("DELETE", f"/v1/vector-tables/{table}", status=204) is None
    client.refused("GET", f"/v1/vector-tables/{table}", 404, "vector_table_not_found")
    client.headers["X-Environment-Id"] = "env_abc123"
    client.refused("GET", "/v1/vector-tables", 404, "environment_not_found")
    client.headers["Authorization"] = "Bearer sk_your_key"
    client.refused("GET", "/v1/vector-tables", 401, "unauthorized")
