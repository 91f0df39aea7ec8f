"""What a source does to its readers: restarts, lost slots and publications, other readers, commits seen late."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.pq import ExecStatus

from tests.acceptance.faults import PACED, Stubborn, equal, filled, judge, rows_read, status
from tests.acceptance.harness import Walvec, Workload, after, document, running, wait_until
from tests.plugins.postgres import PostgresDatabase

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]


@pytest.fixture
def store(postgres: PostgresDatabase) -> str:
    """Control database and store, on a server that stays up."""
    return postgres.dsn


@pytest.fixture
def walvec(tmp_path: Path, store: str) -> Iterator[Walvec]:
    found = Walvec(tmp_path, control=store, store=store, env=PACED)
    yield found
    found.stop()


OURS = "FROM pg_replication_slots WHERE slot_name LIKE 'walvec%' AND database = current_database()"


def slot_of(source: PostgresDatabase) -> str:
    return str(source.execute(f"SELECT slot_name {OURS}")[0][0])


def reader_of(source: PostgresDatabase) -> int | None:
    found = source.execute(f"SELECT active_pid {OURS}")
    return found[0][0] if found else None  # type: ignore[return-value]


def drop_slot(source: PostgresDatabase) -> str:
    """As an impatient administrator does it: throws the reader out until the slot can be dropped."""
    name = slot_of(source)

    def dropped() -> bool:
        with psycopg.connect(source.dsn, autocommit=True) as c:
            c.execute(
                "SELECT pg_terminate_backend(active_pid, 2000) FROM pg_replication_slots"
                " WHERE slot_name = %s AND active_pid IS NOT NULL",
                (name,),
            )
            c.execute("SELECT pg_drop_replication_slot(%s)", (name,))
        return True

    wait_until(dropped, what="the slot dropped")
    return name


def drop_publication(source: PostgresDatabase) -> None:
    (name,) = source.execute("SELECT pubname FROM pg_publication WHERE pubname LIKE 'walvec%%'")[0]
    with psycopg.connect(source.dsn, autocommit=True) as c:
        c.execute(sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(str(name))))


def remade_publication(source: PostgresDatabase, meanwhile: str) -> None:
    """Dropped and made anew with the same tables: nothing in the catalog looks amiss afterwards."""
    (name,) = source.execute("SELECT pubname FROM pg_publication WHERE pubname LIKE 'walvec%%'")[0]
    tables = source.execute("SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = %s", name)
    drop_publication(source)
    source.execute(meanwhile)
    with psycopg.connect(source.dsn, autocommit=True) as c:
        c.execute(
            sql.SQL(
                "CREATE PUBLICATION {} FOR TABLE ONLY {}"
                " WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true)"
            ).format(
                sql.Identifier(str(name)),
                sql.SQL(", ").join(sql.Identifier(str(schema), str(table)) for schema, table in tables),
            )
        )


def test_restarts_and_terminated_walsenders(walvec: Walvec, own_postgres: PostgresDatabase, store: str) -> None:
    source = own_postgres
    filled(source.dsn, 3000)
    walvec.start(walvec.definitions(document(source.dsn)))
    with running(Stubborn(source.dsn, seed=5)) as workload:
        for mode in ("fast", "immediate"):
            after(workload, 30)
            source.server.stop(mode)
            source.server.start()
            after(workload, 30)
        for _ in range(4):
            pid = wait_until(lambda: reader_of(source), what="a reader")
            source.execute("SELECT pg_terminate_backend(%s)", pid)
            after(workload, 25)
        pid = wait_until(lambda: reader_of(source), what="a reader")
        # every session of walvec at once, those of the backfill too
        source.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE 'walvec%%' AND pid <> pg_backend_pid()"
        )
        after(workload, 50)
    judge(walvec, source.dsn, store)


def test_another_reader_is_waited_for(walvec: Walvec, postgres: PostgresDatabase) -> None:
    source = postgres
    store = postgres.another()
    walvec.env |= {"WALVEC_CONTROL_DATABASE__URL": store, "WALVEC_PGVECTOR__URL": store}
    filled(source.dsn, 500)
    walvec.start(walvec.definitions(document(source.dsn)))
    walvec.drain()
    name = slot_of(source)
    walvec.kill("cdc")
    with psycopg.connect(source.dsn, replication="database", autocommit=True) as other:

        def taken() -> bool:
            result = other.pgconn.exec_(
                f"START_REPLICATION SLOT {name} LOGICAL 0/0 (proto_version '1', publication_names '{name}')".encode()
            )
            return result.status == ExecStatus.COPY_BOTH

        wait_until(taken, what="the slot, by somebody else")
        source.execute("UPDATE items SET title = 'meanwhile' WHERE id < 10; DELETE FROM items WHERE id > 490")
        standby = wait_until(lambda: status(walvec, "items")["source"].get("state") == "standby", what="a standby")
        assert standby
        assert walvec.roles()["cdc"]
        other.pgconn.finish()
    judge(walvec, source.dsn, store)


def test_slot_and_publication_dropped(walvec: Walvec, postgres: PostgresDatabase) -> None:
    source = postgres
    store = postgres.another()
    walvec.env |= {"WALVEC_CONTROL_DATABASE__URL": store, "WALVEC_PGVECTOR__URL": store}
    filled(source.dsn, 1600)
    definitions = walvec.definitions(document(source.dsn))
    walvec.start(definitions)
    with running(Workload(source.dsn, seed=6, truncate=False)) as workload:
        # in the middle of the first backfill
        after(workload, 20)
        drop_slot(source)
        source.execute("DELETE FROM items WHERE id BETWEEN 1000 AND 1100")
        after(workload, 20)
    equal(walvec, source.dsn, store)
    with running(Workload(source.dsn, seed=7, truncate=False)) as workload:
        drop_publication(source)
        source.execute("DELETE FROM items WHERE id BETWEEN 1101 AND 1200; UPDATE items SET title = 'x' WHERE id = 1300")
        after(workload, 50)
    equal(walvec, source.dsn, store)
    drop_slot(source)
    drop_publication(source)
    source.execute("DELETE FROM items WHERE id BETWEEN 1301 AND 1400; UPDATE items SET title = 'y' WHERE id = 1401")
    equal(walvec, source.dsn, store)
    # while walvec is down
    for loss in ((drop_slot,), (drop_publication,), (drop_slot, drop_publication)):
        assert walvec.stop() == 0
        for drop in loss:
            drop(source)
        source.execute(
            "DELETE FROM items WHERE id IN (SELECT id FROM items WHERE id > 1401 ORDER BY id LIMIT 50);"
            "UPDATE items SET title = title || '+' WHERE id > 1590"
        )
        walvec.start(definitions)
        equal(walvec, source.dsn, store)
    lost = (
        "DELETE FROM items WHERE id IN (SELECT id FROM items WHERE id > 1401 ORDER BY id LIMIT 10);"
        "UPDATE items SET title = title || '-' WHERE id > 1590"
    )
    remade_publication(source, lost)  # between two looks
    equal(walvec, source.dsn, store)
    assert walvec.stop() == 0
    remade_publication(source, lost)
    walvec.start(definitions)
    equal(walvec, source.dsn, store)
    judge(walvec, source.dsn, store)
    (slots,) = source.execute("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()")
    assert slots == (1,)


def test_wal_that_was_removed(walvec: Walvec, own_postgres: PostgresDatabase, store: str) -> None:
    """max_slot_wal_keep_size exceeded: rebackfill and sweep; with `on_slot_loss: halt` the connection says the cure."""
    source = own_postgres
    filled(source.dsn, 1000)
    definition = document(source.dsn)
    walvec.start(walvec.definitions(definition))
    equal(walvec, source.dsn, store)
    source.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'")
    source.execute("SELECT pg_reload_conf()")

    def lose() -> None:
        assert walvec.stop() == 0
        source.execute("DELETE FROM items WHERE id IN (SELECT id FROM items ORDER BY id LIMIT 40)")

        def lost() -> bool:
            source.execute("SELECT pg_logical_emit_message(false, 'x', repeat('x', 4000000)), pg_switch_wal()")
            source.execute("CHECKPOINT")
            (found,) = source.execute("SELECT wal_status FROM pg_replication_slots")
            return found == ("lost",)

        wait_until(lost, what="a lost slot")
        source.execute("UPDATE items SET title = 'after the loss' WHERE id % 50 = 0")

    lose()
    walvec.start()
    equal(walvec, source.dsn, store)
    definition["connections"][0]["on_slot_loss"] = "halt"
    assert walvec.run("apply", "-f", str(walvec.definitions(definition))).returncode == 0
    lose()
    walvec.start()

    def told() -> bool:
        found = status(walvec, "items")["source"]
        return found["status"] == "error" and "on_slot_loss" in found["status_message"]

    wait_until(told, what="the connection's error with its cure")
    definition["connections"][0]["on_slot_loss"] = "rebackfill"
    assert walvec.run("apply", "-f", str(walvec.definitions(definition))).returncode == 0
    judge(walvec, source.dsn, store)


def test_commits_that_are_streamed_before_they_are_seen(
    walvec: Walvec, own_postgres: PostgresDatabase, store: str
) -> None:
    """The visibility race: a commit that waits for a standby is streamed, and no SELECT sees it yet."""
    source = own_postgres
    filled(source.dsn, 4000)
    walvec.start(walvec.definitions(document(source.dsn)))
    wait_until(lambda: rows_read(walvec, "items"), what="a backfill")
    source.execute("ALTER SYSTEM SET synchronous_standby_names = 'nosuch'")
    source.execute("SELECT pg_reload_conf()")
    statements = (
        "UPDATE items SET title = 'new' WHERE id = 3990",
        "DELETE FROM items WHERE id = 3991",
        "UPDATE items SET id = 5000 WHERE id = 3992",
        "UPDATE items SET stock = 77 WHERE id = 3993",
        "INSERT INTO items (id, title) VALUES (3994000, 'born')",
    )
    sessions = []
    try:
        for statement in statements:
            session = psycopg.connect(source.dsn, autocommit=True)
            sessions.append(session)
            session.pgconn.send_query(statement.encode())
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        wait_until(lambda: source.execute(waiting) == [(len(statements),)], what="commits that wait for a standby")
        read = rows_read(walvec, "items")
        assert read is not None, "the backfill is over"
        assert read < 3900, "the backfill is past the rows that matter"
        # the backfill ends although nobody will ever see these commits
        wait_until(lambda: status(walvec, "items")["backfill"] is None, timeout=60, what="the backfill's end")
        assert source.execute("SELECT title FROM items WHERE id = 3990") == [("row 3990",)]  # still not seen
        with psycopg.connect(store, autocommit=True) as c:

            def shown() -> bool:
                rows = c.execute(
                    "SELECT id, embedded_text, stock FROM walvec.items WHERE id IN (3990, 3991, 3992, 3993)"
                    " OR id > 4000 ORDER BY id"
                ).fetchall()
                return [(i, t.split("\n")[0], s) for i, t, s in rows] == [
                    (3990, "Title: new", 0),
                    (3993, "Title: row 3993", 77),
                    (5000, "Title: row 3992", 2),
                    (3994000, "Title: born", None),
                ]

            wait_until(shown, what="the streamed state")
    finally:
        source.execute("ALTER SYSTEM RESET synchronous_standby_names")
        source.execute("SELECT pg_reload_conf()")
        for session in sessions:
            while session.pgconn.get_result() is not None:
                continue
            session.close()
    judge(walvec, source.dsn, store)


def test_transactions_that_began_before(walvec: Walvec, postgres: PostgresDatabase) -> None:
    """The start horizon: open when walvec comes, or when its reader comes back; committed later."""
    source = postgres
    store = postgres.another()
    walvec.env |= {"WALVEC_CONTROL_DATABASE__URL": store, "WALVEC_PGVECTOR__URL": store}
    filled(source.dsn, 3000)
    changes = (
        "UPDATE items SET title = 'late {n}' WHERE id = {n};DELETE FROM items WHERE id = {n} + 1;"
        "UPDATE items SET id = {n} + 10000 WHERE id = {n} + 2;INSERT INTO items (id, title) VALUES (20000 + {n}, 'x')"
    )
    with psycopg.connect(source.dsn) as early, psycopg.connect(source.dsn) as middle, psycopg.connect(source.dsn) as up:
        early.execute(changes.format(n=100))  # type: ignore[arg-type]
        walvec.start(walvec.definitions(document(source.dsn)), ready=False)
        wait_until(lambda: "waits for open transactions" in walvec.tail(), what="a word about who is waited for")
        early.commit()
        walvec.wait_ready()
        wait_until(lambda: rows_read(walvec, "items"), what="a backfill")
        middle.execute(changes.format(n=2900))  # type: ignore[arg-type]
        walvec.kill("cdc")
        wait_until(lambda: not walvec.roles()["cdc"], what="its end")
        up.execute(changes.format(n=2950))  # type: ignore[arg-type]
        wait_until(lambda: reader_of(source), what="a reader again")
        middle.commit()
        up.commit()
    judge(walvec, source.dsn, store)


def test_an_idle_table_holds_no_wal(walvec: Walvec, postgres: PostgresDatabase) -> None:
    """Other tables write, ours is quiet: the slot moves on all the same."""
    source = postgres
    store = postgres.another()
    walvec.env |= {"WALVEC_CONTROL_DATABASE__URL": store, "WALVEC_PGVECTOR__URL": store}
    filled(source.dsn, 10)
    source.execute("CREATE TABLE other (id bigint PRIMARY KEY, body text)")
    walvec.start(walvec.definitions(document(source.dsn)))
    equal(walvec, source.dsn, store)
    moved = "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE database = current_database()"
    for _ in range(3):
        source.execute("INSERT INTO other SELECT coalesce(max(id), 0) + 1, repeat('x', 1000000) FROM other")
        (before,) = source.execute("SELECT pg_current_wal_lsn()")[0]
        wait_until(lambda lsn=before: source.execute(moved, lsn) == [(True,)], timeout=10, what="confirmed_flush_lsn")


def test_transactions_back_to_back_with_a_restart_between(walvec: Walvec, postgres: PostgresDatabase) -> None:
    source = postgres
    store = postgres.another()
    walvec.env |= {"WALVEC_CONTROL_DATABASE__URL": store, "WALVEC_PGVECTOR__URL": store}
    filled(source.dsn, 100)
    definitions = walvec.definitions(document(source.dsn))
    walvec.start(definitions)
    with psycopg.connect(source.dsn, autocommit=True) as c:
        for turn in range(6):
            c.execute("UPDATE items SET title = 'first ' || %s WHERE id < 20", (turn,))
            if turn % 3 == 2:
                walvec.kill_all()
            elif turn % 3 == 1:
                walvec.kill("cdc")
            else:
                assert walvec.stop() == 0
            c.execute("UPDATE items SET title = 'second ' || %s WHERE id < 10", (turn,))
            if turn % 3 != 1:
                walvec.start(definitions)
            wait_until(lambda: reader_of(source), what="a reader")
            c.execute("DELETE FROM items WHERE id = %s", (turn,))
    judge(walvec, source.dsn, store)


def test_a_transaction_of_many_rows(walvec: Walvec, postgres: PostgresDatabase) -> None:
    """In flat memory, however many: the server keeps what we have not taken."""
    source = postgres
    store = postgres.another()
    walvec.env |= {"WALVEC_CONTROL_DATABASE__URL": store, "WALVEC_PGVECTOR__URL": store}
    filled(source.dsn, 10)
    walvec.start(walvec.definitions(document(source.dsn)))
    equal(walvec, source.dsn, store)
    with psycopg.connect(source.dsn) as c:
        c.execute(
            "INSERT INTO items SELECT i, CASE WHEN i % 4 = 0 THEN 'row ' || i % 500 END, NULL, i,"
            " ARRAY[repeat('b', 200)], i % 10, now() FROM generate_series(1000, 150999) i"
        )
        c.execute("UPDATE items SET stock = stock + 1 WHERE id % 20 = 1")
        c.execute("DELETE FROM items WHERE id % 10 = 0")
    equal(walvec, source.dsn, store, timeout=200)
    peaks = {role: peak_mb(p.pid) for role, found in walvec.roles().items() for p in found}
    assert max(peaks.values()) < 250, peaks


def peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def test_truncate_growth_and_pause_during_a_backfill(walvec: Walvec, postgres: PostgresDatabase) -> None:
    source = postgres
    store = postgres.another()
    walvec.env |= {"WALVEC_CONTROL_DATABASE__URL": store, "WALVEC_PGVECTOR__URL": store}
    filled(source.dsn, 6000)
    walvec.start(walvec.definitions(document(source.dsn)))
    with running(Workload(source.dsn, seed=8, truncate=False)) as workload:
        wait_until(lambda: rows_read(walvec, "items"), what="a backfill")
        assert walvec.run("pause", "items").returncode == 0
        after(workload, 30)
        # grows behind, amid and ahead of where it reads
        source.execute("DELETE FROM items WHERE id BETWEEN 5000 AND 5500")
        filled(source.dsn, 2000, first=6000)
        filled(source.dsn, 200, first=-1000)
        source.execute("UPDATE items SET id = id - 4900 - 500 WHERE id BETWEEN 4900 AND 4999")
        after(workload, 30)
        assert rows_read(walvec, "items") is not None
        assert walvec.run("resume", "items").returncode == 0
        after(workload, 60)
    equal(walvec, source.dsn, store)
    assert walvec.run("backfill", "items").returncode == 0
    wait_until(lambda: rows_read(walvec, "items"), what="a backfill")
    source.execute(
        "BEGIN; DELETE FROM items WHERE id < 100; TRUNCATE items; INSERT INTO items VALUES (1, 'new'); COMMIT"
    )
    filled(source.dsn, 50, first=100)
    with running(Workload(source.dsn, seed=9)) as workload:
        after(workload, 50)
        source.execute("TRUNCATE items")
        after(workload, 50)
    judge(walvec, source.dsn, store)
