"""The stream while things break: walsender, server, slot, publication, control database, schema."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc import slots
from cdc.losses import highest_logged
from cdc.session import open_session
from cdc.stream import Stream
from tests.integration.cdc_world import CONNECTION, World, column, key, settings, vector_table
from tests.plugins.eventually import eventually
from tests.plugins.postgres import PostgresDatabase
from walvec.contracts.errors import ControlUnavailable, LogUnavailable, SourceRejected
from walvec.contracts.position import parse_lsn
from walvec.definitions.model import VectorTable
from walvec.transport.memory import MemoryLog
from walvec.transport.ports import Producer

ITEMS = "CREATE TABLE items (id int PRIMARY KEY, name text, price numeric)"
SLOT = "walvec_abcdef12"


async def world(postgres: PostgresDatabase, *statements: str) -> tuple[World, VectorTable]:
    made, table = World(postgres.dsn), vector_table("items", backfilled=True)
    await made.sql(ITEMS, *statements)
    await made.define(table)
    await made.control.progress.put(CONNECTION, replace(await made.control.progress.get(CONNECTION)))
    await made.control.states.set_backfilled(table.id, 1)
    return made, table


async def reasons(w: World, table: VectorTable) -> list[str]:
    return [t.params["reason"] for t in await w.control.tasks.open_tasks([table.id]) if t.params.get("sweep")]


async def first_session(w: World, table: VectorTable) -> None:
    """Slot and progress are there; the task that a missing position asks for is done with."""
    async with w.reading():
        await w.sql("INSERT INTO items VALUES (1, 'a', 1)")
        assert await w.rows(table) == {key(id=1): {"name": "a"}}
    for task in await w.control.tasks.open_tasks([table.id]):
        await w.control.tasks.update(task.id, status="completed")


async def test_walsender_terminated(postgres: PostgresDatabase) -> None:
    w, table = await world(postgres)
    await first_session(w, table)
    async with w.reading():
        session = w.stream.session
        await w.sql(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '" + SLOT + "'"
        )
        await eventually(lambda: w.stream.session > session and w.stream.live)
        await w.sql("INSERT INTO items VALUES (2, 'b', 1)")
        assert set(await w.rows(table)) == {key(id=1), key(id=2)}
    assert await reasons(w, table) == []


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_server_restart(own_postgres: PostgresDatabase, mode: Any) -> None:
    w, table = await world(own_postgres)
    await first_session(w, table)
    async with w.reading():
        await w.sql("INSERT INTO items VALUES (2, 'b', 1)")
        await asyncio.to_thread(own_postgres.server.stop, mode)
        await eventually(lambda: not w.stream.live)
        await asyncio.to_thread(own_postgres.server.start)
        w.dsn = own_postgres.dsn
        await eventually(lambda: w.stream.live)
        await w.sql("INSERT INTO items VALUES (3, 'c', 1)")
        assert set(await w.rows(table)) == {key(id=1), key(id=2), key(id=3)}
    assert await reasons(w, table) == []


async def test_epoch_stays_and_nothing_is_lost_between_two_transactions(postgres: PostgresDatabase) -> None:
    """Two back-to-back transactions with a restart between them: COMMIT's end may be the next one's start."""
    w, table = await world(postgres)
    await first_session(w, table)
    for i in range(2, 8, 2):
        async with w.reading():
            await w.sql(f"INSERT INTO items VALUES ({i}, 'x', 1)")
            await w.caught_up()
        await w.sql(f"INSERT INTO items VALUES ({i + 1}, 'y', 1)")
    async with w.reading():
        changes = await w.changes(table)
    assert {c.key for c in changes} == {key(id=i) for i in range(1, 8)}
    assert {c.position.epoch for c in changes} == {0}
    by_key: dict[bytes, set[Any]] = {}
    for c in changes:
        by_key.setdefault(c.key, set()).add(c.position)
    assert all(len(p) == 1 for p in by_key.values())  # a replay gives the same positions


async def test_restart_on_loss_slot_dropped(postgres: PostgresDatabase) -> None:
    w, table = await world(postgres)
    await first_session(w, table)
    task = await w.control.tasks.create("backfill", table.id, 1, {})
    await w.control.tasks.update(task.id, status="running", progress={"next": "x"})
    losses = w.stream.losses
    await w.one(f"SELECT pg_drop_replication_slot('{SLOT}')")
    await w.sql("DELETE FROM items")
    async with w.reading():
        assert w.stream.fresh
        assert w.stream.losses == losses + 1
        (why,) = await reasons(w, table)
        assert "slot" in why
        assert (await w.control.tasks.get(task.id)).status == "cancelled"
        await w.sql("INSERT INTO items VALUES (5, 'e', 1)")
        assert key(id=5) in await w.rows(table)


async def test_slot_lost_with_policy_halt(postgres: PostgresDatabase) -> None:
    w, table = await world(postgres)
    await first_session(w, table)
    await w.define(on_slot_loss="halt")
    await w.one(f"SELECT pg_drop_replication_slot('{SLOT}')")
    async with w.reading(wait=False):
        await eventually(lambda: w.control.connection(CONNECTION).status == "error")
        assert "on_slot_loss" in w.control.connection(CONNECTION).status_message
    assert await w.one("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()") == 0


async def test_a_slot_moved_by_somebody_is_a_gap(postgres: PostgresDatabase) -> None:
    w, table = await world(postgres)
    await first_session(w, table)
    await w.sql("INSERT INTO items VALUES (2, 'b', 1)")
    await w.one(f"SELECT pg_replication_slot_advance('{SLOT}', pg_current_wal_lsn())::text")
    async with w.reading():
        assert len(await reasons(w, table)) == 1


async def test_a_log_made_anew_is_a_gap(postgres: PostgresDatabase) -> None:
    w, table = await world(postgres)
    await first_session(w, table)
    w.log = MemoryLog()
    async with w.reading():
        assert len(await reasons(w, table)) == 1


async def test_epoch_another_server(postgres: PostgresDatabase) -> None:
    w, table = await world(postgres)
    await first_session(w, table)
    stored = await w.control.progress.get(CONNECTION)
    await w.control.progress.put(CONNECTION, replace(stored, system_identifier="1", lsn=2**60))
    async with w.reading():
        assert len(await reasons(w, table)) == 1
        await w.sql("INSERT INTO items VALUES (2, 'b', 1)")
        assert (await w.changes(table))[-1].position.epoch == 1


async def test_publication_dropped(postgres: PostgresDatabase) -> None:
    w, table = await world(postgres)
    await first_session(w, table)
    async with w.reading():
        await w.sql(f"DROP PUBLICATION {SLOT}", "INSERT INTO items VALUES (2, 'unseen', 1)")
        await eventually(lambda: reasons(w, table))
        await w.sql("INSERT INTO items VALUES (3, 'c', 1)")
        assert key(id=3) in await w.rows(table)


async def test_table_taken_out_of_the_publication(postgres: PostgresDatabase) -> None:
    w, table = await world(postgres)
    await first_session(w, table)
    await w.sql(f"ALTER PUBLICATION {SLOT} DROP TABLE items")
    async with w.reading():
        assert len(await reasons(w, table)) == 1
        assert w.stream.table_horizons


async def test_idle_database_holds_no_wal(postgres: PostgresDatabase) -> None:
    """Other tables write, ours is quiet: the slot follows."""
    w, table = await world(postgres, "CREATE TABLE noise (x text)")
    await first_session(w, table)
    async with w.reading():
        await w.sql("INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
        target = parse_lsn(await w.one("SELECT pg_current_wal_lsn()::text"))

        async def confirmed() -> bool:
            at = await w.one(f"SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = '{SLOT}'")
            return parse_lsn(at) >= target

        await eventually(confirmed)


async def test_another_reader_waits_as_standby(postgres: PostgresDatabase) -> None:
    w, table = await world(postgres)
    await first_session(w, table)
    other = World(w.dsn, control=w.control, log=w.log)
    async with w.reading(), other.reading(wait=False):
        await eventually(lambda: ("cdc", CONNECTION) in w.control.reports._reports)

        async def standing_by() -> bool:
            return any(r[2]["state"] == "standby" for r in await w.control.reports.all())

        await eventually(standing_by)
        assert not other.stream.live
        await w.sql(f"SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{SLOT}'")
        await eventually(lambda: w.stream.live or other.stream.live)
        await w.sql("INSERT INTO items VALUES (2, 'b', 1)")


async def test_two_that_begin_at_once_do_not_get_into_each_others_way(postgres: PostgresDatabase) -> None:
    """One prepares publication and slot, the other one waits, whoever it is: no table is stopped, nothing is lost."""
    w = World(postgres.dsn)
    await w.sql(ITEMS)
    await w.define(vector_table("items"))
    other = World(w.dsn, control=w.control, log=w.log)
    between = await open_session(w.dsn)
    assert await slots.begin_preparing(between, SLOT)
    async with w.reading(wait=False), other.reading(wait=False):

        async def standing_by() -> bool:
            return any(r[2]["state"] == "standby" for r in await w.control.reports.all())

        await eventually(standing_by)
        assert await w.one("SELECT count(*)::text FROM pg_publication") == "0"
        await between.close()
        await eventually(lambda: w.stream.live or other.stream.live)
        assert not (w.stream.live and other.stream.live)
        assert all(t.error is None for t in (await w.control.definitions.snapshot()).vector_tables.values())
        assert [t for t in await w.control.tasks.recent() if t.task_type == "rebackfill"] == []


async def test_confirm_durable_nothing_is_confirmed_while_the_control_database_is_away(
    postgres: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, table = await world(postgres)
    await first_session(w, table)
    async with w.reading():
        advance = w.control.progress.advance
        failed = asyncio.Event()

        async def refuse(connection_id: str, progress: Any) -> bool:
            failed.set()
            raise ControlUnavailable("away")

        monkeypatch.setattr(w.control.progress, "advance", refuse)
        before = (await w.control.progress.get(CONNECTION)).lsn
        await w.sql("INSERT INTO items VALUES (2, 'b', 1)")
        await w.caught_up()
        await failed.wait()
        at = parse_lsn(
            await w.one(f"SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = '{SLOT}'")
        )
        assert at <= before
        assert w.stream.live
        monkeypatch.setattr(w.control.progress, "advance", advance)
        assert key(id=2) in await w.rows(table)


class FailingOnce(MemoryLog):
    """The first append after `arm` fails."""

    armed = False

    def producer(self, *, backpressure: bool = False) -> Producer:
        inner, outer = super().producer(backpressure=backpressure), self

        class Wrapped:
            async def append(self, topic: str, records: Any) -> None:
                if outer.armed:
                    outer.armed = False
                    raise LogUnavailable("the disk is full")
                await inner.append(topic, records)

            async def close(self) -> None:
                await inner.close()

        return Wrapped()


async def test_confirm_durable_a_failed_append_is_streamed_again(postgres: PostgresDatabase) -> None:
    w, table = await world(postgres)
    log = w.log = FailingOnce()
    await first_session(w, table)
    async with w.reading():
        log.armed = True
        await w.sql("INSERT INTO items VALUES (2, 'b', 1)")
        await w.sql("INSERT INTO items VALUES (3, 'c', 1)")
        await eventually(lambda: not log.armed and w.stream.live)
        assert set(await w.rows(table)) == {key(id=1), key(id=2), key(id=3)}


async def test_tables_come_and_go_while_it_runs(postgres: PostgresDatabase) -> None:
    w, table = await world(postgres, "CREATE TABLE later (id int PRIMARY KEY, name text)")
    later = vector_table("later", table_id="vt_00000002")
    second = vector_table("items", table_id="vt_00000003", columns=(column("price", 1700),))
    await first_session(w, table)
    async with w.reading():
        for new in (later, second):
            await w.control.definitions.put_vector_table(new)
            await w.routed(new)
            oid = int(await w.one(f"SELECT '{new.source_table}'::regclass::oid::bigint"))
            assert w.stream.table_horizons[oid] > 0
        await w.sql("INSERT INTO later VALUES (1, 'l')", "INSERT INTO items VALUES (2, 'b', 7)")
        assert await w.rows(later) == {key(id=1): {"name": "l"}}
        assert await w.rows(second) == {key(id=2): {"price": "7"}}
        await w.control.definitions.delete_vector_table(later.id)
        await eventually(
            lambda: published(w, {"items"}),
        )
        assert later.id not in w.stream.routed
        assert await reasons(w, later) == []
        await w.sql("INSERT INTO items VALUES (3, 'c', 7)")
        assert key(id=3) in await w.rows(table)


async def published(w: World, names: set[str]) -> bool:
    async with await psycopg.AsyncConnection.connect(w.dsn, autocommit=True) as connection:
        cursor = await connection.execute("SELECT tablename FROM pg_publication_tables WHERE pubname = %s", (SLOT,))
        return {row[0] for row in await cursor.fetchall()} == names


@pytest.mark.parametrize(
    ("breaking", "mending"),
    [
        ("ALTER TABLE items DROP name", "ALTER TABLE items ADD name text DEFAULT 'new'"),
        ("ALTER TABLE items RENAME name TO title", "ALTER TABLE items RENAME title TO name"),
        ("ALTER TABLE items RENAME TO things", "ALTER TABLE things RENAME TO items"),
        ("ALTER TABLE items ALTER name TYPE varchar(99)", "ALTER TABLE items ALTER name TYPE text"),
    ],
)
async def test_a_changed_table_stops_alone_and_is_read_again_once_mended(
    postgres: PostgresDatabase, breaking: str, mending: str
) -> None:
    w, table = await world(postgres, "CREATE TABLE other (id int PRIMARY KEY, name text)")
    other = vector_table("other", table_id="vt_00000002")
    await w.define(other)
    await first_session(w, table)
    async with w.reading():
        await w.sql(breaking)
        await w.sql(f"INSERT INTO {'things' if 'things' in breaking else 'items'} (id) VALUES (2)")
        await eventually(lambda: w.control.table(table.id).error)
        error = w.control.table(table.id).error
        assert error
        assert error["kind"] == "table_changed"
        assert error["cure"]
        assert table.id not in w.stream.routed
        await w.sql("INSERT INTO other VALUES (1, 'o')")
        assert key(id=1) in await w.rows(other)
        await w.sql(mending)
        await w.control.states.clear_error(table.id)
        await eventually(lambda: reasons(w, table))
        await w.routed(table)
        await w.sql("INSERT INTO items (id, name) VALUES (3, 'c')")
        assert key(id=3) in await w.rows(table)


async def test_added_column_changes_nothing(postgres: PostgresDatabase) -> None:
    w, table = await world(postgres)
    await first_session(w, table)
    async with w.reading():
        await w.sql("ALTER TABLE items ADD extra text DEFAULT 'e'", "INSERT INTO items VALUES (2, 'b', 1, 'x')")
        assert (await w.rows(table))[key(id=2)] == {"name": "b"}
        assert w.control.table(table.id).error is None


async def test_a_source_that_is_down_or_refuses_is_waited_for(own_postgres: PostgresDatabase) -> None:
    w, table = await world(own_postgres)
    await asyncio.to_thread(own_postgres.server.stop, "fast")
    async with w.reading(wait=False):
        await eventually(lambda: w.control.connection(CONNECTION).status == "error")
        await asyncio.to_thread(own_postgres.server.start)
        await eventually(lambda: w.stream.live)
        await eventually(lambda: w.control.connection(CONNECTION).status == "connected")
        await w.sql("INSERT INTO items VALUES (1, 'a', 1)")
        assert set(await w.rows(table)) == {key(id=1)}


async def test_open_transactions_that_hold_up_the_slot_are_named(
    postgres: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdc.reader._BLOCKERS_SECONDS", 0.1)
    w, _ = await world(postgres)
    async with await psycopg.AsyncConnection.connect(w.dsn) as holder:
        await holder.execute("INSERT INTO items VALUES (9, 'held', 1)")
        async with w.reading(wait=False):
            await eventually(
                lambda: f"pid {holder.info.backend_pid}" in w.control.connection(CONNECTION).status_message
            )
            await holder.commit()
            await eventually(lambda: w.stream.live)


async def test_a_silent_server_is_given_up(postgres: PostgresDatabase) -> None:
    """A half-open connection: nothing comes, not even an answer to our ping."""
    w, table = await world(postgres)
    await first_session(w, table)
    w.settings = settings(liveness_timeout_seconds=0.6, heartbeat_interval_seconds=60)
    async with w.reading():
        pid = int(await w.one(f"SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{SLOT}'"))
        session = w.stream.session
        os.kill(pid, signal.SIGSTOP)
        try:
            await eventually(lambda: not w.stream.live)
        finally:
            os.kill(pid, signal.SIGCONT)
        await eventually(lambda: w.stream.live and w.stream.session > session)
        await w.sql("INSERT INTO items VALUES (2, 'b', 1)")
        assert key(id=2) in await w.rows(table)


async def test_an_idle_server_answers_the_ping(postgres: PostgresDatabase) -> None:
    w, table = await world(postgres)
    await first_session(w, table)
    w.settings = settings(liveness_timeout_seconds=0.3, heartbeat_interval_seconds=60)
    async with w.reading():
        session = w.stream.session
        before = w.stream.received
        await w.sql("CREATE TABLE noise (x int)")
        await eventually(lambda: w.stream.received > before)  # by an answer to a ping alone
        await w.sql("CREATE TABLE noise2 (x int)")
        before = w.stream.received
        await eventually(lambda: w.stream.received > before)
        assert w.stream.session == session


async def test_a_missing_right_is_told_and_heals(postgres: PostgresDatabase) -> None:
    w, table = await world(postgres)
    role = f"limited_{postgres.name}"
    await w.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'x'", f"GRANT CREATE ON DATABASE {postgres.name} TO {role}")
    await w.sql(f"ALTER TABLE items OWNER TO {role}", f"GRANT CREATE, USAGE ON SCHEMA public TO {role}")
    owner, w.dsn = w.dsn, psycopg.conninfo.make_conninfo(w.dsn, user=role, password="x")
    await w.define()
    try:
        async with w.reading(wait=False):
            await eventually(lambda: "REPLICATION" in w.control.connection(CONNECTION).status_message)
            w.dsn = owner
            await w.sql(f"ALTER ROLE {role} REPLICATION")
            await eventually(lambda: w.stream.live)
            await w.sql("INSERT INTO items VALUES (1, 'a', 1)")
            assert set(await w.rows(table)) == {key(id=1)}
    finally:
        w.dsn = owner
        await w.sql(f"REASSIGN OWNED BY {role} TO CURRENT_USER", f"DROP OWNED BY {role}", f"DROP ROLE {role}")


@pytest.mark.parametrize("stays", [False, True])
async def test_a_table_mended_while_nobody_reads_is_read_again(
    postgres: PostgresDatabase, monkeypatch: pytest.MonkeyPatch, stays: bool
) -> None:
    """Whether it could be taken out of the publication meanwhile or not."""
    w, table = await world(postgres)
    await first_session(w, table)

    async def refused(*_: object) -> None:
        raise SourceRejected("not the owner")

    if stays:
        monkeypatch.setattr(slots, "unpublish", refused)
    async with w.reading():
        await w.sql("ALTER TABLE items RENAME name TO title", "INSERT INTO items VALUES (2, 'b', 1)")
        await eventually(lambda: w.control.table(table.id).error)
        if not stays:
            await eventually(lambda: published(w, set()))
    await w.sql("ALTER TABLE items RENAME title TO name")
    await w.control.states.clear_error(table.id)
    w.stream = Stream()
    async with w.reading():
        assert len(await reasons(w, table)) == 1


async def test_epoch_records_ahead_of_stored_progress_count(postgres: PostgresDatabase) -> None:
    w, table = await world(postgres)
    await first_session(w, table)
    last = (await w.control.progress.get(CONNECTION)).lsn
    assert 0 < await highest_logged(w.log, [table], 0) <= last
    assert await highest_logged(w.log, [table], 1) == 0


def begin_as_standby(data: Path) -> None:
    signal_file = data / "standby.signal"
    signal_file.touch()
    os.chown(signal_file, data.stat().st_uid, data.stat().st_gid)


@pytest.mark.parametrize("ahead", [False, True])
async def test_epoch_grows_only_when_the_new_timeline_lacks_what_was_read(
    own_postgres: PostgresDatabase, ahead: bool
) -> None:
    w, table = await world(own_postgres)
    await first_session(w, table)
    server = own_postgres.server
    await asyncio.to_thread(server.stop, "fast")
    begin_as_standby(server.directory)
    await asyncio.to_thread(server.start)
    await w.one("SELECT pg_promote()")
    if ahead:
        stored = await w.control.progress.get(CONNECTION)
        await w.control.progress.put(CONNECTION, replace(stored, lsn=stored.lsn + 2**24))
    async with w.reading():
        await w.sql("INSERT INTO items VALUES (2, 'b', 1)")
        changes = await w.changes(table)
        assert changes[-1].position.epoch == (1 if ahead else 0)
        assert len(await reasons(w, table)) == (1 if ahead else 0)
        assert (await w.control.progress.get(CONNECTION)).timeline == 2


REMAKE = (
    f"DROP PUBLICATION {SLOT}",
    "INSERT INTO items VALUES (2, 'unseen', 1)",
    f"CREATE PUBLICATION {SLOT} FOR TABLE ONLY items"
    " WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true)",
)
PUT_BACK = (
    f"ALTER PUBLICATION {SLOT} DROP TABLE items",
    "INSERT INTO items VALUES (2, 'unseen', 1)",
    f"ALTER PUBLICATION {SLOT} ADD TABLE ONLY items",
)
WIDENED_AGAIN = (
    f"ALTER PUBLICATION {SLOT} SET (publish = 'delete')",
    "INSERT INTO items VALUES (2, 'unseen', 1)",
    f"ALTER PUBLICATION {SLOT} SET (publish = 'insert, update, delete, truncate')",
)
REPAIRED = pytest.mark.parametrize("by_somebody", [REMAKE, PUT_BACK, WIDENED_AGAIN])


async def each(w: World, statements: tuple[str, ...]) -> None:
    """Each in its own transaction."""
    for statement in statements:
        await w.sql(statement)


@REPAIRED
async def test_a_publication_repaired_by_somebody_while_nobody_looked(
    postgres: PostgresDatabase, by_somebody: tuple[str, ...]
) -> None:
    w, table = await world(postgres)
    await first_session(w, table)
    await each(w, by_somebody)
    w.stream = Stream()
    async with w.reading():
        await w.routed(table)
        assert len(await reasons(w, table)) == 1
        oid = int(await w.one("SELECT 'items'::regclass::oid::bigint"))
        assert w.stream.table_horizons[oid] > 0
        assert key(id=2) not in await w.rows(table)  # it was lost indeed
        for task in await w.control.tasks.open_tasks([table.id]):
            await w.control.tasks.update(task.id, status="completed")
    async with w.reading():
        await w.routed(table)
        assert await reasons(w, table) == []  # once


@REPAIRED
async def test_a_publication_repaired_by_somebody_between_two_looks(
    postgres: PostgresDatabase, by_somebody: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdc.streaming._CHECK_SECONDS", 0.2)
    w, table = await world(postgres, "CREATE TABLE other (id int PRIMARY KEY, name text)")
    other = vector_table("other", table_id="vt_00000002", backfilled=True)
    await first_session(w, table)
    await w.define(other)
    async with w.reading():
        await w.routed(other)
        for task in await w.control.tasks.open_tasks([other.id]):  # it was read before it was published
            await w.control.tasks.update(task.id, status="completed")
        async with await psycopg.AsyncConnection.connect(w.dsn) as connection:
            for statement in by_somebody:  # at once for all who look
                await connection.execute(statement)
        await eventually(lambda: reasons(w, table))
        await w.routed(table)
        assert bool(await reasons(w, other)) is (by_somebody is not PUT_BACK)
        await w.sql("INSERT INTO items VALUES (3, 'c', 1)")
        assert key(id=3) in await w.rows(table)


async def test_what_cdc_itself_alters_is_no_loss(postgres: PostgresDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc.streaming._CHECK_SECONDS", 0.05)
    w, table = await world(postgres, "CREATE TABLE later (id int PRIMARY KEY, name text)")
    later = vector_table("later", table_id="vt_00000002", backfilled=True)
    await first_session(w, table)
    for _ in range(2):
        w.stream = Stream()
        async with w.reading():
            await w.define(later)
            await w.routed(later)
            # a table that was read before it was published is read again; nothing else is
            for task in await w.control.tasks.open_tasks([later.id]):
                await w.control.tasks.update(task.id, status="completed")
        async with w.reading():
            await w.routed(later)
            assert await reasons(w, later) == []
            await w.control.definitions.delete_vector_table(later.id)
            await eventually(lambda: published(w, {"items"}))
            await w.sql("INSERT INTO items VALUES (7, 'x', 1) ON CONFLICT DO NOTHING")
            await w.caught_up()
        assert await reasons(w, table) == []


async def test_without_stored_marks_the_publication_is_taken_as_it_is(postgres: PostgresDatabase) -> None:
    w, table = await world(postgres)
    await first_session(w, table)
    w.control.progress._published.clear()
    async with w.reading():
        await w.routed(table)
        assert await reasons(w, table) == []
        assert set(await w.control.progress.published(CONNECTION) or {}) == {table.id}


@pytest.mark.parametrize(
    "by_somebody",
    [
        (f"ALTER PUBLICATION {SLOT} SET (publish = 'delete')",),
        (f"DROP PUBLICATION {SLOT}",),
        (f"ALTER PUBLICATION {SLOT} DROP TABLE items",),
        REMAKE,
    ],
)
@pytest.mark.parametrize("dies_at", ["create", "put_published"])
async def test_a_crash_while_a_publication_is_repaired_finds_the_loss_again(
    postgres: PostgresDatabase, by_somebody: tuple[str, ...], dies_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task is durable before the repair, and before the marks that would hide the loss."""
    w, table = await world(postgres)
    await first_session(w, table)
    await each(w, by_somebody)
    before = await w.control.progress.published(CONNECTION)
    owner: Any = w.control.tasks if dies_at == "create" else w.control.progress
    died = asyncio.Event()

    async def die(*_: Any, **__: Any) -> None:
        died.set()
        raise ControlUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(owner, dies_at, die)
        async with w.reading(wait=False):
            await died.wait()
    assert await w.control.progress.published(CONNECTION) == before
    assert bool(await reasons(w, table)) is (dies_at == "put_published")
    if dies_at == "create" and by_somebody is not REMAKE:
        whole = "SELECT count(*) FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid WHERE pubinsert"
        assert await w.one(whole) == 0  # not repaired yet
    w.stream = Stream()
    async with w.reading():
        await w.routed(table)
        assert len(await reasons(w, table)) == 1


async def test_a_table_that_somebody_else_took_out_is_out(
    postgres: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader and a removal both take it out of the publication: the slower one finds it done."""
    postgres.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)")
    postgres.execute("CREATE PUBLICATION p FOR TABLE a")
    session = await open_session(postgres.dsn)
    now, looks = slots._members, 0

    async def late(*arguments: Any) -> set[tuple[str, str]]:
        nonlocal looks
        looks += 1
        return {("public", "a"), ("public", "b")} if looks == 1 else await now(*arguments)

    monkeypatch.setattr(slots, "_members", late)
    try:
        await slots.unpublish(session, "p", [])
        assert await now(session, "p") == set()
    finally:
        await session.close()
