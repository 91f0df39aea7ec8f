"""`walvec demo`: shows the whole of walvec in half a minute with its real commands and processes.

An embedded Postgres gets a table; `walvec up` follows it; searches, live changes with their measured latency, a kill -9
of two roles under load, and a comparison of table and view by plain SQL. Any difference ends it with exit code 1.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import yaml
from rich.console import Console
from rich.table import Table

from walvec.cli.demo_data import PRODUCTS, SEARCHES, TABLE
from walvec.cli.supervisor import role_pids
from walvec.contracts.errors import ConfigError, WalvecError
from walvec.runtime.embedded_postgres import EmbeddedPostgres

DEFINITIONS: Mapping[str, Any] = {
    "embedding_providers": [{"name": "local", "provider": "static"}],
    "vector_tables": [
        {
            "name": "product_search",
            "connection": "shop",
            "embedding_provider": "local",
            "source_table": "public.products",
            "columns": [
                {"name": "name", "role": "embedding", "ordinal": 1},
                {"name": "description", "role": "embedding", "ordinal": 2},
                {"name": "category", "role": "metadata", "filter_type": "keyword"},
                {"name": "price", "role": "metadata", "filter_type": "float"},
            ],
        }
    ],
}
VIEW = "walvec.product_search"
_WAIT_SECONDS = 60.0
_STORM_SECONDS = 3.0

Row = tuple[Any, ...]


def run_demo(*, keep: bool, data_dir: Path | None) -> None:
    """Shows everything and returns; with `keep` stays up until Ctrl-C."""
    console = Console(highlight=False)
    with contextlib.ExitStack() as stack:
        if data_dir is None:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="walvec-demo-", ignore_cleanup_errors=True))
            data_dir = Path(name)
            data_dir.chmod(0o755)
        Demo(console, data_dir.absolute(), stack).run(keep=keep)


@dataclass
class Demo:
    console: Console
    data_dir: Path
    stack: contextlib.ExitStack

    def run(self, *, keep: bool) -> None:
        began = time.monotonic()
        say = self.console.print
        say("\n[bold]walvec[/bold]  keeps vectors in step with Postgres rows\n")

        self._step("A Postgres with a table of products")
        server = EmbeddedPostgres(self.data_dir)
        server.start()
        self.stack.callback(server.stop)
        self.dsn = server.ensure_database("demo")
        self.source = self.stack.enter_context(psycopg.connect(self.dsn, autocommit=True))
        self.source.execute(TABLE)
        self.source.execute("TRUNCATE products")
        with self.source.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO products (name, description, category, price) VALUES (%s, %s, %s, %s)", PRODUCTS
            )
        say(f"  {len(PRODUCTS)} rows; PostgreSQL {server_version(self.source)} with pgvector, all in {self.data_dir}")

        self._step("walvec up: four processes follow the write-ahead log")
        started = time.monotonic()
        self.port = free_port()
        process = self._up()
        self._wait("the first vectors", lambda: self._count() == len(PRODUCTS), process)
        say(f"  every row has its vector {time.monotonic() - started:.1f} s after the command was given")

        self._step("Search by meaning")
        for question, where in SEARCHES:
            self._search(question, where)

        self._step("Live changes: from COMMIT to visible in the view")
        self._live()

        self._step("kill -9 of embedder and sink, while rows keep changing")
        self._storm()

        took = time.monotonic() - began
        say(f"\n[bold green]Table and vectors are equal.[/bold green]  The whole demo took {took:.0f} s.")
        say(f"  The view is plain SQL:  [cyan]SELECT p.*, e.embedding FROM products p JOIN {VIEW} e USING (id)[/cyan]")
        if keep:
            say(f"\n  API and dashboard: http://127.0.0.1:{self.port}   database: {self.dsn}\n  Ctrl-C ends it.")
            self._stay(process)
        else:
            say("  Your own database:  walvec up, then walvec apply -f definitions.yaml (see README)\n")
        self._end(process)

    # -- processes -------------------------------------------------------------------------------------------------

    def _up(self) -> subprocess.Popen[bytes]:
        document = {
            "connections": [{"name": "shop", "provider": "postgresql", "mode": "platform", "url": self.dsn}],
            **DEFINITIONS,
        }
        definitions = self.data_dir / "definitions.yaml"
        definitions.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        definitions.chmod(0o600)
        log = self.stack.enter_context((self.data_dir / "walvec.log").open("ab"))
        process = subprocess.Popen(
            [sys.executable, "-m", "walvec", "up", "--apply", str(definitions)],
            env=self._environment(),
            cwd=self.data_dir,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        self.stack.callback(self._end, process)
        return process

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WALVEC_")}
        return {**kept, "WALVEC_DATA_DIR": str(self.data_dir), "WALVEC_API__PORT": str(self.port)}

    def _command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A walvec command against the demo's API."""
        return subprocess.run(
            [sys.executable, "-m", "walvec", *arguments, "--url", f"http://127.0.0.1:{self.port}"],
            env=self._environment(),
            cwd=self.data_dir,
            capture_output=True,
            text=True,
            check=False,
        )

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _stay(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            process.wait()

    def _wait(self, what: str, check: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
        deadline = time.monotonic() + _WAIT_SECONDS
        pause = threading.Event()
        while not check():
            if process is not None and process.poll() is not None:
                raise ConfigError(f"walvec up ended: {self._last_words()}", "The demo's log says more.")
            if time.monotonic() > deadline:
                raise WalvecError(f"The demo waited in vain for {what}: {self._last_words()}", "Please report this.")
            pause.wait(0.02)

    def _last_words(self) -> str:
        lines = (self.data_dir / "walvec.log").read_text(errors="replace").splitlines()
        return " | ".join(lines[-3:])

    # -- steps -----------------------------------------------------------------------------------------------------

    def _step(self, title: str) -> None:
        self.console.print(f"\n[bold cyan]▸ {title}[/bold cyan]")

    def _count(self) -> int:
        try:
            row = self.source.execute(f"SELECT count(*) FROM {VIEW}").fetchone()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return -1
        return int(row[0]) if row else -1

    def _search(self, question: str, where: Mapping[str, Any] | None) -> None:
        answer = httpx.post(
            f"http://127.0.0.1:{self.port}/v1/vector-tables/product_search/query",
            json={"query": question, "limit": 3, "filters": where},
            timeout=30,
            trust_env=False,
        )
        if not answer.is_success:
            raise WalvecError(f"The search failed: {answer.text}", "Please report this.")
        title = f"[italic]“{question}”[/italic]" + (f"   where {json.dumps(where)}" if where else "")
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2), title_style="")
        for hit in answer.json()["results"]:
            name, _, rest = hit["embedded_text"].partition("\n")
            table.add_row(f"{hit['score']:.2f}", f"[bold]{name}[/bold]", rest)
        self.console.print(table)

    def _live(self) -> None:
        table = Table(box=None, padding=(0, 2))
        for heading in ("change", "median", "best of 5"):
            table.add_column(heading, justify="left" if heading == "change" else "right")
        for title, samples in self._measure():
            table.add_row(title, f"{statistics.median(samples):.0f} ms", f"{min(samples):.0f} ms")
        self.console.print(table)

    def _measure(self) -> Iterator[tuple[str, list[float]]]:
        """Five of each kind of change; every one is waited for before the next."""
        texts = [f"Lantern number {n}, burns {n} hours on one filling of oil." for n in range(5)]
        ids = range(1001, 1006)
        yield (
            "INSERT",
            [
                self._until_visible(
                    "INSERT INTO products (id, name, description, category, price) VALUES (%s, %s, %s, 'outdoor', 19)",
                    (key, f"Lantern {key}", text),
                    f"SELECT 1 FROM {VIEW} WHERE id = %s",
                    (key,),
                )
                for key, text in zip(ids, texts, strict=True)
            ],
        )
        yield (
            "UPDATE of the text",
            [
                self._until_visible(
                    "UPDATE products SET description = %s WHERE id = %s",
                    (f"Now it runs on the sun, model {key}.", key),
                    f"SELECT 1 FROM {VIEW} WHERE id = %s AND embedded_text LIKE %s",
                    (key, "%runs on the sun%"),
                )
                for key in ids
            ],
        )
        yield (
            "UPDATE of the price (not embedded again)",
            [
                self._until_visible(
                    "UPDATE products SET price = 77 WHERE id = %s",
                    (key,),
                    f"SELECT 1 FROM {VIEW} WHERE id = %s AND price = 77",
                    (key,),
                )
                for key in ids
            ],
        )
        yield (
            "change of the primary key",
            [
                self._until_visible(
                    "UPDATE products SET id = %s WHERE id = %s",
                    (key + 100, key),
                    f"SELECT 1 FROM {VIEW} WHERE id = %s AND NOT EXISTS (SELECT FROM {VIEW} WHERE id = %s)",
                    (key + 100, key),
                )
                for key in ids
            ],
        )
        yield (
            "DELETE",
            [
                self._until_visible(
                    "DELETE FROM products WHERE id = %s",
                    (key + 100,),
                    f"SELECT 1 WHERE NOT EXISTS (SELECT FROM {VIEW} WHERE id = %s)",
                    (key + 100,),
                )
                for key in ids
            ],
        )

    def _until_visible(self, change: str, arguments: Sequence[Any], check: str, wanted: Sequence[Any]) -> float:
        """Milliseconds from COMMIT to visible."""
        self.source.execute(change, arguments)
        began = time.perf_counter()
        pause = threading.Event()
        while self.source.execute(check, wanted).fetchone() is None:
            if time.perf_counter() - began > _WAIT_SECONDS:
                raise WalvecError(f"A change did not become visible: {self._last_words()}", "Please report this.")
            pause.wait(0.001)
        return (time.perf_counter() - began) * 1000

    def _storm(self) -> None:
        writer = Writer(self.dsn)
        writer.start()
        pause = threading.Event()
        try:
            for role in ("embedder", "sink"):
                pause.wait(_STORM_SECONDS / 3)
                pid = role_pids(self.data_dir).get(role)
                if pid is None:
                    raise WalvecError(f"The demo does not find the process of role {role}.", "Please report this.")
                os.kill(pid, signal.SIGKILL)
                self.console.print(f"  killed {role} (pid {pid}) after {writer.done} transactions")
            pause.wait(_STORM_SECONDS / 3)
        finally:
            done = writer.stop()
        stopped = time.monotonic()
        self.console.print(f"  {done} transactions committed; comparing every row with every vector …")
        drained = self._command("drain", "product_search", "--timeout", str(int(_WAIT_SECONDS)))
        if drained.returncode != 0:
            raise WalvecError(f"walvec drain: {(drained.stdout + drained.stderr).strip()}", "Please report this.")
        wrong = differences(self.source)
        if wrong:
            raise WalvecError(f"After the kill {len(wrong)} rows differ, first {wrong[0]}.", "Please report this.")
        self.console.print(
            f"  {self._count()} rows, [green]0 missing, 0 stale, 0 orphaned[/green],"
            f" {time.monotonic() - stopped:.1f} s after the last change"
        )


