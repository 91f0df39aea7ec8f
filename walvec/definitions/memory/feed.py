"""The definitions as one snapshot, which every change replaces. Implements `ports.Feed`. Next: `definitions`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from walvec.contracts.errors import NotFound
from walvec.definitions import transitions
from walvec.definitions.model import DEFAULT_ORGANIZATION, Connection, Snapshot, VectorTable
from walvec.definitions.tenancy import FIRST_ENVIRONMENT, new_environment, new_organization
from walvec.definitions.values import now


class MemoryFeed:
    """`home`: the environment of definitions that name none."""

    def __init__(self) -> None:
        organization = new_organization(DEFAULT_ORGANIZATION)
        first = new_environment(organization, FIRST_ENVIRONMENT)
        self.current = Snapshot(1, {}, {}, {}, {first.id: first}, {organization.id: organization})
        self.home = first.id
        self._moved = asyncio.Event()

    async def changed(self, since: int) -> Snapshot:
        while self.current.version <= since:
            await self._moved.wait()
        return self.current

    def move(self, **parts: Any) -> None:
        """To the next version, with these fields of the snapshot."""
        self.current = replace(self.current, version=self.current.version + 1, **parts)
        self._moved.set()
        self._moved = asyncio.Event()

    def table(self, table_id: str) -> VectorTable:
        found = self.current.vector_tables.get(table_id)
        if found is None:
            raise NotFound(f"there is no vector table {table_id!r}.")
        return found

    def connection(self, connection_id: str) -> Connection:
        found = self.current.connections.get(connection_id)
        if found is None:
            raise NotFound(f"there is no connection {connection_id!r}.")
        return found

    def change(self, table_id: str, transition: Callable[[VectorTable], VectorTable]) -> VectorTable:
        """Returns what the table is now; moves only if something changed."""
        old = self.table(table_id)
        new = transitions.stamped(old, transition(old), now())
        if new != old:
            self.put(new)
        return new

    def put(self, table: VectorTable) -> None:
        self.move(vector_tables={**self.current.vector_tables, table.id: table})
