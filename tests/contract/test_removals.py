"""Removals' contract, held to the memory fake and to Postgres: entered with a deletion, in one hand, taken back."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from tests.contract.test_control import LOCAL, PRODUCTS, SHOP
from tests.plugins.eventually import eventually
from walvec.contracts.errors import Conflict, ControlUnavailable, NotFound
from walvec.definitions.memory import MemoryControl
from walvec.definitions.model import SourceProgress, TopicSource
from walvec.definitions.ports import Control
from walvec.definitions.postgres import open_control

OTHER = replace(PRODUCTS, id="vt_9876543210", name="other")
STREAMED = SourceProgress(lsn=70, system_identifier="1", slot_created_lsn=50)


@pytest.fixture(params=["memory", "postgres"])
async def control(request: pytest.FixtureRequest) -> AsyncIterator[Control]:
    opened: Control
    if request.param == "memory":
        opened = MemoryControl()
    else:
        database: Any = request.getfixturevalue("postgres")
        opened = await open_control(database.dsn, environment="prod", secret_key="a passphrase")
    await opened.definitions.put_connection(SHOP)
    await opened.definitions.put_provider(LOCAL)
    await opened.definitions.put_vector_table(PRODUCTS)
    await opened.progress.put(SHOP.id, STREAMED)
    await opened.progress.put_published(SHOP.id, {PRODUCTS.id: "mark"})
    yield opened
    await opened.close()


async def left(control: Control) -> list[str]:
    return sorted(r.what for r in await control.removals.open())


async def test_a_table_leaves_its_storage_its_topics_and_with_the_last_one_the_slot(control: Control) -> None:
    await control.definitions.put_vector_table(OTHER)
    ids = await control.definitions.delete_vector_table(OTHER.id)
    assert await left(control) == ["publication", "storage", "topics"]
    assert {r.id for r in await control.removals.open()} == set(ids)
    await control.definitions.delete_vector_table(PRODUCTS.id)
    assert await left(control) == ["publication", "slot", "storage", "storage", "topics", "topics"]
    slot = next(r for r in await control.removals.open() if r.what == "slot")
    assert (slot.target_id, slot.name, slot.connection_id, slot.dsn) == (SHOP.id, SHOP.name, SHOP.id, SHOP.dsn)
    storage = next(r for r in await control.removals.open() if r.what == "storage" and r.target_id == PRODUCTS.id)
    assert storage.table is not None
    assert (storage.table.storage_name, storage.table.view_name) == (PRODUCTS.storage_name, PRODUCTS.view_name)
    assert storage.table.view_schema == "walvec"
    assert await control.removals.open(storage.environment_id)
    assert await control.removals.open("env_other") == []


async def test_a_table_behind_a_topic_of_others_leaves_nothing_at_the_source(control: Control) -> None:
    await control.definitions.put_vector_table(replace(OTHER, source=TopicSource("dbz.public.products")))
    await control.definitions.delete_vector_table(PRODUCTS.id)
    assert "slot" in await left(control)  # the other one streams nothing
    await control.definitions.delete_vector_table(OTHER.id)
    assert [r.what for r in await control.removals.open() if r.target_id == OTHER.id] == ["storage", "topics"]


async def test_what_is_done_is_gone_and_what_failed_comes_again(control: Control) -> None:
    await control.definitions.delete_vector_table(PRODUCTS.id)
    slot = next(r for r in await control.removals.open() if r.what == "slot")
    async with control.removals.claim(slot.id) as claim:
        assert claim is not None
        async with control.removals.claim(slot.id) as second:
            assert second is None  # one hand
        await claim.failed("the source is away", 3600)
    again = next(r for r in await control.removals.open() if r.what == "slot")
    assert (again.attempts, again.last_error) == (1, "the source is away")
    due = set()
    while True:  # without the one that waits
        async with control.removals.claim() as claim:
            if claim is None:
                break
            due.add(claim.removal.what)
            await claim.done()
    assert due == {"storage", "topics"}
    async with control.removals.claim(slot.id) as claim:
        assert claim is not None
        assert claim.removal.dsn == SHOP.dsn
        await claim.done()
    assert await left(control) == []
    assert await control.progress.get(SHOP.id) == SourceProgress()
    assert await control.progress.published(SHOP.id) is None


async def test_a_claim_that_is_left_without_a_word_changes_nothing(control: Control) -> None:
    await control.definitions.delete_vector_table(PRODUCTS.id)
    slot = next(r for r in await control.removals.open() if r.what == "slot")
    with pytest.raises(RuntimeError):
        async with control.removals.claim(slot.id):
            raise RuntimeError
    assert slot in await control.removals.open()
    async with control.removals.claim(slot.id) as claim:
        assert claim is not None


async def test_a_new_table_takes_the_slot_back_and_nothing_stored_of_it_is_believed(control: Control) -> None:
    await control.definitions.delete_vector_table(PRODUCTS.id)
    assert await control.progress.get(SHOP.id) == STREAMED
    await control.definitions.put_vector_table(OTHER)
    assert await left(control) == ["storage", "topics"]
    assert await control.progress.get(SHOP.id) == SourceProgress()
    assert await control.progress.published(SHOP.id) is None
    await control.definitions.put_vector_table(replace(OTHER, keep_previous=5))  # no new one: nothing is forgotten
    await control.progress.put(SHOP.id, STREAMED)
    await control.definitions.put_vector_table(replace(OTHER, keep_previous=6))
    assert await control.progress.get(SHOP.id) == STREAMED


async def test_a_late_reader_never_writes_over_another_slots_progress(control: Control) -> None:
    assert await control.progress.advance(SHOP.id, replace(STREAMED, lsn=80))
    assert (await control.progress.get(SHOP.id)).lsn == 80
    await control.progress.put(SHOP.id, replace(STREAMED, lsn=90, slot_created_lsn=90))
    assert not await control.progress.advance(SHOP.id, replace(STREAMED, lsn=85))
    assert (await control.progress.get(SHOP.id)).lsn == 90
    await control.definitions.delete_vector_table(PRODUCTS.id)
    await control.definitions.put_vector_table(OTHER)
    assert not await control.progress.advance(SHOP.id, replace(STREAMED, lsn=99, slot_created_lsn=90))
    assert await control.progress.get(SHOP.id) == SourceProgress()


async def test_a_removal_outlives_its_connection(control: Control) -> None:
    await control.definitions.delete_vector_table(PRODUCTS.id)
    await control.definitions.put_connection(replace(SHOP, dsn="postgresql://u:newer@h/d"))
    ids = await control.definitions.delete_connection(SHOP.id)
    assert set(ids) == {r.id for r in await control.removals.open()}
    slot = next(r for r in await control.removals.open() if r.what == "slot")
    assert slot.dsn is not None
    async with control.removals.claim(slot.id) as claim:
        assert claim is not None
        await claim.done()


async def test_a_connection_that_was_never_streamed_leaves_nothing(control: Control) -> None:
    await control.definitions.put_connection(replace(SHOP, id="conn_ffffffff", name="unused"))
    assert await control.definitions.delete_connection("conn_ffffffff") == []


async def test_a_removal_is_given_up(control: Control) -> None:
    await control.definitions.delete_vector_table(PRODUCTS.id)
    for removal in await control.removals.open():
        await control.removals.give_up(removal.id)
    assert await left(control) == []
    with pytest.raises(NotFound):
        await control.removals.give_up("task_none")


async def test_what_was_never_entered_can_be_removed_too(control: Control) -> None:
    ids = await control.removals.put(OTHER, ("storage", "topics"))
    assert [(r.id, r.target_id) for r in await control.removals.open()] == [(i, OTHER.id) for i in ids]


async def test_a_new_table_waits_for_whoever_drops_the_slot(postgres: Any) -> None:
    control = await open_control(postgres.dsn, environment="prod", secret_key="a passphrase")
    try:
        await control.definitions.put_connection(SHOP)
        await control.definitions.put_provider(LOCAL)
        await control.definitions.put_vector_table(PRODUCTS)
        await control.progress.put(SHOP.id, STREAMED)
        await control.definitions.delete_vector_table(PRODUCTS.id)
        slot = next(r for r in await control.removals.open() if r.what == "slot")
        async with control.removals.claim(slot.id) as claim:
            assert claim is not None
            entering = asyncio.create_task(control.definitions.put_vector_table(OTHER))
            await eventually(lambda: postgres.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
            # and nobody else waits with it
            await control.definitions.set_connection_status(SHOP.id, "connected")
            assert not entering.done()
            await claim.done()
        await entering
        assert OTHER.id in (await control.definitions.snapshot()).vector_tables
        assert "slot" not in await left(control)
        assert await control.progress.get(SHOP.id) == SourceProgress()
    finally:
        await control.close()


async def test_a_slot_that_an_earlier_version_left_is_adopted(postgres: Any) -> None:
    control = await open_control(postgres.dsn, environment="prod", secret_key="a passphrase")
    try:
        await control.definitions.put_connection(SHOP)
        await control.progress.put(SHOP.id, STREAMED)
        await control.removals.adopt()
        await control.removals.adopt()
        assert await left(control) == ["slot"]
    finally:
        await control.close()


async def due(control: Control) -> list[str]:
    """Of what is due, whose it is; all of it is done."""
    found = []
    while True:
        async with control.removals.claim() as claim:
            if claim is None:
                return sorted(found)
            found.append(f"{claim.removal.target_id} {claim.removal.what}")
            await claim.done()


async def test_what_is_being_made_is_nobodys_to_remove_and_is_not_shown(control: Control) -> None:
    async with control.definitions.making(OTHER) as enter:
        assert await left(control) == []
        assert await due(control) == []
        await enter()
    assert OTHER.id in (await control.definitions.snapshot()).vector_tables
    assert await left(control) == []
    # nothing that comes late takes from it either
    assert await control.removals.put(replace(OTHER, id="vt_none"), ("topics",))
    assert await due(control) == ["vt_none topics"]


async def test_what_was_made_for_a_table_that_is_not_entered_is_removed(control: Control) -> None:
    with pytest.raises(RuntimeError):
        async with control.definitions.making(OTHER):
            raise RuntimeError
    assert OTHER.id not in (await control.definitions.snapshot()).vector_tables
    found: list[str] = []

    async def removed() -> bool:
        found.extend(await due(control))
        return len(found) >= 2

    await eventually(removed)
    assert found == [f"{OTHER.id} storage", f"{OTHER.id} topics"]


async def test_a_table_that_cannot_be_entered_is_removed_with_what_was_made(control: Control) -> None:
    with pytest.raises(Conflict):
        async with control.definitions.making(replace(OTHER, name=PRODUCTS.name)) as enter:
            await enter()
    # its maker need not wait for it to be due
    ids = await control.removals.put(OTHER, ("storage", "topics"))
    assert [r.id for r in await control.removals.open()] == list(ids)
    assert await due(control) == [f"{OTHER.id} storage", f"{OTHER.id} topics"]


async def test_what_was_made_over_a_connection_that_is_deleted_meanwhile_is_found(control: Control) -> None:
    other = replace(SHOP, id="conn_ffffffff", name="other", dsn="postgresql://u:secret@h/d")
    await control.definitions.put_connection(other)
    table = replace(OTHER, connection_id=other.id)

    async def make() -> None:
        async with control.definitions.making(table) as enter:
            await control.definitions.delete_connection(other.id)
            await enter()

    with pytest.raises(NotFound):
        await make()
    ids = await control.removals.put(table, ("storage", "topics"))
    found = await control.removals.open()
    assert [(r.id, r.what, r.dsn) for r in found] == [
        (ids[0], "storage", other.dsn),
        (ids[1], "topics", other.dsn),
    ]


async def test_what_is_left_of_making_is_shown_once_it_cannot_be_removed(control: Control) -> None:
    with pytest.raises(RuntimeError):
        async with control.definitions.making(OTHER):
            raise RuntimeError

    async def failed() -> bool:
        async with control.removals.claim() as claim:
            if claim is not None:
                await claim.failed("the log is away", 3600)
        return len(await control.removals.open()) == 2

    await eventually(failed)
    assert {r.last_error for r in await control.removals.open()} == {"the log is away"}


async def test_a_maker_whose_session_is_lost_enters_nothing(postgres: Any) -> None:
    control = await open_control(postgres.dsn, environment="prod", secret_key="a passphrase")
    try:
        await control.definitions.put_connection(SHOP)
        await control.definitions.put_provider(LOCAL)

        async def make() -> None:
            async with control.definitions.making(OTHER) as enter:
                postgres.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE state = 'idle in transaction' AND application_name = 'walvec control'"
                )
                await enter()

        with pytest.raises(ControlUnavailable):
            await make()
        assert (await control.definitions.snapshot()).vector_tables == {}
        found: list[str] = []

        async def removed() -> bool:
            found.extend(await due(control))
            return len(found) >= 2

        await eventually(removed)
    finally:
        await control.close()


async def test_what_is_made_is_removed_with_the_key_of_a_rotation_that_was_under_way(postgres: Any) -> None:
    control = await open_control(postgres.dsn, environment="prod", secret_key="a passphrase")
    try:
        await control.definitions.put_connection(SHOP)
        await control.definitions.put_provider(LOCAL)
        committed = asyncio.Event()

        async def make() -> None:
            async with control.definitions.making(OTHER):
                await committed.wait()
                found = postgres.execute(
                    "SELECT r.credentials = c.credentials FROM walvec_control.removals r, walvec_control.connections c"
                )
                assert found == [(True,), (True,)]

        with psycopg.connect(postgres.dsn) as rotation:  # it has been past the removals
            rotation.execute("UPDATE walvec_control.installation SET version = version + 1")
            rotation.execute("UPDATE walvec_control.connections SET credentials = 'anew'")
            making = asyncio.create_task(make())
            begun = (
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                " UNION ALL SELECT 1 FROM walvec_control.removals"
            )
            await eventually(lambda: postgres.execute(begun))
            rotation.commit()
        committed.set()
        await making
    finally:
        await control.close()


async def test_who_deletes_a_connection_waits_for_a_removal_in_hand_and_nobody_waits_with_him(postgres: Any) -> None:
    control = await open_control(postgres.dsn, environment="prod", secret_key="a passphrase")
    try:
        await control.definitions.put_connection(SHOP)
        await control.definitions.put_provider(LOCAL)
        await control.definitions.put_vector_table(PRODUCTS)
        await control.definitions.delete_vector_table(PRODUCTS.id)
        slot = next(r for r in await control.removals.open() if r.what == "slot")
        async with control.removals.claim(slot.id) as claim:
            assert claim is not None
            await control.definitions.put_connection(replace(SHOP, dsn="postgresql://u:newer@h/d"))
            deleting = asyncio.create_task(control.definitions.delete_connection(SHOP.id))
            await eventually(lambda: postgres.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
            async with asyncio.timeout(10):
                await control.definitions.put_provider(replace(LOCAL, name="renamed"))
            assert not deleting.done()
        assert slot.id in await deleting
        assert {r.dsn for r in await control.removals.open()} == {"postgresql://u:newer@h/d"}
    finally:
        await control.close()


async def test_what_a_killed_maker_may_have_sent_is_given_time_however_long_it_was_at_work(postgres: Any) -> None:
    control = await open_control(postgres.dsn, environment="prod", secret_key="a passphrase")
    try:
        await control.definitions.put_connection(SHOP)
        await control.definitions.put_provider(LOCAL)

        async def make() -> None:
            async with control.definitions.making(OTHER):
                raise RuntimeError

        async def removed() -> list[str]:
            return await due(control)

        with pytest.raises(RuntimeError):
            await make()
        postgres.execute("UPDATE walvec_control.removals SET next_at = next_at - interval '1 hour'")
        assert await due(control) == [], "nobody had found that its maker is gone"
        assert await eventually(removed)
    finally:
        await control.close()
