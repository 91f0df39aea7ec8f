"""The whole guarantee in one event loop: a simulated source history and log readers that crash, replay and come late,
around the real parts: assembler, progress, stamping, chunk writer, gate, planner and batch, dispatcher, sink worker,
upkeep and a store. One `step` is one atomic move; `drain` lets everything come to rest; `equal` compares.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cdc import stamping
from cdc.assembler import Assembler
from cdc.backfill import Cursor
from cdc.encoder import Batch as Hand
from cdc.encoder import TablePlan
from cdc.gate import Identity, decide
from cdc.pgoutput import UNCHANGED, Relation, Value
from cdc.progress import Progress
from cdc.rows import RowShape
from cdc.slots import SlotState
from cdc.stream import Delivered
from cdc.work import ChunkWriter, sweep_record
from embedder.batch import Batch
from embedder.context import Context
from embedder.dispatch import Dispatcher
from embedder.intake import take_in
from embedder.memory import Memory
from embedder.packing import Limits
from embedder.providers.fake import FakeProvider
from embedder.providers.port import Kind
from sink.stores.port import Store
from sink.upkeep import Upkeep
from sink.worker import Worker, decode
from tests.integration.cdc_world import CONNECTION, column, key, vector_table
from tests.unit.cdc_stream import wire_source as wire
from walvec.contracts.errors import ProviderRejectedInput
from walvec.contracts.position import ZERO, Position
from walvec.contracts.snapshots import XidSnapshot
from walvec.contracts.sources import RowsRead
from walvec.contracts.stores import StoredVersion
from walvec.definitions.memory import MemoryControl
from walvec.definitions.model import Connection, EmbeddingProvider, Generation, VectorTable
from walvec.runtime.settings import settings_from
from walvec.transport.memory import MemoryLog
from walvec.transport.records import (
    Fetch,
    Record,
    changes_topic,
    embedder_group,
    sink_group,
    vectors_topic,
)

KEYS = (1, 2, 3)
TEXTS = ("A", "B", "poison")
OID = 50
FIRST_XID = 1000
PARTITIONS = 2
RELATION = Relation(OID, "public", "items", "f", wire.attributes(("id", 23), ("name", 25), ("n", 20)))
TABLE = vector_table("items", columns=(column("name"),), metadata=(column("n", 20),), backfilled=True)
GENERATION = TABLE.active
Rows = Mapping[int, tuple[str, int]]
MOVES = {
    "commit": 5, "reveal": 1.5, "deliver": 3, "send": 3, "land": 3, "confirm": 1.5, "forget": 1, "work": 3, "embed": 3,
    "sink": 3, "come_late": 1, "settle": 0.3, "purge": 0.2, "replay": 0.3, "rebackfill": 0.3,
    "crash": 0.6, "lose_slot": 0.1, "fail_over": 0.1,
}  # fmt: skip
FAULTS = ("crash", "lose_slot", "fail_over")


@dataclass(frozen=True, slots=True)
class Transaction:
    """Committed at `lsn`, ended at `end`; `frames` are what the server sends of it, `rows` the table after it."""

    xid: int
    lsn: int
    end: int
    frames: tuple[bytes, ...]
    touched: frozenset[int]
    rows: Rows


@dataclass(slots=True)
class Job:
    """A backfill, or the replay of one letter: key ranges that are read one after the other."""

    chunks: tuple[tuple[int, ...], ...]
    sweep: bool
    token: str
    letter: Position | None = None
    stored: dict[str, Any] = field(default_factory=dict)
    at: int = 0
    lowest: Position | None = None
    reading: stamping.Reading | None = None
    window: list[tuple[int, int]] | None = None
    lines: list[tuple[bytes | None, ...]] = field(default_factory=list)
    appended: Position | None = None
    task: str = ""


class Provider(FakeProvider):
    cured = False

    async def embed(self, texts: Sequence[str], *, kind: Kind) -> np.ndarray:
        if not self.cured and any("poison" in t for t in texts):
            raise ProviderRejectedInput("this text cannot be embedded.")
        return await super().embed(texts, kind=kind)


class Held:
    """A producer whose records land when the test says so, or never."""

    def __init__(self) -> None:
        self.records: list[tuple[str, list[Record]]] = []

    async def append(self, topic: str, records: Sequence[Record]) -> None:
        self.records.append((topic, list(records)))

    async def close(self) -> None:
        return


class World:
    """`full`: the source sends old images. `lie`: the look-up may say anything of the store's text."""

    def __init__(
        self, store: Store, seed: int, *, full: bool, lie: bool, faults: int, table: VectorTable = TABLE
    ) -> None:
        self.random = random.Random(seed)
        self.store, self.full, self.lie, self.faults = store, full, lie, faults
        self.table, self.generation = table, table.active
        self.control, self.log = MemoryControl(), MemoryLog(settings_from({"log": {"partitions": PARTITIONS}}).log)
        self.shape = RowShape(self.generation)
        self.changes, self.vectors = changes_topic(table.storage_name), vectors_topic(table.storage_name)
        self.groups = {self.changes: embedder_group(table.storage_name), self.vectors: sink_group(table.storage_name)}
        self.trace: list[str] = []
        self.at_once = self.random.choice((0.2, 0.6, 0.95))
        # each history has its own pace: what is slow in one is quick in another
        self.weights = {name: weight * self.random.choice((0.3, 1, 1, 3)) for name, weight in MOVES.items()}
        self.weights["reveal"] *= self.random.choice((0.1, 1))
        self.hash = self.generation.hasher(table.provider_kind)
        # the source
        self.history: list[Transaction] = []
        self.lsn, self.xid, self.timeline = 100, FIRST_XID, 1
        self.seen: set[int] = set()
        self.rows: Rows = {}
        # cdc
        self.epoch, self.session, self.cursor, self.confirmed = 0, 0, 0, 100
        self.horizon, self.slot_at = 0, 100
        self.late: list[tuple[str, Callable[[], Awaitable[None]]]] = []
        self.job: Job | None = None
        self.restart(100)
        # the rest
        self.provider = Provider(self.generation.embedding_dimensions, Limits())
        self.dispatcher = Dispatcher(self.provider)
        self.sending: asyncio.Task[None] | None = None

    async def open(self) -> None:
        d = self.control.definitions
        await d.put_connection(Connection(CONNECTION, "c", "postgresql", "managed", "dsn"))
        await d.put_provider(EmbeddingProvider("prov_1", "p", "fake"))
        await d.put_vector_table(self.table)
        for topic in (self.changes, self.vectors, f"walvec.{self.table.storage_name}.dead"):
            await self.log.ensure_topic(topic)
        await self.store.ensure(self.table, self.generation)
        await self.store.show(self.table, self.generation)
        self.worker = Worker(self.table, settings_from({}), control=self.control, log=self.log, store=self.store)
        self.upkeep = Upkeep(self.worker, settings_from({}), control=self.control, log=self.log, store=self.store)
        self.sending = asyncio.create_task(self.dispatcher.run())
        if self.random.random() < 0.5:  # a table with rows, read for the first time
            for _ in range(4):
                await self.commit()
            self.restart(self.lsn, fresh=True)
            await self.confirm()
            await self.begin_job(sweep=False)

    async def close(self) -> None:
        assert self.sending is not None
        self.sending.cancel()
        await asyncio.gather(self.sending, return_exceptions=True)

    # ------------------------------------------------------------------ the source

    def held(self, touched: frozenset[int]) -> bool:
        """A row, or the table, is locked by a transaction that nobody sees yet."""
        return any(t.xid not in self.seen and t.touched & touched for t in self.history)

    async def commit(self) -> None:
        """One random transaction; it may become visible later than it is committed."""
        rows, frames, touched, meta = dict(self.rows), [], set[int](), len(self.history) * 10
        k = self.random.choice(KEYS)
        for n in range(self.random.choice((1, 1, 1, 2, 3))):
            k = k if self.random.random() < 0.7 else self.random.choice(KEYS)
            made = self._operation(rows, meta + n, k)
            if made is not None:
                frames.append(made[0])
                touched |= made[1]
        if self.random.random() < 0.15:
            frames, rows, touched = [wire.insert(99, [b"1"])], dict(self.rows), set()
        if not frames or self.held(frozenset(touched)):
            return
        lsn, self.lsn = self.lsn, self.lsn + 8
        self.history.append(Transaction(self.xid, lsn, self.lsn, tuple(frames), frozenset(touched), rows))
        self.rows, self.xid = rows, self.xid + 1
        if self.random.random() < self.at_once:
            self.seen.add(self.history[-1].xid)

    def _values(self, k: int, rows: Rows) -> list[Value]:
        return [b"%d" % k, rows[k][0].encode(), b"%d" % rows[k][1]]

    def _operation(self, rows: dict[int, tuple[str, int]], meta: int, k: int) -> tuple[bytes, set[int]] | None:
        what = self.random.choice(("write", "write", "text", "meta", "meta", "delete", "key", "truncate"))
        if what == "truncate":
            if self.random.random() < 0.7:
                return None
            rows.clear()
            return wire.truncate(OID), set(KEYS)
        if k not in rows:
            if what not in ("write", "key"):
                return None
            rows[k] = (self.random.choice(TEXTS), meta)
            return wire.insert(OID, self._values(k, rows)), {k}
        old = self._values(k, rows)
        mark = b"O" if self.full else b"K"
        if what == "delete":
            del rows[k]
            return wire.delete(OID, old if self.full else [old[0], None, None], mark), {k}
        if what == "key":
            to = self.random.choice(KEYS)
            if to in rows:
                return None
            rows[to] = (rows.pop(k)[0], meta)
            new = self._values(to, rows)
            if not self.full:
                new[1] = UNCHANGED
            return wire.update(OID, new, old if self.full else [old[0], None, None], mark), {k, to}
        rows[k] = (rows[k][0] if what == "meta" else self.random.choice(TEXTS), meta)
        new = self._values(k, rows)
        if what == "meta" and self.random.random() < 0.6:
            new[1] = UNCHANGED
        return wire.update(OID, new, old if self.full else None, b"O"), {k}

    async def reveal(self) -> None:
        waiting = [t.xid for t in self.history if t.xid not in self.seen]
        if waiting:
            self.seen.add(self.random.choice(waiting))

    def snapshot(self) -> XidSnapshot:
        """What waits above the highest finished transaction is not listed."""
        top = max(self.seen, default=FIRST_XID - 1) + 1
        running = frozenset(t.xid for t in self.history if t.xid not in self.seen and t.xid < top)
        return XidSnapshot(min(running, default=top), top, running)

    def visible(self) -> Rows:
        """Rows as a SELECT sees them: locks make what is unseen of a row always its latest change."""
        rows: dict[int, tuple[str, int]] = {}
        for t in self.history:
            if t.xid in self.seen:
                for k in t.touched:
                    rows.pop(k, None)
                    if k in t.rows:
                        rows[k] = t.rows[k]
        return rows

    # ------------------------------------------------------------------ cdc: the stream

    def restart(self, at: int, *, fresh: bool = False) -> None:
        """A new session at a confirmed position: memory, records in hand and chunks in hand are gone."""
        self.session += 1
        self.confirmed = self.received = at
        self.cursor = next((i for i, t in enumerate(self.history) if t.end > at), len(self.history))
        self.memory = at
        self.delivered = Delivered()
        self.progress = Progress(durable=at)
        self.hand = Hand(self.changes, PARTITIONS)
        self.assembler = Assembler(self.epoch, "shop")
        self.assembler.route(TablePlan.of(self.table), self.hand)
        self.assembler.feed([wire.frame(wire.relation(RELATION))])
        self.appends: list[tuple[Any, list[Record]]] = []
        self.horizon = 0
        if fresh:  # asking for an xid takes one
            self.horizon = self.xid
            self.seen.add(self.xid)
            self.xid += 1
        if self.job is not None:
            self._reload(self.job)

    async def deliver(self) -> None:
        if self.cursor == len(self.history):
            fed = self.assembler.feed([wire.keepalive(self.lsn)])
        else:
            t = self.history[self.cursor]
            self.cursor += 1
            payloads = [wire.begin(t.lsn, t.xid), *t.frames, wire.commit(t.lsn, t.end)]
            fed = self.assembler.feed([wire.frame(p) for p in payloads])
        assert not fed.rejected
        assert not fed.changed
        for commit in fed.commits:
            self.delivered.add(*commit)
        self.received = fed.reached
        self.progress.reached(fed.reached, held=bool(self.assembler.batches()))

    async def send(self) -> None:
        """Records in hand go out in one append, or several."""
        records, self.hand.records = self.hand.records, []
        if not records:
            return
        cut = self.random.randrange(len(records) + 1)
        parts = [p for p in (records[:cut], records[cut:]) if p]
        ticket = self.progress.sent(len(parts))
        self.appends += [(ticket, part) for part in parts]

    async def land(self) -> None:
        if self.appends:
            ticket, records = self.appends.pop(0)
            await self._append(self.changes, records)
            self.progress.done(ticket)

    async def confirm(self) -> None:
        self.confirmed = max(self.confirmed, self.progress.durable)
        stored = await self.control.progress.get(CONNECTION)
        await self.control.progress.put(
            CONNECTION, replace(stored, epoch=self.epoch, lsn=max(self.confirmed, 0), timeline=self.timeline,
                                system_identifier="s", log_identity="l", slot_created_lsn=self.slot_at)
        )  # fmt: skip

    async def forget(self) -> None:
        xids = [xid for xid, _ in self.delivered.commits]
        snapshot = self.snapshot()
        self.delivered.forget({x for x in xids if snapshot.sees(x)})

    async def crash(self) -> None:
        """What was sent may still land, late, in order; or never."""
        for _, records in self.appends:
            self._later("changes", lambda records=records: self._append(self.changes, records))  # type: ignore[misc]
        self.restart(self.confirmed)

    async def lose_slot(self) -> None:
        """Changes in the gap are never streamed: the gate says so, and a sweeping rebackfill makes up for them."""
        await self.confirm()
        stored = await self.control.progress.get(CONNECTION)
        decision = decide(stored, SlotState(self.confirmed, True, "lost", False, "shop"), self._identity(), 0)
        assert decision.gap
        assert decision.fresh
        await self._anew(decision.epoch)

    async def fail_over(self) -> None:
        """The new primary lacks the last transaction, which was read."""
        if self.job is not None or not self.history or self.history[-1].xid not in self.seen:
            return
        last = self.history[-1]
        if self.received < last.end or self.hand.records or self.appends or self.progress.durable < last.end:
            return
        await self.confirm()
        self.history.pop()
        self.rows = self.history[-1].rows if self.history else {}
        self.lsn, self.timeline = last.lsn, self.timeline + 1
        stored = await self.control.progress.get(CONNECTION)
        slot = SlotState(self.lsn, False, "", False, "shop")
        decision = decide(stored, slot, self._identity(), self.received)
        assert decision.epoch == self.epoch + 1
        assert decision.gap
        await self._anew(decision.epoch)

    def _identity(self) -> Identity:
        return Identity("s", self.timeline, "l", "shop", ((self.timeline - 1, self.lsn),))

    async def _anew(self, epoch: int) -> None:
        self.epoch, self.slot_at = epoch, self.lsn + 1000 * self.session
        job = self.job
        if job is not None and job.letter is None and self.random.random() < 0.5:
            # the task itself lives on: what it has stored is another slot's
            job.token, job.sweep = f"{self.slot_at}:{self.epoch}", True
        else:
            await self.end_job("cancelled")
        self.confirmed = self.lsn
        self.restart(self.lsn, fresh=True)
        await self.confirm()
        if self.job is None:
            await self.begin_job(sweep=True)

    # ------------------------------------------------------------------ cdc: backfill and replay

    async def begin_job(self, *, sweep: bool, letter: tuple[int, Position] | None = None) -> None:
        chunks = ((letter[0],),) if letter else self.random.choice([((1, 2, 3),), ((1,), (2, 3)), ((1,), (2,), (3,))])
        job = Job(chunks, sweep, f"{self.slot_at}:{self.epoch}", letter[1] if letter else None)
        kind: Any = "replay" if letter else "rebackfill"
        job.task = (await self.control.tasks.create(kind, self.table.id, self.generation.number, {})).id
        self.job = job

    async def end_job(self, status: Any) -> None:
        if self.job is not None:
            if self.job.window is not None:
                self.delivered.close(self.job.window)
            await self.control.tasks.update(self.job.task, status=status)
            self.job = None

    def _reload(self, job: Job) -> None:
        cursor = Cursor.load(job.stored, job.token)
        job.at, job.lowest = cursor.rows, cursor.lowest
        job.reading = job.window = job.appended = None

    async def work(self) -> None:
        """The next atomic move of the job."""
        job = self.job
        if job is None:
            return
        if job.at >= len(job.chunks):
            await self._finish(job)
        elif job.appended is not None:
            await self._store(job)
        elif job.reading is None:
            self._read(job)
        elif self.received >= job.reading.mark:
            await self._judge(job, job.reading)

    def _read(self, job: Job) -> None:
        # the writers' gate: who was committed before this session and is unseen still holds its locks on the table
        if any(t.xid not in self.seen and t.touched and t.lsn < self.memory for t in self.history):
            return
        job.window = self.delivered.open()
        self.lsn += 1  # the watermark; its LSN is where the next COMMIT may be
        rows = self.visible()
        job.reading = stamping.Reading(self.session, self.lsn, self.snapshot())
        job.lines = [
            tuple(
                {"id": b"%d" % k, "name": rows[k][0].encode(), "n": b"%d" % rows[k][1]}[c] for c in self.shape.columns
            )
            for k in job.chunks[job.at]
            if k in rows
        ]

    async def _judge(self, job: Job, reading: stamping.Reading) -> None:
        window, job.window = job.window or [], None
        stamp = stamping.judge(
            reading,
            session=self.session,
            epoch=self.epoch,
            delivered=[*window, *self.delivered.commits],
            horizon=stamping.strict_horizon(fresh=True, session_horizon=self.horizon, table_horizon=0),
        )
        self.delivered.close(window)
        job.reading = None
        if not isinstance(stamp, Position):
            return
        if job.letter is not None and not stamping.outranks(stamp, job.letter):
            return
        writer = ChunkWriter(self.table, self.generation, self.shape, force=job.letter is not None)
        records, letters = writer.records(job.lines, stamp)
        assert not letters
        if self._fault(0.1):  # the old process has it in flight, another one begins
            self._later("chunk", lambda: self._append(self.changes, records))
            self.restart(self.confirmed)
            return
        await self._append(self.changes, records)
        job.appended = stamp

    async def _store(self, job: Job) -> None:
        assert job.appended is not None
        job.lowest = job.appended if job.lowest is None else min(job.lowest, job.appended)
        stamp, job.appended = job.appended, None
        if job.letter is not None:
            await self.control.letters.settle(
                self.table.id, self.generation.number, {key(id=job.chunks[job.at][0]): stamp}
            )
        job.at += 1
        job.stored = Cursor(job.token, None, job.lowest, job.at).store()

    async def _finish(self, job: Job) -> None:
        if job.letter is None and not await self.consumed():
            return
        if job.sweep and job.lowest is not None:
            await self._append(self.changes, [sweep_record(self.table, self.generation.number, job.lowest)])
        await self.end_job("completed")

    async def replay(self) -> None:
        """The cure may come before it, or not: then the letter comes again. It is not for ever either."""
        letters = await self.control.letters.page(self.table.id)
        self.provider.cured = self.random.random() < 0.6
        self.dispatcher.memory = Memory()
        if self.job is None and letters:
            one = self.random.choice(letters)
            await self.begin_job(sweep=False, letter=(int(one.key[6:-1]), one.position))

    async def rebackfill(self) -> None:
        if self.job is None:
            await self.begin_job(sweep=True)

    # ------------------------------------------------------------------ the log

    async def _append(self, topic: str, records: Sequence[Record]) -> None:
        if records:
            await self.log.producer().append(topic, list(records))

    def _later(self, what: str, land: Callable[[], Awaitable[None]]) -> None:
        self.late.append((what, land))

    def _fault(self, probability: float) -> bool:
        if self.faults and self.random.random() < probability:
            self.faults -= 1
            return True
        return False

    async def come_late(self) -> None:
        if self.late:
            what, land = self.late.pop(self.random.randrange(len(self.late)))
            self.trace.append(f"late {what}")
            await land()

    async def next_batch(self, topic: str) -> list[Fetch]:
        done, ends = await self.log.committed(topic, self.groups[topic]), await self.log.end_offsets(topic)
        out: list[Fetch] = []
        for p in [p for p in ends if done[p] < ends[p]]:
            if out and self.random.random() < 0.5:
                break
            end = min(ends[p], done[p] + self.random.choice((1, 2, 5)))
            out.append(Fetch(p, [r async for r in self.log.read(topic, p, done[p], end)]))
        return out

    async def consumed(self) -> bool:
        for topic, group in self.groups.items():
            if await self.log.committed(topic, group) != await self.log.end_offsets(topic):
                return False
        return True

    # ------------------------------------------------------------------ the embedder

    async def versions(
        self, table: VectorTable, generation: Generation, keys: Sequence[bytes]
    ) -> Mapping[bytes, StoredVersion]:
        if self.lie and self.random.random() < 0.5:
            text = self.random.choice(TEXTS)
            return {k: StoredVersion(ZERO, True, (self.hash(text),)) for k in keys}
        return await self.store.versions(table, generation, keys)

    async def vectors_of(
        self, table: VectorTable, generation: Generation, hashes: Sequence[str]
    ) -> Mapping[str, np.ndarray]:
        found = await self.store.vectors(table, generation, hashes)
        # a vector of a text that is poison now may have been stored before; the test wants it refused all the same
        return {} if self.random.random() < 0.5 else found

    async def read_rows(
        self, connection: Connection, table: VectorTable, generation: Generation, keys: Sequence[bytes]
    ) -> RowsRead:
        await self.commit()
        rows, snapshot = self.visible(), self.snapshot()
        found = {}
        for k in rows:
            if key(id=k) in keys:
                by_name = {"id": b"%d" % k, "name": rows[k][0].encode(), "n": b"%d" % rows[k][1]}
                found[key(id=k)] = self.shape.read_row([by_name[c] for c in self.shape.columns])
        await self.reveal()
        return RowsRead(found, snapshot)

    def context(self, producer: Any) -> Context:
        return Context(
            table=self.table,
            connection=self.control.feed.current.connections[CONNECTION],
            producer=producer,
            control=self.control,
            lookup=Lookup(self),
            rows=self,
            dispatcher_of=lambda generation: self.dispatcher,
            memory_of=lambda generation: self.dispatcher.memory,
            dead_letter_limit=10**9,
        )

    async def embed(self) -> None:
        fetches = await self.next_batch(self.changes)
        if not fetches:
            return
        held = Held()
        context = self.context(held)
        await Batch(context, self.generation).run(await take_in(context, fetches))
        if self._fault(0.1):
            self._later("vectors", lambda: self._all(held))
            return
        await self._all(held)
        if not self._fault(0.1):
            await self._commit(self.changes, fetches)

    async def _all(self, held: Held) -> None:
        for topic, records in held.records:
            await self._append(topic, records)

    async def _commit(self, topic: str, fetches: Sequence[Fetch]) -> None:
        await self.log.reset(topic, self.groups[topic], {f.partition: f.next_offset for f in fetches})

    # ------------------------------------------------------------------ the sink

    async def sink(self) -> None:
        fetches = await self.next_batch(self.vectors)
        if not fetches:
            return
        if self._fault(0.1):
            self._later("sink", lambda: self._apply(fetches))
            return
        await self._apply(fetches)
        if not self._fault(0.1):
            await self._commit(self.vectors, fetches)

    async def _apply(self, fetches: Sequence[Fetch]) -> None:
        await self.worker._apply(decode(fetches), self.log.producer())

    async def purge(self) -> None:
        await self.upkeep.purge()

    async def settle(self) -> None:
        await self.upkeep._letters()

    # ------------------------------------------------------------------ all together

    async def step(self) -> None:
        moves = [m for m in self.weights if self.faults or m not in FAULTS]
        name = self.random.choices(moves, [self.weights[m] for m in moves])[0]
        if name in FAULTS:
            self.faults -= 1
        self.trace.append(name)
        await getattr(self, name)()

    async def drain(self) -> None:
        """No more transactions; all that is open is done. What comes late may still come, or never."""
        for _ in range(1000):
            self.seen |= {t.xid for t in self.history}
            for move in (self.deliver, self.send, self.land, self.confirm, self.work, self.embed, self.sink):
                await move()
            idle = self.cursor == len(self.history) and not self.hand.records and not self.appends
            if idle and self.job is None and await self.consumed():
                return
        raise AssertionError("never drained")


@dataclass(frozen=True, slots=True)
class Lookup:
    world: World

    async def versions(self, *arguments: Any) -> Mapping[bytes, StoredVersion]:
        return await self.world.versions(*arguments)

    async def vectors(self, *arguments: Any) -> Mapping[str, np.ndarray]:
        return await self.world.vectors_of(*arguments)
