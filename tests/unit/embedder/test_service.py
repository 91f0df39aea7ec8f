"""The role against a server that behaves: what is sent, what is not, and in which records it ends."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from tests.plugins.embedder_world import World, change, generation, key, vector_table
from tests.plugins.eventually import eventually
from tests.plugins.openai_server import OpenAIServer, vector_of
from tests.plugins.stale_feed import StaleControl
from walvec.contracts.changes import Change
from walvec.contracts.errors import SourceUnavailable, StoreUnavailable
from walvec.contracts.snapshots import XidSnapshot
from walvec.contracts.sources import ReadRow
from walvec.contracts.stores import StoredVersion
from walvec.contracts.wire import encode_change
from walvec.definitions.model import EmbeddingProvider, TopicSource
from walvec.transport.records import Record, changes_topic


@pytest.fixture
def world(openai_server: OpenAIServer) -> World:
    return World(openai_server.url)


async def test_insert_becomes_an_upsert_with_text_hash_vector_and_metadata(
    world: World, openai_server: OpenAIServer
) -> None:
    await world.define()
    async with world.running():
        await world.put(change(1, 10, "lamp", body="red", price="9.50"))
        await world.drained()
    (record,) = await world.outputs()
    assert (record.op, record.position, record.key, record.generation) == ("upsert", (1, 10, 1), key(1), 1)
    assert record.metadata == {"price": "9.50"}
    (chunk,) = record.chunks
    assert chunk.text == "T: lamp\nred"
    assert chunk.vector is not None
    np.testing.assert_array_equal(chunk.vector, vector_of("T: lamp\nred", 8))
    assert record.commit_ms == 10
    reports = {s: r for _, s, r, _ in await world.control.reports.all()}
    assert reports[world.table.id]["texts_sent"] == 1
    assert reports[world.table.id]["commit_ms"] == 10


async def test_delete_truncate_and_empty_text(world: World, openai_server: OpenAIServer) -> None:
    await world.define()
    async with world.running():
        await world.put(change(1, 10, op="d"), change(2, 11, "", body=None, op="u"), change(0, 12, op="t"))
        await world.drained()
    found = sorted((r.op, r.key, r.position.lsn) for r in await world.outputs())
    assert found == [("delete", key(1), 10), ("delete", key(2), 11), ("truncate", b"", 12)]
    assert openai_server.stats.requests == 0


async def test_metadata_update_with_old_image_pays_nothing(world: World, openai_server: OpenAIServer) -> None:
    await world.define()
    async with world.running():
        await world.put(change(1, 10, "lamp", op="u", price="2", before={"title": "lamp", "body": None}))
        await world.drained()
    (record,) = await world.outputs()
    assert record.op == "metadata"
    assert record.chunks[0].text == "T: lamp"
    assert record.chunks[0].vector is None
    assert record.metadata == {"price": "2"}
    assert openai_server.stats.requests == 0


async def test_the_stores_own_version_makes_a_claim_and_an_older_change_nothing(
    world: World, openai_server: OpenAIServer
) -> None:
    await world.define()
    h = generation().hasher("openai")
    world.lookup.stored = {
        key(1): StoredVersion(change(1, 5).position, True, (h("T: a"),)),
        key(2): StoredVersion(change(1, 50).position, True, (h("T: b"),)),
        key(3): StoredVersion(change(1, 5).position, False, ()),
    }
    async with world.running():
        await world.put(change(1, 10, "a", op="u"), change(2, 10, "old", op="u"), change(3, 10, "c", op="r"))
        await world.drained()
    assert sorted((r.op, r.key) for r in await world.outputs()) == [("metadata", key(1)), ("upsert", key(3))]
    assert openai_server.texts == ["T: c"]


async def test_forced_is_embedded_in_full_and_reuses_the_vector_by_hash(
    world: World, openai_server: OpenAIServer
) -> None:
    await world.define()
    h = generation().hasher("openai")("whole text")
    world.lookup.by_hash[h] = np.ones(8, dtype=np.float32)
    world.lookup.stored[key(1)] = StoredVersion(change(1, 5).position, True, (h,))
    async with world.running():
        await world.put(change(1, 10, op="r", text="whole text", force=True))
        await world.drained()
    (record,) = await world.outputs()
    assert record.op == "upsert"
    assert record.chunks[0].vector is not None
    assert record.chunks[0].vector.tolist() == [1.0] * 8
    assert openai_server.stats.requests == 0


async def test_single_flight_one_identical_text_over_many_batches_is_sent_once(
    world: World, openai_server: OpenAIServer
) -> None:
    world.settings.embedder.batch_records = 20
    openai_server.hold = asyncio.Event()
    await world.define()
    async with world.running():
        await world.put(*(change(n, 10 + n, "same") for n in range(200)))
        await eventually(lambda: openai_server.stats.in_flight == 1)
        openai_server.hold.set()
        await world.drained()
    assert openai_server.texts == ["T: same"]
    assert len({r.key for r in await world.outputs() if r.op == "upsert"}) == 200


async def test_changes_of_one_key_in_a_batch_are_one_text(world: World, openai_server: OpenAIServer) -> None:
    await world.define()
    await world.put(*(change(1, 10 + n, f"v{n}", op="u") for n in range(50)))
    async with world.running():
        await world.drained()
    assert openai_server.texts == ["T: v49"]
    (record,) = await world.outputs()
    assert record.position.lsn == 59


async def test_generations_each_get_their_records(world: World, openai_server: OpenAIServer) -> None:
    building = generation(2, dimensions=4, state="building")
    await world.define(vector_table(generation(3, state="retired"), generation(1), building))
    async with world.running():
        await world.put(
            change(1, 10, "a", newest=2), change(2, 11, "b", generation=2), change(3, 12, "c", generation=3)
        )
        await world.drained()
    found = sorted((r.generation, r.key) for r in await world.outputs())
    assert found == [(1, key(1)), (2, key(1)), (2, key(2))]
    sizes = {(r.generation, len(c.vector)) for r in await world.outputs() for c in r.chunks if c.vector is not None}
    assert sizes == {(1, 8), (2, 4)}


@pytest.mark.parametrize("bridged", [False, True])
async def test_toast_visible(world: World, openai_server: OpenAIServer, bridged: bool) -> None:
    """A re-read whose snapshot does not see the change's transaction would take the text before it. The epoch of a slot
    beside a bridged table says nothing of the table's changes."""
    if bridged:
        world.table = replace(world.table, source=TopicSource("shop.public.products"))
    world.rows.snapshot = XidSnapshot.parse("756:756:")
    world.rows.rows[key(1)] = ReadRow({"title": "x", "body": "old body", "price": "1"})
    await world.define()
    if bridged:
        progress = await world.control.progress.get("conn_1")
        await world.control.progress.put("conn_1", replace(progress, epoch=2))
    async with world.running():
        await world.put(change(1, 10, "new", op="u", unchanged=("body",), xid=756), change(2, 11, "other"))
        await eventually(lambda: world.rows.reads >= 3)
        assert [r.key for r in await world.outputs()] == [key(2)]
        world.rows.rows[key(1)] = ReadRow({"title": "later", "body": "the body", "price": "1"})
        world.rows.snapshot = XidSnapshot.parse("757:757:")
        await world.drained()
    record = next(r for r in await world.outputs() if r.key == key(1))
    assert record.chunks[0].text == "T: later\nthe body"  # of one version, never a mix of two
    assert record.position == (1, 10, 1)


