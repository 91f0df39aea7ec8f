"""Drives the installed `walvec` command as its user would: subprocesses, HTTP, SQL; kills them at will.

`Walvec` is one running `walvec up`; `Workload` changes a table at random; `differences` compares table and view by
plain SQL, independently of `walvec verify`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import yaml
from psycopg import sql

from tests.plugins.ports import free_port

ROLES = ("cdc", "embedder", "sink", "api")
WALVEC = [sys.executable, "-m", "walvec"]


def wait_until(check: Any, *, timeout: float = 30, what: str = "the condition") -> Any:
    """The first true value of `check()`; AssertionError after `timeout` seconds with the last value or exception."""
    until = time.monotonic() + timeout
    pause = threading.Event()
    last: Any = None
    while True:
        try:
            last = check()
            if last:
                return last
        except (httpx.HTTPError, psycopg.Error, psutil.Error, AssertionError) as e:
            last = e
        if time.monotonic() > until:
            raise AssertionError(f"{what}: not within {timeout} s; last: {last!r}")
        pause.wait(0.05)


class Walvec:
    """One `walvec up` and the commands against it. Its log is kept for the failure report."""

    def __init__(
        self, directory: Path, *, control: str | None, store: str | None, env: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("WALVEC_")} | {
            "WALVEC_DATA_DIR": str(directory / "data"),
            "WALVEC_API__PORT": str(self.port),
            "WALVEC_CDC__HEARTBEAT_INTERVAL_SECONDS": "1",
            **({"WALVEC_CONTROL_DATABASE__URL": control} if control else {}),
            **({"WALVEC_PGVECTOR__URL": store} if store else {}),
            **(env or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.log = directory / "walvec.log"

    def definitions(self, document: Mapping[str, Any]) -> Path:
        path = self.directory / "definitions.yaml"
        path.write_text(yaml.safe_dump(dict(document)))
        return path

    def start(self, *apply: Path, args: Sequence[str] = (), ready: bool = True) -> None:
        command = [*WALVEC, "up", *args]
        for path in apply:
            command += ["--apply", str(path)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self.env, cwd=self.directory, stdout=log, stderr=log, start_new_session=True
            )
        if ready:
            self.wait_ready()

    def wait_ready(self, timeout: float = 60) -> None:
        def ready() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                pytest_fail(f"walvec up ended with {self.process.returncode}:\n{self.tail()}")
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200

        wait_until(ready, timeout=timeout, what="GET /health = 200")

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def roles(self) -> dict[str, list[psutil.Process]]:
        """Live descendants of `walvec up` by role word."""
        assert self.process is not None
        found: dict[str, list[psutil.Process]] = {role: [] for role in ROLES}
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return found
        for child in children:
            try:
                words = child.cmdline()
                if child.status() != psutil.STATUS_ZOMBIE:
                    for role in ROLES:
                        if role in words:
                            found[role].append(child)
            except psutil.NoSuchProcess:
                continue
        return found

    def kill(self, *roles: str) -> None:
        """SIGKILL to every process of these roles."""
        for role in roles:
            for process in self.roles()[role]:
                process.kill()

    def kill_supervisor(self) -> list[psutil.Process]:
        """SIGKILL to `walvec up` alone; returns the orphans."""
        assert self.process is not None
        orphans = [p for found in self.roles().values() for p in found]
        self.process.kill()
        self.process.wait()
        return orphans

    def kill_all(self) -> None:
        """SIGKILL to the supervisor and every role at once."""
        assert self.process is not None
        orphans = [p for found in self.roles().values() for p in found]
        for p in [self.process, *orphans]:
            p.kill()
        self.process.wait()
        psutil.wait_procs(orphans, timeout=10)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        if self.process is None or self.process.poll() is not None:
            return 0 if self.process is None else self.process.returncode
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise

    def run(self, *args: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """`walvec ARGS --url …`."""
        command = [*WALVEC, *args, "--url", self.url]
        return subprocess.run(
            command, env=self.env, cwd=self.directory, capture_output=True, text=True, timeout=timeout, check=False
        )

    def json(self, *args: str, timeout: float = 120) -> Any:
        done = self.run(*args, "--json", timeout=timeout)
        assert done.stdout, f"walvec {' '.join(args)} printed nothing: {done.stderr}"
        return json.loads(done.stdout)

    def drain(self, *tables: str, timeout: float = 60) -> None:
        done = self.run("drain", *tables, "--timeout", str(timeout), timeout=timeout + 30)
        assert done.returncode == 0, f"drain: {done.stdout}{done.stderr}\n{self.tail()}"

    def verify(self, table: str, *args: str) -> Any:
        return self.json("verify", table, *args)

    def ask(self, path: str, body: Mapping[str, Any] | None = None, timeout: float = 120) -> Any:
        """What a command asks of the API (POST with a body, else GET), without the cost of a process."""
        with httpx.Client(base_url=self.url, timeout=timeout) as client:
            answer = client.get(path) if body is None else client.post(path, json=dict(body))
        assert answer.status_code < 300, f"{path}: {answer.status_code} {answer.text}\n{self.tail()}"
        return answer.json()

    def table(self, name: str) -> Mapping[str, Any]:
        tables = self.json("status", name)["tables"]
        found: Mapping[str, Any] = next(t for t in tables if t["name"] == name)
        return found


def pytest_fail(reason: str) -> None:
    import pytest

    pytest.fail(reason)


SCHEMA = """
CREATE TABLE items (
    id bigint PRIMARY KEY, title text, body text, price numeric(12,2), tags text[], stock int, seen timestamptz
)
"""
TABLE: dict[str, Any] = {
    "name": "items",
    "connection": "source",
    "embedding_provider": "local",
    "source_table": "public.items",
    "columns": [
        {"name": "title", "role": "embedding", "ordinal": 1, "name_prefix": "Title: "},
        {"name": "body", "role": "embedding", "ordinal": 2},
        {"name": "price", "role": "metadata", "filter_type": "float"},
        {"name": "tags", "role": "metadata"},
        {"name": "stock", "role": "metadata", "filter_type": "integer"},
        {"name": "seen", "role": "metadata", "filter_type": "datetime"},
    ],
}


def document(dsn: str, *tables: Mapping[str, Any], providers: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """A definitions document with connection `source` and provider `local` (static)."""
    return {
        "connections": [{"name": "source", "provider": "postgresql", "mode": "managed", "url": dsn}],
        "embedding_providers": [{"name": "local", "provider": "static"}, *map(dict, providers)],
        "vector_tables": [dict(t) for t in (tables or (TABLE,))],
    }


def differences(source: str, store: str, *, table: str = "items", view: str = "items", limit: int = 5) -> list[str]:
    """What a plain SQL reader finds wrong with the view of the standard table: [] means they are equal."""
    with psycopg.connect(source) as s, psycopg.connect(store) as v:
        for c in (s, v):
            c.execute("SET TimeZone = 'UTC'")
        want = {
            row[0]: row[1:]
            for row in s.execute(
                sql.SQL(
                    "SELECT id, nullif(concat_ws(E'\\n', 'Title: ' || nullif(title, ''), nullif(body, '')), ''),"
                    " price, tags, stock, seen FROM {}"
                ).format(sql.Identifier(table))
            )
        }
        want = {k: r for k, r in want.items() if r[0] and not r[0].isspace()}
        rows = v.execute(
            sql.SQL("SELECT id, embedded_text, price, tags, stock, seen FROM walvec.{}").format(sql.Identifier(view))
        ).fetchall()
        lost = v.execute(
            sql.SQL("SELECT count(*) FROM walvec.{} WHERE embedding IS NULL").format(sql.Identifier(view))
        ).fetchone()
    have = {row[0]: row[1:] for row in rows}
    wrong = []
    if len(have) != len(rows):
        wrong.append(f"{len(rows) - len(have)} duplicates")
    if lost and lost[0]:
        wrong.append(f"{lost[0]} rows without a vector")
    wrong += [f"missing {k}" for k in sorted(want.keys() - have.keys())[:limit]]
    wrong += [f"orphan {k}" for k in sorted(have.keys() - want.keys())[:limit]]
    stale = [k for k in sorted(want.keys() & have.keys()) if want[k] != have[k]]
    wrong += [f"stale {k}: {have[k]!r} is not {want[k]!r}" for k in stale[:limit]]
    return wrong


WORDS = (
    "amber", "basalt", "cedar", "dune", "ember", "fjord", "grove", "harbor",
    "inlet", "juniper", "kelp", "lagoon", "meadow", "nectar", "orchid", "prairie",
)  # fmt: skip


class Workload:
    """Random transactions on `items` from a thread until stopped; the seed makes them repeatable."""

    def __init__(self, dsn: str, *, seed: int, rows: int = 300, truncate: bool = True, pause: float = 0.002) -> None:
        self.dsn, self.random, self.rows, self.truncate, self.pause = dsn, random.Random(seed), rows, truncate, pause
        self.done = 0
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def text(self) -> str | None:
        r = self.random
        if r.random() < 0.06:
            return r.choice([None, "", "  ", "\u2003"])
        words = " ".join(r.choices(WORDS, k=r.randint(2, 12)))
        if r.random() < 0.03:  # big enough to be stored out of line, so that an update may leave it unchanged
            return words + "".join(chr(r.randint(0x20, 0x2FF)) for _ in range(9000))
        return words

    def _one(self, c: psycopg.Connection[Any]) -> None:
        r, key = self.random, self.random.randrange(self.rows)
        kind = r.choices(
            ["insert", "text", "meta", "delete", "rekey", "swap", "truncate", "undone"],
            [8, 10, 8, 4, 3, 1, 0.02 if self.truncate else 0, 1],
        )[0]
        if kind == "insert":
            c.execute(
                "INSERT INTO items VALUES (%s, %s, %s, %s, %s, %s, now()) ON CONFLICT (id) DO UPDATE SET"
                " title = excluded.title, body = excluded.body",
                (key, self.text(), self.text(), r.randint(1, 9999) / 100, r.choices(WORDS, k=2), r.randint(0, 9)),
            )
        elif kind == "text":
            c.execute("UPDATE items SET title = %s, seen = now() WHERE id = %s", (self.text(), key))
        elif kind == "meta":
            values = (r.randint(0, 9), r.choices(WORDS, k=2), key)
            c.execute("UPDATE items SET stock = %s, tags = %s WHERE id = %s", values)
        elif kind == "delete":
            c.execute("DELETE FROM items WHERE id = %s", (key,))
        elif kind == "rekey":
            c.execute(
                "UPDATE items SET id = %s WHERE id = %s AND NOT EXISTS (SELECT FROM items WHERE id = %s)",
                (key + self.rows, key, key + self.rows),
            )
        elif kind == "swap":
            other = r.randrange(self.rows)
            for old, new in ((key, -1), (other, key), (-1, other)):
                c.execute("UPDATE items SET id = %s WHERE id = %s", (new, old))
        elif kind == "truncate":
            c.execute("TRUNCATE items")
        else:
            with c.transaction(force_rollback=True):
                c.execute("DELETE FROM items WHERE id % 3 = 0")

    def _run(self) -> None:
        try:
            with psycopg.connect(self.dsn, autocommit=True) as c:
                while not self._stop.wait(self.pause):
                    # a test's own statement may have locked the same rows in another order
                    with suppress(psycopg.errors.DeadlockDetected):
                        with c.transaction():
                            for _ in range(self.random.choice((1, 1, 1, 3, 20))):
                                self._one(c)
                        self.done += 1
        except BaseException as e:  # noqa: BLE001 - handed to the test by stop()
            self.failure = e

    def stop(self) -> int:
        self._stop.set()
        self._thread.join(timeout=30)
        if self.failure:
            raise self.failure
        return self.done


def after(workload: Workload, transactions: int, *, timeout: float = 30) -> None:
    """Waits until the workload has done so many more."""
    goal = workload.done + transactions
    wait_until(
        lambda: workload.done >= goal or workload.failure, timeout=timeout, what=f"{transactions} transactions more"
    )


@contextmanager
def running(workload: Workload) -> Iterator[Workload]:
    workload._thread.start()
    try:
        yield workload
    finally:
        workload.stop()
