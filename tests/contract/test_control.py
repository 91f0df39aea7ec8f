"""The control database's contract, held to the memory fake and to Postgres."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from walvec.contracts.errors import Conflict, NotFound, PreconditionFailed
from walvec.contracts.letters import DeadLetter
from walvec.contracts.position import Position
from walvec.definitions import revisions
from walvec.definitions.memory import MemoryControl
from walvec.definitions.model import (
    BridgeProgress,
    Column,
    Connection,
    EmbeddingProvider,
    Generation,
    SourceColumn,
    SourceProgress,
    TopicSource,
    VectorTable,
)
from walvec.definitions.ports import Control
from walvec.definitions.postgres import open_control
from walvec.definitions.tenancy import digest, new_environment, new_key, new_organization

ID = SourceColumn("id", "bigint", 20, "bigint", "int", nullable=False)
NAME = SourceColumn("name", "character varying(40)", 1043, "character varying", "text")
GENERATION = Generation(
    1,
    "active",
    "minilm-static-256",
    256,
    (Column("name", "embedding", 1, "Name: "), Column("name", "metadata", filter_type="keyword")),
    (ID,),
    (ID, NAME),
    index={"kind": "hnsw", "m": 16},
)
SHOP = Connection("conn_a1b2c3d4", "shop", "postgresql", "managed", "postgresql://u:hidden@h/d")
LOCAL = EmbeddingProvider("emb_1", "local", "openai", api_key="sk-hidden", limits={"items": 5})
PRODUCTS = VectorTable(
    "vt_0123456789",
    "products",
    SHOP.id,
    LOCAL.id,
    "openai",
    "public",
    "products",
    "pgvector",
    "managed",
    (GENERATION,),
    raw_primary_key=["id"],
)


@pytest.fixture(params=["memory", "postgres"])
async def control(request: pytest.FixtureRequest) -> AsyncIterator[Control]:
    opened: Control
    if request.param == "memory":
        opened = MemoryControl()
    else:
        database: Any = request.getfixturevalue("postgres")
        opened = await open_control(database.dsn, environment="prod", secret_key="a passphrase")
    yield opened
    await opened.close()


@pytest.fixture
async def defined(control: Control) -> Control:
    await control.definitions.put_connection(SHOP)
    await control.definitions.put_provider(LOCAL)
    await control.definitions.put_vector_table(PRODUCTS)
    return control


async def table(control: Control) -> VectorTable:
    return (await control.definitions.snapshot()).vector_tables[PRODUCTS.id]


def letter(key: bytes, lsn: int, **other: Any) -> DeadLetter:
    return DeadLetter(PRODUCTS.id, 1, key, "provider", f"no at {lsn}", Position(0, lsn, 1), **other)


async def test_definitions_come_back_as_they_were_put(defined: Control) -> None:
    found = await defined.definitions.snapshot()
    connection, provider = found.connections[SHOP.id], found.providers[LOCAL.id]
    stored = found.vector_tables[PRODUCTS.id]
    (home,) = found.environments
    assert connection == replace(SHOP, created_at=connection.created_at, environment_id=home)
    assert provider == replace(LOCAL, created_at=provider.created_at, environment_id=home)
    times = {"created_at": stored.created_at, "updated_at": stored.updated_at}
    assert stored == replace(PRODUCTS, **times, environment_id=home)  # type: ignore[arg-type]
    assert all(x.created_at.endswith("Z") for x in (connection, provider, stored))
    assert found.tables_of(SHOP.id) == [stored]


async def test_every_change_moves_the_feed(defined: Control) -> None:
    version = (await defined.definitions.snapshot()).version
    for write in (
        lambda: defined.definitions.set_paused(PRODUCTS.id, True),
        lambda: defined.states.set_error(PRODUCTS.id, "table_changed", "column gone", "put it back"),
        lambda: defined.states.set_blocked(PRODUCTS.id, "no credit"),
        lambda: defined.states.set_backfilled(PRODUCTS.id, 1),
        lambda: defined.states.set_ready(PRODUCTS.id, 1),
        lambda: defined.definitions.set_connection_status(SHOP.id, "connected"),
        lambda: defined.definitions.put_connection(replace(SHOP, on_slot_loss="halt")),
        lambda: defined.definitions.put_provider(replace(LOCAL, base_url="http://127.0.0.1:1/v1")),
        lambda: defined.tasks.create("backfill", PRODUCTS.id, 1, {}),
    ):
        await write()
        async with asyncio.timeout(1):
            moved = await defined.feed.changed(version)
        assert moved.version == version + 1
        version = moved.version
    assert defined.feed.current.vector_tables[PRODUCTS.id].paused
    assert defined.feed.current.vector_tables[PRODUCTS.id].active.ready
    assert defined.feed.current.connections[SHOP.id].on_slot_loss == "halt"
    (task,) = await defined.tasks.open_tasks([PRODUCTS.id])
    await defined.tasks.update(task.id, status="completed")
    async with asyncio.timeout(1):
        await defined.feed.changed(version)


async def test_frequent_writes_and_repeated_ones_leave_the_feed_alone(defined: Control) -> None:
    task = await defined.tasks.create("backfill", PRODUCTS.id, 1, {})
    await defined.states.set_blocked(PRODUCTS.id, "no credit")
    await defined.states.set_error(PRODUCTS.id, "k", "m", "c")
    stored = await table(defined)
    version = (await defined.definitions.snapshot()).version
    await defined.states.set_blocked(PRODUCTS.id, "no credit")
    await defined.states.set_error(PRODUCTS.id, "k", "m", "c")
    await defined.definitions.put_vector_table(stored)
    await defined.definitions.put_connection(SHOP)
    await defined.definitions.put_provider(LOCAL)
    await defined.tasks.update(task.id, progress={"next": "7"})
    await defined.states.count_dead(PRODUCTS.id, 3)
    await defined.letters.put([letter(b'{"id":1}', 5)])
    await defined.progress.put(SHOP.id, SourceProgress(lsn=9))
    await defined.reports.put("cdc", SHOP.id, {"rows": 1})
    assert (await defined.definitions.snapshot()).version == version


async def test_a_definition_that_is_put_keeps_what_roles_wrote(defined: Control) -> None:
    stale = await table(defined)
    await defined.states.set_ready(PRODUCTS.id, 1)
    await defined.states.set_backfilled(PRODUCTS.id, 1)
    await defined.definitions.set_paused(PRODUCTS.id, True)
    assert await defined.states.count_dead(PRODUCTS.id, 4) == 4
    await defined.definitions.put_vector_table(replace(stale, pending_rebackfill=True, keep_previous=5))
    now = await table(defined)
    assert (now.active.ready, now.backfilled, now.paused, now.dead_in_row) == (True, True, True, 4)
    assert (now.pending_rebackfill, now.keep_previous) == (False, 5)


async def test_errors_and_dead_letters_in_a_row(defined: Control) -> None:
    assert await defined.states.count_dead(PRODUCTS.id, 60) == 60
    assert await defined.states.count_dead(PRODUCTS.id, 40) == 100
    await defined.states.set_error(PRODUCTS.id, "dead_letters", "100 in a row", "resume")
    assert (await table(defined)).error == {"kind": "dead_letters", "message": "100 in a row", "cure": "resume"}
    await defined.states.clear_error(PRODUCTS.id)
    assert (await table(defined)).error is None
    assert await defined.states.count_dead(PRODUCTS.id, 1) == 1
    assert await defined.states.count_dead(PRODUCTS.id, 0) == 0


async def test_when_something_went_wrong_is_remembered(defined: Control) -> None:
    async def failed_at() -> str:
        found = (await table(defined)).failed_at
        assert found is not None
        return found

    states = defined.states
    assert (await table(defined)).failed_at is None
    await states.set_blocked(PRODUCTS.id, "no credit")
    first = await failed_at()
    await states.set_blocked(PRODUCTS.id, "no credit")
    await defined.definitions.set_paused(PRODUCTS.id, True)
    await defined.definitions.put_vector_table(replace(PRODUCTS, keep_previous=5))
    assert await failed_at() == first
    await states.set_error(PRODUCTS.id, "slot_lost", "gone", "resume")
    second = await failed_at()
    assert second > first
    await states.clear_error(PRODUCTS.id)
    await states.set_blocked(PRODUCTS.id, None)
    await defined.definitions.rebuild(PRODUCTS.id, replace(GENERATION, number=2, embedding_model="other"))
    assert await states.set_stalled(PRODUCTS.id, 2, "provider_stop", "no such model")
    assert await failed_at() > second


async def test_source_columns_are_replaced_and_nothing_else(defined: Control) -> None:
    await defined.states.set_ready(PRODUCTS.id, 1)
    wider = replace(NAME, type="text", type_oid=25, base_type="text")
    other = replace(GENERATION, source=(ID, wider), embedding_model="not taken", ready=False)
    await defined.states.update_source_columns(PRODUCTS.id, other)
    assert (await table(defined)).active == replace(GENERATION, source=(ID, wider), ready=True)


async def test_a_change_does_not_bring_a_deleted_table_back(defined: Control) -> None:
    """Its storage, topics and slot are being removed, and it would be taken for filled."""
    await defined.states.set_backfilled(PRODUCTS.id, 1)
    seen = await table(defined)
    await defined.definitions.delete_vector_table(PRODUCTS.id)
    with pytest.raises(NotFound):
        await defined.definitions.put_vector_table(replace(seen, keep_previous=5), etag=revisions.etag(seen))
    assert (await defined.definitions.snapshot()).vector_tables == {}
    assert {r.what for r in await defined.removals.open()} == {"storage", "topics", "slot"}


async def test_columns_are_recorded_only_for_the_definition_that_they_were_read_for(defined: Control) -> None:
    """Who read the source for a former definition must not leave a column without its type: no role could go on."""
    other = replace(GENERATION, columns=(Column("other", "embedding"),), source=(ID, replace(NAME, name="other")))
    with pytest.raises(PreconditionFailed):
        await defined.states.update_source_columns(PRODUCTS.id, other)
    assert (await table(defined)).active.source == GENERATION.source


async def test_a_definition_that_is_put_leaves_the_recorded_columns(defined: Control) -> None:
    seen = await table(defined)
    wider = replace(GENERATION, source=(ID, replace(NAME, type="text", type_oid=25, base_type="text")))
    await defined.states.update_source_columns(PRODUCTS.id, wider)
    await defined.definitions.put_vector_table(replace(seen, keep_previous=5), etag=revisions.etag(seen))
    stored = await table(defined)
    assert (stored.keep_previous, stored.active.source) == (5, wider.source)


async def test_names_are_unique_and_references_hold(defined: Control) -> None:
    put = defined.definitions
    with pytest.raises(Conflict):
        await put.put_connection(replace(SHOP, id="conn_other"))
    with pytest.raises(Conflict):
        await put.put_provider(replace(LOCAL, id="emb_other"))
    with pytest.raises(Conflict):
        await put.put_vector_table(replace(PRODUCTS, id="vt_other"))
    with pytest.raises(NotFound):
        await put.put_vector_table(replace(PRODUCTS, id="vt_other", name="o", connection_id="conn_none"))
    with pytest.raises(NotFound):
        await put.put_vector_table(replace(PRODUCTS, id="vt_other", name="o", embedding_provider_id="emb_none"))
    with pytest.raises(Conflict):
        await put.delete_connection(SHOP.id)
    with pytest.raises(Conflict):
        await put.delete_provider(LOCAL.id)
    for missing in (
        put.set_paused("vt_none", True),
        put.delete_vector_table("vt_none"),
        put.delete_connection("conn_none"),
        put.delete_provider("emb_none"),
        put.set_connection_status("conn_none", "connected"),
        defined.states.set_blocked("vt_none", "x"),
        defined.states.count_dead("vt_none", 1),
        defined.tasks.create("backfill", "vt_none", 1, {}),
        defined.tasks.get("task_none"),
        defined.tasks.update("task_none", status="failed"),
        defined.letters.put([replace(letter(b"k", 1), vector_table_id="vt_none")]),
        defined.progress.put("conn_none", SourceProgress()),
        defined.progress.put_published("conn_none", {}),
    ):
        with pytest.raises(NotFound):
            await missing


async def test_a_deleted_table_takes_its_own_with_it(defined: Control) -> None:
    task = await defined.tasks.create("backfill", PRODUCTS.id, 1, {})
    await defined.letters.put([letter(b"k", 1)])
    await defined.reports.put("sink", PRODUCTS.id, {"n": 1})
    await defined.definitions.delete_vector_table(PRODUCTS.id)
    with pytest.raises(NotFound):
        await defined.tasks.get(task.id)
    assert await defined.letters.count(PRODUCTS.id) == 0
    assert await defined.reports.all() == []
    await defined.definitions.delete_connection(SHOP.id)
    await defined.definitions.delete_provider(LOCAL.id)
    await defined.definitions.put_connection(replace(SHOP, id="conn_again"))


async def test_one_open_backfill_per_table(defined: Control) -> None:
    task = await defined.tasks.create("backfill", PRODUCTS.id, 1, {"sweep": True})
    assert (task.status, task.params, task.progress) == ("pending", {"sweep": True}, {})
    for kind in ("backfill", "rebackfill"):
        with pytest.raises(Conflict):
            await defined.tasks.create(kind, PRODUCTS.id, 1, {})  # type: ignore[arg-type]
    replay = await defined.tasks.create("replay", PRODUCTS.id, 1, {"ids": [1]})
    assert [t.id for t in await defined.tasks.open_tasks([PRODUCTS.id])] == [task.id, replay.id]
    await defined.tasks.update(task.id, status="running", progress={"next": ["7", "b"]}, attempts=2, last_error="slow")
    running = await defined.tasks.get(task.id)
    assert (running.status, running.progress, running.attempts) == ("running", {"next": ["7", "b"]}, 2)
    assert await defined.tasks.update(task.id, status="cancelled")
    assert not await defined.tasks.update(task.id, status="completed", progress={})
    ended = await defined.tasks.get(task.id)
    assert (ended.status, ended.progress, ended.last_error) == ("cancelled", {"next": ["7", "b"]}, "slow")
    again = await defined.tasks.create("rebackfill", PRODUCTS.id, 1, {})
    assert [t.id for t in await defined.tasks.recent(PRODUCTS.id, 2)] == [again.id, replay.id]
    assert len(await defined.tasks.recent()) == 3
    assert await defined.tasks.open_tasks([]) == []


async def test_pages_of_tasks_stay_in_place_while_tasks_are_added(defined: Control) -> None:
    environment = (await table(defined)).environment_id
    made = [await defined.tasks.create("replay", PRODUCTS.id, 1, {"n": n}) for n in range(5)]
    await defined.tasks.update(made[2].id, status="completed")

    async def ids(**more: Any) -> list[str]:
        return [t.id for t in await defined.tasks.page(environment, **{"limit": 10, **more})]

    newest_first = [t.id for t in sorted(made, key=lambda t: (t.created_at, t.id), reverse=True)]
    assert await ids() == newest_first
    assert await ids(limit=2) == newest_first[:2]
    last = next(t for t in made if t.id == newest_first[1])
    behind = (last.created_at, last.id)
    await defined.tasks.create("backfill", PRODUCTS.id, 1, {})
    assert await ids(before=behind) == newest_first[2:]
    assert await ids(before=behind, limit=1) == newest_first[2:3]
    assert await ids(status="completed") == [made[2].id]
    assert await ids(status="completed", task_type="backfill") == []
    assert len(await ids(task_type="backfill", target_id=PRODUCTS.id)) == 1
    assert await ids(target_id="vt_other") == []
    assert [t.id for t in await defined.tasks.page("env_other", limit=10)] == []


async def test_two_writers_make_one_backfill(defined: Control) -> None:
    made = await asyncio.gather(
        *(defined.tasks.create("backfill", PRODUCTS.id, 1, {}) for _ in range(5)), return_exceptions=True
    )
    assert sorted(type(m).__name__ for m in made) == ["Conflict"] * 4 + ["Task"]


async def test_letters_keep_the_newest_per_key_and_add_attempts(defined: Control) -> None:
    long_key = b'{"id":"' + b"x" * 20_000 + b'"}'
    await defined.letters.put([letter(b"a", 5), letter(b"a", 7, attempts=2), letter(long_key, 6), letter(b"", 6)])
    await defined.letters.put([letter(b"a", 6, payload=b"older")])
    await defined.letters.put([replace(letter(b"a", 7), generation=2, reason="nul \x00 and \ud800")])
    page = await defined.letters.page(PRODUCTS.id)
    first = next(v for v in page if v.key == b"a" and v.generation == 1)
    assert (first.position.lsn, first.attempts, first.reason, first.payload) == (7, 4, "no at 7", b"")
    assert first.created_ms > 0
    assert await defined.letters.count(PRODUCTS.id) == 4
    assert [v.id for v in page] == sorted(v.id for v in page)
    assert await defined.letters.page(PRODUCTS.id, limit=1, after_id=page[1].id) == [page[2]]
    assert await defined.letters.get(PRODUCTS.id, [first.id, 10**12]) == [first]
    assert await defined.letters.get("vt_other", [first.id]) == []
    assert await defined.letters.keys(PRODUCTS.id, 1) == {b"a", long_key, b""}
    assert await defined.letters.remove("vt_other", [first.id]) == 0
    assert await defined.letters.remove(PRODUCTS.id, [first.id]) == 1
    await defined.letters.put([])


async def test_settle_is_strict(defined: Control) -> None:
    await defined.letters.put([letter(b"a", 5), letter(b"b", 5), letter(b"c", 5)])
    settled = {b"a": Position(0, 5, 1), b"b": Position(0, 5, 2), b"c": Position(1, 0, 0), b"d": Position(9, 9, 9)}
    assert await defined.letters.settle(PRODUCTS.id, 2, settled) == 0
    assert await defined.letters.settle(PRODUCTS.id, 1, settled) == 2
    assert await defined.letters.keys(PRODUCTS.id, 1) == {b"a"}
    assert await defined.letters.settle(PRODUCTS.id, 1, {}) == 0


async def test_progress_and_reports(defined: Control) -> None:
    assert await defined.progress.get(SHOP.id) == SourceProgress()
    now = SourceProgress(2, 2**62, "7301234567890123456", 3, "log-1", 17)
    await defined.progress.put(SHOP.id, replace(now, lsn=1))
    await defined.progress.put(SHOP.id, now)
    assert await defined.progress.get(SHOP.id) == now
    assert await defined.progress.published(SHOP.id) is None
    for marks in ({PRODUCTS.id: "1.2.3", "vt_gone": ""}, {PRODUCTS.id: "1.2.4"}):
        await defined.progress.put_published(SHOP.id, marks)
        assert await defined.progress.published(SHOP.id) == marks
    assert await defined.progress.get(SHOP.id) == now
    await defined.reports.put("cdc", SHOP.id, {"rows": 1})
    await defined.reports.put("cdc", SHOP.id, {"rows": 2, "last": "nul \x00"})
    ((role, subject, report, age),) = await defined.reports.all()
    assert (role, subject, report) == ("cdc", SHOP.id, {"rows": 2, "last": "nul \x00"})
    assert 0 <= age < 60


async def test_writers_at_once_lose_nothing(defined: Control) -> None:
    await asyncio.gather(
        *(defined.states.count_dead(PRODUCTS.id, 1) for _ in range(10)),
        defined.states.set_ready(PRODUCTS.id, 1),
        defined.states.set_blocked(PRODUCTS.id, "no credit"),
        defined.definitions.set_paused(PRODUCTS.id, True),
        defined.states.set_backfilled(PRODUCTS.id, 1),
        *(defined.letters.put([letter(b"%d" % n, 5) for n in range(20)]) for _ in range(5)),
    )
    now = await table(defined)
    assert (now.dead_in_row, now.active.ready, now.blocked, now.paused, now.backfilled) == (
        10,
        True,
        "no credit",
        True,
        True,
    )
    assert {v.attempts for v in await defined.letters.page(PRODUCTS.id)} == {5}


async def test_a_task_replaces_another_in_one_step(defined: Control) -> None:
    former = await defined.tasks.create("backfill", PRODUCTS.id, 1, {})
    after = await defined.tasks.create(
        "rebackfill", PRODUCTS.id, 1, {"sweep": True}, instead_of=[former.id], reason="read anew"
    )
    assert [t.id for t in await defined.tasks.open_tasks([PRODUCTS.id])] == [after.id]
    ended = await defined.tasks.get(former.id)
    assert (ended.status, ended.last_error) == ("cancelled", "read anew")


async def test_topics_are_remembered_by_table_and_forgotten_with_it(defined: Control) -> None:
    assert await defined.progress.topics([PRODUCTS.id]) == {}
    await defined.progress.put_topics(PRODUCTS.id, {"a.changes": "1", "a.vectors": "2"})
    await defined.progress.put_topics(PRODUCTS.id, {"a.vectors": "3"})
    assert await defined.progress.topics([PRODUCTS.id]) == {"a.changes": "1", "a.vectors": "3"}
    assert await defined.progress.topics(["vt_none"]) == {}
    with pytest.raises(NotFound):
        await defined.progress.put_topics("vt_none", {"b.changes": "1"})
    await defined.definitions.delete_vector_table(PRODUCTS.id)
    assert await defined.progress.topics([PRODUCTS.id]) == {}


async def test_a_bridge_only_adds_to_what_it_has_read(defined: Control) -> None:
    """Several processes share a topic: a late writer takes nothing back."""
    progress = defined.progress
    assert await progress.bridge(PRODUCTS.id) is None
    await progress.put_bridge(PRODUCTS.id, starts={0: 7, 1: 0}, sequence=50)
    await progress.put_bridge(PRODUCTS.id, sequence=40, snapshots={1: [(9, 60)]})
    await progress.put_bridge(PRODUCTS.id, snapshots={1: [(3, 30), (9, 60)], 0: [(8, 60)]})
    found = await progress.bridge(PRODUCTS.id)
    assert found == BridgeProgress({0: 7, 1: 0}, 50, {0: ((8, 60),), 1: ((3, 30), (9, 60))})
    assert found.snapshot_lsns == (30, 60)
    await progress.put_bridge(PRODUCTS.id, starts={0: 0})  # the topic is another one
    assert await progress.bridge(PRODUCTS.id) == BridgeProgress({0: 0}, 50, {})
    with pytest.raises(NotFound):
        await progress.put_bridge("vt_none", sequence=1)
    await defined.definitions.delete_vector_table(PRODUCTS.id)
    assert await progress.bridge(PRODUCTS.id) is None


async def test_a_source_topic_comes_back_as_it_was_put(defined: Control) -> None:
    source = TopicSource("shop.public.products", slot="debezium")
    await defined.definitions.put_vector_table(replace(PRODUCTS, source=source))
    assert (await table(defined)).source == source


async def test_organizations_environments_and_keys(control: Control) -> None:
    accounts, read = control.accounts, control.definitions.snapshot
    home = (await read()).default_organization
    acme = new_organization("acme")
    token, key = new_key(acme, "first", "full")
    first = new_environment(acme, "prod")
    await accounts.create_organization(acme, first, key)
    now = await read()
    assert now.organizations[acme.id].status == "active"
    assert now.environment(acme.id, "prod") == replace(first, created_at=now.environments[first.id].created_at)
    assert now.environment(home.id, first.id) is None
    assert now.api_keys[key.id].digest == digest(token)
    assert now.keys_needed
    with pytest.raises(Conflict):
        await accounts.create_organization(new_organization("acme"), new_environment(acme, "x"), key)
    with pytest.raises(Conflict):
        await accounts.create_environment(new_environment(acme, "prod"))
    mine = replace(SHOP, id="conn_acme", environment_id=first.id)
    await control.definitions.put_connection(mine)
    await control.definitions.put_connection(SHOP)  # the same name elsewhere
    assert set((await read()).within(first.id).connections) == {"conn_acme"}
    assert set((await read()).connections) == {"conn_acme", SHOP.id}
    for refused in (accounts.delete_environment(first.id), accounts.delete_organization(acme.id)):
        with pytest.raises(Conflict):
            await refused
    await accounts.revoke_key(key.id)
    revoked = (await read()).api_keys[key.id].revoked_at
    await accounts.revoke_key(key.id)
    assert revoked is not None
    assert (await read()).api_keys[key.id].revoked_at == revoked
    await accounts.mark_deleting(acme.id)
    assert (await read()).organizations[acme.id].status == "deleting"
    await control.definitions.delete_connection("conn_acme")
    await control.definitions.put_provider(replace(LOCAL, environment_id=first.id))
    await accounts.delete_organization(acme.id)
    left = await read()
    assert (set(left.organizations), set(left.api_keys), set(left.providers)) == ({home.id}, set(), set())
    assert left.keys_needed  # for ever
    for refused in (accounts.mark_deleting(home.id), accounts.delete_organization(home.id)):
        with pytest.raises(Conflict):
            await refused
    for missing in (
        accounts.mark_deleting("org_none"),
        accounts.delete_organization("org_none"),
        accounts.delete_environment("env_none"),
        accounts.revoke_key("key_none"),
        accounts.create_environment(replace(first, id="env_x", name="x", view_schema="x", org_id="org_none")),
        accounts.create_key(replace(key, id="key_x", digest=b"x", org_id="org_none")),
        control.definitions.put_connection(replace(SHOP, id="conn_x", name="x", environment_id="env_none")),
        control.definitions.put_vector_table(replace(PRODUCTS, environment_id="env_none")),
    ):
        with pytest.raises(NotFound):
            await missing
