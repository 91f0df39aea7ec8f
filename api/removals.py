"""Works at removals: at once, when a definition is deleted, and later, when something was away.

Law: a removal is in one hand at a time (its row is locked meanwhile), and every step may be done twice. Whoever is
killed leaves it as it was. Next: `walvec.definitions.removals`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass

from api.ports import SearchStore, Source
from walvec.contracts.errors import ControlUnavailable, WalvecError
from walvec.definitions.model import Connection, VectorTable
from walvec.definitions.ports import Control
from walvec.definitions.removals import Removal
from walvec.runtime.lifecycle import cancelled, pause
from walvec.transport.ports import Log
from walvec.transport.records import (
    bridge_group,
    changes_topic,
    dead_topic,
    embedder_group,
    sink_group,
    vectors_topic,
)

log_ = logging.getLogger(__name__)

_AT_ONCE_SECONDS = 8.0
_ATTEMPT_SECONDS = 30.0
_LOOK_SECONDS = 1.0
_LONGEST_SECONDS = 15.0
_TOGETHER = 3


@dataclass(frozen=True, slots=True)
class Remover:
    """What removals need. Made where they are needed; keeps nothing."""

    control: Control
    store: SearchStore
    log: Log
    source: Source

    async def at_once(self, removal_ids: Sequence[str]) -> None:
        """Tries each; what does not succeed, or not soon, is left to `run`."""
        try:
            async with asyncio.timeout(_AT_ONCE_SECONDS):
                async with asyncio.TaskGroup() as group:
                    for removal_id in removal_ids:
                        group.create_task(self.attempt(removal_id))
        except (TimeoutError, ControlUnavailable) as e:
            log_.info("removal is left for later", extra={"action": "removal_later", "reason": str(e)})
        except BaseExceptionGroup as e:
            rest = e.split(ControlUnavailable)[1]
            if rest is not None:
                raise rest from None
            log_.info("removal is left for later", extra={"action": "removal_later", "reason": str(e.exceptions[0])})

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`: whatever is due, a few at a time. Several processes may do so."""
        working: dict[asyncio.Task[bool], None] = {}
        adopted = False
        try:
            while not stop.is_set():
                try:
                    if not adopted:
                        await self.control.removals.adopt()
                        adopted = True
                    while len(working) < _TOGETHER:
                        # one that finds nothing due ends at once
                        task = asyncio.create_task(self.attempt())
                        working[task] = None
                        await asyncio.wait({task}, timeout=0.2)
                        if task.done() and not task.result():
                            break
                except ControlUnavailable as e:
                    log_.warning("removals wait", extra={"action": "removals_wait", "reason": e.message})
                for task in [t for t in working if t.done()]:
                    del working[task]
                    error = None if task.cancelled() else task.exception()
                    if error is not None and not isinstance(error, ControlUnavailable):
                        raise error
                await pause(stop, _LOOK_SECONDS)
        finally:
            await cancelled(*working)

    async def attempt(self, removal_id: str | None = None) -> bool:
        """One removal, or the next that is due; False = there was none to be had. Raises ControlUnavailable."""
        async with self.control.removals.claim(removal_id) as claim:
            if claim is None:
                return False
            removal = claim.removal
            try:
                async with asyncio.timeout(_ATTEMPT_SECONDS):
                    await self._remove(removal)
            except ControlUnavailable:
                raise
            except (WalvecError, TimeoutError) as e:
                reason = str(e) if isinstance(e, WalvecError) else "there was no answer in time. It is tried again."
                again = min(1.0 * 2.0**removal.attempts, _LONGEST_SECONDS) * random.uniform(0.7, 1.0)
                log_.warning(
                    "removal is tried again",
                    extra={
                        "action": "removal_again",
                        "what": removal.what,
                        "target": removal.target_id,
                        "reason": reason,
                        "pause_seconds": round(again, 1),
                    },
                )
                await claim.failed(reason, again)
                return True
            await claim.done()
        log_.info("removed", extra={"action": "removed", "what": removal.what, "target": removal.target_id})
        return True

    async def _remove(self, removal: Removal) -> None:
        table = removal.table
        if removal.what == "storage" and table is not None:
            await self.store.remove(table, removal.dsn)
        elif removal.what == "topics" and table is not None:
            await self._topics(table)
        elif removal.dsn is not None:
            # not the feed: a vector table that was entered before this removal was claimed is in the database
            snapshot = await self.control.definitions.snapshot()
            wanted = snapshot.streamed_tables(removal.connection_id)
            connection = Connection(removal.connection_id, removal.name, "postgresql", "managed", removal.dsn)
            if removal.what == "publication" and wanted:
                await self.source.unpublish(connection, wanted)
            elif removal.what == "slot" and not wanted:
                await self.source.release(connection)

    async def _topics(self, table: VectorTable) -> None:
        name = table.storage_name
        for topic in topics_of(table):
            await self.log.delete_topic(topic)
        for group in (embedder_group(name), sink_group(name), *([bridge_group(name)] if table.source else [])):
            await self.log.delete_group(group)


def topics_of(table: VectorTable) -> tuple[str, str, str]:
    name = table.storage_name
    return changes_topic(name), vectors_topic(name), dead_topic(name)


async def remove_vector_table(table: VectorTable, remover: Remover) -> None:
    """The definition, so that roles let go, and with it, in one transaction, the removals of all that it leaves behind;
    then they are tried."""
    await remover.at_once(await remover.control.definitions.delete_vector_table(table.id))


async def remove_connection(connection: Connection, remover: Remover) -> None:
    await remover.at_once(await remover.control.definitions.delete_connection(connection.id))


async def running(remover: Remover, stop: asyncio.Event) -> None:
    """`run`, begun again after a defect of its own: nothing else would finish what is left."""
    while not stop.is_set():
        try:
            await remover.run(stop)
        except Exception:
            log_.exception("removals are begun anew", extra={"action": "removals_anew"})
            await pause(stop, _LOOK_SECONDS)
