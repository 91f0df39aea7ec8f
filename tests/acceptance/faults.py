"""What the fault tests share: a filled table, a provider in a process of its own, and the final judgement."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg

from tests.acceptance.harness import SCHEMA, TABLE, Walvec, Workload, differences, wait_until
from tests.plugins.ports import free_port

ROOT = Path(__file__).parents[2]

PACED = {
    # small steps, so that a backfill of some thousand rows is in the middle of its reading for a while
    "WALVEC_CDC__BACKFILL_CHUNK_ROWS": "200",
    "WALVEC_CDC__BACKFILL_MAX_BACKLOG": "800",
}


class Provider:
    """The OpenAI-compatible server of tests/plugins, outside of this process."""

    def __init__(self, url: str) -> None:
        self.url = url

    def stats(self) -> Mapping[str, int]:
        found: Mapping[str, int] = httpx.get(f"{self.url}/stats", timeout=10).json()
        return found

    def control(self, **faults: Any) -> None:
        httpx.post(f"{self.url}/control", json=faults, timeout=10).raise_for_status()

    def definition(self, **limits: int) -> dict[str, Any]:
        found: dict[str, Any] = {
            "name": "paid",
            "provider": "openai",
            "api_key": "sk-test",
            "base_url": f"{self.url}/v1",
        }
        return found | {"limits": {"max_text_tokens": 0, **limits}}  # 0: no text is cut

    def table(self, name: str = "paid") -> dict[str, Any]:
        """The standard table, embedded by this provider into a view of its own."""
        model = {"embedding_model": "text-embedding-3-small", "embedding_dimensions": 64}
        return {**TABLE, "name": name, "embedding_provider": "paid", **model}


@contextmanager
def provider(*, latency: float) -> Iterator[Provider]:
    port = free_port()
    command = [sys.executable, "-m", "tests.plugins.openai_server", "--port", str(port), "--latency", str(latency)]
    process = subprocess.Popen([*command, "--dimensions", "64"], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        found = Provider(f"http://127.0.0.1:{port}")
        wait_until(found.stats, what="the provider")
        found.control(max_text_tokens=1_000_000)
        yield found
    finally:
        process.kill()
        process.wait()


def filled(dsn: str, rows: int, *, first: int | None = None) -> None:
    """The standard table with so many rows, each with a text of its own."""
    with psycopg.connect(dsn, autocommit=True) as c:
        if first is None:
            c.execute(SCHEMA)
            first = 0
        c.execute(
            "INSERT INTO items SELECT i, 'row ' || i, 'body of ' || md5(i::text), i / 100.0, ARRAY['a', i::text],"
            " i %% 10, '2024-01-01T00:00:00Z' FROM generate_series(%s::bigint, %s) i",
            (first, first + rows - 1),
        )


def equal(walvec: Walvec, source: str, store: str, views: Sequence[str] = ("items",), timeout: float = 120) -> None:
    """Drained, then equal by plain SQL."""

    def drained() -> Mapping[str, Any]:
        body = {"tables": list(views), "timeout": timeout}
        answer = httpx.post(f"{walvec.url}/v1/drain", json=body, timeout=timeout + 30)
        answer.raise_for_status()
        found: Mapping[str, Any] = answer.json()
        return found

    found = wait_until(drained, what="an answer to drain")  # through restarts of the API
    assert found["drained"], f"{found['reason']}\n{walvec.tail()}"
    for view in views:
        wrong = differences(source, store, view=view)
        assert not wrong, f"{view}: {wrong}\n{walvec.tail()}"


def judge(walvec: Walvec, source: str, store: str, views: Sequence[str] = ("items",), timeout: float = 120) -> None:
    """Equal by plain SQL and by the program's own word, and no defect was logged on the way."""
    equal(walvec, source, store, views, timeout)
    for view in views:
        done = walvec.run("verify", view, "--json")
        assert done.returncode == 0, f"verify {view}: {done.stdout}{done.stderr}\n{walvec.tail()}"
        assert not any(json.loads(done.stdout).values())
    assert "Traceback" not in walvec.log.read_text(errors="replace"), walvec.tail(200)


def status(walvec: Walvec, name: str) -> Mapping[str, Any]:
    """As `walvec status`, without a process for it. Raises httpx.HTTPError while the API is down."""
    answer = httpx.get(f"{walvec.url}/v1/status", timeout=10)
    answer.raise_for_status()
    found: Mapping[str, Any] = next(t for t in answer.json()["tables"] if t["name"] == name)
    return found


def rows_read(walvec: Walvec, name: str) -> int | None:
    """How far the open backfill of a table has read; None when none is open."""
    backfill = wait_until(lambda: [status(walvec, name)["backfill"]], what="the status")[0]
    return int(backfill["rows_done"]) if backfill else None


class Stubborn(Workload):
    """A workload that connects again whenever the server throws it out; what it was at then is committed or not."""

    def _run(self) -> None:
        while not self._stop.is_set():
            self.failure = None
            super()._run()
            if not isinstance(self.failure, psycopg.OperationalError):
                return
            self._stop.wait(0.05)
        self.failure = None
