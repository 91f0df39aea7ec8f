"""What was committed is found: waits for an LSN, and what answers say of their own freshness, while somebody writes."""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests.acceptance.harness import SCHEMA, WALVEC, Walvec, document, wait_until
from tests.plugins.ports import free_port
from tests.plugins.postgres import PostgresDatabase

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(180)]


@pytest.fixture
def walvec(tmp_path: Path, postgres: PostgresDatabase) -> Iterator[Walvec]:
    own = postgres.another()
    found = Walvec(tmp_path, control=own, store=own)
    postgres.execute(SCHEMA)
    found.start(found.definitions(document(postgres.dsn)))
    found.drain()
    yield found
    found.stop()


def lsn_of(text: str) -> int:
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def lsn_now(connection: psycopg.Connection[Any]) -> str:
    row = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()
    assert row is not None
    return str(row[0])


def found(client: httpx.Client, key: int) -> dict[str, Any]:
    """The answer to a query for one row, by its own `stock`."""
    body = {"query": f"thing number {key}", "filters": {"stock": key}, "limit": 3}
    answer = client.post("/v1/vector-tables/items/query", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def insert(connection: psycopg.Connection[Any], key: int) -> None:
    connection.execute("INSERT INTO items (id, title, stock) VALUES (%s, %s, %s)", (key, f"thing number {key}", key))


@pytest.fixture
def second_api(walvec: Walvec) -> Iterator[str]:
    """Another API process beside the first; its address."""
    port = free_port()
    env = {**walvec.env, "WALVEC_API__PORT": str(port)}
    process = subprocess.Popen([*WALVEC, "api"], env=env, cwd=walvec.directory, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: httpx.get(f"{url}/health/ready").status_code == 200, what="the second API")
    yield url
    process.terminate()
    process.wait(timeout=30)


def test_a_commit_is_found_after_a_wait(walvec: Walvec, second_api: str, postgres: PostgresDatabase) -> None:
    """Through whichever API process."""
    seconds = []
    path = "/v1/vector-tables/items/sync"
    with (
        httpx.Client(base_url=walvec.url, timeout=60) as one,
        httpx.Client(base_url=second_api, timeout=60) as two,
        psycopg.connect(postgres.dsn, autocommit=True) as connection,
    ):
        for key in range(24):
            waits, asks = (one, two) if key % 2 else (two, one)
            insert(connection, key)
            lsn = lsn_now(connection)
            start = time.monotonic()
            if key % 3 == 0:
                answer = waits.post(f"{path}/drain", json={"lsn": lsn, "timeout": 30})
                assert lsn_of(answer.json()["as_of_lsn"]) >= lsn_of(lsn)
            elif key % 3 == 1:
                answer = waits.post(f"{path}/drain")
                assert (answer.json()["drained"], answer.json()["lsn"]) == (True, None)
            else:
                answer = waits.get(f"{path}/status", params={"wait_for_lsn": lsn, "timeout": 30})
                assert answer.json()["lsn_reached"] is True
                assert lsn_of(answer.json()["as_of_lsn"]) >= lsn_of(lsn)
            seconds.append(time.monotonic() - start)
            assert answer.status_code == 200, answer.text
            assert [h["id"] for h in found(asks, key)["results"]] == [str(key)]
    assert statistics.median(seconds) < 0.5, sorted(seconds)  # tens of milliseconds where nothing else runs


def test_what_an_answer_promises_is_found(walvec: Walvec, postgres: PostgresDatabase) -> None:
    """While somebody writes: every row at or below `as_of_lsn`, and every one older than `staleness_secs`, is there."""
    committed: list[tuple[int, int, float]] = []
    stop = threading.Event()

    def write() -> None:
        with psycopg.connect(postgres.dsn, autocommit=True) as connection:
            key = 0
            while not stop.wait(0.01):
                key += 1
                insert(connection, key)
                lsn = lsn_of(lsn_now(connection))
                committed.append((key, lsn, time.monotonic()))

    writer = threading.Thread(target=write)
    writer.start()
    checked = 0
    as_of: int | None = None
    try:
        with httpx.Client(base_url=walvec.url, timeout=60) as client:
            until = time.monotonic() + 8
            while time.monotonic() < until:
                told = committed[:]
                # the newest that the last answer promised, and now and then the newest of all
                known = [row for row in told if as_of is not None and row[1] <= as_of][-1:] or told[-1:]
                for key, lsn, at in [*known, *told[-1:]]:
                    asked = time.monotonic()
                    answer = found(client, key)
                    if answer["as_of_lsn"] is None:
                        continue
                    as_of = lsn_of(answer["as_of_lsn"])
                    if lsn <= as_of:
                        checked += 1
                        assert answer["results"], (key, answer)
                    if answer["staleness_secs"] is not None and at < asked - answer["staleness_secs"]:
                        assert answer["results"], (key, asked - at, answer)
    finally:
        stop.set()
        writer.join()
    assert checked > 20
    assert as_of is not None
    assert as_of >= committed[0][1]


def test_a_table_that_does_not_follow_says_so(walvec: Walvec, postgres: PostgresDatabase) -> None:
    path = "/v1/vector-tables/items"
    with (
        httpx.Client(base_url=walvec.url, timeout=60) as client,
        psycopg.connect(postgres.dsn, autocommit=True) as connection,
    ):
        insert(connection, 1)
        assert client.post(f"{path}/sync/drain").status_code == 200
        wait_until(lambda: found(client, 1)["staleness_secs"] is not None, what="the first look")
        client.post(f"{path}/sync/pause").raise_for_status()
        insert(connection, 2)
        lsn = lsn_now(connection)
        refused = client.post(f"{path}/sync/drain", json={"lsn": lsn})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "sync_paused")
        status = client.get(f"{path}/sync/status", params={"wait_for_lsn": lsn}).json()
        assert (status["lsn_reached"], "paused" in status["wait_reason"]) == (False, True)
        stale = wait_until(lambda: (a := found(client, 2))["staleness_secs"] > 2 and a, what="a stale answer")
        assert lsn_of(stale["as_of_lsn"]) < lsn_of(lsn)
        assert stale["results"] == []
        client.post(f"{path}/sync/resume").raise_for_status()
        late = client.post(f"{path}/sync/drain", json={"lsn": lsn, "timeout": 0})
        assert (late.status_code, late.json()["error"]["code"]) == (504, "drain_timeout")
        assert int(late.headers["retry-after"]) >= 1
        assert client.post(f"{path}/sync/drain", json={"lsn": lsn}).status_code == 200
        assert [h["id"] for h in found(client, 2)["results"]] == ["2"]
        for wrong in ("FFFFFFFF/0", "0", "0/XYZ", "0/0/0", ""):
            answer = client.post(f"{path}/sync/drain", json={"lsn": wrong})
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "validation_error"), wrong
            assert "lsn" in answer.json()["error"]["message"]
            assert client.get(f"{path}/sync/status", params={"wait_for_lsn": wrong}).status_code == 422
