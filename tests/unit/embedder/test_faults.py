"""Every fault of a provider, a kill, and what each costs."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embedder import lanes
from embedder.dispatch import Dispatcher
from embedder.pace import Backoff
from embedder.packing import Limits
from embedder.providers.fake import FakeProvider
from embedder.providers.openai import OpenAIProvider
from embedder.providers.port import Kind
from embedder.usage import Usage
from embedder.wanted import Answer
from tests.plugins.embedder_world import World, change, key, vector_table
from tests.plugins.eventually import eventually
from tests.plugins.openai_server import OpenAIServer
from walvec.contracts import wire
from walvec.contracts.errors import NotFound
from walvec.transport.records import Record, StoredRecord, changes_topic, dead_topic


@pytest.fixture
def world(openai_server: OpenAIServer) -> World:
    return World(openai_server.url)


async def test_one_poison_among_thousands_costs_two_requests_per_halving(
    world: World, openai_server: OpenAIServer
) -> None:
    await world.define()
    n = 2000
    await world.put(*(change(i, 10 + i, f"text {i}" + ("[[reject]]" if i == 777 else "")) for i in range(n)))
    async with world.running():
        await world.drained()
    outputs = await world.outputs()
    assert len({r.key for r in outputs if r.op == "upsert"}) == n - 1
    assert [(r.key, r.position.lsn) for r in outputs if r.op == "delete"] == [(key(777), 787)]
    assert openai_server.stats.texts == n - 1
    assert openai_server.stats.requests <= math.ceil(n / 512) + 2 * math.log2(512)
    (letter,) = await world.control.letters.page(world.table.id)
    assert (letter.kind, letter.key, letter.position) == ("provider", key(777), (1, 787, 1))
    assert "cannot be embedded" in letter.reason
    records = []
    for p in await world.log.end_offsets(dead_topic(world.table.storage_name)):
        records += [r async for r in world.log.read(dead_topic(world.table.storage_name), p, 0)]
    assert [r.key for r in records] == [key(777)]


async def test_dead_delete_and_forced_delete(world: World, openai_server: OpenAIServer) -> None:
    """The letter is durable before its delete; a forced record that no provider takes sends its delete too."""
    await world.define()
    order: list[str] = []
    put = world.control.letters.put

    async def noted(letters: object) -> None:
        order.append("letter")
        order.append(str(sum(r.op == "delete" for r in await world.outputs())))
        await put(letters)  # type: ignore[arg-type]

    world.control.letters.put = noted  # type: ignore[method-assign,assignment]
    async with world.running():
        await world.put(change(1, 10, op="r", text="poison [[reject]]", force=True))
        await world.drained()
    assert order == ["letter", "0"]
    assert [(r.op, r.position) for r in await world.outputs()] == [("delete", (1, 10, 1))]


async def test_dead_delete_of_a_change_that_does_not_fit_its_table(world: World, openai_server: OpenAIServer) -> None:
    """Its text is not the store's any more, whatever it is."""
    await world.define()
    value = wire.encode_change(change(1, 10, "x", op="u")).replace(
        b'"generation":0', b'"generation":0,"exact":["title"]'
    )
    await world.log.producer().append(changes_topic(world.table.storage_name), [Record(key(1), value)])
    async with world.running():
        await world.drained()
    assert [(r.op, r.key, r.position) for r in await world.outputs()] == [("delete", key(1), (1, 10, 1))]
    (letter,) = await world.control.letters.page(world.table.id)
    assert (letter.key, letter.position) == (key(1), (1, 10, 1))