async def test_reread_that_finds_no_row_puts_out_nothing(world: World, openai_server: OpenAIServer) -> None:
    world.rows.fail = SourceUnavailable("away")
    await world.define()
    async with world.running():
        await world.put(change(1, 10, "new", op="u", unchanged=("body",), xid=5))
        await eventually(lambda: world.rows.reads >= 2)
        world.rows.fail = None
        await world.drained()
    assert await world.outputs() == []


async def test_claim_text_of_an_unchanged_toast_text_is_read(world: World, openai_server: OpenAIServer) -> None:
    world.rows.rows[key(1)] = ReadRow({"title": "t", "body": "b", "price": "7"})
    await world.define()
    async with world.running():
        await world.put(change(1, 10, op="u", unchanged=("title", "body"), price="7", xid=5))
        await world.drained()
    (record,) = await world.outputs()
    assert (record.op, record.chunks[0].text, record.metadata) == ("metadata", "T: t\nb", {"price": "7"})
    assert openai_server.stats.requests == 0


async def test_damaged_records_become_letters_and_the_rest_goes_on(world: World, openai_server: OpenAIServer) -> None:
    await world.define()
    topic = changes_topic(world.table.storage_name)
    await world.log.producer().append(
        topic, [Record(key(7), b"\x00garbage"), Record(key(8), b'{"op":"c"}'), Record(None, b"x")]
    )
    async with world.running():
        await world.put(change(1, 10, "fine"))
        await world.drained()
    letters = await world.control.letters.page(world.table.id)
    assert {(x.kind, x.key) for x in letters} == {("decode", key(7)), ("decode", key(8)), ("decode", b"")}
    assert [r.key for r in await world.outputs()] == [key(1)]


@pytest.mark.parametrize(
    "foreign", [b"1", b'{"id": 3}', b'{"id":"3"}', b'{"id":3,"more":1}', b'{"other":3}', b"[3]", b"\xff", None]
)
async def test_a_key_of_another_shape_becomes_a_letter(
    world: World, openai_server: OpenAIServer, foreign: bytes | None
) -> None:
    await world.define()
    written = encode_change(change(3, 10, "a"))
    async with world.running():
        await world.log.producer().append(changes_topic(world.table.storage_name), [Record(foreign, written)])
        await world.put(change(1, 11, "fine"))
        await world.drained()
    (letter,) = await world.control.letters.page(world.table.id)
    assert (letter.kind, letter.key, letter.payload) == ("decode", b"", written)
    assert "key" in letter.reason
    assert "offset 0" in letter.reason
    assert [r.key for r in await world.outputs()] == [key(1)]


