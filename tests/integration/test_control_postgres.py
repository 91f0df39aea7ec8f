"""The control database among several processes, outages, upgrades and wrong keys."""

import asyncio
import logging
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from tests.contract.test_control import GENERATION, LOCAL, PRODUCTS, SHOP
from tests.plugins.eventually import eventually
from walvec.contracts.errors import ConfigError, Conflict, ControlUnavailable, NotFound
from walvec.definitions import postgres as control_postgres
from walvec.definitions import removals, rotation, schema
from walvec.definitions.model import Snapshot
from walvec.definitions.pool import Pool
from walvec.definitions.postgres import ControlDatabase, open_control
from walvec.definitions.schema import migrations
from walvec.definitions.secrets import Secrets

KEY = "a secret key"


async def opened(postgres: Any, *, environment: str = "prod", key: str = KEY) -> ControlDatabase:
    return await open_control(postgres.dsn, environment=environment, secret_key=key)


async def test_processes_that_start_at_once_make_one_schema(postgres: Any) -> None:
    controls = await asyncio.gather(*(opened(postgres) for _ in range(6)))
    for control in controls:
        await control.close()
    assert postgres.execute("SELECT number FROM walvec_control.migrations ORDER BY 1") == [
        (m.number,) for m in migrations()
    ]


async def test_a_newer_schema_is_refused_with_the_cure(postgres: Any) -> None:
    await (await opened(postgres)).close()
    postgres.execute("INSERT INTO walvec_control.migrations (number, name) VALUES (999, 'later')")
    with pytest.raises(ConfigError, match=r"version 999.*newer walvec"):
        await opened(postgres)
    assert postgres.execute("SELECT max(number) FROM walvec_control.migrations") == [(999,)]


async def test_what_one_process_defines_another_feels_within_a_second(postgres: Any) -> None:
    one, other = await opened(postgres), await opened(postgres)
    await one.definitions.put_connection(SHOP)
    await one.definitions.put_provider(LOCAL)
    await other.feed.changed(2)
    since = other.feed.current.version
    async with asyncio.timeout(1):
        await one.definitions.put_vector_table(PRODUCTS)
        felt = await other.feed.changed(since)
    assert felt.vector_tables[PRODUCTS.id].active == GENERATION
    await one.close()
    await other.close()


async def test_environments_do_not_see_each_other(postgres: Any) -> None:
    prod, test = await opened(postgres), await opened(postgres, environment="test")
    await prod.definitions.put_connection(SHOP)
    await test.definitions.put_connection(replace(SHOP, id="conn_test", on_slot_loss="halt"))  # the name is free there
    everything = await prod.definitions.snapshot()
    organization = everything.default_organization
    held = {e.name: set(everything.within(e.id).connections) for e in everything.environments.values()}
    assert held == {"prod": {SHOP.id}, "test": {"conn_test"}}
    await test.definitions.put_provider(LOCAL)
    with pytest.raises(NotFound):  # a vector table uses what its own environment holds
        await test.definitions.put_vector_table(PRODUCTS)
    found = everything.environment(organization.id, "test")
    assert found is not None
    assert everything.environment(organization.id, found.id) == found
    with pytest.raises(Conflict):
        await prod.accounts.delete_environment(found.id)
    await test.definitions.delete_connection("conn_test")
    await prod.accounts.delete_environment(found.id)
    left = await prod.definitions.snapshot()
    assert (set(left.connections), set(left.providers), len(left.environments)) == ({SHOP.id}, set(), 1)
    await prod.close()
    await test.close()