async def test_a_request_that_was_given_up_before_it_left_stops_nobody() -> None:
    class Box:
        def __init__(self) -> None:
            self.usage = Usage()
            self.got = asyncio.Event()

        def put(self, answers: Sequence[Answer]) -> None:
            self.got.set()

    dispatcher = Dispatcher(FakeProvider(4, Limits(max_in_flight=1)))
    given_up, other = Box(), Box()
    sending = asyncio.create_task(dispatcher.run())
    dispatcher.want([("h1", "one")], given_up)
    asyncio.get_running_loop().call_soon(dispatcher.withdraw, given_up)  # after it was packed, before it is sent
    await eventually(lambda: dispatcher.memory.get("h1") or sending.done())
    dispatcher.want([("h2", "two")], other)
    await asyncio.wait_for(other.got.wait(), 5)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert given_up.usage.texts_sent == 0


async def test_a_dispatcher_that_broke_goes_on_where_it_stopped() -> None:
    """Requests that had begun, and those that had not, are sent when it runs again; its provider is still open."""

    class Broken(FakeProvider):
        calls, closed = 0, False

        async def embed(self, texts: Sequence[str], *, kind: Kind) -> np.ndarray:
            assert not self.closed
            self.calls += 1
            if self.calls == 1:
                raise ZeroDivisionError
            return await super().embed(texts, kind=kind)

        async def close(self) -> None:
            self.closed = True

    got: list[str] = []

    class Box:
        usage = Usage()

        def put(self, answers: Sequence[Answer]) -> None:
            got.extend(a.hash for a in answers)

    provider = Broken(4, Limits(max_items=1, max_in_flight=3))
    dispatcher = Dispatcher(provider)
    dispatcher.want([(f"h{i}", f"text {i}") for i in range(9)], Box())
    with pytest.raises(ExceptionGroup):
        await dispatcher.run()
    again = asyncio.create_task(dispatcher.run())
    await eventually(lambda: len(got) == 9 or again.done())
    again.cancel()
    await asyncio.gather(again, return_exceptions=True)
    assert sorted(got) == [f"h{i}" for i in range(9)]
    assert provider.closed


async def test_429_storm_pauses_all_and_loses_nothing(world: World, openai_server: OpenAIServer) -> None:
    world.settings.embedder.batch_records = 100
    openai_server.faults.status = 429
    openai_server.faults.answers = 12
    openai_server.faults.headers = {"retry-after-ms": "20"}
    await world.define()
    async with world.running():
        await world.put(*(change(i, 10 + i, f"text {i}") for i in range(1000)))
        await world.drained()
    assert openai_server.stats.texts == 1000
    assert len({r.key for r in await world.outputs()}) == 1000
    assert await world.control.letters.count(world.table.id) == 0


@pytest.mark.parametrize(
    "faults",
    [
        {"status": 503},
        {"status": 500},
        {"hang_up": True},
        {"bad_json": True},
        {"body": {"base_resp": {"status_code": 1002}}},
        {"body": {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}},
        {"body": {"object": "list", "data": []}},
    ],
    ids=str,
)
async def test_what_passes_by_itself_loses_nothing(
    world: World, openai_server: OpenAIServer, faults: dict[str, object]
) -> None:
    for name, value in faults.items():
        setattr(openai_server.faults, name, value)
    openai_server.faults.answers = 2
    await world.define()
    async with world.running():
        await world.put(*(change(i, 10 + i, f"text {i}") for i in range(20)))
        await world.drained()
    assert openai_server.stats.texts == 20
    assert await world.control.letters.count(world.table.id) == 0
    assert {r.op for r in await world.outputs()} == {"upsert"}


