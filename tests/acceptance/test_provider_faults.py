"""Providers that misbehave, by the real command: the right rows wait, nothing else does, and all comes right again."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import numpy as np
import psycopg
import pytest

from tests.acceptance.harness import Walvec, wait_until
from tests.plugins.openai_server import vector_of
from tests.plugins.ports import free_port
from tests.plugins.postgres import _create, _drop
from walvec.runtime.embedded_postgres import EmbeddedPostgres

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(120)]

KEY = "sk-good-Secret-0123456789"
REVOKED = "sk-revoked-Secret-9876543210"
LIMIT = 20
DIMENSIONS = 16


class Stub:
    """The OpenAI-compatible server in a process of its own."""

    def __init__(self, port: int | None = None, *, start: bool = True) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        if start:
            self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.plugins.openai_server", "--port", str(self.port)], stdout=subprocess.DEVNULL
        )
        wait_until(lambda: self.stats() is not None, what="the provider")

    def control(self, **faults: Any) -> None:
        answer = httpx.post(f"{self.url}/control", json=faults)
        assert answer.status_code == 200, answer.text

    def reset(self) -> None:
        httpx.post(f"{self.url}/reset").raise_for_status()

    def stats(self) -> Mapping[str, int]:
        found: Mapping[str, int] = httpx.get(f"{self.url}/stats").json()
        return found

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def faulty() -> Iterator[Stub]:
    stub = Stub()
    yield stub
    stub.stop()


class World:
    """One running walvec and one source; each test has its own tables, by names that begin alike."""

    def __init__(self, walvec: Walvec, source: str, store: str, stub: Stub) -> None:
        self.walvec, self.source, self.store, self.stub = walvec, source, store, stub
        self.heard: list[str] = []
        self.defined: dict[str, Any] = {}

    def sql(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.source, autocommit=True) as c:
            cursor = c.execute(statement, arguments or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def define(self, name: str, *, rows: str | None = None, **provider: Any) -> None:
        """Source table, provider and vector table `name`; `rows`: a query of (id, text)."""
        self.sql(f"CREATE TABLE {name} (id bigint PRIMARY KEY, text text, note text)")
        if rows:
            self.sql(f"INSERT INTO {name} (id, text) {rows}")
        self.provider(name, **provider)

    def provider(self, name: str, **fields: Any) -> None:
        provider = {"provider": "openai", "api_key": KEY, "base_url": f"{self.stub.url}/v1", **fields}
        static = provider["provider"] == "static"
        self.defined = {
            "connections": [{"name": "source", "url": self.source}],
            "embedding_providers": [{"name": name, **({"provider": "static"} if static else provider)}],
            "vector_tables": [
                {
                    "name": name,
                    "connection": "source",
                    "embedding_provider": name,
                    "source_table": f"public.{name}",
                    "columns": [{"name": "text", "role": "embedding"}, {"name": "note", "role": "metadata"}],
                    **({} if static else {"embedding_dimensions": DIMENSIONS}),
                }
            ],
        }
        self.apply(self.defined)

    def apply(self, content: Mapping[str, Any]) -> None:
        done = self.walvec.run("apply", "-f", str(self.walvec.definitions(content)))
        self.heard += [done.stdout, done.stderr]
        assert done.returncode == 0, done.stderr

    def status(self, name: str) -> Mapping[str, Any]:
        """As the command shows it, at the price of a request."""
        answer = httpx.get(f"{self.walvec.url}/v1/status/{name}", timeout=30)
        self.heard.append(answer.text)
        found: Mapping[str, Any] = answer.json()["tables"][0]
        return found

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        done = self.walvec.run(*args)
        self.heard += [done.stdout, done.stderr]
        assert "Traceback" not in done.stderr
        return done

    def view(self, name: str) -> dict[int, tuple[str, Any, str | None]]:
        with psycopg.connect(self.store) as c:
            rows = c.execute(f"SELECT id, embedded_text, embedding::text, note FROM walvec.{name}").fetchall()
        return {row[0]: (row[1], row[2], row[3]) for row in rows}

    def right(self, name: str, *, but: frozenset[int] = frozenset()) -> None:
        """Every row but these is in the view, with the vector of its text."""
        found = self.view(name)
        rows = dict(self.sql(f"SELECT id, text FROM {name}"))
        assert found.keys() == rows.keys() - but
        for key, (text, vector, _) in found.items():
            assert text == rows[key]
            assert np.allclose(json.loads(vector), vector_of(text, DIMENSIONS), atol=1e-6), key

    def until(self, name: str, state: str, timeout: float = 30) -> Mapping[str, Any]:
        found: Mapping[str, Any] = wait_until(
            lambda: (s := self.status(name))["state"] == state and s, what=f"{name} {state}", timeout=timeout
        )
        return found


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: EmbeddedPostgres, faulty: Stub
) -> Iterator[World]:
    names = [_create(postgres_server) for _ in range(2)]
    source, own = (postgres_server.dsn(n) for n in names)
    walvec = Walvec(
        tmp_path_factory.mktemp("walvec"),
        control=own,
        store=own,
        env={
            "WALVEC_EMBEDDER__DEAD_LETTER_LIMIT": str(LIMIT),
            "WALVEC_PROVIDERS__OPENAI__BASE_URL": f"{faulty.url}/v1",
            "WALVEC_LOG_LEVEL": "debug",
        },
    )
    world = World(walvec, source, own, faulty)
    walvec.start()
    yield world
    code = walvec.stop()
    for n in names:
        _drop(postgres_server, n)
    assert code == 0
    written = walvec.log.read_text(errors="replace")
    assert "Traceback" not in written
    for text in (written, *world.heard):
        assert KEY not in text
        assert REVOKED not in text
        assert "postgres.password" in text or postgres_server.dsn().split(":")[2].split("@")[0] not in text


@pytest.fixture
def world(running: World) -> Iterator[World]:
    running.stub.reset()
    yield running
    running.stub.reset()
    done = httpx.post(f"{running.walvec.url}/v1/apply", json={"document": {}, "prune": True}, timeout=60)
    assert done.status_code == 200, done.text


@pytest.fixture
def name() -> str:
    return f"t_{uuid.uuid4().hex[:8]}"


ROWS = "SELECT n, 'text ' || n FROM generate_series(1, %s) n"


def rows(n: int) -> str:
    return ROWS % n


def test_429_holds_up_its_own_texts_alone(world: World, name: str) -> None:
    other = f"{name}_other"
    world.define(name, rows=rows(50))
    world.walvec.drain(name)
    world.stub.control(status=429, code="rate_limit_exceeded", headers={"retry-after": "2"}, message="slow down")
    before = world.stub.stats()["requests"]
    world.sql(f"INSERT INTO {name} (id, text) SELECT n, 'late ' || n FROM generate_series(101, 300) n")
    wait_until(lambda: world.stub.stats()["requests"] > before, what="a refused request")
    world.sql(f"DELETE FROM {name} WHERE id <= 10")
    world.sql(f"UPDATE {name} SET note = 'kept' WHERE id = 11")
    world.sql(f"UPDATE {name} SET id = -12 WHERE id = 12")

    def moved_on() -> bool:
        found = world.view(name)
        return found.keys() == {-12, 11, *range(13, 51)} and found[11][2] == "kept"

    wait_until(moved_on, what="deletes, metadata and key changes while the provider says wait")
    # nothing else waits: a table of another provider is made, filled and followed meanwhile
    world.define(other, rows=rows(50), provider="static")
    world.sql(f"INSERT INTO {other} (id, text) VALUES (100, 'new')")
    world.walvec.drain(other)
    assert len(world.view(other)) == 51
    found = world.status(name)
    assert found["state"] == "synced"
    assert found["lag_changes"] > 0
    assert world.stub.stats()["requests"] - before <= 4 * 6  # retry-after is honoured, whatever the machine does
    world.stub.control(status=0)
    world.provider(name)
    world.walvec.drain(name)
    world.right(name)
    assert world.status(name)["dead_letters"] == 0


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500, "answers": 5},
        {"status": 503, "answers": 3, "body": "<html>"},
        {"hang_up": True, "answers": 3},
        {"bad_json": True, "answers": 2},
        {"body": {"data": []}, "answers": 2},
        {"shuffle": True},
        {"floats": True},
        {"no_base64": True},
        {"no_index": True, "floats": True},
        {"max_items": 7},
        {"max_tokens": 40},
        {"latency": 0.3},
    ],
    ids=lambda f: "+".join(f),
)
def test_what_passes_or_can_be_learned_leaves_no_trace(world: World, name: str, fault: dict[str, Any]) -> None:
    world.stub.control(**fault)
    world.define(name, rows=rows(60))
    world.walvec.drain(name)
    world.right(name)
    found = world.status(name)
    assert (found["state"], found["dead_letters"], found["last_error"]) == ("synced", 0, None)
    assert world.stub.stats()["texts"] == 60  # nothing is paid twice


@pytest.mark.parametrize("fault", [{"drop": 1}, {"nan": True}], ids=["count", "nan"])
def test_wrong_answers_are_not_believed(world: World, name: str, fault: dict[str, Any]) -> None:
    world.stub.control(**fault)
    world.define(name, rows=rows(60))
    wait_until(lambda: world.stub.stats()["requests"] >= 2, what="another try")
    assert not any("nan" in vector.lower() for _, vector, _ in world.view(name).values())
    world.stub.control(**{k: type(v)(0) for k, v in fault.items()})
    world.walvec.drain(name)
    world.right(name)
    assert world.status(name)["dead_letters"] == 0


def test_wrong_dimensions_every_time_block_the_table(world: World, name: str) -> None:
    world.stub.control(dimensions=8)
    world.define(name, rows=rows(30))
    found = world.until(name, "blocked")
    assert "8" in found["last_error"]
    assert "16" in found["last_error"]
    world.stub.control(dimensions=0)
    world.walvec.drain(name)
    world.right(name)
    assert world.status(name)["state"] == "synced"


def test_a_revoked_key_blocks_and_heals_by_itself_and_by_a_new_key(world: World, name: str) -> None:
    world.stub.control(key=KEY)
    world.define(name, rows=rows(30), api_key=REVOKED)
    found = world.until(name, "blocked")
    assert "401" in found["last_error"]
    assert "API key" in found["last_error"]
    done = world.run("drain", name, "--timeout", "1")
    assert done.returncode == 1
    assert "blocked" in done.stderr  # it is waited for, not given up
    assert "not within 1 s" in done.stderr
    world.provider(name)  # a new key: at once
    world.walvec.drain(name)
    world.right(name)
    assert world.status(name)["state"] == "synced"
    world.stub.control(key="another")  # revoked while it runs
    world.sql(f"INSERT INTO {name} (id, text) VALUES (100, 'later')")
    world.until(name, "blocked")
    world.sql(f"DELETE FROM {name} WHERE id = 1; UPDATE {name} SET note = 'n' WHERE id = 2")
    wait_until(lambda: 1 not in (v := world.view(name)) and v[2][2] == "n", what="deletes and metadata while blocked")
    done = world.run("search", name, "text")
    assert done.returncode == 1
    assert "401" in done.stderr
    world.stub.control(key=KEY)  # good again: by itself
    world.walvec.drain(name)
    world.right(name)
    found = world.status(name)
    assert (found["state"], found["dead_letters"], found["last_error"]) == ("synced", 0, None)


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429, "code": "insufficient_quota", "message": "You exceeded your current quota."},
        {"status": 404, "code": "model_not_found", "message": "The model does not exist."},
        {"status": 403, "message": "Forbidden."},
    ],
    ids=["quota", "model", "forbidden"],
)
def test_what_needs_a_person_blocks_and_heals_by_itself(world: World, name: str, fault: dict[str, Any]) -> None:
    world.stub.control(**fault)
    world.define(name, rows=rows(30))
    found = world.until(name, "blocked")
    assert fault["message"] in found["last_error"]
    assert found["error"] is None
    world.stub.control(status=0)
    world.walvec.drain(name)
    world.right(name)
    assert world.status(name)["state"] == "synced"


def test_one_poison_row_among_thousands(world: World, name: str) -> None:
    rows = "SELECT n, CASE WHEN n = 1234 THEN '[[reject]] ' ELSE 'text ' END || n FROM generate_series(1, 3000) n"
    world.define(name, rows=rows)
    done = world.run("drain", name, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dead_letters"] == {name: 1}
    world.right(name, but=frozenset({1234}))
    assert world.stub.stats()["texts"] == 2999

    listed = json.loads(world.run("dead", "list", name, "--json").stdout)
    (letter,) = listed["dead_letters"]
    assert {"id", "key", "kind", "reason", "position", "attempts"} <= letter.keys()
    assert letter["key"] == {"id": 1234}
    assert "One of the inputs cannot be embedded." in letter["reason"]
    assert letter["attempts"] == 1
    assert "1234" in world.run("dead", "list", name).stdout
    shown = world.run("dead", "show", name, str(letter["id"]), "--json")
    assert json.loads(shown.stdout)["payload"]["chunks"][0]["text"] == "[[reject]] 1234"
    assert world.run("dead", "show", name, "999999").returncode == 1
    verified = world.run("verify", name, "--json")
    assert verified.returncode == 1
    assert json.loads(verified.stdout) == {
        "missing": [], "orphaned": [], "stale": [], "duplicate": [], "dead": [{"id": 1234}],
    }  # fmt: skip

    # replayed without a cure it comes back; after the cure it is done
    assert world.run("dead", "replay", name).returncode == 0

    def again() -> Any:
        found = json.loads(world.run("dead", "list", name, "--json").stdout)["dead_letters"]
        return found and found[0]["position"] != letter["position"] and found

    (letter,) = wait_until(again, what="the letter of the second attempt")
    world.stub.control(harmless=True)
    assert world.run("dead", "replay", name, str(letter["id"]), "--json").returncode == 0
    world.walvec.drain(name)
    assert not any(world.walvec.verify(name).values())
    world.right(name)
    assert json.loads(world.run("dead", "list", name, "--json").stdout) == {"dead_letters": []}


def test_a_letter_is_settled_by_a_newer_version_or_dropped(world: World, name: str) -> None:
    world.define(name, rows="SELECT n, '[[reject]] ' || n FROM generate_series(1, 4) n UNION SELECT 5, 'fine'")
    world.walvec.drain(name)
    world.right(name, but=frozenset({1, 2, 3, 4}))
    world.sql(f"UPDATE {name} SET text = 'cured' WHERE id = 1; DELETE FROM {name} WHERE id = 2")
    world.walvec.drain(name)

    def two_left() -> list[dict[str, Any]]:
        left = json.loads(world.run("dead", "list", name, "--json").stdout)["dead_letters"]
        return left if sorted(v["key"]["id"] for v in left) == [3, 4] else []

    left = wait_until(two_left, timeout=10, what="letters 1 and 2 settled")
    three = next(v["id"] for v in left if v["key"]["id"] == 3)
    done = world.run("dead", "drop", name, str(three), "--json")
    assert json.loads(done.stdout) == {"dropped": 1}
    world.stub.control(harmless=True)
    assert world.run("verify", name, "--repair").returncode == 0  # what was dropped is missing, and mended too
    world.right(name)
    # a text that is poisoned later leaves the store: it never serves what the table no longer has
    world.stub.control(harmless=False)
    world.sql(f"UPDATE {name} SET text = '[[reject]] late' WHERE id = 5")
    world.walvec.drain(name)
    world.right(name, but=frozenset({5}))


def test_a_text_on_which_the_server_fails_is_a_dead_letter_too(world: World, name: str) -> None:
    marks = "CASE n WHEN 7 THEN '[[server]]' WHEN 9 THEN '[[nan]]' ELSE 'text' END"
    world.define(name, rows=f"SELECT n, {marks} || n FROM generate_series(1, 40) n")
    world.walvec.drain(name, timeout=90)
    world.right(name, but=frozenset({7, 9}))
    assert world.status(name)["dead_letters"] == 2


def test_too_many_letters_in_a_row_stop_the_table_and_resume_replays_them(world: World, name: str) -> None:
    world.define(name, rows="SELECT n, '[[reject]] ' || n FROM generate_series(1, 60) n")
    found = world.until(name, "error", timeout=60)
    assert "in a row could not be embedded" in found["last_error"]
    assert "resume" in found["last_error"]
    assert found["dead_letters"] >= LIMIT
    done = world.run("drain", name)
    assert done.returncode == 1
    assert "error" in done.stderr
    world.stub.control(harmless=True)
    done = world.run("resume", name)
    assert done.returncode == 0, done.stderr
    world.walvec.drain(name)
    assert not any(world.walvec.verify(name).values())
    world.right(name)
    found = world.status(name)
    assert (found["state"], found["dead_letters"], found["last_error"]) == ("synced", 0, None)


def test_a_provider_that_is_down_at_start_is_waited_for(world: World, name: str) -> None:
    late = Stub(start=False)
    try:
        world.define(name, rows=rows(30), base_url=f"{late.url}/v1")
        done = world.run("drain", name, "--timeout", "1")
        assert done.returncode == 1
        late.start()
        world.walvec.drain(name)
        world.right(name)
        late.stop()
        world.sql(f"INSERT INTO {name} (id, text) VALUES (100, 'while it is down')")
        world.sql(f"DELETE FROM {name} WHERE id = 1")
        wait_until(lambda: 1 not in world.view(name), what="a delete while the provider is down")
        assert world.run("search", name, "text").returncode == 1
        late.start()
        world.walvec.drain(name)
        world.right(name)
        assert world.status(name)["dead_letters"] == 0
    finally:
        late.stop()


def test_a_long_text_is_cut_and_counted(world: World, name: str) -> None:
    world.define(name, rows="SELECT 1, 'short' UNION SELECT 2, repeat('word ', 20000)")
    world.walvec.drain(name)
    found = world.view(name)
    assert found[1][0] == "short"
    assert 8000 < len(found[2][0]) < 4 * 8192 + 1
    assert ("word " * 20000).startswith(found[2][0])
    wait_until(lambda: world.status(name)["embedder"].get("texts_cut") == 1, what="the count of cut texts")
    assert not any(world.walvec.verify(name).values())
    world.sql(f"UPDATE {name} SET text = text || 'tail' WHERE id = 2")  # the hash covers the whole text
    before = world.stub.stats()["texts"]
    world.walvec.drain(name)
    assert world.stub.stats()["texts"] - before <= 1
    assert not any(world.walvec.verify(name).values())


def test_nothing_is_paid_twice(world: World, name: str) -> None:
    world.define(name, rows="SELECT n, 'one text for all' FROM generate_series(1, 2000) n")
    world.walvec.drain(name)
    world.right(name)
    assert world.stub.stats()["texts"] == 1
    world.sql(f"UPDATE {name} SET note = 'n' || id")
    world.sql(f"UPDATE {name} SET id = id + 10000 WHERE id <= 500")
    assert world.run("backfill", name).returncode == 0
    world.walvec.drain(name)
    world.right(name)
    assert {note for _, _, note in world.view(name).values()} == {f"n{n}" for n in range(1, 2001)}
    assert world.stub.stats()["texts"] == 1
    found = wait_until(lambda: (s := world.status(name))["texts_sent"] == 1 and s, what="texts sent")
    assert found["texts_saved"] >= 1999


def test_the_server_s_own_address_stands_for_one_that_is_not_named(world: World, name: str) -> None:
    world.define(name, rows=rows(10), base_url=None)
    world.walvec.drain(name)
    world.right(name)
    assert world.stub.stats()["texts"] == 10
