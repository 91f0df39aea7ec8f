"""Batches of records -> the log, several appends in flight. What is durable is told to `progress`.

Law: one producer, so appends become durable in call order; the first that fails ends the session, which then starts
again from what was durable: nothing is skipped, and order within a partition is kept. Next: `reader` confirms.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from cdc.counts import Counts
from cdc.encoder import Batch
from cdc.progress import Progress
from walvec.contracts.errors import NotFound
from walvec.runtime.lifecycle import cancelled
from walvec.transport.ports import Producer
from walvec.transport.records import Record


class Publisher:
    """`wanted(topic)`: False once nobody wants the topic's table any more; its records are let go then."""

    def __init__(
        self,
        producer: Producer,
        progress: Progress,
        *,
        max_bytes: int,
        max_batches: int,
        wake: Callable[[], None],
        wanted: Callable[[str], bool],
        counts: Counts,
    ) -> None:
        self._producer = producer
        self._progress = progress
        self._max_bytes = max_bytes
        self._max_batches = max_batches
        self._wake = wake
        self._wanted = wanted
        self._counts = counts
        self._in_flight: set[asyncio.Task[None]] = set()
        self._bytes = 0
        self._moved = asyncio.Event()
        self._failure: BaseException | None = None
        self._released = False

    @property
    def full(self) -> bool:
        """So much is outstanding that the stream must not be read on."""
        return self._bytes >= self._max_bytes or self._progress.outstanding >= self._max_batches

    def send(self, batches: Sequence[Batch]) -> None:
        """Hands all records in hand to the log. Raises what an earlier append failed with."""
        self.check()
        ticket = self._progress.sent(len(batches))
        for batch in batches:
            records, size, commit_ms = batch.take()
            self._add_bytes(size)
            task = asyncio.create_task(self._append(batch.topic, records, commit_ms))
            self._in_flight.add(task)

            def done(task: asyncio.Task[None], size: int = size) -> None:
                self._in_flight.discard(task)
                self._add_bytes(-size)
                failure = None if task.cancelled() else task.exception()
                if failure is None and not task.cancelled():
                    self._progress.done(ticket)
                else:
                    self._failure = self._failure or failure or asyncio.CancelledError()
                self._moved.set()
                self._wake()

            task.add_done_callback(done)

    async def room(self) -> None:
        """Waits until something more may be sent."""
        began = time.monotonic()
        while self.full and self._failure is None and not self._released:
            self._moved.clear()
            await self._moved.wait()
        self._counts.waited_seconds += time.monotonic() - began
        self.check()

    def release(self) -> None:
        """Nobody waits for room any more: the session is ending."""
        self._released = True
        self._moved.set()

    async def drained(self) -> None:
        """Waits until everything sent is durable."""
        while self._in_flight and self._failure is None:
            self._moved.clear()
            await self._moved.wait()
        self.check()

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Lets go of what is in flight; whether it lands or not, it is streamed again."""
        await cancelled(*self._in_flight)
        await self._producer.close()

    def _add_bytes(self, size: int) -> None:
        self._bytes += size
        self._counts.in_flight_bytes = self._bytes

    async def _append(self, topic: str, records: list[Record], commit_ms: int) -> None:
        began = time.monotonic()
        try:
            await self._producer.append(topic, records)
            self._counts.table(topic).appended(len(records), time.monotonic() - began, time.time() - commit_ms / 1000)
        except NotFound:
            if self._wanted(topic):
                raise