@pytest.mark.parametrize(
    ("status", "code"), [(429, "insufficient_quota"), (401, ""), (403, ""), (404, "model_not_found"), (402, "")]
)
async def test_stop_blocks_the_table_deletes_and_claims_flow_and_it_heals(
    world: World, openai_server: OpenAIServer, status: int, code: str
) -> None:
    openai_server.faults.status = status
    openai_server.faults.code = code
    openai_server.faults.message = "bad key sk-test-secret given"
    world.settings.embedder.batch_records = 5
    world.settings.embedder.max_batches = 2
    await world.define()
    async with world.running():
        await world.put(*(change(i, 10 + i, f"text {i}") for i in range(40)))
        await eventually(lambda: world.control.table(world.table.id).blocked)
        reason = world.control.table(world.table.id).blocked
        assert reason is not None
        assert str(status) in reason
        assert "sk-test-secret" not in reason
        await world.put(
            change(1, 100, op="d"),
            change(99, 101, "x", op="u", before={"title": "x", "body": None}),
            change(0, 99, op="t"),
        )

        async def flowed() -> bool:
            return {r.op for r in await world.outputs()} == {"delete", "metadata", "truncate"}

        await eventually(flowed)
        assert world.control.table(world.table.id).error is None
        requests = openai_server.stats.requests
        assert requests <= 6
        openai_server.faults.status = 0
        await world.drained()
        await eventually(lambda: world.control.table(world.table.id).blocked is None)
    assert openai_server.stats.texts == 40
    assert await world.control.letters.count(world.table.id) == 0


