"""Queries through the API beside the same SQL through psycopg alone, in one run. Used by `pipeline`; alone:
`python -m tests.bench.query_bench`. Each client is a thread or process of its own connection; all settings are alike.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
import psycopg
import uvicorn

from api.wire import Protocol
from embedder.providers import registry
from sink.stores.pgvector_session import QueryVector, QueryVectorDumper
from tests.acceptance.harness import Walvec, document, wait_until
from tests.plugins.ports import free_port
from walvec.contracts.keys import key_id
from walvec.definitions.model import EmbeddingProvider
from walvec.runtime.embedded_postgres import EmbeddedPostgres
from walvec.runtime.settings import settings_from

DIMENSIONS = 256
_CONSTANT = b"x" * 4000
WORDS = ("amber", "basalt", "cedar", "dune", "ember", "fjord", "grove", "harbor", "inlet", "juniper", "kelp", "lagoon")


@dataclass(frozen=True, slots=True)
class Measured:
    """Of several clients: seconds of each query, and queries per second over all."""

    seconds: list[float]
    rate: float

    @property
    def p50(self) -> float:
        return statistics.median(self.seconds)


def text(i: int) -> str:
    return " ".join(WORDS[(i * 7 + j * (1 + i % 11)) % len(WORDS)] for j in range(5)) + f" {i % 977}"


def ask_api(host: str, port: int, table: str, count: int, seed: int) -> list[float]:
    connection = HTTPConnection(host, port)
    bodies = [orjson.dumps({"query": text(seed * 1000 + i), "limit": 10}) for i in range(200)]
    found = []
    for i in range(count):
        start = time.perf_counter()
        connection.request(
            "POST", f"/v1/vector-tables/{table}/query", bodies[i % 200], {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        body = answer.read()
        found.append(time.perf_counter() - start)
        if answer.status != 200:
            raise AssertionError(body)
    return found


def ask_sql(dsn: str, statement: str, vectors: list[bytes], count: int, seed: int) -> list[float]:
    """As the store asks: the same statement, prepared, and settings, a binary vector; values read."""
    found = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.adapters.register_dumper(QueryVector, QueryVectorDumper)
        connection.execute("SET jit = off")
        connection.execute(
            "SELECT set_config('hnsw.ef_search', '100', false), set_config('hnsw.max_scan_tuples', '40000', false), "
            "set_config('hnsw.scan_mem_multiplier', '4', false), "
            "set_config('hnsw.iterative_scan', 'strict_order', false)"
        )
        for i in range(count):
            start = time.perf_counter()
            vector = QueryVector(vectors[(seed * 31 + i) % len(vectors)])
            connection.execute(statement.encode(), (vector,), prepare=True).fetchall()
            found.append(time.perf_counter() - start)
    return found


async def constant(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers as much as a query does, and does nothing for it."""
    await receive()
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_CONSTANT))]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": _CONSTANT})


def serve_constant(port: int) -> None:
    uvicorn.run(constant, port=port, log_level="error", lifespan="off", http=Protocol, proxy_headers=False)


@contextmanager
def bare_server() -> Iterator[int]:
    """The API's HTTP server with nothing behind it: what HTTP alone costs here. Yields its port."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=serve_constant, args=(port,), daemon=True)
    process.start()
    try:
        wait_until(lambda: answers(port), what="an HTTP server")
        yield port
    finally:
        process.terminate()
        process.join()


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def measured(clients: int, count: int, work: Callable[..., list[float]], *arguments: Any) -> Measured:
    """Each client is a process, so that their own cost does not queue behind one interpreter's lock; a first round
    warms up."""
    with multiprocessing.get_context("spawn").Pool(clients) as pool:
        pool.starmap(work, [(*arguments, max(50, count // 5), i) for i in range(clients)], chunksize=1)
        found = pool.starmap(work, [(*arguments, count, i) for i in range(clients)], chunksize=1)
    rate = sum(len(one) / sum(one) for one in found)
    return Measured([s for one in found for s in one], rate)


def fill(dsn: str, relation: str, rows: int, vectors: np.ndarray) -> None:
    """Rows as the sink writes them, with metadata columns m0 (text) and m1 (integer)."""
    with psycopg.connect(dsn) as connection:
        columns = "key_id, chunk, chunks, epoch, lsn, ordinal, live, key, hash, embedded_text, embedding, k0, m0, m1"
        with connection.cursor().copy(f"COPY {relation} ({columns}) FROM STDIN".encode()) as copy:
            for i in range(rows):
                key = b'{"id":%d}' % i
                vector = vector_text(vectors[i])
                copy.write_row(
                    (key_id(key), 0, 1, 0, "0/1", 1, True, key, f"{i:032x}", text(i), vector, i, WORDS[i % 12], i)
                )


def statement_on(relation: str) -> str:
    """The store's own statement for a query without a filter."""
    return (
        "SELECT t.key, t.key_id, t.chunk, t.embedding <=> %s::vector AS distance, t.embedded_text, t.m0, t.m1 "
        f"FROM {relation} t WHERE t.live ORDER BY distance, t.key_id, t.chunk LIMIT 11"
    )


