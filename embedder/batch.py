"""One generation's part of polled records becomes `.vectors` records; what waits comes last.

At once: deletes, truncates, claims, and rows whose vector is found by hash. Then, as the answers come: what a provider
was paid for. Next: `lanes` says when a batch is done (rule commit-after-output).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from embedder import known, outbox
from embedder.coalescer import coalesce
from embedder.context import Context
from embedder.dispatch import Dispatcher
from embedder.intake import Polled
from embedder.outbox import Outbox
from embedder.planner import Claim, Delete, Embed, Reread, Row, Truncate
from embedder.usage import Usage
from embedder.wanted import Answer
from walvec.contracts.changes import Change
from walvec.contracts.errors import ControlUnavailable, SourceRejected, SourceUnavailable
from walvec.contracts.letters import DeadLetter
from walvec.contracts.sources import RowsRead
from walvec.definitions.model import Generation
from walvec.runtime.retry import persistently
from walvec.transport.records import Record

_REREAD_PAUSE = 0.02
_REREAD_LONGEST = 1.0
_REREAD_KEYS = 1000


@dataclass(slots=True, eq=False)
class _Inbox:
    usage: Usage
    answers: list[Answer] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, answers: Sequence[Answer]) -> None:
        self.answers.extend(answers)
        self.arrived.set()


class Batch:
    """One use only: `await run(polled)`."""

    def __init__(self, context: Context, generation: Generation, *, only_at_once: bool = False) -> None:
        self._context = context
        self._generation = generation
        self._planner = context.planner(generation)
        self._out = Outbox(context, generation.number)
        self._only_at_once = only_at_once
        self._done = asyncio.Event()
        self.rest = False
        """With `only_at_once`: something is left that waits for a provider or the source."""

    async def run(self, polled: Polled) -> None:
        """All outputs are durable on return; outages are waited out. Raises TableChanged, Stalled, and DefinitionError
        for a provider that cannot be used."""
        number = self._generation.number
        try:
            changes = polled.changes
            if self._only_at_once:
                changes = [c for c in changes if c.op != "r"]  # they have texts to embed, as a rule
                self.rest = any(c.op == "r" and c.concerns(number) for c in polled.changes)
            mine = coalesce(changes, number, self._planner.fillable)
            if len(mine) < len(changes):
                all_of_it = sum(c.concerns(number) for c in changes)
                self._context.usage.save("coalesced", all_of_it - len(mine))
            cleared = [(p, c) for p, c in polled.truncates if c.concerns(number)]
            if mine or cleared:
                await self._apply(mine, cleared)
        except ExceptionGroup as group:
            raise first_of(group) from None
        finally:
            self._done.set()

    async def _apply(self, changes: Sequence[Change], truncates: Sequence[tuple[int, Change]]) -> None:
        context, planner = self._context, self._planner
        out: list[Record] = []
        embeds: list[Row] = []
        rereads: list[Reread] = []
        behind: list[tuple[asyncio.Event, Row]] = []
        unchanged = 0
        damaged: list[DeadLetter] = []
        for partition, change in truncates:
            plan = planner.plan(change)
            assert isinstance(plan, Truncate)
            out.append(outbox.cleared(plan, partition))
        for change in changes:
            try:
                plan = planner.plan(change)
            except (TypeError, ValueError, KeyError, AttributeError) as e:
                damaged.append(self._unfit(change, e))
                continue
            match plan:
                case Embed(row=row):
                    embeds.append(row)
                case Claim(row=row):
                    earlier = context.embedding.get((row.generation, row.key))
                    if earlier is None:
                        out.append(outbox.claim(row))
                        unchanged += 1
                    else:
                        behind.append((earlier, row))
                case Delete():
                    out.append(outbox.gone(plan))
                case Reread():
                    rereads.append(plan)
                case Truncate():
                    raise AssertionError("truncates are planned apart")
        context.usage.save("unchanged", unchanged)
        await self._out.emit(out)
        if damaged:
            await self._out.bury(damaged)
            await self._out.remove([Delete(d.key, d.position, d.generation, d.created_ms) for d in damaged])
        if self._only_at_once:
            self.rest = self.rest or bool(behind or rereads)
            rereads, behind = [], []
        if not rereads and not behind:
            if embeds:
                await self._resolve(embeds)
            return
        async with asyncio.TaskGroup() as tasks:
            if embeds:
                tasks.create_task(self._resolve(embeds))
            if rereads:
                tasks.create_task(self._reread(rereads))
            if behind:
                tasks.create_task(self._follow(behind))

    def _unfit(self, change: Change, error: Exception) -> DeadLetter:
        reason = f"a change that does not fit the vector table ({type(error).__name__})"
        return outbox.letter_of(
            self._context.table,
            self._generation.number,
            change.key,
            "decode",
            reason,
            change.position,
            change.commit_ms,
        )

    async def _follow(self, behind: Sequence[tuple[asyncio.Event, Row]]) -> None:
        """Claims about a text whose upsert is still in hand would only be sent back: they follow it."""
        for ended in dict.fromkeys(e for e, _ in behind):
            await ended.wait()
            await self._out.emit([outbox.claim(row) for e, row in behind if e is ended])
        self._context.usage.save("unchanged", len(behind))

    async def _resolve(self, rows: list[Row]) -> None:
        """Never pay twice: the store's own version, a vector of the same hash, then the provider."""
        context, generation = self._context, self._generation
        out: list[Record] = []
        left: list[Row] = []
        superseded = unchanged = 0
        versions = await known.versions(context, generation, [r.key for r in rows if not r.fresh])
        for row in rows:
            stored = versions.get(row.key)
            if stored is not None and stored.position >= row.position:
                superseded += 1  # rule guard: the store would refuse it
            elif stored is not None and not row.force and stored.live and stored.hashes == (row.hash,):
                out.append(outbox.claim(row))
                unchanged += 1
            else:
                left.append(row)
        context.usage.save("superseded", superseded)
        context.usage.save("unchanged", unchanged)
        dispatcher = context.dispatcher_of(generation)
        memory = dispatcher.memory
        by_hash: dict[str, list[Row]] = {}
        for row in left:
            by_hash.setdefault(row.hash, []).append(row)
        found = await known.vectors(context, generation, [h for h in by_hash if memory.get(h) is None])
        texts: list[tuple[str, str]] = []
        for content_hash, same in by_hash.items():
            if len(same) > 1:
                context.usage.save("same_batch", len(same) - 1)
            vector = memory.get(content_hash)
            if vector is None and content_hash in found:
                vector = found[content_hash]
                memory.put(content_hash, vector)
            if vector is None:
                texts.append((content_hash, same[0].text))
                continue
            context.usage.save("store_hash" if content_hash in found else "memory")
            context.usage.embedded += len(same)
            sent = dispatcher.sent_text(same[0].text)
            out.extend(outbox.upsert(row, sent, vector) for row in same)
        await self._out.emit(out)
        if not texts:
            return
        if self._only_at_once:
            self.rest = True
            return
        await self._await_vectors(dispatcher, texts, {h: by_hash[h] for h, _ in texts})

    async def _await_vectors(
        self, dispatcher: Dispatcher, texts: Sequence[tuple[str, str]], waiting: dict[str, list[Row]]
    ) -> None:
        context, number = self._context, self._generation.number
        inbox = _Inbox(context.usage)
        marks = [(number, row.key) for rows in waiting.values() for row in rows]
        for mark in marks:
            context.embedding[mark] = self._done
        try:
            dispatcher.want(texts, inbox, later=not context.serves(number))
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
                        out.extend(outbox.upsert(row, text, vector) for row in rows)
                context.usage.embedded += len(out)
                await self._out.emit(out)
                if refused:
                    await self._out.refuse(refused)
        finally:
            if waiting:
                dispatcher.withdraw(inbox)
            for mark in marks:
                if context.embedding.get(mark) is self._done:
                    del context.embedding[mark]

    async def _reread(self, plans: Sequence[Reread]) -> None:
        """Rule toast-visible: a snapshot that does not see the change's transaction would give the text before it."""
        context = self._context
        left = list(plans)
        pause = _REREAD_PAUSE
        progress = await persistently(
            lambda: context.control.progress.get(context.connection.id), ControlUnavailable, action="get_progress"
        )
        while left:
            part, left = left[:_REREAD_KEYS], left[_REREAD_KEYS:]
            read = await self._read([p.change.key for p in part])
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
                match self._planner.complete(plan, found):
                    case Embed(row=row):
                        embeds.append(row)
                    case Claim(row=row):
                        out.append(outbox.claim(row))
                    case Delete() as gone:
                        out.append(outbox.gone(gone))
                    case _:
                        raise AssertionError("a completed change is planned in full")
            await self._out.emit(out)
            if embeds:
                await self._resolve(embeds)
            if unseen:
                left.extend(unseen)
                if len(unseen) == len(part):
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _REREAD_LONGEST)

    async def _read(self, keys: list[bytes]) -> RowsRead:
        context = self._context
        return await persistently(
            lambda: context.rows.read_rows(context.connection, context.table, self._generation, keys),
            SourceUnavailable,
            SourceRejected,
            action="read_rows",
        )


def first_of(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
