"""`make bench`: the whole pipeline as its user runs it, each figure beside a limit measured in the same run.

Prints a table and the same as JSON (`--json FILE`: into a file). Scenarios: `--only NAME` (repeatable), `--list`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
from rich.console import Console
from rich.table import Table

from tests.acceptance.harness import Walvec, document, wait_until
from tests.bench import query_bench, swap_bench
from tests.bench.rows import COLUMNS, rows
from tests.plugins.ports import free_port
from walvec.definitions import document as definitions
from walvec.runtime.embedded_postgres import EmbeddedPostgres


@dataclass
class Figure:
    """One measured value; `limit` is what it is compared with, `target` what the ratio (or the value) should reach."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    target: str = ""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return self.value / self.limit if self.limit else None


class Bench:
    """One embedded server; a fresh source, control and store database for each scenario."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server = EmbeddedPostgres(directory / "server")
        self.server.start()
        self.n = 0

    def database(self, name: str) -> str:
        with psycopg.connect(self.server.dsn("postgres"), autocommit=True) as c:
            c.execute(f'CREATE DATABASE "{name}"')
        return self.server.dsn(name)

    @contextmanager
    def walvec(self, env: dict[str, str] | None = None) -> Iterator[tuple[Walvec, str, str]]:
        self.n += 1
        source, store = self.database(f"source{self.n}"), self.database(f"store{self.n}")
        directory = self.directory / f"run{self.n}"
        directory.mkdir()
        directory.chmod(0o755)
        w = Walvec(directory, control=store, store=store, env=env)
        w.start()
        try:
            yield w, source, store
        finally:
            w.stop()
            with psycopg.connect(source, autocommit=True) as c:
                c.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active")


def fill(dsn: str, data: list[Any]) -> None:
    with psycopg.connect(dsn) as c:
        c.execute(f"CREATE TABLE packages ({COLUMNS})")
        with c.cursor().copy("COPY packages FROM STDIN") as copy:
            for row in data:
                copy.write_row(row)
    with psycopg.connect(dsn, autocommit=True) as c:
        c.execute("ANALYZE packages")


def packages(provider: str = "local", **more: Any) -> dict[str, Any]:
    return {
        "name": "packages",
        "connection": "source",
        "embedding_provider": provider,
        "source_table": "public.packages",
        "columns": [
            {"name": "summary", "role": "embedding", "ordinal": 1},
            {"name": "description", "role": "embedding", "ordinal": 2},
            {"name": "section", "role": "metadata"},
            {"name": "size_kb", "role": "metadata"},
        ],
        "index": {"kind": "none"},
        **more,
    }


def texts(data: list[Any]) -> list[str]:
    return ["\n".join(p for p in (r[6], r[7]) if p) for r in data]


def view_count(c: psycopg.Connection[Any]) -> int:
    found = c.execute("SELECT count(*) FROM walvec.packages").fetchone()
    return int(found[0]) if found else 0


def load(w: Walvec, store: str, definition: dict[str, Any], expected: int) -> float:
    """Applies the definition; rows per second from that request until all rows are in the view."""
    document = definitions.load(w.definitions(definition))
    began = time.monotonic()
    body = {"document": document.wire(), "dry_run": False, "prune": False}
    httpx.post(f"{w.url}/v1/apply", json=body, timeout=60).raise_for_status()
    with psycopg.connect(store, autocommit=True) as c:
        wait_for_rows(c, expected, began)
    return expected / (time.monotonic() - began)


def wait_for_rows(c: psycopg.Connection[Any], expected: int, began: float) -> None:
    """A count costs the server as much as some writes: it is asked seldom at first, then more and more often."""
    pause = threading.Event()
    while (have := view_count(c)) < expected:
        taken = time.monotonic() - began
        if taken > 600:
            raise AssertionError(f"{have} of {expected} rows after {taken:.0f} s")
        left = taken * (expected - have) / have if have else 0.1
        pause.wait(min(0.5, max(0.02, left / 2)))


@contextmanager
def openai(latency_ms: float, dimensions: int) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "tests.plugins.openai_server", "--port", str(port)]
    server = subprocess.Popen(
        [*command, "--latency", str(latency_ms / 1000), "--dimensions", str(dimensions)], stdout=subprocess.DEVNULL
    )
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def peak_mb(w: Walvec) -> dict[str, float]:
    """VmHWM by role, MB."""
    out: dict[str, float] = {}
    for role, processes in w.roles().items():
        for p in processes:
            status = Path(f"/proc/{p.pid}/status").read_text()
            peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
            out[role] = max(out.get(role, 0), peak / 1024)
    return out


def cpu_seconds(w: Walvec) -> dict[str, float]:
    """CPU time by role so far: steadier than the clock on a machine that does other things too."""
    return {role: sum(sum(p.cpu_times()[:2]) for p in processes) for role, processes in w.roles().items()}


def cpu_note(w: Walvec, before: dict[str, float], count: int) -> str:
    spent = {role: (seconds - before.get(role, 0)) / count * 1e6 for role, seconds in cpu_seconds(w).items()}
    return "CPU µs/row: " + ", ".join(f"{role} {micro:.0f}" for role, micro in spent.items())


def static_load(b: Bench) -> list[Figure]:
    from model2vec import StaticModel

    import embedder.providers.static as provider

    data = rows()
    wanted = texts(data)
    model = StaticModel.from_pretrained(Path(provider.__file__).parent / "models" / provider.MODEL)
    model.encode(wanted[:200], max_length=None)
    began = time.monotonic()
    model.encode(wanted, max_length=None)
    alone = len(wanted) / (time.monotonic() - began)
    with b.walvec() as (w, source, store):
        fill(source, data)
        before = cpu_seconds(w)
        rate = load(w, store, document(source, packages()), len(data))
        note = cpu_note(w, before, len(data))
    return [Figure("backfill, static model, 256 d", rate, "rows/s", alone, "≥ 0.65 × the model alone", note)]


def own_cost(b: Bench) -> list[Figure]:
    data = rows()
    with b.walvec() as (w, source, store):
        fill(source, data)
        provider = {"name": "instant", "provider": "fake"}
        table = packages("instant", embedding_model="fake", embedding_dimensions=256)
        before = cpu_seconds(w)
        rate = load(w, store, document(source, table, providers=[provider]), len(data))
        note = cpu_note(w, before, len(data))
    return [Figure("backfill, provider at once, 256 d", rate, "rows/s", None, "≥ 12,000 rows/s", note)]


def slow_provider(b: Bench) -> list[Figure]:
    data = rows()[:20_000]
    with openai(50, 1536) as url, b.walvec() as (w, source, store):
        fill(source, data)
        provider = {"name": "remote", "provider": "openai", "api_key": "k", "base_url": url}
        table = packages("remote", embedding_model="text-embedding-3-small", embedding_dimensions=1536)
        before = cpu_seconds(w)
        rate = load(w, store, document(source, table, providers=[provider]), len(data))
        note = cpu_note(w, before, len(data))
    return [Figure("backfill, provider 50 ms, 1536 d", rate, "rows/s", None, "≥ 3,000 rows/s", note)]


def live(b: Bench) -> list[Figure]:
    data = rows()[:2000]
    taken: list[float] = []
    pause = threading.Event()
    with b.walvec() as (w, source, store):
        fill(source, data)
        load(w, store, document(source, packages()), len(data))
        with psycopg.connect(source, autocommit=True) as s, psycopg.connect(store, autocommit=True) as v:
            for n in range(420):
                due = time.monotonic() + 0.05
                key = 1_000_000 + n
                s.execute("INSERT INTO packages (id, summary, description) VALUES (%s, %s, 'live')", (key, f"row {n}"))
                began = time.monotonic()
                while not v.execute("SELECT 1 FROM walvec.packages WHERE id = %s", (key,)).fetchone():
                    if time.monotonic() - began > 30:
                        raise AssertionError("a committed row did not appear within 30 s\n" + w.tail())
                    pause.wait(0.001)
                if n >= 20:
                    taken.append((time.monotonic() - began) * 1000)
                pause.wait(max(0, due - time.monotonic()))
    cut = statistics.quantiles(taken, n=100)
    return [
        Figure("commit to view at 20/s, p50", cut[49], "ms", None, "< 50 ms"),
        Figure("commit to view at 20/s, p99", cut[98], "ms", None, "< 250 ms"),
    ]


def sent(w: Walvec) -> int:
    return int(w.table("packages")["texts_sent"])


def frugal(b: Bench) -> list[Figure]:
    data = rows()[:10_000]
    with b.walvec() as (w, source, store):
        fill(source, data)
        load(w, store, document(source, packages(index={"kind": "hnsw"})), len(data))
        w.drain("packages", timeout=300)
        table = "SELECT relid::regclass FROM pg_stat_user_tables WHERE relname LIKE 'vt\\_%' AND relname LIKE '%\\_g1'"
        with psycopg.connect(store, autocommit=True) as v:
            wait_until(
                lambda: v.execute(
                    "SELECT 1 FROM pg_indexes WHERE indexdef LIKE '%hnsw%' AND schemaname='walvec'"
                ).fetchone(),
                timeout=120,
                what="the ANN index",
            )
            found = v.execute(table).fetchone()
            assert found

            def sizes() -> int:
                row = v.execute(
                    "SELECT sum(pg_relation_size(indexrelid)) FROM pg_index i JOIN pg_class c ON c.oid = indexrelid"
                    " JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'hnsw'"
                ).fetchone()
                return int(row[0]) if row else 0

            before, size = wait_until(lambda: (sent(w), sizes()), what="counts")
            with psycopg.connect(source, autocommit=True) as s:
                s.execute("UPDATE packages SET size_kb = coalesce(size_kb, 0) + 1")
            w.drain("packages", timeout=300)
            untouched, grown = sent(w) - before, sizes() - size
            with psycopg.connect(source, autocommit=True) as s:
                s.execute("UPDATE packages SET summary = 'one text', description = 'for all'")
            w.drain("packages", timeout=300)
            wait_until(lambda: sent(w) > before + untouched, what="the count")
            same = sent(w) - before - untouched
    return [
        Figure("update of 10,000 rows, same text: texts sent", untouched, "texts", None, "0"),
        Figure("update of 10,000 rows, same text: ANN index growth", grown, "bytes", None, "0"),
        Figure("one text for 10,000 rows: texts sent", same, "texts", None, "1"),
    ]


def million(b: Bench) -> list[Figure]:
    with b.walvec() as (w, source, store):
        fill(source, [])
        load(w, store, document(source, packages()), 0)
        w.drain("packages", timeout=60)
        with psycopg.connect(source) as s:
            s.execute(
                "INSERT INTO packages SELECT n, 'p' || n, 's', 'o', n, 'h', 'item ' || n % 1000,"
                " repeat(md5((n % 1000)::text), 6) FROM generate_series(1, 1000000) n"
            )
        began = time.monotonic()
        w.drain("packages", timeout=900)
        took = time.monotonic() - began
        peaks = peak_mb(w)
    return [
        Figure(f"one transaction of 1,000,000 rows: peak of {role}", peak, "MB", None, "≤ 250 MB")
        for role, peak in sorted(peaks.items())
    ] + [Figure("one transaction of 1,000,000 rows", 1_000_000 / took, "rows/s")]


def reader(b: Bench) -> list[Figure]:
    from tests.bench.reader_bench import measure

    found = measure(b.server)
    return [
        Figure(
            "reader into the local log", found["walvec"], "rows/s", found["pg_recvlogical"], "≥ 0.4 × pg_recvlogical"
        )
    ]


def over_kafka(name: str) -> Callable[[Bench], list[Figure]]:
    def run(b: Bench) -> list[Figure]:
        from tests.bench import kafka

        return kafka.measured(name, b)

    return run


def swap(b: Bench) -> list[Figure]:
    """100,000 rows in two generations that take each other's place, under searches, reads of the view and writes."""
    found = asyncio.run(swap_bench.measure(b.database("swap"), 100_000))
    note = f"{found.queries:,} queries, none failed or lacked rows; {len(found.swaps)} swaps of other columns"
    return [
        Figure("a query beside a swap, how much longer", max(found.extra) * 1000, "ms", target="< 100", note=note),
        Figure("a swap itself, median", statistics.median(found.swaps) * 1000, "ms"),
    ]