def used(*processes: psutil.Process) -> float:
    """Seconds of processor time."""
    return float(sum(t.user + t.system for p in processes for t in [p.cpu_times()]))


def vector_text(vector: np.ndarray) -> str:
    return "[" + ",".join(map("{:.5f}".format, vector.tolist())) + "]"


def binary(vector: np.ndarray) -> bytes:
    """As `vector_recv` reads it."""
    return struct.pack(">hh", len(vector), 0) + vector.astype(">f4").tobytes()


async def embedded(texts: list[str]) -> np.ndarray:
    provider = registry.make(
        EmbeddingProvider("emb_bench", "local", "static"), "minilm-static-256", DIMENSIONS, settings_from({})
    )
    try:
        return await provider.embed(texts, kind="query")
    finally:
        await provider.close()


def define(w: Walvec, source: str) -> None:
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute("CREATE TABLE things (id bigint PRIMARY KEY, name text, section text, size int)")
    table = {
        "name": "things",
        "connection": "source",
        "embedding_provider": "local",
        "source_table": "public.things",
        "columns": [
            {"name": "name", "role": "embedding"},
            {"name": "section", "role": "metadata"},
            {"name": "size", "role": "metadata"},
        ],
        "index": {"kind": "none"},
    }
    done = w.run("apply", "-f", str(w.definitions(document(source, table))))
    if done.returncode:
        raise AssertionError(done.stderr)
    w.drain()


def measure(w: Walvec, source: str, store: str, rows: int, clients: int, count: int) -> dict[str, float]:
    """Fills the storage by hand: what is measured is the way of a query, not that of the rows."""
    define(w, source)
    vectors = asyncio.run(embedded([text(i) for i in range(rows)]))
    with psycopg.connect(store, autocommit=True) as connection:
        found = connection.execute("SELECT relation FROM walvec._walvec_stores").fetchone()
        assert found is not None
        relation = f'walvec."{found[0]}"'
        fill(store, relation, rows, vectors)
        connection.execute("SET maintenance_work_mem = '512MB'")
        connection.execute(f"CREATE INDEX ON {relation} USING hnsw (embedding vector_cosine_ops) WHERE live".encode())
        connection.execute(f"VACUUM ANALYZE {relation}".encode())
    queries = asyncio.run(embedded([text(i) for i in range(200)]))
    sql = (store, statement_on(relation), [binary(v) for v in queries])
    (api,) = w.roles()["api"]
    out: dict[str, float] = {}
    for n in (1, clients):
        alone = measured(n, count, ask_sql, *sql)
        before = used(api)
        through = measured(n, count, ask_api, "127.0.0.1", w.port, "things")
        with bare_server() as port:
            bare = measured(n, count, ask_api, "127.0.0.1", port, "things")
        out[f"sql p50 ms, {n} clients"] = alone.p50 * 1000
        out[f"api p50 ms, {n} clients"] = through.p50 * 1000
        out[f"ratio, {n} clients"] = through.p50 / alone.p50
        out[f"bare http p50 ms, {n} clients"] = bare.p50 * 1000
        out[f"ratio if only http and sql cost, {n} clients"] = (alone.p50 + bare.p50) / alone.p50
        out[f"sql queries/s, {n} clients"] = alone.rate
        out[f"api queries/s, {n} clients"] = through.rate
        out[f"api cpu ms per query, {n} clients"] = (used(api) - before) / (n * (count + max(50, count // 5))) * 1000
    return out


def main() -> None:
    rows, count = (int(a) for a in [*sys.argv[1:], "20000", "400"][:2])
    with tempfile.TemporaryDirectory(prefix="walvec-bench-") as name:
        server = EmbeddedPostgres(Path(name) / "server")
        server.start()
        try:
            with psycopg.connect(server.dsn("postgres"), autocommit=True) as connection:
                connection.execute("CREATE DATABASE source")
                connection.execute("CREATE DATABASE store")
            w = Walvec(Path(name), control=server.dsn("store"), store=server.dsn("store"))
            w.start()
            try:
                for figure, value in measure(w, server.dsn("source"), server.dsn("store"), rows, 4, count).items():
                    sys.stdout.write(f"{figure:40s} {value:10.2f}\n")
            finally:
                w.stop()
        finally:
            server.stop()


if __name__ == "__main__":
    main()
