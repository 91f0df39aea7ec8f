"""What the stream has delivered, as backfill, replay and re-read must know it. Pure; fed by the reader.

The reader's memory is lost at a restart; `Stream` says how far it reaches. Next: `cdc.stamping` judges a chunk with it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from cdc.counts import Counts


@dataclass(slots=True)
class Delivered:
    """Transactions delivered since the stream (re)started that some snapshot may still not see.

    `commits`: (32-bit xid, commit LSN) in delivery order. `forget` drops those that every new snapshot sees; the reader
    calls it on each heartbeat, so memory stays bounded by what is open at the source.
    """

    commits: list[tuple[int, int]] = field(default_factory=list)
    windows: list[list[tuple[int, int]]] = field(default_factory=list)
    """What was forgotten while a chunk was open, one list per open chunk: its snapshot may be older than the one that
    allowed the forgetting (rule visibility)."""

    def open(self) -> list[tuple[int, int]]:
        """A chunk begins: to be called before its snapshot is taken; `close` it in any case."""
        window: list[tuple[int, int]] = []
        self.windows.append(window)
        return window

    def close(self, window: list[tuple[int, int]]) -> None:
        self.windows = [w for w in self.windows if w is not window]

    def add(self, xid: int, commit_lsn: int) -> None:
        self.commits.append((xid, commit_lsn))

    def forget(self, seen: set[int]) -> None:
        """Drops these 32-bit xids: a snapshot taken after their delivery sees them, so every later one does."""
        dropped = [c for c in self.commits if c[0] in seen]
        for window in self.windows:
            window.extend(dropped)
        self.commits = [c for c in self.commits if c[0] not in seen]


@dataclass(slots=True)
class Stream:
    """The state of one connection's stream that jobs share with the reader (one event loop, no locks).

    `session` grows with every (re)start: a chunk begun in another session is read again (rule memory).
    `received`: LSN up to which the stream was delivered and handed on. `epoch`: leading part of all positions.
    `horizon`: `pg_current_xact_id()` taken at this start (rule start-horizon). `fresh`: the slot was created in this
    start, so what ran before it is never streamed and there is no exception for delivered transactions.
    `table_horizons`: source table oid -> xid8 taken after its publication change (strict, as after `fresh`).
    `routed`: vector table id -> generation numbers whose changes go to the log now. A chunk of a generation that is not
    in it is not read: its changes would reach neither the chunk nor the log.
    `losses`: grows whenever changes were lost for all tables (slot, log or timeline): a backfill that began under
    another number starts again from its first key (rule restart-on-loss).
    """

    epoch: int = 0
    session: int = 0
    received: int = 0
    horizon: int = 0
    fresh: bool = False
    live: bool = False
    table_horizons: dict[int, int] = field(default_factory=dict)
    routed: dict[str, frozenset[int]] = field(default_factory=dict)
    losses: int = 0
    delivered: Delivered = field(default_factory=Delivered)
    counts: Counts = field(default_factory=Counts)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    def restart(self, *, epoch: int, at: int, horizon: int, fresh: bool) -> None:
        """A new session: memory is empty, `received` may go back to the confirmed position."""
        self.session += 1
        self.epoch, self.received, self.horizon, self.fresh = epoch, at, horizon, fresh
        self.delivered = Delivered()
        self.live = True
        self._wake()

    async def wait_live(self) -> None:
        while not self.live:
            await self._moved.wait()

    def stop(self) -> None:
        self.live = False
        self._wake()

    def route(self, table_id: str, generations: frozenset[int]) -> None:
        """These generations' changes go to the log from now on; none = the table is not routed."""
        if generations:
            self.routed[table_id] = generations
        else:
            self.routed.pop(table_id, None)
        self._wake()

    async def wait_routed(self, table_id: str, generation: int) -> bool:
        """True once that generation is routed in this session; False when the session ended first."""
        session = self.session
        while self.live and self.session == session and generation not in self.routed.get(table_id, ()):
            await self._moved.wait()
        return self.live and self.session == session

    def advance(self, lsn: int) -> None:
        if lsn > self.received:
            self.received = lsn
            self._wake()

    async def wait_received(self, lsn: int) -> bool:
        """True once the stream of *this* session was delivered up to `lsn`; False when the session ended first."""
        session = self.session
        while self.live and self.session == session and self.received < lsn:
            moved = self._moved
            await moved.wait()
        return self.live and self.session == session

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()
