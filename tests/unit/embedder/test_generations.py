"""Two generations of a table, each with its own provider: what one suffers is its own, nothing is paid twice."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cdc.encoder import TablePlan
from embedder.dispatch import Dispatcher
from embedder.packing import Limits
from embedder.providers.fake import FakeProvider
from embedder.providers.port import Kind
from embedder.usage import Usage
from embedder.wanted import Answer
from tests.plugins.embedder_world import Lookup, World, change, generation, key, vector_table
from tests.plugins.eventually import eventually
from tests.plugins.openai_server import OpenAIServer
from tests.plugins.stale_feed import StaleControl
from walvec.contracts.changes import Change
from walvec.contracts.errors import StoreRejected
from walvec.contracts.stores import StoredVersion
from walvec.definitions.model import Column, EmbeddingProvider, Generation, VectorTable


class Storages(Lookup):
    """What the store would say of each generation; of a storage that it does not have it refuses to speak."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[int, tuple[dict[bytes, StoredVersion], dict[str, np.ndarray]]] = {}

    async def versions(
        self, table: VectorTable, generation: Generation, keys: Sequence[bytes]
    ) -> Mapping[bytes, StoredVersion]:
        stored, _ = self._storage(generation)
        return {k: stored[k] for k in keys if k in stored}

    async def vectors(
        self, table: VectorTable, generation: Generation, hashes: Sequence[str]
    ) -> Mapping[str, np.ndarray]:
        _, by_hash = self._storage(generation)
        return {h: by_hash[h] for h in hashes if h in by_hash}

    def _storage(self, generation: Generation) -> tuple[dict[bytes, StoredVersion], dict[str, np.ndarray]]:
        if generation.number not in self.of:
            raise StoreRejected(f"no storage for generation {generation.number}")
        return self.of[generation.number]


class TwoProviders(World):
    """The active generation asks one server, those that are built another one (`ep_2`)."""

    def __init__(self, url: str, other: str) -> None:
        super().__init__(url)
        self.lookup: Storages = Storages()
        self.other = EmbeddingProvider("ep_2", "q", "openai", "sk-other-secret", other)
        self.settings.embedder.batch_records = 10
        self.settings.embedder.max_batches = 2

    async def define(self, *tables: VectorTable) -> None:
        await self.control.definitions.put_provider(self.other)
        await super().define(*tables)

    async def rebuild(self, **more: Any) -> Generation:
        """`provider`: ep_2 unless named."""
        provider = more.pop("provider", "ep_2")
        number = self.now.next_generation
        made = replace(generation(number), **more, embedding_provider_id=provider, provider_kind="openai")
        table, _ = await self.control.definitions.rebuild(self.table.id, made)
        assert table.building is not None
        return table.building

    @property
    def now(self) -> VectorTable:
        return self.control.table(self.table.id)

    async def store_all(self) -> None:
        for record in await self.outputs():
            stored, by_hash = self.lookup.of.setdefault(record.generation, ({}, {}))
            if record.op == "upsert":
                stored[record.key] = StoredVersion(record.position, True, tuple(c.hash for c in record.chunks))
                by_hash.update({c.hash: c.vector for c in record.chunks if c.vector is not None})
        await super().store_all()

    async def keys(self, number: int, op: str = "upsert") -> set[bytes]:
        return {r.key for r in await self.outputs() if r.generation == number and r.op == op}

    def read(self, number: int, rows: range, lsn: int = 500, text: str = "text") -> list[Change]:
        """What a backfill reads."""
        return [change(i, lsn, f"{text} {i}", op="r", ordinal=0, generation=number) for i in rows]


@pytest.fixture
async def other_server() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer() as server:
        yield server


@pytest.fixture
def world(openai_server: OpenAIServer, other_server: OpenAIServer) -> TwoProviders:
    return TwoProviders(openai_server.url, other_server.url)


@asynccontextmanager
async def filled(world: TwoProviders, rows: int) -> AsyncIterator[None]:
    """A running role whose active generation has its rows in the store."""
    await world.define()
    async with world.running():
        await world.put(*(change(i, 10 + i, f"text {i}") for i in range(rows)))
        await world.drained()
        await world.store_all()
        yield