async def test_a_snapshot_is_read_again_only_when_something_moved(postgres: Any) -> None:
    one, other = await opened(postgres), await opened(postgres)
    first = await one.definitions.snapshot()
    assert await one.definitions.snapshot() is first
    await other.definitions.put_connection(SHOP)
    assert SHOP.id in (await one.definitions.snapshot()).connections  # at once, whatever the feed knows
    with psycopg.connect(postgres.dsn, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert SHOP.id in (await one.definitions.snapshot()).connections
    await one.close()
    await other.close()


async def test_sessions_that_are_ended_come_back(postgres: Any, eventually: Any) -> None:
    one, other = await opened(postgres), await opened(postgres)
    await one.definitions.put_connection(SHOP)
    await other.feed.changed(1)
    since = other.feed.current.version
    with psycopg.connect(postgres.dsn, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert other.feed.current.connections[SHOP.id].name == "shop"

    async def written() -> bool:
        try:
            await one.definitions.put_provider(LOCAL)
        except ControlUnavailable:
            return False
        return True

    await eventually(written)
    async with asyncio.timeout(10):
        felt = await other.feed.changed(since)
    assert LOCAL.id in felt.providers
    await one.close()
    await other.close()


async def test_an_outage_is_told_as_such_and_the_snapshot_stays(own_postgres: Any, eventually: Any) -> None:
    control = await opened(own_postgres)
    await control.definitions.put_connection(SHOP)
    await control.feed.changed(1)
    own_postgres.server.stop()
    with pytest.raises(ControlUnavailable):
        await control.tasks.recent()
    assert SHOP.id in control.feed.current.connections
    with pytest.raises(ControlUnavailable):
        await opened(own_postgres)
    since = control.feed.current.version
    own_postgres.server.start()

    async def written() -> bool:
        try:
            await control.definitions.put_provider(LOCAL)
        except ControlUnavailable:
            return False
        return True

    await eventually(written, 60)
    async with asyncio.timeout(20):
        assert LOCAL.id in (await control.feed.changed(since)).providers
    await control.close()


async def test_a_wrong_secret_key_is_told_at_start(postgres: Any) -> None:
    await (await opened(postgres)).close()
    with pytest.raises(ConfigError, match="WALVEC_SECRET_KEY") as refused:
        await opened(postgres, key="another key")
    assert KEY not in str(refused.value)


async def test_secrets_are_nowhere_in_clear(postgres: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    control = await opened(postgres)
    await control.definitions.put_connection(SHOP)
    await control.definitions.put_provider(LOCAL)
    snapshot = await control.definitions.snapshot()
    stored = postgres.execute(
        "SELECT to_jsonb(c)::text, encode(credentials, 'escape') FROM walvec_control.connections c"
        " UNION ALL SELECT to_jsonb(p)::text, encode(api_key, 'escape') FROM walvec_control.providers p"
    )
    assert len(stored) == 2
    for shown in (repr(snapshot), repr(stored), caplog.text, repr(control.definitions.__dict__)):
        assert "hidden" not in shown
    assert snapshot.connections[SHOP.id].dsn == SHOP.dsn
    await control.close()


async def test_an_address_that_leads_nowhere(postgres: Any) -> None:
    with pytest.raises(ControlUnavailable):
        await open_control("postgresql://u:hidden@127.0.0.1:1/none", environment="prod", secret_key=KEY)
    with pytest.raises(ConfigError):
        await open_control("no address at all", environment="prod", secret_key=KEY)
    with pytest.raises(ConfigError, match="empty"):
        await open_control(postgres.dsn, environment="prod", secret_key="")


async def test_several_processes_of_a_role_tell_of_one_table(postgres: Any) -> None:
    one, other = await opened(postgres), await opened(postgres)
    await one.reports.put("embedder", "vt_1", {"texts_sent": 2, "commit_ms": 1})
    await other.reports.put("embedder", "vt_1", {"texts_sent": 3, "commit_ms": 2})
    await one.reports.put("embedder", "vt_1", {"texts_sent": 5, "commit_ms": 3})
    ((role, subject, report, _),) = await other.reports.all()
    assert (role, subject, report) == ("embedder", "vt_1", {"texts_sent": 8, "commit_ms": 3})
    silent = "UPDATE walvec_control.reports SET updated_at = now() - interval '61 s' WHERE report->>'commit_ms' = '2'"
    postgres.execute(silent)
    await one.reports.put("embedder", "vt_1", {"texts_sent": 6})
    assert [report for *_, report, _ in await other.reports.all()] == [{"texts_sent": 6}]
    assert postgres.execute("SELECT count(*) FROM walvec_control.reports") == [(1,)]
    await one.close()
    await other.close()


async def test_removals_in_hand_leave_sessions_to_others(postgres: Any) -> None:
    """Deletions at once, of a source that does not answer: each holds its removal's row for long."""
    control = await opened(postgres)
    await control.definitions.put_connection(SHOP)
    await control.definitions.put_provider(LOCAL)
    await control.definitions.put_vector_table(PRODUCTS)
    table = (await control.definitions.snapshot()).vector_tables[PRODUCTS.id]
    tables = [replace(table, id=f"vt_{n}") for n in range(4)]
    ids = [i for one in tables for i in await control.removals.put(one, ["storage", "topics", "publication"])]
    answered, held = asyncio.Event(), 0

    async def hold(removal_id: str) -> None:
        nonlocal held
        async with control.removals.claim(removal_id) as claim:
            assert claim is not None
            held += 1
            await answered.wait()
            await claim.done()

    holding = [asyncio.create_task(hold(one)) for one in ids]
    try:
        await eventually(lambda: held >= 3)
        for _ in range(5):
            await control.tasks.recent()
            await asyncio.gather(*(control.removals.open() for _ in range(3)))
    finally:
        answered.set()
        await asyncio.gather(*holding)
    assert held == len(ids)
    assert await control.removals.open() == []
    await control.close()


@pytest.mark.parametrize("busy", [False, True])
async def test_a_version_is_asked_again_when_its_session_ends(postgres: Any, busy: bool) -> None:
    """However the session ends, between two questions or in the middle of one, nobody waits for ever."""
    control = await opened(postgres)
    ended = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    for _ in range(10):
        asking = [asyncio.create_task(control.definitions.snapshot()) for _ in range(5 if busy else 0)]
        await asyncio.to_thread(postgres.execute, ended)
        async with asyncio.timeout(10):
            for found in await asyncio.gather(*asking, return_exceptions=True):
                assert isinstance(found, Snapshot | ControlUnavailable), found

        async def answers() -> bool:
            try:
                async with asyncio.timeout(10):
                    return (await control.definitions.snapshot()).version > 0
            except ControlUnavailable:
                return False  # the new session was ended too

        await eventually(answers)
    await control.close()


@pytest.mark.parametrize("what", ["a new table", "a rotation", "a start"])
async def test_who_hangs_beside_the_pool_is_not_waited_for_either(
    postgres: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    control = await opened(postgres)
    await control.definitions.put_connection(SHOP)
    await control.definitions.put_provider(LOCAL)
    hung, name = {
        "a new table": (removals, "enter"), "a rotation": (rotation, "_again"), "a start": (schema, "_entered")
    }[what]  # fmt: skip
    for module in (control_postgres, rotation, schema):
        monkeypatch.setattr(module, "HUNG_SECONDS", 0.3)
    real = getattr(hung, name)

    async def hang(conn: Any, *given: Any, **more: Any) -> Any:
        monkeypatch.setattr(hung, name, real)
        # a first one that waits, however long the other one hangs, would not come back
        async with asyncio.timeout(30):
            if what == "a start":
                await (await opened(postgres)).close()
            else:
                await control.definitions.put_connection(replace(SHOP, on_slot_loss="halt"))
        return await real(conn, *given, **more)

    monkeypatch.setattr(hung, name, hang)

    async def act() -> None:
        if what == "a new table":
            async with control.definitions.making(PRODUCTS):
                pass
        elif what == "a rotation":
            await rotation.rotate(postgres.dsn, Secrets(KEY), Secrets("another"))
        else:
            await opened(postgres)

    with pytest.raises(ControlUnavailable):
        await act()
    await control.close()


async def test_who_hangs_with_the_lock_that_all_writers_take_is_not_waited_for(postgres: Any) -> None:
    control = await opened(postgres)
    before = await control.definitions.version()
    hung, other = Pool(postgres.dsn, "", hung_seconds=0.3), Pool(postgres.dsn, "")
    await hung.open()
    await other.open()

    async def hang() -> None:
        async with hung.change() as conn:
            async with asyncio.timeout(30), other.change():
                pass
            await conn.execute("SELECT 1")

    with pytest.raises(ControlUnavailable):
        await hang()
    assert await control.definitions.version() == before + 1, "what was not committed does not count"
    async with hung.transaction() as conn:  # the session that was lost is replaced
        await conn.execute("SELECT 1")
    await hung.close()
    await other.close()
    await control.close()
