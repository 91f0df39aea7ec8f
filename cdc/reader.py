"""One connection's reader, for as long as the process lives: connects, judges, streams, and begins again.

Each session: publication, then slot, then the start gate (`cdc.gate`), then the stream (`cdc.streaming`). How a session
ended decides the pause before the next: somebody else reads the slot = this process is the standby; unreachable = soon,
with jitter; refused = slowly, with the cure in the connection's status. Next: `cdc.service` runs one per connection.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace

from cdc import slots
from cdc.assembler import Assembler
from cdc.gate import Decision, Identity, decide, parse_history
from cdc.losses import highest_logged
from cdc.replication import Replication
from cdc.routes import Routes
from cdc.session import Session, open_session
from cdc.stream import Stream
from cdc.streaming import Streaming
from walvec.contracts.errors import (
    ControlUnavailable,
    NotFound,
    SlotInUse,
    SlotLost,
    SourceRejected,
    SourceUnavailable,
    WalvecError,
)
from walvec.contracts.position import format_lsn
from walvec.definitions.model import Connection, SourceProgress, VectorTable
from walvec.definitions.ports import Control
from walvec.definitions.rebackfill import read_again
from walvec.runtime import lifecycle
from walvec.runtime.lifecycle import cancelled
from walvec.runtime.settings import Settings
from walvec.transport.ports import Log

log = logging.getLogger(__name__)

_STANDBY_SECONDS, _REFUSED_SECONDS, _LONGEST_SECONDS = 0.5, 5.0, 5.0
_BLOCKERS_SECONDS = 5.0


class Reader:
    """Shares `stream` with the connection's jobs."""

    def __init__(
        self, connection_id: str, control: Control, transport: Log, settings: Settings, stream: Stream
    ) -> None:
        self._id = connection_id
        self._control = control
        self._log = transport
        self._settings = settings
        self._stream = stream
        self._stopped: dict[str, int] = {}
        self._status: tuple[str, str] | None = None
        self._failures = 0
        self._began = -1
        self._unread_at = -1
        self._suspect = ""
        self._standing_by = False

    @property
    def _connection(self) -> Connection:
        found = self._control.feed.current.connections.get(self._id)
        if found is None:
            raise NotFound(f"there is no connection {self._id!r}.")
        return found

    def _tables(self) -> list[VectorTable]:
        return self._control.feed.current.streamed_tables(self._id)

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`. Expected failures are waited out; anything else is a defect and leaves."""
        while not stop.is_set():
            pause = 0.0
            try:
                with self._counted():
                    await self._session(stop)
            except NotFound as e:
                if self._id not in self._control.feed.current.connections:
                    return
                pause = await self._failed(e)
            except SlotInUse as e:
                pause = _STANDBY_SECONDS
                if not self._standing_by:
                    log.info("another process reads the slot", extra={"action": "standby", "reason": e.message})
                self._standing_by = True
                await self._report("standby", e.message)
            except SourceRejected as e:
                pause = _REFUSED_SECONDS
                await self._tell("error", str(e))
            except SlotLost as e:
                self._doubt(e)
                pause = await self._failed(e)
            except WalvecError as e:
                pause = await self._failed(e)
            finally:
                self._stream.stop()
            if pause:
                await lifecycle.pause(stop, pause)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """How a session ended, by kind of error."""
        counts = self._stream.counts
        try:
            yield
        except WalvecError as e:
            counts.reconnects[e.kind] += 1
            raise
        finally:
            counts.streaming = False

    def _doubt(self, e: SlotLost) -> None:
        """A slot that looks whole and twice cannot be read from one place is taken for lost: on PostgreSQL 17 and older
        it never can be again, once its publication was dropped and made anew."""
        if self._began == self._unread_at:
            self._suspect = e.message
        self._unread_at = self._began

    async def _failed(self, e: WalvecError) -> float:
        """The first retry comes at once; then longer, never the same for two readers."""
        self._failures += 1
        log.warning(
            "stream ended, it is begun anew",
            extra={"action": "reconnect", "kind": e.kind, "reason": e.message, "failures": self._failures},
        )
        if self._failures > 2 and isinstance(e, SourceUnavailable):
            await self._tell("error", str(e))
        return min(0.05 * 2.0**self._failures, _LONGEST_SECONDS) * random.uniform(0.5, 1.0)

    async def _tell(self, status: str, message: str) -> None:
        if self._status == (status, message):
            return
        log.log(
            logging.INFO if status == "connected" else logging.ERROR,
            "connection status",
            extra={"action": "connection_status", "status": status, "reason": message},
        )
        try:
            await self._control.definitions.set_connection_status(self._id, status, message)
        except (ControlUnavailable, NotFound) as e:
            log.warning("status not stored", extra={"action": "status_unstored", "reason": e.message})
            return
        self._status = (status, message)

    async def _report(self, state: str, reason: str) -> None:
        try:
            await self._control.reports.put("cdc", self._id, {"state": state, "reason": reason})
        except ControlUnavailable as e:
            log.warning("report not stored", extra={"action": "report_unstored", "reason": e.message})

    # ------------------------------------------------------------------ one session

    async def _session(self, stop: asyncio.Event) -> None:
        connection = self._connection
        await self._check_wanted()
        async with AsyncExitStack() as stack:
            plain = await open_session(connection.dsn)
            stack.push_async_callback(plain.close)
            beside = await open_session(connection.dsn)
            stack.push_async_callback(beside.close)
            replication = await Replication.connect(connection.dsn)
            stack.push_async_callback(replication.close)

            version = await slots.server_version(plain)
            await self._check_server(plain, version)
            if not await slots.begin_preparing(plain, connection.slot):
                raise SlotInUse(f"slot {connection.slot} is prepared by another process.")
            stored = await self._control.progress.get(self._id)
            now = await self._identify(replication, stored)
            slot = await slots.slot_state(plain, connection.slot)
            if slot is not None and slot.active:
                raise SlotInUse(f"slot {connection.slot} is read by another process.")
            routes = Routes(connection, self._control, self._log, self._stream, self._stopped, version)
            first = not stored.lsn
            oids = await routes.publish(plain, self._tables(), first=first)
            self._began = slot.confirmed if slot is not None else 0
            if slot is not None and not slot.lost and self._suspect:
                slot = replace(slot, lost=True, reason=self._suspect)
            highest = self._stream.received if self._stream.session else 0
            if stored.timeline and stored.timeline != now.timeline:
                highest = max(highest, await highest_logged(self._log, self._tables(), stored.epoch))
            decision = decide(stored, slot, now, highest)
            if first and decision.gap is None and any(t.backfilled for t in self._tables()):
                decision = replace(decision, gap="the stored position of the stream is missing")
            stored = await self._act(connection, decision, stored, now, beside, version, stop)
            if stop.is_set():
                return
            try:
                await self._check_wanted()  # its removal may have been worked at before all this was made
            except NotFound:
                await self._take_back(connection, stored, beside)
                raise
            await replication.start(connection.slot, connection.publication, 0)
            await slots.end_preparing(plain, connection.slot)
            start = (await slots.slot_state(plain, connection.slot) or _missing(connection)).confirmed
            assembler = Assembler(decision.epoch, now.database)
            routes.bind(assembler)
            await routes.apply(plain, self._tables(), oids, read_anyway=decision.gap is not None)
            # rule start-horizon: whoever began before now may have been streamed to nobody
            horizon = await slots.transaction_id(plain)
            self._stream.restart(epoch=decision.epoch, at=start, horizon=horizon, fresh=decision.fresh)
            self._standing_by = False
            log.info("streaming", extra={"action": "streaming", "slot": connection.slot, "lsn": format_lsn(start)})
            await self._tell("connected", "")
            streaming = Streaming(
                self._id,
                self._control,
                self._log,
                self._settings.cdc,
                self._stream,
                replication=replication,
                sessions=(beside, plain),
                assembler=assembler,
                routes=routes,
                stored=stored,
                start=start,
                dead_letter_limit=self._settings.embedder.dead_letter_limit,
                tables=self._tables,
                healthy=self._healthy,
            )
            ended = asyncio.Event()
            watch = asyncio.create_task(self._until_moved(connection, stop, ended))
            try:
                await streaming.run(ended)
            finally:
                await cancelled(watch)

    def _healthy(self) -> None:
        """Something arrived: the next failure is a first one again."""
        self._failures = 0

    async def _until_moved(self, connection: Connection, stop: asyncio.Event, ended: asyncio.Event) -> None:
        """Ends the session on `stop`, or when the connection's address or password was changed."""
        stopping = asyncio.create_task(stop.wait())
        try:
            seen = 0
            while not stop.is_set():
                feed = asyncio.create_task(self._control.feed.changed(seen))
                try:
                    await asyncio.wait((stopping, feed), return_when=asyncio.FIRST_COMPLETED)
                    seen = self._control.feed.current.version
                finally:
                    feed.cancel()
                found = self._control.feed.current.connections.get(self._id)
                if found is None or found.dsn != connection.dsn:
                    break
        finally:
            stopping.cancel()
            ended.set()

    async def _check_wanted(self) -> None:
        """Raises NotFound when no vector table is streamed any more: the feed may be behind, the database is not."""
        if not (await self._control.definitions.snapshot()).streamed_tables(self._id):
            raise NotFound("no vector table of the connection is streamed any more.")

    async def _take_back(self, connection: Connection, stored: SourceProgress, session: Session) -> None:
        """What is stored first: a slot that nobody believes in is harmless, a belief in a slot that is gone is not."""
        await self._control.progress.put(self._id, replace(stored, lsn=0, slot_created_lsn=0))
        await slots.drop_slot(session, connection.slot)
        await slots.drop_publication(session, connection.publication)

    async def _check_server(self, session: Session, version: int) -> None:
        # PostgreSQL 19 raises the effective level by itself when a logical slot is made
        if version < 190000 and (await slots.setting(session, "wal_level")) != "logical":
            raise SourceRejected(
                "the source's wal_level is not logical.",
                "Run as a superuser: ALTER SYSTEM SET wal_level = 'logical'; then restart the server.",
            )

    async def _identify(self, replication: Replication, stored: SourceProgress) -> Identity:
        system, timeline, _position, database = (await replication.command("IDENTIFY_SYSTEM"))[0][:4]
        ends: tuple[tuple[int, int], ...] = ()
        if stored.timeline and int(timeline) != stored.timeline:
            history = await replication.command(f"TIMELINE_HISTORY {int(timeline)}")
            content = history[0][1]
            ends = parse_history(content.decode() if isinstance(content, bytes) else content)
        return Identity(str(system), int(timeline), await self._log.identity(), str(database), ends)

    # ------------------------------------------------------------------ what the gate decided

    async def _act(
        self,
        connection: Connection,
        decision: Decision,
        stored: SourceProgress,
        now: Identity,
        session: Session,
        version: int,
        stop: asyncio.Event,
    ) -> SourceProgress:
        """Tasks first, then the slot, then progress: a crash in between finds the same gap again."""
        if decision.gap is not None:
            if decision.lost and connection.on_slot_loss == "halt":
                raise SourceRejected(
                    f"{decision.gap}; the connection's policy on_slot_loss is halt.",
                    "Set on_slot_loss to rebackfill: the tables are read again then, and gone rows are swept.",
                )
            log.error("changes were lost", extra={"action": "gap", "reason": decision.gap, "epoch": decision.epoch})
            self._stream.losses += 1
            self._stream.counts.gaps += 1
            await read_again(self._control, self._tables(), decision.gap)
        progress = replace(
            stored,
            epoch=decision.epoch,
            system_identifier=now.system_identifier,
            timeline=now.timeline,
            log_identity=now.log_identity,
        )
        if decision.slot != "keep":
            if decision.slot == "recreate":
                await slots.drop_slot(session, connection.slot)
            created = await self._create_slot(connection, session, version, stop)
            if created is None:
                return stored
            progress = replace(progress, lsn=created, slot_created_lsn=created)
            self._suspect, self._unread_at = "", -1
        elif decision.gap is not None or not stored.lsn:
            found = await slots.slot_state(session, connection.slot)
            progress = replace(progress, lsn=max(stored.lsn, found.confirmed if found else 0))
        if progress != stored:
            await self._control.progress.put(self._id, progress)
        return progress

    async def _create_slot(
        self, connection: Connection, session: Session, version: int, stop: asyncio.Event
    ) -> int | None:
        """None when it was told to stop. Creation waits for open write transactions: they are shown to the user."""
        making = asyncio.create_task(slots.create_slot(session, connection.slot, version))
        stopping = asyncio.create_task(stop.wait())
        try:
            while True:
                await asyncio.wait((making, stopping), timeout=_BLOCKERS_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if making.done():
                    return making.result()
                if stopping.done():
                    return None
                other = await open_session(connection.dsn)
                try:
                    holders = "; ".join(await slots.slot_blockers(other))
                finally:
                    await other.close()
                await self._tell("error", f"the replication slot waits for open transactions: {holders}")
        finally:
            stopping.cancel()
            making.cancel()
            await asyncio.gather(making, stopping, return_exceptions=True)


def _missing(connection: Connection) -> slots.SlotState:
    raise SlotLost(f"slot {connection.slot} was dropped just now.")
