"""The work on one generation of a vector table, beside that of the others; all share the offsets of one log.

When all batches in work wait for a provider, what comes is *parked* as offsets alone, to be read again when there is
room, so that memory is bounded by `max_batches` polled batches for each generation. Of the generation that serves what
can go at once goes before: deletes and claims never wait for a provider.

A generation that waits holds up nobody but the offsets. The bound for the others: a live change is taken as soon as it
is polled; before it come at most the records that the log has ahead of it (backfills keep those few, see
`cdc.backfill_max_backlog`), read without waiting for a provider of a generation that is being built, and, where both
ask the same model of the same provider, the requests that are already on their way. What the waiting one holds is not
committed, so a restart reads it again, and pays for nothing: vectors are found by hash. After
`building_patience_seconds` without any answer it is stalled. Next: `worker` polls, `batch` does the work.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from typing import Protocol

from embedder.batch import Batch
from embedder.context import Context, Stalled
from embedder.intake import Polled, read_again
from embedder.offsets import Ticket
from walvec.contracts.errors import ControlUnavailable, DefinitionError, RecordsLost, TableChanged
from walvec.definitions.model import Generation
from walvec.definitions.rebackfill import lost_records
from walvec.runtime.lifecycle import cancelled
from walvec.runtime.retry import persistently
from walvec.transport.ports import Log
from walvec.transport.records import Fetch, StoredRecord, changes_topic

_TOO_SHORT_SECONDS = 3.0
_AGAIN_SECONDS = 0.25


class Desk(Protocol):
    """The worker, as its lanes see it."""

    @property
    def open(self) -> bool:
        """Whether what is parked may be begun."""

    def start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]: ...

    async def finish(self, ticket: Ticket) -> None:
        """A holder is done with it; offsets that are free now are committed on return."""

    def applied(self, generation: int, polled: Polled) -> None:
        """All outputs of that generation are durable."""


@dataclass(slots=True, eq=False)
class _Parked:
    partition: int
    start: int
    end: int
    records: int
    ticket: Ticket


class Lane:
    def __init__(self, context: Context, generation: Generation, log: Log, desk: Desk, *, max_batches: int) -> None:
        self.number = generation.number
        self._context = context
        self._first = generation
        self._log = log
        self._desk = desk
        self._max_batches = max_batches
        self._parked: deque[_Parked] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._tickets: set[Ticket] = set()
        self._active = 0
        self._room = asyncio.Event()
        self._closed = False

    @property
    def generation(self) -> Generation:
        """As it is defined now."""
        return self._context.table.generation(self.number) or self._first

    @property
    def full(self) -> bool:
        return self._active >= self._max_batches

    @property
    def waiting(self) -> bool:
        """Something is parked."""
        return bool(self._parked)

    @property
    def idle(self) -> bool:
        return not self._active and not self._parked

    @property
    def active(self) -> int:
        return self._active

    async def room_within(self, seconds: float) -> None:
        """Waits for room, at most so long; what is parked comes first."""
        self.fill()
        if self.full and seconds:
            self._room.clear()
            await within(self._room.wait(), seconds)

    async def emptied_within(self, seconds: float) -> None:
        """Waits for what is in work."""
        end = asyncio.get_running_loop().time() + seconds
        while self._active and (left := end - asyncio.get_running_loop().time()) > 0:
            self._room.clear()
            await within(self._room.wait(), left)

    async def take(self, polled: Polled, ticket: Ticket) -> None:
        """Begins the work, or does what can go at once and parks the rest. The ticket is finished when all is done."""
        self._tickets.add(ticket)
        if self._closed:
            await self._finish(ticket)
        elif not self.full:
            self._begin(self._apply(polled, ticket))
        elif self._context.serves(self.number):
            await self._ahead(polled, ticket)
        elif polled.concerns(self.number):
            self._park(polled, ticket)
        else:
            await self._finish(ticket)

    async def _ahead(self, polled: Polled, ticket: Ticket) -> None:
        batch = Batch(self._context, self.generation, only_at_once=True)
        went = await self._guarded(batch.run(polled))
        if self._closed:
            await self._finish(ticket)
            return
        if not went:
            return  # it is about to be closed
        if not batch.rest:
            self._desk.applied(self.number, polled)
            await self._finish(ticket)
        else:
            self._park(polled, ticket)

    def _park(self, polled: Polled, ticket: Ticket) -> None:
        self._tickets.discard(ticket)
        for fetch in polled.fetches:
            part = ticket.of(fetch.partition)
            self._tickets.add(part)
            start, end = fetch.records[0].offset, fetch.next_offset
            self._parked.append(_Parked(fetch.partition, start, end, len(fetch.records), part))

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        self._active += 1
        task = self._desk.start(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Also of a task that was cancelled before it began."""
        self._tasks.discard(task)
        self._active -= 1
        self._room.set()
        self.fill()

    def fill(self) -> None:
        """Begins what is parked, as far as there is room."""
        while self._parked and not self.full and not self._closed and self._desk.open:
            self._begin(self._work_parked(self._parked.popleft()))

    async def _apply(self, polled: Polled, ticket: Ticket) -> None:
        if await self._guarded(Batch(self._context, self.generation).run(polled)):
            self._desk.applied(self.number, polled)
            await self._finish(ticket)

    async def _work_parked(self, parked: _Parked) -> None:
        records = await self._read_again(parked)
        if len(records) < parked.records:
            await self._expired(parked)
        fetches = [Fetch(parked.partition, records)] if records else []
        await self._apply(read_again(self._context, fetches), parked.ticket)

    async def _guarded(self, work: Awaitable[None]) -> bool:
        """False: the generation has stalled. What a building one cannot go on with stops no other."""
        try:
            await work
        except Stalled:
            return False
        except (DefinitionError, TableChanged) as e:
            if await self._context.stall(self.number, e.kind, str(e)):
                return False
            if isinstance(e, TableChanged):
                await self._stop_table(e)
            raise
        return True

    async def _stop_table(self, error: TableChanged) -> None:
        states, table_id = self._context.control.states, self._context.table.id
        await persistently(
            lambda: states.set_error(table_id, "table_changed", error.message, error.cure),
            ControlUnavailable,
            action="set_error",
        )

    async def _read_again(self, parked: _Parked) -> list[StoredRecord]:
        """Fewer than were parked only when the log has let them go: a partition whose leader has just moved may end too
        early for a moment."""
        topic = changes_topic(self._context.table.storage_name)
        until = time.monotonic() + _TOO_SHORT_SECONDS
        while True:
            records = [r async for r in self._log.read(topic, parked.partition, parked.start, parked.end)]
            if len(records) >= parked.records or time.monotonic() > until:
                return records
            kept = next((t.start_offsets for t in await self._log.topics() if t.topic == topic), {})
            if kept.get(parked.partition, 0) > parked.start:
                return records
            await self._log.wait_for_append(_AGAIN_SECONDS)

    async def _expired(self, parked: _Parked) -> None:
        """The log did not keep what was parked: a provider was away for longer than its records are kept."""
        lost = RecordsLost(
            f"offsets {parked.start} to {parked.end} waited for the embedding provider and were not kept.",
            topic=changes_topic(self._context.table.storage_name),
            partition=parked.partition,
            resume_at=parked.end,
        )
        await persistently(
            lambda: lost_records(lost, self._context.table, control=self._context.control),
            ControlUnavailable,
            action="records_lost",
        )

    async def _finish(self, ticket: Ticket) -> None:
        """Once, whoever comes first: the work, or the lane's end."""
        if ticket in self._tickets:
            self._tickets.discard(ticket)
            await self._desk.finish(ticket)

    def forget(self, partitions: frozenset[int]) -> None:
        """They are read by somebody else now."""
        gone = [p for p in self._parked if p.partition in partitions]
        self._tickets.difference_update(p.ticket for p in gone)
        self._parked = deque(p for p in self._parked if p.partition not in partitions)

    async def close(self) -> None:
        """The generation is not fed any more: its records are passed over, what is in hand is dropped."""
        self._closed = True
        await cancelled(*self._tasks)
        self._parked.clear()
        self._room.set()
        for ticket in list(self._tickets):
            await self._finish(ticket)


async def within(waiter: Awaitable[object], seconds: float) -> None:
    """At most so long."""
    try:
        async with asyncio.timeout(seconds):
            await waiter
    except TimeoutError:
        return
