"""What roles write about a vector table. Implements `ports.TableStates`."""

from __future__ import annotations

from dataclasses import replace

from walvec.definitions import transitions
from walvec.definitions.memory.rebuilds import Swaps
from walvec.definitions.model import Generation


class MemoryStates(Swaps):
    async def set_error(self, table_id: str, kind: str, message: str, cure: str) -> None:
        self._feed.change(table_id, lambda t: transitions.failed(t, kind, message, cure))

    async def clear_error(self, table_id: str) -> None:
        self._feed.change(table_id, transitions.recovered)

    async def set_blocked(self, table_id: str, reason: str | None) -> None:
        self._feed.change(table_id, lambda t: transitions.blocked(t, reason))

    async def count_dead(self, table_id: str, letters: int) -> int:
        table = self._feed.table(table_id)
        number = table.dead_in_row + letters if letters else 0
        current = self._feed.current  # counted without moving the feed: the version stays
        tables = {**current.vector_tables, table_id: replace(table, dead_in_row=number)}
        self._feed.current = replace(current, vector_tables=tables)
        return number

    async def update_source_columns(self, table_id: str, generation: Generation) -> None:
        self._feed.change(table_id, lambda t: transitions.source_columns(t, generation))
