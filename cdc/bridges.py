"""The tables behind an existing Debezium: one bridge and one tasks runner each, following the definitions.

Next: `cdc.service` runs it beside the readers of slots.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cdc.bridge import Bridge
from cdc.counts import Counts
from cdc.jobs import Jobs
from cdc.parts import Part, serve
from cdc.stream import Stream
from walvec.definitions.model import Snapshot
from walvec.definitions.ports import Control
from walvec.runtime.settings import Settings
from walvec.transport.ports import Log


class Bridges:
    """The bridges of one process. `counts`: of each table, for the metrics; filled here."""

    def __init__(self, settings: Settings, control: Control, transport: Log, counts: dict[str, Counts]) -> None:
        self._settings = settings
        self._control = control
        self._log = transport
        self._counts = counts
        self._running: dict[str, tuple[asyncio.Event, asyncio.Task[None]]] = {}

    async def follow(self, now: Snapshot) -> None:
        """Begins those that a definition asks for, ends those whose table is gone."""
        wanted = {t.id for t in now.vector_tables.values() if t.source is not None}
        for table_id in wanted - self._running.keys():
            stop = asyncio.Event()
            self._counts[table_id] = Counts()
            self._running[table_id] = stop, asyncio.create_task(self._serve(table_id, stop))
        for table_id in self._running.keys() - wanted:
            await self._end([self._running.pop(table_id)])
            self._counts.pop(table_id, None)

    async def close(self) -> None:
        await self._end(list(self._running.values()))

    async def _end(self, running: Sequence[tuple[asyncio.Event, asyncio.Task[None]]]) -> None:
        for stop, _ in running:
            stop.set()
        await asyncio.gather(*(task for _, task in running), return_exceptions=True)

    async def _serve(self, table_id: str, stop: asyncio.Event) -> None:
        """A table's bridge and its tasks."""

        def make() -> Sequence[Part] | None:
            table = self._control.feed.current.vector_tables.get(table_id)
            if table is None:
                return None
            stream = Stream(counts=self._counts[table_id])
            bridge = Bridge(table_id, self._control, self._log, self._settings, stream)
            jobs = Jobs(self._settings, self._control, self._log, stream, table.connection_id, only=table_id)
            return bridge.run, jobs.run

        await serve(make, stop, {"table_id": table_id})
