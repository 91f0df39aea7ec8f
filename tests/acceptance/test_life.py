"""The life of one vector table over the API of a real `walvec up`: from its creation to its removal, with two
providers, and the same said in YAML."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml

from tests.acceptance.harness import SCHEMA, Walvec, wait_until
from tests.plugins.ports import free_port
from tests.plugins.postgres import _create, _drop
from walvec.runtime.embedded_postgres import EmbeddedPostgres

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(150)]

ROWS = 60
TITLE = {"name": "title", "role": "embedding", "ordinal": 1, "name_prefix": "Title: "}
BODY = {"name": "body", "role": "embedding", "ordinal": 2}
STOCK = {"name": "stock", "role": "metadata", "filter_type": "integer"}
PRICE = {"name": "price", "role": "metadata", "filter_type": "float"}


class Life:
    """A running walvec with the source table `items`, its API, and a provider of the kind openai."""

    def __init__(self, walvec: Walvec, source: str, store: str, port: int) -> None:
        self.walvec, self.source, self.store = walvec, source, store
        self.provider = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=walvec.url, timeout=60)

    def ask(self, method: str, path: str, body: Any = None, status: int = 200, **more: Any) -> Any:
        answer = self.http.request(method, path, json=body, **more)
        assert answer.status_code == status, (
            f"{method} {path}: {answer.status_code} {answer.text}\n{self.walvec.tail()}"
        )
        return answer.json() if answer.content else None

    def code(self, method: str, path: str, body: Any = None, status: int = 409, **more: Any) -> str:
        return str(self.ask(method, path, body, status, **more)["error"]["code"])

    def sql(self, statement: str, *, at: str | None = None) -> list[tuple[Any, ...]]:
        with psycopg.connect(at or self.source, autocommit=True) as c:
            cursor = c.execute(statement)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def view(self, what: str, view: str = "items") -> list[tuple[Any, ...]]:
        return self.sql(f"SELECT {what} FROM walvec.{view} ORDER BY id", at=self.store)

    def texts(self) -> int:
        return int(httpx.get(f"{self.provider}/stats").json()["texts"])

    def faults(self, **wanted: Any) -> None:
        httpx.post(f"{self.provider}/control", json=wanted).raise_for_status()

    def reached(self, path: str, state: str, **table: Any) -> Any:
        def look() -> Any:
            found = self.ask("GET", path)
            wrong = {k: found[k] for k in table if found[k] != table[k]}
            assert (found["sync_status"], wrong) == (state, {}), (found["sync_status"], wrong, found["generations"])
            return found

        return wait_until(look, timeout=40, what=f"{path} {state} {table}")

    def drain(self, *tables: str) -> None:
        found = self.ask("POST", "/v1/drain", {"tables": list(tables) or None, "timeout": 40})
        assert found["drained"], f"{found}\n{self.walvec.tail()}"


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory, postgres_server: EmbeddedPostgres) -> Iterator[Life]:
    names = [_create(postgres_server) for _ in range(2)]
    source, own = (postgres_server.dsn(n) for n in names)
    port = free_port()
    provider = subprocess.Popen(
        [sys.executable, "-m", "tests.plugins.openai_server", "--port", str(port)], stdout=subprocess.DEVNULL
    )
    walvec = Walvec(tmp_path_factory.mktemp("life"), control=own, store=own)
    found = Life(walvec, source, own, port)
    found.sql(SCHEMA)
    found.sql(
        "INSERT INTO items SELECT n, (ARRAY['tent', 'saw', 'piano', 'bread'])[n % 4 + 1] || ' ' || n, 'about ' || n,"
        f" n, NULL, n % 10, now() FROM generate_series(1, {ROWS}) n"
    )
    wait_until(lambda: found.texts() == 0, what="the provider")
    walvec.start()
    yield found
    found.http.close()
    code = walvec.stop()
    provider.kill()
    provider.wait()
    for n in names:
        _drop(postgres_server, n)
    assert code == 0
    assert "Traceback" not in walvec.log.read_text(errors="replace")


def test_from_creation_to_removal(life: Life) -> None:
    said = psycopg.conninfo.conninfo_to_dict(life.source)
    credentials = {
        "host": said["host"], "port": int(said["port"] or 5432), "database": said["dbname"], "user": said["user"],
        "password": said["password"],
    }  # fmt: skip
    connection = life.ask(
        "POST", "/v1/providers/postgresql/connections",
        {"name": "shop", "mode": "managed", "credentials": credentials}, 201,
    )  # fmt: skip
    assert life.ask("POST", f"/v1/connections/{connection['id']}/test")["status"] == "ok"
    static = life.ask("POST", "/v1/embedding-providers", {"name": "local", "provider": "static"}, 201)
    paid = life.ask(
        "POST", "/v1/embedding-providers",
        {"name": "paid", "provider": "openai", "api_key": "sk-x", "base_url": f"{life.provider}/v1"}, 201,
    )  # fmt: skip
    table = life.ask(
        "POST", "/v1/vector-tables",
        {"name": "items", "connection_id": connection["id"], "embedding_provider_id": static["id"],
         "source_table": "public.items", "primary_key_column": "id", "columns": [TITLE, STOCK]}, 201,
    )  # fmt: skip
    path = f"/v1/vector-tables/{table['id']}"
    assert (table["sync_status"], table["generations"]["building"]) == ("pending", None)

    # create -> backfill -> query
    assert life.code("POST", f"{path}/query", {"query": "tent"}, 422) == "vector_table_not_ready"
    task = life.ask("POST", f"{path}/backfill")
    assert (task["status"], task["task_type"], task["vector_table_id"]) == ("pending", "backfill", table["id"])
    life.drain("items")
    life.reached(path, "synced", total_rows=ROWS, synced_rows=ROWS)
    done = life.ask("GET", f"/v1/tasks/{task['task_id']}")
    assert (done["status"], done["progress"]["rows_processed"]) == ("completed", ROWS)
    assert done["progress"]["last_processed_pk"] == str(ROWS)
    assert life.code("POST", f"/v1/tasks/{task['task_id']}/cancel") == "task_not_cancellable"
    assert len(life.ask("POST", f"{path}/query", {"query": "tent"})["results"]) == 10

    # pause: changes are collected, and resume says how far behind it is
    assert life.ask("POST", f"{path}/sync/pause")["sync_status"] == "paused"
    assert life.code("POST", f"{path}/sync/pause") == "sync_already_paused"
    life.sql("UPDATE items SET title = 'canoe ' || id WHERE id <= 5")
    life.sql("DELETE FROM items WHERE id = 6")

    def collected() -> Any:
        status = life.ask("GET", f"{path}/sync/status")
        return status["lag_changes"] == 6 and status["oldest_unprocessed_at"] and status

    behind = wait_until(collected, what="six changes that wait")
    assert (behind["sync_status"], behind["lag_seconds"] > 0) == ("paused", True)
    resumed = life.ask("POST", f"{path}/sync/resume")
    assert (resumed["sync_status"], resumed["lag_changes"] <= 6) == ("synced", True)
    assert life.code("POST", f"{path}/sync/resume") == "sync_not_paused"
    life.drain("items")
    assert [t for (t,) in life.view("embedded_text")[:5]] == [f"Title: canoe {n}" for n in range(1, 6)]
    assert len(life.view("id")) == ROWS - 1

    # PUT of columns and model: the old definition answers until the new one is complete, then they swap
    life.faults(latency=0.5)
    before = life.http.get(path).headers["ETag"]
    other = {
        "columns": [TITLE, BODY, STOCK, PRICE],
        "embedding_provider_id": paid["id"],
        "embedding_model": "text-embedding-3-small",
        "embedding_dimensions": 64,
    }
    changed = life.ask("PUT", path, other, headers={"If-Match": before})
    assert (changed["sync_status"], changed["embedding_dimensions"], len(changed["columns"])) == (
        "pending_rebackfill", 64, 4,
    )  # fmt: skip
    assert (changed["active"]["embedding_dimensions"], changed["generations"]["building"]["generation"]) == (256, 2)
    assert life.code("PUT", path, {"name": "late"}, 412, headers={"If-Match": before}) == "precondition_failed"
    asked = life.ask("POST", f"{path}/backfill")
    assert asked["task_type"] == "rebackfill"
    assert life.code("POST", f"{path}/backfill") == "backfill_in_progress"
    life.sql("UPDATE items SET body = 'changed meanwhile' WHERE id = 10")
    assert life.ask("POST", f"{path}/query", {"query": "canoe"})["model"] == "minilm-static-256"
    life.faults(latency=0.0)
    now = life.reached(path, "synced", generation=2, building_generation=None)
    assert now["generations"]["previous"]["generation"] == 1
    assert now["generations"]["previous"]["kept_until"]
    life.drain("items")
    assert life.ask("POST", f"{path}/query", {"query": "canoe"})["model"] == "text-embedding-3-small"
    assert life.view("embedded_text, price::int")[8] == ("Title: piano 10\nchanged meanwhile", 10)

    # a name alone builds nothing; the view follows, topics keep their names
    topics = {t["topic"] for t in life.ask("GET", "/v1/topics")["topics"]}
    renamed = life.ask("PUT", path, {"name": "goods"})
    assert (renamed["name"], renamed["sync_status"], renamed["building_generation"]) == ("goods", "synced", None)
    assert len(life.view("id", "goods")) == ROWS - 1
    assert life.sql("SELECT to_regclass('walvec.items')", at=life.store) == [(None,)]
    assert {t["topic"] for t in life.ask("GET", "/v1/topics")["topics"]} == topics
    life.sql("INSERT INTO items (id, title) VALUES (1000, 'kayak')")
    life.drain("goods")
    assert life.ask("POST", "/v1/vector-tables/goods/query", {"query": "Title: kayak"})["results"][0]["id"] == "1000"

    # rollback: the first definition again, paid by nobody, complete with what came since
    paid_texts = life.texts()
    assert life.ask("POST", f"{path}/rollback")["sync_status"] == "pending_rebackfill"
    life.reached(path, "synced", generation=3, embedding_model="minilm-static-256")
    life.drain("goods")
    assert [life.view("embedded_text", "goods")[i][0] for i in (8, -1)] == ["Title: piano 10", "Title: kayak"]
    assert life.texts() == paid_texts

    # PUT while building replaces it; a cancelled one stalls, and is tried again; abort gives it up
    life.faults(latency=0.5)
    life.ask("PUT", path, other)
    first = life.ask("GET", path)["building_generation"]
    life.sql("INSERT INTO items (id, title) SELECT n, 'extra ' || n FROM generate_series(2000, 2100) n")
    second = life.ask("PUT", path, {"separator": " | "})
    assert second["building_generation"] > first
    assert {t["status"] for t in life.ask("GET", f"/v1/tasks?target_id={table['id']}")["data"]
            if t["generation"] == first} == {"cancelled"}  # fmt: skip
    (open_task,) = [
        t for s in ("pending", "running")
        for t in life.ask("GET", f"/v1/tasks?target_id=goods&status={s}&task_type=rebackfill")["data"]
    ]  # fmt: skip
    assert life.ask("POST", f"/v1/tasks/{open_task['id']}/cancel")["status"] == "cancelled"
    stalled = life.ask("GET", path)
    assert (stalled["sync_status"], stalled["generations"]["building"]["state"]) == ("pending_rebackfill", "stalled")
    again = life.ask("POST", f"{path}/backfill")
    assert life.ask("GET", f"/v1/tasks/{open_task['id']}")["status"] == "cancelled"
    aborted = life.ask("POST", f"{path}/rebuild/abort")
    assert (aborted["sync_status"], aborted["building_generation"], aborted["separator"]) == ("synced", None, "\n")
    assert life.ask("GET", f"/v1/tasks/{again['task_id']}")["status"] == "cancelled"
    assert life.code("POST", f"{path}/rebuild/abort") == "nothing_to_abort"
    life.faults(latency=0.0)
    life.drain("goods")
    assert len(life.view("id", "goods")) == ROWS + 101

    # the same in YAML: what is exported applies to no difference, and a change of it is the PUT
    file = life.walvec.directory / "exported.yaml"
    assert life.walvec.run("export", "-o", str(file)).returncode == 0
    assert "sk-x" not in file.read_text()
    assert str(said["password"]) not in file.read_text()
    applied = life.walvec.json("apply", "-f", str(file))
    assert {d["action"] for d in applied["differences"]} == {"unchanged"}
    wanted = yaml.safe_load(file.read_text())
    wanted["vector_tables"][0]["columns"].append(PRICE)
    file.write_text(yaml.safe_dump(wanted))
    dry = life.walvec.run("apply", "-f", str(file), "--dry-run").stdout
    assert "would change vector table goods" in dry
    assert "new generation" in dry
    life.walvec.json("apply", "-f", str(file))
    number = life.ask("GET", path)["generation"]
    life.reached(path, "synced", building_generation=None, columns=[TITLE, STOCK, PRICE])
    assert life.ask("GET", path)["generation"] >= number

    # delete
    life.ask("DELETE", path, status=204)
    assert life.code("GET", path, status=404) == "vector_table_not_found"
    assert life.sql("SELECT to_regclass('walvec.goods')", at=life.store) == [(None,)]
    assert life.ask("GET", "/v1/topics")["topics"] == []


def test_two_writers_do_not_overwrite_each_other(life: Life, tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    document = {
        "connections": [{"name": "two", "url": life.source}],
        "embedding_providers": [{"name": "own", "provider": "static"}],
        "vector_tables": [
            {"name": "two", "connection": "two", "embedding_provider": "own", "source_table": "public.items",
             "backfill": "manual", "columns": [TITLE]},
        ],
    }  # fmt: skip
    file.write_text(yaml.safe_dump(document))
    life.walvec.json("apply", "-f", str(file))
    seen = life.http.get("/v1/vector-tables/two").headers["ETag"]
    first = life.http.put("/v1/vector-tables/two", json={"columns": [TITLE, STOCK]}, headers={"If-Match": seen})
    second = life.http.put("/v1/vector-tables/two", json={"columns": [BODY]}, headers={"If-Match": seen})
    assert (first.status_code, second.status_code) == (200, 412)
    assert first.headers["ETag"] not in (seen, None)
    assert first.json()["sync_status"] == "pending"
    assert life.ask("GET", "/v1/vector-tables/two")["columns"] == [TITLE, STOCK]
    assert (
        life.ask("PUT", "/v1/vector-tables/two", {"keep_previous": 0}, headers={"If-Match": "*"})["keep_previous"] == 0
    )


def test_platform_mode(life: Life, tmp_path: Path) -> None:
    """The view lives in the source database, and users join with it while definitions change."""
    file = tmp_path / "platform.yaml"
    document: dict[str, Any] = {
        "connections": [{"name": "own", "mode": "platform", "url": life.source}],
        "embedding_providers": [{"name": "own", "provider": "static"}],
        "vector_tables": [
            {"name": "beside", "connection": "own", "embedding_provider": "own", "source_table": "public.items",
             "columns": [TITLE]},
        ],
    }  # fmt: skip
    file.write_text(yaml.safe_dump(document))
    life.walvec.json("apply", "-f", str(file))
    life.drain("beside")
    rows = life.sql("SELECT count(*) FROM items i JOIN walvec.beside b USING (id)")
    assert rows[0][0] == life.sql("SELECT count(*) FROM items")[0][0] > 0
    made = life.ask("PUT", "/v1/vector-tables/beside", {"columns": [TITLE, STOCK], "name": "next to it"})
    assert (made["sync_status"], made["mode"], made["platform_vector_ref"]) == (
        "pending_rebackfill", "platform", "next_to_it",
    )  # fmt: skip
    life.reached(f"/v1/vector-tables/{made['id']}", "synced", building_generation=None, generation=2)
    life.drain("next to it")
    assert life.sql("SELECT count(*) FROM items i JOIN walvec.next_to_it b USING (id, stock)") == life.sql(
        "SELECT count(*) FROM items WHERE stock IS NOT NULL"
    )
    exported = life.walvec.directory / "platform.yaml"
    assert life.walvec.run("export", "-o", str(exported)).returncode == 0
    found = next(t for t in yaml.safe_load(exported.read_text())["vector_tables"] if t["name"] == "next to it")
    assert (found["mode"], found["columns"]) == ("platform", [TITLE, STOCK])
    pruned = life.walvec.json("apply", "-f", str(file), "--prune")  # back to the file, in name too
    actions = {(d["action"], d["name"]) for d in pruned["differences"] if d["kind"] == "vector_table"}
    assert {("created", "beside"), ("removed", "next to it")} <= actions
    assert life.sql("SELECT to_regclass('walvec.next_to_it')") == [(None,)]


def test_what_is_read_is_changed_and_sent_back(life: Life) -> None:
    """Rows without a text are waited for by nobody, and the values of embedded columns cost no embedding again."""
    life.sql("CREATE TABLE notes (id int PRIMARY KEY, title text, stock int)")
    life.sql("INSERT INTO notes VALUES (1, 'one', 1), (2, NULL, 2), (3, '', 3), (4, E' \\t', 4), (5, 'five', 5)")
    life.ask(
        "POST", "/v1/providers/postgresql/connections",
        {"name": "notes", "mode": "managed", "credentials": {"url": life.source}}, 201,
    )  # fmt: skip
    assert life.ask("POST", "/v1/connections/notes/test")["ready"]
    life.ask(
        "POST", "/v1/embedding-providers",
        {"name": "notes", "provider": "openai", "api_key": "sk-x", "base_url": f"{life.provider}/v1"}, 201,
    )  # fmt: skip
    connection, provider = (life.ask("GET", f"/v1/{kind}/notes") for kind in ("connections", "embedding-providers"))
    for kind, shown in (("connections", connection), ("embedding-providers", provider)):
        assert life.ask("PUT", f"/v1/{kind}/notes", shown)["name"] == "notes"
    table = life.ask(
        "POST", "/v1/vector-tables",
        {"name": "notes", "connection_id": connection["id"], "embedding_provider_id": provider["id"],
         "source_table": "notes", "columns": [{"name": "title", "role": "embedding"}, STOCK], "backfill": "auto",
         "embedding_model": "text-embedding-3-small", "keep_embedding_columns": False}, 201,
    )  # fmt: skip
    path = f"/v1/vector-tables/{table['id']}"
    shown = life.reached(path, "synced", total_rows=2, synced_rows=2)
    paid = life.texts()
    assert life.ask("PUT", path, shown)["generations"] == {"active": 1, "building": None, "previous": None}

    assert life.ask("PUT", path, {**shown, "keep_embedding_columns": True})["building_generation"] == 2
    life.reached(path, "synced", generation=2, total_rows=2, synced_rows=2)
    found = life.ask("POST", f"{path}/query", {"query": "one", "limit": 1})["results"]
    assert [r["metadata"] for r in found] == [{"stock": 1, "title": "one"}]
    assert life.texts() == paid + 1  # of the query
    life.sql("UPDATE notes SET title = NULL WHERE id = 1")
    life.sql("UPDATE notes SET title = 'two' WHERE id = 2")
    life.sql("INSERT INTO notes VALUES (6, 'six', 6), (7, NULL, 7)")
    life.reached(path, "synced", total_rows=3, synced_rows=3)
    for left in (path, f"/v1/connections/{connection['id']}", f"/v1/embedding-providers/{provider['id']}"):
        life.ask("DELETE", left, status=204)