class Writer(threading.Thread):
    """Random committed changes until stopped."""

    def __init__(self, dsn: str) -> None:
        super().__init__(daemon=True)
        self._dsn = dsn
        self._stop_it = threading.Event()
        self._failure: BaseException | None = None
        self.done = 0

    def run(self) -> None:
        chance = random.Random(7)
        try:
            with psycopg.connect(self._dsn, autocommit=True) as connection:
                while not self._stop_it.wait(0.003):
                    _change(connection, chance)
                    self.done += 1
        except psycopg.Error as error:
            self._failure = error

    def stop(self) -> int:
        self._stop_it.set()
        self.join()
        if self._failure is not None:
            raise WalvecError(f"The demo's writer failed: {self._failure}") from self._failure
        return self.done


def _change(connection: psycopg.Connection[Any], chance: random.Random) -> None:
    key = 2000 + chance.randrange(120)
    kind = chance.choice(("insert", "insert", "text", "text", "price", "delete", "rekey"))
    text = f"{chance.choice(PRODUCTS)[0]} with {chance.choice(PRODUCTS)[0]}, edition {chance.randrange(1000)}"
    if kind == "insert":
        connection.execute(
            "INSERT INTO products (id, name, description, category, price) VALUES (%s, %s, NULL, 'kids', 5)"
            " ON CONFLICT (id) DO UPDATE SET name = excluded.name",
            (key, text),
        )
    elif kind == "text":
        connection.execute("UPDATE products SET description = %s WHERE id = %s", (text, key))
    elif kind == "price":
        connection.execute("UPDATE products SET price = price + 1 WHERE id = %s", (key,))
    elif kind == "delete":
        connection.execute("DELETE FROM products WHERE id = %s", (key,))
    else:
        connection.execute(
            "UPDATE products SET id = %(new)s WHERE id = %(old)s"
            " AND NOT EXISTS (SELECT FROM products WHERE id = %(new)s)",
            {"old": key, "new": key + 200},
        )


def differences(connection: psycopg.Connection[Any]) -> list[str]:
    """Rows in which table and view differ, by SQL that knows nothing of walvec."""
    rows = connection.execute(
        f"""
        SELECT coalesce(p.id, e.id),
               CASE WHEN e.id IS NULL THEN 'missing' WHEN p.id IS NULL THEN 'orphaned' ELSE 'stale' END
        FROM products p FULL JOIN {VIEW} e USING (id)
        WHERE e.id IS NULL OR p.id IS NULL OR e.embedding IS NULL
           OR e.embedded_text IS DISTINCT FROM concat_ws(E'\\n', p.name, nullif(p.description, ''))
           OR (e.category, e.price) IS DISTINCT FROM (p.category, p.price)
        """
    ).fetchall()
    return [f"{kind} {key}" for key, kind in rows]


def server_version(connection: psycopg.Connection[Any]) -> str:
    row = connection.execute("SHOW server_version").fetchone()
    return str(row[0]).split(" ")[0] if row else "?"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