@asynccontextmanager
async def full(
    world: TwoProviders, openai_server: OpenAIServer
) -> AsyncIterator[tuple[Callable[[], Awaitable[None]], asyncio.Event]]:
    """A running role that has no room for anything, as its provider holds 200 rows back, and does not know yet that
    generation 2 is built. Gives what lets it know, once it has asked, and what ends the holding back."""
    openai_server.hold = held = asyncio.Event()
    await world.define()
    known = world.control
    world.control = stale = StaleControl(known)  # type: ignore[assignment]
    async with world.running():
        await world.put(*(change(i, 10 + i, f"text {i}") for i in range(200)))
        await eventually(lambda: openai_server.stats.requests)
        asked, world.control = stale.asked, known
        await world.rebuild(embedding_model="text-embedding-3-large")

        async def tell() -> None:
            await eventually(lambda: stale.asked > asked)
            stale.feed.bring()

        yield tell, held


def live(n: int, lsn: int, title: str, **more: Any) -> Change:
    """A change of all generations, streamed while the second one is built."""
    return change(n, lsn, title, newest=2, **more)


@pytest.mark.parametrize("read", [False, True], ids=["streamed", "read"])
async def test_known_generation_a_text_that_is_told_anew_under_its_number_is_waited_for(
    world: TwoProviders, read: bool
) -> None:
    """A source column was renamed, and the definition mended in place: who does not know it yet would leave the new
    column out of the text, at a position that nothing comes after."""
    world.table = vector_table(replace(generation(), columns=(Column("title", "embedding", 1),)))
    await world.define()
    known = world.control
    world.control = stale = StaleControl(known)  # type: ignore[assignment]
    async with world.running():
        asked = stale.asked
        mended = replace(generation(), columns=(Column("title", "embedding", 1), Column("body", "embedding", 2)))
        await known.definitions.put_vector_table(replace(world.table, generations=(mended,)))
        newest = TablePlan.of(known.table(world.table.id)).newest
        more: dict[str, Any] = {"op": "r", "ordinal": 0, "generation": 1} if read else {}
        await world.put(change(1, 20, "a", body="b", newest=newest, **more))
        await eventually(lambda: stale.asked > asked)
        assert await world.outputs() == []
        stale.feed.bring()
        await world.drained()
    (record,) = await world.outputs()
    assert [chunk.text for chunk in record.chunks] == ["a\nb"]


# -------------------------------------------------------------------- never pay twice


async def test_other_metadata_embed_no_text_again(world: TwoProviders, openai_server: OpenAIServer) -> None:
    """Neither while the role that paid is there, nor by one that has just begun."""
    world.settings.embedder.batch_records = 500
    async with filled(world, 2000):
        assert openai_server.stats.texts == 2000
        await world.rebuild(provider="ep_1", columns=generation().columns[:2])
        await world.put(*world.read(2, range(1000)))
        await world.drained()
    async with world.running():
        await world.put(*world.read(2, range(1000, 2000)))
        await world.drained()
    assert await world.keys(2) == {key(i) for i in range(2000)}
    assert openai_server.stats.texts == 2000


async def test_only_texts_that_differ_are_sent(world: TwoProviders, openai_server: OpenAIServer) -> None:
    """One row in ten has a body that was not embedded before."""
    world.settings.embedder.batch_records = 500
    title = Column("title", "embedding", 1, "T: ")
    world.table = vector_table(replace(generation(), columns=(title,)))
    async with filled(world, 200):
        await world.rebuild(provider="ep_1")
    rows = [
        replace(c, after={**(c.after or {}), "body": None if i % 10 else "b"})
        for i, c in enumerate(world.read(2, range(200)))
    ]
    async with world.running():
        await world.put(*rows)
        await world.drained()
    assert await world.keys(2) == {key(i) for i in range(200)}
    assert sorted(openai_server.texts[200:]) == sorted(f"T: text {i}\nb" for i in range(0, 200, 10))


