"""One insert becomes one row of the view by the real command, which starts, restarts and ends as promised."""

import httpx
import psutil
import psycopg
import pytest

from tests.acceptance.harness import SCHEMA, Walvec, document, wait_until
from tests.plugins.postgres import PostgresDatabase

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(180)]


def rows(walvec: Walvec) -> list[tuple[object, ...]]:
    with psycopg.connect(walvec.env["WALVEC_PGVECTOR__URL"]) as connection:
        return connection.execute(
            "SELECT id, embedded_text, stock, vector_dims(embedding) FROM walvec.items"
        ).fetchall()


def test_one_insert_becomes_one_row_of_the_view(walvec: Walvec, postgres: PostgresDatabase) -> None:
    postgres.execute(SCHEMA)
    walvec.start(walvec.definitions(document(postgres.dsn)))
    assert rows(walvec) == []  # the view exists once /health is 200
    postgres.execute("INSERT INTO items (id, title, body, stock) VALUES (7, 'Anvil', 'Heavy.', 3)")
    wait_until(lambda: rows(walvec) == [(7, "Title: Anvil\nHeavy.", 3, 256)], what="the row in the view")
    assert walvec.stop() == 0


@pytest.mark.parametrize("mode", [[], ["--in-process"]])
def test_every_role_is_a_process_or_none_is_and_sigterm_ends_all(
    walvec: Walvec, postgres: PostgresDatabase, mode: list[str]
) -> None:
    postgres.execute(SCHEMA)
    walvec.start(walvec.definitions(document(postgres.dsn)), args=mode)
    found = walvec.roles()
    assert {role: len(processes) for role, processes in found.items()} == dict.fromkeys(found, 0 if mode else 1)
    postgres.execute("INSERT INTO items (id, title) VALUES (1, 'a')")
    wait_until(lambda: len(rows(walvec)) == 1, what="the row in the view")
    assert walvec.stop() == 0
    assert not [p for processes in found.values() for p in processes if p.is_running()]


def test_orphans_end_by_themselves_and_the_next_start_is_not_blocked(
    walvec: Walvec, postgres: PostgresDatabase
) -> None:
    postgres.execute(SCHEMA)
    definitions = walvec.definitions(document(postgres.dsn))
    walvec.start(definitions)
    orphans = walvec.kill_supervisor()
    assert len(orphans) == 4
    walvec.start(definitions)
    _, alive = psutil.wait_procs(orphans, timeout=5)
    assert alive == []
    postgres.execute("INSERT INTO items (id, title) VALUES (1, 'a')")
    wait_until(lambda: len(rows(walvec)) == 1, what="the row in the view")


@pytest.mark.parametrize("role", ["cdc", "embedder", "sink", "api"])
def test_a_killed_role_comes_back(walvec: Walvec, postgres: PostgresDatabase, role: str) -> None:
    postgres.execute(SCHEMA)
    walvec.start(walvec.definitions(document(postgres.dsn)))
    (before,) = walvec.roles()[role]
    walvec.kill(role)
    postgres.execute("INSERT INTO items (id, title) VALUES (1, 'a')")
    wait_until(lambda: len(rows(walvec)) == 1, what="the row in the view")
    wait_until(lambda: httpx.get(f"{walvec.url}/health").status_code == 200, what="the API")
    (after,) = wait_until(lambda: walvec.roles()[role], what=role)
    assert after.pid != before.pid


def test_a_source_that_is_down_is_waited_for(walvec: Walvec, own_postgres: PostgresDatabase) -> None:
    own_postgres.execute(SCHEMA)
    dsn = own_postgres.dsn
    own_postgres.server.stop("immediate")
    walvec.start(walvec.definitions(document(dsn)), ready=False)
    wait_until(lambda: "trying again" in walvec.tail(), what="a word about the source")
    assert httpx.get(f"{walvec.url}/health").status_code == 503
    own_postgres.server.start()
    walvec.wait_ready()
    own_postgres.execute("INSERT INTO items (id, title) VALUES (1, 'a')")
    wait_until(lambda: len(rows(walvec)) == 1, what="the row in the view")


def ended(walvec: Walvec) -> int:
    assert walvec.process is not None
    return walvec.process.wait(timeout=60)


def test_an_invalid_definition_ends_up_with_its_message(walvec: Walvec, postgres: PostgresDatabase) -> None:
    postgres.execute(SCHEMA)
    wrong = document(postgres.dsn)
    wrong["vector_tables"][0]["source_table"] = "public.itms"
    walvec.start(walvec.definitions(wrong), ready=False)
    assert ended(walvec) == 1
    assert "itms" in walvec.tail()
    assert "Traceback" not in walvec.tail()


def test_a_misspelled_key_ends_up_before_anything_starts(walvec: Walvec, postgres: PostgresDatabase) -> None:
    wrong = document(postgres.dsn)
    wrong["vector_tables"][0]["sourc_table"] = wrong["vector_tables"][0].pop("source_table")
    walvec.start(walvec.definitions(wrong), ready=False)
    assert ended(walvec) == 1
    assert "source_table" in walvec.tail()


def test_an_occupied_port_is_said(walvec: Walvec) -> None:
    import socket

    with socket.create_server(("127.0.0.1", walvec.port)):
        walvec.start(ready=False)
        assert ended(walvec) == 1
    assert "WALVEC_API__PORT" in walvec.tail()


def test_a_second_up_on_the_data_directory_is_refused(walvec: Walvec) -> None:
    walvec.start()
    second = Walvec(walvec.directory, control=None, store=None)
    second.log = walvec.directory / "second.log"
    second.start(ready=False)
    assert ended(second) == 1
    assert walvec.process is not None
    assert f"in use by another walvec (pid {walvec.process.pid}" in second.tail()