def queries(b: Bench) -> list[Figure]:
    """100,000 rows; clients of their own processes."""
    with b.walvec() as (w, source, store):
        found = query_bench.measure(w, source, store, 100_000, 4, 600)
    one, many = "1 clients", "4 clients"
    return [
        Figure("query, p50, one client", found[f"api p50 ms, {one}"], "ms", found[f"sql p50 ms, {one}"], "≤ 1.5"),
        Figure(
            "query, p50, one client, beside SQL and an empty HTTP answer",
            found[f"api p50 ms, {one}"],
            "ms",
            found[f"sql p50 ms, {one}"] + found[f"bare http p50 ms, {one}"],
            "1 = walvec costs nothing",
        ),
        Figure("query, p50, 4 clients", found[f"api p50 ms, {many}"], "ms", found[f"sql p50 ms, {many}"], "≤ 1.5"),
        Figure(
            "queries, 4 clients", found[f"api queries/s, {many}"], "1/s", found[f"sql queries/s, {many}"], "value ≥ 500"
        ),
        Figure("query, processor time of the API", found[f"api cpu ms per query, {many}"], "ms"),
    ]


SCENARIOS: dict[str, Callable[[Bench], list[Figure]]] = {
    "reader": reader,
    "queries": queries,
    "static": static_load,
    "own-cost": own_cost,
    "slow-provider": slow_provider,
    "live": live,
    "frugal": frugal,
    "swap": swap,
    "million": million,
    "kafka-reader": over_kafka("reader"),
    "kafka-live": over_kafka("live"),
    "kafka-scale": over_kafka("scale"),
}


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--only", action="append", choices=list(SCENARIOS))
    ap.add_argument("--json", type=Path)
    a = ap.parse_args()
    figures: list[Figure] = []
    console = Console()
    with tempfile.TemporaryDirectory(prefix="walvec-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        b = Bench(directory)
        try:
            for scenario in a.only or list(SCENARIOS):
                console.print(f"[dim]{scenario} …[/dim]")
                figures += SCENARIOS[scenario](b)
        finally:
            b.server.stop()
    table = Table("figure", "value", "unit", "limit in this run", "ratio", "wanted")
    for f in figures:
        ratio = f"{f.ratio:.2f}" if f.ratio is not None else ""
        table.add_row(f.name, f"{f.value:,.1f}", f.unit, f"{f.limit:,.0f}" if f.limit else "", ratio, f.target)
    console.print(table)
    for f in figures:
        if f.note:
            console.print(f"[dim]{f.name}: {f.note}[/dim]")
    found = json.dumps([asdict(f) | {"ratio": f.ratio} for f in figures], indent=1, ensure_ascii=False)
    if a.json:
        a.json.write_text(found)
    else:
        print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
