"""Reads that get a stamp: watermark, snapshot and rows, then the stream's word on them. One source session's worth.

Law: a read begins only when the generation is routed and everything older than that is over (rule start-horizon); it
counts only when the stream has delivered its watermark in the same session (rule memory). Next: `backfill`, `rereads`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from time import monotonic
from typing import Protocol

from cdc import reading
from cdc.rows import Line
from cdc.session import Session
from cdc.stamping import ReadAgain, Reading, judge, strict_horizon
from cdc.stream import Stream
from walvec.contracts.position import Position

log = logging.getLogger(__name__)

Report = Callable[[str], Awaitable[None]]
"""Tells the user what a task waits for; "" = for nothing."""


@dataclass(frozen=True, slots=True)
class Read:
    """Rows and what is needed to judge them."""

    lines: list[Line]
    whole: bool
    size: int
    seconds: float
    facts: Reading
    window: list[tuple[int, int]]


class RowReader(Protocol):
    """Reads one generation's rows, each read with a stamp: `StampedReader`, `bridge_reads.BridgedReader`."""

    target: reading.Target

    async def chunk(self, after: Sequence[str] | None, *, limit: int, max_bytes: int) -> Read: ...

    async def keys(self, keys: Sequence[tuple[str, ...]]) -> Read: ...

    async def judge(self, read: Read, above: Sequence[Position] = ()) -> Position | ReadAgain: ...

    def drop(self, read: Read) -> None: ...


class StampedReader:
    """Reads one generation's rows in one source session."""

    def __init__(
        self, session: Session, stream: Stream, target: reading.Target, table_id: str, generation: int, report: Report
    ) -> None:
        self.target = target
        self._session = session
        self._stream = stream
        self._table_id = table_id
        self._generation = generation
        self._report = report
        self._open: tuple[int, int] | None = None

    async def chunk(self, after: Sequence[str] | None, *, limit: int, max_bytes: int) -> Read:
        """Rows behind a key. To be judged, or given up with `drop`."""
        session = await self._ready()
        with self._window() as window:
            start = monotonic()
            mark = await reading.emit_mark(self._session, '{"low":1}')
            found = await reading.read_chunk(self._session, self.target, after, limit=limit, max_bytes=max_bytes)
            facts = Reading(session, mark, found.snapshot)
            return Read(found.lines, found.whole, found.size, monotonic() - start, facts, window)

    async def keys(self, keys: Sequence[tuple[str, ...]]) -> Read:
        """Rows by key texts."""
        session = await self._ready()
        with self._window() as window:
            start = monotonic()
            mark = await reading.emit_mark(self._session, '{"low":1}')
            lines, snapshot = await reading.read_keys(self._session, self.target, keys)
            return Read(lines, True, 0, monotonic() - start, Reading(session, mark, snapshot), window)

    async def judge(self, read: Read, above: Sequence[Position] = ()) -> Position | ReadAgain:
        """The stamp, once the stream has delivered the watermark. It grows by itself above what it should outrank."""
        stream = self._stream
        try:
            if not await stream.wait_received(read.facts.mark) or stream.session != read.facts.session:
                return ReadAgain("the stream was restarted")
            # between the stream's word and the stamp nothing else may run
            return judge(
                read.facts,
                session=stream.session,
                epoch=stream.epoch,
                delivered=chain(read.window, stream.delivered.commits),
                horizon=self._horizon(),
            )
        finally:
            self.drop(read)

    def drop(self, read: Read) -> None:
        self._stream.delivered.close(read.window)

    @contextmanager
    def _window(self) -> Iterator[list[tuple[int, int]]]:
        """What the reader forgets from now on is kept for this read, whose snapshot comes later (rule visibility)."""
        window = self._stream.delivered.open()
        try:
            yield window
        except BaseException:
            self._stream.delivered.close(window)
            raise

    def _horizon(self) -> int:
        stream = self._stream
        return strict_horizon(
            fresh=stream.fresh,
            session_horizon=stream.horizon,
            table_horizon=stream.table_horizons.get(self.target.oid, 0),
        )

    async def _ready(self) -> int:
        """Waits until reads of this generation can count; returns the stream's session."""
        stream = self._stream
        while True:
            await stream.wait_live()
            if not await stream.wait_routed(self._table_id, self._generation):
                continue
            session, horizon = stream.session, self._horizon()
            if self._open == (session, horizon):
                return session
            if await self._writers_gone(session) and await self._horizon_seen(session, horizon):
                self._open = (session, horizon)

    async def _writers_gone(self, session: int) -> bool:
        """Rule start-horizon after a mere restart, or where a generation is newly routed: a transaction that was
        delivered before and is not yet visible still holds its locks on the table. Those found once are waited for."""
        found = {b.id: b for b in await reading.writers(self._session, self.target.oid)}
        async for _ in self._polls(session):
            now = {b.id: b for b in await reading.writers(self._session, self.target.oid)} if found else {}
            found = {i: now[i] for i in found if i in now}
            if not found:
                await self._waits([])
                return True
            await self._waits([b.who for b in found.values()])
        return False

    async def _horizon_seen(self, session: int, horizon: int) -> bool:
        """Rule start-horizon after a slot's creation or a publication change: all older transactions are over."""
        if not horizon:
            return True
        async for _ in self._polls(session):
            snapshot = await reading.take_horizon(self._session)
            if snapshot.xmin >= horizon:
                await self._waits([])
                return True
            found = await reading.older_transactions(self._session, snapshot, horizon)
            await self._waits([b.who for b in found] or ["a transaction of another database user"])
        return False

    async def _polls(self, session: int) -> AsyncIterator[None]:
        pause = 0.02
        while self._stream.live and self._stream.session == session:
            yield
            await asyncio.sleep(pause)
            pause = min(pause * 1.6, 1.0)

    async def _waits(self, who: list[str]) -> None:
        text = f"waiting for {len(who)} older transaction(s) to end: {'; '.join(who[:5])}" if who else ""
        await self._report(text)
