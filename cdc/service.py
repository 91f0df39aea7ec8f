"""The role `cdc`: one reader and one jobs runner per connection that has vector tables, following the definitions.

A connection's first table starts them; when its last one is gone, or the connection itself, they end. What they leave
at the source is a removal (`walvec.definitions.removals`), which the API works at. Next: `cdc.reader`, `cdc.jobs`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cdc.bridges import Bridges
from cdc.counts import Counts
from cdc.jobs import Jobs
from cdc.parts import Part, serve
from cdc.reader import Reader
from cdc.stream import Stream
from walvec.definitions.model import Connection, Snapshot
from walvec.definitions.ports import Control
from walvec.runtime.measures import Sample
from walvec.runtime.metrics import Metrics
from walvec.runtime.settings import Settings
from walvec.transport.ports import Log
from walvec.transport.records import changes_topic

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Served:
    """A connection being read, as last seen."""

    connection: Connection
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    counts: Counts = field(default_factory=Counts)


async def run(
    settings: Settings, stop: asyncio.Event, *, control: Control, log: Log, metrics: Metrics | None = None
) -> None:
    """Until `stop`; then everything in hand is made durable and confirmed."""
    served: dict[str, _Served] = {}
    bridged: dict[str, Counts] = {}

    def samples() -> Iterator[Sample]:
        """What this process has counted of each connection."""
        snapshot = control.feed.current
        for entry in list(served.values()):
            tables = {changes_topic(t.storage_name): t.label for t in snapshot.streamed_tables(entry.connection.id)}
            yield from entry.counts.samples(entry.connection.label, tables, time.monotonic())
        for table_id, counts in list(bridged.items()):
            if (table := snapshot.vector_tables.get(table_id)) is not None:
                yield from counts.of_tables({changes_topic(table.storage_name): table.label})

    with (metrics or Metrics("cdc")).source(samples):
        await _run(settings, stop, control, log, served, bridged)


async def _run(
    settings: Settings,
    stop: asyncio.Event,
    control: Control,
    log: Log,
    served: dict[str, _Served],
    counts: dict[str, Counts],
) -> None:
    leaving: set[asyncio.Task[None]] = set()
    bridges = Bridges(settings, control, log, counts)
    stopping = asyncio.create_task(stop.wait())
    try:
        while not stop.is_set():
            now = control.feed.current
            wanted = {c.id: c for c in now.connections.values() if now.streamed_tables(c.id)}
            for connection_id in served.keys() - wanted.keys():
                task = asyncio.create_task(_leave(served.pop(connection_id)))
                leaving.add(task)
                task.add_done_callback(leaving.discard)
            for connection in wanted.values():
                known = served.get(connection.id)
                if known is not None:
                    known.connection = connection
                elif not leaving:  # a reader that ends may be this one's
                    entry = served[connection.id] = _Served(connection)
                    entry.task = asyncio.create_task(_serve(entry, settings, control, log))
            await bridges.follow(now)
            await _moved(control, now, [stopping, *leaving])
    finally:
        stopping.cancel()
        await bridges.close()
        for entry in served.values():
            entry.stop.set()
        await asyncio.gather(*(e.task for e in served.values() if e.task), *leaving, return_exceptions=True)


async def _moved(control: Control, seen: Snapshot, others: Iterable[asyncio.Task[Any]]) -> None:
    feed = asyncio.create_task(control.feed.changed(seen.version))
    try:
        await asyncio.wait({feed, *others}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        feed.cancel()


async def _serve(entry: _Served, settings: Settings, control: Control, transport: Log) -> None:
    """Reader and jobs of one connection."""
    connection_id = entry.connection.id

    def make() -> Sequence[Part]:
        stream = Stream(counts=entry.counts)
        reader = Reader(connection_id, control, transport, settings, stream)
        return reader.run, Jobs(settings, control, transport, stream, connection_id).run

    await serve(make, entry.stop, {"connection": connection_id})


async def _leave(entry: _Served) -> None:
    """Ends the reader, so that the slot is free to be dropped."""
    entry.stop.set()
    if entry.task is not None:
        await asyncio.gather(entry.task, return_exceptions=True)
    logger.info("connection is not read any more", extra={"action": "left", "slot": entry.connection.slot})
