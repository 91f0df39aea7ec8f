"""How fresh a table's answers are, as honest lower bounds: everything committed at the source up to `lsn` is found, and
all that was committed until `seconds` ago.

A look: the source's LSN at a moment, the LSN that cdc has made durable, the ends of both topics then; once the groups
have passed these ends, all up to the durable LSN is in the store. Looks are taken beside queries, while there are any;
a query waits only where nobody has looked for a while, and not long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from dataclasses import dataclass, field

from api.drain import Ended, Waiting
from api.services import Services
from walvec.contracts.errors import WalvecError
from walvec.definitions.model import VectorTable

_log = logging.getLogger(__name__)
_FIRST_SECONDS = 0.5
_AGAIN_SECONDS = 0.1
_OLD_SECONDS = 2.0
_PACE_SECONDS = 0.5
_BREATH_SECONDS = 0.05
_IDLE_SECONDS = 30.0
_LOOK_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Fresh:
    """`reason`: why something is not known, or not better known."""

    lsn: int | None = None
    seconds: float | None = None
    reason: str | None = None
    generation: int = 0
    """The youngest that it holds of: one that was swapped in has all that the one before it had, which in turn is not
    fed since."""


@dataclass(slots=True, eq=False)
class Known:
    """What looks have found out about one table. Pure."""

    lsn: int | None = None
    at: float | None = None
    source: tuple[int, str] = (0, "")
    generation: int = 0
    moments: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=64))
    """(LSN of the source, when it stood there at the latest)."""

    def stood(self, lsn: int, at: float) -> None:
        self.moments.append((lsn, at))

    def of_source(self, source: tuple[int, str]) -> None:
        """`source`: epoch and identity; the LSNs of another one mean nothing."""
        if source != self.source:
            self.source, self.lsn, self.at = source, None, None

    def applied(self, lsn: int, source: tuple[int, str], generation: int) -> None:
        """All up to here is in the storage of that generation, which is active."""
        self.of_source(source)
        self.generation = generation
        if self.lsn is None or lsn > self.lsn:
            self.lsn = lsn
        passed = [at for stood, at in self.moments if stood <= self.lsn]
        if passed:
            self.at = max(passed) if self.at is None else max(self.at, *passed)
            self.moments = deque(((s, at) for s, at in self.moments if s > self.lsn), maxlen=64)


class _Watch:
    def __init__(self, table_id: str) -> None:
        self.table_id = table_id
        self.known = Known()
        self.reason: str | None = "it is being found out"
        self.looked = asyncio.Event()
        self.looked_at = time.monotonic()
        self.asked = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def fresh(self) -> Fresh:
        known = self.known
        seconds = time.monotonic() - known.at if known.at is not None else None
        return Fresh(known.lsn, seconds, self.reason, known.generation)

    async def run(self, services: Services) -> None:
        """Until nobody has asked for a while."""
        while True:
            self.asked.clear()
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._look(services)
                self.reason = None
            except TimeoutError:
                self.reason = "its changes take long to be applied"
            except WalvecError as e:
                self.reason = e.message
                if not isinstance(e, Ended):
                    _log.debug("not seen", extra={"action": "freshness", "table": self.table_id, "reason": str(e)})
            self.looked.set()
            self.looked_at = time.monotonic()
            if services.stop.is_set():
                return
            await asyncio.sleep(_PACE_SECONDS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_IDLE_SECONDS):
                    await self.asked.wait()
            if not self.asked.is_set():
                return

    async def _look(self, services: Services) -> None:
        snapshot = await services.control.definitions.snapshot()
        table = snapshot.vector_tables.get(self.table_id)
        if table is None:
            raise Ended("it was deleted.")
        if table.source is not None:
            raise Ended("its changes come from a topic of Debezium, which does not tell how far it has read.")
        waiting = Waiting(services, {table.id: table.name}, rebuilds=False, breath=_BREATH_SECONDS)
        connection = snapshot.connections[table.connection_id]
        at = time.monotonic()
        self.known.stood(await services.source.written(connection), at)
        before = await services.control.progress.get(connection.id)
        source = (before.epoch, before.system_identifier)
        self.known.of_source(source)
        durable = max(before.lsn, await waiting.reported(connection.id))
        hidden = await waiting.unpublished(connection.id, [table.id])
        if hidden:
            raise Ended("its source table is not published now.")
        await waiting.applied(table.id)
        after = await services.control.progress.get(connection.id)
        # as of now: what is active at the end of a look was fed all the time
        now = (await services.control.definitions.snapshot()).vector_tables.get(table.id)
        if now is not None and now.backfilled and (after.epoch, after.system_identifier) == source:
            self.known.applied(durable, source, now.active.number)

    def ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.reason = "it cannot be found out; see the API's log"
            _log.error("freshness failed", exc_info=error, extra={"action": "freshness", "table": self.table_id})


class Freshness:
    """By table. What is known outlives the watching."""

    def __init__(self) -> None:
        self._watches: dict[str, _Watch] = {}

    async def of(self, services: Services, table: VectorTable, *, wait: bool = True) -> Fresh:
        """`wait`: half a second at most for the table's first look, a tenth for one after nobody had asked."""
        watch = self._watches.get(table.id)
        patience = 0.0
        if watch is None:
            watch = self._watches[table.id] = _Watch(table.id)
            patience = _FIRST_SECONDS
        elif not watch.asked.is_set() and time.monotonic() - watch.looked_at > _OLD_SECONDS:
            watch.looked.clear()
            patience = _AGAIN_SECONDS
        watch.asked.set()
        if watch.task is None or watch.task.done():
            watch.task = asyncio.create_task(watch.run(services))
            watch.task.add_done_callback(watch.ended)
        if patience and wait:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await watch.looked.wait()
        if not table.backfilled:
            return Fresh(reason="its rows are not read yet")
        return watch.fresh()
