"""Backfill, replay and repair through a real server, beside a stream that follows a real slot."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import psycopg
import pytest

import cdc.jobs
from cdc.jobs import Jobs
from cdc.stream import Stream
from sink.stores.memory import MemoryStore
from tests.integration.cdc_world import vector_table as contract_table
from tests.plugins.postgres import PostgresDatabase
from tests.plugins.source_table import (
    CONNECTION,
    connection,
    consuming,
    control_with,
    following,
    records,
    vector_table,
)
from tests.plugins.stale_feed import StaleControl
from walvec.contracts.changes import Change
from walvec.contracts.letters import DeadLetter
from walvec.contracts.position import Position
from walvec.contracts.vectors import Chunk, VectorRecord
from walvec.definitions.memory import MemoryControl
from walvec.definitions.model import OPEN, Column, EmbeddingProvider, SourceProgress, Task, VectorTable
from walvec.definitions.rebackfill import read_again
from walvec.runtime.settings import Settings, settings_from
from walvec.transport.memory import MemoryLog
from walvec.transport.records import Record, changes_topic, embedder_group, sink_group, vectors_topic

DOC = [Column("doc", "embedding")]
SETTINGS = settings_from({"cdc": {"backfill_chunk_rows": 100}})


@asynccontextmanager
async def running(
    control: MemoryControl, log: MemoryLog, stream: Any, settings: Settings = SETTINGS
) -> AsyncIterator[None]:
    stop = asyncio.Event()
    jobs = asyncio.create_task(Jobs(settings, control, log, stream, CONNECTION).run(stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(jobs, 20)


async def completed(control: MemoryControl, table: VectorTable, kind: str = "backfill") -> Task | None:
    return next(
        (t for t in await control.tasks.recent(table.id) if t.task_type == kind and t.status == "completed"), None
    )


def by_key(changes: list[Change]) -> dict[bytes, list[Change]]:
    out: dict[bytes, list[Change]] = {}
    for change in changes:
        out.setdefault(change.key, []).append(change)
    return out


@pytest.mark.parametrize(
    ("columns", "key", "rows"),
    [
        ("id bigint PRIMARY KEY", "id", "(-9223372036854775808 + i::numeric * 36893488147419103)::bigint"),
        ("id uuid PRIMARY KEY", "id", "md5(i::text)::uuid"),
        ("id text PRIMARY KEY", "id", "chr(32 + i % 90) || E'\\t''\"\\\\ü' || i"),
        ('id text COLLATE "C" PRIMARY KEY', "id", "chr(32 + i % 90) || i"),
        ("id timestamptz PRIMARY KEY", "id", "timestamptz '2020-01-01' + i * interval '1.000001 s'"),
        ("id double precision PRIMARY KEY", "id", "i / 7.0"),
        ("id bytea PRIMARY KEY", "id", "decode(md5(i::text), 'hex')"),
        ("id char(6) PRIMARY KEY", "id", "to_hex(i)"),
        ('"Id "" x" int PRIMARY KEY', '"Id "" x"', "i"),
    ],
)
async def test_every_row_once_in_key_order(
    postgres: PostgresDatabase, eventually: Callable[..., Any], columns: str, key: str, rows: str
) -> None:
    postgres.execute(f"CREATE TABLE t ({columns}, doc text)")
    postgres.execute(f"INSERT INTO t SELECT {rows}, 'doc ' || i FROM generate_series(0, 499) i")
    table = await vector_table(postgres.dsn, "t", DOC)
    control, log = await control_with(postgres.dsn, table), MemoryLog()
    async with following(postgres, table) as f, consuming(log, table), running(control, log, f.stream):
        task = await eventually(lambda: completed(control, table))
        found = by_key(await records(log, table))
    assert len(found) == 500
    assert all(len(c) == 1 and c[0].op == "r" and c[0].generation == 1 for c in found.values())
    assert task.progress["rows"] == 500
    assert control.feed.current.vector_tables[table.id].backfilled
    assert len(await control.tasks.recent(table.id)) == 1


async def test_composite_key_in_index_order(postgres: PostgresDatabase, eventually: Callable[..., Any]) -> None:
    postgres.execute('CREATE TABLE t (b int, a text COLLATE "C", doc text, PRIMARY KEY (a, b))')
    postgres.execute("INSERT INTO t SELECT i % 13, 'k' || i % 71, 'd' FROM generate_series(1, 900) i")
    table = await vector_table(postgres.dsn, "t", DOC)
    control, log = await control_with(postgres.dsn, table), MemoryLog()
    async with following(postgres, table) as f, consuming(log, table), running(control, log, f.stream):
        await eventually(lambda: completed(control, table))
        found = await records(log, table)
    assert len(found) == len({c.key for c in found}) == 900
    assert all(c.key.startswith(b'{"a":"k') for c in found)


async def test_partitioned_table_and_inheritance(postgres: PostgresDatabase, eventually: Callable[..., Any]) -> None:
    postgres.execute(
        "CREATE TABLE p (id int PRIMARY KEY, doc text) PARTITION BY RANGE (id);"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100);"
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (1000);"
        "CREATE TABLE parent (id int PRIMARY KEY, doc text); CREATE TABLE child () INHERITS (parent);"
        "INSERT INTO p SELECT i, 'x' FROM generate_series(0, 299) i; INSERT INTO parent VALUES (1, 'x');"
        "INSERT INTO child VALUES (2, 'y')"
    )
    one = await vector_table(postgres.dsn, "p", DOC, table_id="vt_00000001")
    two = await vector_table(postgres.dsn, "parent", DOC, table_id="vt_00000002")
    control, log = await control_with(postgres.dsn, one, two), MemoryLog()
    async with (
        following(postgres, one, two) as f, consuming(log, one), consuming(log, two), running(control, log, f.stream)
    ):  # fmt: skip
        await eventually(lambda: completed(control, one))
        await eventually(lambda: completed(control, two))
    assert len({c.key for c in await records(log, one)}) == 300
    assert [c.key for c in await records(log, two)] == [b'{"id":1}']


async def test_wide_rows_stay_within_the_chunks_bytes(
    postgres: PostgresDatabase, eventually: Callable[..., Any]
) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text)")
    postgres.execute("INSERT INTO t SELECT i, repeat(md5(i::text), 2600) FROM generate_series(1, 200) i")
    table = await vector_table(postgres.dsn, "t", DOC)
    control, log = await control_with(postgres.dsn, table), MemoryLog()
    settings = settings_from({"cdc": {"backfill_chunk_rows": 2000}})
    async with following(postgres, table) as f, consuming(log, table), running(control, log, f.stream, settings):
        await eventually(lambda: completed(control, table))
    found = await records(log, table)
    assert len(found) == len({c.key for c in found}) == 200
    assert len({c.position for c in found}) >= 4


@pytest.mark.timeout(60)
async def test_visibility_race_rule_visibility_rule_snapshot_xmax(
    own_postgres: PostgresDatabase, eventually: Callable[..., Any]
) -> None:
    """An UPDATE waits for a standby that never answers: it is streamed, and a chunk does not see it yet."""
    postgres = own_postgres
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text); INSERT INTO t VALUES (1, 'old'), (2, 'other')")
    table = await vector_table(postgres.dsn, "t", DOC)
    control, log = await control_with(postgres.dsn, table), MemoryLog()
    async with following(postgres, table) as f, consuming(log, table):
        postgres.execute("ALTER SYSTEM SET synchronous_standby_names = 'nosuch'")
        postgres.execute("SELECT pg_reload_conf()")
        await eventually(lambda: postgres.execute("SHOW synchronous_standby_names")[0][0] == "nosuch")
        seen = len(f.commits)
        # the race's moment: the routing has begun, its gate is open, then the update comes and waits
        blocked = threading.Thread(target=wait_for_standby, args=(postgres.dsn,), daemon=True)
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        stream = f.stream
        from cdc import reading
        from cdc.chunks import StampedReader
        from cdc.session import open_session
        from cdc.stamping import ReadAgain

        session = await open_session(postgres.dsn)
        found = await reading.target(session, table, table.active)

        async def report(text: str) -> None:
            assert isinstance(text, str)

        reader = StampedReader(session, stream, found, table.id, 1, report)
        first = await reader.judge(await reader.chunk(None, limit=10, max_bytes=1000))
        assert isinstance(first, Position)
        blocked.start()
        await eventually(lambda: postgres.execute(waits)[0][0] == 1)
        xid = await asyncio.to_thread(waiting_xid, postgres)
        await eventually(lambda: [c for c in f.commits[seen:] if c[0] == xid])
        (commit,) = [lsn for x, lsn in f.commits[seen:] if x == xid]
        read = await reader.chunk(None, limit=10, max_bytes=1000)
        assert [line[0] for line in read.lines] == [b"old", b"other"]
        stamp = await reader.judge(read)
        assert not isinstance(stamp, ReadAgain)
        assert stamp == Position(0, commit, 0)
        assert read.facts.mark > commit
        postgres.execute("ALTER SYSTEM RESET synchronous_standby_names")
        postgres.execute("SELECT pg_reload_conf()")
        await asyncio.to_thread(blocked.join)
        read = await reader.chunk(None, limit=10, max_bytes=1000)
        assert sorted(str(line[0]) for line in read.lines) == [str(b"new"), str(b"other")]
        later = await reader.judge(read)
        assert later == Position(0, read.facts.mark, 0)
        await session.close()
    assert control.feed.current.vector_tables


def waiting_xid(postgres: PostgresDatabase) -> int:
    return int(
        str(postgres.execute("SELECT backend_xid::text FROM pg_stat_activity WHERE wait_event = 'SyncRep'")[0][0])
    )


def wait_for_standby(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute("UPDATE t SET doc = 'new' WHERE id = 1")


async def test_rule_start_horizon_waits_for_writers_after_a_restart_and_for_nobody_else(
    postgres: PostgresDatabase, eventually: Callable[..., Any]
) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text); CREATE TABLE other (id int)")
    table = await vector_table(postgres.dsn, "t", DOC)
    control, log = await control_with(postgres.dsn, table), MemoryLog()
    with psycopg.connect(postgres.dsn) as writer, psycopg.connect(postgres.dsn) as unrelated:
        async with following(postgres, table) as f, consuming(log, table):
            unrelated.execute("INSERT INTO other VALUES (1)")
            writer.execute("INSERT INTO t VALUES (1, 'late')")
            async with running(control, log, f.stream):

                async def waits() -> bool:
                    found = await control.tasks.open_tasks([table.id])
                    return any(f"pid {writer.info.backend_pid} " in t.progress.get("waiting", "") for t in found)

                await eventually(waits)
                assert await records(log, table) == []
                writer.commit()
                await eventually(lambda: completed(control, table))
            assert [c.key for c in await records(log, table)] == [b'{"id":1}']


async def test_rule_start_horizon_a_fresh_slot_waits_for_every_older_transaction(
    postgres: PostgresDatabase, eventually: Callable[..., Any]
) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text); INSERT INTO t VALUES (1, 'x')")
    postgres.execute("CREATE TABLE other (id int)")
    table = await vector_table(postgres.dsn, "t", DOC)
    control, log = await control_with(postgres.dsn, table), MemoryLog()
    with psycopg.connect(postgres.dsn) as older:
        async with following(postgres, table, fresh=True) as f, consuming(log, table):
            older.execute("INSERT INTO other VALUES (1)")
            f.stream.horizon = int(str(postgres.execute("SELECT pg_current_xact_id()::text")[0][0]))
            async with running(control, log, f.stream):

                async def waits() -> bool:
                    found = await control.tasks.open_tasks([table.id])
                    return any(f"pid {older.info.backend_pid} " in t.progress.get("waiting", "") for t in found)

                await eventually(waits)
                assert await records(log, table) == []
                older.rollback()
                await eventually(lambda: completed(control, table))


async def test_rule_start_horizon_a_prepared_transaction_on_a_partition_is_waited_for(
    postgres_with: Callable[..., PostgresDatabase], eventually: Callable[..., Any]
) -> None:
    postgres = postgres_with(max_prepared_transactions="5")
    postgres.execute(
        "CREATE TABLE t (id int PRIMARY KEY, doc text) PARTITION BY RANGE (id);"
        "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (9)"
    )
    postgres.execute("BEGIN; INSERT INTO t1 VALUES (1, 'late'); PREPARE TRANSACTION 'two-phase'")
    table = await vector_table(postgres.dsn, "t", DOC)
    control, log = await control_with(postgres.dsn, table), MemoryLog()
    stream = Stream()  # a slot cannot be made while the transaction is prepared: the watermark is delivered by hand
    stream.restart(epoch=0, at=0, horizon=1, fresh=False)
    stream.route(table.id, frozenset({1}))
    async with consuming(log, table), running(control, log, stream):

        async def waits() -> bool:
            found = await control.tasks.open_tasks([table.id])
            return any("prepared transaction two-phase" in t.progress.get("waiting", "") for t in found)

        await eventually(waits)
        postgres.execute("COMMIT PREPARED 'two-phase'")
        stream.advance(1 << 62)
        await eventually(lambda: completed(control, table))
    assert [c.key for c in await records(log, table)] == [b'{"id":1}']


async def test_a_generation_that_is_not_routed_is_not_read(
    postgres: PostgresDatabase, eventually: Callable[..., Any]
) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text); INSERT INTO t VALUES (1, 'x')")
    table = await vector_table(postgres.dsn, "t", DOC)
    control, log = await control_with(postgres.dsn, table), MemoryLog()
    async with following(postgres) as f, consuming(log, table), running(control, log, f.stream):

        async def started() -> bool:
            return any(t.status == "running" for t in await control.tasks.open_tasks([table.id]))

        await eventually(started)
        assert await records(log, table) == []
        f.stream.route(table.id, frozenset({1}))
        await eventually(lambda: completed(control, table))
        assert len(await records(log, table)) == 1


async def test_killed_and_resumed_rule_progress_after_rule_lowest_stored(
    postgres: PostgresDatabase, eventually: Callable[..., Any]
) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text)")
    postgres.execute("INSERT INTO t SELECT i, 'd' FROM generate_series(1, 1000) i")
    table = await vector_table(postgres.dsn, "t", DOC, backfill="manual")
    control, log = await control_with(postgres.dsn, table), MemoryLog()
    task = await control.tasks.create("backfill", table.id, 1, {"sweep": True})
    settings = settings_from({"cdc": {"backfill_chunk_rows": 100, "backfill_max_backlog": 150}})
    async with following(postgres, table) as f:
        async with running(control, log, f.stream, settings):  # nobody consumes: it stops at the backlog

            async def stopped() -> bool:
                return "embedder" in str((await control.tasks.get(task.id)).progress.get("waiting"))

            await eventually(stopped)
        progress = (await control.tasks.get(task.id)).progress
        first = await records(log, table)
        assert progress["rows"] == 200
        assert len(first) >= 200
        assert progress["next"] == ["200"]
        lowest = Position(*progress["lowest"])
        assert lowest == min(c.position for c in first)
        postgres.execute("INSERT INTO t VALUES (0, 'behind the key'), (2000, 'before it')")
        async with consuming(log, table), running(control, log, f.stream, settings):
            await eventually(lambda: completed(control, table))
        found = await records(log, table)
    keys = [c.key for c in found if c.op == "r"]
    assert len(set(keys)) == 1001
    assert b'{"id":0}' not in keys
    (sweep,) = [c for c in found if c.op == "t"]
    assert sweep.position == lowest
    assert sweep.generation == 1


@pytest.mark.parametrize("how", ["reset", "token", "losses"])
async def test_rule_restart_on_loss(postgres: PostgresDatabase, eventually: Callable[..., Any], how: str) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text)")
    postgres.execute("INSERT INTO t SELECT i, 'd' FROM generate_series(1, 600) i")
    table = await vector_table(postgres.dsn, "t", DOC)
    control, log = await control_with(postgres.dsn, table), MemoryLog()
    settings = settings_from({"cdc": {"backfill_chunk_rows": 100, "backfill_max_backlog": 150}})
    async with following(postgres, table) as f, running(control, log, f.stream, settings):

        async def half() -> Any:
            for task in await control.tasks.open_tasks([table.id]):
                if "embedder" in str(task.progress.get("waiting")):
                    return task
            return None

        task = await eventually(half)
        before = Position(*task.progress["lowest"])
        f.stream.stop()
        if how == "reset":
            await control.tasks.update(task.id, progress={})
        elif how == "token":
            await control.progress.put(CONNECTION, SourceProgress(log_identity="log", slot_created_lsn=2))
        else:
            f.stream.losses += 1
        f.stream.restart(epoch=1, at=0, horizon=0, fresh=False)
        f.stream.route(table.id, frozenset({1}))
        async with consuming(log, table):
            task = await eventually(lambda: completed(control, table))
        found = await records(log, table)
    assert task.progress["rows"] == 600
    assert Position(*task.progress["lowest"]) > before
    assert len({c.key for c in found if c.position.epoch == 1}) == 600


async def test_live_rows_beside_a_backfill_are_all_there(
    postgres: PostgresDatabase, eventually: Callable[..., Any]
) -> None:
    """The newest of stream and chunks per key is the table's row: the guarantee's core, with a growing table."""
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text)")
    postgres.execute("INSERT INTO t SELECT i, 'old' FROM generate_series(1, 2000) i")
    table = await vector_table(postgres.dsn, "t", DOC)
    control, log = await control_with(postgres.dsn, table), MemoryLog()
    done = threading.Event()

    def write() -> None:
        n = 2000
        with psycopg.connect(postgres.dsn, autocommit=True) as other:
            while not done.is_set():
                n += 1
                other.execute("UPDATE t SET doc = %s WHERE id = %s", (f"new {n}", n * 7919 % 2000 + 1))
                other.execute("INSERT INTO t VALUES (%s, %s)", (n, f"grown {n}"))

    writer = threading.Thread(target=write)
    async with following(postgres, table) as f, consuming(log, table):
        writer.start()
        try:
            async with running(control, log, f.stream):
                await eventually(lambda: completed(control, table))
        finally:
            done.set()
            await asyncio.to_thread(writer.join)
        commits = {lsn for _, lsn in f.commits}
    for change in await records(log, table):
        assert change.position.ordinal == 0
        text = (change.after or {})["doc"]
        if text.startswith("new"):
            continue
        # a row read as it was before an update must be stamped below that update's commit: it never wins wrongly
        assert change.position.lsn > 0
    assert commits


async def test_empty_table_sweeps_at_a_stamp_of_its_own(
    postgres: PostgresDatabase, eventually: Callable[..., Any]
) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text)")
    table = await vector_table(postgres.dsn, "t", DOC, backfilled=True)
    control, log = await control_with(postgres.dsn, table), MemoryLog()
    await control.tasks.create("rebackfill", table.id, 1, {"sweep": True})
    async with following(postgres, table) as f, consuming(log, table), running(control, log, f.stream):
        await eventually(lambda: completed(control, table, "rebackfill"))
    (sweep,) = await records(log, table)
    assert (sweep.op, sweep.generation) == ("t", 1)
    assert sweep.position > Position(0, 0, 0)


async def test_sweep_drained_the_marker_follows_what_it_must_not_delete(
    postgres: PostgresDatabase, eventually: Callable[..., Any]
) -> None:
    """The marker goes out only when the rows before it are in the store; then rows that were deleted unseen go."""
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text); INSERT INTO t VALUES (1, 'x'), (2, 'y')")
    table = await vector_table(postgres.dsn, "t", DOC, backfilled=True)
    control, log = await control_with(postgres.dsn, table), MemoryLog()
    task = await control.tasks.create("rebackfill", table.id, 1, {"sweep": True})
    name = table.storage_name
    changes, vectors = changes_topic(name), vectors_topic(name)

    async def waits() -> bool:
        return "on their way" in str((await control.tasks.get(task.id)).progress.get("waiting"))

    async def swept() -> bool:
        return any(c.op == "t" for c in await records(log, table))

    async with following(postgres, table) as f, running(control, log, f.stream):
        await eventually(waits)
        assert not await swept()
        assert (await control.tasks.get(task.id)).progress["estimate"] == 2, "no guess any more: all rows are read"
        await log.producer().append(vectors, [Record(b"k", b"v", 0)])  # what the embedder made of the rows
        await log.reset(changes, embedder_group(name), await log.end_offsets(changes))
        await log.wait_for_append(0.2)
        await eventually(waits)
        assert not await swept()
        await log.reset(vectors, sink_group(name), await log.end_offsets(vectors))
        await eventually(lambda: completed(control, table, "rebackfill"))
        found = await records(log, table)
    store = MemoryStore()
    await store.ensure(table, table.active)
    chunk = Chunk(0, "z", "h", np.zeros(256, dtype=np.float32))
    rows = [c for c in found if c.op == "r"]
    (marker,) = [c for c in found if c.op == "t"]
    gone = [VectorRecord("upsert", Position(0, 1, 1), b'{"id":9}', 1, {}, {}, (chunk,))]
    written = [VectorRecord("upsert", c.position, c.key, 1, {}, {}, (chunk,)) for c in rows]
    await store.apply(table, table.active, [*gone, *written, VectorRecord("truncate", marker.position, b"", 1)])
    assert set(await store.versions(table, table.active, [b'{"id":9}', *(c.key for c in rows)])) == {
        c.key for c in rows
    }
    assert marker.position == min(c.position for c in rows)


async def test_sweep_is_asked_for_by_whatever_was_lost() -> None:
    """An open backfill that would not sweep gives way to one that does."""
    table = contract_table("t")
    control = MemoryControl()
    await control.definitions.put_connection(replace(connection("dsn"), id=table.connection_id))
    await control.definitions.put_provider(EmbeddingProvider("prov_1", "p", "static"))
    await control.definitions.put_vector_table(table)
    plain = await control.tasks.create("backfill", table.id, 1, {})
    await control.tasks.update(plain.id, status="running", progress={"next": ["5"]})
    await read_again(control, [table], "the slot was lost")
    (now,) = await control.tasks.open_tasks([table.id])
    assert now.id != plain.id
    assert now.params["sweep"]
    assert not now.progress


async def test_manual_paused_and_in_error(postgres: PostgresDatabase, eventually: Callable[..., Any]) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text); INSERT INTO t VALUES (1, 'x')")
    postgres.execute("CREATE TABLE u (id int PRIMARY KEY, doc text); INSERT INTO u VALUES (1, 'x')")
    manual = await vector_table(postgres.dsn, "t", DOC, table_id="vt_00000001", backfill="manual")
    auto = await vector_table(postgres.dsn, "u", DOC, table_id="vt_00000002")
    postgres.execute("ALTER TABLE u RENAME doc TO gone")
    control, log = await control_with(postgres.dsn, manual, auto), MemoryLog()
    async with (
        following(postgres, manual, auto) as f, consuming(log, manual), consuming(log, auto),
        running(control, log, f.stream),
    ):  # fmt: skip
        error = await eventually(lambda: control.feed.current.vector_tables[auto.id].error)
        assert error["kind"] == "table_changed"
        assert "'doc'" in error["message"]
        assert error["cure"]
        await control.definitions.set_paused(manual.id, True)
        task = await control.tasks.create("backfill", manual.id, 1, {})
        postgres.execute("ALTER TABLE u RENAME gone TO doc")
        await control.states.clear_error(auto.id)
        await eventually(lambda: completed(control, auto))
        assert (await control.tasks.get(task.id)).status != "completed"
        assert await records(log, manual) == []
        await control.definitions.set_paused(manual.id, False)
        await eventually(lambda: completed(control, manual))


async def test_source_down_is_waited_for(postgres: PostgresDatabase, eventually: Callable[..., Any]) -> None:
    from dataclasses import replace

    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text); INSERT INTO t VALUES (1, 'x')")
    table = await vector_table(postgres.dsn, "t", DOC)
    control, log = await control_with(postgres.dsn, table), MemoryLog()
    await control.definitions.put_connection(connection("host=127.0.0.1 port=1 dbname=x user=x"))
    async with following(postgres, table) as f, consuming(log, table), running(control, log, f.stream):

        async def started() -> bool:
            return any(t.status == "running" for t in await control.tasks.open_tasks([table.id]))

        await eventually(started)
        now = control.feed.current.connections[CONNECTION]
        await control.definitions.put_connection(replace(now, dsn=postgres.dsn))
        await eventually(lambda: completed(control, table))
    assert control.feed.current.vector_tables[table.id].error is None


async def test_replay_rule_replay_stamp_rule_replay_above(
    postgres: PostgresDatabase, eventually: Callable[..., Any]
) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text); INSERT INTO t VALUES (1, 'x'), (2, 'y')")
    table = await vector_table(postgres.dsn, "t", DOC, backfilled=True)
    control, log = await control_with(postgres.dsn, table), MemoryLog()

    def letter(key: bytes, position: Position) -> DeadLetter:
        return DeadLetter(table.id, 1, key, "provider", "no", position)

    await control.letters.put([letter(b'{"id":1}', Position(0, 1, 1)), letter(b'{"id":3}', Position(0, 1, 2))])
    await control.letters.put([letter(b"", Position(0, 1, 3)), letter(b'{"id":2}', Position(0, 1, 4))])
    ids = [x.id for x in await control.letters.page(table.id) if x.key != b'{"id":2}']
    await control.tasks.create("replay", table.id, 1, {"letters": ids})
    async with following(postgres, table) as f, running(control, log, f.stream):
        task = await eventually(lambda: completed(control, table, "replay"))
    (read,) = await records(log, table)
    assert (read.op, read.key, read.force, read.after) == ("r", b'{"id":1}', True, {"doc": "x"})
    assert read.position > Position(0, 1, 4)
    left = {x.key for x in await control.letters.page(table.id)}
    assert left == {b"", b'{"id":2}'}
    assert (task.progress["rows"], task.progress["gone"], task.progress["skipped"]) == (1, 1, 1)


async def test_repair_reads_rows_and_deletes_what_is_not_there(
    postgres: PostgresDatabase, eventually: Callable[..., Any]
) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text); INSERT INTO t VALUES (1, 'x')")
    table = await vector_table(postgres.dsn, "t", DOC, backfilled=True)
    control, log = await control_with(postgres.dsn, table), MemoryLog()
    await control.tasks.create("repair", table.id, 1, {"keys": ['{"id":1}', "eyJpZCI6Mn0=", '{"old":1}']})
    async with following(postgres, table) as f, running(control, log, f.stream):
        await eventually(lambda: completed(control, table, "repair"))
    found = {c.key: c for c in await records(log, table)}
    assert {k: (c.op, c.force) for k, c in found.items()} == {
        b'{"id":1}': ("r", True), b'{"id":2}': ("d", False), b'{"old":1}': ("d", False),
    }  # fmt: skip
    assert len({c.position for c in found.values()}) == 1


async def test_known_generation_a_task_of_one_that_the_feed_has_not_brought_yet_waits_for_it(
    postgres: PostgresDatabase, eventually: Callable[..., Any]
) -> None:
    """A PUT opens the generation and its rebackfill at once; the task can be read before the feed has moved."""
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text); INSERT INTO t VALUES (1, 'x')")
    table = await vector_table(postgres.dsn, "t", DOC, backfilled=True)
    control, log = await control_with(postgres.dsn, table), MemoryLog()
    stale = StaleControl(control)
    made = replace(table.active, number=2, state="building", separator=" ")
    _, task = await control.definitions.rebuild(table.id, made)
    seen = 0
    read = control.tasks.open_tasks

    async def counted(target_ids: Sequence[str]) -> list[Task]:
        nonlocal seen
        seen += 1
        return await read(target_ids)

    control.tasks.open_tasks = counted  # type: ignore[method-assign]

    async def looked_thrice() -> bool:
        return seen >= 3

    async def completed_now() -> bool:
        return (await control.tasks.get(task.id)).status == "completed"

    async with following(postgres, table) as f, consuming(log, table), running(stale, log, f.stream):  # type: ignore[arg-type]
        await eventually(looked_thrice)
        assert (await control.tasks.get(task.id)).status == "pending"
        f.stream.route(table.id, frozenset({1, 2}))
        stale.feed.bring()
        await eventually(completed_now)


@pytest.mark.parametrize("params", [{}, {"sweep": True}])
async def test_what_makes_up_for_lost_changes_is_never_given_up(
    postgres: PostgresDatabase,
    eventually: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    params: dict[str, Any],
) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text); INSERT INTO t VALUES (1, 'a')")
    table = await vector_table(postgres.dsn, "t", DOC)
    control, log = await control_with(postgres.dsn, table), MemoryLog()
    task = await control.tasks.create("rebackfill" if params else "backfill", table.id, 1, params)
    run, failures = cdc.jobs.Backfill.run, 0

    async def fails_four_times(self: Any) -> None:
        nonlocal failures
        failures += 1
        if failures <= 4:
            raise RuntimeError("not foreseen")
        await run(self)

    monkeypatch.setattr(cdc.jobs.Backfill, "run", fails_four_times)

    async def ended() -> Task | None:
        found = await control.tasks.get(task.id)
        return None if found.status in OPEN else found

    async with following(postgres, table) as f, consuming(log, table), running(control, log, f.stream):
        found = await eventually(ended, 30)
    assert (found.status, found.attempts) == ("completed" if params else "failed", 3)
    assert found.last_error == "RuntimeError: not foreseen"


async def test_a_standby_without_a_live_stream_touches_nothing(postgres: PostgresDatabase) -> None:
    postgres.execute("CREATE TABLE t (id int PRIMARY KEY, doc text)")
    table = await vector_table(postgres.dsn, "t", DOC)
    control, log = await control_with(postgres.dsn, table), MemoryLog()
    stop = asyncio.Event()
    jobs = asyncio.create_task(Jobs(SETTINGS, control, log, Stream(), CONNECTION).run(stop))
    await asyncio.sleep(0)
    stop.set()
    await asyncio.wait_for(jobs, 5)
    assert await control.tasks.recent(table.id) == []
    assert changes_topic(table.storage_name) not in [t.topic for t in await log.topics()]
