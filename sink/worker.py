"""One vector table: batches of `.vectors` into the store, what the store gives back to where it belongs, then the
offset (rule commit-after-output).

A batch is read and decoded while the one before it is written. A refused claim goes back to `.changes` (rule
claim-back); a record that the store cannot take becomes a dead letter, then a delete (rule dead-delete). Next:
`upkeep.py` (indexes, letters, purge), `service.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, get_args

from sink.latency import Latencies
from sink.stalling import stalls
from sink.stores.port import Store
from walvec.contracts.changes import ALL_GENERATIONS, Change
from walvec.contracts.errors import (
    ControlUnavailable,
    DecodeError,
    DefinitionError,
    LogUnavailable,
    PartitionLost,
    RecordsLost,
    StoreRejected,
    StoreUnavailable,
)
from walvec.contracts.headers import check_schema, headers_of
from walvec.contracts.histograms import NUMBERS, Histogram
from walvec.contracts.letters import DeadLetter, LetterKind
from walvec.contracts.position import ZERO, Position
from walvec.contracts.values import key_check
from walvec.contracts.vectors import VectorRecord
from walvec.contracts.wire import decode_vector, encode_change, encode_vector
from walvec.definitions.making import ensure_topics
from walvec.definitions.model import Generation, VectorTable
from walvec.definitions.oversized import append_fitting, words
from walvec.definitions.ports import Control
from walvec.definitions.rebackfill import go_on_after
from walvec.runtime import measures, retry
from walvec.runtime.measures import Sample
from walvec.runtime.settings import Settings
from walvec.transport.ports import Consumer, Log, Producer
from walvec.transport.records import (
    Fetch,
    Record,
    changes_topic,
    dead_topic,
    letter_record,
    sink_group,
    vectors_topic,
)

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_REVOKE_SECONDS = 5.0
_FEED_SECONDS = 2.0
T = TypeVar("T")


async def persistently(call: Callable[[], Awaitable[T]], table: VectorTable, action: str) -> T:
    """Until it is done: an outage of the store, the log or the control database is waited out."""
    return await retry.persistently(
        call, StoreUnavailable, LogUnavailable, ControlUnavailable, action=action, table=table.name
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """`records` by generation; `unreadable`: what is not a vector record, with its reason."""

    offsets: Mapping[int, int]
    records: Mapping[int, Sequence[VectorRecord]]
    unreadable: Sequence[tuple[bytes, bytes, str]] = ()


def decode(fetches: Sequence[Fetch]) -> Batch:
    records: dict[int, list[VectorRecord]] = {}
    unreadable: list[tuple[bytes, bytes, str]] = []
    for fetch in fetches:
        for stored in fetch.records:
            try:
                check_schema(stored.headers)
                record = decode_vector(stored.key, stored.value)
            except DecodeError as e:
                where = f"{e} (partition {fetch.partition}, offset {stored.offset})"
                unreadable.append((stored.key or b"", stored.value, where))
                continue
            records.setdefault(record.generation, []).append(record)
    return Batch({f.partition: f.next_offset for f in fetches}, records, unreadable)


def sent_back(record: VectorRecord) -> Record:
    """A refused claim as a forced change at its own position (rule claim-back)."""
    change = Change(
        op="r",
        position=record.position,
        key=record.key,
        after=record.metadata,
        exact=record.exact,
        generation=record.generation,
        force=True,
        text="".join(c.text for c in record.chunks),
        commit_ms=record.commit_ms,
    )
    return Record(record.key, encode_change(change), None, headers_of(record.position))


@dataclass(slots=True)
class Counts:
    """Of one table and process. `letters`: open now; `buried`: written, by kind."""

    applied: int = 0
    refused: int = 0
    rejected: int = 0
    last_commit_ms: int = 0
    letters: int = 0
    latencies: Latencies = field(default_factory=Latencies)
    read: int = 0
    passed_over: int = 0
    buried: Counter[str] = field(default_factory=Counter)
    batches: Histogram = field(default_factory=lambda: Histogram(NUMBERS))
    apply_seconds: Histogram = field(default_factory=Histogram)
    commit_to_stored: Histogram = field(default_factory=Histogram)

    def polled(self, fetches: Sequence[Fetch]) -> None:
        count = sum(len(f.records) for f in fetches)
        self.read += count
        self.batches.add(count)

    def samples(self, table: str) -> Iterator[Sample]:
        yield measures.RECORDS_READ.of(self.read, table, "sink")
        yield measures.BATCH_RECORDS.of(self.batches, table, "sink")
        yield measures.VECTORS_APPLIED.of(self.applied, table)
        yield measures.VECTORS_REFUSED.of(self.passed_over, table)
        yield measures.CLAIMS_SENT_BACK.of(self.refused, table)
        yield measures.STORE_APPLY.of(self.apply_seconds, table)
        yield measures.COMMIT_TO_STORED.of(self.commit_to_stored, table)
        for kind in get_args(LetterKind):
            yield measures.DEAD_LETTERS.of(self.buried[kind], table, kind)


class Worker:
    """`run` returns only by cancellation or an error that a person must mend."""

    def __init__(self, table: VectorTable, settings: Settings, *, control: Control, log: Log, store: Store) -> None:
        self.table = table
        self.counts = Counts()
        self._settings = settings
        self._control = control
        self._log = log
        self._store = store
        self._in_hand = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._dead_in_row = table.dead_in_row > 0
        self._rejected: Counter[int] = Counter()
        """In a row, of generations that are being built."""
        self.passed_over: set[int] = set()
        """Generations that have stalled, or are gone: for ever (rule never-back)."""

    async def run(self) -> None:
        table = self.table
        name = table.storage_name
        topics = (vectors_topic(name), changes_topic(name), dead_topic(name))
        await persistently(
            lambda: ensure_topics(table, *topics, control=self._control, log=self._log), table, "ensure_topics"
        )
        producer = self._log.producer()
        consumer = self._log.consumer(vectors_topic(name), sink_group(name), self._revoked)
        ready: asyncio.Queue[Batch] = asyncio.Queue(maxsize=1)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(consumer, ready))
                group.create_task(self._write(consumer, producer, ready))
        except ExceptionGroup as e:
            raise e.exceptions[0] from e
        finally:
            self._idle.set()
            await consumer.close()
            await producer.close()

    async def _read(self, consumer: Consumer, ready: asyncio.Queue[Batch]) -> None:
        sink = self._settings.sink
        while True:
            try:
                fetches = await persistently(
                    lambda: consumer.poll(
                        max_records=sink.batch_records, max_bytes=sink.batch_bytes, timeout=_POLL_SECONDS
                    ),
                    self.table,
                    "poll",
                )
            except RecordsLost as e:
                await persistently(
                    lambda e=e: go_on_after(e, self.table, control=self._control, consumer=consumer),  # type: ignore[misc]
                    self.table,
                    "records_lost",
                )
                continue
            if not fetches:
                continue
            self.counts.polled(fetches)
            self._in_hand += 1
            self._idle.clear()
            await ready.put(decode(fetches))

    async def _revoked(self, partitions: frozenset[int]) -> None:
        """What is in hand is finished first; if the store is away, the next owner does it again (rule guard)."""
        try:
            async with asyncio.timeout(_REVOKE_SECONDS):
                await self._idle.wait()
        except TimeoutError:
            extra = {"action": "revoke", "table": self.table.name, "partitions": len(partitions)}
            logger.warning("partitions given up with a batch in hand", extra=extra)

    async def _write(self, consumer: Consumer, producer: Producer, ready: asyncio.Queue[Batch]) -> None:
        while True:
            batch = await ready.get()
            await self._apply(batch, producer)
            try:
                await persistently(lambda batch=batch: consumer.commit(batch.offsets), self.table, "commit")  # type: ignore[misc]
            except PartitionLost:
                logger.info("partition lost", extra={"action": "commit", "table": self.table.name})
            self._in_hand -= 1
            if self._in_hand == 0:
                self._idle.set()

    async def _apply(self, batch: Batch, producer: Producer) -> None:
        if batch.unreadable:
            await self._bury(
                producer,
                [self._unreadable(self.table.active, key, value, reason) for key, value, reason in batch.unreadable],
            )
        await self._know(max(batch.records, default=0))
        for number, records in batch.records.items():
            for generation in self._generations(number):
                try:
                    await self._apply_generation(generation, records, producer)
                except (StoreRejected, DefinitionError) as e:
                    # durable before its records are passed over
                    if not await stalls(self._control, self.table, generation, e):
                        raise
                    self.passed_over.add(generation.number)

    async def _know(self, number: int) -> None:
        """Rule known-generation: what is newer than our definitions is not gone, the feed has not brought it yet (it
        then ends this desk and begins another). Only what the control database itself does not know is passed over."""
        ask_at = time.monotonic()
        while self.table.next_generation <= number:
            if time.monotonic() >= ask_at:
                found = await persistently(self._control.definitions.snapshot, self.table, "get_definitions")
                table = found.vector_tables.get(self.table.id)
                if table is None or table.next_generation <= number:
                    extra = {"action": "generation", "table": self.table.name, "generation": number}
                    logger.warning("unknown generation", extra=extra)
                    return
                ask_at = time.monotonic() + _FEED_SECONDS
            await asyncio.sleep(0.05)

    def _generations(self, number: int) -> Sequence[Generation]:
        """Records of a generation that is gone are passed over."""
        live = [g for g in self.table.live_generations if g.number not in self.passed_over]
        return live if number == ALL_GENERATIONS else [g for g in live if g.number == number]

    async def _apply_generation(
        self, generation: Generation, records: Sequence[VectorRecord], producer: Producer
    ) -> None:
        table, counts = self.table, self.counts
        of_table = key_check(generation.key_codecs)
        strange = [r for r in records if r.op != "truncate" and not of_table(r.key)]
        if strange:
            reason = "a vector record whose key is not this table's."
            await self._bury(producer, [self._unreadable(generation, r.key, encode_vector(r), reason) for r in strange])
            records = [r for r in records if r.op == "truncate" or of_table(r.key)]
        began = time.monotonic()
        answer = await persistently(lambda: self._store.apply(table, generation, records), table, "apply")
        counts.apply_seconds.add(time.monotonic() - began)
        done = answer.applied + len(answer.refused_claims) + len(answer.rejected)
        counts.passed_over += max(0, len(records) - done)
        too_large = 0
        if answer.refused_claims:
            too_large = await self._send_back(generation, answer.refused_claims, producer)
            counts.refused += len(answer.refused_claims)
        if answer.rejected:
            await self._reject(generation, answer.rejected, producer)
        rejected = len(answer.rejected) + too_large if answer.applied == 0 else 0
        if generation.state == "building":
            self._too_many(generation, rejected)
        else:
            await self._in_a_row(rejected)
        if await self._letters_open():
            await self._settle(generation, records, {r.key for r, _ in answer.rejected})
        self._count(records, answer.applied)

    def _unreadable(self, generation: Generation, key: bytes, value: bytes, reason: str) -> DeadLetter:
        """Without a position: nothing is known to be older. A key of another shape could not be read again."""
        known = key if key_check(generation.key_codecs)(key) else b""
        return DeadLetter(
            self.table.id, generation.number, known, "decode", reason, ZERO, created_ms=_now_ms(), payload=value
        )

    async def _send_back(self, generation: Generation, claims: Sequence[VectorRecord], producer: Producer) -> int:
        """Returns how many are too large for `.changes`: letters, and deletes, like what the store does not take."""
        table, topic, too_large = self.table, changes_topic(self.table.storage_name), 0
        by_key = {c.key: c for c in claims}

        async def instead(large: Sequence[Record], limit: int) -> list[Record | None]:
            nonlocal too_large
            too_large += len(large)
            found = [(by_key[r.key or b""], words(topic, r, limit)) for r in large]
            await self._reject(generation, found, producer, "too_large")
            return [None] * len(large)

        back = [sent_back(r) for r in claims]
        await persistently(lambda: append_fitting(producer, topic, back, instead), table, "send_claims_back")
        return too_large

    async def _reject(
        self,
        generation: Generation,
        rejected: Sequence[tuple[VectorRecord, str]],
        producer: Producer,
        kind: LetterKind = "store",
    ) -> None:
        """The letter is durable before its delete (rules dead-delete, forced-delete)."""
        table = self.table
        await self._bury(
            producer,
            [
                DeadLetter(
                    table.id, generation.number, r.key, kind, reason, r.position, created_ms=_now_ms(),
                    payload=encode_vector(r),
                )
                for r, reason in rejected
            ],
        )  # fmt: skip
        deletes = [VectorRecord("delete", r.position, r.key, generation.number) for r, _ in rejected]
        await persistently(lambda: self._store.apply(table, generation, deletes), table, "delete_rejected")
        self.counts.rejected += len(rejected)

    async def _bury(self, producer: Producer, letters: Sequence[DeadLetter]) -> None:
        table = self.table
        await persistently(lambda: self._control.letters.put(letters), table, "put_letters")
        records = [letter_record(letter) for letter in letters]
        await persistently(lambda: producer.append(dead_topic(table.storage_name), records), table, "append_letters")
        self.counts.letters += len(letters)
        self.counts.buried.update(letter.kind for letter in letters)
        for letter in letters[:1]:
            extra = {"action": "dead_letter", "table": table.name, "kind": letter.kind, "letters": len(letters)}
            logger.warning("records could not be stored", extra=extra)

    def _too_many(self, generation: Generation, rejected: int) -> None:
        """Of one that is being built: it stalls, the table goes on."""
        number = self._rejected[generation.number] = self._rejected[generation.number] + rejected if rejected else 0
        if number >= self._settings.embedder.dead_letter_limit:
            raise StoreRejected(
                f"{number} changes in a row could not be stored.",
                "See `walvec dead list`; mend the cause, then run `walvec backfill` on the table.",
            )

    async def _in_a_row(self, rejected: int) -> None:
        """Past the limit the table stops instead of draining itself into the dead letters."""
        if not rejected and not self._dead_in_row:
            return
        table, states = self.table, self._control.states
        number = await persistently(lambda: states.count_dead(table.id, rejected), table, "count_dead")
        self._dead_in_row = rejected > 0
        if rejected and number >= self._settings.embedder.dead_letter_limit:
            await persistently(
                lambda: states.set_error(
                    table.id,
                    "dead_letters",
                    f"{number} changes in a row could not be stored.",
                    "See `walvec dead list`; mend the cause, then resume the table.",
                ),
                table,
                "set_error",
            )

    async def _letters_open(self) -> int:
        """Asked for each batch, so that a drained table's list is up to date; an outage holds no batch up."""
        try:
            self.counts.letters = await self._control.letters.count(self.table.id)
        except ControlUnavailable as e:
            logger.debug("letters not counted", extra={"action": "count_letters", "reason": str(e)})
        return self.counts.letters

    async def _settle(self, generation: Generation, records: Sequence[VectorRecord], rejected: set[bytes]) -> None:
        """A letter leaves the list when the store's version of its key is strictly newer."""
        newest: dict[bytes, Position] = {}
        for record in records:
            if record.op != "truncate" and record.key not in rejected:
                newest[record.key] = max(record.position, newest.get(record.key, ZERO))
        claims = {r.key for r in records if r.op == "metadata"}
        newest = {k: p for k, p in newest.items() if k not in claims}
        if newest:
            letters, table = self._control.letters, self.table
            await persistently(lambda: letters.settle(table.id, generation.number, newest), table, "settle_letters")

    def _count(self, records: Sequence[VectorRecord], applied: int) -> None:
        counts, now_ms = self.counts, time.time() * 1000
        counts.applied += applied
        streamed = [r.commit_ms for r in records if r.commit_ms and r.position.ordinal]
        if streamed:
            counts.last_commit_ms = max(counts.last_commit_ms, *streamed)
            waited = [max(0.0, now_ms - ms) for ms in streamed]
            counts.latencies.add(time.monotonic(), waited)
            counts.commit_to_stored.add_all(waited, unit=0.001)

    def report(self) -> dict[str, object]:
        counts = self.counts
        p50, p99 = counts.latencies.percentiles(time.monotonic(), 0.5, 0.99)
        return {
            "applied": counts.applied,
            "refused": counts.refused,
            "rejected": counts.rejected,
            "last_commit_ms": counts.last_commit_ms,
            "latency_ms_p50": p50,
            "latency_ms_p99": p99,
        }


def _now_ms() -> int:
    return int(time.time() * 1000)
