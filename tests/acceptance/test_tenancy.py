"""Keys, environments, organizations and secrets by the real command."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql

from tests.acceptance.harness import SCHEMA, WALVEC, Walvec, document, wait_until
from tests.plugins.ports import free_port
from tests.plugins.postgres import PostgresDatabase

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(180)]


def direct(walvec: Walvec, *args: str, **env: str) -> Any:
    """A command on the control database."""
    done = subprocess.run(
        [*WALVEC, *args, "--json"], env={**walvec.env, **env}, cwd=walvec.directory, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def asked(url: str, method: str, path: str, key: str | None = None, body: Any = None, **headers: str) -> httpx.Response:
    given = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.request(method, url + path, json=body, headers={**given, **headers}, timeout=60)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@contextmanager
def another_api(walvec: Walvec) -> Iterator[str]:
    """A second API process on the same control database."""
    port = free_port()
    env = {**walvec.env, "WALVEC_API__PORT": str(port)}
    with (walvec.directory / "second.log").open("wb") as log:
        process = subprocess.Popen([*WALVEC, "api"], env=env, cwd=walvec.directory, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: httpx.get(f"{url}/health/live", timeout=5).status_code == 200, what="the second API")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


def rows(walvec: Walvec, schema: str) -> dict[int, str]:
    with psycopg.connect(walvec.env["WALVEC_PGVECTOR__URL"]) as connection:
        found = connection.execute(
            sql.SQL("SELECT id, embedded_text FROM {}.items").format(sql.Identifier(schema))
        ).fetchall()
    return dict(found)


def test_a_revoked_key_opens_nothing_in_any_process(walvec: Walvec, postgres: PostgresDatabase) -> None:
    postgres.execute(SCHEMA)
    walvec.start(walvec.definitions(document(postgres.dsn)))
    assert asked(walvec.url, "GET", "/v1/vector-tables").status_code == 200  # on loopback, without keys
    full = direct(walvec, "keys", "create", "admin")["key"]
    reader = direct(walvec, "keys", "create", "dashboard", "--permission", "read_only")
    with another_api(walvec) as second:
        for url in (walvec.url, second):
            assert code(asked(url, "GET", "/v1/vector-tables")) == (401, "unauthorized")
            assert code(asked(url, "GET", "/v1/vector-tables", "sk_live_guess")) == (401, "unauthorized")
            for key in (full, reader["key"]):
                assert asked(url, "GET", "/v1/vector-tables", key).status_code == 200
            assert code(asked(url, "POST", "/v1/drain", reader["key"], {})) == (403, "permission_denied")
        query = "/v1/vector-tables/items/query"
        assert asked(second, "POST", query, reader["key"], {"query": "x"}).status_code == 200
        assert asked(walvec.url, "DELETE", f"/v1/api-keys/{reader['api_key']['id']}", full).status_code == 204
        assert code(asked(second, "GET", "/v1/vector-tables", reader["key"])) == (401, "key_revoked")
        third = direct(walvec, "keys", "create", "third")
        assert asked(second, "GET", "/v1/connections", third["key"]).status_code == 200
        direct(walvec, "keys", "revoke", third["api_key"]["id"])
        for url in (walvec.url, second):
            assert code(asked(url, "GET", "/v1/connections", third["key"])) == (401, "key_revoked")
    listed = direct(walvec, "keys", "list")["data"]
    assert [k["revoked_at"] is None for k in listed] == [True, False, False]
    assert full not in json.dumps(listed)
    assert walvec.run("status").returncode == 1
    assert walvec.run("status", "--api-key", full).returncode == 0
    # the command itself needs no key of anybody
    walvec.stop()
    walvec.start(walvec.directory / "definitions.yaml")


def test_environments_and_organizations_share_the_roles(walvec: Walvec, postgres: PostgresDatabase) -> None:
    postgres.execute(SCHEMA)
    postgres.execute("INSERT INTO items (id, title) VALUES (1, 'Anvil')")
    definitions = walvec.definitions(document(postgres.dsn))
    walvec.start(definitions)
    assert asked(walvec.url, "POST", "/v1/environments", body={"name": "test"}).status_code == 201
    applied = walvec.run("apply", "-f", str(definitions), "--environment", "test")
    assert applied.returncode == 0, applied.stderr
    admin = direct(walvec, "keys", "create", "admin")["key"]
    made = asked(walvec.url, "POST", "/v1/organizations", admin, {"name": "acme"}).json()
    acme = made["api_key"]
    assert walvec.run("apply", "-f", str(definitions), "--api-key", acme).returncode == 0
    own = f"walvec_{made['organization']['id'].removeprefix('org_')[:8]}_prod"
    for schema in ("walvec", "walvec_test", own):
        wait_until(lambda s=schema: rows(walvec, s) == {1: "Title: Anvil"}, what=f"the row in {schema}")
    postgres.execute("UPDATE items SET title = 'Bellows'")
    for schema in ("walvec", "walvec_test", own):
        wait_until(lambda s=schema: rows(walvec, s) == {1: "Title: Bellows"}, what=f"the change in {schema}")
    ids = [
        asked(walvec.url, "GET", "/v1/vector-tables/items", key, **headers).json()["id"]
        for key, headers in ((admin, {}), (admin, {"X-Environment-Id": "test"}), (acme, {}))
    ]
    assert len(set(ids)) == 3
    assert code(asked(walvec.url, "GET", f"/v1/vector-tables/{ids[0]}", acme)) == (404, "vector_table_not_found")
    assert code(asked(walvec.url, "GET", "/v1/tasks", acme, **{"X-Environment-Id": "test"})) == (
        404,
        "environment_not_found",
    )
    topics = asked(walvec.url, "GET", "/v1/topics", acme).text
    assert ids[2][3:11] in topics
    assert ids[0][3:11] not in topics
    # the organization goes with all it has, and the others stay
    gone = asked(walvec.url, "DELETE", f"/v1/organizations/{made['organization']['id']}", admin)
    assert gone.status_code == 202
    assert code(asked(walvec.url, "GET", "/v1/connections", acme))[0] in (401, 403)
    missing = f"/v1/organizations/{made['organization']['id']}"
    wait_until(lambda: asked(walvec.url, "GET", missing, admin).status_code == 404, what="the organization's end")

    def slots() -> int:
        return int(
            postgres.execute("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()")[0][0]
        )

    wait_until(lambda: slots() == 2, what="the end of its slot")
    postgres.execute("INSERT INTO items (id, title) VALUES (2, 'Clamp')")
    for schema in ("walvec", "walvec_test"):
        wait_until(lambda s=schema: len(rows(walvec, s)) == 2, what=f"the row in {schema}")


def test_secrets_are_nowhere_and_their_key_changes_under_running_roles(
    walvec: Walvec, postgres: PostgresDatabase
) -> None:
    """What is looked for: a connection's password, a provider's key, API keys, the secret key; in the log, in answers,
    in the log's topics, in the control database."""
    postgres.execute(SCHEMA)
    walvec.env["WALVEC_LOG_LEVEL"] = "debug"
    walvec.start(walvec.definitions(document(postgres.dsn)))
    answers: list[str] = []

    def ask(method: str, path: str, body: Any = None, key: str | None = None) -> Any:
        answer = asked(walvec.url, method, path, key, body)
        answers.append(answer.text)
        return answer

    full = direct(walvec, "keys", "create", "admin")["key"]
    password, api_key = "canary-password-7f3a", "sk-canary-key-51c9e0d2"
    credentials = {"host": "127.0.0.1", "port": 1, "database": "none", "user": "u", "password": password}
    body = {"name": "away", "mode": "managed", "credentials": credentials}
    away = ask("POST", "/v1/providers/postgresql/connections", body, full).json()["id"]
    assert ask("POST", f"/v1/connections/{away}/test", {}, full).json()["status"] == "failed"
    ask("POST", "/v1/embedding-providers", {"name": "paid", "provider": "openai", "api_key": api_key,
                                             "base_url": "http://127.0.0.1:1/v1"}, full)  # fmt: skip
    first = (walvec.directory / "data" / "secret.key").read_text().strip()
    postgres.execute("INSERT INTO items (id, title) VALUES (1, 'Anvil')")
    wait_until(lambda: len(rows(walvec, "walvec")) == 1, what="the row in the view")
    assert direct(walvec, "secrets", "rotate")["rotated"] >= 3
    second = (walvec.directory / "data" / "secret.key").read_text().strip()
    assert second != first
    assert "\n" not in second
    postgres.execute("INSERT INTO items (id, title) VALUES (2, 'Bellows')")
    wait_until(lambda: len(rows(walvec, "walvec")) == 2, what="the row after the rotation")
    renamed = {**body, "name": "later"}
    assert ask("POST", "/v1/providers/postgresql/connections", renamed, full).status_code == 201
    for role in ("cdc", "embedder", "sink", "api"):  # with the new key alone
        walvec.kill(role)
    postgres.execute("INSERT INTO items (id, title) VALUES (3, 'Clamp')")
    wait_until(lambda: len(rows(walvec, "walvec")) == 3, what="the row after a restart")
    wait_until(lambda: asked(walvec.url, "GET", "/health").status_code == 200, what="the API")
    for path in ("connections", "embedding-providers", "vector-tables", "api-keys", "tasks", "status", "topics"):
        assert ask("GET", f"/v1/{path}", key=full).status_code == 200
    for topic in ("changes", "vectors", "dead"):
        ask("GET", f"/v1/vector-tables/items/tail?topic={topic}", key=full)
    done = subprocess.run(
        [*WALVEC, "keys", "list"], env={**walvec.env, "WALVEC_SECRET_KEY": first}, cwd=walvec.directory,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "WALVEC_SECRET_KEY" in done.stderr
    walvec.stop()
    with psycopg.connect(walvec.env["WALVEC_CONTROL_DATABASE__URL"]) as connection:
        names = connection.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'walvec_control'"
        ).fetchall()
        stored = [
            str(
                connection.execute(
                    sql.SQL("SELECT t::text FROM walvec_control.{} t").format(sql.Identifier(n))
                ).fetchall()
            )
            for (n,) in names
        ]
    files = [
        p.read_bytes().decode("latin-1")
        for p in (walvec.directory / "data").rglob("*")
        if p.is_file() and p.name != "secret.key"
    ]
    assert files
    for secret in (password, api_key, full, first, second):
        for place, texts in {
            "log": [walvec.log.read_text(errors="replace")],
            "answers": answers,
            "control": stored,
            "files": files,
        }.items():
            assert not any(secret in text for text in texts), f"{secret[:14]}… is in {place}"
            if place == "control":  # and not as bytes
                assert not any(secret.encode().hex() in text for text in texts)
