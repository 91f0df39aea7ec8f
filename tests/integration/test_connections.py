"""Connections through the API: what a test tells, and what may be changed while vector tables use them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.integration.api_world import ApiWorld, api_world, query
from tests.plugins.eventually import eventually
from tests.plugins.postgres import PostgresDatabase


@pytest.fixture
async def world(tmp_path: Path, postgres: PostgresDatabase) -> AsyncIterator[ApiWorld]:
    async with api_world(tmp_path, control=postgres.another(), store=postgres.another()) as made:
        yield made


@pytest.fixture
def source(postgres: PostgresDatabase) -> str:
    query(postgres.dsn, "CREATE TABLE items (id int PRIMARY KEY, name text, price float8)")
    return postgres.dsn


@pytest.fixture
def role(postgres: PostgresDatabase, source: str) -> Iterator[str]:
    name = f"r_{postgres.name}"
    query(source, f"CREATE ROLE {name} LOGIN PASSWORD 'first'")
    yield name
    query(source, f"REASSIGN OWNED BY {name} TO CURRENT_USER")
    query(source, f"DROP OWNED BY {name} CASCADE")
    query(source, f"DROP ROLE {name}")


def parts(dsn: str, **more: object) -> dict[str, object]:
    found = conninfo_to_dict(dsn)
    given = {"host": found["host"], "port": int(str(found["port"])), "database": found["dbname"]}
    return {**given, "user": found["user"], "password": found.get("password"), **more}


async def status_of(world: ApiWorld, connection: str) -> tuple[str, str | None]:
    found = await world.ask("GET", f"/v1/connections/{connection}")
    return found["status"], found["last_tested_at"]


async def test_a_reader_with_select_alone_is_told_what_it_lacks(world: ApiWorld, source: str, role: str) -> None:
    query(source, f"GRANT SELECT ON items TO {role}")
    connection = await world.connection(make_conninfo(source, user=role, password="first"), tested=False)
    assert await status_of(world, connection) == ("created", None)
    tested = await world.ask("POST", f"/v1/connections/{connection}/test")
    assert (tested["status"], tested["ready"]) == ("ok", False)
    assert tested["latency_ms"] >= 1
    lacking = {c["name"]: c["cure"] for c in tested["checks"] if not c["ok"]}
    assert lacking["replication_right"] == f'ALTER ROLE "{role}" REPLICATION;'
    assert lacking["create_publication"].startswith("GRANT CREATE ON DATABASE")
    status, at = await status_of(world, connection)
    assert status == "connected"
    assert at is not None
    refused = await world.table(connection, await world.provider(), status=422)
    assert f'ALTER ROLE "{role}" REPLICATION;' in refused["error"]["message"]


async def test_a_reader_without_select_is_denied_the_table(world: ApiWorld, source: str, role: str) -> None:
    query(source, f"ALTER ROLE {role} REPLICATION")
    query(source, f"ALTER TABLE items OWNER TO {role}")
    query(source, f"GRANT CREATE ON DATABASE {conninfo_to_dict(source)['dbname']} TO {role}")
    connection = await world.connection(make_conninfo(source, user=role, password="first"))
    provider = await world.provider()
    path = f"/v1/vector-tables/{(await world.table(connection, provider))['id']}"
    query(source, f"REVOKE SELECT ON items FROM {role}")
    other = {"columns": [{"name": "name", "role": "embedding", "name_prefix": "name: "}]}
    for answer in (
        await world.table(connection, provider, name="more", status=403),
        await world.ask("PUT", path, other, 403),
        await world.ask("GET", f"{path}/schema", status=403),
    ):
        assert answer["error"]["code"] == "source_table_access_denied"
        assert "GRANT SELECT ON" in answer["error"]["message"] + answer["error"]["resolution"]
    query(source, f"ALTER ROLE {role} PASSWORD 'second'")
    query(source, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'")

    async def refused() -> bool:  # a session that was kept ends with the first answer
        answer = await world.http.get(f"{path}/schema")
        return (answer.status_code, answer.json()["error"]["code"]) == (422, "connection_not_ready")

    await eventually(refused)


async def test_a_failed_test_is_an_answer(world: ApiWorld, source: str, role: str) -> None:
    connection = await world.connection(make_conninfo(source, user=role, password="wrong"), tested=False)
    tested = await world.ask("POST", f"/v1/connections/{connection}/test")
    assert tested["status"] == "failed"
    assert tested["error"]["code"] == "source_rejected"
    assert tested["error"]["resolution"]
    assert [(c["name"], c["ok"]) for c in tested["checks"]] == [("connection", False)]
    assert (await status_of(world, connection))[0] == "failed"
    refused = await world.table(connection, await world.provider(), status=422)
    assert refused["error"]["code"] == "connection_not_ready"
    assert "first" not in str(tested)
    assert "wrong" not in str(tested)


@pytest.mark.parametrize(("provider", "status", "code"), [("snowflake", 501, "not_supported"), ("mysql", 422, None)])
async def test_other_sources_are_refused_clearly(world: ApiWorld, provider: str, status: int, code: str | None) -> None:
    body = {"name": "x", "mode": "managed", "credentials": {"host": "h", "database": "d"}}
    refused = await world.ask("POST", f"/v1/providers/{provider}/connections", body, status)
    assert refused["error"]["code"] == (code or "validation_error")
    assert refused["error"]["resolution"]


async def test_ssl_mode_is_prefer_and_port_5432_unless_said(world: ApiWorld) -> None:
    body = {"name": "x", "mode": "managed", "credentials": {"host": "db.example", "database": "d", "user": "u"}}
    made = await world.ask("POST", "/v1/providers/postgresql/connections", body, 201)
    stored = (await world.control.definitions.snapshot()).connections[made["id"]]
    assert conninfo_to_dict(stored.dsn) == {
        "host": "db.example", "port": "5432", "dbname": "d", "user": "u", "sslmode": "prefer",
    }  # fmt: skip


async def test_names_are_changed_and_the_rest_stays(world: ApiWorld, source: str) -> None:
    connection = await world.connection(source)
    await world.connection(source, name="other", tested=False)
    path = f"/v1/connections/{connection}"
    before = (await world.control.definitions.snapshot()).connections[connection]
    changed = await world.ask("PUT", path, {"name": "renamed", "on_slot_loss": "halt", "mode": "platform"})
    assert (changed["name"], changed["on_slot_loss"], changed["mode"]) == ("renamed", "halt", "platform")
    after = (await world.control.definitions.snapshot()).connections[connection]
    assert (after.dsn, after.status, after.last_tested_at) == (before.dsn, "connected", before.last_tested_at)
    taken = await world.ask("PUT", path, {"name": "other"}, 409)
    assert taken["error"]["code"] == "connection_conflict"


async def test_a_used_connection_keeps_its_database(
    world: ApiWorld, postgres: PostgresDatabase, own_postgres: PostgresDatabase, source: str
) -> None:
    connection = await world.connection(source)
    await world.table(connection, await world.provider())
    path = f"/v1/connections/{connection}"
    for body in (
        {"credentials": {"url": postgres.another()}},
        {"credentials": {"database": conninfo_to_dict(postgres.another())["dbname"]}},
        {"mode": "platform"},
    ):
        refused = await world.ask("PUT", path, body, 409)
        assert refused["error"]["code"] == "connection_conflict", body
    # a server of another identity whose database has the same name
    name = str(conninfo_to_dict(source)["dbname"])
    own_postgres.execute(f'CREATE DATABASE "{name}"')
    refused = await world.ask("PUT", path, {"credentials": {"url": own_postgres.server.dsn(name)}}, 409)
    assert "another server" in refused["error"]["message"]
    wrong = await world.ask("PUT", path, {"credentials": {"password": "wrong"}}, 422)
    assert wrong["error"]["code"] == "connection_not_ready"
    # a password is never told to another host or user
    kept = await world.ask("PUT", path, {"credentials": {"host": "localhost"}}, 422)
    assert "password" in kept["error"]["message"]
    assert (await world.control.definitions.snapshot()).connections[connection].dsn == source
    in_use = await world.ask("DELETE", path, status=409)
    assert in_use["error"]["code"] == "connection_conflict"


async def test_a_running_reader_takes_new_credentials(world: ApiWorld, source: str, role: str) -> None:
    """No restart: the slot is read as another user, and nothing is read again."""
    query(source, f"ALTER ROLE {role} REPLICATION")
    query(source, f"ALTER TABLE items OWNER TO {role}")
    query(source, f'GRANT CREATE ON DATABASE "{conninfo_to_dict(source)["dbname"]}" TO {role}')
    connection = await world.connection(make_conninfo(source, user=role, password="first"))
    path = f"/v1/connections/{connection}"

    def reading_as() -> list[tuple[object, ...]]:
        return query(
            source,
            "SELECT usename::text FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid"
            " WHERE s.database = current_database()",
        )

    async with world.streaming():
        table = await world.table(connection, await world.provider())
        await eventually(lambda: reading_as() == [(role,)])
        stored = await world.control.progress.get(connection)
        query(source, f"ALTER ROLE {role} PASSWORD 'second'")
        await world.ask("PUT", path, {"credentials": {"password": "second"}})
        new = conninfo_to_dict(source)
        await world.ask("PUT", path, {"credentials": {"user": new["user"], "password": new["password"]}})
        await eventually(lambda: reading_as() == [(new["user"],)])
        found = await world.control.progress.get(connection)
        assert (found.epoch, found.slot_created_lsn) == (stored.epoch, stored.slot_created_lsn)
        assert (await world.ask("GET", f"/v1/tasks?table={table['id']}"))["data"] == []
        await world.ask("DELETE", f"/v1/vector-tables/{table['id']}", status=204)
        await world.ask("DELETE", path, status=204)


async def test_no_file_of_the_server_is_looked_for_on_a_clients_word(world: ApiWorld, tmp_path: Path) -> None:
    there = tmp_path / "there.crt"
    there.write_text("no certificate")
    made = await world.connection("postgresql://u:hunter2@db/d", tested=False)
    for name in ("sslrootcert", "sslcert", "sslkey", "sslcrl", "sslcrldir", "passfile", "service"):
        told = []
        for file in (there, tmp_path / "gone.crt"):
            url = f"postgresql://u:hunter2@db/d?sslmode=verify-ca&{name}={file}"
            for mode in ("managed", "platform"):
                body = {"name": "a", "mode": mode, "credentials": {"url": url}}
                told.append(await world.ask("POST", "/v1/providers/postgresql/connections", body, 422))
            told.append(await world.ask("PUT", f"/v1/connections/{made}", {"credentials": {"url": url}}, 422))
            for dry_run in (True, False):
                document = {"connections": [{"name": "a", "url": url}]}
                told.append(await world.ask("POST", "/v1/apply", {"document": document, "dry_run": dry_run}, 422))
        assert {t["error"]["code"] for t in told} == {"validation_error"}
        assert all(name in t["error"]["message"] for t in told)
        assert "hunter2" not in str(told)
        assert str(tmp_path) not in str(told)
    system = "postgresql://u:hunter2@db/d?sslmode=verify-full&sslrootcert=system"
    await world.connection(system, name="verified", tested=False)


async def test_a_socket_that_does_not_answer_does_not_say_which_directories_there_are(
    world: ApiWorld, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    reasons = set()
    for name in ("file", "directory", "gone", "file/x"):
        host = str(tmp_path / name)
        dsn = make_conninfo(host=host, dbname="d", user="u")
        connection = await world.connection(dsn, name=name, tested=False)
        found = await world.ask("POST", f"/v1/connections/{connection}/test")
        assert found["status"] == "failed"
        assert host in str(found)
        reasons.add(str(found).replace(host, "HOST"))
    assert len(reasons) == 1
