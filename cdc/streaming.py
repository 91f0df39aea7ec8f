"""One session of the stream: reads, publishes, stores, confirms, until it is told to stop or something breaks.

Five tasks in one event loop. `_read` alone takes frames; feedback runs on its own timer, so back-pressure of the log
never makes the server believe that we are gone. Rule confirm-durable: `_store` writes the durable LSN to the control
database, and only then `_confirm` tells the server. Next: `cdc.reader` decides what an end means.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any

import orjson

from cdc.assembler import Assembler, Fed
from cdc.oversized import FittingProducer
from cdc.pgoutput import LogicalMessage
from cdc.progress import Progress
from cdc.publisher import Publisher
from cdc.replication import Replication
from cdc.routes import Routes
from cdc.session import Session, source_errors
from cdc.stream import Stream
from walvec.contracts.errors import ControlUnavailable, LogUnavailable, NotFound, SourceUnavailable
from walvec.contracts.letters import DeadLetter
from walvec.contracts.snapshots import XidSnapshot
from walvec.definitions.making import ensure_topics
from walvec.definitions.model import SourceProgress, VectorTable
from walvec.definitions.ports import Control
from walvec.runtime.lifecycle import cancelled
from walvec.runtime.settings import CdcSettings
from walvec.transport.ports import Log
from walvec.transport.records import changes_topic, dead_topic, letter_record

log = logging.getLogger(__name__)

PREFIX = "walvec"
"""Of our own logical messages."""
_FRAMES, _FRAME_BYTES = 1000, 4 * 1024**2
_IN_FLIGHT_BYTES, _IN_FLIGHT_BATCHES = 16 * 1024**2, 8
_EAGER_BATCHES = 2
_CHECK_SECONDS = 5.0
_TOPICS_SECONDS = 15.0
"""How long a topic that somebody deleted may stay unnoticed while nothing is appended to it."""
_FINISH_SECONDS = 8.0


class Streaming:
    """`tables()` gives the connection's tables as they are defined now; `healthy()` is told when frames arrive."""

    def __init__(
        self,
        connection_id: str,
        control: Control,
        transport: Log,
        settings: CdcSettings,
        stream: Stream,
        *,
        replication: Replication,
        sessions: tuple[Session, Session],
        assembler: Assembler,
        routes: Routes,
        stored: SourceProgress,
        start: int,
        dead_letter_limit: int,
        tables: Callable[[], list[VectorTable]],
        healthy: Callable[[], None],
    ) -> None:
        self._connection_id = connection_id
        self._control = control
        self._log = transport
        self._settings = settings
        self._stream = stream
        self._replication = replication
        self._heartbeat_session, self._watch_session = sessions
        self._assembler = assembler
        self._routes = routes
        self._stored = stored
        self._tables = tables
        self._healthy = healthy
        self._progress = Progress(durable=start)
        self._received = start
        self._confirmed = start
        self._heard = self._pinged = time.monotonic()
        self._rows = 0
        self._latency_ms: int | None = None
        self._asked = 0
        self._store_now = asyncio.Event()
        self._publisher = Publisher(
            FittingProducer(
                transport.producer(backpressure=True),
                control,
                transport,
                tables=tables,
                limit=dead_letter_limit,
                counts=stream.counts,
            ),
            self._progress,
            max_bytes=_IN_FLIGHT_BYTES,
            max_batches=_IN_FLIGHT_BATCHES,
            wake=replication.wake,
            wanted=routes.wants_topic,
            counts=stream.counts,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Returns after `stop`, with everything in hand durable and confirmed. Raises what ended the session."""
        self._count()
        self._stream.counts.streaming = True
        self._stream.counts.heartbeat_at = self._stream.counts.feedback_at = time.monotonic()
        steps: list[Coroutine[Any, Any, None]] = [
            self._read(stop),
            self._store(),
            self._confirm(),
            self._heartbeat(),
            self._watch(),
        ]
        tasks = [asyncio.create_task(step) for step in steps]
        waker = asyncio.create_task(self._wake_on(stop))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task in done:
                    task.result()
            await self._finish()
        finally:
            await cancelled(*tasks, waker)
            await self._publisher.close()

    async def _wake_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._publisher.release()
        self._replication.wake()

    async def _finish(self) -> None:
        """What does not become durable in time is streamed again next time."""
        try:
            async with asyncio.timeout(_FINISH_SECONDS):
                await self._publisher.drained()
                await self._store_once()
        except (TimeoutError, LogUnavailable, ControlUnavailable):
            log.warning("stopped before everything in hand was durable", extra={"action": "finished_early"})
        self._replication.report(self._confirmed, received=self._received)
        await self._replication.finish(2.0)

    # ------------------------------------------------------------------ reading

    async def _read(self, stop: asyncio.Event) -> None:
        """Takes what has arrived, in runs that leave the loop to others often enough."""
        settings, publisher, assembler = self._settings, self._publisher, self._assembler
        while not stop.is_set():
            frames = self._replication.read(_FRAMES, _FRAME_BYTES)
            if frames:
                self._heard = time.monotonic()
                self._healthy()
                await self._took(assembler.feed(frames))
                batches = assembler.batches()
                count = sum(len(b.records) for b in batches)
                if count >= settings.batch_records or sum(b.size for b in batches) >= settings.batch_bytes:
                    publisher.send(batches)
                    if publisher.full:
                        await publisher.room()
                        self._heard = time.monotonic()
                await asyncio.sleep(0)
                continue
            publisher.check()
            if self._asked and self._progress.durable >= self._asked:
                self._asked = 0
                self._store_now.set()
            batches = assembler.batches()
            if batches and self._progress.outstanding < _EAGER_BATCHES:
                publisher.send(batches)
            await self._replication.wait(self._patience())
        batches = assembler.batches()
        if batches:
            publisher.send(batches)

    async def _took(self, fed: Fed) -> None:
        for xid, commit_lsn in fed.commits:
            self._stream.delivered.add(xid, commit_lsn)
        self._rows += fed.rows
        self._stream.counts.rows += fed.rows
        if fed.rejected:
            await self._dead_letters(fed)
        for table_id, error in fed.changed:
            await self._routes.stop(table_id, error)
        if fed.reached:
            self._received = max(self._received, fed.reached)
            self._progress.reached(fed.reached, held=bool(self._assembler.batches()))
            self._stream.advance(fed.reached)
        for message in fed.messages:
            if message.prefix == PREFIX:
                self._heard_message(message)
        if fed.reply_wanted:
            self._replication.report(self._confirmed, received=self._received)

    def _heard_message(self, message: LogicalMessage) -> None:
        try:
            content = orjson.loads(message.content)
            sent, drain = content.get("heartbeat"), content.get("drain")
        except (orjson.JSONDecodeError, AttributeError):
            return  # somebody else's message under our prefix
        if isinstance(sent, int):
            self._latency_ms = max(int(time.time() * 1000) - sent, 0)
            self._stream.counts.heartbeat_at = time.monotonic()
            self._stream.counts.heartbeat_seconds = self._latency_ms / 1000
        if drain:  # somebody waits until this is durable: it is stored at once then, not at the next turn
            self._asked = message.lsn

    async def _dead_letters(self, fed: Fed) -> None:
        """Durable before the change itself can be confirmed."""
        tables = {t.id: t for t in self._tables()}
        now = int(time.time() * 1000)
        letters = [
            DeadLetter(r.table_id, number, r.key, "decode", r.reason, r.position, created_ms=now)
            for r in fed.rejected
            for number in r.generations
            if r.table_id in tables
        ]
        await self._control.letters.put(letters)
        for letter in letters:
            topic = changes_topic(tables[letter.vector_table_id].storage_name)
            self._stream.counts.table(topic).buried[letter.kind] += 1
        producer = self._log.producer()
        try:
            for letter in letters:
                table = tables[letter.vector_table_id]
                topic = dead_topic(table.storage_name)
                await ensure_topics(table, topic, control=self._control, log=self._log)
                await producer.append(topic, [letter_record(letter)])
        finally:
            await producer.close()

    def _patience(self) -> float:
        """How long to wait for frames; pings a silent server, and gives it up when it stays silent."""
        limit = self._settings.liveness_timeout_seconds
        now = time.monotonic()
        silence = now - self._heard
        if silence > limit:
            raise SourceUnavailable(
                f"the source has been silent for {silence:.0f} s although it was asked.", "walvec connects anew."
            )
        if silence > limit / 3 and now - self._pinged > limit / 3:
            self._pinged = now
            self._replication.report(self._confirmed, received=self._received, ping=True)
        return limit / 6

    # ------------------------------------------------------------------ storing and confirming

    async def _store(self) -> None:
        failing = False
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.status_interval_seconds):
                    await self._store_now.wait()
            self._store_now.clear()
            self._count()
            try:
                await self._store_once()
                await self._report()
                failing = False
            except ControlUnavailable as e:
                if not failing:
                    log.warning(
                        "progress cannot be stored, nothing is confirmed meanwhile",
                        extra={"action": "progress_unstored", "reason": e.message},
                    )
                failing = True

    async def _store_once(self) -> None:
        durable = self._progress.durable
        if durable > self._stored.lsn:
            progress = replace(self._stored, lsn=durable)
            if not await self._control.progress.advance(self._connection_id, progress):
                raise NotFound("the slot that is read was given up meanwhile.")
            self._stored = progress
        self._confirmed = max(self._confirmed, min(self._stored.lsn, self._received))

    async def _confirm(self) -> None:
        while True:
            await asyncio.sleep(self._settings.status_interval_seconds)
            self._replication.report(self._confirmed, received=self._received)
            self._stream.counts.feedback_at = time.monotonic()

    def _count(self) -> None:
        counts = self._stream.counts
        counts.received, counts.durable, counts.confirmed = self._received, self._progress.durable, self._confirmed

    async def _report(self) -> None:
        await self._control.reports.put(
            "cdc",
            self._connection_id,
            {
                "state": "streaming",
                "received_lsn": self._received,
                "confirmed_lsn": self._confirmed,
                "rows": self._rows,
                "latency_ms": self._latency_ms,
                "epoch": self._stream.epoch,
            },
        )

    # ------------------------------------------------------------------ beside the stream

    async def _heartbeat(self) -> None:
        """Moves an idle database's slot, measures latency, and lets the stream forget what everybody sees."""
        session = self._heartbeat_session
        while True:
            delivered = [xid for xid, _ in self._stream.delivered.commits]
            content = orjson.dumps({"heartbeat": int(time.time() * 1000)}).decode()
            with source_errors():
                cursor = await session.execute(
                    "SELECT pg_current_snapshot()::text, CASE WHEN NOT pg_is_in_recovery()"
                    " THEN pg_logical_emit_message(true, %s, %s)::text END",
                    (PREFIX, content),
                )
                row = await cursor.fetchone()
            if row is not None:
                snapshot = XidSnapshot.parse(str(row[0]))
                self._stream.delivered.forget({xid for xid in delivered if snapshot.sees(xid)})
            await asyncio.sleep(self._settings.heartbeat_interval_seconds)

    async def _watch(self) -> None:
        """Follows the definitions, and looks whether the publication is still what it must be (PostgreSQL 18 skips
        changes of a publication that is gone without an error), and the topics still those that were routed to."""
        feed = self._control.feed
        seen = feed.current.version
        topics_at = time.monotonic() + _TOPICS_SECONDS
        while True:
            try:
                async with asyncio.timeout(_CHECK_SECONDS):
                    seen = (await feed.changed(seen)).version
            except TimeoutError:
                seen = max(seen, feed.current.version)
            tables = self._tables()
            try:
                oids = await self._routes.publish(self._watch_session, tables, first=False)
                await self._routes.apply(self._watch_session, self._routes.wanted(tables), oids)
            except (ControlUnavailable, LogUnavailable, NotFound) as e:
                log.warning("definitions not followed yet", extra={"action": "routes_later", "reason": e.message})
                continue
            await self._took(self._assembler.feed([]))
            if time.monotonic() >= topics_at:
                topics_at = time.monotonic() + _TOPICS_SECONDS
                with suppress(LogUnavailable):  # nothing is known then, and whoever appends says so
                    await self._routes.check_topics()