async def test_a_rollback_embeds_no_text_again(world: TwoProviders, openai_server: OpenAIServer) -> None:
    """The retired generation's vectors are found by hash, by a role that has paid for nothing itself."""
    async with filled(world, 20):
        second = await world.rebuild()
        await world.put(*world.read(2, range(20)))
        await world.drained()
        await world.store_all()
        await swap(world, second)
    await world.control.definitions.rollback(world.table.id)
    paid = openai_server.stats.texts
    async with world.running():
        await world.put(*world.read(3, range(20), lsn=900))
        await world.drained()
    assert await world.keys(3) == {key(i) for i in range(20)}
    assert openai_server.stats.texts == paid


async def test_vectors_that_no_store_has_yet_serve_every_generation(
    world: TwoProviders, openai_server: OpenAIServer, other_server: OpenAIServer
) -> None:
    """A role that begins reads them back from the tail of `.vectors`; also what was paid for one that stalled."""
    await world.define()
    await world.rebuild(embedding_model="text-embedding-3-large")
    async with world.running():
        await world.put(*(live(i, 10 + i, f"text {i}") for i in range(20)))
        await world.drained()
    assert await world.control.states.set_stalled(world.table.id, 2, "provider_stop", "no")
    await world.control.definitions.retry(world.table.id)
    async with world.running():
        await world.put(*world.read(3, range(20)))
        await world.drained()
    assert await world.keys(3) == {key(i) for i in range(20)}
    assert (openai_server.stats.texts, other_server.stats.texts) == (20, 20)


async def test_another_model_takes_no_vector_of_this_one(
    world: TwoProviders, openai_server: OpenAIServer, other_server: OpenAIServer
) -> None:
    async with filled(world, 20):
        await world.rebuild(embedding_model="text-embedding-3-large")
        await world.put(*world.read(2, range(20)))
        await world.drained()
    assert (openai_server.stats.texts, other_server.stats.texts) == (20, 20)


async def swap(world: TwoProviders, building: Generation) -> None:
    states, table_id = world.control.states, world.table.id
    for task in await world.control.tasks.open_tasks([table_id]):
        await world.control.tasks.update(task.id, status="completed")
    await states.set_backfilled(table_id, building.number)
    await states.set_ready(table_id, building.number)
    assert await states.begin_swap(table_id, building.number, fills=1)
    assert await states.finish_swap(table_id, building.number, "2100-01-01T00:00:00Z")


# -------------------------------------------------------------------- isolation


@pytest.mark.parametrize(("status", "code"), [(401, ""), (404, "model_not_found"), (429, "insufficient_quota")])
async def test_stalled_before_passed_a_building_provider_that_says_stop(
    world: TwoProviders, openai_server: OpenAIServer, other_server: OpenAIServer, status: int, code: str
) -> None:
    other_server.faults.status, other_server.faults.code = status, code
    other_server.faults.message = "bad sk-other-secret"
    held = asyncio.Event()
    order: list[str] = []
    stall = world.control.states.set_stalled

    async def noted(table_id: str, number: int, kind: str, reason: str) -> bool:
        order.append(f"lag {await world.lag()}")
        await held.wait()
        return await stall(table_id, number, kind, reason)

    world.control.states.set_stalled = noted  # type: ignore[method-assign,assignment]
    async with filled(world, 5):
        await world.rebuild(embedding_model="text-embedding-3-large")
        await world.put(*world.read(2, range(100)))
        await eventually(lambda: order)
        await world.put(live(200, 600, "while it is not durable yet"))

        async def served() -> bool:
            return key(200) in await world.keys(1)

        await eventually(served)
        assert await world.lag() > 0
        held.set()
        await world.drained()
        stalled = world.now.building
        assert stalled is not None
        assert stalled.state == "stalled"
        assert str(status) in str(stalled.stalled)
        assert "sk-other-secret" not in str(stalled.stalled)
        assert (world.now.blocked, world.now.error) == (None, None)
        [task] = await world.control.tasks.recent(world.table.id)
        assert task.status == "cancelled"
        requests = other_server.stats.requests
        await world.put(live(201, 700, "after"))
        await world.drained()
        assert key(201) in await world.keys(1)
        assert other_server.stats.requests == requests
    assert order == [order[0]] != ["lag 0"]
    assert await world.keys(2) == set()
    assert openai_server.stats.texts == 7