async def test_another_schema_version_in_the_headers_becomes_a_letter(
    world: World, openai_server: OpenAIServer
) -> None:
    await world.define()
    topic = changes_topic(world.table.storage_name)
    newer = (("x-hop", b"1"), ("walvec-schema", b"2"))
    async with world.running():
        await world.log.producer().append(topic, [Record(key(3), encode_change(change(3, 10, "a")), None, newer)])
        await world.put(change(1, 11, "fine"))
        await world.drained()
    (letter,) = await world.control.letters.page(world.table.id)
    assert letter.key == key(3)
    assert "version '2'" in letter.reason
    assert "upgrade" in letter.reason
    assert [r.key for r in await world.outputs()] == [key(1)]


async def test_lookups_of_a_store_that_is_down_are_waited_for_and_deletes_flow(
    world: World, openai_server: OpenAIServer
) -> None:
    world.lookup.fail = StoreUnavailable("away")
    await world.define()
    async with world.running():
        await world.put(change(1, 10, "a"), change(2, 11, op="d"))
        await eventually(lambda: world.lookup.calls >= 2)
        assert [(r.op, r.key) for r in await world.outputs()] == [("delete", key(2))]
        world.lookup.fail = None
        await world.drained()
    assert openai_server.texts == ["T: a"]


async def test_paused_table_consumes_nothing_until_resumed(world: World, openai_server: OpenAIServer) -> None:
    await world.define()
    await world.control.definitions.set_paused(world.table.id, True)
    async with world.running():
        await world.put(change(1, 10, "a"))
        other = vector_table(table_id="vt_bbbbbbbb", name="other")
        await world.log.ensure_topic(changes_topic(other.storage_name))
        await world.control.definitions.put_vector_table(other)
        await world.put(change(1, 10, "b"), table=other)
        await eventually(lambda: openai_server.texts == ["T: b"])
        await world.control.definitions.set_paused(world.table.id, False)
        await world.drained()
    assert openai_server.texts == ["T: b", "T: a"]


async def test_manual_backfill_collects_until_a_backfill_is_asked_for(
    world: World, openai_server: OpenAIServer
) -> None:
    await world.define(vector_table(backfill="manual"))
    async with world.running():
        await world.put(change(1, 10, "a"))
        other = vector_table(table_id="vt_bbbbbbbb", name="other")
        await world.log.ensure_topic(changes_topic(other.storage_name))
        await world.control.definitions.put_vector_table(other)
        await world.put(change(1, 10, "b"), table=other)
        await eventually(lambda: openai_server.texts == ["T: b"])
        await world.control.tasks.create("backfill", world.table.id, 1, {})
        await world.drained()
    assert openai_server.texts == ["T: b", "T: a"]


async def test_static_provider_end_to_end() -> None:
    world = World("", kind="static")
    await world.define(vector_table(generation(model="minilm-static-256", dimensions=256), provider_kind="static"))
    async with world.running():
        await world.put(*(change(n, 10 + n, f"product {n}") for n in range(300)))
        await world.drained()
    outputs = await world.outputs()
    assert len(outputs) == 300
    assert all(
        abs(float(np.linalg.norm(c.vector)) - 1) < 1e-3 for r in outputs for c in r.chunks if c.vector is not None
    )


@pytest.mark.parametrize("late", [change(2, 11, "b", op="r", generation=2), change(2, 11, "b", newest=2)])
async def test_known_generation_what_the_feed_has_not_brought_yet_is_waited_for(
    world: World, openai_server: OpenAIServer, late: Change
) -> None:
    """A change of all generations too: the new one's backfill may have read its row before it."""
    await world.define()
    real = world.control
    stale = StaleControl(real)
    world.control = stale  # type: ignore[assignment]
    async with world.running():
        await world.put(change(1, 10, "first"))
        await world.drained()
        await real.definitions.rebuild(world.table.id, generation(2, dimensions=4))
        await world.put(late)
        await eventually(lambda: stale.asked)
        assert await world.lag() == 1
        stale.feed.bring()
        await world.drained()
    found = {(r.generation, r.key) for r in await world.outputs()}
    assert found >= {(1, key(1)), (2, key(2))}
    assert ((1, key(2)) in found) == (late.generation == 0)


async def test_known_generation_one_that_nobody_defined_holds_nothing_up(
    world: World, openai_server: OpenAIServer
) -> None:
    await world.define()
    async with world.running():
        await world.put(change(2, 11, "b", op="r", generation=7), change(1, 12, "a"))
        await world.drained()
    assert [(r.generation, r.key) for r in await world.outputs()] == [(1, key(1))]


async def test_a_definition_that_cannot_be_used_is_an_error_and_stops_no_other_table(
    world: World, openai_server: OpenAIServer
) -> None:
    other = vector_table(table_id="vt_bbbbbbbb", name="other", provider_kind="nonsense")
    other = replace(other, embedding_provider_id="ep_2")
    await world.control.definitions.put_provider(EmbeddingProvider("ep_2", "q", "nonsense"))
    await world.define(world.table, other)
    async with world.running():
        await world.put(change(1, 10, "b"), table=other)
        await eventually(lambda: world.control.table(other.id).error)
        await world.put(change(1, 10, "a"))
        await world.drained()
    assert openai_server.texts == ["T: a"]
