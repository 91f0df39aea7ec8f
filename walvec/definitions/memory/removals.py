"""What deleted vector tables leave behind. Implements `ports.Removals`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from math import inf
from time import monotonic

from walvec.contracts.errors import NotFound
from walvec.definitions.memory.feed import MemoryFeed
from walvec.definitions.memory.progress import MemoryProgress
from walvec.definitions.model import VectorTable
from walvec.definitions.removals import MADE_SECONDS, OF_MAKING, OF_SOURCE, Removal, What, new_removal_id
from walvec.definitions.values import now


class MemoryClaim:
    def __init__(self, removals: MemoryRemovals, removal: Removal) -> None:
        self._removals = removals
        self.removal = removal

    async def done(self) -> None:
        self._removals.end(self.removal)

    async def failed(self, reason: str, again_in: float) -> None:
        self._removals.again(self.removal, reason, again_in)


class MemoryRemovals:
    def __init__(self, feed: MemoryFeed, progress: MemoryProgress) -> None:
        self._feed = feed
        self._progress = progress
        self._left: dict[str, Removal] = {}
        self._due: dict[str, float] = {}
        self._claimed: set[str] = set()
        self._making: set[str] = set()

    async def open(self, environment_id: str | None = None) -> list[Removal]:
        shown = [r for r in self._left.values() if r.id not in self._making]
        return [r for r in shown if environment_id in (None, r.environment_id)]

    @asynccontextmanager
    async def claim(
        self, removal_id: str | None = None, *, but: Collection[str] = ()
    ) -> AsyncIterator[MemoryClaim | None]:
        free = [r for r in self._left.values() if r.id not in self._claimed]
        if removal_id is None:
            self._due |= {r.id: monotonic() + MADE_SECONDS for r in free if self._due[r.id] == inf}
        if removal_id is not None:
            found = next((r for r in free if r.id == removal_id), None)
        else:
            found = next((r for r in free if self._due[r.id] <= monotonic() and r.id not in but), None)
        if found is None:
            yield None
            return
        self._claimed.add(found.id)
        try:
            connection = self._feed.current.connections.get(found.connection_id)
            yield MemoryClaim(self, found if connection is None else replace(found, dsn=connection.dsn))
        finally:
            self._claimed.discard(found.id)

    async def adopt(self) -> None:
        """Nothing outlives this process."""

    async def put(self, table: VectorTable, what: Sequence[What]) -> list[str]:
        free = [r for r in self._left.values() if r.target_id == table.id and r.id not in self._claimed]
        ids = {r.what: r.id for r in free if r.what in what}
        self._making.difference_update(ids.values())
        self._due |= {i: monotonic() for i in ids.values()}
        missing = [one for one in what if one not in ids]
        ids |= dict(zip(missing, self.enter(table, missing), strict=True))
        return [ids[one] for one in what]

    @contextmanager
    def held(self, table: VectorTable) -> Iterator[list[Removal]]:
        """Storage and topics of a table that is being made; nobody works at them meanwhile."""
        ids = self.enter(table, OF_MAKING)
        self._making.update(ids)
        self._claimed.update(ids)
        self._due |= dict.fromkeys(ids, inf)
        try:
            yield [self._left[i] for i in ids]
        finally:
            self._claimed.difference_update(ids)

    async def give_up(self, removal_id: str) -> None:
        if removal_id not in self._left:
            raise NotFound(f"there is no task {removal_id!r}.")
        self.end(self._left[removal_id])

    def enter(self, table: VectorTable, what: Sequence[What]) -> list[str]:
        connection = self._feed.current.connections.get(table.connection_id)
        at = now()
        made = [
            Removal(
                new_removal_id(),
                table.environment_id,
                one,
                table.connection_id if one == "slot" else table.id,
                table.name if one != "slot" else connection.name if connection else "",
                table.connection_id,
                connection.dsn if connection else None,
                None if one == "slot" else table,
                created_at=at,
                updated_at=at,
            )
            for one in what
        ]
        self._left |= {r.id: r for r in made}
        self._due |= {r.id: monotonic() for r in made}
        return [r.id for r in made]

    def take_back(self, connection_id: str) -> None:
        for one in [r for r in self._left.values() if r.connection_id == connection_id and r.what in OF_SOURCE]:
            self.end(one)

    def of(self, connection_id: str) -> list[str]:
        return [r.id for r in self._left.values() if r.connection_id == connection_id]

    def end(self, removal: Removal) -> None:
        self._left.pop(removal.id, None)
        self._making.discard(removal.id)
        if removal.what == "slot":
            self._progress.forget(removal.connection_id)

    def again(self, removal: Removal, reason: str, again_in: float) -> None:
        self._making.discard(removal.id)
        self._left[removal.id] = replace(removal, attempts=removal.attempts + 1, last_error=reason)
        self._due[removal.id] = monotonic() + again_in