async def test_dead_letters_of_a_building_generation_stall_it_and_are_not_the_active_ones(
    world: TwoProviders, openai_server: OpenAIServer, other_server: OpenAIServer
) -> None:
    world.settings.embedder.dead_letter_limit = 3
    async with filled(world, 5):
        await world.put(change(50, 400, "[[reject]]"), change(51, 401, "[[reject]]"))
        await world.drained()
        await world.rebuild(embedding_model="text-embedding-3-large")
        await world.put(*world.read(2, range(100, 102), text="[[reject]]"))
        await world.drained()
        assert world.now.error is None  # two each: not four of the table
        building = world.now.building
        assert building is not None
        assert building.state == "building"
        await world.put(change(102, 501, "[[reject]]", op="r", generation=2))
        await world.drained()
        stalled = world.now.building
        assert stalled is not None
        assert stalled.state == "stalled"
        assert "3 changes in a row" in str(stalled.stalled)
        assert world.now.error is None
        assert world.now.dead_in_row == 2
        await world.put(live(60, 700, "goes on"))
        await world.drained()
        assert key(60) in await world.keys(1)
        assert world.now.dead_in_row == 0


@pytest.mark.parametrize("faults", [{"status": 429}, {"status": 503}, {"hold": True}], ids=str)
async def test_a_building_provider_that_waits_keeps_no_live_change_waiting(
    world: TwoProviders, openai_server: OpenAIServer, other_server: OpenAIServer, faults: dict[str, Any]
) -> None:
    """All its batches are in hand, many are parked; each new text of the active one is embedded, and paid for once."""
    release = asyncio.Event()
    if faults.get("hold"):
        other_server.hold = release
    else:
        other_server.faults.status = faults["status"]
        other_server.faults.headers = {"retry-after-ms": "50"}
    async with filled(world, 5):
        await world.rebuild(embedding_model="text-embedding-3-large")
        await world.put(*world.read(2, range(200)))
        await eventually(lambda: other_server.stats.requests)
        for i in range(60):
            await world.put(live(300 + i, 600 + i, f"live {i}"))

            async def served(i: int = i) -> bool:
                return key(300 + i) in await world.keys(1)

            if i % 20 == 0:
                await eventually(served)
        await world.put(live(301, 700, "", op="d"))

        async def all_served() -> bool:
            return len(await world.keys(1)) == 65 and await world.keys(1, "delete") == {key(301)}

        await eventually(all_served)
        assert await world.keys(2) == set()
        assert await world.lag() >= 200
        assert world.now.blocked is None
        release.set()
        other_server.faults.status = 0
        await world.drained()
        assert await world.keys(2) >= {key(i) for i in range(200)} | {key(300 + i) for i in range(60) if i != 1}
    assert openai_server.stats.texts == 65
    assert other_server.stats.texts == other_server.stats.distinct


async def test_a_building_provider_that_waits_too_long_stalls(
    world: TwoProviders, openai_server: OpenAIServer, other_server: OpenAIServer
) -> None:
    other_server.faults.status = 503
    world.settings.embedder.building_patience_seconds = 0.5
    async with filled(world, 5):
        await world.rebuild(embedding_model="text-embedding-3-large")
        await world.put(*world.read(2, range(100)), live(200, 600, "live"))
        await world.drained()
        stalled = world.now.building
        assert stalled is not None
        assert stalled.state == "stalled"
        assert "no answer" in str(stalled.stalled)
        assert "503" in str(stalled.stalled)
        assert key(200) in await world.keys(1)
    other_server.faults.status = 0
    await world.control.definitions.retry(world.table.id)
    async with world.running():
        await world.put(*world.read(3, range(100), lsn=800))
        await world.drained()
    assert await world.keys(3) == {key(i) for i in range(100)}