async def test_restart_on_loss_of_what_was_parked(
    world: World, openai_server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only a part of it is gone when it is read again."""
    openai_server.faults.status, openai_server.faults.code = 429, "insufficient_quota"
    world.settings.embedder.batch_records = 5
    world.settings.embedder.max_batches = 1
    await world.define()
    await world.control.states.set_backfilled(world.table.id, 1)
    read = world.log.read

    async def with_a_gap(
        topic: str, partition: int, offset: int, end: int | None = None
    ) -> AsyncIterator[StoredRecord]:
        async for record in read(topic, partition, offset, end):
            if record.offset == offset or topic != changes_topic(world.table.storage_name):
                yield record

    monkeypatch.setattr(world.log, "read", with_a_gap)
    monkeypatch.setattr(lanes, "_TOO_SHORT_SECONDS", 0.05)
    async with world.running():
        await world.put(*(change(i, 10 + i, f"text {i}") for i in range(40)))
        await world.put(change(1, 100, op="d"))  # behind what is parked

        async def read_on() -> bool:
            return bool(await world.outputs())

        await eventually(read_on)
        openai_server.faults.status = 0
        await world.drained()
    [task] = await world.control.tasks.open_tasks([world.table.id])
    assert (task.task_type, task.params["sweep"]) == ("rebackfill", True)
    assert "were not kept" in str(task.params["reason"])


async def test_a_worker_that_fails_begins_nothing_of_what_is_parked(
    world: World, openai_server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with batches in hand and others parked; the next one does all of them."""
    openai_server.faults.status, openai_server.faults.code = 429, "insufficient_quota"
    world.settings.embedder.batch_records = 5
    world.settings.embedder.max_batches = 1
    await world.define()
    failing, failed, consumers, unheard = asyncio.Event(), asyncio.Event(), world.log.consumer, list[str]()

    def consumer(*args: Any) -> Any:
        made = consumers(*args)
        poll = made.poll

        async def once(**more: Any) -> Any:
            if failing.is_set() and not failed.is_set():
                failed.set()
                raise NotFound("There is no such topic.")
            return await poll(**more)

        monkeypatch.setattr(made, "poll", once)
        return made

    monkeypatch.setattr(world.log, "consumer", consumer)
    asyncio.get_running_loop().set_exception_handler(lambda _, told: unheard.append(str(told)))
    async with world.running():
        await world.put(*(change(i, 10 + i, f"text {i}") for i in range(40)))
        await world.put(change(1, 100, op="d"))

        async def read_on() -> bool:
            return bool(await world.outputs())  # what is before it is parked

        await eventually(read_on)
        failing.set()
        await eventually(failed.is_set)
        openai_server.faults.status = 0
        await world.drained()
    assert unheard == []
    assert openai_server.stats.texts == 40


async def test_a_mended_provider_definition_is_used_at_once(world: World, openai_server: OpenAIServer) -> None:
    openai_server.faults.key = "sk-new"
    await world.define()
    async with world.running():
        await world.put(change(1, 10, "a"))
        await eventually(lambda: world.control.table(world.table.id).blocked)
        await world.control.definitions.put_provider(replace(world.provider, api_key="sk-new"))
        await world.drained()
        await eventually(lambda: world.control.table(world.table.id).blocked is None)
    assert openai_server.texts == ["T: a"]


async def test_too_many_dead_letters_in_a_row_stop_the_table_and_no_other(
    world: World, openai_server: OpenAIServer
) -> None:
    world.settings.embedder.dead_letter_limit = 5
    other = vector_table(table_id="vt_bbbbbbbb", name="other")
    await world.define(world.table, other)
    async with world.running():
        await world.put(*(change(i, 10 + i, f"[[reject]] {i}") for i in range(50)))
        await eventually(lambda: world.control.table(world.table.id).error)
        await world.put(change(1, 10, "fine"), table=other)

        async def empty() -> bool:
            return await world.lag(other) == 0

        await eventually(empty)
        assert await world.lag() > 0
        await world.control.states.clear_error(world.table.id)
        await eventually(lambda: world.control.table(world.table.id).error)
    error = world.control.table(world.table.id).error
    assert error is not None
    assert error["kind"] == "dead_letters"


async def test_successes_reset_the_count_of_dead_letters(world: World, openai_server: OpenAIServer) -> None:
    await world.define()
    async with world.running():
        await world.put(change(1, 10, "[[reject]]"))
        await eventually(lambda: world.control.table(world.table.id).dead_in_row == 1)
        await world.put(change(2, 11, "fine"))
        await eventually(lambda: world.control.table(world.table.id).dead_in_row == 0)


async def test_commit_after_output_and_a_kill_pays_less_than_what_was_in_flight(
    world: World, openai_server: OpenAIServer
) -> None:
    world.set_limits(max_items=50, max_in_flight=2)
    openai_server.hold = asyncio.Event()
    await world.define()
    await world.put(*(change(i, 10 + i, f"text {i}") for i in range(400)))
    async with world.killed():
        await eventually(lambda: openai_server.stats.in_flight == 2)
        openai_server.hold.set()
        await eventually(lambda: openai_server.stats.texts >= 200)
        openai_server.hold = asyncio.Event()
        await eventually(lambda: openai_server.stats.in_flight == 2)
        await eventually(world.outputs)
    openai_server.hold.set()
    openai_server.hold = None
    async with world.running():
        await world.drained()
    assert len({r.key for r in await world.outputs()}) == 400
    assert openai_server.stats.distinct == 400
    assert openai_server.stats.texts <= 400 + 100


async def test_a_restart_after_the_sink_took_over_pays_nothing(world: World, openai_server: OpenAIServer) -> None:
    await world.define()
    await world.put(*(change(i, 10 + i, f"text {i}") for i in range(100)))
    async with world.running():
        await world.drained()
    await world.store_all()
    topic = changes_topic(world.table.storage_name)
    await world.log.reset(topic, topic.replace("changes", "embedder"), dict.fromkeys(range(4), 0))
    async with world.running():
        await world.drained()
    assert openai_server.stats.texts == 100


async def test_limits_named_by_an_answer_are_learned(world: World, openai_server: OpenAIServer) -> None:
    openai_server.faults.max_items = 32
    openai_server.faults.max_tokens = 100
    await world.define()
    async with world.running():
        await world.put(*(change(i, 10 + i, f"a text of some length {i}") for i in range(300)))
        await world.drained()
    assert openai_server.stats.texts == 300
    assert openai_server.stats.refused <= 4 * 5  # requests in flight, halvings from 300 to 9
    assert await world.control.letters.count(world.table.id) == 0


async def test_a_text_above_the_limit_is_cut_and_counted(world: World, openai_server: OpenAIServer) -> None:
    openai_server.faults.max_text_tokens = 5000
    await world.define()
    long = "long " * 20_000
    async with world.running():
        await world.put(change(1, 10, long), change(2, 11, "short"))
        await world.drained()
    record = next(r for r in await world.outputs() if r.key == key(1))
    (chunk,) = record.chunks
    assert ("T: " + long).startswith(chunk.text)
    assert 3000 * 4 < len(chunk.text) <= 5000 * 4
    assert chunk.hash == world.table.active.hasher("openai")("T: " + long)
    reports = {s: r for _, s, r, _ in await world.control.reports.all()}
    assert reports[world.table.id]["texts_cut"] >= 1


def dispatcher(server: OpenAIServer, dimensions: int = 8) -> Dispatcher:
    provider = OpenAIProvider("text-embedding-3-small", dimensions, api_key="k", base_url=server.url, timeout=0.3)
    return Dispatcher(provider, backoff=Backoff(first=0.01, longest=0.05, first_probe=0.02), jitter=lambda: 1.0)


@pytest.mark.parametrize("marker", ["[[nan]]", "[[server]]", "[[slow]]"])
async def test_a_single_text_that_fails_alone_again_while_others_succeed_is_refused(
    openai_server: OpenAIServer, marker: str
) -> None:
    world = World(openai_server.url)
    d = dispatcher(openai_server)
    inbox = _Box()
    task = asyncio.create_task(d.run())
    d.want([(str(i), f"text {i}" + (marker if i == 5 else "")) for i in range(16)], inbox)
    await eventually(lambda: len(inbox.found) == 16)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [h for h, v in inbox.found.items() if v is None] == ["5"]
    assert world.table.id


async def test_wrong_dimensions_every_time_is_stop_and_heals(openai_server: OpenAIServer) -> None:
    openai_server.faults.dimensions = 5
    d = dispatcher(openai_server)
    inbox = _Box()
    task = asyncio.create_task(d.run())
    d.want([("1", "a"), ("2", "b")], inbox)
    await eventually(lambda: d.stopped)
    assert "5 dimensions" in (d.stopped or "")
    assert not inbox.found
    openai_server.faults.dimensions = 0
    await eventually(lambda: len(inbox.found) == 2)
    assert d.stopped is None
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_nan_for_all_waits_and_loses_nobody(openai_server: OpenAIServer) -> None:
    openai_server.faults.nan = True
    d = dispatcher(openai_server)
    inbox = _Box()
    task = asyncio.create_task(d.run())
    d.want([("1", "a"), ("2", "b")], inbox)
    await eventually(lambda: openai_server.stats.requests > 12)
    assert not inbox.found
    openai_server.faults.nan = False
    await eventually(lambda: len(inbox.found) == 2)
    assert all(inbox.found.values())
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class _Box:
    def __init__(self) -> None:
        from embedder.usage import Usage

        self.usage = Usage()
        self.found: dict[str, bytes | None] = {}

    def put(self, answers: object) -> None:
        for answer in answers:  # type: ignore[attr-defined]
            self.found[answer.hash] = answer.vector


def test_encoder_writes_the_wire_format() -> None:
    import numpy as np

    from embedder import encoder
    from embedder.planner import Row
    from walvec.contracts.position import Position
    from walvec.contracts.vectors import Chunk, VectorRecord

    vector = np.arange(4, dtype="<f4")
    row = Row(b"k", Position(1, 2, 3), 1, 'té"xt', "ab" * 16, {"a": 1}, {"a": "1.0"}, 9, False, False)
    chunk = Chunk(0, row.text, row.hash, vector)
    record = VectorRecord("upsert", row.position, b"k", 1, row.metadata, row.exact, (chunk,), 9)
    assert encoder.upsert(row, row.text, vector.tobytes()) == wire.encode_vector(record)
    claim = replace(record, op="metadata", chunks=(replace(chunk, vector=None),))
    assert encoder.claim(row) == wire.encode_vector(claim)
