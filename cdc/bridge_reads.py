"""Reads that get a stamp, for a vector table behind an existing Debezium: no slot, no message in the log of the source.

Law (ADR 0005): what the topic had when `Reached` was stored had committed before; a committed transaction that is not
visible yet still holds its locks, so those found afterwards are waited for, and the snapshot that is taken then sees
all of it. Next: `backfill` and `rereads` use it as they use `chunks`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic

from cdc import reading
from cdc.catalog import fetch_one
from cdc.chunks import Read, Report
from cdc.debezium_order import Reached
from cdc.session import Session
from cdc.stamping import Reading
from walvec.contracts.errors import SourceRejected
from walvec.contracts.position import Position
from walvec.definitions.ports import Control


class BridgedReader:
    """Reads one generation's rows in one source session. The interface of `chunks.StampedReader`."""

    def __init__(
        self, session: Session, control: Control, target: reading.Target, table_id: str, epoch: int, report: Report
    ) -> None:
        self.target = target
        self._session = session
        self._control = control
        self._table_id = table_id
        self._epoch = epoch
        self._report = report
        self._reached: Reached | None = None

    async def chunk(self, after: Sequence[str] | None, *, limit: int, max_bytes: int) -> Read:
        """Rows behind a key. All chunks have the first one's stamp: too low is harmless."""
        if self._reached is None:
            await self._settle()
        start = monotonic()
        found = await reading.read_chunk(self._session, self.target, after, limit=limit, max_bytes=max_bytes)
        facts = Reading(0, 0, found.snapshot)
        return Read(found.lines, found.whole, found.size, monotonic() - start, facts, [])

    async def keys(self, keys: Sequence[tuple[str, ...]]) -> Read:
        """Rows by key texts, at a stamp as high as can be told now."""
        await self._settle()
        start = monotonic()
        lines, snapshot = await reading.read_keys(self._session, self.target, keys)
        return Read(lines, True, 0, monotonic() - start, Reading(0, 0, snapshot), [])

    async def judge(self, read: Read, above: Sequence[Position] = ()) -> Position:
        """`above`: letters that the stamp should stand above, where that is right."""
        assert self._reached is not None
        return self._reached.stamp_above(self._epoch, above)

    def drop(self, read: Read) -> None:
        return

    async def _settle(self) -> None:
        """Everything that the topic is known to have is visible from now on."""
        progress = await self._control.progress.bridge(self._table_id)
        if await fetch_one(self._session, "SELECT pg_is_in_recovery()"):
            raise SourceRejected(
                "the connection leads to a standby, which may lag behind what Debezium has delivered.",
                "Put the primary's address into the connection.",
            )
        found = {b.id: b.who for b in await reading.writers(self._session, self.target.oid)}
        pause = 0.02
        while found:
            await self._waits(list(found.values()))
            await asyncio.sleep(pause)
            pause = min(pause * 1.6, 1.0)
            now = {b.id for b in await reading.writers(self._session, self.target.oid)}
            found = {i: who for i, who in found.items() if i in now}
        await self._waits([])
        self._reached = Reached() if progress is None else Reached(progress.sequence, progress.snapshot_lsns)

    async def _waits(self, who: list[str]) -> None:
        text = f"waiting for {len(who)} older transaction(s) to end: {'; '.join(who[:5])}" if who else ""
        await self._report(text)