async def test_a_restart_while_the_building_provider_waits_pays_nothing_twice(
    world: TwoProviders, openai_server: OpenAIServer, other_server: OpenAIServer
) -> None:
    """The active one's rows are read again, for the offsets stand where the other one waits."""
    other_server.faults.status, other_server.faults.headers = 429, {"retry-after-ms": "50"}
    await world.define()
    await world.rebuild(embedding_model="text-embedding-3-large")

    async def served() -> bool:
        return len(await world.keys(1)) == 40

    async with world.killed():
        await world.put(*(live(i, 600 + i, f"live {i}") for i in range(40)))
        await eventually(served)
    await world.store_all()
    async with world.killed():
        await eventually(lambda: other_server.stats.requests > 2)
    other_server.faults.status = 0
    async with world.running():
        await world.drained()
    assert openai_server.stats.texts == other_server.stats.texts == 40
    assert await world.keys(1) == await world.keys(2)


async def test_a_building_definition_that_cannot_be_used_stalls(
    world: TwoProviders, openai_server: OpenAIServer
) -> None:
    async with filled(world, 5):
        await world.control.definitions.put_provider(EmbeddingProvider("ep_3", "r", "custom"))  # without an address
        await world.rebuild(provider="ep_3")
        await world.put(*world.read(2, range(40), text="new"), live(200, 600, "live"))
        await world.drained()
        stalled = world.now.building
        assert stalled is not None
        assert (stalled.state, world.now.error) == ("stalled", None)
        assert "base_url" in str(stalled.stalled)
        assert key(200) in await world.keys(1)


async def test_blocked_tells_of_the_active_generations_provider(
    world: TwoProviders, openai_server: OpenAIServer, other_server: OpenAIServer
) -> None:
    """And the building one goes on meanwhile."""
    async with filled(world, 5):
        await world.rebuild(embedding_model="text-embedding-3-large")
        openai_server.faults.status = 401
        await world.put(live(200, 600, "live"))
        await eventually(lambda: world.now.blocked)
        await world.put(*world.read(2, range(100)))

        async def built() -> bool:
            return len(await world.keys(2)) == 101

        await eventually(built)
        building = world.now.building
        assert building is not None
        assert building.state == "building"
        openai_server.faults.status = 0
        await world.drained()
        await eventually(lambda: world.now.blocked is None)


async def test_what_serves_already_is_not_passed_over(
    world: TwoProviders, openai_server: OpenAIServer, other_server: OpenAIServer
) -> None:
    """The swap was quicker than its provider's stop: it waits for it, as every active one does."""
    async with filled(world, 5):
        second = await world.rebuild(embedding_model="text-embedding-3-large")
        await world.put(*world.read(2, range(5)))
        await world.drained()
        table_id = world.table.id
        for task in await world.control.tasks.open_tasks([table_id]):
            await world.control.tasks.update(task.id, status="completed")
        await world.control.states.set_backfilled(table_id, second.number)
        await world.control.states.set_ready(table_id, second.number)
        assert await world.control.states.begin_swap(table_id, second.number, fills=1)
        other_server.faults.status = 401
        await world.put(live(200, 600, "live"))
        await eventually(lambda: other_server.stats.refused)
        assert await world.control.states.finish_swap(table_id, second.number, "2100-01-01T00:00:00Z")
        await eventually(lambda: world.now.blocked)
        assert await world.lag() == 1
        other_server.faults.status = 0
        await world.drained()
    assert key(200) in await world.keys(2)


async def test_a_swap_restarts_no_worker(world: TwoProviders, openai_server: OpenAIServer) -> None:
    """What is in hand for the new active one is not given up; the old one's is not waited for any more."""
    closed = []
    consumer_of = world.log.consumer

    def noted(*args: Any) -> Any:
        consumer = consumer_of(*args)
        close = consumer.close

        async def closes() -> None:
            closed.append(consumer)
            await close()

        consumer.close = closes  # type: ignore[method-assign]
        return consumer

    world.log.consumer = noted  # type: ignore[method-assign,assignment]
    async with filled(world, 5):
        second = await world.rebuild(embedding_model="text-embedding-3-large")
        await world.put(*world.read(2, range(5)))
        await world.drained()
        openai_server.faults.status = 401
        await world.put(live(200, 600, "live"))
        await eventually(lambda: world.now.blocked)
        await swap(world, second)
        await world.drained()
        assert key(200) in await world.keys(2)
        assert key(200) not in await world.keys(1)
        assert not closed


