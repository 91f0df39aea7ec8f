"""What every request asks goes past psycopg's cursors: it must tell the same truth, and break in the same ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus

from sink.stores.pgvector_session import Sessions
from tests.plugins.eventually import eventually
from tests.plugins.postgres import PostgresDatabase
from walvec.definitions.pool import Pool
from walvec.definitions.postgres import open_control
from walvec.runtime.prepared import Asker


@pytest.fixture
async def conn(postgres: PostgresDatabase) -> AsyncIterator[AsyncConnection[Any]]:
    async with await AsyncConnection.connect(postgres.dsn, autocommit=True) as found:
        yield found


async def test_answers_and_failures_are_the_servers_own_in_turn_with_psycopgs(conn: AsyncConnection[Any]) -> None:
    asker = Asker(conn)
    await asker.prepare(b"half", b"SELECT 100 / $1::int4, n FROM generate_series(1, 3000) n")
    with pytest.raises(psycopg.errors.UndefinedTable):
        await asker.prepare(b"none", b"SELECT 1 FROM nowhere")
    for _ in range(3):
        found = await asker.ask(b"half", [b"50"])
        assert (found.ntuples, found.get_value(2999, 0), found.get_value(2999, 1)) == (3000, b"2", b"3000")
        assert (await asker.ask(b"half", [(4).to_bytes(4, "big")], binary=True)).get_value(0, 0) == b"25"
        with pytest.raises(psycopg.errors.DivisionByZero):
            await asker.ask(b"half", [b"0"])
        cursor = await conn.execute("SELECT 7")
        assert await cursor.fetchone() == (7,)


async def test_a_parameter_larger_than_the_socket_takes(conn: AsyncConnection[Any]) -> None:
    asker = Asker(conn)
    await asker.prepare(b"length", b"SELECT length($1::text)")
    assert (await asker.ask(b"length", [b"x" * 30_000_000])).get_value(0, 0) == b"30000000"


async def test_the_end_of_a_session_is_told_and_does_not_spin(
    postgres: PostgresDatabase, conn: AsyncConnection[Any]
) -> None:
    asker = Asker(conn)
    await asker.prepare(b"one", b"SELECT 1")
    await asker.ask(b"one")
    postgres.execute("SELECT pg_terminate_backend(%s)", conn.info.backend_pid)
    await eventually(lambda: not asker._watched)
    with pytest.raises(psycopg.OperationalError):
        await asker.ask(b"one")


async def test_a_search_that_is_cancelled_leaves_no_session_in_mid_answer(postgres: PostgresDatabase) -> None:
    sessions = Sessions(postgres.dsn, limit=1)

    async def slow() -> None:
        async with sessions.session() as session:
            await session.ask("SELECT pg_sleep(60)", ())

    sleeps = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"
    task = asyncio.create_task(slow())
    await eventually(lambda: postgres.execute(sleeps) == [(1,)])
    task.cancel()
    await asyncio.wait((task,))
    async with sessions.session() as session:
        assert session.conn.info.transaction_status == TransactionStatus.IDLE
        assert (await session.ask("SELECT 5", ())).get_value(0, 0) == b"5"
    await sessions.close()


async def test_statements_follow_what_they_read(postgres: PostgresDatabase) -> None:
    postgres.execute("CREATE TABLE things (a int)")
    postgres.execute("INSERT INTO things VALUES (1)")
    sessions = Sessions(postgres.dsn)
    async with sessions.session() as session:
        for number in range(70):  # more than are kept
            assert (await session.ask(f"SELECT a + {number} FROM things", ())).get_value(0, 0) == str(
                1 + number
            ).encode()
        postgres.execute("ALTER TABLE things ALTER COLUMN a TYPE text USING 'one'")
        await session.ask("SELECT a FROM things", ())
        postgres.execute("ALTER TABLE things ALTER COLUMN a TYPE bigint USING 2")
        assert (await session.ask("SELECT a FROM things", ())).get_value(0, 0) == b"2"
        await session.conn.execute("DEALLOCATE ALL")
        assert (await session.ask("SELECT a FROM things", ())).get_value(0, 0) == b"2"
        held = await session.conn.execute("SELECT count(*) FROM pg_prepared_statements")
        row = await held.fetchone()
        assert row is not None
        assert row[0] <= 64
    await sessions.close()


async def test_the_version_is_never_older_than_the_call(
    postgres: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = await open_control(postgres.dsn, environment="prod", secret_key="a secret key")
    pool = Pool(postgres.dsn, "")
    before = await pool.version()
    answered, released = asyncio.Event(), asyncio.Event()
    ask, asked = Asker.ask, 0

    async def late(self: Asker, *arguments: Any, **more: Any) -> Any:
        nonlocal asked
        asked += 1
        found = await ask(self, *arguments, **more)
        answered.set()
        await released.wait()
        return found

    monkeypatch.setattr(Asker, "ask", late)
    early = pool.version()
    await answered.wait()
    postgres.execute("UPDATE walvec_control.installation SET version = version + 1")
    later = [pool.version() for _ in range(5)]
    await asyncio.sleep(0)
    released.set()
    assert await early == before
    assert await asyncio.gather(*later) == [before + 1] * 5
    assert asked == 2, "those who wait share one question"
    await pool.close()
    await control.close()


async def test_who_gives_up_takes_the_version_from_nobody_and_a_lost_session_is_replaced(
    postgres: PostgresDatabase,
) -> None:
    control = await open_control(postgres.dsn, environment="prod", secret_key="a secret key")
    pool = Pool(postgres.dsn, "")
    version = await pool.version()
    for _ in range(20):
        asking = [pool.version() for _ in range(6)]
        await asyncio.sleep(0)
        for task in asking[::2]:
            task.cancel()
        assert await asyncio.gather(*asking[1::2]) == [version] * 3
    postgres.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'walvec control' "
        "AND query LIKE 'SELECT version FROM%'"
    )
    assert await pool.version() == version
    await pool.close()
    await control.close()
