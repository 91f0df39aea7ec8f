"""The role `cdc`: one reader and one jobs runner per connection that has vector tables, following the definitions.

A connection's first table starts them; when its last one is gone, or the connection itself, they end and its slot and
publication are dropped, so that nothing holds WAL for nobody. Next: `cdc.reader`, `cdc.jobs`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from cdc import slots
from cdc.bridges import Bridges
from cdc.counts import Counts
from cdc.jobs import Jobs
from cdc.reader import Reader
from cdc.session import open_session
from cdc.stream import Stream
from walvec.contracts.errors import ControlUnavailable, NotFound, WalvecError
from walvec.definitions.model import Connection, Snapshot
from walvec.definitions.ports import Control
from walvec.runtime.measures import Sample
from walvec.runtime.metrics import Metrics
from walvec.runtime.settings import Settings
from walvec.transport.ports import Log
from walvec.transport.records import changes_topic

logger = logging.getLogger(__name__)

_RESTART_SECONDS = 2.0
_DROP_ATTEMPTS = 20


@dataclass(slots=True)
class _Served:
    """A connection being read. `connection`: as last seen, so that its slot can be dropped when it is deleted."""

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
            tables = {changes_topic(t.storage_name): t.name for t in snapshot.streamed_tables(entry.connection.id)}
            yield from entry.counts.samples(entry.connection.name, tables, time.monotonic())
        for table_id, counts in list(bridged.items()):
            if (table := snapshot.vector_tables.get(table_id)) is not None:
                yield from counts.of_tables({changes_topic(table.storage_name): table.name})

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
                task = asyncio.create_task(_leave(control, served.pop(connection_id)))
                leaving.add(task)
                task.add_done_callback(leaving.discard)
            for connection in wanted.values():
                known = served.get(connection.id)
                if known is not None:
                    known.connection = connection
                elif not leaving:  # a slot that is being dropped may be this one's
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
    """Reader and jobs of one connection; a defect in one of them is logged, and they begin again."""
    connection_id, stop = entry.connection.id, entry.stop
    while not stop.is_set():
        stream = Stream(counts=entry.counts)
        ended = asyncio.Event()
        parts = [
            asyncio.create_task(Reader(connection_id, control, transport, settings, stream).run(ended)),
            asyncio.create_task(Jobs(settings, control, transport, stream, connection_id).run(ended)),
        ]
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({*parts, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.set()
            stopping.cancel()
            results = await asyncio.gather(*parts, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                logger.error(
                    "a part of cdc failed and is begun anew",
                    extra={"action": "part_failed", "connection": connection_id},
                    exc_info=result,
                )
        try:
            async with asyncio.timeout(_RESTART_SECONDS):
                await stop.wait()
        except TimeoutError:
            continue


async def _leave(control: Control, entry: _Served) -> None:
    """Ends the reader, then drops what it left at the source."""
    entry.stop.set()
    if entry.task is not None:
        await asyncio.gather(entry.task, return_exceptions=True)
    connection = entry.connection
    for attempt in range(_DROP_ATTEMPTS):
        try:
            await drop_source_objects(connection)
            stored = await control.progress.get(connection.id)
            await control.progress.put(connection.id, replace(stored, lsn=0, slot_created_lsn=0))
        except (NotFound, ControlUnavailable):
            return  # the connection is deleted, its progress with it
        except WalvecError as e:
            logger.warning(
                "slot and publication are still there",
                extra={"action": "drop_later", "slot": connection.slot, "reason": e.message, "attempt": attempt},
            )
            await asyncio.sleep(0.25)
        else:
            logger.info("slot and publication dropped", extra={"action": "dropped", "slot": connection.slot})
            return


async def drop_source_objects(connection: Connection) -> None:
    """Drops the connection's slot and publication. Raises SlotInUse, SourceUnavailable, SourceRejected."""
    session = await open_session(connection.dsn)
    try:
        await slots.drop_slot(session, connection.slot)
        await slots.drop_publication(session, connection.publication)
    finally:
        await session.close()
