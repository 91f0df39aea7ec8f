"""Every command against one running walvec: what it does, its exit code, and the shape of --json alone on stdout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml

from tests.acceptance.harness import ROLES, SCHEMA, TABLE, WALVEC, Walvec, differences, document, wait_until
from tests.plugins.postgres import PostgresDatabase, _create, _drop
from walvec.contracts.keys import key_id
from walvec.runtime.embedded_postgres import EmbeddedPostgres

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(120)]

STORED = "FROM pg_class WHERE relnamespace = 'walvec'::regnamespace AND relname LIKE 'vt\\_%' AND relkind = 'r'"


class Shop:
    """A running walvec with the vector table `items` on 200 rows."""

    def __init__(self, walvec: Walvec, source: str, store: str) -> None:
        self.walvec, self.source, self.store = walvec, source, store
        self.heard: list[str] = []

    def sql(self, statement: str, *, at: str | None = None) -> list[tuple[Any, ...]]:
        with psycopg.connect(at or self.source, autocommit=True) as c:
            cursor = c.execute(statement)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def run(self, *args: str, code: int = 0) -> str:
        """Standard output as a person sees it."""
        done = self.walvec.run(*args)
        self.heard += [done.stdout, done.stderr]
        assert done.returncode == code, (args, done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout if code == 0 else done.stdout + done.stderr

    def json(self, *args: str, code: int = 0) -> Any:
        """JSON is all of standard output, and a success says nothing else."""
        done = self.walvec.run(*args, "--json")
        self.heard += [done.stdout, done.stderr]
        assert done.returncode == code, (args, done.returncode, done.stdout, done.stderr)
        assert code or not done.stderr
        return json.loads(done.stdout)

    def apply(self, content: Any, *args: str, code: int = 0) -> Any:
        return self.json("apply", "-f", str(self.walvec.definitions(content)), *args, code=code)

    def drain(self, *tables: str) -> None:
        answer = httpx.post(f"{self.walvec.url}/v1/drain", json={"tables": list(tables) or None}, timeout=90)
        assert answer.json()["drained"], answer.text

    def equal(self) -> None:
        self.drain("items")
        assert differences(self.source, self.store) == []

    @property
    def stored(self) -> str:
        """The physical table of `items`."""
        return self.sql(f"SELECT 'walvec.' || quote_ident(relname) {STORED} AND relname LIKE '%items\\_g%'",
                        at=self.store)[0][0]  # fmt: skip


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, postgres_server: EmbeddedPostgres) -> Iterator[Shop]:
    names = [_create(postgres_server) for _ in range(2)]
    source, own = (postgres_server.dsn(n) for n in names)
    found = Shop(Walvec(tmp_path_factory.mktemp("walvec"), control=own, store=own), source, own)
    found.sql(SCHEMA)
    found.sql(
        "INSERT INTO items SELECT n, (ARRAY['tent', 'saw', 'piano', 'bread'])[n % 4 + 1] || ' ' || n, 'about ' || n,"
        " n, ARRAY['t' || n % 3], n % 10, now() FROM generate_series(1, 200) n"
    )
    found.walvec.start(found.walvec.definitions(document(source)))
    found.drain()
    yield found
    code = found.walvec.stop()
    for n in names:
        _drop(postgres_server, n)
    assert code == 0
    password = psycopg.conninfo.conninfo_to_dict(source)["password"]
    written = found.walvec.log.read_text(errors="replace")
    assert "Traceback" not in written
    for text in (written, *found.heard):
        assert str(password) not in text


# ---- status, topics, doctor, tail --------------------------------------------------------------------------------


def test_status(shop: Shop) -> None:
    (table,) = shop.json("status")["tables"]
    wanted = {"name": "items", "state": "synced", "total_rows": 200, "synced_rows": 200, "dead_letters": 0,
              "lag_changes": 0, "last_error": None}  # fmt: skip
    assert {k: table[k] for k in wanted} == wanted
    assert table["lag_seconds"] == 0
    assert shop.json("status", "items")["tables"][0]["name"] == "items"
    assert shop.json("status", table["id"])["tables"][0]["name"] == "items"  # an id is as good
    shown = shop.run("status")
    for word in ("items", "synced", "200"):
        assert word in shown
    assert "minilm-static-256" in shop.run("status", "items")
    error = shop.json("status", "itms", code=1)["error"]
    assert error["code"]
    assert "items" in error["resolution"]


def test_topics(shop: Shop) -> None:
    found = {t["topic"].rpartition(".")[2]: t for t in shop.json("topics")["topics"]}
    assert found.keys() == {"changes", "vectors", "dead"}
    assert found["changes"]["vector_table"] == "items"
    assert found["changes"]["lag"] == 0
    assert "changes" in shop.run("topics")


def test_doctor(shop: Shop) -> None:
    found = shop.json("doctor")
    assert found["ok"] is True
    (connection,) = found["connections"]
    names = {c["name"] for c in connection["checks"]}
    assert {"wal_level", "replication_right", "slot", "publication_operations", "select_right", "primary_key"} <= names
    assert "FAIL" not in shop.run("doctor", "source")
    shop.sql("ALTER TABLE items REPLICA IDENTITY NOTHING")
    try:
        found = shop.json("doctor", "source", code=1)
        (wrong,) = [c for c in found["connections"][0]["checks"] if not c["ok"]]
        assert wrong["name"] == "replica_identity"
        assert wrong["cure"] in shop.run("doctor", code=1)
        shop.sql(wrong["cure"])
        assert shop.json("doctor")["ok"] is True
    finally:
        shop.sql("ALTER TABLE items REPLICA IDENTITY DEFAULT")
    assert "source" in shop.run("doctor", "shop", code=1)


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def tailed(shop: Shop, *args: str) -> list[Any]:
    done = shop.walvec.run("tail", "items", *args, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return lines(done.stdout)


def test_tail(shop: Shop) -> None:
    for stock in (77, 78):
        shop.sql(f"UPDATE items SET stock = {stock} WHERE id = 7")
    shop.drain()
    changes = tailed(shop, "changes", "--key", "7")
    assert [c["value"]["op"] for c in changes][-2:] == ["u", "u"]
    assert all(c["key"] == {"id": 7} for c in changes)
    assert changes[-1]["value"]["after"]["stock"] == 78
    assert tailed(shop, "changes", "--key", '{"id": 7}') == changes
    vectors = tailed(shop, "vectors", "--key", "7")
    assert vectors[-1]["value"]["op"] == "metadata"  # nothing was embedded again
    assert len(tailed(shop, "changes", "--from", "earliest")) >= 202
    assert tailed(shop, "changes", "--from", "latest") == []
    assert len(tailed(shop, "changes", "--from", "1h")) >= 202
    assert tailed(shop, "dead", "--from", "earliest") == []
    last = max(c["offset"] for c in tailed(shop, "changes", "--from", "earliest"))
    assert all(c["offset"] >= last for c in tailed(shop, "changes", "--from", str(last)))
    assert "update" in (text := shop.run("tail", "items", "changes", "--key", "7")) or " u " in text
    lines = shop.run("tail", "items", "vectors", "--from", "earliest").splitlines()
    vector = next(v["value"]["chunks"][0]["vector"] for v in vectors if v["value"]["op"] == "upsert")
    assert any(" upsert " in line for line in lines)
    assert all(len(line) < 200 and vector[:20] not in line for line in lines)  # no vectors on a terminal
    assert "10m" in shop.run("tail", "items", "changes", "--from", "yesterday", code=1)


def test_tail_follows(shop: Shop) -> None:
    command = [*WALVEC, "tail", "items", "changes", "--from", "latest", "--follow", "--json", "--url", shop.walvec.url]
    # a suite that runs in the background of a shell has SIGINT ignored, and its children would inherit that
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, env=shop.walvec.env, stdout=subprocess.PIPE, text=True, preexec_fn=heard) as process:
        assert process.stdout is not None
        stop = threading.Event()
        try:
            # until the reader is there it sees nothing; each value is another, so that one of them is the first seen
            def writes() -> None:
                n = 1000
                while not stop.wait(0.02):
                    n += 1
                    shop.sql(f"UPDATE items SET stock = {n} WHERE id = 8")

            writer = threading.Thread(target=writes, daemon=True)
            writer.start()
            first = json.loads(process.stdout.readline())
            second = json.loads(process.stdout.readline())
            stop.set()
            writer.join()
            assert first["key"] == {"id": 8}
            assert second["value"]["after"]["stock"] == first["value"]["after"]["stock"] + 1
        finally:
            stop.set()
            process.send_signal(signal.SIGINT)
            try:
                ended = process.wait(timeout=10)
            finally:
                process.kill()
        assert ended == 0


# ---- search ------------------------------------------------------------------------------------------------------


def test_search(shop: Shop) -> None:
    found = shop.json("search", "items", "a grand piano", "--limit", "3")
    assert found["query"] == "a grand piano"
    assert found["total_results"] == 3
    assert all(r["embedded_text"].startswith("Title: piano") for r in found["results"])
    assert [r["score"] for r in found["results"]] == sorted((r["score"] for r in found["results"]), reverse=True)
    first = found["results"][0]
    assert {"id", "key", "chunk", "score", "metadata", "embedded_text"} <= first.keys()
    assert "piano" in shop.run("search", "items", "a grand piano")
    some = shop.json("search", "items", "bread", "--filter", '{"stock": {"gte": 5}, "price": {"lt": 50}}')
    assert some["results"]
    assert all(r["metadata"]["stock"] >= 5 and float(r["metadata"]["price"]) < 50 for r in some["results"])
    assert shop.json("search", "items", "bread", "--filter", '{"stock": 999999}')["results"] == []
    assert shop.run("search", "items", "bread", "--filter", '{"stock": 999999}').strip() == "nothing found"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"filters": {"prise": 3}}, ("prise", "price")),
        ({"filters": {"price'; DROP TABLE items; --": 3}}, ("price",)),
        ({"filters": {"price": {"like": 3}}}, ("like", "gte")),
        ({"filters": {"stock": "many"}}, ("stock", "integer")),
        ({"filters": {"stock": {"in": 5}}}, ("stock", "list")),
        ({"filters": {"seen": {"gt": "yesterday"}}}, ("seen", "ISO 8601")),
        ({"filters": {"$or": {}}}, ("$or", "list")),
        ({"filters": [1]}, ("filters",)),
        ({"limit": 10**9}, ("limit", "100")),
        ({"limit": -1}, ("limit",)),
        ({"limit": "many"}, ("limit",)),
        ({"query": ""}, ("query",)),
        ({"query": 5}, ("query",)),
        ({"min_similarity_score": 7}, ("min_similarity_score",)),
    ],
)
def test_a_query_that_cannot_be_meant(shop: Shop, body: dict[str, Any], words: tuple[str, ...]) -> None:
    answer = httpx.post(f"{shop.walvec.url}/v1/vector-tables/items/query", json={"query": "x", **body})
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error["code"] == "validation_error"
    for word in words:
        assert word in error["message"] + error["resolution"]
    assert error["request_id"] == answer.headers["x-request-id"]


def test_values_are_never_statements(shop: Shop) -> None:
    evil = "t1'; DROP TABLE items; --"
    for wanted in (evil, {"in": [evil, "\\", '"', "{t1}"]}, {"ne": evil}):
        answer = httpx.post(
            f"{shop.walvec.url}/v1/vector-tables/items/query", json={"query": evil, "filters": {"tags": wanted}}
        )
        assert answer.status_code == 200, answer.text
    (kept,) = shop.json("search", "items", evil, "--filter", json.dumps({"tags": "t1"}), "--limit", "1")["results"]
    assert "t1" in kept["metadata"]["tags"]
    assert shop.json("search", "items", "x", "--filter", '{"prise": 1}', code=1)["error"]["code"] == "validation_error"


# ---- apply -------------------------------------------------------------------------------------------------------


def test_apply_again_changes_nothing(shop: Shop) -> None:
    found = shop.apply(document(shop.source))
    assert found["changed"] is False
    assert {d["action"] for d in found["differences"]} == {"unchanged"}
    assert {(d["kind"], d["name"]) for d in found["differences"]} == {
        ("connection", "source"), ("embedding_provider", "local"), ("vector_table", "items"),
    }  # fmt: skip
    assert "unchanged vector table items" in shop.run("apply", "-f", str(shop.walvec.directory / "definitions.yaml"))


def test_apply_adds_a_table_live_and_prune_removes_it_whole(shop: Shop) -> None:
    second = {**deepcopy(TABLE), "name": "short-items", "columns": [{"name": "title", "role": "embedding"}]}
    both = document(shop.source, TABLE, second)
    found = shop.apply(both, "--dry-run")
    assert (found["applied"], found["changed"]) == (False, True)
    assert "would create vector table short-items" in shop.run(
        "apply", "-f", str(shop.walvec.definitions(both)), "--dry-run"
    )
    assert len(shop.json("status")["tables"]) == 1
    assert shop.sql("SELECT to_regclass('walvec.short_items')", at=shop.store) == [(None,)]

    shop.apply(both)
    assert shop.sql("SELECT to_regclass('walvec.short_items') IS NOT NULL", at=shop.store) == [(True,)]
    shop.sql("INSERT INTO items (id, title) VALUES (900, 'quite new')")
    shop.run("drain", "short-items", "items")
    rows = "SELECT count(*) FROM walvec.short_items"
    assert shop.sql(rows, at=shop.store) == [(201,)]
    assert len(shop.json("topics")["topics"]) == 6
    shop.sql("DELETE FROM items WHERE id = 900")

    assert "short-items" not in shop.run("apply", "-f", str(shop.walvec.definitions(document(shop.source))))
    assert len(shop.json("status")["tables"]) == 2  # only --prune removes
    found = shop.apply(document(shop.source), "--prune")
    assert ("removed", "short-items") in {(d["action"], d["name"]) for d in found["differences"]}
    assert shop.sql("SELECT to_regclass('walvec.short_items')", at=shop.store) == [(None,)]
    assert shop.sql(f"SELECT count(*) {STORED}", at=shop.store) == [(1,)]
    assert len(shop.json("topics")["topics"]) == 3
    shop.equal()


def test_apply_changes_what_may_change_and_refuses_the_rest(shop: Shop) -> None:
    changed = deepcopy(document(shop.source))
    changed["vector_tables"][0]["columns"][4]["alias"] = "in_stock"
    found = shop.apply(changed)
    (table,) = [d for d in found["differences"] if d["kind"] == "vector_table"]
    assert table["action"] == "changed"
    assert shop.sql("SELECT count(in_stock) > 0 FROM walvec.items", at=shop.store) == [(True,)]
    shop.sql("CREATE TABLE other_items (LIKE items INCLUDING ALL)")
    changed["vector_tables"][0]["source_table"] = "other_items"
    error = shop.apply(changed, code=1)["error"]
    assert "source_table" in error["message"]
    assert "new name" in error["resolution"]
    shop.sql("DROP TABLE other_items")
    shop.apply(document(shop.source))
    shop.equal()


def test_apply_reads_several_files_and_standard_input(shop: Shop, tmp_path: Path) -> None:
    whole = document(shop.source)
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(yaml.safe_dump({"connections": whole.pop("connections")}))
    second.write_text(yaml.safe_dump(whole))
    assert shop.json("apply", "-f", str(first), "-f", str(second))["changed"] is False
    done = subprocess.run(
        [*WALVEC, "apply", "-f", "-", "--json", "--url", shop.walvec.url],
        input='connections: [{name: source, url: "${SHOP_URL}"}]\n',
        env={**shop.walvec.env, "SHOP_URL": shop.source},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["changed"] is False


# ---- pause, backfill, drain, verify ------------------------------------------------------------------------------


def test_pause_collects_and_resume_goes_on(shop: Shop) -> None:
    assert shop.json("pause", "items")["sync_status"] == "paused"
    try:
        while_paused(shop)
    finally:
        resumed = shop.json("resume", "items")
    assert resumed["sync_status"] == "synced"
    assert "not paused; it is synced" in shop.run("resume", "items", code=1)
    shop.equal()
    (text,) = shop.sql("SELECT embedded_text FROM walvec.items WHERE id = 1", at=shop.store)[0]
    assert text.startswith("Title: while paused")


def while_paused(shop: Shop) -> None:
    shop.sql("UPDATE items SET title = 'while paused' WHERE id = 1; DELETE FROM items WHERE id = 2")
    found = wait_until(
        lambda: (t := shop.walvec.table("items"))["lag_changes"] == 2 and t, what="two changes that are collected"
    )
    assert found["state"] == "paused"
    drained = shop.json("drain", "items", code=1)
    assert drained["drained"] is False
    assert "paused" in drained["reason"]
    assert "walvec resume items" in shop.run("drain", code=1)
    assert shop.json("verify", "items", code=1)["error"]["code"] == "not_drained"
    assert shop.json("search", "items", "bread")["results"]  # paused is not closed
    assert "walvec resume items" in shop.run("pause", "items", code=1)  # it is already


def test_drain(shop: Shop) -> None:
    shop.sql("UPDATE items SET title = title || '!' WHERE id <= 50")
    found = shop.json("drain")
    assert (found["drained"], found["reason"], found["tables"]) == (True, None, ["items"])
    assert found["dead_letters"] == {}
    assert differences(shop.source, shop.store) == []
    assert "items" in shop.run("drain", "items")


def test_verify_finds_and_repair_mends(shop: Shop) -> None:
    shop.equal()
    empty: dict[str, list[Any]] = {"missing": [], "orphaned": [], "stale": [], "duplicate": [], "dead": []}
    assert shop.json("verify", "items") == empty
    assert "equal" in shop.run("verify", "items")
    stored, orphan = shop.stored, b'{"id":987654}'
    # by column names, so that the storage may get more of them
    copy = (
        "CREATE TEMP TABLE copied AS SELECT * FROM {stored} WHERE k0 = {key}; UPDATE copied SET {change};"
        " INSERT INTO {stored} SELECT * FROM copied; DROP TABLE copied;"
    )
    shop.sql(
        f"DELETE FROM {stored} WHERE k0 = 11;"
        f"UPDATE {stored} SET hash = reverse(hash), embedded_text = 'other' WHERE k0 = 12;"
        + copy.format(
            stored=stored, key=13, change=f"key_id = '{key_id(orphan)}', key = '{orphan.decode()}', k0 = 987654"
        )
        + copy.format(stored=stored, key=14, change="chunk = 1"),
        at=shop.store,
    )
    found = shop.json("verify", "items", code=1)
    assert {k: [v["id"] for v in vs] for k, vs in found.items()} == {
        "missing": [11], "orphaned": [987654], "stale": [12], "duplicate": [14], "dead": [],
    }  # fmt: skip
    shown = shop.run("verify", "items", code=1)
    assert "missing" in shown
    assert "987654" in shown
    assert shop.json("verify", "items", "--repair") == empty
    assert differences(shop.source, shop.store) == []


def test_manual_backfill_collects_until_it_is_asked_for(shop: Shop) -> None:
    manual = {**deepcopy(TABLE), "name": "manual", "backfill": "manual"}
    shop.apply(document(shop.source, TABLE, manual))
    try:
        shop.sql("UPDATE items SET title = 'before the call' WHERE id = 21")
        shop.drain("items")
        assert shop.walvec.table("manual")["state"] == "pending"
        assert shop.sql("SELECT count(*) FROM walvec.manual", at=shop.store) == [(0,)]
        assert "walvec backfill manual" in shop.run("drain", "manual", code=1)
        error = shop.json("search", "manual", "bread", code=1)["error"]
        assert error["code"] == "vector_table_not_ready"
        found = shop.json("backfill", "manual")
        assert found["task_id"]
        assert found["sync_status"] == "backfilling"
        shop.run("drain", "manual")
        assert differences(shop.source, shop.store, view="manual") == []
        assert shop.walvec.table("manual")["state"] == "synced"
        sent = httpx.get(f"{shop.walvec.url}/v1/status/manual").json()["tables"][0]["texts_sent"]
        shop.run("backfill", "manual")  # once more: reconciles, pays nothing
        shop.run("drain", "manual")
        assert differences(shop.source, shop.store, view="manual") == []
        assert httpx.get(f"{shop.walvec.url}/v1/status/manual").json()["tables"][0]["texts_sent"] == sent
    finally:
        shop.apply(document(shop.source), "--prune")


def test_dead_letters_of_a_table_without_any(shop: Shop) -> None:
    assert shop.json("dead", "list", "items") == {"dead_letters": []}
    assert shop.json("dead", "replay", "items")["replayed"] == 0
    assert shop.json("dead", "drop", "items") == {"dropped": 0}
    assert "no dead letter" in shop.run("dead", "show", "items", "1", code=1)
    assert "no dead letter" in shop.run("dead", "replay", "items", "1", code=1)


# ---- the API's surface -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("GET", "/v1/vector-tables/vt_0000000000000000", None, 404),
        ("GET", "/v1/vector-tables/items'%20OR%201=1", None, 404),
        ("GET", "/v1/vector-tables/..%2f..%2fetc", None, 404),
        ("GET", "/v1/vector-tables/%00", None, 422),
        ("GET", "/v1/connections/nope", None, 404),
        ("DELETE", "/v1/connections/nope", None, 404),
        ("DELETE", "/v1/connections/source", None, 409),
        ("DELETE", "/v1/embedding-providers/local", None, 409),
        ("GET", "/v1/tasks/nope", None, 404),
        ("GET", "/v1/nothing", None, 404),
        ("PATCH", "/v1/vector-tables", b"{}", 405),
        ("POST", "/v1/vector-tables", b"{", 422),
        ("POST", "/v1/vector-tables", b"[]", 422),
        ("POST", "/v1/vector-tables", b"\xff\xfe", 422),
        ("POST", "/v1/vector-tables", b"{}", 422),
        ("POST", "/v1/apply", b'{"document": 5}', 422),
        ("POST", "/v1/apply", b'{"document": {"tables": []}}', 422),
        ("POST", "/v1/drain", b'{"tables": ["nope"]}', 404),
        ("POST", "/v1/drain", b'{"timeout": "soon"}', 422),
        ("GET", "/v1/connections?limit=100000", None, 422),
        ("GET", "/v1/connections?limit=0", None, 422),
        ("GET", "/v1/connections?cursor=nonsense", None, 422),
        ("POST", "/v1/vector-tables/items/dead-letters/replay", b'{"ids": [99999999999999999999]}', 404),
        ("GET", "/v1/vector-tables/items/dead-letters/99999999999999999999", None, 404),
        ("GET", "/v1/vector-tables/items/tail?topic=letters", None, 422),
    ],
)
def test_requests_that_cannot_be_meant(shop: Shop, method: str, path: str, content: bytes | None, status: int) -> None:
    headers = {"content-type": "application/json"} if content is not None else {}
    answer = httpx.request(method, shop.walvec.url + path, content=content, headers=headers, timeout=20)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"code", "message", "resolution", "docs_url", "request_id"}
    assert error["message"]


# ---- processes ---------------------------------------------------------------------------------------------------


def test_settings_file_and_keys(tmp_path: Path, postgres: PostgresDatabase) -> None:
    """`walvec up -c FILE`, open to others with keys alone; the commands find address and key in the same file."""
    own = postgres.another()
    postgres.execute(SCHEMA)
    found = Walvec(tmp_path, control=None, store=None)
    for name in ("WALVEC_DATA_DIR", "WALVEC_API__PORT"):
        del found.env[name]
    settings = {
        "data_dir": str(tmp_path / "elsewhere"),
        "api": {"port": found.port, "host": "0.0.0.0", "keys": ["key-one-1234567", "key-two-1234567"]},
        "control_database": {"url": "${OWN_URL}"},
        "pgvector": {"url": "${OWN_URL}"},
        "log_format": "json",
    }
    (tmp_path / "walvec.yaml").write_text(yaml.safe_dump(settings))
    found.env["OWN_URL"] = own
    found.start(found.definitions(document(postgres.dsn)), args=["-c", "walvec.yaml"])
    try:
        for headers in ({}, {"authorization": "Bearer nope"}, {"authorization": "key-one-1234567"}):
            answer = httpx.get(f"{found.url}/v1/status", headers=headers)
            assert answer.status_code == 401, answer.text
            assert answer.json()["error"]["code"] == "unauthorized"
        second = {"authorization": "Bearer key-two-1234567"}
        assert httpx.get(f"{found.url}/v1/status", headers=second).status_code == 200
        postgres.execute("INSERT INTO items (id, title) VALUES (1, 'a')")
        assert found.run("drain").returncode == 0
        here = subprocess.run(
            [*WALVEC, "status", "--json"], env=found.env, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert json.loads(here.stdout)["tables"][0]["synced_rows"] == 1
        denied = subprocess.run(
            [*WALVEC, "status", "--url", found.url, "--json"],
            env={**found.env, "WALVEC_API_KEY": "wrong"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert denied.returncode == 1
        assert json.loads(denied.stdout)["error"]["code"] == "unauthorized"
        assert (tmp_path / "elsewhere").is_dir()
    finally:
        assert found.stop() == 0
    written = found.log.read_text()
    assert "key-one" not in written
    assert "key-two" not in written


@contextmanager
def by_hand(found: Walvec) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """The four roles without a supervisor."""
    processes = {}
    with found.log.open("ab") as log:
        for role in ROLES:
            processes[role] = subprocess.Popen(
                [*WALVEC, role], env=found.env, cwd=found.directory, stdout=log, stderr=log, start_new_session=True
            )
    try:
        yield processes
    finally:
        for process in processes.values():
            if process.poll() is None:
                os.kill(process.pid, signal.SIGTERM)
        codes = {role: process.wait(timeout=30) for role, process in processes.items()}
        assert codes == dict.fromkeys(ROLES, 0)


def test_roles_started_by_hand(tmp_path: Path, postgres: PostgresDatabase) -> None:
    own = postgres.another()
    postgres.execute(SCHEMA)
    found = Walvec(tmp_path, control=own, store=own)
    with by_hand(found) as processes:
        wait_until(lambda: httpx.get(f"{found.url}/health").status_code == 200, what="the API")
        done = found.run("apply", "-f", str(found.definitions(document(postgres.dsn))))
        assert done.returncode == 0, done.stderr
        postgres.execute("INSERT INTO items (id, title) SELECT n, 'text ' || n FROM generate_series(1, 100) n")
        found.drain()
        assert differences(postgres.dsn, own) == []
        # a second reader stands by, and takes over
        with found.log.open("ab") as log:
            spare = subprocess.Popen(
                [*WALVEC, "cdc"], env=found.env, cwd=found.directory, stdout=log, stderr=log, start_new_session=True
            )
        try:
            processes["cdc"].kill()
            processes["cdc"].wait()
            postgres.execute("UPDATE items SET title = 'other ' || id WHERE id <= 50")
            found.drain()
            assert differences(postgres.dsn, own) == []
        finally:
            processes["cdc"] = spare
    assert "Traceback" not in found.log.read_text()


def test_help_and_version_need_nothing() -> None:
    for command in (["--help"], ["--version"], ["dead", "--help"]):
        done = subprocess.run([*WALVEC, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stderr)
        assert done.stdout
        assert done.stderr == ""