async def test_texts_that_serve_nobody_yet_come_last() -> None:
    """One model of one provider: a live text goes with the next request, whatever is being built; and one that both
    want is not sent twice."""

    class Slow(FakeProvider):
        def __init__(self) -> None:
            super().__init__(4, Limits(max_in_flight=1, max_items=10))
            self.sent: list[Sequence[str]] = []
            self.go = asyncio.Semaphore(0)

        async def embed(self, texts: Sequence[str], *, kind: Kind) -> np.ndarray:
            self.sent.append(texts)
            await self.go.acquire()
            return await super().embed(texts, kind=kind)

    class Box:
        def __init__(self) -> None:
            self.usage = Usage()
            self.got: list[str] = []

        def put(self, answers: Sequence[Answer]) -> None:
            self.got.extend(a.hash for a in answers)

    provider, building, serving = Slow(), Box(), Box()
    dispatcher = Dispatcher(provider)
    sending = asyncio.create_task(dispatcher.run())
    dispatcher.want([(f"h{i}", f"t{i}") for i in range(100)], building, later=True)
    await eventually(lambda: provider.sent)
    dispatcher.want([("h500", "t500"), ("h77", "t77")], serving)
    provider.go.release()
    await eventually(lambda: len(provider.sent) == 2)
    assert list(provider.sent[1]) == ["t500", "t77"]
    for _ in range(20):
        provider.go.release()
    await eventually(lambda: len(building.got) == 100)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert serving.got == ["h500", "h77"]
    assert sum(len(s) for s in provider.sent) == 101


async def test_texts_that_serve_nobody_yet_are_not_starved() -> None:
    """However much is wanted before them, one request in eight is theirs."""
    sent: list[str] = []

    class Counting(FakeProvider):
        async def embed(self, texts: Sequence[str], *, kind: Kind) -> np.ndarray:
            sent.extend(texts)
            return await super().embed(texts, kind=kind)

    class Box:
        usage = Usage()

        def put(self, answers: Sequence[Answer]) -> None:
            return

    dispatcher = Dispatcher(Counting(4, Limits(max_in_flight=1, max_items=1)))
    dispatcher.want([(f"b{i}", f"b{i}") for i in range(3)], Box(), later=True)
    dispatcher.want([(f"s{i}", f"s{i}") for i in range(100)], Box())
    sending = asyncio.create_task(dispatcher.run())
    await eventually(lambda: len(sent) == 103)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert [sent.index(f"b{i}") for i in range(3)] == [7, 15, 23]


# -------------------------------------------------------------------- what waits is not lost


async def test_known_generation_while_all_batches_wait(
    world: TwoProviders, openai_server: OpenAIServer, other_server: OpenAIServer
) -> None:
    """Rows of a generation that the role does not know yet, polled while it has no room for anything."""
    async with full(world, openai_server) as (tell, held):
        await world.put(*world.read(2, range(200)))
        await tell()
        held.set()
        await world.drained()
        assert await world.keys(1) == {key(i) for i in range(200)}
        assert await world.keys(2) == {key(i) for i in range(200)}


async def test_a_lane_that_opens_while_the_other_one_waits_misses_nothing(
    world: TwoProviders, openai_server: OpenAIServer, other_server: OpenAIServer
) -> None:
    """What was polled before it was there, and while the other one had no room, is all its own."""
    async with full(world, openai_server) as (tell, held):
        mixed = [live(200 + i, 300 + i, f"text {200 + i}") for i in range(100)]
        read = world.read(2, range(200))
        await world.put(*(c for pair in zip(mixed, read, read[100:], strict=False) for c in pair))
        await tell()
        await eventually(lambda: other_server.stats.requests)
        held.set()
        await world.drained()
        assert await world.keys(2) == {key(i) for i in range(300)}
