"""The tables behind an existing Debezium: one bridge and one tasks runner each, following the definitions.

Next: `cdc.service` runs it beside the readers of slots.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from cdc.bridge import Bridge, within
from cdc.counts import Counts
from cdc.jobs import Jobs
from cdc.stream import Stream
from walvec.definitions.model import Snapshot
from walvec.definitions.ports import Control
from walvec.runtime.settings import Settings
from walvec.transport.ports import Log

log = logging.getLogger(__name__)

_RESTART_SECONDS = 2.0


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
        """A table's bridge and its tasks; a defect in one of them is logged, and they begin again."""
        while not stop.is_set():
            table = self._control.feed.current.vector_tables.get(table_id)
            if table is None:
                return
            stream, ended = Stream(counts=self._counts[table_id]), asyncio.Event()
            bridge = Bridge(table_id, self._control, self._log, self._settings, stream)
            jobs = Jobs(self._settings, self._control, self._log, stream, table.connection_id, only=table_id)
            parts = [asyncio.create_task(bridge.run(ended)), asyncio.create_task(jobs.run(ended))]
            stopping = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait({*parts, stopping}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.set()
                stopping.cancel()
                results = await asyncio.gather(*parts, return_exceptions=True)
            for result in results:
                if isinstance(result, Exception):
                    log.error(
                        "a part of the bridge failed and is begun anew",
                        extra={"action": "part_failed", "table_id": table_id},
                        exc_info=result,
                    )
            await within(stop, _RESTART_SECONDS)
