"""Polled records of one vector table become `.vectors` records; the part that waits comes last.

At once: deletes, truncates, claims, and rows whose vector is found by hash. Then, as the answers come: what a provider
was paid for. A row that no provider takes: its letter first, then its delete (rules dead-delete, forced-delete).
Next: `worker` commits the offsets of a batch that is done (rule commit-after-output).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

from embedder import encoder
from embedder.coalescer import coalesce
from embedder.dispatch import Answer, Dispatcher, Usage
from embedder.planner import Claim, Delete, Embed, Planner, Reread, Row, Truncate
from embedder.ports import RowReader, StoreLookup
from walvec.contracts import wire
from walvec.contracts.changes import Change
from walvec.contracts.errors import (
    ControlUnavailable,
    DecodeError,
    LogUnavailable,
    SourceRejected,
    SourceUnavailable,
    StoreRejected,
    StoreUnavailable,
)
from walvec.contracts.headers import check_schema, headers_of
from walvec.contracts.letters import DeadLetter, LetterKind
from walvec.contracts.position import ZERO, Position
from walvec.contracts.sources import RowsRead
from walvec.contracts.values import key_check
from walvec.definitions.model import Connection, Generation, VectorTable
from walvec.definitions.oversized import append_fitting, words
from walvec.definitions.ports import Control
from walvec.runtime.retry import persistently
from walvec.transport.ports import Producer
from walvec.transport.records import Fetch, Record, StoredRecord, dead_topic, letter_record, vectors_topic

_log = logging.getLogger(__name__)
_REREAD_PAUSE = 0.02
_REREAD_LONGEST = 1.0
_REREAD_KEYS = 1000
_PAYLOAD = 1024**2
_FEED_SECONDS = 2.0
K = TypeVar("K")
V = TypeVar("V")


_Placed = tuple[Change, tuple[int, StoredRecord]]
"""A change, and the partition and record that it came from."""


class Deaths(Protocol):
    """Counts dead letters in a row."""

    async def count(self, letters: int) -> None: ...

    async def reset(self) -> None: ...


@dataclass(slots=True, eq=False)
class Context:
    """What all batches of one vector table share."""

    table: VectorTable
    connection: Connection
    producer: Producer
    control: Control
    lookup: StoreLookup
    rows: RowReader
    dispatcher_of: Callable[[Generation], Dispatcher]
    deaths: Deaths
    usage: Usage = field(default_factory=Usage)
    planners: dict[int, Planner] = field(default_factory=dict)
    embedding: dict[tuple[int, bytes], Batch] = field(default_factory=dict)
    """Rows that wait for a provider, by generation and key."""

    def planner(self, generation: Generation) -> Planner:
        found = self.planners.get(generation.number)
        if found is None or found.generation is not generation:
            found = self.planners[generation.number] = Planner(generation, self.table.provider_kind)
        return found


@dataclass(slots=True, eq=False)
class _Inbox:
    usage: Usage
    answers: list[Answer] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, answers: Sequence[Answer]) -> None:
        self.answers.extend(answers)
        self.arrived.set()


class Batch:
    """One use only: `await run(fetches)`."""

    def __init__(self, context: Context, *, only_at_once: bool = False) -> None:
        self._context = context
        self._only_at_once = only_at_once
        self.done = asyncio.Event()
        self.rest = False
        """With `only_at_once`: something is left that waits for a provider or the source."""
        self.commit_ms = 0

    async def run(self, fetches: Sequence[Fetch]) -> None:
        """All outputs are durable on return. Raises TableChanged; outages are waited out."""
        context = self._context
        changes, truncates, damaged = self._decode(fetches)
        every = (*(c for c, _ in changes), *(c for _, c in truncates))
        await self._know(max((max(c.generation, c.newest) for c in every), default=0))
        damaged += self._foreign_keys(changes)  # only now: a newer generation may have another key
        if damaged:
            await self._bury(damaged)
        try:
            async with asyncio.TaskGroup() as tasks:
                for generation in context.table.live_generations:
                    mine = coalesce([c for c, _ in changes], generation.number, context.planner(generation).fillable)
                    if len(mine) < len(changes):
                        all_of_it = sum(c.generation in (0, generation.number) for c, _ in changes)
                        context.usage.save("coalesced", all_of_it - len(mine))
                    cleared = [(p, c) for p, c in truncates if c.generation in (0, generation.number)]
                    if mine or cleared:
                        tasks.create_task(self._generation(generation, mine, cleared))
        except ExceptionGroup as group:
            raise _first(group) from None
        finally:
            self.done.set()

    async def _know(self, generation: int) -> None:
        """Rule known-generation: a generation that is newer than our definitions is on its way in the feed; its
        records, and those of all generations, must not be taken for done without it. Only what the control database
        itself does not know is passed over."""
        context = self._context
        loop = asyncio.get_running_loop()
        ask_at = loop.time()
        while all(g.number < generation for g in context.table.generations):
            if loop.time() >= ask_at:
                found = await persistently(
                    context.control.definitions.snapshot, ControlUnavailable, action="get_definitions"
                )
                table = found.vector_tables.get(context.table.id)
                if table is None or all(g.number < generation for g in table.generations):
                    _log.warning("unknown generation", extra={"action": "generation", "generation": generation})
                    return
                ask_at = loop.time() + _FEED_SECONDS
            await asyncio.sleep(0.05)

    def _decode(self, fetches: Sequence[Fetch]) -> tuple[list[_Placed], list[tuple[int, Change]], list[DeadLetter]]:
        changes: list[_Placed] = []
        truncates: list[tuple[int, Change]] = []
        damaged: list[DeadLetter] = []
        latest = 0
        decode = wire.decode_change
        for fetch in fetches:
            for record in fetch.records:
                if self._only_at_once and wire.is_read(record.value):
                    self.rest = True  # a row that was read has a text to embed, as a rule: it is not looked at twice
                    continue
                try:
                    check_schema(record.headers)
                    change = decode(record.key, record.value)
                    if change.op == "t":
                        truncates.append((fetch.partition, change))
                    else:
                        _check(change)
                        changes.append((change, (fetch.partition, record)))
                except DecodeError as e:
                    damaged.append(self._unreadable(str(e), fetch.partition, record))
                    continue
                if change.commit_ms > latest:
                    latest = change.commit_ms
        self.commit_ms = latest
        return changes, truncates, damaged

    def _foreign_keys(self, changes: list[_Placed]) -> list[DeadLetter]:
        """Takes changes out of the list whose key is not one of this table: written as they are, they would be rows
        that the source does not have."""
        of_table = self._key_check()
        strange: list[_Placed] = []
        kept: list[_Placed] = []
        for placed in changes:
            (kept if of_table(placed[0].key) else strange).append(placed)
        changes[:] = kept
        return [self._unreadable("a change whose key is not this table's.", *place) for _, place in strange]

    def _key_check(self) -> Callable[[bytes | None], bool]:
        checks = [key_check(k) for k in dict.fromkeys(g.key_codecs for g in self._context.table.generations)]
        return checks[0] if len(checks) == 1 else lambda key: any(check(key) for check in checks)

    def _unreadable(self, reason: str, partition: int, record: StoredRecord) -> DeadLetter:
        """Without a position: nothing is known to be older. A key of another shape could not be read again."""
        table = self._context.table
        key = record.key if self._key_check()(record.key) else None
        where = f"{reason} (partition {partition}, offset {record.offset})"
        return _letter(table, table.active.number, key or b"", "decode", where, ZERO, record.timestamp_ms, record.value)

    async def _generation(
        self, generation: Generation, changes: Sequence[Change], truncates: Sequence[tuple[int, Change]]
    ) -> None:
        context = self._context
        planner = context.planner(generation)
        out: list[Record] = []
        embeds: list[Row] = []
        rereads: list[Reread] = []
        behind: list[tuple[Batch, Row]] = []
        unchanged = 0
        damaged: list[DeadLetter] = []
        for partition, change in truncates:
            plan = planner.plan(change)
            assert isinstance(plan, Truncate)
            out.append(Record(None, encoder.cleared(plan), partition, headers_of(plan.position)))
        for change in changes:
            try:
                plan = planner.plan(change)
            except (TypeError, ValueError, KeyError, AttributeError) as e:
                reason = f"a change that does not fit the vector table ({type(e).__name__})"
                letter = _letter(
                    context.table, generation.number, change.key, "decode", reason, change.position, change.commit_ms
                )
                damaged.append(letter)
                continue
            match plan:
                case Embed(row=row):
                    embeds.append(row)
                case Claim(row=row):
                    earlier = context.embedding.get((generation.number, row.key))
                    if earlier is None:
                        out.append(_claim(row))
                        unchanged += 1
                    else:
                        behind.append((earlier, row))
                case Delete():
                    out.append(_gone(plan))
                case Reread():
                    rereads.append(plan)
                case Truncate():
                    raise AssertionError("truncates are planned apart")
        context.usage.save("unchanged", unchanged)
        await self._emit(out)
        if damaged:
            await self._bury(damaged)
            deletes = [Delete(d.key, d.position, generation.number, d.created_ms) for d in damaged]
            await self._remove(deletes)
        if self._only_at_once:
            self.rest = self.rest or bool(behind or rereads)
            if embeds:
                await self._resolve(generation, embeds)
            return
        if not rereads and not behind:
            if embeds:
                await self._resolve(generation, embeds)
            return
        async with asyncio.TaskGroup() as tasks:
            if embeds:
                tasks.create_task(self._resolve(generation, embeds))
            if rereads:
                tasks.create_task(self._reread(generation, planner, rereads))
            if behind:
                tasks.create_task(self._follow(behind))

    async def _follow(self, behind: Sequence[tuple[Batch, Row]]) -> None:
        """Claims about a text whose upsert is still in hand would only be sent back: they follow it."""
        for batch in dict.fromkeys(b for b, _ in behind):
            await batch.done.wait()
            await self._emit([_claim(row) for b, row in behind if b is batch])
        self._context.usage.save("unchanged", len(behind))

    async def _resolve(self, generation: Generation, rows: list[Row]) -> None:
        """Never pay twice: the store's own version, a vector of the same hash, then the provider."""
        context = self._context
        table = context.table
        dispatcher = context.dispatcher_of(generation)
        out: list[Record] = []
        left: list[Row] = []
        superseded = unchanged = 0
        older = [r.key for r in rows if not r.fresh]
        versions = await self._ask(lambda: context.lookup.versions(table, generation, older)) if older else {}
        for row in rows:
            stored = versions.get(row.key)
            if stored is not None and stored.position >= row.position:
                superseded += 1  # rule guard: the store would refuse it
            elif stored is not None and not row.force and stored.live and stored.hashes == (row.hash,):
                out.append(_claim(row))
                unchanged += 1
            else:
                left.append(row)
        context.usage.save("superseded", superseded)
        context.usage.save("unchanged", unchanged)
        memory = dispatcher.memory
        by_hash: dict[str, list[Row]] = {}
        for row in left:
            by_hash.setdefault(row.hash, []).append(row)
        unknown = [h for h in by_hash if memory.get(h) is None]
        found = await self._ask(lambda: context.lookup.vectors(table, generation, unknown)) if unknown else {}
        texts: list[tuple[str, str]] = []
        for content_hash, same in by_hash.items():
            if len(same) > 1:
                context.usage.save("same_batch", len(same) - 1)
            known = memory.get(content_hash)
            if known is None and (stored_vector := found.get(content_hash)) is not None:
                known = np.ascontiguousarray(stored_vector, dtype="<f4").tobytes()
                memory.put(content_hash, known)
            if known is None:
                texts.append((content_hash, same[0].text))
                continue
            context.usage.save("store_hash" if content_hash in found else "memory")
            context.usage.embedded += len(same)
            sent = dispatcher.sent_text(same[0].text)
            out.extend(_upsert(row, sent, known) for row in same)
        await self._emit(out)
        if not texts:
            return
        if self._only_at_once:
            self.rest = True
            return
        waiting = {h: by_hash[h] for h, _ in texts}
        await self._await_vectors(generation, dispatcher, texts, waiting)

    async def _await_vectors(
        self,
        generation: Generation,
        dispatcher: Dispatcher,
        texts: Sequence[tuple[str, str]],
        waiting: dict[str, list[Row]],
    ) -> None:
        context = self._context
        inbox = _Inbox(context.usage)
        marks = [(generation.number, row.key) for rows in waiting.values() for row in rows]
        for mark in marks:
            context.embedding[mark] = self
        try:
            dispatcher.want(texts, inbox)
            while waiting:
                await inbox.arrived.wait()
                inbox.arrived.clear()
                answers, inbox.answers = inbox.answers, []
                out: list[Record] = []
                refused: list[tuple[Row, str]] = []
                for answer in answers:
                    rows = waiting.pop(answer.hash, ())
                    if answer.vector is None:
                        refused.extend((row, answer.reason) for row in rows)
                    else:
                        vector, text = answer.vector, answer.text
                        out.extend(_upsert(row, text, vector) for row in rows)
                context.usage.embedded += len(out)
                await self._emit(out)
                if refused:
                    await self._refuse(generation, refused)
        finally:
            if waiting:
                dispatcher.withdraw(inbox)
            for mark in marks:
                if context.embedding.get(mark) is self:
                    del context.embedding[mark]

    async def _refuse(self, generation: Generation, refused: Sequence[tuple[Row, str]]) -> None:
        """Rule dead-delete: the letter is durable first, then the row's delete at its own position goes out. Every
        row that gets here may have another text than the store, or is forced (rule forced-delete)."""
        table = self._context.table
        letters = [
            _letter(
                table, generation.number, row.key, "provider", reason, row.position, row.commit_ms, encoder.claim(row)
            )
            for row, reason in refused
        ]
        await self._bury(letters)
        await self._remove([Delete(row.key, row.position, row.generation, row.commit_ms) for row, _ in refused])

    async def _remove(self, deletes: Sequence[Delete]) -> None:
        """What follows a letter. Not an output in the sense of `_emit`: the letters in a row go on."""
        await self._append_vectors([_gone(d) for d in deletes])

    async def _bury(self, letters: Sequence[DeadLetter]) -> None:
        context = self._context
        found = list(letters)
        await persistently(lambda: context.control.letters.put(found), ControlUnavailable, action="put_letters")
        await self._append(
            dead_topic(context.table.storage_name),
            [letter_record(letter) for letter in found],
        )
        _log.warning(
            "dead letters written",
            extra={"action": "dead_letters", "vector_table": context.table.id, "count": len(found)},
        )
        context.usage.buried.update(letter.kind for letter in found)
        await context.deaths.count(len(found))

    async def _reread(self, generation: Generation, planner: Planner, plans: Sequence[Reread]) -> None:
        """Rule toast-visible: a snapshot that does not see the change's transaction would give the text before it."""
        context = self._context
        left = list(plans)
        pause = _REREAD_PAUSE
        progress = await persistently(
            lambda: context.control.progress.get(context.connection.id), ControlUnavailable, action="get_progress"
        )
        while left:
            part, left = left[:_REREAD_KEYS], left[_REREAD_KEYS:]
            read = await self._read(generation, [p.change.key for p in part])
            embeds: list[Row] = []
            out: list[Record] = []
            unseen: list[Reread] = []
            for plan in part:
                change = plan.change
                # a transaction of a timeline that was left behind is never seen here; a bridged table has no epochs
                current = context.table.source is not None or change.position.epoch >= progress.epoch
                if current and not read.snapshot.sees(change.xid):
                    unseen.append(plan)
                    continue
                found = read.rows.get(change.key)
                if found is None:
                    continue  # deleted meanwhile: a later change follows
                match planner.complete(plan, found):
                    case Embed(row=row):
                        embeds.append(row)
                    case Claim(row=row):
                        out.append(_claim(row))
                    case Delete() as gone:
                        out.append(_gone(gone))
                    case _:
                        raise AssertionError("a completed change is planned in full")
            await self._emit(out)
            if embeds:
                await self._resolve(generation, embeds)
            if unseen:
                left.extend(unseen)
                if len(unseen) == len(part):
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _REREAD_LONGEST)

    async def _read(self, generation: Generation, keys: list[bytes]) -> RowsRead:
        context = self._context
        return await persistently(
            lambda: context.rows.read_rows(context.connection, context.table, generation, keys),
            SourceUnavailable,
            SourceRejected,
            action="read_rows",
        )

    async def _ask(self, call: Callable[[], Awaitable[Mapping[K, V]]]) -> Mapping[K, V]:
        """A look-up only spares money: a store that refuses it knows nothing; one that is down is waited for."""
        try:
            return await persistently(call, StoreUnavailable, action="look_up")
        except StoreRejected as e:
            _log.info("look-up refused", extra={"action": "look_up_refused", "reason": str(e)})
            return {}

    async def _emit(self, records: list[Record]) -> None:
        if records:
            buried = await self._append_vectors(records)
            if buried < len(records):
                await self._context.deaths.reset()

    async def _append_vectors(self, records: Sequence[Record]) -> int:
        """Returns how many were too large: their letters are durable then, and so is the delete of each key."""
        topic, buried = vectors_topic(self._context.table.storage_name), 0

        async def instead(large: Sequence[Record], limit: int) -> list[Record | None]:
            nonlocal buried
            places, letters = self._too_large(topic, large, limit)
            buried += len(letters)
            if letters:
                await self._bury(letters)
            return places

        producer = self._context.producer
        await persistently(lambda: append_fitting(producer, topic, records, instead), LogUnavailable, action="append")
        self._context.usage.written += len(records)
        return buried

    def _too_large(
        self, topic: str, large: Sequence[Record], limit: int
    ) -> tuple[list[Record | None], list[DeadLetter]]:
        places: list[Record | None] = []
        letters: list[DeadLetter] = []
        for record in large:
            vector = wire.decode_vector(record.key, record.value)
            if vector.op == "delete":  # nothing smaller can be said of this key, and no row of it got here
                _log.error("delete is too large", extra={"action": "too_large", "topic": topic, "limit": limit})
                places.append(None)
                continue
            reason = words(topic, record, limit)
            letters.append(
                _letter(
                    self._context.table,
                    vector.generation,
                    vector.key,
                    "too_large",
                    reason,
                    vector.position,
                    vector.commit_ms,
                )
            )
            places.append(_gone(Delete(vector.key, vector.position, vector.generation, vector.commit_ms)))
        return places, letters

    async def _append(self, topic: str, records: Sequence[Record]) -> None:
        await persistently(lambda: self._context.producer.append(topic, records), LogUnavailable, action="append")


def _upsert(row: Row, text: str, vector: bytes) -> Record:
    return Record(row.key, encoder.upsert(row, text, vector), None, headers_of(row.position))


def _claim(row: Row) -> Record:
    return Record(row.key, encoder.claim(row), None, headers_of(row.position))


def _gone(plan: Delete) -> Record:
    return Record(plan.key, encoder.gone(plan), None, headers_of(plan.position))


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _check(change: Change) -> None:
    if not change.key:
        raise DecodeError("a change record without a key.")
    if change.op != "d" and not isinstance(change.after, dict):
        raise DecodeError(f'a change record of op "{change.op}" without a row.')


def _letter(
    table: VectorTable,
    generation: int,
    key: bytes,
    kind: LetterKind,
    reason: str,
    position: Position,
    at_ms: int,
    payload: bytes = b"",
) -> DeadLetter:
    return DeadLetter(
        table.id, generation, key, kind, reason[:2000], position, created_ms=at_ms, payload=payload[:_PAYLOAD]
    )


def spans(fetches: Iterable[Fetch]) -> dict[int, int]:
    """Partition -> the offset after its last record."""
    return {f.partition: f.next_offset for f in fetches}
