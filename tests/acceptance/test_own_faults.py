"""What happens to walvec's own things: its control database and store go away, its log is damaged or deleted."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.acceptance.faults import PACED, equal, filled, judge, rows_read
from tests.acceptance.harness import Walvec, Workload, after, document, running, wait_until
from tests.plugins.postgres import PostgresDatabase

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]


@pytest.fixture
def store(own_postgres: PostgresDatabase) -> str:
    return own_postgres.dsn


@pytest.fixture
def walvec(tmp_path: Path, store: str, postgres: PostgresDatabase) -> Iterator[Walvec]:
    """Ends before its source does: a slot that is read cannot be dropped."""
    found = Walvec(tmp_path, control=store, store=store, env=PACED)
    yield found
    found.stop()


def test_outages_of_control_database_and_store(
    walvec: Walvec, postgres: PostgresDatabase, own_postgres: PostgresDatabase, store: str
) -> None:
    """The roles wait: they don't end, and nothing is lost."""
    filled(postgres.dsn, 4000)
    walvec.start(walvec.definitions(document(postgres.dsn)))
    before = {role: [p.pid for p in found] for role, found in walvec.roles().items()}
    with running(Workload(postgres.dsn, seed=21)) as workload:
        wait_until(lambda: rows_read(walvec, "items"), what="a backfill")
        for mode in ("fast", "immediate"):
            own_postgres.server.stop(mode)
            after(workload, 150)
            own_postgres.server.start()
            after(workload, 100)
        with psycopg.connect(store, autocommit=True) as c:
            for _ in range(3):
                c.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                after(workload, 30)
    judge(walvec, postgres.dsn, store)
    assert {role: [p.pid for p in found] for role, found in walvec.roles().items()} == before


def damage(path: Path) -> None:
    """Overwrites pages all over the file, as a broken disk or a stray copy does."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        for at in range(8192, size, max(8192, size // 64 // 8192 * 8192)):
            file.seek(at)
            file.write(b"\xa5" * 4096)


def test_a_damaged_log(walvec: Walvec, postgres: PostgresDatabase, store: str) -> None:
    """Said, kept, and mended by `--rebackfill`."""
    filled(postgres.dsn, 2000)
    definitions = walvec.definitions(document(postgres.dsn))
    walvec.start(definitions)
    equal(walvec, postgres.dsn, store)
    assert walvec.stop() == 0
    data = walvec.directory / "data"
    damage(data / "log.db")
    broken = (data / "log.db").read_bytes()
    postgres.execute("DELETE FROM items WHERE id < 100")
    postgres.execute("UPDATE items SET title = 'while damaged' WHERE id > 1900")
    walvec.start(definitions, ready=False)
    assert walvec.process is not None
    assert walvec.process.wait(timeout=60) != 0
    said = walvec.tail()
    assert "log.db" in said
    assert "damaged" in said
    assert "--rebackfill" in said
    assert (data / "log.db").read_bytes() == broken
    walvec.start(definitions, args=["--rebackfill"])
    (kept,) = [p for p in data.glob("log.db.aside-*") if p.suffix not in ("-wal", "-shm")]
    assert kept.read_bytes() == broken
    postgres.execute("DELETE FROM items WHERE id BETWEEN 100 AND 150")
    judge(walvec, postgres.dsn, store)


def test_a_deleted_log(walvec: Walvec, postgres: PostgresDatabase, store: str) -> None:
    """Noticed by its identity, and everything is read again."""
    filled(postgres.dsn, 1000)
    definitions = walvec.definitions(document(postgres.dsn))
    walvec.start(definitions)
    equal(walvec, postgres.dsn, store)
    postgres.execute("UPDATE items SET title = 'in the log alone' WHERE id < 500")
    walvec.kill_all()
    for path in (walvec.directory / "data").glob("log.db*"):
        path.unlink()
    postgres.execute("DELETE FROM items WHERE id BETWEEN 490 AND 510")
    walvec.start(definitions)
    judge(walvec, postgres.dsn, store)
    assert "the log was lost and made anew" in walvec.log.read_text()
    # and under a running walvec: the roles begin anew
    before = {role: [p.pid for p in found] for role, found in walvec.roles().items()}
    for path in (walvec.directory / "data").glob("log.db*"):
        path.unlink()
    postgres.execute("UPDATE items SET title = 'after the second loss' WHERE id BETWEEN 600 AND 700")
    postgres.execute("DELETE FROM items WHERE id BETWEEN 690 AND 710")

    def begun_anew() -> bool:
        now = walvec.roles()
        return all(len(found) == 1 and found[0].pid not in before[role] for role, found in now.items())

    wait_until(begun_anew, timeout=60, what="every role begun anew")
    judge(walvec, postgres.dsn, store)
