"""Real PostgreSQL 18 with pgvector: one server per session, one fresh database per test (`postgres`).

A test that restarts the server or changes its settings takes `own_postgres`. No server here: the tests that need one
are skipped at a desk, and fail where CI=true.
"""

import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.plugins.ports import free_port
from walvec.contracts.errors import ConfigError
from walvec.runtime.embedded_postgres import EmbeddedPostgres
from walvec.runtime.lock import DataDirectoryLock

OPTIONS = {
    "fsync": "off",
    "synchronous_commit": "on",
    "full_page_writes": "off",
    "max_connections": "200",
    "max_replication_slots": "60",
    "max_wal_senders": "60",
    "shared_buffers": "64MB",
}
TEMPLATE = "walvec_template"
PREFIX = "walvec-pytest-"


@dataclass
class PostgresDatabase:
    """A fresh database with the extension `vector`. More of them: `another()`."""

    server: EmbeddedPostgres
    name: str
    _others: list[str] = field(default_factory=list)

    @property
    def dsn(self) -> str:
        return self.server.dsn(self.name)

    def another(self) -> str:
        """Connection string of one more fresh database (a control database beside the source, say)."""
        name = _create(self.server)
        self._others.append(name)
        return self.server.dsn(name)

    def execute(self, statement: str, *arguments: object) -> list[tuple[object, ...]]:
        """One statement in a session of its own, committed; its rows. Without arguments: several statements, too.
        Of many rows it may meet a workload that has locked them in another order: whoever loses tries again."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while True:
                try:
                    cursor = connection.execute(statement, arguments or None)  # type: ignore[arg-type]
                except psycopg.errors.DeadlockDetected:
                    continue
                return cursor.fetchall() if cursor.description else []


@contextmanager
def started(**options: str) -> Iterator[EmbeddedPostgres]:
    """A server in a directory of its own, gone afterwards."""
    with _one_at_a_time():
        _sweep()
        root = Path(tempfile.mkdtemp(prefix=PREFIX))
        root.chmod(0o755)
        lock = DataDirectoryLock(root)
        lock.acquire()
    (root / "postgres.port").write_text(f"{free_port()}\n")  # one that is free still after a stop and a start
    server = EmbeddedPostgres(root, {**OPTIONS, **options})
    try:
        try:
            server.start()
        except ConfigError as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"no PostgreSQL here: {error}")
        with psycopg.connect(server.dsn("postgres"), autocommit=True) as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (TEMPLATE,)).fetchone()
        if not found:
            server.ensure_database(TEMPLATE)
        yield server
    finally:
        server.stop("immediate")
        lock.release()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    with started() as server:
        yield server


@pytest.fixture
def postgres(postgres_server: EmbeddedPostgres) -> Iterator[PostgresDatabase]:
    """A fresh database on the session's server; its slots, sessions and itself are dropped afterwards."""
    database = PostgresDatabase(postgres_server, _create(postgres_server))
    yield database
    for name in (database.name, *database._others):
        _drop(postgres_server, name)


@pytest.fixture(scope="module")
def module_postgres(postgres_server: EmbeddedPostgres) -> Iterator[PostgresDatabase]:
    """As `postgres`, shared by the tests of one module, each of which then keeps to tables of its own."""
    database = PostgresDatabase(postgres_server, _create(postgres_server))
    yield database
    for name in (database.name, *database._others):
        _drop(postgres_server, name)


@pytest.fixture
def own_postgres() -> Iterator[PostgresDatabase]:
    """A fresh database on a server of the test's own, which it may restart, kill or reconfigure."""
    with started() as server:
        yield PostgresDatabase(server, _create(server))


@pytest.fixture
def postgres_with() -> Iterator[Callable[..., PostgresDatabase]]:
    """`postgres_with(max_replication_slots="1")`: as own_postgres, with settings."""
    opened: list[object] = []

    def start(**options: str) -> PostgresDatabase:
        context = started(**options)
        server = context.__enter__()
        opened.append(context)
        return PostgresDatabase(server, _create(server))

    yield start
    for context in opened:
        context.__exit__(None, None, None)  # type: ignore[attr-defined]


def _create(server: EmbeddedPostgres) -> str:
    name = f"t_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.dsn("postgres"), autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(TEMPLATE))
        )
    return name


def _drop(server: EmbeddedPostgres, name: str) -> None:
    with psycopg.connect(server.dsn("postgres"), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots"
            " WHERE database = %s AND active_pid IS NOT NULL",
            (name,),
        )
        connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s", (name,)
        )
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """A directory that was made and is not locked yet looks like one whose session was killed: nobody sweeps then."""
    with (Path(tempfile.gettempdir()) / f"walvec-pytest.{os.getuid()}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sweep() -> None:
    """Ends the servers of test sessions that were killed: their lock is free."""
    for root in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        lock = DataDirectoryLock(root)
        try:
            lock.acquire()
        except ConfigError:
            continue
        try:
            EmbeddedPostgres(root).stop("immediate")
            shutil.rmtree(root, ignore_errors=True)
        finally:
            lock.release()
